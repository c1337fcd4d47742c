//! Writes a set of files so that a reader sees all of the old or all of the new: Kubernetes' scheme
//! of `..data`, a symlink to a directory that is swapped by one rename, with every visible name a
//! symlink into it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::content::{File, Files};

const DATA: &str = "..data";

/// Makes the volume contain exactly `files`; answers whether anything changed. With a `group`, the
/// files belong to it and it may read them.
pub(crate) fn write(volume: &Path, files: &Files, group: Option<u32>) -> io::Result<bool> {
    make_dir(volume, 0o755)?;
    let old = fs::read_link(volume.join(DATA)).ok();
    let mode = |file: &File| if group.is_some() { file.mode | 0o440 } else { file.mode };
    if let Some(old) = &old
        && unchanged(&volume.join(old), files, &mode)
    {
        return Ok(false);
    }
    let fresh = new_dir(volume)?;
    for (path, file) in files {
        let path = volume.join(&fresh).join(path);
        let parent = path.parent().expect("a file is in its volume");
        fs::create_dir_all(parent)?;
        fs::write(&path, &file.data)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode(file)))?;
        if group.is_some() || file.user.is_some() {
            // An ordinary user cannot give files away; its containers run as itself anyway.
            let _not_root = std::os::unix::fs::chown(&path, file.user, group);
        }
    }
    let swap = volume.join("..data_tmp");
    remove(&swap)?;
    symlink(&fresh, &swap)?;
    fs::rename(&swap, volume.join(DATA))?;
    link_names(volume, files)?;
    if let Some(old) = old {
        fs::remove_dir_all(volume.join(old))?;
    }
    Ok(true)
}

fn unchanged(dir: &Path, files: &Files, mode: &dyn Fn(&File) -> u32) -> bool {
    let same = |(path, file): (&String, &File)| {
        let path = dir.join(path);
        let same_mode = fs::metadata(&path).is_ok_and(|m| m.mode() & 0o777 == mode(file));
        same_mode && fs::read(&path).is_ok_and(|data| data == file.data)
    };
    count(dir) == files.len() && files.iter().all(same)
}

fn count(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| if e.path().is_dir() { count(&e.path()) } else { 1 }).sum()
}

fn new_dir(volume: &Path) -> io::Result<PathBuf> {
    for n in 0u32.. {
        let now = jiff::Timestamp::now();
        let second = now.strftime("%Y_%m_%d_%H_%M_%S");
        let name = PathBuf::from(format!("..{second}.{}{n}", now.subsec_nanosecond()));
        match fs::create_dir(volume.join(&name)) {
            Ok(()) => {
                fs::set_permissions(volume.join(&name), fs::Permissions::from_mode(0o755))?;
                return Ok(name);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    unreachable!("some number is free")
}

/// Links the first part of every path, and removes links that lead nowhere any more.
fn link_names(volume: &Path, files: &Files) -> io::Result<()> {
    let names: BTreeSet<&str> =
        files.keys().map(|path| path.split('/').next().unwrap_or(path)).collect();
    for name in &names {
        let link = volume.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(volume)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !names.contains(name.as_ref()) {
            remove(&volume.join(name.as_ref()))?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A directory of exactly this mode, whatever the umask.
pub(super) fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    if !dir.is_dir() {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        let file = |data: &str| File { data: data.as_bytes().to_vec(), mode: 0o640, user: None };
        list.iter().map(|(path, data)| (path.to_string(), file(data))).collect()
    }

    #[test]
    fn old_or_new_but_never_both() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        let read = |path: &str| fs::read_to_string(volume.join(path)).ok();
        assert!(write(&volume, &files(&[("a", "1"), ("d/e", "2")]), None).unwrap());
        assert_eq!((read("a").as_deref(), read("d/e").as_deref()), (Some("1"), Some("2")));
        let first = fs::read_link(volume.join(DATA)).unwrap();
        assert!(
            !write(&volume, &files(&[("a", "1"), ("d/e", "2")]), None).unwrap(),
            "same content"
        );
        assert_eq!(fs::read_link(volume.join(DATA)).unwrap(), first);

        // Someone who opened the old directory goes on reading the old file.
        let open = fs::File::open(volume.join("a")).unwrap();
        assert!(write(&volume, &files(&[("a", "3"), ("f", "4")]), None).unwrap());
        assert_eq!(
            (read("a").as_deref(), read("d/e"), read("f").as_deref()),
            (Some("3"), None, Some("4"))
        );
        assert!(!volume.join(first).exists(), "the old directory is gone");
        assert_eq!(io::read_to_string(open).unwrap(), "1");
        assert!(fs::symlink_metadata(volume.join("d")).is_err(), "no dangling name");
        assert_eq!(fs::read_link(volume.join("a")).unwrap(), Path::new("..data/a"));
        assert_eq!(fs::metadata(volume.join("a")).unwrap().mode() & 0o777, 0o640);
        assert!(write(&volume, &Files::new(), None).unwrap());
        assert_eq!(read("a"), None);
    }
}
