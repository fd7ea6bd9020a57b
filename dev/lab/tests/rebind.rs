//! A backup that was away for a moment is bound again by what changed meanwhile, and holds all of the VM then.

mod support;

use std::thread;
use std::time::{Duration, Instant};

use ninefold_control::Request;
use ninefold_lab::boot::redis;
use ninefold_lab::faults::Cut;
use ninefold_lab::ledger::await_answer;
use ninefold_lab::topology::{CLIENT, Network, WITNESS};
use ninefold_lab::{EventWatch, Lab, LabConfig, Ledger, LedgerOptions};
use ninefold_model::event::{Event, EventKind};
use ninefold_model::spec::{NonVolatile, VolumeSpec};
use ninefold_model::status::{ProtectionState, Role};
use ninefold_testkit::programs;
use support::workload::{memory_is_sound, work};
use support::{LIMIT, wait_until};

/// Longer than a primary waits for its backup.
const CUT: Duration = Duration::from_millis(300);
const HOSTS: [&str; 2] = ["a", "b"];

struct Pair {
    ledger: Option<Ledger>,
    events: EventWatch,
    primary: String,
    lab: Lab,
}

impl Pair {
    fn start(volumes: Vec<VolumeSpec>, mib: u32) -> Self {
        Self::with(volumes, mib, false)
    }

    /// A non-volatile VM's hosts have disks that forget what was not synced.
    fn with(volumes: Vec<VolumeSpec>, mib: u32, non_volatile: bool) -> Self {
        programs::build(programs::OF_A_LAB);
        let mut config = LabConfig::new(&format!("r{}", std::process::id() % 100_000)).unwrap();
        config.disks = non_volatile;
        let lab = Lab::up(&config).unwrap();
        let mut vm = ninefold_lab::VmOptions::new("vm".parse().unwrap());
        vm.volumes = volumes;
        vm.non_volatile = non_volatile.then(NonVolatile::default);
        lab.configure_vm(&vm).unwrap();
        lab.start_witness().unwrap();
        HOSTS.iter().for_each(|host| lab.start_keeper(host).unwrap());
        let events = EventWatch::start(&lab);
        lab.ask("a", &Request::Start { force: false }).unwrap();
        let netns = lab.netns(CLIENT).unwrap();
        assert!(await_answer(&netns, redis(), Instant::now() + LIMIT).unwrap(), "redis does not answer");
        let ledger = Ledger::start(Some(&netns), redis(), &LedgerOptions::default()).unwrap();
        let mut pair = Self { ledger: Some(ledger), events, primary: "a".into(), lab };
        pair.protected();
        work(&pair.lab, &format!("checksum mib={mib}"));
        pair
    }

    fn backup(&self) -> &'static str {
        HOSTS.into_iter().find(|h| *h != self.primary).unwrap()
    }

    /// Waits until the VM is protected, wherever it runs, and answers its client.
    fn protected(&mut self) {
        wait_until("protection", || {
            let statuses = HOSTS.map(|h| (h, self.lab.keeper(h).unwrap().status()));
            let runs = statuses.into_iter().find_map(|(h, s)| Some((h, s.ok().filter(|s| s.role == Role::Primary)?)));
            let Some((host, status)) = runs else { return false };
            self.primary = host.to_owned();
            status.protection == Some(ProtectionState::Protected)
        });
        let ledger = self.ledger.as_ref().expect("it is there until the end");
        assert!(ledger.wait_acks(50, Instant::now() + LIMIT), "the VM does not serve its client");
    }

    /// Cuts the two hosts off from each other for a moment. If the VM is protected afterwards by the backup that it had, answers
    /// how much memory that was sent, whether it went on with what it held, and how long it took from the healing of the cable on.
    /// The backup may have won the witness instead: then it has the VM.
    fn cut(&mut self) -> Option<(u64, bool, Duration)> {
        let (mark, primary) = (self.events.mark(), self.primary.clone());
        self.lab.cut(self.backup(), Network::Replication, Cut::Blackhole).unwrap();
        thread::sleep(CUT);
        self.lab.heal(self.backup(), Network::Replication).unwrap();
        let healed = ninefold_transport::clock::monotonic_us();
        let event = self.protection_since(mark);
        let EventKind::Protected { bytes, continued, .. } = event.kind else { unreachable!() };
        let took = Duration::from_micros(event.monotonic_us.saturating_sub(healed));
        eprintln!("{primary} → {}: {bytes} bytes, continued: {continued}, {took:?} after the cable", event.host);
        self.protected();
        memory_is_sound(&self.lab);
        (self.primary == primary).then_some((bytes, continued, took))
    }

    /// Kills the backup's keeper, and with it its QEMU, and starts it again.
    fn restart(&mut self) -> (u64, bool) {
        let (mark, primary) = (self.events.mark(), self.primary.clone());
        self.lab.kill_keeper(self.backup()).unwrap();
        let begun = ninefold_transport::clock::monotonic_us();
        self.lab.start_keeper(self.backup()).unwrap();
        let event = self.protection_since(mark);
        let EventKind::Protected { bytes, continued, .. } = event.kind else { unreachable!() };
        let took = Duration::from_micros(event.monotonic_us.saturating_sub(begun));
        eprintln!(
            "{primary} → {}: {bytes} bytes, continued: {continued}, {took:?} after the new keeper's start",
            event.host
        );
        self.protected();
        memory_is_sound(&self.lab);
        assert_eq!(self.primary, primary);
        (bytes, continued)
    }

    /// Cuts until the primary has kept the VM so many times.
    fn cuts(&mut self, times: u32) {
        let mut bound_again = 0;
        for _ in 0..20 {
            if let Some((bytes, continued, _)) = self.cut() {
                assert!(continued && bytes < 64 << 20, "{bytes} bytes, continued: {continued}");
                bound_again += 1;
            }
            if bound_again == times {
                return;
            }
        }
        panic!("the primary kept the VM in {bound_again} of 20 cuts");
    }

    /// The power of everything goes, and the primary does not come back before its backup has gone on from what it has on disk.
    fn power_loss(&mut self) {
        let (mark, primary, backup) = (self.events.mark(), self.primary.clone(), self.backup());
        self.lab.power_loss().unwrap();
        self.lab.restart_host(WITNESS).unwrap();
        self.lab.start_witness().unwrap();
        self.lab.restart_host(backup).unwrap();
        let recovered = |e: &Event| matches!(e.kind, EventKind::Recovered { .. });
        let event = self.events.wait_for(mark, Instant::now() + LIMIT, recovered).expect("the VM goes on");
        assert_eq!(event.host.as_str(), backup);
        memory_is_sound(&self.lab);
        self.lab.restart_host(&primary).unwrap();
        self.protected();
    }

    /// Whether a process holds a standby's memory on this host.
    fn memory_is_held(&self, host: &str) -> bool {
        let processes = self.lab.processes(host).unwrap().list().unwrap();
        processes.iter().any(|p| p.program == "ninefold-memory")
    }

    fn protection_since(&self, mark: usize) -> Event {
        let protected = |e: &Event| matches!(e.kind, EventKind::Protected { .. });
        self.events.wait_for(mark, Instant::now() + LIMIT, protected).expect("protection")
    }

    fn finish(mut self) {
        // What the backup has come to hold is all of the VM.
        let mark = self.events.mark();
        self.lab.kill_qemu(&self.primary).unwrap();
        let took = |e: &Event| matches!(e.kind, EventKind::TookOver { .. });
        self.events.wait_for(mark, Instant::now() + LIMIT, took).expect("a take-over");
        self.protected();
        memory_is_sound(&self.lab);
        let report = self.ledger.take().expect("it is there until the end").finish().unwrap();
        eprintln!("{report:?}");
        assert_eq!((report.lost, report.repeated, report.resets), (0, 0, 0), "{report:?}");
        let all = self.events.all();
        assert!(!all.iter().any(|e| matches!(e.kind, EventKind::Lost { .. })), "{all:?}");
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if thread::panicking() {
            for event in self.events.all() {
                eprintln!("  {:>14} {}: {:?}", event.monotonic_us, event.host, event.kind);
            }
            eprintln!("{}", self.lab.logs_for_error());
        }
    }
}

#[test]
fn after_a_short_cut_a_backup_is_sent_what_changed() {
    let mut pair = Pair::start(vec![VolumeSpec::new("data".parse().unwrap(), 96 << 20)], 8);
    pair.cuts(3);
    pair.finish();
}

/// Its log goes on, too, and is as good as one that has begun anew.
#[test]
fn after_a_short_break_the_backup_of_a_non_volatile_vm_is_sent_what_changed() {
    let mut pair = Pair::with(vec![VolumeSpec::new("data".parse().unwrap(), 96 << 20)], 8, true);
    pair.cuts(2);
    pair.power_loss();
    assert!(pair.restart().1);
    pair.cuts(1);
    assert!(pair.restart().1);
    pair.power_loss();
    pair.finish();
}

#[test]
fn after_its_keepers_restart_a_backup_is_sent_what_changed() {
    let mut pair = Pair::start(vec![VolumeSpec::new("data".parse().unwrap(), 96 << 20)], 8);
    let mut continued = 0;
    for _ in 0..3 {
        continued += u32::from(pair.restart().1);
    }
    assert_eq!(continued, 3);
    // A cut after that finds a QEMU that waits, as any.
    let _ = pair.cut();
    let continued = pair.restart().1;
    assert!(continued);
    pair.finish();
}

#[test]
fn a_vm_that_has_stopped_leaves_nothing_behind_on_its_backup() {
    let pair = Pair::start(Vec::new(), 2);
    assert!(pair.memory_is_held("b") && !pair.memory_is_held("a"));
    pair.lab.ask("a", &Request::Stop).unwrap();
    wait_until("nothing of the VM", || {
        let processes = pair.lab.processes("b").unwrap().list().unwrap();
        !pair.memory_is_held("b") && !processes.iter().any(|p| p.program.starts_with("qemu-system"))
    });
}
