//! Real sockets and clients that mean no good.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use ninefold_listen::{Acceptor, Bounds, Tried};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How long a test waits for what must come; only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers one word that it hears with the same word.
fn echo(bounds: Bounds) -> (Acceptor<TcpListener>, std::net::SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let acceptor = Acceptor::new("echo", listener, bounds, Vec::new());
    let its = acceptor.clone();
    thread::spawn(move || {
        its.serve(|guest| {
            let mut word = [0; 4];
            if (&*guest.stream).read_exact(&mut word).is_ok() {
                guest.place.busy();
                let _ = (&*guest.stream).write_all(&word);
            }
        });
    });
    (acceptor, addr)
}

fn connect(addr: std::net::SocketAddr) -> TcpStream {
    let client = TcpStream::connect(addr).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

fn is_served(addr: std::net::SocketAddr) -> bool {
    let mut client = connect(addr);
    let mut word = [0; 4];
    client.write_all(b"word").is_ok() && client.read_exact(&mut word).is_ok() && &word == b"word"
}

/// Waits for the other side's end.
fn is_ended(client: &mut impl Read) -> bool {
    match client.read(&mut [0; 1]) {
        Ok(n) => n == 0,
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let begin = std::time::Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "{what}: did not happen");
        thread::yield_now();
    }
}

#[test]
fn idle_connections_keep_nobody_out() {
    let (acceptor, addr) = echo(Bounds { grace: Duration::ZERO, ..Bounds::new(4) });
    let mut idle: Vec<_> = (0..40).map(|_| connect(addr)).collect();
    // One that comes while many are being closed may be turned away once.
    until("serving", || is_served(addr));
    assert!(acceptor.taken() <= 4);
    assert!(is_ended(&mut idle[0]), "its place is another's");
    acceptor.close();
    for client in &mut idle {
        assert!(is_ended(client), "all are ended when the port is closed");
    }
}

/// Waits until each descriptor up to the limit is in use again: a port that has just turned somebody away gives one back, and then
/// takes another in reserve.
fn until_none_is_free(limit: i32) {
    let is_open = |fd: i32| {
        // SAFETY: it is only asked about; that it may be none, or another's, is what is asked.
        rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) }).is_ok()
    };
    until("taking a descriptor in reserve", || (0..limit).all(is_open));
}

/// The other port may just have had the one descriptor that was free.
fn local_is_turned_away(port: &Acceptor<UnixListener>) {
    until("turning away", || match port.try_accept() {
        Tried::Guest(_) => panic!("there is no descriptor for it"),
        Tried::Nobody => true,
        Tried::Later(_) => false,
    });
}

/// With all descriptors taken, and again when they have been given back. In a process of its own: see below.
#[test]
fn it_survives_the_lack_of_descriptors() {
    const CHILD: &str = "NINEFOLD_LISTEN_NO_DESCRIPTORS";
    if std::env::var_os(CHILD).is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "it_survives_the_lack_of_descriptors", "--nocapture"])
            .env(CHILD, "1")
            .status()
            .unwrap();
        return assert!(status.success());
    }
    let (acceptor, addr) = echo(Bounds::new(16));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let unix = Acceptor::new("unix", listener, Bounds::new(16), Vec::new());
    // Sockets that connect later, without a descriptor more.
    let addr = &addr;
    let clients: Vec<_> = (0..3)
        .map(|_| {
            use rustix::net::{AddressFamily, SocketType, socket};
            socket(AddressFamily::INET, SocketType::STREAM, None).unwrap()
        })
        .collect();
    let local = {
        use rustix::net::{AddressFamily, SocketType, socket};
        socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap()
    };
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), ..limit }).unwrap();
    let mut taken: Vec<OwnedFd> = Vec::new();
    while let Ok(fd) = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()) {
        taken.push(fd);
    }
    // Kept, with their descriptors.
    let mut told = Vec::new();
    for client in clients {
        rustix::net::connect(&client, addr).unwrap();
        let mut client = TcpStream::from(client);
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        // It is told at once, and does not wait in a queue for ever.
        assert!(is_ended(&mut client));
        told.push(client);
    }
    until_none_is_free(64);
    rustix::net::connect(&local, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    local_is_turned_away(&unix);
    let mut local = UnixStream::from(local);
    assert!(is_ended(&mut local));
    taken.clear();
    assert!(is_served(*addr), "as soon as there are descriptors again");
    let _late = UnixStream::connect(&path).unwrap();
    until("accepting", || matches!(unix.try_accept(), Tried::Guest(_)));
    acceptor.close();
}
