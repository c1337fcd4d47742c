//! The values of enumerated Go types, which k8s-openapi does not tell: `kubectl explain` shows them.

/// Package of the definition that has the field, Go type, values sorted.
const ENUMS: &[(&str, &str, &[&str])] = &[
    ("core.v1", "AppArmorProfileType", &["Localhost", "RuntimeDefault", "Unconfined"]),
    ("core.v1", "AzureDataDiskCachingMode", &["None", "ReadOnly", "ReadWrite"]),
    ("core.v1", "AzureDataDiskKind", &["Dedicated", "Managed", "Shared"]),
    ("core.v1", "DNSPolicy", &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]),
    (
        "core.v1",
        "HostPathType",
        &[
            "",
            "BlockDevice",
            "CharDevice",
            "Directory",
            "DirectoryOrCreate",
            "File",
            "FileOrCreate",
            "Socket",
        ],
    ),
    ("core.v1", "NamespacePhase", &["Active", "Terminating"]),
    ("core.v1", "NodeInclusionPolicy", &["Honor", "Ignore"]),
    ("core.v1", "NodePhase", &["Pending", "Running", "Terminated"]),
    ("core.v1", "NodeSelectorOperator", &["DoesNotExist", "Exists", "Gt", "In", "Lt", "NotIn"]),
    (
        "core.v1",
        "PersistentVolumeAccessMode",
        &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"],
    ),
    ("core.v1", "PersistentVolumeClaimPhase", &["Bound", "Lost", "Pending"]),
    ("core.v1", "PersistentVolumeMode", &["Block", "Filesystem"]),
    ("core.v1", "PersistentVolumePhase", &["Available", "Bound", "Failed", "Pending", "Released"]),
    ("core.v1", "PersistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"]),
    ("core.v1", "PodFSGroupChangePolicy", &["Always", "OnRootMismatch"]),
    ("core.v1", "PodPhase", &["Failed", "Pending", "Running", "Succeeded", "Unknown"]),
    ("core.v1", "PodQOSClass", &["BestEffort", "Burstable", "Guaranteed"]),
    ("core.v1", "PreemptionPolicy", &["Never", "PreemptLowerPriority"]),
    ("core.v1", "ProcMountType", &["Default", "Unmasked"]),
    ("core.v1", "Protocol", &["SCTP", "TCP", "UDP"]),
    ("core.v1", "PullPolicy", &["Always", "IfNotPresent", "Never"]),
    ("core.v1", "RestartPolicy", &["Always", "Never", "OnFailure"]),
    ("core.v1", "ScopeSelectorOperator", &["DoesNotExist", "Exists", "In", "NotIn"]),
    ("core.v1", "SeccompProfileType", &["Localhost", "RuntimeDefault", "Unconfined"]),
    ("core.v1", "ServiceAffinity", &["ClientIP", "None"]),
    ("core.v1", "ServiceExternalTrafficPolicy", &["Cluster", "Local"]),
    ("core.v1", "ServiceInternalTrafficPolicy", &["Cluster", "Local"]),
    ("core.v1", "ServiceType", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]),
    ("core.v1", "SupplementalGroupsPolicy", &["Merge", "Strict"]),
    ("core.v1", "TaintEffect", &["NoExecute", "NoSchedule", "PreferNoSchedule"]),
    ("core.v1", "TerminationMessagePolicy", &["FallbackToLogsOnError", "File"]),
    ("core.v1", "TolerationOperator", &["Equal", "Exists", "Gt", "Lt"]),
    ("core.v1", "URIScheme", &["HTTP", "HTTPS"]),
    ("core.v1", "UnsatisfiableConstraintAction", &["DoNotSchedule", "ScheduleAnyway"]),
    ("core.v1", "IPFamilyPolicy", &["PreferDualStack", "RequireDualStack", "SingleStack"]),
    ("core.v1", "MountPropagationMode", &["Bidirectional", "HostToContainer", "None"]),
    ("apps.v1", "DaemonSetUpdateStrategyType", &["OnDelete", "RollingUpdate"]),
    ("apps.v1", "DeploymentStrategyType", &["Recreate", "RollingUpdate"]),
    ("apps.v1", "PodManagementPolicyType", &["OrderedReady", "Parallel"]),
    ("apps.v1", "StatefulSetUpdateStrategyType", &["OnDelete", "RollingUpdate"]),
    ("batch.v1", "CompletionMode", &["Indexed", "NonIndexed"]),
    ("batch.v1", "ConcurrencyPolicy", &["Allow", "Forbid", "Replace"]),
    ("batch.v1", "PodFailurePolicyAction", &["Count", "FailIndex", "FailJob", "Ignore"]),
    ("batch.v1", "PodFailurePolicyOnExitCodesOperator", &["In", "NotIn"]),
    ("batch.v1", "PodReplacementPolicy", &["Failed", "TerminatingOrFailed"]),
    ("networking.v1", "PathType", &["Exact", "ImplementationSpecific", "Prefix"]),
    ("networking.v1", "PolicyType", &["Egress", "Ingress"]),
    ("discovery.v1", "AddressType", &["FQDN", "IPv4", "IPv6"]),
    ("policy.v1", "UnhealthyPodEvictionPolicyType", &["AlwaysAllow", "IfHealthyBudget"]),
    ("storage.v1", "VolumeBindingMode", &["Immediate", "WaitForFirstConsumer"]),
];

/// Groups whose fields use the core group's types under the same bare package name.
const USE_CORE: &[&str] = &[
    "apps.v1",
    "batch.v1",
    "networking.v1",
    "discovery.v1",
    "storage.v1",
    "node.v1",
    "scheduling.v1",
];

/// The values of a Go type as a field of a definition names it (`v1.PullPolicy`), if it is an enumeration.
pub(super) fn values(definition: &str, go_type: &str) -> Option<&'static [&'static str]> {
    let bare = go_type.trim_start_matches("[]").strip_prefix("v1.")?;
    let package = definition.rsplit_once('.')?.0.strip_prefix("io.k8s.api.")?;
    let found = |package: &str| {
        ENUMS.iter().find(|(p, name, _)| *p == package && *name == bare).map(|(.., v)| *v)
    };
    found(package).or_else(|| if USE_CORE.contains(&package) { found("core.v1") } else { None })
}
