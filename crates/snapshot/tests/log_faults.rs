//! A log on a disk that is damaged, full or broken, and in a real directory.

mod disk;
mod guest;

use std::sync::Arc;

use disk::{Disk, Fate};
use guest::{Deed, Guest, Loading, act, at, hello};
use ninefold_model::Term;
use ninefold_replica::protocol::{LogRole, LogStanding};
use ninefold_replica::stream::{Hello, PageRun};
use ninefold_snapshot::log::{Folder, Found, Held, Log, LogError, New, Options};
use ninefold_snapshot::storage::{Directory, Storage};
use proptest::prelude::*;

const OPTIONS: Options = Options { segment: 12 << 10, limit: 200 << 10 };

fn standing() -> LogStanding {
    LogStanding::new(LogRole::Backup { session: Term(5), primary: "host-b".parse().unwrap() })
}

/// One page of noise, a state.
fn step(n: u64) -> Deed {
    Deed { touches: vec![(0, n % 24, Some((false, n + 1)))], state: n.to_le_bytes().to_vec(), ..Deed::default() }
}

fn commit(log: &mut Log, guest: &mut Guest, n: u64) -> Result<u64, LogError> {
    let (runs, bytes, _) = act(guest, &step(n));
    let mut commit = log.begin(at(n))?;
    commit.pages(&runs, &bytes)?;
    commit.device_state(&guest.state)?;
    commit.finish().map(|done| done.number)
}

/// A log of `commits` commits, of which `folds` segments were folded.
fn make(storage: &Arc<dyn Storage>, commits: u64, folds: usize) -> (Log, Folder, Guest) {
    let mut guest = Guest::new();
    let mut new = New::create(Arc::clone(storage), hello(), &standing(), OPTIONS).unwrap();
    act(&mut guest, &Deed { touches: (0..20).map(|n| (0, n, Some((n % 2 == 0, n)))).collect(), ..Deed::default() });
    let (runs, bytes) = guest.all();
    new.pages(&runs, &bytes).unwrap();
    let mut first = new.first(at(1)).unwrap();
    act(&mut guest, &Deed { state: vec![1], ..Deed::default() });
    first.device_state(&guest.state).unwrap();
    first.finish().unwrap();
    let mut log = new.publish().unwrap();
    log.shared().images_hold(u64::MAX);
    let mut folder = log.folder().unwrap();
    for n in 2..=commits {
        assert_eq!(commit(&mut log, &mut guest, n).unwrap(), n);
    }
    (0..folds).for_each(|_| assert!(folder.fold().unwrap()));
    (log, folder, guest)
}

fn read(storage: &Arc<dyn Storage>) -> Result<(Held, Vec<Vec<u8>>), LogError> {
    let recovered = Found::look(Arc::clone(storage))?.recover()?;
    let mut memory = Loading::new();
    let held = recovered.load(&Loading::fresh, &mut memory, &mut |_, _| Ok(()))?;
    Ok((held, memory.0))
}

fn check(storage: &Arc<dyn Storage>, guest: &Guest, number: u64) {
    let (held, memory) = read(storage).unwrap();
    assert_eq!(held.committed.number, number);
    assert!(held.device_state == guest.state && memory == guest.memory);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever byte of whatever file is spoilt: it is an error that leaves the files alone, or it does not matter.
    #[test]
    fn damage_is_an_error_or_does_not_matter(
        file in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
        near_the_begin in any::<bool>(),
        xor in 1..=255u8,
        folds in 0..3usize,
    ) {
        let disk = Disk::new();
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        let (log, folder, guest) = make(&storage, 12, folds);
        drop((log, folder));
        let files: Vec<_> = disk.contents().into_iter().collect();
        let (name, bytes) = &files[file.index(files.len())];
        let place = place.index(if near_the_begin { bytes.len().min(5000) } else { bytes.len() });
        disk.spoil(name, place, xor);
        let spoilt = disk.contents();
        match read(&storage) {
            Ok((held, memory)) => {
                prop_assert_eq!(held.committed.number, 12, "{} at byte {}", name, place);
                prop_assert!(held.device_state == guest.state && memory == guest.memory, "{} at byte {}", name, place);
            }
            Err(LogError::Damaged { .. } | LogError::Version(..)) => prop_assert_eq!(disk.contents(), spoilt),
            Err(other) => prop_assert!(false, "{:?}", other),
        }
    }
}

/// Of the bytes that a state depends on most are noticed: the test above could be passed by a reader that ignores all.
#[test]
fn each_file_is_checked() {
    let disk = Disk::new();
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    drop(make(&storage, 12, 2));
    let contents = disk.contents();
    let number = |name: &String| name.strip_prefix("segment-")?.parse::<u64>().ok();
    let segment = contents.keys().filter(|n| number(n).is_some()).max_by_key(|n| number(n)).unwrap().clone();
    // A page of the base that no segment holds: the first 20 were written, the commits touch those from 2 on.
    for (name, at) in [("head.json", 20), ("memory", 4096), ("sums", 4), (&*segment, 60), (&*segment, 5000)] {
        let disk = disk.power_on(Fate::Kept);
        disk.spoil(name, at, 1);
        let error = Found::look(Arc::new(disk.clone())).map(drop);
        let error = error.and_then(|()| read(&(Arc::new(disk.clone()) as Arc<dyn Storage>)).map(drop)).unwrap_err();
        let blamed = if name == "sums" { "memory" } else { name };
        assert!(matches!(&error, LogError::Damaged { file, .. } if file == blamed), "{name} at {at}: {error}");
    }
    // The last commit: that it was durable is on the disk.
    let last = contents[&segment].len() - 4096;
    disk.spoil(&segment, last, 1);
    let error = read(&storage).unwrap_err().to_string();
    assert!(error.contains("damaged") && error.contains("commit 12"), "{error}");
    // A segment that is missing.
    storage.remove(&segment).unwrap();
    assert!(matches!(read(&storage), Err(LogError::Damaged { .. })));
    storage.remove("head.json").unwrap();
    assert!(matches!(read(&storage), Err(LogError::None)));
}

/// A full disk: the commit fails and says why, nothing is lost, and it goes on when there is room.
#[test]
fn a_full_disk_loses_nothing() {
    for room in (0..20_000).step_by(997) {
        let disk = Disk::new();
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        let (mut log, mut folder, mut guest) = make(&storage, 3, 0);
        disk.room(Some(room));
        let (mut n, mut good) = (4, guest.clone());
        let error = loop {
            match commit(&mut log, &mut guest, n) {
                Ok(_) => good = guest.clone(),
                Err(error) => break error,
            }
            n += 1;
        };
        assert!(error.is_full(), "{error:?}");
        // A power failure now, with all or nothing of the attempt on the disk.
        for fate in [Fate::Lost, Fate::Kept, Fate::Any(room as u64)] {
            let storage: Arc<dyn Storage> = Arc::new(disk.power_on(fate));
            check(&storage, &good, n - 1);
        }
        // Folding fails too, and hurts nothing.
        if let Err(error) = folder.fold() {
            assert!(error.is_full(), "{error:?}");
        }
        disk.room(None);
        // The guest did in the failed epoch what it now does again.
        assert_eq!(commit(&mut log, &mut guest, n).unwrap(), n);
        while folder.fold().unwrap() {}
        check(&(Arc::new(disk.power_on(Fate::Lost)) as Arc<dyn Storage>), &guest, n);
    }
}

/// After a sync that failed nobody knows what is on the disk: the log takes nothing more.
#[test]
fn a_failed_sync_ends_the_log() {
    let mut failed = 0;
    for step in 1..10 {
        let disk = Disk::new();
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        let (mut log, _, mut guest) = make(&storage, 3, 0);
        let before = guest.clone();
        disk.fail_sync_at(step);
        match commit(&mut log, &mut guest, 4) {
            Ok(_) => continue,
            Err(error) => assert!(matches!(error, LogError::Spoilt(_)), "{error:?}"),
        }
        let again = commit(&mut log, &mut guest, 5).unwrap_err();
        assert!(matches!(&again, LogError::Spoilt(why) if why.contains("the medium failed")), "{again:?}");
        // The directory's sync comes after the file's: then the commit may be there, and was not acknowledged.
        let storage: Arc<dyn Storage> = Arc::new(disk.power_on(Fate::Lost));
        check(&storage, &before, 3);
        failed += 1;
    }
    assert!(failed > 0);
}

/// Any step of any kind fails once: what was acknowledged is there after a loss of power, and the log goes on or says that it cannot.
#[test]
fn every_step_may_fail_once() {
    let (mut steps, mut ended) = (0, 0);
    for step in 1.. {
        let disk = Disk::new();
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        let (mut log, mut folder, mut guest) = make(&storage, 3, 0);
        disk.fail_at(step);
        let (mut good, mut last) = (guest.clone(), 3);
        let mut spoilt = false;
        for n in 4..=12 {
            let mut again = || commit(&mut log, &mut guest, n);
            match again().or_else(|_| again()) {
                Ok(_) => (good, last) = (guest.clone(), n),
                Err(error) => {
                    assert!(matches!(error, LogError::Spoilt(_)), "step {step}: {error:?}");
                    spoilt = true;
                    break;
                }
            }
            let mut fold = || folder.fold();
            while fold().or_else(|_| fold()).unwrap() {}
        }
        for fate in [Fate::Lost, Fate::Kept, Fate::Any(step), Fate::Any(step << 8)] {
            let (held, memory) = read(&(Arc::new(disk.power_on(fate)) as Arc<dyn Storage>)).unwrap();
            // One that was not acknowledged may be there.
            let truth = if spoilt && held.committed.number == last + 1 { &guest } else { &good };
            assert!(held.committed.number == last || std::ptr::eq(truth, &guest), "step {step}, {fate:?}");
            assert!(held.device_state == truth.state && memory == truth.memory, "step {step}, {fate:?}");
        }
        if disk.steps() < step {
            break;
        }
        (steps, ended) = (steps + 1, ended + u64::from(spoilt));
    }
    assert!(steps > 60 && ended > 5 && ended < steps, "{steps} {ended}");
}

/// What nobody folds makes the log refuse, not grow; what is folded keeps it short.
#[test]
fn its_length_is_bounded() {
    let disk = Disk::new();
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    let (mut log, mut folder, mut guest) = make(&storage, 2, 0);
    let mut n = 3;
    let error = loop {
        match commit(&mut log, &mut guest, n) {
            Ok(_) => n += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LogError::TooLong { .. }), "{error:?}");
    assert!(log.length() < OPTIONS.limit + 3 * OPTIONS.segment, "{}", log.length());
    check(&storage, &guest_after(2, n - 1), n - 1);
    for n in n..300 {
        while folder.fold().unwrap() {}
        act(&mut guest, &step(n - 1));
        commit(&mut log, &mut guest, n).unwrap();
        assert!(log.length() < 3 * OPTIONS.segment, "{}", log.length());
    }
    check(&storage, &guest, 299);
    let total: usize = disk.contents().values().map(Vec::len).sum();
    assert!(total < 27 * 4100 + 4 * OPTIONS.segment as usize, "{total} bytes");
}

/// The guest of [`make`] after commit `last`.
fn guest_after(made: u64, last: u64) -> Guest {
    let storage: Arc<dyn Storage> = Arc::new(Disk::new());
    let (.., mut guest) = make(&storage, made, 0);
    (made + 1..=last).for_each(|n| drop(act(&mut guest, &step(n))));
    guest
}

/// A commit that is longer than everything the options allow is committed, and folded later.
#[test]
fn one_long_commit_is_not_stuck() {
    let storage: Arc<dyn Storage> = Arc::new(Disk::new());
    let (mut log, mut folder, mut guest) = make(&storage, 2, 0);
    let touches = (0..24).map(|n| (0, n, Some((false, n + 99)))).collect();
    let (runs, bytes, _) = act(&mut guest, &Deed { touches, state: vec![3], ..Deed::default() });
    let mut long = log.begin(at(3)).unwrap();
    long.pages(&runs, &bytes).unwrap();
    long.device_state(&vec![3; 200 << 10]).unwrap();
    long.finish().unwrap();
    guest.state = vec![3; 200 << 10];
    check(&storage, &guest, 3);
    for n in 4..10 {
        commit(&mut log, &mut guest, n).unwrap();
        while folder.fold().unwrap() {}
    }
    assert!(log.length() < 3 * OPTIONS.segment);
    check(&storage, &guest, 9);
}

/// What cannot be a part of this VM is refused, and the commit before stands.
#[test]
fn what_does_not_fit_is_refused() {
    let storage: Arc<dyn Storage> = Arc::new(Disk::new());
    let (mut log, _, guest) = make(&storage, 3, 0);
    let mut bad = log.begin(at(4)).unwrap();
    assert!(bad.pages(&[PageRun { block: 0, first: 24, count: 1 }], &[0; 4096]).is_err());
    drop(bad);
    let mut bad = log.begin(at(4)).unwrap();
    assert!(bad.zeros([PageRun { block: 2, first: 0, count: 1 }]).is_err());
    drop(bad);
    drop(log);
    check(&storage, &guest, 3);
    let recovered = Found::look(Arc::clone(&storage)).unwrap().recover().unwrap();
    let mut other = serde_json::to_value(hello()).unwrap();
    other["layout"][1]["total"] = 8192.into();
    other["layout"][1]["used"] = 8192.into();
    let other: Hello = serde_json::from_value(other).unwrap();
    assert!(matches!(recovered.resume(other, OPTIONS), Err(LogError::Layout(_))));
    check(&storage, &guest, 3);
}

/// The same on a real file system, with the folder in its thread.
#[test]
fn in_a_directory() {
    let place = tempfile::tempdir().unwrap();
    let open = || Directory::open(&place.path().join("log")).map(|d| Arc::new(d) as Arc<dyn Storage>);
    let storage = open().unwrap();
    let busy = open().unwrap_err();
    assert_eq!(busy.kind(), std::io::ErrorKind::ResourceBusy);
    let (mut log, folder, mut guest) = make(&storage, 3, 0);
    let folding = std::thread::spawn(move || folder.run(std::time::Duration::from_millis(10)));
    for n in 4..200 {
        assert!(log.shared().wait_shorter(OPTIONS.limit, std::time::Duration::from_secs(60)));
        commit(&mut log, &mut guest, n).unwrap();
    }
    log.shared().end();
    folding.join().unwrap();
    assert_eq!(log.shared().failure(), None);
    drop(log);
    check(&storage, &guest, 199);
    let recovered = Found::look(Arc::clone(&storage)).unwrap().recover().unwrap();
    let mut log = recovered.resume(hello(), OPTIONS).unwrap();
    // What the folder had not got to is still to be folded.
    let mut folder = log.folder().unwrap();
    while folder.fold().unwrap() {}
    commit(&mut log, &mut guest, 200).unwrap();
    check(&storage, &guest, 200);
    drop((log, folder, storage));
    // A link in the place of a file is not followed.
    let sums = place.path().join("log/sums");
    std::fs::rename(&sums, place.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(place.path().join("elsewhere"), &sums).unwrap();
    assert!(matches!(read(&open().unwrap()), Err(LogError::Storage { .. })));
    Found::remove(&*open().unwrap()).unwrap();
    assert_eq!(std::fs::read_dir(place.path().join("log")).unwrap().count(), 0);
    assert!(place.path().join("elsewhere").exists());
}
