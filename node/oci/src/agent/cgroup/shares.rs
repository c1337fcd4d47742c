//! How CPU time is shared when there is too little: `cpu.shares` in v1, `cpu.weight` in v2.

/// v1's shares (2 to 262144) on v2's scale (1 to 10000), as the kubelet has it for pods and what is above them.
pub(super) fn weight_of_pod(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// The same for a container's own cgroup, as the OCI runtimes have it since 2025 and libcontainer too: a whole
/// core is 100, the kernel's default. Containers are weighed against those of their pod alone.
/// <https://github.com/containers/crun/issues/1721>
pub(super) fn weight_of_container(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights() {
        let check = |shares, pod, container| {
            assert_eq!((weight_of_pod(shares), weight_of_container(shares)), (pod, container));
        };
        check(0, 1, 1);
        check(2, 1, 1);
        check(102, 4, 17);
        check(1024, 39, 100);
        check(262_144, 10_000, 10_000);
    }
}
