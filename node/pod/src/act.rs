//! Carries out what was planned, in short tasks that hand their results back to the pod's state.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use crate::container_spec::{self, Given};
use crate::dns;
use crate::downward::Facts;
use crate::env;
use crate::env_file;
use crate::hooks;
use crate::host_ports;
use crate::image_pull::{self, Said, Say, Wanted};
use crate::image_volumes::{self, Failed};
use crate::outside::{Attachment, Image, ImageError, ImageForm};
use crate::probe::{self, Target};
use crate::runtime::{RunId, Runtime, StartError};
use crate::sources::{self, Name, Sources};
use crate::state::{Action, Event, PodState, Setup, StartFailure};
use crate::task::Handle;
use crate::volumes::{self, Turn};

pub(crate) fn carry_out(handle: &Arc<Handle>, action: Action) {
    let h = handle.clone();
    match action {
        Action::Event(event) => say(handle, &event),
        Action::SetUpVolumes { due } => spawn(async move { set_up_volumes(&h, due).await }),
        Action::Attach => spawn(async move { attach(&h).await }),
        Action::Pull { index } => spawn(async move { pull(&h, index).await }),
        Action::Start { index, id, image, runtime } => spawn(async move {
            let result = start(&h, index, &id, *image, runtime).await;
            if let Err(failure) = &result
                && failure.error.reason == "CreateContainerConfigError"
            {
                watch(&h, &failure.seen);
            }
            let identity = match &result {
                Ok(()) => h.node.runtime(runtime).identity(&id).await,
                Err(_) => None,
            };
            h.apply(|state, now| state.started(&id, result.map(|()| identity), now));
        }),
        Action::PostStart { index, id, runtime, hook } => spawn(async move {
            let result = run_hook(&h, index, &id, runtime, &hook).await;
            h.apply(|state, now| state.post_started(&id, result, now));
        }),
        Action::Probe { index, id, runtime, kind } => spawn(async move {
            probe(&h, index, &id, runtime, kind).await;
        }),
        Action::Resize { index, id, runtime } => spawn(async move {
            let result = resize(&h, index, &id, runtime).await;
            h.apply(|state, now| state.resized(&id, result, now));
        }),
        Action::PreStop { index, id, runtime, hook, limit } => spawn(async move {
            pre_stop(&h, index, &id, runtime, &hook, limit).await;
            h.apply(|state, _| state.pre_stopped(&id));
        }),
        Action::Stop { index, id, runtime, hook, grace } => spawn(async move {
            stop(&h, index, &id, runtime, hook, grace).await;
        }),
        Action::Forget { id, runtime } => spawn(async move { forget(&h, &id, runtime).await }),
        Action::Discard { id, runtime } => spawn(async move {
            let runtime = h.node.runtime(runtime);
            runtime.stop(&id, Duration::from_secs(1)).await;
            runtime.remove(&id).await;
        }),
        Action::Release => spawn(async move { release(&h).await }),
    }
}

fn spawn(work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(work);
}

fn say(handle: &Handle, event: &Event) {
    let (pod, orphan) = handle.look(|state| (state.pod.clone(), state.orphan));
    if !orphan {
        let reports = &handle.node.config.reports;
        reports.event(&pod, &event.field_path, event.warning, &event.reason, &event.message);
    }
}

/// The pod is told when one of these changes.
fn watch(handle: &Handle, seen: &[(Name, Option<String>)]) {
    let stale = handle.node.references.watch(&handle.key.namespace, &handle.uid, seen);
    handle.apply(|state, _| {
        for (name, _) in seen {
            if !state.watched.contains(name) {
                state.watched.push(name.clone());
            }
        }
    });
    handle.node.look_again(stale);
}

async fn set_up_volumes(handle: &Arc<Handle>, due: Option<jiff::Timestamp>) {
    let config = &handle.node.config;
    let (pod, again) =
        handle.look(|state| (state.pod.clone(), matches!(state.volumes, Setup::Done(_))));
    let turn = if again { Turn::Again { tokens_due: due } } else { Turn::First };
    let before = *config.objects.changes().borrow();
    let facts = facts(handle, &[]);
    let now = config.clock.now();
    let places = handle.places();
    let result = volumes::set_up(&pod, &places, &*config.objects, &facts, turn, now).await;
    let seen = match &result {
        Ok(mounted) => mounted.versions.clone(),
        Err(failure) => failure.seen.clone(),
    };
    handle.apply(|state, now| state.volumes_done(result, now));
    watch(handle, &seen);
    // A change between the look and the watch would go unseen.
    if !seen.is_empty() && *config.objects.changes().borrow() != before {
        handle.apply(PodState::objects_changed);
    }
}

fn facts<'a>(handle: &'a Handle, pod_ips: &'a [std::net::IpAddr]) -> Facts<'a> {
    let config = &handle.node.config;
    Facts {
        pod_ips,
        host_ip: config.network.host_ip(),
        node_name: &config.node_name,
        allocatable: config.allocatable,
    }
}

async fn attach(handle: &Arc<Handle>) {
    let handler = handle.look(|state| wanted_handler(&state.pod).to_owned());
    if !handle.node.config.runtimes.iter().any(|r| has_handler(&**r, &handler)) {
        let why =
            format!("failed to get sandbox runtime: no runtime for {handler:?} is configured");
        return handle.apply(|state, now| state.attached(Err(why), now));
    }
    let (on_host, ports) = handle.look(|state| {
        let on_host = state.spec().host_network == Some(true);
        (on_host, if on_host { Vec::new() } else { host_ports::of(state.spec()) })
    });
    let network = &handle.node.config.network;
    let mut result = network.attach(&handle.uid, on_host).await;
    if result.is_ok()
        && !ports.is_empty()
        && let Err(why) = network.publish(&handle.uid, &ports).await
    {
        result = Err(why);
    }
    handle.apply(|state, now| state.attached(result, now));
}

async fn pull(handle: &Arc<Handle>, index: usize) {
    let config = &handle.node.config;
    let (pod, container, field_path) = handle.look(|state| {
        let container = state.container_spec(index).clone();
        let list = state.containers[index].kind.list();
        let field_path = format!("spec.{list}{{{}}}", container.name);
        (state.pod.clone(), container, field_path)
    });
    let say = |said: Said| {
        let field_path = if said.of_pod { "" } else { field_path.as_str() };
        config.reports.event(&pod, field_path, said.warning, said.reason, &said.message);
    };
    let result = image(handle, &pod, &container, &say).await;
    if let Err(Failed { error, .. }) = &result {
        let told =
            if error.reason == "CreateContainerError" { &error.message } else { &error.reason };
        let (reason, message) = ("Failed", format!("Error: {told}"));
        say(Said { of_pod: false, warning: true, reason, message });
    }
    let wanted = container.image.unwrap_or_default();
    handle.apply(|state, now| state.pulled(index, &wanted, result, now));
}

/// The images of the volumes that a container mounts, then its own, and what runs that.
async fn image(
    handle: &Arc<Handle>,
    pod: &Pod,
    container: &Container,
    say: Say<'_>,
) -> Result<(Image, (usize, &'static str)), Failed> {
    let config = &handle.node.config;
    image_volumes::ensure(handle, pod, container).await?;
    let wanted = Wanted::of(container);
    let image = image_pull::ensure(pod, &wanted, &*config.images, &*config.objects, say).await;
    let ready = image.and_then(|image| {
        let runtime = choose_runtime(handle, pod, &image)?;
        Ok((image, runtime))
    });
    ready.map_err(|error| Failed { reference: wanted.reference.to_owned(), error })
}

/// The first runtime that runs the image and has the handler that the pod's RuntimeClass names.
fn choose_runtime(
    handle: &Handle,
    pod: &Pod,
    image: &Image,
) -> Result<(usize, &'static str), ImageError> {
    let wanted = wanted_handler(pod);
    let runtimes = &handle.node.config.runtimes;
    let chosen = runtimes.iter().position(|r| r.runs(image) && has_handler(&**r, wanted));
    chosen.map(|index| (index, runtimes[index].name())).ok_or_else(|| {
        let form = match image.form {
            ImageForm::Wasm { .. } => "a WebAssembly image",
            ImageForm::Linux { .. } => "a Linux container image",
        };
        let why = match wanted {
            "" => "no runtime of this node runs it".into(),
            handler => format!("the runtime handler {handler:?} does not run it"),
        };
        ImageError {
            reason: "CreateContainerError".into(),
            message: format!("image {:?} is {form}: {why}", image.reference),
        }
    })
}

/// What the control plane put in the place of the RuntimeClass's name; empty is any.
fn wanted_handler(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.runtime_class_name.as_deref()).unwrap_or_default()
}

fn has_handler(runtime: &dyn Runtime, wanted: &str) -> bool {
    wanted.is_empty() || runtime.handlers().iter().any(|handler| handler.name == wanted)
}

async fn start(
    handle: &Arc<Handle>,
    index: usize,
    id: &RunId,
    image: Image,
    runtime: usize,
) -> Result<(), StartFailure> {
    let config = &handle.node.config;
    let (pod, attachment) = handle.look(|state| (state.granted_pod(), attachment(state)));
    let container = handle.look(|state| state.granted_container(index));
    let pid_of = handle.look(|state| state.target(index)).map_err(|message| StartFailure {
        error: StartError { reason: "CreateContainerConfigError".into(), message },
        seen: Vec::new(),
    })?;
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let sources =
        Sources::fetch(&*config.objects, &namespace, sources::of_container(&container)).await;
    let refuse = |message: String| StartFailure {
        error: StartError { reason: "CreateContainerConfigError".into(), message },
        seen: sources.versions(),
    };
    let mut attachment = attachment.ok_or_else(|| refuse("the pod has no address".into()))?;
    has_users(&**handle.node.runtime(runtime), &pod, &image).map_err(&refuse)?;
    let on_host = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    if !on_host
        && attachment.netns.is_none()
        && (handle.node.runtime(runtime).needs_namespace()
            || handle.node.runtime(runtime).isolates(wanted_handler(&pod))
            || shares_a_namespace(handle, &pod, &container.name).await)
    {
        let own = own_namespace(handle, &pod).await.map_err(|e| StartFailure {
            error: StartError {
                reason: "CreateContainerError".into(),
                message: format!("failed to set up the pod's network namespace: {e}"),
            },
            seen: Vec::new(),
        })?;
        attachment.netns = Some(own);
    }
    let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    let own = if links { config.objects.services(&namespace) } else { Vec::new() };
    let services = env::service_variables(&own, &config.objects.services("default"), links);
    let facts = facts(handle, &attachment.pod_ips);
    let places = handle.places();
    let files = match env_file::references(&container).next() {
        None => env_file::Files::new(),
        Some(_) => env_file::read(&pod, &container, &places),
    };
    let env =
        env::resolve(&pod, &container, &sources, &files, services, &facts).map_err(&refuse)?;
    let host = &handle.node.host_dns;
    let spec = container_spec::build(Given {
        dns: dns::of_pod(&pod, config.network.dns_server(), &config.cluster_domain, host),
        pod: &pod,
        container: &container,
        id: id.clone(),
        image,
        env,
        attachment: &attachment,
        host_ip: config.network.host_ip(),
        cluster_domain: &config.cluster_domain,
        places: &places,
    });
    let mut spec = spec.map_err(&refuse)?;
    spec.linux.pid_of = pid_of;
    let create = |error: StartError| StartFailure { error, seen: Vec::new() };
    if let Some(dir) = spec.log_path.parent() {
        crate::record::make_dir(dir).map_err(|e| {
            let message = format!("cannot make the log directory {}: {e}", dir.display());
            create(StartError { reason: "CreateContainerError".into(), message })
        })?;
    }
    handle.node.runtime(runtime).start(spec).await.map_err(create)
}

async fn resize(
    handle: &Handle,
    index: usize,
    id: &RunId,
    runtime: usize,
) -> Result<(), StartError> {
    let (pod, container) =
        handle.look(|state| (state.granted_pod(), state.granted_container(index)));
    let wrong = |message| StartError { reason: "ResizeError".into(), message };
    let (resources, limits) = container_spec::limits(&pod, &container).map_err(wrong)?;
    let result = handle.node.runtime(runtime).update(id, &resources, &limits).await;
    // It may need less than before.
    handle.node.tell_waiting();
    result
}

/// Nothing starts less confined than it was asked to be. A component has no user of the machine at all.
fn has_users(runtime: &dyn Runtime, pod: &Pod, image: &Image) -> Result<(), String> {
    let wanted = pod.spec.as_ref().and_then(|spec| spec.host_users) == Some(false);
    let can = || runtime.handlers().iter().any(|handler| handler.user_namespaces);
    if !wanted || matches!(image.form, ImageForm::Wasm { .. }) || can() {
        return Ok(());
    }
    let handler = wanted_handler(pod);
    Err(format!("RuntimeClass handler {handler:?} does not support user namespaces"))
}

/// The pod's network namespace, which belongs to the pod's own users where it has such.
async fn own_namespace(handle: &Handle, pod: &Pod) -> Result<PathBuf, String> {
    let config = &handle.node.config;
    let mut made = None;
    if pod.spec.as_ref().and_then(|spec| spec.host_users) == Some(false) {
        let mut runtimes = config.runtimes.iter();
        let runtime = runtimes.find(|runtime| runtime.needs_namespace());
        let runtime = runtime.ok_or("this node runs no containers that have users")?;
        let hostname = dns::hostname(pod, &config.cluster_domain).0;
        made = Some(runtime.own_users(&handle.uid, &hostname).await?);
    }
    config.network.own_namespace(&handle.uid, made.as_deref()).await
}

/// Whether another container of the pod needs a namespace of the pod's own: then this one is in it too,
/// whichever starts first. What an image is, only the image tells, so it is fetched now if it is not here;
/// one that cannot be had needs nothing yet.
async fn shares_a_namespace(handle: &Handle, pod: &Pod, name: &str) -> bool {
    let config = &handle.node.config;
    if !config.runtimes.iter().any(|runtime| runtime.needs_namespace()) {
        return false;
    }
    let spec = pod.spec.as_ref();
    let init = spec.into_iter().flat_map(|s| s.init_containers.iter().flatten());
    let main = spec.into_iter().flat_map(|s| &s.containers);
    for other in main.chain(init).filter(|other| other.name != name) {
        let reference = other.image.as_deref().unwrap_or_default();
        let image = match config.images.present(reference).await {
            Some(image) => Some(image),
            None => {
                let (images, objects) = (&*config.images, &*config.objects);
                image_pull::ensure(pod, &Wanted::of(other), images, objects, &|_| {}).await.ok()
            }
        };
        let needs = |image: &Image| {
            config.runtimes.iter().any(|runtime| runtime.needs_namespace() && runtime.runs(image))
        };
        if image.is_some_and(|image| needs(&image)) {
            return true;
        }
    }
    false
}

fn attachment(state: &PodState) -> Option<Attachment> {
    match &state.network {
        Setup::Done(attachment) => Some(attachment.clone()),
        _ => None,
    }
}

/// Runs something that is aimed at a container.
async fn run_hook(
    handle: &Handle,
    index: usize,
    id: &RunId,
    runtime: usize,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    let container = handle.look(|state| state.container_spec(index).clone());
    let Some(attachment) = handle.look(attachment) else {
        return Err("the pod has no address".into());
    };
    let target = Target {
        network: &*handle.node.config.network,
        runtime: &**handle.node.runtime(runtime),
        id,
        pod_ip: attachment.pod_ips.first().copied().unwrap_or(attachment.bind_ip),
        container: &container,
    };
    let result = hooks::run(hook, &target).await;
    if let Err(why) = &result {
        tracing::info!(%id, why, "lifecycle hook failed");
    }
    result
}

async fn probe(handle: &Arc<Handle>, index: usize, id: &RunId, runtime: usize, kind: probe::Kind) {
    let container = handle.look(|state| state.container_spec(index).clone());
    let attachment = handle.look(attachment);
    let (Some(spec), Some(attachment)) = (kind.of(&container), attachment) else {
        let outcome = probe::Outcome::Unknown("the pod has no address".into());
        handle.apply(|state, now| state.probed(id, kind, outcome, now));
        return;
    };
    let target = Target {
        network: &*handle.node.config.network,
        runtime: &**handle.node.runtime(runtime),
        id,
        pod_ip: attachment.pod_ips.first().copied().unwrap_or(attachment.bind_ip),
        container: &container,
    };
    let outcome = probe::execute(spec, &target).await;
    handle.apply(|state, now| state.probed(id, kind, outcome, now));
}

/// Waits for a preStop hook as long as there is time. A command that takes longer goes on until its container
/// ends, as under the kubelet: it may just be saving something.
async fn pre_stop(
    handle: &Arc<Handle>,
    index: usize,
    id: &RunId,
    runtime: usize,
    hook: &LifecycleHandler,
    limit: Duration,
) {
    let goes_on = hook.exec.is_some();
    let (handle, id, hook) = (handle.clone(), id.clone(), hook.clone());
    let mut run = tokio::spawn(async move {
        if run_hook(&handle, index, &id, runtime, &hook).await.is_err() {
            handle.apply(|state, _| {
                let message = "PreStopHook failed".into();
                state.container_event(index, true, "FailedPreStopHook", message);
            });
        }
    });
    if tokio::time::timeout(limit, &mut run).await.is_err() && !goes_on {
        run.abort();
    }
}

async fn stop(
    handle: &Arc<Handle>,
    index: usize,
    id: &RunId,
    runtime: usize,
    hook: Option<Box<LifecycleHandler>>,
    grace: Duration,
) {
    let began = tokio::time::Instant::now();
    let mut left = grace;
    if let Some(hook) = hook {
        pre_stop(handle, index, id, runtime, &hook, grace).await;
        // The kubelet leaves two seconds even when the hook took all.
        left = grace.saturating_sub(began.elapsed()).max(Duration::from_secs(2));
    }
    handle.node.runtime(runtime).stop(id, left).await;
}

/// The run's end is written down: the runtime may forget it. Logs of the run before the previous
/// one go, and whoever follows this one's is told that it is over.
async fn forget(handle: &Arc<Handle>, id: &RunId, runtime: usize) {
    handle.node.runtime(runtime).remove(id).await;
    let dir = handle.pod_dir().join(&id.container);
    handle.node.logs.poke(&dir);
    let Some(old) = id.attempt.checked_sub(2) else { return };
    let prefix = format!("{old}.log");
    let _best_effort = tokio::task::spawn_blocking(move || {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name == prefix || name.starts_with(&format!("{prefix}.")) {
                let _gone_already = std::fs::remove_file(entry.path());
            }
        }
    })
    .await;
}

async fn release(handle: &Arc<Handle>) {
    for runtime in &handle.node.config.runtimes {
        runtime.release(&handle.uid).await;
    }
    handle.node.config.network.detach(&handle.uid).await;
    handle.node.gives_back(&handle.uid);
    let places = handle.places();
    let result = match tokio::task::spawn_blocking(move || places.release()).await {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(panic) => Err(panic.to_string()),
    };
    handle.apply(|state, now| state.released(result, now));
}
