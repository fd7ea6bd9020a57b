//! A port between a socketpair in QEMU's place and a real TAP on a real bridge, in a network namespace. Needs root.

mod testbed;

use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use ninefold_model::Epoch;
use ninefold_model::spec::Mac;
use ninefold_net::addresses::{PEER_ADDRESSES, PeerAddresses};
use ninefold_net::gate::Limits;
use ninefold_net::port::{BATCH_FRAMES, PortConfig};
use ninefold_net::tap::TapError;
use ninefold_net::{Mode, NetPort, Tap, announce, socket_pair, uplink_running};
use testbed::{GUEST, Net, PATIENCE, Qemu, frame, observe, observe_numbers, observed, until};

struct Bed {
    port: NetPort,
    qemu: Qemu,
    observer: Tap,
    wakes: Receiver<()>,
    _net: Net,
}

fn bed(limits: Limits) -> Bed {
    let net = Net::new();
    let tap = Tap::open("vm0", Some("br0")).unwrap();
    let observer = Tap::open("obs0", Some("br0")).unwrap();
    let (qemu, ours) = socket_pair().unwrap();
    let (send, wakes) = channel();
    let config = PortConfig { limits, ..PortConfig::new(GUEST) };
    let wake = Arc::new(move || {
        let _ = send.send(());
    });
    let port = NetPort::start(config, tap, Some(ours), wake).unwrap();
    Bed { port, qemu: Qemu::new(qemu), observer, wakes, _net: net }
}

#[test]
fn an_open_port_passes_frames_both_ways() {
    let mut bed = bed(Limits::default());
    bed.port.open(&|| ());
    for n in 0..10 {
        bed.qemu.say(&frame(n, 60 + n as usize * 100));
    }
    for n in 0..10 {
        assert_eq!(observe(&bed.observer), frame(n, 60 + n as usize * 100));
    }
    for n in 0..200 {
        bed.observer.write(&frame(n, 1000)).unwrap();
    }
    for n in 0..200 {
        assert_eq!(bed.qemu.hear(), frame(n, 1000));
    }
    until("counting", || bed.port.counters().frames_in == 200);
    let counters = bed.port.counters();
    assert_eq!((counters.frames_out, counters.bytes_in, counters.held), (10, 200_000, 0));
}

/// A checkpoint of a VM whose output waits for nobody: what its drain finds leaves by itself.
#[test]
fn what_a_drain_finds_in_an_open_port_leaves() {
    let mut bed = bed(Limits::default());
    bed.port.open(&|| ());
    let mut found = 0;
    for n in 0..300 {
        bed.qemu.say(&frame(n, 100));
        found += bed.port.drain_and_close(Epoch(u64::from(n) + 1));
        assert_eq!(observe_numbers(&bed.observer, 1), [n]);
    }
    assert!(found > 0, "the port's thread was first each time");
}

#[test]
fn held_frames_leave_with_their_epoch_in_order() {
    let mut bed = bed(Limits::default());
    bed.port.hold(&|| ());
    (0..100).for_each(|n| bed.qemu.say(&frame(n, 200)));
    assert_eq!(bed.port.drain_and_close(Epoch(1)), 100);
    (100..150).for_each(|n| bed.qemu.say(&frame(n, 200)));
    assert_eq!(bed.port.drain_and_close(Epoch(2)), 150);
    (150..160).for_each(|n| bed.qemu.say(&frame(n, 200)));
    until("holding", || bed.port.counters().held == 160);
    assert_eq!(observed(&bed.observer), Vec::<u32>::new());

    assert_eq!(bed.port.release(Epoch(1), &|| true).frames, 100);
    assert_eq!(observe_numbers(&bed.observer, 100), (0..100).collect::<Vec<_>>());
    assert_eq!(bed.port.release(Epoch(1), &|| true).frames, 0);
    assert_eq!(bed.port.release(Epoch(2), &|| true).frames, 50);
    bed.port.open(&|| ());
    bed.qemu.say(&frame(160, 200));
    assert_eq!(observe_numbers(&bed.observer, 61), (100..161).collect::<Vec<_>>());
}

#[test]
fn the_first_frame_of_each_epoch_wakes_the_checkpoint_thread() {
    let mut bed = bed(Limits::default());
    bed.port.hold(&|| ());
    for epoch in 1..=5 {
        assert_eq!(bed.port.waiting(), None);
        bed.qemu.say(&frame(1, 60));
        bed.wakes.recv_timeout(PATIENCE).unwrap();
        assert!(bed.port.waiting().is_some());
        bed.qemu.say(&frame(2, 60));
        bed.port.drain_and_close(Epoch(epoch));
        assert!(bed.wakes.try_recv().is_err(), "woken once an epoch");
    }
}

#[test]
fn a_full_gate_asks_for_a_checkpoint_drops_the_newest_and_never_pushes_back() {
    let mut bed = bed(Limits { bytes: 1 << 20, items: 1000 });
    bed.port.hold(&|| ());
    // Far more than the gate and the socket hold: would block for ever if the port pushed back.
    (0..20_000).for_each(|n| bed.qemu.say(&frame(n, 1500)));
    bed.port.drain_and_close(Epoch(1));
    assert!(bed.port.wants_checkpoint());
    let wakes = bed.wakes.try_iter().count();
    assert_eq!(wakes, 2, "at the first frame, and when half full");
    let counters = bed.port.counters();
    assert_eq!(counters.held + counters.dropped_full, 20_000);
    let kept = bed.port.release(Epoch(1), &|| true).frames;
    assert_eq!(kept, counters.held);
    let numbers: Vec<u32> = (0..kept as u32).collect();
    let seen = observed(&bed.observer);
    assert_eq!(seen[..], numbers[..seen.len()], "the oldest were kept");
}

#[test]
fn a_mute_port_is_mute_in_both_directions() {
    let mut bed = bed(Limits::default());
    assert_eq!(bed.port.mode(), Mode::Mute);
    bed.qemu.say(&frame(1, 100));
    until("dropping", || bed.port.counters().dropped_mute == 1);
    bed.port.hold(&|| ());
    bed.qemu.say(&frame(2, 100));
    bed.port.drain_and_close(Epoch(1));
    bed.port.mute();
    assert_eq!(bed.port.release(Epoch(1), &|| true).frames, 0);
    assert_eq!(bed.port.announce(&|| true), 0);
    bed.observer.write(&frame(3, 100)).unwrap();
    until("ignoring", || bed.port.counters().dropped_in_mute == 1);

    // What comes after shows that nothing came before.
    bed.port.open(&|| ());
    bed.qemu.say(&frame(4, 100));
    assert_eq!(observe_numbers(&bed.observer, 1), [4]);
    bed.observer.write(&frame(5, 100)).unwrap();
    assert_eq!(bed.qemu.hear(), frame(5, 100));
}

/// 500 frames of epoch 1, and a host that stands still when it has written two batches.
fn interrupted() -> Bed {
    let mut bed = bed(Limits::default());
    bed.port.hold(&|| ());
    (0..500).for_each(|n| bed.qemu.say(&frame(n, 60)));
    bed.port.drain_and_close(Epoch(1));
    let asked = Cell::new(0);
    let released = bed.port.release(Epoch(1), &|| {
        asked.set(asked.get() + 1);
        asked.get() <= 2
    });
    assert_eq!(released.frames, 2 * BATCH_FRAMES as u64);
    assert_eq!(released.kept, 500 - 2 * BATCH_FRAMES as u64);
    bed
}

#[test]
fn a_host_that_lost_the_vm_in_the_middle_writes_one_batch_at_most() {
    let mut bed = interrupted();
    assert_eq!(bed.port.announce(&|| false), 0);
    bed.port.mute();
    assert_eq!(bed.port.counters().stale, 500 - 2 * BATCH_FRAMES as u64);
    bed.port.open(&|| ());
    bed.qemu.say(&frame(1000, 60));
    let want: Vec<u32> = (0..2 * BATCH_FRAMES as u32).chain([1000]).collect();
    assert_eq!(observe_numbers(&bed.observer, want.len()), want);
}

#[test]
fn a_host_that_stood_still_in_the_middle_and_goes_on_has_lost_nothing() {
    let bed = interrupted();
    assert_eq!(bed.port.release(Epoch(1), &|| true).frames, 500 - 2 * BATCH_FRAMES as u64);
    assert_eq!(observe_numbers(&bed.observer, 500), (0..500).collect::<Vec<_>>());
    assert_eq!(bed.port.counters().stale, 0);
}

/// A gate that was full is a thousand batches. Whoever opens it must be able to tell the time that they take from that of a host
/// that stands still.
#[test]
fn who_opens_a_full_gate_looks_at_its_clock_before_every_batch() {
    let mut bed = bed(Limits::default());
    let frames = 20_000;
    bed.port.hold(&|| ());
    for n in 0..frames {
        bed.qemu.say(&frame(n, 60));
        if n % 500 == 499 {
            bed.port.drain_and_close(Epoch(1));
        }
    }
    bed.port.drain_and_close(Epoch(1));
    assert_eq!(bed.port.counters().held, u64::from(frames));
    // How many frames had left, in all, at each look.
    let looks = std::cell::RefCell::new(vec![0]);
    let out = || bed.port.counters().frames_out;
    let released = bed.port.open(&|| looks.borrow_mut().push(out()));
    assert_eq!(out(), u64::from(frames), "nothing waits when the gate has been opened");
    let mut looks = looks.into_inner();
    looks.push(out());
    // The port's own thread may have been awake, and have written a batch too.
    assert!(released.frames > 0 && released.frames <= u64::from(frames), "{released:?}");
    let most = looks.windows(2).map(|w| w[1] - w[0]).max().unwrap();
    assert!(most <= BATCH_FRAMES as u64, "{most} frames between two looks");
}

#[test]
fn announcements_name_the_addresses_heard_and_learnt() {
    let mut bed = bed(Limits::default());
    let told = format!("{PEER_ADDRESSES}0 - 5 host 10.0.0.9\n1 - 5 host 10.0.0.8\n0 8100:5 6 router fe80::7\n");
    bed.port.learn_addresses(0, &PeerAddresses::parse(told.as_bytes()).unwrap());
    bed.port.open(&|| ());
    let arp = announce::gratuitous_arp(GUEST, [10, 0, 0, 7].into());
    bed.qemu.say(&arp);
    assert_eq!(observe(&bed.observer), arp);
    until("learning", || bed.port.addresses().len() == 3);
    assert_eq!(bed.port.announce(&|| true), 5);
    assert_eq!(observe(&bed.observer), announce::rarp(GUEST));
    assert_eq!(observe(&bed.observer), arp);
    assert_eq!(observe(&bed.observer), announce::gratuitous_arp(GUEST, [10, 0, 0, 9].into()));
    let tagged = |frame: &[u8]| [&frame[..12], &[0x81, 0, 0, 5], &frame[12..]].concat();
    assert_eq!(observe(&bed.observer), tagged(&announce::rarp(GUEST)));
    let router = announce::neighbour_advertisement(GUEST, "fe80::7".parse().unwrap(), true);
    assert_eq!(observe(&bed.observer), tagged(&router));
}

/// What the port sends when it announces: the IPv4 addresses and their owners.
fn announced(bed: &Bed) -> Vec<(Mac, [u8; 4])> {
    let sent = bed.port.announce(&|| true);
    let frames = (0..sent).map(|_| observe(&bed.observer));
    let arp = frames.filter(|f| f[12..14] == [8, 6]);
    arp.map(|f| (Mac(f[22..28].try_into().unwrap()), f[28..32].try_into().unwrap())).collect()
}

#[test]
fn two_nics_on_one_bridge_announce_each_its_own() {
    let mut bed = bed(Limits::default());
    let other = Mac([0x52, 0x54, 0, 0, 0, 0x11]);
    let tap = Tap::open("vm1", Some("br0")).unwrap();
    let (qemu, ours) = socket_pair().unwrap();
    let second = NetPort::start(PortConfig::new(other), tap, Some(ours), Arc::new(|| ())).unwrap();
    let mut its_qemu = Qemu::new(qemu);
    bed.port.open(&|| ());
    second.open(&|| ());
    let [first_arp, second_arp] =
        [(GUEST, 7), (other, 8)].map(|(mac, last)| announce::gratuitous_arp(mac, [10, 0, 0, last].into()));
    bed.qemu.say(&first_arp);
    assert_eq!(observe(&bed.observer), first_arp);
    its_qemu.say(&second_arp);
    assert_eq!(observe(&bed.observer), second_arp);
    assert_eq!(announced(&bed), [(GUEST, [10, 0, 0, 7])]);

    // What a backup is told is as much.
    let mut lines = PEER_ADDRESSES.to_owned();
    bed.port.tell_addresses(0, &mut lines);
    second.tell_addresses(1, &mut lines);
    bed.port.forget_addresses();
    bed.port.learn_addresses(0, &PeerAddresses::parse(lines.as_bytes()).unwrap());
    assert_eq!(announced(&bed), [(GUEST, [10, 0, 0, 7])]);

    // The guest moves an address from one NIC to the other. The second has heard the first speak for it until then: what it hears
    // only after the guest has moved the address would count as somebody else's claim to it.
    until("the second NIC hears all of it", || second.counters().frames_in == 5);
    let moved = announce::gratuitous_arp(other, [10, 0, 0, 7].into());
    let before = bed.port.address_changes();
    its_qemu.say(&moved);
    assert_eq!(observe(&bed.observer), moved);
    until("the first NIC hears it", || bed.port.address_changes() > before);
    assert_eq!(announced(&bed), []);
    assert_eq!(second.announce(&|| true), 3);
}

#[test]
fn what_another_station_has_now_is_not_announced() {
    let mut bed = bed(Limits::default());
    bed.port.open(&|| ());
    for last in [7, 8] {
        bed.qemu.say(&announce::gratuitous_arp(GUEST, [10, 0, 0, last].into()));
        observe(&bed.observer);
    }
    until("learning", || bed.port.addresses().len() == 2);
    let stranger = Mac([0x52, 0x54, 0, 0, 0, 0x99]);
    bed.observer.write(&announce::gratuitous_arp(stranger, [10, 0, 0, 7].into())).unwrap();
    until("forgetting", || bed.port.addresses().len() == 1);
    assert_eq!(announced(&bed), [(GUEST, [10, 0, 0, 8])]);
}

#[test]
fn another_station_with_the_guests_ethernet_address_is_noticed() {
    let bed = bed(Limits::default());
    bed.port.open(&|| ());
    let begin = std::time::Instant::now();
    let mut sent = 0;
    while !bed.port.take_twin() {
        bed.observer.write(&announce::rarp(GUEST)).unwrap();
        sent += 1;
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(begin.elapsed() < PATIENCE, "nobody notices");
    }
    assert!(sent > 3);
    // The guest's own frames are none: they do not come back.
    assert!(!bed.port.take_twin());
}

#[test]
fn a_nic_without_a_link_announces_nothing() {
    let bed = bed(Limits::default());
    bed.port.open(&|| ());
    assert_eq!(bed.port.announce(&|| true), 1);
    bed._net.ip(&["link", "set", "vm0", "carrier", "off"]);
    assert_eq!(bed.port.announce(&|| true), 0, "no carrier");
    bed._net.ip(&["link", "set", "vm0", "carrier", "on"]);
    assert_eq!(bed.port.announce(&|| true), 1);
    bed._net.ip(&["link", "set", "vm0", "down"]);
    assert_eq!(bed.port.announce(&|| true), 0, "down");
}

#[test]
fn a_guest_that_does_not_read_costs_frames_and_nothing_else() {
    let mut bed = bed(Limits::default());
    bed.port.open(&|| ());
    let mut sent = 0;
    while bed.port.counters().dropped_in == 0 {
        for _ in 0..64 {
            bed.observer.write(&frame(sent, 1500)).unwrap();
            sent += 1;
        }
        assert!(sent < 1_000_000, "nothing bounds the queue");
    }
    // The other direction goes on.
    bed.qemu.say(&frame(7, 100));
    assert_eq!(observe_numbers(&bed.observer, 1), [7]);
    // What comes out is whole and in order.
    let mut last = None;
    for _ in 0..1000 {
        let n = testbed::number(&bed.qemu.hear()).unwrap();
        assert!(last < Some(n));
        last = Some(n);
    }
}

#[test]
fn the_next_qemu_takes_over_the_port() {
    let mut bed = bed(Limits::default());
    bed.port.open(&|| ());
    // Half a frame of the first one.
    std::io::Write::write_all(&mut bed.qemu.0, &[0, 0, 0, 100, 1, 2, 3]).unwrap();
    let (qemu, ours) = socket_pair().unwrap();
    bed.port.attach(ours).unwrap();
    bed.qemu = Qemu::new(qemu);
    bed.qemu.say(&frame(1, 100));
    assert_eq!(observe(&bed.observer), frame(1, 100));
    bed.observer.write(&frame(2, 100)).unwrap();
    assert_eq!(bed.qemu.hear(), frame(2, 100));
}

#[test]
fn a_hostile_stream_is_closed_and_a_runt_is_dropped() {
    let mut bed = bed(Limits::default());
    bed.port.open(&|| ());
    bed.qemu.say(&[]);
    bed.qemu.say(&[1, 2, 3]);
    bed.qemu.say(&frame(1, 100));
    assert_eq!(observe_numbers(&bed.observer, 1), [1]);
    assert_eq!(bed.port.counters().failed_out, 1);
    std::io::Write::write_all(&mut bed.qemu.0, &[0xff; 64]).unwrap();
    let mut rest = Vec::new();
    // The port hangs up; what it had not read may make it a reset.
    let _ = std::io::Read::read_to_end(&mut bed.qemu.0, &mut rest);
    assert!(rest.is_empty());
}

#[test]
fn frames_of_a_qemu_that_ended_are_not_lost() {
    let mut bed = bed(Limits::default());
    bed.port.hold(&|| ());
    (0..50).for_each(|n| bed.qemu.say(&frame(n, 100)));
    bed.qemu.0.shutdown(std::net::Shutdown::Both).unwrap();
    bed.port.drain_and_close(Epoch(1));
    bed.port.release(Epoch(1), &|| true);
    assert_eq!(observe_numbers(&bed.observer, 50), (0..50).collect::<Vec<_>>());
}

#[test]
fn a_tap_joins_its_bridge_and_goes_with_its_owner() {
    let net = Net::new();
    net.ip(&["link", "add", "up0", "type", "veth", "peer", "name", "up1"]);
    net.ip(&["link", "set", "up0", "mtu", "9000"]);
    net.ip(&["link", "set", "up0", "master", "br0"]);
    net.ip(&["link", "set", "br0", "mtu", "9000"]);
    net.ip(&["link", "set", "up0", "up"]);
    assert!(!uplink_running("up0").unwrap(), "its peer is down");
    net.ip(&["link", "set", "up1", "up"]);
    // The kernel tells it a little later (linkwatch).
    until("running", || uplink_running("up0").unwrap());
    assert!(uplink_running("none0").is_err());

    let tap = Tap::open("vm%d", Some("br0")).unwrap();
    assert_eq!(tap.name(), "vm0");
    until("running", || uplink_running("vm0").unwrap());
    let shown = net.ip(&["-o", "link", "show", "vm0"]);
    assert!(shown.contains("mtu 9000") && shown.contains("master br0"), "{shown}");
    let again = Tap::open("vm0", None).unwrap_err();
    assert!(matches!(again, TapError::Create { .. }), "{again}");
    // Which name, and why it may be taken: TAPs are named after the first characters of a VM's name.
    assert!(again.to_string().contains("'vm0': an interface of this name is in use"), "{again}");
    drop(tap);
    // A child that another test is just starting may hold the descriptor until it executes its program.
    until("going", || uplink_running("vm0").is_err());

    let none = Tap::open("vm0", Some("br9")).unwrap_err();
    assert!(matches!(none, TapError::NoBridge { .. }), "{none}");
    until("leaving nothing", || uplink_running("vm0").is_err());
    let no_bridge = Tap::open("vm0", Some("up1")).unwrap_err();
    assert!(matches!(no_bridge, TapError::Join { .. }), "{no_bridge}");
    for bad in ["", "a/b", "name-too-long-16"] {
        assert!(matches!(Tap::open(bad, None), Err(TapError::Create { .. })), "{bad}");
    }
    until("leaving nothing", || uplink_running("vm0").is_err());
}

/// Not a test of correctness: prints what this machine does. `cargo test -p ninefold-net --test port -- --ignored
/// --nocapture`
#[test]
#[ignore = "a measurement"]
fn measure() {
    use std::time::Instant;

    let mut bed = bed(Limits::default());
    bed.port.hold(&|| ());
    for (frames, len) in [(1u32, 60usize), (64, 60), (64, 1500), (1000, 1500), (20_000, 1500)] {
        let mut pushes = Vec::new();
        let mut drains = Vec::new();
        let mut releases = Vec::new();
        for round in 0..20u64 {
            let data: Vec<u8> =
                (0..frames).flat_map(|n| [&(len as u32).to_be_bytes()[..], &frame(n, len)].concat()).collect();
            let begin = Instant::now();
            std::io::Write::write_all(&mut bed.qemu.0, &data).unwrap();
            pushes.push(begin.elapsed());
            let begin = Instant::now();
            bed.port.drain_and_close(Epoch(round + 1));
            drains.push(begin.elapsed());
            let begin = Instant::now();
            let released = bed.port.release(Epoch(round + 1), &|| true);
            releases.push(begin.elapsed());
            assert_eq!(released.frames, u64::from(frames));
            observed(&bed.observer);
        }
        for times in [&mut pushes, &mut drains, &mut releases] {
            times.sort();
        }
        let release = releases[10];
        println!(
            "{frames} frames of {len}: write p50 {:?}, drain p50 {:?} max {:?}, release p50 {release:?} max {:?} ({:.0} frames/s, {:.0} MB/s)",
            pushes[10],
            drains[10],
            drains[19],
            releases[19],
            f64::from(frames) / release.as_secs_f64(),
            f64::from(frames) * len as f64 / release.as_secs_f64() / 1e6,
        );
        bed.port.mute();
        bed.port.hold(&|| ());
    }
    bed.port.open(&|| ());
    let one: Vec<u8> = [&1500u32.to_be_bytes()[..], &frame(0, 1500)].concat().repeat(64);
    let sent_before = bed.port.counters().frames_out;
    let begin = Instant::now();
    let total = 300_000u64;
    for _ in 0..total / 64 {
        std::io::Write::write_all(&mut bed.qemu.0, &one).unwrap();
    }
    until("sending", || bed.port.counters().frames_out >= sent_before + total / 64 * 64);
    let took = begin.elapsed().as_secs_f64();
    println!("open: {:.0} frames/s, {:.0} MB/s", total as f64 / took, total as f64 * 1500.0 / took / 1e6);
}

/// Writes what QEMU's socket takes at once; answers how much that was.
fn push(qemu: &UnixStream, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match (&mut &*qemu).write(&bytes[written..]) {
            Ok(n) => written += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) => panic!("{e}"),
        }
    }
    written
}

/// QEMU is about to be stopped with a long frame half written: there is room for the rest before that, although the port's
/// own thread is kept by something else.
#[test]
fn a_frame_that_was_written_in_part_can_be_written_to_its_end() {
    let mut bed = bed(Limits::default());
    bed.port.open(&|| ());
    let long = frame(1, 60_000);
    let long = [&(long.len() as u32).to_be_bytes()[..], &long].concat();
    let outcome = Cell::new(None);
    // After this the port's thread has nothing to do but to read.
    bed.qemu.say(&frame(7, 60));
    assert_eq!(observe_numbers(&bed.observer, 1), [7]);
    let (port, qemu) = (&bed.port, RefCell::new(&mut bed.qemu));
    // While this question is asked the port's thread cannot write what it has read.
    let asked = || {
        qemu.borrow_mut().say(&frame(0, 60));
        until("the port's thread is kept", || port.counters().held == 1);
        let socket = &qemu.borrow().0;
        socket.set_nonblocking(true).unwrap();
        let begun = loop {
            match push(socket, &long) {
                n if n == long.len() => {}
                // Full between two frames: a shorter one moves the end of the next.
                0 => {
                    port.make_room();
                    assert_ne!(push(socket, &long[..4]), 0);
                    assert_ne!(push(socket, &long[4..]), 0);
                }
                n => break n,
            }
        };
        let before = push(socket, &long[begun..]);
        port.make_room();
        outcome.set(Some((before, begun + push(socket, &long[begun..]))));
        false
    };
    port.announce(&asked);
    assert_eq!(outcome.get(), Some((0, long.len())), "of a frame that QEMU has begun to write");
}

/// What QEMU writes of a frame of up to 36,000 bytes is all of it or nothing: so a guest that resets itself at any time leaves no half of one,
/// though nobody makes room before.
#[test]
fn a_short_frame_is_written_whole_or_not_at_all() {
    for length in [60, 1514, 9014, 36_000] {
        let (ours, _theirs) = ninefold_net::socket_pair().unwrap();
        let socket = UnixStream::from(ours);
        socket.set_nonblocking(true).unwrap();
        let message = vec![7; length];
        let mut written = 0;
        loop {
            match (&socket).write(&message) {
                Ok(n) => assert_eq!(n, length, "after {written} of them"),
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) => panic!("{e}"),
            }
            written += 1;
        }
        assert!(written > 0);
    }
}
