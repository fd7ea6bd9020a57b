//! The VM's volumes on this host: opened once, served to whichever QEMU of the VM runs here.
//!
//! All of them share the VM's epochs, as its outlets do: they are held, sealed, committed and given up together.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ninefold_model::spec::VolumeSpec;
use ninefold_model::{Epoch, Term};
use ninefold_volume::image::Image;
use ninefold_volume::nbd::{Access, Handler, Server};
use ninefold_volume::pool::Kind;
use ninefold_volume::served::SOFT;
use ninefold_volume::sums::{self, SUM};
use ninefold_volume::{Batch, Format, Pool, Served, Tools, VolumeError, fault};

use crate::config::KeeperConfig;
use crate::error::{KeeperError, report};
use crate::resync;

/// How long a backup may take to put an epoch on its disk, and a host to empty its queue before a session.
const DISK_LIMIT: Duration = Duration::from_secs(10);

/// One volume.
#[derive(Debug)]
pub struct Disk {
    pub spec: VolumeSpec,
    pub served: Arc<Served>,
    /// Dropped before `served`: it ends the requests that are under way.
    _server: Server,
    socket: PathBuf,
}

impl Disk {
    /// Opens the `n`th volume, and serves it; one that is not there is made, after a note of that in `made`.
    fn open(pool: &Pool, run_dir: &Path, made: &Path, n: usize, spec: &VolumeSpec) -> Result<Self, KeeperError> {
        let name = spec.name.as_str().parse().map_err(VolumeError::Name)?;
        match pool.info(Kind::Volume, &name) {
            Err(VolumeError::NotFound { .. }) => {
                note(made, spec.name.as_str()).map_err(|source| KeeperError::File {
                    what: "cannot write",
                    path: made.into(),
                    source,
                })?;
                pool.create(&name, spec.size, Format::Raw)?;
            }
            other => drop(other?),
        }
        let (image, log) = pool.open_logged(&name)?;
        if image.size() != spec.size {
            return Err(KeeperError::VolumeSize { name: name.to_string(), wanted: spec.size, found: image.size() });
        }
        let served = Arc::new(Served::new(image, log, spec.acknowledge)?);
        let socket = socket(run_dir, n);
        // Left behind by a keeper that was killed; the lock on the run directory says that it is gone.
        let _ = std::fs::remove_file(&socket);
        let handler: Arc<dyn Handler> = Arc::clone(&served) as Arc<dyn Handler>;
        let server = Server::listen(&socket, name.as_str(), Access::ReadWrite, handler)?;
        Ok(Disk { spec: spec.clone(), served, _server: server, socket })
    }
}

/// The volumes of one VM, in the order of its spec.
#[derive(Debug, Default)]
pub struct Disks {
    all: Vec<Disk>,
    /// The session that may write here as a backup; 0 for none.
    session: AtomicU64,
    /// Held while a backup's session writes.
    writing: Mutex<()>,
    /// Counts those who have used the volumes: sessions, VMs. Held while somebody writes to unused ones.
    users: Mutex<u64>,
    /// What the VM does is nobody's but its own: see [`Disks::go_through_if_alone`]. Held while the volumes' mode changes.
    alone: Mutex<bool>,
    /// The note that one of them was not there and has been made, empty; as long as nobody has used them.
    made: Mutex<Option<PathBuf>>,
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
        if config.vm.volumes.is_empty() {
            return Ok(Self::default());
        }
        let pool = Pool::open(&config.pool, Tools::default())?;
        let made = config.pool.join(format!("made-{}", config.vm.name));
        let open = |(n, spec): (usize, &VolumeSpec)| Disk::open(&pool, &config.run_dir, &made, n, spec);
        let all = config.vm.volumes.iter().enumerate().map(open).collect::<Result<_, _>>()?;
        let made = Mutex::new(made.exists().then_some(made));
        Ok(Self { all, made, ..Self::default() })
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Disk> {
        self.all.iter()
    }

    /// The name of a volume that was not there and has been made, empty, while nobody has used it.
    pub fn made(&self) -> Option<String> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.as_ref().map(|note| std::fs::read_to_string(note).unwrap_or_default().chars().take(64).collect())
    }

    /// Where QEMU finds them.
    pub fn sockets(&self) -> Vec<PathBuf> {
        self.all.iter().map(|d| d.socket.clone()).collect()
    }

    /// See [`Served::hold`].
    pub fn hold(&self) {
        let mut alone = self.alone();
        *alone = false;
        self.all.iter().for_each(|d| d.served.hold());
    }

    /// See [`Served::seal`]. The batches are added to `into`.
    pub fn seal(&self, epoch: Epoch, into: &mut Vec<Arc<Batch>>) {
        into.extend(self.all.iter().map(|d| d.served.seal(epoch)));
    }

    /// See [`Served::commit`].
    pub fn commit(&self, epoch: Epoch) {
        self.all.iter().for_each(|d| d.served.commit(epoch));
    }

    /// The VM runs here, alone. See [`Served::go_through`].
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
        if let Some(note) = self.made.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = std::fs::remove_file(note);
        }
    }

    /// The volumes, as long as nobody uses them.
    pub fn unused(self: &Arc<Self>) -> Unused {
        let users = *self.users.lock().unwrap_or_else(PoisonError::into_inner);
        Unused { disks: Arc::clone(self), users }
    }

    fn alone(&self) -> MutexGuard<'_, bool> {
        self.alone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`Served::discard`].
    pub fn discard(&self) {
        let mut alone = self.alone();
        *alone = false;
        self.all.iter().for_each(|d| d.served.discard());
    }

    /// Whether so much is held, of all volumes together, that a checkpoint is wanted: one has bounds.
    pub fn pressure(&self) -> bool {
        self.all.iter().map(|d| d.served.held()).sum::<usize>() > SOFT
    }

    /// A backup's session begins: from now on it alone writes here, and nothing of an earlier one is left to be applied.
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub fn enter(&self, session: Term) -> Result<(), String> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.session.load(Ordering::SeqCst) > session.0 {
            return Err(format!("session {session} is over"));
        }
        self.session.store(session.0, Ordering::SeqCst);
        self.used();
        self.settle()
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
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check(session)?;
        let disk = self.all.get(usize::from(volume)).ok_or_else(|| format!("there is no volume {volume}"))?;
        let failed = |e: &dyn std::error::Error| format!("volume {}: {}", disk.spec.name, report(e));
        fault::point("resync.apply").map_err(|e| failed(&e))?;
        let batch = Batch::parse(operations.to_vec(), disk.spec.size).map_err(|e| failed(&e))?;
        disk.served.apply(&batch).map_err(|e| failed(&e))
    }

    /// A backup's answer to the primary's checksums from block `first` of a volume on: see [`sums::differing`].
    ///
    /// # Errors
    /// A volume that is not there, a disk that cannot be read.
    pub fn compare(&self, volume: u16, first: u64, theirs: &[u8]) -> Result<Vec<u8>, String> {
        let disk = self.all.get(usize::from(volume)).ok_or_else(|| format!("there is no volume {volume}"))?;
        fault::point("resync.answer").map_err(|e| e.to_string())?;
        let ours = resync::checksums(&disk.served, first, (theirs.len() / SUM) as u64)
            .map_err(|e| format!("volume {}: {}", disk.spec.name, report(&e)))?;
        let mut bits = sums::differing(&ours, theirs);
        disk.served.put_lost(first, &mut bits);
        Ok(bits)
    }

    /// Reads a checkpoint's operations on each volume.
    ///
    /// # Errors
    /// Operations that make no sense.
    pub fn parse(&self, mut take: impl FnMut(u16) -> Vec<u8>) -> Result<Vec<Batch>, String> {
        let parse = |(n, d): (u16, &Disk)| {
            Batch::parse(take(n), d.spec.size).map_err(|e| format!("volume {}: {e}", d.spec.name))
        };
        fault::point("receive.epoch").map_err(|e| e.to_string())?;
        (0u16..).zip(&self.all).map(parse).collect()
    }

    /// A backup's side of a whole checkpoint: its operations on each volume. Returns when what an acknowledgement means is
    /// true: for volumes of [`Acknowledge::Disk`] when the epoch is on this host's disk; and not before there is room for
    /// the next one.
    ///
    /// # Errors
    /// A disk that cannot be written; a session that is over.
    pub fn put(&self, session: Term, epoch: Epoch, batches: Vec<Batch>) -> Result<(), String> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check(session)?;
        self.settle_resync()?;
        for (disk, batch) in self.all.iter().zip(batches) {
            disk.served.receive(epoch, batch);
        }
        for disk in &self.all {
            // A host that cannot write what it is sent must not count as a backup; what it holds already, it keeps.
            disk.served
                .wait_acknowledge(epoch, DISK_LIMIT)
                .map_err(|e| format!("volume {}: {}", disk.spec.name, report(&e)))?;
        }
        Ok(())
    }

    /// See [`Served::settle_resync`].
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub fn settle_resync(&self) -> Result<(), String> {
        self.all
            .iter()
            .try_for_each(|d| d.served.settle_resync().map_err(|e| format!("volume {}: {}", d.spec.name, report(&e))))
    }

    /// The numbers of this epoch's batches: see [`Served::number`].
    pub fn numbers(&self, epoch: Epoch) -> Vec<u64> {
        self.all.iter().map(|d| d.served.number(epoch)).collect()
    }

    /// Whether all volumes have the batches of these numbers, durably.
    pub fn are_durable(&self, numbers: &[u64]) -> bool {
        self.all.iter().zip(numbers).all(|(d, number)| d.served.is_durable(*number))
    }

    /// Makes durable what is in the images.
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub fn sync_images(&self) -> Result<(), String> {
        self.all
            .iter()
            .try_for_each(|d| d.served.sync_image().map_err(|e| format!("volume {}: {}", d.spec.name, report(&e))))
    }

    /// See [`Served::queued`], for each volume.
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

/// Writes a note that survives a loss of power.
fn note(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    path.parent().map_or(Ok(()), |pool| File::open(pool)?.sync_all())
}

/// A Unix socket's path has at most 107 bytes: the directory of the VM's other sockets is short enough.
fn socket(run_dir: &Path, n: usize) -> PathBuf {
    run_dir.join(format!("volume-{n}.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(dir: &Path) -> Disks {
        let pool = Pool::open(&dir.join("pool"), Tools::default()).unwrap();
        let spec = VolumeSpec::new("data".parse().unwrap(), 1 << 20);
        Disks { all: vec![Disk::open(&pool, dir, &dir.join("made"), 0, &spec).unwrap()], ..Disks::default() }
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
