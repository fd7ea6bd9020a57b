//! A VM with two backups, on three hosts: any one may be lost and the VM is protected still; two may be lost one after the
//! other. After each loss the hosts that are back become backups by themselves.

mod support;

use std::collections::BTreeSet;
use std::time::Instant;

use ninefold_control::Request;
use ninefold_lab::boot::redis;
use ninefold_lab::ledger::await_answer;
use ninefold_lab::topology::{CLIENT, WITNESS};
use ninefold_lab::{EventWatch, Lab, LabConfig, Ledger, LedgerOptions, Observer};
use ninefold_model::event::{Event, EventKind};
use ninefold_model::spec::{NonVolatile, VolumeSpec};
use ninefold_model::status::{BackupState, ProtectionState, Role, VmStatus};
use ninefold_testkit::programs;
use rustix::process::{Pid, Signal, kill_process};
use support::workload::{memory_is_sound, work};
use support::{LIMIT, wait_until};

const HOSTS: [&str; 3] = ["a", "b", "c"];

struct Trio {
    /// Ends with the test.
    ledger: Option<Ledger>,
    observer: Observer,
    events: EventWatch,
    primary: String,
    volume: Option<String>,
    lab: Lab,
}

impl Trio {
    fn start(volumes: Vec<VolumeSpec>) -> Self {
        Self::with(volumes, false)
    }

    /// A non-volatile VM's hosts have disks that forget what was not synced.
    fn with(volumes: Vec<VolumeSpec>, non_volatile: bool) -> Self {
        programs::build(programs::OF_A_LAB);
        let mut config = LabConfig::new(&format!("t{}", std::process::id() % 100_000)).unwrap();
        config.hosts = HOSTS.map(|h| h.parse().unwrap()).into();
        config.disks = non_volatile;
        let lab = Lab::up(&config).unwrap();
        let mut vm = ninefold_lab::VmOptions::new("vm".parse().unwrap());
        vm.timing.failure_timeout_ms = 500;
        vm.backups = 2;
        vm.non_volatile = non_volatile.then(NonVolatile::default);
        let volume = volumes.first().map(|v| v.name.to_string());
        vm.volumes = volumes;
        lab.configure_vm(&vm).unwrap();
        lab.start_witness().unwrap();
        HOSTS.iter().for_each(|host| lab.start_keeper(host).unwrap());
        let observer = Observer::start(&lab, vm.mac).unwrap();
        let events = EventWatch::start(&lab);
        lab.ask("a", &Request::Start { force: false }).unwrap();
        let netns = lab.netns(CLIENT).unwrap();
        assert!(await_answer(&netns, redis(), Instant::now() + LIMIT).unwrap(), "redis does not answer");
        let ledger = Ledger::start(Some(&netns), redis(), &LedgerOptions::default()).unwrap();
        let trio = Self { ledger: Some(ledger), observer, events, primary: "a".into(), volume, lab };
        trio.bound(2);
        trio
    }

    fn serves(&self) {
        let ledger = self.ledger.as_ref().expect("it is there until the end");
        assert!(ledger.wait_acks(50, Instant::now() + LIMIT), "the VM does not serve its client");
    }

    fn status(&self, host: &str) -> Option<VmStatus> {
        self.lab.keeper(host).unwrap().status().ok()
    }

    /// Waits until so many backups may take over, which are then those that say so themselves; answers them.
    fn bound(&self, count: usize) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        wait_until("backups", || {
            let Some(status) = self.status(&self.primary) else { return false };
            let bound = status.backups.iter().filter(|b| b.state == BackupState::Bound);
            found = bound.map(|b| b.host.to_string()).collect();
            found.len() == count
        });
        for host in &found {
            let status = self.status(host).unwrap();
            assert_eq!((status.role, status.peer.unwrap().as_str()), (Role::Backup, self.primary.as_str()));
        }
        self.serves();
        found
    }

    /// Waits until another host has taken over since `mark`.
    fn taken_over(&mut self, mark: usize) {
        let took = |k: &EventKind| matches!(k, EventKind::TookOver { .. });
        let event = self.events.wait_for(mark, Instant::now() + LIMIT, |e| took(&e.kind)).expect("a take-over");
        assert_ne!(event.host.as_str(), self.primary);
        eprintln!("{}: {:?}", event.host, event.kind);
        self.primary = event.host.to_string();
        self.serves();
    }

    /// How much memory was sent to `backup` for the protection that began since `mark`, and whether it went on with what it
    /// held.
    fn copied(&self, mark: usize, backup: &str) -> (u64, bool) {
        let of = |k: &EventKind| matches!(k, EventKind::Protected { backup: b, .. } if b.as_str() == backup);
        let event = self.events.wait_for(mark, Instant::now() + LIMIT, |e| of(&e.kind)).expect("protection");
        let EventKind::Protected { bytes, continued, sync_ms, .. } = event.kind else { unreachable!() };
        let took = |e: &&Event| e.host == event.host && matches!(e.kind, EventKind::TookOver { .. });
        let since =
            self.events.all().iter().filter(took).map(|e| event.monotonic_us.saturating_sub(e.monotonic_us)).min();
        let alone_ms = since.unwrap_or(0) / 1000;
        eprintln!("{backup}: {bytes} bytes in {sync_ms} ms, continued: {continued}, {alone_ms} ms alone");
        (bytes, continued)
    }

    fn protection(&self) -> Option<ProtectionState> {
        self.status(&self.primary).unwrap().protection
    }

    /// Nobody writes any more: the volume becomes the same on all hosts.
    fn images_become_equal(&self, volume: &str) {
        let image = |host| std::fs::read(self.lab.pool_dir(host).join(format!("volumes/{volume}/image.raw"))).unwrap();
        wait_until("equal images", || {
            let first = image(HOSTS[0]);
            HOSTS[1..].iter().all(|host| image(host) == first)
        });
    }

    fn finish(mut self) {
        let report = self.ledger.take().expect("it is there until the end").finish().unwrap();
        eprintln!("{report:?}");
        assert_eq!((report.lost, report.repeated, report.resets), (0, 0, 0), "{report:?}");
        if let Some(volume) = self.volume.clone() {
            self.images_become_equal(&volume);
        }
        let seen = self.observer.report();
        let late = seen.overlaps(&self.events.takeovers());
        assert!(seen.missed == 0 && late.is_empty(), "two hosts spoke in overlap: {late:?}");
        let all = self.events.all();
        assert!(!all.iter().any(|e| matches!(e.kind, EventKind::Lost { .. })), "{all:?}");
    }
}

impl Drop for Trio {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for event in self.events.all() {
                eprintln!("  {:>14} {}: {:?}", event.monotonic_us, event.host, event.kind);
            }
            HOSTS.iter().for_each(|host| eprintln!("{host}: {:?}", self.status(host)));
            eprintln!("{}", self.lab.logs_for_error());
        }
    }
}

fn one_after_the_other(volumes: Vec<VolumeSpec>, checksum_mib: u32) {
    let mut trio = Trio::start(volumes);
    work(&trio.lab, &format!("checksum mib={checksum_mib}"));
    assert_eq!(trio.bound(2), BTreeSet::from(["b".into(), "c".into()]));

    // A backup is lost: the VM is protected by the other all the time.
    let mark = trio.events.mark();
    trio.lab.kill_host("b").unwrap();
    let lost = |k: &EventKind| matches!(k, EventKind::BackupLost { .. });
    trio.events.wait_for(mark, Instant::now() + LIMIT, |e| lost(&e.kind)).expect("the loss of a backup");
    assert_eq!(trio.bound(1), BTreeSet::from(["c".into()]));
    assert_eq!(trio.protection(), Some(ProtectionState::Protected));
    let unprotected = trio.events.all().iter().any(|e| matches!(e.kind, EventKind::Unprotected { .. }));
    assert!(!unprotected, "{:?}", trio.events.all());
    let mark = trio.events.mark();
    trio.lab.restart_host("b").unwrap();
    assert_eq!(trio.bound(2), BTreeSet::from(["b".into(), "c".into()]));

    // Primary after primary: each is lost with its host as soon as one backup holds the VM again. That one was a backup
    // before, and was not copied to anew.
    let (whole, continued) = trio.copied(mark, "b");
    assert!(!continued && whole > 64 << 20, "{whole} bytes");
    for _ in 0..3 {
        let (mark, first) = (trio.events.mark(), trio.primary.clone());
        trio.lab.kill_host(&first).unwrap();
        trio.taken_over(mark);
        let survivor = trio.bound(1).pop_first().unwrap();
        let (bytes, continued) = trio.copied(mark, &survivor);
        // What the guest writes again and again may be in it three times, when a busy machine takes its time: two rounds, and the first checkpoint.
        assert!(continued && bytes < whole / 2, "{bytes} of {whole} bytes");
        memory_is_sound(&trio.lab);
        let (mark, second) = (trio.events.mark(), trio.primary.clone());
        trio.lab.kill_host(&second).unwrap();
        trio.taken_over(mark);
        assert!(trio.primary != first && trio.primary != second);
        memory_is_sound(&trio.lab);
        trio.lab.restart_host(&first).unwrap();
        trio.lab.restart_host(&second).unwrap();
        trio.bound(2);
    }

    // On purpose, and with only its QEMU.
    let mark = trio.events.mark();
    trio.lab.ask(&trio.primary, &Request::Switchover).unwrap();
    trio.taken_over(mark);
    trio.bound(2);
    let mark = trio.events.mark();
    trio.lab.kill_qemu(&trio.primary).unwrap();
    trio.taken_over(mark);
    trio.bound(2);
    memory_is_sound(&trio.lab);
    trio.finish();
}

#[test]
fn two_hosts_are_lost_one_after_the_other() {
    one_after_the_other(Vec::new(), 2);
}

#[test]
fn two_hosts_are_lost_one_after_the_other_and_the_volume_stays() {
    one_after_the_other(vec![VolumeSpec::new("data".parse().unwrap(), 96 << 20)], 24);
}

/// The backup that did not take over goes on with its log, and that is as good as any: it is all that comes back.
#[test]
fn the_other_backup_of_a_non_volatile_vm_goes_on_with_its_log() {
    let mut trio = Trio::with(vec![VolumeSpec::new("data".parse().unwrap(), 96 << 20)], true);
    work(&trio.lab, "checksum mib=2");
    let (mark, first) = (trio.events.mark(), trio.primary.clone());
    trio.lab.kill_host(&first).unwrap();
    trio.taken_over(mark);
    let survivor = trio.bound(1).pop_first().unwrap();
    assert!(trio.copied(mark, &survivor).1, "it is copied to");
    memory_is_sound(&trio.lab);

    let (mark, second) = (trio.events.mark(), trio.primary.clone());
    trio.lab.power_loss().unwrap();
    trio.lab.restart_host(WITNESS).unwrap();
    trio.lab.start_witness().unwrap();
    trio.lab.restart_host(&survivor).unwrap();
    let recovered = |k: &EventKind| matches!(k, EventKind::Recovered { .. });
    let event = trio.events.wait_for(mark, Instant::now() + LIMIT, |e| recovered(&e.kind)).expect("the VM goes on");
    assert_eq!(event.host.as_str(), survivor);
    trio.primary = survivor;
    memory_is_sound(&trio.lab);
    trio.lab.restart_host(&first).unwrap();
    trio.lab.restart_host(&second).unwrap();
    trio.bound(2);
    trio.finish();
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// The standby of the backup that asks first does not answer: it could not load the VM. So its host does not ask, and the other has
/// the VM.
#[test]
fn a_backup_whose_standby_hangs_leaves_the_vm_to_the_other() {
    let mut trio = Trio::start(Vec::new());
    let pids = |host| {
        let status = trio.status(host).unwrap();
        (status.pid, status.machine.unwrap().pid)
    };
    let (b, c) = (pids("b").1, pids("c").0);
    let mark = trio.events.mark();
    signal(b, Signal::STOP);
    // It hears of the primary's end after the other.
    signal(c, Signal::STOP);
    trio.lab.kill_qemu("a").unwrap();
    let is_lost = |e: &Event| e.host.as_str() == "b" && matches!(e.kind, EventKind::PrimaryLost { .. });
    trio.events.wait_for(mark, Instant::now() + LIMIT, is_lost).expect("the loss of the primary");
    signal(c, Signal::CONT);
    trio.taken_over(mark);
    assert_eq!(trio.primary, "c");
    trio.bound(2);
    trio.finish();
}

/// The host that is first has won the VM, and its QEMU dies while it loads the device state. The other had lost its claim by then: it is
/// given the VM and goes on with what it holds.
#[test]
fn a_winner_that_cannot_load_the_vm_gives_it_to_the_other() {
    let data = vec![VolumeSpec::new("data".parse().unwrap(), 96 << 20)];
    let mut trio = Trio::start(data);
    work(&trio.lab, "checksum mib=2");
    let (b, c) = (trio.status("b").unwrap().machine.unwrap().pid, trio.status("c").unwrap().pid);
    // Who asks and who answers is decided here, by stopping the others.
    let mark = trio.events.mark();
    let said = |trio: &Trio, mark, host: &str, what: fn(&EventKind) -> bool| {
        let is = |e: &Event| e.host.as_str() == host && what(&e.kind);
        trio.events.wait_for(mark, Instant::now() + LIMIT, is).expect("an event")
    };
    trio.lab.freeze(WITNESS).unwrap();
    signal(c, Signal::STOP);
    trio.lab.kill_qemu("a").unwrap();
    said(&trio, mark, "b", |k| matches!(k, EventKind::PrimaryLost { .. }));
    said(&trio, mark, "b", |k| matches!(k, EventKind::WitnessUnreachable { .. }));
    signal(b, Signal::STOP);
    trio.lab.thaw(WITNESS).unwrap();
    said(&trio, mark, "b", |k| matches!(k, EventKind::WitnessReachable));
    signal(c, Signal::CONT);
    said(&trio, mark, "c", |k| matches!(k, EventKind::ClaimLost { .. }));
    signal(b, Signal::KILL);
    let gave = said(&trio, mark, "b", |k| matches!(k, EventKind::GaveBack { .. }));
    let EventKind::GaveBack { backups, reason, .. } = &gave.kind else { unreachable!() };
    assert!(backups.len() == 1 && backups[0].as_str() == "c", "{backups:?}");
    eprintln!("{reason}");
    trio.taken_over(mark);
    assert_eq!(trio.primary, "c");
    memory_is_sound(&trio.lab);
    trio.bound(2);
    trio.finish();
}
