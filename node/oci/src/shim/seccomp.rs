//! Filters of system calls as the kernel takes them, and their installation.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Op,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

use crate::runtime_default::{self, Masked, NEWEST};
use crate::seccomp_profile::Compiled;

/// In the order in which they are installed. A call must pass all; of two refusals the later one's
/// answer counts.
#[derive(Clone)]
pub(super) struct Filters {
    programs: Vec<BpfProgram>,
    /// Of seccomp(2).
    flags: u64,
}

/// # Errors
/// On an architecture that has no filter: then a container that wants one must not start.
pub(super) fn runtime_default(capabilities: u64) -> Result<Filters, String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|_| {
        format!(
            "seccomp profile RuntimeDefault is not available on {}: the container is not started unconfined",
            std::env::consts::ARCH
        )
    })?;
    let failed = |e: BackendError| format!("the default seccomp profile: {e}");
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let mut allowed = runtime_default::allowed(capabilities);
    let clone3 = !allowed.contains_key(&libc::SYS_clone3);
    // The other filter's to answer.
    allowed.entry(libc::SYS_clone3).or_default();
    let rules = allowed.into_iter().map(|(call, cases)| Ok((call, rules(&cases)?)));
    let rules: BTreeMap<i64, Vec<SeccompRule>> = rules.collect::<Result<_, _>>().map_err(failed)?;
    let list = SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)
        .and_then(BpfProgram::try_from)
        .map_err(failed)?;
    Ok(Filters { programs: vec![list, unknown(clone3)], flags: 0 })
}

fn rules(cases: &[Masked]) -> Result<Vec<SeccompRule>, BackendError> {
    let one = |case: &Masked| {
        let op = Op::MaskedEq(case.mask);
        SeccompRule::new(vec![SeccompCondition::new(case.argument, Width::Qword, op, case.value)?])
    };
    cases.iter().map(one).collect()
}

impl Filters {
    pub fn of(profile: &Compiled) -> Self {
        let one = |raw: &u64| sock_filter {
            code: *raw as u16,
            jt: (raw >> 16) as u8,
            jf: (raw >> 24) as u8,
            k: (raw >> 32) as u32,
        };
        Self { programs: vec![profile.program.iter().map(one).collect()], flags: profile.flags }
    }

    /// Limits this process for good.
    pub fn install(&self) -> Result<(), String> {
        for program in &self.programs {
            let program = libc::sock_fprog {
                len: u16::try_from(program.len()).map_err(|e| format!("seccomp: {e}"))?,
                filter: program.as_ptr().cast_mut().cast(),
            };
            // seccompiler's own way of installing would set no_new_privs, which is the pod's to decide.
            // SAFETY: the program lives until the call is over, and the kernel copies it.
            let done = unsafe {
                libc::syscall(
                    libc::SYS_seccomp,
                    libc::SECCOMP_SET_MODE_FILTER,
                    self.flags,
                    &raw const program,
                )
            };
            if done != 0 {
                let error = std::io::Error::last_os_error();
                return Err(format!("the seccomp profile cannot be applied: {error}"));
            }
        }
        Ok(())
    }
}

/// ENOSYS for calls newer than the list, and for `clone3`. By hand: a compiled list only knows equality.
fn unknown(clone3: bool) -> BpfProgram {
    let op = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    let jump = |test: u32| libc::BPF_JMP | test | libc::BPF_K;
    let answer = |k| op(libc::BPF_RET | libc::BPF_K, 0, 0, k);
    let clone3 = if clone3 { libc::SYS_clone3 as u32 } else { u32::MAX };
    vec![
        // The call's number is the first field of what a filter sees.
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        op(jump(libc::BPF_JGT), 2, 0, NEWEST),
        op(jump(libc::BPF_JEQ), 1, 0, clone3),
        answer(libc::SECCOMP_RET_ALLOW),
        answer(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_compiles() {
        let filters = runtime_default(0).unwrap();
        assert!(
            filters.programs.iter().all(|program| program.len() < 4096),
            "the kernel takes no more"
        );
    }
}
