//! `ninefold vm console`: the guest's serial console, also across a failover.
//!
//! ```text
//!            ┌── found ──► Attached ── socket closes ──┐
//!  Searching ┤               │ Ctrl-], or the input    │
//!     ▲      └── too long    │ ended and all is quiet  │
//!     │          (error)     ▼                         │
//!     │                    Left                        │
//!     └────────────────────────────────────────────────┘
//! ```
//!
//! A keeper that takes over tells a new client what the console said before, which the one who followed the VM has read
//! already; [`unseen`] finds where the new begins.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use ninefold_shell::ShellError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::keepers::{Keepers, Where};
use crate::error::CliError;

/// Ctrl-].
const ESCAPE: u8 = 0x1d;
/// How long a VM may be without a primary before the console gives up.
const SEARCH: Duration = Duration::from_secs(60);
/// Between two attempts to find it.
const RETRY: Duration = Duration::from_millis(50);
/// A replay of what was said before has ended when nothing came for so long.
const REPLAY: Duration = Duration::from_millis(150);
/// As much as a keeper remembers (64 KiB), and is remembered here.
const MEMORY: usize = 64 << 10;
/// A signal is noticed after this long at the latest.
const LOOK: Duration = Duration::from_millis(500);

/// Attach to the guest's serial console
///
/// Ctrl-] leaves it. It follows the VM to another host. When the input is no terminal it is copied as it is, and the
/// console is left once the input has ended and the guest has been quiet for a while.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ninefold vm console\n  echo uptime | ninefold vm console --linger 1")]
pub struct ConsoleArgs {
    #[command(flatten)]
    at: Where,
    /// How long to go on listening to a quiet guest when the input, which is no terminal, has ended
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    linger: u64,
}

pub fn run(args: &ConsoleArgs) -> Result<(), CliError> {
    let keepers = args.at.keepers()?;
    // A first look without patience: a VM that does not run is an error, not something to wait for.
    keepers.primary()?;
    let stdin = io::stdin();
    let terminal = stdin.is_terminal() && io::stdout().is_terminal();
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&ended)).map_err(CliError::io("wait for signals"))?;
    }
    // Unbuffered, so that poll tells the truth.
    let input = stdin.as_fd().try_clone_to_owned().map_err(CliError::io("duplicate the standard input"))?;
    let raw = if terminal { Some(Raw::enter()?) } else { None };
    let mut console = Console {
        keepers,
        terminal,
        linger: Duration::from_secs(args.linger),
        input: Some(File::from(input)),
        pending: Vec::new(),
        said: Vec::new(),
        leave: false,
        ended,
    };
    let done = console.run();
    drop(raw);
    if terminal {
        eprintln!();
    }
    done
}

struct Console {
    keepers: Keepers,
    terminal: bool,
    linger: Duration,
    /// `None` when it has ended.
    input: Option<File>,
    /// Read from the input, not yet written to the guest.
    pending: Vec<u8>,
    /// The end of what was printed.
    said: Vec<u8>,
    leave: bool,
    /// A signal has come.
    ended: Arc<AtomicBool>,
}

impl Console {
    fn run(&mut self) -> Result<(), CliError> {
        let mut first = true;
        while let Some((host, stream)) = self.search()? {
            match first {
                true if self.terminal => self.note(&format!("the VM is on host {host}; Ctrl-] leaves")),
                true => {}
                false => self.note(&format!("the VM is on host {host} now")),
            }
            if !self.attached(stream, !first)? {
                return Ok(());
            }
            // A console that is mute closes at once: that is no news.
            if first || !self.said.is_empty() {
                self.note(&format!("host {host} has closed the console; looking for the VM"));
            }
            first = false;
        }
        Ok(())
    }

    fn leaving(&self) -> bool {
        self.leave || self.ended.load(Ordering::Relaxed)
    }

    /// Finds the VM and connects; `None` when the user has left.
    fn search(&mut self) -> Result<Option<(String, UnixStream)>, CliError> {
        let deadline = Instant::now() + SEARCH;
        while !self.leaving() {
            let error = match self.keepers.primary() {
                Ok((keeper, _)) => match UnixStream::connect(keeper.console()) {
                    Ok(stream) => return Ok(Some((keeper.host, stream))),
                    Err(error) => CliError::io(format!("connect to the console at {}", keeper.host))(error),
                },
                Err(error) if self.keepers.is_elsewhere(&error) => return Err(error),
                Err(error) => error,
            };
            if Instant::now() > deadline {
                return Err(error);
            }
            // Ctrl-] works meanwhile; what else is typed waits for the VM.
            match &self.input {
                Some(input) if self.terminal => {
                    let mut fds = [PollFd::new(input, PollFlags::IN)];
                    if wait(&mut fds, RETRY)? > 0 {
                        self.read_input()?;
                    }
                }
                _ => std::thread::sleep(RETRY),
            }
        }
        Ok(None)
    }

    /// Copies both ways. `false` when the user has left or the input has ended; `true` when the VM has gone.
    fn attached(&mut self, mut stream: UnixStream, again: bool) -> Result<bool, CliError> {
        stream.set_nonblocking(true).map_err(CliError::io("set up the console's socket"))?;
        let mut replay = again.then(Vec::new);
        let mut quiet_since = Instant::now();
        let mut buffer = [0; 4096];
        loop {
            if self.leaving() {
                return Ok(false);
            }
            if self.input.is_none() && self.pending.is_empty() && quiet_since.elapsed() >= self.linger {
                return Ok(false);
            }
            let mut socket = PollFlags::IN;
            socket.set(PollFlags::OUT, !self.pending.is_empty());
            let mut fds = vec![PollFd::new(&stream, socket)];
            // Input is read only when the former is written, so it does not pile up here.
            if let Some(input) = self.input.as_ref().filter(|_| self.pending.is_empty()) {
                fds.push(PollFd::new(input, PollFlags::IN));
            }
            let patience = match (&replay, &self.input) {
                (Some(_), _) => REPLAY,
                (None, None) => self.linger.saturating_sub(quiet_since.elapsed()).min(LOOK),
                (None, Some(_)) => LOOK,
            };
            let ready = wait(&mut fds, patience)?;
            let from_guest = fds[0].revents();
            let from_user = fds.get(1).is_some_and(|f| !f.revents().is_empty());
            drop(fds);
            if replay.as_ref().is_some_and(|r| ready == 0 || r.len() >= MEMORY)
                && let Some(replayed) = replay.take()
            {
                let new = unseen(&self.said, &replayed).to_vec();
                self.print(&new)?;
            }
            if from_guest.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                match stream.read(&mut buffer) {
                    Ok(0) => return self.gone(replay),
                    Ok(n) => {
                        quiet_since = Instant::now();
                        match &mut replay {
                            Some(replay) => replay.extend(&buffer[..n]),
                            None => self.print(&buffer[..n])?,
                        }
                    }
                    Err(e) if temporary(&e) => {}
                    Err(_) => return self.gone(replay),
                }
            }
            if from_user {
                self.read_input()?;
                quiet_since = Instant::now();
            }
            if !self.pending.is_empty() {
                match stream.write(&self.pending) {
                    Ok(n) => drop(self.pending.drain(..n)),
                    Err(e) if temporary(&e) => {}
                    Err(_) => return self.gone(replay),
                }
            }
        }
    }

    /// The keeper has closed the console.
    fn gone(&mut self, replay: Option<Vec<u8>>) -> Result<bool, CliError> {
        if let Some(replayed) = replay {
            let new = unseen(&self.said, &replayed).to_vec();
            self.print(&new)?;
        }
        Ok(true)
    }

    fn read_input(&mut self) -> Result<(), CliError> {
        let Some(input) = &mut self.input else { return Ok(()) };
        let mut buffer = [0; 4096];
        match input.read(&mut buffer) {
            Ok(0) => self.input = None,
            Ok(n) => {
                let typed = &buffer[..n];
                let escape = typed.iter().position(|b| self.terminal && *b == ESCAPE);
                self.leave |= escape.is_some();
                self.pending.extend(&typed[..escape.unwrap_or(n)]);
            }
            Err(e) if temporary(&e) => {}
            Err(e) => return Err(CliError::io("read the standard input")(e)),
        }
        Ok(())
    }

    fn print(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        let mut out = io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Err(ShellError::OutputClosed.into()),
            Err(e) => return Err(CliError::io("write to the standard output")(e)),
        }
        self.said.extend(bytes);
        let old = self.said.len().saturating_sub(MEMORY);
        self.said.drain(..old);
        Ok(())
    }

    /// A status line, beside the guest's output.
    fn note(&self, text: &str) {
        let edge = if self.terminal { "\r\n" } else { "\n" };
        let before = if self.terminal { edge } else { "" };
        eprint!("{before}[ninefold: {text}]{edge}");
    }
}

/// What of a replay comes after what was said. All of it when the two do not fit together.
fn unseen<'a>(said: &[u8], replayed: &'a [u8]) -> &'a [u8] {
    // Long enough to be found in one place only, most of the time; the latest place wins, because a replay that ends
    // with what was said has nothing new.
    let tail = &said[said.len().saturating_sub(512)..];
    if tail.is_empty() {
        return replayed;
    }
    match replayed.windows(tail.len()).rposition(|w| w == tail) {
        Some(at) => &replayed[at + tail.len()..],
        None => replayed,
    }
}

fn temporary(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn wait(fds: &mut [PollFd<'_>], patience: Duration) -> Result<usize, CliError> {
    let patience = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: i64::from(patience.subsec_nanos()) };
    match poll(fds, Some(&patience)) {
        Ok(ready) => Ok(ready),
        Err(rustix::io::Errno::INTR) => Ok(0),
        Err(e) => Err(CliError::io("wait for the console")(e)),
    }
}

/// The terminal in raw mode (termios(3)), until this is dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    fn enter() -> Result<Self, CliError> {
        let failed = || CliError::io("set the terminal to raw mode");
        let before = tcgetattr(io::stdin()).map_err(failed())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw).map_err(failed())?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_shows_only_what_is_new() {
        assert_eq!(unseen(b"one\ntwo\n", b"zero\none\ntwo\nthree\n"), b"three\n");
        assert_eq!(unseen(b"one\ntwo\n", b"one\ntwo\n"), b"");
        assert_eq!(unseen(b"", b"one\n"), b"one\n");
        assert_eq!(unseen(b"something else", b"one\n"), b"one\n");
        let long = b"x".repeat(2000);
        assert_eq!(unseen(&long, &long), b"");
    }
}
