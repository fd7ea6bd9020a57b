//! Snapshot files that somebody else has written, to harm whoever reads them.

mod guest;
mod seal;

use std::ops::ControlFlow;
use std::path::Path;

use counting::{Counting, most};
use guest::{act, hello};
use ninefold_model::Term;
use ninefold_model::spec::{Accel, Arch, VolumeSpec};
use ninefold_replica::stream::page::PAGE_SIZE;
use ninefold_replica::stream::record::MAX_VOLUMES;
use ninefold_replica::stream::{BlockInfo, Hello, Layout, PageRun, Record, Section};
use ninefold_snapshot::file::{BLOCK, FileError, Head, Parent, Platform, Snapshot, Writer};
use ninefold_snapshot::store::{Store, StoreError};
use ninefold_testkit::counting;
use ninefold_volume::pool::MAX_SIZE;
use seal::seal;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TERM: Term = Term(5);
/// What opening and importing take beside the index: buffers of readers and writers.
const BUFFERS: u64 = 8 << 20;

fn head(name: &str, hello: &Hello, parent: Option<Parent>) -> Head {
    let platform =
        Platform { arch: Arch::X86_64, accel: Accel::Tcg, machine: "m".into(), cpu: "c".into(), qemu: [10, 0, 2] };
    Head::new(name.parse().unwrap(), platform, hello.spec.hardware.volumes.iter().map(|v| v.size).collect(), parent)
}

fn with_volumes(sizes: &[u64]) -> Hello {
    let mut hello = hello();
    let volume = |(n, size): (usize, &u64)| VolumeSpec::new(format!("v{n}").parse().unwrap(), *size);
    hello.spec.hardware.volumes = sizes.iter().enumerate().map(volume).collect();
    hello
}

/// A snapshot with these pages and blocks in it, all of them different.
fn snapshot(hello: &Hello, pages: &[(u16, u64)], blocks: &[(u16, u64)]) -> Vec<u8> {
    let mut writer = Writer::create(Vec::new(), hello, &head("bad", hello, None), None).unwrap();
    writer.begin_checkpoint(TERM, &[1], &[]).unwrap();
    let text = |n: usize, length: usize| -> Vec<u8> { (0..length).map(|i| (i / 64 + n) as u8 | 1).collect() };
    for (n, &(block, first)) in pages.iter().enumerate() {
        writer.pages(&[PageRun { block, first, count: 1 }], &text(n, PAGE_SIZE)).unwrap();
    }
    let mut writer = writer.volumes().unwrap();
    for (n, &(volume, block)) in blocks.iter().enumerate() {
        writer.block(volume, block, &text(n, BLOCK)).unwrap();
    }
    writer.finish().unwrap().0
}

/// The same snapshot of what is said to be another VM.
fn with_head(file: &[u8], hello: &Hello, head: &Head) -> Vec<u8> {
    let length = |at: usize| 12 + u32::from_le_bytes(*file[at + 4..].first_chunk().unwrap()) as usize;
    let begun = 16 + length(16);
    let old = begun + length(begun);
    let mut made = file[..16].to_vec();
    Record::Hello(Box::new(hello.clone())).encode(&mut made).unwrap();
    let json = serde_json::to_vec(head).unwrap();
    Record::Section { section: Section::Head, bytes: &json }.encode(&mut made).unwrap();
    let new = made.len();
    made.extend_from_slice(&file[old..]);
    let move_by = |made: &mut [u8], at: usize| {
        let place: &mut [u8; 8] = made[at..].first_chunk_mut().unwrap();
        let offset = u64::from_le_bytes(*place);
        if offset > 0 {
            *place = (offset - old as u64 + new as u64).to_le_bytes();
        }
    };
    let end = made.len() - 80;
    (0..3).for_each(|n| move_by(&mut made, end + 8 * n));
    for at in entries(&made) {
        move_by(&mut made, at + 8);
    }
    seal(&mut made);
    made
}

/// Where the entries of the index stand.
fn entries(file: &[u8]) -> Vec<usize> {
    let mut at = u64::from_le_bytes(*file[file.len() - 80 + 16..].first_chunk().unwrap()) as usize;
    let mut places = Vec::new();
    while at + 92 < file.len() {
        let length = u32::from_le_bytes(*file[at + 4..].first_chunk().unwrap()) as usize;
        places.extend((at + 12 + 8..at + 12 + length).step_by(32));
        at += 12 + length;
    }
    places
}

/// What importing the file takes, and comes to.
fn import(file: &[u8]) -> (u64, Result<(), FileError>) {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(&place.path().join("s")).unwrap();
    let path = place.path().join("file");
    std::fs::write(&path, file).unwrap();
    let (bytes, answer) = most(|| store.import(&path, None, &mut |_, _| ControlFlow::Continue(())));
    assert_eq!(store.list().unwrap().len(), usize::from(answer.is_ok()), "it is there, or nothing is");
    (
        bytes,
        answer.map(drop).map_err(|error| match error {
            StoreError::Import { source, .. } => source,
            other => panic!("{other:?}"),
        }),
    )
}

/// The numbers of pages and blocks cost nothing, only pages and blocks do: a file of a few kilobytes cannot ask for gigabytes.
#[test]
fn a_small_file_takes_little_memory() {
    let last = MAX_SIZE / BLOCK as u64 - 1;
    let volumes = with_volumes(&[MAX_SIZE; MAX_VOLUMES as usize]);
    let blocks: Vec<_> = (0..MAX_VOLUMES).map(|volume| (volume, last)).collect();
    let mut memory = hello();
    let bytes = (1 << 32) * PAGE_SIZE as u64;
    memory.layout = Layout::new(vec![BlockInfo { name: "ram".into(), used: bytes, total: bytes }]).unwrap();
    memory.spec.hardware.memory_mib = bytes >> 20;
    let scattered: Vec<_> = (0..400).map(|n| (0, u64::from(u32::MAX) - n * 100_000)).collect();
    for (hello, pages, blocks) in [(volumes, &[][..], &blocks[..]), (memory, &scattered[..], &[])] {
        let file = snapshot(&hello, pages, blocks);
        assert!(file.len() < 256 << 10, "{} bytes", file.len());
        let (bytes, answer) = import(&file);
        answer.unwrap();
        assert!(bytes < BUFFERS + 16 * file.len() as u64, "{bytes} bytes for a file of {}", file.len());
    }
}

/// What no VM can have is refused before the index is read.
#[test]
fn what_no_vm_has_is_refused() {
    let file = snapshot(&with_volumes(&[BLOCK as u64]), &[(0, 1)], &[(0, 0)]);
    for (sizes, what) in [
        (vec![BLOCK as u64; usize::from(MAX_VOLUMES) + 1], "it has too many volumes"),
        (vec![1 << 48], "281474976710656 bytes in a volume, at most 70368744177664"),
        (vec![u64::MAX], "18446744073709551615 bytes in a volume"),
        (vec![0], "0 bytes is not a volume's size"),
        (vec![65537], "65537 bytes is not a volume's size"),
    ] {
        let hello = with_volumes(&sizes);
        let bad = with_head(&file, &hello, &head("bad", &hello, None));
        let (bytes, answer) = import(&bad);
        let error = answer.unwrap_err();
        let error = format!("{error}: {error:?}");
        assert!(error.contains(what), "{error}");
        assert!(bytes < BUFFERS, "{bytes} bytes");
        assert!(Writer::create(Vec::new(), &hello, &head("bad", &hello, None), None).is_err(), "{what}: it is written");
    }
    // The forger's tools work: what is right is taken.
    let hello = with_volumes(&[2 * BLOCK as u64]);
    import(&with_head(&file, &hello, &head("good", &hello, None))).1.unwrap();
}

/// A byte belongs to one content at most: so what comes out of a file is in proportion to what is in it.
#[test]
fn contents_do_not_overlap() {
    let blocks: Vec<_> = (0..200).map(|n| (0, n)).collect();
    let file = snapshot(&with_volumes(&[200 * BLOCK as u64]), &[(0, 3), (0, 4)], &blocks);
    import(&file).1.unwrap();
    let places = entries(&file);
    assert_eq!(places.len(), 202);
    // All blocks, or pages, are the first: length, encoding, offset, checksum.
    for from in [2, 0] {
        let mut bad = file.clone();
        for &to in places.iter().filter(|&&to| (to < places[2]) == (from == 0)) {
            bad.copy_within(places[from] + 4..places[from] + 32, to + 4);
        }
        seal(&mut bad);
        let error = import(&bad).1.unwrap_err();
        assert!(matches!(&error, FileError::Damaged(what) if what.contains("overlap")), "{error:?}");
    }
    // One byte of a block is the next one's, too.
    let mut bad = file.clone();
    bad[places[2] + 4] += 1;
    let next: &mut [u8; 8] = bad[places[3] + 8..].first_chunk_mut().unwrap();
    let first = u64::from_le_bytes(*file[places[2] + 8..].first_chunk().unwrap());
    let length = u64::from(u16::from_le_bytes(*file[places[2] + 4..].first_chunk().unwrap()));
    *next = (first + length).to_le_bytes();
    seal(&mut bad);
    assert!(matches!(import(&bad).1, Err(FileError::Damaged(what)) if what.contains("overlap")));
}

/// A chain of parents that leads back is noticed when it does, not after the same file was read over and over.
#[test]
fn a_circle_of_parents_is_an_error() {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(place.path()).unwrap();
    let hello = with_volumes(&[1000 * BLOCK as u64]);
    let blocks: Vec<_> = (0..1000).map(|n| (0, n)).collect();
    let file = snapshot(&hello, &[], &blocks);
    let open = |bytes: &[u8]| {
        let path = place.path().join("plain");
        std::fs::write(&path, bytes).unwrap();
        Snapshot::open(std::fs::File::open(path).unwrap(), &mut |_| unreachable!())
    };
    let root = open(&file).unwrap().root();
    let put = |name: &str, parent: &str| {
        let parent = Parent { name: parent.parse().unwrap(), root };
        let bytes = with_head(&file, &hello, &head(name, &hello, Some(parent)));
        std::fs::write(Path::new(store.root()).join(format!("{name}.nfsnap")), bytes).unwrap();
    };
    put("own", "own");
    put("one", "two");
    put("two", "one");
    for name in ["own", "one", "two"] {
        let (bytes, answer) = most(|| store.get(&name.parse().unwrap()));
        let error = format!("{:?}", answer.unwrap_err());
        assert!(error.contains("it descends from itself"), "{error}");
        assert!(bytes < BUFFERS, "{bytes} bytes");
    }
}

/// A pipe under a snapshot's name is not waited for.
#[test]
fn what_is_no_file_is_not_read() {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open(place.path()).unwrap();
    for name in ["pipe.nfsnap", ".new-pipe-1"] {
        rustix::fs::mkfifoat(rustix::fs::CWD, store.root().join(name), 0o600.into()).unwrap();
    }
    let name = "pipe".parse().unwrap();
    let whole = |source: &FileError| matches!(source, FileError::NotWhole);
    assert!(matches!(store.get(&name), Err(StoreError::Snapshot { source, .. }) if whole(&source)));
    assert_eq!(store.list().unwrap().len(), 1);
    assert!(matches!(store.remove(&name), Err(StoreError::Snapshot { source, .. }) if whole(&source)));
    let path = store.root().join("pipe.nfsnap");
    let imported = store.import(&path, Some(&"x".parse().unwrap()), &mut |_, _| ControlFlow::Continue(()));
    assert!(matches!(imported, Err(StoreError::Import { source, .. }) if whole(&source)));
    Store::open(place.path()).unwrap();
}

/// A guest may have spoken on every channel that the format can name.
#[test]
fn the_last_channel_is_one() {
    let hello = hello();
    let (runs, bytes, _) = act(&mut guest::Guest::new(), &guest::Deed::default());
    let mut writer = Writer::create(Vec::new(), &hello, &head("bad", &hello, None), None).unwrap();
    let output: Vec<_> = (0..=u8::MAX).map(|channel| vec![channel]).collect();
    writer.begin_checkpoint(TERM, &[1], &output).unwrap();
    writer.pages(&runs, &bytes).unwrap();
    import(&writer.volumes().unwrap().finish().unwrap().0).1.unwrap();
}
