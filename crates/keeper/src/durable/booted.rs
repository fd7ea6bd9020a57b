//! A VM that was booted elsewhere, or earlier, comes to this host.
//!
//! It is built as it was booted, not as this host's file says: see [`ninefold_model::difference`]. But this host has its volumes, TAP
//! devices and log as its file says, and a machine is no larger than what this host can hold.

use ninefold_machine::command_line::{CPU, MACHINE};
use ninefold_machine::version::{NEWEST_TESTED, OLDEST};
use ninefold_machine::{Machine, QemuVersion};
use ninefold_model::HostName;
use ninefold_model::difference::{Bearing, differences};
use ninefold_model::spec::{Hardware, VmSpec};
use ninefold_replica::stream::Hello;
use ninefold_snapshot::file::Platform;

use crate::config::KeeperConfig;
use crate::error::report;
use crate::primary::capture::physical_memory;

/// Most vCPUs of a machine of this type.
const MAX_VCPUS: u16 = 255;

/// Whether this host can hold the VM that `runner` runs as `runs`.
///
/// # Errors
/// Each field that is in the way, with both values, and what to do.
pub fn can_hold(runs: &VmSpec, runner: &HostName, config: &KeeperConfig) -> Result<(), String> {
    let found = differences(runs, &config.vm);
    let bars = found.iter().filter(|d| d.bearing == Bearing::CannotFollow);
    let bars: Vec<_> = bars.map(|d| d.sentence(runner, &config.host.name)).collect();
    if !bars.is_empty() {
        return Err(format!(
            "{}: have both files say the same, and start the keeper of {} anew",
            bars.join("; "),
            config.host.name
        ));
    }
    fits(runs, &config.vm.hardware, physical_memory())
}

/// Whether this host can go on from its log of a VM that ran as `ran`. How the VM is to be kept from now on may have been changed since.
///
/// # Errors
/// As [`can_hold`].
pub fn can_recover(ran: &VmSpec, config: &KeeperConfig) -> Result<(), String> {
    let found = ran.hardware.compatible(&config.vm.hardware);
    let bars: Vec<_> = found.iter().filter(|d| d.bearing == Bearing::CannotFollow).map(ToString::to_string).collect();
    if !bars.is_empty() {
        return Err(format!(
            "the VM of the log had other devices than this host's file says ({}): with them in the file it goes on from the log",
            bars.join("; ")
        ));
    }
    fits(ran, &config.vm.hardware, physical_memory())
}

/// Whether a machine is one that can be built here: what another host, or a file, says of its size is bounded before anything is
/// made of that size.
///
/// # Errors
/// What is too large, or makes no sense.
pub fn fits(runs: &VmSpec, file: &Hardware, physical: u64) -> Result<(), String> {
    let (hardware, most) = (&runs.hardware, file.memory_mib.max(physical >> 20));
    if hardware.memory_mib == 0 || hardware.memory_mib > most {
        return Err(format!("hardware.memory_mib: the VM has {}, and this host has {most} MiB", hardware.memory_mib));
    }
    if !(1..=MAX_VCPUS).contains(&hardware.vcpus) {
        return Err(format!("hardware.vcpus: the VM has {}, 1 to {MAX_VCPUS} are possible", hardware.vcpus));
    }
    runs.policy.watchdog.as_ref().map_or(Ok(()), |watchdog| watchdog.check())
}

/// Whether the state of the VM that `hello` speaks of can be loaded into `machine`, as far as versions tell: the same machine type and
/// CPU model, the same accelerator, and QEMUs that are known to load each other's.
///
/// # Errors
/// What differs, for people.
pub fn suits(hello: &Hello, machine: &Machine) -> Result<(), String> {
    let numbers = |v: QemuVersion| [v.major, v.minor, v.micro];
    let ours = Platform {
        arch: hello.spec.hardware.arch,
        accel: machine.accel(),
        machine: MACHINE.into(),
        cpu: CPU.into(),
        qemu: numbers(machine.version()),
    };
    suits_platform(hello, &ours)
}

fn suits_platform(hello: &Hello, ours: &Platform) -> Result<(), String> {
    let version = QemuVersion::parse(&hello.qemu)
        .ok_or_else(|| format!("'{:.40}' is not the version of a QEMU", hello.qemu.escape_debug().to_string()))?;
    let theirs = Platform {
        arch: hello.spec.hardware.arch,
        accel: hello.accel,
        machine: hello.machine.clone(),
        cpu: hello.cpu.clone(),
        qemu: [version.major, version.minor, version.micro],
    };
    let range = |v: QemuVersion| [v.major, v.minor];
    theirs.check(ours, range(OLDEST), range(NEWEST_TESTED)).map_err(|e| report(&e))
}

#[cfg(test)]
mod tests {
    use ninefold_model::spec::Accel;

    use super::*;

    fn config() -> KeeperConfig {
        let config = serde_json::json!({
            "id": "3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4", "name": "db",
            "hardware": {
                "memory_mib": 256, "boot": "volume", "volumes": [{ "name": "root", "size": 512 }],
                "nics": [{ "mac": "52:54:00:12:34:56" }]
            },
            "host": {
                "name": "b", "bridges": ["br0"], "run_dir": "/run/db", "listen": "10.8.0.2:7701", "security": "plain_text"
            },
            "policy": { "non_volatile": {}, "witness": { "host": "w", "addr": "10.8.0.3:7700" } }
        });
        serde_json::from_value(config).unwrap()
    }

    /// A machine of another size is followed; devices that this host has otherwise are named, each with both values.
    #[test]
    fn what_runs_is_followed_or_refused_by_name() {
        let (config, a) = (config(), "a".parse().unwrap());
        let runs = |change: fn(&mut VmSpec)| {
            let mut spec = config.vm.clone();
            change(&mut spec);
            can_hold(&spec, &a, &config)
        };
        runs(|_| {}).unwrap();
        runs(|s| (s.hardware.vcpus, s.hardware.memory_mib) = (2, 128)).unwrap();
        runs(|s| s.hardware.uuid = Some(ninefold_model::Uuid::random(7))).unwrap();
        let said = runs(|s| {
            s.hardware.volumes[0].size = 1024;
            s.hardware.nics[0].mac.0[5] = 0;
        })
        .unwrap_err();
        assert!(said.contains("hardware.volumes[0].size: a runs 1024, b's file says 512"), "{said}");
        let mac = "hardware.nics[0].mac: a runs 52:54:00:12:34:00, b's file says 52:54:00:12:34:56";
        assert!(said.contains(mac) && said.contains("start the keeper of b anew"), "{said}");
        assert!(runs(|s| s.policy.non_volatile = None).unwrap_err().contains("policy.non_volatile: a runs none"));
    }

    /// The interval of a log may be another after it was changed, the devices may not.
    #[test]
    fn a_log_is_gone_on_from_with_what_was_booted() {
        let config = config();
        let ran = |change: fn(&mut VmSpec)| {
            let mut spec = config.vm.clone();
            change(&mut spec);
            can_recover(&spec, &config)
        };
        ran(|s| (s.hardware.vcpus, s.hardware.memory_mib) = (2, 128)).unwrap();
        ran(|s| s.policy.non_volatile = None).unwrap();
        let said = ran(|s| s.hardware.volumes.clear()).unwrap_err();
        assert!(said.contains("hardware.volumes (how many): 0 and not 1"), "{said}");
    }

    #[test]
    fn a_machine_is_no_larger_than_the_host() {
        let file = config().vm;
        let fits = |vcpus, memory_mib, physical_mib: u64| {
            let hardware = Hardware { vcpus, memory_mib, ..file.hardware.clone() };
            super::fits(&VmSpec { hardware, ..file.clone() }, &file.hardware, physical_mib << 20)
        };
        fits(255, 1024, 1024).unwrap();
        // What this host's own file asks for it may have.
        fits(1, 256, 100).unwrap();
        assert!(fits(1, 1025, 1024).unwrap_err().contains("hardware.memory_mib: the VM has 1025"));
        assert!(fits(1, u64::MAX, 1024).is_err() && fits(1, 0, 1024).is_err());
        assert!(fits(256, 256, 1024).unwrap_err().contains("hardware.vcpus"));
        assert!(fits(0, 256, 1024).is_err());
    }

    /// A primary whose QEMU is too new or of another kind is told so before anything is copied.
    #[test]
    fn another_platform_is_refused_by_name() {
        let hello =
            Hello { spec: config().vm, machine: MACHINE.into(), cpu: CPU.into(), ..crate::hello::hello(1, 4096) };
        let ours = Platform {
            arch: hello.spec.hardware.arch,
            accel: Accel::Tcg,
            machine: MACHINE.into(),
            cpu: CPU.into(),
            qemu: [7, 2, 0],
        };
        let with = |change: fn(&mut Hello)| {
            let mut hello = hello.clone();
            change(&mut hello);
            suits_platform(&hello, &ours)
        };
        with(|_| {}).unwrap();
        for (change, what) in [
            ((|h| h.machine = "pc-i440fx-9.9".into()) as fn(&mut Hello), "machine type"),
            (|h| h.cpu = "max".into(), "CPU"),
            (|h| h.accel = Accel::Kvm, "accelerator"),
            (|h| h.qemu = "99.0.0".into(), "QEMU is 99.0.0"),
            (|h| h.qemu = "new\n".into(), "is not the version"),
        ] {
            let said = with(change).unwrap_err();
            assert!(said.contains(what) && !said.contains('\n'), "{said}");
        }
    }
}
