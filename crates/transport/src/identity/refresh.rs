//! Looking at the files again: what has changed is used for new handshakes, and what cannot be used leaves the old in use.
//!
//! ```text
//!   each second:  files ──► the same as last time? ── yes ──► only the clock may have something to say
//!                              │ no
//!                              ├─► ca, cert and key belong together ── no ──► those in use stay
//!                              ├─► crl is signed by an authority    ── no ──► the lists in use stay
//!                              └─► in use from now on; links with whom is not trusted any more are ended
//! ```
//!
//! Nothing of it is done in a handshake: a disk that hangs must not keep a host from its witness.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use std::{io, thread};

use ninefold_model::HostName;

use super::files::{CERT_FILE, CRL_FILE, Files, unfit};
use super::loaded::{Loaded, Own};
use super::open_links::{OpenLinks, Up};
use crate::crypto::Cipher;
use crate::dates::UtcTime;
use crate::error::Result;
use crate::revocation::{ListState, Lists};

/// Between two looks at the files.
const EVERY: Duration = Duration::from_secs(1);
/// A certificate that is good for fewer days is to be renewed.
pub const FEW_DAYS: i64 = 30;

/// What has changed, or is to be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Another certificate is used for new handshakes, or the one in use is on the disk again.
    CertificateTaken { serial: String, not_after: UtcTime },
    /// This host's certificate ends in so many days; 0 or less: it has ended. Once a day.
    CertificateEnds { not_after: UtcTime, days: i64 },
    /// Other revocation lists are in use.
    ListTaken { revoked: u64, next_update: UtcTime },
    /// The authority has promised another list by then, and it has not come. Once a day. The list is still in use.
    ListOverdue { next_update: UtcTime },
    /// What is on the disk cannot be used, and what was read before stays in use.
    Unusable { reason: String },
    /// A host is not trusted any more, and so many links with it were ended. Of this host itself there are none.
    Distrusted { peer: HostName, links: usize, reason: String },
}

impl Notice {
    /// Whether somebody should look after it.
    pub fn is_warning(&self) -> bool {
        !matches!(self, Self::CertificateTaken { .. } | Self::ListTaken { .. })
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CertificateTaken { serial, not_after } => {
                write!(f, "the certificate with the serial number {serial} is in use, valid until {not_after}")
            }
            Self::CertificateEnds { not_after, days } if *days > 0 => {
                write!(f, "this host's certificate is valid until {not_after}, {days} more days: renew it")
            }
            Self::CertificateEnds { not_after, .. } => {
                write!(f, "this host's certificate was valid until {not_after}: no other host accepts it; renew it")
            }
            Self::ListTaken { revoked, next_update } => {
                write!(f, "a revocation list is in use: it names {revoked}, and the next one is due by {next_update}")
            }
            Self::ListOverdue { next_update } => write!(
                f,
                "the revocation list was to be replaced by {next_update}, and it stays in use: bring this host a new one"
            ),
            Self::Unusable { reason } => write!(f, "what was read before stays in use: {reason}"),
            Self::Distrusted { links: 0, reason, .. } => write!(f, "{reason}"),
            Self::Distrusted { peer, links, reason } => {
                write!(f, "{links} connections with host {peer} were ended: {reason}")
            }
        }
    }
}

/// What is in use at the moment, and what is wrong with the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The certificate's serial number, hexadecimal.
    pub serial: String,
    /// Until when it is good.
    pub not_after: UtcTime,
    /// None when there is no revocation list.
    pub list: Option<ListState>,
    /// Why what is on the disk is not what is in use.
    pub problem: Option<String>,
}

/// What was seen and said before.
#[derive(Default)]
struct Look {
    seen: Option<Files>,
    /// What is wrong with the files as they were last seen.
    problem: Option<String>,
    said: Option<String>,
    days: Option<i64>,
    overdue: Option<i64>,
    revoked: bool,
}

/// An identity as it is at the moment, for all that have it.
pub(super) struct Shared {
    dir: PathBuf,
    cipher: Cipher,
    /// In use for new handshakes.
    current: RwLock<Arc<Loaded>>,
    standing: OpenLinks,
    /// Held by who looks at the files: nobody else waits for that.
    looking: Mutex<()>,
    look: Mutex<Look>,
}

impl Shared {
    pub(super) fn load(dir: &Path, cipher: Cipher) -> Result<Self> {
        let dir = dir.to_owned();
        let files = Files::read(&dir)?;
        let current = RwLock::new(Arc::new(Loaded::read(&dir, &files, cipher)?));
        let look = Mutex::new(Look { seen: Some(files), ..Look::default() });
        Ok(Self { dir, cipher, current, standing: OpenLinks::new(), looking: Mutex::default(), look })
    }

    pub(super) fn current(&self) -> Arc<Loaded> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// See `Identity::admit`.
    pub(super) fn admit(&self, up: Up, used: &Arc<Loaded>) -> std::result::Result<(), String> {
        self.standing.admit(up, used, || self.current())
    }

    /// See `Identity::watch`.
    pub(super) fn watch(shared: &Arc<Self>, mut tell: impl FnMut(Notice, &State) + Send + 'static) -> io::Result<()> {
        let shared = Arc::downgrade(shared);
        let run = move || {
            while let Some(identity) = shared.upgrade() {
                for notice in identity.refresh(UtcTime::now()) {
                    tell(notice, &identity.state());
                }
                drop(identity);
                thread::sleep(EVERY);
            }
        };
        thread::Builder::new().name("identity".into()).spawn(run).map(drop)
    }

    pub(super) fn state(&self) -> State {
        let problem = self.look.lock().unwrap_or_else(PoisonError::into_inner).said.clone();
        let loaded = self.current();
        let serial = loaded.own.named.serial.clone();
        State { serial, not_after: loaded.not_after(), list: loaded.lists.state(), problem }
    }

    /// See `Identity::refresh`.
    pub(super) fn refresh(&self, now: UtcTime) -> Vec<Notice> {
        let _looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        // The disk may hang, and people ask what is in use.
        let files = Files::read(&self.dir);
        let mut look = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        let mut notices = Vec::new();
        let again = match files {
            Ok(files) if look.seen.as_ref() == Some(&files) => true,
            Ok(files) => {
                look.problem = self.take(&files, &mut notices).err();
                look.seen = Some(files);
                false
            }
            Err(error) => {
                let error = Some(error.to_string());
                let again = look.problem == error;
                look.problem = error;
                look.seen = None;
                again
            }
        };
        self.say_problem(&mut look, &mut notices, again);
        self.say_dates(&mut look, &mut notices, now);
        notices
    }

    /// Uses what is good of these files. Fails with what is not.
    fn take(&self, files: &Files, notices: &mut Vec<Notice>) -> std::result::Result<(), String> {
        let old = self.current();
        let own = Own::read(&self.dir, files).and_then(|own| self.same_host(&old.own, own));
        let (own, of_own) = own.map_or_else(|e| (old.own.clone(), Some(e.to_string())), |own| (own, None));
        let roots = &own.roots.roots;
        let gone = |what: &str| unfit(&self.dir.join(CRL_FILE), what).to_string();
        let (lists, of_lists) = match Loaded::read_lists(&self.dir, files, &own, &old.lists) {
            Ok(Some(mut lists)) => {
                // What an authority has revoked counts until it says otherwise, not until another's list has taken its place.
                let kept = lists.keep(old.lists.retained(roots));
                (
                    lists,
                    kept.then(|| gone("has no list any more of one of the authorities in ca.pem: put it there, too")),
                )
            }
            Ok(None) if old.lists.state().is_none() => (Lists::default(), None),
            Ok(None) => (old.lists.retained(roots), Some(gone("there is no such file any more"))),
            Err(error) => (old.lists.retained(roots), Some(error.to_string())),
        };
        let loaded = Loaded::of(&self.dir, own, lists, self.cipher).map_err(|e| e.to_string())?;
        if loaded.own.named != old.own.named {
            let (serial, not_after) = (loaded.own.named.serial.clone(), loaded.not_after());
            notices.push(Notice::CertificateTaken { serial, not_after });
        }
        if let Some(ListState { revoked, next_update, .. }) = loaded.lists.state()
            && !loaded.lists.same(&old.lists)
        {
            notices.push(Notice::ListTaken { revoked, next_update });
        }
        let loaded = Arc::new(loaded);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded.clone();
        let ended = self.standing.end_distrusted(&loaded).into_iter();
        notices.extend(ended.map(|e| Notice::Distrusted { peer: e.peer, links: e.links, reason: e.reason }));
        match (of_own, of_lists) {
            (None, None) => Ok(()),
            (Some(one), None) | (None, Some(one)) => Err(one),
            (Some(one), Some(other)) => Err(format!("{one}; {other}")),
        }
    }

    fn same_host(&self, old: &Own, new: Own) -> Result<Own> {
        if new.host == old.host {
            return Ok(new);
        }
        let reason = format!("it is of host {}, and this is host {}", new.host, old.host);
        Err(unfit(&self.dir.join(CERT_FILE), reason))
    }

    /// `again`: the look before has found the same.
    fn say_problem(&self, look: &mut Look, notices: &mut Vec<Notice>, again: bool) {
        match &look.problem {
            Some(reason) if again && look.said.as_ref() != Some(reason) => {
                notices.push(Notice::Unusable { reason: reason.clone() });
                look.said = Some(reason.clone());
            }
            Some(_) => {}
            None => {
                let told = notices.iter().any(|n| matches!(n, Notice::CertificateTaken { .. }));
                if look.said.take().is_some() && !told {
                    let loaded = self.current();
                    let (serial, not_after) = (loaded.own.named.serial.clone(), loaded.not_after());
                    notices.push(Notice::CertificateTaken { serial, not_after });
                }
            }
        }
    }

    /// What the clock says of the certificate and of the lists.
    fn say_dates(&self, look: &mut Look, notices: &mut Vec<Notice>, now: UtcTime) {
        let loaded = self.current();
        let not_after = loaded.not_after();
        let days = Some(not_after.days_after(now)).filter(|days| *days <= FEW_DAYS);
        if days != look.days {
            notices.extend(days.map(|days| Notice::CertificateEnds { not_after, days }));
            look.days = days;
        }
        let next_update = loaded.lists.state().map(|list| list.next_update);
        let overdue = next_update.map(|next| next.days_after(now)).filter(|days| *days <= 0);
        if overdue != look.overdue {
            notices.extend(overdue.and(next_update).map(|next_update| Notice::ListOverdue { next_update }));
            look.overdue = overdue;
        }
        if loaded.revoked && !look.revoked {
            let (peer, reason) = (loaded.own.host.clone(), crate::dates::revoked(Some(&loaded.own.named)));
            notices.push(Notice::Distrusted { peer, links: 0, reason });
        }
        look.revoked = loaded.revoked;
    }
}
