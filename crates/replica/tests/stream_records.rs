//! Every record comes back as it was sent, however the bytes arrive; lengths from outside never cost memory.

mod stream_fixture;

use std::io::{self, ErrorKind, Read};

use ninefold_model::health::Health;
use ninefold_model::spec::{Accel, EpochPolicy};
use ninefold_model::{Epoch, Term, Uuid};
use ninefold_replica::stream::header::HEADER_LEN;
use ninefold_replica::stream::kind::MAX_PAYLOAD;
use ninefold_replica::stream::record::{Kind, MAX_TEXT, MAX_VOLUMES};
use ninefold_replica::stream::*;
use ninefold_replica::stream::{Origin, Reign};
use proptest::prelude::*;
use stream_fixture::layout;

/// A record whose bytes and texts it owns.
#[derive(Debug, Clone)]
struct Owned {
    kind: u8,
    numbers: [u64; 6],
    small: u8,
    block: u16,
    bytes: Vec<u8>,
    text: String,
}

fn owned() -> impl Strategy<Value = Owned> {
    (0..26u8, any::<[u64; 6]>(), any::<u8>(), any::<u16>(), prop::collection::vec(any::<u8>(), 0..5000), ".{0,200}")
        .prop_map(|(kind, numbers, small, block, bytes, text)| Owned { kind, numbers, small, block, bytes, text })
}

fn reign(o: &Owned) -> Reign {
    Reign { term: Term(o.numbers[1]), generation: o.numbers[5] }
}

fn hello(o: &Owned) -> Hello {
    Hello {
        session: o.numbers[0],
        from: "host-a".parse().unwrap(),
        term: Term(o.numbers[1]),
        spec: serde_json::from_str(
            r#"{"id":"3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4","name":"db","hardware":{"memory_mib":256,"boot":{"linux":{"cmdline":"quiet"}},
                "nics":[{"mac":"52:54:00:12:34:56"}]}}"#,
        )
        .unwrap(),
        epoch_policy: EpochPolicy::Fixed { ms: u32::from(o.block) },
        qemu: o.text.clone(),
        machine: "pc-i440fx-7.2".into(),
        cpu: "qemu64".into(),
        accel: if o.small.is_multiple_of(2) { Accel::Kvm } else { Accel::Tcg },
        layout: layout(),
        lanes: o.small,
        health: Health { failures_ms: vec![o.numbers[2]], ..Health::default() },
        reign: o.small.is_multiple_of(3).then(|| reign(o)),
        origin: o.small.is_multiple_of(5).then(|| Origin {
            reign: reign(o),
            epoch: Epoch(o.numbers[3]),
            since: Epoch(o.numbers[4]),
        }),
        generation: o.small.is_multiple_of(2).then(|| Uuid::random(o.numbers[5].into())),
    }
}

fn record(o: &Owned) -> Record<'_> {
    let [session, epoch, third, fourth, fifth, sixth] = o.numbers;
    let kind = if o.small.is_multiple_of(2) { PassKind::Sync } else { PassKind::Checkpoint };
    let pass = Pass { session, kind, epoch: Epoch(epoch) };
    match o.kind {
        0 => Record::Hello(Box::new(hello(o))),
        1 => Record::Join { session, lane: o.small },
        2 => Record::Welcome(Welcome { session }),
        3 => Record::Refuse {
            code: if o.small.is_multiple_of(2) { RefuseCode::Busy } else { RefuseCode::UnknownSession },
            reason: &o.text,
        },
        4 => Record::Begin { pass, term: Term(third) },
        5 => Record::Pages(Pages { pass, block: o.block, entries: &o.bytes }),
        6 => Record::DeviceState(DeviceState { pass, offset: third, bytes: &o.bytes }),
        7 => Record::ChannelOutput(Output { pass, channel: o.small, offset: third, bytes: &o.bytes }),
        8 => Record::End {
            pass,
            totals: Totals {
                records: third,
                pages: fourth,
                state_bytes: fifth,
                output_bytes: sixth,
                volume_bytes: third ^ fourth,
                digest: session,
            },
        },
        9 => Record::Ack { pass },
        10 => Record::Heartbeat(Heartbeat { session, seq: epoch, uplink: o.small.is_multiple_of(2), time_us: third }),
        11 => Record::Bound { session, term: Term(third) },
        12 => Record::Relinquish { session, epoch: Epoch(epoch), reason: &o.text },
        13 => Record::Ready { session, what: if o.small.is_multiple_of(2) { Ready::Receive } else { Ready::TakeOver } },
        14 => Record::Bye { reason: &o.text },
        15 => {
            Record::VolumeWrites(VolumeWrites { pass, volume: o.block % MAX_VOLUMES, offset: third, bytes: &o.bytes })
        }
        16 => Record::VolumeState { session, volume: o.block % MAX_VOLUMES, bytes: &o.bytes },
        17 => Record::VolumeSums { session, volume: o.block % MAX_VOLUMES, first: third, sums: &o.bytes },
        18 => Record::VolumeDiffers { session, volume: o.block % MAX_VOLUMES, first: third, bits: &o.bytes },
        19 => Record::VolumeDurable { session, volume: o.block % MAX_VOLUMES, epoch: Epoch(epoch) },
        20 => Record::Mark(Mark {
            log: u128::from(third) << 64 | u128::from(fourth),
            commit: fifth,
            session,
            epoch: Epoch(epoch),
            time_ms: u64::from(o.small) * 1000,
        }),
        21 => Record::Pad { bytes: &o.bytes },
        22 => Record::Base { session, epoch: Epoch(epoch), changes: &o.bytes },
        23 => Record::Differences { session, json: &o.bytes },
        24 => Record::Section { section: Section::Head, bytes: &o.bytes },
        _ => Record::Section {
            section: if o.small.is_multiple_of(2) { Section::Volume } else { Section::Index },
            bytes: &o.bytes,
        },
    }
}

/// Gives a few bytes at a time, and now and then none.
struct Dribble<'a> {
    rest: &'a [u8],
    sizes: Vec<u8>,
    turn: usize,
}

impl Read for Dribble<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.turn += 1;
        let size = usize::from(self.sizes[self.turn % self.sizes.len()]);
        if size.is_multiple_of(5) && self.turn.is_multiple_of(2) {
            return Err(ErrorKind::WouldBlock.into());
        }
        let n = (size + 1).min(buf.len()).min(self.rest.len());
        buf[..n].copy_from_slice(&self.rest[..n]);
        self.rest = &self.rest[n..];
        Ok(n)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn records_come_back(all in prop::collection::vec(owned(), 1..12), sizes in prop::collection::vec(any::<u8>(), 1..9)) {
        let mut bytes = Preamble::OURS.to_bytes().to_vec();
        let mut checksums = Vec::new();
        for o in &all {
            checksums.push(record(o).encode(&mut bytes).unwrap());
        }
        let mut reader = RecordReader::new(Dribble { rest: &bytes, sizes, turn: 0 });
        loop {
            match reader.preamble() {
                Ok(preamble) => break prop_assert_eq!(preamble, Preamble::OURS),
                Err(e) => prop_assert!(e.is_wait(), "{e}"),
            }
        }
        let mut next = all.iter().zip(&checksums);
        loop {
            match reader.next_record() {
                Ok(Some(frame)) => {
                    let (o, checksum) = next.next().unwrap();
                    prop_assert_eq!(&frame.record, &record(o));
                    prop_assert_eq!(frame.checksum, *checksum);
                }
                Ok(None) => break,
                Err(e) => prop_assert!(e.is_wait(), "{e}"),
            }
        }
        prop_assert!(next.next().is_none());
    }

    /// Whatever the bytes are, reading ends, in an error or at the end, and no buffer is over the bound.
    #[test]
    fn noise_is_refused_within_bounds(bytes in prop::collection::vec(any::<u8>(), 0..400), kind in 0..20u8, length in any::<u32>()) {
        let mut stream = vec![kind, 1, 0, 0];
        stream.extend_from_slice(&length.to_le_bytes());
        stream.extend_from_slice(&bytes);
        let mut reader = RecordReader::new(Bounded(&stream));
        while let Ok(Some(_)) = reader.next_record() {}
    }
}

/// Fails the test when it is offered a buffer over the bound: the reader then allocated it.
struct Bounded<'a>(&'a [u8]);

impl Read for Bounded<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        assert!(buf.len() <= HEADER_LEN + MAX_PAYLOAD + (64 << 10), "a buffer of {} bytes", buf.len());
        self.0.read(buf)
    }
}

fn with_header(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, flags, 0, 0];
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes);
    crc.update(payload);
    bytes.extend_from_slice(&crc.finalize().to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

#[test]
fn unknown_records_are_skipped_only_when_they_say_so() {
    let mut bytes = with_header(200, 1, &[7; 5000]);
    Record::Bye { reason: "done" }.encode(&mut bytes).unwrap();
    let mut reader = RecordReader::new(&bytes[..]);
    assert_eq!(reader.next_record().unwrap().unwrap().record, Record::Bye { reason: "done" });
    assert!(reader.next_record().unwrap().is_none());

    let bytes = with_header(200, 0, b"x");
    assert!(matches!(RecordReader::new(&bytes[..]).next_record(), Err(StreamError::UnknownKind { kind: 200 })));
    // A flag of a later version.
    let bytes = with_header(Kind::Bye as u8, 2, b"x");
    assert!(matches!(RecordReader::new(&bytes[..]).next_record(), Err(StreamError::Malformed { .. })));
}

#[test]
fn lengths_over_the_bound_are_refused_from_the_header_alone() {
    for (kind, length) in [
        (6u8, u32::MAX),
        (6, MAX_PAYLOAD as u32 + 1),
        (11, 129),
        (1, (1 << 20) + 1),
        (17, (64 << 10) + 1),
        (250, u32::MAX),
    ] {
        let mut bytes = vec![kind, u8::from(kind == 250), 0, 0];
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        let result = RecordReader::new(Bounded(&bytes)).next_record().map(|_| ());
        assert!(matches!(result, Err(StreamError::TooLarge { .. })), "{kind} {length}: {result:?}");
    }
    let big = vec![0; MAX_PAYLOAD];
    let pass = Pass { session: 1, kind: PassKind::Checkpoint, epoch: Epoch(1) };
    let mut out = vec![9];
    let result = Record::DeviceState(DeviceState { pass, offset: 0, bytes: &big }).encode(&mut out);
    assert!(matches!(result, Err(StreamError::TooLarge { .. })) && out == [9]);
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let long = "ä".repeat(MAX_TEXT);
    let mut bytes = Vec::new();
    Record::Bye { reason: &long }.encode(&mut bytes).unwrap();
    let mut reader = RecordReader::new(&bytes[..]);
    let frame = reader.next_record().unwrap().unwrap();
    assert_eq!(frame.record, Record::Bye { reason: &long[..MAX_TEXT] });
}

#[test]
fn versions_are_agreed_on_or_refused() {
    let agree = |version, oldest| Preamble { version, oldest }.agree();
    assert_eq!(agree(VERSION, OLDEST_VERSION).unwrap(), VERSION);
    assert_eq!(agree(VERSION + 1, VERSION).unwrap(), VERSION);
    assert!(matches!(agree(VERSION + 2, VERSION + 1), Err(StreamError::Version { .. })));
    assert!(matches!(agree(OLDEST_VERSION - 1, 0), Err(StreamError::Version { .. })));
    assert!(matches!(agree(VERSION, VERSION + 1), Err(StreamError::Version { .. })));
    let mut reader = RecordReader::new(&b"GET / HTTP/1.1\r\n"[..]);
    assert!(matches!(reader.preamble(), Err(StreamError::BadMagic)));
    assert!(reader.next_record().is_err(), "a refused stream stays refused");
}

#[test]
fn layouts_that_cannot_be_are_refused() {
    let block = |used, total| BlockInfo { name: "pc.ram".into(), used, total };
    assert!(Layout::new(vec![block(8192, 4096)]).is_err());
    assert!(Layout::new(vec![block(0, 100)]).is_err());
    assert!(Layout::new(vec![block(0, 1 << 45)]).is_err());
    assert!(Layout::new(vec![block(0, u64::MAX - 4095); 3]).is_err());
    assert!(Layout::new(vec![block(0, 4096); 1025]).is_err());
    let ours = Layout::new(vec![block(4096, 8192)]).unwrap();
    let theirs = Layout::new(vec![block(4096, 8192), block(0, 4096)]).unwrap();
    assert!(ours.same_as(&ours).is_ok());
    let error = ours.same_as(&theirs).unwrap_err().to_string();
    assert_eq!(error, "RAM block 1 is 'absent' here and 'pc.ram (0 of 4096 bytes)' on the other side");
}

/// A checkpoint over the reader's bounds is refused when it is written: a log that had it could not be read again.
#[test]
fn a_checkpoint_that_no_reader_would_take_is_not_written() {
    use ninefold_replica::stream::record::MAX_VOLUME_WRITES;
    let piece = vec![0; 4 << 20];
    for (kind, refused) in [(PassKind::Checkpoint, true), (PassKind::Sync, false)] {
        let (mut out, mut scratch) = (io::sink(), Vec::new());
        let pass = Pass { session: 1, kind, epoch: Epoch(1) };
        let mut writer = PassWriter::begin(&mut out, &mut scratch, pass, Term(1)).unwrap();
        let mut offset = 0;
        while offset < MAX_VOLUME_WRITES {
            offset = writer.volume_writes(0, offset, &piece).unwrap();
        }
        // Of all volumes together.
        let over = writer.volume_writes(1, 0, &piece);
        assert_eq!(matches!(over, Err(StreamError::TooLarge { .. })), refused, "{over:?}");
    }
}
