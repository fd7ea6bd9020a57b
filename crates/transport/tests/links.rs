//! Links over real sockets on loopback: who gets one, who does not, and what it does under load.

mod support;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ninefold_transport::{Authority, Cipher, Identity, Link, Listener, Security, TransportError, Validity, connect};
use support::{Certificates, LONG, host, loopback, meet, meet_with, pair, plain};

/// The same check for TLS with either cipher and for plain text.
fn each_kind(check: impl Fn(Link, Link)) {
    let certificates = Certificates::new();
    let (a, b) = (certificates.tls("a"), certificates.tls("b"));
    let (server, client) = pair(a, b);
    check(server, client);
    let strong = |name: &str| {
        let dir = certificates.path(name);
        Security::MutualTls(Identity::load_with_cipher(dir, Cipher::Aes256Gcm).unwrap())
    };
    let (server, client) = pair(strong("a"), strong("b"));
    check(server, client);
    let (server, client) = pair(plain("a"), plain("b"));
    check(server, client);
}

/// Bytes that depend on their place, different for each seed.
fn fill(buf: &mut [u8], seed: u64, at: u64) {
    for (i, byte) in buf.iter_mut().enumerate() {
        let place = (at + i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
        *byte = (place >> 56) as u8;
    }
}

#[test]
fn each_side_learns_who_the_other_is() {
    each_kind(|server, client| {
        assert_eq!(server.peer(), &host("b"));
        assert_eq!(client.peer(), &host("a"));
        assert_eq!(client.handle().peer(), &host("a"));
    });
}

#[test]
fn a_large_transfer_both_ways_at_once_arrives_whole() {
    const TOTAL: u64 = 48 << 20;
    fn send(mut to: impl Write, seed: u64) {
        let mut at = 0;
        // Sizes around the edges of records and chunks, and large ones.
        for size in [1_usize, 16_383, 16_384, 16_385, 131_071, 131_073, 1 << 20].into_iter().cycle() {
            let size = size.min((TOTAL - at) as usize);
            if size == 0 {
                break;
            }
            let mut block = vec![0; size];
            fill(&mut block, seed, at);
            to.write_all(&block).unwrap();
            at += size as u64;
        }
    }
    fn receive(mut from: impl Read, seed: u64) {
        let (mut got, mut want) = (vec![0; 300_000], vec![0; 300_000]);
        let mut at = 0;
        while at < TOTAL {
            let n = from.read(&mut got).unwrap();
            assert!(n > 0, "ended at {at}");
            fill(&mut want[..n], seed, at);
            assert!(got[..n] == want[..n], "content differs after {at}");
            at += n as u64;
        }
        assert_eq!(at, TOTAL);
    }
    each_kind(|server, client| {
        let ((sr, sw), (cr, cw)) = (server.split(), client.split());
        thread::scope(|s| {
            s.spawn(|| send(sw, 1));
            s.spawn(|| send(cw, 2));
            s.spawn(|| receive(sr, 2));
            s.spawn(|| receive(cr, 1));
        });
    });
}

#[test]
fn small_reads_of_large_records() {
    each_kind(|server, client| {
        let (mut reader, _keep) = server.split();
        let (_also, mut writer) = client.split();
        let mut sent = vec![0; 200_000];
        fill(&mut sent, 3, 0);
        thread::scope(|s| {
            s.spawn(|| writer.write_all(&sent).unwrap());
            let mut got = vec![0; sent.len()];
            for piece in got.chunks_mut(777) {
                reader.read_exact(piece).unwrap();
            }
            assert!(got == sent);
        });
    });
}

#[test]
fn an_orderly_end_is_told_from_a_cut() {
    each_kind(|server, client| {
        let (mut reader, mut back) = server.split();
        let (mut answers, mut writer) = client.split();
        writer.write_all(b"last words").unwrap();
        writer.finish().unwrap();
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"last words");
        // The other direction is still open.
        back.write_all(b"heard").unwrap();
        let mut heard = [0; 5];
        answers.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"heard");
    });
    let certificates = Certificates::new();
    let (server, client) = pair(certificates.tls("a"), certificates.tls("b"));
    client.handle().shutdown();
    let (mut reader, _writer) = server.split();
    assert_eq!(reader.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn shutdown_frees_a_waiting_reader_and_a_waiting_writer() {
    each_kind(|server, client| {
        let handle = client.handle();
        let (mut reader, mut writer) = client.split();
        // The server reads nothing: the writer fills all buffers and waits.
        let (full, is_full) = std::sync::mpsc::channel();
        let progress = handle.clone();
        let writing = thread::spawn(move || {
            progress.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
            let block = vec![0; 1 << 20];
            // A write that takes nothing for a while: the buffers are full.
            loop {
                match writer.write(&block) {
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) => return Err(e),
                }
            }
            progress.set_write_timeout(None).unwrap();
            full.send(()).unwrap();
            loop {
                writer.write_all(&block)?;
            }
        });
        let reading = thread::spawn(move || reader.read(&mut [0; 8]));
        is_full.recv().unwrap();
        handle.shutdown();
        let written: io::Result<()> = writing.join().unwrap();
        assert!(written.is_err());
        assert!(matches!(reading.join().unwrap(), Ok(0) | Err(_)));
        drop(server);
    });
}

#[test]
fn a_write_that_timed_out_goes_on_where_it_was() {
    each_kind(|server, client| {
        let handle = client.handle();
        let (_r, mut writer) = client.split();
        let (mut reader, _w) = server.split();
        handle.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut block = vec![0; 100_000];
        let mut taken = 0_u64;
        loop {
            fill(&mut block, 4, taken);
            match writer.write(&block) {
                Ok(n) => taken += n as u64,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => panic!("{e}"),
            }
        }
        handle.set_write_timeout(None).unwrap();
        thread::scope(|s| {
            s.spawn(|| {
                writer.flush().unwrap();
                writer.finish().unwrap();
            });
            let (mut got, mut want, mut at) = (vec![0; 65_536], vec![0; 65_536], 0);
            loop {
                let n = reader.read(&mut got).unwrap();
                if n == 0 {
                    break;
                }
                fill(&mut want[..n], 4, at);
                assert!(got[..n] == want[..n], "content differs after {at}");
                at += n as u64;
            }
            assert_eq!(at, taken);
        });
    });
}

#[test]
fn a_link_closes_with_its_halves_although_a_handle_remains() {
    each_kind(|server, client| {
        let handle = client.handle();
        let (reader, writer) = client.split();
        drop(reader);
        let (mut far, _far_writer) = server.split();
        drop(writer);
        assert!(matches!(far.read(&mut [0; 8]), Ok(0) | Err(_)));
        handle.shutdown();
    });
}

#[test]
fn signs_of_life_are_seen_from_any_thread() {
    each_kind(|server, client| {
        let handle = server.handle();
        let (mut reader, _writer) = server.split();
        let (_reader, mut writer) = client.split();
        let before = handle.last_received();
        writer.write_all(b"x").unwrap();
        reader.read_exact(&mut [0]).unwrap();
        assert!(handle.last_received() > before);
        handle.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        assert_eq!(reader.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert!(handle.silence() >= Duration::from_millis(4));
        // What has come and waits is no silence, however long nobody reads it.
        writer.write_all(b"x").unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while handle.silence() > Duration::ZERO {
            assert!(Instant::now() < deadline, "a byte that waits is not seen");
        }
        thread::sleep(Duration::from_millis(5));
        assert_eq!(handle.silence(), Duration::ZERO);
        reader.read_exact(&mut [0]).unwrap();
        handle.set_user_timeout(Duration::from_millis(300)).unwrap();
    });
}

#[test]
fn another_authority_is_trusted_by_neither_side() {
    let (ours, theirs) = (Certificates::new(), Certificates::new());
    let (server, client) = meet(ours.tls("a"), theirs.tls("b"), "a");
    assert!(matches!(server, Err(TransportError::Tls { .. } | TransportError::Broken { .. })));
    assert!(matches!(client, Err(TransportError::Tls { .. })), "{:?}", client.err());

    // A client that trusts the server's authority, too, but has a certificate of another one.
    let dir = theirs.issue("c", Validity::days(1));
    let both = [dir.join("ca.pem"), ours.path("authority/ca.pem")].map(|ca| std::fs::read_to_string(ca).unwrap());
    std::fs::write(dir.join("ca.pem"), both.concat()).unwrap();
    let stranger = Security::MutualTls(Identity::load(dir).unwrap());
    let (server, client) = meet(ours.tls("a"), stranger, "a");
    assert!(matches!(server, Err(TransportError::Tls { .. })), "{:?}", server.err());
    assert!(client.is_err());
}

#[test]
fn another_host_than_the_expected_one_is_refused() {
    let certificates = Certificates::new();
    let (server, client) = meet(certificates.tls("a"), certificates.tls("b"), "c");
    assert!(server.is_err());
    assert!(matches!(client, Err(TransportError::Tls { .. })), "{:?}", client.err());
    let (_, client) = meet(plain("a"), plain("b"), "c");
    assert!(matches!(client, Err(TransportError::WrongHost { .. })), "{:?}", client.err());
}

#[test]
fn an_expired_certificate_is_refused_on_either_side() {
    let certificates = Certificates::new();
    let day = Duration::from_secs(24 * 3600);
    let now = SystemTime::now();
    let past = Validity { not_before: now - 3 * day, not_after: now - day };
    let expired = Security::MutualTls(Identity::load(certificates.issue("old", past)).unwrap());
    let (server, client) = meet(expired.clone(), certificates.tls("b"), "old");
    assert!(server.is_err());
    let (says, clock) = (|e: Option<TransportError>| e.unwrap().to_string(), "this host's clock says ");
    let told = says(client.err());
    assert!(told.contains("its certificate was valid until ") && told.contains(clock), "{told}");
    // The other side is told, and knows when its own certificate is valid.
    let told = says(server.err());
    assert!(told.contains("valid from ") && told.contains(clock) && told.contains("renew it"), "{told}");
    let (server, client) = meet(certificates.tls("a"), expired, "a");
    assert!(matches!(server, Err(TransportError::Tls { .. })), "{:?}", server.err());
    // The client's own handshake had succeeded: it must learn of the refusal all the same.
    let told = says(client.err());
    assert!(told.contains("valid from ") && told.contains(clock), "{told}");

    // A host whose clock is behind finds certificates that are not valid yet.
    let future = Validity { not_before: now + day, not_after: now + 3 * day };
    let young = Security::MutualTls(Identity::load(certificates.issue("young", future)).unwrap());
    let (_, client) = meet(young, certificates.tls("b"), "young");
    let told = says(client.err());
    assert!(told.contains("its certificate is valid from ") && told.contains(clock), "{told}");
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let certificates = Certificates::new();
    let dir = certificates.issue("a", Validity::days(1));
    let server = Security::MutualTls(Identity::load(&dir).unwrap());
    let mut roots = rustls::RootCertStore::empty();
    use rustls::pki_types::pem::PemObject;
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (server, client) = meet_with(server, |addr| {
        let mut tcp = TcpStream::connect(addr).unwrap();
        let mut tls = rustls::ClientConnection::new(config.into(), "a".try_into().unwrap()).unwrap();
        rustls::Stream::new(&mut tls, &mut tcp).read(&mut [0; 64])
    });
    assert!(matches!(server, Err(TransportError::Tls { .. })), "{:?}", server.err());
    assert!(client.is_err() || client.unwrap() == 0);
}

#[test]
fn the_certified_name_counts_not_the_stated_one() {
    let certificates = Certificates::new();
    let dir = certificates.issue("b", Validity::days(1));
    let server = certificates.tls("a");
    // A host that holds b's certificate and says that it is c: told by hand, as our own client cannot lie.
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
    let chain = vec![rustls::pki_types::CertificateDer::from_pem_file(dir.join("cert.pem")).unwrap()];
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    let (server, _) = meet_with(server, |addr| {
        let mut tcp = TcpStream::connect(addr).unwrap();
        let mut tls = rustls::ClientConnection::new(config.into(), "a".try_into().unwrap()).unwrap();
        let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
        stream.write_all(b"NFLD\x01\x01c").unwrap();
        stream.read(&mut [0; 64])
    });
    let Err(TransportError::WrongHost { expected, found, .. }) = server else { panic!("{:?}", server.err()) };
    assert_eq!((expected, found), (host("b"), host("c")));
}

#[test]
fn plain_text_and_tls_do_not_meet() {
    let certificates = Certificates::new();
    let (server, client) = meet(certificates.tls("a"), plain("b"), "a");
    assert!(matches!(server, Err(TransportError::Tls { .. })), "{:?}", server.err());
    assert!(client.is_err());
    let (server, client) = meet(plain("a"), certificates.tls("b"), "a");
    assert!(matches!(server, Err(TransportError::Protocol { .. })), "{:?}", server.err());
    assert!(client.is_err());
}

#[test]
fn garbage_is_refused() {
    let certificates = Certificates::new();
    for security in [certificates.tls("a"), plain("a")] {
        for garbage in
            [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0; 100_000], &[0xff; 5], b"NFLD\x63\x01a", b"\x16\x03\x01\xff\xff"]
        {
            let (server, ()) = meet_with(security.clone(), |addr| {
                let mut tcp = TcpStream::connect(addr).unwrap();
                // The other side may have hung up already.
                let _ = tcp.write_all(garbage);
                let _ = tcp.shutdown(Shutdown::Write);
                let _ = tcp.read_to_end(&mut Vec::new());
            });
            let error = server.err().expect("garbage got a link");
            assert!(!matches!(error, TransportError::Timeout { .. }), "{error}");
        }
    }
}

#[test]
fn a_peer_cannot_send_without_end_before_it_is_trusted() {
    let certificates = Certificates::new();
    let (server, ()) = meet_with(certificates.tls("a"), |addr| {
        let mut tcp = TcpStream::connect(addr).unwrap();
        // Handshake records that announce one huge message and never end it (RFC 8446, section 5.1).
        let mut record = vec![0x16, 3, 1, 0x40, 0];
        record.resize(5 + 0x4000, 0);
        record[5..9].copy_from_slice(&[1, 0, 0xff, 0xff]);
        for _ in 0..64 {
            if tcp.write_all(&record).is_err() {
                break;
            }
        }
        let _ = tcp.read_to_end(&mut Vec::new());
    });
    assert!(matches!(server, Err(TransportError::Tls { .. } | TransportError::Protocol { .. })), "{:?}", server.err());
}

#[test]
fn a_half_open_handshake_times_out_on_either_side() {
    let certificates = Certificates::new();
    let short = Duration::from_millis(100);
    for security in [certificates.tls("a"), plain("a")] {
        // Silent, and drip by drip: the deadline is for the whole.
        for drip in [false, true] {
            let listener = Listener::bind(loopback(), security.clone()).unwrap();
            let mut tcp = TcpStream::connect(listener.local_addr()).unwrap();
            let incoming = listener.accept().unwrap();
            let judging = thread::spawn(move || incoming.handshake(short));
            if drip {
                for byte in [0x16_u8, 3, 1, 0x10, 0].into_iter().chain(std::iter::repeat(0)) {
                    let byte = if matches!(security, Security::PlainText { .. }) { b'N' } else { byte };
                    if judging.is_finished() || tcp.write_all(&[byte]).is_err() {
                        break;
                    }
                    if matches!(security, Security::PlainText { .. }) {
                        break;
                    }
                    let _ = tcp.set_read_timeout(Some(Duration::from_millis(10)));
                    let _ = tcp.read(&mut [0]);
                }
            }
            let verdict = judging.join().unwrap();
            assert!(matches!(verdict, Err(TransportError::Timeout { .. })), "{:?}", verdict.err());
        }
        // A server that accepts and says nothing.
        let silent = TcpListener::bind(loopback()).unwrap();
        let client = match &security {
            Security::MutualTls(_) => certificates.tls("b"),
            Security::PlainText { .. } => plain("b"),
        };
        let verdict = connect(silent.local_addr().unwrap(), &host("a"), &client, short);
        assert!(matches!(verdict, Err(TransportError::Timeout { .. })), "{:?}", verdict.err());
    }
}

/// What comes before the deadline is read; a byte at a time does not move it.
#[test]
fn a_read_deadline_is_for_all_reads_together() {
    let certificates = Certificates::new();
    for (server, client) in [(certificates.tls("a"), certificates.tls("b")), (plain("a"), plain("b"))] {
        let (server, client) = pair(server, client);
        let (handle, (mut reader, _keep)) = (server.handle(), server.split());
        let (_keep, mut writer) = client.split();
        let trickle = thread::spawn(move || {
            while writer.write_all(b"x").and_then(|()| writer.flush()).is_ok() {
                thread::sleep(Duration::from_millis(5));
            }
        });
        handle.set_read_deadline(Some(Duration::from_millis(100))).unwrap();
        let error = reader.read_exact(&mut vec![0; 1 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        handle.set_read_deadline(None).unwrap();
        reader.read_exact(&mut [0; 100]).unwrap();
        handle.shutdown();
        trickle.join().unwrap();
    }
}

#[test]
fn strangers_keep_no_known_address_out() {
    let bounds = ninefold_listen::Bounds { strangers: 2, ..ninefold_listen::Bounds::new(3) };
    let known: std::net::IpAddr = "127.0.0.2".parse().unwrap();
    let listener = Listener::bind_within(loopback(), plain("a"), bounds, &[known]).unwrap();
    let addr = listener.local_addr();
    let serving = thread::spawn(move || {
        let mut links = Vec::new();
        let mut judging = Vec::new();
        while let Ok(incoming) = listener.accept() {
            let from = incoming.remote_addr().ip();
            let judge = thread::spawn(move || incoming.handshake(LONG));
            if from == known {
                links.push(judge.join().unwrap().map(|link| link.peer().clone()).map_err(|e| e.to_string()));
                break;
            }
            judging.push(judge);
        }
        (links, judging.len())
    });
    // More strangers than have places; the known address comes right after them, without any delay.
    let _strangers: Vec<_> = (0..3).map(|_| TcpStream::connect(addr).unwrap()).collect();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(known, 0).into()).unwrap();
    socket.connect(&addr.into()).unwrap();
    let mut peer = TcpStream::from(socket);
    peer.write_all(b"NFLD\x01\x01b").unwrap();
    let (links, strangers) = serving.join().unwrap();
    assert_eq!(links, [Ok(host("b"))]);
    assert_eq!(strangers, 2, "the third was turned away");
}

#[test]
fn nobody_listening_is_said() {
    let free = TcpListener::bind(loopback()).unwrap().local_addr().unwrap();
    let verdict = connect(free, &host("a"), &plain("b"), LONG);
    assert!(matches!(verdict, Err(TransportError::Connect { .. })), "{:?}", verdict.err());
}

#[test]
fn a_closed_listener_accepts_no_more() {
    let listener = Listener::bind(loopback(), plain("a")).unwrap();
    let handle = listener.handle();
    let waiting = thread::spawn(move || (listener.accept().err(), listener.accept().err()));
    handle.close();
    let (first, second) = waiting.join().unwrap();
    assert!(matches!(first, Some(TransportError::Closed)));
    assert!(matches!(second, Some(TransportError::Closed)));
}

#[test]
fn an_address_in_use_is_said() {
    let listener = Listener::bind(loopback(), plain("a")).unwrap();
    let again = Listener::bind(listener.local_addr(), plain("a"));
    assert!(matches!(again.err(), Some(TransportError::Bind { .. })));
}

#[test]
fn keys_are_for_their_owner_only_and_an_authority_can_be_reopened() {
    let certificates = Certificates::new();
    let dir = certificates.issue("a", Validity::days(1));
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dir.join("key.pem")), 0o600);
    assert_eq!(mode(certificates.path("authority/ca-key.pem")), 0o600);

    let reopened = Authority::open(certificates.path("authority")).unwrap();
    let later = certificates.path("later");
    reopened.issue(&host("later"), &later, Validity::days(1)).unwrap();
    let later = Security::MutualTls(Identity::load(later).unwrap());
    let (server, client) = pair(certificates.tls("a"), later);
    assert_eq!((server.peer(), client.peer()), (&host("later"), &host("a")));
}

#[test]
fn an_unfit_identity_names_the_file() {
    let certificates = Certificates::new();
    let dir = certificates.issue("a", Validity::days(1));
    for (file, content) in [("ca.pem", &b""[..]), ("cert.pem", b"nonsense"), ("key.pem", b"\xff\xfe")] {
        let kept = std::fs::read(dir.join(file)).unwrap();
        std::fs::write(dir.join(file), content).unwrap();
        let error = Identity::load(&dir).unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
        std::fs::remove_file(dir.join(file)).unwrap();
        let error = Identity::load(&dir).unwrap_err().to_string();
        assert!(error.contains(file), "{error}");
        std::fs::write(dir.join(file), kept).unwrap();
    }
    // Another host's key does not fit the certificate.
    std::fs::copy(certificates.issue("b", Validity::days(1)).join("key.pem"), dir.join("key.pem")).unwrap();
    assert!(Identity::load(&dir).is_err());
}

#[test]
fn a_connect_attempt_ends_in_time() {
    // A listener whose queue is full answers no more SYNs.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&loopback().into()).unwrap();
    full.listen(0).unwrap();
    let addr = full.local_addr().unwrap().as_socket().unwrap();
    let _queued: Vec<_> = (0..2).map(|_| TcpStream::connect_timeout(&addr, Duration::from_millis(200))).collect();
    let start = Instant::now();
    assert!(connect(addr, &host("a"), &plain("b"), Duration::from_millis(100)).is_err());
    assert!(start.elapsed() < LONG);
}
