//! A process that dies at each step on the way of an epoch into an image: what it had said to be durable is there, the image
//! is the volume as some epoch left it, and the next process goes on from there.
//!
//! The process is this test's own program, told by the fault points where to die.

mod rig;

use std::path::Path;
use std::time::Duration;

use dying::SIGABRT;
use ninefold_model::Epoch;
use ninefold_model::spec::Acknowledge;
use ninefold_testkit::dying;
use ninefold_volume::nbd::Handler;
use ninefold_volume::{Format, Image, Op, Pool, ServedVolume, Tools, VolumeName};
use rig::Numbers;

const SIZE: u64 = 1 << 20;
const LAST: u64 = 24;
/// Every so many epochs the child waits until one is durable, and until all is in the image.
const WAIT: u64 = 3;
const SETTLE: u64 = 8;
const LIMIT: Duration = Duration::from_secs(60);

/// What an epoch does to the volume.
fn operations(epoch: u64) -> Vec<Op> {
    let mut numbers = Numbers(epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let count = 1 + numbers.below(12);
    let one = |_| {
        let most = if numbers.below(8) == 0 { 200_000 } else { 9000 };
        let length = 1 + numbers.below(most);
        let at = numbers.below(SIZE - length);
        match numbers.below(5) {
            0 => Op::Zero { at, length, unmap: at.is_multiple_of(2) },
            _ => Op::Write { at, data: vec![1 + numbers.below(255) as u8; length as usize].into() },
        }
    };
    (0..count).map(one).collect()
}

/// The volume after each number of epochs.
fn states() -> Vec<Vec<u8>> {
    let mut states = vec![vec![0; SIZE as usize]];
    for epoch in 1..=LAST {
        let mut next = states[states.len() - 1].clone();
        for op in operations(epoch) {
            let (start, end) = op.range();
            let place = &mut next[start as usize..end as usize];
            match &op {
                Op::Write { data, .. } => place.copy_from_slice(data.as_ref()),
                Op::Zero { .. } => place.fill(0),
            }
        }
        states.push(next);
    }
    states
}

fn disk() -> VolumeName {
    "disk".parse().unwrap()
}

fn pool(dir: &Path) -> Pool {
    Pool::open(&dir.join("pool"), Tools::default()).unwrap()
}

/// Not a test of its own: the process that dies.
#[test]
#[ignore = "run by the other tests of this file"]
fn child() {
    let told = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let dir = told("CRASH_DIR");
    let first: u64 = told("CRASH_FIRST").parse().unwrap();
    let acknowledge = if told("CRASH_DISK") == "1" { Acknowledge::Disk } else { Acknowledge::Memory };
    let (image, log) = pool(dir.as_ref()).open_logged(&disk()).unwrap();
    let served = ServedVolume::new(image, log, acknowledge).unwrap();
    served.hold();
    for epoch in first..=LAST {
        for op in operations(epoch) {
            match op {
                Op::Write { at, data } => {
                    Handler::write(&served, at, data.as_ref().to_vec(), at.is_multiple_of(3)).unwrap()
                }
                Op::Zero { at, length, unmap } => Handler::zero(&served, at, length, unmap, false).unwrap(),
            }
        }
        Handler::flush(&served).unwrap();
        served.seal(Epoch(epoch));
        served.commit(Epoch(epoch));
        if epoch.is_multiple_of(WAIT) {
            served.wait_durable(Epoch(epoch), LIMIT).unwrap();
            // A client is told: from here on it must not be lost.
            // Put in place whole: this process may be killed at any moment.
            let (new, place) = (Path::new(&dir).join("durable.new"), Path::new(&dir).join("durable"));
            std::fs::write(&new, epoch.to_string()).and_then(|()| std::fs::rename(&new, &place)).unwrap();
        }
        if epoch.is_multiple_of(SETTLE) {
            served.settle(LIMIT).unwrap();
        }
    }
}

/// Runs the child from epoch `first` on; the signal that ended it.
fn run(dir: &Path, first: u64, acknowledge: Acknowledge, faults: &str) -> Option<i32> {
    let first = first.to_string();
    let disk = if acknowledge == Acknowledge::Disk { "1" } else { "0" };
    let environment = [("CRASH_DIR", dir), ("CRASH_FIRST", first.as_ref()), ("CRASH_DISK", disk.as_ref())];
    dying::run(&environment, faults)
}

fn bytes(image: &dyn Image) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    image.read(0, &mut bytes).unwrap();
    bytes
}

/// Opens the volume after a crash; the epoch that its image is of.
fn reopen(dir: &Path, states: &[Vec<u8>], what: &str) -> u64 {
    let found = bytes(&*pool(dir).open_volume(&disk()).unwrap());
    // Epochs may leave the same volume; the last of those is meant.
    let epoch = states.iter().rposition(|state| *state == found);
    let epoch = epoch.unwrap_or_else(|| panic!("{what}: the image is of no epoch")) as u64;
    let durable = std::fs::read_to_string(dir.join("durable")).map_or(0, |text| text.parse().unwrap());
    assert!(epoch >= durable, "{what}: epoch {durable} was durable, the image is of {epoch}");
    epoch
}

fn crashes(format: Format) {
    let states = states();
    let steps = [
        "log.write",
        "log.sync",
        "log.synced",
        "apply.op",
        "apply.done",
        "image.flush",
        "log.clear",
        "log.cut",
        "log.cleared",
    ];
    for acknowledge in [Acknowledge::Memory, Acknowledge::Disk] {
        for step in steps {
            for passing in [1, 3] {
                let what = format!("{format} {acknowledge:?} {step}@{passing}");
                let dir = tempfile::tempdir().unwrap();
                pool(dir.path()).create(&disk(), SIZE, format).unwrap();
                let ended = run(dir.path(), 1, acknowledge, &format!("{step}@{passing}=abort"));
                assert_eq!(ended, Some(SIGABRT), "{what}: it has not got there");
                let epoch = reopen(dir.path(), &states, &what);
                // The next one goes on from there, and gets to the end.
                assert_eq!(run(dir.path(), epoch + 1, acknowledge, ""), None, "{what}");
                assert_eq!(reopen(dir.path(), &states, &what), LAST, "{what}");
            }
        }
    }
}

#[test]
fn a_process_dies_at_every_step_raw() {
    crashes(Format::Raw);
}

#[test]
fn a_process_dies_at_every_step_qcow2() {
    crashes(Format::Qcow2);
}

/// The one that is to bring the image up to date dies at that, too, again and again.
#[test]
fn the_recovery_dies_at_every_step() {
    let states = states();
    for format in [Format::Raw, Format::Qcow2] {
        let dir = tempfile::tempdir().unwrap();
        pool(dir.path()).create(&disk(), SIZE, format).unwrap();
        assert_eq!(run(dir.path(), 1, Acknowledge::Disk, "apply.op@40=abort"), Some(SIGABRT));
        for step in ["recover.write", "recover.write@3", "recover.flush", "log.clear", "log.cut"] {
            let ended = run(dir.path(), LAST + 1, Acknowledge::Disk, &format!("{step}=abort"));
            assert_eq!(ended, Some(SIGABRT), "{format} {step}: it has not got there");
        }
        let epoch = reopen(dir.path(), &states, "after all");
        assert!(epoch > 0 && epoch < LAST);
        // Emptied, and then it dies: there is nothing left to do.
        assert_eq!(run(dir.path(), epoch + 1, Acknowledge::Disk, "log.cleared=abort"), Some(SIGABRT));
        reopen(dir.path(), &states, "after the emptying");
    }
}

/// A step that fails and does not kill is done again, and nothing comes out of it but time.
#[test]
fn a_step_that_fails_is_done_again() {
    let states = states();
    for format in [Format::Raw, Format::Qcow2] {
        let dir = tempfile::tempdir().unwrap();
        pool(dir.path()).create(&disk(), SIZE, format).unwrap();
        let faults = "log.write@2=fail,log.sync@3=fail,log.synced@4=fail*2,apply.op@9=fail*2,apply.done@7=fail,\
                      image.flush@1=fail,log.clear@2=fail,log.cut@1=fail,log.cleared@1=fail,recover.write@2=fail,recover.flush@1=fail";
        assert_eq!(run(dir.path(), 1, Acknowledge::Disk, faults), None);
        assert_eq!(reopen(dir.path(), &states, "failed steps"), LAST);
    }
}
