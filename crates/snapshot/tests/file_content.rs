//! What goes into a snapshot comes out of it: alone, through parents, flattened, exported and imported.

mod guest;

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use guest::{BLOCKS, Deed, Guest, Loading, act, deed, hello, layout, platform};
use ninefold_model::{SnapshotName, Term};
use ninefold_replica::stream::page::PAGE_SIZE;
use ninefold_replica::stream::{CheckpointAssembler, Fed, Hello, PageRun, RecordReader};
use ninefold_snapshot::file::{BLOCK, FileError, Head, Parent, Snapshot, Writer, Written};
use ninefold_snapshot::store::{Store, StoreError};
use ninefold_volume::{Image, Pool, Tools};
use proptest::prelude::*;

const TERM: Term = Term(7);
/// The last block is short.
const VOLUME: usize = 3 * BLOCK + 512;

fn vm() -> Hello {
    let mut hello = hello();
    hello.spec.hardware.volumes[0].size = VOLUME as u64;
    hello
}

fn name(n: usize) -> SnapshotName {
    format!("s{n}").parse().unwrap()
}

fn head(n: usize, parent: Option<&Snapshot>) -> Head {
    let parent = parent.map(|p| Parent { name: p.head().name.clone(), root: p.root() });
    Head::new(name(n), platform(), vec![VOLUME as u64], parent)
}

/// What a snapshot is to hold.
#[derive(Clone)]
struct Truth {
    guest: Guest,
    volume: Vec<u8>,
}

impl Truth {
    fn new() -> Self {
        Self { guest: Guest::new(), volume: vec![0; VOLUME] }
    }

    /// The guest does something, to its volume too.
    fn act(&mut self, deed: &Deed) -> (Vec<PageRun>, Vec<u8>) {
        for &(at, length, byte) in &deed.writes {
            let at = at * 20;
            self.volume[at..at + length * 30].fill(byte);
        }
        let (runs, bytes, _) = act(&mut self.guest, deed);
        (runs, bytes)
    }
}

/// Copies the guest in rounds, while it acts, and then as it stands.
fn take<W: Write>(
    mut writer: Writer<W>,
    truth: &mut Truth,
    rounds: &[Deed],
    last: &Deed,
) -> Result<(W, Written), FileError> {
    writer.begin_round(TERM)?;
    let (runs, bytes) = truth.guest.all();
    writer.pages(&runs, &bytes)?;
    writer.end_round()?;
    for round in rounds {
        let (runs, bytes) = truth.act(round);
        writer.begin_round(TERM)?;
        writer.pages(&runs, &bytes)?;
        writer.end_round()?;
    }
    let (runs, bytes) = truth.act(last);
    writer.begin_checkpoint(TERM, &truth.guest.state, &[truth.guest.console.clone(), vec![], b"x".to_vec()])?;
    writer.pages(&runs, &bytes)?;
    let mut writer = writer.volumes()?;
    for (n, block) in truth.volume.chunks(BLOCK).enumerate().rev() {
        writer.block(0, n as u64, block)?;
    }
    writer.finish()
}

fn add(store: &Store, n: usize, parent: Option<usize>, truth: &mut Truth, rounds: &[Deed], last: &Deed) -> Written {
    let parent = parent.map(|p| store.get(&name(p)).unwrap());
    let making = store.create(&vm(), &head(n, parent.as_deref()), parent).unwrap();
    let (writer, staged) = making.split();
    let written = take(writer, truth, rounds, last).unwrap().1;
    staged.publish().unwrap();
    written
}

/// A snapshot holds exactly this.
fn check(snapshot: &Snapshot, truth: &Truth, pool: &Pool) {
    snapshot.verify(&mut |_, _| ControlFlow::Continue(())).unwrap();
    let mut memory = Loading::new();
    snapshot.load(&Loading::fresh, &mut memory, &mut |_, _| ControlFlow::Continue(())).unwrap();
    assert!(memory.0 == truth.guest.memory, "{}: memory", snapshot.head().name);
    let mut page = [0; PAGE_SIZE];
    for (block, pages) in (0u16..).zip(BLOCKS) {
        for n in 0..pages {
            snapshot.page(block, n, &mut page).unwrap();
            let truth = &truth.guest.memory[usize::from(block)][n as usize * PAGE_SIZE..][..PAGE_SIZE];
            assert!(page == truth, "block {block} page {n}");
        }
        assert!(snapshot.page(block, pages, &mut page).is_err());
    }
    let state = snapshot.state();
    assert_eq!((state.term, &state.device_state), (TERM, &truth.guest.state));
    assert_eq!(state.output, [truth.guest.console.clone(), vec![], b"x".to_vec()]);
    let mut block = Vec::new();
    for (n, truth) in (0u64..).zip(truth.volume.chunks(BLOCK)) {
        snapshot.block(0, n, &mut block).unwrap();
        assert!(block == truth, "block {n} of the volume");
    }
    assert!(snapshot.block(0, 4, &mut block).is_err() && snapshot.block(1, 0, &mut block).is_err());
    // An image that held something else.
    let volume = "v".parse().unwrap();
    let image = pool.open_volume(&volume).unwrap();
    image.write(0, &vec![0xee; VOLUME]).unwrap();
    snapshot.restore_volume(0, &*image, &mut |_, _| ControlFlow::Continue(())).unwrap();
    let mut all = vec![0; VOLUME];
    image.read(0, &mut all).unwrap();
    assert!(all == truth.volume, "the volume restored");
}

fn pool(place: &Path) -> Pool {
    let pool = Pool::open(&place.join("pool"), Tools::default()).unwrap();
    pool.create(&"v".parse().unwrap(), VOLUME as u64, ninefold_volume::Format::Raw).unwrap();
    pool
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_snapshot_is_what_it_was_taken_of(
        snapshots in prop::collection::vec((prop::collection::vec(deed(), 0..3), deed(), any::<prop::sample::Index>()), 1..5),
    ) {
        let place = tempfile::tempdir().unwrap();
        let (store, pool) = (Store::open(&place.path().join("snapshots")).unwrap(), pool(place.path()));
        let mut truth = Truth::new();
        let mut truths: Vec<Truth> = Vec::new();
        for (n, (rounds, last, parent)) in snapshots.iter().enumerate() {
            // Of none, of any before.
            let parent = parent.index(n + 1).checked_sub(1);
            let written = add(&store, n, parent, &mut truth, rounds, last);
            prop_assert!(parent.is_some() || written.pages_in_parent == 0);
            truths.push(truth.clone());
        }
        for (n, truth) in truths.iter().enumerate() {
            check(&store.get(&name(n)).unwrap(), truth, &pool);
        }
        // The last one to another installation.
        let last = truths.len() - 1;
        let exported = place.path().join("export");
        store.export(&name(last), &exported, &mut |_, _| ControlFlow::Continue(())).unwrap();
        let elsewhere = Store::open(&place.path().join("elsewhere")).unwrap();
        let there = elsewhere.import(&exported, Some(&name(77)), &mut |_, _| ControlFlow::Continue(())).unwrap();
        let there = elsewhere.get(&there).unwrap();
        prop_assert_eq!((there.depth(), &there.head().name, &there.head().platform), (0, &name(77), &platform()));
        prop_assert_eq!(there.head().created_at, store.get(&name(last)).unwrap().head().created_at);
        check(&there, &truths[last], &pool);

        // A stand-alone snapshot is a checkpoint stream: read as one it gives the same memory.
        let bytes = std::fs::read(exported).unwrap();
        let mut reader = RecordReader::new(&bytes[..]);
        reader.preamble().unwrap();
        let mut assembler = CheckpointAssembler::new(vm().session, TERM, layout(), 1);
        let mut memory = Loading::new();
        memory.0.iter_mut().for_each(|block| block.fill(0));
        while let Some(frame) = reader.next_record().unwrap() {
            if let Fed::Whole(_) = assembler.feed(&frame, &mut memory).unwrap() {
                assembler.commit(&mut memory).unwrap();
            }
        }
        prop_assert!(memory.0 == truths[last].guest.memory);
        prop_assert!(assembler.checkpoint().unwrap().device_state == truths[last].guest.state);
    }

    /// Whatever byte is spoilt, in the snapshot or its parent: an error, or it does not matter.
    #[test]
    fn damage_is_an_error_or_does_not_matter(
        rounds in prop::collection::vec(deed(), 1..3),
        last in deed(),
        which in 0..2usize,
        at in any::<prop::sample::Index>(),
        near_the_end in any::<bool>(),
        xor in 1..=255u8,
    ) {
        let place = tempfile::tempdir().unwrap();
        let (store, pool) = (Store::open(&place.path().join("snapshots")).unwrap(), pool(place.path()));
        let mut truth = Truth::new();
        add(&store, 0, None, &mut truth, &rounds, &last);
        add(&store, 1, Some(0), &mut truth, &[], &rounds[0]);
        let path = store.root().join(format!("s{which}.nfsnap"));
        let mut bytes = std::fs::read(&path).unwrap();
        let at = if near_the_end { bytes.len() - 1 - at.index(bytes.len().min(2000)) } else { at.index(bytes.len()) };
        bytes[at] ^= xor;
        std::fs::write(&path, &bytes).unwrap();
        match store.get(&name(1)) {
            Ok(snapshot) => match snapshot.verify(&mut |_, _| ControlFlow::Continue(())) {
                Ok(()) => check(&snapshot, &truth, &pool),
                Err(error) => prop_assert!(matches!(error, FileError::Damaged(_)), "{:?}", error),
            },
            Err(StoreError::Snapshot { .. }) => {}
            Err(other) => prop_assert!(false, "{:?}", other),
        }
    }

    /// A file that ends early is not whole, wherever it ends.
    #[test]
    fn a_part_of_a_snapshot_is_none(rounds in prop::collection::vec(deed(), 0..2), last in deed(), at in any::<prop::sample::Index>()) {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(place.path()).unwrap();
        add(&store, 0, None, &mut Truth::new(), &rounds, &last);
        let path = store.root().join("s0.nfsnap");
        let bytes = std::fs::read(&path).unwrap();
        let part = place.path().join("part");
        std::fs::write(&part, &bytes[..at.index(bytes.len())]).unwrap();
        let error = store.import(&part, Some(&name(1)), &mut |_, _| ControlFlow::Continue(())).unwrap_err();
        prop_assert!(matches!(error, StoreError::Import { source: FileError::NotWhole, .. }), "{:?}", error);
        prop_assert_eq!(store.list().unwrap().len(), 1);
    }
}

/// What has not changed is not stored again, and what came back to what the parent holds is not either.
#[test]
fn only_differences_are_stored() {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(place.path()).unwrap();
    let mut truth = Truth::new();
    let noise = |pages: std::ops::Range<u64>, seed: u64| Deed {
        touches: pages.map(|n| (0, n, Some((false, seed + n)))).collect(),
        ..Deed::default()
    };
    let fill = Deed { writes: vec![(0, 6000, 3)], ..noise(0..20, 0) };
    let first = add(&store, 0, None, &mut truth, &[], &fill);
    assert_eq!((first.pages, first.pages_in_parent, first.blocks), (20, 0, 3));
    // Five pages change for a while, two of them for good.
    let same = add(&store, 1, Some(0), &mut truth, &[noise(0..5, 100)], &noise(0..3, 0));
    assert_eq!((same.pages, same.pages_in_parent, same.blocks, same.blocks_in_parent), (20, 18, 3, 3));
    // The five that came in the round, a mark, an index.
    assert!(same.bytes < 5 * 4100 + 24 * 32 + 3000, "{} bytes", same.bytes);
}

/// Names, parents, locks.
#[test]
fn the_store_keeps_its_snapshots() {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(&place.path().join("s")).unwrap();
    let deed = Deed { touches: vec![(0, 1, Some((false, 1)))], state: vec![1], ..Deed::default() };
    let mut truth = Truth::new();
    for (n, parent) in [(0, None), (1, Some(0)), (2, Some(1))] {
        add(&store, n, parent, &mut truth, &[], &deed);
    }
    assert!(matches!(store.create(&vm(), &head(1, None), None), Err(StoreError::Exists(_))));
    assert!(matches!(store.get(&name(9)), Err(StoreError::NotFound(_))));
    assert!(matches!(store.remove(&name(0)), Err(StoreError::HasChild { child, .. }) if child == name(1)));
    let two = store.get(&name(2)).unwrap();
    assert_eq!(two.depth(), 2);
    assert!(matches!(store.remove(&name(2)), Err(StoreError::Busy(_))));
    // A child on its way keeps its parent.
    let making = store.create(&vm(), &head(3, Some(&two)), Some(two)).unwrap();
    assert!(matches!(store.remove(&name(2)), Err(StoreError::Busy(_))));
    // A sweeper leaves it alone while it lives, and it leaves nothing when it is given up.
    Store::open(store.root()).unwrap();
    assert_eq!(std::fs::read_dir(store.root()).unwrap().count(), 5);
    drop(making);
    assert_eq!(std::fs::read_dir(store.root()).unwrap().count(), 4);
    std::fs::write(store.root().join(".new-s4-1234"), b"left by a crash").unwrap();
    std::fs::write(store.root().join("notes.txt"), b"an operator's").unwrap();
    let store = Store::open(store.root()).unwrap();
    assert_eq!(std::fs::read_dir(store.root()).unwrap().count(), 5);
    // An export is not written over, an incremental file not taken for a whole one, and nothing is left of either attempt.
    let out = place.path().join("out");
    std::fs::write(&out, b"mine").unwrap();
    assert!(matches!(store.export(&name(2), &out, &mut |_, _| ControlFlow::Continue(())), Err(StoreError::Exists(_))));
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");
    let error = store
        .import(&store.root().join("s2.nfsnap"), Some(&name(8)), &mut |_, _| ControlFlow::Continue(()))
        .unwrap_err();
    assert!(format!("{:?}", error).contains("differs from 's1'"), "{error:?}");
    assert_eq!(std::fs::read_dir(store.root()).unwrap().count(), 5);
    assert!(matches!(
        store.import(Path::new("/dev/null"), None, &mut |_, _| ControlFlow::Continue(())),
        Err(StoreError::Import { .. })
    ));
    // Another parent under the same name.
    let saved = std::fs::read(store.root().join("s1.nfsnap")).unwrap();
    std::fs::remove_file(store.root().join("s1.nfsnap")).unwrap();
    assert!(matches!(store.get(&name(2)), Err(StoreError::Snapshot { source: FileError::Parent { .. }, .. })));
    add(&store, 1, Some(0), &mut truth, &[], &Deed { state: vec![2], ..Deed::default() });
    assert!(matches!(store.get(&name(2)), Err(StoreError::Snapshot { source: FileError::WrongParent { .. }, .. })));
    let list = store.list().unwrap();
    assert_eq!(list.iter().map(|l| l.snapshot.is_ok()).collect::<Vec<_>>(), [true, true, false]);
    drop(list);
    std::fs::write(store.root().join("s1.nfsnap"), saved).unwrap();
    assert!(store.get(&name(2)).is_ok());
    for n in [2, 1, 0] {
        store.remove(&name(n)).unwrap();
    }
    assert!(store.list().unwrap().is_empty());
}

/// A parent that is of another VM, or no parent where the head says so.
#[test]
fn a_parent_has_to_fit() {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(place.path()).unwrap();
    add(&store, 0, None, &mut Truth::new(), &[], &Deed::default());
    let parent = store.get(&name(0)).unwrap();
    let mut other = serde_json::to_value(vm()).unwrap();
    other["layout"][1]["used"] = 4096.into();
    let other: Hello = serde_json::from_value(other).unwrap();
    let create = |hello: &Hello, head: &Head, parent: Option<&Arc<Snapshot>>| {
        Writer::create(Vec::new(), hello, head, parent.cloned()).map(drop)
    };
    assert!(create(&vm(), &head(1, Some(&parent)), Some(&parent)).is_ok());
    assert!(matches!(create(&other, &head(1, Some(&parent)), Some(&parent)), Err(FileError::Layout(_))));
    assert!(matches!(create(&vm(), &head(1, None), Some(&parent)), Err(FileError::Refused(_))));
    assert!(matches!(create(&vm(), &head(1, Some(&parent)), None), Err(FileError::Refused(_))));
    let smaller = Head { volumes: vec![512], ..head(1, Some(&parent)) };
    assert!(matches!(create(&vm(), &smaller, Some(&parent)), Err(FileError::Refused(_))));
    // Pages and blocks that the VM has not.
    let mut writer = Writer::create(Vec::new(), &vm(), &head(1, None), None).unwrap();
    assert!(writer.pages(&[], &[]).is_err());
    writer.begin_round(TERM).unwrap();
    assert!(writer.pages(&[PageRun { block: 0, first: 24, count: 1 }], &[0; PAGE_SIZE]).is_err());
    assert!(writer.pages(&[PageRun { block: 0, first: 0, count: 2 }], &[0; PAGE_SIZE]).is_err());
    writer.end_round().unwrap();
    writer.begin_checkpoint(TERM, &[1], &[]).unwrap();
    let mut writer = writer.volumes().unwrap();
    for (volume, number, length) in [(1, 0, BLOCK), (0, 4, BLOCK), (0, 3, BLOCK), (0, 0, 512), (0, u64::MAX, 512)] {
        assert!(writer.block(volume, number, &vec![1; length]).is_err(), "{volume} {number} {length}");
    }
    writer.block(0, 3, &[1; 512]).unwrap();
    // An image of another size stays as it is.
    let pool = pool(place.path());
    pool.create(&"w".parse().unwrap(), 1 << 20, ninefold_volume::Format::Raw).unwrap();
    let image: Box<dyn Image> = pool.open_volume(&"w".parse().unwrap()).unwrap();
    image.write(0, &[9; 512]).unwrap();
    assert!(matches!(
        parent.restore_volume(0, &*image, &mut |_, _| ControlFlow::Continue(())),
        Err(FileError::Refused(_))
    ));
    let mut first = [0; 512];
    image.read(0, &mut first).unwrap();
    assert_eq!(first, [9; 512]);
}

/// Snapshots for the fuzzer to begin with, into the directory that the environment names.
#[test]
#[ignore = "makes seeds"]
fn fuzz_seeds() {
    let Some(place) = std::env::var_os("NINEFOLD_FUZZ_SEEDS") else { return };
    let noise =
        |n: u64| Deed { touches: vec![(0, n, Some((n.is_multiple_of(2), n))), (1, 1, None)], ..Deed::default() };
    for n in 0..4 {
        let writer = Writer::create(Vec::new(), &vm(), &head(0, None), None).unwrap();
        let rounds: Vec<Deed> = (0..n).map(noise).collect();
        let last = Deed { state: vec![1; 50], writes: vec![(n as usize, 100, 3)], ..noise(n) };
        let (bytes, _) = take(writer, &mut Truth::new(), &rounds, &last).unwrap();
        std::fs::write(Path::new(&place).join(format!("seed-{n}")), [&[1][..], &bytes].concat()).unwrap();
    }
}
