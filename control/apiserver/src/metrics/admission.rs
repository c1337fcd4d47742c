//! How long admission takes: its two steps, each plugin, each webhook, under kube-apiserver's names.
//! <https://kubernetes.io/docs/reference/instrumentation/metrics/>

use std::future::Future;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use rimward_api::Status;

use super::Histograms;
use crate::admission::Operation;
use crate::server::Inner;

/// A step is also told as a summary, which has no quantiles.
pub const STEP: &str = "apiserver_admission_step_admission_duration_seconds";
/// Counters whose names do not end as those of counters do.
pub const NOT_TOTAL: [&str; 2] =
    ["apiserver_admission_webhook_rejection_count", "apiserver_admission_webhook_fail_open_count"];

const ADMIT: &str = "admit";
const VALIDATE: &str = "validate";
/// Status codes beyond are told as this one, so that a webhook cannot make labels without end.
const CODE_MAX: u16 = 600;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Step {
    operation: &'static str,
    rejected: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Plugin {
    name: &'static str,
    #[prometheus(flatten)]
    step: Step,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Webhook {
    name: String,
    #[prometheus(flatten)]
    step: Step,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WebhookRequest {
    code: u16,
    #[prometheus(flatten)]
    webhook: Webhook,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WebhookRejection {
    error_type: &'static str,
    name: String,
    operation: &'static str,
    rejection_code: u16,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WebhookFailOpen {
    name: String,
    r#type: &'static str,
}

/// How a webhook answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Allowed,
    /// It said no, with this status code.
    Denied(u16),
    /// It could not be asked; `open` is whether the request goes on all the same.
    Failed {
        open: bool,
    },
    /// It must not be asked this.
    Unfit,
}

pub struct Meter {
    steps: Histograms<Step>,
    plugins: Histograms<Plugin>,
    webhooks: Histograms<Webhook>,
    requests: Family<WebhookRequest, Counter<u64, AtomicU64>>,
    rejections: Family<WebhookRejection, Counter<u64, AtomicU64>>,
    open: Family<WebhookFailOpen, Counter<u64, AtomicU64>>,
}

fn buckets() -> Histogram {
    Histogram::new([0.005, 0.025, 0.1, 0.5, 1.0, 2.5])
}

fn webhook_buckets() -> Histogram {
    Histogram::new([0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0])
}

impl Meter {
    pub fn new(registry: &mut Registry) -> Self {
        let meter = Self {
            steps: Family::new_with_constructor(buckets as fn() -> Histogram),
            plugins: Family::new_with_constructor(buckets as fn() -> Histogram),
            webhooks: Family::new_with_constructor(webhook_buckets as fn() -> Histogram),
            requests: Family::default(),
            rejections: Family::default(),
            open: Family::default(),
        };
        registry.register(STEP, "Time of a step of admission", meter.steps.clone());
        registry.register(
            "apiserver_admission_controller_admission_duration_seconds",
            "Time of an admission plugin",
            meter.plugins.clone(),
        );
        registry.register(
            "apiserver_admission_webhook_admission_duration_seconds",
            "Time of calls to admission webhooks",
            meter.webhooks.clone(),
        );
        registry.register(
            "apiserver_admission_webhook_request",
            "Calls to admission webhooks by how they were answered",
            meter.requests.clone(),
        );
        let [rejections, open] = NOT_TOTAL;
        registry.register(rejections, "Requests refused for a webhook", meter.rejections.clone());
        registry.register(open, "Requests that went on without a webhook", meter.open.clone());
        meter
    }

    /// A webhook was called. `kind` is `admit` or `validating`.
    pub fn webhook_called(
        &self,
        (name, operation, kind): (&str, &'static str, &'static str),
        outcome: Outcome,
        took: Duration,
    ) {
        /// What an unreachable webhook is told as: no service there.
        const UNAVAILABLE: u16 = 503;
        let (rejection, code) = match outcome {
            Outcome::Allowed => (None, 200),
            Outcome::Denied(code) => (Some("no_error"), code.min(CODE_MAX)),
            Outcome::Failed { open } => ((!open).then_some("calling_webhook_error"), UNAVAILABLE),
            Outcome::Unfit => (Some("apiserver_internal_error"), 0),
        };
        if let Some(error_type) = rejection {
            let name = name.to_owned();
            let about = WebhookRejection {
                error_type,
                name,
                operation,
                rejection_code: code,
                r#type: kind,
            };
            self.rejections.get_or_create(&about).inc();
        }
        if outcome == (Outcome::Failed { open: true }) {
            self.open.get_or_create(&WebhookFailOpen { name: name.to_owned(), r#type: kind }).inc();
        }
        let step = step(operation, kind, rejection.is_some());
        let webhook = Webhook { name: name.to_owned(), step };
        self.webhooks.get_or_create(&webhook).observe(took.as_secs_f64());
        self.requests.get_or_create(&WebhookRequest { code, webhook }).inc();
    }
}

fn step(operation: &'static str, kind: &'static str, rejected: bool) -> Step {
    Step { operation, r#type: kind, rejected: if rejected { "true" } else { "false" } }
}

/// Tells the times of what it runs. Made where a step begins.
#[derive(Clone, Copy)]
pub struct Timed<'a> {
    meter: &'a Meter,
    operation: &'static str,
    kind: &'static str,
}

impl<'a> Timed<'a> {
    /// The step that may change the object.
    pub fn admit(server: &'a Inner, operation: Operation) -> Self {
        Self { meter: &server.metrics.admission, operation: operation.word(), kind: ADMIT }
    }

    /// The step that may only refuse.
    pub fn validate(server: &'a Inner, operation: Operation) -> Self {
        Self { kind: VALIDATE, ..Self::admit(server, operation) }
    }

    /// The whole step.
    pub async fn whole<T>(self, run: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let began = Instant::now();
        let done = run.await;
        let step = step(self.operation, self.kind, done.is_err());
        self.meter.steps.get_or_create(&step).observe(began.elapsed().as_secs_f64());
        done
    }

    /// One plugin, by Kubernetes' name for it.
    pub async fn plugin<T>(
        self,
        name: &'static str,
        run: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let began = Instant::now();
        let done = run.await;
        self.told(name, began, done.is_err());
        done
    }

    /// One plugin that waits for nothing.
    pub fn at_once<T>(
        self,
        name: &'static str,
        run: impl FnOnce() -> Result<T, Status>,
    ) -> Result<T, Status> {
        let began = Instant::now();
        let done = run();
        self.told(name, began, done.is_err());
        done
    }

    /// One plugin that refuses nothing.
    pub fn filled(self, name: &'static str, run: impl FnOnce()) {
        let began = Instant::now();
        run();
        self.told(name, began, false);
    }

    fn told(self, name: &'static str, began: Instant, rejected: bool) {
        let plugin = Plugin { name, step: step(self.operation, self.kind, rejected) };
        self.meter.plugins.get_or_create(&plugin).observe(began.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhooks_are_told_as_kubernetes_tells_them() {
        let mut registry = Registry::default();
        let meter = Meter::new(&mut registry);
        let about = ("a.b.c", "CREATE", ADMIT);
        for outcome in [
            Outcome::Allowed,
            Outcome::Denied(999),
            Outcome::Failed { open: true },
            Outcome::Failed { open: false },
            Outcome::Unfit,
        ] {
            meter.webhook_called(about, outcome, Duration::from_millis(1));
        }
        let mut open = String::new();
        prometheus_client::encoding::text::encode(&mut open, &registry).expect("it is a String");
        let text = super::super::text::classic(&open);
        let rejection = |error: &str, code: u16| {
            format!(
                "apiserver_admission_webhook_rejection_count{{error_type=\"{error}\",name=\"a.b.c\",operation=\"CREATE\",rejection_code=\"{code}\",type=\"admit\"}} 1"
            )
        };
        for line in [
            "# TYPE apiserver_admission_webhook_rejection_count counter".to_owned(),
            rejection("no_error", 600),
            rejection("calling_webhook_error", 503),
            rejection("apiserver_internal_error", 0),
            "apiserver_admission_webhook_fail_open_count{name=\"a.b.c\",type=\"admit\"} 1".into(),
            "apiserver_admission_webhook_request_total{code=\"200\",name=\"a.b.c\",operation=\"CREATE\",rejected=\"false\",type=\"admit\"} 1".into(),
            "apiserver_admission_webhook_request_total{code=\"503\",name=\"a.b.c\",operation=\"CREATE\",rejected=\"true\",type=\"admit\"} 1".into(),
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} in {text}");
        }
    }
}
