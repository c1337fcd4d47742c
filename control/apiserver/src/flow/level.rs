//! One priority level: its settings, and who runs and waits on it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::queues::{Arrival, Place, Queues, Shape};
use super::shares::Claim;

/// How long a request waits for a seat: a quarter of what a request may take, as Kubernetes has it.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// How much of the demand seen before still counts when seats are divided anew.
const MEMORY: f64 = 0.8;

/// `flowcontrol.apiserver.k8s.io/v1` PriorityLevelConfigurationSpec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Spec {
    r#type: String,
    limited: Limited,
    exempt: Limited,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Limited {
    nominal_concurrency_shares: Option<u64>,
    lendable_percent: Option<u64>,
    borrowing_limit_percent: Option<u64>,
    limit_response: LimitResponse,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct LimitResponse {
    r#type: String,
    queuing: Option<Queuing>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Queuing {
    queues: usize,
    hand_size: usize,
    queue_length_limit: usize,
}

impl Default for Queuing {
    fn default() -> Self {
        Self { queues: 64, hand_size: 8, queue_length_limit: 50 }
    }
}

impl Spec {
    pub fn exempt(&self) -> bool {
        self.r#type == "Exempt"
    }

    pub fn shares(&self) -> u64 {
        match self.exempt() {
            true => self.exempt.nominal_concurrency_shares.unwrap_or(0),
            false => self.limited.nominal_concurrency_shares.unwrap_or(30),
        }
    }

    fn shape(&self) -> Shape {
        let response = &self.limited.limit_response;
        if response.r#type != "Queue" {
            return Shape::default();
        }
        let queuing = response.queuing.clone().unwrap_or_default();
        Shape {
            queues: queuing.queues.clamp(1, 10_000),
            hand: queuing.hand_size.max(1),
            length: queuing.queue_length_limit.max(1),
        }
    }

    /// What it keeps and what it may have, of `nominal` seats of its own and `total` in all.
    fn bounds(&self, nominal: usize, total: usize) -> (usize, usize) {
        let part = |percent: u64| (nominal as f64 * percent as f64 / 100.0).round() as usize;
        let lent = part(self.limited.lendable_percent.unwrap_or(0).min(100));
        let borrowed = self.limited.borrowing_limit_percent.map(part);
        (nominal - lent.min(nominal), borrowed.map_or(total, |b| (nominal + b).min(total)))
    }
}

pub struct Level {
    pub name: String,
    exempt: AtomicBool,
    born: Instant,
    state: Mutex<State>,
    pub counts: Counts,
}

/// What became of requests.
#[derive(Debug, Default)]
pub struct Counts {
    pub dispatched: AtomicU64,
    pub queue_full: AtomicU64,
    pub no_seat: AtomicU64,
    pub timed_out: AtomicU64,
    /// Requests of an exempt level that run now.
    pub exempt: AtomicU64,
}

#[derive(Default)]
struct State {
    queues: Queues,
    waiters: HashMap<u64, oneshot::Sender<Place>>,
    last: u64,
    nominal: usize,
    bounds: (usize, usize),
    /// The largest demand since seats were last divided, and its memory.
    peak: usize,
    smoothed: f64,
}

/// No seat.
pub struct TurnedAway;

impl Level {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            exempt: AtomicBool::new(false),
            born: Instant::now(),
            state: Mutex::default(),
            counts: Counts::default(),
        }
    }

    /// Takes on settings; requests that wait stay where they are.
    pub fn set(&self, spec: &Spec, nominal: usize, total: usize) {
        self.exempt.store(spec.exempt(), Ordering::Relaxed);
        let mut state = self.state.lock();
        (state.nominal, state.bounds) = (nominal, spec.bounds(nominal, total));
        state.queues.set(spec.shape(), nominal);
        self.dispatch(&mut state);
    }

    pub fn is_exempt(&self) -> bool {
        self.exempt.load(Ordering::Relaxed)
    }

    /// A seat, at once or when it is this request's turn. `pressed` hears when somebody must wait.
    pub async fn enter(
        self: &Arc<Self>,
        flow: u64,
        seats: usize,
        pressed: &Notify,
    ) -> Result<Seat, TurnedAway> {
        if self.is_exempt() {
            self.counts.dispatched.fetch_add(1, Ordering::Relaxed);
            self.counts.exempt.fetch_add(1, Ordering::Relaxed);
            return Ok(Seat::new(self.clone(), None));
        }
        let mut waiting = {
            let mut state = self.state.lock();
            let state = &mut *state;
            let now = self.now();
            state.last += 1;
            let id = state.last;
            let arrival = state.queues.arrive(now, flow, seats.max(1), id);
            state.peak = state.peak.max(state.queues.demand());
            match arrival {
                Arrival::Run(place) => {
                    self.counts.dispatched.fetch_add(1, Ordering::Relaxed);
                    return Ok(Seat::new(self.clone(), Some(place)));
                }
                Arrival::QueueFull => {
                    self.counts.queue_full.fetch_add(1, Ordering::Relaxed);
                    return Err(TurnedAway);
                }
                Arrival::NoSeat => {
                    state.peak = state.peak.max(state.queues.demand() + seats);
                    self.counts.no_seat.fetch_add(1, Ordering::Relaxed);
                    pressed.notify_one();
                    return Err(TurnedAway);
                }
                Arrival::Wait => {
                    let (turn, place) = oneshot::channel();
                    state.waiters.insert(id, turn);
                    Waiting { level: self.clone(), id, place }
                }
            }
        };
        pressed.notify_one();
        match tokio::time::timeout(WAIT_MAX, &mut waiting.place).await {
            Ok(Ok(place)) => Ok(Seat::new(self.clone(), Some(place))),
            _ => {
                self.counts.timed_out.fetch_add(1, Ordering::Relaxed);
                Err(TurnedAway)
            }
        }
    }

    /// The most seats that one request of this level is charged with: a small part of its own, so that
    /// the flows of one hand do not take all of them.
    pub fn seats_max(&self) -> usize {
        let state = self.state.lock();
        let hand = state.queues.hand().max(1);
        ((state.nominal as f64 * 0.15 / hand as f64).ceil() as usize).clamp(1, 10)
    }

    /// Seats of an exempt level that are taken; it has no others.
    pub fn exempted(&self) -> usize {
        self.counts.exempt.load(Ordering::Relaxed) as usize
    }

    /// What it claims since it was last asked; None for an exempt level.
    pub fn claim(&self) -> Option<Claim> {
        if self.is_exempt() {
            return None;
        }
        let mut state = self.state.lock();
        let now = state.queues.demand();
        let peak = std::mem::replace(&mut state.peak, now);
        state.smoothed = (state.smoothed * MEMORY).max(peak as f64);
        let (min, max) = state.bounds;
        let wants = state.smoothed;
        let least = min.max(state.nominal.min(peak)).min(max);
        Some(Claim { min: least, max, wants: wants.max(least as f64) })
    }

    /// Gives it other seats than its own for a while; None gives back its own.
    pub fn lend(&self, seats: Option<usize>) {
        let mut state = self.state.lock();
        let seats = seats.unwrap_or(state.nominal);
        state.queues.set_limit(seats);
        self.dispatch(&mut state);
    }

    /// Whether it asks for no more than it has by its shares.
    pub fn content(&self) -> bool {
        let state = self.state.lock();
        state.queues.waiting() == 0 && state.smoothed <= state.nominal as f64
    }

    pub fn show(&self) -> Shown {
        let state = self.state.lock();
        Shown {
            nominal: state.nominal,
            limit: state.queues.limit(),
            taken: state.queues.taken(),
            waiting: state.queues.waiting(),
        }
    }

    fn now(&self) -> f64 {
        self.born.elapsed().as_secs_f64()
    }

    fn dispatch(&self, state: &mut State) {
        let now = self.now();
        while let Some((id, place)) = state.queues.next(now) {
            let turn = state.waiters.remove(&id).expect("who waits is known");
            match turn.send(place) {
                Ok(()) => _ = self.counts.dispatched.fetch_add(1, Ordering::Relaxed),
                // Its client left just now.
                Err(place) => state.queues.finish(now, &place),
            }
        }
    }

    fn give_back(&self, place: &Place) {
        let mut state = self.state.lock();
        state.queues.finish(self.now(), place);
        self.dispatch(&mut state);
    }
}

/// How a level is now, in seats and (waiting) requests.
pub struct Shown {
    pub nominal: usize,
    pub limit: usize,
    pub taken: usize,
    pub waiting: usize,
}

/// A request's seats; dropping gives them back.
pub struct Seat {
    level: Arc<Level>,
    place: Option<Place>,
    /// How long its work goes on once it is answered.
    after: Duration,
}

impl Seat {
    fn new(level: Arc<Level>, place: Option<Place>) -> Self {
        Self { level, place, after: Duration::ZERO }
    }

    /// Keeps the seats for so long after they are dropped, unless the level has none to keep.
    pub fn lasting(mut self, after: Duration) -> Self {
        self.after = after;
        self
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else {
            self.level.counts.exempt.fetch_sub(1, Ordering::Relaxed);
            return;
        };
        let runtime = tokio::runtime::Handle::try_current().ok().filter(|_| !self.after.is_zero());
        let Some(runtime) = runtime else { return self.level.give_back(&place) };
        let (level, after) = (self.level.clone(), self.after);
        runtime.spawn(async move {
            tokio::time::sleep(after).await;
            level.give_back(&place);
        });
    }
}

/// A request in a queue; dropping takes it out, whether its turn had come or not.
struct Waiting {
    level: Arc<Level>,
    id: u64,
    place: oneshot::Receiver<Place>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.level.state.lock();
        if state.waiters.remove(&self.id).is_some() {
            let now = self.level.now();
            state.queues.leave(now, self.id);
        } else if let Ok(place) = self.place.try_recv() {
            state.queues.finish(self.level.now(), &place);
        }
        self.level.dispatch(&mut state);
    }
}
