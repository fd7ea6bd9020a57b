//! The sender of a session and what it is given and told, over a real connection.

mod hello;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{channel, sync_channel};
use std::thread;
use std::time::Duration;

use hello::hello;
use ninefold_keeper::config::KeeperConfig;
use ninefold_keeper::devices::disks::Disks;
use ninefold_keeper::msg::Msg;
use ninefold_keeper::primary::capture::{Capture, Join, Taken};
use ninefold_keeper::primary::session::job::Job;
use ninefold_keeper::primary::session::{self, Settings};
use ninefold_keeper::primary::waker::Waker;
use ninefold_machine::BlockLayout;
use ninefold_model::{Epoch, Term};
use ninefold_replica::pacing::MAX_IN_FLIGHT;
use ninefold_replica::stream::{PassKind, Preamble, Record, RecordReader, StreamError, write_record};
use ninefold_transport::{Link, Listener, Security, connect};
use ninefold_volume::checksums::BLOCK;

/// Only so that a failure ends.
const LIMIT: Duration = Duration::from_secs(60);
const SESSION: Term = Term(5);

/// Both ends of a connection: the primary's, the backup's.
fn pair() -> (Link, Link) {
    let plain = |host: &str| Security::PlainText { host: host.parse().unwrap() };
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), plain("b")).unwrap();
    let addr = listener.local_addr();
    let accepting = thread::spawn(move || listener.accept().unwrap().handshake(LIMIT).unwrap());
    let ours = connect(addr, &"b".parse().unwrap(), &plain("a"), LIMIT).unwrap();
    (ours, accepting.join().unwrap())
}

fn settings(disks: Disks) -> Settings {
    Settings {
        heartbeat: LIMIT,
        uplink: Arc::new(AtomicBool::new(true)),
        disks: Arc::new(disks),
        waker: Waker::new().unwrap(),
    }
}

/// What the backup is sent, until the connection ends.
fn heard(link: Link, mut tell: impl FnMut(&Record<'_>)) {
    let (reader, _writer) = link.split();
    let mut records = RecordReader::new(reader);
    records.preamble().unwrap();
    while let Some(frame) = records.next_record().unwrap() {
        tell(&frame.record);
    }
}

/// A primary in doubt asks the witness again and again, and each answer says that the backup is bound. A session that takes its
/// time has room for its checkpoints nevertheless, and ends with the words that were to be its last.
#[test]
fn what_a_slow_session_is_told_takes_no_room_from_checkpoints() {
    let (ours, theirs) = pair();
    let (core, _heard) = channel();
    let session = session::open(ours, hello(SESSION.0, 1 << 20), settings(Disks::default()), core).unwrap();
    // It waits for the end of this round, with another behind it.
    let (pieces, taken) = sync_channel(1);
    session.jobs.send(Job::Round { round: Epoch(1), pieces: taken }).unwrap();
    session.jobs.send(Job::Round { round: Epoch(2), pieces: sync_channel(1).1 }).unwrap();
    for term in 1..=1000 {
        session.bound(Term(SESSION.0 + term));
    }
    session.relinquish(Epoch(8), "the host is to be updated".into());
    session.bye("the session has ended");
    // In place of checkpoints.
    for volume in 0..=MAX_IN_FLIGHT {
        let job = Job::Sums { volume: volume as u16, first: 0, sums: vec![0; 16] };
        session.jobs.try_send(job).expect("there is room for a checkpoint");
    }
    session.finish();
    drop(pieces);

    let mut seen = Vec::new();
    heard(theirs, |record| match record {
        Record::Bound { term, .. } => seen.push(format!("bound in term {term}")),
        Record::VolumeSums { volume, .. } => seen.push(format!("checkpoint {volume}")),
        Record::Relinquish { epoch, .. } => seen.push(format!("relinquished at {epoch}")),
        Record::Bye { .. } => seen.push("bye".into()),
        _ => {}
    });
    let newest = format!("bound in term {}", Term(SESSION.0 + 1000));
    // SharedHealth before the sender had begun its first round, an older one may have been said, too.
    seen.retain(|said| !said.starts_with("bound") || *said == newest);
    let checkpoints = (0..=MAX_IN_FLIGHT).map(|volume| format!("checkpoint {volume}"));
    let last = [format!("relinquished at {}", Epoch(8)), "bye".into()];
    assert_eq!(seen, [newest].into_iter().chain(checkpoints).chain(last).collect::<Vec<_>>());
}

/// A volume, and a keeper's configuration that has it.
fn volume(dir: &Path, size: u64) -> Disks {
    let config = serde_json::json!({
        "id": "3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4", "name": "db",
        "hardware": { "memory_mib": 256, "boot": "volume", "volumes": [{ "name": "data", "size": size }] },
        "host": {
            "name": "a", "run_dir": dir, "pool": dir.join("pool"), "listen": "127.0.0.1:0", "security": "plain_text"
        },
        "policy": { "witness": { "host": "w", "addr": "127.0.0.1:1" } }
    });
    let config: KeeperConfig = serde_json::from_value(config).unwrap();
    std::fs::create_dir_all(config.vm_dir()).unwrap();
    Disks::open(&config).unwrap()
}

/// While memory is copied a guest may write to its volumes as much as it likes. A checkpoint has a bound, and a backup that is sent
/// too much of them would never become one.
#[test]
fn what_a_guest_wrote_while_memory_was_copied_comes_before_its_first_checkpoint() {
    const SIZE: u64 = 64 << 20;
    for (blocks, apart) in [(16, false), (SIZE / BLOCK, true)] {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = pair();
        let (core, _heard) = channel();
        let session = session::open(ours, hello(SESSION.0, 1 << 20), settings(volume(dir.path(), SIZE)), core).unwrap();
        session.jobs.send(Job::Round { round: Epoch(3), pieces: sync_channel(1).1 }).unwrap();
        let mut capture = Box::new(Capture::for_layout(&BlockLayout { blocks: Vec::new() }).unwrap());
        capture.epoch = Epoch(7);
        let taken = Arc::new(Taken::new(capture, channel().0, Waker::new().unwrap()));
        let join = Join { rest: vec![(0..blocks).collect()], ..Join::default() };
        session.jobs.send(Job::Checkpoint { taken, join: Some(Box::new(join)) }).unwrap();
        session.finish();

        let (mut passes, mut bytes) = (Vec::new(), [0; 2]);
        heard(theirs, |record| match record {
            Record::Begin { pass, .. } => passes.push((pass.kind, pass.epoch)),
            Record::VolumeWrites(writes) => {
                bytes[usize::from(writes.pass.kind == PassKind::Checkpoint)] += writes.bytes.len() as u64;
            }
            _ => {}
        });
        let rounds = (3..=if apart { 4 } else { 3 }).map(|round| (PassKind::Sync, Epoch(round)));
        assert_eq!(passes, rounds.chain([(PassKind::Checkpoint, Epoch(7))]).collect::<Vec<_>>());
        // Zeros, which are short.
        assert_eq!(bytes.map(|sent| sent > 0), [apart, !apart]);
    }
}

/// A backup that answers more than it is asked is not remembered, answer for answer.
#[test]
fn answers_to_nothing_end_the_session() {
    let (ours, theirs) = pair();
    let (core, told) = channel();
    let _session = session::open(ours, hello(SESSION.0, 1 << 20), settings(Disks::default()), core).unwrap();
    let (_reader, mut writer) = theirs.split();
    writer.write_all(&Preamble::OURS.to_bytes()).unwrap();
    let answer = Record::VolumeDiffers { session: SESSION.0, volume: 0, first: 0, bits: &[0; 16] };
    // As many as may be asked for are kept; the connection is not there any more when far more have been sent.
    let mut scratch = Vec::new();
    for _ in 0..64 {
        let sent = write_record(&mut writer, &mut scratch, &answer);
        if sent.and_then(|_| writer.flush().map_err(StreamError::Io)).is_err() {
            break;
        }
    }
    let Msg::SessionEnded { reason, .. } = told.recv_timeout(LIMIT).unwrap() else { panic!("something else") };
    assert!(reason.contains("was not asked"), "{reason}");
}
