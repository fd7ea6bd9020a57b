//! The control socket: one JSON object a line each way (see `ninefold_model::control`).

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use ninefold_model::control::{Request, Response};

use crate::error::KeeperError;
use crate::journal::Journal;
use crate::msg::Msg;

/// Longest request, bytes.
const MAX_REQUEST: u64 = 64 << 10;
/// Clients served at a time.
const MAX_CLIENTS: usize = 64;
/// A client that sends nothing for so long is disconnected.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the core may take. Booting a VM is the longest of it.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Listens at `path` (removing what a former keeper left there) and serves each client from a thread of its own.
pub fn serve(path: &Path, journal: Journal, core: Sender<Msg>) -> Result<(), KeeperError> {
    let failed = |source| KeeperError::File { what: "cannot listen at", path: path.to_owned(), source };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let clients = Arc::new(AtomicUsize::new(0));
    let accept = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // Out of descriptors, most likely: clients that leave will free some.
                thread::sleep(Duration::from_millis(100));
                continue;
            };
            if clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
                clients.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (journal, core, count) = (journal.clone(), core.clone(), Arc::clone(&clients));
            let served = thread::Builder::new().name("control".into()).spawn(move || {
                let _ = client(stream, &journal, &core);
                count.fetch_sub(1, Ordering::Relaxed);
            });
            if served.is_err() {
                clients.fetch_sub(1, Ordering::Relaxed);
            }
        }
    };
    thread::Builder::new().name("control".into()).spawn(accept).map(drop).map_err(KeeperError::Thread)
}

fn client(stream: UnixStream, journal: &Journal, core: &Sender<Msg>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut out = stream.try_clone()?;
    let mut input = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        input.by_ref().take(MAX_REQUEST).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        let response = match serde_json::from_slice(&line) {
            Ok(request) => answer(request, journal, core),
            Err(error) => refuse(format!("not a request: {error}")),
        };
        let mut text = serde_json::to_vec(&response)?;
        text.push(b'\n');
        out.write_all(&text)?;
    }
}

fn refuse(message: String) -> Response {
    Response::Error { message, help: None, try_host: None }
}

fn answer(request: Request, journal: &Journal, core: &Sender<Msg>) -> Response {
    match request {
        Request::Events { after, wait_ms } => {
            Response::Events { events: journal.events(after, Duration::from_millis(wait_ms)) }
        }
        Request::Checkpoints { after } => Response::Checkpoints { checkpoints: journal.checkpoints(after) },
        request => {
            let (reply, answer) = channel();
            if core.send(Msg::Request { request, reply }).is_err() {
                return refuse("the keeper is ending".into());
            }
            answer.recv_timeout(ANSWER_LIMIT).unwrap_or_else(|_| refuse("the keeper did not answer".into()))
        }
    }
}
