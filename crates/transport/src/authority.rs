//! A small certificate authority: a directory with its key, what it has issued, and what of that is revoked.
//!
//! | file | what |
//! |---|---|
//! | `ca.pem` | its certificate |
//! | `ca-key.pem` | its private key (mode 0600) |
//! | `index` | what was issued and revoked: see [`index`] |
//! | `crl.pem` | the latest revocation list |
//! | `lock` | held by whoever changes something |
//!
//! The index is on the disk before a certificate is handed out: a crash leaves at worst one on record that nobody has.

mod error;
mod existing;
pub mod index;
mod place;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ninefold_model::HostName;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustix::fs::{FlockOperation, flock};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

pub use self::error::AuthorityError;
use self::error::{Result, at, unfit};
use self::existing::Found;
use self::index::{Entry, Index};
use self::place::{Fresh, Place};
use crate::crypto;
use crate::dates::{DAY, Dates, UtcTime};
use crate::identity::{CA_FILE, CERT_FILE, CRL_FILE, Identity, KEY_FILE};
use crate::revocation::{ListState, Lists};

/// The authority's private key, PEM. Keep it off the hosts.
pub const CA_KEY_FILE: &str = "ca-key.pem";
const INDEX_FILE: &str = "index";
const LOCK_FILE: &str = "lock";

/// How long the next revocation list may take, days.
pub const LIST_DAYS: u32 = 365;
/// A revoked certificate is named by the lists for so long after its end: the hosts' clocks differ, and a connection that it has opened
/// outlives its end, while no list names it.
const AFTER_END: u64 = 400 * DAY;
/// How long one command waits for another.
const PATIENCE: Duration = Duration::from_secs(10);
/// 2025-01-01: no clock that is set says something before that.
const SET: UtcTime = UtcTime(1_735_689_600);

/// From when to when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Validity {
    /// From yesterday (hosts' clocks differ) until `days` from now.
    pub fn days(days: u32) -> Self {
        let (now, day) = (SystemTime::now(), Duration::from_secs(DAY));
        Self { not_before: now - day, not_after: now + day * days }
    }
}

/// What a certificate is issued for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// The host has none that is in force.
    First,
    /// The host has had one.
    Renewal,
    /// Either.
    Any,
}

/// What is to be revoked.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    /// All that a host has been issued, also what has expired: a connection may be left of it.
    Host(&'a HostName),
    /// The one with this serial number, hexadecimal.
    Serial(&'a str),
    /// The one in this file, PEM: it may be one that this authority issued before its index was begun.
    File(&'a Path),
}

/// A certificate authority with its private key, in a directory of its own.
pub struct Authority {
    dir: PathBuf,
    pem: String,
    found: Found,
}

/// No other command changes anything while it is there.
struct Lock(#[allow(dead_code, reason = "it is held")] File);

impl Authority {
    /// Makes a new authority in `dir`, which must not be there, or be empty: a key for EC P-256, a certificate, an empty
    /// revocation list.
    ///
    /// # Errors
    /// There is something in `dir`, or it cannot be written.
    pub fn create(dir: impl AsRef<Path>, validity: Validity) -> Result<Self> {
        let name = format!("Ninefold authority {}", crypto::hex(&random::<4>(&dir)?));
        let make = |e: rcgen::Error| AuthorityError::Make { subject: name.clone(), reason: e.to_string() };
        let key = KeyPair::generate().map_err(make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name.as_str());
        params.serial_number = Some(serial_number(&dir)?);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = validity.not_before.into();
        params.not_after = validity.not_after.into();
        let certificate = params.self_signed(&key).map_err(make)?.pem();
        Self::begin(dir.as_ref(), &certificate, &key.serialize_pem())
    }

    /// Takes over an authority that was made by another program: copies its certificate and its key (PEM, not encrypted) into
    /// `dir`, which must not be there, or be empty. What it has issued before is not in the index.
    ///
    /// # Errors
    /// The two do not belong together or cannot be used here; as [`Authority::create`].
    pub fn import(dir: impl AsRef<Path>, cert: &Path, key: &Path) -> Result<Self> {
        let text = |path: &Path| fs::read_to_string(path).map_err(at("cannot read", path));
        let (cert_text, key_text) = (text(cert)?, text(key)?);
        let found = existing::found(cert, &cert_text, key, &key_text)?;
        if found.dates.not_after <= UtcTime::now() {
            return Err(unfit(cert, format!("was valid until {}", found.dates.not_after)));
        }
        Self::begin(dir.as_ref(), &cert_text, &key_text)
    }

    fn begin(dir: &Path, certificate: &str, key: &str) -> Result<Self> {
        // One that is empty goes: the new one has modes of its own.
        match fs::remove_dir(dir) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(_) => return Err(AuthorityError::Exists { dir: dir.to_owned() }),
        }
        let found = existing::found(&dir.join(CA_FILE), certificate, &dir.join(CA_KEY_FILE), key)?;
        let authority = Self { dir: dir.to_owned(), pem: certificate.to_owned(), found };
        let mut index = Index::default();
        let list = authority.list(&mut index, LIST_DAYS)?;
        let index = index.to_text();
        let files = [
            Fresh { name: CA_KEY_FILE, text: key, mode: 0o600 },
            Fresh { name: CA_FILE, text: certificate, mode: 0o644 },
            Fresh { name: INDEX_FILE, text: &index, mode: 0o600 },
            Fresh { name: CRL_FILE, text: &list, mode: 0o644 },
            Fresh { name: LOCK_FILE, text: "", mode: 0o600 },
        ];
        Place::of(dir, &[])?.put(&files, |_| Ok(()))?;
        Self::open(dir)
    }

    /// Opens the authority in `dir`.
    ///
    /// # Errors
    /// There is none, it is damaged, or others than its owner could have read its key.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let (ca_path, key_path) = (dir.join(CA_FILE), dir.join(CA_KEY_FILE));
        if !key_path.exists() && !ca_path.exists() {
            return Err(AuthorityError::Missing { dir: dir.to_owned() });
        }
        for path in [dir, &key_path] {
            let mode = fs::metadata(path).map_err(at("cannot read", path))?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(AuthorityError::Readable { path: path.to_owned(), mode });
            }
        }
        let text = |path: &Path| fs::read_to_string(path).map_err(at("cannot read", path));
        let (pem, key) = (text(&ca_path)?, text(&key_path)?);
        let found = existing::found(&ca_path, &pem, &key_path, &key)?;
        Ok(Self { dir: dir.to_owned(), pem, found })
    }

    /// How people call it: its common name.
    pub fn name(&self) -> &str {
        &self.found.name
    }

    /// From when to when its own certificate is good.
    pub fn validity(&self) -> (UtcTime, UtcTime) {
        let Dates { not_before, not_after } = self.found.dates;
        (not_before, not_after)
    }

    /// Whether this host's clock is set, as far as that can be told.
    ///
    /// # Errors
    /// It is not.
    pub fn check_clock() -> Result<()> {
        set_clock().map(drop)
    }

    /// For a certificate that is good for so many days from now, but not for longer than the authority.
    ///
    /// # Errors
    /// This host's clock is not set, or the authority is not in force by it.
    pub fn for_days(&self, days: u32) -> Result<Validity> {
        let now = set_clock()?;
        let (not_before, not_after) = self.validity();
        if now < not_before || now >= not_after {
            return Err(AuthorityError::NotInForce { now, not_before, not_after });
        }
        let validity = Validity::days(days);
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(not_after.0);
        Ok(Validity { not_after: validity.not_after.min(end), ..validity })
    }

    /// What it has issued and revoked.
    ///
    /// # Errors
    /// The index cannot be read, or is damaged.
    pub fn index(&self) -> Result<Index> {
        let path = self.dir.join(INDEX_FILE);
        let length = fs::metadata(&path).map_err(at("cannot read", &path))?.len();
        let damaged = |reason: String| AuthorityError::Index { path: path.clone(), reason };
        if length > index::MOST {
            return Err(damaged(format!("it is longer than {} bytes", index::MOST)));
        }
        let bytes = fs::read(&path).map_err(at("cannot read", &path))?;
        let text = String::from_utf8(bytes).map_err(|_| damaged("it is not text".into()))?;
        Index::parse(&text).map_err(damaged)
    }

    /// Issues a certificate for `host` and puts `ca.pem`, `cert.pem`, `key.pem` (mode 0600) and `crl.pem` into `dir`, all at once: who
    /// reads the directory finds the old files or the new ones. [`crate::Identity::load`] reads them.
    ///
    /// # Errors
    /// `dir` has other files, or cannot be written; the index is damaged.
    pub fn issue(&self, host: &HostName, dir: impl AsRef<Path>, validity: Validity) -> Result<Entry> {
        self.issue_on(Occasion::Any, host, dir.as_ref(), validity)
    }

    /// The same on this occasion.
    ///
    /// # Errors
    /// As [`Authority::issue`]; or the host has a certificate in force, or has never had one.
    pub fn issue_on(&self, occasion: Occasion, host: &HostName, dir: &Path, validity: Validity) -> Result<Entry> {
        let _lock = self.lock()?;
        let mut index = self.index()?;
        match (occasion, index.in_force(host, UtcTime::now())) {
            (Occasion::First, Some(entry)) => {
                return Err(AuthorityError::HasOne { host: host.clone(), not_after: entry.not_after });
            }
            (Occasion::Renewal, None) if !index.entries.iter().any(|e| e.host == *host) => {
                return Err(AuthorityError::UnknownHost { host: host.clone(), known: index.hosts() });
            }
            _ => {}
        }
        // Before anything is on record.
        let place = Place::of(dir, &[KEY_FILE, CERT_FILE, CA_FILE, CRL_FILE])?;
        let fail = |e: rcgen::Error| AuthorityError::Make { subject: host.to_string(), reason: e.to_string() };
        let key = KeyPair::generate().map_err(fail)?;
        let serial = serial_number(&self.dir)?;
        let mut params = CertificateParams::new(vec![host.as_str().to_owned()]).map_err(fail)?;
        params.serial_number = Some(serial.clone());
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, host.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = validity.not_before.into();
        params.not_after = validity.not_after.into();
        let certificate = params.signed_by(&key, &self.found.issuer).map_err(fail)?.pem();
        let entry = Entry {
            host: host.clone(),
            serial: crypto::hex(serial.as_ref()),
            issued: UtcTime::now(),
            not_after: validity.not_after.into(),
            revoked: None,
        };
        index.entries.push(entry.clone());
        let list = self.publish_locked(&mut index, LIST_DAYS)?;
        let key = key.serialize_pem();
        let files = [
            Fresh { name: KEY_FILE, text: &key, mode: 0o600 },
            Fresh { name: CERT_FILE, text: &certificate, mode: 0o644 },
            Fresh { name: CA_FILE, text: &self.pem, mode: 0o644 },
            Fresh { name: CRL_FILE, text: &list, mode: 0o644 },
        ];
        // By the code that will read it.
        let check = |dir: &Path| Identity::load(dir).map(drop).map_err(|e| AuthorityError::Made(Box::new(e)));
        place.put(&files, check)?;
        Ok(entry)
    }

    /// Revokes certificates and makes a new revocation list, which names them; answers which.
    ///
    /// # Errors
    /// Nothing of the kind was issued, or all of it is revoked already; this host's clock is not set.
    pub fn revoke(&self, which: Which<'_>) -> Result<Vec<Entry>> {
        let now = set_clock()?;
        let _lock = self.lock()?;
        let mut index = self.index()?;
        let chosen: Vec<usize> = match which {
            Which::Host(host) => {
                if !index.entries.iter().any(|e| e.host == *host) {
                    return Err(AuthorityError::UnknownHost { host: host.clone(), known: index.hosts() });
                }
                let counts = |(_, e): &(usize, &Entry)| e.host == *host && e.revoked.is_none() && is_named(e, now);
                let chosen: Vec<_> = index.entries.iter().enumerate().filter(counts).map(|(n, _)| n).collect();
                if chosen.is_empty() {
                    return Err(AuthorityError::NothingToRevoke { host: host.clone() });
                }
                chosen
            }
            Which::Serial(text) => {
                let unknown = || AuthorityError::UnknownSerial { serial: text.to_owned() };
                let serial = index::serial_of_people(text).ok_or_else(unknown)?;
                vec![index.entries.iter().position(|e| e.serial == serial).ok_or_else(unknown)?]
            }
            Which::File(path) => {
                let entry = self.of_file(path, now)?;
                let known = index.entries.iter().position(|e| e.serial == entry.serial);
                vec![known.unwrap_or_else(|| {
                    index.entries.push(entry);
                    index.entries.len() - 1
                })]
            }
        };
        let mut revoked = Vec::new();
        for n in chosen {
            let entry = &mut index.entries[n];
            if let Some(at) = entry.revoked {
                return Err(AuthorityError::AlreadyRevoked { serial: entry.serial.clone(), at });
            }
            entry.revoked = Some(now);
            revoked.push(entry.clone());
        }
        self.publish_locked(&mut index, LIST_DAYS)?;
        Ok(revoked)
    }

    /// Makes a revocation list of what is revoked, the next one being due in so many days. Answers it, PEM, and what it says.
    ///
    /// # Errors
    /// The index is damaged, or the list cannot be written; this host's clock is not set.
    pub fn publish(&self, days: u32) -> Result<(String, ListState)> {
        set_clock()?;
        let _lock = self.lock()?;
        let list = self.publish_locked(&mut self.index()?, days)?;
        let state = self.state_of(&list)?;
        Ok((list, state))
    }

    /// Where the latest list is.
    pub fn list_path(&self) -> PathBuf {
        self.dir.join(CRL_FILE)
    }

    /// The latest list, PEM.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn latest_list(&self) -> Result<String> {
        let path = self.list_path();
        fs::read_to_string(&path).map_err(at("cannot read", &path))
    }

    /// What a list of this authority says.
    ///
    /// # Errors
    /// It is not of this authority.
    pub fn state_of(&self, list: &str) -> Result<ListState> {
        let path = self.list_path();
        let anchor = self.anchor()?;
        let lists = Lists::parse(list.as_bytes(), &[anchor], &Lists::default()).map_err(|e| unfit(&path, e))?;
        lists.state().ok_or_else(|| unfit(&path, "holds no list"))
    }

    /// Writes a file that is to be distributed, such as a list, at once.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(path: &Path, text: &str) -> Result<()> {
        place::file(path, text, 0o644)
    }

    fn anchor(&self) -> Result<rustls::pki_types::TrustAnchor<'_>> {
        anchor_from_trusted_cert(&self.found.certificate).map_err(|e| unfit(&self.dir.join(CA_FILE), e))
    }

    /// A certificate that this authority has issued, from a file.
    fn of_file(&self, path: &Path, now: UtcTime) -> Result<Entry> {
        let text = fs::read(path).map_err(at("cannot read", path))?;
        let certificate =
            CertificateDer::from_pem_slice(&text).map_err(|e| unfit(path, format!("no certificate: {e:?}")))?;
        let dates = Dates::of(&certificate).ok_or_else(|| unfit(path, "its dates cannot be read"))?;
        let parsed = EndEntityCert::try_from(&certificate).map_err(|e| unfit(path, e))?;
        let host = crypto::certified_host(&certificate).map_err(|e| unfit(path, e))?;
        let (anchor, algorithms) = ([self.anchor()?], crypto::algorithms().all);
        let usage = KeyUsage::client_auth();
        parsed
            .verify_for_usage(algorithms, &anchor, &[], dates.not_before.into(), usage, None, None)
            .map_err(|e| unfit(path, format!("is not of this authority: {e}")))?;
        let serial = crypto::serial_text(parsed.serial());
        Ok(Entry { host, serial, issued: now, not_after: dates.not_after, revoked: None })
    }

    /// Writes the index with the next list's number, then the list.
    fn publish_locked(&self, index: &mut Index, days: u32) -> Result<String> {
        let list = self.list(index, days)?;
        place::file(&self.dir.join(INDEX_FILE), &index.to_text(), 0o600)?;
        place::file(&self.dir.join(CRL_FILE), &list, 0o644)?;
        Ok(list)
    }

    /// The next list, PEM; the index has its number from then on.
    fn list(&self, index: &mut Index, days: u32) -> Result<String> {
        let fail =
            |e: rcgen::Error| AuthorityError::Make { subject: "the revocation list".into(), reason: e.to_string() };
        let now = UtcTime::now();
        // By the clock: an authority of which an old copy was put back must not make lists that hosts find older than what they have.
        index.list_number = index.list_number.saturating_add(1).max(milliseconds());
        let time = |at: UtcTime| (SystemTime::UNIX_EPOCH + Duration::from_secs(at.0)).into();
        let named = index.entries.iter().filter(|e| is_named(e, now));
        let revoked = named.filter_map(|entry| {
            Some(RevokedCertParams {
                revocation_time: time(entry.revoked?),
                serial_number: SerialNumber::from_slice(&bytes(&entry.serial)),
                reason_code: None,
                invalidity_date: None,
            })
        });
        let params = CertificateRevocationListParams {
            this_update: time(now),
            next_update: time(UtcTime(now.0 + DAY * u64::from(days.max(1)))),
            crl_number: SerialNumber::from(index.list_number),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: self.found.key_id.clone(),
        };
        let list = params.signed_by(&self.found.issuer).and_then(|list| list.pem()).map_err(fail)?;
        self.state_of(&list)?;
        Ok(list)
    }

    fn lock(&self) -> Result<Lock> {
        let path = self.dir.join(LOCK_FILE);
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(at("cannot open", &path))?;
        let deadline = Instant::now() + PATIENCE;
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() > deadline {
                return Err(AuthorityError::Busy { dir: self.dir.clone(), seconds: PATIENCE.as_secs() });
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Lock(file))
    }
}

/// What this host's clock says, milliseconds since the Unix epoch.
fn milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Whether a list names it, if it is revoked.
fn is_named(entry: &Entry, now: UtcTime) -> bool {
    entry.not_after.0.saturating_add(AFTER_END) > now.0
}

/// What this host's clock says, if it is set.
fn set_clock() -> Result<UtcTime> {
    let now = UtcTime::now();
    if now < SET { Err(AuthorityError::ClockNotSet { now }) } else { Ok(now) }
}

/// The bytes of a number that the index has.
fn bytes(serial: &str) -> Vec<u8> {
    let digit = |c: u8| (c as char).to_digit(16).unwrap_or(0) as u8;
    serial.as_bytes().chunks(2).map(|pair| pair.iter().fold(0, |n, c| n << 4 | digit(*c))).collect()
}

fn random<const N: usize>(dir: impl AsRef<Path>) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    crypto::random(&mut bytes).map_err(|reason| AuthorityError::Make {
        subject: dir.as_ref().display().to_string(),
        reason: reason.into(),
    })?;
    Ok(bytes)
}

/// 126 random bits, with the highest bits such that the number has 16 bytes and is positive.
fn serial_number(dir: impl AsRef<Path>) -> Result<SerialNumber> {
    let mut bytes = random::<16>(dir)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
