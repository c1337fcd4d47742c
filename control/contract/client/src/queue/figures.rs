//! What work queues tell of themselves, by the names and buckets that client-go has for it.
//! <https://kubernetes.io/docs/reference/instrumentation/metrics/>

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

/// Upper bounds in microseconds: one, and nine times ten times more.
const BOUNDS_US: [u64; 10] =
    [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000];

/// How many times lay below each bound, and their sum.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// By bound, each without those below; the last has no bound.
    counts: [u64; BOUNDS_US.len() + 1],
    sum: Duration,
}

impl Times {
    pub fn observe(&mut self, took: Duration) {
        let place = BOUNDS_US.iter().position(|us| took <= Duration::from_micros(*us));
        self.counts[place.unwrap_or(BOUNDS_US.len())] += 1;
        self.sum += took;
    }

    fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.sum += other.sum;
    }

    fn encode(&self, name: &str, queue: &str, out: &mut String) {
        let mut below = 0;
        let bounds = BOUNDS_US.iter().map(|us| (*us as f64 / 1e6).to_string());
        for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(self.counts) {
            below += count;
            line(out, format_args!("{name}_bucket{{name=\"{queue}\",le=\"{bound}\"}} {below}"));
        }
        line(out, format_args!("{name}_sum{{name=\"{queue}\"}} {}", self.sum.as_secs_f64()));
        line(out, format_args!("{name}_count{{name=\"{queue}\"}} {below}"));
    }
}

/// One queue, now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Keys that wait for a worker.
    pub depth: usize,
    pub adds: u64,
    /// Keys that were put off.
    pub retries: u64,
    /// From being added to being worked on.
    pub waited: Times,
    pub worked: Times,
    /// Of work that is not done yet: the sum, and the longest.
    pub unfinished: Duration,
    pub longest: Duration,
}

impl Figures {
    fn merge(&mut self, other: &Self) {
        self.depth += other.depth;
        self.adds += other.adds;
        self.retries += other.retries;
        self.waited.merge(&other.waited);
        self.worked.merge(&other.worked);
        self.unfinished += other.unfinished;
        self.longest = self.longest.max(other.longest);
    }
}

/// Whatever tells [`Figures`].
pub trait Told: Send + Sync {
    fn figures(&self) -> Figures;
}

/// The queues of a process, by name. Holds none of them.
#[derive(Clone, Default)]
pub struct Queues(Arc<Mutex<Vec<Named>>>);

type Named = (String, Weak<dyn Told>);

/// A number that is told of each queue.
struct Number {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    of: fn(&Figures) -> f64,
}

const NUMBERS: [Number; 5] = [
    Number {
        name: "workqueue_depth",
        kind: "gauge",
        help: "Keys that wait for a worker",
        of: |f| f.depth as f64,
    },
    Number {
        name: "workqueue_adds_total",
        kind: "counter",
        help: "Keys that were added",
        of: |f| f.adds as f64,
    },
    Number {
        name: "workqueue_retries_total",
        kind: "counter",
        help: "Keys that were put off",
        of: |f| f.retries as f64,
    },
    Number {
        name: "workqueue_unfinished_work_seconds",
        kind: "gauge",
        help: "Time of all work that is not done",
        of: |f| f.unfinished.as_secs_f64(),
    },
    Number {
        name: "workqueue_longest_running_processor_seconds",
        kind: "gauge",
        help: "Time of the oldest work that is not done",
        of: |f| f.longest.as_secs_f64(),
    },
];

impl std::fmt::Debug for Queues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<String> = self.0.lock().iter().map(|(name, _)| name.clone()).collect();
        f.debug_tuple("Queues").field(&names).finish()
    }
}

impl Queues {
    /// From now on a queue is told of under a name; those of one name are told as one.
    pub fn add(&self, name: &str, queue: &Arc<impl Told + 'static>) {
        let queue: Weak<dyn Told> = Arc::downgrade(&(queue.clone() as Arc<dyn Told>));
        self.0.lock().push((name.to_owned(), queue));
    }

    /// Appends all of it in the text format of Prometheus.
    pub fn encode(&self, out: &mut String) {
        let mut all: BTreeMap<String, Figures> = BTreeMap::new();
        self.0.lock().retain(|(name, queue)| {
            let Some(queue) = queue.upgrade() else { return false };
            all.entry(name.clone()).or_default().merge(&queue.figures());
            true
        });
        for Number { name, kind, help, of } in NUMBERS {
            declare(out, name, kind, help);
            for (queue, figures) in &all {
                line(out, format_args!("{name}{{name=\"{queue}\"}} {}", of(figures)));
            }
        }
        let (waited, worked) =
            ("workqueue_queue_duration_seconds", "workqueue_work_duration_seconds");
        declare(out, waited, "histogram", "Time from adding a key to its work");
        all.iter().for_each(|(queue, figures)| figures.waited.encode(waited, queue, out));
        declare(out, worked, "histogram", "Time of the work on a key");
        all.iter().for_each(|(queue, figures)| figures.worked.encode(worked, queue, out));
    }
}

fn declare(out: &mut String, name: &str, kind: &str, help: &str) {
    line(out, format_args!("# HELP {name} {help}."));
    line(out, format_args!("# TYPE {name} {kind}"));
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("writing to a String cannot fail");
}
