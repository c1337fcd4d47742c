//! The runs of a host: start, stop, end.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rimward_node_pod::runtime::{ContainerSpec, Exit, RunId, StartError};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use wasmtime::Engine;

use super::cpu::Ticker;
use super::guest::{Container, Io, Surroundings, below, over_limit};
use super::handler::Handler;
use super::pipe::Pipe;
use super::program::{Loader, Program};
use super::session::Session;
use super::slots::{Slots, Turns};
use super::{Settings, handler, log, resolver, session, task};
use crate::artifact::Artifact;
use crate::protocol::{Reply, Run, Streams, ToAgent};

/// How long a host stays without runs: a shared one is likely to be needed again.
const LINGER_SHARED: Duration = Duration::from_secs(60);
const LINGER_ISOLATED: Duration = Duration::from_secs(2);

pub(crate) struct Host {
    settings: Arc<Settings>,
    engine: Engine,
    ticker: Arc<Ticker>,
    loader: Loader,
    /// Loaded images by artifact key, as long as a run has them.
    programs: Mutex<HashMap<String, Weak<Program>>>,
    slots: Arc<Slots>,
    tasks: tokio::runtime::Handle,
    writer: log::Writer,
    names: Arc<resolver::Cache>,
    first_free_port: u16,
    state: Mutex<State>,
    /// Starts one after the other where they touch the same run.
    starting: tokio::sync::Mutex<()>,
    pub ended: CancellationToken,
}

#[derive(Default)]
struct State {
    runs: HashMap<RunId, Arc<Running>>,
    /// To the agent that is connected.
    agent: Option<mpsc::Sender<ToAgent>>,
    /// The host is about to exit and takes no more.
    closing: bool,
}

struct Running {
    id: RunId,
    spec_hash: String,
    started_at: jiff::Timestamp,
    container: Arc<Container>,
    program: Arc<Program>,
    stop: CancellationToken,
    kill: CancellationToken,
    /// It has ended.
    over: CancellationToken,
    exit: Mutex<Option<Exit>>,
}

impl Host {
    pub fn new(
        settings: Arc<Settings>,
        engine: Engine,
        slots: u32,
        tasks: tokio::runtime::Handle,
    ) -> Result<Arc<Self>, String> {
        let threads = |error: std::io::Error| format!("cannot start threads: {error}");
        Ok(Arc::new(Self {
            loader: Loader::new(&engine, settings.allow_p3)
                .map_err(|error| format!("cannot link WASI: {error:#}"))?,
            ticker: Ticker::start(engine.clone()).map_err(threads)?,
            writer: log::Writer::start().map_err(threads)?,
            engine,
            programs: Mutex::default(),
            slots: Arc::new(Slots::new(slots, settings.isolated)),
            tasks,
            names: Arc::default(),
            first_free_port: crate::address::first_free_port(settings.user_mode),
            settings,
            state: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            ended: CancellationToken::new(),
        }))
    }

    /// Makes `agent` the one that events go to, and tells it what there is.
    pub fn attach(&self, agent: mpsc::Sender<ToAgent>) -> Reply {
        let mut state = self.state.lock();
        state.agent = Some(agent);
        let runs = state.runs.values().map(|run| Run {
            id: run.id.clone(),
            spec_hash: run.spec_hash.clone(),
            started_at: run.started_at,
            exit: run.exit.lock().clone(),
        });
        Reply::Hello { pid: std::process::id(), runs: runs.collect() }
    }

    /// An agent that does not read loses its connection, and hears of ended runs when it is back.
    fn tell(&self, event: ToAgent) {
        let mut state = self.state.lock();
        if state.agent.as_ref().is_some_and(|agent| agent.try_send(event).is_err()) {
            state.agent = None;
        }
    }

    pub async fn start(
        self: &Arc<Self>,
        spec: ContainerSpec,
        artifact: &Artifact,
    ) -> Result<(), StartError> {
        let _turn = self.starting.lock().await;
        {
            let state = self.state.lock();
            if state.closing {
                return Err(error("HostClosing", "the wasm host is about to exit"));
            }
            if state.runs.contains_key(&spec.id) {
                return Ok(());
            }
        }
        let program = self.program(artifact)?;
        let ports = spec.tcp_ports.clone();
        let (id, spec_hash) = (spec.id.clone(), spec.spec_hash.clone());
        let container = Arc::new(self.container(spec, artifact)?);
        let run = Arc::new(Running {
            id,
            spec_hash,
            started_at: jiff::Timestamp::now(),
            container: container.clone(),
            program: program.clone(),
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
            over: CancellationToken::new(),
            exit: Mutex::new(None),
        });
        if artifact.kind.is_handler() {
            self.start_handler(run, program, &ports).await
        } else {
            self.start_task(run, program)
        }
    }

    fn program(&self, artifact: &Artifact) -> Result<Arc<Program>, StartError> {
        let mut programs = self.programs.lock();
        if let Some(program) = programs.get(&artifact.key).and_then(Weak::upgrade) {
            return Ok(program);
        }
        let path = std::path::Path::new("aot").join(format!("{}.cwasm", artifact.key));
        let program = Arc::new(self.loader.load(&path, artifact)?);
        programs.retain(|_, program| program.strong_count() > 0);
        programs.insert(artifact.key.clone(), Arc::downgrade(&program));
        Ok(program)
    }

    fn container(&self, spec: ContainerSpec, artifact: &Artifact) -> Result<Container, StartError> {
        let settings = &self.settings;
        let addresses = super::addresses(settings, spec.bind_ip, self.first_free_port);
        let around = Surroundings {
            data_dir: settings.data_dir.clone(),
            resolver: Arc::new(resolver::Resolver::new(addresses.clone(), self.names.clone())),
            addresses,
            ca_bundle: settings.ca_bundle.as_deref().map(|path| below(&settings.data_dir, path)),
        };
        let path = below(&settings.data_dir, &spec.log_path);
        let log = log::Log::open(&path, self.writer.clone()).map_err(|cause| {
            error(
                "CreateContainerError",
                &format!("cannot write the log {}: {cause}", spec.log_path.display()),
            )
        })?;
        Ok(Container::new(spec, log, !artifact.kind.is_handler(), around))
    }

    async fn start_handler(
        self: &Arc<Self>,
        run: Arc<Running>,
        program: Arc<Program>,
        ports: &[u16],
    ) -> Result<(), StartError> {
        let listeners = handler::bind(&run.container, ports)
            .map_err(|cause| error("RunContainerError", &cause))?;
        let host = Arc::downgrade(self);
        let notice = move |container: &Container, reason: &str, message: String| {
            if let Some(host) = host.upgrade() {
                host.tell(ToAgent::Notice {
                    id: container.id.clone(),
                    reason: reason.into(),
                    message,
                });
            }
        };
        let handler = Arc::new(Handler {
            container: run.container.clone(),
            program,
            engine: self.engine.clone(),
            ticker: self.ticker.clone(),
            turns: Turns::new(self.slots.clone()),
            notice: Box::new(notice),
        });
        handler.probe().await.map_err(cannot_run)?;
        self.begun(&run);
        let (host, stop, kill) = (self.clone(), run.stop.clone(), run.kill.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = handler.serve(listeners, stop, kill.clone()) => {}
                () = kill.cancelled() => {}
            }
            run.container.log.flushed().await;
            let exit = Exit {
                code: 0,
                signal: None,
                reason: "Completed".into(),
                message: String::new(),
                started_at: run.started_at,
                finished_at: jiff::Timestamp::now(),
            };
            host.finished(&run, exit);
        });
        Ok(())
    }

    fn start_task(
        self: &Arc<Self>,
        run: Arc<Running>,
        program: Arc<Program>,
    ) -> Result<(), StartError> {
        let slot = self.slots.now();
        let slot = slot.ok_or_else(|| {
            error("RunContainerError", "no instance is free on this node: too many guests run")
        })?;
        // What is wrong with mounts and limits is an error of the start, not an exit.
        run.container.store(&self.engine).map(drop).map_err(cannot_run)?;
        self.begun(&run);
        let host = self.clone();
        let (engine, ticker) = (self.engine.clone(), self.ticker.clone());
        self.tasks.spawn(async move {
            let _slot = slot;
            let running = task::run(
                run.container.clone(),
                program,
                engine,
                ticker,
                run.started_at,
                run.stop.clone(),
            );
            let exit = running.await;
            host.finished(&run, exit);
        });
        Ok(())
    }

    /// Before the guest runs, so that its end is never told before its start.
    fn begun(&self, run: &Arc<Running>) {
        self.state.lock().runs.insert(run.id.clone(), run.clone());
        self.tell(ToAgent::Started { id: run.id.clone(), at: run.started_at });
    }

    fn finished(&self, run: &Running, exit: Exit) {
        *run.exit.lock() = Some(exit.clone());
        run.over.cancel();
        run.container.log.detach();
        self.tell(ToAgent::Exited { id: run.id.clone(), exit });
    }

    pub fn stop(&self, id: &RunId, grace: Duration) {
        let Some(run) = self.state.lock().runs.get(id).cloned() else { return };
        run.stop.cancel();
        let kill = run.kill.clone();
        tokio::spawn(async move {
            tokio::time::sleep(grace).await;
            kill.cancel();
        });
    }

    /// Forgets an ended run; one that is not is ended first, unheard.
    pub fn remove(self: &Arc<Self>, id: &RunId) {
        let mut state = self.state.lock();
        if let Some(run) = state.runs.remove(id) {
            run.stop.cancel();
            run.kill.cancel();
        }
        let empty = state.runs.is_empty();
        drop(state);
        if empty {
            self.linger();
        }
    }

    /// Ends the process if there is still nothing to run after a while.
    pub fn linger(self: &Arc<Self>) {
        let host = self.clone();
        let linger = if self.settings.isolated { LINGER_ISOLATED } else { LINGER_SHARED };
        tokio::spawn(async move {
            tokio::time::sleep(linger).await;
            // A start that is under way holds this.
            let _turn = host.starting.lock().await;
            let mut state = host.state.lock();
            if state.runs.is_empty() {
                state.closing = true;
                host.ended.cancel();
            }
        });
    }

    /// Begins a command beside what runs: the same component once more, with these arguments.
    pub fn exec(
        &self,
        id: &RunId,
        args: Vec<String>,
        wanted: Streams,
    ) -> Result<Session, StartError> {
        let run = self.running(id)?;
        let program = run.program.command().ok_or_else(|| {
            error(
                "ExecNotSupported",
                "the component exports no wasi:cli/run, so there is no command in it to run",
            )
        })?;
        let slot = self.slots.now();
        let slot = slot.ok_or_else(|| {
            error("ExecFailed", "no instance is free on this node: too many guests run")
        })?;
        let (stdout, stderr) = session::outputs(wanted);
        let stdin = Pipe::new();
        if !wanted.stdin {
            stdin.end();
        }
        let name = run.container.argv.first().cloned().unwrap_or_default();
        let io = Io {
            argv: std::iter::once(name).chain(args).collect(),
            stdin: stdin.clone(),
            stdout: stdout.clone(),
            stderr: stderr.clone(),
            tty: wanted.tty,
        };
        // Ends with what it runs beside.
        let stop = run.kill.child_token();
        let ending = stop.clone();
        let (told, exit) = oneshot::channel();
        let running = task::exec(
            run.container.clone(),
            program,
            self.engine.clone(),
            self.ticker.clone(),
            io,
            stop.clone(),
        );
        self.tasks.spawn(async move {
            let _slot = slot;
            let mut running = std::pin::pin!(running);
            let exit = tokio::select! {
                exit = running.as_mut() => exit,
                // A container that ends takes its commands with it.
                () = run.over.cancelled() => {
                    ending.cancel();
                    running.await
                }
            };
            let _the_agent_may_be_gone = told.send(exit);
        });
        Ok(Session {
            stdin: wanted.stdin.then_some(stdin),
            ends_stdin: true,
            stdout,
            stderr,
            exit: Some(exit),
            stop,
        })
    }

    /// Connects with what runs.
    pub fn attach_to(&self, id: &RunId, wanted: Streams) -> Result<Session, StartError> {
        let run = self.running(id)?;
        let container = &run.container;
        let (stdout, stderr) = session::outputs(wanted);
        container.log.attach(stdout.clone(), stderr.clone());
        // It may have ended meanwhile, unseen by these.
        if run.exit.lock().is_some() {
            container.log.detach();
        }
        let stdin = container.stdin.as_ref().filter(|_| wanted.stdin);
        Ok(Session {
            stdin: stdin.map(|guest| guest.pipe.clone()),
            ends_stdin: container.stdin_once,
            stdout,
            stderr,
            exit: None,
            stop: CancellationToken::new(),
        })
    }

    fn running(&self, id: &RunId) -> Result<Arc<Running>, StartError> {
        let run = self.state.lock().runs.get(id).cloned();
        let run = run.filter(|run| run.exit.lock().is_none());
        run.ok_or_else(|| error("NotFound", &format!("{id} does not run")))
    }

    pub fn usage(&self, id: &RunId) -> Reply {
        match self.state.lock().runs.get(id) {
            Some(run) => Reply::Usage {
                cpu_nanos: run.container.cpu.used_nanos(),
                memory_bytes: run.container.ledger.used(),
            },
            None => Reply::NotKnown,
        }
    }

    /// Ends every run and then the host.
    pub fn end(&self) {
        let mut state = self.state.lock();
        state.closing = true;
        for run in state.runs.values() {
            run.stop.cancel();
            run.kill.cancel();
        }
        self.ended.cancel();
    }
}

fn error(reason: &str, message: &str) -> StartError {
    StartError { reason: reason.into(), message: message.into() }
}

fn cannot_run(cause: wasmtime::Error) -> StartError {
    let message = match over_limit(&cause) {
        Some(over) => format!("it does not fit its memory limit: {over}"),
        None if cause.is::<wasmtime::Trap>() => {
            format!("it traps at its start: {}", task::describe(&cause))
        }
        None => format!("{cause:#}"),
    };
    error("RunContainerError", &message)
}
