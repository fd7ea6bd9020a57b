//! The power of everything goes at arbitrary instants: every process dies, what was not synced is lost. A non-volatile VM goes on
//! by itself, nothing that it acknowledged is lost, and its clients' connections live.

mod support;

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use ninefold_control::{Answer, FreezeChoice, LogReport, Request};
use ninefold_lab::topology::WITNESS;
use ninefold_model::event::{Event, EventKind};
use ninefold_model::spec::{NonVolatile, Protection, VolumeSpec};
use ninefold_model::status::{LogState, Role};
use support::{Beginning, Scenario, deadline, rounds, wait_until};

/// Writes that show that the VM goes on.
const WRITES: u64 = 100;

fn non_volatile(protection: Protection) -> Beginning {
    let mut begin = Beginning { disks: true, ..Beginning::default() };
    begin.vm.protection = protection;
    begin.vm.non_volatile = Some(NonVolatile::default());
    begin
}

/// Numbers that look random and are the same in every run.
fn pause(n: u64) -> Duration {
    Duration::from_millis(50 + n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 1500)
}

const ALL: [&str; 3] = ["a", "b", WITNESS];

/// Takes the power of these.
fn power_off(scenario: &Scenario, hosts: &[&str]) {
    if hosts == ALL {
        return scenario.lab.power_loss().unwrap();
    }
    hosts.iter().for_each(|host| scenario.lab.kill_host(host).unwrap());
}

/// Gives these their power back.
fn power_on(scenario: &Scenario, hosts: &[&str]) {
    for host in hosts {
        scenario.lab.restart_host(host).unwrap();
        if *host == WITNESS {
            scenario.lab.start_witness().unwrap();
        }
    }
}

/// Takes the power of all hosts, the witness's too, and gives it back.
fn power_failure(scenario: &Scenario) {
    power_off(scenario, &ALL);
    power_on(scenario, &ALL);
}

fn protected(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Protected { .. })
}

fn is_non_volatile(kind: &EventKind) -> bool {
    matches!(kind, EventKind::NonVolatile { .. })
}

/// Waits for an event of any host.
fn expect(scenario: &Scenario, mark: usize, what: &str, wanted: fn(&EventKind) -> bool) -> Event {
    let found = scenario.events.wait_for(mark, deadline(), |e| wanted(&e.kind));
    found.unwrap_or_else(|| panic!("no '{what}'"))
}

fn recovered(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Recovered { .. })
}

#[test]
fn a_vm_that_is_alone_survives_losses_of_power() {
    let scenario = Scenario::with("alone", non_volatile(Protection::None));
    scenario.expect(0, "a", "non-volatile", is_non_volatile);
    for n in 0..rounds(3) as u64 {
        scenario.expect_writes(WRITES);
        std::thread::sleep(pause(n));
        let mark = scenario.events.mark();
        power_failure(&scenario);
        let event = scenario.expect(mark, "a", "recovery", recovered);
        eprintln!("  {n}: {:?}", event.kind);
        scenario.expect_writes(WRITES);
    }
    scenario.finish();
}

/// Both hosts have all that was ever said: whichever is first goes on, the other becomes its backup.
#[test]
fn a_protected_vm_survives_losses_of_power() {
    let scenario = Scenario::with("both", non_volatile(Protection::FaultTolerant));
    for n in 0..rounds(3) as u64 {
        scenario.expect_writes(WRITES);
        std::thread::sleep(pause(n));
        let mark = scenario.events.mark();
        power_failure(&scenario);
        let event = expect(&scenario, mark, "recovery", recovered);
        eprintln!("  {n}: {} {:?}", event.host, event.kind);
        scenario.expect_writes(WRITES);
        expect(&scenario, mark, "protection", protected);
    }
    scenario.finish();
}

/// One host never comes back: the other has all of it, whichever it is and whatever it was.
#[test]
fn either_host_is_enough() {
    let scenario = Scenario::with("either", non_volatile(Protection::FaultTolerant));
    // As a backup and as what had the VM last; the order in which they follow each other is for longer runs.
    let each = [(0, "b", "a"), (1, "a", "b"), (2, "a", "b"), (3, "b", "a")];
    for (n, survivor, other) in each.into_iter().take(rounds(2)) {
        scenario.expect_writes(WRITES);
        std::thread::sleep(pause(n));
        let mark = scenario.events.mark();
        power_off(&scenario, &ALL);
        power_on(&scenario, &[survivor, WITNESS]);
        scenario.expect(mark, survivor, "recovery", recovered);
        scenario.expect_writes(WRITES);
        power_on(&scenario, &[other]);
        expect(&scenario, mark, "protection", protected);
    }
    scenario.finish();
}

/// One host dies, the other takes over and goes on with the log that it has as a backup: no moment is without.
#[test]
fn a_host_that_has_just_taken_over_survives_a_loss_of_power() {
    let mut scenario = Scenario::with("heir", non_volatile(Protection::FaultTolerant));
    for n in 0..rounds(3) as u64 {
        scenario.expect_writes(WRITES);
        let mark = scenario.events.mark();
        let (primary, backup) = (scenario.primary.clone(), scenario.backup.clone());
        power_off(&scenario, &[&primary]);
        scenario.expect(mark, &backup, "take-over", |e| matches!(e, EventKind::TookOver { .. }));
        scenario.expect_writes(n * 40 + 1);
        let now = scenario.events.mark();
        power_off(&scenario, &[&backup, WITNESS]);
        power_on(&scenario, &ALL);
        scenario.expect(now, &backup, "recovery", recovered);
        let new: Vec<_> = scenario.events.all()[mark..].iter().filter(|e| is_non_volatile(&e.kind)).cloned().collect();
        assert!(new.is_empty(), "a log was begun anew: {new:?}");
        scenario.expect_writes(WRITES);
        expect(&scenario, now, "protection", protected);
        scenario.swap_roles();
    }
    scenario.finish();
}

/// A VM that is alone loses its QEMU, or its keeper, and goes on.
#[test]
fn the_log_helps_without_a_loss_of_power() {
    let scenario = Scenario::with("process", non_volatile(Protection::None));
    scenario.expect(0, "a", "non-volatile", is_non_volatile);
    for n in 0..rounds(2) {
        scenario.expect_writes(WRITES);
        let mark = scenario.events.mark();
        if n % 2 == 0 {
            scenario.lab.kill_qemu("a").unwrap();
        } else {
            scenario.lab.kill_keeper("a").unwrap();
            scenario.lab.start_keeper("a").unwrap();
        }
        scenario.expect(mark, "a", "recovery", recovered);
        scenario.expect_writes(WRITES);
    }
    scenario.finish();
}

/// A full disk: it is said at once, nothing waits for the log any more, and it is not believed; when there is room again the VM
/// becomes non-volatile again.
#[test]
fn a_full_disk_is_said_and_does_not_stop_the_vm() {
    for protection in [Protection::None, Protection::FaultTolerant] {
        let scenario = Scenario::with("full", non_volatile(protection));
        let pool = scenario.lab.pool_dir("a");
        expect(&scenario, 0, "non-volatile", is_non_volatile);
        scenario.expect_writes(WRITES);
        let mark = scenario.events.mark();
        let mut filler = std::fs::File::create(pool.join("filler")).unwrap();
        while std::io::Write::write_all(&mut filler, &[1; 1 << 20]).is_ok() {}
        let lost = scenario.expect(mark, "a", "loss of the log", |e| matches!(e, EventKind::LogLost { .. }));
        eprintln!("  {:?}", lost.kind);
        scenario.expect_writes(WRITES);
        drop(filler);
        std::fs::remove_file(pool.join("filler")).unwrap();
        scenario.expect(mark, "a", "non-volatile", is_non_volatile);
        scenario.expect_writes(WRITES);
        let mark = scenario.events.mark();
        power_failure(&scenario);
        expect(&scenario, mark, "recovery", recovered);
        scenario.expect_writes(WRITES);
        scenario.finish();
    }
}

/// A disk that hangs, without an error: after a while the VM goes on without its log, which is not believed then, and when the disk
/// answers again the VM becomes non-volatile again.
#[test]
fn a_disk_that_hangs_does_not_stop_the_vm_for_ever() {
    for protection in [Protection::None, Protection::FaultTolerant] {
        let scenario = Scenario::with("hung", non_volatile(protection));
        expect(&scenario, 0, "non-volatile", is_non_volatile);
        if protection == Protection::FaultTolerant {
            expect(&scenario, 0, "protection", protected);
        }
        scenario.expect_writes(WRITES);
        let mark = scenario.events.mark();
        scenario.lab.freeze_disk("a").unwrap();
        let lost = scenario.expect(mark, "a", "loss of the log", |e| matches!(e, EventKind::LogLost { .. }));
        eprintln!("  {:?}", lost.kind);
        scenario.expect_writes(WRITES);
        scenario.lab.thaw_disk("a").unwrap();
        scenario.expect(mark, "a", "non-volatile", is_non_volatile);
        scenario.expect_writes(WRITES);
        let mark = scenario.events.mark();
        power_failure(&scenario);
        expect(&scenario, mark, "recovery", recovered);
        scenario.expect_writes(WRITES);
        scenario.finish();
    }
}

/// The same at arbitrary instants of a log that begins: nothing waits for a copy that does not get on.
#[test]
fn a_disk_that_hangs_while_a_log_begins_does_not_stop_the_vm() {
    let scenario = Scenario::with("hungcopy", non_volatile(Protection::FaultTolerant));
    expect(&scenario, 0, "protection", protected);
    scenario.expect(0, "a", "non-volatile", is_non_volatile);
    let mark = scenario.events.mark();
    scenario.lab.freeze_disk("a").unwrap();
    scenario.expect(mark, "a", "loss of the log", |e| matches!(e, EventKind::LogLost { .. }));
    for n in 0..rounds(2) as u64 {
        scenario.lab.thaw_disk("a").unwrap();
        std::thread::sleep(pause(n) / 4);
        scenario.lab.freeze_disk("a").unwrap();
        let log = scenario.lab.keeper("a").unwrap().status().unwrap().log;
        eprintln!("  {n}: hangs at {:?}", log.map(|l| (l.state, l.epoch)));
        scenario.expect_writes(WRITES);
    }
    let mark = scenario.events.mark();
    scenario.lab.thaw_disk("a").unwrap();
    wait_until("log", || {
        let log = scenario.lab.keeper("a").unwrap().status().unwrap().log;
        log.is_some_and(|l| l.state == LogState::On)
    });
    scenario.expect_writes(WRITES);
    eprintln!("  {:?}", scenario.events.all()[mark..].iter().map(|e| &e.kind).collect::<Vec<_>>());
    scenario.finish();
}

/// The same, but the power goes before another log has begun.
#[test]
fn a_log_whose_disk_hung_is_not_believed() {
    let scenario = Scenario::with("hungpower", non_volatile(Protection::None));
    scenario.expect(0, "a", "non-volatile", is_non_volatile);
    scenario.expect_writes(WRITES);
    let mark = scenario.events.mark();
    scenario.lab.freeze_disk("a").unwrap();
    scenario.expect(mark, "a", "loss of the log", |e| matches!(e, EventKind::LogLost { .. }));
    scenario.expect_writes(WRITES);
    // The disk answers at the moment at which the power goes: what it was given last may reach it.
    power_failure(&scenario);
    assert!(!scenario.events.all()[mark..].iter().any(|e| is_non_volatile(&e.kind)), "it has begun another");
    let event = scenario.expect(mark, "a", "refusal", |e| matches!(e, EventKind::LogUnusable { .. }));
    eprintln!("  {:?}", event.kind);
    assert!(!scenario.events.all().iter().any(|e| recovered(&e.kind)));
}

/// What was let go after the log was lost is in no log: nobody goes on from it by himself.
#[test]
fn a_log_that_is_behind_is_not_believed() {
    let scenario = Scenario::with("behind", non_volatile(Protection::None));
    let pool = scenario.lab.pool_dir("a");
    scenario.expect(0, "a", "non-volatile", is_non_volatile);
    scenario.expect_writes(WRITES);
    let mark = scenario.events.mark();
    let mut filler = std::fs::File::create(pool.join("filler")).unwrap();
    while std::io::Write::write_all(&mut filler, &[1; 1 << 20]).is_ok() {}
    drop(filler);
    scenario.expect(mark, "a", "loss of the log", |e| matches!(e, EventKind::LogLost { .. }));
    power_failure(&scenario);
    // Unless it has begun another by then, in the room that the old one took.
    let again = scenario.events.all()[mark..].iter().any(|e| is_non_volatile(&e.kind));
    if !again {
        let event = scenario.expect(mark, "a", "refusal", |e| matches!(e, EventKind::LogUnusable { .. }));
        eprintln!("  {:?}", event.kind);
        assert!(
            pool.join(format!("logs/{}/head.json", scenario.options.id)).exists(),
            "its files are left for a person"
        );
        assert!(!scenario.events.all().iter().any(|e| recovered(&e.kind)));
        let report = what_is_there(&scenario, "a");
        assert!(report.newer.as_ref().is_some_and(|why| why.contains("without its log")), "{report:?}");
        assert_eq!((&report.damage, report.lost_checkpoints), (&None, 0), "{report:?}");
        // The log that is kept needs its room, and so does the next.
        std::fs::remove_file(pool.join("filler")).unwrap();
        go_back(&scenario, "a", &report);
    }
}

/// What the log of a host would be gone back to.
fn what_is_there(scenario: &Scenario, host: &str) -> LogReport {
    let response = scenario.lab.keeper(host).unwrap().request(&Request::Recover { force: false }).unwrap();
    let Answer::Log { report } = response else { panic!("{response:?}") };
    eprintln!("  {report:?}");
    *report
}

/// The VM goes on from there, and what was there is kept.
fn go_back(scenario: &Scenario, host: &str, report: &LogReport) {
    assert_eq!(report.refused, None);
    let mark = scenario.events.mark();
    scenario.lab.ask(host, &Request::Recover { force: true }).unwrap();
    let event = scenario.expect(mark, host, "recovery", recovered);
    assert!(matches!(event.kind, EventKind::Recovered { epoch, .. } if epoch == report.epoch), "{event:?}");
    scenario.await_guest();
    // It has another log by and by, which survives as any.
    scenario.expect(mark, host, "non-volatile", is_non_volatile);
    assert!(
        scenario.lab.pool_dir(host).join(format!("logs-aside/{}/1/head.json", scenario.options.id)).exists(),
        "the old one is kept"
    );
    let mark = scenario.events.mark();
    scenario.lab.kill_qemu(host).unwrap();
    scenario.expect(mark, host, "recovery", recovered);
    scenario.await_guest();
}

/// A log with damage in it is gone back in by somebody who has been told what is lost, and in no other way.
#[test]
fn a_damaged_log_is_gone_back_in_when_a_person_says_so() {
    let scenario = Scenario::with("damaged", non_volatile(Protection::None));
    scenario.expect(0, "a", "non-volatile", is_non_volatile);
    scenario.expect_writes(10 * WRITES);
    let mark = scenario.events.mark();
    scenario.lab.kill_keeper("a").unwrap();
    let dir = scenario.lab.pool_dir("a").join(format!("logs/{}", scenario.options.id));
    let names = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let last = names.filter_map(|n| n.strip_prefix("segment-")?.parse::<u64>().ok()).max().unwrap();
    let segment = std::fs::OpenOptions::new().write(true).open(dir.join(format!("segment-{last}"))).unwrap();
    let middle = segment.metadata().unwrap().len() / 2;
    segment.write_all_at(&[0xaa; 8192], middle).unwrap();
    scenario.lab.start_keeper("a").unwrap();
    let damaged =
        |k: &EventKind| matches!(k, EventKind::LogUnusable { reason } if reason.contains("the log is damaged"));
    scenario.expect(mark, "a", "refusal", damaged);
    let report = what_is_there(&scenario, "a");
    assert!(report.damage.as_ref().is_some_and(|what| what.contains(&format!("segment-{last}"))), "{report:?}");
    assert!(report.lost_checkpoints > 0 && report.lost_ms > 0 && report.newer.is_none(), "{report:?}");
    assert!(!scenario.events.all()[mark..].iter().any(|e| recovered(&e.kind)), "asking changes nothing");
    go_back(&scenario, "a", &report);
    // Nothing of that is under way any more.
    let mark = scenario.events.mark();
    let snapshot = Request::Snapshot { name: "after".parse().unwrap(), parent: None, freeze: FreezeChoice::Never };
    scenario.lab.ask("a", &snapshot).unwrap();
    scenario.expect(mark, "a", "snapshot", |k| matches!(k, EventKind::SnapshotTaken { .. }));
}

/// Whoever asks of the log while the VM is to be started, or the other way round, is answered; and so is who comes after that.
#[test]
fn who_asks_while_another_question_is_under_way_is_answered() {
    let scenario = Scenario::with("asked", non_volatile(Protection::None));
    scenario.expect(0, "a", "non-volatile", is_non_volatile);
    let mark = scenario.events.mark();
    scenario.lab.ask("a", &Request::Stop).unwrap();
    scenario.expect(mark, "a", "stop", |e| matches!(e, EventKind::Stopped { .. }));
    // It takes its time for an answer now.
    let mark = scenario.events.mark();
    scenario.lab.freeze(WITNESS).unwrap();
    scenario.expect(mark, "a", "no witness", |e| matches!(e, EventKind::WitnessUnreachable { .. }));
    let ask = |request| {
        let (keeper, (told, answer)) = (scenario.lab.keeper("a").unwrap(), std::sync::mpsc::channel());
        std::thread::spawn(move || {
            told.send(match request {
                Request::Start { .. } => keeper.carry_out(&request).map(drop),
                request => keeper.request(&request).map(drop),
            })
        });
        move || answer.recv_timeout(std::time::Duration::from_secs(60)).expect("an answer")
    };
    let (recover, start) = (|| Request::Recover { force: false }, || Request::Start { force: false });
    for first_is_recover in [true, false] {
        let (first, second) = if first_is_recover { (recover(), start()) } else { (start(), recover()) };
        let (first, second) = (ask(first), ask(second));
        for answer in [first(), second()] {
            assert!(matches!(&answer, Err(ninefold_control::ClientError::Refused(_))), "{answer:?}");
        }
    }
    scenario.lab.thaw(WITNESS).unwrap();
    wait_until("a start", || scenario.lab.ask("a", &start()).is_ok());
    scenario.await_guest();
}

/// A VM that was stopped stays so.
#[test]
fn a_stopped_vm_does_not_come_back() {
    let scenario = Scenario::with("stopped", non_volatile(Protection::None));
    scenario.expect(0, "a", "non-volatile", is_non_volatile);
    let mark = scenario.events.mark();
    scenario.lab.ask("a", &Request::Stop).unwrap();
    scenario.expect(mark, "a", "stop", |e| matches!(e, EventKind::Stopped { .. }));
    let log = scenario.lab.pool_dir("a").join(format!("logs/{}", scenario.options.id));
    wait_until("removal of the log", || std::fs::read_dir(&log).unwrap().count() == 0);
    power_failure(&scenario);
    // It can be booted again: nothing of its former life is in the way.
    wait_until("witness", || scenario.lab.ask("a", &Request::Start { force: false }).is_ok());
    scenario.await_guest();
    assert!(!scenario.events.all().iter().any(|e| recovered(&e.kind)));
}

/// Disk and memory are of one moment on whichever host: redis writes to its volume what it acknowledges, and the ledger
/// compares both.
#[test]
fn volumes_go_with_the_memory() {
    let mut begin = non_volatile(Protection::FaultTolerant);
    let name = "data".parse().unwrap();
    begin.vm.volumes = vec![VolumeSpec::new(name, 96 << 20)];
    let scenario = Scenario::with("volume", begin);
    for n in 0..rounds(2) as u64 {
        scenario.expect_writes(WRITES);
        std::thread::sleep(pause(n));
        let mark = scenario.events.mark();
        power_failure(&scenario);
        let event = expect(&scenario, mark, "recovery", recovered);
        eprintln!("  {n}: {} {:?}", event.host, event.kind);
        scenario.expect_writes(WRITES);
        expect(&scenario, mark, "protection", protected);
    }
    scenario.finish_with(|s| {
        let image = |host: &str| std::fs::read(s.lab.pool_dir(host).join("volumes/data/image.raw")).unwrap();
        let is_primary = |host: &&str| s.lab.keeper(host).unwrap().status().unwrap().role == Role::Primary;
        let primary = ["a", "b"].into_iter().find(is_primary).unwrap();
        s.lab.ask(primary, &Request::Stop).unwrap();
        wait_until("equality of the images", || image("a") == image("b"));
        assert_eq!(image("a")[1080..1082], [0x53, 0xef], "an ext4 file system");
    });
}

/// A keeper that is stopped has nobody to hand the VM to. The VM stands still until the keeper is started again.
#[test]
fn a_vm_that_is_alone_survives_the_end_of_its_keeper() {
    let scenario = Scenario::with("sigterm", non_volatile(Protection::None));
    scenario.expect(0, "a", "non-volatile", is_non_volatile);
    for n in 0..rounds(2) {
        scenario.expect_writes(WRITES);
        let mark = scenario.events.mark();
        scenario.lab.stop_keeper("a").unwrap();
        scenario.lab.start_keeper("a").unwrap();
        let event = scenario.expect(mark, "a", "recovery", recovered);
        eprintln!("  {n}: {:?}", event.kind);
        scenario.expect_writes(WRITES);
    }
    scenario.finish();
}

/// The file system with a volume is not there when the power is back: the keeper makes an empty one, and does not play the log
/// onto that. The other host has all of it.
#[test]
fn a_host_without_its_volume_leaves_the_vm_to_the_other() {
    let mut begin = non_volatile(Protection::FaultTolerant);
    begin.vm.volumes = vec![VolumeSpec::new(support::disks::name("data"), 96 << 20)];
    let scenario = Scenario::with("novolume", begin);
    scenario.expect_writes(WRITES);
    let mark = scenario.events.mark();
    std::fs::remove_dir_all(scenario.lab.pool_dir("a").join("volumes/data")).unwrap();
    assert!(std::process::Command::new("sync").status().unwrap().success());
    power_off(&scenario, &ALL);
    power_on(&scenario, &["a", WITNESS]);
    let unusable = |k: &EventKind| matches!(k, EventKind::LogUnusable { reason } if reason.contains("not in the pool"));
    let event = scenario.expect(mark, "a", "refusal of its log", unusable);
    eprintln!("  {:?}", event.kind);
    // The empty one that it has made is no better the next time.
    let mark = scenario.events.mark();
    scenario.lab.kill_keeper("a").unwrap();
    scenario.lab.start_keeper("a").unwrap();
    scenario.expect(mark, "a", "another refusal", unusable);
    power_on(&scenario, &["b"]);
    scenario.expect(mark, "b", "recovery", recovered);
    scenario.expect_writes(WRITES);
    // It is copied to anew.
    scenario.expect(mark, "b", "protection", protected);
    scenario.expect_writes(WRITES);
    scenario.finish();
}

/// With `acknowledge: memory` the backup is lost, and then the power of all: this host's disk may not have what clients were told.
/// A plain start there does not go back silently.
#[test]
fn a_plain_start_does_not_go_back_silently() {
    let mut begin = Beginning { disks: true, ..Beginning::default() };
    begin.vm.volumes = vec![VolumeSpec::new(support::disks::name("data"), 96 << 20)];
    // As if the disk took its time to get all of it: the note stays.
    begin.faults = "note.remove=fail*1000000".into();
    let scenario = Scenario::with("goesback", begin);
    scenario.expect_writes(WRITES);
    let note = |host: &str| scenario.lab.pool_dir(host).join("volumes/data/behind");
    assert!(note("a").exists() && note("b").exists());
    let mark = scenario.events.mark();
    scenario.lab.kill_host("b").unwrap();
    scenario.expect(mark, "a", "unprotected", |k| matches!(k, EventKind::Unprotected { .. }));
    power_off(&scenario, &ALL);
    // The other stays away: protected again, the VM would be behind again.
    power_on(&scenario, &["a", WITNESS]);
    let start = |force| scenario.lab.ask("a", &Request::Start { force });
    // Until the witness answers it is refused for that.
    wait_until("a refusal", || {
        let refused = start(false).unwrap_err().to_string();
        refused.contains("volumes_behind") && refused.contains(r#""since":"in session"#)
    });
    start(true).unwrap();
    scenario.await_guest();
    wait_until("the end of the note", || !note("a").exists());
    // What it was about is over.
    scenario.lab.kill_keeper("a").unwrap();
    scenario.lab.start_keeper("a").unwrap();
    wait_until("the witness", || start(false).is_ok());
    scenario.await_guest();
}
