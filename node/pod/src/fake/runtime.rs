//! A runtime whose containers do as their script says.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::outside::Image;
use crate::runtime::{
    ContainerSpec, ExecRequest, Exit, Known, PodLimits, Resources, RunId, Runtime, RuntimeEvent,
    StartError, Streams, Usage,
};

/// What one run of a container does. The default starts at once, runs until it is stopped, and then
/// ends at once with code 143.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Script {
    pub start_delay: Duration,
    pub start_error: Option<StartError>,
    /// Ends by itself after so long.
    pub exit_after: Option<Duration>,
    pub exit_code: i32,
    /// Empty: `Completed` or `Error`, by the code.
    pub exit_reason: String,
    pub exit_message: String,
    /// From being asked to stop to the end. More than the grace is cut by force (code 137).
    pub stop_delay: Duration,
    /// Its end is never reported: the runtime lost it.
    pub silent: bool,
    /// The exit codes that commands run in it end with, in turn; the last repeats.
    pub exec_codes: Vec<i32>,
    /// What each of them prints to its stdout, before what it was given on its stdin.
    pub exec_output: String,
    /// Written to the log as it starts.
    pub log: Vec<String>,
}

impl Script {
    /// Ends by itself.
    pub fn exits(code: i32, after: Duration) -> Self {
        Self { exit_after: Some(after), exit_code: code, ..Self::default() }
    }

    pub fn fails_to_start(reason: &str, message: &str) -> Self {
        let error = StartError { reason: reason.into(), message: message.into() };
        Self { start_error: Some(error), ..Self::default() }
    }
}

struct Run {
    spec: ContainerSpec,
    script: Script,
    started_at: Option<jiff::Timestamp>,
    exit: Option<Exit>,
    execs: usize,
}

#[derive(Default)]
struct State {
    runs: BTreeMap<RunId, Run>,
    /// By container name; the n-th run does the n-th script, the last repeats.
    scripts: HashMap<String, Vec<Script>>,
    events: Option<mpsc::Sender<RuntimeEvent>>,
    starts: u64,
    /// Answers of the next updates.
    update_errors: VecDeque<StartError>,
    swap: bool,
}

/// A runtime for any image. The same instance may be adopted again: that is an agent's restart.
pub struct FakeRuntime {
    clock: Clock,
    state: Mutex<State>,
}

impl FakeRuntime {
    /// The next update of a container's resources fails so.
    pub fn fail_update(&self, message: &str) {
        let error = StartError { reason: "ResizeError".into(), message: message.into() };
        self.state.lock().update_errors.push_back(error);
    }

    /// Lets containers have swap that may.
    pub fn give_swap(&self) {
        self.state.lock().swap = true;
    }

    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { clock, state: Mutex::default() })
    }

    /// What the runs of containers of this name do, in turn; the last repeats.
    pub fn script(&self, container: &str, scripts: Vec<Script>) {
        self.state.lock().scripts.insert(container.into(), scripts);
    }

    /// The runs that run now.
    pub fn running(&self) -> Vec<RunId> {
        let state = self.state.lock();
        let running =
            state.runs.iter().filter(|(_, run)| run.started_at.is_some() && run.exit.is_none());
        running.map(|(id, _)| id.clone()).collect()
    }

    /// Runs that it knows, ended ones that were not removed included.
    pub fn known(&self) -> usize {
        self.state.lock().runs.len()
    }

    /// How many starts were asked for, since the beginning.
    pub fn starts(&self) -> u64 {
        self.state.lock().starts
    }

    /// What a known run was started with.
    pub fn spec(&self, id: &RunId) -> Option<ContainerSpec> {
        self.state.lock().runs.get(id).map(|run| run.spec.clone())
    }

    /// Forgets everything, silently: the machine was switched off.
    pub fn lose_everything(&self) {
        self.state.lock().runs.clear();
    }

    /// Ends a run from outside.
    pub async fn kill(&self, id: &RunId, code: i32, reason: &str) {
        self.finish(id, code, reason).await;
    }

    /// Says something about a run.
    pub async fn notice(&self, id: &RunId, reason: &str, message: &str) {
        let (id, reason, message) = (id.clone(), reason.into(), message.into());
        self.tell(RuntimeEvent::Notice { id, reason, message }).await;
    }

    async fn finish(&self, id: &RunId, code: i32, reason: &str) {
        let exit = {
            let mut state = self.state.lock();
            let Some(run) = state.runs.get_mut(id).filter(|run| run.exit.is_none()) else { return };
            let reason = match (reason.is_empty(), code) {
                (false, _) => reason,
                (true, 0) => "Completed",
                (true, _) => "Error",
            };
            let now = self.clock.now();
            let exit = Exit {
                code,
                signal: None,
                reason: reason.into(),
                message: run.script.exit_message.clone(),
                started_at: run.started_at.unwrap_or(now),
                finished_at: now,
            };
            run.exit = Some(exit.clone());
            if run.script.silent {
                state.runs.remove(id);
                return;
            }
            exit
        };
        self.tell(RuntimeEvent::Exited { id: id.clone(), exit }).await;
    }

    async fn tell(&self, event: RuntimeEvent) {
        let events = self.state.lock().events.clone();
        if let Some(events) = events {
            let _the_agent_may_be_gone = events.send(event).await;
        }
    }

    /// A script needs the runtime after the call that began it.
    fn later(self: Arc<Self>, after: Duration, id: RunId, code: i32, reason: String) {
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            self.finish(&id, code, &reason).await;
        });
    }

    fn append_log(&self, spec: &ContainerSpec, lines: &[String]) {
        use std::io::Write;
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&spec.log_path);
        let Ok(mut file) = file else { return };
        for line in lines {
            let _a_full_disk_loses_logs = writeln!(file, "{:.9} stdout F {line}", self.clock.now());
        }
    }

    fn begin(&self, spec: ContainerSpec) -> Script {
        let mut state = self.state.lock();
        state.starts += 1;
        let scripts = state.scripts.get(&spec.id.container);
        let script = scripts
            .and_then(|s| s.get(spec.id.attempt as usize).or(s.last()))
            .cloned()
            .unwrap_or_default();
        let run = Run {
            spec: spec.clone(),
            script: script.clone(),
            started_at: None,
            exit: None,
            execs: 0,
        };
        state.runs.insert(spec.id, run);
        script
    }
}

/// Handed out as `Arc<dyn Runtime>`: the trait's calls need the `Arc` to act later.
#[async_trait]
impl Runtime for Arc<FakeRuntime> {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn runs(&self, _: &Image) -> bool {
        true
    }

    async fn adopt(&self, events: mpsc::Sender<RuntimeEvent>) -> Result<Vec<Known>, StartError> {
        let mut state = self.state.lock();
        state.events = Some(events);
        let known = state.runs.iter().map(|(id, run)| Known {
            id: id.clone(),
            spec_hash: run.spec.spec_hash.clone(),
            started_at: run.started_at,
            exit: run.exit.clone(),
        });
        Ok(known.collect())
    }

    async fn prepare(&self, _: &Image) -> Result<(), StartError> {
        Ok(())
    }

    async fn start(&self, spec: ContainerSpec) -> Result<(), StartError> {
        let id = spec.id.clone();
        let script = self.begin(spec.clone());
        if script.start_delay > Duration::ZERO {
            tokio::time::sleep(script.start_delay).await;
        }
        if let Some(error) = script.start_error {
            self.state.lock().runs.remove(&id);
            return Err(error);
        }
        if !script.log.is_empty() {
            self.append_log(&spec, &script.log);
        }
        let at = self.clock.now();
        if let Some(run) = self.state.lock().runs.get_mut(&id) {
            run.started_at = Some(at);
        }
        self.tell(RuntimeEvent::Started { id: id.clone(), at }).await;
        if let Some(after) = script.exit_after {
            self.clone().later(after, id, script.exit_code, script.exit_reason);
        }
        Ok(())
    }

    async fn stop(&self, id: &RunId, grace: Duration) {
        let script = self.state.lock().runs.get(id).map(|run| run.script.clone());
        let Some(script) = script else { return };
        if script.stop_delay > grace {
            self.clone().later(grace, id.clone(), 137, String::new());
        } else {
            self.clone().later(script.stop_delay, id.clone(), 143, String::new());
        }
    }

    async fn remove(&self, id: &RunId) {
        let mut state = self.state.lock();
        if state.runs.get(id).is_some_and(|run| run.exit.is_some()) {
            state.runs.remove(id);
        }
    }

    async fn usage(&self, id: &RunId) -> Option<Usage> {
        let state = self.state.lock();
        let run = state.runs.get(id).filter(|run| run.exit.is_none())?;
        let ran =
            run.started_at.map(|at| self.clock.now().duration_since(at).as_secs()).unwrap_or(0);
        Some(Usage {
            cpu_nanos: ran.max(0) as u64 * 1_000_000,
            memory_bytes: 1 << 20,
            memory_usage_bytes: 1 << 20,
            memory_rss_bytes: 1 << 20,
            ..Usage::default()
        })
    }

    fn has_swap(&self) -> bool {
        self.state.lock().swap
    }

    fn resizes(&self) -> bool {
        true
    }

    async fn update(
        &self,
        id: &RunId,
        resources: &Resources,
        pod: &PodLimits,
    ) -> Result<(), StartError> {
        let mut state = self.state.lock();
        if let Some(error) = state.update_errors.pop_front() {
            return Err(error);
        }
        let run = running(&mut state, id)?;
        run.spec.resources = resources.clone();
        run.spec.linux.pod = pod.clone();
        Ok(())
    }

    async fn exec(&self, id: &RunId, _: ExecRequest, streams: Streams) -> Result<Exit, StartError> {
        let started_at = self.clock.now();
        let (code, output) = {
            let mut state = self.state.lock();
            let run = running(&mut state, id)?;
            let codes = &run.script.exec_codes;
            let code = codes.get(run.execs).or(codes.last()).copied().unwrap_or(0);
            run.execs += 1;
            (code, run.script.exec_output.clone())
        };
        if let Some(mut stdout) = streams.stdout {
            let _the_reader_may_be_gone = stdout.write_all(output.as_bytes()).await;
            if let Some(mut stdin) = streams.stdin {
                let _the_reader_may_be_gone = tokio::io::copy(&mut stdin, &mut stdout).await;
            }
            let _the_reader_may_be_gone = stdout.shutdown().await;
        }
        Ok(Exit {
            code,
            signal: None,
            reason: String::new(),
            message: String::new(),
            started_at,
            finished_at: self.clock.now(),
        })
    }
}

fn running<'a>(state: &'a mut State, id: &RunId) -> Result<&'a mut Run, StartError> {
    let run = state.runs.get_mut(id).filter(|run| run.exit.is_none());
    run.ok_or_else(|| StartError {
        reason: "NotFound".into(),
        message: format!("{id} does not run"),
    })
}
