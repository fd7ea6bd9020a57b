//! The note that clients may have been told what an image has not: when it is there, and when it goes.

use std::path::Path;
use std::time::{Duration, Instant};

use ninefold_model::Epoch;
use ninefold_model::spec::Acknowledge;
use ninefold_volume::nbd::Handler;
use ninefold_volume::{Note, Pool, ServedVolume, Tools, VolumeName};

/// Only so that a failure ends.
const LIMIT: Duration = Duration::from_secs(60);

struct Rig {
    dir: tempfile::TempDir,
    pool: Pool,
    name: VolumeName,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(&dir.path().join("pool"), Tools::default()).unwrap();
        let name = "data".parse().unwrap();
        pool.create(&name, 1 << 20, ninefold_volume::Format::Raw).unwrap();
        Self { dir, pool, name }
    }

    fn note(&self) -> Note {
        self.pool.behind(&self.name)
    }

    fn serve(&self) -> ServedVolume {
        let (image, log) = self.pool.open_logged(&self.name).unwrap();
        let served = ServedVolume::new(image, log, Acknowledge::Memory).unwrap();
        served.keep_behind(self.note());
        served
    }

    fn await_note(&self, is_there: bool) {
        until(|| self.note().found().is_some() == is_there);
    }
}

fn until(done: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "it does not come to that");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn write(served: &ServedVolume, byte: u8) {
    Handler::write(served, 0, vec![byte; 512], false).unwrap();
}

fn first(path: &Path) -> u8 {
    std::fs::read(path).unwrap()[0]
}

/// As a keeper protects the VM: what the guest writes is committed and on its way into the image.
fn protect(served: &ServedVolume) {
    served.go_through();
    served.falls_behind("in session 7");
    served.wait_behind_noted(LIMIT).unwrap();
    served.hold();
    write(served, 1);
    served.seal(Epoch(1));
}

#[test]
fn it_is_there_from_before_a_volume_is_held_until_all_is_in_the_image() {
    let rig = Rig::new();
    let served = rig.serve();
    served.go_through();
    write(&served, 9);
    assert_eq!((rig.note().found(), served.behind_noted().unwrap()), (None, false), "alone there is nothing to note");
    protect(&served);
    assert_eq!(rig.note().found().as_deref(), Some("in session 7"));
    served.commit(Epoch(1));
    served.settle(LIMIT).unwrap();
    assert!(rig.note().found().is_some(), "the next epoch may be released before it is on the disk");
    assert_eq!(served.found_behind(), None, "this process has it all");
    write(&served, 2);
    served.seal(Epoch(2));
    served.commit(Epoch(2));
    served.go_through();
    rig.await_note(false);
    assert_eq!(first(&rig.dir.path().join("pool/volumes/data/image.raw")), 2);
    // And again.
    protect(&served);
    assert!(rig.note().found().is_some());
}

#[test]
fn the_next_process_finds_it_until_the_vm_has_been_alone_there() {
    let rig = Rig::new();
    protect(&rig.serve());
    let served = rig.serve();
    assert_eq!(served.found_behind().as_deref(), Some("in session 7"));
    // Nobody has the VM here: that all of the log is in the image does not mean that all is.
    served.settle(LIMIT).unwrap();
    drop(served);
    let served = rig.serve();
    assert!(served.found_behind().is_some());
    served.go_through();
    assert_eq!(served.found_behind(), None);
    rig.await_note(false);
    drop(served);
    assert_eq!(rig.serve().found_behind(), None);
}

/// A VM that has gone to another host is behind here; one that has ended is not, also if the process ends at once.
#[test]
fn it_goes_when_the_vm_has_ended_and_stays_when_it_has_left() {
    let rig = Rig::new();
    let served = rig.serve();
    protect(&served);
    served.commit(Epoch(1));
    served.discard();
    served.settle(LIMIT).unwrap();
    drop(served);
    assert!(rig.note().found().is_some());

    let served = rig.serve();
    protect(&served);
    served.commit(Epoch(1));
    served.discard();
    served.is_over();
    drop(served);
    assert!(rig.note().found().is_none());

    // Whoever serves it stands down again before that, as a keeper does when it ends: nothing is left that anybody could tell of.
    let served = rig.serve();
    protect(&served);
    served.commit(Epoch(1));
    served.discard();
    served.is_over();
    served.discard();
    drop(served);
    assert!(rig.note().found().is_none());

    // That it had ended says nothing of a later time.
    let served = rig.serve();
    served.is_over();
    protect(&served);
    served.commit(Epoch(1));
    served.discard();
    drop(served);
    assert!(rig.note().found().is_some());
}

/// A backup that takes over holds its volumes at once, for those that are its backups then.
#[test]
fn a_volume_that_is_held_unasked_says_since_when_all_the_same() {
    let rig = Rig::new();
    let served = rig.serve();
    served.hold();
    served.wait_behind_noted(LIMIT).unwrap();
    drop(served);
    assert_eq!(rig.serve().found_behind().as_deref(), Some("while it was protected"));
}

/// It cannot be written: whoever waits is told, and it is tried until it can.
#[test]
fn a_note_that_cannot_be_written_is_tried_again() {
    let rig = Rig::new();
    let (image, log) = rig.pool.open_logged(&rig.name).unwrap();
    let served = ServedVolume::new(image, log, Acknowledge::Memory).unwrap();
    let folder = rig.dir.path().join("later");
    let note = Note::at(folder.join("behind"));
    served.keep_behind(note.clone());
    served.falls_behind("in session 7");
    served.wait_behind_noted(LIMIT).unwrap_err();
    served.behind_noted().unwrap_err();
    std::fs::create_dir(&folder).unwrap();
    until(|| matches!(served.behind_noted(), Ok(true)));
    assert_eq!(note.found().as_deref(), Some("in session 7"));
}
