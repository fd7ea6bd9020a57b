//! One lifecycle test, many actions: a protected VM, things that happen to it, and what must hold after each of them.
//!
//! ```text
//!   Scenario::start ──► act(action) ──► settle ──► act(action) ──► settle ──► … ──► finish
//!                       disturb, await            roles, one primary,               nothing lost,
//!                       the answer, repair        one speaker, writes go on         no connection reset
//! ```
//!
//! Everything is awaited by events of the keepers or by acknowledged writes; the limits are only there so that a failure
//! ends. Needs root and the test guest; builds the programs itself, so that they are never those of yesterday.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod action;
pub mod disks;
pub mod invariant;
pub mod proxy;
pub mod workload;

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

pub use action::Action;
use ninefold_control::Request;
use ninefold_keeper::config::KeeperConfig;
use ninefold_lab::boot::redis;
use ninefold_lab::ledger::await_answer;
use ninefold_lab::ledger::resp::{self, Reply};
use ninefold_lab::netns::io_in_netns;
use ninefold_lab::topology::CLIENT;
use ninefold_lab::{EventWatch, Lab, LabConfig, LabError, LabSecurity, Ledger, LedgerOptions, Observer, VmOptions};
use ninefold_model::event::{Event, EventKind};
use ninefold_model::spec::Protection;
use ninefold_testkit::programs;

/// Longest wait for anything: only so that a failure ends.
pub const LIMIT: Duration = Duration::from_secs(60);

/// How often each case is repeated: NINEFOLD_ROUNDS, or `otherwise`.
pub fn rounds(otherwise: usize) -> usize {
    std::env::var("NINEFOLD_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise).max(1)
}

/// What a scenario begins with.
pub struct Beginning {
    pub vm: VmOptions,
    pub security: LabSecurity,
    /// The keepers reach each other through proxies that can be told to do harm.
    pub proxied: bool,
    /// Each host has a disk that forgets what was not synced when the host loses power.
    pub disks: bool,
    /// Called before any keeper runs: makes what has to be in the hosts' pools.
    pub prepare: Option<Prepare>,
    /// Fault points of the keeper on `a`: see `ninefold_fault`.
    pub faults: String,
}

pub type Prepare = Box<dyn FnOnce(&Lab)>;

impl Default for Beginning {
    fn default() -> Self {
        let mut vm = VmOptions::new("vm".parse().unwrap());
        // Twice the usual patience: a machine that is busy with builds shall not look like one that has died.
        vm.timing.failure_timeout_ms = 500;
        Self {
            vm,
            security: LabSecurity::MutualTls,
            proxied: false,
            disks: false,
            prepare: None,
            faults: String::new(),
        }
    }
}

/// A VM at work, a client that checks its writes, an observer of who speaks for it. Fields go in this order: the lab
/// last.
pub struct Scenario {
    pub ledger: Option<Ledger>,
    pub observer: Observer,
    pub events: EventWatch,
    pub proxies: Vec<proxy::Proxy>,
    /// Who should run the VM, and who should be its backup.
    pub primary: String,
    pub backup: String,
    /// Hosts that were thawed: each may have finished a few frames that were committed before it froze.
    pub thawed: usize,
    pub options: VmOptions,
    name: &'static str,
    pub lab: Lab,
}

impl Scenario {
    /// A protected VM on `a` with its backup on `b`.
    pub fn start(name: &'static str) -> Self {
        Self::with(name, Beginning::default())
    }

    pub fn with(name: &'static str, begin: Beginning) -> Self {
        programs::build(programs::OF_A_LAB);
        let mut config = LabConfig::new(&lab_name()).unwrap();
        config.security = begin.security;
        config.disks = begin.disks;
        let lab = Lab::up(&config).unwrap();
        lab.configure_vm(&begin.vm).unwrap();
        let proxies = if begin.proxied { proxy::between(&lab) } else { Vec::new() };
        if let Some(prepare) = begin.prepare {
            prepare(&lab);
        }
        lab.start_witness().unwrap();
        for (host, faults) in [("a", begin.faults.as_str()), ("b", "")] {
            lab.start_keeper_with_faults(host, faults).unwrap();
        }
        let observer = Observer::start(&lab, begin.vm.mac).unwrap();
        let events = EventWatch::start(&lab);
        let mut scenario = Self {
            ledger: None,
            observer,
            events,
            proxies,
            primary: "a".into(),
            backup: "b".into(),
            thawed: 0,
            options: begin.vm,
            name,
            lab,
        };
        let begun = Instant::now();
        scenario.lab.ask("a", &Request::Start { force: false }).unwrap();
        scenario.await_guest();
        scenario.open_ledger();
        if scenario.options.protection == Protection::FaultTolerant {
            match begin.faults.is_empty() {
                true => drop(scenario.settle(0)),
                // It may die at any moment from then on, before anything else is looked at.
                false => drop(scenario.expect(0, "a", "protected", |k| matches!(k, EventKind::Protected { .. }))),
            }
        }
        eprintln!("{name}: ready after {:.1} s", begun.elapsed().as_secs_f64());
        scenario
    }

    /// Waits until the guest's redis answers the client.
    pub fn await_guest(&self) {
        let netns = self.lab.netns(CLIENT).unwrap();
        assert!(await_answer(&netns, redis(), deadline()).unwrap(), "{}: redis does not answer", self.name);
    }

    /// Waits until a guest that was told to restart has done so: the ledger's keys are gone with its memory.
    pub fn await_restart(&self) {
        wait_until("restart of the guest", || {
            matches!(self.ask_redis(&["EXISTS", "ledger:counter"]), Ok(Reply::Integer(0)))
        });
    }

    /// What the guest's redis answers, over a connection of its own.
    pub fn ask_redis(&self, words: &[&str]) -> Result<Reply, LabError> {
        io_in_netns(&self.lab.netns(CLIENT).unwrap(), "ask redis", || {
            let patience = Duration::from_millis(500);
            let mut stream = TcpStream::connect_timeout(&redis(), patience)?;
            stream.set_read_timeout(Some(patience))?;
            let mut command = Vec::new();
            resp::command(&mut command, words);
            stream.write_all(&command)?;
            resp::read(&mut BufReader::new(&stream)).map_err(std::io::Error::other)
        })
    }

    /// Types a line into the guest's root shell. The connection must last: what a client says that has hung up may be
    /// lost.
    #[must_use]
    pub fn type_line(&self, line: &str) -> UnixStream {
        let socket = KeeperConfig::console_socket(&self.lab.vm_dir(&self.primary).unwrap());
        let mut console = UnixStream::connect(socket).unwrap();
        writeln!(console, "\n{line}").unwrap();
        console
    }

    /// Begins to write and check.
    pub fn open_ledger(&mut self) {
        let netns = self.lab.netns(CLIENT).unwrap();
        self.ledger = Some(Ledger::start(Some(&netns), redis(), &LedgerOptions::default()).unwrap());
    }

    /// The running ledger.
    pub fn ledger(&self) -> &Ledger {
        self.ledger.as_ref().expect("the scenario has a ledger")
    }

    /// Does each action `rounds` times, in turns, with the invariant checked after each.
    pub fn run(&mut self, actions: &[Action], rounds: usize) {
        for _ in 0..rounds {
            for action in actions {
                self.act(*action);
            }
        }
    }

    /// Waits for an event of a host since `mark`.
    pub fn expect(&self, mark: usize, host: &str, what: &str, wanted: impl Fn(&EventKind) -> bool) -> Event {
        let found = self.events.wait_for(mark, deadline(), |e| e.host.as_str() == host && wanted(&e.kind));
        found.unwrap_or_else(|| panic!("{}: no '{what}' of host {host}", self.name))
    }

    /// Waits for a number of further acknowledged writes.
    pub fn expect_writes(&self, count: u64) {
        let ledger = self.ledger();
        assert!(
            ledger.wait_acks(count, deadline()),
            "{}: no {count} further writes ({} acknowledged, {} resets)",
            self.name,
            ledger.acked(),
            ledger.resets()
        );
    }

    /// The VM has moved to its backup.
    pub fn swap_roles(&mut self) {
        std::mem::swap(&mut self.primary, &mut self.backup);
    }

    /// The last check: every acknowledged write is there, and the connection has lived through all of it.
    pub fn finish(self) {
        self.finish_with(|_| ());
    }

    /// The same; then `more`, once nobody writes any more.
    pub fn finish_with(mut self, more: impl FnOnce(&Self)) {
        let report = self.ledger.take().expect("the scenario has a ledger").finish().unwrap();
        eprintln!("{}: {report:?}", self.name);
        assert_eq!((report.lost, report.repeated, report.resets), (0, 0, 0), "{report:?}");
        self.check_speakers();
        more(&self);
        // What is shown of a failure is not needed; the lab goes with its last field.
    }
}

impl Drop for Scenario {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!("---- {}: what happened", self.name);
        for event in self.events.all() {
            eprintln!("  {:>14} {}: {:?}", event.monotonic_us, event.host, event.kind);
        }
        for span in self.observer.report().spans.iter().rev().take(12).rev() {
            eprintln!("  spoke: {span:?}");
        }
        eprintln!("{}", self.lab.logs_for_error());
    }
}

/// A lab's name that nobody else uses: at most 8 characters.
pub fn lab_name() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("m{:x}{:x}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

pub fn deadline() -> Instant {
    Instant::now() + LIMIT
}

/// For what nobody reports: asks again and again.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = deadline();
    while !done() {
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
