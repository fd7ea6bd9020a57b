//! A suspended guest is a suspended guest in every QEMU that goes on from its checkpoint, and wakes there.

use std::path::Path;
use std::time::{Duration, Instant};

use guest::{Shadow, await_count, hears, word};
use ninefold_machine::{EventKind, Machine, MachineConfig, Ports, RunState};
use ninefold_model::spec::{Accel, Boot, ClockGap};
use ninefold_testkit::{guest, sleeper};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sleeper::COUNTER;

/// Only so that a failure ends.
const LIMIT: Duration = Duration::from_secs(20);

fn config(qemu: &Path, dir: &Path) -> MachineConfig {
    let mut config = guest::config(qemu, Accel::Tcg, 1, Path::new("unused"));
    config.boot = Boot::BootSector { image: sleeper::image(dir) };
    config
}

fn say(ports: &Ports, text: &str) {
    assert_eq!(rustix::io::write(&ports.console, text.as_bytes()).unwrap(), text.len());
}

fn await_event(machine: &mut Machine, wanted: EventKind) {
    let deadline = Instant::now() + LIMIT;
    loop {
        machine.poll_events().unwrap();
        while let Some(event) = machine.next_event() {
            if event.kind == wanted {
                return;
            }
        }
        assert!(Instant::now() < deadline, "no {wanted:?}");
        let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
        poll(&mut [PollFd::from_borrowed_fd(machine.qmp_fd(), PollFlags::IN)], Some(&limit)).unwrap();
    }
}

/// A guest that has said `up` and was then told this, by which it suspends itself.
fn suspended(config: &MachineConfig, told: &str) -> (Machine, Ports) {
    let (mut machine, ports) = guest::launch(config);
    machine.start().unwrap();
    hears(&ports, "up");
    await_count(machine.memory(), COUNTER, 10);
    say(&ports, told);
    await_event(&mut machine, EventKind::Suspend);
    (machine, ports)
}

/// Takes a checkpoint, and goes on from it in another QEMU.
fn taken_over(mut machine: Machine, other: &MachineConfig, gap: impl FnOnce()) -> (Machine, Ports) {
    let memory = machine.memory().clone();
    machine.begin_pause().unwrap();
    let mut shadow = Shadow::empty(&memory);
    shadow.take_all(&memory);
    machine.finish_save().unwrap();
    let mut state = Vec::new();
    machine.state_into(&mut state).unwrap();
    assert!(machine.was_suspended(), "the checkpoint does not say it");
    machine.kill();
    gap();
    let (mut standby, ports) = guest::launch(&guest::standby(other));
    shadow.give(standby.memory());
    standby.load(&state).unwrap();
    standby.start_after(Duration::from_millis(200), ClockGap::AtOnce).unwrap();
    standby.stay_suspended().unwrap();
    (standby, ports)
}

/// Waits until the guest wakes by its alarm, as its owner does: the alarm may fall due while QEMU loads. Whether it did.
fn wakes_in_time(machine: &mut Machine) -> bool {
    let deadline = Instant::now() + LIMIT;
    while machine.is_suspended() {
        assert!(Instant::now() < deadline, "it oversleeps");
        if machine.has_overslept().unwrap() {
            machine.wake().unwrap();
            await_event(machine, EventKind::Wakeup);
            return true;
        }
        machine.poll_events().unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// Every pair of QEMUs.
fn pairs(test: impl Fn(&MachineConfig, &MachineConfig, &str)) {
    let dir = tempfile::tempdir().unwrap();
    for one in guest::qemus() {
        for other in guest::qemus() {
            let what = format!("{} to {}", one.display(), other.display());
            test(&config(&one, dir.path()), &config(&other, dir.path()), &what);
        }
    }
}

#[test]
fn checkpoints_leave_a_suspended_guest_as_it_is_and_it_wakes() {
    let dir = tempfile::tempdir().unwrap();
    for qemu in guest::qemus() {
        let (mut machine, ports) = suspended(&config(&qemu, dir.path()), "a");
        let what = qemu.display();
        for _ in 0..5 {
            machine.begin_pause().unwrap();
            machine.finish_save().unwrap();
            assert!(machine.was_suspended(), "{what}");
            machine.resume().unwrap();
            assert_eq!(machine.query_status().unwrap(), RunState::Suspended, "{what}");
        }
        await_event(&mut machine, EventKind::Wakeup);
        hears(&ports, "awake");
        assert!(!machine.is_suspended(), "{what}");
        // Again, by its owner.
        say(&ports, "s");
        await_event(&mut machine, EventKind::Suspend);
        machine.wake().unwrap();
        hears(&ports, "awake");
        machine.wake().unwrap();
        machine.begin_pause().unwrap();
        machine.finish_save().unwrap();
        assert!(!machine.was_suspended(), "{what}");
        machine.resume().unwrap();
        machine.quit();
    }
}

/// Before QEMU 9.0 it wakes in a pause, by the alarm that falls due there. It is whole, and what was taken in that pause is not.
#[test]
fn a_guest_that_wakes_in_a_pause_runs_on_and_it_is_said() {
    let dir = tempfile::tempdir().unwrap();
    for qemu in guest::qemus() {
        let (mut machine, ports) = suspended(&config(&qemu, dir.path()), "a");
        if machine.version().major >= 9 {
            machine.quit();
            continue;
        }
        // It wakes behind the save, and no event is read before the end of the pause.
        machine.begin_pause().unwrap();
        machine.finish_save().unwrap();
        assert!(machine.was_suspended());
        hears(&ports, "awake");
        machine.resume().unwrap();
        assert!(machine.woke_in_pause() && !machine.woke_in_pause());
        await_event(&mut machine, EventKind::Wakeup);

        // At the end of a pause behind which it is not to run.
        say(&ports, "a");
        await_event(&mut machine, EventKind::Suspend);
        machine.begin_pause().unwrap();
        machine.finish_save().unwrap();
        hears(&ports, "awake");
        machine.stay().unwrap();
        assert!(machine.woke_in_pause());

        // In one that is no checkpoint's.
        await_event(&mut machine, EventKind::Wakeup);
        say(&ports, "a");
        await_event(&mut machine, EventKind::Suspend);
        machine.stop().unwrap();
        hears(&ports, "awake");
        machine.cont_in_time().unwrap();
        assert!(machine.woke_in_pause());

        machine.begin_pause().unwrap();
        machine.finish_save().unwrap();
        machine.resume().unwrap();
        assert!(!machine.woke_in_pause(), "it ran, and was stopped");
        await_count(machine.memory(), COUNTER, word(machine.memory(), COUNTER) + 10);
        machine.quit();
    }
}

#[test]
fn a_suspended_guest_stays_so_at_a_take_over_and_wakes_by_its_button() {
    pairs(|one, other, what| {
        let (machine, _ports) = suspended(one, "s");
        let (mut standby, ports) = taken_over(machine, other, || ());
        assert_eq!(standby.query_status().unwrap(), RunState::Suspended, "{what}");
        assert!(!standby.has_overslept().unwrap(), "{what}: no alarm was set");
        let count = word(standby.memory(), COUNTER);
        // Checkpoints of its new host are of a suspended guest, too.
        standby.begin_pause().unwrap();
        standby.finish_save().unwrap();
        assert!(standby.was_suspended(), "{what}");
        standby.resume().unwrap();
        standby.wake().unwrap();
        hears(&ports, "awake");
        await_count(standby.memory(), COUNTER, 10);
        assert!(word(standby.memory(), COUNTER) > count, "{what}: its memory is that of before");
        standby.quit();
    });
}

#[test]
fn a_suspended_guest_wakes_at_its_new_host_by_its_alarm() {
    pairs(|one, other, what| {
        let (machine, _ports) = suspended(one, "a");
        let (mut standby, ports) = taken_over(machine, other, || ());
        assert_eq!(standby.query_status().unwrap(), RunState::Suspended, "{what}");
        let woken = wakes_in_time(&mut standby);
        hears(&ports, "awake");
        eprintln!("{what}: woken by {}", if woken { "us" } else { "QEMU" });
        standby.quit();
    });
}

#[test]
fn an_alarm_that_fell_due_while_nobody_had_the_guest_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    for qemu in guest::qemus() {
        let config = config(&qemu, dir.path());
        let (machine, _ports) = suspended(&config, "a");
        // By the wall clock, whose second the alarm names.
        let past = || std::thread::sleep(Duration::from_secs(4));
        let (mut standby, ports) = taken_over(machine, &config, past);
        wakes_in_time(&mut standby);
        hears(&ports, "awake");
        assert!(!standby.has_overslept().unwrap());
        standby.quit();
    }
}
