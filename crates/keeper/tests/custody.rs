//! A standby's memory is held by a process of its own, and taken over from it by the next keeper.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ninefold_keeper::backup::custody::{Custody, Kept, Note};
use ninefold_machine::Ram;
use ninefold_model::{Epoch, Term};
use ninefold_replica::stream::Reign;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ninefold-memory");
const BYTES: u64 = 8 << 20;
const NOTE: Note = Note { reign: Reign { term: Term(5), generation: 1 }, epoch: Epoch(9) };

fn file(ram: &Ram) -> File {
    ram.as_fd().try_clone_to_owned().unwrap().into()
}

fn begin(dir: &Path) -> (Ram, Custody) {
    let ram = Ram::create(BYTES).unwrap();
    let custody = Custody::begin(Path::new(PROGRAM), &ram, dir).unwrap();
    until_it_runs(dir);
    (ram, custody)
}

/// Whoever starts a program may go on (vfork(2)) before the kernel has exchanged it for the one that started it. No keeper comes so
/// soon after the one before it.
fn until_it_runs(dir: &Path) {
    let text = std::fs::read_to_string(dir.join("standby-memory")).unwrap();
    let command = Path::new("/proc").join(text.split_once(' ').unwrap().0).join("cmdline");
    let begun = Instant::now();
    while !std::fs::read(&command).is_ok_and(|words| words.starts_with(PROGRAM.as_bytes())) {
        assert!(begun.elapsed() < Duration::from_secs(10), "{PROGRAM} does not run");
        thread::yield_now();
    }
}

#[test]
fn the_next_keeper_finds_what_the_memory_is_noted_to_hold() {
    let dir = tempfile::tempdir().unwrap();
    let (ram, custody) = begin(dir.path());
    custody.holds(Note { epoch: Epoch(8), ..NOTE }).unwrap();
    file(&ram).write_all_at(b"what the guest wrote", 12345).unwrap();
    custody.holds(NOTE).unwrap();
    drop(ram);
    let kept = Kept::find(dir.path()).unwrap();
    assert_eq!(kept.note, NOTE);
    let ram = kept.memory(BYTES).unwrap();
    let mut found = [0; 20];
    file(&ram).read_exact_at(&mut found, 12345).unwrap();
    assert_eq!(&found, b"what the guest wrote");
    assert!(Kept::find(dir.path()).is_none(), "it is taken once");
}

#[test]
fn memory_that_is_being_filled_or_has_another_size_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let (_ram, _custody) = begin(dir.path());
    assert!(Kept::find(dir.path()).is_none(), "nothing is claimed of it");
    let (_ram, custody) = begin(dir.path());
    custody.holds(NOTE).unwrap();
    assert!(Kept::find(dir.path()).unwrap().memory(2 * BYTES).is_err());
    let not_memory = File::create(dir.path().join("file")).unwrap();
    not_memory.set_len(BYTES).unwrap();
    assert!(Ram::adopt(not_memory.into(), BYTES).is_err());
}

#[test]
fn another_process_of_the_same_number_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    let (_ram, custody) = begin(dir.path());
    custody.holds(NOTE).unwrap();
    let place = dir.path().join("standby-memory");
    let text = std::fs::read_to_string(&place).unwrap();
    let (_, born) = text.split_once(' ').unwrap();
    // One that is another program, one that began at another time, and what is no number.
    let own = text.split_once(' ').unwrap().0;
    for claim in
        [format!("{} {born}", other.id()), format!("{own} 1\n"), "x y\n".into(), "-1 1\n".into(), String::new()]
    {
        std::fs::write(&place, claim).unwrap();
        assert!(Kept::find(dir.path()).is_none());
    }
    assert!(other.try_wait().unwrap().is_none(), "it lives");
    // One that holds memory for another VM.
    let theirs = tempfile::tempdir().unwrap();
    std::fs::write(theirs.path().join("standby-memory"), &text).unwrap();
    assert!(Kept::find(theirs.path()).is_none());
    std::fs::write(&place, &text).unwrap();
    assert_eq!(Kept::find(dir.path()).unwrap().note, NOTE, "that one goes on holding it");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn who_needs_the_memory_no_more_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (_ram, custody) = begin(dir.path());
    custody.holds(NOTE).unwrap();
    let place = dir.path().join("standby-memory");
    let pid = std::fs::read_to_string(&place).unwrap().split_once(' ').unwrap().0.to_owned();
    assert!(Path::new("/proc").join(&pid).exists());
    // A later one has taken its place: that is not this one's to remove.
    let (_later, later) = begin(dir.path());
    drop(custody);
    assert!(place.exists() && !Path::new("/proc").join(&pid).exists());
    drop(later);
    assert!(!place.exists());
    assert!(Kept::find(dir.path()).is_none());
}

#[test]
fn memory_that_nobody_comes_for_is_given_back() {
    let (ended, alive) = io::pipe().unwrap();
    let mut holder =
        Command::new(PROGRAM).arg("0").stdin(Stdio::null()).stdout(Stdio::null()).stderr(ended).spawn().unwrap();
    assert!(holder.try_wait().unwrap().is_none());
    drop(alive);
    let deadline = Instant::now() + Duration::from_secs(30);
    while holder.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it holds on though its keeper is gone");
        thread::sleep(Duration::from_millis(5));
    }
}
