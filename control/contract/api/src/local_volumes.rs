//! Volumes that are directories of one node: what the control plane that orders one and the node that keeps
//! it must both know.

/// Who provisions such volumes, as StorageClasses and the annotation `pv.kubernetes.io/provisioned-by` say.
pub const PROVISIONER: &str = "rimward.dev/local-path";
/// The annotation of a volume that names its provisioner.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// The annotation of a Node with the directory in which it keeps them.
pub const DIRECTORY: &str = "rimward.dev/local-volumes";
