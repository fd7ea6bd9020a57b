//! The witness process: killed at any time, restarted, started twice.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use ninefold_model::Record;
use ninefold_transport::Validity;
use ninefold_transport::authority::Which;
use ninefold_witness_client::{Swap, Timeouts, Witness, WitnessClient, WitnessError};
use support::{Place, any_port, host, label, vm};

/// Swaps go on while the process is killed and restarted again and again; every acknowledged one must be there.
#[test]
fn every_acknowledged_swap_survives_kill_9() {
    let place = Place::new();
    let mut process = place.spawn(any_port());
    let addr = process.addr;
    const ROUNDS: u64 = 8;
    for round in 0..ROUNDS {
        let (acknowledged, heard) = channel();
        // Two hosts, a VM each and one more for each round, so that inserts are under way as well as changes.
        let swapping: Vec<_> = ["a", "b"]
            .into_iter()
            .map(|name| {
                let acknowledged = acknowledged.clone();
                let quick = Timeouts { connect: Duration::from_secs(30), request: Duration::from_secs(30) };
                let mut client = WitnessClient::new(addr, host("w"), place.security(name), quick);
                std::thread::spawn(move || {
                    let register = vm(&format!("vm-{name}"));
                    let mut last = client.read(register).unwrap();
                    let mut extra = 0;
                    loop {
                        let new = last.as_ref().map_or_else(|| Record::boot(host(name)), |r| r.alone(host(name)));
                        match client.compare_and_swap(register, &label(), last.as_ref(), &new) {
                            Ok(Swap::Won(record)) => last = Some(record),
                            Ok(Swap::Lost(found)) => panic!("lost to {found:?}"),
                            Err(WitnessError::Unreachable { .. }) => return (register, last, new),
                            Err(error) => panic!("{error}"),
                        }
                        let fresh = vm(&format!("new-{name}-{round}-{extra}"));
                        let boot = Record::boot(host(name));
                        match client.compare_and_swap(fresh, &label(), None, &boot) {
                            Ok(Swap::Won(_)) => acknowledged.send(fresh).unwrap(),
                            Ok(Swap::Lost(found)) => panic!("lost to {found:?}"),
                            Err(_) => return (register, last, new),
                        }
                        extra += 1;
                    }
                })
            })
            .collect();
        drop(acknowledged);
        // Kill it in full flow, after a different number of acknowledgements each time.
        let mut there: Vec<_> = heard.iter().take(3 + 5 * round as usize).collect();
        process.kill();
        let outcomes: Vec<_> = swapping.into_iter().map(|t| t.join().unwrap()).collect();
        there.extend(heard.try_iter());

        process = place.spawn(addr);
        let mut reader = place.client("a", addr);
        for (register, acknowledged, in_flight) in outcomes {
            let found = reader.read(register).unwrap();
            assert!(
                found == acknowledged || found.as_ref() == Some(&in_flight),
                "{register}: acknowledged {acknowledged:?}, in flight {in_flight:?}, found {found:?}"
            );
        }
        let listed: std::collections::HashSet<_> = reader.list().unwrap().into_iter().map(|entry| entry.vm).collect();
        for vm in there {
            assert!(listed.contains(&vm), "{vm} was acknowledged and is gone");
        }
    }
}

#[test]
fn a_second_process_on_the_same_data_is_refused() {
    let place = Place::new();
    let _first = place.spawn(any_port());
    let second = Command::new(env!("CARGO_BIN_EXE_ninefold-witness"))
        .args(["--listen", "127.0.0.1:0", "--plain-text", "w", "--data"])
        .arg(place.data())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("in use by another witness process"), "{said}");
}

#[test]
fn sigterm_ends_it_in_order_although_peers_are_connected() {
    let place = Place::new();
    let mut process = place.spawn(any_port());
    let mut client = place.client("a", process.addr);
    client.ping().unwrap();
    let status = Command::new("kill").arg(process.child.id().to_string()).status().unwrap();
    assert!(status.success());
    assert!(process.child.wait().unwrap().success());
}

#[test]
fn without_a_choice_of_security_it_does_not_start() {
    let place = Place::new();
    for extra in [&[][..], &["--plain-text", "w", "--identity", "/nowhere"], &["--plain-text", "Not A Name"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_ninefold-witness"))
            .args(["--listen", "127.0.0.1:0", "--data"])
            .arg(place.data())
            .args(extra)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{extra:?}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_ninefold-witness"))
        .args(["--listen", "127.0.0.1:0", "--identity", "/nowhere", "--data"])
        .arg(place.data())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere/ca.pem"));
}

#[test]
fn a_witness_that_stands_still_is_unreachable_in_time() {
    let place = Place::new();
    let process = place.spawn(any_port());
    let short = Timeouts { connect: Duration::from_millis(100), request: Duration::from_millis(200) };
    let mut client = WitnessClient::new(process.addr, host("w"), place.security("a"), short);
    while client.ping().is_err() {}
    let signal = |name: &str| {
        let id = process.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    };
    signal("-STOP");
    let start = Instant::now();
    let boot = Record::boot(host("a"));
    let verdict = client.compare_and_swap(vm("db"), &label(), None, &boot);
    assert!(matches!(verdict, Err(WitnessError::Unreachable { .. })), "{verdict:?}");
    assert!(start.elapsed() < Duration::from_secs(30));
    signal("-CONT");
    // Whether the first attempt was carried out or not, repeating it wins.
    let mut client = place.client("a", process.addr);
    assert_eq!(client.compare_and_swap(vm("db"), &label(), None, &boot).unwrap(), Swap::Won(boot));
}

#[test]
fn a_stranger_who_knocks_for_ever_does_not_fill_the_log() {
    let place = Place::new();
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut witness = Command::new(env!("CARGO_BIN_EXE_ninefold-witness"))
        .args(["--listen", "127.0.0.1:0", "--plain-text", "w", "--data"])
        .arg(place.data())
        .stdout(Stdio::piped())
        .stderr(log.reopen().unwrap())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::new(witness.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let addr = first.trim().strip_prefix("listening on ").unwrap();
    for _ in 0..300 {
        let mut stranger = TcpStream::connect(addr).unwrap();
        // It may be closed already.
        let _ = stranger.write_all(b"GET / HTTP/1.1\r\n\r\n");
        let _ = stranger.read(&mut [0; 1]);
    }
    assert!(Command::new("kill").arg(witness.id().to_string()).status().unwrap().success());
    assert!(witness.wait().unwrap().success());
    let text = std::fs::read_to_string(log.path()).unwrap();
    let lines = text.lines().filter(|l| l.contains("turned away")).count();
    assert!((1..=20).contains(&lines), "{lines} lines:\n{text}");
}

/// The witness goes by its files as they are: who is revoked loses its connection and gets no other, who has another certificate is
/// served, and the witness's own is renewed. It is never started anew.
#[test]
fn certificates_are_renewed_and_revoked_while_it_runs() {
    let place = Place::new();
    let process = place.spawn(any_port());
    let (mut a, mut b) = (place.client("a", process.addr), place.client("b", process.addr));
    a.ping().unwrap();
    b.ping().unwrap();
    place.authority.revoke(Which::Host(&host("a"))).unwrap();
    std::fs::copy(place.identity("authority/crl.pem"), place.identity("w/crl.pem")).unwrap();
    // Its kept connection is used until that ends; no new one comes to be.
    let deadline = Instant::now() + Duration::from_secs(60);
    let told = loop {
        match a.ping() {
            Ok(()) => assert!(Instant::now() < deadline, "a revoked host is served"),
            Err(error) => break error.to_string(),
        }
    };
    assert!(told.contains("the certificate of host a") && told.contains("revoked"), "{told}");
    b.ping().unwrap();
    place.authority.issue(&host("a"), place.identity("a"), Validity::days(1)).unwrap();
    place.client("a", process.addr).ping().unwrap();

    // The witness's own, in the place of the old.
    place.authority.issue(&host("w"), place.identity("w"), Validity::days(1)).unwrap();
    place.authority.revoke(Which::Host(&host("w"))).unwrap();
    let entry = place.authority.issue(&host("w"), place.identity("w"), Validity::days(1)).unwrap();
    std::fs::copy(place.identity("w/crl.pem"), place.identity("b/crl.pem")).unwrap();
    let told = loop {
        // By the list, only the newest certificate is to be trusted.
        match place.client("b", process.addr).ping() {
            Ok(()) => break None,
            Err(error) if Instant::now() > deadline => break Some(error.to_string()),
            Err(_) => {}
        }
    };
    assert_eq!(told, None, "the certificate with the serial number {} is not used", entry.serial);
}
