//! A watchdog's timer travels with the VM and runs only while the guest does; a panic and a memory dump.

use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use guest::{Shadow, await_count, hears, word};
use ninefold_machine::{EventKind, Machine, MachineConfig, RunState};
use ninefold_model::health::WatchdogDevice;
use ninefold_model::spec::{Accel, Boot};
use ninefold_testkit::{guest, watched};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use watched::{Behaviour, COUNTER, STARTS};

/// Only so that a failure ends.
const LIMIT: Duration = Duration::from_secs(60);
/// Longer than either watchdog's time.
const LONG: Duration = Duration::from_millis(2600);

fn config(qemu: &Path, device: WatchdogDevice, dir: &Path) -> MachineConfig {
    let mut config = guest::config(qemu, Accel::Tcg, 1, Path::new("unused"));
    config.boot = Boot::BootSector { image: watched::image(dir, Behaviour::Works) };
    config.spec.hardware.watchdog = Some(device);
    config
}

fn each(test: impl Fn(&MachineConfig, &str)) {
    let dir = tempfile::tempdir().unwrap();
    for qemu in guest::qemus() {
        for device in [WatchdogDevice::I6300esb, WatchdogDevice::Ib700] {
            test(&config(&qemu, device, dir.path()), &format!("{} {device}", qemu.display()));
        }
    }
}

fn say(console: &OwnedFd, text: &str) {
    assert_eq!(rustix::io::write(console, text.as_bytes()).unwrap(), text.len());
}

/// The next event that passes `wanted`; None when none comes in this time.
fn event(machine: &mut Machine, within: Duration, wanted: impl Fn(&EventKind) -> bool) -> Option<EventKind> {
    let deadline = Instant::now() + within;
    loop {
        machine.poll_events().unwrap();
        while let Some(event) = machine.next_event() {
            if wanted(&event.kind) {
                return Some(event.kind);
            }
        }
        let left = deadline.checked_duration_since(Instant::now())?;
        let limit = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        poll(&mut [PollFd::from_borrowed_fd(machine.qmp_fd(), PollFlags::IN)], Some(&limit)).unwrap();
    }
}

fn fires(machine: &mut Machine, within: Duration) -> bool {
    event(machine, within, |e| *e == EventKind::Watchdog).is_some()
}

#[test]
fn it_fires_and_the_guest_stands_still_until_it_is_told_what_to_do() {
    each(|config, what| {
        let (mut machine, ports) = guest::launch(config);
        machine.start().unwrap();
        hears(&ports, "up");
        assert!(!fires(&mut machine, LONG), "{what}: a guest that pats is left alone");
        say(&ports.console, "h");
        assert!(fires(&mut machine, LIMIT), "{what}");
        assert_eq!(machine.query_status().unwrap(), RunState::Other("watchdog".into()), "{what}");
        let memory = machine.memory().clone();
        assert_eq!(word(&memory, STARTS), 1);
        // A firing that nobody has seen yet can be in a checkpoint: it must not be in the way of one.
        machine.begin_pause().unwrap();
        machine.finish_save().unwrap();
        machine.reset().unwrap();
        machine.cont().unwrap();
        hears(&ports, "up");
        assert_eq!(word(&memory, STARTS), 2, "{what}");
        machine.quit();
    });
}

#[test]
fn pauses_and_a_take_over_do_not_let_it_fire_and_do_not_stop_it() {
    each(|config, what| {
        let (mut machine, ports) = guest::launch(config);
        machine.start().unwrap();
        hears(&ports, "up");
        let memory = machine.memory().clone();
        // It stands still for longer than its watchdog's time, armed.
        machine.begin_pause().unwrap();
        machine.finish_save().unwrap();
        assert!(!fires(&mut machine, LONG), "{what}: fired in a pause");
        machine.resume().unwrap();
        await_count(&memory, COUNTER, 20);
        assert!(!fires(&mut machine, Duration::ZERO), "{what}: fired because of a pause");

        // The other host waits for longer than that, too.
        machine.begin_pause().unwrap();
        let mut shadow = Shadow::empty(&memory);
        shadow.take_all(&memory);
        machine.finish_save().unwrap();
        let mut state = Vec::new();
        machine.state_into(&mut state).unwrap();
        let (mut standby, its_ports) = guest::launch(&guest::standby(config));
        machine.kill();
        shadow.give(standby.memory());
        standby.load(&state).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(!fires(&mut standby, LONG), "{what}: fired before the guest went on");
        standby.start().unwrap();
        let memory = standby.memory().clone();
        await_count(&memory, COUNTER, 20);
        assert!(!fires(&mut standby, LONG), "{what}: fired because of a take-over");

        // And it is still armed.
        say(&its_ports.console, "h");
        assert!(fires(&mut standby, LIMIT), "{what}: a take-over has disarmed it");
        standby.quit();
    });
}

#[test]
fn time_that_ran_before_a_take_over_counts() {
    each(|config, what| {
        let (mut machine, ports) = guest::launch(config);
        machine.start().unwrap();
        hears(&ports, "up");
        say(&ports.console, "h");
        // It has stopped patting by now; how much of its time is gone does not matter.
        let memory = machine.memory().clone();
        await_count(&memory, COUNTER, 20);
        machine.begin_pause().unwrap();
        let mut shadow = Shadow::empty(&memory);
        shadow.take_all(&memory);
        machine.finish_save().unwrap();
        let mut state = Vec::new();
        machine.state_into(&mut state).unwrap();
        let (mut standby, _ports) = guest::launch(&guest::standby(config));
        machine.kill();
        shadow.give(standby.memory());
        standby.load(&state).unwrap();
        standby.start().unwrap();
        assert!(fires(&mut standby, LIMIT), "{what}");
        standby.quit();
    });
}

#[test]
fn a_panic_is_heard_of() {
    each(|config, what| {
        let (mut machine, ports) = guest::launch(config);
        machine.start().unwrap();
        hears(&ports, "up");
        say(&ports.console, "p");
        assert!(event(&mut machine, LIMIT, |e| *e == EventKind::GuestPanicked).is_some(), "{what}");
        assert_eq!(machine.query_status().unwrap(), RunState::Other("guest-panicked".into()), "{what}");
        machine.reset().unwrap();
        machine.cont().unwrap();
        hears(&ports, "up");
        machine.quit();
    });
}

#[test]
fn a_dump_holds_the_guests_memory() {
    each(|config, what| {
        let (mut machine, ports) = guest::launch(config);
        machine.start().unwrap();
        hears(&ports, "up");
        say(&ports.console, "h");
        assert!(fires(&mut machine, LIMIT), "{what}");
        let mut file = tempfile::tempfile().unwrap();
        machine.dump(file.as_fd()).unwrap();
        let done = event(&mut machine, LIMIT, |e| matches!(e, EventKind::DumpCompleted { .. }));
        assert_eq!(done, Some(EventKind::DumpCompleted { ok: true }), "{what}");
        let progress = machine.dump_progress().unwrap();
        assert!(progress.bytes_done >= guest::MEMORY_MIB << 20, "{what}: {progress:?}");
        assert_eq!(machine.query_status().unwrap(), RunState::Other("watchdog".into()), "{what}: it stays as it was");
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut dump = Vec::new();
        file.read_to_end(&mut dump).unwrap();
        assert_eq!(&dump[..4], b"\x7fELF", "{what}");
        let sector = std::fs::read(match &config.boot {
            Boot::BootSector { image } => image,
            Boot::Linux { .. } | Boot::Volume => unreachable!("the guest is a boot sector"),
        });
        let sector = sector.unwrap();
        // Its code: the processor writes to the descriptors behind it.
        assert!(dump.windows(256).any(|w| w == &sector[..256]), "{what}: the boot sector is not in the dump");
        machine.quit();
    });
}

#[test]
fn a_dump_that_cannot_be_written_is_told() {
    let dir = tempfile::tempdir().unwrap();
    for qemu in guest::qemus() {
        let (mut machine, ports) = guest::launch(&config(&qemu, WatchdogDevice::Ib700, dir.path()));
        machine.start().unwrap();
        hears(&ports, "up");
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        machine.dump(full.as_fd()).unwrap();
        let done = event(&mut machine, LIMIT, |e| matches!(e, EventKind::DumpCompleted { .. }));
        assert_eq!(done, Some(EventKind::DumpCompleted { ok: false }));
        // The guest, which ran before, goes on by itself.
        let memory = machine.memory().clone();
        await_count(&memory, COUNTER, 20);
        machine.quit();
    }
}
