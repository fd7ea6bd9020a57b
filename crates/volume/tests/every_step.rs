//! Every step of notes, of the write log and of the pool, by the list of fault points: a process dies there, or the step fails.
//! What is found afterwards is what was before or what was to be, and the next attempt gets to the end.

use std::path::Path;
use std::time::Duration;

use dying::SIGABRT;
use ninefold_model::Epoch;
use ninefold_model::spec::Acknowledge;
use ninefold_testkit::dying;
use ninefold_volume::pool::Kind;
use ninefold_volume::{Batch, Format, Note, Op, Pool, ServedVolume, Tools, VolumeError, VolumeName, WriteLog};

const SIZE: u64 = 1 << 20;
/// Far longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);
/// What the points of this crate's own steps begin with. The others are the keeper's.
const OURS: [&str; 6] = ["log.", "apply.", "image.", "recover.", "note.", "pool."];

fn name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

fn pool(dir: &Path) -> Result<Pool, VolumeError> {
    Pool::open(&dir.join("pool"), Tools::default())
}

fn note(dir: &Path) -> Note {
    Note::at(dir.join("note"))
}

fn batch(byte: u8) -> Batch {
    [Op::Write { at: 4096, data: vec![byte; 512].into() }, Op::Zero { at: 0, length: 512, unmap: true }]
        .into_iter()
        .collect()
}

/// Does something again if it fails. Each point fails once.
fn twice<T, E: std::fmt::Debug>(mut what: impl FnMut() -> Result<T, E>) -> T {
    what().or_else(|_| what()).unwrap()
}

fn has(pool: &Pool, volume: &str) -> bool {
    match pool.info(Kind::Volume, &name(volume)) {
        Ok(_) => true,
        Err(VolumeError::NotFound { .. }) => false,
        Err(error) => panic!("{error:?}"),
    }
}

/// All that this crate does on the disk, from the beginning or from where a former attempt was.
fn life(dir: &Path) {
    twice(|| note(dir).write("something is under way"));
    let pool = twice(|| pool(dir));
    for volume in ["kept", "gone"] {
        twice(|| if has(&pool, volume) { Ok(()) } else { pool.create(&name(volume), SIZE, Format::Raw) });
    }
    twice(|| match pool.info(Kind::Volume, &name("kept"))?.record.size {
        SIZE => pool.grow(&name("kept"), 2 * SIZE),
        _ => Ok(()),
    });
    drop(twice(|| pool.open_logged(&name("kept"))));
    // Two processes: one leaves something in the log, the next finds it.
    let log = dir.join("pool/volumes/kept/log");
    let mut left = twice(|| WriteLog::open(&log));
    twice(|| left.append([&batch(1)], &mut || ()));
    drop(left);
    let (image, log) = twice(|| pool.open_logged(&name("kept")));
    let served = ServedVolume::new(image, log, Acknowledge::Disk).unwrap();
    for n in 1..=2 {
        served.receive(Epoch(n), batch(1 + n as u8));
        served.wait_durable(Epoch(n), LIMIT).unwrap();
        served.settle(LIMIT).unwrap();
    }
    drop(served);
    twice(|| if has(&pool, "gone") { pool.remove(Kind::Volume, &name("gone")) } else { Ok(()) });
    twice(|| note(dir).remove());
}

/// Not a test of its own: the process that dies.
#[test]
#[ignore = "run by the other test of this file"]
fn child() {
    life(std::env::var("STEPS_DIR").unwrap().as_ref());
}

fn run(dir: &Path, faults: &str) -> Option<i32> {
    dying::run(&[("STEPS_DIR", dir)], faults)
}

/// What is there is whole.
fn check(dir: &Path, what: &str) {
    let pool = pool(dir).unwrap_or_else(|e| panic!("{what}: {e:?}"));
    for entry in pool.list(Kind::Volume).unwrap() {
        let info = entry.info.unwrap_or_else(|e| panic!("{what}: {e:?}"));
        let mut found = vec![0; info.record.size as usize];
        assert!([SIZE, 2 * SIZE].contains(&info.record.size), "{what}");
        pool.open_volume(&entry.name).unwrap_or_else(|e| panic!("{what}: {e:?}")).read(0, &mut found).unwrap();
        let byte = found[4096];
        assert!(byte <= 3 && found[4096..4096 + 512].iter().all(|b| *b == byte), "{what}: an epoch in part");
        assert!(found[..4096].iter().chain(&found[4096 + 512..]).all(|b| *b == 0), "{what}");
    }
    for entry in std::fs::read_dir(dir.join("pool/volumes")).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(!name.to_string_lossy().starts_with('.'), "{what}: {name:?} is left");
    }
}

fn check_end(dir: &Path, what: &str) {
    check(dir, what);
    assert_eq!(note(dir).found(), None, "{what}");
    let pool = pool(dir).unwrap();
    assert!(has(&pool, "kept") && !has(&pool, "gone"), "{what}");
    let mut found = [0];
    pool.open_volume(&name("kept")).unwrap().read(4096, &mut found).unwrap();
    assert_eq!(found, [3], "{what}");
}

#[test]
fn every_step_may_be_the_last_and_may_fail() {
    let ours: Vec<&str> =
        ninefold_fault::POINTS.into_iter().filter(|p| OURS.iter().any(|begin| p.starts_with(begin))).collect();
    assert!(ours.len() > 30);
    for point in ours {
        for passing in [1, 2] {
            let dir = tempfile::tempdir().unwrap();
            let what = format!("{point}@{passing}=abort");
            // Not every step is done twice.
            match run(dir.path(), &what) {
                Some(signal) => assert_eq!(signal, SIGABRT, "{what}"),
                None => assert_eq!(passing, 2, "{what}: it has not got there"),
            }
            if dir.path().join("pool/volumes").exists() {
                check(dir.path(), &what);
            }
            assert_eq!(run(dir.path(), ""), None, "{what}");
            check_end(dir.path(), &what);
            let dir = tempfile::tempdir().unwrap();
            let what = format!("{point}@{passing}=fail");
            assert_eq!(run(dir.path(), &what), None, "{what}");
            check_end(dir.path(), &what);
            // A sync of the image that failed outside of a keeper is told to the next one.
            let lost = pool(dir.path()).unwrap().lost(&name("kept")).is_true();
            assert_eq!(lost, what == "pool.resized@1=fail", "{what}");
        }
    }
}
