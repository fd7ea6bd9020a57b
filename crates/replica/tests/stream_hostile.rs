//! Whatever happens to a stream, the receiver refuses it or holds what was sent, and a whole checkpoint stays usable.

mod stream_fixture;

use ninefold_model::{Epoch, Term};
use ninefold_replica::stream::*;
use proptest::prelude::*;
use stream_fixture::{Memory, Receiver, SESSION, Step, TERM, Touch, layout, pass, send, step};

/// The records of a stream as byte ranges, the preamble first.
fn pieces(stream: &[u8]) -> Vec<std::ops::Range<usize>> {
    let (mut all, mut at) = (Vec::new(), 16);
    all.push(0..at);
    while at < stream.len() {
        let length = u32::from_le_bytes(stream[at + 4..at + 8].try_into().unwrap()) as usize;
        all.push(at..at + 12 + length);
        at += 12 + length;
    }
    all
}

fn whole_before(ends: &[usize], at: usize) -> Epoch {
    Epoch(ends.iter().filter(|&&end| end <= at).count() as u64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_changed_byte_is_refused(
        steps in prop::collection::vec(step(), 1..4),
        at in any::<prop::sample::Index>(),
        change in 1..=255u8,
    ) {
        let (mut stream, history, ends) = send(&[], &steps, u64::MAX);
        let at = at.index(stream.len());
        stream[at] ^= change;
        let mut receiver = Receiver::new();
        prop_assert!(receiver.receive(&stream).is_err());
        prop_assert_eq!(receiver.assembler.whole(), whole_before(&ends, at));
        receiver.check(&history, &steps);
    }

    #[test]
    fn a_cut_stream_leaves_the_last_whole_checkpoint(
        steps in prop::collection::vec(step(), 1..4),
        at in any::<prop::sample::Index>(),
    ) {
        let (stream, history, ends) = send(&[], &steps, u64::MAX);
        let at = at.index(stream.len());
        let mut receiver = Receiver::new();
        let result = receiver.receive(&stream[..at]);
        // Between two records the cut cannot be seen from the bytes: the pass is simply never whole.
        let between = pieces(&stream).iter().any(|piece| piece.start == at && at > 0);
        prop_assert_eq!(result.is_ok(), between);
        prop_assert_eq!(receiver.assembler.whole(), whole_before(&ends, at));
        receiver.check(&history, &steps);
    }

    /// One record twice, left out, or moved: within its pass or into another.
    #[test]
    fn records_out_of_place_are_refused(
        steps in prop::collection::vec(step(), 2..5),
        from in any::<prop::sample::Index>(),
        to in any::<prop::sample::Index>(),
        keep in any::<bool>(),
        put in any::<bool>(),
    ) {
        let (stream, history, _) = send(&[], &steps, u64::MAX);
        let pieces = pieces(&stream);
        let mut order: Vec<usize> = (0..pieces.len()).collect();
        let from = 1 + from.index(pieces.len() - 1);
        let moved = order[from];
        if !keep {
            order.remove(from);
        }
        if put {
            let to = 1 + to.index(order.len());
            order.insert(to, moved);
        }
        let changed: Vec<u8> = order.iter().flat_map(|&i| &stream[pieces[i].clone()]).copied().collect();
        let mut receiver = Receiver::new();
        let result = receiver.receive(&changed);
        // Pages of one pass may come in any order, and a pass that never ends is no error: it is just not whole.
        if result.is_ok() && receiver.assembler.whole() == Epoch(steps.len() as u64) {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert!(sorted == (0..pieces.len()).collect::<Vec<_>>(), "a record was lost or doubled unseen");
        }
        receiver.check(&history, &steps);
    }

    #[test]
    fn bytes_put_in_or_taken_out_are_refused(
        steps in prop::collection::vec(step(), 1..3),
        at in any::<prop::sample::Index>(),
        insert in prop::collection::vec(any::<u8>(), 0..40),
        remove in 0..40usize,
    ) {
        let (stream, history, _) = send(&[], &steps, u64::MAX);
        let at = at.index(stream.len());
        let end = (at + remove).min(stream.len());
        let mut changed = stream.clone();
        changed.splice(at..end, insert);
        let mut receiver = Receiver::new();
        let _ = receiver.receive(&changed);
        receiver.check(&history, &steps);
    }
}

fn steps(n: u64) -> Vec<Step> {
    (0..n)
        .map(|i| Step {
            touches: vec![(0, i, Touch::Noise(i + 1)), (1, 2, Touch::Text(i as u8))],
            state: vec![i as u8; 100],
            console: format!("line {i}\n").into_bytes(),
            volumes: [vec![i as u8; 250], vec![]],
            mode: Mode::DeltaLz4,
        })
        .collect()
}

fn feed(receiver: &mut Receiver, records: &[Record<'_>]) -> Result<Fed, StreamError> {
    let mut bytes = Vec::new();
    for record in records {
        record.encode(&mut bytes).unwrap();
    }
    let mut reader = RecordReader::new(&bytes[..]);
    let mut fed = Fed::Other;
    while let Some(frame) = reader.next_record()? {
        fed = receiver.assembler.feed(&frame, &mut receiver.memory)?;
    }
    Ok(fed)
}

fn begin(kind: PassKind, epoch: u64) -> Record<'static> {
    Record::Begin { pass: pass(kind, epoch), term: TERM }
}

/// Each breach of the order of passes has its own error.
#[test]
fn each_breach_is_named() {
    let steps = steps(2);
    let (stream, history, _) = send(&[], &steps, 0);
    let after = |records: &[Record<'_>]| {
        let mut receiver = Receiver::new();
        receiver.receive(&stream).unwrap();
        let result = feed(&mut receiver, records);
        receiver.check(&history, &steps);
        // A refused stream stays refused.
        if result.is_err() {
            assert!(feed(&mut receiver, &[begin(PassKind::Checkpoint, 3)]).is_err());
        }
        result
    };
    let checkpoint = |epoch| pass(PassKind::Checkpoint, epoch);
    assert!(matches!(after(&[begin(PassKind::Checkpoint, 3)]), Ok(Fed::More)));
    assert!(matches!(
        after(&[begin(PassKind::Checkpoint, 2)]),
        Err(StreamError::WrongEpoch { expected: Epoch(3), got: Epoch(2), .. })
    ));
    assert!(matches!(after(&[begin(PassKind::Checkpoint, 4)]), Err(StreamError::WrongEpoch { .. })));
    assert!(matches!(after(&[begin(PassKind::Sync, 1)]), Err(StreamError::Unexpected { .. })));
    let other = Pass { session: SESSION + 1, ..checkpoint(3) };
    assert!(matches!(after(&[Record::Begin { pass: other, term: TERM }]), Err(StreamError::WrongSession { .. })));
    assert!(matches!(
        after(&[Record::Begin { pass: checkpoint(3), term: Term(TERM.0 - 1) }]),
        Err(StreamError::WrongTerm { .. })
    ));
    assert!(matches!(
        after(&[
            Record::Bound { session: SESSION, term: Term(TERM.0 + 1) },
            Record::Begin { pass: checkpoint(3), term: TERM }
        ]),
        Err(StreamError::WrongTerm { .. })
    ));
    let ahead = |by| Record::Begin { pass: checkpoint(3), term: Term(TERM.0 + by) };
    assert!(matches!(after(&[ahead(1 << 16)]), Ok(Fed::More)));
    for term in [TERM.0 + (1 << 16) + 1, u64::MAX] {
        assert!(matches!(
            after(&[Record::Begin { pass: checkpoint(3), term: Term(term) }]),
            Err(StreamError::WrongTerm { .. })
        ));
        let bound = Record::Bound { session: SESSION, term: Term(term) };
        assert!(matches!(after(&[bound]), Err(StreamError::WrongTerm { .. })));
    }
    let end = Record::End { pass: checkpoint(3), totals: Totals::default() };
    assert!(matches!(after(std::slice::from_ref(&end)), Err(StreamError::Unexpected { .. })));
    let begun = begin(PassKind::Checkpoint, 3);
    assert!(matches!(after(&[begun.clone(), begun.clone()]), Err(StreamError::Unexpected { .. })));
    assert!(matches!(
        after(&[begun.clone(), Record::DeviceState(DeviceState { pass: checkpoint(3), offset: 1, bytes: b"x" })]),
        Err(StreamError::Unexpected { .. })
    ));
    let totals = Totals { pages: 1, records: 1, ..Totals::default() };
    assert!(matches!(
        after(&[begun.clone(), Record::End { pass: checkpoint(3), totals }]),
        Err(StreamError::Totals { what: "records", expected: 1, got: 0 })
    ));
    // Records of another kind in between are the keeper's.
    let beat = Record::Heartbeat(Heartbeat { session: SESSION, seq: 1, uplink: true, time_us: 2 });
    assert_eq!(after(&[begun, beat.clone()]).unwrap(), Fed::Other);
}

/// Pages that the layout has not, that come twice, or whose content is no page.
#[test]
fn impossible_pages_are_refused() {
    let entry = |page: u32, encoding: u8, length: u16, body: &[u8]| {
        let mut bytes = page.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[encoding, 0]);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(body);
        bytes
    };
    let try_pages = |block, entries: &[u8]| {
        let mut receiver = Receiver::new();
        let pass = pass(PassKind::Checkpoint, 1);
        let result =
            feed(&mut receiver, &[begin(PassKind::Checkpoint, 1), Record::Pages(Pages { pass, block, entries })]);
        assert!(receiver.assembler.checkpoint().is_none() && receiver.memory == Memory::new());
        result
    };
    assert!(try_pages(0, &entry(47, 0, 1, &[])).is_ok());
    for (what, block, entries) in [
        ("no such block", 3, entry(0, 0, 1, &[])),
        ("no such page", 1, entry(3, 0, 1, &[])),
        ("a zero run over the end", 0, entry(40, 0, 9, &[])),
        ("the highest page", 0, entry(u32::MAX, 0, u16::MAX, &[])),
        ("twice", 0, [entry(4, 0, 2, &[]), entry(5, 0, 1, &[])].concat()),
        ("an empty run", 0, entry(0, 0, 0, &[])),
        ("half a page", 0, entry(0, 1, 2048, &[1; 2048])),
        ("cut off", 0, entry(0, 1, 4096, &[1; 4095])),
        ("half a header", 0, vec![0; 5]),
        ("unknown encoding", 0, entry(0, 9, 1, &[0])),
        ("LZ4 noise", 0, entry(0, 2, 4, &[0xff; 4])),
        ("LZ4 of less than a page", 0, {
            let packed = lz4_flex::block::compress(&[1; 100]);
            entry(0, 2, packed.len() as u16, &packed)
        }),
        ("LZ4 of more than a page", 0, {
            let packed = lz4_flex::block::compress(&[1; 100_000]);
            entry(0, 2, packed.len() as u16, &packed)
        }),
        ("an empty patch", 0, entry(0, 3, 0, &[])),
        ("a patch of another page", 0, entry(0, 3, 12, &[7; 12])),
    ] {
        let result = try_pages(block, &entries);
        let expected = matches!(result, Err(StreamError::Page { .. } | StreamError::Malformed { .. }));
        assert!(expected, "{what}: {result:?}");
    }
}

/// A receiver whose memory is not what the sender believes refuses a patch instead of corrupting the guest.
#[test]
fn a_patch_of_a_wrong_base_is_refused() {
    let mut steps = steps(2);
    steps[1].touches = vec![(0, 0, Touch::Bytes(vec![(100, 1), (101, 2)]))];
    let (stream, _, ends) = send(&[], &steps, u64::MAX);
    let mut receiver = Receiver::new();
    receiver.receive(&stream[..ends[0]]).unwrap();
    receiver.memory.page_mut(0, 0)[2000] ^= 1;
    let rest = [&Preamble::OURS.to_bytes()[..], &stream[ends[0]..]].concat();
    let result = receiver.receive(&rest);
    assert!(matches!(result, Err(StreamError::Page { block: 0, page: 0, .. })), "{result:?}");
    assert_eq!(receiver.assembler.whole(), Epoch(1));
}

/// An encoder refuses runs that are not in the layout or have no content, and forgets what it believed.
#[test]
fn an_encoder_refuses_runs_that_cannot_be() {
    let mut encoder = PageEncoder::new(&layout());
    for (run, bytes) in [
        (PageRun { block: 9, first: 0, count: 1 }, 4096),
        (PageRun { block: 1, first: 2, count: 2 }, 8192),
        (PageRun { block: 0, first: u64::MAX, count: 1 }, 4096),
        (PageRun { block: 0, first: 0, count: 2 }, 4096),
        (PageRun { block: 0, first: 0, count: 1 }, 8192),
        (PageRun { block: 0, first: 0, count: 1 }, 4097),
    ] {
        let mut out = Vec::new();
        let result = encoder.encode(&mut out, &pass(PassKind::Sync, 1), &[run], &vec![1; bytes]);
        assert!(matches!(result, Err(StreamError::Page { .. })) && out.is_empty(), "{run:?}");
    }
}

/// Writes the seeds of the fuzz target: `NINEFOLD_FUZZ_SEEDS=fuzz/corpus/stream cargo test -p ninefold-replica --test
/// stream_hostile -- --ignored`.
#[test]
#[ignore = "writes the fuzz target's seed corpus"]
fn make_fuzz_seeds() {
    let Some(dir) = std::env::var_os("NINEFOLD_FUZZ_SEEDS").map(std::path::PathBuf::from) else {
        return;
    };
    std::fs::create_dir_all(&dir).unwrap();
    for n in 1..=3 {
        let all = steps(n);
        for (name, syncs) in [("fresh", 0), ("synced", 1)] {
            let (stream, ..) = send(&all[..syncs], &all, u64::MAX);
            // The first byte tells the target to put checksums right.
            let seed = [&[1], &stream[..]].concat();
            std::fs::write(dir.join(format!("{name}-{n}")), seed).unwrap();
        }
    }
}

/// What is kept for each page must not be for the sender to say: a `Hello` of a VM of 256 MiB with RAM blocks of 16 TiB.
#[test]
fn a_hello_of_more_memory_than_the_vm_has_is_refused() {
    let hello = |total: u64, volumes: usize| {
        let volumes: Vec<_> =
            (0..volumes).map(|n| serde_json::json!({ "name": format!("v{n}"), "size": 512 })).collect();
        serde_json::to_vec(&serde_json::json!({
            "session": 1, "from": "a", "term": 1, "qemu": "", "accel": "tcg",
            "spec": {
                "id": "3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4", "name": "db",
                "hardware": { "memory_mib": 256, "boot": "volume", "volumes": volumes }
            },
            "epoch_policy": { "fixed": { "ms": 1 } },
            "layout": [{ "name": "ram", "used": 0, "total": total }],
        }))
        .unwrap()
    };
    let read = |json: &[u8]| {
        let mut stream = vec![1, 0, 0, 0];
        stream.extend_from_slice(&(json.len() as u32).to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(&stream);
        crc.update(json);
        stream.extend_from_slice(&crc.finalize().to_le_bytes());
        stream.extend_from_slice(json);
        RecordReader::new(&stream[..]).next_record().map(|frame| assert!(frame.is_some()))
    };
    read(&hello((256 << 20) + (1 << 30), 64)).unwrap();
    for bad in [hello((256 << 20) + (1 << 30) + 4096, 0), hello(1 << 44, 0), hello(4096, 65)] {
        assert!(matches!(read(&bad), Err(StreamError::Malformed { record: "Hello", .. })));
    }
}
