//! The ConfigMaps and Secrets that a pod refers to, fetched before anything is decided from them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, PersistentVolumeClaim, Pod, Secret, Volume,
};
use serde::{Deserialize, Serialize};

use crate::outside::{ObjectError, Objects};
use crate::volumes::claimed::claim_of;

/// Names one object of the pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum Name {
    ConfigMap(String),
    Secret(String),
    Claim(String),
}

#[derive(Clone)]
enum Object {
    ConfigMap(Arc<ConfigMap>),
    Secret(Arc<Secret>),
    Claim(Arc<PersistentVolumeClaim>),
}

/// Fetched objects, or why they are not to be had.
#[derive(Clone, Default)]
pub(crate) struct Sources {
    objects: BTreeMap<Name, Result<Object, ObjectError>>,
}

impl Sources {
    pub async fn fetch(objects: &dyn Objects, namespace: &str, names: Vec<Name>) -> Self {
        let mut sources = Self::default();
        for name in names {
            if sources.objects.contains_key(&name) {
                continue;
            }
            let object = match &name {
                Name::ConfigMap(n) => objects.config_map(namespace, n).await.map(Object::ConfigMap),
                Name::Secret(n) => objects.secret(namespace, n).await.map(Object::Secret),
                Name::Claim(n) => objects.claim(namespace, n).await.map(Object::Claim),
            };
            sources.objects.insert(name, object);
        }
        sources
    }

    #[cfg(test)]
    pub fn of(config_maps: Vec<ConfigMap>, secrets: Vec<Secret>) -> Self {
        let name = |n: &Option<String>| n.clone().unwrap();
        let config_maps = config_maps
            .into_iter()
            .map(|c| (Name::ConfigMap(name(&c.metadata.name)), Ok(Object::ConfigMap(Arc::new(c)))));
        let secrets = secrets
            .into_iter()
            .map(|s| (Name::Secret(name(&s.metadata.name)), Ok(Object::Secret(Arc::new(s)))));
        Self { objects: config_maps.chain(secrets).collect() }
    }

    /// All keys of an object with their bytes; None when it is optional and not there.
    pub fn all(
        &self,
        name: &Name,
        optional: bool,
    ) -> Result<Option<BTreeMap<&str, &[u8]>>, ObjectError> {
        match self.objects.get(name) {
            Some(Ok(Object::ConfigMap(map))) => {
                let text = map.data.iter().flatten().map(|(k, v)| (k.as_str(), v.as_bytes()));
                let binary =
                    map.binary_data.iter().flatten().map(|(k, v)| (k.as_str(), v.0.as_slice()));
                Ok(Some(text.chain(binary).collect()))
            }
            Some(Ok(Object::Secret(secret))) => {
                let data = secret.data.iter().flatten();
                Ok(Some(data.map(|(k, v)| (k.as_str(), v.0.as_slice())).collect()))
            }
            // A claim has no keys, and nothing takes any from it.
            Some(Ok(Object::Claim(_))) => Ok(None),
            Some(Err(ObjectError::NotFound(_))) if optional => Ok(None),
            Some(Err(error)) => Err(error.clone()),
            None if optional => Ok(None),
            None => Err(ObjectError::NotFound(not_found(name))),
        }
    }

    /// Which version of each was seen; None for what is not there.
    pub fn versions(&self) -> Vec<(Name, Option<String>)> {
        self.objects
            .iter()
            .map(|(name, object)| (name.clone(), object.as_ref().ok().and_then(version)))
            .collect()
    }
}

fn version(object: &Object) -> Option<String> {
    match object {
        Object::ConfigMap(map) => map.metadata.resource_version.clone(),
        Object::Secret(secret) => secret.metadata.resource_version.clone(),
        Object::Claim(claim) => claim.metadata.resource_version.clone(),
    }
}

fn not_found(name: &Name) -> String {
    match name {
        Name::ConfigMap(n) => format!("configmap {n:?} not found"),
        Name::Secret(n) => format!("secret {n:?} not found"),
        Name::Claim(n) => format!("persistentvolumeclaim {n:?} not found"),
    }
}

/// What a container's environment refers to.
pub(crate) fn of_container(container: &Container) -> Vec<Name> {
    let from = container.env_from.iter().flatten().flat_map(|from| {
        let config_map = from.config_map_ref.as_ref().map(|r| Name::ConfigMap(r.name.clone()));
        let secret = from.secret_ref.as_ref().map(|r| Name::Secret(r.name.clone()));
        config_map.into_iter().chain(secret)
    });
    let single =
        container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()).flat_map(|v| {
            let config_map = v.config_map_key_ref.as_ref().map(|r| Name::ConfigMap(r.name.clone()));
            let secret = v.secret_key_ref.as_ref().map(|r| Name::Secret(r.name.clone()));
            config_map.into_iter().chain(secret)
        });
    from.chain(single).collect()
}

/// What a volume is made from.
pub(crate) fn of_volume(pod: &Pod, volume: &Volume) -> Vec<Name> {
    let mut names = Vec::new();
    names.extend(claim_of(pod, volume).map(Name::Claim));
    names.extend(volume.config_map.iter().map(|c| Name::ConfigMap(c.name.clone())));
    names.extend(volume.secret.iter().filter_map(|s| s.secret_name.clone()).map(Name::Secret));
    for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
        names.extend(source.config_map.iter().map(|c| Name::ConfigMap(c.name.clone())));
        names.extend(source.secret.iter().map(|s| Name::Secret(s.name.clone())));
    }
    names
}
