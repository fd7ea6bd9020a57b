//! An authority, its hosts, and connections between them over loopback.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use ninefold_model::HostName;
use ninefold_transport::{Authority, Identity, Link, Listener, Result, Security, Validity, connect};
use tempfile::TempDir;

/// Long enough for the slowest machine; a test that works never waits for it.
pub const LONG: Duration = Duration::from_secs(30);

pub fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

/// An authority and its hosts' identities in a directory of their own.
pub struct Certificates {
    dir: TempDir,
    pub authority: Authority,
}

impl Certificates {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path().join("authority"), Validity::days(1)).unwrap();
        Self { dir, authority }
    }

    /// A file or directory beside the hosts' identities.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn issue(&self, name: &str, validity: Validity) -> PathBuf {
        let dir = self.dir.path().join(name);
        self.authority.issue(&host(name), &dir, validity).unwrap();
        dir
    }

    pub fn tls(&self, name: &str) -> Security {
        Security::MutualTls(Identity::load(self.issue(name, Validity::days(1))).unwrap())
    }
}

pub fn plain(name: &str) -> Security {
    Security::PlainText { host: host(name) }
}

pub fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Both sides' verdicts on one connection; `client` runs against a listener with security `server`.
pub fn meet_with<T>(server: Security, client: impl FnOnce(SocketAddr) -> T) -> (Result<Link>, T) {
    let listener = Listener::bind(loopback(), server).unwrap();
    let addr = listener.local_addr();
    let accepting = thread::spawn(move || listener.accept().unwrap().handshake(LONG));
    let mine = client(addr);
    (accepting.join().unwrap(), mine)
}

pub fn meet(server: Security, client: Security, expect: &str) -> (Result<Link>, Result<Link>) {
    meet_with(server, |addr| connect(addr, &host(expect), &client, LONG))
}

pub fn pair(server: Security, client: Security) -> (Link, Link) {
    let expect = server.host().as_str().to_owned();
    let (accepted, connected) = meet(server, client, &expect);
    (accepted.unwrap(), connected.unwrap())
}
