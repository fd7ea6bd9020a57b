//! The observer hears each host at its own port and finds an overlap that the test makes; the pinger pings through.
//! Real namespaces; needs root. The "VM" is an address of a host's own bridge, which frames leave as they would a TAP.

mod fixture;

use std::net::{IpAddr, UdpSocket};
use std::process::Command;

use fixture::{lab, wait_until};
use ninefold_lab::netns::in_netns;
use ninefold_lab::observer::capture::monotonic_ns;
use ninefold_lab::topology::{CLIENT_IP, GUEST_IP};
use ninefold_lab::{Lab, Observer, Pinger, Takeover};
use ninefold_model::spec::Mac;

const MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);

fn ip(lab: &Lab, host: &str, arguments: &str) {
    let netns = lab.netns(host).unwrap();
    let done = Command::new("ip").args(["-n", &netns]).args(arguments.split(' ')).status().unwrap();
    assert!(done.success(), "ip {arguments}");
}

/// The VM says something from a host.
fn speak(lab: &Lab, host: &str) {
    in_netns(&lab.netns(host).unwrap(), || {
        let socket = UdpSocket::bind((GUEST_IP, 0)).unwrap();
        socket.send_to(b"hello", (CLIENT_IP, 9)).unwrap();
    })
    .unwrap();
}

#[test]
fn speakers_are_told_apart_and_an_overlap_is_found() {
    let lab = lab("observe");
    let observer = Observer::start(&lab, MAC).unwrap();
    let takeover = |host: &str| Takeover { host: host.into(), monotonic_ns: monotonic_ns() };
    let mut takeovers = vec![takeover("a")];
    for host in ["a", "b"] {
        ip(&lab, host, &format!("link set br0 address {MAC}"));
        ip(&lab, host, &format!("address add {GUEST_IP}/24 dev br0"));
        if host == "b" {
            continue;
        }
        let IpAddr::V4(guest) = GUEST_IP else { unreachable!("the guest's address is IPv4") };
        // Only one host answers so far: the other has no such address yet.
        let pings = Pinger { count: 5, ..Pinger::default() }.run(&lab.netns("client").unwrap(), guest).unwrap();
        assert_eq!((pings.lost, pings.rtt_us.values().len()), (0, 5));
    }
    let report = observer.report();
    assert_eq!((report.alternations(), report.frames("b"), report.missed), (0, 0, 0), "{report:?}");
    assert!(report.frames("a") >= 5, "{report:?}");

    takeovers.push(takeover("b"));
    speak(&lab, "b");
    wait_until("a frame of b", || observer.report().frames("b") > 0);
    let report = observer.report();
    assert_eq!(report.alternations(), 1, "{report:?}");
    assert_eq!(report.overlaps(&takeovers), []);

    // The former speaker says one more word.
    let before = report.frames("a");
    speak(&lab, "a");
    wait_until("a late frame of a", || observer.report().frames("a") > before);
    let report = observer.report();
    let late = report.overlaps(&takeovers);
    assert_eq!(late.len(), 1, "{report:?}");
    assert_eq!((late[0].host.as_str(), late[0].speaker.as_str()), ("a", "b"));
    assert!(late[0].frames >= 1 && !late[0].late_by.is_zero());
    drop(observer);
    lab.down().unwrap();
}
