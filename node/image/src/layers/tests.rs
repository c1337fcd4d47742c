//! As root: owners, devices and whiteouts are root's to make.

use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::*;

enum File<'a> {
    Dir(&'a str),
    Plain(&'a str, &'a [u8]),
    Link(&'a str, &'a str),
    Hard(&'a str, &'a str),
    Char(&'a str, u32, u32),
}

fn archive(files: &[File]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for file in files {
        let (path, kind, content, link): (&str, _, &[u8], &str) = match *file {
            File::Dir(path) => (path, tar::EntryType::Directory, b"", ""),
            File::Plain(path, content) => (path, tar::EntryType::Regular, content, ""),
            File::Link(path, to) => (path, tar::EntryType::Symlink, b"", to),
            File::Hard(path, to) => (path, tar::EntryType::Link, b"", to),
            File::Char(path, ..) => (path, tar::EntryType::Char, b"", ""),
        };
        let mut header = tar::Header::new_ustar();
        // By hand: the builder refuses what a hostile archive says.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o4751);
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_700_000_000);
        if let File::Char(_, major, minor) = file {
            header.set_device_major(*major).unwrap();
            header.set_device_minor(*minor).unwrap();
        }
        header.set_cksum();
        tar.append(&header, content).unwrap();
    }
    tar.into_inner().unwrap()
}

struct Unpacked {
    _dir: tempfile::TempDir,
    result: Result<PathBuf, LayerError>,
}

impl Unpacked {
    async fn of(plain: &[u8], packed: &[u8], limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("staging")).unwrap();
        let layers = Layers::open(dir.path(), limits).unwrap();
        let blob = dir.path().join("blob");
        std::fs::write(&blob, packed).unwrap();
        let result = layers.unpack(&blob, &crate::content::digest_of(plain)).await;
        assert!(
            std::fs::read_dir(dir.path().join("staging")).unwrap().next().is_none(),
            "nothing stays half-unpacked"
        );
        Self { _dir: dir, result }
    }

    async fn plain(files: &[File<'_>]) -> Self {
        let tar = archive(files);
        Self::of(&tar, &tar, Limits::default()).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.result.as_ref().unwrap().join(name)
    }

    fn error(&self) -> String {
        self.result.as_ref().unwrap_err().to_string()
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 64];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(len);
    Some(value)
}

#[tokio::test]
async fn files_are_as_the_archive_says() {
    let layer = Unpacked::plain(&[
        File::Dir("./"),
        File::Dir("usr/"),
        File::Plain("usr/bin/deep", b"deep"),
        File::Plain("a", b"content"),
        File::Hard("b", "a"),
        File::Link("c", "/etc/passwd"),
        File::Char("null", 1, 3),
    ])
    .await;
    let a = std::fs::metadata(layer.path("a")).unwrap();
    assert_eq!((a.uid(), a.gid(), a.mode() & 0o7777, a.nlink()), (1000, 1001, 0o4751, 2));
    assert_eq!(a.mtime(), 1_700_000_000);
    assert_eq!(std::fs::metadata(layer.path("usr")).unwrap().mtime(), 1_700_000_000);
    assert_eq!(std::fs::metadata(layer.path(".")).unwrap().uid(), 1000);
    assert_eq!(std::fs::read(layer.path("usr/bin/deep")).unwrap(), b"deep");
    assert_eq!(std::fs::read_link(layer.path("c")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(std::fs::symlink_metadata(layer.path("c")).unwrap().uid(), 1000);
    let null = std::fs::metadata(layer.path("null")).unwrap();
    assert!(null.file_type().is_char_device() && null.rdev() == rustix::fs::makedev(1, 3));
}

#[tokio::test]
async fn whiteouts_hide_what_is_below_and_nothing_else() {
    let layer = Unpacked::plain(&[
        File::Dir("etc"),
        File::Plain("etc/.wh.gone", b""),
        File::Plain("etc/kept", b"new"),
        File::Plain("etc/.wh.kept", b""),
        File::Dir("var"),
        File::Plain("var/.wh..wh..opq", b""),
        File::Plain(".wh.back", b""),
        File::Plain("back/again", b"x"),
    ])
    .await;
    let gone = std::fs::symlink_metadata(layer.path("etc/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(std::fs::read(layer.path("etc/kept")).unwrap(), b"new");
    assert_eq!(xattr(&layer.path("var"), "trusted.overlay.opaque").as_deref(), Some(&b"y"[..]));
    // A directory instead of a whiteout hides what was in the one below.
    assert_eq!(xattr(&layer.path("back"), "trusted.overlay.opaque").as_deref(), Some(&b"y"[..]));
    assert!(!layer.path("etc/.wh.gone").exists());
}

#[tokio::test]
async fn nothing_gets_out() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    for files in [
        vec![File::Plain("../escaped", b"x")],
        vec![File::Plain("a/../../escaped", b"x")],
        vec![File::Hard("passwd", "../../../../../../etc/passwd")],
        vec![File::Hard("passwd", "/etc/passwd")],
        vec![File::Plain("a/.wh...", b"")],
    ] {
        let layer = Unpacked::plain(&files).await;
        assert!(layer.result.is_err(), "{:?}", layer.result);
    }
    // Links lead to places within the layer, where such a directory may even be made.
    let layer = Unpacked::plain(&[
        File::Link("out", target),
        File::Plain("out", b"replaced"),
        File::Dir("real"),
        File::Link("way", "/real"),
        File::Plain("way/in", b"x"),
        File::Link("up", "../../../../../../../../tmp"),
    ])
    .await;
    assert_eq!(std::fs::read(layer.path("out")).unwrap(), b"replaced");
    assert_eq!(std::fs::read(layer.path("real/in")).unwrap(), b"x");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    // A link whose target is not in the layer is replaced by what is put into it, here and not there.
    let layer =
        Unpacked::plain(&[File::Link("evil", target), File::Plain("evil/file", b"x")]).await;
    assert_eq!(std::fs::read(layer.path("evil/file")).unwrap(), b"x");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn compressed_layers_and_bombs() {
    let tar = archive(&[File::Plain("zeros", &vec![0; 1 << 20])]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&tar).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(&tar[..], 3).unwrap();
    for packed in [&gzip, &zstd, &tar] {
        let layer = Unpacked::of(&tar, packed, Limits::default()).await;
        assert_eq!(std::fs::metadata(layer.path("zeros")).unwrap().len(), 1 << 20);
        let few = Limits { bytes_max: 1 << 19, ..Limits::default() };
        let bomb = Unpacked::of(&tar, packed, few).await;
        assert!(bomb.error().contains("more than this node takes"), "{}", bomb.error());
    }
    let many = archive(&[File::Plain("a", b""), File::Plain("b", b""), File::Plain("c", b"")]);
    let few = Limits { entries_max: 2, ..Limits::default() };
    assert!(Unpacked::of(&many, &many, few).await.error().contains("over 2 entries"));
}

#[tokio::test]
async fn what_is_not_what_the_config_says_is_refused() {
    let tar = archive(&[File::Plain("a", b"x")]);
    let other = Unpacked::of(b"another archive", &tar, Limits::default()).await;
    assert!(other.error().contains("it unpacks to sha256:"), "{}", other.error());
    let torn = Unpacked::of(&tar, &tar[..600], Limits::default()).await;
    assert!(torn.result.is_err());
    let garbage = Unpacked::of(&tar, &[7; 2048], Limits::default()).await;
    assert!(garbage.error().contains("archive"), "{}", garbage.error());
}

/// A member's header alone.
fn head(path: &str, kind: u8, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_path(path).unwrap();
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    header
}

fn sparse(real_size: u64, offset: u64, content: &[u8]) -> Vec<u8> {
    let mut header = head("sparse", b'S', content.len() as u64);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(real_size);
    gnu.sparse[0].set_offset(offset);
    gnu.sparse[0].set_length(content.len() as u64);
    gnu.sparse[1].set_offset(real_size);
    gnu.sparse[1].set_length(0);
    header.set_cksum();
    let mut tar = [header.as_bytes(), content].concat();
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

#[tokio::test]
async fn holes_stay_holes_and_count() {
    let tar = sparse(8 << 20, 4 << 20, &[7; 512]);
    let layer = Unpacked::of(&tar, &tar, Limits::default()).await;
    let content = std::fs::read(layer.path("sparse")).unwrap();
    let (at, rest) = (4 << 20, (4 << 20) + 512);
    assert_eq!(content.len(), 8 << 20);
    assert!(content[at..rest].iter().all(|byte| *byte == 7));
    assert!(content[..at].iter().chain(&content[rest..]).all(|byte| *byte == 0));
    let blocks = std::fs::metadata(layer.path("sparse")).unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "{blocks} blocks");
    // What takes no room in the archive would take all of the disk, or all time.
    let bomb = sparse(1 << 50, 1 << 40, &[7; 512]);
    let layer = Unpacked::of(&bomb, &bomb, Limits::default()).await;
    assert!(layer.error().contains("more than this node takes"), "{}", layer.error());
}

#[tokio::test]
async fn attributes_and_names_have_an_end() {
    for kind in *b"xLK" {
        let mut tar = head("head", kind, 32 << 20).as_bytes().to_vec();
        tar.resize(tar.len() + (32 << 20), b'1');
        tar.extend(head("file", b'0', 0).as_bytes());
        tar.extend([0; 1024]);
        let layer = Unpacked::of(&tar, &tar, Limits::default()).await;
        assert!(layer.error().contains("the name and attributes"), "{}", layer.error());
    }
}

#[tokio::test]
async fn attributes_are_those_that_a_layer_may_have() {
    let mut tar = tar::Builder::new(Vec::new());
    let capability: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let attributes: [(&str, &[u8]); 3] = [
        ("SCHILY.xattr.security.capability", capability),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
    ];
    tar.append_pax_extensions(attributes).unwrap();
    tar.append(&head("bin", b'0', 0), &b""[..]).unwrap();
    let tar = tar.into_inner().unwrap();
    let layer = Unpacked::of(&tar, &tar, Limits::default()).await;
    let bin = layer.path("bin");
    assert_eq!(xattr(&bin, "security.capability").as_deref(), Some(capability));
    assert_eq!(xattr(&bin, "trusted.overlay.opaque"), None);
    assert_eq!(xattr(&bin, "trusted.overlay.redirect"), None);
    // The form of sparse files that would be taken for something else.
    let mut tar = tar::Builder::new(Vec::new());
    let sparse: [(&str, &[u8]); 1] = [("GNU.sparse.major", b"1")];
    tar.append_pax_extensions(sparse).unwrap();
    tar.append(&head("GNUSparseFile.0/x", b'0', 0), &b""[..]).unwrap();
    let tar = tar.into_inner().unwrap();
    let layer = Unpacked::of(&tar, &tar, Limits::default()).await;
    assert!(layer.error().contains("a form that is not known"), "{}", layer.error());
}

#[tokio::test]
async fn the_last_block_need_not_be_full() {
    let tar =
        archive(&[File::Dir("etc/"), File::Plain("etc/passwd", b"root:x:0:0::/root:/bin/sh\n")]);
    let unpadded = &tar[..1024 + 26];
    let layer = Unpacked::of(unpadded, unpadded, Limits::default()).await;
    assert_eq!(std::fs::read(layer.path("etc/passwd")).unwrap().len(), 26);
    let torn = &tar[..700];
    assert!(Unpacked::of(torn, torn, Limits::default()).await.result.is_err());
}
