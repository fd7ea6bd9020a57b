//! A bridge and an observer in a network namespace of their own.

#![allow(dead_code, reason = "each test file uses what it needs")]

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ninefold_model::spec::Mac;
use ninefold_net::tap::Tap;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The guest's address.
pub const GUEST: Mac = Mac([0x52, 0x54, 0, 0, 0, 0x10]);

/// How long a test waits for what must come; only a failing test waits that long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A network namespace with a bridge `br0`; the thread that made it lives in it from then on.
pub struct Net {
    name: String,
}

fn ip(args: &[&str]) -> String {
    let out = Command::new("ip").args(args).output().expect("ip runs (iproute2, root)");
    assert!(out.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

impl Net {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("nft-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        let net = Self { name };
        let file = File::open(format!("/run/netns/{}", net.name)).unwrap();
        use std::os::fd::AsFd;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        // Without snooping and IPv6 of its own the bridge says nothing.
        ip(&["link", "add", "br0", "type", "bridge", "mcast_snooping", "0"]);
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/br0/disable_ipv6", "1");
        ip(&["link", "set", "br0", "up"]);
        net
    }

    pub fn ip(&self, args: &[&str]) -> String {
        ip(args)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A frame from the guest to everyone, with a number in it and `len` bytes in all.
pub fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![0; len.max(18)];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&GUEST.0);
    // A local experimental type (IEEE 802).
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame[14..18].copy_from_slice(&number.to_be_bytes());
    frame
}

/// The number in such a frame.
pub fn number(frame: &[u8]) -> Option<u32> {
    (frame.get(12..14)? == [0x88, 0xb5]).then(|| u32::from_be_bytes(frame[14..18].try_into().unwrap()))
}

/// Waits for one frame.
pub fn observe(tap: &Tap) -> Vec<u8> {
    let mut buf = vec![0; 70_000];
    loop {
        match tap.read(&mut buf) {
            Ok(n) => return buf[..n].to_vec(),
            Err(e) if e.kind() == ErrorKind::WouldBlock => wait(tap, PATIENCE),
            Err(e) => panic!("observer: {e}"),
        }
    }
}

fn wait(tap: &Tap, time: Duration) {
    let mut fds = [PollFd::new(tap, PollFlags::IN)];
    let time = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
    assert_ne!(poll(&mut fds, Some(&time)).unwrap(), 0, "no frame came");
}

/// Waits for `n` numbered frames.
pub fn observe_numbers(tap: &Tap, n: usize) -> Vec<u32> {
    let mut numbers = Vec::new();
    while numbers.len() < n {
        numbers.extend(number(&observe(tap)));
    }
    numbers
}

/// What has come by now. The bridge delivers before the write to the TAP returns (it may hand over to a softirq of the
/// same CPU), so a marker sent after is used where certainty is needed.
pub fn observed(tap: &Tap) -> Vec<u32> {
    let mut buf = vec![0; 70_000];
    let mut numbers = Vec::new();
    loop {
        match tap.read(&mut buf) {
            Ok(n) => numbers.extend(number(&buf[..n])),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return numbers,
            Err(e) => panic!("observer: {e}"),
        }
    }
}

/// QEMU's end of a NIC's socket.
pub struct Qemu(pub UnixStream);

impl Qemu {
    pub fn new(end: OwnedFd) -> Self {
        let stream = UnixStream::from(end);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    pub fn say(&mut self, frame: &[u8]) {
        let whole = [&(frame.len() as u32).to_be_bytes()[..], frame].concat();
        self.0.write_all(&whole).unwrap();
    }

    pub fn hear(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut frame).unwrap();
        frame
    }
}

/// Waits until `done`, which is driven by another thread that offers nothing to wait for.
pub fn until(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "{what}: did not happen");
        std::thread::yield_now();
    }
}
