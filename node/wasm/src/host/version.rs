//! Versions in names of WIT interfaces.

/// Whether `ns:package/interface@version` is of version `major.minor`.
pub(crate) fn is(name: &str, major: u32, minor: u32) -> bool {
    let Some((_, version)) = name.split_once('@') else { return false };
    let mut parts = version.split(['.', '-', '+']);
    parts.next() == Some(&major.to_string()) && parts.next() == Some(&minor.to_string())
}

#[cfg(test)]
mod tests {
    #[test]
    fn minor_versions_are_told_apart() {
        for (name, expected) in [
            ("wasi:cli/run@0.2.12", true),
            ("wasi:cli/run@0.2.0-rc-1", true),
            ("wasi:cli/run@0.20.0", false),
            ("wasi:cli/run@0.3.0", false),
            ("wasi:cli/run", false),
        ] {
            assert_eq!(super::is(name, 0, 2), expected, "{name}");
        }
    }
}
