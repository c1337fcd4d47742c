//! A seccomp profile of type Localhost: from the JSON that an operator wrote to what the kernel runs, or to what
//! runc is told.
//!
//! The words are those of the OCI runtime specification, which other runtimes read too, with what Docker's
//! profiles add to them (`includes`, `excludes`, `archMap`).
//! <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md#seccomp>
//!
//! Read here, once, before the container starts: commands that are run in it later are confined by the same
//! profile, whatever became of the file.

mod filter;
mod oci;

use serde::{Deserialize, Serialize};

use crate::capabilities;

pub(crate) use filter::compile;
pub(crate) use oci::resolve;

/// What is handed to the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Compiled {
    /// Instructions, eight bytes each: code, jt, jf, k.
    pub program: Vec<u64>,
    /// Of seccomp(2).
    pub flags: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    /// As old profiles have it.
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// Docker's: when a rule is there.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// The machine for which it is compiled.
pub(crate) struct Machine {
    /// Of the container.
    pub capabilities: u64,
    pub kernel: (u32, u32),
}

impl Machine {
    pub fn this(capabilities: u64) -> Self {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        Self { capabilities, kernel: version(&release).unwrap_or_default() }
    }
}

/// `6.1.0-18-amd64`
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(target_arch = "x86_64")]
const ARCH: Option<(u32, &str)> = Some((0xc000_003e, "amd64"));
#[cfg(target_arch = "aarch64")]
const ARCH: Option<(u32, &str)> = Some((0xc000_00b7, "arm64"));
#[cfg(target_arch = "riscv64")]
const ARCH: Option<(u32, &str)> = Some((0xc000_00f3, "riscv64"));
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
const ARCH: Option<(u32, &str)> = None;

impl Profile {
    /// # Errors
    /// What is wrong in the profile as a whole.
    fn read(text: &[u8]) -> Result<Self, String> {
        let profile: Self = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        profile.default().map_err(|why| format!("defaultAction: {why}"))?;
        flags(&profile.flags)?;
        Ok(profile)
    }

    /// What becomes of a call that no rule is about.
    fn default(&self) -> Result<u32, String> {
        action(&self.default_action, self.default_errno_ret)
    }

    /// The rules that hold on a machine, each through `one`.
    ///
    /// # Errors
    /// Names the rule that is wrong.
    fn rules<T>(
        &self,
        machine: &Machine,
        mut one: impl FnMut(&Rule) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        let (_, arch) = ARCH
            .ok_or_else(|| format!("profiles cannot be applied on {}", std::env::consts::ARCH))?;
        let mut all = Vec::new();
        for (index, rule) in self.syscalls.iter().enumerate() {
            let at = |why: String| format!("syscalls[{index}]: {why}");
            rule.does().map_err(at)?;
            if rule.applies(machine, arch).map_err(at)? {
                all.push(one(rule).map_err(at)?);
            }
        }
        Ok(all)
    }
}

impl Rule {
    fn names(&self) -> impl Iterator<Item = &String> {
        self.names.iter().chain(&self.name)
    }

    fn does(&self) -> Result<u32, String> {
        action(&self.action, self.errno_ret)
    }

    fn applies(&self, machine: &Machine, arch: &str) -> Result<bool, String> {
        let has = |cap: &String| {
            capabilities::bit(cap)
                .map(|bit| machine.capabilities & bit != 0)
                .ok_or_else(|| format!("unknown capability {cap:?}"))
        };
        for cap in &self.includes.caps {
            if !has(cap)? {
                return Ok(false);
            }
        }
        for cap in &self.excludes.caps {
            if has(cap)? {
                return Ok(false);
            }
        }
        let kernel = |text: &Option<String>| match text {
            None => Ok(None),
            Some(text) => {
                let parsed =
                    version(text).ok_or_else(|| format!("minKernel {text:?} is no version"));
                parsed.map(|least| Some(machine.kernel >= least))
            }
        };
        let (included, excluded) = (&self.includes, &self.excludes);
        let named = |arches: &[String]| arches.iter().any(|a| a == arch);
        Ok((included.arches.is_empty() || named(&included.arches))
            && !named(&excluded.arches)
            && kernel(&included.min_kernel)? != Some(false)
            && kernel(&excluded.min_kernel)? != Some(true))
    }
}

fn action(name: &str, errno: Option<u32>) -> Result<u32, String> {
    let data = errno.unwrap_or(libc::EPERM as u32);
    if data > 0xffff {
        return Err(format!("errnoRet {data} is too large"));
    }
    Ok(match name {
        "SCMP_ACT_ALLOW" => libc::SECCOMP_RET_ALLOW,
        "SCMP_ACT_ERRNO" => libc::SECCOMP_RET_ERRNO | data,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => libc::SECCOMP_RET_KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => libc::SECCOMP_RET_KILL_PROCESS,
        "SCMP_ACT_TRAP" => libc::SECCOMP_RET_TRAP,
        "SCMP_ACT_TRACE" => libc::SECCOMP_RET_TRACE | data,
        "SCMP_ACT_LOG" => libc::SECCOMP_RET_LOG,
        "SCMP_ACT_NOTIFY" => {
            return Err("action SCMP_ACT_NOTIFY needs a listener, which this node has not".into());
        }
        other => return Err(format!("unknown action {other:?}")),
    })
}

fn flags(names: &[String]) -> Result<u64, String> {
    names.iter().try_fold(0, |flags, name| match name.as_str() {
        "SECCOMP_FILTER_FLAG_LOG" => Ok(flags | libc::SECCOMP_FILTER_FLAG_LOG),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(flags | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW),
        // Of a process that has one thread it says nothing.
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(flags),
        other => Err(format!("flags: {other:?} is not known")),
    })
}
