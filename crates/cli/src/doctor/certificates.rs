//! Whether other hosts will know this one, and this one them: its certificate, its key, the revocation list.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ninefold_keeper::config::{KeeperConfig, SecurityConfig};
use ninefold_machine::doctor::Check;
use ninefold_model::HostName;
use ninefold_transport::identity::refresh::FEW_DAYS;
use ninefold_transport::identity::{CA_FILE, CERT_FILE, CRL_FILE};
use ninefold_transport::{Identity, ListState, Notice, UtcTime};

/// Where a host's identity is in the documents' examples.
const USUAL: &str = "/etc/ninefold/identity";
const CERTIFICATE: &str = "certificate";
const LIST: &str = "revocation-list";
const GUIDE: &str = "see docs/guides/operate.md, 'Certificates'";

/// Whose certificate is looked at.
#[derive(Debug)]
pub enum Subject {
    /// What is at the usual place, if there is something.
    Usual,
    /// What is in this directory.
    Identity(PathBuf),
    /// That of a keeper's configuration.
    Keeper { identity: PathBuf, host: HostName },
    /// A keeper's configuration says that there is none.
    PlainText,
}

impl Subject {
    /// As the configuration of a keeper says.
    pub fn of(config: KeeperConfig) -> Self {
        match config.host.security {
            SecurityConfig::MutualTls { identity } => Self::Keeper { identity, host: config.host.name },
            SecurityConfig::PlainText => Self::PlainText,
        }
    }
}

/// The checks; `now` is what this host's clock says.
pub fn examine(subject: &Subject, now: UtcTime) -> [Check; 2] {
    let usual = Path::new(USUAL);
    let (dir, host) = match subject {
        Subject::PlainText => {
            let advice = "only for a link that nobody else can reach: everybody on it may claim to be any host";
            return [CERTIFICATE, LIST].map(|name| Check::warning(name, "this keeper is set to plain text", advice));
        }
        Subject::Usual if !usual.exists() => {
            let advice = "`ninefold ca issue` makes a host's identity; name its directory with --identity, or a keeper's configuration with --config";
            return [CERTIFICATE, LIST].map(|name| Check::warning(name, format!("there is no {USUAL}"), advice));
        }
        Subject::Usual => (usual, None),
        Subject::Identity(dir) => (dir.as_path(), None),
        Subject::Keeper { identity, host } => (identity.as_path(), Some(host)),
    };
    match Identity::load(dir) {
        Ok(identity) => [certificate(&identity, dir, host, now), list(identity.state().list, dir, now)],
        Err(error) => {
            let advice = format!("neither a keeper nor a witness starts with it: put right what it says; {GUIDE}");
            let first = "first the certificate has to be right";
            [
                Check::failed(CERTIFICATE, error.to_string(), &advice),
                Check::warning(LIST, format!("not looked at in {}", dir.display()), first),
            ]
        }
    }
}

fn certificate(identity: &Identity, dir: &Path, wanted: Option<&HostName>, now: UtcTime) -> Check {
    let (host, state) = (identity.host(), identity.state());
    let renew = format!("`ninefold ca renew {host}`, and bring the files to {}", dir.display());
    if let Some(wanted) = wanted.filter(|wanted| *wanted != host) {
        let detail = format!("{} is of host {host}, and the keeper is configured as host {wanted}", dir.display());
        return Check::failed(CERTIFICATE, detail, "bring the files of the right host there, or correct `host`");
    }
    let own = |notice: Notice| match notice {
        Notice::Distrusted { links: 0, reason, .. } => Some(reason),
        _ => None,
    };
    if let Some(revoked) = identity.refresh(now).into_iter().find_map(own) {
        return Check::failed(CERTIFICATE, revoked, &format!("if host {host} is to be trusted again: {renew}"));
    }
    let (until, days) = (state.not_after, state.not_after.days_after(now));
    if days <= 0 {
        return Check::failed(
            CERTIFICATE,
            format!("host {host}: it was valid until {until}; no other host accepts it"),
            &renew,
        );
    }
    if let Some(open) = writable(dir) {
        let detail = format!("host {host}: others than its owner can write to {}", open.display());
        return Check::warning(
            CERTIFICATE,
            detail,
            &format!("`chmod go-w {}`: it says whom this host trusts", open.display()),
        );
    }
    if days <= FEW_DAYS {
        return Check::warning(CERTIFICATE, format!("host {host}: valid until {until}, {days} more days"), &renew);
    }
    Check::ok(CERTIFICATE, format!("host {host}: valid until {until}; nobody else can read its key"))
}

/// What others could change of what decides who is trusted.
fn writable(dir: &Path) -> Option<PathBuf> {
    let all = [dir.to_owned(), dir.join(CA_FILE), dir.join(CERT_FILE), dir.join(CRL_FILE)];
    all.into_iter().find(|path| fs::metadata(path).is_ok_and(|about| about.permissions().mode() & 0o022 != 0))
}

fn list(state: Option<ListState>, dir: &Path, now: UtcTime) -> Check {
    let bring = format!("`ninefold ca crl --out crl.pem`, and bring it to {}", dir.display());
    let Some(ListState { revoked, this_update, next_update }) = state else {
        return Check::warning(LIST, format!("there is no {CRL_FILE}: nobody is revoked"), &bring);
    };
    let said = format!("it names {revoked}, is of {this_update}, and the next one is due by {next_update}");
    if next_update.days_after(now) <= 0 {
        Check::warning(LIST, format!("{said}: it is overdue"), &bring)
    } else {
        Check::ok(LIST, said)
    }
}

#[cfg(test)]
mod tests {
    use ninefold_machine::doctor::CheckState::{self, Failed, Ok as Good, Warning};
    use ninefold_transport::authority::Which;
    use ninefold_transport::{Authority, Validity};

    use super::*;

    const DAY: u64 = 86_400;

    /// Host a's identity, and its authority.
    struct Bench {
        dir: tempfile::TempDir,
        authority: Authority,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let authority = Authority::create(dir.path().join("authority"), Validity::days(400)).unwrap();
            let bench = Self { dir, authority };
            bench.authority.issue(&host("a"), bench.path(), Validity::days(365)).unwrap();
            bench
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("a")
        }

        /// What the two checks find by a clock that shows so many days more.
        fn finds(&self, days: u64, expected: [(CheckState, &str); 2]) {
            self.finds_of(&Subject::Identity(self.path()), days, expected);
        }

        fn finds_of(&self, subject: &Subject, days: u64, expected: [(CheckState, &str); 2]) {
            let now = UtcTime(UtcTime::now().0 + days * DAY);
            let checks = examine(subject, now);
            assert_eq!(checks.each_ref().map(|c| c.name.as_str()), ["certificate", "revocation-list"]);
            for (check, (state, words)) in checks.iter().zip(expected) {
                assert!(check.state == state && check.detail.contains(words), "{state:?}, {words}: {check:?}");
                assert_eq!(check.advice.is_none(), state == Good, "{check:?}");
            }
        }

        fn mode(&self, file: &str, mode: u32) {
            fs::set_permissions(self.path().join(file), fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    #[test]
    fn dates_are_looked_at() {
        let bench = Bench::new();
        bench.finds(0, [(Good, "host a: valid until "), (Good, "it names 0, is of ")]);
        bench.finds(340, [(Warning, " more days"), (Good, "")]);
        bench.finds(370, [(Failed, "no other host accepts it"), (Warning, "it is overdue")]);
    }

    #[test]
    fn files_are_looked_at() {
        let bench = Bench::new();
        bench.mode("key.pem", 0o640);
        bench.finds(0, [(Failed, "key.pem: can be read or written by others"), (Warning, "not looked at")]);
        bench.mode("key.pem", 0o600);
        bench.mode("ca.pem", 0o664);
        bench.finds(0, [(Warning, "others than its owner can write to"), (Good, "")]);
        bench.mode("ca.pem", 0o644);
        bench.mode("", 0o777);
        bench.finds(0, [(Warning, "others than its owner can write to"), (Good, "")]);
        bench.mode("", 0o700);
        fs::remove_file(bench.path().join("crl.pem")).unwrap();
        bench.finds(0, [(Good, ""), (Warning, "nobody is revoked")]);
        fs::remove_file(bench.path().join("cert.pem")).unwrap();
        bench.finds(0, [(Failed, "cert.pem: there is no such file"), (Warning, "not looked at")]);
    }

    #[test]
    fn whose_it_is_is_looked_at() {
        let bench = Bench::new();
        let keeper = |name| Subject::Keeper { identity: bench.path(), host: host(name) };
        bench.finds_of(&keeper("a"), 0, [(Good, "host a"), (Good, "")]);
        bench.finds_of(&keeper("b"), 0, [(Failed, "is of host a, and the keeper is configured as host b"), (Good, "")]);
        bench.finds_of(&Subject::PlainText, 0, [(Warning, "plain text"), (Warning, "plain text")]);
        bench.authority.revoke(Which::Host(&host("a"))).unwrap();
        fs::copy(bench.authority.list_path(), bench.path().join("crl.pem")).unwrap();
        bench.finds(0, [(Failed, "is revoked"), (Good, "it names 1")]);
    }
}
