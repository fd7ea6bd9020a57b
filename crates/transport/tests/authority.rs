//! The authority's directory: what is refused, two at once, crashes half way, readers at any moment, one that OpenSSL made.

mod support;

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ninefold_transport::authority::{Occasion, Which};
use ninefold_transport::{Authority, AuthorityError, Identity, Security, UtcTime, Validity};
use support::{Certificates, host, meet, pair};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn an_authority_is_its_owners_alone() {
    let certificates = Certificates::new();
    let dir = certificates.path("authority");
    assert_eq!((mode(&dir), mode(&dir.join("ca-key.pem"))), (0o700, 0o600));
    for (path, open) in [(dir.clone(), 0o750), (dir.join("ca-key.pem"), 0o640)] {
        let was = mode(&path);
        fs::set_permissions(&path, Permissions::from_mode(open)).unwrap();
        let error = Authority::open(&dir).err().expect("refused");
        assert!(matches!(&error, AuthorityError::Readable { path: p, mode } if *p == path && *mode == open), "{error}");
        fs::set_permissions(&path, Permissions::from_mode(was)).unwrap();
    }
    Authority::open(&dir).unwrap();
    // What is there is never overwritten; an empty directory is as good as none.
    let again = Authority::create(&dir, Validity::days(1)).err().expect("refused");
    assert!(matches!(again, AuthorityError::Exists { .. }), "{again}");
    let empty = certificates.path("empty");
    fs::create_dir(&empty).unwrap();
    Authority::create(&empty, Validity::days(1)).unwrap();
    assert_eq!(mode(&empty), 0o700);
    let none = Authority::open(certificates.path("none")).err().expect("refused");
    assert!(matches!(none, AuthorityError::Missing { .. }), "{none}");
}

#[test]
fn each_occasion_has_its_conditions() {
    let certificates = Certificates::new();
    let (authority, now) = (&certificates.authority, UtcTime::now());
    let issue = |on, name: &str, days| {
        authority.issue_on(on, &host(name), &certificates.path(name), authority.for_days(days).unwrap())
    };
    let unknown = issue(Occasion::Renewal, "a", 1).unwrap_err();
    assert!(matches!(&unknown, AuthorityError::UnknownHost { known, .. } if known.is_empty()), "{unknown}");
    let first = issue(Occasion::First, "a", 1).unwrap();
    let has_one = issue(Occasion::First, "a", 1).unwrap_err();
    assert!(matches!(&has_one, AuthorityError::HasOne { not_after, .. } if *not_after == first.not_after), "{has_one}");
    let second = issue(Occasion::Renewal, "a", 1).unwrap();
    // Not for longer than the authority.
    let third = issue(Occasion::Renewal, "a", 500).unwrap();
    assert_eq!(third.not_after, authority.validity().1);
    let serials: HashSet<_> = [&first, &second, &third].into_iter().map(|e| e.serial.len()).collect();
    assert_eq!(serials, HashSet::from([32]), "16 bytes");

    // All that the host has is revoked at once, and then there is nothing more to revoke.
    let revoked = authority.revoke(Which::Host(&host("a"))).unwrap();
    assert_eq!(revoked.len(), 3);
    let nothing = authority.revoke(Which::Host(&host("a"))).unwrap_err();
    assert!(matches!(nothing, AuthorityError::NothingToRevoke { .. }), "{nothing}");
    let again = authority.revoke(Which::Serial(&first.serial.to_uppercase())).unwrap_err();
    assert!(matches!(again, AuthorityError::AlreadyRevoked { .. }), "{again}");
    for unknown in ["", "abcdef", "no number"] {
        let error = authority.revoke(Which::Serial(unknown)).unwrap_err();
        assert!(matches!(error, AuthorityError::UnknownSerial { .. }), "{error}");
    }
    issue(Occasion::First, "a", 1).expect("it has none in force");
    let index = authority.index().unwrap();
    assert_eq!((index.entries.len(), index.hosts()), (4, vec![host("a")]));
    assert!(index.in_force(&host("a"), now).is_some());
}

/// A connection outlives the end of its certificate: what has expired can be revoked with the rest of its host, and is named.
#[test]
fn what_has_expired_is_revoked_with_its_host() {
    let certificates = Certificates::new();
    let authority = &certificates.authority;
    let (now, day) = (std::time::SystemTime::now(), std::time::Duration::from_secs(86_400));
    for ago in [500, 2] {
        let validity = Validity { not_before: now - 600 * day, not_after: now - ago * day };
        certificates.issue("a", validity);
    }
    let revoked = authority.revoke(Which::Host(&host("a"))).unwrap();
    assert_eq!(revoked.len(), 1, "that which a connection may be left of");
    assert_eq!(authority.state_of(&authority.latest_list().unwrap()).unwrap().revoked, 1);
    let nothing = authority.revoke(Which::Host(&host("a"))).unwrap_err();
    assert!(matches!(nothing, AuthorityError::NothingToRevoke { .. }), "{nothing}");
}

/// A list names what is revoked for as long as it could be shown to somebody, or a connection may be left; what has long expired is
/// left out.
#[test]
fn a_list_is_bounded_by_what_is_in_force() {
    let certificates = Certificates::new();
    let authority = &certificates.authority;
    let day = std::time::Duration::from_secs(86_400);
    let now = std::time::SystemTime::now();
    for (name, ago) in [("long", 401), ("just", 399)] {
        let validity = Validity { not_before: now - 500 * day, not_after: now - ago * day };
        let entry = authority.issue(&host(name), certificates.path(name), validity).unwrap();
        authority.revoke(Which::Serial(&entry.serial)).unwrap();
    }
    certificates.issue("a", Validity::days(1));
    authority.revoke(Which::Host(&host("a"))).unwrap();
    let (list, state) = authority.publish(7).unwrap();
    assert_eq!(state.revoked, 2);
    assert_eq!(authority.state_of(&list).unwrap(), state);
    assert_eq!(state.next_update.days_after(UtcTime::now()), 7);
    assert_eq!(list, authority.latest_list().unwrap());
}

#[test]
fn two_at_once_lose_nothing() {
    let certificates = Certificates::new();
    let dir = certificates.path("authority");
    let hosts: Vec<_> = (0..6).map(|n| format!("h{n}")).collect();
    let first = certificates.authority.index().unwrap().list_number;
    thread::scope(|s| {
        for name in &hosts {
            // Each is a command of its own.
            let authority = Authority::open(&dir).unwrap();
            let certificates = &certificates;
            s.spawn(move || {
                for _ in 0..3 {
                    authority.issue(&host(name), certificates.path(name), Validity::days(1)).unwrap();
                }
                authority.revoke(Which::Host(&host(name))).unwrap();
            });
        }
    });
    let index = certificates.authority.index().unwrap();
    assert_eq!((index.entries.len(), index.hosts().len()), (18, 6));
    assert!(index.entries.iter().all(|e| e.revoked.is_some()));
    // One for each change: their numbers are at least one apart.
    assert!(index.list_number >= first + 18 + 6, "{first} {}", index.list_number);
    let list = certificates.authority.latest_list().unwrap();
    assert_eq!(certificates.authority.state_of(&list).unwrap().revoked, 18);
}

/// What a command leaves that is killed at any moment is swept by the next; what has been damaged is said, and nothing is changed.
#[test]
fn a_crash_half_way_leaves_nothing_in_the_way() {
    let certificates = Certificates::new();
    let (authority, dir) = (&certificates.authority, certificates.path("authority"));
    certificates.issue("a", Validity::days(1));
    for leftover in ["index.new", "crl.pem.new"] {
        fs::write(dir.join(leftover), "half").unwrap();
    }
    let leftover = certificates.path(".a.new");
    fs::create_dir(&leftover).unwrap();
    fs::write(leftover.join("key.pem"), "half").unwrap();
    certificates.issue("a", Validity::days(1));
    assert!(!leftover.exists() && !dir.join("index.new").exists());
    assert_eq!(authority.index().unwrap().entries.len(), 2);

    let index = fs::read_to_string(dir.join("index")).unwrap();
    for damaged in ["", "nonsense\n", &index[..index.len() / 2], &index.replace(" a ", " b ")] {
        fs::write(dir.join("index"), damaged).unwrap();
        let error = authority.revoke(Which::Host(&host("a"))).unwrap_err();
        assert!(matches!(&error, AuthorityError::Index { path, .. } if *path == dir.join("index")), "{error}");
        assert_eq!(fs::read_to_string(dir.join("index")).unwrap(), damaged);
    }
    fs::write(dir.join("index"), [0xff, 0xfe]).unwrap();
    assert!(matches!(authority.index(), Err(AuthorityError::Index { .. })));
}

/// Whoever reads the directory while it is replaced finds one identity, never half of each.
#[test]
fn a_reader_finds_the_old_files_or_the_new_ones() {
    let certificates = Certificates::new();
    let dir = certificates.issue("a", Validity::days(1));
    let done = AtomicBool::new(false);
    thread::scope(|s| {
        let reading = s.spawn(|| {
            let mut seen = HashSet::new();
            while !done.load(Ordering::Acquire) {
                seen.insert(Identity::load(&dir).map(|i| i.state().serial).map_err(|e| e.to_string()));
            }
            seen
        });
        for _ in 0..20 {
            certificates.issue("a", Validity::days(1));
        }
        done.store(true, Ordering::Release);
        let seen = reading.join().unwrap();
        // Files of a directory that is gone already may be gone, too; they are never another's.
        let mixed: Vec<_> =
            seen.into_iter().filter_map(Result::err).filter(|e| !e.contains("there is no such file")).collect();
        assert!(mixed.is_empty(), "{mixed:?}");
    });
    // What else is there is nobody's to remove.
    fs::write(dir.join("notes"), "mine").unwrap();
    let error = certificates.authority.issue(&host("a"), &dir, Validity::days(1)).unwrap_err();
    assert!(matches!(&error, AuthorityError::Out { reason, .. } if reason.contains("notes")), "{error}");
    assert_eq!(fs::read_to_string(dir.join("notes")).unwrap(), "mine");
    for wrong in [certificates.path("a/cert.pem"), certificates.path("authority/.."), "/".into()] {
        let error = certificates.authority.issue(&host("a"), &wrong, Validity::days(1)).unwrap_err();
        assert!(matches!(error, AuthorityError::Out { .. }), "{}: {error}", wrong.display());
    }
    assert_eq!(certificates.authority.index().unwrap().entries.len(), 21, "what was refused is not on record");
}

/// Hosts refuse a list that is older than theirs: those of a copy that was put back are not.
#[test]
fn lists_of_an_old_copy_that_was_put_back_count() {
    let certificates = Certificates::new();
    let (authority, index) = (&certificates.authority, certificates.path("authority/index"));
    let a = Identity::load(certificates.issue("a", Validity::days(1))).unwrap();
    certificates.issue("b", Validity::days(1));
    let copy = fs::read(&index).unwrap();
    for name in ["c", "d"] {
        certificates.issue(name, Validity::days(1));
    }
    let bring = || fs::copy(authority.list_path(), certificates.path("a/crl.pem")).unwrap();
    bring();
    a.refresh(UtcTime::now());
    // That of the next millisecond at the latest.
    let last = u128::from(authority.index().unwrap().list_number);
    while std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() <= last {
        thread::yield_now();
    }
    fs::write(&index, copy).unwrap();
    authority.revoke(Which::Host(&host("b"))).unwrap();
    bring();
    a.refresh(UtcTime::now());
    assert_eq!((a.state().list.unwrap().revoked, a.state().problem), (1, None));
}

fn openssl(dir: &Path, words: &[&str]) -> String {
    let output = Command::new("openssl").args(words).current_dir(dir).output().expect("openssl runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "openssl {words:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// An authority as the guide had it made by hand, with a name of several parts; with a host that it has issued a certificate.
fn made_by_openssl(dir: &Path, key: &[&str]) {
    let subject = ["-nodes", "-days", "10", "-subj", "/C=DE/O=Example & Söhne/CN=Hosts", "-utf8"];
    let kind =
        ["-addext", "basicConstraints=critical,CA:TRUE,pathlen:0", "-addext", "keyUsage=critical,keyCertSign,cRLSign"];
    let files = ["-keyout", "ca-key.pem", "-out", "ca.pem"];
    openssl(dir, &[&["req", "-x509", "-newkey"], key, &subject[..], &kind[..], &files[..]].concat());
    fs::create_dir(dir.join("old")).unwrap();
    let request = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=old"];
    openssl(dir, &[&request[..], &["-keyout", "old/key.pem", "-out", "old.csr"]].concat());
    let extensions =
        "subjectAltName=DNS:old\nextendedKeyUsage=serverAuth,clientAuth\nkeyUsage=critical,digitalSignature\n";
    fs::write(dir.join("old.ext"), extensions).unwrap();
    let sign =
        ["x509", "-req", "-in", "old.csr", "-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "5"];
    openssl(dir, &[&sign[..], &["-extfile", "old.ext", "-out", "old/cert.pem"]].concat());
    fs::copy(dir.join("ca.pem"), dir.join("old/ca.pem")).unwrap();
}

#[test]
fn an_authority_that_openssl_made_is_taken_over() {
    for key in [&["ec", "-pkeyopt", "ec_paramgen_curve:P-256"][..], &["rsa:2048"]] {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path();
        made_by_openssl(dir, key);
        let (cert, key_file) = (dir.join("ca.pem"), dir.join("ca-key.pem"));
        let authority = Authority::import(dir.join("authority"), &cert, &key_file).unwrap();
        assert_eq!(authority.name(), "Hosts");
        authority.issue(&host("a"), dir.join("a"), authority.for_days(365).unwrap()).unwrap();
        let load = |name: &str| Identity::load(dir.join(name)).unwrap();
        let (a, old) = (load("a"), load("old"));
        let tls = |identity: &Identity| Security::MutualTls(identity.clone());
        pair(tls(&a), tls(&old));
        pair(tls(&old), tls(&a));
        // OpenSSL agrees, with the list.
        openssl(
            dir,
            &["verify", "-x509_strict", "-CAfile", "ca.pem", "-CRLfile", "a/crl.pem", "-crl_check", "a/cert.pem"],
        );

        // What it had issued before is revoked by its file.
        let other = Certificates::new();
        let error = authority.revoke(Which::File(&other.issue("b", Validity::days(1)).join("cert.pem"))).unwrap_err();
        assert!(error.to_string().contains("is not of this authority"), "{error}");
        let revoked = authority.revoke(Which::File(&dir.join("old/cert.pem"))).unwrap();
        assert_eq!(revoked[0].host, host("old"));
        fs::copy(dir.join("authority/crl.pem"), dir.join("a/crl.pem")).unwrap();
        a.refresh(UtcTime::now());
        assert!(meet(tls(&a), tls(&old), "a").0.is_err());
        let text = openssl(dir, &["crl", "-in", "a/crl.pem", "-noout", "-text"]);
        assert!(text.contains("Serial Number") && text.contains("X509v3 CRL Number"), "{text}");
        // As it is opened again.
        Authority::open(dir.join("authority")).unwrap().issue(&host("a"), dir.join("a"), Validity::days(1)).unwrap();
    }
}

#[test]
fn what_cannot_be_taken_over_is_said() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    made_by_openssl(dir, &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    let other = tempfile::tempdir().unwrap();
    made_by_openssl(other.path(), &["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    openssl(dir, &["ec", "-in", "ca-key.pem", "-out", "sec1.pem"]);
    fs::write(dir.join("empty"), "").unwrap();
    for (cert, key, word) in [
        (dir.join("ca.pem"), other.path().join("ca-key.pem"), "is not the key of"),
        (dir.join("ca.pem"), dir.join("sec1.pem"), "PKCS #8"),
        (dir.join("empty"), dir.join("ca-key.pem"), "no certificate"),
        (dir.join("none"), dir.join("ca-key.pem"), "cannot read"),
    ] {
        let error = Authority::import(dir.join("authority"), &cert, &key).err().expect("refused");
        assert!(error.to_string().contains(word), "{error}");
        assert!(!dir.join("authority").exists());
    }
}
