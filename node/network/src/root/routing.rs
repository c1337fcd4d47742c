//! Keeps the tables in step with the Services.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use rimward_api::ObjectKey;
use rimward_client::{Cache, Delta, Deltas};
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::command::CommandError;
use super::tables::Tables;
use crate::backends::Backends;
use crate::services::routes;

/// How long to wait after so many failures in a row.
fn again_after(failures: u32) -> Duration {
    const MAX: Duration = Duration::from_secs(30);
    Duration::from_millis(250).saturating_mul(1 << failures.saturating_sub(1).min(10)).min(MAX)
}

pub(crate) struct Routing {
    pub tables: Tables,
    pub services: Cache<Service>,
    pub backends: Backends,
    /// This node's name.
    pub node: String,
}

impl Routing {
    /// Runs until shutdown. A batch that fails is tried again by itself, with all that changed meanwhile;
    /// `trouble` is told when that begins, with the cause, and when it is over.
    pub async fn run(
        mut self,
        trouble: impl Fn(Option<&CommandError>) + Send,
        shutdown: CancellationToken,
    ) {
        let mut feed =
            Feed { services: self.services.subscribe(), backends: self.backends.subscribe() };
        if self.tables.inherited() {
            // What was routed before stays until what replaces it is whole.
            let whole = async { tokio::join!(self.services.synced(), self.backends.whole()) };
            if shutdown.run_until_cancelled(whole).await.is_none() {
                return;
            }
        }
        let mut touched = Touched::default();
        let mut failures = 0;
        let mut again: Option<Instant> = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                more = feed.next(&mut touched) => match more {
                    Some(()) if again.is_some() => continue,
                    Some(()) => {}
                    None => return,
                },
                () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            }
            match self.apply(std::mem::take(&mut touched)).await {
                Ok(()) => {
                    if std::mem::take(&mut failures) > 0 {
                        trouble(None);
                    }
                    again = None;
                }
                Err(error) => {
                    if failures == 0 {
                        trouble(Some(&error));
                    }
                    failures += 1;
                    again = Some(Instant::now() + again_after(failures));
                }
            }
        }
    }

    async fn apply(&mut self, touched: Touched) -> Result<(), CommandError> {
        let mut keys = touched.keys;
        if touched.all {
            keys.extend(self.tables.known());
            keys.extend(self.services.list().into_iter().map(|(key, _)| key));
        }
        let wanted = keys.into_iter().map(|key| {
            let service = self.services.get_key(&key);
            let routes = service.map(|s| routes(&key, &s, &self.backends.of(&key), &self.node));
            (key, routes.unwrap_or_default())
        });
        self.tables.apply(wanted.collect()).await
    }
}

/// The Services to look at again.
#[derive(Default)]
struct Touched {
    keys: BTreeSet<ObjectKey>,
    all: bool,
}

impl Touched {
    fn note(&mut self, delta: Delta) {
        match delta {
            Delta::Key(key) => drop(self.keys.insert(key)),
            Delta::All => self.all = true,
        }
    }
}

struct Feed {
    services: Deltas,
    backends: broadcast::Receiver<ObjectKey>,
}

impl Feed {
    /// Waits for a change and notes it, with whatever else is already here: one transaction takes them all.
    /// None when there will be no more. Cancel-safe.
    async fn next(&mut self, touched: &mut Touched) -> Option<()> {
        use broadcast::error::RecvError;
        let first = tokio::select! {
            delta = self.services.next() => delta?,
            key = self.backends.recv() => match key {
                Ok(key) => Delta::Key(key),
                Err(RecvError::Lagged(_)) => Delta::All,
                Err(RecvError::Closed) => return None,
            },
        };
        touched.note(first);
        while let Some(delta) = self.services.try_next() {
            touched.note(delta);
        }
        loop {
            match self.backends.try_recv() {
                Ok(key) => touched.note(Delta::Key(key)),
                Err(broadcast::error::TryRecvError::Lagged(_)) => touched.note(Delta::All),
                Err(_) => return Some(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use async_trait::async_trait;
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use parking_lot::Mutex;

    use super::*;
    use crate::root::command::Tools;
    use crate::root::{Config, Names};
    use crate::slices::Slices;

    /// A kernel of paper: remembers what was run, and refuses as many batches as it is told.
    #[derive(Default)]
    struct Paper {
        /// What `nft list table` shows in both namespaces; None is no table.
        listing: Option<String>,
        batches: Mutex<Vec<Batch>>,
        refuses: Mutex<usize>,
    }

    #[derive(Clone)]
    struct Batch {
        at: Instant,
        in_pods: bool,
        script: String,
    }

    #[async_trait]
    impl Tools for Paper {
        async fn run(&self, command: &str, input: &str) -> Result<String, CommandError> {
            let failed = |said: &str| {
                Err(CommandError::Failed { command: command.into(), said: said.into() })
            };
            if command.contains("list table") {
                return self.listing.clone().map_or_else(|| failed("No such file"), Ok);
            }
            let in_pods = command.starts_with("nsenter");
            self.batches.lock().push(Batch { at: Instant::now(), in_pods, script: input.into() });
            let mut refuses = self.refuses.lock();
            if *refuses > 0 {
                *refuses -= 1;
                return failed("Could not process rule");
            }
            Ok(String::new())
        }
    }

    impl Paper {
        fn on_host(&self) -> Vec<Batch> {
            self.batches.lock().iter().filter(|b| !b.in_pods).cloned().collect()
        }
    }

    fn config() -> Config {
        Config {
            dir: "/nowhere".into(),
            node_key: "test".into(),
            pod_block: "10.42.0.0/24".parse().unwrap(),
            cluster_block: "10.42.0.0/16".parse().unwrap(),
            service_block: "10.43.0.0/16".parse().unwrap(),
            host_ip: Ipv4Addr::new(192, 0, 2, 1).into(),
            dns_ip: Ipv4Addr::new(10, 43, 0, 10),
        }
    }

    struct Node {
        services: Cache<Service>,
        slices: Cache<EndpointSlice>,
        told: Arc<Mutex<Vec<bool>>>,
        _stop: tokio_util::sync::DropGuard,
    }

    impl Node {
        async fn start(kernel: Arc<Paper>) -> Self {
            let (services, slices, backends) = (Cache::new(), Cache::new(), Backends::new());
            tokio::spawn(backends.clone().follow(Slices::new(slices.clone())));
            let tables = Tables::open(Names::new("test"), &config(), kernel).await.unwrap();
            let routing =
                Routing { tables, services: services.clone(), backends, node: "n".into() };
            let (stop, told) = (CancellationToken::new(), Arc::<Mutex<Vec<bool>>>::default());
            let says = told.clone();
            tokio::spawn(routing.run(move |cause| says.lock().push(cause.is_some()), stop.clone()));
            Self { services, slices, told, _stop: stop.drop_guard() }
        }

        fn service(&self, name: &str, ip: &str, affinity: &str) {
            let service = serde_json::json!({"metadata": {}, "spec": {"clusterIP": ip,
                "sessionAffinity": affinity, "ports": [{"port": 80}]}});
            let service = Arc::new(serde_json::from_value(service).unwrap());
            self.services.apply(ObjectKey::new("a", name), service);
        }

        fn slice(&self, service: &str, ip: &str) {
            let slice = serde_json::json!({"metadata": {"namespace": "a", "name": service,
                "labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4",
                "ports": [{"name": "", "port": 8080}], "endpoints": [{"addresses": [ip]}]});
            let slice = Arc::new(serde_json::from_value(slice).unwrap());
            self.slices.apply(ObjectKey::new("a", service), slice);
        }

        fn synced(&self) {
            self.services.mark_synced();
            self.slices.mark_synced();
        }
    }

    /// Lets all tasks run until none has anything to do; the clock stands still meanwhile.
    async fn settle() {
        for _ in 0..64 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_failed_is_tried_again_by_itself() {
        let kernel = Arc::new(Paper::default());
        let node = Node::start(kernel.clone()).await;
        settle().await;
        *kernel.refuses.lock() = 3;
        let before = kernel.on_host().len();
        node.service("web", "10.43.0.7", "None");
        // No change of a Service comes any more: the clock alone goes on.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let tries = kernel.on_host().split_off(before);
        let waits: Vec<u128> = tries.windows(2).map(|w| (w[1].at - w[0].at).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000]);
        let last = &tries.last().unwrap().script;
        assert!(last.contains("delete table") && last.contains("10.43.0.7"), "{last}");
        assert_eq!(*node.told.lock(), [true, false], "told once that it began, once that it ended");
    }

    #[tokio::test(start_paused = true)]
    async fn changes_do_not_hurry_what_failed() {
        let kernel = Arc::new(Paper::default());
        let node = Node::start(kernel.clone()).await;
        settle().await;
        *kernel.refuses.lock() = usize::MAX;
        let before = kernel.on_host().len();
        for i in 0..100 {
            node.service("web", &format!("10.43.0.{i}"), "None");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(kernel.on_host().len() - before, 3, "at 0, 250 and 750 ms of 1000");
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_agents_services_stay_until_all_is_known() {
        let made = Arc::new(Paper::default());
        drop(Node::start(made.clone()).await);
        let mark = made.on_host()[0].script.clone();
        let mark = mark.split_whitespace().find(|w| w.starts_with("made_by_")).unwrap();
        let pods_mark = made.batches.lock().iter().find(|b| b.in_pods).unwrap().script.clone();
        let pods_mark = pods_mark.split_whitespace().find(|w| w.starts_with("made_by_")).unwrap();
        let listing = format!(
            "table ip t {{\n\tset of_00 {{\n\t}}\n\tset refused {{\n\t}}\n\tchain svc_old {{\n\t}}\n\tchain to_00 {{\n\t}}\n\tchain output {{\n\t}}\n\tchain {mark} {{\n\t}}\n\tchain {pods_mark} {{\n\t}}\n}}\n"
        );
        let kernel = Arc::new(Paper { listing: Some(listing), ..Paper::default() });
        let node = Node::start(kernel.clone()).await;
        node.service("web", "10.43.0.7", "None");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(
            kernel.batches.lock().is_empty(),
            "Services without their endpoints change nothing"
        );
        node.slice("web", "10.42.0.9");
        node.synced();
        settle().await;
        let batches = kernel.batches.lock().clone();
        assert_eq!(batches.len(), 2, "one transaction in each namespace");
        for Batch { script, .. } in batches {
            let at = |line: &str| {
                script
                    .lines()
                    .position(|l| l.trim().starts_with(line))
                    .unwrap_or_else(|| panic!("{line}: {script}"))
            };
            let table = script.split_whitespace().find(|w| w.starts_with("rimward_")).unwrap();
            assert!(
                at(&format!("flush map ip {table} addresses"))
                    < at(&format!("add element ip {table}"))
            );
            assert!(
                at(&format!("flush chain ip {table} to_00"))
                    < at(&format!("delete chain ip {table} svc_old"))
            );
            at(&format!("delete set ip {table} of_00"));
            assert!(script.contains("dnat to 10.42.0.9:8080"), "{script}");
            for kept in ["delete table", "output", "made_by", "delete set ip t refused"] {
                assert!(!script.contains(kept), "{kept}: {script}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_versions_table_is_replaced_in_the_same_transaction() {
        let listing = "table ip t {\n\tchain svc_old {\n\t}\n\tchain made_by_another {\n\t}\n}\n";
        let kernel = Arc::new(Paper { listing: Some(listing.into()), ..Paper::default() });
        let node = Node::start(kernel.clone()).await;
        node.service("web", "10.43.0.7", "ClientIP");
        node.slice("web", "10.42.0.9");
        settle().await;
        assert!(kernel.batches.lock().is_empty());
        node.synced();
        settle().await;
        let batches = kernel.batches.lock().clone();
        assert_eq!(batches.len(), 2);
        for Batch { script, .. } in batches {
            let (before, after) = script.split_once("delete table ip").expect("it is replaced");
            assert!(!before.contains("chain"), "{before}");
            assert!(after.contains("map addresses") && after.contains("10.42.0.9:8080"), "{after}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_boot_what_is_known_is_routed_at_once() {
        let kernel = Arc::new(Paper::default());
        let node = Node::start(kernel.clone()).await;
        node.service("web", "10.43.0.7", "None");
        settle().await;
        assert!(kernel.on_host().iter().any(|b| b.script.contains("10.43.0.7")));
    }
}
