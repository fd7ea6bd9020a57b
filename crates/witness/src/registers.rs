//! All registers on disk, safe against `kill -9` and loss of power at any time.
//!
//! ```text
//!   callers (a thread each)         committer (one thread)
//!     compare_and_swap ---queue---> take all that wait
//!                                   judge each by the rules
//!                                   one transaction, one fsync
//!                                   publish to memory
//!     <-----------answers---------- answer each
//!     read, list: from memory, hence only what is on disk
//! ```
//!
//! Many VMs fail over at once when a host is lost: together they cost a few fsyncs, not one each. When a commit fails
//! nobody knows what the disk holds: nothing is answered any more, and the process must be restarted to find out.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::{self, JoinHandle};

use ninefold_model::name::MAX_NAME;
use ninefold_model::{HostName, Record, VmName};
use ninefold_witness_client::Swap;
use ninefold_witness_client::wire::MAX_FRAME;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use crate::register::{self, Refusal, Verdict};

/// Most VMs that one witness keeps.
pub const MAX_VMS: usize = 100_000;
/// The file in the data directory.
pub const FILE: &str = "witness.redb";

/// The format of the file.
const FORMAT: u64 = 2;
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// VM name to record, JSON.
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
/// Most proposals in one transaction.
const BATCH: usize = 512;

/// Why the registers could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot use the data directory {dir}")]
    Directory { dir: PathBuf, source: std::io::Error },
    #[error("{file} is in use by another witness process")]
    InUse { file: PathBuf },
    #[error("cannot open {file}")]
    Database { file: PathBuf, source: Box<redb::Error> },
    #[error("{file} has format {found}; this version reads {FORMAT}")]
    Format { file: PathBuf, found: u64 },
    #[error("{file}: the record of '{vm}' is unreadable: {reason}")]
    Record { file: PathBuf, vm: String, reason: String },
    #[error("cannot start the committer")]
    Thread { source: std::io::Error },
}

/// Why a compare-and-swap has no verdict.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SwapError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the witness keeps {0} VMs already")]
    Full(usize),
    /// The disk failed: the outcome is unknown until the next start.
    #[error("the store has failed")]
    Failed,
}

type Memory = Arc<RwLock<BTreeMap<VmName, Record>>>;
type Answer = Result<Swap, SwapError>;

struct Proposal {
    caller: HostName,
    vm: VmName,
    expected: Option<Record>,
    new: Record,
    answer: SyncSender<Answer>,
}

/// The registers of all VMs. Share it by `Arc`.
pub struct Registers {
    memory: Memory,
    queue: Option<SyncSender<Proposal>>,
    committer: Option<JoinHandle<()>>,
}

impl Registers {
    /// Opens the registers in `dir`, which is made if missing. One process at a time may have them open.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_limited(dir, MAX_VMS)
    }

    /// As [`Registers::open`], for at most `max_vms`.
    pub fn open_limited(dir: impl AsRef<Path>, max_vms: usize) -> Result<Self, OpenError> {
        let dir = dir.as_ref();
        let directory = |source| OpenError::Directory { dir: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(directory)?;
        let file = dir.join(FILE);
        let db = Database::create(&file).map_err(|e| match e {
            redb::DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { file: file.clone() },
            other => OpenError::Database { file: file.clone(), source: Box::new(other.into()) },
        })?;
        let database = |source| OpenError::Database { file: file.clone(), source: Box::new(source) };
        let bad = |vm: &str, reason: String| OpenError::Record { file: file.clone(), vm: vm.into(), reason };
        let found = prepare(&db).map_err(database)?;
        if found != FORMAT {
            return Err(OpenError::Format { file, found });
        }
        // The new file's name must be on disk as well.
        File::open(dir).and_then(|d| d.sync_all()).map_err(directory)?;

        let mut records = BTreeMap::new();
        for (vm, json) in load(&db).map_err(database)? {
            let name = vm.parse().map_err(|e: ninefold_model::InvalidName| bad(&vm, e.to_string()))?;
            let record: Record = serde_json::from_slice(&json).map_err(|e| bad(&vm, e.to_string()))?;
            // No proposal that does not hold is stored: something else wrote it.
            record.check().map_err(|e| bad(&vm, e.to_string()))?;
            records.insert(name, record);
        }
        let memory: Memory = Arc::new(RwLock::new(records));
        let (queue, proposals) = sync_channel(BATCH);
        let committer = Committer { db, memory: memory.clone(), max_vms };
        let committer = thread::Builder::new()
            .name("committer".into())
            .spawn(move || committer.run(&proposals))
            .map_err(|source| OpenError::Thread { source })?;
        Ok(Self { memory, queue: Some(queue), committer: Some(committer) })
    }

    /// The record of `vm`.
    pub fn read(&self, vm: &VmName) -> Option<Record> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner).get(vm).cloned()
    }

    /// Up to `limit` records by name, those after `after`.
    pub fn list(&self, after: Option<&VmName>, limit: usize) -> Vec<(VmName, Record)> {
        let records = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = records.range::<VmName, _>((from, Bound::Unbounded));
        range.take(limit).map(|(vm, record)| (vm.clone(), record.clone())).collect()
    }

    /// Judges the proposal of host `caller` by the rules of [`register`]; what is won is on disk when this returns.
    pub fn compare_and_swap(&self, caller: HostName, vm: VmName, expected: Option<Record>, new: Record) -> Answer {
        let (answer, verdict) = sync_channel(1);
        let queue = self.queue.as_ref().ok_or(SwapError::Failed)?;
        queue.send(Proposal { caller, vm, expected, new, answer }).map_err(|_| SwapError::Failed)?;
        verdict.recv().unwrap_or(Err(SwapError::Failed))
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(committer) = self.committer.take() {
            let _ = committer.join();
        }
    }
}

struct Committer {
    db: Database,
    memory: Memory,
    max_vms: usize,
}

impl Committer {
    fn run(self, proposals: &Receiver<Proposal>) {
        while let Ok(first) = proposals.recv() {
            let batch: Vec<Proposal> = std::iter::once(first).chain(proposals.try_iter()).take(BATCH).collect();
            if let Err(error) = self.commit(batch) {
                // The queue and all answers are dropped: every caller learns that the store has failed.
                tracing::error!(%error, "a commit failed: nothing is answered until the next start");
                return;
            }
        }
    }

    fn commit(&self, batch: Vec<Proposal>) -> Result<(), redb::Error> {
        let mut changed: HashMap<VmName, Record> = HashMap::new();
        let mut answers = Vec::with_capacity(batch.len());
        {
            let records = self.memory.read().unwrap_or_else(PoisonError::into_inner);
            let mut count = records.len();
            for Proposal { caller, vm, expected, new, answer } in batch {
                let current = changed.get(&vm).or_else(|| records.get(&vm));
                let verdict = match register::judge(current, expected.as_ref(), &new, &caller) {
                    Err(refusal) => Err(refusal.into()),
                    Ok(Verdict::Lost) => Ok(Swap::Lost(current.cloned())),
                    Ok(Verdict::Held) => Ok(Swap::Won(new)),
                    Ok(Verdict::Store) if current.is_none() && count >= self.max_vms => Err(SwapError::Full(count)),
                    Ok(Verdict::Store) => {
                        count += usize::from(current.is_none());
                        changed.insert(vm, new.clone());
                        Ok(Swap::Won(new))
                    }
                };
                answers.push((answer, verdict));
            }
        }
        if !changed.is_empty() {
            self.store(&changed)?;
            self.memory.write().unwrap_or_else(PoisonError::into_inner).extend(changed);
        }
        for (answer, verdict) in answers {
            // A caller that is gone needs no answer.
            let _ = answer.send(verdict);
        }
        Ok(())
    }

    fn store(&self, changed: &HashMap<VmName, Record>) -> Result<(), redb::Error> {
        let mut transaction = self.db.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut table = transaction.open_table(RECORDS)?;
            for (vm, record) in changed {
                let json = serde_json::to_vec(record).map_err(std::io::Error::from)?;
                table.insert(vm.as_str(), json.as_slice())?;
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

/// Makes the tables in a new file; answers the file's format.
fn prepare(db: &Database) -> Result<u64, redb::Error> {
    let transaction = db.begin_write()?;
    let found = {
        let mut meta = transaction.open_table(META)?;
        let found = meta.get("format")?.map(|f| f.value());
        if found.is_none() {
            meta.insert("format", FORMAT)?;
        }
        transaction.open_table(RECORDS)?;
        found.unwrap_or(FORMAT)
    };
    transaction.commit()?;
    Ok(found)
}

/// All records as they are stored, each cut off where it is longer than any can be.
fn load(db: &Database) -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
    let transaction = db.begin_read()?;
    let table = transaction.open_table(RECORDS)?;
    let mut records = Vec::new();
    for entry in table.iter()? {
        let (vm, json) = entry?;
        let (vm, json) = (vm.value(), json.value());
        // Neither is a name then, nor JSON.
        let vm: String = vm.chars().take(MAX_NAME + 1).collect();
        records.push((vm, json[..json.len().min(MAX_FRAME)].to_vec()));
    }
    Ok(records)
}
