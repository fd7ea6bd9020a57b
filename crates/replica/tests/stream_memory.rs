//! What is sent arrives: memory, device state and output, exactly, in every mode.

mod stream_fixture;

use ninefold_model::{Epoch, Term};
use ninefold_replica::stream::PAGE_SIZE;
use ninefold_replica::stream::*;
use proptest::prelude::*;
use stream_fixture::{Memory, Receiver, SESSION, Step, TERM, Touch, act, layout, pass, send, step};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any history of sync rounds and checkpoints, the mode changing at any time, with much, little or no shadow memory.
    #[test]
    fn memory_is_rebuilt_exactly(
        syncs in prop::collection::vec(step(), 0..3),
        steps in prop::collection::vec(step(), 1..8),
        shadow in prop::sample::select(vec![0, 2 << 20, u64::MAX]),
    ) {
        let (stream, history, ends) = send(&syncs, &steps, shadow);
        let mut receiver = Receiver::new();
        receiver.receive(&stream).unwrap();
        prop_assert_eq!(receiver.assembler.whole(), Epoch(steps.len() as u64));
        receiver.check(&history, &steps);
        // And at every boundary.
        for (n, end) in ends.iter().enumerate() {
            let mut receiver = Receiver::new();
            receiver.receive(&stream[..*end]).unwrap();
            prop_assert_eq!(receiver.assembler.whole(), Epoch(n as u64 + 1));
            receiver.check(&history, &steps);
        }
    }

    /// What an assembler holds can be written once more without patches, and that stream can be begun anywhere.
    #[test]
    fn a_checkpoint_is_written_anew_from_what_came(
        steps in prop::collection::vec(step(), 1..6),
        begin in any::<prop::sample::Index>(),
    ) {
        let (stream, history, ends) = send(&[], &steps, u64::MAX);
        let begin = begin.index(steps.len());
        let mut receiver = Receiver::new();
        receiver.receive(&stream[..if begin == 0 { 16 } else { ends[begin - 1] }]).unwrap();
        let mut copy = receiver.memory.clone();

        let mut reader = RecordReader::new(&stream[..]);
        reader.preamble().unwrap();
        let (mut first, mut memory) = (CheckpointAssembler::new(SESSION, TERM, layout(), 1), Memory::new());
        let mut second = CheckpointAssembler::new(SESSION, TERM, layout(), 1).after(Epoch(begin as u64));
        let mut encoder = PageEncoder::new(&layout());
        encoder.set_mode(Mode::Lz4);
        while let Some(frame) = reader.next_record().unwrap() {
            let Fed::Whole(pass) = first.feed(&frame, &mut memory).unwrap() else { continue };
            let (mut out, mut scratch) = (Vec::new(), Vec::new());
            let mut writer = PassWriter::begin(&mut out, &mut scratch, pass, TERM).unwrap();
            let pending = first.pending().unwrap();
            let runs: Vec<PageRun> = pending.pages().collect();
            writer.pages(&mut encoder, &runs, pending.content()).unwrap();
            writer.zeros(&mut encoder, pending.zeros()).unwrap();
            writer.device_state(first.checkpoint().unwrap().device_state).unwrap();
            writer.end().unwrap();
            first.commit(&mut memory).unwrap();
            prop_assert!(first.pending().is_none());
            if pass.epoch.0 > begin as u64 {
                prop_assert!(second.checkpoint().is_none_or(|held| held.epoch.0 + 1 == pass.epoch.0));
                let mut reader = RecordReader::new(&out[..]);
                let mut last = Fed::Other;
                while let Some(frame) = reader.next_record().unwrap() {
                    last = second.feed(&frame, &mut copy).unwrap();
                }
                prop_assert_eq!(last, Fed::Whole(pass));
                second.commit(&mut copy).unwrap();
                let n = pass.epoch.0 as usize - 1;
                prop_assert!(second.checkpoint().unwrap().device_state == steps[n].state);
                prop_assert_eq!(&copy.0, &history[n].0);
            }
        }
    }

    /// Two encoders send halves of each pass, and the receiver meets their records in any order.
    #[test]
    fn the_order_of_connections_does_not_matter(
        steps in prop::collection::vec(step(), 1..5),
        order in any::<u64>(),
    ) {
        let layout = layout();
        let mut encoders = [0, 1].map(|_| PageEncoder::new(&layout).with_shadow(u64::MAX));
        let mut assembler = CheckpointAssembler::new(SESSION, TERM, layout, 2);
        let (mut ours, mut theirs) = (Memory::new(), Memory::new());
        for (step, epoch) in steps.iter().zip(1..) {
            let pass = pass(PassKind::Checkpoint, epoch);
            let mut half = step.clone();
            let mut lane = Vec::new();
            let split = step.touches.iter().partition::<Vec<_>, _>(|(_, page, _)| page % 2 == 0);
            half.touches = split.1.into_iter().cloned().collect();
            encoders[1].set_mode(step.mode);
            let (runs, bytes) = act(&mut ours, &half);
            let other = encoders[1].encode(&mut lane, &pass, &runs, &bytes).unwrap();
            half.touches = split.0.into_iter().cloned().collect();
            let (runs, bytes) = act(&mut ours, &half);
            let (mut main, mut scratch) = (Vec::new(), Vec::new());
            let mut writer = PassWriter::begin(&mut main, &mut scratch, pass, TERM).unwrap();
            encoders[0].set_mode(step.mode);
            writer.pages(&mut encoders[0], &runs, &bytes).unwrap();
            writer.device_state(&step.state).unwrap();
            writer.add(&other.totals);
            writer.end().unwrap();

            let (mut a, mut b) = (RecordReader::new(&main[..]), RecordReader::new(&lane[..]));
            let mut order = order.rotate_left(epoch as u32);
            let mut fed = Fed::More;
            loop {
                let (first, second) = if order & 1 == 0 { (&mut a, &mut b) } else { (&mut b, &mut a) };
                order = order.rotate_right(1);
                let frame = match first.next_record().unwrap() {
                    Some(frame) => frame,
                    None => match second.next_record().unwrap() {
                        Some(frame) => frame,
                        None => break,
                    },
                };
                prop_assert_eq!(fed, Fed::More);
                fed = assembler.feed(&frame, &mut theirs).unwrap();
            }
            prop_assert_eq!(fed, Fed::Whole(pass));
            assembler.commit(&mut theirs).unwrap();
            prop_assert_eq!(&ours, &theirs);
        }
    }
}

fn one(touch: Touch, mode: Mode) -> Step {
    Step {
        touches: vec![(0, 5, touch)],
        state: vec![1, 2, 3],
        console: b"login: ".to_vec(),
        volumes: [vec![4], vec![]],
        mode,
    }
}

/// Each encoding is really used where it should be, and a page that is as it was is not sent.
#[test]
fn each_page_goes_the_way_that_suits_it() {
    let layout = layout();
    let mut encoder = PageEncoder::new(&layout).with_shadow(u64::MAX);
    let mut memory = Memory::new();
    let mut encode = |touch, mode, epoch| {
        let (runs, bytes) = act(&mut memory, &one(touch, mode));
        encoder.set_mode(mode);
        encoder.encode(&mut Vec::new(), &pass(PassKind::Checkpoint, epoch), &runs, &bytes).unwrap()
    };
    assert_eq!(encode(Touch::Zero, Mode::Raw, 1).zero, 1);
    assert_eq!(encode(Touch::Text(1), Mode::Raw, 2).raw, 1);
    assert_eq!(encode(Touch::Text(1), Mode::Lz4, 3).lz4, 1);
    assert_eq!(encode(Touch::Noise(1), Mode::Lz4, 4).raw, 1);
    // Nothing is known yet: those before did not go by the shadow.
    assert_eq!(encode(Touch::Text(3), Mode::DeltaLz4, 5).lz4, 1);
    let small = encode(Touch::Bytes(vec![(9, 1), (4000, 2)]), Mode::Delta, 6);
    assert_eq!((small.delta, small.bytes_out), (1, 12 + 32 + 8 + 4 + 8 + 2 * 9));
    let same = encode(Touch::Same, Mode::Delta, 7);
    assert_eq!((same.same, same.totals.pages, same.bytes_out), (1, 0, 0));
    assert_eq!(encode(Touch::Noise(2), Mode::Delta, 8).raw, 1);
    // A detour through another mode makes the page unknown.
    assert_eq!(encode(Touch::Noise(3), Mode::Raw, 9).raw, 1);
    assert_eq!(encode(Touch::Bytes(vec![(0, 1)]), Mode::Delta, 10).raw, 1);
    assert_eq!(encode(Touch::Bytes(vec![(0, 2)]), Mode::Delta, 11).delta, 1);
}

/// A new session knows nothing of what the old one sent.
#[test]
fn a_new_session_starts_without_a_shadow() {
    let mut encoder = PageEncoder::new(&layout()).with_shadow(u64::MAX);
    encoder.set_mode(Mode::Delta);
    let (runs, bytes) = act(&mut Memory::new(), &one(Touch::Noise(1), Mode::Delta));
    let mut pass = pass(PassKind::Checkpoint, 1);
    assert_eq!(encoder.encode(&mut Vec::new(), &pass, &runs, &bytes).unwrap().raw, 1);
    assert_eq!(encoder.encode(&mut Vec::new(), &pass, &runs, &bytes).unwrap().same, 1);
    pass.session += 1;
    assert_eq!(encoder.encode(&mut Vec::new(), &pass, &runs, &bytes).unwrap().raw, 1);
}

/// A pass bigger than a record is cut into several, none over the bound.
#[test]
fn big_passes_are_cut_into_records() {
    let pages = 3000u64;
    let bytes: Vec<u8> = (0..pages as usize * PAGE_SIZE).map(|i| (i / PAGE_SIZE) as u8 | 1).collect();
    let layout =
        Layout::new(vec![BlockInfo { name: "ram".into(), used: bytes.len() as u64, total: bytes.len() as u64 }])
            .unwrap();
    let (mut out, mut scratch) = (Vec::new(), Vec::new());
    let pass = pass(PassKind::Checkpoint, 1);
    let mut writer = PassWriter::begin(&mut out, &mut scratch, pass, Term(9)).unwrap();
    let runs = [PageRun { block: 0, first: 0, count: pages as u32 }];
    writer.pages(&mut PageEncoder::new(&layout), &runs, &bytes).unwrap();
    let state: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
    writer.device_state(&state).unwrap();
    let totals = writer.end().unwrap();
    assert!(totals.records > 10 && totals.pages == pages);

    struct Ram(Vec<u8>);
    impl PageSink for Ram {
        fn write(&mut self, _: u16, first: u64, data: &[u8]) -> std::io::Result<()> {
            let at = first as usize * PAGE_SIZE;
            self.0[at..at + data.len()].copy_from_slice(data);
            Ok(())
        }
        fn read(&mut self, _: u16, _: u64, _: &mut page::Page) -> std::io::Result<()> {
            Err(std::io::Error::other("no patch was sent"))
        }
    }
    let mut ram = Ram(vec![0; bytes.len()]);
    let mut assembler = CheckpointAssembler::new(SESSION, TERM, layout, 1);
    let mut reader = RecordReader::new(&out[..]);
    let mut fed = Fed::Other;
    while let Some(frame) = reader.next_record().unwrap() {
        fed = assembler.feed(&frame, &mut ram).unwrap();
    }
    assert_eq!(fed, Fed::Whole(pass));
    assert!(ram.0.iter().all(|&b| b == 0), "a page was applied before the commit");
    assert_eq!(assembler.commit(&mut ram).unwrap(), pages);
    assert!(ram.0 == bytes);
    assert_eq!(assembler.checkpoint().unwrap().device_state, state);
    assert_eq!(assembler.term(), Term(9));
}

/// Memory that fails in the middle of a commit: the same checkpoint can be committed again.
#[test]
fn a_failed_commit_can_be_repeated() {
    struct Failing(Memory, u32);
    impl PageSink for Failing {
        fn write(&mut self, block: u16, first: u64, data: &[u8]) -> std::io::Result<()> {
            self.1 = self.1.checked_sub(1).ok_or_else(|| std::io::Error::other("injected"))?;
            self.0.write(block, first, data)
        }
        fn read(&mut self, block: u16, page: u64, into: &mut page::Page) -> std::io::Result<()> {
            self.0.read(block, page, into)
        }
    }
    let steps = [Step {
        touches: (0..20).map(|p| (0, p * 2, Touch::Noise(p))).collect(),
        state: vec![5; 10],
        console: vec![],
        volumes: Default::default(),
        mode: Mode::Raw,
    }];
    let (stream, history, _) = send(&[], &steps, 0);
    let mut reader = RecordReader::new(&stream[..]);
    reader.preamble().unwrap();
    let mut assembler = CheckpointAssembler::new(SESSION, TERM, layout(), 1);
    let mut sink = Failing(Memory::new(), 7);
    while let Some(frame) = reader.next_record().unwrap() {
        assembler.feed(&frame, &mut sink).unwrap();
    }
    assert!(matches!(assembler.commit(&mut sink), Err(StreamError::Memory(_))));
    sink.1 = 1000;
    assert_eq!(assembler.commit(&mut sink).unwrap(), 20);
    assert_eq!(assembler.commit(&mut sink).unwrap(), 0);
    assert_eq!(sink.0, history[0]);
}
