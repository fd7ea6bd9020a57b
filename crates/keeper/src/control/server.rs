//! The control socket: one JSON object a line each way (see [`ninefold_control`]).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use ninefold_control::wire::{self, Envelope, MAX_REQUEST};
use ninefold_control::{Answer, EventsPage, OperationId, Refusal, Reply, Request, Work};
use ninefold_listen::{Acceptor, Bounds, Guest, Within};
use ninefold_model::event::Position;
use ninefold_transport::Security;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::certificates;
use crate::control::journal::Journal;
use crate::control::operations::Operations;
use crate::control::preflight::Preflight;
use crate::error::KeeperError;
use crate::msg::Msg;

/// Clients served at a time.
const MAX_CLIENTS: usize = 64;
/// A client that asks nothing for so long is disconnected.
const PATIENCE: Duration = Duration::from_secs(60);
/// For the rest of a request once it has begun, and for an answer to be taken.
const LINE_LIMIT: Duration = Duration::from_secs(5);
/// How long the core may take. Booting a VM is the longest of it.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// How often somebody who waits for events is looked after.
const LOOK: Duration = Duration::from_millis(200);

/// What a client's thread answers from without troubling the core, and looks at before it does.
pub struct AtHand {
    pub journal: Journal,
    pub operations: Operations,
    pub looks: Preflight,
}

/// Listens at `path` (removing what a former keeper left there) and serves each client from a thread of its own.
pub fn serve(path: &Path, at_hand: AtHand, security: Security, core: Sender<Msg>) -> Result<(), KeeperError> {
    let failed = |source| KeeperError::File { what: "cannot listen at", path: path.to_owned(), source };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let acceptor = Acceptor::new("control", listener, Bounds::new(MAX_CLIENTS), Vec::new());
    let run = move || acceptor.serve(move |guest| drop(client(&guest, &at_hand, &security, &core)));
    thread::Builder::new().name("control".into()).spawn(run).map(drop).map_err(KeeperError::Thread)
}

fn client(guest: &Guest<UnixListener>, at_hand: &AtHand, security: &Security, core: &Sender<Msg>) -> io::Result<()> {
    let stream = &*guest.stream;
    let mut input = BufReader::new(Within::new(stream, Instant::now(), usize::MAX));
    loop {
        guest.place.idle();
        input.get_mut().set_deadline(Instant::now() + PATIENCE);
        if input.fill_buf()?.is_empty() {
            return Ok(());
        }
        input.get_mut().set_deadline(Instant::now() + LINE_LIMIT);
        let mut line = Vec::new();
        input.by_ref().take(MAX_REQUEST).read_until(b'\n', &mut line)?;
        // Where the next request begins is not known then.
        let last = line.len() as u64 == MAX_REQUEST && line.last() != Some(&b'\n');
        let (envelope, request) = match last {
            true => (Envelope::default(), Err(Refusal::TooLong { limit: MAX_REQUEST })),
            false => wire::read_request(&line),
        };
        let reply = match request {
            // It may wait for long, and others may want its place.
            Ok(Request::Events { after, wait_ms }) => {
                let after = after.unwrap_or_else(|| at_hand.journal.end());
                let Some(events) = events(stream, &at_hand.journal, after, Duration::from_millis(wait_ms)) else {
                    return Ok(());
                };
                Ok(events)
            }
            Ok(Request::Operation { operation, wait_ms }) => {
                let Some(reply) = operation_of(stream, &at_hand.operations, operation, Duration::from_millis(wait_ms))
                else {
                    return Ok(());
                };
                reply
            }
            Ok(request) => {
                guest.place.busy();
                let mut reply = answer(request, envelope.token.clone(), at_hand, core);
                if let Ok(Answer::Status { status }) = &mut reply {
                    status.certificate = certificates::status_of(security);
                }
                reply
            }
            Err(refusal) => Err(refusal),
        };
        guest.place.busy();
        let text = wire::write_answer(&envelope, &reply)?;
        Within::new(stream, Instant::now() + LINE_LIMIT, 0).write_all(&text)?;
        if last {
            return Ok(());
        }
    }
}

/// Waits for the end of an operation; none when the client has gone, or has lost its place.
fn operation_of(stream: &UnixStream, operations: &Operations, id: OperationId, wait: Duration) -> Option<Reply> {
    wait_for(stream, wait, |left| match operations.get(id, left) {
        Ok(operation) => (operation.has_ended(), Ok(Answer::Operation { operation: Box::new(operation) })),
        Err(refusal) => (true, Err(refusal)),
    })
}

/// Waits for events; none when the client has gone, or has lost its place.
fn events(stream: &UnixStream, journal: &Journal, after: Position, wait: Duration) -> Option<Answer> {
    wait_for(stream, wait, |left| {
        let EventsPage { gap, events, next } = journal.events(after, left);
        (!events.is_empty() || gap.is_some(), Answer::Events { gap, events, next })
    })
}

/// What `look` finds, given how long it may wait: as soon as that is what the client waits for (true), or as it is when the time is over.
/// None when the client has gone, or has lost its place.
fn wait_for<T>(stream: &UnixStream, wait: Duration, look: impl Fn(Duration) -> (bool, T)) -> Option<T> {
    let begun = Instant::now();
    loop {
        let left = wait.saturating_sub(begun.elapsed());
        let (is_it, found) = look(left.min(LOOK));
        if is_it || left.is_zero() {
            return Some(found);
        }
        if is_gone(stream) {
            return None;
        }
    }
}

/// Whether nothing can be said to the client any more.
fn is_gone(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    // HUP and ERR are told unasked. One that has only ceased to ask may still want its answer.
    poll(&mut fds, Some(&Timespec::default())).is_ok() && !fds[0].revents().is_empty()
}

fn answer(request: Request, token: Option<String>, at_hand: &AtHand, core: &Sender<Msg>) -> Reply {
    match request {
        Request::Operations => Ok(Answer::Operations { operations: at_hand.operations.list() }),
        // Of which this life knows nothing, nothing can be cancelled.
        Request::Cancel { operation } if operation.incarnation != at_hand.operations.incarnation() => {
            let incarnation = at_hand.operations.incarnation();
            Err(Refusal::EarlierKeeper { operation, incarnation })
        }
        Request::Checkpoints { after } => Ok(Answer::Checkpoints { checkpoints: at_hand.journal.checkpoints(after) }),
        request => {
            let Some(mut seen) = at_hand.looks.before(&request) else {
                return Err(Refusal::Busy { with: Work::DiskLook });
            };
            if matches!(request, Request::Status) {
                seen.pauses = at_hand.journal.pauses();
            }
            let (reply, answer) = channel();
            if core.send(Msg::Request { request, token, seen, reply }).is_err() {
                return Err(Refusal::KeeperEnds);
            }
            answer.recv_timeout(ANSWER_LIMIT).unwrap_or_else(|error| {
                Err(match error {
                    RecvTimeoutError::Timeout => {
                        Refusal::NoAnswer { limit_ms: u64::try_from(ANSWER_LIMIT.as_millis()).unwrap_or(u64::MAX) }
                    }
                    RecvTimeoutError::Disconnected => Refusal::KeeperEnds,
                })
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use ninefold_core::event::Seen;
    use ninefold_model::Incarnation;
    use ninefold_model::event::EventKind;

    use super::*;

    struct Bed {
        _dir: tempfile::TempDir,
        path: std::path::PathBuf,
        journal: Journal,
    }

    fn bed() -> Bed {
        bed_where(Preflight::by(|_| Seen::default()))
    }

    fn bed_where(looks: Preflight) -> Bed {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keeper.sock");
        let (core, inbox) = channel();
        // The core answers everything with `Done`.
        thread::spawn(move || {
            for msg in inbox {
                if let Msg::Request { reply, .. } = msg {
                    let _ = reply.send(Ok(Answer::Done));
                }
            }
        });
        let host: ninefold_model::HostName = "a".parse().unwrap();
        let journal = Journal::new(host.clone(), Incarnation(1));
        let at_hand = AtHand { journal: journal.clone(), operations: Operations::new(Incarnation(1)), looks };
        serve(&path, at_hand, Security::PlainText { host }, core).unwrap();
        Bed { _dir: dir, path, journal }
    }

    impl Bed {
        fn ask(&self, request: &[u8]) -> io::Result<String> {
            let mut client = UnixStream::connect(&self.path)?;
            client.set_read_timeout(Some(Duration::from_secs(20)))?;
            client.write_all(request)?;
            let mut answer = String::new();
            BufReader::new(client).read_line(&mut answer)?;
            Ok(answer)
        }

        /// Until it is served, well before anybody is given up for being idle.
        fn is_served(&self) {
            let deadline = Instant::now() + PATIENCE / 4;
            let request = b"{\"version\":1,\"request\":\"status\"}\n";
            while !self.ask(request).is_ok_and(|answer| !answer.is_empty()) {
                assert!(Instant::now() < deadline, "nobody is served");
            }
        }
    }

    #[test]
    fn idle_clients_keep_nobody_out() {
        let bed = bed();
        let idle: Vec<_> = (0..2 * MAX_CLIENTS).map(|_| UnixStream::connect(&bed.path).unwrap()).collect();
        bed.is_served();
        drop(idle);
    }

    /// An hour, each of them.
    #[test]
    fn clients_that_wait_for_events_keep_nobody_out() {
        let bed = bed();
        let waiting: Vec<_> = (0..2 * MAX_CLIENTS)
            .map(|_| {
                let mut client = UnixStream::connect(&bed.path).unwrap();
                let _ = client.write_all(
                    b"{\"version\":1,\"request\":\"events\",\"after\":{\"incarnation\":0,\"seq\":0},\"wait_ms\":3600000}\n",
                );
                client
            })
            .collect();
        bed.is_served();
        drop(waiting);
    }

    /// Who wants to follow what happens from now on learns where that is, and is told nothing of before.
    #[test]
    fn events_are_followed_from_now_on() {
        let bed = bed();
        bed.journal.event(EventKind::WitnessReachable);
        let ask = |after: &str| {
            let request = format!("{{\"version\":1,\"request\":\"events\"{after}}}\n");
            serde_json::from_str::<serde_json::Value>(&bed.ask(request.as_bytes()).unwrap()).unwrap()
        };
        let now = ask("");
        assert_eq!((&now["events"], &now["gap"]), (&serde_json::json!([]), &serde_json::Value::Null));
        bed.journal.event(EventKind::Paused);
        let later = ask(&format!(",\"after\":{}", now["next"]));
        assert_eq!((&later["events"][0]["event"], &later["events"][1]), (&"paused".into(), &serde_json::Value::Null));
    }

    /// The disk of a VM that is to be started does not answer. Who asks for that waits; the core hears everybody else.
    #[test]
    fn a_disk_that_does_not_answer_keeps_nobody_else_waiting() {
        let (looked, looks) = channel();
        let (answers, hung) = channel::<()>();
        let hung = Mutex::new(hung);
        let bed = bed_where(Preflight::by(move |_| {
            looked.send(()).unwrap();
            let _ = hung.lock().unwrap().recv();
            Seen::default()
        }));
        let start = b"{\"version\":1,\"request\":\"start\"}\n";
        thread::scope(|scope| {
            let first = scope.spawn(|| bed.ask(start).unwrap());
            looks.recv().unwrap();
            let status = bed.ask(b"{\"version\":1,\"request\":\"status\"}\n").unwrap();
            assert!(status.contains("done"), "{status}");
            let second = bed.ask(start).unwrap();
            assert!(second.contains(r#""code":"busy","details":{"with":"disk_look"}"#), "{second}");
            drop(answers);
            assert!(first.join().unwrap().contains("done"));
        });
    }

    #[test]
    fn a_request_that_is_too_long_is_refused_once() {
        let bed = bed();
        let mut request = vec![b' '; MAX_REQUEST as usize + 10];
        request.push(b'\n');
        let answer = bed.ask(&request).unwrap();
        assert!(answer.contains(r#""code":"too_long","details":{"limit":65536}"#), "{answer}");
    }

    /// What is asked in a version that is not spoken is refused with those that are; the connection stays, and the answer repeats the name that
    /// the client gave its request.
    #[test]
    fn each_answer_is_of_the_version_and_name_of_its_request() {
        let bed = bed();
        let client = UnixStream::connect(&bed.path).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut answers = BufReader::new(&client);
        let mut ask = |request: &str| {
            (&client).write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            answers.read_line(&mut answer).unwrap();
            serde_json::from_str::<serde_json::Value>(&answer).unwrap()
        };
        let done = ask("{\"version\":1,\"id\":\"mine\",\"request\":\"stop\"}\n");
        assert_eq!(done, serde_json::json!({ "version": 1, "id": "mine", "answer": "done" }));
        let later = ask("{\"version\":99,\"id\":2,\"request\":\"stop\"}\n");
        assert_eq!((&later["id"], &later["error"]["code"]), (&2.into(), &"unsupported_version".into()));
        assert_eq!(later["error"]["details"], serde_json::json!({ "asked": 99, "spoken": [1] }));
        let odd = ask("{\"version\":1,\"request\":\"stop\",\"now\":true}\n");
        assert_eq!((&odd["error"]["code"], &odd["error"]["details"]["field"]), (&"bad_request".into(), &"now".into()));
    }
}
