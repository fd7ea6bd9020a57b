//! What a host's files say changes while links are up: certificates are renewed, hosts are revoked, files are damaged.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;

use ninefold_transport::authority::Which;
use ninefold_transport::{Authority, Identity, Link, Listener, Notice, Security, UtcTime, Validity, connect};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use support::{Certificates, LONG, host, loopback, meet, meet_with, pair};

/// Host `name` of an authority, and its files.
fn identity(certificates: &Certificates, name: &str) -> Identity {
    Identity::load(certificates.issue(name, Validity::days(365))).unwrap()
}

fn tls(identity: &Identity) -> Security {
    Security::MutualTls(identity.clone())
}

/// Copies the authority's latest list to a host.
fn bring_list(certificates: &Certificates, name: &str) {
    fs::copy(certificates.path("authority/crl.pem"), certificates.path(name).join("crl.pem")).unwrap();
}

/// All notices of two looks: a fault of the files is told at the second.
fn looks(identity: &Identity) -> Vec<Notice> {
    let now = UtcTime::now();
    [identity.refresh(now), identity.refresh(now)].concat()
}

/// A link whose halves are at hand.
struct Ends {
    read: ninefold_transport::LinkReader,
    write: ninefold_transport::LinkWriter,
}

impl Ends {
    fn of(link: Link) -> Self {
        let (read, write) = link.split();
        Self { read, write }
    }

    fn sends_to(&mut self, other: &mut Self) {
        self.write.write_all(b"still here").unwrap();
        let mut got = [0; 10];
        other.read.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"still here");
    }

    fn is_ended(&mut self) -> bool {
        !matches!(self.read.read(&mut [0]), Ok(1..))
    }
}

#[test]
fn a_renewal_is_used_by_the_next_connection_and_ends_none() {
    let certificates = Certificates::new();
    let (a, b) = (identity(&certificates, "a"), identity(&certificates, "b"));
    let (server, client) = pair(tls(&a), tls(&b));
    let (mut server, mut client) = (Ends::of(server), Ends::of(client));
    let before = b.state().serial;
    // Its authority has made a new list, too.
    certificates.issue("b", Validity::days(200));
    let notices = looks(&b);
    let after = b.state();
    assert_ne!(before, after.serial);
    assert!(
        matches!(&notices[..], [Notice::CertificateTaken { serial, not_after }, Notice::ListTaken { revoked: 0, .. }]
            if *serial == after.serial && *not_after == after.not_after),
        "{notices:?}"
    );
    assert!(looks(&b).is_empty(), "it is said once");
    server.sends_to(&mut client);
    client.sends_to(&mut server);

    // The old one is revoked: the old link ends, and the new certificate is as good as before.
    certificates.authority.revoke(Which::Serial(&before)).unwrap();
    bring_list(&certificates, "a");
    let notices = looks(&a);
    assert!(
        notices.iter().any(|n| matches!(n, Notice::Distrusted { peer, links: 1, .. } if *peer == host("b"))),
        "{notices:?}"
    );
    assert!(server.is_ended() && client.is_ended());
    let (server, client) = pair(tls(&a), tls(&b));
    Ends::of(server).sends_to(&mut Ends::of(client));
}

#[test]
fn a_revoked_host_gets_no_connection_and_loses_those_it_has() {
    let certificates = Certificates::new();
    let (a, b, c) = (identity(&certificates, "a"), identity(&certificates, "b"), identity(&certificates, "c"));
    // In either direction, two with b, and one with a host that stays trusted.
    let (to_b, b1) = pair(tls(&b), tls(&a));
    let (from_b, b2) = pair(tls(&a), tls(&b));
    let (with_c, c1) = pair(tls(&a), tls(&c));
    let mut of_b: Vec<_> = [to_b, b1, from_b, b2].map(Ends::of).into();
    let serial = b.state().serial;
    certificates.authority.revoke(Which::Host(&host("b"))).unwrap();
    bring_list(&certificates, "a");
    let notices = looks(&a);
    let named = format!("the certificate of host b with the serial number {serial} is revoked by this host's crl.pem");
    let [Notice::ListTaken { revoked: 1, .. }, Notice::Distrusted { peer, links: 2, reason }] = &notices[..] else {
        panic!("{notices:?}")
    };
    assert!(*peer == host("b") && reason.starts_with(&named), "{reason}");
    assert!(of_b.iter_mut().all(Ends::is_ended));
    Ends::of(with_c).sends_to(&mut Ends::of(c1));

    // Who refuses says whom; who is refused is told why, and that it is its own.
    let text = |e: Option<ninefold_transport::TransportError>| e.expect("refused").to_string();
    let own = format!("it finds the certificate of host b with the serial number {serial} revoked");
    let (server, client) = meet(tls(&a), tls(&b), "a");
    let (server, client) = (text(server.err()), text(client.err()));
    assert!(server.contains(&named) && client.contains(&own), "{server}\n{client}");
    let (server, client) = meet(tls(&b), tls(&a), "b");
    let (server, client) = (text(server.err()), text(client.err()));
    assert!(client.contains(&named) && server.contains(&own), "{client}\n{server}");

    // It learns of it from its own list, too.
    bring_list(&certificates, "b");
    let notices = looks(&b);
    assert!(
        notices.iter().any(|n| matches!(n, Notice::Distrusted { peer, links: 0, .. } if *peer == host("b"))),
        "{notices:?}"
    );
    assert!(looks(&b).is_empty(), "it is said once");

    // With another certificate it is trusted again; nobody was started anew.
    certificates.issue("b", Validity::days(1));
    looks(&b);
    let (server, client) = pair(tls(&a), tls(&b));
    Ends::of(server).sends_to(&mut Ends::of(client));
}

/// A client that speaks TLS by hand, as host `name`.
fn by_hand(certificates: &Certificates, name: &str) -> rustls::ClientConfig {
    let dir = certificates.path(name);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
    rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_file(dir.join("cert.pem")).unwrap()],
            PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap(),
        )
        .unwrap()
}

/// The list comes when the certificate has been judged, and before the link is one.
#[test]
fn a_host_that_is_revoked_during_its_handshake_is_refused() {
    let certificates = Certificates::new();
    let a = identity(&certificates, "a");
    certificates.issue("b", Validity::days(1));
    let config = by_hand(&certificates, "b");
    let (server, ()) = meet_with(tls(&a), |addr| {
        let mut tcp = TcpStream::connect(addr).unwrap();
        let mut tls = rustls::ClientConnection::new(config.into(), "a".try_into().unwrap()).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut tcp).unwrap();
        }
        certificates.authority.revoke(Which::Host(&host("b"))).unwrap();
        bring_list(&certificates, "a");
        a.refresh(UtcTime::now());
        let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
        stream.write_all(b"NFLD\x01\x01b").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let told = server.err().expect("refused").to_string();
    assert!(told.contains("the certificate of host b") && told.contains("is revoked"), "{told}");
}

/// A client that would resume its session finds that it cannot: each handshake judges the certificate anew.
#[test]
fn a_session_is_not_resumed_past_a_revocation() {
    let certificates = Certificates::new();
    let a = identity(&certificates, "a");
    certificates.issue("b", Validity::days(1));
    let mut config = by_hand(&certificates, "b");
    config.resumption = Resumption::in_memory_sessions(8);
    let config = std::sync::Arc::new(config);
    let say_hello = || {
        meet_with(tls(&a), |addr| {
            let mut tcp = TcpStream::connect(addr).unwrap();
            let mut tls = rustls::ClientConnection::new(config.clone(), "a".try_into().unwrap()).unwrap();
            let mut hello = [0; 7];
            let answered = {
                let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
                // A server that gave tickets would have by the time of its hello.
                stream.write_all(b"NFLD\x01\x01b").and_then(|()| stream.read_exact(&mut hello))
            };
            (answered.is_ok(), tls.handshake_kind())
        })
    };
    for _ in 0..2 {
        let (server, (answered, kind)) = say_hello();
        assert!(server.is_ok() && answered);
        assert_eq!(kind, Some(rustls::HandshakeKind::Full));
    }
    certificates.authority.revoke(Which::Host(&host("b"))).unwrap();
    bring_list(&certificates, "a");
    a.refresh(UtcTime::now());
    let (server, (answered, _)) = say_hello();
    assert!(server.is_err() && !answered);
}

/// Each way to spoil a host's files: what it is told of, and how it is done.
type Spoil = (&'static str, fn(&Path, &Certificates));

const SPOILS: &[Spoil] = &[
    ("key.pem", |dir, other| copy(&other.path("a/key.pem"), &dir.join("key.pem"))),
    ("key.pem", |dir, _| fs::write(dir.join("key.pem"), "").unwrap()),
    ("cert.pem", |dir, _| cut(&dir.join("cert.pem"))),
    ("cert.pem", |dir, other| {
        for file in ["cert.pem", "key.pem"] {
            fs::copy(other.path("a").join(file), dir.join(file)).unwrap();
        }
    }),
    ("ca.pem", |dir, _| fs::write(dir.join("ca.pem"), "nonsense").unwrap()),
    ("ca.pem", |dir, _| fs::remove_file(dir.join("ca.pem")).unwrap()),
    ("crl.pem", |dir, _| fs::write(dir.join("crl.pem"), "nonsense").unwrap()),
    ("crl.pem", |dir, _| cut(&dir.join("crl.pem"))),
    ("crl.pem", |dir, _| forge(&dir.join("crl.pem"))),
    ("crl.pem", |dir, other| copy(&other.path("a/crl.pem"), &dir.join("crl.pem"))),
    ("crl.pem", |dir, _| fs::remove_file(dir.join("crl.pem")).unwrap()),
];

fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap();
}

fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

/// The list as it is but for the last byte of the signature.
fn forge(path: &Path) {
    let text = fs::read_to_string(path).unwrap();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    let at = lines.len() - 2;
    let last = lines[at].trim_end_matches('=').len() - 2;
    let with = if lines[at].as_bytes()[last] == b'A' { "B" } else { "A" };
    lines[at].replace_range(last..=last, with);
    fs::write(path, lines.join("\n") + "\n").unwrap();
}

#[test]
fn what_cannot_be_used_leaves_the_old_in_use() {
    let (certificates, other) = (Certificates::new(), Certificates::new());
    other.issue("a", Validity::days(365));
    certificates.issue("c", Validity::days(1));
    // There is a list that counts: c is revoked.
    certificates.authority.revoke(Which::Host(&host("c"))).unwrap();
    let (a, b) = (identity(&certificates, "a"), identity(&certificates, "b"));
    let c = Security::MutualTls(Identity::load(certificates.path("c")).unwrap());
    let dir = certificates.path("a");
    let files = ["ca.pem", "cert.pem", "key.pem", "crl.pem"];
    let good = files.map(|file| fs::read(dir.join(file)).unwrap());
    let serial = a.state().serial;
    for (n, (file, spoil)) in SPOILS.iter().enumerate() {
        spoil(&dir, &other);
        // At start there is nothing older: it is refused, but for a list that is not there.
        let missing = n + 1 == SPOILS.len();
        match Identity::load(&dir) {
            Err(error) => assert!(error.to_string().contains(file), "{n}: {error}"),
            Ok(_) => assert!(missing, "{n}: {file} was accepted"),
        }
        // They may just be copied: nothing is said at first.
        assert_eq!(a.refresh(UtcTime::now()), [], "{n}");
        let notices = a.refresh(UtcTime::now());
        assert!(matches!(&notices[..], [Notice::Unusable { reason }] if reason.contains(file)), "{n}: {notices:?}");
        assert!(a.refresh(UtcTime::now()).is_empty(), "{n}: it is said once");
        assert!(a.state().problem.is_some_and(|p| p.contains(file)) && a.state().serial == serial, "{n}");
        // It connects, is connected to, and knows whom it does not trust.
        let (server, client) = pair(tls(&a), tls(&b));
        Ends::of(server).sends_to(&mut Ends::of(client));
        pair(tls(&b), tls(&a));
        let (server, _) = meet(tls(&a), c.clone(), "a");
        assert!(server.err().is_some_and(|e| e.to_string().contains("is revoked")), "{n}");

        for (file, bytes) in files.iter().zip(&good) {
            fs::write(dir.join(file), bytes).unwrap();
        }
        let notices = looks(&a);
        assert!(matches!(&notices[..], [Notice::CertificateTaken { .. }]), "{n}: {notices:?}");
        assert_eq!(a.state().problem, None, "{n}");
    }

    // An older list would forget who is revoked.
    let old = fs::read(certificates.path("authority/crl.pem")).unwrap();
    certificates.authority.publish(1).unwrap();
    bring_list(&certificates, "a");
    looks(&a);
    fs::write(dir.join("crl.pem"), old).unwrap();
    let notices = looks(&a);
    assert!(matches!(&notices[..], [Notice::Unusable { reason }] if reason.contains("is older")), "{notices:?}");
    // Another host's files, as good as they are, are not this host's; and a certificate is taken whatever is wrong with the list.
    for file in ["cert.pem", "key.pem"] {
        fs::copy(certificates.path("b").join(file), dir.join(file)).unwrap();
    }
    let notices = looks(&a);
    assert!(matches!(&notices[..], [Notice::Unusable { reason }] if reason.contains("is of host b")), "{notices:?}");
    certificates.issue("a", Validity::days(365));
    fs::write(dir.join("crl.pem"), "nonsense").unwrap();
    let notices = looks(&a);
    assert!(
        matches!(&notices[..], [Notice::CertificateTaken { .. }, Notice::Unusable { reason }] if reason.contains("crl.pem")),
        "{notices:?}"
    );
    assert_ne!(a.state().serial, serial);
    let (server, _) = meet(tls(&a), c, "a");
    assert!(server.is_err(), "c is revoked as before");
}

/// The key is this host: whoever can read it can speak as this host.
#[test]
fn a_key_that_others_can_read_is_not_used() {
    let certificates = Certificates::new();
    let (a, b) = (identity(&certificates, "a"), identity(&certificates, "b"));
    let dir = certificates.path("a");
    let key = dir.join("key.pem");
    let mode = |mode| fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
    let refused = |because: &str| {
        let at_start = Identity::load(&dir).unwrap_err().to_string();
        assert!(at_start.contains("key.pem") && at_start.contains(because), "{at_start}");
        let notices = looks(&a);
        assert!(matches!(&notices[..], [Notice::Unusable { reason }] if *reason == at_start), "{notices:?}");
        // What was read before is used on.
        let (server, client) = pair(tls(&a), tls(&b));
        Ends::of(server).sends_to(&mut Ends::of(client));
    };
    let taken_again = || {
        let notices = looks(&a);
        assert!(matches!(&notices[..], [Notice::CertificateTaken { .. }]), "{notices:?}");
        Identity::load(&dir).unwrap();
    };
    for open in [0o640, 0o620, 0o604, 0o602, 0o644, 0o666, 0o777] {
        mode(open);
        refused(&format!("(mode {open:03o}): `chmod go= key.pem`"));
        mode(0o600);
        taken_again();
    }
    mode(0o400);
    Identity::load(&dir).expect("its owner may read it");
    if rustix::process::geteuid().is_root() {
        chown(&key, Some(1), None).unwrap();
        refused("belongs to another user (number 1): `chown root key.pem`");
        chown(&key, Some(0), None).unwrap();
        taken_again();
    }
}

/// Who is revoked is refused whatever is wrong with the files beside the list.
#[test]
fn a_list_counts_whatever_is_wrong_with_the_other_files() {
    type Spoil = fn(&Path);
    let spoils: [Spoil; 5] = [
        |dir| fs::remove_file(dir.join("cert.pem")).unwrap(),
        |dir| fs::remove_file(dir.join("key.pem")).unwrap(),
        |dir| fs::remove_file(dir.join("ca.pem")).unwrap(),
        |dir| fs::set_permissions(dir.join("key.pem"), fs::Permissions::from_mode(0o644)).unwrap(),
        |dir| fs::File::options().write(true).open(dir.join("cert.pem")).unwrap().set_len(1 << 30).unwrap(),
    ];
    for (n, spoil) in spoils.into_iter().enumerate() {
        let certificates = Certificates::new();
        let (a, b) = (identity(&certificates, "a"), identity(&certificates, "b"));
        let (server, client) = pair(tls(&a), tls(&b));
        certificates.authority.revoke(Which::Host(&host("b"))).unwrap();
        spoil(&certificates.path("a"));
        bring_list(&certificates, "a");
        let notices = looks(&a);
        let ended = |n: &Notice| matches!(n, Notice::Distrusted { peer, links: 1, .. } if *peer == host("b"));
        assert!(notices.iter().any(ended), "{n}: {notices:?}");
        assert!(matches!(notices.last(), Some(Notice::Unusable { .. })), "{n}: {notices:?}");
        assert!(Ends::of(server).is_ended() && Ends::of(client).is_ended(), "{n}");
        assert!(meet(tls(&a), tls(&b), "a").0.is_err(), "{n}");
    }
}

/// One authority takes the place of another, and both have revoked somebody: a file that has the new one's list alone lets nobody in
/// again.
#[test]
fn a_list_of_one_authority_does_not_take_the_place_of_another_s() {
    let (old, new) = (Certificates::new(), Certificates::new());
    let (a, b) = (old.issue("a", Validity::days(1)), old.issue("b", Validity::days(1)));
    new.issue("c", Validity::days(1));
    let text = |file: &str| [&old, &new].map(|of| fs::read_to_string(of.path(file)).unwrap());
    for dir in [&a, &b, &new.path("c")] {
        fs::write(dir.join("ca.pem"), text("authority/ca.pem").concat()).unwrap();
    }
    old.authority.revoke(Which::Host(&host("b"))).unwrap();
    let bring = |text: &str| fs::write(a.join("crl.pem"), text).unwrap();
    bring(&text("authority/crl.pem").concat());
    let load = |dir: &Path| Identity::load(dir).unwrap();
    let (a, b, c) = (load(&a), load(&b), load(&new.path("c")));
    let is_refused = |peer: &Identity| meet(tls(&a), tls(peer), "a").0.is_err();
    assert!(is_refused(&b) && !is_refused(&c));

    new.authority.revoke(Which::Host(&host("c"))).unwrap();
    bring(&text("authority/crl.pem")[1]);
    let notices = looks(&a);
    let unusable = |n: &Notice| matches!(n, Notice::Unusable { reason } if reason.contains("no list any more of one of the authorities"));
    assert!(notices.iter().any(unusable), "{notices:?}");
    assert_eq!(a.state().list.unwrap().revoked, 2);
    assert!(is_refused(&b) && is_refused(&c));
    bring(&text("authority/crl.pem").concat());
    looks(&a);
    assert_eq!((a.state().problem, a.state().list.unwrap().revoked), (None, 2));
    assert!(is_refused(&b) && is_refused(&c));
}

/// Who looks at the files does not wait for a pipe, and who asks what is in use does not wait for who looks.
#[test]
fn what_is_no_file_keeps_nobody_waiting() {
    let certificates = Certificates::new();
    let a = identity(&certificates, "a");
    let place = certificates.path("a/crl.pem");
    fs::remove_file(&place).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &place, 0o600.into()).unwrap();
    let (tell, told) = channel();
    let looking = a.clone();
    thread::spawn(move || tell.send(looks(&looking)));
    let notices = told.recv_timeout(LONG).expect("an answer");
    assert!(
        matches!(&notices[..], [Notice::Unusable { reason }] if reason.contains("crl.pem: is not a regular file")),
        "{notices:?}"
    );
    assert!(a.state().problem.is_some());
}

#[test]
fn without_a_list_nobody_is_revoked() {
    let certificates = Certificates::new();
    for name in ["a", "b"] {
        fs::remove_file(certificates.issue(name, Validity::days(1)).join("crl.pem")).unwrap();
    }
    let load = |name: &str| Identity::load(certificates.path(name)).unwrap();
    let (a, b) = (load("a"), load("b"));
    assert_eq!(a.state().list, None);
    pair(tls(&a), tls(&b));
    // The first list may come at any time.
    certificates.authority.revoke(Which::Host(&host("b"))).unwrap();
    bring_list(&certificates, "a");
    looks(&a);
    assert!(meet(tls(&a), tls(&b), "a").0.is_err());
}

/// An authority that the host does not trust any more takes all of its hosts with it.
#[test]
fn links_end_with_the_trust_in_their_authority() {
    let (old, new) = (Certificates::new(), Certificates::new());
    let (a, b) = (old.issue("a", Validity::days(1)), old.issue("b", Validity::days(1)));
    let both = |dir: &Path| {
        let text = [old.path("authority/ca.pem"), new.path("authority/ca.pem")].map(|p| fs::read_to_string(p).unwrap());
        fs::write(dir.join("ca.pem"), text.concat()).unwrap();
    };
    both(&a);
    both(&b);
    let (a, b) = (Identity::load(a).unwrap(), Identity::load(b).unwrap());
    let (server, client) = pair(tls(&a), tls(&b));
    let (mut server, mut client) = (Ends::of(server), Ends::of(client));
    // First a has a certificate of the new authority: b trusts it, too.
    let next = new.issue("a", Validity::days(1));
    for file in ["cert.pem", "key.pem"] {
        fs::copy(next.join(file), old.path("a").join(file)).unwrap();
    }
    let notices = looks(&a);
    assert!(matches!(notices.first(), Some(Notice::CertificateTaken { .. })), "{notices:?}");
    server.sends_to(&mut client);
    pair(tls(&a), tls(&b));
    // Then it trusts that one alone; with its list comes the other's end.
    for file in ["ca.pem", "crl.pem"] {
        fs::copy(next.join(file), old.path("a").join(file)).unwrap();
    }
    let notices = looks(&a);
    let distrusted = notices.iter().find_map(|n| match n {
        Notice::Distrusted { peer, links: 1, reason } if *peer == host("b") => Some(reason),
        _ => None,
    });
    assert!(distrusted.is_some_and(|reason| reason.contains("is not trusted any more")), "{notices:?}");
    assert!(server.is_ended() && client.is_ended());
    assert!(meet(tls(&a), tls(&b), "a").0.is_err());
}

#[test]
fn what_ends_is_said_once_a_day() {
    const DAY: u64 = 86_400;
    let certificates = Certificates::new();
    let a = identity(&certificates, "a");
    let state = a.state();
    let (end, due) = (state.not_after.0, state.list.unwrap().next_update.0);
    let at = |seconds: u64| a.refresh(UtcTime(seconds));
    assert_eq!(at(end - 31 * DAY), []);
    let ends = |days| vec![Notice::CertificateEnds { not_after: state.not_after, days }];
    assert_eq!(at(end - 30 * DAY), ends(30));
    assert_eq!(at(end - 30 * DAY + DAY / 2), []);
    assert_eq!(at(end - 29 * DAY), ends(29));
    assert_eq!(at(end - 10), ends(1));
    // A clock that was set back, and then right again.
    assert_eq!(at(end - 100 * DAY), []);
    let late = at(due.max(end) + 1);
    assert_eq!(
        late,
        [
            Notice::CertificateEnds { not_after: state.not_after, days: 0 },
            Notice::ListOverdue { next_update: UtcTime(due) }
        ]
    );
    assert_eq!(at(due.max(end) + DAY + 1).len(), 2);
    // Overdue, and in use: b is revoked by it, and nobody else is refused.
    certificates.issue("b", Validity::days(1));
    let (server, client) = pair(tls(&a), certificates.tls("c"));
    Ends::of(server).sends_to(&mut Ends::of(client));
}

/// The thread that looks by itself, as keepers and witnesses have it.
#[test]
fn who_watches_is_told_and_ends_with_the_identity() {
    let certificates = Certificates::new();
    let a = identity(&certificates, "a");
    let listener = Listener::bind(loopback(), tls(&a)).unwrap();
    let (tell, told) = channel();
    a.watch(move |notice, state| drop(tell.send((notice, state.clone())))).unwrap();
    certificates.issue("a", Validity::days(200));
    let (notice, state) = told.recv_timeout(LONG).expect("a notice");
    assert!(matches!(&notice, Notice::CertificateTaken { serial, .. } if *serial == state.serial), "{notice:?}");
    // What listens uses it.
    let (addr, b) = (listener.local_addr(), certificates.tls("b"));
    let accepting = thread::spawn(move || listener.accept().unwrap().handshake(LONG).map(drop));
    connect(addr, &host("a"), &b, LONG).unwrap();
    accepting.join().unwrap().unwrap();
    drop(a);
    loop {
        match told.recv_timeout(LONG) {
            Ok(_) => {}
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("the thread goes on without its identity"),
        }
    }
}

/// Two authorities of one name cannot be told apart by TLS, which would refuse all hosts of one by the list of the other.
#[test]
fn a_list_that_may_be_of_two_authorities_is_refused() {
    let certificates = Certificates::new();
    let dir = certificates.issue("a", Validity::days(1));
    let ca = fs::read_to_string(dir.join("ca.pem")).unwrap();
    fs::write(dir.join("ca.pem"), format!("{ca}{ca}")).unwrap();
    let error = Identity::load(&dir).unwrap_err().to_string();
    assert!(error.contains("crl.pem") && error.contains("one name"), "{error}");
    // Authorities that this program makes have names of their own.
    let other = Authority::create(certificates.path("other"), Validity::days(1)).unwrap();
    assert_ne!(other.name(), certificates.authority.name());
}
