//! A disk that can lose its power at any step: what was synced stays, of the rest any part.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use ninefold_snapshot::storage::{Storage, StorageFile};

/// What is written whole or not at all, bytes. Less than any hardware promises.
const SECTOR: usize = 32;

/// What becomes of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// All of it is lost.
    Lost,
    /// All of it was written.
    Kept,
    /// Any part of it, in any order, sector by sector.
    Any(u64),
}

#[derive(Debug, Clone)]
enum FileOp {
    Write { at: usize, bytes: Vec<u8> },
    Zero { at: usize, length: usize },
    Length(usize),
}

#[derive(Debug, Clone)]
enum NameOp {
    Create { name: String, file: usize },
    Rename { from: String, to: String, file: usize },
    Remove { name: String },
}

#[derive(Debug, Clone, Default)]
struct Content {
    durable: Vec<u8>,
    pending: Vec<FileOp>,
    now: Vec<u8>,
}

#[derive(Debug, Clone, Default)]
struct State {
    files: Vec<Content>,
    durable: BTreeMap<String, usize>,
    pending: Vec<NameOp>,
    now: BTreeMap<String, usize>,
    steps: u64,
    crash_at: Option<u64>,
    /// Bytes that can still be written.
    room: Option<usize>,
    fail_sync_at: Option<u64>,
    fail_at: Option<u64>,
}

/// See the [module](self).
#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<Mutex<State>>);

impl Disk {
    pub fn new() -> Self {
        Self::default()
    }

    /// The power goes in step `at` from now on.
    pub fn crash_at(&self, at: Option<u64>) {
        let mut state = self.lock();
        state.steps = 0;
        state.crash_at = at;
    }

    /// The sync in step `at` from now on fails.
    pub fn fail_sync_at(&self, at: u64) {
        let mut state = self.lock();
        state.steps = 0;
        state.fail_sync_at = Some(at);
    }

    /// Step `at` from now on fails, whatever it is: it may have been done all the same, but for a sync, which then takes for durable
    /// what is not.
    pub fn fail_at(&self, at: u64) {
        let mut state = self.lock();
        state.steps = 0;
        state.fail_at = Some(at);
    }

    /// From now on only so many bytes can be written.
    pub fn room(&self, bytes: Option<usize>) {
        self.lock().room = bytes;
    }

    /// Steps since the last [`Disk::crash_at`].
    pub fn steps(&self) -> u64 {
        self.lock().steps
    }

    /// Whether the power has gone.
    pub fn is_off(&self) -> bool {
        let state = self.lock();
        state.crash_at.is_some_and(|at| state.steps >= at)
    }

    /// The power is back.
    pub fn power_on(&self, fate: Fate) -> Disk {
        let state = self.lock();
        let mut random = Random::new(fate);
        let mut names = state.durable.clone();
        for op in state.pending.iter().filter(|_| random.keeps()) {
            apply_name(&mut names, op);
        }
        let files = state.files.iter().map(|file| {
            let mut now = file.durable.clone();
            for op in &file.pending {
                match op {
                    // A write is torn where sectors meet.
                    FileOp::Write { at, bytes } => {
                        let mut done = 0;
                        while done < bytes.len() {
                            let end = ((at + done) / SECTOR + 1) * SECTOR - at;
                            let end = end.min(bytes.len());
                            if random.keeps() {
                                apply(&mut now, &FileOp::Write { at: at + done, bytes: bytes[done..end].to_vec() });
                            }
                            done = end;
                        }
                    }
                    op if random.keeps() => apply(&mut now, op),
                    _ => {}
                }
            }
            Content { durable: now.clone(), pending: Vec::new(), now }
        });
        let files = files.collect();
        Disk(Arc::new(Mutex::new(State { files, durable: names.clone(), now: names, ..State::default() })))
    }

    /// The process was killed and the power stayed: all that was written can be read, and is no more durable than before.
    pub fn restart(&self) -> Disk {
        let state = State { steps: 0, crash_at: None, ..self.lock().clone() };
        Disk(Arc::new(Mutex::new(state)))
    }

    /// The names and contents of all files.
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.lock();
        state.now.iter().map(|(name, &file)| (name.clone(), state.files[file].now.clone())).collect()
    }

    /// Changes a byte of a file, durably.
    pub fn spoil(&self, name: &str, at: usize, xor: u8) {
        let mut state = self.lock();
        let file = state.now[name];
        let content = &mut state.files[file];
        content.now[at] ^= xor;
        content.durable = content.now.clone();
        content.pending.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

struct Random(Fate);

impl Random {
    fn new(fate: Fate) -> Self {
        Self(match fate {
            Fate::Any(seed) => Fate::Any(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            other => other,
        })
    }

    fn keeps(&mut self) -> bool {
        match &mut self.0 {
            Fate::Lost => false,
            Fate::Kept => true,
            Fate::Any(x) => {
                *x ^= *x << 13;
                *x ^= *x >> 7;
                *x ^= *x << 17;
                *x & 1 == 0
            }
        }
    }
}

fn apply(bytes: &mut Vec<u8>, op: &FileOp) {
    match op {
        FileOp::Write { at, bytes: new } => {
            let end = at + new.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*at..end].copy_from_slice(new);
        }
        FileOp::Zero { at, length } => {
            let end = (at + length).min(bytes.len());
            bytes[(*at).min(end)..end].fill(0);
        }
        FileOp::Length(length) => bytes.resize(*length, 0),
    }
}

fn apply_name(names: &mut BTreeMap<String, usize>, op: &NameOp) {
    match op {
        NameOp::Create { name, file } => {
            names.insert(name.clone(), *file);
        }
        NameOp::Rename { from, to, file } => {
            if names.get(from) == Some(file) {
                names.remove(from);
            }
            names.insert(to.clone(), *file);
        }
        NameOp::Remove { name } => {
            names.remove(name);
        }
    }
}

fn off() -> io::Error {
    io::Error::other("the power is gone")
}

impl State {
    /// Counts a step. Whether it is done, and whether it succeeds.
    fn step(&mut self) -> (bool, io::Result<()>) {
        self.steps += 1;
        match self.crash_at {
            // What was under way may have been done, or a part of it.
            Some(at) if self.steps == at => (true, Err(off())),
            Some(at) if self.steps > at => (false, Err(off())),
            _ if self.fail_at == Some(self.steps) => (self.steps.is_multiple_of(2), Err(io::Error::other("it failed"))),
            _ => (true, Ok(())),
        }
    }

    fn file_op(&mut self, file: usize, op: FileOp) -> io::Result<()> {
        let mut op = op;
        let mut full = false;
        if let (FileOp::Write { bytes, .. }, Some(room)) = (&mut op, &mut self.room) {
            // A part may get there.
            full = *room < bytes.len();
            bytes.truncate(*room);
            *room -= bytes.len();
        }
        let (done, mut result) = self.step();
        if full && result.is_ok() {
            result = Err(io::ErrorKind::StorageFull.into());
        }
        if done {
            let content = &mut self.files[file];
            apply(&mut content.now, &op);
            content.pending.push(op);
        }
        result
    }

    fn name_op(&mut self, op: NameOp) -> io::Result<()> {
        let (done, result) = self.step();
        if done {
            apply_name(&mut self.now, &op);
            self.pending.push(op);
        }
        result
    }

    /// A sync in whose middle the power goes has done nothing that is certain.
    fn sync_step(&mut self) -> io::Result<()> {
        let (_, result) = self.step();
        result?;
        if self.fail_sync_at == Some(self.steps) {
            return Err(io::Error::other("the medium failed"));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Open(Disk, usize);

impl Storage for Disk {
    fn create(&self, name: &str) -> io::Result<Box<dyn StorageFile>> {
        let mut state = self.lock();
        let file = match state.now.get(name).copied() {
            Some(file) => {
                state.file_op(file, FileOp::Length(0))?;
                file
            }
            None => {
                state.files.push(Content::default());
                let file = state.files.len() - 1;
                state.name_op(NameOp::Create { name: name.into(), file })?;
                file
            }
        };
        Ok(Box::new(Open(self.clone(), file)))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn StorageFile>> {
        let file = self.lock().now.get(name).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Open(self.clone(), file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock();
        let file = state.now.get(from).copied().ok_or(io::ErrorKind::NotFound)?;
        state.name_op(NameOp::Rename { from: from.into(), to: to.into(), file })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.lock();
        if state.now.contains_key(name) { state.name_op(NameOp::Remove { name: name.into() }) } else { Ok(()) }
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().now.keys().cloned().collect())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.sync_step()?;
        state.durable = state.now.clone();
        state.pending.clear();
        Ok(())
    }
}

impl StorageFile for Open {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let state = self.0.lock();
        let bytes = &state.files[self.1].now;
        let start = (at as usize).min(bytes.len());
        let end = (start + into.len()).min(bytes.len());
        into[..end - start].copy_from_slice(&bytes[start..end]);
        Ok(end - start)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().file_op(self.1, FileOp::Write { at: at as usize, bytes: bytes.to_vec() })
    }

    fn zero(&self, at: u64, length: u64) -> io::Result<()> {
        self.0.lock().file_op(self.1, FileOp::Zero { at: at as usize, length: length as usize })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.lock().file_op(self.1, FileOp::Length(length as usize))
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().files[self.1].now.len() as u64)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        let synced = state.sync_step();
        if state.crash_at.is_some_and(|at| state.steps >= at) {
            return synced;
        }
        let content = &mut state.files[self.1];
        // As Linux does: what could not be written is not tried again.
        let pending = std::mem::take(&mut content.pending);
        if synced.is_ok() {
            pending.iter().for_each(|op| apply(&mut content.durable, op));
        }
        synced
    }
}
