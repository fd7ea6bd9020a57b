//! A guest that fails is found out and dealt with, alone and protected; an image on trial is committed or given up.
//!
//! The guest is a boot sector that obeys on its console. Real hosts, keepers and QEMUs; needs root.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use ninefold_control::Request;
use ninefold_keeper::config::KeeperConfig;
use ninefold_lab::{EventWatch, Lab, LabConfig, LabError, VmOptions};
use ninefold_model::event::{Event, EventKind};
use ninefold_model::health::{HealthStatus, HealthySign, Watchdog, WatchdogAction, WatchdogDevice, WatchdogPolicy};
use ninefold_model::spec::{Boot, NonVolatile, Protection};
use ninefold_model::status::{LogState, ProtectionState, Role};
use ninefold_testkit::{programs, watched};
use support::{deadline, lab_name, wait_until};
use watched::Behaviour;

/// A 6300ESB that is acted on so.
fn watchdog(policy: WatchdogPolicy) -> Watchdog {
    Watchdog { device: WatchdogDevice::default(), policy }
}

/// A VM with a watchdog. The lab goes last.
struct Guest {
    events: EventWatch,
    mark: usize,
    typing: Option<UnixStream>,
    lab: Lab,
}

impl Guest {
    /// On host a; protected by b or alone.
    fn start(behaviour: Behaviour, watchdog: Watchdog, protection: Protection) -> Self {
        Self::with(behaviour, watchdog, protection, None)
    }

    fn with(
        behaviour: Behaviour,
        watchdog: Watchdog,
        protection: Protection,
        non_volatile: Option<NonVolatile>,
    ) -> Self {
        programs::build(programs::OF_A_LAB);
        let lab = Lab::up(&LabConfig::new(&lab_name()).unwrap()).unwrap();
        let mut options = VmOptions::new("vm".parse().unwrap());
        options.memory_mib = 32;
        // A machine that is busy with builds shall not look like one that has died.
        options.timing.failure_timeout_ms = 500;
        options.watchdog = Some(watchdog);
        options.protection = protection;
        options.non_volatile = non_volatile;
        options.boot = Some(image_in(&lab, behaviour));
        lab.configure_vm(&options).unwrap();
        lab.start_witness().unwrap();
        for host in ["a", "b"] {
            lab.start_keeper(host).unwrap();
        }
        let events = EventWatch::start(&lab);
        let mut guest = Self { events, mark: 0, typing: None, lab };
        guest.ask("a", &Request::Start { force: false }).unwrap();
        if protection == Protection::FaultTolerant {
            guest.protected("a");
        }
        guest.ups("a", 1);
        guest
    }

    fn alone(watchdog: Watchdog) -> Self {
        Self::start(Behaviour::Works, watchdog, Protection::None)
    }

    fn image(&self, behaviour: Behaviour) -> Boot {
        image_in(&self.lab, behaviour)
    }

    fn ask(&self, host: &str, request: &Request) -> Result<(), LabError> {
        self.lab.ask(host, request)
    }

    /// Waits for the next event that passes; later ones are looked for behind it.
    fn expect(&mut self, what: &str, wanted: impl Fn(&str, &EventKind) -> bool) -> Event {
        let found = self.events.wait_for(self.mark, deadline(), |e| wanted(e.host.as_str(), &e.kind));
        let found = found.unwrap_or_else(|| panic!("no {what}"));
        self.mark = self.events.all().iter().position(|e| *e == found).expect("it was among them") + 1;
        found
    }

    fn fired(&mut self, on: &str, action: WatchdogAction, count: u32) {
        let expected = EventKind::WatchdogFired { action, count };
        self.expect(&format!("{expected:?} on {on}"), |host, kind| host == on && *kind == expected);
    }

    fn protected(&mut self, on: &str) {
        self.expect("protection", |host, kind| host == on && matches!(kind, EventKind::Protected { .. }));
    }

    /// Waits until the VM would survive a loss of power.
    fn logged(&mut self) {
        self.expect("log", |_, kind| matches!(kind, EventKind::NonVolatile { .. }));
    }

    fn took_over(&mut self, on: &str) {
        self.expect("take-over", |host, kind| host == on && matches!(kind, EventKind::TookOver { .. }));
    }

    fn fell_back(&mut self, on: &str) -> String {
        let found = self.expect("fall-back", |host, kind| host == on && matches!(kind, EventKind::FellBack { .. }));
        match found.kind {
            EventKind::FellBack { reason, .. } => reason,
            _ => unreachable!("it was looked for"),
        }
    }

    fn committed(&mut self, on: &str) {
        self.expect("commit", |host, kind| host == on && matches!(kind, EventKind::ImageCommitted { .. }));
    }

    fn happened(&self, wanted: impl Fn(&EventKind) -> bool) -> usize {
        self.events.all().iter().filter(|e| wanted(&e.kind)).count()
    }

    fn health(&self, host: &str) -> HealthStatus {
        self.lab.keeper(host).unwrap().status().unwrap().health.expect("it watches")
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

    /// Waits until the console has said this so often, since the VM or its image on trial was started.
    fn hears(&self, host: &str, text: &str, times: usize) {
        let mut console = self.console(host);
        console.set_read_timeout(Some(support::LIMIT)).unwrap();
        let mut heard = Vec::new();
        let mut bytes = [0; 1024];
        while heard.windows(text.len()).filter(|w| *w == text.as_bytes()).count() < times {
            match console.read(&mut bytes) {
                Ok(0) => panic!("the console of {host} was closed: {:?}", String::from_utf8_lossy(&heard)),
                Ok(n) => heard.extend(&bytes[..n]),
                Err(e) => panic!("{text} x {times}: {e}: {:?}", String::from_utf8_lossy(&heard)),
            }
        }
    }

    /// How often the console has said this, as far as it is kept.
    fn said(&self, host: &str, text: &str) -> usize {
        let mut console = self.console(host);
        console.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut heard = Vec::new();
        // It ends with the timeout: what is kept comes at once.
        let _ = console.read_to_end(&mut heard);
        heard.windows(text.len()).filter(|w| *w == text.as_bytes()).count()
    }

    /// Waits until the guest has started so often.
    fn ups(&self, host: &str, times: usize) {
        self.hears(host, "up\n", times);
    }

    /// Waits until what is so now is at the backup.
    fn committed_epochs(&self, host: &str) {
        let keeper = self.lab.keeper(host).unwrap();
        let now = keeper.status().unwrap().committed;
        wait_until("commit", || keeper.status().unwrap().committed.0 >= now.0 + 3);
    }

    fn trial(&self, host: &str, image: Boot, within: Duration, sign: HealthySign) {
        let within_ms = within.as_millis() as u64;
        self.ask(host, &Request::Trial { image, within_ms, sign }).unwrap();
    }

    /// The VM is stopped and started on this host, by a keeper that was started anew, too.
    fn restart(&mut self, host: &str) {
        self.ask(host, &Request::Stop).unwrap();
        // Heard before the keeper ends: the events that nobody has asked it for until then end with it.
        self.expect("end of the VM", |_, kind| matches!(kind, EventKind::Stopped { .. }));
        let keeper = self.lab.keeper(host).unwrap();
        wait_until("end of the VM", || keeper.status().unwrap().role == Role::Standby);
        self.lab.stop_keeper(host).unwrap();
        self.lab.start_keeper(host).unwrap();
        self.ask(host, &Request::Start { force: false }).unwrap();
        self.expect("boot", |_, kind| matches!(kind, EventKind::Booted { .. }));
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

fn image_in(lab: &Lab, behaviour: Behaviour) -> Boot {
    Boot::BootSector { image: watched::image(&lab.dir(), behaviour) }
}

fn dumps(guest: &Guest, host: &str) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(guest.lab.dumps_dir(host)).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

fn asked() -> HealthySign {
    HealthySign::Asked
}

fn says_healthy() -> HealthySign {
    HealthySign::Console { text: "healthy\n".into() }
}

const LONG: Duration = Duration::from_secs(600);

#[test]
fn a_guest_that_hangs_is_reset() {
    let mut guest = Guest::alone(Watchdog::new(WatchdogAction::Reset));
    guest.say("a", "h");
    guest.fired("a", WatchdogAction::Reset, 1);
    guest.ups("a", 2);
    assert_eq!(guest.health("a").failures, 1);
    // A panic counts as well.
    guest.say("a", "p");
    let expected = EventKind::GuestPanicked { action: WatchdogAction::Reset, count: 2 };
    guest.expect("panic", |_, kind| *kind == expected);
    guest.ups("a", 3);
    // And the owner's button works as ever.
    guest.ask("a", &Request::Reset).unwrap();
    guest.ups("a", 4);
}

#[test]
fn a_guest_that_hangs_is_dumped() {
    let watchdog = watchdog(WatchdogPolicy { keep_dumps: 2, times: 10, ..WatchdogPolicy::new(WatchdogAction::Dump) });
    let mut guest = Guest::alone(watchdog);
    for round in 1..=3 {
        guest.say("a", "h");
        guest.fired("a", WatchdogAction::Dump, round);
        let dumped = guest.expect("dump", |_, kind| matches!(kind, EventKind::Dumped { .. }));
        let EventKind::Dumped { path, bytes, took_ms } = dumped.kind else { unreachable!("it was looked for") };
        eprintln!("a dump of 32 MiB took {took_ms} ms");
        assert_eq!(dumps(&guest, "a").last(), Some(&path));
        assert!(bytes >= 32 << 20 && fs::read(&path).unwrap().starts_with(b"\x7fELF"));
        guest.ups("a", 1 + round as usize);
    }
    assert_eq!(dumps(&guest, "a").len(), 2, "bounded");
    // On request the guest just goes on.
    guest.ask("a", &Request::Dump).unwrap();
    guest.expect("dump", |_, kind| matches!(kind, EventKind::Dumped { .. }));
    guest.say("a", "h");
    guest.fired("a", WatchdogAction::Dump, 4);
    guest.ups("a", 5);
    // A dump that cannot be written does not keep the guest from being reset.
    fs::remove_dir_all(guest.lab.dumps_dir("a")).unwrap();
    fs::write(guest.lab.dumps_dir("a"), "in the way").unwrap();
    guest.say("a", "p");
    guest.expect("word of the dump that is not", |_, kind| matches!(kind, EventKind::DumpFailed { .. }));
    guest.ups("a", 6);
}

#[test]
fn a_guest_that_hangs_is_launched_anew() {
    let mut guest = Guest::alone(Watchdog::new(WatchdogAction::FallBack));
    let pid = |guest: &Guest| guest.lab.keeper("a").unwrap().status().unwrap().machine.map(|m| m.pid);
    let before = pid(&guest);
    guest.say("a", "h");
    let mark = guest.mark;
    guest.ups("a", 2);
    assert_ne!(pid(&guest), before);
    guest.mark = mark;
    guest.fired("a", WatchdogAction::FallBack, 1);
}

#[test]
fn a_guest_that_hangs_is_stopped() {
    let mut guest = Guest::start(Behaviour::Works, Watchdog::new(WatchdogAction::Stop), Protection::FaultTolerant);
    guest.say("a", "h");
    guest.fired("a", WatchdogAction::Stop, 1);
    guest.expect("end", |host, kind| host == "a" && matches!(kind, EventKind::Stopped { .. }));
    wait_until("two standbys", || {
        ["a", "b"].iter().all(|h| guest.lab.keeper(h).unwrap().status().unwrap().role == Role::Standby)
    });
    assert_eq!(guest.happened(|k| matches!(k, EventKind::TookOver { .. })), 0);
}

#[test]
fn a_loop_of_resets_ends() {
    let mut guest = Guest::alone(watchdog(WatchdogPolicy { times: 2, ..WatchdogPolicy::new(WatchdogAction::Reset) }));
    guest.say("a", "H");
    guest.fired("a", WatchdogAction::Reset, 1);
    guest.fired("a", WatchdogAction::Reset, 2);
    guest.fired("a", WatchdogAction::Stop, 3);
    let end = guest.expect("end", |_, kind| matches!(kind, EventKind::Stopped { .. }));
    assert!(matches!(&end.kind, EventKind::Stopped { reason } if reason.contains("3 times")), "{end:?}");
}

#[test]
fn a_protected_guest_is_reset_and_stays_protected() {
    let mut guest = Guest::start(Behaviour::Works, Watchdog::new(WatchdogAction::Reset), Protection::FaultTolerant);
    for round in 1..=2 {
        guest.say("a", "h");
        guest.fired("a", WatchdogAction::Reset, round);
        guest.ups("a", 1 + round as usize);
    }
    guest.committed_epochs("a");
    assert_eq!(guest.happened(|k| matches!(k, EventKind::Unprotected { .. })), 0);
    // The next primary knows of both, watches on, and has nothing to do again.
    guest.lab.kill_host("a").unwrap();
    guest.took_over("b");
    assert_eq!(guest.health("b").failures, 2);
    guest.ups("b", 3);
    guest.say("b", "h");
    guest.fired("b", WatchdogAction::Reset, 3);
    guest.ups("b", 4);
    assert_eq!(guest.happened(|k| matches!(k, EventKind::WatchdogFired { .. })), 3);
    guest.lab.restart_host("a").unwrap();
    guest.protected("b");
}

#[test]
fn a_watchdog_that_runs_out_after_a_failover_fires_there() {
    // Ten seconds, so that the failover comes first on any machine.
    let watchdog = Watchdog { device: WatchdogDevice::Ib700, ..Watchdog::new(WatchdogAction::Dump) };
    let mut guest = Guest::start(Behaviour::Slow, watchdog, Protection::FaultTolerant);
    guest.say("a", "h");
    guest.committed_epochs("a");
    guest.lab.kill_host("a").unwrap();
    guest.took_over("b");
    guest.fired("b", WatchdogAction::Dump, 1);
    guest.expect("dump", |host, kind| host == "b" && matches!(kind, EventKind::Dumped { .. }));
    guest.ups("b", 2);
    assert_eq!(guest.happened(|k| matches!(k, EventKind::WatchdogFired { .. })), 1);
    assert_eq!(dumps(&guest, "b").len(), 1);
}

/// A reset that is asked for during a dump follows it at once: QEMU must not be about to let the guest go on by itself then.
#[test]
fn a_guest_that_runs_is_dumped_and_reset_at_once() {
    let mut guest = Guest::alone(Watchdog::new(WatchdogAction::Reset));
    for round in 0..support::rounds(10) {
        guest.ask("a", &Request::Dump).unwrap();
        guest.ask("a", &Request::Reset).unwrap();
        guest.expect("dump", |_, kind| matches!(kind, EventKind::Dumped { .. }));
        guest.ups("a", 2 + round);
    }
    // One that nobody resets goes on.
    guest.ask("a", &Request::Dump).unwrap();
    guest.expect("dump", |_, kind| matches!(kind, EventKind::Dumped { .. }));
    guest.say("a", "h");
    guest.fired("a", WatchdogAction::Reset, 1);
}

/// The primary dies between the firing and the end of what is done about it. Wherever its last checkpoint stands, the guest
/// is not left hanging: it fires again, or the backup knows that nobody has acted, or it has been reset.
#[test]
fn a_failure_is_not_lost_with_the_primary() {
    let watchdog = watchdog(WatchdogPolicy { times: 100, ..WatchdogPolicy::new(WatchdogAction::Dump) });
    let mut guest = Guest::start(Behaviour::Works, watchdog, Protection::FaultTolerant);
    let (mut primary, mut backup) = ("a", "b");
    for round in 0..support::rounds(3) {
        guest.say(primary, "h");
        guest.expect("firing", |host, kind| host == primary && matches!(kind, EventKind::WatchdogFired { .. }));
        guest.lab.kill_host(primary).unwrap();
        guest.took_over(backup);
        guest.ups(backup, 2 + round);
        let again = guest.happened(|k| matches!(k, EventKind::WatchdogFired { .. }));
        eprintln!("round {round}: {again} firings so far");
        guest.lab.restart_host(primary).unwrap();
        guest.protected(backup);
        (primary, backup) = (backup, primary);
    }
}

#[test]
fn a_protected_guest_that_is_launched_anew_is_protected_again() {
    let mut guest = Guest::start(Behaviour::Works, Watchdog::new(WatchdogAction::FallBack), Protection::FaultTolerant);
    guest.say("a", "h");
    guest.fired("a", WatchdogAction::FallBack, 1);
    let said = guest.expect("word of it", |host, kind| host == "a" && matches!(kind, EventKind::Unprotected { .. }));
    assert!(matches!(&said.kind, EventKind::Unprotected { reason, .. } if reason.contains("watchdog")), "{said:?}");
    guest.protected("a");
    guest.ups("a", 2);
    assert_eq!(guest.happened(|k| matches!(k, EventKind::TookOver { .. })), 0);
}

/// Its log has checkpoints of a guest that is gone: it ends, and another begins. After the loss of its host the VM goes on
/// from that, with the image that was committed meanwhile.
#[test]
fn a_non_volatile_guest_that_is_launched_anew_goes_on_from_its_new_log() {
    let watchdog = Watchdog::new(WatchdogAction::FallBack);
    let logged = Some(NonVolatile::default());
    let mut guest = Guest::with(Behaviour::Works, watchdog, Protection::None, logged);
    guest.logged();
    guest.say("a", "h");
    guest.fired("a", WatchdogAction::FallBack, 1);
    guest.logged();
    guest.ups("a", 2);
    let image = guest.image(Behaviour::SaysHealthy);
    guest.trial("a", image.clone(), LONG, says_healthy());
    guest.committed("a");
    // What is so now is on disk.
    let keeper = guest.lab.keeper("a").unwrap();
    let log = || keeper.status().unwrap().log.expect("it has a log");
    wait_until("log", || log().state == LogState::On);
    let now = log().epoch;
    wait_until("commit", || log().epoch.0 >= now.0 + 3);
    guest.lab.kill_host("a").unwrap();
    guest.lab.restart_host("a").unwrap();
    guest.expect("recovery", |host, kind| host == "a" && matches!(kind, EventKind::Recovered { .. }));
    assert_eq!(guest.health("a").image, image);
    // What its console said before the loss is not kept, but for the last checkpoint's part.
    let before = guest.said("a", "healthy\n");
    guest.ask("a", &Request::Reset).unwrap();
    guest.hears("a", "healthy\n", before + 1);
}

#[test]
fn an_image_that_is_not_healthy_is_given_up() {
    let mut guest = Guest::start(Behaviour::Works, Watchdog::new(WatchdogAction::Stop), Protection::FaultTolerant);
    let committed = guest.health("a").committed;
    let text = guest.lab.dir().join("no-kernel");
    fs::write(&text, "no kernel").unwrap();
    let no_kernel = Boot::Linux { kernel: text, initrd: None, cmdline: String::new() };
    let cases = [
        (guest.image(Behaviour::Dead), Duration::from_secs(2), "not found healthy within 2 s"),
        (guest.image(Behaviour::Hangs), LONG, "watchdog fired"),
        (guest.image(Behaviour::Panics), LONG, "panicked"),
        (no_kernel, LONG, "QEMU"),
    ];
    for (image, within, why) in cases {
        guest.trial("a", image, within, says_healthy());
        guest.expect("unprotected", |_, kind| matches!(kind, EventKind::Unprotected { .. }));
        let reason = guest.fell_back("a");
        assert!(reason.contains(why), "{reason}");
        guest.protected("a");
        guest.ups("a", 1);
        let health = guest.health("a");
        assert_eq!((&health.image, &health.committed, health.trial), (&committed, &committed, None));
    }
    // The owner can end a trial, too; and what cannot be tried is refused before anything is done.
    let refused =
        |image| guest.ask("a", &Request::Trial { image, within_ms: 1000, sign: asked() }).unwrap_err().to_string();
    assert!(refused(Boot::BootSector { image: "/nowhere".into() }).contains("/nowhere"));
    assert!(refused(Boot::BootSector { image: "here".into() }).contains("absolute"));
    assert!(guest.ask("a", &Request::CommitImage).is_err() && guest.ask("a", &Request::FallBack).is_err());
    guest.trial("a", guest.image(Behaviour::Works), LONG, asked());
    guest.protected("a");
    guest.ask("a", &Request::FallBack).unwrap();
    assert_eq!(guest.fell_back("a"), "asked for");
    guest.protected("a");
    assert_eq!(guest.health("a").failures, 0);
}

#[test]
fn an_image_that_is_healthy_is_committed_on_both_hosts() {
    let mut guest = Guest::start(Behaviour::Works, Watchdog::new(WatchdogAction::Reset), Protection::FaultTolerant);
    let image = guest.image(Behaviour::SaysHealthy);
    guest.trial("a", image.clone(), LONG, says_healthy());
    guest.committed("a");
    guest.hears("a", "healthy\n", 1);
    let keeper = guest.lab.keeper("a").unwrap();
    wait_until("protection", || keeper.status().unwrap().protection == Some(ProtectionState::Protected));
    guest.committed_epochs("a");
    let health = guest.health("a");
    assert_eq!((&health.image, &health.committed, health.trial), (&image, &image, None));
    // After a reset, and after all has been started anew.
    guest.ask("a", &Request::Reset).unwrap();
    guest.hears("a", "healthy\n", 2);
    guest.restart("a");
    guest.protected("a");
    guest.hears("a", "healthy\n", 1);
    assert_eq!(guest.health("a").image, image);
    // The other host runs it, resets to it, and boots it.
    guest.lab.kill_host("a").unwrap();
    guest.took_over("b");
    guest.ask("b", &Request::Reset).unwrap();
    guest.hears("b", "healthy\n", 2);
    guest.restart("b");
    guest.hears("b", "healthy\n", 1);
    assert_eq!(guest.health("b").image, image);
}

#[test]
fn a_trial_goes_on_after_a_failover() {
    let mut guest = Guest::start(Behaviour::Works, Watchdog::new(WatchdogAction::Reset), Protection::FaultTolerant);
    let image = guest.image(Behaviour::SaysHealthy);
    let within = Duration::from_secs(30);
    guest.trial("a", image.clone(), within, asked());
    guest.protected("a");
    guest.hears("a", "healthy\n", 1);
    guest.committed_epochs("a");
    let left = |host: &str, guest: &Guest| guest.health(host).trial.expect("it is on trial").left_ms;
    let before = left("a", &guest);
    guest.lab.kill_host("a").unwrap();
    guest.took_over("b");
    // The time that is gone is gone.
    let after = left("b", &guest);
    assert!(after < 30_000 && after <= before + 500, "{before} ms were left, then {after}");
    // And the new primary commits.
    guest.ask("b", &Request::CommitImage).unwrap();
    guest.committed("b");
    assert_eq!(guest.health("b").committed, image);
    // The former one hears of it when it is the backup.
    guest.lab.restart_host("a").unwrap();
    guest.protected("b");
    guest.committed_epochs("b");
    // Or gives it up: this time nobody commits.
    let another = guest.image(Behaviour::Works);
    guest.trial("b", another, Duration::from_secs(8), asked());
    guest.protected("b");
    guest.committed_epochs("b");
    guest.lab.kill_host("b").unwrap();
    guest.took_over("a");
    let reason = guest.fell_back("a");
    assert!(reason.contains("within 8 s"), "{reason}");
    guest.hears("a", "healthy\n", 1);
    assert_eq!(guest.health("a").image, image);
}
