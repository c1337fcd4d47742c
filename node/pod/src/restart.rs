//! Whether a container is restarted after its end, and when.
//! <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy>

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ContainerRestartRule};
use serde::{Deserialize, Serialize};

/// The rule's action that begins the whole pod anew.
const RESTART_ALL: &str = "RestartAllContainers";

const FIRST_SECONDS: u32 = 10;
const MAX_SECONDS: u32 = 300;

/// Whether a container that ended with `exit_code` is started again.
pub(crate) fn restarts(
    pod_policy: &str,
    container: &Container,
    is_init: bool,
    exit_code: i32,
) -> bool {
    if let Some(rule) =
        container.restart_policy_rules.iter().flatten().find(|r| applies(r, exit_code))
    {
        return matches!(rule.action.as_str(), "Restart" | RESTART_ALL);
    }
    match container.restart_policy.as_deref().unwrap_or(pod_policy) {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        // An ordinary init container has done its work once it succeeded.
        _ if is_init && container.restart_policy.as_deref() != Some("Always") => exit_code != 0,
        _ => true,
    }
}

/// Whether its end begins all containers of the pod anew, init containers first.
/// <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-all-containers>
pub(crate) fn restarts_all(container: &Container, exit_code: i32) -> bool {
    let mut rules = container.restart_policy_rules.iter().flatten();
    rules.find(|r| applies(r, exit_code)).is_some_and(|r| r.action == RESTART_ALL)
}

/// Whether it has a rule of that kind at all.
pub(crate) fn may_restart_all(container: &Container) -> bool {
    container.restart_policy_rules.iter().flatten().any(|r| r.action == RESTART_ALL)
}

fn applies(rule: &ContainerRestartRule, exit_code: i32) -> bool {
    rule.exit_codes.as_ref().is_some_and(|codes| {
        let listed = codes.values.iter().flatten().any(|c| *c == exit_code);
        match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    })
}

/// How a container's restarts are held back: the first is immediate, then 10 s doubling to 300 s;
/// forgotten when a run lasted 10 minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Backoff {
    pub delay_seconds: u32,
    /// When the delay was last raised: the last restart.
    pub since: Timestamp,
}

impl Backoff {
    /// Until when a container that ended at `finished` waits; None when it need not.
    pub fn wait_until(
        entry: Option<&Self>,
        finished: Timestamp,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let entry = entry.filter(|e| !e.expired(finished))?;
        let delay = SignedDuration::from_secs(entry.delay_seconds.into());
        // A clock that was set back must not make anybody wait longer than the delay.
        let until = finished.min(now).saturating_add(delay).ok()?;
        (until > now).then_some(until)
    }

    /// The entry after one more restart at `now` of a container that ended at `finished`.
    pub fn next(entry: Option<&Self>, finished: Timestamp, now: Timestamp) -> Self {
        let delay_seconds = match entry.filter(|e| !e.expired(finished)) {
            Some(e) => (e.delay_seconds * 2).min(MAX_SECONDS),
            None => FIRST_SECONDS,
        };
        Self { delay_seconds, since: now }
    }

    fn expired(&self, finished: Timestamp) -> bool {
        finished.duration_since(self.since) > SignedDuration::from_secs(2 * i64::from(MAX_SECONDS))
    }
}

/// The delay after `failures` failures in a row of something that is retried: 10 s doubling to 300 s.
pub(crate) fn retry_delay(failures: u32) -> SignedDuration {
    let doubled =
        FIRST_SECONDS.checked_shl(failures.saturating_sub(1).min(10)).unwrap_or(MAX_SECONDS);
    SignedDuration::from_secs(doubled.min(MAX_SECONDS).into())
}

/// A duration of whole seconds as Go prints it: `10s`, `1m20s`, `5m0s`.
pub(crate) fn go_seconds(seconds: u32) -> String {
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s}s"),
        (m, s) => format!("{m}m{s}s"),
    }
}

/// A measured duration as Go prints it when cut to milliseconds: `0s`, `850ms`, `1.25s`, `1m2.5s`.
pub(crate) fn go_millis(duration: std::time::Duration) -> String {
    let millis = duration.as_millis() as u64;
    if millis == 0 {
        return "0s".into();
    }
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    if minutes == 0 { format!("{seconds}s") } else { format!("{minutes}m{seconds}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    #[test]
    fn policies() {
        #[track_caller]
        fn check(pod: &str, container: serde_json::Value, init: bool, code: i32, expected: bool) {
            let container = serde_json::from_value(container).unwrap();
            assert_eq!(restarts(pod, &container, init, code), expected);
        }
        let plain = serde_json::json!({"name": "c"});
        check("Always", plain.clone(), false, 0, true);
        check("OnFailure", plain.clone(), false, 0, false);
        check("OnFailure", plain.clone(), false, 1, true);
        check("Never", plain.clone(), false, 1, false);
        check("Always", plain.clone(), true, 0, false);
        check("Always", plain.clone(), true, 1, true);
        check("Never", plain, true, 1, false);
        let sidecar = serde_json::json!({"name": "c", "restartPolicy": "Always"});
        check("Never", sidecar, true, 0, true);
        let rules = serde_json::json!({"name": "c", "restartPolicy": "Never", "restartPolicyRules":
            [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]});
        check("Always", rules.clone(), false, 42, true);
        check("Always", rules, false, 1, false);
    }

    #[test]
    fn delays_double_and_are_forgotten() {
        // (finished, restarted) of each run in turn, and the delay that held the restart back.
        let mut entry = None;
        let mut time = 0;
        for expected in [0, 10, 20, 40, 80, 160, 300, 300] {
            time += 1;
            let until = Backoff::wait_until(entry.as_ref(), at(time), at(time));
            assert_eq!(until, (expected > 0).then(|| at(time + expected)));
            let restarted = at(time + expected);
            entry = Some(Backoff::next(entry.as_ref(), at(time), restarted));
            time += expected;
        }
        // It ran for ten minutes: as good as new.
        let finished = time + 601;
        assert_eq!(Backoff::wait_until(entry.as_ref(), at(finished), at(finished)), None);
        assert_eq!(Backoff::next(entry.as_ref(), at(finished), at(finished)).delay_seconds, 10);
    }

    #[test]
    fn go_texts() {
        let check = |s, text| assert_eq!(go_seconds(s), text);
        check(10, "10s");
        check(80, "1m20s");
        check(300, "5m0s");
        let check = |ms, text| assert_eq!(go_millis(std::time::Duration::from_millis(ms)), text);
        check(0, "0s");
        check(850, "850ms");
        check(1250, "1.25s");
        check(3000, "3s");
        check(62_500, "1m2.5s");
    }
}
