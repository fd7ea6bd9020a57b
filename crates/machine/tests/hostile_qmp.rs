//! A QEMU that says anything: clear errors, never a panic, never an endless wait.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ninefold_machine::qmp::{EventKind, MAX_EVENTS, MAX_LINE, Qmp};
use ninefold_machine::{MachineError, QemuVersion};
use proptest::prelude::*;

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": ["oob"], "new": 1}}"#;
const SHORT: Duration = Duration::from_millis(50);

/// A client that has connected, and QEMU's end.
fn connected() -> (Qmp, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    write!(theirs, "{GREETING}\r\n{{\"return\": {{}}, \"id\": 1000}}\r\n").unwrap();
    let (qmp, version) = Qmp::connect(ours, Duration::from_secs(5)).unwrap();
    assert_eq!(version, QemuVersion { major: 10, minor: 0, micro: 2 });
    (qmp, theirs)
}

/// Reads the negotiation and one command, as QEMU does before it answers.
fn await_command(theirs: &mut UnixStream) {
    let mut lines = 0;
    let mut buffer = [0; 4096];
    while lines < 2 {
        let count = theirs.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "the client has gone");
        lines += buffer[..count].iter().filter(|b| **b == b'\n').count();
    }
}

/// What the client makes of `text` as the answer to the command with id 1001.
fn answer_to(text: &[u8]) -> Result<serde_json::Value, MachineError> {
    let (mut qmp, mut theirs) = connected();
    let text = text.to_vec();
    let writer = std::thread::spawn(move || {
        await_command(&mut theirs);
        let _ = theirs.write_all(&text);
        // Closed by the drop: a client that waits for more gets the end.
    });
    let answer = qmp.execute_within("query-x", None::<()>, None, Duration::from_secs(5));
    // A writer that waits for a client that gave up gets the end, too.
    drop(qmp);
    writer.join().unwrap();
    answer
}

fn text(result: Result<serde_json::Value, MachineError>) -> String {
    let error = result.unwrap_err();
    assert!(matches!(error, MachineError::Protocol { .. } | MachineError::Refused { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn answers_with_unknown_members_and_events_between_are_understood() {
    let good = br#"{"event": "BRAND_NEW", "data": {"x": [1, {"y": null}]}, "timestamp": {"seconds": 1, "microseconds": 2}, "z": 1}
{"timestamp": {"seconds": -1, "microseconds": -1}, "event": "STOP"}

{"return": {"a": 1}, "id": 1001, "later": true}
"#;
    assert_eq!(answer_to(good).unwrap()["a"], 1);
}

#[test]
fn each_kind_of_wrong_answer_has_its_error() {
    for (bad, expected) in [
        (&b"{\"return\": {}, \"id\": 7}\n"[..], "an answer to 7 instead of 1001"),
        (b"{\"return\": {}}\n", "not understood"),
        (b"{\"return\": {}, \"id\": \"x\"}\n", "not understood"),
        (b"{\"return\": {}, \"error\": {\"class\": \"a\", \"desc\": \"b\"}, \"id\": 1001}\n", "not understood"),
        (
            b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no \\\"such\\\" thing\"}, \"id\": 1001}\n",
            "no \"such\" thing",
        ),
        (b"{\"error\": 5, \"id\": 1001}\n", "not understood"),
        (b"hello\n", "not understood: 'hello'"),
        (b"\xff\xfe\n", "not understood"),
        (b"{\"return\": \n", "not understood"),
        (b"{\"return\": {}, \"id\": 10", "in the middle of a line"),
        (b"", "closed"),
        (b"{\"QMP\": {}}\n", "second greeting"),
    ] {
        let said = text(answer_to(bad));
        assert!(said.contains(expected), "{}: {said}", bad.escape_ascii());
    }
}

#[test]
fn an_endless_line_is_refused() {
    let mut long = vec![b' '; 2 * MAX_LINE];
    long[0] = b'{';
    assert!(text(answer_to(&long)).contains("a line of more than"));
    // The longest that is allowed, behind a shorter one.
    let mut value = String::from("{\"event\": \"X\"}\n{\"id\": 1001, \"return\": \"");
    value.push_str(&"x".repeat(MAX_LINE - 100));
    value.push_str("\"}\n");
    assert_eq!(answer_to(value.as_bytes()).unwrap().as_str().unwrap().len(), MAX_LINE - 100);
}

#[test]
fn silence_is_a_timeout_and_ends_the_connections_use() {
    let (mut qmp, _theirs) = connected();
    let slow = qmp.execute_within::<serde_json::Value>("slow", None::<()>, None, SHORT);
    assert!(matches!(slow, Err(MachineError::Timeout { .. })), "{slow:?}");
    assert!(text(qmp.execute("query-x", None::<()>)).contains("earlier error"));
    let (ours, _theirs) = UnixStream::pair().unwrap();
    assert!(matches!(Qmp::connect(ours, SHORT), Err(MachineError::Timeout { .. })));
}

/// Who may be the only one that has the VM is waited for, as long as somebody says so.
#[test]
fn patience_waits_for_a_qemu_that_lives() {
    let (mut qmp, mut theirs) = connected();
    let (asked, looks) = std::sync::mpsc::channel();
    qmp.set_patience(Box::new(move |command, waited| {
        assert!(command != "stop" || waited >= SHORT);
        asked.send(command.to_owned()).is_ok()
    }));
    let answer = std::thread::spawn(move || {
        // It answers long after it was to have done so, when it has been asked about twice.
        assert_eq!([looks.recv().unwrap(), looks.recv().unwrap()], ["stop", "stop"]);
        writeln!(theirs, "{{\"return\": {{}}, \"id\": 1001}}").unwrap();
        (theirs, looks)
    });
    qmp.execute_within::<serde_json::Value>("stop", None::<()>, None, SHORT).unwrap();
    // Nobody wants it any more.
    let (_theirs, looks) = answer.join().unwrap();
    drop(looks);
    let slow = qmp.execute_within::<serde_json::Value>("cont", None::<()>, None, SHORT);
    assert!(matches!(slow, Err(MachineError::Timeout { .. })), "{slow:?}");
}

#[test]
fn a_qemu_that_does_not_read_is_a_timeout() {
    let (mut qmp, _theirs) = connected();
    let argument = "x".repeat(8 << 20);
    let stuck = qmp.execute_within::<serde_json::Value>("stuck", Some(argument), None, SHORT);
    assert!(matches!(stuck, Err(MachineError::Timeout { .. })));
}

/// Both come in one packet: the socket has nothing more to tell, and the event must be found all the same.
#[test]
fn an_event_behind_an_answer_is_there_though_the_socket_is_silent() {
    let (mut qmp, mut theirs) = connected();
    write!(theirs, "{{\"return\": {{}}, \"id\": 1001}}\n{{\"event\": \"WATCHDOG\"}}\n").unwrap();
    qmp.run("cont", None::<()>).unwrap();
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(qmp.as_fd(), rustix::event::PollFlags::IN)];
    let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&none)).unwrap(), 0);
    assert_eq!(qmp.poll_events().unwrap(), 1);
    assert_eq!(qmp.next_event().unwrap().kind, EventKind::Watchdog);
}

#[test]
fn events_are_bounded_and_the_loss_is_counted() {
    let (mut qmp, mut theirs) = connected();
    // In one write: many small ones would fill the socket's buffer by their overhead alone.
    let many: String = (0..MAX_EVENTS + 3).map(|n| format!("{{\"event\": \"E{n}\"}}\n")).collect();
    theirs.write_all(many.as_bytes()).unwrap();
    writeln!(theirs, r#"{{"event": "SHUTDOWN", "data": {{"guest": true, "reason": "guest-shutdown"}}}}"#).unwrap();
    assert_eq!(qmp.poll_events().unwrap(), MAX_EVENTS);
    assert_eq!(qmp.lost_events(), 4);
    let mut last = None;
    while let Some(event) = qmp.next_event() {
        last = Some(event.kind);
    }
    assert_eq!(last, Some(EventKind::Shutdown { guest: true }));
    // An answer that nobody asked for.
    writeln!(theirs, r#"{{"return": {{}}, "id": 5}}"#).unwrap();
    assert!(qmp.poll_events().unwrap_err().to_string().contains("nobody asked"));
}

#[test]
fn a_descriptor_goes_with_the_command() {
    let (mut qmp, theirs) = connected();
    let (passed, mut other) = UnixStream::pair().unwrap();
    let receiver = std::thread::spawn(move || {
        use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
        let mut theirs = theirs;
        // The negotiation, then the command.
        let mut lines = 0;
        let mut fd = None;
        while lines < 2 {
            let mut byte = [0; 256];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut into = [std::io::IoSliceMut::new(&mut byte)];
            let count = recvmsg(&theirs, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                    fd = fds.next();
                }
            }
            lines += byte[..count].iter().filter(|b| **b == b'\n').count();
        }
        theirs.write_all(b"{\"return\": {}, \"id\": 1001}\n").unwrap();
        fd.unwrap()
    });
    use std::os::fd::AsFd;
    let _: serde_json::Value = qmp.execute_with_fd("getfd", None::<()>, passed.as_fd()).unwrap();
    let mut received = UnixStream::from(receiver.join().unwrap());
    received.write_all(b"!").unwrap();
    let mut one = [0];
    other.read_exact(&mut one).unwrap();
    assert_eq!(&one, b"!");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Random bytes, and a good answer with some of its bytes changed: an answer or an error.
    #[test]
    fn anything_is_survived(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = answer_to(&noise);
    }

    #[test]
    fn damaged_answers_are_survived(changes in proptest::collection::vec((0..120_usize, any::<u8>()), 1..4)) {
        let mut line = br#"{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}
{"return": {"a": [1, 2]}, "id": 1001}
"#.to_vec();
        for (at, byte) in changes {
            let at = at % line.len();
            line[at] = byte;
        }
        let _ = answer_to(&line);
    }

    /// However an answer is cut into pieces on its way, it is the same answer.
    #[test]
    fn pieces_do_not_matter(cut in 1..60_usize) {
        let line: &[u8] = b"{\"event\": \"STOP\"}\n{\"return\": {\"a\": 1}, \"id\": 1001}\n";
        let (mut qmp, mut theirs) = connected();
        let value: serde_json::Value = std::thread::scope(|scope| {
            scope.spawn(move || {
                await_command(&mut theirs);
                for piece in line.chunks(cut) {
                    theirs.write_all(piece).unwrap();
                    std::thread::yield_now();
                }
            });
            qmp.execute("query-x", None::<()>).unwrap()
        });
        prop_assert_eq!(&value["a"], &serde_json::json!(1));
        prop_assert_eq!(qmp.next_event().map(|e| e.kind), Some(EventKind::Stop));
    }
}
