//! Snapshots of a guest at work: taken while it runs, started from again, carried to another host.
//!
//! Memory, devices and disk have to be of one moment: a marker in redis is in its memory and in its file; after a start from a
//! snapshot it is what it was, and after a reset, which reads it from the disk, too. A job in the guest fills memory and verifies
//! every word of it all the time.

#[path = "fixture/shell.rs"]
mod shell;
mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use ninefold_control::{FreezeChoice, Request};
use ninefold_keeper::config::KeeperConfig;
use ninefold_lab::VmOptions;
use ninefold_lab::boot::redis;
use ninefold_lab::ledger::resp::{self, Reply};
use ninefold_lab::netns::io_in_netns;
use ninefold_lab::programs::KEEPER;
use ninefold_lab::topology::{CLIENT, GUEST_IP};
use ninefold_model::SnapshotName;
use ninefold_model::Uuid;
use ninefold_model::event::{EventKind, SnapshotFigures};
use ninefold_model::health::Freeze;
use ninefold_model::spec::{NonVolatile, Protection, VolumeSpec, serial};
use ninefold_model::status::{LogState, ProtectionState, VmStatus};
use ninefold_snapshot::store::Store;
use support::workload::{connect, memory_is_sound, work};
use support::{Beginning, Scenario, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);
const VOLUME: u64 = 96 << 20;

fn begin(protection: Protection) -> Beginning {
    let mut begin = Beginning::default();
    begin.vm.protection = protection;
    let name = "data".parse().unwrap();
    begin.vm.volumes = vec![VolumeSpec::new(name, VOLUME)];
    begin
}

fn name(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

/// Asks the guest's redis.
fn ask(scenario: &Scenario, words: &[&str]) -> Reply {
    let mut stream = connect(&scenario.lab, redis());
    let mut command = Vec::new();
    resp::command(&mut command, words);
    stream.write_all(&command).unwrap();
    resp::read(&mut BufReader::new(&stream)).unwrap()
}

fn mark(scenario: &Scenario, value: &str) {
    assert!(matches!(ask(scenario, &["SET", "marker", value]), Reply::Simple(ok) if ok == "OK"));
}

fn is_marked(scenario: &Scenario, value: &str) -> bool {
    let mut answer = Reply::Bulk(None);
    // It reads its file first.
    wait_until("redis to have loaded", || {
        answer = ask(scenario, &["GET", "marker"]);
        !matches!(&answer, Reply::Error(why) if why.starts_with("LOADING"))
    });
    matches!(answer, Reply::Bulk(Some(found)) if found == value.as_bytes())
}

fn snapshot(scenario: &Scenario, called: &str, parent: Option<&str>) -> SnapshotFigures {
    taken(scenario, called, parent, FreezeChoice::Never).0
}

fn taken(
    scenario: &Scenario,
    called: &str,
    parent: Option<&str>,
    freeze: FreezeChoice,
) -> (SnapshotFigures, Option<Freeze>) {
    let since = scenario.events.mark();
    let request = Request::Snapshot { name: name(called), parent: parent.map(name), freeze };
    scenario.lab.ask(&scenario.primary, &request).unwrap();
    let event = scenario.expect(since, &scenario.primary, "snapshot", |e| {
        matches!(e, EventKind::SnapshotTaken { name, .. } | EventKind::SnapshotFailed { name, .. } if name.as_str() == called)
    });
    let EventKind::SnapshotTaken { snapshot, freeze, .. } = event.kind else { panic!("{:?}", event.kind) };
    eprintln!("  {called}: {snapshot:?}, {freeze:?}");
    (snapshot, freeze.map(|freeze| *freeze))
}

fn restore(scenario: &Scenario, host: &str, called: &str, force: bool) -> Result<(), String> {
    let since = scenario.events.mark();
    let request = Request::Restore { name: name(called), force, clone: false };
    scenario.lab.ask(host, &request).map_err(|e| e.to_string())?;
    let event = scenario.expect(since, host, "start from the snapshot", |e| {
        matches!(e, EventKind::Restored { .. } | EventKind::RestoreFailed { .. })
    });
    match event.kind {
        EventKind::RestoreFailed { reason, .. } => Err(reason),
        other => {
            eprintln!("  {other:?}");
            Ok(())
        }
    }
}

fn stop(scenario: &Scenario) {
    let since = scenario.events.mark();
    scenario.lab.ask(&scenario.primary, &Request::Stop).unwrap();
    scenario.expect(since, &scenario.primary, "stop", |e| matches!(e, EventKind::Stopped { .. }));
}

fn store(scenario: &Scenario, host: &str) -> PathBuf {
    scenario.lab.pool_dir(host).join("snapshots")
}

fn told(_: u64, _: u64) -> std::ops::ControlFlow<()> {
    std::ops::ControlFlow::Continue(())
}

/// Memory is as it was when the marker was `value`.
fn remembers(scenario: &Scenario, value: &str) {
    scenario.await_guest();
    assert!(is_marked(scenario, value), "the marker in memory");
    memory_is_sound(&scenario.lab);
}

/// Memory and disk are.
fn is_back(scenario: &Scenario, value: &str) {
    remembers(scenario, value);
    scenario.lab.ask(&scenario.primary, &Request::Reset).unwrap();
    // Its memory is gone; redis reads its file.
    wait_until("restart of the guest", || work_is_new(scenario));
    assert!(is_marked(scenario, value), "the marker on the disk");
}

fn work_is_new(scenario: &Scenario) -> bool {
    let netns = scenario.lab.netns(CLIENT).unwrap();
    let asked = io_in_netns(&netns, "ask the workload", || {
        let patience = Duration::from_millis(500);
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(GUEST_IP, 7000), patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(b"progress\n")?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        Ok(line)
    });
    let redis = io_in_netns(&netns, "ask redis", || TcpStream::connect_timeout(&redis(), PATIENCE));
    matches!(asked, Ok(line) if line.contains("\"ok\":true") && !line.contains("checksum_rounds")) && redis.is_ok()
}

/// What a command in the guest's root shell prints.
fn in_the_guest(scenario: &Scenario, command: &str) -> String {
    shell::ask(&KeeperConfig::console_socket(&scenario.lab.vm_dir(&scenario.primary).unwrap()), command)
}

fn status(scenario: &Scenario) -> VmStatus {
    scenario.lab.keeper(&scenario.primary).unwrap().status().unwrap()
}

/// The generation id that the guest is shown.
fn generation(scenario: &Scenario) -> Uuid {
    status(scenario).machine.unwrap().generation.unwrap()
}

/// A second disk, with a name that is longer than a serial number.
const LONG: &str = "a-database-of-customers-1";

fn taken_and_started_from(called: &'static str, protection: Protection) {
    let mut begin = begin(protection);
    begin.vm.volumes.push(VolumeSpec::new(LONG.parse().unwrap(), 1 << 20));
    let mut scenario = Scenario::with(called, begin);
    let serials = in_the_guest(&scenario, "cat /sys/block/vda/serial; echo; cat /sys/block/vdb/serial");
    assert_eq!(serials, format!("data {}", serial(&LONG.parse().unwrap())));
    let uuid = scenario.options.id.to_string();
    assert_eq!(in_the_guest(&scenario, "cat /sys/class/dmi/id/product_uuid"), uuid);
    let born = generation(&scenario);
    work(&scenario.lab, "checksum mib=24");
    scenario.expect_writes(100);
    mark(&scenario, "first");
    let first = snapshot(&scenario, "first", None);
    scenario.expect_writes(300);
    mark(&scenario, "second");
    let second = snapshot(&scenario, "second", Some("first"));
    assert!(second.pages_in_parent > second.pages / 2 && second.bytes < first.bytes, "{second:?}");
    assert_eq!((first.pages_in_parent, first.blocks_in_parent), (0, 0));
    scenario.expect_writes(300);
    mark(&scenario, "third");
    // Nobody has noticed.
    let report = scenario.ledger.take().unwrap().finish().unwrap();
    eprintln!("{called}: {report:?}");
    assert_eq!((report.lost, report.repeated, report.resets), (0, 0, 0), "{report:?}");

    stop(&scenario);
    restore(&scenario, "a", "first", false).unwrap();
    let restored = generation(&scenario);
    assert_ne!(restored, born);
    is_back(&scenario, "first");
    assert_eq!(generation(&scenario), restored, "a reset begins no other life");
    stop(&scenario);
    restore(&scenario, "a", "second", false).unwrap();
    assert!(![born, restored].contains(&generation(&scenario)));
    is_back(&scenario, "second");
    // To another host: one file, with all that is in the parents.
    stop(&scenario);
    let file = scenario.lab.run_dir("a").join("second.nfsnap");
    Store::open(&store(&scenario, "a")).unwrap().export(&name("second"), &file, &mut told).unwrap();
    Store::open(&store(&scenario, "b")).unwrap().import(&file, Some(&name("moved")), &mut told).unwrap();
    assert!(restore(&scenario, "b", "moved", false).unwrap_err().contains("the witness says that a"));
    restore(&scenario, "b", "moved", true).unwrap();
    scenario.swap_roles();
    is_back(&scenario, "second");
    if protection == Protection::FaultTolerant {
        // A switchover and a take-over go on with one life.
        let here = generation(&scenario);
        for lost in [false, true] {
            wait_until("protection", || status(&scenario).protection == Some(ProtectionState::Protected));
            let backup = scenario.backup.clone();
            let since = scenario.events.mark();
            match lost {
                false => scenario.lab.ask(&scenario.primary, &Request::Switchover).unwrap(),
                true => scenario.lab.kill_qemu(&scenario.primary).unwrap(),
            }
            scenario.expect(since, &backup, "take-over", |e| matches!(e, EventKind::TookOver { .. }));
            scenario.swap_roles();
            assert_eq!(generation(&scenario), here);
        }
        scenario.await_guest();
    }
}

#[test]
fn a_vm_that_is_alone_starts_from_its_snapshots() {
    taken_and_started_from("alone", Protection::None);
}

/// The checkpoint of a snapshot is that of the backup, too.
#[test]
fn a_protected_vm_starts_from_its_snapshots() {
    taken_and_started_from("protected", Protection::FaultTolerant);
}

/// The file system that was frozen for the snapshot is frozen in it. Whoever starts from it has it thawed: redis, which has each write
/// on that file system before it answers, answers at once.
#[test]
fn a_file_system_that_was_frozen_for_the_snapshot_can_be_written_to_after_a_restore() {
    let scenario = Scenario::with("thawed", begin(Protection::None));
    mark(&scenario, "first");
    let (_, freeze) = taken(&scenario, "frozen", None, FreezeChoice::Require);
    assert_eq!(freeze, Some(Freeze { thaw: true, file_systems: Some(1), why_not: None }), "/data");
    mark(&scenario, "second");
    stop(&scenario);
    restore(&scenario, "a", "frozen", false).unwrap();
    scenario.await_guest();
    assert!(is_marked(&scenario, "first"));
    mark(&scenario, "third");
    assert!(is_marked(&scenario, "third"));
}

/// What is no good is refused before anything is touched.
#[test]
fn what_cannot_be_started_from_changes_nothing() {
    let mut scenario = Scenario::with("refused", begin(Protection::None));
    work(&scenario.lab, "checksum mib=8");
    mark(&scenario, "one");
    snapshot(&scenario, "one", None);
    let twice = Request::Snapshot { name: name("one"), parent: None, freeze: FreezeChoice::Auto };
    let since = scenario.events.mark();
    scenario.lab.ask("a", &twice).unwrap();
    scenario.expect(since, "a", "refusal", |e| matches!(e, EventKind::SnapshotFailed { .. }));
    scenario
        .lab
        .ask("a", &Request::Snapshot { name: name("two"), parent: Some(name("none")), freeze: FreezeChoice::Auto })
        .unwrap();
    let failed = scenario.expect(
        since,
        "a",
        "refusal",
        |e| matches!(e, EventKind::SnapshotFailed { reason, .. } if reason.contains("there is no snapshot 'none'")),
    );
    eprintln!("  {:?}", failed.kind);
    assert!(restore(&scenario, "a", "one", false).unwrap_err().contains("runs_here"), "the VM runs");
    let _ = scenario.ledger.take().unwrap().finish().unwrap();
    mark(&scenario, "two");
    stop(&scenario);
    let image = scenario.lab.pool_dir("a").join("volumes/data/image.raw");
    wait_until("end of the writes", || {
        let before = std::fs::read(&image).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        before == std::fs::read(&image).unwrap()
    });
    let before = std::fs::read(&image).unwrap();
    let file = store(&scenario, "a").join("one.nfsnap");
    let good = std::fs::read(&file).unwrap();
    // A byte of a page, one of the index, the end; another VM's; no snapshot at all.
    for at in [good.len() / 3, good.len() - 300, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&file, bad).unwrap();
        eprintln!("  byte {at}: {}", restore(&scenario, "a", "one", false).unwrap_err());
    }
    std::fs::write(&file, &good[..good.len() / 2]).unwrap();
    assert!(restore(&scenario, "a", "one", false).unwrap_err().contains("not a whole snapshot"));
    assert!(restore(&scenario, "a", "none", false).unwrap_err().contains("no snapshot 'none'"));
    assert!(before == std::fs::read(&image).unwrap(), "the volume was touched");
    std::fs::write(&file, &good).unwrap();
    restore(&scenario, "a", "one", false).unwrap();
    is_back(&scenario, "one");
}

/// A keeper that dies when it has begun to overwrite volumes leaves a mixture: that is not booted, and the restore can be begun
/// anew.
fn cut_off(scenario: &Scenario, force: bool) {
    // It dies with the request: whether that is answered is a matter of luck.
    let _ = scenario.lab.ask("a", &Request::Restore { name: name("one"), force, clone: false });
    let processes = scenario.lab.processes("a").unwrap();
    wait_until("the death of the keeper", || !processes.list().unwrap().iter().any(|p| p.program.starts_with(KEEPER)));
    scenario.lab.start_keeper("a").unwrap();
}

#[test]
fn a_restore_that_was_cut_off_is_begun_anew() {
    let mut scenario = Scenario::with("cut off", begin(Protection::None));
    work(&scenario.lab, "checksum mib=8");
    mark(&scenario, "one");
    snapshot(&scenario, "one", None);
    let _ = scenario.ledger.take().unwrap().finish().unwrap();
    stop(&scenario);
    scenario.lab.stop_keeper("a").unwrap();
    scenario.lab.start_keeper_with_faults("a", "restore.volume=abort").unwrap();
    cut_off(&scenario, false);
    let refused = scenario.lab.ask("a", &Request::Start { force: false }).unwrap_err().to_string();
    assert!(refused.contains("volumes_mixed") && refused.contains(r#""snapshot":"one""#), "{refused}");
    restore(&scenario, "a", "one", false).unwrap();
    is_back(&scenario, "one");
    // The note is gone with the mixture.
    stop(&scenario);
    scenario.lab.ask("a", &Request::Start { force: false }).unwrap();
    scenario.await_guest();
}

/// The same over a log from which the VM could have gone on: once its volumes are being overwritten it must not.
#[test]
fn a_forced_restore_that_was_cut_off_leaves_no_log_to_go_on_from() {
    let mut begin = begin(Protection::None);
    begin.vm.non_volatile = Some(NonVolatile::default());
    let mut scenario = Scenario::with("over a log", begin);
    let logged = |e: &EventKind| matches!(e, EventKind::NonVolatile { .. });
    scenario.expect(0, "a", "log", logged);
    work(&scenario.lab, "checksum mib=8");
    mark(&scenario, "one");
    snapshot(&scenario, "one", None);
    let _ = scenario.ledger.take().unwrap().finish().unwrap();
    mark(&scenario, "two");
    // While the witness is away, the next keeper can only wait to go on.
    scenario.lab.kill_witness().unwrap();
    scenario.lab.kill_keeper("a").unwrap();
    let since = scenario.events.mark();
    scenario.lab.start_keeper_with_faults("a", "restore.volume=abort").unwrap();
    let recovering = |s: &VmStatus| s.log.as_ref().is_some_and(|log| log.state == LogState::Recovering);
    wait_until("a log to go on from", || scenario.lab.keeper("a").unwrap().status().is_ok_and(|s| recovering(&s)));
    let refused = restore(&scenario, "a", "one", false).unwrap_err();
    assert!(refused.contains("log_goes_on"), "{refused}");
    scenario.lab.ask("a", &Request::Restore { name: name("one"), force: true, clone: false }).unwrap();
    scenario.lab.start_witness().unwrap();
    cut_off(&scenario, true);
    // It looks for a log, as every keeper does that has no VM, and finds none.
    let refused = scenario.lab.ask("a", &Request::Start { force: false }).unwrap_err().to_string();
    assert!(refused.contains("volumes_mixed"), "{refused}");
    restore(&scenario, "a", "one", false).unwrap();
    is_back(&scenario, "one");
    scenario.expect(since, "a", "log of the new life", logged);
    let gone_on = scenario.events.all().iter().any(|e| matches!(e.kind, EventKind::Recovered { .. }));
    assert!(!gone_on, "{:?}", scenario.events.all());
}

/// Another VM, with a volume of its own, is made of the snapshot of the first.
#[test]
fn a_clone_is_started_from_the_snapshot_of_another_vm() {
    let mut scenario = Scenario::with("clone", begin(Protection::None));
    work(&scenario.lab, "checksum mib=8");
    mark(&scenario, "one");
    snapshot(&scenario, "one", None);
    let _ = scenario.ledger.take().unwrap().finish().unwrap();
    mark(&scenario, "two");
    stop(&scenario);
    ["a", "b"].iter().for_each(|host| scenario.lab.stop_keeper(host).unwrap());
    let image = scenario.lab.pool_dir("a").join("volumes/data/image.raw");
    let before = std::fs::read(&image).unwrap();
    let mut clone = VmOptions { id: VmOptions::new_id(), name: "copy".parse().unwrap(), ..scenario.options.clone() };
    clone.volumes[0].name = "other".parse().unwrap();
    scenario.lab.configure_vm(&clone).unwrap();
    ["a", "b"].iter().for_each(|host| scenario.lab.start_keeper(host).unwrap());
    let refused = restore(&scenario, "a", "one", false).unwrap_err();
    assert!(refused.contains("snapshot of vm") && refused.contains("--clone"), "{refused}");
    let since = scenario.events.mark();
    let request = Request::Restore { name: name("one"), force: false, clone: true };
    scenario.lab.ask("a", &request).unwrap();
    let restored = |e: &EventKind| matches!(e, EventKind::Restored { .. });
    scenario.expect(since, "a", "start of the clone", restored);
    assert_eq!(scenario.lab.keeper("a").unwrap().status().unwrap().vm.as_str(), "copy");
    remembers(&scenario, "one");
    // The guest looks for its disk by the volume's name, so after a reset it would not find this one. Its content is there.
    let wrote = |image: &[u8], value: &str| {
        let line = format!("marker\r\n$3\r\n{value}");
        image.windows(line.len()).any(|w| w == line.as_bytes())
    };
    let copy = std::fs::read(scenario.lab.pool_dir("a").join("volumes/other/image.raw")).unwrap();
    assert!(wrote(&copy, "one") && !wrote(&copy, "two"), "the volume is not that of the snapshot");
    assert!(wrote(&before, "two") && before == std::fs::read(&image).unwrap(), "the first VM's volume was touched");

    // With an Ethernet address of its own it cannot go on where the first was: it boots from the disks.
    stop(&scenario);
    ["a", "b"].iter().for_each(|host| scenario.lab.stop_keeper(host).unwrap());
    let former = clone.mac;
    clone.mac = "52:54:00:77:00:01".parse().unwrap();
    assert_ne!(clone.mac, former);
    scenario.lab.configure_vm(&clone).unwrap();
    ["a", "b"].iter().for_each(|host| scenario.lab.start_keeper(host).unwrap());
    let since = scenario.events.mark();
    scenario.lab.ask("a", &request).unwrap();
    scenario.expect(since, "a", "start of the clone", restored);
    scenario.await_guest();
    assert!(!is_marked(&scenario, "one"), "it has not booted");
    assert_eq!(in_the_guest(&scenario, "cat /sys/class/net/eth0/address"), clone.mac.to_string());
    assert_eq!(in_the_guest(&scenario, "cat /sys/class/dmi/id/product_uuid"), clone.id.to_string());
}
