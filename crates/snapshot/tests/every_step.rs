//! A process that dies at each step of a log's and of a snapshot store's life, by fault points, and steps that fail: in a real
//! directory. The disk that loses its power, with all that it may keep and lose, is in `log_power.rs`.

mod guest;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use dying::SIGABRT;
use guest::{Deed, Guest, Loading, VOLUME, act, at, hello, platform};
use ninefold_model::Term;
use ninefold_replica::protocol::{LogRole, LogStanding};
use ninefold_snapshot::file::Head;
use ninefold_snapshot::log::{Found, LogError, New, Options};
use ninefold_snapshot::storage::{Directory, Storage};
use ninefold_snapshot::store::{Store, StoreError};
use ninefold_testkit::dying;

/// Points that this crate passes.
const OURS: [&str; 2] = ["storage.", "snapshot."];
const OPTIONS: Options = Options { segment: 12 << 10, limit: 200 << 10 };
/// The last commit of a life.
const LAST: u64 = 8;

fn standing() -> LogStanding {
    LogStanding::new(LogRole::Backup { session: Term(5), primary: "host-b".parse().unwrap() })
}

/// What the guest does before commit `n`: pages of noise, now and then one that becomes zero.
fn deed(n: u64) -> Deed {
    let touches =
        (0..3).map(|i| (0, (n * 3 + i) % 24, (i != 1 || n.is_multiple_of(2)).then_some((false, n + i + 1)))).collect();
    Deed { touches, state: n.to_le_bytes().to_vec(), ..Deed::default() }
}

/// The guest as it was at commit `n`.
fn guest(n: u64) -> Guest {
    let mut guest = Guest::new();
    (1..=n).for_each(|n| drop(act(&mut guest, &deed(n))));
    guest
}

fn storage(dir: &Path) -> Result<Arc<dyn Storage>, LogError> {
    let failed = |source| LogError::Target { what: "the directory".into(), source };
    Directory::wait(&dir.join("log")).map(|d| Arc::new(d) as Arc<dyn Storage>).map_err(failed)
}

/// The commit that was acknowledged last: from outside.
fn acknowledged(dir: &Path) -> u64 {
    std::fs::read_to_string(dir.join("acknowledged")).map_or(0, |text| text.parse().unwrap())
}

fn acknowledge(dir: &Path, n: u64) {
    std::fs::write(dir.join("acknowledged"), n.to_string()).unwrap();
}

/// A log from its beginning, or from where a former attempt was, to its last commit; then it is removed.
fn log(dir: &Path) -> Result<(), LogError> {
    if dir.join("removing").exists() {
        return Found::remove(&*storage(dir)?);
    }
    let storage = storage(dir)?;
    let mut log = match Found::look(Arc::clone(&storage)) {
        Err(LogError::None) => {
            let mut new = New::create(Arc::clone(&storage), hello(), &standing(), OPTIONS)?;
            let (runs, bytes) = Guest::new().all();
            new.pages(&runs, &bytes)?;
            new.sync()?;
            let mut guest = Guest::new();
            let (runs, bytes, _) = act(&mut guest, &deed(1));
            let mut first = new.first(at(1))?;
            first.pages(&runs, &bytes)?;
            first.device_state(&guest.state)?;
            first.finish()?;
            new.publish()?
        }
        found => {
            let recovered = found?.recover()?;
            recovered.load(&Loading::fresh, &mut Loading::new(), &mut |_, _| Ok(()))?;
            recovered.resume(hello(), OPTIONS)?
        }
    };
    acknowledge(dir, log.last());
    let mut folder = log.folder()?;
    for n in log.last() + 1..=LAST {
        let (runs, bytes, _) = act(&mut guest(n - 1), &deed(n));
        let mut commit = log.begin(at(n))?;
        commit.pages(&runs, &bytes)?;
        commit.device_state(&guest(n).state)?;
        commit.finish()?;
        acknowledge(dir, n);
        log.stand(&standing())?;
        log.shared().images_hold(n);
        while folder.fold()? {}
    }
    std::fs::write(dir.join("removing"), "").unwrap();
    drop((folder, log));
    Found::remove(&*storage)
}

/// One snapshot that stays and one that goes.
fn snapshots(dir: &Path) -> Result<(), StoreError> {
    let store = Store::open(&dir.join("snapshots"))?;
    for name in ["kept", "gone"] {
        let name = name.parse().unwrap();
        if store.get(&name).is_ok() || dir.join("gone").exists() {
            continue;
        }
        let (mut writer, staged) =
            store.create(&hello(), &Head::new(name, platform(), vec![VOLUME as u64], None), None)?.split();
        let failed = |source| StoreError::Snapshot { name: "s".parse().unwrap(), source };
        let guest = guest(3);
        let (runs, bytes) = guest.all();
        writer.begin_checkpoint(Term(5), &guest.state, &[]).map_err(failed)?;
        writer.pages(&runs, &bytes).map_err(failed)?;
        writer.volumes().and_then(|volumes| volumes.finish()).map_err(failed)?;
        staged.publish()?;
    }
    std::fs::write(dir.join("gone"), "").unwrap();
    match store.remove(&"gone".parse().unwrap()) {
        Err(StoreError::NotFound(_)) => Ok(()),
        other => other,
    }
}

/// Does something that one fault may let fail once.
fn twice<E: std::fmt::Debug>(mut what: impl FnMut() -> Result<(), E>) {
    what().or_else(|_| what()).unwrap();
}

/// Not a test of its own: the process that dies.
#[test]
#[ignore = "run by the other test of this file"]
fn child() {
    let dir = std::env::var("STEPS_DIR").unwrap();
    twice(|| log(dir.as_ref()));
    twice(|| snapshots(dir.as_ref()));
}

fn run(dir: &Path, faults: &str) -> Option<i32> {
    dying::run(&[("STEPS_DIR", dir)], faults)
}

/// What was acknowledged is there, as it was.
fn check(dir: &Path, what: &str) {
    let acknowledged = acknowledged(dir);
    if !dir.join("removing").exists() {
        match Found::look(storage(dir).unwrap()) {
            Err(LogError::None) => assert_eq!(acknowledged, 0, "{what}: the log is gone"),
            found => {
                let found = found.unwrap_or_else(|e| panic!("{what}: {e:?}"));
                let last = found.last().number;
                assert!((acknowledged.max(1)..=acknowledged + 1).contains(&last), "{what}: {last} of {acknowledged}");
                let mut memory = Loading::new();
                let recovered = found.recover().unwrap_or_else(|e| panic!("{what}: {e:?}"));
                let held = recovered.load(&Loading::fresh, &mut memory, &mut |_, _| Ok(())).unwrap();
                let truth = guest(last);
                assert!(held.device_state == truth.state && memory.0 == truth.memory, "{what}: commit {last}");
            }
        }
    }
    for listed in Store::open(&dir.join("snapshots")).unwrap().list().unwrap() {
        let snapshot = listed.snapshot.unwrap_or_else(|e| panic!("{what}: {e:?}"));
        snapshot.verify(&mut |_, _| ControlFlow::Continue(())).unwrap_or_else(|e| panic!("{what}: {e:?}"));
    }
    for entry in std::fs::read_dir(dir.join("snapshots")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name.ends_with(".nfsnap") || !name.contains("kept") && !name.contains("gone"),
            "{what}: {name} is left"
        );
    }
}

fn check_end(dir: &Path, what: &str) {
    check(dir, what);
    assert!(matches!(Found::look(storage(dir).unwrap()), Err(LogError::None)), "{what}: the log is still there");
    let names: Vec<_> =
        Store::open(&dir.join("snapshots")).unwrap().list().unwrap().into_iter().map(|l| l.name).collect();
    assert_eq!(names, ["kept".parse().unwrap()], "{what}");
}

#[test]
fn every_step_may_be_the_last_and_may_fail() {
    let ours: Vec<&str> =
        ninefold_fault::POINTS.into_iter().filter(|p| OURS.iter().any(|begin| p.starts_with(begin))).collect();
    assert!(ours.len() >= 15);
    for point in ours {
        for passing in [1, 2, 7, 20] {
            let dir = tempfile::tempdir().unwrap();
            let what = format!("{point}@{passing}=abort");
            // Not every step is done so often.
            let Some(signal) = run(dir.path(), &what) else {
                assert!(passing > 1, "{what}: it has not got there");
                break;
            };
            assert_eq!(signal, SIGABRT, "{what}");
            check(dir.path(), &what);
            assert_eq!(run(dir.path(), ""), None, "{what}");
            check_end(dir.path(), &what);
            let dir = tempfile::tempdir().unwrap();
            let what = format!("{point}@{passing}=fail");
            assert_eq!(run(dir.path(), &what), None, "{what}");
            check_end(dir.path(), &what);
        }
    }
}
