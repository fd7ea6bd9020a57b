//! The log of a non-volatile VM whose files somebody else has written.

mod guest;

use std::path::Path;
use std::sync::Arc;

use counting::{Counting, most};
use guest::{Guest, at, hello};
use ninefold_model::Term;
use ninefold_replica::protocol::{LogRole, LogStanding};
use ninefold_replica::stream::page::PAGE_SIZE;
use ninefold_snapshot::log::{Found, LogError, New, Options};
use ninefold_snapshot::storage::{Directory, Storage};
use ninefold_testkit::counting;
use serde_json::Value;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A log of one commit.
fn make(place: &Path) {
    let storage: Arc<dyn Storage> = Arc::new(Directory::open(place).unwrap());
    let standing = LogStanding::new(LogRole::Backup { session: Term(5), primary: "host-b".parse().unwrap() });
    let mut new = New::create(storage, hello(), &standing, Options::default()).unwrap();
    let (runs, bytes) = Guest::new().all();
    new.pages(&runs, &bytes).unwrap();
    let mut first = new.first(at(1)).unwrap();
    first.device_state(&[1]).unwrap();
    first.finish().unwrap();
    new.publish().unwrap();
}

fn look(place: &Path) -> Result<Found, LogError> {
    Found::look(Arc::new(Directory::open(place).unwrap()))
}

/// Changes the head, and puts its checksum right.
fn forge(place: &Path, change: impl FnOnce(&mut Value)) {
    let path = place.join("head.json");
    let text = std::fs::read(&path).unwrap();
    let mut head: Value = serde_json::from_slice(text.split(|b| *b == b'\n').next().unwrap()).unwrap();
    change(&mut head);
    let mut text = serde_json::to_vec(&head).unwrap();
    text.push(b'\n');
    let sum = format!("{:08x}\n", crc32fast::hash(&text));
    text.extend_from_slice(sum.as_bytes());
    std::fs::write(path, text).unwrap();
}

/// Numbers that nobody has counted to are damage, and no arithmetic goes wrong over them.
#[test]
fn numbers_that_nobody_counts_to_are_damage() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    look(dir.path()).unwrap();
    let saved = std::fs::read(dir.path().join("head.json")).unwrap();
    for field in ["base", "first", "durable"] {
        for number in [u64::MAX, u64::MAX - 1, 1 << 62] {
            forge(dir.path(), |head| head[field] = number.into());
            let found = look(dir.path());
            assert!(matches!(found, Err(LogError::Damaged { .. })), "{field} {number}: {found:?}");
            std::fs::write(dir.path().join("head.json"), &saved).unwrap();
        }
    }
    // The standing is numbered, too: both its places are said to be the last that there can be.
    let path = dir.path().join("standing");
    let mut bytes = std::fs::read(&path).unwrap();
    for place in bytes.chunks_mut(4096) {
        let length = u32::from_le_bytes(*place[8..].first_chunk().unwrap()) as usize;
        place[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(&place[..12]);
        crc.update(&place[16..16 + length]);
        place[12..16].copy_from_slice(&crc.finalize().to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(look(dir.path()), Err(LogError::Damaged { .. })));
}

/// A log of another format is refused, and left as it is.
#[test]
fn a_log_of_another_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    for format in [3, 4, 6] {
        forge(dir.path(), |head| head["format"] = format.into());
        let forged = std::fs::read(dir.path().join("head.json")).unwrap();
        let found = look(dir.path());
        assert!(matches!(found, Err(LogError::Version(f, _)) if f == format), "{found:?}");
        assert_eq!(std::fs::read(dir.path().join("head.json")).unwrap(), forged);
    }
}

/// The memory that a head speaks of costs nothing before somebody has said that the VM has it.
#[test]
fn a_head_cannot_ask_for_memory() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    let pages = 1u64 << 31;
    // Files with holes.
    for (file, each) in [("memory", PAGE_SIZE as u64), ("sums", 4)] {
        let file = std::fs::File::options().write(true).open(dir.path().join(file)).unwrap();
        // Where a file system has no such files, the head is refused for their length.
        let _ = file.set_len(pages * each);
    }
    let bytes = pages * PAGE_SIZE as u64;
    let layout =
        |head: &mut Value| head["hello"]["layout"] = serde_json::json!([{ "name": "ram", "used": 0, "total": bytes }]);
    forge(dir.path(), layout);
    let (taken, found) = most(|| look(dir.path()));
    assert!(matches!(found, Err(LogError::Damaged { .. })), "{found:?}");
    assert!(taken < 4 << 20, "{taken} bytes");
    // It says that the VM has as much.
    forge(dir.path(), |head| head["hello"]["spec"]["hardware"]["memory_mib"] = (bytes >> 20).into());
    let storage = Arc::new(Directory::open(dir.path()).unwrap());
    let (taken, found) = most(|| {
        Found::look_if(storage, &|hello| {
            if hello.spec.hardware.memory_mib == 256 { Ok(()) } else { Err("another memory".into()) }
        })
    });
    assert!(matches!(&found, Err(LogError::Refused(why)) if why == "another memory"), "{found:?}");
    assert!(taken < 4 << 20, "{taken} bytes");
}
