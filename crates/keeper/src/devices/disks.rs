//! The VM's volumes on this host: opened once, served to whichever QEMU of the VM runs here.
//!
//! All of them share the VM's epochs, as its guest I/O do: they are held, sealed, committed and given up together.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ninefold_core::disk_watch::SLOW;
use ninefold_model::spec::{Acknowledge, VolumeSpec};
use ninefold_model::{Epoch, Term};
use ninefold_replica::target::Target;
use ninefold_volume::batch::MAX_MEMORY;
use ninefold_volume::budget::SOFT;
use ninefold_volume::checksums::{self, SUM};
use ninefold_volume::image::Image;
use ninefold_volume::nbd::{Access, Handler, Server};
use ninefold_volume::pool::Kind;
use ninefold_volume::served::BACKLOG;
use ninefold_volume::{Batch, Budget, Format, Note, Pool, ServedVolume, Tools, VolumeError, VolumeName};

use crate::config::KeeperConfig;
use crate::devices::blocks;
use crate::durable::mixture::{Cause, Mixture};
use crate::durable::unfinished::Unfinished;
use crate::error::{KeeperError, report};
use crate::primary::waker::Waker;

/// How long a backup may take to put an epoch on its disk, and a host to empty its queue before a session.
const DISK_LIMIT: Duration = Duration::from_secs(10);

/// How often what went through is made durable before a pause that does not hold it.
const SYNCS: u32 = 3;
/// How long a pause is put off because the disks are busy.
const CALM_LIMIT: Duration = Duration::from_secs(10);

/// What a backup holds at most for its disks, of all volumes together, bytes: of each volume what it acknowledges without its disk, and the
/// checkpoints that a primary may send before they are acknowledged. A primary whose disks are as slow delays its guest long before.
fn most_held(volumes: usize) -> usize {
    MAX_MEMORY + BACKLOG * volumes.max(1)
}

/// One volume.
#[derive(Debug)]
pub struct Disk {
    pub spec: VolumeSpec,
    acknowledge: Acknowledge,
    pub served: Arc<ServedVolume>,
    /// Dropped before `served`: it ends the requests that are under way.
    _server: Server,
    socket: PathBuf,
    /// That its image is a mixture.
    mixture: Note,
}

impl Disk {
    /// Opens the `n`th volume, and serves it; one that is not there is made, after a note of that in `made`.
    fn open(
        pool: &Pool,
        budget: &Arc<Budget>,
        run_dir: &Path,
        made: &Note,
        n: usize,
        spec: &VolumeSpec,
        acknowledge: Acknowledge,
    ) -> Result<Self, KeeperError> {
        let name = spec.name.as_str().parse().map_err(VolumeError::Name)?;
        match pool.info(Kind::Volume, &name) {
            Err(VolumeError::NotFound { .. }) => {
                made.write(spec.name.as_str()).map_err(|source| KeeperError::File {
                    what: "cannot write",
                    path: made.path().into(),
                    source,
                })?;
                pool.create(&name, spec.size, Format::Raw)?;
            }
            other => drop(other?),
        }
        let (image, log) = pool.open_logged(&name)?;
        let lost = pool.lost(&name);
        if image.size() != spec.size {
            return Err(KeeperError::VolumeSize { name: name.to_string(), wanted: spec.size, found: image.size() });
        }
        let served = ServedVolume::within(Arc::clone(budget), image, log, acknowledge, Some(lost))?;
        if served.is_lost(0, served.size()) {
            write_again(&name, &served);
        }
        served.keep_behind(pool.behind(&name));
        let served = Arc::new(served);
        let socket = socket(run_dir, n);
        // Left behind by a keeper that was killed; the lock on the run directory says that it is gone.
        let _ = std::fs::remove_file(&socket);
        let handler: Arc<dyn Handler> = Arc::clone(&served) as Arc<dyn Handler>;
        let server = Server::listen(&socket, name.as_str(), Access::ReadWrite, handler)?;
        Ok(Disk { spec: spec.clone(), acknowledge, served, _server: server, socket, mixture: pool.mixture(&name) })
    }
}

/// An earlier keeper's flush has failed: sees to it that the disk has what is read here. What it cannot mend stays lost, and a resync
/// or the guest may write it yet.
fn write_again(name: &VolumeName, served: &ServedVolume) {
    tracing::warn!(volume = %name, "a flush has failed before: the volume is written again, which takes a while");
    match served.write_again() {
        Ok(()) => tracing::info!(volume = %name, "the volume is written again"),
        Err(error) => {
            let error = report(&error);
            tracing::error!(volume = %name, %error, "the volume cannot be written again: its flushes fail");
        }
    }
}

/// The volumes of one VM, in the order of its spec.
#[derive(Debug, Default)]
pub struct Disks {
    all: Vec<Disk>,
    /// What all of them hold.
    budget: Arc<Budget>,
    /// Since when a pause is near: see [`Disks::brace`].
    braced: Mutex<Option<Instant>>,
    /// Attempts to have what went through made durable before a pause.
    syncs: AtomicU32,
    /// The session that may write here as a backup; 0 for none.
    session: AtomicU64,
    /// Taken while a backup's session writes.
    writing: Turn,
    /// Counts those who have used the volumes: sessions, VMs. Held while somebody writes to unused ones.
    users: Mutex<u64>,
    /// What the VM does is nobody's but its own: see [`Disks::go_through_if_alone`]. Held while the volumes' mode changes.
    alone: Mutex<bool>,
    /// The note that one of them was not there and has been made, empty.
    made: Mutex<Made>,
    mixture: Mixture,
}

/// One writes at a time; the next does not wait for a disk that hangs under the one before without end.
#[derive(Debug, Default)]
struct Turn {
    taken: Mutex<bool>,
    free: Condvar,
}

/// Somebody's turn, until this is dropped.
struct Taken<'a>(&'a Turn);

impl Turn {
    /// None if it does not come within `limit`.
    fn take(&self, limit: Duration) -> Option<Taken<'_>> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.free.wait_timeout_while(taken, limit, |taken| *taken);
        let (mut taken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *taken, true) { None } else { Some(Taken(self)) }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.free.notify_one();
    }
}

/// Whether the note that a volume has been made, empty, is there.
#[derive(Debug, Default)]
enum Made {
    #[default]
    No,
    /// Nobody has used the volumes.
    Noted(Note),
    /// They have been used. With a loss of power the note would come back.
    TakenAway(Note),
}

/// Makes an end of a mixture when all volumes are durable.
struct Whole {
    mixture: Mixture,
    number: u64,
    missing: AtomicUsize,
}

impl Whole {
    fn one(&self) {
        if self.missing.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.end();
        }
    }

    fn end(&self) {
        if let Err(error) = self.mixture.end(self.number) {
            tracing::error!(%error, "a note that the volumes are a mixture cannot be removed");
        }
    }
}

/// The volumes while nobody uses them: to be filled from a log or a snapshot. When a session enters or a VM runs here, nothing
/// more is written through this.
#[derive(Debug)]
pub struct Unused {
    disks: Arc<Disks>,
    users: u64,
}

/// One of them as an image.
#[derive(Debug)]
pub struct UnusedImage<'a> {
    of: &'a Unused,
    image: &'a dyn Image,
}

/// Bytes that are zeroed at once: whoever wants to use the volumes waits so long.
const ZEROED: u64 = 16 << 20;

impl Unused {
    /// Writes, unless somebody uses the volumes.
    fn write<T>(&self, write: impl FnOnce() -> Result<T, VolumeError>) -> Result<T, VolumeError> {
        let users = self.disks.users.lock().unwrap_or_else(PoisonError::into_inner);
        if *users != self.users {
            let source = io::Error::new(io::ErrorKind::ResourceBusy, "the VM is here, or has come from another host");
            return Err(VolumeError::Io { what: "the volume is in use", source });
        }
        write()
    }

    /// Whether nobody uses them.
    ///
    /// # Errors
    /// Somebody does.
    pub fn check(&self) -> Result<(), String> {
        self.write(|| Ok(())).map_err(|e| report(&e))
    }

    /// A volume's image.
    pub fn image<'a>(&'a self, disk: &'a Disk) -> UnusedImage<'a> {
        UnusedImage { of: self, image: disk.served.image_of_nobody() }
    }

    /// Operations of a log, played onto the images.
    ///
    /// # Errors
    /// Operations that make no sense, a disk that cannot be written; somebody uses the volumes.
    pub fn replay(&self, volume: u16, operations: Vec<u8>) -> Result<(), String> {
        let disk = self.disks.all.get(usize::from(volume)).ok_or_else(|| format!("there is no volume {volume}"))?;
        let failed = |e: &dyn std::error::Error| format!("volume {}: {}", disk.spec.name, report(e));
        let batch = Batch::parse(operations, disk.spec.size).map_err(|e| failed(&e))?;
        self.write(|| disk.served.apply(&batch)).map_err(|e| failed(&e))
    }
}

impl Image for UnusedImage<'_> {
    fn size(&self) -> u64 {
        self.image.size()
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        self.image.read(at, into)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), VolumeError> {
        self.of.write(|| self.image.write(at, bytes))
    }

    fn zero(&self, at: u64, length: u64, unmap: bool) -> Result<(), VolumeError> {
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(ZEROED);
            self.of.write(|| self.image.zero(at + done, piece, unmap))?;
            done += piece;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), VolumeError> {
        self.image.flush()
    }
}

impl Disks {
    /// Opens the VM's volumes in this host's pool. One that is not there is made, empty: it will be filled by a resync, or
    /// by the guest.
    ///
    /// # Errors
    /// Those of the pool; a volume of another size.
    pub fn open(config: &KeeperConfig) -> Result<Self, KeeperError> {
        let restoring = Unfinished::of(config);
        if config.vm.hardware.volumes.is_empty() {
            return Ok(Self { mixture: Mixture::of(Vec::new(), restoring), ..Self::default() });
        }
        let pool = Pool::open(&config.host.pool, Tools::default())?;
        let made = Note::at(config.host.pool.join(format!("made-{}", config.vm.id)));
        let budget = Arc::new(Budget::default());
        let run_dir = config.vm_dir();
        let open = |(n, spec): (usize, &VolumeSpec)| {
            Disk::open(&pool, &budget, &run_dir, &made, n, spec, config.vm.acknowledge(&spec.name))
        };
        let all = config.vm.hardware.volumes.iter().enumerate().map(open).collect::<Result<Vec<_>, _>>()?;
        let noted = made.found().is_some();
        let made = Mutex::new(if noted { Made::Noted(made) } else { Made::TakenAway(made) });
        let mixture = Mixture::of(all.iter().map(|d| d.mixture.clone()).collect(), restoring);
        Ok(Self { all, budget, made, mixture, ..Self::default() })
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Disk> {
        self.all.iter()
    }

    /// The name of a volume that was not there and has been made, empty, while nobody has used it.
    pub fn made(&self) -> Option<String> {
        match &*self.made.lock().unwrap_or_else(PoisonError::into_inner) {
            Made::Noted(note) => note.found().map(|name| name.chars().take(64).collect()),
            Made::No | Made::TakenAway(_) => None,
        }
    }

    /// The notes that the images are a mixture.
    pub fn mixture(&self) -> &Mixture {
        &self.mixture
    }

    /// The name of a volume whose image may be behind what clients were told, with when that was; as a note says that an
    /// earlier keeper has left.
    pub fn behind(&self) -> Option<(&VolumeName, String)> {
        self.all.iter().find_map(|d| Some((&d.spec.name, d.served.found_behind()?.chars().take(64).collect())))
    }

    /// The VM's volumes are about to be held for this one: what clients will be told then is in memory first. Has that
    /// noted in them, without waiting for it; [`Disks::calm`] does.
    pub fn falls_behind(&self, target: Target) {
        if self.all.iter().all(|d| matches!(d.served.behind_noted(), Ok(true))) {
            return;
        }
        let since = match target {
            Target::Session(session) => in_session(session),
            // The volumes are not held for a snapshot.
            Target::Log | Target::Snapshot => "while it was logged".into(),
        };
        self.all.iter().for_each(|d| d.served.falls_behind(&since));
    }

    /// The VM has ended for good. See [`ServedVolume::is_over`].
    pub fn are_over(&self) {
        self.all.iter().for_each(|d| d.served.is_over());
    }

    /// Where QEMU finds them.
    pub fn sockets(&self) -> Vec<PathBuf> {
        self.all.iter().map(|d| d.socket.clone()).collect()
    }

    /// See [`ServedVolume::hold`].
    pub fn hold(&self) {
        let mut alone = self.alone();
        *alone = false;
        self.all.iter().for_each(|d| d.served.hold());
    }

    /// See [`ServedVolume::seal`]. The batches are added to `into`.
    pub fn seal(&self, epoch: Epoch, into: &mut Vec<Arc<Batch>>) {
        into.extend(self.all.iter().map(|d| d.served.seal(epoch)));
    }

    /// See [`ServedVolume::commit`].
    pub fn commit(&self, epoch: Epoch) {
        self.all.iter().for_each(|d| d.served.commit(epoch));
    }

    /// The VM runs here, alone. See [`ServedVolume::go_through`].
    pub fn go_through(&self) {
        self.used();
        self.session.store(0, Ordering::SeqCst);
        let mut alone = self.alone();
        *alone = true;
        self.all.iter().for_each(|d| d.served.go_through());
    }

    /// To be called by who has sealed an epoch, before the guest runs again. The core may have let everything through while the
    /// epoch was being taken, and then nobody commits it: what the guest does would wait for ever, flushed as it believes.
    pub fn go_through_if_alone(&self) {
        let alone = self.alone();
        if *alone {
            self.all.iter().for_each(|d| d.served.go_through());
        }
    }

    /// A VM runs here, or a session has come: who fills [`Unused`] volumes is to write no more.
    pub fn used(&self) {
        *self.users.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Made::Noted(note) = &*made {
            // Whoever is here must not wait for the disk: durable with the images.
            if let Err(error) = note.take_away() {
                tracing::error!(%error, note = %note.path().display(), "a note cannot be removed");
            }
            *made = Made::TakenAway(note.clone());
        }
    }

    /// What has been used is not believed to be new and empty after a loss of power.
    fn settle_made(&self) -> Result<(), String> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Made::TakenAway(note) = &*made {
            note.remove().map_err(|e| format!("{}: {e}", note.path().display()))?;
            *made = Made::No;
        }
        Ok(())
    }

    /// The volumes, as long as nobody uses them.
    pub fn unused(self: &Arc<Self>) -> Unused {
        let users = *self.users.lock().unwrap_or_else(PoisonError::into_inner);
        Unused { disks: Arc::clone(self), users }
    }

    fn alone(&self) -> MutexGuard<'_, bool> {
        self.alone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`ServedVolume::discard`].
    pub fn discard(&self) {
        let mut alone = self.alone();
        *alone = false;
        self.all.iter().for_each(|d| d.served.discard());
    }

    /// Whether so much is held, of all volumes together, that a checkpoint is wanted: one has bounds.
    pub fn pressure(&self) -> bool {
        self.budget.held() > SOFT
    }

    /// What has to be on this host's disk before anybody is told of what the guest has done up to now: no other disk has it. Of
    /// volumes whose acknowledgement means the disk; the VM is alone. Each by its place, with its [flush](ServedVolume::flush_soon).
    pub fn owed(&self) -> Vec<(usize, u64)> {
        let disk = |d: &Disk| d.acknowledge == Acknowledge::Disk;
        let all = self.all.iter().enumerate().filter(|(_, d)| disk(d));
        all.filter_map(|(n, d)| Some((n, d.served.flush_soon()?))).collect()
    }

    /// What of it is still owed. A flush that failed is asked for again.
    pub fn still_owed(&self, owed: &[(usize, u64)]) -> Vec<(usize, u64)> {
        let still = |&(n, ticket): &(usize, u64)| {
            let served = &self.all.get(n)?.served;
            match served.flushed(ticket) {
                Some(Ok(())) => None,
                Some(Err(_)) => Some((n, served.flush_soon().unwrap_or(ticket))),
                None => Some((n, ticket)),
            }
        };
        owed.iter().filter_map(still).collect()
    }

    /// Bytes held, of all volumes together.
    pub fn held(&self) -> usize {
        self.budget.held()
    }

    /// See [`Budget::is_full`].
    pub fn is_full(&self) -> bool {
        self.budget.is_full()
    }

    /// See [`Budget::allows_pause`].
    pub fn allows_pause(&self) -> bool {
        self.budget.allows_pause()
    }

    /// A pause begins, or QEMU's `stop` has been answered: see [`Budget::pausing`].
    pub fn pausing(&self, yes: bool) {
        self.budget.pausing(yes);
    }

    /// See [`ServedVolume::brace`]. When it is over and the volumes have not been held meanwhile, whoever was to join has gone: the VM
    /// is as alone as before, and [does not fall behind](Self::falls_behind).
    pub fn brace(&self, yes: bool) {
        let mut since = self.braced.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_some() == yes {
            return;
        }
        *since = yes.then(Instant::now);
        self.syncs.store(0, Ordering::SeqCst);
        self.all.iter().for_each(|d| d.served.brace(yes));
        drop(since);
        if !yes {
            self.go_through_if_alone();
        }
    }

    /// Rings when the volumes may have become [calm](Self::calm).
    pub fn ring_when_calm(&self, waker: &Waker) {
        for disk in &self.all {
            let waker = waker.clone();
            disk.served.on_calm(Some(Box::new(move || waker.ring())));
        }
    }

    /// Whether a pause that falls due now is short, as far as the disks go; they are [braced](Self::brace). In a pause with which
    /// the volumes begin to be held, or are held already, nothing waits for a disk but what is under way there. If they are not,
    /// `alone`, QEMU's flush is one of the disk: so what went through is made durable first, while the guest runs. On a disk that
    /// takes long for that it is given up after a few times, and after [`CALM_LIMIT`] if a guest that writes all the time leaves no
    /// time for it: the guest stands still for as long as the disk takes. A disk that does not answer is waited for.
    ///
    /// Volumes that begin to be held have it [noted](Self::falls_behind) first; but a disk that fails or is slow does not keep the
    /// VM from a backup, to which it could be handed.
    pub fn calm(&self, alone: bool) -> bool {
        let not_noted = |d: &Disk| matches!(d.served.behind_noted(), Ok(false));
        if !alone && self.all.iter().any(not_noted) {
            let since = *self.braced.lock().unwrap_or_else(PoisonError::into_inner);
            if since.is_some_and(|since| since.elapsed() < SLOW) {
                return false;
            }
        }
        let calm = |flushed: bool| self.all.iter().all(|d| d.served.is_calm(flushed));
        if !alone || calm(true) {
            return calm(alone);
        }
        if self.all.iter().any(|d| d.served.is_busy()) {
            let since = *self.braced.lock().unwrap_or_else(PoisonError::into_inner);
            let answers = |d: &Disk| d.served.stalled().is_none_or(|time| time < SLOW);
            return since.is_some_and(|since| since.elapsed() >= CALM_LIMIT)
                && self.all.iter().all(answers)
                && calm(false);
        }
        if self.syncs.load(Ordering::SeqCst) >= SYNCS {
            return calm(false);
        }
        self.syncs.fetch_add(1, Ordering::SeqCst);
        self.all.iter().for_each(|d| d.served.sync_soon());
        false
    }

    /// A backup's session begins: from now on it alone writes here, and nothing of an earlier one is left to be applied.
    ///
    /// # Errors
    /// A disk that cannot be written, or does not answer; a newer session has begun.
    pub fn enter(&self, session: Term) -> Result<(), String> {
        self.enter_within(session, DISK_LIMIT)
    }

    fn enter_within(&self, session: Term, limit: Duration) -> Result<(), String> {
        // What an earlier one is about to write is refused from here on.
        if self.session.fetch_max(session.0, Ordering::SeqCst) > session.0 {
            return Err(format!("session {session} is over"));
        }
        let _turn = self.turn(limit)?;
        self.check(session)?;
        self.used();
        self.settle()
    }

    fn turn(&self, limit: Duration) -> Result<Taken<'_>, String> {
        self.writing.take(limit).ok_or_else(|| "a write of an earlier session is still at the disk".into())
    }

    fn check(&self, session: Term) -> Result<(), String> {
        if self.session.load(Ordering::SeqCst) == session.0 {
            Ok(())
        } else {
            Err(format!("session {session} is over"))
        }
    }

    /// A piece of a resync, in a backup's session.
    ///
    /// # Errors
    /// Operations that make no sense, a disk that cannot be written, a session that is over.
    pub fn apply(&self, session: Term, volume: u16, operations: &[u8]) -> Result<(), String> {
        let _turn = self.turn(DISK_LIMIT)?;
        self.check(session)?;
        let disk = self.all.get(usize::from(volume)).ok_or_else(|| format!("there is no volume {volume}"))?;
        let failed = |e: &dyn std::error::Error| format!("volume {}: {}", disk.spec.name, report(e));
        ninefold_fault::point("resync.apply").map_err(|e| failed(&e))?;
        let batch = Batch::parse(operations.to_vec(), disk.spec.size).map_err(|e| failed(&e))?;
        self.mixture.begin(Cause::Resync)?;
        disk.served.apply(&batch).map_err(|e| failed(&e))
    }

    /// A backup's answer to the primary's checksums from block `first` of a volume on: see [`checksums::differing`].
    ///
    /// # Errors
    /// A volume that is not there, a disk that cannot be read.
    pub fn compare(&self, volume: u16, first: u64, theirs: &[u8]) -> Result<Vec<u8>, String> {
        let disk = self.all.get(usize::from(volume)).ok_or_else(|| format!("there is no volume {volume}"))?;
        ninefold_fault::point("resync.answer").map_err(|e| e.to_string())?;
        let ours = blocks::checksums(&disk.served, first, (theirs.len() / SUM) as u64)
            .map_err(|e| format!("volume {}: {}", disk.spec.name, report(&e)))?;
        let mut bits = checksums::differing(&ours, theirs);
        disk.served.put_lost(first, &mut bits);
        Ok(bits)
    }

    /// Reads a checkpoint's operations on each volume.
    ///
    /// # Errors
    /// Operations that make no sense.
    pub fn parse(&self, mut take: impl FnMut(u16) -> Vec<u8>) -> Result<Vec<Batch>, String> {
        // Together they have the room that one has.
        let mut room = MAX_MEMORY;
        let parse = |(n, d): (u16, &Disk)| {
            let batch = Batch::parse_within(take(n), d.spec.size, room);
            let batch = batch.map_err(|e| format!("volume {}: {e}", d.spec.name))?;
            room -= batch.bytes();
            Ok(batch)
        };
        ninefold_fault::point("receive.epoch").map_err(|e| e.to_string())?;
        (0u16..).zip(&self.all).map(parse).collect()
    }

    /// A backup's side of a whole checkpoint: its operations on each volume, which have them from here on, in memory. Waits for no disk: a
    /// VM that has to go on here goes on with them. Whether it may be acknowledged is [another matter](Self::wait_to_acknowledge).
    ///
    /// # Errors
    /// A session that is over; more is held than a primary may send.
    pub fn receive(&self, session: Term, epoch: Epoch, batches: Vec<Batch>) -> Result<(), String> {
        self.receive_within(session, epoch, batches, most_held(self.all.len()))
    }

    fn receive_within(&self, session: Term, epoch: Epoch, batches: Vec<Batch>, most: usize) -> Result<(), String> {
        let _turn = self.turn(DISK_LIMIT)?;
        self.check(session)?;
        let coming: usize = batches.iter().map(Batch::bytes).sum();
        if self.budget.held().saturating_add(coming) > most {
            return Err("the primary sends more for the volumes than may be unacknowledged".into());
        }
        for (disk, batch) in self.all.iter().zip(batches) {
            disk.served.receive(epoch, batch);
        }
        self.whole_when_durable(epoch);
        Ok(())
    }

    /// Whether what an acknowledgement of this epoch, which was received, means is true now, and there is room for the next one.
    pub fn may_acknowledge_now(&self, session: Term, epoch: Epoch) -> bool {
        self.check(session).is_ok() && self.all.iter().all(|d| d.served.may_acknowledge(epoch))
    }

    /// Waits until that is so: for volumes of [`Acknowledge::Disk`] the epoch is on this host's disk; what it rests on is in any case.
    ///
    /// # Errors
    /// A disk that cannot be written, or not in time: a host that cannot write what it is sent must not count as a backup. A session that
    /// is over.
    pub fn wait_to_acknowledge(&self, session: Term, epoch: Epoch) -> Result<(), String> {
        self.check(session)?;
        self.note_behind(session)?;
        self.settle_resync()?;
        self.all.iter().try_for_each(|disk| {
            let waited = disk.served.wait_acknowledge(epoch, DISK_LIMIT);
            waited.map_err(|e| format!("volume {}: {}", disk.spec.name, report(&e)))
        })
    }

    /// A backup acknowledges what is in its memory: a client may then be told of it. Where an acknowledgement means the disk, the disk
    /// has it.
    fn note_behind(&self, session: Term) -> Result<(), String> {
        let by_memory = |d: &&Disk| d.acknowledge == Acknowledge::Memory;
        let missing = |d: &&Disk| !matches!(d.served.behind_noted(), Ok(true));
        let unnoted: Vec<_> = self.all.iter().filter(by_memory).filter(missing).collect();
        unnoted.iter().for_each(|d| d.served.falls_behind(&in_session(session)));
        let wait = |d: &Disk| d.served.wait_behind_noted(DISK_LIMIT);
        unnoted.into_iter().try_for_each(|d| wait(d).map_err(|e| format!("volume {}: {}", d.spec.name, report(&e))))
    }

    /// Once this epoch of a session is durable in all volumes, they are no mixture any more. Nobody waits for that.
    fn whole_when_durable(&self, epoch: Epoch) {
        let Some(number) = self.mixture.claim() else { return };
        let end = Arc::new(Whole { mixture: self.mixture.clone(), number, missing: AtomicUsize::new(self.all.len()) });
        for disk in &self.all {
            let end = Arc::clone(&end);
            disk.served.when_durable(disk.served.number(epoch), Box::new(move || end.one()));
        }
        if self.all.is_empty() {
            end.end();
        }
    }

    /// See [`ServedVolume::settle_resync`].
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub fn settle_resync(&self) -> Result<(), String> {
        self.all
            .iter()
            .try_for_each(|d| d.served.settle_resync().map_err(|e| format!("volume {}: {}", d.spec.name, report(&e))))
    }

    /// The numbers of this epoch's batches: see [`ServedVolume::number`].
    pub fn numbers(&self, epoch: Epoch) -> Vec<u64> {
        self.all.iter().map(|d| d.served.number(epoch)).collect()
    }

    /// Whether all volumes have the batches of these numbers, durably.
    pub fn are_durable(&self, numbers: &[u64]) -> bool {
        self.all.iter().zip(numbers).all(|(d, number)| d.served.is_durable(*number))
    }

    /// A number that is another whenever a disk has got on with a flush.
    pub fn got_on(&self) -> u64 {
        self.iter().map(|disk| disk.served.got_on()).fold(0, u64::wrapping_add)
    }

    /// Makes durable what is in the images.
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub fn sync_images(&self) -> Result<(), String> {
        self.settle_made()?;
        self.all
            .iter()
            .try_for_each(|d| d.served.sync_image().map_err(|e| format!("volume {}: {}", d.spec.name, report(&e))))
    }

    /// Whether a flush that failed may have lost something: see [`ServedVolume::is_lost`].
    pub fn is_lost(&self) -> bool {
        self.all.iter().any(|d| d.served.is_lost(0, d.spec.size))
    }

    /// See [`ServedVolume::queued`], for each volume.
    pub fn queued(&self) -> Vec<Vec<Arc<Batch>>> {
        self.all.iter().map(|d| d.served.queued()).collect()
    }

    /// Whether every volume takes what is committed.
    ///
    /// # Errors
    /// Why one does not.
    pub fn working(&self) -> Result<(), String> {
        let stuck =
            self.all.iter().find_map(|d| d.served.stuck().map(|f| format!("volume {}: {}", d.spec.name, f.reason)));
        stuck.map_or(Ok(()), Err)
    }

    /// Waits until nothing of an earlier session is left to be applied.
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub fn settle(&self) -> Result<(), String> {
        // What is known already nobody has to wait for.
        self.working()?;
        self.all.iter().try_for_each(|d| {
            d.served.settle(DISK_LIMIT).map_err(|e| format!("volume {}: {}", d.spec.name, report(&e)))
        })
    }
}

fn in_session(session: Term) -> String {
    format!("in session {session}")
}

/// A Unix socket's path has at most 107 bytes: the directory of the VM's other sockets is short enough.
fn socket(run_dir: &Path, n: usize) -> PathBuf {
    run_dir.join(format!("volume-{n}.sock"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use ninefold_volume::WriteLog;
    use ninefold_volume::batch::put_write;

    use super::*;

    /// An image of zeros on a disk that answers, hangs or fails, as it is told.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Wayward(Arc<(Mutex<Way>, Condvar)>);

    /// What a disk does.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub(crate) enum Way {
        #[default]
        Answers,
        Hangs,
        Fails,
    }

    impl Wayward {
        pub(crate) fn goes(&self, way: Way) {
            *self.0.0.lock().unwrap() = way;
            self.0.1.notify_all();
        }

        fn step(&self) -> Result<(), VolumeError> {
            let way = self.0.1.wait_while(self.0.0.lock().unwrap(), |way| *way == Way::Hangs).unwrap();
            match *way {
                Way::Fails => Err(VolumeError::Io { what: "cannot write", source: io::Error::other("it is broken") }),
                _ => Ok(()),
            }
        }
    }

    impl Image for Wayward {
        fn size(&self) -> u64 {
            1 << 20
        }

        fn read(&self, _: u64, into: &mut [u8]) -> Result<(), VolumeError> {
            into.fill(0);
            Ok(())
        }

        fn write(&self, _: u64, _: &[u8]) -> Result<(), VolumeError> {
            self.step()
        }

        fn zero(&self, _: u64, _: u64, _: bool) -> Result<(), VolumeError> {
            self.step()
        }

        fn flush(&self) -> Result<(), VolumeError> {
            self.step()
        }
    }

    /// One volume on such a disk.
    pub(crate) fn on(dir: &Path, disk: &Wayward, acknowledge: Acknowledge) -> Disks {
        let (budget, log) = (Arc::<Budget>::default(), WriteLog::in_memory().unwrap());
        let served = ServedVolume::within(Arc::clone(&budget), Box::new(disk.clone()), log, acknowledge, None);
        let served = Arc::new(served.unwrap());
        let socket = socket(dir, 0);
        let handler: Arc<dyn Handler> = Arc::clone(&served) as Arc<dyn Handler>;
        let _server = Server::listen(&socket, "data", Access::ReadWrite, handler).unwrap();
        let spec = VolumeSpec::new("data".parse().unwrap(), 1 << 20);
        let disk = Disk { spec, acknowledge, served, _server, socket, mixture: Note::at(dir.join("mixture")) };
        let mixture = Mixture::of(vec![disk.mixture.clone()], Note::at(dir.join("restoring")));
        Disks { all: vec![disk], budget, mixture, ..Disks::default() }
    }

    /// One operation, as it comes from a primary: a block of this byte.
    pub(crate) fn block(byte: u8) -> Vec<u8> {
        let mut operations = Vec::new();
        put_write(&mut operations, 0, &[byte; 512]);
        operations
    }

    /// What a backup does with a whole checkpoint.
    fn put(disks: &Disks, session: u64, epoch: u64, batch: Batch) {
        disks.receive(Term(session), Epoch(epoch), vec![batch]).unwrap();
        disks.wait_to_acknowledge(Term(session), Epoch(epoch)).unwrap();
    }

    fn one(dir: &Path) -> Disks {
        with(dir, Acknowledge::Memory)
    }

    fn with(dir: &Path, acknowledge: Acknowledge) -> Disks {
        let pool = Pool::open(&dir.join("pool"), Tools::default()).unwrap();
        let spec = VolumeSpec::new("data".parse().unwrap(), 1 << 20);
        let disk = Disk::open(&pool, &Arc::default(), dir, &Note::at(dir.join("made")), 0, &spec, acknowledge).unwrap();
        let mixture = Mixture::of(vec![disk.mixture.clone()], Note::at(dir.join("restoring")));
        Disks { all: vec![disk], mixture, ..Disks::default() }
    }

    fn write(disks: &Disks, byte: u8) -> Result<(), VolumeError> {
        Handler::write(&*disks.all[0].served, 0, vec![byte; 512], true)
    }

    fn first(disks: &Disks) -> u8 {
        let mut content = [0];
        disks.all[0].served.read_image(0, &mut content).unwrap();
        content[0]
    }

    /// The core lets everything through while the VM's thread takes what was to be another epoch.
    #[test]
    fn an_epoch_that_nobody_is_to_have_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        let disks = one(dir.path());
        disks.go_through();
        disks.hold();
        write(&disks, 1).unwrap();
        disks.seal(Epoch(1), &mut Vec::new());
        assert_eq!(first(&disks), 0, "it waits for its commit");
        disks.go_through();
        disks.seal(Epoch(2), &mut Vec::new());
        disks.go_through_if_alone();
        write(&disks, 2).unwrap();
        assert_eq!(first(&disks), 2, "what was flushed is in the image");
        disks.settle().unwrap();
        // Not while somebody is to have it.
        disks.hold();
        disks.seal(Epoch(3), &mut Vec::new());
        disks.go_through_if_alone();
        write(&disks, 3).unwrap();
        assert_eq!(first(&disks), 2);
    }

    /// A VM's thread that is at its last checkpoint when the VM ends here opens nothing, and leaves nothing that the next
    /// session would wait for.
    #[test]
    fn a_late_epoch_of_a_vm_that_has_ended_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let disks = one(dir.path());
        disks.go_through();
        disks.discard();
        disks.seal(Epoch(1), &mut Vec::new());
        disks.go_through_if_alone();
        assert!(write(&disks, 1).is_err(), "it is closed");
        disks.enter(Term(5)).unwrap();
        assert!(disks.enter(Term(4)).is_err(), "an older session");
    }

    /// A resync that is cut off leaves a mixture, also for the next process; the next one that gets to a checkpoint, and has it on
    /// the disk, does not.
    #[test]
    fn a_resync_that_is_cut_off_leaves_a_mixture() {
        let dir = tempfile::tempdir().unwrap();
        let disks = one(dir.path());
        disks.enter(Term(5)).unwrap();
        assert_eq!(disks.mixture().found(), None);
        disks.apply(Term(5), 0, &block(7)).unwrap();
        assert_eq!(disks.mixture().found(), Some(Cause::Resync));
        drop(disks);
        let disks = one(dir.path());
        assert_eq!(disks.mixture().found(), Some(Cause::Resync));
        disks.enter(Term(6)).unwrap();
        assert_eq!(disks.mixture().found(), Some(Cause::Resync));
        put(&disks, 6, 1, Batch::parse(block(7), 1 << 20).unwrap());
        while disks.mixture().found().is_some() {
            std::thread::yield_now();
        }
        assert!(disks.all[0].served.is_durable(1));
        // From here on an epoch is whole or not there.
        put(&disks, 6, 2, Batch::default());
        assert_eq!(disks.mixture().found(), None);
    }

    /// A pause with which volumes begin to be held does not fall due before it is noted that they fall behind.
    #[test]
    fn a_volume_is_held_when_it_is_noted_that_it_falls_behind() {
        let dir = tempfile::tempdir().unwrap();
        let disks = one(dir.path());
        disks.go_through();
        disks.brace(true);
        assert!(!disks.calm(false), "nobody has noted it");
        assert!(disks.calm(true), "a snapshot holds nothing");
        disks.falls_behind(Target::Session(Term(5)));
        while !disks.calm(false) {
            std::thread::yield_now();
        }
        drop(disks);
        assert_eq!(
            one(dir.path()).behind().map(|(v, since)| (v.as_str(), since)),
            Some(("data", "in session 5".into()))
        );
    }

    /// Who was to join is gone before the checkpoint with which volumes begin to be held: nothing is behind. A join that has come to
    /// that checkpoint is another matter.
    #[test]
    fn a_join_that_comes_to_nothing_leaves_no_note() {
        let dir = tempfile::tempdir().unwrap();
        let disks = one(dir.path());
        disks.go_through();
        let noted = || Pool::open(&dir.path().join("pool"), Tools::default()).unwrap().behind(&"data".parse().unwrap());
        for held in [true, false] {
            disks.brace(true);
            disks.falls_behind(Target::Session(Term(5)));
            while !disks.calm(false) {
                std::thread::yield_now();
            }
            if held {
                disks.hold();
            }
            disks.brace(false);
            assert_eq!(disks.all[0].served.behind_noted().unwrap(), held);
            if held {
                disks.go_through();
            }
        }
        while noted().found().is_some() {
            std::thread::yield_now();
        }
    }

    /// What a backup acknowledges by its memory a client may be told, and then the power of both hosts goes.
    #[test]
    fn a_backup_that_acknowledges_by_its_memory_notes_that_it_is_behind() {
        for (acknowledge, behind) in
            [(Acknowledge::Memory, Some(("data", "in session 5".to_owned()))), (Acknowledge::Disk, None)]
        {
            let dir = tempfile::tempdir().unwrap();
            let disks = with(dir.path(), acknowledge);
            disks.enter(Term(5)).unwrap();
            assert!(!disks.all[0].served.behind_noted().unwrap());
            put(&disks, 5, 1, Batch::default());
            drop(disks);
            let disks = with(dir.path(), acknowledge);
            assert_eq!(disks.behind().map(|(volume, since)| (volume.as_str(), since)), behind);
            // It becomes a backup again.
            disks.enter(Term(6)).unwrap();
            put(&disks, 6, 1, Batch::default());
            assert_eq!(disks.behind(), None);
        }
    }

    /// A write of an earlier session's resync hangs: the next session does not wait for it without end, and nothing of the earlier one
    /// lands after it has begun.
    #[test]
    fn a_session_does_not_wait_without_end_for_a_write_of_an_earlier_one() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Wayward::default();
        let disks = Arc::new(on(dir.path(), &disk, Acknowledge::Memory));
        disks.enter(Term(5)).unwrap();
        disk.goes(Way::Hangs);
        let (told, heard) = channel();
        let its = Arc::clone(&disks);
        let writes = thread::spawn(move || told.send(its.apply(Term(5), 0, &block(1))).unwrap());
        while disks.all[0].served.stalled().is_none() {
            thread::yield_now();
        }
        let refused = disks.enter_within(Term(6), Duration::from_millis(20)).unwrap_err();
        assert!(refused.contains("still at the disk"), "{refused}");
        disk.goes(Way::Answers);
        heard.recv().unwrap().unwrap();
        writes.join().unwrap();
        disks.enter(Term(7)).unwrap();
        assert!(disks.apply(Term(5), 0, &block(2)).is_err() && disks.enter(Term(6)).is_err());
        assert!(disks.receive(Term(5), Epoch(1), vec![Batch::default()]).is_err());
    }

    /// A backup's memory has a bound, however slow its disk: a primary sends no more than it holds itself.
    #[test]
    fn what_is_held_for_a_disk_that_hangs_has_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Wayward::default();
        let disks = on(dir.path(), &disk, Acknowledge::Memory);
        disks.enter(Term(5)).unwrap();
        disk.goes(Way::Hangs);
        let batch = || Batch::parse(block(1), 1 << 20).unwrap();
        let most = batch().bytes() * 3 / 2;
        disks.receive_within(Term(5), Epoch(1), vec![batch()], most).unwrap();
        let refused = disks.receive_within(Term(5), Epoch(2), vec![batch()], most).unwrap_err();
        assert!(refused.contains("more for the volumes"), "{refused}");
        disk.goes(Way::Answers);
    }

    /// An earlier keeper's flush has failed, and the disk works again: a VM that starts here can flush.
    #[test]
    fn what_an_earlier_keeper_lost_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let disks = one(dir.path());
        disks.go_through();
        write(&disks, 1).unwrap();
        drop(disks);
        let lost = Pool::open(&dir.path().join("pool"), Tools::default()).unwrap().lost(&"data".parse().unwrap());
        lost.write().unwrap();
        let disks = one(dir.path());
        assert!(!lost.is_there() && !disks.is_lost());
        assert_eq!(first(&disks), 1);
        disks.go_through();
        write(&disks, 2).unwrap();
    }

    /// That a volume has been made is noted until it is used, and before a log counts that is durable.
    #[test]
    fn that_a_volume_was_made_is_forgotten_durably() {
        let dir = tempfile::tempdir().unwrap();
        let note = Note::at(dir.path().join("made"));
        let disks = one(dir.path());
        *disks.made.lock().unwrap() = Made::Noted(note.clone());
        assert!(disks.made().is_some());
        disks.go_through();
        assert!(disks.made().is_none() && note.found().is_none());
        // As a loss of power may leave it.
        note.write("data").unwrap();
        disks.sync_images().unwrap();
        assert!(note.found().is_none());
    }

    #[test]
    fn volumes_that_are_used_are_filled_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let disks = Arc::new(one(dir.path()));
        let unused = disks.unused();
        let image = unused.image(&disks.all[0]);
        image.write(0, &[7; 512]).unwrap();
        image.zero(512, 1 << 19, true).unwrap();
        assert_eq!(first(&disks), 7);
        for use_them in [|d: &Disks| d.enter(Term(3)).unwrap(), |d: &Disks| d.go_through()] {
            let unused = disks.unused();
            unused.check().unwrap();
            use_them(&disks);
            let image = unused.image(&disks.all[0]);
            assert!(image.write(0, &[8; 512]).is_err() && image.zero(0, 512, true).is_err() && unused.check().is_err());
            assert!(unused.replay(0, Vec::new()).is_err());
        }
        assert_eq!(first(&disks), 7);
    }
}
