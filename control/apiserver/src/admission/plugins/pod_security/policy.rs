//! The labels of a namespace: which level is enforced, audited, warned about, in which version.

use std::fmt;

use rimward_api::FieldError;
use serde_json::json;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    #[default]
    Privileged,
    Baseline,
    Restricted,
}

/// A version of the standards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    #[default]
    Latest,
    /// `v1.n`
    Minor(u32),
}

impl Version {
    /// Whether what was introduced in `v1.n` is part of it.
    pub fn has(self, n: u32) -> bool {
        match self {
            Version::Latest => true,
            Version::Minor(minor) => minor >= n,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LevelVersion {
    pub level: Level,
    pub version: Version,
}

impl fmt::Display for LevelVersion {
    /// `restricted:latest`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        })?;
        match self.version {
            Version::Latest => f.write_str(":latest"),
            Version::Minor(n) => write!(f, ":v1.{n}"),
        }
    }
}

/// Audit violations are annotations of the audit log, which does not record any yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub enforce: LevelVersion,
    pub audit: LevelVersion,
    pub warn: LevelVersion,
}

fn label(mode: &str) -> String {
    format!("pod-security.kubernetes.io/{mode}")
}

impl Policy {
    /// Reads the labels. There always is a policy: where a label makes no sense, enforcement is as
    /// strict as can be, and the other modes are silent.
    pub fn of(value: impl Fn(&str) -> Option<String>) -> (Self, Vec<FieldError>) {
        let mut policy = Self::default();
        let mut errors = Vec::new();
        let mut read = |mode: &str, fallback: Level| {
            let (level_label, version_label) = (label(mode), label(&format!("{mode}-version")));
            let (level, version) = (value(&level_label), value(&version_label));
            let parsed_level = level.as_deref().map(parse_level);
            let parsed_version = version.as_deref().map(parse_version);
            for (label, text, why) in [
                (&level_label, &level, parsed_level.and_then(Result::err)),
                (&version_label, &version, parsed_version.and_then(Result::err)),
            ] {
                if let (Some(text), Some(why)) = (text, why) {
                    errors.push(FieldError::invalid(
                        format!("metadata.labels[{label}]"),
                        &json!(text),
                        why,
                    ));
                }
            }
            let good = matches!(parsed_level, Some(Ok(_)));
            let level = parsed_level.map_or(Level::Privileged, |l| l.unwrap_or(fallback));
            let named = (parsed_level.is_some(), parsed_version.is_some());
            let version = parsed_version.and_then(Result::ok).unwrap_or_default();
            (LevelVersion { level, version }, good, named)
        };
        let enforced;
        (policy.enforce, enforced, _) = read("enforce", Level::Restricted);
        (policy.audit, _, _) = read("audit", Level::Privileged);
        let (warn, _, (warns, warn_version)) = read("warn", Level::Privileged);
        policy.warn = warn;
        // Who is refused pods wants to hear of it where the pods are asked for.
        if !warns && enforced && policy.enforce.level > policy.warn.level {
            policy.warn.level = policy.enforce.level;
            if !warn_version {
                policy.warn.version = policy.enforce.version;
            }
        }
        (policy, errors)
    }
}

fn parse_level(text: &str) -> Result<Level, &'static str> {
    match text {
        "privileged" => Ok(Level::Privileged),
        "baseline" => Ok(Level::Baseline),
        "restricted" => Ok(Level::Restricted),
        _ => Err("must be one of privileged, baseline, restricted"),
    }
}

fn parse_version(text: &str) -> Result<Version, &'static str> {
    const WRONG: &str = "must be \"latest\" or \"v1.x\"";
    if text == "latest" {
        return Ok(Version::Latest);
    }
    let digits = text.strip_prefix("v1.").ok_or(WRONG)?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit())
        && (digits.len() == 1 || !digits.starts_with('0'));
    if !plain {
        return Err(WRONG);
    }
    digits.parse().map(Version::Minor).map_err(|_| WRONG)
}
