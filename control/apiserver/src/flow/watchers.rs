//! Who watches what: a write is not done when it is answered, it goes out to everybody who watches.
//! <https://kubernetes.io/docs/concepts/cluster-administration/flow-control/#seats-occupied-by-a-request>

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;

use crate::request::Resource;

/// Watchers that one seat serves.
const PER_SEAT: usize = 10;
/// How long it takes a seat to serve them. Kubernetes reckons with ten times as much: there an event is
/// encoded for each of them.
const EVENT: Duration = Duration::from_micros(500);

/// Group, resource and namespace; an empty namespace is all of them.
type Scope = (String, String, String);

/// How many watch which resource.
#[derive(Default)]
pub struct Watchers(Arc<RwLock<HashMap<Scope, usize>>>);

/// One who watches; dropped when the watch ends.
pub struct Watching {
    all: Arc<RwLock<HashMap<Scope, usize>>>,
    scope: Scope,
}

/// What a write is charged with beyond its own work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FanOut {
    pub seats: usize,
    pub lasts: Duration,
}

impl Watchers {
    pub fn add(&self, target: &Resource) -> Watching {
        let scope = (target.group.clone(), target.resource.clone(), target.namespace.clone());
        *self.0.write().entry(scope.clone()).or_default() += 1;
        Watching { all: self.0.clone(), scope }
    }

    /// What it costs to tell all who watch of a write; None where they are few.
    pub fn fan_out(&self, target: &Resource, seats_max: usize) -> Option<FanOut> {
        let all = self.0.read();
        if all.is_empty() {
            return None;
        }
        let scope =
            |namespace: &str| (target.group.clone(), target.resource.clone(), namespace.to_owned());
        let mut watchers = all.get(&scope("")).copied().unwrap_or(0);
        if !target.namespace.is_empty() {
            watchers += all.get(&scope(&target.namespace)).copied().unwrap_or(0);
        }
        fan_out(watchers, seats_max)
    }
}

/// The work stays the same when there are fewer seats for it: then it lasts longer.
fn fan_out(watchers: usize, seats_max: usize) -> Option<FanOut> {
    let wanted = watchers.div_ceil(PER_SEAT);
    let seats = wanted.min(seats_max.max(1));
    (watchers >= PER_SEAT).then(|| FanOut { seats, lasts: EVENT * wanted as u32 / seats as u32 })
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut all = self.all.write();
        if let Some(count) = all.get_mut(&self.scope) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.scope);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_charged_for_who_watches() {
        let target = |namespace: &str| Resource {
            resource: "pods".into(),
            namespace: namespace.into(),
            ..Resource::default()
        };
        let watchers = Watchers::default();
        let everywhere: Vec<_> = (0..6).map(|_| watchers.add(&target(""))).collect();
        let inside: Vec<_> = (0..6).map(|_| watchers.add(&target("a"))).collect();
        let charged = |namespace: &str| watchers.fan_out(&target(namespace), 10).map(|f| f.seats);
        assert_eq!((charged("a"), charged("b"), charged("")), (Some(2), None, None));
        drop(inside);
        assert_eq!(charged("a"), None);
        drop(everywhere);
        assert!(watchers.0.read().is_empty());
        // 1,000 are 100 seats for one event, or ten for ten.
        let lasts = EVENT * 10;
        assert_eq!(fan_out(1000, 10), Some(FanOut { seats: 10, lasts }));
        assert_eq!(fan_out(9, 10), None);
    }
}
