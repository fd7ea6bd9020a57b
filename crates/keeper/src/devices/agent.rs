//! Asking the guest's agent (QEMU's `qemu-ga`) over its channel, which passes through the keeper.
//!
//! What comes back is the guest's word: it is bounded in length, depth and time, and may be anything. While the VM is protected an
//! answer leaves with its epoch, as any output.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Longest answer, bytes: a guest with hundreds of file systems has less.
const MAX_ANSWER: usize = 1 << 20;
/// Longest text of a reason that the guest gives, characters.
const MAX_REASON: usize = 200;
/// Before the answer to the question for synchronisation (QEMU, qapi/qga, `guest-sync-delimited`).
const SENTINEL: u8 = 0xff;

/// Why the agent did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// There is no agent, or it does not listen.
    #[error("no agent answers in the guest within {} s", .0.as_secs())]
    Silent(Duration),
    /// The channel was closed: another client has it, or the VM has gone.
    #[error("the agent's channel was closed: another client may be using it, or the VM has gone to another host")]
    Closed,
    /// What it said is too long or makes no sense.
    #[error("the agent's answer {0}")]
    Garbled(&'static str),
    /// The agent does not do that.
    #[error("the agent refuses: {0}")]
    Refused(String),
    #[error("the agent's channel: {0}")]
    Io(String),
}

/// A conversation with a guest's agent.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    limit: Duration,
    deadline: Instant,
    /// Read and not yet looked at.
    rest: Vec<u8>,
}

#[derive(Deserialize)]
struct Answer<T> {
    #[serde(rename = "return")]
    value: Option<T>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    desc: String,
}

impl Agent {
    /// Connects, and waits until the agent answers; all that is asked has to be answered within `limit` together.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn connect(socket: &Path, limit: Duration) -> Result<Self, AgentError> {
        let stream = UnixStream::connect(socket).map_err(|e| AgentError::Io(format!("{}: {e}", socket.display())))?;
        let mut agent = Self { stream, limit, deadline: Instant::now() + limit, rest: Vec::new() };
        agent.sync(limit)?;
        Ok(agent)
    }

    /// Waits until the agent answers again; all that is asked from here on has to be answered within `limit` together. Answers to what
    /// was asked before are passed over.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub fn sync(&mut self, limit: Duration) -> Result<(), AgentError> {
        self.give(limit);
        // What an earlier client has left half-said ends here, and its answers are told from ours.
        let id = fresh_id();
        self.send(&[SENTINEL])?;
        self.send(format!("{{\"execute\":\"guest-sync-delimited\",\"arguments\":{{\"id\":{id}}}}}\n").as_bytes())?;
        loop {
            while self.byte()? != SENTINEL {}
            let line = self.line()?;
            if serde_json::from_slice::<Answer<u64>>(&line).is_ok_and(|a| a.value == Some(id)) {
                return Ok(());
            }
        }
    }

    /// All that is asked from here on has to be answered within `limit` together.
    pub fn give(&mut self, limit: Duration) {
        (self.limit, self.deadline) = (limit, Instant::now() + limit);
    }

    /// Asks for something.
    ///
    /// # Errors
    /// See [`AgentError`]; after `Refused` it can be asked on.
    pub fn ask<T: DeserializeOwned>(&mut self, command: &str) -> Result<T, AgentError> {
        self.ask_with(command, "")
    }

    fn ask_with<T: DeserializeOwned>(&mut self, command: &str, arguments: &str) -> Result<T, AgentError> {
        self.send(format!("{{\"execute\":\"{command}\"{arguments}}}\n").as_bytes())?;
        let line = self.line()?;
        let answer: Answer<T> = serde_json::from_slice(&line).map_err(|_| AgentError::Garbled("makes no sense"))?;
        match answer {
            Answer { value: Some(value), .. } => Ok(value),
            Answer { error: Some(refusal), .. } => Err(AgentError::Refused(plain(&refusal.desc, MAX_REASON))),
            _ => Err(AgentError::Garbled("says nothing")),
        }
    }

    /// Has the guest switch itself off. An agent that does so says nothing (QEMU, qapi/qga, `guest-shutdown`), one that cannot says why:
    /// if nothing has come `within` this time, or the channel is closed, the guest is on its way.
    ///
    /// # Errors
    /// `Refused`, if it cannot; see [`AgentError`].
    pub fn shut_down(&mut self, within: Duration) -> Result<(), AgentError> {
        self.give(within);
        match self.ask_with::<serde_json::Value>("guest-shutdown", ",\"arguments\":{\"mode\":\"powerdown\"}") {
            // Some agents answer with an empty object all the same.
            Ok(_) | Err(AgentError::Silent(_) | AgentError::Closed) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn left(&self) -> Result<Duration, AgentError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(AgentError::Silent(self.limit)) } else { Ok(left) }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        let left = self.left()?;
        self.stream.set_write_timeout(Some(left)).map_err(|e| AgentError::Io(e.to_string()))?;
        self.stream.write_all(bytes).map_err(|e| self.failed(&e))
    }

    fn failed(&self, error: &std::io::Error) -> AgentError {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, WouldBlock};
        match error.kind() {
            WouldBlock | TimedOut => AgentError::Silent(self.limit),
            BrokenPipe | ConnectionReset => AgentError::Closed,
            _ => AgentError::Io(error.to_string()),
        }
    }

    fn fill(&mut self) -> Result<(), AgentError> {
        let left = self.left()?;
        self.stream.set_read_timeout(Some(left)).map_err(|e| AgentError::Io(e.to_string()))?;
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(AgentError::Closed),
            Ok(count) => {
                self.rest.extend_from_slice(&buffer[..count]);
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn byte(&mut self) -> Result<u8, AgentError> {
        while self.rest.is_empty() {
            self.fill()?;
        }
        Ok(self.rest.remove(0))
    }

    /// What comes until the end of a line.
    fn line(&mut self) -> Result<Vec<u8>, AgentError> {
        let mut looked = 0;
        loop {
            if let Some(end) = self.rest[looked..].iter().position(|byte| *byte == b'\n') {
                let line = self.rest.drain(..=looked + end).collect();
                return Ok(line);
            }
            looked = self.rest.len();
            if looked > MAX_ANSWER {
                return Err(AgentError::Garbled("is longer than 1 MiB"));
            }
            self.fill()?;
        }
    }
}

/// A number that no other conversation has used lately. (The agent knows numbers up to 2^63.)
fn fresh_id() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let count = LAST.fetch_add(1, Ordering::Relaxed) & ((1 << 30) - 1);
    count << 32 | u64::from(std::process::id())
}

/// A guest's text, for a terminal: at most `most` characters, none of which moves the cursor.
pub fn plain(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::thread::{self, JoinHandle};

    use super::*;

    /// What a hostile guest says to each thing that it is sent.
    fn guest(dir: &Path, says: fn(usize, &[u8], &mut UnixStream)) -> (PathBuf, JoinHandle<()>) {
        let path = dir.join("agent.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut turn, mut said, mut buffer) = (0, Vec::new(), [0; 4096]);
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                said.extend_from_slice(&buffer[..count]);
                while let Some(end) = said.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = said.drain(..=end).collect();
                    says(turn, &line, &mut stream);
                    turn += 1;
                }
            }
        });
        (path, thread)
    }

    fn sync(line: &[u8], stream: &mut UnixStream) {
        let text = String::from_utf8_lossy(line);
        let id: String = text.rsplit("\"id\":").next().unwrap().chars().take_while(char::is_ascii_digit).collect();
        // What was left of an earlier conversation comes first.
        let _ = stream.write_all(b"{\"return\":1}\n\xff{\"return\":7}\n\xff");
        let _ = stream.write_all(format!("{{\"return\":{id}}}\n").as_bytes());
    }

    #[test]
    fn what_a_guest_says_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let limit = Duration::from_secs(20);
        type Says = fn(usize, &[u8], &mut UnixStream);
        let cases: [(Says, AgentError); 5] = [
            (|_, _, s| while s.write_all(&[b'['; 4096]).is_ok() {}, AgentError::Garbled("is longer than 1 MiB")),
            (|_, _, s| drop(s.write_all(b"nonsense\n")), AgentError::Garbled("makes no sense")),
            (|_, _, s| drop(s.write_all(b"{}\n")), AgentError::Garbled("says nothing")),
            (
                |_, _, s| drop(s.write_all(b"{\"error\":{\"class\":\"x\",\"desc\":\"no\\u001b[2J\"}}\n")),
                AgentError::Refused("no?[2J".into()),
            ),
            (|_, _, s| drop(s.shutdown(std::net::Shutdown::Both)), AgentError::Closed),
        ];
        for (says, wanted) in cases {
            static SAYS: std::sync::Mutex<Option<Says>> = std::sync::Mutex::new(None);
            *SAYS.lock().unwrap() = Some(says);
            let (path, thread) = guest(dir.path(), |turn, line, stream| match turn {
                0 => sync(line, stream),
                _ => SAYS.lock().unwrap().unwrap()(turn, line, stream),
            });
            let mut agent = Agent::connect(&path, limit).unwrap();
            assert_eq!(agent.ask::<u64>("guest-info").unwrap_err(), wanted);
            drop(agent);
            thread.join().unwrap();
        }
    }

    /// Who switches itself off says nothing, or is gone at once; who cannot says why.
    #[test]
    fn an_agent_that_cannot_shut_the_guest_down_says_so_and_one_that_does_says_nothing() {
        type Says = fn(usize, &[u8], &mut UnixStream);
        let cases: [(Says, Result<(), AgentError>); 4] = [
            (|_, _, _| (), Ok(())),
            (|_, _, s| drop(s.shutdown(std::net::Shutdown::Both)), Ok(())),
            (|_, _, s| drop(s.write_all(b"{\"return\":{}}\n")), Ok(())),
            (
                |_, line, s| {
                    // Of what was asked, one that cannot says this.
                    let asked: serde_json::Value = serde_json::from_slice(line).unwrap();
                    assert_eq!(asked["execute"], "guest-shutdown");
                    assert_eq!(asked["arguments"]["mode"], "powerdown");
                    let _ = s.write_all(b"{\"error\":{\"desc\":\"child process has failed to shutdown\"}}\n");
                },
                Err(AgentError::Refused("child process has failed to shutdown".into())),
            ),
        ];
        for (says, wanted) in cases {
            static SAYS: std::sync::Mutex<Option<Says>> = std::sync::Mutex::new(None);
            *SAYS.lock().unwrap() = Some(says);
            let dir = tempfile::tempdir().unwrap();
            let (path, thread) = guest(dir.path(), |turn, line, stream| match turn {
                0 => sync(line, stream),
                _ => SAYS.lock().unwrap().unwrap()(turn, line, stream),
            });
            let mut agent = Agent::connect(&path, Duration::from_secs(20)).unwrap();
            let refuses = wanted.is_err();
            let patience = if refuses { Duration::from_secs(20) } else { Duration::from_millis(50) };
            assert_eq!(agent.shut_down(patience), wanted);
            drop(agent);
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_guest_without_an_agent_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let limit = Duration::from_millis(50);
        let (path, thread) = guest(dir.path(), |_, _, _| ());
        assert_eq!(Agent::connect(&path, limit).unwrap_err(), AgentError::Silent(limit));
        thread.join().unwrap();
        assert!(matches!(Agent::connect(&dir.path().join("none"), limit), Err(AgentError::Io(_))));
    }
}
