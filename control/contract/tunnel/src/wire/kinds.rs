//! The kinds of objects that a node is told about.

/// In the order in which they are sent: what a pod needs goes before the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    Namespace,
    ConfigMap,
    Secret,
    Service,
    EndpointSlice,
    Ingress,
    PersistentVolume,
    PersistentVolumeClaim,
    /// Of its own, what others say of it: labels and taints.
    Node,
    Pod,
}

impl ObjectKind {
    pub const ALL: [Self; 10] = [
        Self::Namespace,
        Self::ConfigMap,
        Self::Secret,
        Self::Service,
        Self::EndpointSlice,
        Self::Ingress,
        Self::PersistentVolume,
        Self::PersistentVolumeClaim,
        Self::Node,
        Self::Pod,
    ];

    /// As frames call it: Kubernetes' kind.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Ingress => "Ingress",
            Self::PersistentVolume => "PersistentVolume",
            Self::PersistentVolumeClaim => "PersistentVolumeClaim",
            Self::Node => "Node",
            Self::Pod => "Pod",
        }
    }

    /// None for a kind that a newer end knows: its frames are skipped.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}
