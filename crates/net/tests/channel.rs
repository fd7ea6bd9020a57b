//! A channel between a socketpair in QEMU's place and real clients.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use ninefold_model::Epoch;
use ninefold_net::channel::{ChannelConfig, ChannelKind};
use ninefold_net::gate::Limits;
use ninefold_net::{ByteChannel, socket_pair};

/// How long a test waits for what must come; only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(20);

struct Bed {
    channel: ByteChannel,
    qemu: UnixStream,
    wakes: Receiver<()>,
    _dir: tempfile::TempDir,
}

fn bed(kind: ChannelKind, limits: Option<Limits>) -> Bed {
    let dir = tempfile::tempdir().unwrap();
    let (qemu, ours) = socket_pair().unwrap();
    let mut config = ChannelConfig::new(kind, dir.path().join("channel.sock"));
    config.limits = limits.unwrap_or(config.limits);
    let (send, wakes) = channel();
    let wake = Arc::new(move || {
        let _ = send.send(());
    });
    let channel = ByteChannel::start(config, Some(ours), wake).unwrap();
    let qemu = UnixStream::from(qemu);
    qemu.set_read_timeout(Some(PATIENCE)).unwrap();
    Bed { channel, qemu, wakes, _dir: dir }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "{what}: did not happen");
        std::thread::yield_now();
    }
}

impl Bed {
    fn connect(&self) -> UnixStream {
        let client = UnixStream::connect(self.channel.path()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    }

    fn client(&self) -> UnixStream {
        let before = self.channel.counters().clients;
        let client = self.connect();
        until("connecting", || self.channel.counters().clients > before);
        client
    }
}

fn hear(client: &mut UnixStream, n: usize) -> String {
    let mut bytes = vec![0; n];
    client.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_console_speaks_to_all_clients_and_hears_them() {
    let mut bed = bed(ChannelKind::Console, None);
    bed.channel.open();
    let (mut one, mut two) = (bed.client(), bed.client());
    bed.qemu.write_all(b"login: ").unwrap();
    assert_eq!(hear(&mut one, 7), "login: ");
    assert_eq!(hear(&mut two, 7), "login: ");
    one.write_all(b"root\n").unwrap();
    assert_eq!(hear(&mut bed.qemu, 5), "root\n");
    two.write_all(b"ls\n").unwrap();
    assert_eq!(hear(&mut bed.qemu, 3), "ls\n");
    let mut late = bed.client();
    assert_eq!(hear(&mut late, 7), "login: ", "history first");
    drop(one);
    until("leaving", || bed.channel.counters().clients == 2);
}

/// A checkpoint of a VM whose output waits for nobody: what its drain finds leaves by itself.
#[test]
fn what_a_drain_finds_in_an_open_channel_leaves() {
    let mut bed = bed(ChannelKind::Console, None);
    bed.channel.open();
    let mut client = bed.client();
    let mut found = 0;
    for n in 0..300 {
        bed.qemu.write_all(b"word").unwrap();
        found += bed.channel.drain_and_close(Epoch(n + 1));
        assert_eq!(hear(&mut client, 4), "word");
    }
    assert!(found > 0, "the channel's thread was first each time");
}

/// A backup that joins with a checkpoint hears what other backups have not acknowledged yet, too; not what comes after.
#[test]
fn the_history_of_a_checkpoint_has_what_is_held_up_to_it() {
    let mut bed = bed(ChannelKind::Console, None);
    bed.channel.hold();
    for (epoch, word) in (1..).zip(["one ", "two ", "three ", "four "]) {
        bed.qemu.write_all(word.as_bytes()).unwrap();
        bed.channel.drain_and_close(Epoch(epoch));
    }
    bed.channel.release(Epoch(1), &|| true);
    assert_eq!(bed.channel.history(), b"one ");
    assert_eq!(bed.channel.history_up_to(Epoch(1)), b"one ");
    assert_eq!(bed.channel.history_up_to(Epoch(3)), b"one two three ");
    bed.channel.release(Epoch(3), &|| true);
    assert_eq!(bed.channel.history_up_to(Epoch(3)), bed.channel.history());
    bed.qemu.write_all(b"not yet closed").unwrap();
    until("holding", || bed.channel.counters().held == 19);
    assert_eq!(bed.channel.history_up_to(Epoch(4)), b"one two three four ");

    // No longer than a history is.
    let much = vec![b'x'; 100 << 10];
    bed.qemu.write_all(&much).unwrap();
    bed.channel.drain_and_close(Epoch(5));
    let said = bed.channel.history_up_to(Epoch(5));
    bed.channel.release(Epoch(5), &|| true);
    assert_eq!(said, bed.channel.history());
}

#[test]
fn output_waits_for_its_epoch() {
    let mut bed = bed(ChannelKind::Console, None);
    bed.channel.hold();
    let mut client = bed.client();
    bed.qemu.write_all(b"one").unwrap();
    bed.wakes.recv_timeout(PATIENCE).unwrap();
    assert!(bed.channel.waiting().is_some());
    bed.channel.drain_and_close(Epoch(1));
    assert!(bed.channel.waiting().is_none());
    bed.qemu.write_all(b"two").unwrap();
    bed.channel.drain_and_close(Epoch(2));
    let mut bytes = Vec::new();
    bed.channel.epoch_bytes(Epoch(2), &mut bytes);
    assert_eq!(bytes, b"two");
    assert_eq!(bed.channel.history(), b"");
    assert_eq!(bed.channel.release(Epoch(1), &|| true).bytes, 3);
    assert_eq!(bed.channel.history(), b"one");
    // A host that goes on after all has lost nothing.
    assert_eq!(bed.channel.release(Epoch(2), &|| false).kept, 1);
    bed.channel.open();
    bed.qemu.write_all(b"three").unwrap();
    assert_eq!(hear(&mut client, 11), "onetwothree");
    assert_eq!(bed.channel.counters().stale, 0);
}

#[test]
fn a_full_console_is_pushed_back_and_loses_nothing() {
    let mut bed = bed(ChannelKind::Console, Some(Limits { bytes: 10_000, items: 100 }));
    bed.channel.hold();
    let mut client = bed.client();
    let text: Vec<u8> = (0..50_000).map(|i| b'a' + (i % 23) as u8).collect();
    bed.qemu.write_all(&text).unwrap();
    let mut heard = Vec::new();
    let mut epoch = Epoch(0);
    while heard.len() < text.len() {
        epoch = epoch.next();
        bed.channel.drain_and_close(epoch);
        assert!(bed.channel.counters().held <= 10_000);
        let released = bed.channel.release(epoch, &|| true).bytes as usize;
        heard.extend(hear(&mut client, released).into_bytes());
    }
    assert_eq!(heard, text);
    assert!(epoch.0 >= 5);
}

#[test]
fn a_mute_channel_has_no_clients() {
    let mut bed = bed(ChannelKind::Console, None);
    let mut refused = bed.connect();
    assert_eq!(refused.read(&mut [0; 8]).unwrap(), 0);
    bed.channel.append_history(b"from the primary");
    bed.channel.open();
    let mut client = bed.client();
    assert_eq!(hear(&mut client, 16), "from the primary");
    bed.channel.mute();
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    bed.qemu.write_all(b"secret").unwrap();
    until("dropping", || bed.channel.counters().dropped_mute == 1);
    bed.channel.open();
    let mut client = bed.client();
    bed.qemu.write_all(b"!").unwrap();
    assert_eq!(hear(&mut client, 17), "from the primary!");
}

#[test]
fn an_agent_has_one_client_at_a_time_and_no_history() {
    let mut bed = bed(ChannelKind::Agent, None);
    bed.channel.open();
    let mut first = bed.client();
    bed.qemu.write_all(b"{}\n").unwrap();
    assert_eq!(hear(&mut first, 3), "{}\n");
    assert_eq!(bed.connect().read(&mut [0; 8]).unwrap(), 0, "a second one is refused");
    drop(first);
    until("leaving", || bed.channel.counters().clients == 0);
    let mut second = bed.client();
    bed.qemu.write_all(b"[]\n").unwrap();
    assert_eq!(hear(&mut second, 3), "[]\n");
    second.write_all(b"ask").unwrap();
    assert_eq!(hear(&mut bed.qemu, 3), "ask");
}

/// QEMU would write it into the memory of a guest that stands still.
#[test]
fn input_that_is_held_does_not_reach_qemu() {
    let mut bed = bed(ChannelKind::Agent, None);
    bed.channel.open();
    let mut client = bed.client();
    client.write_all(b"one").unwrap();
    until("giving it to QEMU", || bed.channel.counters().bytes_in == 3);
    assert!(!bed.channel.hold_input(), "QEMU has not read it");
    assert_eq!(hear(&mut bed.qemu, 3), "one");
    assert!(bed.channel.hold_input(), "now it has");
    client.write_all(b"two").unwrap();
    // What the client hears after that shows that the channel has looked at it meanwhile.
    bed.qemu.write_all(b"answer").unwrap();
    assert_eq!(hear(&mut client, 6), "answer");
    assert_eq!(bed.channel.counters().bytes_in, 3);
    bed.channel.let_input();
    assert_eq!(hear(&mut bed.qemu, 3), "two");
}

#[test]
fn a_client_that_does_not_read_is_dropped_and_holds_up_nobody() {
    let mut bed = bed(ChannelKind::Console, None);
    bed.channel.open();
    let _slow = bed.client();
    let mut good = bed.client();
    let line = [b'x'; 4096];
    while bed.channel.counters().slow_clients == 0 {
        bed.qemu.write_all(&line).unwrap();
        hear(&mut good, line.len());
    }
    assert_eq!(bed.channel.counters().clients, 1);
}

#[test]
fn the_socket_of_a_killed_keeper_is_replaced_and_another_file_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let config = ChannelConfig::new(ChannelKind::Console, &path);
    let channel = ByteChannel::start(config.clone(), None, ninefold_net::wake::nobody()).unwrap();
    drop(channel);
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    assert!(ByteChannel::start(config, None, ninefold_net::wake::nobody()).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}
