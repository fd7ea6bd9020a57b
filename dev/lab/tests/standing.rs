//! A guest that is suspended or paused is so wherever it goes: to a host that takes it over, through a switchover, a snapshot, a
//! recovery from a log. And one that is asked to shut down does so, or is dealt with as its owner wants.
//!
//! The guest is a boot sector that obeys on its console. Real hosts, keepers and QEMUs; needs root.

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use ninefold_control::{FreezeChoice, Request};
use ninefold_keeper::config::KeeperConfig;
use ninefold_lab::{EventWatch, Lab, LabConfig, VmOptions};
use ninefold_model::event::{Event, EventKind};
use ninefold_model::spec::{Boot, NonVolatile, Protection};
use ninefold_model::status::{ProtectionState, Role};
use ninefold_testkit::{programs, sleeper};
use support::{deadline, lab_name, wait_until};

/// A VM on host a. The lab goes last.
struct Guest {
    events: EventWatch,
    mark: usize,
    typing: Option<UnixStream>,
    lab: Lab,
}

impl Guest {
    fn start(protection: Protection, non_volatile: Option<NonVolatile>) -> Self {
        programs::build(programs::OF_A_LAB);
        let lab = Lab::up(&LabConfig::new(&lab_name()).unwrap()).unwrap();
        let mut options = VmOptions::new("vm".parse().unwrap());
        options.memory_mib = 32;
        // A machine that is busy with builds shall not look like one that has died.
        options.timing.failure_timeout_ms = 500;
        options.protection = protection;
        options.non_volatile = non_volatile;
        options.boot = Some(Boot::BootSector { image: sleeper::image(&lab.dir()) });
        lab.configure_vm(&options).unwrap();
        lab.start_witness().unwrap();
        for host in ["a", "b"] {
            lab.start_keeper(host).unwrap();
        }
        let events = EventWatch::start(&lab);
        let mut guest = Self { events, mark: 0, typing: None, lab };
        guest.ask("a", &Request::Start { force: false });
        if protection == Protection::FaultTolerant {
            guest.protected("a");
        }
        guest.hears("a", "up\n");
        guest
    }

    fn ask(&self, host: &str, request: &Request) {
        self.lab.ask(host, request).unwrap();
    }

    /// Why the request is refused.
    fn refused(&self, host: &str, request: &Request) -> String {
        self.lab.ask(host, request).unwrap_err().to_string()
    }

    /// Waits for the next event of this host that passes; later ones are looked for behind it.
    fn expect(&mut self, host: &str, what: &str, wanted: impl Fn(&EventKind) -> bool) -> Event {
        let found = self.events.wait_for(self.mark, deadline(), |e| e.host.as_str() == host && wanted(&e.kind));
        let found = found.unwrap_or_else(|| panic!("no {what} on {host}"));
        self.mark = self.events.all().iter().position(|e| *e == found).expect("it was among them") + 1;
        found
    }

    fn happens(&mut self, host: &str, kind: &EventKind) {
        self.expect(host, &format!("{kind:?}"), |k| k == kind);
    }

    fn protected(&mut self, on: &str) {
        self.expect(on, "protection", |kind| matches!(kind, EventKind::Protected { .. }));
    }

    fn took_over(&mut self, on: &str) {
        self.expect(on, "take-over", |kind| matches!(kind, EventKind::TookOver { .. }));
    }

    fn run_state(&self, host: &str) -> String {
        self.lab.keeper(host).unwrap().status().unwrap().machine.expect("it has one").run_state
    }

    /// Waits until the VM on this host is protected.
    fn is_protected(&self, host: &str) {
        let keeper = self.lab.keeper(host).unwrap();
        wait_until("protection", || keeper.status().unwrap().protection == Some(ProtectionState::Protected));
    }

    /// The console; what it said before comes first.
    fn console(&self, host: &str) -> UnixStream {
        UnixStream::connect(KeeperConfig::console_socket(&self.lab.vm_dir(host).unwrap())).unwrap()
    }

    /// Types on the console, and stays connected: what a client that has left typed is lost.
    fn say(&mut self, host: &str, text: &str) {
        let mut console = self.console(host);
        console.write_all(text.as_bytes()).unwrap();
        self.typing = Some(console);
    }

    /// Waits until the console has said this.
    fn hears(&self, host: &str, text: &str) {
        let mut console = self.console(host);
        console.set_read_timeout(Some(support::LIMIT)).unwrap();
        let mut heard = Vec::new();
        let mut bytes = [0; 1024];
        while !heard.windows(text.len()).any(|w| w == text.as_bytes()) {
            match console.read(&mut bytes) {
                Ok(0) => panic!("the console of {host} was closed: {:?}", String::from_utf8_lossy(&heard)),
                Ok(n) => heard.extend(&bytes[..n]),
                Err(e) => panic!("{text}: {e}: {:?}", String::from_utf8_lossy(&heard)),
            }
        }
    }

    /// Shows that the guest runs on this host: it suspends itself when it is told so.
    fn obeys(&mut self, host: &str) {
        self.say(host, "s");
        self.happens(host, &EventKind::Suspended);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for event in self.events.all() {
                eprintln!("  {:>14} {}: {:?}", event.monotonic_us, event.host, event.kind);
            }
            eprintln!("{}", self.lab.logs_for_error());
        }
    }
}

#[test]
fn a_suspended_guest_is_taken_over_as_such_and_wakes() {
    let mut guest = Guest::start(Protection::FaultTolerant, None);
    guest.obeys("a");
    assert_eq!(guest.run_state("a"), "suspended");
    guest.lab.kill_qemu("a").unwrap();
    guest.took_over("b");
    guest.happens("b", &EventKind::Suspended);
    assert_eq!(guest.run_state("b"), "suspended");
    // One that sleeps is copied like any other.
    guest.protected("b");
    guest.ask("b", &Request::Wake);
    guest.happens("b", &EventKind::Woke);
    guest.hears("b", "awake\n");
    assert_eq!(guest.run_state("b"), "running");
    // A planned switchover, and its own alarm.
    guest.say("b", "a");
    guest.happens("b", &EventKind::Suspended);
    guest.ask("b", &Request::Switchover);
    guest.took_over("a");
    guest.happens("a", &EventKind::Suspended);
    guest.happens("a", &EventKind::Woke);
    guest.obeys("a");
    assert!(
        guest.refused("a", &Request::Shutdown { within_ms: 1, end: true, asked: false }).contains("guest_suspended")
    );
}

#[test]
fn a_paused_guest_stays_paused_until_its_owner_resumes_it() {
    let mut guest = Guest::start(Protection::FaultTolerant, None);
    guest.ask("a", &Request::Pause);
    guest.happens("a", &EventKind::Paused);
    assert_eq!(guest.run_state("a"), "paused");
    assert!(guest.refused("a", &Request::Wake).contains("guest_paused"));
    // Nothing shows that it is paused but what it does not do.
    guest.say("a", "s");
    guest.lab.kill_qemu("a").unwrap();
    guest.took_over("b");
    guest.happens("b", &EventKind::Paused);
    assert_eq!(guest.run_state("b"), "paused");
    guest.protected("b");
    guest.ask("b", &Request::Switchover);
    guest.took_over("a");
    guest.happens("a", &EventKind::Paused);
    guest.is_protected("a");
    // A snapshot of it, and a start from that.
    let name = "paused".parse().unwrap();
    guest.ask("a", &Request::Snapshot { name, parent: None, freeze: FreezeChoice::Auto });
    guest.expect("a", "snapshot", |kind| matches!(kind, EventKind::SnapshotTaken { .. }));
    assert_eq!(guest.run_state("a"), "paused");
    guest.ask("a", &Request::Resume);
    guest.happens("a", &EventKind::Resumed);
    assert!(guest.refused("a", &Request::Resume).contains("not_paused"));
    guest.obeys("a");
    guest.ask("a", &Request::Stop);
    guest.expect("a", "end of the VM", |kind| matches!(kind, EventKind::Stopped { .. }));
    let keepers = ["a", "b"].map(|host| guest.lab.keeper(host).unwrap());
    wait_until("the VM's end", || keepers.iter().all(|k| k.status().unwrap().role == Role::Standby));
    let name = "paused".parse().unwrap();
    guest.ask("a", &Request::Restore { name, force: false, clone: false });
    guest.expect("a", "restored", |kind| matches!(kind, EventKind::Restored { .. }));
    guest.happens("a", &EventKind::Paused);
    guest.ask("a", &Request::Resume);
    guest.happens("a", &EventKind::Resumed);
    guest.obeys("a");
}

#[test]
fn a_recovery_from_a_log_leaves_the_guest_as_it_was() {
    let mut guest = Guest::start(Protection::None, Some(NonVolatile::default()));
    let lost = |guest: &mut Guest| {
        guest.lab.kill_keeper("a").unwrap();
        guest.lab.start_keeper("a").unwrap();
        guest.expect("a", "recovery", |kind| matches!(kind, EventKind::Recovered { .. }));
    };
    guest.expect("a", "log", |kind| matches!(kind, EventKind::NonVolatile { .. }));
    guest.ask("a", &Request::Pause);
    guest.happens("a", &EventKind::Paused);
    lost(&mut guest);
    guest.happens("a", &EventKind::Paused);
    assert_eq!(guest.run_state("a"), "paused");
    guest.ask("a", &Request::Resume);
    guest.happens("a", &EventKind::Resumed);
    guest.obeys("a");
    lost(&mut guest);
    guest.happens("a", &EventKind::Suspended);
    guest.ask("a", &Request::Wake);
    guest.happens("a", &EventKind::Woke);
    guest.obeys("a");
}

#[test]
fn a_guest_is_shut_down_or_what_its_owner_wants_then() {
    let mut guest = Guest::start(Protection::FaultTolerant, None);
    let keepers = ["a", "b"].map(|host| guest.lab.keeper(host).unwrap());
    let ended = || wait_until("the VM's end", || keepers.iter().all(|k| k.status().unwrap().role == Role::Standby));
    guest.ask("a", &Request::Shutdown { within_ms: 60_000, end: false, asked: false });
    let stopped = |kind: &EventKind| matches!(kind, EventKind::Stopped { .. });
    guest.expect("a", "end of the VM", stopped);
    ended();

    guest.ask("a", &Request::Start { force: false });
    guest.protected("a");
    guest.say("a", "d");
    guest.hears("a", "deaf\n");
    guest.ask("a", &Request::Shutdown { within_ms: 300, end: false, asked: false });
    guest.happens("a", &EventKind::ShutdownIgnored { within_ms: 300, ended: false });
    guest.is_protected("a");
    assert_eq!(guest.run_state("a"), "running");
    guest.ask("a", &Request::Shutdown { within_ms: 300, end: true, asked: false });
    guest.happens("a", &EventKind::ShutdownIgnored { within_ms: 300, ended: true });
    let event = guest.expect("a", "end of the VM", stopped);
    let EventKind::Stopped { reason } = event.kind else { unreachable!("it was looked for") };
    assert!(reason.contains("has not switched itself off within 0.3 s"), "{reason}");
    ended();
    assert!(!guest.events.all().iter().any(|e| matches!(e.kind, EventKind::TookOver { .. })));
}
