//! Environment variables from files that init containers wrote into an emptyDir.
//! <https://kubernetes.io/docs/tasks/inject-data-application/define-environment-variable-via-file/>

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, FileKeySelector, Pod};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::volumes::Places;

/// A file of variables is small; what is larger is not one.
const BYTES_MAX: u64 = 1 << 20;

/// The content of each file that a container's variables refer to, by volume and path. None is a file that is
/// not there.
pub(crate) type Files = BTreeMap<(String, String), Result<Option<String>, String>>;

pub(crate) fn references(container: &Container) -> impl Iterator<Item = &FileKeySelector> {
    let sources = container.env.iter().flatten().filter_map(|e| e.value_from.as_ref());
    sources.filter_map(|source| source.file_key_ref.as_ref())
}

/// Reads them. Blocks.
pub(crate) fn read(pod: &Pod, container: &Container, places: &Places) -> Files {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let one = |reference: &FileKeySelector| {
        let volume = volumes.iter().find(|v| v.name == reference.volume_name);
        let content = match volume {
            Some(volume) => content(&places.of(volume), &reference.path),
            None => Err(format!("volume {:?} not found", reference.volume_name)),
        };
        ((reference.volume_name.clone(), reference.path.clone()), content)
    };
    references(container).map(one).collect()
}

/// Containers filled the volume: no link in it leads out of it, and nothing but a file is waited for.
fn content(volume: &Path, path: &str) -> Result<Option<String>, String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot read environment file {path:?}: {e}");
    let root = File::open(volume).map_err(|e| failed(&e))?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match openat2(&root, path, flags, Mode::empty(), ResolveFlags::BENEATH) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let meta = file.metadata().map_err(|e| failed(&e))?;
    if !meta.is_file() || meta.len() > BYTES_MAX {
        return Err(failed(&"it is no file of at most 1 MiB"));
    }
    let mut text = String::new();
    file.take(BYTES_MAX).read_to_string(&mut text).map_err(|e| failed(&e))?;
    Ok(Some(text))
}

/// The value of a variable in a file's text: `NAME='value'`, in which a value in quotes may have several lines;
/// or `NAME=value`, where a backslash at the end of a line joins the next one to it. Blank lines and those that
/// begin with `#` are passed over.
pub(crate) fn value(text: &str, key: &str) -> Result<Option<String>, String> {
    let mut rest = text;
    let mut number = 0;
    while !rest.is_empty() {
        number += 1;
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            rest = after;
            continue;
        }
        let wrong =
            |why: &str| format!("invalid environment variable format at line {number}: {why}");
        let (name, _) = line.split_once('=').ok_or_else(|| wrong("no '=' in it"))?;
        let name = name.trim_end();
        if name.is_empty() {
            return Err(wrong("no name before '='"));
        }
        let from = rest.find('=').expect("the line has one") + 1;
        let (value, after) = one(rest[from..].trim_start_matches([' ', '\t'])).map_err(wrong)?;
        if name == key {
            return Ok(Some(value));
        }
        number += rest[..rest.len() - after.len()].matches('\n').count().saturating_sub(1);
        rest = after;
    }
    Ok(None)
}

/// A value, and what follows its line.
fn one(text: &str) -> Result<(String, &str), &'static str> {
    if let Some(quoted) = text.strip_prefix('\'') {
        let (value, after) = quoted.split_once('\'').ok_or("its quotation has no end")?;
        let (rest, after) = after.split_once('\n').unwrap_or((after, ""));
        let rest = rest.trim();
        if !rest.is_empty() && !rest.starts_with('#') {
            return Err("something follows the quotation");
        }
        return Ok((value.to_owned(), after));
    }
    let (mut value, mut text) = (String::new(), text);
    loop {
        let (line, after) = text.split_once('\n').unwrap_or((text, ""));
        let line = line.trim();
        let Some(part) = line.strip_suffix('\\') else {
            value += line;
            return Ok((value, after));
        };
        value += part.trim_end();
        value.push(' ');
        let next = after.split('\n').next().unwrap_or_default().trim();
        if next.is_empty() || next.starts_with('#') {
            return Err("its continuation is missing");
        }
        text = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        #[track_caller]
        fn check(text: &str, key: &str, expected: Option<&str>) {
            assert_eq!(value(text, key), Ok(expected.map(String::from)));
        }
        let text = "# first\n\n A=1 \nB = 'two words'  # why\nC='x\ny'\nD=a \\\n  b\nE=\n";
        check(text, "A", Some("1"));
        check(text, "B", Some("two words"));
        check(text, "C", Some("x\ny"));
        check(text, "D", Some("a b"));
        check(text, "E", Some(""));
        check(text, "F", None);
        check("", "A", None);
        check("A='#=\\'", "A", Some("#=\\"));
    }

    #[test]
    fn what_is_no_file_of_variables() {
        #[track_caller]
        fn check(text: &str, line: usize) {
            let error = value(text, "Z").unwrap_err();
            let expected = format!("invalid environment variable format at line {line}: ");
            assert!(error.starts_with(&expected), "{error}");
        }
        check("A=1\nB\n", 2);
        check("=1", 1);
        check("A='1\n2'\nB='", 3);
        check("A='1'2", 1);
        check("A=1\\\n\n", 1);
    }

    #[test]
    fn files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("outside"), "A=1").unwrap();
        let volume = dir.path().join("v");
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(volume.join("env"), "A=1").unwrap();
        std::os::unix::fs::symlink("../outside", volume.join("link")).unwrap();
        assert_eq!(content(&volume, "env"), Ok(Some("A=1".into())));
        assert_eq!(content(&volume, "none"), Ok(None));
        for bad in ["link", "../outside", "."] {
            assert!(content(&volume, bad).is_err(), "{bad}");
        }
    }
}
