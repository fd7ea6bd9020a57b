//! The server against QEMU's own clients, several clients at once, and clients that mean no good.

mod rig;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use ninefold_volume::nbd::proto::{Command, Request};
use ninefold_volume::nbd::{Access, Client, Handler, Server};
use ninefold_volume::{Image, VolumeError};
use rig::{Memory, Numbers, qemus};

const SIZE: u64 = 4 << 20;

fn serve(dir: &Path, access: Access) -> (Server, Arc<Memory>) {
    let memory = Arc::new(Memory::new(SIZE as usize));
    let server = Server::listen(&dir.join("nbd"), "disk", access, memory.clone()).unwrap();
    (server, memory)
}

/// Random commands for qemu-io, and what the disk holds after each prefix of them.
fn history(seed: u64, count: usize) -> (Vec<String>, Vec<u8>) {
    let mut numbers = Numbers(seed);
    let mut model = vec![0; SIZE as usize];
    let mut commands = Vec::new();
    for _ in 0..count {
        let at = numbers.below(SIZE / 512) * 512;
        let length = (numbers.below(256) * 512 + 512).min(SIZE - at);
        let pattern = numbers.below(255) as u8 + 1;
        let range = at as usize..(at + length) as usize;
        commands.push(match numbers.below(7) {
            0 | 1 => format!("write -P {pattern} {at} {length}"),
            2 => format!("write -f -P {pattern} {at} {length}"),
            3 => format!("write -z {at} {length}"),
            4 => format!("write -z -u {at} {length}"),
            5 => format!("discard {at} {length}"),
            _ => "flush".into(),
        });
        match commands.last().unwrap() {
            c if c.contains("-P") => model[range.clone()].fill(pattern),
            c if c == "flush" => {}
            _ => model[range.clone()].fill(0),
        }
        if model[range.clone()].iter().all(|b| *b == model[range.start]) {
            commands.push(format!("read -P {} {at} {length}", model[range.start]));
        }
    }
    (commands, model)
}

#[test]
fn qemu_io_sees_what_it_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let (server, memory) = serve(dir.path(), Access::ReadWrite);
    let url = format!("nbd+unix:///disk?socket={}", server.path().display());
    for seed in 1..4 {
        memory.0.lock().unwrap().fill(0);
        let (commands, model) = history(seed, 80);
        let mut args = vec!["-f", "raw", "-d", "unmap", &url];
        for command in &commands {
            args.extend(["-c", command]);
        }
        let output = rig::run("qemu-io", &args);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!said.contains("failed"), "{said}");
        assert!(*memory.0.lock().unwrap() == model, "history {seed}");
    }
    let info = rig::run("qemu-img", &["info", "-f", "raw", &url]);
    assert!(String::from_utf8_lossy(&info.stdout).contains("4 MiB (4194304 bytes)"), "{info:?}");
    let list = rig::run("qemu-nbd", &["--list", "-k", server.path().to_str().unwrap()]);
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(list.contains("export: 'disk'") && list.contains("opt block: 4096"), "{list}");
}

#[test]
fn qemu_itself_sees_what_it_wrote() {
    for qemu in qemus() {
        let dir = tempfile::tempdir().unwrap();
        let (server, memory) = serve(dir.path(), Access::ReadWrite);
        let path = server.path().display();
        let mut child = std::process::Command::new(&qemu)
            .args(["-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio", "-blockdev"])
            .arg(format!("driver=nbd,node-name=disk,discard=unmap,server.type=unix,server.path={path},export=disk"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ask = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut answer = |command: String| -> String {
            writeln!(ask, "{command}").unwrap();
            lines
                .by_ref()
                .map(Result::unwrap)
                .find(|line| line.starts_with("{\"return") || line.contains("\"error\""))
                .unwrap()
        };
        answer("{\"execute\":\"qmp_capabilities\"}".into());
        let (commands, model) = history(9, 60);
        for command in commands {
            let line = serde_json::json!({"execute": "human-monitor-command",
                "arguments": {"command-line": format!("qemu-io disk \"{command}\"")}});
            let said = answer(line.to_string());
            assert!(!said.contains("failed") && !said.contains("rror"), "{qemu:?} {command}: {said}");
        }
        assert!(server.in_use());
        answer("{\"execute\":\"quit\"}".into());
        assert!(child.wait().unwrap().success());
        assert!(*memory.0.lock().unwrap() == model, "{qemu:?}");
    }
}

#[test]
fn our_client_and_our_server_agree() {
    let dir = tempfile::tempdir().unwrap();
    let (server, memory) = serve(dir.path(), Access::ReadWrite);
    let client = Client::connect(server.path(), "disk").unwrap();
    assert_eq!(client.size(), SIZE);
    let mut numbers = Numbers(5);
    let mut model = vec![0; SIZE as usize];
    for _ in 0..500 {
        let at = numbers.below(SIZE) as usize;
        let length = (numbers.below(100_000) as usize).min(model.len() - at);
        match numbers.below(3) {
            0 => {
                let bytes: Vec<u8> = (0..length).map(|_| numbers.next() as u8).collect();
                client.write(at as u64, &bytes).unwrap();
                model[at..at + length].copy_from_slice(&bytes);
            }
            1 => {
                client.zero(at as u64, length as u64, numbers.below(2) == 0).unwrap();
                model[at..at + length].fill(0);
            }
            _ => {
                let mut bytes = vec![0; length];
                client.read(at as u64, &mut bytes).unwrap();
                assert!(bytes == model[at..at + length]);
            }
        }
    }
    client.flush().unwrap();
    assert!(*memory.0.lock().unwrap() == model);
    assert!(matches!(client.read(SIZE - 1, &mut [0; 2]), Err(VolumeError::OutOfBounds { .. })));
    let path = server.path().to_owned();
    drop(server);
    assert!(client.flush().is_err() && client.flush().is_err());
    assert!(!path.exists());
}

#[test]
fn a_second_client_is_refused_and_a_successor_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = serve(dir.path(), Access::ReadWrite);
    let first = Client::connect(server.path(), "disk").unwrap();
    let refused = Client::connect(server.path(), "disk").unwrap_err().to_string();
    assert!(refused.contains("another client"), "{refused}");
    first.write(0, b"still there").unwrap();
    drop(first);
    Client::connect(server.path(), "disk").unwrap();
    let unknown = Client::connect(server.path(), "other").unwrap_err().to_string();
    assert!(unknown.contains("no such export"), "{unknown}");
}

/// Connections that say nothing keep neither QEMU out nor who transmits already.
#[test]
fn idle_clients_keep_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = serve(dir.path(), Access::ReadWrite);
    let connect = || UnixStream::connect(server.path()).unwrap();
    let before: Vec<_> = (0..20).map(|_| connect()).collect();
    // A place that was given away this moment is nobody else's for the next 50 ms.
    let enter = || {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match Client::connect(server.path(), "disk") {
                Ok(client) => return client,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    };
    let client = enter();
    client.write(0, &[7; 512]).unwrap();
    let after: Vec<_> = (0..20).map(|_| connect()).collect();
    // Each of them has been served or turned away: nobody waits in the kernel's queue any more.
    for mut idle in after.into_iter().chain(before) {
        let _ = idle.read(&mut [0; 18]);
    }
    let mut content = [0; 512];
    client.read(0, &mut content).unwrap();
    assert_eq!(content, [7; 512]);
    drop(client);
    enter();
}

#[test]
fn a_read_only_export_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = serve(dir.path(), Access::ReadOnly);
    let client = Client::connect(server.path(), "").unwrap();
    assert!(client.read_only());
    assert!(client.write(0, b"x").is_err());
    client.read(0, &mut [0; 512]).unwrap();
}

/// What a client says up to the transmission.
fn prelude() -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(b"IHAVEOPT");
    bytes.extend([0, 0, 0, 7, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0]);
    bytes
}

#[test]
fn hostile_bytes_end_only_their_own_connection() {
    let dir = tempfile::tempdir().unwrap();
    let (server, memory) = serve(dir.path(), Access::ReadWrite);
    let mut numbers = Numbers(77);
    for round in 0..300 {
        let mut bytes = if round % 3 == 0 { Vec::new() } else { prelude() };
        if round % 3 == 2 {
            // A request that looks right, with fields that are not.
            bytes.extend(0x2560_9513u32.to_be_bytes());
            bytes.extend([0, numbers.next() as u8, 0, numbers.below(9) as u8]);
            bytes.extend((0..20).map(|_| numbers.next() as u8));
        }
        bytes.extend((0..numbers.below(200)).map(|_| numbers.next() as u8));
        let mut stream = UnixStream::connect(server.path()).unwrap();
        // The server may have hung up already; that is an answer.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.take(1 << 20).read_to_end(&mut answer);
    }
    let client = Client::connect(server.path(), "disk").unwrap();
    client.write(0, b"alive").unwrap();
    assert_eq!(&memory.0.lock().unwrap()[..5], b"alive");
}

#[test]
fn requests_over_the_end_are_answered_and_long_writes_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = serve(dir.path(), Access::ReadWrite);
    let mut stream = UnixStream::connect(server.path()).unwrap();
    stream.write_all(&prelude()).unwrap();
    // Greeting, two descriptions (12 and 14 bytes), the acknowledgement.
    let mut skipped = vec![0; 18 + 3 * 20 + 12 + 14];
    stream.read_exact(&mut skipped).unwrap();
    let request = |command: u8, offset: u64, length: u32| {
        let mut bytes = vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0, command, 0, 0, 0, 0, 0, 0, 0, 1];
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    };
    for (command, offset, length, error) in [
        (0, SIZE, 1, 22),
        (0, u64::MAX, u32::MAX, 22),
        (6, SIZE - 1, 2, 28),
        (4, SIZE, 1, 22),
        (9, 0, 0, 22),
        (0, 0, 0, 0),
    ] {
        stream.write_all(&request(command, offset, length)).unwrap();
        let mut reply = [0; 16];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[4..8], [0, 0, 0, error], "{command} {offset} {length}");
    }
    stream.write_all(&request(1, 0, u32::MAX)).unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0);
}

#[test]
fn dropping_the_server_ends_idle_clients() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = serve(dir.path(), Access::ReadWrite);
    let _transmits = Client::connect(server.path(), "disk").unwrap();
    let _haggles = UnixStream::connect(server.path()).unwrap();
    drop(server);
}

/// A QEMU dies while its request waits for something that may take long. Its successor is served, and nothing of what it had
/// asked for and what had not begun is done.
#[test]
fn requests_end_with_their_client() {
    struct Slow {
        state: Mutex<(bool, Vec<u64>)>,
        changed: Condvar,
    }
    impl Handler for Slow {
        fn size(&self) -> u64 {
            SIZE
        }
        fn read(&self, _: u64, _: &mut [u8]) -> Result<(), VolumeError> {
            Ok(())
        }
        fn write(&self, at: u64, _: Vec<u8>, _: bool) -> Result<(), VolumeError> {
            let mut state = self.state.lock().unwrap();
            state.1.push(at);
            self.changed.notify_all();
            drop(self.changed.wait_while(state, |(gone, _)| !*gone).unwrap());
            Ok(())
        }
        fn zero(&self, _: u64, _: u64, _: bool, _: bool) -> Result<(), VolumeError> {
            Ok(())
        }
        fn flush(&self) -> Result<(), VolumeError> {
            Ok(())
        }
        fn begins(&self) {
            self.state.lock().unwrap().0 = false;
        }
        fn ended(&self) {
            self.state.lock().unwrap().0 = true;
            self.changed.notify_all();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let slow = Arc::new(Slow { state: Mutex::default(), changed: Condvar::new() });
    let server = Server::listen(&dir.path().join("nbd"), "disk", Access::ReadWrite, slow.clone()).unwrap();
    let stream = UnixStream::connect(server.path()).unwrap();
    let copy = stream.try_clone().unwrap();
    let first = Client::start(stream, "disk").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| first.write(0, &[1; 512]).unwrap_err());
        let state = slow.changed.wait_while(slow.state.lock().unwrap(), |(_, begun)| begun.is_empty()).unwrap();
        drop(state);
        // A second one is on its way when the process dies: its sockets are closed, whatever is in them.
        let request = Request { flags: 0, command: Command::Write, cookie: 99, offset: 4096, length: 512 };
        (&copy).write_all(&[&request.emit()[..], &[2; 512]].concat()).unwrap();
        copy.shutdown(std::net::Shutdown::Both).unwrap();
    });
    drop((first, copy));
    let second = Client::connect(server.path(), "disk").unwrap();
    second.flush().unwrap();
    assert_eq!(slow.state.lock().unwrap().1, [0], "only what had begun");
}
