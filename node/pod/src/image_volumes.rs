//! Volumes that are images. A container waits for those that it mounts as it waits for its own image, with the
//! same reasons; containers that mount none do not.
//! <https://kubernetes.io/docs/tasks/configure-pod-container/image-volumes/>

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Pod};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::image_pull::{self, Said, Say, Wanted};
use crate::outside::{ImageError, ImageForm};
use crate::task::Handle;
use crate::volumes;

/// What became of a pod's volumes lately, by their names. One at a time is pulled and mounted: several containers
/// may want it.
#[derive(Default)]
pub(crate) struct ImageVolumes(Mutex<HashMap<String, (Instant, ImageError)>>);

/// Why a container's volume is not there, and the image that it is.
pub(crate) struct Failed {
    pub reference: String,
    pub error: ImageError,
}

/// Pulls and mounts those that a container mounts.
pub(crate) async fn ensure(
    handle: &Arc<Handle>,
    pod: &Pod,
    container: &Container,
) -> Result<(), Failed> {
    let config = &handle.node.config;
    let asked_at = Instant::now();
    // About the pod: it is its volume.
    let say = |said: Said| {
        config.reports.event(pod, "", said.warning, said.reason, &said.message);
    };
    for (name, source) in mounted_by(pod, container) {
        let mut failures = handle.image_volumes.0.lock().await;
        let outcome = match failures.get(name) {
            // Of the container before, while this one waited.
            Some((at, error)) if *at >= asked_at => Err(error.clone()),
            _ => one(handle, pod, name, source, &say).await,
        };
        if let Err(error) = outcome {
            failures.insert(name.to_owned(), (Instant::now(), error.clone()));
            let reference = source.reference.clone().unwrap_or_default();
            return Err(Failed { reference, error });
        }
        failures.remove(name);
    }
    Ok(())
}

fn mounted_by<'a>(
    pod: &'a Pod,
    container: &'a Container,
) -> impl Iterator<Item = (&'a str, &'a ImageVolumeSource)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(move |volume| {
        let mut mounts = container.volume_mounts.iter().flatten();
        let mounted = mounts.any(|mount| mount.name == volume.name);
        Some((volume.name.as_str(), volume.image.as_ref().filter(|_| mounted)?))
    })
}

async fn one(
    handle: &Arc<Handle>,
    pod: &Pod,
    name: &str,
    source: &ImageVolumeSource,
    say: Say<'_>,
) -> Result<(), ImageError> {
    let config = &handle.node.config;
    let wanted = Wanted::new(source.reference.as_deref(), source.pull_policy.as_deref());
    let image = image_pull::ensure(pod, &wanted, &*config.images, &*config.objects, say).await?;
    let broken = |message| ImageError { reason: "CreateContainerError".into(), message };
    let ImageForm::Linux { layers, .. } = image.form else {
        return Err(broken(format!(
            "failed to mount image volume {name:?}: image {:?} is a WebAssembly component: it has no files to mount",
            wanted.reference
        )));
    };
    let places = handle.places();
    let own = name.to_owned();
    let mounted =
        tokio::task::spawn_blocking(move || volumes::mount_image(&places, &own, &layers)).await;
    mounted
        .unwrap_or_else(|panic| Err(panic.to_string()))
        .map_err(|why| broken(format!("failed to mount image volume {name:?}: {why}")))
}
