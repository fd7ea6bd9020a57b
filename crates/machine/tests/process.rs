//! QEMU's death is noticed, and QEMU dies with its keeper.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ninefold_machine::MachineError;
use ninefold_model::spec::Accel;
use ninefold_testkit::guest;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

const KEEPER: &str = "NINEFOLD_TEST_KEEPER";

#[test]
fn death_of_qemu_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let image = guest::boot_sector(dir.path());
    for qemu in guest::qemus() {
        let (mut machine, _ports) = guest::launch(&guest::config(&qemu, Accel::Tcg, 1, &image));
        machine.start().unwrap();
        machine.kill();
        poll(&mut [PollFd::from_borrowed_fd(machine.pidfd(), PollFlags::IN)], None).unwrap();
        let exit = machine.wait_exit(Duration::from_secs(10)).unwrap();
        assert_eq!((exit.code, exit.signal), (None, Some(9)));
        assert!(matches!(machine.begin_pause(), Err(MachineError::Exited { .. })));
        assert!(matches!(machine.poll_events(), Err(MachineError::Exited { .. })));
    }
}

#[test]
fn what_qemu_says_is_in_the_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = guest::config(Path::new("qemu-system-x86_64"), Accel::Tcg, 1, &guest::boot_sector(dir.path()));
    config.extra_args = vec!["-device".into(), "no-such-device".into()];
    let ram = std::sync::Arc::new(ninefold_machine::Ram::create(guest::MEMORY_MIB << 20).unwrap());
    let error = ninefold_machine::Machine::launch(&config, ram.clone()).map(drop).unwrap_err();
    assert!(error.to_string().contains("no-such-device"), "{error}");
    config.qemu = "/nowhere/qemu".into();
    let error = ninefold_machine::Machine::launch(&config, ram).map(drop).unwrap_err();
    assert!(matches!(error, MachineError::Spawn { .. }), "{error}");
}

/// Not a test of its own: the keeper of the next one, run in another process.
#[test]
fn keeper_of_another_test() {
    let Some(qemu) = std::env::var_os(KEEPER) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, _ports) =
        guest::launch(&guest::config(Path::new(&qemu), Accel::Tcg, 1, &guest::boot_sector(dir.path())));
    machine.start().unwrap();
    // The image is open in QEMU; the keeper's end will not run destructors.
    dir.close().unwrap();
    println!("\nqemu {}", machine.pid());
    loop {
        std::thread::park();
    }
}

#[test]
fn qemu_dies_with_its_keeper() {
    for qemu in guest::qemus() {
        let mut keeper = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "keeper_of_another_test", "--nocapture", "--test-threads=1"])
            .env(KEEPER, &qemu)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(keeper.stdout.take().unwrap()).lines();
        let pid = lines.map_while(Result::ok).find_map(|l| l.strip_prefix("qemu ").map(|p| p.parse::<i32>().unwrap()));
        let pidfd = pidfd_open(Pid::from_raw(pid.unwrap()).unwrap(), PidfdFlags::empty()).unwrap();
        keeper.kill().unwrap();
        keeper.wait().unwrap();
        let limit = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ready, 1, "{}: QEMU outlives its keeper", qemu.display());
    }
}
