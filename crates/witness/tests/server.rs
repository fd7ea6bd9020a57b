//! The witness over real connections: its rules, its bounds, bad peers, restarts.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ninefold_model::{Backup, Label, Record, Term};
use ninefold_transport::{Security, connect};
use ninefold_witness::registers::{FILE, OpenError};
use ninefold_witness::{Limits, Registers};
use ninefold_witness_client::wire::{Answer, Entry, MAX_FRAME, Response};
use ninefold_witness_client::{Swap, Witness, WitnessClient, WitnessError};
use support::{PATIENT, Place, any_port, host, label, vm};

fn booted(place: &Place, addr: std::net::SocketAddr) -> (WitnessClient, Record) {
    let mut a = place.client("a", addr);
    let boot = Record::boot(host("a"));
    assert_eq!(a.compare_and_swap(vm("db"), &label(), None, &boot).unwrap(), Swap::Won(boot.clone()));
    (a, boot)
}

/// A backup in the first session of a VM.
fn first(name: &str) -> Backup {
    Backup { host: host(name), session: Term(1) }
}

#[test]
fn a_failover_as_the_witness_sees_it() {
    let place = Place::new();
    let server = place.serve(any_port(), Limits::default());
    let (mut a, boot) = booted(&place, server.addr);
    let mut b = place.client("b", server.addr);
    assert_eq!(b.read(vm("other")).unwrap(), None);

    let bound = boot.bound(vec![first("b")]);
    assert_eq!(a.compare_and_swap(vm("db"), &label(), Some(&boot), &bound).unwrap(), Swap::Won(bound.clone()));
    assert_eq!(b.read(vm("db")).unwrap(), Some(bound.clone()));

    // Both want it: the backup is first.
    let (taken, alone) = (bound.alone(host("b")), bound.alone(host("a")));
    assert_eq!(b.compare_and_swap(vm("db"), &label(), Some(&bound), &taken).unwrap(), Swap::Won(taken.clone()));
    assert_eq!(a.compare_and_swap(vm("db"), &label(), Some(&bound), &alone).unwrap(), Swap::Lost(Some(taken.clone())));
    // The reply was lost, the proposal comes again.
    assert_eq!(b.compare_and_swap(vm("db"), &label(), Some(&bound), &taken).unwrap(), Swap::Won(taken.clone()));
    assert_eq!(a.list().unwrap(), [Entry { vm: vm("db"), name: label().name, record: taken }]);
}

/// The name that was given last is what all hosts read, whatever a host that has not heard of it says, and after a restart of the witness.
#[test]
fn a_vm_is_renamed_for_all_hosts() {
    let place = Place::new();
    let server = place.serve(any_port(), Limits::default());
    let (mut a, boot) = booted(&place, server.addr);
    let mut b = place.client("b", server.addr);
    let web = Label { name: "web".parse().unwrap(), number: 1 };
    assert_eq!(a.rename(vm("other"), &web).unwrap(), None, "there is none");
    assert_eq!(b.rename(vm("db"), &web).unwrap(), Some(web.clone()));
    assert_eq!(a.read_labelled(vm("db")).unwrap(), Some((boot.clone(), web.clone())));
    // Two at once, and one again: the first counts.
    let mail = Label { name: "mail".parse().unwrap(), number: 1 };
    assert_eq!(a.rename(vm("db"), &mail).unwrap(), Some(web.clone()));
    let next = boot.alone(host("a"));
    assert!(matches!(a.compare_and_swap(vm("db"), &label(), Some(&boot), &next), Ok(Swap::Won(_))));
    drop(server);
    let server = place.serve(any_port(), Limits::default());
    let mut b = place.client("b", server.addr);
    assert_eq!(b.read_labelled(vm("db")).unwrap(), Some((next, web)));
    assert_eq!(b.list().unwrap()[0].name.as_str(), "web");
}

#[test]
fn nobody_proposes_for_another_host() {
    let place = Place::new();
    let server = place.serve(any_port(), Limits::default());
    let mut b = place.client("b", server.addr);
    let verdict = b.compare_and_swap(vm("db"), &label(), None, &Record::boot(host("a")));
    let Err(WitnessError::Refused(reason)) = verdict else { panic!("{verdict:?}") };
    assert!(reason.contains("host b may not propose a"), "{reason}");
    // The connection is still good.
    assert_eq!(b.read(vm("db")).unwrap(), None);
    let skipped = Record { term: Term(2), ..Record::boot(host("b")) };
    assert!(matches!(b.compare_and_swap(vm("db"), &label(), None, &skipped), Err(WitnessError::Refused(_))));
}

#[test]
fn racing_hosts_win_each_term_once() {
    let place = Place::new();
    let server = place.serve(any_port(), Limits::default());
    const WINS: usize = 100;
    let racing = ["a", "b"].map(|name| {
        let mut client = place.client(name, server.addr);
        std::thread::spawn(move || {
            let (mut won, mut last) = (Vec::new(), None::<Record>);
            while last.as_ref().is_none_or(|r| r.term.0 < WINS as u64) {
                let new = last.as_ref().map_or_else(|| Record::boot(host(name)), |r| r.alone(host(name)));
                last = match client.compare_and_swap(vm("db"), &label(), last.as_ref(), &new).unwrap() {
                    Swap::Won(record) => {
                        won.push(record.term.0);
                        Some(record)
                    }
                    Swap::Lost(record) => record,
                };
            }
            won
        })
    });
    let mut terms: Vec<u64> = racing.into_iter().flat_map(|t| t.join().unwrap()).collect();
    terms.sort_unstable();
    let last = place.client("a", server.addr).read(vm("db")).unwrap().unwrap();
    assert_eq!(terms, (1..=last.term.0).collect::<Vec<_>>());
}

#[test]
fn a_kept_connection_that_died_is_replaced() {
    let place = Place::new();
    let server = place.serve(any_port(), Limits::default());
    let addr = server.addr;
    let (mut a, boot) = booted(&place, addr);
    drop(server);
    let down = a.compare_and_swap(vm("db"), &label(), Some(&boot), &boot.bound(vec![first("b")]));
    assert!(matches!(down, Err(WitnessError::Unreachable { .. })), "{down:?}");
    let server = place.serve(addr, Limits::default());
    assert_eq!(a.read(vm("db")).unwrap(), Some(boot.clone()));
    drop(server);
    // It went and came back between two calls: the second does not notice.
    let _server = place.serve(addr, Limits::default());
    let bound = boot.bound(vec![first("b")]);
    assert_eq!(a.compare_and_swap(vm("db"), &label(), Some(&boot), &bound).unwrap(), Swap::Won(bound));
}

#[test]
fn long_lists_come_in_pages() {
    let place = Place::new();
    let registers = Registers::open(place.data()).unwrap();
    let mut ids: Vec<_> = (0..450).map(|i| vm(&format!("vm-{i}"))).collect();
    std::thread::scope(|s| {
        for part in ids.chunks(10) {
            let registers = &registers;
            s.spawn(move || {
                for id in part {
                    let boot = Record::boot(host("a"));
                    registers.compare_and_swap(host("a"), *id, label(), None, boot).unwrap();
                }
            });
        }
    });
    let server = place.serve_registers(any_port(), Limits::default(), registers);
    ids.sort();
    let listed = place.client("b", server.addr).list().unwrap();
    assert_eq!(listed.into_iter().map(|entry| entry.vm).collect::<Vec<_>>(), ids);
}

#[test]
fn the_number_of_vms_is_bounded() {
    let place = Place::new();
    let registers = Registers::open_limited(place.data(), 2).unwrap();
    let server = place.serve_registers(any_port(), Limits::default(), registers);
    let mut a = place.client("a", server.addr);
    let boot = Record::boot(host("a"));
    for name in ["one", "two"] {
        assert!(matches!(a.compare_and_swap(vm(name), &label(), None, &boot), Ok(Swap::Won(_))));
    }
    assert!(matches!(a.compare_and_swap(vm("three"), &label(), None, &boot), Err(WitnessError::Refused(_))));
    // Those that are there go on.
    assert!(matches!(
        a.compare_and_swap(vm("two"), &label(), Some(&boot), &boot.bound(vec![first("b")])),
        Ok(Swap::Won(_))
    ));
    assert!(matches!(a.compare_and_swap(vm("one"), &label(), None, &boot), Ok(Swap::Won(_))));
}

/// Sends bytes over a good link; answers what comes back until the server closes.
fn say(place: &Place, addr: std::net::SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let link = connect(addr, &host("w"), &place.security("a"), PATIENT.connect).unwrap();
    let (mut reader, mut writer) = link.split();
    // A server that has refused already has closed: what counts is its answer.
    let _ = writer.write_all(bytes).and_then(|()| writer.finish());
    let mut answer = Vec::new();
    let _ = reader.read_to_end(&mut answer);
    answer
}

#[test]
fn bad_frames_are_refused_with_a_reason_and_harm_nobody() {
    let place = Place::new();
    let server = place.serve(any_port(), Limits::default());
    let (mut a, boot) = booted(&place, server.addr);
    let frame = |json: &[u8]| [&(json.len() as u32).to_be_bytes()[..], json].concat();
    let cases: [(Vec<u8>, &str); 8] = [
        (frame(b"{}"), "not a message"),
        (frame(b""), "not a message"),
        (frame(b"\xff\xfe\x00"), "not a message"),
        (frame(br#"{"version":9,"id":1,"call":{"op":"ping"}}"#), "version 9"),
        (frame(br#"{"version":1,"id":1,"call":{"op":"ping"}}"#), "version 1; this witness speaks 4"),
        (frame(br#"{"version":4,"id":1,"call":{"op":"read","vm":"A/../B"}}"#), "not a message"),
        (frame("[".repeat(60_000).as_bytes()), "not a message"),
        (((MAX_FRAME + 1) as u32).to_be_bytes().to_vec(), "the limit is 65536"),
    ];
    for (bytes, word) in cases {
        let answer = say(&place, server.addr, &bytes);
        let json = answer.get(4..).expect("a refusal comes back");
        let response: Response = serde_json::from_slice(json).unwrap();
        let Answer::Refused { reason } = response.answer else { panic!("{:?}", response.answer) };
        assert!(reason.contains(word), "{reason}");
    }
    // A frame that never ends.
    assert!(say(&place, server.addr, &[0, 0, 1, 0, b'{']).is_empty());
    assert_eq!(a.read(vm("db")).unwrap(), Some(boot));
}

/// A file of another format is left as it is, whatever its records look like.
#[test]
fn a_file_of_another_format_is_refused() {
    for format in [3_u64, 5] {
        let place = Place::new();
        drop(Registers::open(place.data()).unwrap());
        let db = redb::Database::open(place.data().join(FILE)).unwrap();
        let transaction = db.begin_write().unwrap();
        let meta = redb::TableDefinition::<&str, u64>::new("meta");
        transaction.open_table(meta).unwrap().insert("format", format).unwrap();
        // Another format may have other keys.
        let records = redb::TableDefinition::<&[u8; 16], &[u8]>::new("records");
        assert!(transaction.delete_table(records).unwrap());
        let records = redb::TableDefinition::<&str, &[u8]>::new("records");
        transaction.open_table(records).unwrap().insert("db", &b"{}"[..]).unwrap();
        transaction.commit().unwrap();
        drop(db);
        for _ in 0..2 {
            let opened = Registers::open(place.data()).map(drop);
            assert!(matches!(&opened, Err(OpenError::Format { found, .. }) if *found == format), "{opened:?}");
        }
    }
}

/// A file that something else has written to: what no witness stores is an error, by name, and not somebody's record.
#[test]
fn a_file_with_impossible_records_is_refused() {
    let long = format!("{{\"term\":7,\"primary\":\"a\",\"backups\":[]{}}}", " ".repeat(1 << 20));
    let (db, other) = (vm("db").to_bytes(), [7; 16]);
    for (id, bad) in [
        (db, r#"{"term":7,"primary":"a","backups":[{"host":"a","session":1}]}"#),
        (db, r#"{"term":7,"primary":"a","backups":[{"host":"b","session":7}]}"#),
        (db, r#"{"term":7,"primary":"a","backups":[{"host":"b","session":1},{"host":"b","session":2}]}"#),
        (db, &long),
        // No random number is this one.
        (other, r#"{"term":7,"primary":"a","backups":[]}"#),
    ] {
        let place = Place::new();
        drop(Registers::open(place.data()).unwrap());
        let file = redb::Database::open(place.data().join(FILE)).unwrap();
        let transaction = file.begin_write().unwrap();
        let table = redb::TableDefinition::<&[u8; 16], &[u8]>::new("records");
        let labelled = format!(r#"{{"name":"db","record":{bad}}}"#);
        transaction.open_table(table).unwrap().insert(&id, labelled.as_bytes()).unwrap();
        transaction.commit().unwrap();
        drop(file);
        let opened = Registers::open(place.data()).map(drop);
        let name = format!("{:032x}", u128::from_be_bytes(id));
        assert!(matches!(&opened, Err(OpenError::Record { vm, .. }) if *vm == name), "{opened:?}");
    }
}

/// As many as there are places for handshakes, and more; the limit for a handshake is far longer than the client waits.
#[test]
fn strangers_and_half_open_connections_keep_nobody_out() {
    let place = Place::new();
    let server = place.serve(any_port(), Limits { handshake: 2 * PATIENT.request, ..Limits::default() });
    let silent: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(server.addr).unwrap()).collect();
    // Their places are free a moment later.
    let begun = Instant::now();
    while place.client("a", server.addr).ping().is_err() {
        assert!(begun.elapsed() < PATIENT.request, "nobody is served");
    }
    // A stranger without TLS is not served.
    let plain = Security::PlainText { host: host("a") };
    assert!(connect(server.addr, &host("w"), &plain, PATIENT.connect).is_err());
    drop(silent);
}

#[test]
fn a_host_with_many_connections_keeps_no_other_out() {
    let place = Place::new();
    let limits = Limits { connections: 4, grace: Duration::ZERO, ..Limits::default() };
    let server = place.serve(any_port(), limits);
    let mut b = place.client("b", server.addr);
    b.ping().unwrap();
    let mut many: Vec<_> = (0..12).map(|_| place.client("a", server.addr)).collect();
    many.iter_mut().for_each(|a| a.ping().unwrap());
    // Those that have lost their places come back by themselves.
    many.iter_mut().for_each(|a| a.ping().unwrap());
    b.ping().unwrap();
    let mut another = place.client("b", server.addr);
    another.ping().unwrap();
}

#[test]
fn those_that_have_just_asked_keep_their_places() {
    let place = Place::new();
    let limits = Limits { connections: 2, grace: Duration::from_secs(3600), ..Limits::default() };
    let server = place.serve(any_port(), limits);
    let (mut a, mut b) = (place.client("a", server.addr), place.client("b", server.addr));
    a.ping().unwrap();
    b.ping().unwrap();
    let mut third = place.client("a", server.addr);
    assert!(matches!(third.ping(), Err(WitnessError::Unreachable { .. })));
    a.ping().unwrap();
}

#[test]
fn a_stranger_at_the_witness_address_is_not_believed() {
    let place = Place::new();
    let server = place.serve(any_port(), Limits::default());
    let mut misled = WitnessClient::new(server.addr, host("b"), place.security("a"), PATIENT);
    assert!(matches!(misled.ping(), Err(WitnessError::Unreachable { .. })));
}
