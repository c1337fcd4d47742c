//! Fair queueing of requests: pure, with the time given.
//!
//! Requests of one flow are dealt a small hand of the queues, always the same one, and wait in the
//! shortest of it; so a flow that floods its hand leaves most others a queue that it does not share.
//! Whose turn it is, virtual time decides: each queue is charged for the seat-seconds that its
//! requests took, a guess when they start and the truth when they end.
//! <https://kubernetes.io/docs/concepts/cluster-administration/flow-control/>

use std::collections::VecDeque;

/// Seconds that a request is guessed to take.
const GUESS: f64 = 0.003;

/// How a priority level queues. No queues: who finds no seat is turned away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub queues: usize,
    pub hand: usize,
    /// The most requests that wait in one queue.
    pub length: usize,
}

/// The queues and seats of one priority level.
#[derive(Debug, Default)]
pub struct Queues {
    shape: Shape,
    /// Seats.
    limit: usize,
    taken: usize,
    waiting: usize,
    /// Seats of those who wait.
    wanted: usize,
    queues: Vec<Queue>,
    /// Virtual time, and the seconds up to which it was advanced.
    round: f64,
    at: f64,
    /// Queues with requests that wait or run.
    active: usize,
    next: usize,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<(u64, usize)>,
    /// Requests and seats that run.
    running: usize,
    seats: usize,
    /// The virtual time at which the next request of the queue would start.
    start: f64,
}

/// Seats that a request has.
#[derive(Debug)]
pub struct Place {
    queue: Option<usize>,
    seats: usize,
    began: f64,
}

/// What becomes of a request that comes.
#[derive(Debug)]
pub enum Arrival {
    Run(Place),
    Wait,
    /// Its queue is full.
    QueueFull,
    /// The level has no queues and no seat is free.
    NoSeat,
}

impl Queues {
    pub fn set(&mut self, shape: Shape, limit: usize) {
        self.shape = shape;
        self.limit = limit;
        if self.queues.len() < shape.queues {
            self.queues.resize_with(shape.queues, Queue::default);
        }
        // Requests of a queue that is no longer dealt are still served; then it goes.
        let idle = |q: &Queue| q.waiting.is_empty() && q.running == 0;
        while self.queues.len() > shape.queues && self.queues.last().is_some_and(idle) {
            self.queues.pop();
        }
    }

    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    pub fn hand(&self) -> usize {
        self.shape.hand
    }

    /// Seats that are taken or wanted.
    pub fn demand(&self) -> usize {
        self.taken + self.wanted
    }

    pub fn waiting(&self) -> usize {
        self.waiting
    }

    pub fn taken(&self) -> usize {
        self.taken
    }

    /// A request of a flow comes. One that has to wait is known by `id` until [`Self::next`] names it.
    pub fn arrive(&mut self, now: f64, flow: u64, seats: usize, id: u64) -> Arrival {
        self.advance(now);
        if self.shape.queues == 0 {
            return match self.fits(seats) {
                true => Arrival::Run(self.take(now, None, seats)),
                false => Arrival::NoSeat,
            };
        }
        let queue = self.shortest(flow);
        if self.waiting == 0 && self.fits(seats) {
            self.activate(queue);
            return Arrival::Run(self.take(now, Some(queue), seats));
        }
        if self.queues[queue].waiting.len() >= self.shape.length {
            return Arrival::QueueFull;
        }
        self.activate(queue);
        self.queues[queue].waiting.push_back((id, seats));
        self.waiting += 1;
        self.wanted += seats;
        Arrival::Wait
    }

    /// The request whose turn it is, if there are seats for it.
    pub fn next(&mut self, now: f64) -> Option<(u64, Place)> {
        if self.waiting == 0 {
            return None;
        }
        self.advance(now);
        let count = self.queues.len();
        let finish = |q: &Queue| {
            let (_, seats) = q.waiting.front()?;
            Some(q.start + GUESS * *seats as f64)
        };
        // From where the last search ended, so that equals take turns.
        let turns = (0..count).map(|i| (self.next + i) % count);
        let (queue, _) = turns
            .filter_map(|i| Some((i, finish(&self.queues[i])?)))
            .min_by(|a, b| a.1.total_cmp(&b.1))?;
        let (id, seats) = *self.queues[queue].waiting.front().expect("it was found by its first");
        if !self.fits(seats) {
            return None;
        }
        self.queues[queue].waiting.pop_front();
        self.waiting -= 1;
        self.wanted -= seats;
        self.next = (queue + 1) % count;
        Some((id, self.take(now, Some(queue), seats)))
    }

    /// A request is over.
    pub fn finish(&mut self, now: f64, place: &Place) {
        self.advance(now);
        self.taken -= place.seats;
        let Some(queue) = place.queue.and_then(|q| self.queues.get_mut(q)) else { return };
        queue.running -= 1;
        queue.seats -= place.seats;
        queue.start += (now - place.began - GUESS) * place.seats as f64;
        if queue.running == 0 && queue.waiting.is_empty() {
            self.active -= 1;
        }
    }

    /// A request gives up waiting.
    pub fn leave(&mut self, now: f64, id: u64) {
        self.advance(now);
        for queue in &mut self.queues {
            let Some(at) = queue.waiting.iter().position(|(i, _)| *i == id) else { continue };
            let (_, seats) = queue.waiting.remove(at).expect("it was just found");
            self.waiting -= 1;
            self.wanted -= seats;
            if queue.running == 0 && queue.waiting.is_empty() {
                self.active -= 1;
            }
            return;
        }
    }

    /// A request wider than the whole level runs when it is alone.
    fn fits(&self, seats: usize) -> bool {
        self.taken + seats <= self.limit || self.taken == 0
    }

    fn take(&mut self, now: f64, queue: Option<usize>, seats: usize) -> Place {
        self.taken += seats;
        if let Some(queue) = queue.map(|q| &mut self.queues[q]) {
            queue.running += 1;
            queue.seats += seats;
            queue.start += GUESS * seats as f64;
        }
        Place { queue, seats, began: now }
    }

    fn activate(&mut self, queue: usize) {
        let queue = &mut self.queues[queue];
        if queue.running == 0 && queue.waiting.is_empty() {
            queue.start = self.round;
            self.active += 1;
        }
    }

    fn advance(&mut self, now: f64) {
        let passed = (now - self.at).max(0.0);
        self.at = self.at.max(now);
        if self.active > 0 {
            self.round += passed * self.taken.min(self.limit) as f64 / self.active as f64;
        }
    }

    /// The queue with the least to do of the flow's hand.
    fn shortest(&self, flow: u64) -> usize {
        let work = |i: &usize| {
            let queue = &self.queues[*i];
            queue.seats + queue.waiting.iter().map(|(_, seats)| seats).sum::<usize>()
        };
        deal(flow, self.shape.queues, self.shape.hand).into_iter().min_by_key(work).unwrap_or(0)
    }
}

/// A hand of different queues out of a deck, the same for the same flow.
fn deal(flow: u64, deck: usize, hand: usize) -> Vec<usize> {
    let mut rest = flow;
    let mut dealt: Vec<usize> = Vec::with_capacity(hand);
    for i in 0..hand.min(deck) {
        let left = (deck - i) as u64;
        let mut card = (rest % left) as usize;
        rest /= left;
        // The card is counted among those that are left.
        let at = dealt.iter().position(|taken| {
            let above = card < *taken;
            card += usize::from(!above);
            above
        });
        dealt.insert(at.unwrap_or(dealt.len()), card);
    }
    dealt
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { queues: 16, hand: 4, length: 50 };

    fn level(limit: usize) -> Queues {
        let mut queues = Queues::default();
        queues.set(SHAPE, limit);
        queues
    }

    fn hash(flow: u64) -> u64 {
        flow.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (flow << 7)
    }

    #[test]
    fn hands_are_of_different_queues() {
        for flow in 0..2000 {
            let mut hand = deal(hash(flow), 16, 4);
            hand.dedup();
            assert_eq!(hand.len(), 4, "{hand:?}");
            assert!(hand.is_sorted() && hand[3] < 16, "{hand:?}");
        }
        assert_eq!(deal(7, 1, 1), [0]);
        assert_eq!(deal(u64::MAX, 3, 8).len(), 3);
    }

    #[test]
    fn without_queues_who_finds_no_seat_is_turned_away() {
        let mut level = Queues::default();
        level.set(Shape::default(), 2);
        let Arrival::Run(first) = level.arrive(0.0, 1, 1, 1) else { panic!("a seat is free") };
        assert!(matches!(level.arrive(0.0, 2, 2, 2), Arrival::NoSeat));
        assert!(matches!(level.arrive(0.0, 2, 1, 3), Arrival::Run(_)));
        assert!(matches!(level.arrive(0.0, 2, 1, 4), Arrival::NoSeat));
        level.finish(1.0, &first);
        assert!(matches!(level.arrive(1.0, 2, 1, 5), Arrival::Run(_)));
    }

    #[test]
    fn a_request_wider_than_the_level_runs_alone() {
        let mut level = level(2);
        let Arrival::Run(wide) = level.arrive(0.0, 1, 10, 1) else {
            panic!("nobody else is there")
        };
        assert!(matches!(level.arrive(0.0, 2, 1, 2), Arrival::Wait));
        assert!(level.next(0.0).is_none());
        level.finish(1.0, &wide);
        assert_eq!(level.next(1.0).map(|(id, _)| id), Some(2));
    }

    /// One flow sends all it can, another a request at a time: the quiet one is served as fast as if
    /// it had half of the seats.
    #[test]
    fn a_flood_does_not_starve() {
        let mut level = level(4);
        let mut running: Vec<(f64, u64, Place)> = Vec::new();
        let (mut now, mut id, mut full, mut quiet_served, mut loud_served) = (0.0, 0u64, 0, 0, 0);
        let (loud, quiet) = (hash(1), hash(2));
        let mut quiet_waits = false;
        let mut owner = std::collections::HashMap::new();
        while now < 20.0 {
            for _ in 0..40 {
                id += 1;
                owner.insert(id, loud);
                match level.arrive(now, loud, 1, id) {
                    Arrival::Run(place) => running.push((now + 0.1, loud, place)),
                    Arrival::QueueFull => full += 1,
                    _ => {}
                }
            }
            if !quiet_waits {
                id += 1;
                owner.insert(id, quiet);
                match level.arrive(now, quiet, 1, id) {
                    Arrival::Run(place) => running.push((now + 0.1, quiet, place)),
                    Arrival::Wait => {}
                    other => panic!("the quiet flow was turned away: {other:?}"),
                }
                quiet_waits = true;
            }
            now += 0.01;
            let (over, still): (Vec<_>, Vec<_>) =
                running.drain(..).partition(|(end, ..)| *end <= now);
            running = still;
            for (_, flow, place) in over {
                level.finish(now, &place);
                if flow == quiet {
                    quiet_waits = false;
                    quiet_served += 1;
                } else {
                    loud_served += 1;
                }
            }
            while let Some((id, place)) = level.next(now) {
                running.push((now + 0.1, owner[&id], place));
            }
        }
        assert!(full > 0, "the flood met the end of its queues");
        // Alone it would be served 200 times, one after the other.
        assert!(quiet_served > 80, "{quiet_served} of the quiet, {loud_served} of the loud");
        assert!(loud_served > 400, "the rest of the seats are not idle: {loud_served}");
    }

    #[test]
    fn whoever_leaves_is_forgotten() {
        let mut level = level(1);
        let Arrival::Run(first) = level.arrive(0.0, 1, 1, 1) else { panic!("a seat is free") };
        assert!(matches!(level.arrive(0.0, 1, 1, 2), Arrival::Wait));
        assert!(matches!(level.arrive(0.0, 1, 1, 3), Arrival::Wait));
        assert_eq!(level.demand(), 3);
        level.leave(0.1, 2);
        level.finish(0.2, &first);
        let (id, place) = level.next(0.2).expect("one waits");
        assert_eq!(id, 3);
        level.finish(0.3, &place);
        assert_eq!((level.demand(), level.waiting(), level.active), (0, 0, 0));
        // Fewer queues later: nothing is lost.
        level.set(Shape { queues: 1, hand: 1, length: 1 }, 1);
        assert_eq!(level.queues.len(), 1);
        assert!(matches!(level.arrive(0.4, 9, 1, 4), Arrival::Run(_)));
    }
}
