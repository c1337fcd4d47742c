//! What the node knows, on disk: desired objects, statuses that are not reported yet, and what the
//! cluster told it. One redb file; every value sealed with a key that only this machine has.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use redb::{Database, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use rimward_api::ObjectKey;
use rimward_tunnel::wire::codec::{RawFrame, encode};
use rimward_tunnel::wire::{ObjectKind, Welcome};

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const STATUSES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("statuses");
const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");

/// Of the layout of this file.
const FORMAT: &str = "1";
/// redb's own cache; the objects are in memory anyway.
const CACHE_BYTES: usize = 1 << 20;

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("{path}: {cause}")]
    File { path: PathBuf, cause: std::io::Error },
    #[error("{path} cannot be used: {cause}")]
    Database { path: PathBuf, cause: String },
    #[error(
        "{path} was written by another version of this program (format {found}, this one knows {FORMAT}); use that version, or remove the file: the node then learns everything anew from the control plane"
    )]
    Format { path: PathBuf, found: String },
    #[error(
        "{path} is not the key with which {ledger} was sealed, or the ledger is damaged; restore the key, or remove the ledger: the node then learns everything anew from the control plane"
    )]
    Sealed { path: PathBuf, ledger: PathBuf },
}

/// One object's change.
pub struct Change<'a> {
    pub kind: ObjectKind,
    pub key: &'a ObjectKey,
    /// JSON; None removes.
    pub json: Option<&'a [u8]>,
}

/// A stored object.
pub struct Stored {
    pub kind: ObjectKind,
    pub json: Vec<u8>,
}

/// The open file. Calls block for as long as the disk takes.
pub struct Ledger {
    path: PathBuf,
    key_path: PathBuf,
    database: Database,
    key: RandomizedNonceKey,
}

impl Ledger {
    /// Opens, and makes where missing, `ledger.redb` and `ledger.key` in a directory.
    pub fn open(dir: &Path) -> Result<Self, LedgerError> {
        let (path, key_path) = (dir.join("ledger.redb"), dir.join("ledger.key"));
        let key = read_or_make_key(&key_path)?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &key).expect("the key has 32 bytes");
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(&path)
            .map_err(|e| LedgerError::Database { path: path.clone(), cause: explain(&e) })?;
        let ledger = Self { path, key_path, database, key };
        ledger.check_format()?;
        Ok(ledger)
    }

    fn check_format(&self) -> Result<(), LedgerError> {
        // Written and read back sealed, so that a wrong key is found before anything depends on it.
        self.write(Durability::Immediate, |txn| {
            txn.open_table(OBJECTS)?;
            txn.open_table(STATUSES)?;
            let mut facts = txn.open_table(FACTS)?;
            if facts.get("format")?.is_none() {
                facts.insert("format", self.seal("format", FORMAT.as_bytes()).as_slice())?;
            }
            Ok(())
        })?;
        let found = self.fact("format")?.unwrap_or_default();
        if found != FORMAT.as_bytes() {
            let found = String::from_utf8_lossy(&found).into_owned();
            return Err(LedgerError::Format { path: self.path.clone(), found });
        }
        Ok(())
    }

    /// Every desired object, kinds in order.
    pub fn objects(&self) -> Result<Vec<Stored>, LedgerError> {
        let rows = self.rows(OBJECTS)?;
        let mut objects = Vec::with_capacity(rows.len());
        for (row, json) in rows {
            // A kind of a newer version is left alone.
            let kind = row.split('/').next().and_then(ObjectKind::from_name);
            if let Some(kind) = kind {
                objects.push(Stored { kind, json });
            }
        }
        objects.sort_by_key(|stored| stored.kind);
        Ok(objects)
    }

    /// Writes changes of desired objects, durably, all or none.
    pub fn apply(&self, changes: &[Change<'_>]) -> Result<(), LedgerError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.write(Durability::Immediate, |txn| {
            let mut table = txn.open_table(OBJECTS)?;
            for Change { kind, key, json } in changes {
                let row = format!("{}/{}/{}", kind.name(), key.namespace, key.name);
                match json {
                    Some(json) => {
                        drop(table.insert(row.as_str(), self.seal(&row, json).as_slice())?)
                    }
                    None => drop(table.remove(row.as_str())?),
                }
            }
            Ok(())
        })
    }

    /// Statuses that the control plane has not acknowledged, by pod UID.
    pub fn statuses(&self) -> Result<Vec<(String, Vec<u8>)>, LedgerError> {
        self.rows(STATUSES)
    }

    /// Keeps or forgets statuses. Survives the end of this process at once, the machine's with the next
    /// change of objects: a status can be found again, and is not worth a disk's wait.
    pub fn set_statuses(&self, changes: &[(String, Option<Vec<u8>>)]) -> Result<(), LedgerError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.write(Durability::None, |txn| {
            let mut table = txn.open_table(STATUSES)?;
            for (uid, status) in changes {
                match status {
                    Some(status) => {
                        drop(table.insert(uid.as_str(), self.seal(uid, status).as_slice())?)
                    }
                    None => drop(table.remove(uid.as_str())?),
                }
            }
            Ok(())
        })
    }

    /// What the cluster last told this node of itself.
    pub fn welcome(&self) -> Result<Option<Welcome>, LedgerError> {
        let Some(bytes) = self.fact("welcome")? else { return Ok(None) };
        let read = RawFrame::parse(&bytes);
        Ok(read.ok().flatten().and_then(|frame| frame.decode::<Welcome>().ok().flatten()))
    }

    pub fn set_welcome(&self, welcome: &Welcome) -> Result<(), LedgerError> {
        let mut bytes = Vec::new();
        encode(welcome, &mut bytes);
        self.set_fact("welcome", &bytes)
    }

    /// Whether the objects are the whole desired state, or only what came of it before a break.
    pub fn is_complete(&self) -> Result<bool, LedgerError> {
        Ok(self.fact("complete")?.is_some())
    }

    pub fn set_complete(&self) -> Result<(), LedgerError> {
        self.set_fact("complete", b"1")
    }

    fn fact(&self, name: &str) -> Result<Option<Vec<u8>>, LedgerError> {
        let sealed = self.read(|txn| {
            let table = txn.open_table(FACTS)?;
            Ok(table.get(name)?.map(|value| value.value().to_vec()))
        })?;
        sealed.map(|sealed| self.unseal(name, sealed)).transpose()
    }

    fn set_fact(&self, name: &str, value: &[u8]) -> Result<(), LedgerError> {
        if self.fact(name)?.as_deref() == Some(value) {
            return Ok(());
        }
        self.write(Durability::Immediate, |txn| {
            txn.open_table(FACTS)?.insert(name, self.seal(name, value).as_slice())?;
            Ok(())
        })
    }

    fn rows(
        &self,
        table: TableDefinition<'_, &'static str, &'static [u8]>,
    ) -> Result<Vec<(String, Vec<u8>)>, LedgerError> {
        let sealed = self.read(|txn| {
            let table = txn.open_table(table)?;
            let mut rows = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                rows.push((key.value().to_owned(), value.value().to_vec()));
            }
            Ok(rows)
        })?;
        let unsealed = sealed.into_iter().map(|(row, value)| {
            let value = self.unseal(&row, value)?;
            Ok((row, value))
        });
        unsealed.collect()
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, LedgerError> {
        let attempt = || -> Result<T, redb::Error> { read(&self.database.begin_read()?) };
        attempt().map_err(|e| self.broken(&e))
    }

    fn write(
        &self,
        durability: Durability,
        write: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), LedgerError> {
        let attempt = || -> Result<(), redb::Error> {
            let mut txn = self.database.begin_write()?;
            txn.set_durability(durability)?;
            write(&txn)?;
            txn.commit()?;
            Ok(())
        };
        attempt().map_err(|e| self.broken(&e))
    }

    fn broken(&self, error: &redb::Error) -> LedgerError {
        LedgerError::Database { path: self.path.clone(), cause: error.to_string() }
    }

    /// Nonce, then ciphertext and tag. The row's name is authenticated: values cannot be swapped.
    fn seal(&self, row: &str, value: &[u8]) -> Vec<u8> {
        let mut sealed = value.to_vec();
        let nonce = self.key.seal_in_place_append_tag(Aad::from(row.as_bytes()), &mut sealed);
        let nonce = nonce.expect("AES-GCM seals anything that fits in memory");
        let mut bytes = nonce.as_ref().to_vec();
        bytes.append(&mut sealed);
        bytes
    }

    fn unseal(&self, row: &str, mut sealed: Vec<u8>) -> Result<Vec<u8>, LedgerError> {
        let wrong =
            || LedgerError::Sealed { path: self.key_path.clone(), ledger: self.path.clone() };
        if sealed.len() < NONCE_LEN {
            return Err(wrong());
        }
        let mut value = sealed.split_off(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(&sealed).map_err(|_| wrong())?;
        let opened = self.key.open_in_place(nonce, Aad::from(row.as_bytes()), &mut value);
        let length = opened.map_err(|_| wrong())?.len();
        value.truncate(length);
        Ok(value)
    }
}

fn explain(error: &redb::DatabaseError) -> String {
    match error {
        redb::DatabaseError::DatabaseAlreadyOpen => {
            "another agent of this node runs already; stop it first".into()
        }
        other => format!(
            "{other}; if the file is damaged, remove it: the node then learns everything anew from the control plane"
        ),
    }
}

fn read_or_make_key(path: &Path) -> Result<[u8; 32], LedgerError> {
    let file_error = |cause| LedgerError::File { path: path.into(), cause };
    match fs::File::open(path) {
        Ok(mut file) => {
            let mut key = [0; 32];
            file.read_exact(&mut key).map_err(file_error)?;
            Ok(key)
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let key: [u8; 32] = rand::random();
            let scratch = path.with_extension("new");
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&scratch)
                .map_err(file_error)?;
            file.write_all(&key).and_then(|()| file.sync_all()).map_err(file_error)?;
            fs::rename(&scratch, path).map_err(file_error)?;
            Ok(key)
        }
        Err(cause) => Err(file_error(cause)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_and_seals() {
        let dir = tempfile::tempdir().unwrap();
        let key = ObjectKey::new("ns", "s");
        {
            let ledger = Ledger::open(dir.path()).unwrap();
            let json = br#"{"data":"very secret"}"#;
            ledger
                .apply(&[Change { kind: ObjectKind::Secret, key: &key, json: Some(json) }])
                .unwrap();
            ledger.set_statuses(&[("u".into(), Some(b"{}".to_vec()))]).unwrap();
            ledger
                .set_welcome(&Welcome { pod_cidr: "10.42.3.0/24".into(), ..Welcome::default() })
                .unwrap();
            assert!(!ledger.is_complete().unwrap());
            ledger.set_complete().unwrap();
        }
        let bytes = fs::read(dir.path().join("ledger.redb")).unwrap();
        assert!(!bytes.windows(11).any(|w| w == b"very secret"));
        let ledger = Ledger::open(dir.path()).unwrap();
        let objects = ledger.objects().unwrap();
        assert_eq!(objects.len(), 1);
        assert_eq!(objects[0].json, br#"{"data":"very secret"}"#);
        assert_eq!(ledger.statuses().unwrap().len(), 1);
        assert_eq!(ledger.welcome().unwrap().unwrap().pod_cidr, "10.42.3.0/24");
        assert!(ledger.is_complete().unwrap());
        ledger.apply(&[Change { kind: ObjectKind::Secret, key: &key, json: None }]).unwrap();
        assert!(ledger.objects().unwrap().is_empty());

        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(dir.path().join("ledger.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_foreign_key_is_an_error_that_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        drop(Ledger::open(dir.path()).unwrap());
        fs::write(dir.path().join("ledger.key"), [7; 32]).unwrap();
        let error = Ledger::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("ledger.key") && error.contains("remove the ledger"), "{error}");
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ledger.redb"), b"this is no database, not at all").unwrap();
        let error = Ledger::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("ledger.redb"), "{error}");
    }
}
