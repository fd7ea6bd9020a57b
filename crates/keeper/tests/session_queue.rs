//! The sender of a session and what it is told, over a real connection.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{channel, sync_channel};
use std::thread;
use std::time::Duration;

use ninefold_keeper::bell::Bell;
use ninefold_keeper::disks::Disks;
use ninefold_keeper::session::{self, Job, Settings};
use ninefold_model::spec::{Accel, EpochPolicy};
use ninefold_model::{Epoch, Term};
use ninefold_replica::pacing::MAX_IN_FLIGHT;
use ninefold_replica::stream::{BlockInfo, Hello, Layout, Record, RecordReader};
use ninefold_transport::{Link, Listener, Security, connect};

/// Only so that a failure ends.
const LIMIT: Duration = Duration::from_secs(60);
const SESSION: Term = Term(5);

fn hello() -> Hello {
    let block = BlockInfo { name: "ram".into(), used: 1 << 20, total: 1 << 20 };
    Hello {
        session: SESSION.0,
        vm: "db".parse().unwrap(),
        from: "a".parse().unwrap(),
        term: SESSION,
        spec: serde_json::from_str(
            r#"{"name":"db","memory_mib":256,"boot":{"linux":{"kernel":"/k","initrd":"/i","cmdline":"quiet"}},"nics":[]}"#,
        )
        .unwrap(),
        epoch_policy: EpochPolicy::default(),
        qemu: "10.0.2".into(),
        accel: Accel::Tcg,
        layout: Layout::new(vec![block]).unwrap(),
        lanes: 1,
        health: Default::default(),
        reign: None,
        origin: None,
    }
}

/// Both ends of a connection: the primary's, the backup's.
fn pair() -> (Link, Link) {
    let plain = |host: &str| Security::PlainText { host: host.parse().unwrap() };
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), plain("b")).unwrap();
    let addr = listener.local_addr();
    let accepting = thread::spawn(move || listener.accept().unwrap().handshake(LIMIT).unwrap());
    let ours = connect(addr, &"b".parse().unwrap(), &plain("a"), LIMIT).unwrap();
    (ours, accepting.join().unwrap())
}

/// A primary in doubt asks the witness again and again, and each answer says that the backup is bound. A session that takes its
/// time has room for its checkpoints nevertheless, and ends with the words that were to be its last.
#[test]
fn what_a_slow_session_is_told_takes_no_room_from_checkpoints() {
    let (ours, theirs) = pair();
    let (core, _heard) = channel();
    let settings = Settings {
        heartbeat: LIMIT,
        uplink: Arc::new(AtomicBool::new(true)),
        disks: Arc::new(Disks::default()),
        bell: Bell::new().unwrap(),
    };
    let session = session::open(ours, hello(), settings, core).unwrap();
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

    let (reader, _writer) = theirs.split();
    let mut records = RecordReader::new(reader);
    records.preamble().unwrap();
    let mut seen = Vec::new();
    while let Some(frame) = records.next_record().unwrap() {
        match frame.record {
            Record::Bound { term, .. } => seen.push(format!("bound in term {term}")),
            Record::VolumeSums { volume, .. } => seen.push(format!("checkpoint {volume}")),
            Record::Relinquish { epoch, .. } => seen.push(format!("relinquished at {epoch}")),
            Record::Bye { .. } => seen.push("bye".into()),
            _ => {}
        }
    }
    let newest = format!("bound in term {}", Term(SESSION.0 + 1000));
    // Told before the sender had begun its first round, an older one may have been said, too.
    seen.retain(|said| !said.starts_with("bound") || *said == newest);
    let checkpoints = (0..=MAX_IN_FLIGHT).map(|volume| format!("checkpoint {volume}"));
    let last = [format!("relinquished at {}", Epoch(8)), "bye".into()];
    assert_eq!(seen, [newest].into_iter().chain(checkpoints).chain(last).collect::<Vec<_>>());
}
