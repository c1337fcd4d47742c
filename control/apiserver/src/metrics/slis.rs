//! `/metrics/slis`: the checks of health, as service levels are measured by.
//! <https://kubernetes.io/docs/reference/instrumentation/slis/>

use std::collections::BTreeMap;
use std::fmt::Write as _;

use parking_lot::Mutex;

use crate::health::Check;

#[derive(Default)]
struct Seen {
    well: bool,
    successes: u64,
    errors: u64,
}

/// By endpoint and name.
#[derive(Default)]
pub struct Slis(Mutex<BTreeMap<(&'static str, String), Seen>>);

impl Slis {
    /// Counts how the checks of an endpoint stand.
    pub fn looked(&self, endpoint: &'static str, checks: &[Check]) {
        let mut all = self.0.lock();
        for check in checks {
            let seen = all.entry((endpoint, check.name.clone())).or_default();
            seen.well = check.well;
            *(if check.well { &mut seen.successes } else { &mut seen.errors }) += 1;
        }
    }

    pub fn encode(&self, out: &mut String) {
        let all = self.0.lock();
        let mut line =
            |text: String| writeln!(out, "{text}").expect("writing to a String cannot fail");
        line("# HELP kubernetes_healthcheck How a check of health stands.".into());
        line("# TYPE kubernetes_healthcheck gauge".into());
        for ((endpoint, name), seen) in all.iter() {
            let well = u8::from(seen.well);
            line(format!("kubernetes_healthcheck{{name=\"{name}\",type=\"{endpoint}\"}} {well}"));
        }
        line("# HELP kubernetes_healthchecks_total How checks of health stood.".into());
        line("# TYPE kubernetes_healthchecks_total counter".into());
        for ((endpoint, name), seen) in all.iter() {
            for (status, count) in [("success", seen.successes), ("error", seen.errors)] {
                if count > 0 {
                    line(format!(
                        "kubernetes_healthchecks_total{{name=\"{name}\",status=\"{status}\",type=\"{endpoint}\"}} {count}"
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        let slis = Slis::default();
        for well in [true, true, false] {
            slis.looked("livez", &[Check { name: "etcd".into(), well }]);
        }
        let mut out = String::new();
        slis.encode(&mut out);
        for line in [
            "kubernetes_healthcheck{name=\"etcd\",type=\"livez\"} 0\n",
            "kubernetes_healthchecks_total{name=\"etcd\",status=\"success\",type=\"livez\"} 2\n",
            "kubernetes_healthchecks_total{name=\"etcd\",status=\"error\",type=\"livez\"} 1\n",
        ] {
            assert!(out.contains(line), "{line} in {out}");
        }
    }
}
