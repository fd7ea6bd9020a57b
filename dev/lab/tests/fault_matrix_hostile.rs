//! The fault matrix, bad input: what strangers and broken hosts may say on the replication port, and what may become of
//! a stream on its way. It is refused with a clear word; the running session, the VM and its client are unharmed.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ninefold_lab::boot::KEEPER_PORT;
use ninefold_lab::netns::io_in_netns;
use ninefold_lab::{Lab, LabSecurity};
use ninefold_model::event::EventKind;
use ninefold_model::spec::{Accel, VmSpec};
use ninefold_model::{HostName, Term, VmId};
use ninefold_replica::stream::{BlockInfo, Hello, Layout, Preamble, Record, write_record};
use ninefold_transport::{Authority, Identity, Link, Security, Validity, connect};
use support::proxy::Harm;
use support::{Action, Beginning, Scenario, deadline, rounds};

const PATIENCE: Duration = Duration::from_secs(10);

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn port(lab: &Lab, of: &str) -> SocketAddr {
    SocketAddr::new(lab.topology().address(of).unwrap().into(), KEEPER_PORT)
}

/// A connection from the witness's host to a keeper, with the certificate in `identity`.
fn link(lab: &Lab, to: &str, identity: &std::path::Path) -> Result<Link, String> {
    let security = Security::MutualTls(Identity::load(identity).unwrap());
    let address = port(lab, to);
    io_in_netns(&lab.netns("w").unwrap(), "connect", || {
        connect(address, &host(to), &security, PATIENCE).map_err(std::io::Error::other)
    })
    .map_err(|e| format!("{e:?}"))
}

/// Says this over a proper connection and waits until the keeper hangs up.
fn say(lab: &Lab, to: &str, identity_of: &str, bytes: &[u8]) {
    let link = link(lab, to, &lab.run_dir(identity_of).join("identity")).unwrap();
    let _ = link.handle().set_read_timeout(Some(PATIENCE));
    let (mut reader, mut writer) = link.split();
    let _ = writer.write_all(bytes).and_then(|()| writer.flush());
    // Some of it is refused for being incomplete.
    let _ = writer.finish();
    let _ = reader.read_to_end(&mut Vec::new());
}

fn opening(s: &Scenario, from: &str, session: u64, term: u64, vm: VmId) -> Vec<u8> {
    let layout = Layout::new(vec![BlockInfo { name: "pc.ram".into(), used: 4096, total: 4096 }]).unwrap();
    let config = std::fs::read(s.lab.run_dir("a").join("keeper.json")).unwrap();
    let config: ninefold_keeper::config::KeeperConfig = serde_json::from_slice(&config).unwrap();
    let hello = Hello {
        session,
        from: host(from),
        term: Term(term),
        spec: VmSpec { id: vm, ..config.vm.for_others() },
        epoch_policy: config.vm.policy.epochs,
        qemu: "10.0.2".into(),
        machine: "pc-i440fx-7.2".into(),
        cpu: "qemu64".into(),
        accel: Accel::Tcg,
        layout,
        lanes: 1,
        health: Default::default(),
        reign: None,
        origin: None,
        generation: None,
    };
    let mut bytes = Preamble::OURS.to_bytes().to_vec();
    write_record(&mut bytes, &mut Vec::new(), &Record::Hello(Box::new(hello))).unwrap();
    bytes
}

/// The keeper of `at` refuses it and says so, and nothing else happens.
fn refused(s: &Scenario, at: &str, what: &str, attack: impl FnOnce()) {
    let mark = s.events.mark();
    attack();
    let event = s.expect(mark, at, &format!("refused ({what})"), |k| matches!(k, EventKind::Refused { .. }));
    let EventKind::Refused { peer, reason } = event.kind else { unreachable!("it was asked for") };
    eprintln!("  {what}: {peer}: {reason}");
    assert!(reason.len() > 10, "{what}: {reason}");
    s.expect_writes(20);
    s.check_roles();
    let since = &s.events.all()[mark..];
    assert!(since.iter().all(|e| matches!(e.kind, EventKind::Refused { .. })), "{what}: {since:?}");
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn strangers_and_liars_on_the_replication_port() {
    let mut s = Scenario::start("hostile");
    let elsewhere = tempfile::tempdir().unwrap();
    let validity = Validity::days(1);
    let authority = Authority::create(elsewhere.path().join("authority"), validity).unwrap();
    authority.issue(&host("a"), elsewhere.path().join("a"), validity).unwrap();
    let vm = s.options.id;
    let session = s.lab.keeper("a").unwrap().status().unwrap().term.0 - 1;
    // One that says nothing, all the while.
    let netns = s.lab.netns("w").unwrap();
    let silent = io_in_netns(&netns, "connect", || TcpStream::connect(port(&s.lab, "b"))).unwrap();
    for round in 0..rounds(2) as u64 {
        for at in ["a", "b"] {
            let other = if at == "a" { "b" } else { "a" };
            for length in [1, 500, 200_000] {
                refused(&s, at, &format!("{length} random bytes"), || {
                    let mut socket = io_in_netns(&netns, "connect", || TcpStream::connect(port(&s.lab, at))).unwrap();
                    let _ = socket.write_all(&noise(round ^ length as u64, length));
                    let _ = socket.shutdown(std::net::Shutdown::Write);
                    let _ = socket.read_to_end(&mut Vec::new());
                });
            }
            refused(&s, at, "a certificate of another authority", || {
                // The client may learn of it with its first answer only.
                if let Ok(link) = link(&s.lab, at, &elsewhere.path().join("a")) {
                    let (mut reader, _writer) = link.split();
                    assert!(reader.read(&mut [0; 1]).is_err(), "a strange certificate was accepted");
                }
            });
            let good = opening(&s, other, 1, 1, vm);
            let mut version = good.clone();
            version[..16].copy_from_slice(&Preamble { version: 900, oldest: 800 }.to_bytes());
            let mut corrupted = good.clone();
            corrupted[40] ^= 1;
            let mut oversized = good.clone();
            oversized[16..28].fill(0xff);
            let wrong_start = {
                let mut bytes = Preamble::OURS.to_bytes().to_vec();
                write_record(&mut bytes, &mut Vec::new(), &Record::Bound { session, term: Term(session + 1) }).unwrap();
                bytes
            };
            let cases: [(&str, &str, Vec<u8>); 11] = [
                ("noise behind a proper handshake", other, noise(round, 3000)),
                ("another version", other, version),
                ("a corrupted record", other, corrupted),
                ("a record of 4 GiB", other, oversized),
                ("a truncated record", other, good[..good.len() - 5].to_vec()),
                ("no opening", other, wrong_start),
                ("another VM", other, opening(&s, other, 1, 1, VmId::random(7))),
                ("a host that is none of the VM's", "w", opening(&s, "w", 1, 1, vm)),
                ("a host that claims to be another", "w", opening(&s, other, 1, 1, vm)),
                ("a session of the past", other, opening(&s, other, session, session, vm)),
                ("a session of the future", other, opening(&s, other, u64::MAX, u64::MAX, vm)),
            ];
            for (what, identity, bytes) in cases {
                refused(&s, at, what, || say(&s.lab, at, identity, &bytes));
            }
            refused(&s, at, "a session that is not its term", || {
                say(&s.lab, at, other, &opening(&s, other, session + 7, session, vm));
            });
        }
    }
    // The last good checkpoint is good.
    s.run(&[Action::KillHost, Action::KillQemu], 1);
    drop(silent);
    s.finish();
}

/// What is spoilt on its way ends the session, at a boundary between whole checkpoints. Then the witness decides which of
/// the two goes on; either may.
#[test]
fn a_stream_is_spoilt_on_its_way() {
    let begin = Beginning { security: LabSecurity::PlainText, proxied: true, ..Beginning::default() };
    let mut s = Scenario::with("spoilt", begin);
    for _ in 0..rounds(2) {
        for harm in Harm::ALL {
            let mark = s.events.mark();
            let proxy = s.proxies.iter().find(|p| p.host == s.primary).unwrap();
            proxy.harm(harm);
            let lost = s.expect(mark, &s.backup, "primary lost", |k| matches!(k, EventKind::PrimaryLost { .. }));
            let again = |k: &EventKind| matches!(k, EventKind::Protected { .. });
            let again = s.events.wait_for(mark, deadline(), |e| again(&e.kind)).expect("protected again");
            eprintln!("  {harm:?}: {:?}; {} goes on", lost.kind, again.host);
            if again.host.as_str() != s.primary {
                s.swap_roles();
            }
            s.settle(mark);
        }
    }
    s.run(&[Action::KillKeeper], 1);
    s.finish();
}
