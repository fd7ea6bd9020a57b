//! The reader of a non-volatile VM's log on hostile files.
//!
//! The input is the last segment, a byte that says what is changed elsewhere, and the numbers in the head. Checksums are put
//! right before the files are read, so that the fuzzer gets past them to what is behind.
#![no_main]

#[path = "../../dev/testkit/src/counting.rs"]
mod counting;
#[path = "../../crates/snapshot/tests/guest/mod.rs"]
mod guest;

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;

use counting::{Counting, most};
use guest::{Deed, Guest, Loading, act, at, hello};
use libfuzzer_sys::fuzz_target;
use ninefold_model::Term;
use ninefold_replica::protocol::{LogRole, LogStanding};
use ninefold_snapshot::log::{Found, New, Options};
use ninefold_snapshot::storage::{Directory, Storage};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A log of three commits in a directory, its head, and its segment.
struct Made {
    _dir: tempfile::TempDir,
    path: PathBuf,
    head: serde_json::Value,
    standing: Vec<u8>,
    segment: Vec<u8>,
}

fn made() -> Made {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_path_buf();
    let storage: Arc<dyn Storage> = Arc::new(Directory::open(&path).expect("a directory"));
    let standing = LogStanding::new(LogRole::Backup { session: Term(5), primary: "host-b".parse().expect("a name") });
    let mut new = New::create(storage, hello(), &standing, Options::default()).expect("a log");
    let mut guest = Guest::new();
    let (runs, bytes) = guest.all();
    new.pages(&runs, &bytes).expect("room");
    let mut first = new.first(at(1)).expect("room");
    first.device_state(&[1]).expect("room");
    first.finish().expect("room");
    let mut log = new.publish().expect("room");
    for n in 2..4 {
        let deed = Deed { touches: vec![(0, n, Some((n % 2 == 0, n)))], writes: vec![(0, 9, 1)], ..Deed::default() };
        let (runs, bytes, operations) = act(&mut guest, &deed);
        let mut commit = log.begin(at(n)).expect("room");
        commit.pages(&runs, &bytes).expect("room");
        commit.volume_writes(0, 0, &operations).expect("room");
        commit.device_state(&[2]).expect("room");
        commit.finish().expect("room");
    }
    drop(log);
    let read = |file: &str| std::fs::read(path.join(file)).expect("a file");
    let head = read("head.json");
    let head = serde_json::from_slice(head.split(|b| *b == b'\n').next().expect("a line")).expect("JSON");
    Made { standing: read("standing"), segment: read("segment-1"), head, path, _dir: dir }
}

thread_local! {
    static MADE: RefCell<Option<Made>> = const { RefCell::new(None) };
}

/// Puts the checksums of records right, wherever they begin.
fn repair(segment: &mut [u8]) {
    let mut at = 16;
    while let Some(header) = segment.get(at..at + 12) {
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let Some(payload) = at.checked_add(12 + length).and_then(|end| segment.get(at + 12..end)) else { return };
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header[..8]);
        crc.update(payload);
        let crc = crc.finalize().to_le_bytes();
        segment[at + 8..at + 12].copy_from_slice(&crc);
        at += 12 + length;
    }
}

fuzz_target!(|data: &[u8]| {
    MADE.with_borrow_mut(|made| {
        let made = made.get_or_insert_with(self::made);
        // Changes at places, in turn: where u16, what u8.
        let Some((&how, changes)) = data.split_first() else { return };
        let (mut segment, mut standing, mut head) = (made.segment.clone(), made.standing.clone(), made.head.clone());
        let (chunks, rest) = changes.as_chunks::<3>();
        for &[a, b, byte] in chunks {
            let place = usize::from(u16::from_le_bytes([a, b]));
            if how & 1 == 1 && place < 64 {
                if let Some(at) = standing.get_mut(place) {
                    *at = byte;
                }
            } else if let Some(at) = segment.get_mut(place) {
                *at = byte;
            }
        }
        if how & 2 == 2 {
            repair(&mut segment);
        }
        if how & 4 == 4 {
            segment.truncate(segment.len() / 256 * usize::from(how) + 1);
        }
        if how & 8 == 8 && let Some((_, number)) = rest.split_first().or(changes.split_first()) {
            let number = number.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b));
            head[["base", "first", "durable"][usize::from(how >> 4) % 3]] = number.into();
        }
        let mut text = serde_json::to_vec(&head).expect("JSON");
        text.push(b'\n');
        let sum = format!("{:08x}\n", crc32fast::hash(&text));
        text.extend_from_slice(sum.as_bytes());
        for (file, bytes) in [("head.json", &text), ("standing", &standing), ("segment-1", &segment)] {
            std::fs::write(made.path.join(file), bytes).expect("room");
        }
        let storage: Arc<dyn Storage> = Arc::new(Directory::open(&made.path).expect("the directory"));
        let (taken, found) = most(|| Found::look(storage));
        assert!(taken < (12 << 20) + 64 * segment.len() as u64, "{taken} bytes");
        let Ok(found) = found else { return };
        let _ = found.recover().and_then(|log| log.load(&Loading::fresh, &mut Loading::new(), &mut |_, _| Ok(())));
    });
});
