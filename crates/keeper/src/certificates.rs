//! This host's certificate and the revocation lists: what is said of them in events, metrics and the status.

use std::sync::Arc;

use ninefold_model::event::EventKind;
use ninefold_model::status::CertificateStatus;
use ninefold_transport::identity::CERT_FILE;
use ninefold_transport::{Identity, Notice, Security, State, TransportError};

use crate::config::{KeeperConfig, SecurityConfig};
use crate::control::journal::Journal;
use crate::control::metrics::Board;
use crate::error::KeeperError;

/// How this host proves that it is the one of the configuration.
///
/// # Errors
/// Its certificate cannot be used, or is another host's: peers and the witness would take this host for that one.
pub fn security(config: &KeeperConfig) -> Result<Security, KeeperError> {
    let SecurityConfig::MutualTls { identity: dir } = &config.host.security else {
        return Ok(Security::PlainText { host: config.host.name.clone() });
    };
    let unfit = |error| KeeperError::Identity(Box::new(error));
    let identity = Identity::load(dir).map_err(unfit)?;
    if *identity.host() != config.host.name {
        let reason =
            format!("it is of host {}, and `host.name` in the configuration is {}", identity.host(), config.host.name);
        return Err(unfit(TransportError::Identity { path: dir.join(CERT_FILE), reason }));
    }
    Ok(Security::MutualTls(identity))
}

/// Has the identity's files looked at each second, and tells what comes of it.
///
/// # Errors
/// No thread can be started.
pub fn watch(identity: &Identity, journal: Journal, board: Arc<Board>) -> Result<(), KeeperError> {
    board.certificate(&status(identity.state()));
    let tell = move |notice: Notice, state: &State| {
        if notice.is_warning() {
            tracing::warn!("{notice}");
        }
        journal.event(event(notice));
        board.certificate(&status(state.clone()));
    };
    identity.watch(tell).map_err(KeeperError::Thread)
}

/// For `status`: none without certificates.
pub fn status_of(security: &Security) -> Option<CertificateStatus> {
    match security {
        Security::MutualTls(identity) => Some(status(identity.state())),
        Security::PlainText { .. } => None,
    }
}

fn status(state: State) -> CertificateStatus {
    CertificateStatus {
        serial: state.serial,
        valid_until_s: state.not_after.0,
        next_update_s: state.list.map(|list| list.next_update.0),
        problem: state.problem,
    }
}

fn event(notice: Notice) -> EventKind {
    match notice {
        Notice::CertificateTaken { serial, not_after } => {
            EventKind::CertificateTaken { serial, valid_until_s: not_after.0 }
        }
        Notice::CertificateEnds { not_after, days } => EventKind::CertificateEnds { valid_until_s: not_after.0, days },
        Notice::ListTaken { revoked, next_update } => {
            EventKind::RevocationListTaken { revoked, next_update_s: next_update.0 }
        }
        Notice::ListOverdue { next_update } => EventKind::RevocationListOverdue { next_update_s: next_update.0 },
        Notice::Unusable { reason } => EventKind::IdentityUnusable { reason },
        Notice::Distrusted { peer, links, reason } => EventKind::HostDistrusted { peer, links: links as u64, reason },
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ninefold_model::Incarnation;
    use ninefold_model::event::Position;
    use ninefold_transport::authority::Which;
    use ninefold_transport::{Authority, Validity};

    use super::*;

    /// Waits for an event after that position.
    fn hear(journal: &Journal, after: &mut Position, wanted: impl Fn(&EventKind) -> bool) -> EventKind {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            assert!(Instant::now() < deadline, "no such event");
            for event in journal.events(*after, Duration::from_secs(5)).events {
                *after = event.position();
                if wanted(&event.kind) {
                    return event.kind;
                }
            }
        }
    }

    /// A keeper that began with another host's certificate would be refused by everybody, each time for a reason that does not say so.
    #[test]
    fn a_certificate_of_another_host_is_refused_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let authority = Authority::create(path("authority"), Validity::days(1)).unwrap();
        authority.issue(&"a".parse().unwrap(), path("a"), Validity::days(1)).unwrap();
        let config = |host: &str| -> KeeperConfig {
            serde_json::from_value(serde_json::json!({
                "id": "6f1b0c6e-8a43-4c1e-9d11-0a4b7f0e5d21", "name": "db",
                "hardware": { "memory_mib": 64, "boot": "boot_sector" },
                "host": {
                    "name": host, "image": "/x", "run_dir": "/run/db", "listen": "10.8.0.1:7701",
                    "security": { "mutual_tls": { "identity": path("a") } }
                },
                "policy": { "witness": { "host": "w", "addr": "10.8.0.3:7700" } }
            }))
            .unwrap()
        };
        assert_eq!(security(&config("a")).unwrap().host().as_str(), "a");
        let said = crate::error::report(&security(&config("b")).unwrap_err());
        assert!(said.contains("a/cert.pem: it is of host a, and `host.name` in the configuration is b"), "{said}");
    }

    #[test]
    fn what_changes_is_an_event_a_metric_and_in_the_status() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let authority = Authority::create(path("authority"), Validity::days(400)).unwrap();
        let host = "a".parse().unwrap();
        authority.issue(&host, path("a"), Validity::days(365)).unwrap();
        let identity = Identity::load(path("a")).unwrap();
        let (journal, board) =
            (Journal::new(host.clone(), Incarnation(1)), Arc::new(Board::new(&"vm".parse().unwrap())));
        watch(&identity, journal.clone(), Arc::clone(&board)).unwrap();
        let mut after = Position::START;

        // It is renewed, for a short time.
        let entry = authority.issue(&host, path("a"), Validity::days(20)).unwrap();
        let until = entry.not_after.0;
        let wanted = EventKind::CertificateTaken { serial: entry.serial.clone(), valid_until_s: until };
        hear(&journal, &mut after, |k| *k == wanted);
        hear(&journal, &mut after, |k| *k == EventKind::CertificateEnds { valid_until_s: until, days: 20 });
        let metric = |name: &str, value: &str| {
            let line = format!("{name}{{vm=\"vm\"}} {value}");
            // It is written beside the event, not before.
            let deadline = Instant::now() + Duration::from_secs(60);
            while !board.text().lines().any(|l| l == line) {
                assert!(Instant::now() < deadline, "no '{line}' in\n{}", board.text());
                std::thread::yield_now();
            }
        };
        metric("ninefold_certificate_not_after_timestamp_seconds", &until.to_string());
        metric("ninefold_identity_unusable", "0");

        // It is revoked, and the list is damaged later: that is said, and the list stays.
        authority.revoke(Which::Host(&host)).unwrap();
        std::fs::copy(authority.list_path(), path("a/crl.pem")).unwrap();
        let own = |k: &EventKind| matches!(k, EventKind::HostDistrusted { peer, links: 0, .. } if *peer == host);
        hear(&journal, &mut after, own);
        std::fs::write(path("a/crl.pem"), "nonsense").unwrap();
        hear(
            &journal,
            &mut after,
            |k| matches!(k, EventKind::IdentityUnusable { reason } if reason.contains("crl.pem")),
        );
        metric("ninefold_identity_unusable", "1");
        let status = status_of(&Security::MutualTls(identity)).unwrap();
        assert_eq!((status.serial, status.valid_until_s), (entry.serial, until));
        assert!(status.problem.is_some_and(|p| p.contains("crl.pem")) && status.next_update_s.is_some());
        assert_eq!(status_of(&Security::PlainText { host }), None);
    }
}
