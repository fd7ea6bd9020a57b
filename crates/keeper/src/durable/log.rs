//! The log of a non-volatile VM on this host, and the thread that owns it: what is given to it is durable when it says so.
//!
//! ```text
//!   primary:  VM's thread ─► Round, Checkpoint ─┐                    ┌─► LogHolds ─► output may go
//!                                               ├─► the log's thread ┤
//!   backup:   receiver ─► Copy, Received ───────┘   (a folder beside)└─► acknowledger ─► Held: acknowledged
//!   core ─► told aside (before each proposal to the witness, when it has won, when the VM has ended)
//! ```
//!
//! The thread outlives a change of role: a backup that takes over goes on with its log where it stands. And it outlives a backup's
//! session: one that begins soon after the former, with a standby that is left from that, goes on with its log as well:
//!
//! ```text
//!   Session ─┬─► Behind: the log as it was, of no session ── Copy: parts of what changed ──┐
//!            │                                                                             ├─ first checkpoint ──► Log
//!            └─► New: a base that is filled ── Copy: all memory ───────────────────────────┘
//! ```

pub mod job;
pub mod place;

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ninefold_core::LogFailure;
use ninefold_model::{Epoch, Term};
use ninefold_replica::protocol::{LogRole, LogStanding};
use ninefold_replica::stream::Reign;
use ninefold_replica::stream::{Hello, PAGE_SIZE, PageRun, PageSink};
use ninefold_snapshot::log::{At, Committed, Found, Log, LogError, New, Options};
use ninefold_snapshot::storage::Storage;
use ninefold_volume::log::STEP;

use self::job::{Job, Left, Opening, Received};
use crate::backup::acknowledge::Acknowledger;
use crate::config::KeeperConfig;
use crate::devices::disks::Disks;
use crate::devices::guest_io::{ADDRESSES, AGENT, CONSOLE, HEALTH};
use crate::error::{KeeperError, report};
use crate::msg::Msg;
use crate::primary::capture::{Join, Taken, micros};
use crate::primary::target::{Piece, translate};
use crate::primary::waker::Waker;
use crate::runtime::priority;
use crate::runtime::side_channel::SideChannel;

/// What may wait for the thread. More than can be under way at once.
const JOBS: usize = 64;
/// How long a commit waits for the folder.
const FOLD_LIMIT: Duration = Duration::from_secs(10);
/// How often it is looked whether the images have what the folder waits for.
const FOLD_LOOK: Duration = Duration::from_millis(20);
/// What is copied is made durable piece by piece: after so many bytes, so that a slow disk is seen to get on.
const SYNC_AFTER: usize = STEP as usize;
/// Pages of a checkpoint between two signs of progress.
const PAGES_AT_A_TIME: u32 = 2048;
/// Pages of what a session copies to a log that is gone on with, in one part of it, bytes.
const PART: usize = 8 << 20;
/// A folder that failed tries again.
const FOLD_RETRY: Duration = Duration::from_secs(1);

/// How a log begins.
#[derive(Debug)]
pub enum Beginning {
    /// Anew; what is there is removed.
    New { hello: Box<Hello>, standing: LogStanding },
    /// With a backup's session: see [`Job::Session`].
    Awaited,
    /// Where it ends, with what it says last of the guest's health.
    Continued { log: Box<Log>, health: Vec<u8> },
}

/// The keeper's hold on the thread. Dropped, the thread ends when it has done what it was given.
#[derive(Debug)]
pub struct LogHandle {
    pub jobs: SyncSender<Job>,
    /// Numbers the threads, so that a late word of an earlier one is not taken for the present one's.
    pub id: u64,
    told: Arc<SideChannel<Orders>>,
    progress: Progress,
    disks: Arc<Disks>,
    _thread: JoinHandle<()>,
}

/// What the core has told the thread.
#[derive(Debug, Default)]
struct Orders {
    /// To be noted, then said so by this number. The newest says all that those before it said.
    note: Option<(u64, LogStanding)>,
    /// What is given after this is of this reign.
    reign: Option<Term>,
    /// And this is the term of the record under which the VM runs.
    term: Option<Term>,
    /// The VM has ended for good: say so when nothing could be gone on from any more.
    remove: Option<SyncSender<()>>,
}

impl LogHandle {
    /// Notes this, then says that the note of this number, and all before, are durable.
    pub fn stand(&self, ticket: u64, standing: LogStanding) {
        self.tell(|told| told.note = Some((ticket, standing)));
    }

    /// What is given from here on is of this reign.
    pub fn reign(&self, reign: Term) {
        self.tell(|told| told.reign = Some(reign));
    }

    /// What is given from here on is given under the record of this term. A reign has several, one after the other.
    pub fn term(&self, term: Term) {
        self.tell(|told| told.term = Some(term));
    }

    fn tell(&self, what: impl FnOnce(&mut Orders)) {
        self.told.tell(&self.jobs, what);
    }

    /// Removes the log of a VM that has ended, whatever else waits for the thread. `done` is dropped unanswered if it is not.
    pub fn remove(&self, done: SyncSender<()>) {
        self.tell(|told| told.remove = Some(done));
    }

    /// Whether the thread is at work, and then a number that is another whenever it has got on.
    pub fn at_work(&self) -> Option<u64> {
        self.progress.now(|| self.disks.got_on())
    }
}

/// Whether the thread is at work, which its disk may never let it end: an odd number while it is, another whenever it has got
/// on.
#[derive(Debug, Clone, Default)]
struct Progress(Arc<Steps>);

#[derive(Debug, Default)]
struct Steps {
    number: AtomicU64,
    /// It waits for a flush of the volumes' images: what their disks do is what it does.
    syncs: AtomicBool,
}

impl Progress {
    fn at_work(&self, at_work: bool) {
        if at_work != (self.0.number.load(Ordering::Relaxed) % 2 == 1) {
            self.0.number.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn made(&self) {
        self.0.number.fetch_add(2, Ordering::Relaxed);
    }

    fn syncs(&self, yes: bool) {
        self.0.syncs.store(yes, Ordering::Relaxed);
    }

    /// None while it is not at work.
    fn now(&self, disks: impl FnOnce() -> u64) -> Option<u64> {
        let number = self.0.number.load(Ordering::Relaxed);
        let disks = if self.0.syncs.load(Ordering::Relaxed) { disks() } else { 0 };
        (number % 2 == 1).then(|| number.wrapping_add(disks))
    }
}

/// What the thread needs of its keeper.
#[derive(Clone)]
pub struct Settings {
    pub place: PathBuf,
    pub disks: Arc<Disks>,
    pub waker: Waker,
    pub core: Sender<Msg>,
}

impl Settings {
    /// For a VM that is non-volatile.
    pub fn of(config: &KeeperConfig, disks: Arc<Disks>, waker: Waker, core: Sender<Msg>) -> Self {
        Self { place: place::place(config), disks, waker, core }
    }
}

/// Starts the thread for a reign or session.
///
/// # Errors
/// No thread can be started.
pub fn start(id: u64, reign: Term, beginning: Beginning, settings: Settings) -> Result<LogHandle, KeeperError> {
    let (jobs, work) = sync_channel(JOBS);
    let (progress, told) = (Progress::default(), Arc::<SideChannel<Orders>>::default());
    let (its, hears) = (progress.clone(), Arc::clone(&told));
    let disks = Arc::clone(&settings.disks);
    let run = move || {
        let core = settings.core.clone();
        let mut thread = LogThread {
            id,
            reign,
            term: reign,
            settings,
            told: Arc::clone(&hears),
            progress: its,
            health: Vec::new(),
            numbers: VecDeque::new(),
            runs: Vec::new(),
            operations: Vec::new(),
            session: Term(0),
            acknowledger: None,
            amiss: false,
            reigns: matches!(&beginning, Beginning::New { standing, .. } if matches!(standing.role, LogRole::Primary { .. })),
            unsure: false,
        };
        if let Err(failure) = thread.run(beginning, &work) {
            let _ = core.send(Msg::LogFailed { id, failure });
        }
        // What still comes is answered, so that nobody waits for it.
        while let Ok(job) = work.recv() {
            drop(hears.hear(&job));
            LogThread::refuse(job);
        }
    };
    let thread = thread::Builder::new().name("log".into()).spawn(run).map_err(KeeperError::Thread)?;
    Ok(LogHandle { jobs, id, told, progress, disks, _thread: thread })
}

struct LogThread {
    id: u64,
    reign: Term,
    /// Of the record under which the VM runs here: which of two hosts' logs is the newer one is told by that.
    term: Term,
    /// A backup's session.
    session: Term,
    /// And who acknowledges its checkpoints.
    acknowledger: Option<Acknowledger>,
    /// A checkpoint of this session is in the log and not on the volumes: nothing more of it is taken, and nobody goes on with the log as
    /// it stands.
    amiss: bool,
    settings: Settings,
    /// The newest word of the guest's health. Checkpoints bring it when it changes, but each commit has to have it.
    health: Vec<u8>,
    /// Commits whose operations on volumes are perhaps not durable in the images: the commit, and their numbers there.
    numbers: VecDeque<(u64, Vec<u64>)>,
    runs: Vec<PageRun>,
    operations: Vec<u8>,
    told: Arc<SideChannel<Orders>>,
    progress: Progress,
    /// The VM runs here: output may be let go that a log which fails has not. A backup's has all that it acknowledged.
    reigns: bool,
    /// There may be a log that nobody has invalidated.
    unsure: bool,
}

/// A log that may still be on its way.
enum State {
    Nothing,
    New(Box<New>),
    /// One that is gone on with, and what of the session's copy is not yet in it.
    Behind(Box<Running>, Part),
    Log(Box<Running>),
}

/// Pages, each once, and their contents.
#[derive(Default)]
struct Part {
    runs: Vec<PageRun>,
    bytes: Vec<u8>,
}

struct Running {
    log: Log,
    /// The checkpoint with which it ends.
    at: Option<(Term, Epoch)>,
    folder: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.log.shared().end();
        if let Some(folder) = self.folder.take()
            && folder.join().is_err()
        {
            tracing::error!("a log's folder has panicked");
        }
    }
}

impl LogThread {
    fn run(&mut self, beginning: Beginning, work: &Receiver<Job>) -> Result<(), LogFailure> {
        let mut state = match beginning {
            Beginning::New { hello, standing } => {
                self.health = serde_json::to_vec(&hello.health).map_err(|e| e.to_string())?;
                let storage = place::begin(&self.settings.place)?;
                let new = New::create(storage, *hello, &standing, Options::default()).map_err(|e| report(&e))?;
                let _ = self.settings.core.send(Msg::LogBegun { id: self.id });
                State::New(Box::new(new))
            }
            Beginning::Awaited => State::Nothing,
            Beginning::Continued { log, health } => {
                self.health = health;
                State::Log(Box::new(self.running(*log, None)?))
            }
        };
        while let Ok(job) = work.recv() {
            self.progress.at_work(true);
            match self.hear(&job, &mut state) {
                Ok(None) => {}
                Ok(Some(done)) => {
                    LogThread::refuse(job);
                    let storage = match storage_of(&state) {
                        Some(storage) => storage,
                        None => place::open(&self.settings.place).map_err(|e| format!("the log's directory: {e}"))?,
                    };
                    place::remove(&*storage).map_err(|e| report(&e))?;
                    let _ = done.send(());
                    // The folder may have written something meanwhile. The storage stays locked until it is empty.
                    drop(state);
                    return Found::remove(&*storage).map_err(|e| report(&e).into());
                }
                Err(error) => return Err(self.failed(Some(state), &error)),
            }
            state = match job {
                Job::Session(opening) => self.session(state, *opening)?,
                job => match self.one(state, job) {
                    Ok(state) => state,
                    Err((state, error)) => return Err(self.failed(state, &error)),
                },
            };
            self.progress.at_work(false);
        }
        Ok(())
    }

    /// Why there is no log any more; whether it says itself that it is behind, if it may come to be.
    fn failed(&self, state: Option<State>, error: &LogError) -> LogFailure {
        let noted = self.reigns && !self.unsure && state.is_none_or(|state| invalidate(state, error));
        LogFailure { noted, reason: report(error) }
    }

    /// A backup's session: goes on with the log, if it is what is left, or begins another.
    fn session(&mut self, state: State, opening: Opening) -> Result<State, String> {
        let Opening { hello, left, reply, acknowledger } = opening;
        if hello.term < self.session {
            return Ok(state);
        }
        (self.session, self.acknowledger) = (hello.term, Some(acknowledger));
        let role = LogRole::Backup { session: hello.term, primary: hello.from.clone() };
        let standing = LogStanding::new(role);
        self.health = serde_json::to_vec(&hello.health).map_err(|e| e.to_string())?;
        let former = match (state, left) {
            (State::Log(running) | State::Behind(running, _), Some(Left::Here { session, epoch }))
                if running.at == Some((session, epoch)) && !self.amiss =>
            {
                let mut running = running;
                running.log.go_on(hello.clone(), &standing).map(|()| running).map_err(|e| report(&e))
            }
            (State::Nothing, Some(Left::OnDisk { reign, epochs })) => self.on_disk(&hello, &standing, reign, &epochs),
            _ => Err("it does not end with what is left of the standby".into()),
        };
        self.numbers.clear();
        let state = match former {
            Ok(running) => {
                let _ = reply.send(true);
                State::Behind(running, Part::default())
            }
            Err(why) => {
                tracing::debug!(%why, "another log is begun");
                self.amiss = false;
                let _ = reply.send(false);
                let storage = place::begin(&self.settings.place)?;
                let new = New::create(storage, hello, &standing, Options::default()).map_err(|e| report(&e))?;
                State::New(Box::new(new))
            }
        };
        Ok(state)
    }

    /// The log that a former keeper has left here.
    fn on_disk(
        &self,
        hello: &Hello,
        standing: &LogStanding,
        reign: Reign,
        epochs: &RangeInclusive<Epoch>,
    ) -> Result<Box<Running>, String> {
        let storage = place::open(&self.settings.place).map_err(|e| format!("the log's directory: {e}"))?;
        let same = |theirs: &Hello| match (theirs.spec.id == hello.spec.id, theirs.layout.same_as(&hello.layout)) {
            (true, Ok(())) => Ok(()),
            _ => Err("it is of another VM".to_owned()),
        };
        let found = Found::look_if(storage, &same).map_err(|e| report(&e))?;
        let At { session, epoch, .. } = found.last().at;
        let was = |role: &LogRole| matches!(role, LogRole::Backup { session: its, .. } if *its == session);
        if !was(&found.standing().role) || found.reign() != Some(reign) || !epochs.contains(&epoch) {
            return Err(format!("it ends with checkpoint {epoch} of session {session}"));
        }
        let log = found.go_on(hello.clone(), standing, Options::default()).map_err(|e| report(&e))?;
        self.running(log, Some((session, epoch))).map(Box::new)
    }

    /// Does what the core has told. Answers whom to tell that the log is removed, if it is to be.
    fn hear(&mut self, before: &Job, state: &mut State) -> Result<Option<SyncSender<()>>, LogError> {
        let Orders { note, reign, term, remove } = self.told.hear(before);
        // It never goes back.
        self.term = [term, reign].into_iter().flatten().fold(self.term, Term::max);
        if let Some(reign) = reign {
            (self.reign, self.reigns, self.acknowledger) = (reign, true, None);
        }
        let Some((ticket, standing)) = note.filter(|_| remove.is_none()) else { return Ok(remove) };
        match state {
            // Whoever has no log speaks for nothing.
            State::Nothing => {}
            State::New(new) => new.stand(&standing)?,
            State::Log(running) | State::Behind(running, _) => running.log.stand(&standing)?,
        }
        let _ = self.settings.core.send(Msg::Stood { id: self.id, ticket });
        Ok(None)
    }

    fn one(&mut self, state: State, job: Job) -> Result<State, (Option<State>, LogError)> {
        match &job {
            Job::Copy { session, .. } | Job::Settle(session) if *session != self.session => {
                return Ok(state);
            }
            Job::Received(received) if received.session != self.session || self.amiss => return Ok(state),
            _ => {}
        }
        match (state, job) {
            (State::New(mut new), Job::Round { pieces, .. }) => match self.round(&mut new, &pieces) {
                Ok(()) => Ok(State::New(new)),
                Err(error) => Err((None, error)),
            },
            (State::New(mut new), Job::Copy { block, first, bytes, .. }) => match new.write(block, first, &bytes) {
                Ok(()) => Ok(State::New(new)),
                Err(source) => Err((None, LogError::Target { what: "the log's base".into(), source })),
            },
            (State::New(new), Job::Settle(_)) => match new.sync() {
                Ok(()) => Ok(State::New(new)),
                Err(error) => Err((None, error)),
            },
            (State::Behind(mut running, mut part), Job::Copy { block, first, bytes, .. }) => {
                // It ends with no checkpoint any more.
                running.at = None;
                let count = u32::try_from(bytes.len() / PAGE_SIZE).unwrap_or(u32::MAX);
                part.runs.push(PageRun { block, first, count });
                part.bytes.extend_from_slice(&bytes);
                let full = part.bytes.len() >= PART;
                match if full { self.part(&mut running, &mut part) } else { Ok(()) } {
                    Ok(()) => Ok(State::Behind(running, part)),
                    Err(error) => Err((Some(State::Log(running)), error)),
                }
            }
            // A page may come again in the next round.
            (State::Behind(mut running, mut part), Job::Settle(_)) => match self.part(&mut running, &mut part) {
                Ok(()) => Ok(State::Behind(running, part)),
                Err(error) => Err((Some(State::Log(running)), error)),
            },
            (State::Behind(mut running, part), Job::Received(received)) => {
                self.heard(&received.health);
                match self.caught_up(&mut running, part, &received) {
                    Ok(committed) => {
                        running.at = Some((received.session, received.epoch));
                        self.held(running, &committed, *received, true)
                    }
                    Err(error) => Err((Some(State::Log(running)), error)),
                }
            }
            (State::New(new), Job::Checkpoint { taken, join }) => {
                let begun = Instant::now();
                let running = self.first(new, |this, new| {
                    let commit = new.first(this.at(taken.epoch))?;
                    this.write(commit, &taken, join.as_deref())
                });
                match running {
                    Ok((running, committed)) => {
                        self.holds(&running, &committed, taken.resumed, Some(begun));
                        Ok(State::Log(Box::new(running)))
                    }
                    Err(error) => Err((None, error)),
                }
            }
            (State::New(new), Job::Received(received)) => {
                let running = self.first(new, |this, new| {
                    this.heard(&received.health);
                    write_received(new.first(at_of(&received))?, &received, &this.health)
                });
                match running {
                    Ok((running, committed)) => self.held(Box::new(running), &committed, *received, true),
                    Err(error) => Err((None, error)),
                }
            }
            (State::Log(mut running), Job::Checkpoint { taken, join }) => {
                match self.commit(&mut running, &taken, join.as_deref()) {
                    Ok(committed) => {
                        self.holds(&running, &committed, taken.resumed, None);
                        Ok(State::Log(running))
                    }
                    Err(error) => Err((Some(State::Log(running)), error)),
                }
            }
            (State::Log(mut running), Job::Received(received)) => {
                self.heard(&received.health);
                self.wait_for_room(&running.log);
                let begun = running.log.begin(at_of(&received));
                match begun.and_then(|commit| write_received(commit, &received, &self.health)) {
                    Ok(committed) => {
                        running.at = Some((received.session, received.epoch));
                        self.held(running, &committed, *received, false)
                    }
                    Err(error) => Err((Some(State::Log(running)), error)),
                }
            }
            (state, Job::Drain(reply)) => {
                let at = match &state {
                    State::Nothing | State::New(_) | State::Behind(..) => None,
                    State::Log(_) if self.amiss => None,
                    State::Log(running) => running.at,
                };
                let _ = reply.send(at);
                Ok(state)
            }
            // Rounds and copies come before the first checkpoint.
            (state, _) => Ok(state),
        }
    }

    /// Answers what waits for an answer.
    fn refuse(job: Job) {
        if let Job::Drain(reply) = job {
            let _ = reply.send(None);
        }
    }

    /// Makes a part of a session's copy durable.
    fn part(&mut self, running: &mut Running, part: &mut Part) -> Result<(), LogError> {
        if part.runs.is_empty() {
            return Ok(());
        }
        self.wait_for_room(&running.log);
        running.log.part(self.session, &part.runs, &part.bytes)?;
        self.progress.made();
        part.runs.clear();
        part.bytes.clear();
        Ok(())
    }

    /// The first checkpoint of a session in a log that is gone on with.
    fn caught_up(&mut self, running: &mut Running, mut part: Part, received: &Received) -> Result<Committed, LogError> {
        self.part(running, &mut part)?;
        // What a resync has written past the log is durable before a checkpoint that rests on it can be.
        self.sync_images()?;
        self.wait_for_room(&running.log);
        write_received(running.log.begin(at_of(received))?, received, &self.health)
    }

    fn running(&self, log: Log, at: Option<(Term, Epoch)>) -> Result<Running, String> {
        let folder = log.folder().map_err(|e| report(&e))?;
        let folding = thread::Builder::new()
            .name("fold".into())
            .spawn(move || folder.run(FOLD_RETRY))
            .map_err(|e| e.to_string())?;
        priority::raise();
        Ok(Running { log, at, folder: Some(folding) })
    }

    fn round(&mut self, new: &mut New, pieces: &Receiver<Piece>) -> Result<(), LogError> {
        // Little is then left for the end, while output waits: the guest may stand before its first checkpoint as soon as all
        // pieces of a round are on their way.
        self.sync_images()?;
        let mut unsynced = 0;
        while let Ok(piece) = pieces.recv() {
            self.settings.waker.ring();
            translate(&piece.runs, &mut self.runs);
            new.pages(&self.runs, &piece.bytes)?;
            unsynced += piece.bytes.len();
            if unsynced >= SYNC_AFTER {
                new.sync()?;
                self.progress.made();
                // The guest goes on writing to its volumes.
                self.sync_images()?;
                unsynced = 0;
            }
            self.progress.made();
        }
        new.sync()?;
        self.progress.made();
        self.sync_images()
    }

    fn sync_images(&self) -> Result<(), LogError> {
        let failed = |why| LogError::Target { what: "the volumes cannot be synced".into(), source: io(why) };
        self.progress.syncs(true);
        let synced = self.settings.disks.sync_images();
        self.progress.syncs(false);
        synced.map_err(failed)?;
        self.progress.made();
        Ok(())
    }

    /// The first commit, which makes the log one.
    fn first(
        &mut self,
        mut new: Box<New>,
        write: impl FnOnce(&mut Self, &mut New) -> Result<Committed, LogError>,
    ) -> Result<(Running, Committed), LogError> {
        let committed = write(self, &mut new)?;
        self.progress.made();
        // What the guest wrote before is in the images and nowhere else.
        self.sync_images()?;
        let storage = new.storage();
        let at = Some((committed.at.session, committed.at.epoch));
        let failed = |why| LogError::Target { what: "the log's folder".into(), source: io(why) };
        let running = new.publish().and_then(|log| self.running(log, at).map_err(failed));
        if running.is_err() {
            // It may be a log already, of which nobody says that it is behind.
            self.unsure = Found::remove(&*storage).is_err();
        }
        Ok((running?, committed))
    }

    /// What a primary's checkpoint is.
    fn at(&self, epoch: Epoch) -> At {
        At { session: self.reign, epoch, term: self.term }
    }

    fn commit(&mut self, running: &mut Running, taken: &Taken, join: Option<&Join>) -> Result<Committed, LogError> {
        priority::step_aside(&taken.busy);
        self.wait_for_room(&running.log);
        let at = self.at(taken.epoch);
        let commit = running.log.begin(at)?;
        let committed = self.write(commit, taken, join)?;
        running.at = Some((at.session, at.epoch));
        Ok(committed)
    }

    fn write(
        &mut self,
        mut commit: ninefold_snapshot::log::Commit<'_>,
        taken: &Taken,
        join: Option<&Join>,
    ) -> Result<Committed, LogError> {
        let (mut content, mut unsynced) = (taken.content(), 0);
        for piece in pieces(taken.runs(), PAGES_AT_A_TIME) {
            translate(&piece, &mut self.runs);
            let (these, rest) = content.split_at(piece.iter().map(ninefold_machine::PageRun::bytes).sum());
            commit.pages(&self.runs, these)?;
            content = rest;
            unsynced += these.len();
            if unsynced >= SYNC_AFTER {
                commit.sync()?;
                unsynced = 0;
            }
            self.progress.made();
        }
        commit.device_state(&taken.devices)?;
        commit.channel_output(CONSOLE, join.map_or(&taken.console, |j| &j.console))?;
        commit.channel_output(AGENT, &taken.agent)?;
        commit.channel_output(ADDRESSES, taken.addresses.as_bytes())?;
        self.heard(&taken.health);
        commit.channel_output(HEALTH, &self.health)?;
        for volume in 0..self.settings.disks.iter().count() {
            let mut offset = 0;
            let batches = match join {
                Some(join) => join.queued.get(volume).map_or(&[][..], Vec::as_slice),
                None => taken.volumes.get(volume).map_or(&[][..], std::slice::from_ref),
            };
            for batch in batches {
                batch.each_piece(&mut self.operations, |piece| {
                    offset = commit.volume_writes(volume as u16, offset, piece)?;
                    unsynced += piece.len();
                    if unsynced >= SYNC_AFTER {
                        commit.sync()?;
                        unsynced = 0;
                    }
                    self.progress.made();
                    Ok::<_, LogError>(())
                })?;
            }
        }
        commit.finish()
    }

    fn heard(&mut self, health: &[u8]) {
        if !health.is_empty() {
            self.health.clear();
            self.health.extend_from_slice(health);
        }
    }

    /// A primary's checkpoint is durable.
    fn holds(&mut self, running: &Running, committed: &Committed, resumed: Instant, first: Option<Instant>) {
        let epoch = committed.at.epoch;
        self.numbers.push_back((committed.number, self.settings.disks.numbers(epoch)));
        self.images(&running.log);
        let _ = self.settings.core.send(Msg::LogHolds {
            id: self.id,
            epoch,
            first: first.map(|begun| begun.elapsed()),
            commit_bytes: committed.bytes,
            bytes: running.log.length(),
            commit_us: micros(resumed.elapsed()),
        });
    }

    /// A backup's checkpoint is durable: its volumes may have it, and when they have, as far as that is wanted, the primary may hear of it.
    /// Nobody waits for that here: the checkpoint can be gone on from.
    fn held(
        &mut self,
        running: Box<Running>,
        committed: &Committed,
        mut received: Received,
        first: bool,
    ) -> Result<State, (Option<State>, LogError)> {
        let (session, epoch) = (received.session, received.epoch);
        let disks = &self.settings.disks;
        match disks.receive(session, epoch, std::mem::take(&mut received.volumes)) {
            Ok(()) => {
                self.numbers.push_back((committed.number, disks.numbers(epoch)));
                self.images(&running.log);
                if let Some(acknowledger) = &self.acknowledger {
                    acknowledger.holds(epoch, first);
                }
                Ok(State::Log(running))
            }
            // The session is over, as the core knows, or too much is held: then the standby has what its volumes have not, and must not go
            // on. The log is whole, and brings the volumes with it.
            Err(reason) => {
                self.amiss = true;
                let reason = format!("a checkpoint is in the log and not on the volumes: {reason}");
                tracing::warn!(%reason, "the session ends");
                let _ = self.settings.core.send(Msg::LoadFailed { session, reason });
                Ok(State::Log(running))
            }
        }
    }

    /// Waits until the log is shorter. When it does not become so, the next commit says it.
    fn wait_for_room(&mut self, log: &Log) {
        self.progress.at_work(false);
        let deadline = Instant::now() + FOLD_LIMIT;
        while !log.shared().wait_shorter(Options::default().limit, FOLD_LOOK) && Instant::now() < deadline {
            // The images may have got meanwhile what the folder waits for.
            self.images(log);
        }
        self.progress.at_work(true);
    }

    /// Lets go of segments whose operations the images have.
    fn images(&mut self, log: &Log) {
        let mut newest = None;
        while self.numbers.front().is_some_and(|(_, numbers)| self.settings.disks.are_durable(numbers)) {
            newest = self.numbers.pop_front().map(|(commit, _)| commit);
        }
        if let Some(commit) = newest {
            log.shared().images_hold(commit);
        }
    }
}

/// Runs of pages in pieces of so many pages; the last has what is left.
fn pieces(runs: &[ninefold_machine::PageRun], pages: u32) -> impl Iterator<Item = Vec<ninefold_machine::PageRun>> {
    let (mut runs, mut begun) = (runs.iter(), None);
    std::iter::from_fn(move || {
        let (mut piece, mut room) = (Vec::new(), pages);
        while room > 0
            && let Some(run) = begun.take().or_else(|| runs.next().copied())
        {
            let count = run.count.min(room);
            piece.push(ninefold_machine::PageRun { count, ..run });
            room -= count;
            begun = (count < run.count).then(|| ninefold_machine::PageRun {
                first: run.first + u64::from(count),
                count: run.count - count,
                ..run
            });
        }
        (!piece.is_empty()).then_some(piece)
    })
}

/// Notes in a log that fails that it is behind; answers whether it is noted, or whether there is no log that could be believed.
fn invalidate(state: State, error: &LogError) -> bool {
    match state {
        State::Nothing | State::New(_) => true,
        State::Log(mut running) | State::Behind(mut running, _) => {
            tracing::error!(error = %report(error), "the log cannot go on");
            running.log.invalidate().is_ok()
        }
    }
}

fn storage_of(state: &State) -> Option<Arc<dyn Storage>> {
    match state {
        State::Nothing => None,
        State::New(new) => Some(new.storage()),
        State::Log(running) | State::Behind(running, _) => Some(running.log.storage()),
    }
}

fn at_of(received: &Received) -> At {
    At { session: received.session, epoch: received.epoch, term: received.term }
}

fn write_received(
    mut commit: ninefold_snapshot::log::Commit<'_>,
    received: &Received,
    health: &[u8],
) -> Result<Committed, LogError> {
    commit.pages(&received.runs, &received.bytes)?;
    commit.zeros(received.zeros.iter().copied())?;
    commit.device_state(&received.state)?;
    for (channel, output) in (0u8..).zip(&received.output) {
        commit.channel_output(channel, output)?;
    }
    commit.channel_output(HEALTH, health)?;
    let mut scratch = Vec::new();
    for (volume, operations) in (0u16..).zip(&received.volumes) {
        let mut offset = 0;
        operations.each_piece(&mut scratch, |piece| {
            offset = commit.volume_writes(volume, offset, piece)?;
            Ok::<_, LogError>(())
        })?;
    }
    commit.finish()
}

fn io(why: String) -> std::io::Error {
    std::io::Error::other(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread that waits for a flush of gigabytes gets on as long as the disks do; one that waits for its own disk does not.
    #[test]
    fn who_waits_for_a_flush_of_the_images_gets_on_with_it() {
        let progress = Progress::default();
        assert_eq!(progress.now(|| 1), None, "it has nothing to do");
        progress.at_work(true);
        let now = progress.now(|| 1);
        assert!(now.is_some() && progress.now(|| 2) == now);
        progress.syncs(true);
        assert_ne!(progress.now(|| 3), progress.now(|| 4));
        progress.syncs(false);
        assert_eq!(progress.now(|| 5), now);
        progress.made();
        assert_ne!(progress.now(|| 5), now);
        progress.at_work(false);
        assert_eq!(progress.now(|| 5), None);
    }
}
