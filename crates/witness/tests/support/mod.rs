//! A directory with certificates and data, and witness servers in it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use ninefold_listen::Bounds;
use ninefold_model::{HostName, Label, Uuid, VmId};
use ninefold_transport::{Authority, Identity, Listener, Security, Validity};
use ninefold_witness::{Limits, Registers, Server, ServerHandle};
use ninefold_witness_client::{Timeouts, WitnessClient};
use tempfile::TempDir;

/// Long enough for the slowest machine; a test that works never waits for it.
pub const PATIENT: Timeouts = Timeouts { connect: Duration::from_secs(30), request: Duration::from_secs(60) };

pub fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

/// The id of a VM of the tests, the same for the same name.
pub fn vm(name: &str) -> VmId {
    VmId::random(Uuid::of_name("a VM of the tests", name).as_u128())
}

/// What all of them are called.
pub fn label() -> Label {
    Label { name: "db".parse().unwrap(), number: 0 }
}

/// Hosts `a`, `b` and the witness `w`.
pub struct Place {
    dir: TempDir,
    pub authority: Authority,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path().join("authority"), Validity::days(1)).unwrap();
        for name in ["a", "b", "w"] {
            authority.issue(&host(name), dir.path().join(name), Validity::days(1)).unwrap();
        }
        Self { dir, authority }
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn identity(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn security(&self, name: &str) -> Security {
        Security::MutualTls(Identity::load(self.identity(name)).unwrap())
    }

    pub fn client(&self, name: &str, addr: SocketAddr) -> WitnessClient {
        WitnessClient::new(addr, host("w"), self.security(name), PATIENT)
    }

    /// A server in this process.
    pub fn serve(&self, addr: SocketAddr, limits: Limits) -> Served {
        self.serve_registers(addr, limits, Registers::open(self.data()).unwrap())
    }

    pub fn serve_registers(&self, addr: SocketAddr, limits: Limits, registers: Registers) -> Served {
        let server = Server::new(
            Listener::bind_within(addr, self.security("w"), Bounds::new(4), &[]).unwrap(),
            registers,
            limits,
        );
        let (addr, handle) = (server.local_addr(), server.handle());
        Served { addr, handle, thread: Some(std::thread::spawn(move || server.run().unwrap())) }
    }

    /// The real process.
    pub fn spawn(&self, addr: SocketAddr) -> Process {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ninefold-witness"))
            .args(["--listen", &addr.to_string()])
            .arg("--data")
            .arg(self.data())
            .arg("--identity")
            .arg(self.identity("w"))
            .env("RUST_LOG", "error")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        // From here on the process ends with this value, whatever happens.
        let mut process = Process { child, addr };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        process.addr = line.trim().strip_prefix("listening on ").expect("it says where it listens").parse().unwrap();
        process
    }
}

pub fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A server in this process, stopped when dropped.
pub struct Served {
    pub addr: SocketAddr,
    handle: ServerHandle,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// A witness process, killed when dropped.
pub struct Process {
    pub child: Child,
    pub addr: SocketAddr,
}

impl Process {
    /// `kill -9`, and wait until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
