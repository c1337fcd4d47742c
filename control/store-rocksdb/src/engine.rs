//! RocksDB, set up for us.
//!
//! Small on purpose: the whole control plane has 50 MiB. Bodies are read through the system's page
//! cache, so RocksDB's own cache only has to hold what is hot.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use rimward_control_store::{Error, Revision};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    DBRawIterator, DBRecoveryMode, ErrorKind, LogLevel, ReadOptions, ReadTier, WriteBatch,
    WriteOptions,
};

use crate::codec::{self, Body, Change, Known, Unreadable};
use crate::directory::{Directory, FORMAT, damaged};
use crate::index::Index;

/// Facts about the whole store: format, newest revision, how far it is compacted and trimmed.
const FACTS: &str = "default";
const BODIES: &str = "bodies";
const LOG: &str = "log";
const KEYS: &str = "keys";

pub const FACT_REVISION: &str = "revision";
pub const FACT_COMPACTED: &str = "compacted";
pub const FACT_TRIMMED: &str = "trimmed";
const FACT_FORMAT: &str = "format";

pub struct Engine {
    db: DB,
    path: PathBuf,
    sync: bool,
}

/// What a database holds when it is opened.
pub struct Found {
    pub revision: Revision,
    pub compacted: Revision,
    pub trimmed: Revision,
    pub index: Index,
}

impl Engine {
    /// Opens the directory's database, creating it first if it is fresh.
    pub fn open(directory: &mut Directory, options: &crate::Options) -> Result<Self, Error> {
        let path = directory.path().to_owned();
        if directory.fresh {
            create(&directory.unfinished_database()?, &path, options)?;
            directory.adopt_database()?;
        }
        let db = open_db(&directory.database(), options, false);
        let db = db.map_err(|error| unusable(&path, &error))?;
        Ok(Self { db, path, sync: options.sync })
    }

    pub fn bodies(&self) -> &ColumnFamily {
        self.db.cf_handle(BODIES).expect("opened with it")
    }

    pub fn log(&self) -> &ColumnFamily {
        self.db.cf_handle(LOG).expect("opened with it")
    }

    pub fn keys(&self) -> &ColumnFamily {
        self.db.cf_handle(KEYS).expect("opened with it")
    }

    /// Leaves files behind that the write-ahead log is written over from now on.
    ///
    /// Appending makes a file longer, and the sync of a file that grew waits for the file system's
    /// journal too: several times as long as the sync of blocks that were there already. RocksDB
    /// writes over logs that it needs no more, but after a start it has none. So two logs of the size
    /// that they usually reach are filled and given up: the next one is written over the first.
    pub fn prepare_log(&self, bytes: usize) -> Result<(), rocksdb::Error> {
        const PIECE: usize = 256 << 10;
        let filler = vec![0; PIECE];
        for _ in 0..2 {
            for piece in (0..bytes.div_ceil(PIECE)).rev() {
                let mut batch = WriteBatch::default();
                // A family without a change is not flushed, and its log not given up.
                put_fact(&mut batch, FACT_FORMAT, FORMAT);
                // Only the log holds this; replaying passes over it.
                batch.put_log_data(&filler);
                let mut options = WriteOptions::default();
                options.set_sync(self.sync && piece == 0);
                self.db.write_opt(batch, &options)?;
            }
            self.db.flush()?;
        }
        Ok(())
    }

    /// Writes to the log and syncs it.
    pub fn write(&self, batch: WriteBatch) -> Result<(), rocksdb::Error> {
        let mut options = WriteOptions::default();
        options.set_sync(self.sync);
        self.db.write_opt(batch, &options)
    }

    /// The body of `key` that was written at `revision`: creation revision and value.
    pub fn body(&self, key: &str, revision: Revision) -> Result<(Revision, Bytes), Error> {
        let found = self.read_body(key, revision, &ReadOptions::default());
        found
            .map_err(|error| self.failed("read", &error))?
            .ok_or_else(|| self.missing(key, revision))?
    }

    /// The same if it takes no file access; None if it does.
    pub fn cached_body(
        &self,
        key: &str,
        revision: Revision,
    ) -> Result<Option<(Revision, Bytes)>, Error> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::BlockCache);
        match self.read_body(key, revision, &options) {
            Ok(found) => found.ok_or_else(|| self.missing(key, revision))?.map(Some),
            Err(error) if error.kind() == ErrorKind::Incomplete => Ok(None),
            Err(error) => Err(self.failed("read", &error)),
        }
    }

    #[expect(clippy::type_complexity)]
    fn read_body(
        &self,
        key: &str,
        revision: Revision,
        options: &ReadOptions,
    ) -> Result<Option<Result<(Revision, Bytes), Error>>, rocksdb::Error> {
        let place = codec::body_key(key, revision);
        let found = self.db.get_pinned_cf_opt(self.bodies(), place, options)?;
        Ok(found.map(|bytes| match Body::decode(&bytes) {
            Ok(Body { created, value: Some(value) }) => {
                Ok((created, Bytes::copy_from_slice(value)))
            }
            Ok(Body { value: None, .. }) => Err(self.missing(key, revision)),
            Err(error) => Err(self.unreadable(key, &error)),
        }))
    }

    /// Walks a column family from `start` up to `end`.
    pub fn cursor(
        &self,
        family: &ColumnFamily,
        end: Option<Vec<u8>>,
        keep_in_cache: bool,
    ) -> DBRawIterator<'_> {
        let mut options = ReadOptions::default();
        options.fill_cache(keep_in_cache);
        if let Some(end) = end {
            options.set_iterate_upper_bound(end);
        }
        self.db.raw_iterator_cf_opt(family, options)
    }

    /// Bytes of all table files.
    pub fn table_bytes(&self) -> u64 {
        [self.bodies(), self.log(), self.keys()]
            .iter()
            .filter_map(|family| {
                self.db.property_int_value_cf(*family, "rocksdb.total-sst-files-size").ok()?
            })
            .sum()
    }

    /// Rewrites all table files without what was deleted.
    pub fn rewrite(&self) {
        for family in [self.log(), self.bodies(), self.keys()] {
            self.db.compact_range_cf(family, None::<&[u8]>, None::<&[u8]>);
        }
    }

    /// Makes a rewrite that is under way end early. No write may follow.
    pub fn stop_rewriting(&self) {
        self.db.cancel_all_background_work(false);
    }

    /// Checks what can be checked quickly, and reads the index.
    pub fn load(&self) -> Result<Found, Error> {
        let format = self.fact(FACT_FORMAT)?;
        if format != FORMAT {
            return Err(self.inconsistent(&format!("its database says format {format}")));
        }
        let (revision, compacted) = (self.fact(FACT_REVISION)?, self.fact(FACT_COMPACTED)?);
        let trimmed = self.fact(FACT_TRIMMED)?;
        if compacted > revision || trimmed > compacted {
            return Err(self.inconsistent(&format!(
                "it is at revision {revision}, but compacted up to {compacted} and trimmed up to \
                 {trimmed}"
            )));
        }
        self.check_log(trimmed, revision)?;
        Ok(Found { revision, compacted, trimmed, index: self.load_index(revision)? })
    }

    fn load_index(&self, newest: Revision) -> Result<Index, Error> {
        let mut index = Index::default();
        let mut cursor = self.cursor(self.keys(), None, false);
        cursor.seek_to_first();
        while let Some((key, value)) = cursor.item() {
            let decoded = codec::text(key).and_then(|key| Ok((key, Known::decode(value)?)));
            let (key, known) =
                decoded.map_err(|error| self.unreadable(&String::from_utf8_lossy(key), &error))?;
            if known.revision > newest {
                let what =
                    format!("key {key:?} is from revision {}, beyond {newest}", known.revision);
                return Err(self.inconsistent(&what));
            }
            index.insert(key.into(), known);
            cursor.next();
        }
        cursor.status().map_err(|error| unusable(&self.path, &error))?;
        Ok(index)
    }

    /// The log must hold exactly what follows the trimmed part, up to the newest revision.
    fn check_log(&self, trimmed: Revision, newest: Revision) -> Result<(), Error> {
        let mut cursor = self.cursor(self.log(), None, true);
        let mut revision_at = |seek: &dyn Fn(&mut DBRawIterator)| {
            seek(&mut cursor);
            cursor.status().map_err(|error| unusable(&self.path, &error))?;
            let revision = cursor.key().map(Change::revision).transpose();
            revision.map_err(|error| self.unreadable("of the log", &error))
        };
        let last = revision_at(&|cursor| cursor.seek_to_last())?.unwrap_or(trimmed);
        let first = revision_at(&|cursor| cursor.seek(Change::place(trimmed + 1, 0)))?;
        if last != newest || first.unwrap_or(trimmed + 1) != trimmed + 1 {
            let first = first.unwrap_or(trimmed);
            return Err(self.inconsistent(&format!(
                "its log holds revisions {first} to {last} instead of {} to {newest}",
                trimmed + 1
            )));
        }
        Ok(())
    }

    fn fact(&self, name: &str) -> Result<u64, Error> {
        let found = self.db.get(name).map_err(|error| unusable(&self.path, &error))?;
        let found =
            found.ok_or_else(|| self.inconsistent(&format!("the fact `{name}` is missing")))?;
        let number = codec::number(&found).map(|(number, _)| number);
        number.map_err(|error| self.unreadable(name, &error))
    }

    /// A read failed while the store was in use.
    pub fn failed(&self, what: &str, error: &rocksdb::Error) -> Error {
        Error::Backend(format!("cannot {what} the store in {}: {error}", self.path.display()))
    }

    pub fn unreadable(&self, key: &str, error: &Unreadable) -> Error {
        damaged(&self.path, &format!("{error} (key {key:?})"))
    }

    pub fn missing(&self, key: &str, revision: Revision) -> Error {
        damaged(&self.path, &format!("the value of {key:?} at revision {revision} is missing"))
    }

    pub fn inconsistent(&self, what: &str) -> Error {
        damaged(&self.path, what)
    }
}

/// Sets a fact within a batch.
pub fn put_fact(batch: &mut WriteBatch, name: &str, value: u64) {
    batch.put(name, value.to_be_bytes());
}

/// Makes an empty database with its facts, whole on disk when this returns.
fn create(at: &Path, path: &Path, options: &crate::Options) -> Result<(), Error> {
    let make = || {
        let db = open_db(at, options, true)?;
        let mut batch = WriteBatch::default();
        put_fact(&mut batch, FACT_FORMAT, FORMAT);
        for fact in [FACT_REVISION, FACT_COMPACTED, FACT_TRIMMED] {
            put_fact(&mut batch, fact, 0);
        }
        let mut write = WriteOptions::default();
        write.set_sync(true);
        db.write_opt(batch, &write)
    };
    make().map_err(|error| unusable(path, &error))
}

fn open_db(path: &Path, ours: &crate::Options, create: bool) -> Result<DB, rocksdb::Error> {
    let cache = Cache::new_lru_cache(ours.block_cache_bytes);
    let mut options = rocksdb::Options::default();
    options.create_if_missing(create);
    options.create_missing_column_families(create);
    options.set_error_if_exists(create);
    // Stops at the first record that is not whole: after a power cut that is the last write, which
    // nobody was told of. The `acknowledged` file tells that from damage.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_track_and_verify_wals_in_manifest(true);
    // Logs that are needed no more are written over: see `Engine::prepare_log`. The less all of them
    // may hold, the sooner a log is needed no more.
    options.set_recycle_log_file_num(4);
    options.set_max_total_wal_size(ours.write_buffer_bytes as u64);
    options.set_db_write_buffer_size(ours.write_buffer_bytes);
    options.set_max_background_jobs(2);
    // Only the committer writes: what lets several write a table in memory at once would cost it.
    options.set_allow_concurrent_memtable_write(false);
    options.set_max_open_files(512);
    options.set_bytes_per_sync(1 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    let families = [(FACTS, 16), (BODIES, 2), (LOG, 8), (KEYS, 8)].map(|(name, share)| {
        ColumnFamilyDescriptor::new(name, family(ours.write_buffer_bytes / share, &cache))
    });
    DB::open_cf_descriptors(&options, path, families)
}

fn family(write_buffer: usize, cache: &Cache) -> rocksdb::Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(8 << 10);
    table.set_format_version(5);
    table.set_bloom_filter(10.0, false);
    // Inside the bounded cache, or they would grow with the store.
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = rocksdb::Options::default();
    options.set_block_based_table_factory(&table);
    // The first two levels are small and are what is read and written over most: they are not
    // compressed. What lies below is compressed, once or twice.
    let (plain, lz4) = (DBCompressionType::None, DBCompressionType::Lz4);
    options.set_compression_per_level(&[plain, plain, lz4, lz4, lz4, lz4, lz4]);
    options.set_write_buffer_size(write_buffer);
    options.set_max_write_buffer_number(2);
    options.set_target_file_size_base(8 << 20);
    options.set_max_bytes_for_level_base(32 << 20);
    options
}

/// Why a database cannot be opened, in words that help.
fn unusable(path: &Path, error: &rocksdb::Error) -> Error {
    let text = error.to_string();
    let missing = text.contains("No such file") || text.contains("does not exist");
    if text.contains("No space left") {
        let path = path.display();
        return Error::Unusable(format!(
            "the store in {path} cannot be opened, its file system is full: free some space \
             ({text})"
        ));
    }
    if missing || matches!(error.kind(), ErrorKind::Corruption | ErrorKind::NotFound) {
        return damaged(path, &text);
    }
    Error::Unusable(match error.kind() {
        ErrorKind::NotSupported | ErrorKind::InvalidArgument => format!(
            "the store in {} was not written by this version of Rimward, or is damaged: {text}. \
             Install the version that wrote it, or restore a backup",
            path.display()
        ),
        _ => format!(
            "the store in {} cannot be opened: {text}. Check the disk and who owns the files",
            path.display()
        ),
    })
}
