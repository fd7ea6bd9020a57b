//! What a backup announces of a VM with two NICs, on real bridges in a network namespace. Needs root.

mod guest_io;

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Instant;

use ninefold_keeper::devices::guest_io::GuestIo;
use ninefold_machine::Ports;
use ninefold_model::VmId;
use ninefold_model::spec::{Mac, VmSpec};
use ninefold_net::{Tap, announce, socket_pair};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

fn ip(args: &[&str]) {
    let out = Command::new("ip").args(args).output().expect("ip runs (iproute2, root)");
    assert!(out.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A network namespace, in which the thread that made it lives from then on.
struct Net(String);

impl Net {
    fn with_bridges(bridges: &[&str]) -> Self {
        let net = Self(format!("nfk-{}", std::process::id()));
        ip(&["netns", "add", &net.0]);
        let file = File::open(format!("/run/netns/{}", net.0)).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        for bridge in bridges {
            ip(&["link", "add", bridge, "type", "bridge", "mcast_snooping", "0"]);
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6"), "1");
            ip(&["link", "set", bridge, "up"]);
        }
        net
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, last])
}

fn outlets_of(id: u8, vm: &str, dir: &std::path::Path) -> GuestIo {
    let nic = |last| serde_json::json!({ "mac": mac(last).to_string() });
    let json = serde_json::json!({
        "id": VmId::random(u128::from(id) << 120), "name": vm,
        "hardware": { "memory_mib": 1, "boot": "volume", "nics": [nic(1), nic(2)] }
    });
    guest_io::with_nics(dir, &serde_json::from_value::<VmSpec>(json).unwrap(), &["br0", "br1"])
}

/// Whose Ethernet address speaks for which IPv4 address in an ARP frame; nothing in another frame.
fn speaker(frame: &[u8]) -> Option<(Mac, Ipv4Addr)> {
    let address: [u8; 4] = frame.get(28..32)?.try_into().unwrap();
    (frame[12..14] == [8, 6]).then(|| (Mac(frame[22..28].try_into().unwrap()), address.into()))
}

/// What the ARP frames on a bridge so far say.
fn spoken(observer: &Tap) -> Vec<(Mac, Ipv4Addr)> {
    let (mut buf, mut all) = ([0; 2048], Vec::new());
    loop {
        match observer.read(&mut buf) {
            Ok(n) => all.extend(speaker(&buf[..n])),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return all,
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn each_nic_announces_its_own_addresses_and_what_is_given_up_nobody() {
    let _net = Net::with_bridges(&["br0", "br1"]);
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    // Two hosts share the bridges.
    let (primary, backup) = (outlets_of(1, "on-a", dirs[0].path()), outlets_of(2, "on-b", dirs[1].path()));
    let observers = ["br0", "br1"].map(|bridge| Tap::open("obs%d", Some(bridge)).unwrap());
    let (qemus, nics): (Vec<_>, Vec<_>) = (0..2).map(|_| socket_pair().unwrap()).unzip();
    let [(_console_end, console), (_agent_end, agent)] = [socket_pair().unwrap(), socket_pair().unwrap()];
    primary.attach(Ports { nics, console, agent }).unwrap();
    primary.pass(&|| ());
    let mut qemus: Vec<_> = qemus.into_iter().map(UnixStream::from).collect();
    let mut say = |nic: usize, frame: &[u8]| {
        let before = primary.address_changes();
        qemus[nic].write_all(&[&(frame.len() as u32).to_be_bytes()[..], frame].concat()).unwrap();
        let begin = Instant::now();
        // An address is learnt before its frame leaves: a frame that is still under way would be taken for an announcement.
        let mut seen = false;
        while primary.address_changes() == before || !seen {
            assert!(begin.elapsed().as_secs() < 20, "nothing is learnt, or the frame does not come");
            seen |= spoken(&observers[nic]).contains(&speaker(frame).unwrap());
            std::thread::yield_now();
        }
    };
    let [first, second, former] = [[10, 0, 0, 1], [10, 1, 0, 1], [10, 0, 0, 9]].map(Ipv4Addr::from);
    say(0, &announce::gratuitous_arp(mac(1), first));
    say(1, &announce::gratuitous_arp(mac(2), second));
    say(0, &announce::gratuitous_arp(mac(1), former));
    let mut lines = String::new();
    let mut announced = || {
        primary.addresses(&mut lines);
        backup.learn(lines.as_bytes());
        // A checkpoint in which nothing was told changes nothing.
        backup.learn(b"");
        let _before = observers.each_ref().map(spoken);
        backup.pass(&|| ());
        backup.announce(&|| true);
        backup.mute();
        observers.each_ref().map(spoken)
    };
    assert_eq!(announced(), [vec![(mac(1), former), (mac(1), first)], vec![(mac(2), second)]]);
    // The guest asks who has an address: it has it not any more.
    let mut asks = announce::gratuitous_arp(mac(1), first);
    asks[38..42].copy_from_slice(&former.octets());
    say(0, &asks);
    assert_eq!(announced(), [vec![(mac(1), first)], vec![(mac(2), second)]]);
    // Of another life nothing is known until the guest speaks.
    backup.forget_addresses();
    backup.pass(&|| ());
    backup.announce(&|| true);
    assert_eq!(observers.each_ref().map(spoken), [vec![], vec![]]);
}
