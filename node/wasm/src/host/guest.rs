//! A container as guests see it, and the state behind one instance of it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rimward_node_pod::runtime::{ContainerSpec, Dns, Mount, RunId};
use wasmtime::component::{Linker, ResourceTable};
use wasmtime::{Engine, Store};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::sockets::SocketAddrUse;
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, ForbiddenHeaderFilter, WasiBody, WasiHttpCtx, WasiHttpCtxView,
    WasiHttpHooks, WasiHttpView,
};

use super::cpu::Cpu;
use super::interfaces::{names, outgoing, sockets};
use super::ledger::{Account, Ledger, OverLimit};
use super::log::{GuestOutput, Log, Stream};
use super::pipe::{self, Pipe};
use super::resolver::Resolver;
use crate::address::Addresses;

/// What an instance costs the host beside its memories: tables of resources, buffers, the pages of
/// its stack that are touched.
const INSTANCE_BYTES: u64 = 64 << 10;
/// Bytes that one host call may copy out of a guest.
const HOSTCALL_BYTES_MAX: usize = 16 << 20;
const RESOURCES_MAX: usize = 100_000;
/// A guest's one write to a body; larger ones are split by its language's library.
const BODY_CHUNK_BYTES: usize = 128 << 10;
const NOTICE_INTERVAL: Duration = Duration::from_secs(60);

/// One run of a container: what all its instances share. An idle handler is this, a listener and
/// nothing else, so it holds only what is needed again.
pub(crate) struct Container {
    pub id: RunId,
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: String,
    pub mounts: Vec<Mount>,
    pub addresses: Addresses,
    /// May accept connections: tasks may, handlers have their ports from the pod's spec.
    pub may_listen: bool,
    pub dns: Dns,
    pub hosts: Vec<(IpAddr, Vec<String>)>,
    pub ledger: Arc<Ledger>,
    pub cpu: Arc<Cpu>,
    pub log: Arc<Log>,
    /// What attached sessions type, when the container has a stdin.
    pub stdin: Option<pipe::Guest>,
    /// The first session's end is stdin's.
    pub stdin_once: bool,
    pub resolver: Arc<Resolver>,
    pub ca_bundle: Option<PathBuf>,
    pub tls: OnceLock<Result<Arc<rustls::ClientConfig>, String>>,
    noticed: Mutex<Option<Instant>>,
}

/// What a command in a container is run with: its arguments and its streams.
pub(crate) struct Io {
    pub argv: Vec<String>,
    pub stdin: Arc<Pipe>,
    pub stdout: Arc<Pipe>,
    pub stderr: Arc<Pipe>,
    pub tty: bool,
}

/// What of the host a container needs.
pub(crate) struct Surroundings {
    pub data_dir: PathBuf,
    pub addresses: Addresses,
    pub resolver: Arc<Resolver>,
    pub ca_bundle: Option<PathBuf>,
}

impl Container {
    pub fn new(spec: ContainerSpec, log: Arc<Log>, may_listen: bool, around: Surroundings) -> Self {
        let mut mounts = spec.mounts;
        for mount in &mut mounts {
            mount.host_path = below(&around.data_dir, &mount.host_path);
        }
        Self {
            id: spec.id,
            argv: spec.argv,
            env: spec.env,
            working_dir: spec.working_dir,
            mounts,
            addresses: around.addresses,
            may_listen,
            dns: spec.dns,
            hosts: spec.hosts,
            ledger: Ledger::new(spec.resources.memory_limit_bytes),
            cpu: Arc::new(Cpu::new(spec.resources.cpu_limit_millis)),
            log,
            stdin: spec.stdin.then(|| pipe::Guest { pipe: Pipe::new(), tty: spec.tty }),
            stdin_once: spec.stdin_once,
            resolver: around.resolver,
            ca_bundle: around.ca_bundle,
            tls: OnceLock::new(),
            noticed: Mutex::new(None),
        }
    }

    /// Whether a notice may go out now: one a minute.
    pub fn may_notice(&self) -> bool {
        let mut noticed = self.noticed.lock();
        let due = noticed.is_none_or(|at| at.elapsed() >= NOTICE_INTERVAL);
        if due {
            *noticed = Some(Instant::now());
        }
        due
    }

    /// Where a file of the guest's view is on the node, if a mount has it.
    pub fn host_path_of(&self, guest_path: &str) -> Option<PathBuf> {
        self.mounts.iter().find_map(|mount| {
            let rest = Path::new(guest_path).strip_prefix(&mount.container_path).ok()?;
            Some(mount.host_path.join(rest))
        })
    }

    fn wasi(self: &Arc<Self>, io: Option<&Io>) -> wasmtime::Result<WasiCtxBuilder> {
        let mut builder = WasiCtxBuilder::new();
        builder.envs(&self.env);
        match io {
            None => {
                builder.args(&self.argv);
                if let Some(stdin) = &self.stdin {
                    builder.stdin(stdin.clone());
                }
                builder.stdout(GuestOutput::new(&self.log, Stream::Stdout));
                builder.stderr(GuestOutput::new(&self.log, Stream::Stderr));
            }
            Some(io) => {
                let end = |pipe: &Arc<Pipe>| pipe::Guest { pipe: pipe.clone(), tty: io.tty };
                builder.args(&io.argv);
                builder.stdin(end(&io.stdin)).stdout(end(&io.stdout)).stderr(end(&io.stderr));
            }
        }
        if !self.working_dir.is_empty() {
            builder.initial_cwd(&self.working_dir);
        }
        for mount in &self.mounts {
            let perms = if mount.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
            builder.preopened_dir(&mount.host_path, &mount.container_path, perms).map_err(
                |error| {
                    error.context(format!(
                        "cannot open {} for {}",
                        mount.host_path.display(),
                        mount.container_path
                    ))
                },
            )?;
        }
        let container = self.clone();
        builder.allow_tcp(true).allow_udp(true).allow_ip_name_lookup(true);
        builder.socket_addr_check(move |address, purpose| {
            let allowed = container.allows(address, purpose);
            Box::pin(async move { allowed })
        });
        Ok(builder)
    }

    /// Guests bind the pod's address or none in particular, and only tasks listen.
    fn allows(&self, address: std::net::SocketAddr, purpose: SocketAddrUse) -> bool {
        let ours = self.addresses.own_netns || address.ip() == self.addresses.bind_ip;
        match purpose {
            SocketAddrUse::TcpListen | SocketAddrUse::TcpAccept if !self.may_listen => false,
            SocketAddrUse::TcpListen => ours,
            SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => {
                (ours && (self.may_listen || address.port() == 0))
                    || (address.ip().is_unspecified() && address.port() == 0)
            }
            _ => true,
        }
    }

    /// A store for one instance of a component, as the container has it.
    pub fn store(self: &Arc<Self>, engine: &Engine) -> wasmtime::Result<Store<Guest>> {
        self.store_with(engine, None)
    }

    /// A store for one instance of a component, with streams of its own or the container's.
    pub fn store_with(
        self: &Arc<Self>,
        engine: &Engine,
        io: Option<&Io>,
    ) -> wasmtime::Result<Store<Guest>> {
        let account = Account::open(&self.ledger, INSTANCE_BYTES)?;
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        let guest = Guest {
            table,
            wasi: self.wasi(io)?.build(),
            http: WasiHttpCtx::new(),
            hooks: Hooks(self.clone()),
            account,
        };
        let mut store = Store::new(engine, guest);
        store.limiter(|guest| &mut guest.account);
        store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
        yield_every_epoch(&mut store);
        Ok(store)
    }

    /// A store for a preview-1 module.
    pub fn preview1_store(
        self: &Arc<Self>,
        engine: &Engine,
        io: Option<&Io>,
    ) -> wasmtime::Result<Store<Preview1Guest>> {
        let account = Account::open(&self.ledger, INSTANCE_BYTES)?;
        let mut store =
            Store::new(engine, Preview1Guest { wasi: self.wasi(io)?.build_p1(), account });
        store.limiter(|guest| &mut guest.account);
        yield_every_epoch(&mut store);
        Ok(store)
    }
}

fn yield_every_epoch<T>(store: &mut Store<T>) {
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);
}

/// Hosts work in the data directory and name what is below it relative to it: its parents may be
/// closed to their user.
pub(crate) fn below(data_dir: &Path, path: &Path) -> PathBuf {
    match path.strip_prefix(data_dir) {
        Ok(rest) if rest.as_os_str().is_empty() => PathBuf::from("."),
        Ok(rest) => rest.to_owned(),
        Err(_) => path.to_owned(),
    }
}

/// Whether the memory limit is why a guest failed.
pub(crate) fn over_limit(error: &wasmtime::Error) -> Option<OverLimit> {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<OverLimit>())
        .copied()
        .or_else(|| error.downcast_ref::<OverLimit>().copied())
}

/// Behind one instance of a component.
pub(crate) struct Guest {
    pub table: ResourceTable,
    pub wasi: WasiCtx,
    pub http: WasiHttpCtx,
    pub hooks: Hooks,
    account: Account,
}

/// Behind one instance of a preview-1 module.
pub(crate) struct Preview1Guest {
    pub wasi: WasiP1Ctx,
    account: Account,
}

impl Guest {
    pub fn container(&self) -> &Arc<Container> {
        &self.hooks.0
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.hooks, table: &mut self.table, ctx: &mut self.http }
    }
}

/// Our part of `wasi:http`: outgoing requests go the pod's way.
pub(crate) struct Hooks(Arc<Container>);

static FORBIDDEN: LazyLock<ForbiddenHeaderFilter> =
    LazyLock::new(|| Arc::new(|name| DEFAULT_FORBIDDEN_HEADERS.contains(name)));

type Sent = Result<
    (
        http::Response<WasiBody>,
        Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>,
    ),
    wasmtime_wasi_http::Error,
>;

impl WasiHttpHooks for Hooks {
    // Asked for each header of each request: no allocation here.
    fn is_forbidden_header(&mut self, name: &http::HeaderName) -> bool {
        DEFAULT_FORBIDDEN_HEADERS.contains(name)
    }

    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        FORBIDDEN.clone()
    }

    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<wasmtime_wasi_http::RequestOptions>,
        _processed: Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        Box::new(outgoing::send(self.0.clone(), request, options.unwrap_or_default()))
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES
    }
}

/// Everything that a component on this node may import.
pub(crate) fn linker(engine: &Engine, allow_p3: bool) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    if allow_p3 {
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    }
    // Ours take the place of wasmtime's: theirs would use the host's resolver and addresses.
    linker.allow_shadowing(true);
    sockets::add_to_linker(&mut linker)?;
    names::add_to_linker(&mut linker)?;
    if allow_p3 {
        names::add_p3_to_linker(&mut linker)?;
    }
    linker.allow_shadowing(false);
    Ok(linker)
}

pub(crate) fn preview1_linker(
    engine: &Engine,
) -> wasmtime::Result<wasmtime::Linker<Preview1Guest>> {
    let mut linker = wasmtime::Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |guest: &mut Preview1Guest| {
        &mut guest.wasi
    })?;
    // Theirs refuses codes from 126 on, which shells use; ours are those of a container.
    linker.allow_shadowing(true);
    linker.func_wrap(
        "wasi_snapshot_preview1",
        "proc_exit",
        |code: i32| -> wasmtime::Result<()> { Err(I32Exit(code).into()) },
    )?;
    linker.allow_shadowing(false);
    Ok(linker)
}

/// Interfaces that [`linker`] has, for naming the one that a component misses.
pub(crate) fn is_offered(import: &str, allow_p3: bool) -> bool {
    let Some((package, _)) = import.split_once('/') else { return false };
    let p2 = [
        "wasi:io",
        "wasi:clocks",
        "wasi:random",
        "wasi:cli",
        "wasi:filesystem",
        "wasi:sockets",
        "wasi:http",
    ];
    let known = |minor| super::version::is(import, 0, minor);
    p2.contains(&package) && (known(2) || (allow_p3 && known(3) && package != "wasi:io"))
}
