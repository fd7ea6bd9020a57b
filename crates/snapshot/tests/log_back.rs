//! What a damaged log can be gone back to: always a state that there was.

mod disk;
mod guest;

use std::sync::Arc;

use disk::{Disk, Fate};
use guest::{Deed, Guest, Loading, act, at, hello};
use ninefold_model::Term;
use ninefold_replica::protocol::{LogRole, LogStanding};
use ninefold_snapshot::log::{Back, Found, Log, LogError, New, Options};
use ninefold_snapshot::storage::Storage;
use proptest::prelude::*;

const OPTIONS: Options = Options { segment: 12 << 10, limit: 200 << 10 };
const COMMITS: u64 = 12;

fn standing() -> LogStanding {
    LogStanding::new(LogRole::Backup { session: Term(5), primary: "host-b".parse().unwrap() })
}

fn commit(log: &mut Log, guest: &mut Guest, n: u64) {
    let touches = vec![(0, n % 24, Some((false, n + 1)))];
    let (runs, bytes, _) = act(guest, &Deed { touches, state: n.to_le_bytes().to_vec(), ..Deed::default() });
    let mut commit = log.begin(at(n)).unwrap();
    commit.pages(&runs, &bytes).unwrap();
    commit.device_state(&guest.state).unwrap();
    commit.finish().unwrap();
}

/// A log, of which `folds` segments were folded, and perhaps a part of the next; and the guest as of each commit, from 1 on.
fn make(disk: &Disk, options: Options, folds: usize, cut_fold_at: Option<u64>) -> Vec<Guest> {
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    let mut guest = Guest::new();
    let mut new = New::create(Arc::clone(&storage), hello(), &standing(), options).unwrap();
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
    let mut all = vec![guest.clone()];
    for n in 2..=COMMITS {
        commit(&mut log, &mut guest, n);
        all.push(guest.clone());
    }
    for _ in 0..folds {
        folder.fold().unwrap();
    }
    if let Some(step) = cut_fold_at {
        disk.fail_at(disk.steps() + step);
        let _ = folder.fold();
    }
    all
}

/// The commit that is gone back to, once it has been found to be what it was.
fn gone_back(disk: &Disk, all: &[Guest]) -> Result<Back, LogError> {
    let back = Back::look(Arc::new(disk.clone()), &|_| Ok(()))?;
    back.verify()?;
    let mut memory = Loading::new();
    let held = back.load(&Loading::fresh, &mut memory, &mut |_, _| Ok(()))?;
    let was = &all[back.last().number as usize - 1];
    assert_eq!(held.committed.number, back.last().number);
    assert!(held.device_state == was.state && memory.0 == was.memory, "commit {} is not as it was", back.last().number);
    Ok(back)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Whatever byte of whatever file is spoilt, or whichever is gone, also after a fold that was cut off at any step: what is gone back to is as it
    /// was, or there is nothing to go back to; and the files stay as they are.
    #[test]
    fn what_is_gone_back_to_is_a_state_that_there_was(
        file in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
        xor in 0..=255u8,
        folds in 0..3usize,
        cut_fold_at in prop::option::of(0u64..12),
    ) {
        let disk = Disk::new();
        let all = make(&disk, OPTIONS, folds, cut_fold_at);
        let disk = disk.power_on(Fate::Kept);
        let files: Vec<_> = disk.contents().into_iter().collect();
        let (name, bytes) = &files[file.index(files.len())];
        match xor {
            0 => (disk.clone() as Disk).remove(name).unwrap(),
            _ if bytes.is_empty() => {}
            _ => disk.spoil(name, place.index(bytes.len()), xor),
        }
        let spoilt = disk.contents();
        match gone_back(&disk, &all) {
            Ok(back) => {
                let (last, known) = (back.last(), back.known());
                prop_assert!(last.number == COMMITS || back.damage().is_some() || name.starts_with("segment"), "{}", name);
                prop_assert!(known.commit >= last.number && known.commit <= COMMITS);
                prop_assert!(last.time_ms > 0 && known.time_ms >= last.time_ms);
            }
            Err(LogError::None) => prop_assert!(name == "head.json" && xor == 0),
            Err(LogError::Damaged { .. } | LogError::Version(..) | LogError::Storage { .. }) => {}
            Err(other) => prop_assert!(false, "{:?}", other),
        }
        prop_assert_eq!(disk.contents(), spoilt);
    }
}

/// Damage in the middle of a segment that nothing has been folded from: all before it is there, and it is said how much is not.
#[test]
fn what_comes_before_the_damage_is_there() {
    let disk = Disk::new();
    // One segment.
    let all = make(&disk, Options::default(), 0, None);
    let middle = disk.contents()["segment-1"].len() / 2;
    disk.spoil("segment-1", middle, 1);
    let error = Found::look(Arc::new(disk.clone())).unwrap_err();
    assert!(matches!(error, LogError::Damaged { .. }), "{error:?}");
    let back = gone_back(&disk, &all).unwrap();
    assert!((2..COMMITS).contains(&back.last().number), "{:?}", back.last());
    assert_eq!((back.known().commit, back.last().at), (COMMITS, at(back.last().number)));
    assert!(back.damage().unwrap().contains("segment-1"), "{:?}", back.damage());
}

/// A segment in the middle is gone: what comes before it is whole.
#[test]
fn what_comes_before_a_file_that_is_gone_is_there() {
    let disk = Disk::new();
    let all = make(&disk, OPTIONS, 1, None);
    let mut numbers: Vec<u64> =
        disk.contents().keys().filter_map(|n| n.strip_prefix("segment-")?.parse().ok()).collect();
    numbers.sort_unstable();
    disk.remove(&format!("segment-{}", numbers[1])).unwrap();
    let back = gone_back(&disk, &all).unwrap();
    assert!(back.damage().unwrap().contains("it is missing"), "{:?}", back.damage());
    assert!(back.last().number < COMMITS && back.known().commit == COMMITS);
    // The first that is needed: nothing is whole.
    disk.remove(&format!("segment-{}", numbers[0])).unwrap();
    assert!(matches!(gone_back(&disk, &all), Err(LogError::Damaged { .. })));
}

/// The base may have pages of what comes after the damage, from a fold that was cut off: it is not gone back to.
#[test]
fn what_may_be_half_folded_is_not_gone_back_to() {
    let disk = Disk::new();
    let all = make(&disk, OPTIONS, 0, None);
    disk.spoil("segment-1", 9000, 1);
    match gone_back(&disk, &all) {
        Err(LogError::Damaged { what, .. }) => assert!(what.contains("may be in the base"), "{what}"),
        other => panic!("{:?}", other.map(|b| b.last())),
    }
}

/// A whole log ends where it ends.
#[test]
fn a_log_that_is_whole_is_gone_on_from_at_its_end() {
    let disk = Disk::new();
    let all = make(&disk, OPTIONS, 2, None);
    let back = gone_back(&disk, &all).unwrap();
    assert_eq!((back.last().number, back.damage()), (COMMITS, None));
    let other = Back::look(Arc::new(disk), &|_| Err("another VM".into())).unwrap_err();
    assert!(matches!(other, LogError::Refused(_)));
}
