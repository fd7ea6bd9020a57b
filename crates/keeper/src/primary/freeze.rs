//! A guest's file systems are frozen around a snapshot's moment, by the guest's agent, and thawed whatever happens.
//!
//! ```text
//!   the snapshot's thread          this thread                                       the guest's agent
//!   Freezer::begin ──────────────► is there one? ──guest-sync─────────────────────►
//!   freeze() ────────────────────► checkpoints say so from here on
//!                                  ────────────────guest-fsfreeze-freeze──────────►
//!            ◄── how many ────────                                                   (the checkpoint)
//!   was_taken(), or dropped ─────► ────────────────guest-fsfreeze-thaw────────────►  again and again, until it is answered
//!                                  checkpoints say so no more
//! ```
//!
//! It thaws by itself when the file systems have been frozen for [`Limits::frozen`]. The guest may lie, or say nothing: all that it says
//! is bounded, and nobody but this thread waits for it while the guest is read.
//!
//! Whoever goes on from a checkpoint that says that the file systems may be frozen (another host, a restore, a log) has them
//! [thawed](thaw_later).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use ninefold_model::health::Freeze;

use crate::devices::agent::{Agent, AgentError};
use crate::health::shared::SharedHealth;

/// Before a channel is tried again that another client has.
const AGAIN: Duration = Duration::from_millis(20);

/// What each step may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until it is clear that there is an agent.
    pub find: Duration,
    /// How long the file systems may be frozen, from the request on.
    pub frozen: Duration,
    /// The answer to one request to thaw them.
    pub answer: Duration,
    /// After one that was not answered well.
    pub pause: Duration,
    /// How many requests.
    pub tries: u32,
}

impl Default for Limits {
    /// A second to find the agent, ten frozen. Half a minute of requests to thaw: a take-over may come in between.
    fn default() -> Self {
        Self {
            find: Duration::from_secs(1),
            frozen: Duration::from_secs(10),
            answer: Duration::from_secs(5),
            pause: Duration::from_secs(1),
            tries: 6,
        }
    }
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The agent was asked nothing, or has refused: nothing is frozen by this.
    Untouched,
    /// The agent says that it has thawed them.
    Thawed,
    /// It has not said so.
    Unsure(String),
}

/// The snapshot's thread's hold on the freezing of a guest. Dropped, the guest is thawed.
#[derive(Debug)]
pub struct Freezer {
    orders: SyncSender<()>,
    said: Receiver<Result<u64, AgentError>>,
    limits: Limits,
    /// When the first request to thaw was about to be sent.
    thawing: Arc<OnceLock<Instant>>,
    /// What it answered.
    answer: Option<Result<u64, AgentError>>,
}

impl Freezer {
    /// Looks for the agent at `socket`, in a thread of its own. `told` is what checkpoints say; `end` hears what became of it.
    ///
    /// # Errors
    /// No more threads.
    pub fn begin(
        socket: PathBuf,
        limits: Limits,
        told: SharedHealth,
        end: impl FnOnce(End) + Send + 'static,
    ) -> io::Result<Self> {
        let ((orders, obeys), (says, said)) = (sync_channel(2), sync_channel(1));
        let thawing = Arc::new(OnceLock::new());
        let its = Arc::clone(&thawing);
        thread::Builder::new()
            .name("freeze".into())
            .spawn(move || end(frozen_and_thawed(&socket, limits, &told, &obeys, &says, &its)))?;
        Ok(Self { orders, said, limits, thawing, answer: None })
    }

    /// Has the file systems frozen; answers how many the agent says that it has frozen. If it says nothing in time they may be, too.
    ///
    /// # Errors
    /// Why they are not, or may not be.
    pub fn freeze(&mut self) -> Result<u64, AgentError> {
        // It has all that time for looking, and may look twice.
        let limit = self.limits.find * 3 + self.limits.frozen;
        let silent = AgentError::Silent(limit);
        let answer = match self.orders.try_send(()) {
            Ok(()) => self.said.recv_timeout(limit).unwrap_or(Err(silent)),
            Err(_) => Err(silent),
        };
        self.answer.insert(answer).clone()
    }

    /// The checkpoint has been taken, and the guest ran again at `resumed`: it is thawed. Answers how the file systems are in it.
    #[must_use]
    pub fn was_taken(self, resumed: Instant) -> Freeze {
        let thawed_before = self.thawing.get().is_some_and(|began| *began <= resumed);
        let no = |thaw, why: String| Freeze { thaw, file_systems: None, why_not: Some(why) };
        match &self.answer {
            None => no(false, "they were not asked to be frozen".into()),
            Some(Err(error @ AgentError::Refused(_))) => no(false, error.to_string()),
            // Whether the request to thaw them had come by then is not known.
            Some(Ok(_)) if thawed_before => {
                let limit = self.limits.frozen.as_secs();
                no(true, format!("the checkpoint was not taken within {limit} s, after which they were thawed"))
            }
            Some(Ok(file_systems)) => Freeze { thaw: true, file_systems: Some(*file_systems), why_not: None },
            // It was asked only if it had answered before.
            Some(Err(error)) => no(self.thawing.get().is_some(), error.to_string()),
        }
    }
}

/// Whether a guest's file systems are frozen at a snapshot's moment.
#[derive(Debug)]
pub enum Freezing {
    /// They are not to be.
    Never,
    /// They cannot be, for this reason.
    Cannot(String),
    /// If its agent does so; `required`: else there is no snapshot.
    By { freezer: Freezer, required: bool },
}

impl Freezing {
    /// Nothing but the checkpoint is missing: has them frozen.
    ///
    /// # Errors
    /// They are not, and have to be.
    pub fn freeze(&mut self) -> Result<(), String> {
        match self {
            Self::By { freezer, required } => match freezer.freeze() {
                Err(error) if *required => Err(not_frozen(&error.to_string())),
                _ => Ok(()),
            },
            Self::Never | Self::Cannot(_) => Ok(()),
        }
    }

    /// See [`Freezer::was_taken`]. None: they were not to be frozen.
    ///
    /// # Errors
    /// They were not, and have to be.
    pub fn was_taken(self, resumed: Instant) -> Result<Option<Freeze>, String> {
        match self {
            Self::Never => Ok(None),
            Self::Cannot(reason) => Ok(Some(Freeze { why_not: Some(reason), ..Freeze::default() })),
            Self::By { freezer, required } => {
                let freeze = freezer.was_taken(resumed);
                match &freeze.why_not {
                    Some(reason) if required => Err(not_frozen(reason)),
                    _ => Ok(Some(freeze)),
                }
            }
        }
    }
}

fn not_frozen(reason: &str) -> String {
    format!("the guest's file systems are not frozen: {reason}")
}

fn frozen_and_thawed(
    socket: &Path,
    limits: Limits,
    told: &SharedHealth,
    orders: &Receiver<()>,
    says: &SyncSender<Result<u64, AgentError>>,
    thawing: &OnceLock<Instant>,
) -> End {
    let found = connect(socket, limits.find);
    if orders.recv().is_err() {
        return End::Untouched;
    }
    // It may have been long since.
    let mut agent = match found.and_then(|agent| reach(Some(agent), socket, limits.find)) {
        Ok(agent) => agent,
        Err(error) => {
            let _ = says.send(Err(error));
            return End::Untouched;
        }
    };
    // Whoever goes on from a checkpoint with what is asked now is to know.
    let before = told.frozen(true);
    let until = Instant::now() + limits.frozen;
    agent.give(limits.frozen);
    let answer = agent.ask::<u64>("guest-fsfreeze-freeze");
    if matches!(answer, Err(AgentError::Refused(_))) {
        told.frozen(before);
        let _ = says.send(answer);
        return End::Untouched;
    }
    let frozen = answer.is_ok();
    if !frozen {
        // Before the other thread hears of it.
        let _ = thawing.set(Instant::now());
    }
    let _ = says.send(answer);
    if frozen {
        let left = until.saturating_duration_since(Instant::now());
        if orders.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the snapshot was not taken in time: the guest's file systems are thawed before it");
        }
        let _ = thawing.set(Instant::now());
    }
    thaw(Some(agent), socket, limits, told)
}

/// An agent that answers now, here or over another connection.
fn reach(agent: Option<Agent>, socket: &Path, limit: Duration) -> Result<Agent, AgentError> {
    match agent {
        Some(mut agent) => match agent.sync(limit) {
            Ok(()) => Ok(agent),
            Err(AgentError::Closed | AgentError::Io(_)) => {
                drop(agent);
                connect(socket, limit)
            }
            Err(error) => Err(error),
        },
        None => connect(socket, limit),
    }
}

/// An agent that answers now. Who has its channel may leave it in a moment.
fn connect(socket: &Path, limit: Duration) -> Result<Agent, AgentError> {
    let until = Instant::now() + limit;
    loop {
        match Agent::connect(socket, until.saturating_duration_since(Instant::now())) {
            Err(AgentError::Closed) if Instant::now() + AGAIN < until => thread::sleep(AGAIN),
            Err(AgentError::Silent(_)) => return Err(AgentError::Silent(limit)),
            reached => return reached,
        }
    }
}

/// Asks for the file systems to be thawed until the agent says that they are.
fn thaw(mut agent: Option<Agent>, socket: &Path, limits: Limits, told: &SharedHealth) -> End {
    let mut reason = String::new();
    for attempt in 0..limits.tries {
        if attempt > 0 {
            thread::sleep(limits.pause);
        }
        let thawed = reach(agent.take(), socket, limits.answer).and_then(|mut found| {
            let thawed = found.ask::<u64>("guest-fsfreeze-thaw");
            agent = Some(found);
            thawed
        });
        match thawed {
            Ok(_) => {
                told.frozen(false);
                return End::Thawed;
            }
            Err(error) => reason = error.to_string(),
        }
    }
    End::Unsure(reason)
}

/// Has the file systems of a guest thawed that goes on here from a checkpoint in which they may be frozen. `end` hears what came of it.
///
/// # Errors
/// No more threads.
pub fn thaw_later(
    socket: PathBuf,
    limits: Limits,
    told: SharedHealth,
    end: impl FnOnce(End) + Send + 'static,
) -> io::Result<()> {
    thread::Builder::new().name("thaw".into()).spawn(move || end(thaw(None, &socket, limits, &told))).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::Mutex;
    use std::sync::mpsc::{Sender, channel};

    use ninefold_model::GuestState;

    use super::*;
    use crate::health::shared::{Passed, heard};

    /// Only so that a failure ends.
    const LONG: Duration = Duration::from_secs(60);

    fn limits() -> Limits {
        let (answer, pause) = (Duration::from_millis(500), Duration::from_millis(1));
        Limits { find: LONG, frozen: LONG, answer, pause, tries: 4 }
    }

    /// What a guest's agent does when it is asked for something, for the so many-th time.
    type Does = Box<dyn FnMut(&str, usize, &mut UnixStream) + Send>;

    /// A guest's agent, and what it was asked.
    struct Guest {
        dir: tempfile::TempDir,
        asked: Receiver<String>,
    }

    impl Guest {
        /// It answers each `guest-sync-delimited`; to the rest it does this.
        fn new(does: Does) -> Self {
            Self::busy(0, does)
        }

        /// The first clients are turned away.
        fn busy(away: usize, does: Does) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(dir.path().join("agent.sock")).unwrap();
            let (says, asked) = channel();
            let does = Mutex::new((does, Vec::<String>::new()));
            // It ends with the test.
            thread::spawn(move || {
                for stream in listener.incoming().skip(away) {
                    Self::serve(stream.unwrap(), &does, &says);
                }
            });
            Self { dir, asked }
        }

        fn serve(mut stream: UnixStream, does: &Mutex<(Does, Vec<String>)>, says: &Sender<String>) {
            let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                said.extend_from_slice(&buffer[..count]);
                while let Some(end) = said.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = said.drain(..=end).skip_while(|b| *b == 0xff).collect();
                    let asked: serde_json::Value = serde_json::from_slice(&line).unwrap();
                    let command = asked["execute"].as_str().unwrap().to_owned();
                    if command == "guest-sync-delimited" {
                        let _ = stream.write_all(b"\xff");
                        say(&mut stream, &format!("{{\"return\":{}}}", asked["arguments"]["id"]));
                        continue;
                    }
                    let mut does = does.lock().unwrap();
                    let times = does.1.iter().filter(|before| **before == command).count();
                    does.1.push(command.clone());
                    let _ = says.send(command.clone());
                    (does.0)(&command, times, &mut stream);
                }
            }
        }

        fn begin(&self, limits: Limits) -> (Freezer, SharedHealth, Receiver<End>) {
            let (told, (tell, end)) = (SharedHealth::default(), channel());
            let socket = self.dir.path().join("agent.sock");
            let freezer = Freezer::begin(socket, limits, told.clone(), move |end| tell.send(end).unwrap()).unwrap();
            (freezer, told, end)
        }

        /// What it has been asked since this was called last, in order.
        fn asked(&self) -> Vec<String> {
            self.asked.try_iter().collect()
        }
    }

    fn say(stream: &mut UnixStream, line: &str) {
        let _ = stream.write_all(format!("{line}\n").as_bytes());
    }

    /// Whether a checkpoint that is taken now says that the guest may be frozen.
    fn says_frozen(told: &SharedHealth) -> bool {
        let mut bytes = Vec::new();
        told.pass(&mut Passed::default(), true, GuestState::default(), None, &mut bytes);
        heard(&bytes).unwrap().freeze.is_some_and(|freeze| freeze.thaw)
    }

    fn end(ends: &Receiver<End>) -> End {
        ends.recv_timeout(LONG).unwrap()
    }

    const FREEZE: &str = "guest-fsfreeze-freeze";
    const THAW: &str = "guest-fsfreeze-thaw";

    #[test]
    fn file_systems_are_frozen_for_the_checkpoint_and_thawed_after_it() {
        let guest = Guest::new(Box::new(|_, _, stream| say(stream, "{\"return\":3}")));
        let (mut freezer, told, ends) = guest.begin(limits());
        assert!(!says_frozen(&told), "nothing was asked yet");
        assert_eq!(freezer.freeze(), Ok(3));
        assert!(says_frozen(&told), "a host that goes on from a checkpoint thaws it");
        assert_eq!(guest.asked(), [FREEZE]);
        let freeze = freezer.was_taken(Instant::now());
        assert_eq!(freeze, Freeze { thaw: true, file_systems: Some(3), why_not: None });
        assert_eq!(end(&ends), End::Thawed);
        assert_eq!(guest.asked(), [THAW]);
        assert!(!says_frozen(&told));
    }

    #[test]
    fn a_snapshot_that_fails_leaves_nothing_frozen() {
        let guest = Guest::new(Box::new(|_, _, stream| say(stream, "{\"return\":1}")));
        let (mut freezer, told, ends) = guest.begin(limits());
        freezer.freeze().unwrap();
        drop(freezer);
        assert_eq!((end(&ends), guest.asked()), (End::Thawed, vec![FREEZE.to_owned(), THAW.to_owned()]));
        assert!(!says_frozen(&told));
        // Before it was frozen there is nothing to thaw.
        let (freezer, _, ends) = guest.begin(limits());
        drop(freezer);
        assert_eq!((end(&ends), guest.asked()), (End::Untouched, vec![]));
    }

    #[test]
    fn a_checkpoint_that_does_not_come_is_not_waited_for_with_frozen_file_systems() {
        let guest = Guest::new(Box::new(|_, _, stream| say(stream, "{\"return\":1}")));
        let frozen = Duration::from_millis(500);
        let (mut freezer, _, ends) = guest.begin(Limits { frozen, ..limits() });
        freezer.freeze().unwrap();
        assert_eq!(end(&ends), End::Thawed);
        let late = freezer.was_taken(Instant::now());
        assert_eq!(late.file_systems, None);
        assert!(late.thaw && late.why_not.unwrap().contains("was not taken within"));
        let (mut freezer, _, ends) = guest.begin(Limits { frozen, ..limits() });
        freezer.freeze().unwrap();
        end(&ends);
        let required = Freezing::By { freezer, required: true };
        assert!(required.was_taken(Instant::now()).unwrap_err().contains("not frozen: the checkpoint was not taken"));
    }

    #[test]
    fn an_agent_that_refuses_has_frozen_nothing() {
        let no = "{\"error\":{\"class\":\"x\",\"desc\":\"disabled\"}}";
        let guest = Guest::new(Box::new(move |_, _, stream| say(stream, no)));
        let (freezer, told, ends) = guest.begin(limits());
        let mut auto = Freezing::By { freezer, required: false };
        assert_eq!(auto.freeze(), Ok(()), "there is a snapshot all the same");
        let freeze = auto.was_taken(Instant::now()).unwrap().unwrap();
        assert_eq!((freeze.thaw, freeze.file_systems), (false, None));
        assert_eq!(freeze.why_not.unwrap(), "the agent refuses: disabled");
        assert_eq!((end(&ends), guest.asked()), (End::Untouched, vec![FREEZE.to_owned()]), "nor is it thawed");
        assert!(!says_frozen(&told));
        let (freezer, _, _) = guest.begin(limits());
        let required = Freezing::By { freezer, required: true }.freeze();
        assert_eq!(required.unwrap_err(), "the guest's file systems are not frozen: the agent refuses: disabled");
    }

    #[test]
    fn an_agent_that_does_not_answer_may_have_frozen_them() {
        type Says = fn(&mut UnixStream);
        let says: [Says; 3] =
            [|_| (), |stream| say(stream, "nonsense"), |stream| stream.shutdown(std::net::Shutdown::Both).unwrap()];
        for says in says {
            let guest = Guest::new(Box::new(move |command, _, stream| match command {
                FREEZE => says(stream),
                _ => say(stream, "{\"return\":0}"),
            }));
            let (mut freezer, told, ends) = guest.begin(Limits { frozen: Duration::from_millis(50), ..limits() });
            freezer.freeze().unwrap_err();
            let freeze = freezer.was_taken(Instant::now());
            assert!(freeze.thaw && freeze.file_systems.is_none() && freeze.why_not.is_some());
            assert_eq!((end(&ends), guest.asked()), (End::Thawed, vec![FREEZE.to_owned(), THAW.to_owned()]));
            assert!(!says_frozen(&told));
        }
    }

    #[test]
    fn a_request_to_thaw_that_is_not_answered_is_made_again() {
        let guest = Guest::new(Box::new(|command, times, stream| match (command, times) {
            (THAW, 0) => {}
            // Somebody else gets the channel, or the VM another host.
            (THAW, 1) => stream.shutdown(std::net::Shutdown::Both).unwrap(),
            _ => say(stream, "{\"return\":2}"),
        }));
        let (mut freezer, told, ends) = guest.begin(limits());
        freezer.freeze().unwrap();
        assert!(freezer.was_taken(Instant::now()).thaw);
        assert_eq!(end(&ends), End::Thawed);
        assert!(guest.asked().starts_with(&[FREEZE, THAW, THAW, THAW].map(str::to_owned)));
        assert!(!says_frozen(&told));
    }

    #[test]
    fn one_that_is_never_answered_is_told() {
        let guest = Guest::new(Box::new(|command, _, stream| {
            if command == FREEZE {
                say(stream, "{\"return\":2}");
            }
        }));
        let (mut freezer, told, ends) = guest.begin(limits());
        freezer.freeze().unwrap();
        assert!(freezer.was_taken(Instant::now()).thaw);
        assert!(matches!(end(&ends), End::Unsure(reason) if reason.contains("no agent answers")));
        assert!(guest.asked().starts_with(&[FREEZE, THAW, THAW].map(str::to_owned)));
        assert!(says_frozen(&told), "whoever goes on with it tries again");
        // As a host does that goes on from such a checkpoint.
        let other = Guest::new(Box::new(|_, _, stream| say(stream, "{\"return\":2}")));
        let (tell, ends) = channel();
        let socket = other.dir.path().join("agent.sock");
        thaw_later(socket, limits(), told.clone(), move |end| tell.send(end).unwrap()).unwrap();
        assert_eq!((end(&ends), other.asked()), (End::Thawed, vec![THAW.to_owned()]));
        assert!(!says_frozen(&told));
    }

    #[test]
    fn who_leaves_the_channel_in_a_moment_is_waited_for_and_nobody_else() {
        let guest = Guest::busy(2, Box::new(|_, _, stream| say(stream, "{\"return\":1}")));
        let (mut freezer, _, ends) = guest.begin(limits());
        assert_eq!(freezer.freeze(), Ok(1));
        drop(freezer);
        assert_eq!(end(&ends), End::Thawed);
        let guest = Guest::busy(usize::MAX, Box::new(|_, _, _| ()));
        let (mut freezer, told, ends) = guest.begin(Limits { find: Duration::from_millis(100), ..limits() });
        assert_eq!(freezer.freeze(), Err(AgentError::Closed));
        assert_eq!((end(&ends), says_frozen(&told)), (End::Untouched, false));
    }

    #[test]
    fn a_guest_without_an_agent_costs_a_moment() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        // Somebody listens, and says nothing: the channel of a guest that has no agent.
        let _listener = UnixListener::bind(&socket).unwrap();
        let (tell, ends) = channel();
        let limits = Limits { find: Duration::from_millis(50), ..limits() };
        let told = SharedHealth::default();
        let mut freezer = Freezer::begin(socket, limits, told.clone(), move |end| tell.send(end).unwrap()).unwrap();
        assert_eq!(freezer.freeze(), Err(AgentError::Silent(limits.find)));
        let freeze = freezer.was_taken(Instant::now());
        assert_eq!((freeze.thaw, freeze.file_systems), (false, None));
        assert_eq!(end(&ends), End::Untouched);
        assert!(!says_frozen(&told));
    }
}
