//! All registers on disk, safe against `kill -9` and loss of power at any time.
//!
//! ```text
//!   callers (a thread each)         committer (one thread)
//!     compare_and_swap,
//!     retire -------------queue---> take all that wait
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
use std::time::{SystemTime, UNIX_EPOCH};

use ninefold_model::{HostName, Label, Record, Term, Tombstone, VmId};
use ninefold_witness_client::wire::{Entry, MAX_FRAME};
use ninefold_witness_client::{Retirement, Swap};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use crate::register::{self, CasOutcome, Refusal};
use crate::tombstones::Tombstones;

/// Most VMs that one witness keeps.
pub const MAX_VMS: usize = 100_000;
/// The file in the data directory.
pub const FILE: &str = "witness.redb";

/// The format of the file.
const FORMAT: u64 = 4;
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// A VM's id to its label and record, JSON.
const RECORDS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("records");
/// The id of a VM that was retired to the tombstone's number, its term, and when it was made, seconds since 1970.
const TOMBSTONES: TableDefinition<'_, &[u8; 16], (u64, u64, u64)> = TableDefinition::new("tombstones");
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

/// Why a proposal has no verdict.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SwapError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{0}")]
    Retired(Tombstone),
    #[error("the witness keeps {0} VMs already")]
    Full(usize),
    /// The disk failed: the outcome is unknown until the next start.
    #[error("the store has failed")]
    Failed,
}

/// A record and what the VM is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Labelled {
    pub label: Label,
    pub record: Record,
}

/// All that is on disk.
#[derive(Debug, Default)]
struct Held {
    records: BTreeMap<VmId, Labelled>,
    tombstones: Tombstones,
}

type Memory = Arc<RwLock<Held>>;

/// Somebody who waits for an answer, and what it is to be about.
enum Proposal {
    Swap { caller: HostName, vm: VmId, label: Label, expected: Option<Record>, new: Record, answer: Answer<Swap> },
    Retire { caller: HostName, vm: VmId, expected: Record, forced: bool, answer: Answer<Retirement> },
    Rename { vm: VmId, label: Label, answer: Answer<Option<Labelled>> },
}

type Answer<T> = SyncSender<Result<T, SwapError>>;

/// What a batch makes of a VM's register.
#[derive(Clone)]
enum Change {
    Record(Labelled),
    Tombstone { number: u64, tombstone: Tombstone },
}

/// The registers of all VMs. Share it by `Arc`.
pub struct Registers {
    memory: Memory,
    queue: Option<SyncSender<Proposal>>,
    committer: Option<JoinHandle<()>>,
}

impl Registers {
    /// Opens the registers in `dir`, which is made if missing. One process at a time may have them open.
    ///
    /// # Errors
    /// The directory or its file cannot be used, another process has it open, it has another format, a record in it is
    /// unreadable, or no thread can be started.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_limited(dir, MAX_VMS)
    }

    /// As [`Registers::open`], for at most `max_vms`.
    ///
    /// # Errors
    /// It fails as [`Registers::open`] does.
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
        let bad = |id: [u8; 16], reason: String| {
            let vm = format!("{:032x}", u128::from_be_bytes(id));
            OpenError::Record { file: file.clone(), vm, reason }
        };
        let found = prepare(&db).map_err(database)?;
        if found != FORMAT {
            return Err(OpenError::Format { file, found });
        }
        // The new file's name must be on disk as well.
        File::open(dir).and_then(|d| d.sync_all()).map_err(directory)?;

        let mut held = Held::default();
        for (id, json) in load_records(&db).map_err(database)? {
            let vm = VmId::from_bytes(id).map_err(|e| bad(id, e.to_string()))?;
            let labelled: Labelled = serde_json::from_slice(&json).map_err(|e| bad(id, e.to_string()))?;
            // No proposal that does not hold is stored: something else wrote it.
            labelled.record.check().map_err(|e| bad(id, e.to_string()))?;
            held.records.insert(vm, labelled);
        }
        for (id, number, tombstone) in load_tombstones(&db).map_err(database)? {
            let vm = VmId::from_bytes(id).map_err(|e| bad(id, e.to_string()))?;
            held.tombstones.add(number, vm, tombstone);
        }
        let memory: Memory = Arc::new(RwLock::new(held));
        let (queue, proposals) = sync_channel(BATCH);
        let committer = Committer { db, memory: memory.clone(), max_vms };
        let committer = thread::Builder::new()
            .name("committer".into())
            .spawn(move || committer.run(&proposals))
            .map_err(|source| OpenError::Thread { source })?;
        Ok(Self { memory, queue: Some(queue), committer: Some(committer) })
    }

    /// What there is of `vm`.
    ///
    /// # Errors
    /// The tombstone of a VM that was retired.
    pub fn read(&self, vm: VmId) -> Result<Option<Labelled>, Tombstone> {
        let held = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        match held.tombstones.get(vm) {
            Some(tombstone) => Err(tombstone),
            None => Ok(held.records.get(&vm).cloned()),
        }
    }

    /// Up to `limit` records by id, those after `after`.
    pub fn list(&self, after: Option<VmId>, limit: usize) -> Vec<Entry> {
        let held = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let range = held.records.range((from, Bound::Unbounded)).take(limit);
        range
            .map(|(&vm, Labelled { label, record })| Entry { vm, name: label.name.clone(), record: record.clone() })
            .collect()
    }

    /// Judges the proposal of host `caller` by the rules of [`register`]; what is won is on disk when this returns. `label` is what the VM
    /// is called now, as far as the caller knows.
    ///
    /// # Errors
    /// It is refused, or the store has failed.
    pub fn compare_and_swap(
        &self,
        caller: HostName,
        vm: VmId,
        label: Label,
        expected: Option<Record>,
        new: Record,
    ) -> Result<Swap, SwapError> {
        self.propose(|answer| Proposal::Swap { caller, vm, label, expected, new, answer })
    }

    /// Calls `vm` so, by the rules of [`register`]; it is on disk when this returns. Answers what there is of it then.
    ///
    /// # Errors
    /// As for [`Registers::compare_and_swap`].
    pub fn rename(&self, vm: VmId, label: Label) -> Result<Option<Labelled>, SwapError> {
        self.propose(|answer| Proposal::Rename { vm, label, answer })
    }

    /// Puts a tombstone in the place of the record of `vm`, by the rules of [`register`]; it is on disk when this returns.
    ///
    /// # Errors
    /// As for [`Registers::compare_and_swap`].
    pub fn retire(&self, caller: HostName, vm: VmId, expected: Record, forced: bool) -> Result<Retirement, SwapError> {
        self.propose(|answer| Proposal::Retire { caller, vm, expected, forced, answer })
    }

    fn propose<T>(&self, proposal: impl FnOnce(Answer<T>) -> Proposal) -> Result<T, SwapError> {
        let (answer, verdict) = sync_channel(1);
        let queue = self.queue.as_ref().ok_or(SwapError::Failed)?;
        queue.send(proposal(answer)).map_err(|_| SwapError::Failed)?;
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
        let (answers, changed, forgotten) = {
            let held = self.memory.read().unwrap_or_else(PoisonError::into_inner);
            let mut judged = Batch::new(&held, self.max_vms);
            let answers: Vec<_> = batch.into_iter().map(|proposal| judged.judge(proposal)).collect();
            let forgotten: Vec<VmId> = held.tombstones.in_the_way(judged.retired).collect();
            (answers, judged.changed, forgotten)
        };
        if !changed.is_empty() {
            self.store(&changed, &forgotten)?;
            let mut held = self.memory.write().unwrap_or_else(PoisonError::into_inner);
            forgotten.iter().for_each(|&vm| held.tombstones.remove(vm));
            for (vm, change) in changed {
                match change {
                    Change::Record(labelled) => drop(held.records.insert(vm, labelled)),
                    Change::Tombstone { number, tombstone } => {
                        held.records.remove(&vm);
                        held.tombstones.add(number, vm, tombstone);
                    }
                }
            }
        }
        for answer in answers {
            answer();
        }
        Ok(())
    }

    fn store(&self, changed: &HashMap<VmId, Change>, forgotten: &[VmId]) -> Result<(), redb::Error> {
        let mut transaction = self.db.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        {
            let mut records = transaction.open_table(RECORDS)?;
            let mut tombstones = transaction.open_table(TOMBSTONES)?;
            for vm in forgotten {
                tombstones.remove(&vm.to_bytes())?;
            }
            for (vm, change) in changed {
                let id = vm.to_bytes();
                match change {
                    Change::Record(labelled) => {
                        let json = serde_json::to_vec(labelled).map_err(std::io::Error::from)?;
                        records.insert(&id, json.as_slice())?;
                    }
                    Change::Tombstone { number, tombstone } => {
                        records.remove(&id)?;
                        tombstones.insert(&id, (*number, tombstone.term.0, tombstone.at_s))?;
                    }
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

/// Proposals that are judged together, each as if those before it were on disk.
struct Batch<'a> {
    held: &'a Held,
    changed: HashMap<VmId, Change>,
    records: usize,
    max_vms: usize,
    number: u64,
    retired: usize,
}

impl<'a> Batch<'a> {
    fn new(held: &'a Held, max_vms: usize) -> Self {
        let (records, number) = (held.records.len(), held.tombstones.next_number());
        Self { held, changed: HashMap::new(), records, max_vms, number, retired: 0 }
    }

    /// What to call when the batch is on disk: it answers.
    fn judge(&mut self, proposal: Proposal) -> Box<dyn FnOnce()> {
        // A caller that is gone needs no answer.
        match proposal {
            Proposal::Swap { caller, vm, label, expected, new, answer } => {
                let verdict = self.swap(&caller, vm, label, expected.as_ref(), new);
                Box::new(move || drop(answer.send(verdict)))
            }
            Proposal::Rename { vm, label, answer } => {
                let verdict = self.rename(vm, label);
                Box::new(move || drop(answer.send(verdict)))
            }
            Proposal::Retire { caller, vm, expected, forced, answer } => {
                let verdict = self.retire(&caller, vm, &expected, forced);
                Box::new(move || drop(answer.send(verdict)))
            }
        }
    }

    fn rename(&mut self, vm: VmId, label: Label) -> Result<Option<Labelled>, SwapError> {
        let Some(labelled) = self.current(vm).map_err(SwapError::Retired)? else { return Ok(None) };
        if !register::is_newer(&label, &labelled.label) {
            return Ok(Some(labelled));
        }
        let renamed = Labelled { label, ..labelled };
        self.changed.insert(vm, Change::Record(renamed.clone()));
        Ok(Some(renamed))
    }

    /// What there is of a VM that was not retired.
    fn current(&self, vm: VmId) -> Result<Option<Labelled>, Tombstone> {
        match self.changed.get(&vm) {
            Some(Change::Record(labelled)) => Ok(Some(labelled.clone())),
            Some(Change::Tombstone { tombstone, .. }) => Err(*tombstone),
            None => match self.held.tombstones.get(vm) {
                Some(tombstone) => Err(tombstone),
                None => Ok(self.held.records.get(&vm).cloned()),
            },
        }
    }

    fn swap(
        &mut self,
        caller: &HostName,
        vm: VmId,
        label: Label,
        expected: Option<&Record>,
        new: Record,
    ) -> Result<Swap, SwapError> {
        let current = self.current(vm).map_err(SwapError::Retired)?;
        let record = current.as_ref().map(|labelled| &labelled.record);
        Ok(match register::judge(record, expected, &new, caller)? {
            CasOutcome::Lost => Swap::Lost(record.cloned()),
            CasOutcome::Held => Swap::Won(new),
            CasOutcome::Store if current.is_none() && self.records >= self.max_vms => {
                return Err(SwapError::Full(self.records));
            }
            CasOutcome::Store => {
                self.records += usize::from(current.is_none());
                let label = match current {
                    Some(Labelled { label: known, .. }) if !register::is_newer(&label, &known) => known,
                    _ => label,
                };
                self.changed.insert(vm, Change::Record(Labelled { label, record: new.clone() }));
                Swap::Won(new)
            }
        })
    }

    fn retire(
        &mut self,
        caller: &HostName,
        vm: VmId,
        expected: &Record,
        forced: bool,
    ) -> Result<Retirement, SwapError> {
        let current = match self.current(vm) {
            Ok(current) => current.map(|labelled| labelled.record),
            Err(tombstone) => return Ok(Retirement::Done(tombstone)),
        };
        Ok(match register::judge_retirement(current.as_ref(), expected, caller, forced)? {
            CasOutcome::Lost | CasOutcome::Held => Retirement::Lost(current),
            CasOutcome::Store => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let tombstone = Tombstone { term: expected.term.next(), at_s: since.as_secs() };
                let number = self.number;
                (self.number, self.retired, self.records) = (number + 1, self.retired + 1, self.records - 1);
                self.changed.insert(vm, Change::Tombstone { number, tombstone });
                Retirement::Done(tombstone)
            }
        })
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
        let found = found.unwrap_or(FORMAT);
        // The tables of another format may have other keys.
        if found == FORMAT {
            transaction.open_table(RECORDS)?;
            transaction.open_table(TOMBSTONES)?;
        }
        found
    };
    transaction.commit()?;
    Ok(found)
}

/// A VM's id, and its record as it is in the file.
type Stored = ([u8; 16], Vec<u8>);

/// All records as they are stored, each cut off where it is longer than any can be.
fn load_records(db: &Database) -> Result<Vec<Stored>, redb::Error> {
    let transaction = db.begin_read()?;
    let table = transaction.open_table(RECORDS)?;
    let mut records = Vec::new();
    for entry in table.iter()? {
        let (id, json) = entry?;
        let json = json.value();
        // It is no JSON then.
        records.push((*id.value(), json[..json.len().min(MAX_FRAME)].to_vec()));
    }
    Ok(records)
}

/// All tombstones with their numbers.
fn load_tombstones(db: &Database) -> Result<Vec<([u8; 16], u64, Tombstone)>, redb::Error> {
    let transaction = db.begin_read()?;
    let table = transaction.open_table(TOMBSTONES)?;
    let mut tombstones = Vec::new();
    for entry in table.iter()? {
        let (id, value) = entry?;
        let (number, term, at_s) = value.value();
        tombstones.push((*id.value(), number, Tombstone { term: Term(term), at_s }));
    }
    Ok(tombstones)
}
