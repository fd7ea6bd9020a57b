//! QEMU's arguments as typed data.
//!
//! Every socket and file of the keeper reaches QEMU by inherited descriptor, so that no path is left behind. Why these
//! devices and options: `docs/decisions/0003-machine-and-devices.md`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::fd::RawFd;
use std::path::PathBuf;

use ninefold_model::Uuid;
use ninefold_model::health::WatchdogDevice;
use ninefold_model::spec::{Accel, Boot, Hardware, VmSpec, serial};

use crate::error::{MachineError, Result};

/// The machine type, versioned: hosts with different QEMUs build the same machine.
pub const MACHINE: &str = "pc-i440fx-7.2";
/// x86-64-v2, within what TCG, Intel and AMD all offer; `enforce` makes a host that lacks a part of it refuse to start
/// rather than show the guest another CPU.
pub const CPU: &str = "Nehalem,enforce";

/// Descriptors that QEMU inherits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptors {
    pub ram: RawFd,
    pub qmp: RawFd,
    pub console: RawFd,
    pub agent: RawFd,
    /// A file for QEMU's log.
    pub log: RawFd,
    /// One for each of the spec's NICs.
    pub nics: Vec<RawFd>,
}

/// What is not in the spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchOptions {
    pub accel: Accel,
    /// Start as a standby that waits for device state.
    pub incoming: bool,
    /// The generation id: see [`MachineConfig`](crate::MachineConfig).
    pub generation: Uuid,
    pub fds: Descriptors,
    /// It sees the memory and writes none of it, and its volumes are empty: see [`Rehearsal`](crate::Rehearsal).
    pub rehearsal: bool,
    /// One Unix socket for each of the spec's volumes, behind which an NBD server offers it under its name.
    pub volumes: Vec<PathBuf>,
}

/// Every virtio device speaks the legacy interface (virtio 0.9.5). With the modern one QEMU saves the registers of 1,024
/// queues per device in each checkpoint, used or not: 28 KiB and half a millisecond of pause for each device.
const LEGACY: &str = "disable-modern=on,disable-legacy=off";

/// Slots of the machine's PCI bus for what a VM may choose: of 32, the chipset has two, the serial ports and the random
/// numbers one each. (`tests/slots.rs` tries it.)
const SLOTS: usize = 28;

/// Whether the bus has room for a VM's devices.
///
/// # Errors
/// What is too much, in words.
pub fn check_slots(hardware: &Hardware) -> Result<(), String> {
    let watchdog = usize::from(hardware.watchdog == Some(WatchdogDevice::I6300esb));
    let (nics, volumes) = (hardware.nics.len(), hardware.volumes.len());
    if nics + volumes + watchdog <= SLOTS {
        return Ok(());
    }
    let and = if watchdog > 0 { " and an i6300esb watchdog" } else { "" };
    Err(format!(
        "hardware: the VM has {nics} NICs and {volumes} volumes{and}, and its PCI bus has {SLOTS} slots for them, one for each"
    ))
}

/// The arguments for `spec`, which boots from `boot` here.
///
/// # Errors
/// `Spec` when the VM cannot be built, such as a path with bytes that QEMU's option syntax cannot carry.
pub fn arguments(spec: &VmSpec, boot: &Boot, options: &LaunchOptions) -> Result<Vec<OsString>> {
    let refuse = |reason: String| MachineError::Spec { vm: spec.name.to_string(), reason };
    let hardware = &spec.hardware;
    if hardware.vcpus == 0 || hardware.vcpus > 255 {
        return Err(refuse(format!("{} vCPUs: 1 to 255 are possible", hardware.vcpus)));
    }
    if hardware.nics.len() != options.fds.nics.len() {
        return Err(refuse("one descriptor for each NIC is needed".into()));
    }
    if hardware.volumes.len() != options.volumes.len() {
        return Err(refuse("one socket for each volume is needed".into()));
    }
    let boot_order = hardware.boot_order(&boot.kind()).map_err(|e| refuse(e.to_string()))?;
    let mut args = Arguments(Vec::new());
    args.flag("-nodefaults").flag("-no-user-config").option("-display", "none");
    // -no-shutdown: a guest that powers off leaves a QEMU whose last output can still be committed.
    args.flag("-S").flag("-no-shutdown");
    // QEMU 7.2 does not tell where its RAM blocks are, except in its log: see `blocks`.
    args.option("-D", format!("/proc/self/fd/{}", options.fds.log));
    args.option("-trace", "enable=find_ram_offset").option("-trace", "enable=qemu_anon_ram_alloc");
    if let Some((one, other)) = hardware.same_serials() {
        return Err(refuse(format!("the volumes {one} and {other} have the same serial number")));
    }
    args.option("-uuid", spec.uuid().to_string());
    args.option("-name", format!("guest={},debug-threads=on", spec.name));
    // mem-merge=off: a page that the kernel merges with an equal one loses its soft-dirty bit (see `dirty`).
    args.option(
        "-machine",
        format!("{MACHINE},memory-backend=m0,mem-merge=off,suppress-vmdesc=on,hpet=off,usb=off,vmport=off,smm=off"),
    );
    args.option("-global", "migration.send-configuration=off");
    args.option(
        "-accel",
        match options.accel {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg,thread=multi",
        },
    );
    args.option("-cpu", CPU);
    args.option("-smp", hardware.vcpus.to_string());
    args.option("-m", format!("size={}M", hardware.memory_mib));
    args.option(
        "-object",
        format!(
            "memory-backend-file,id=m0,size={}M,mem-path=/proc/self/fd/{},{},prealloc=off",
            hardware.memory_mib,
            options.fds.ram,
            if options.rehearsal { private() } else { "share=on" }
        ),
    );
    args.option("-chardev", format!("socket,id=mon,fd={}", options.fds.qmp));
    args.option("-mon", "chardev=mon,mode=control");
    args.option("-chardev", format!("socket,id=console,fd={}", options.fds.console));
    args.option("-serial", "chardev:console");
    args.option("-device", format!("virtio-serial-pci,id=serial,max_ports=2,{LEGACY}"));
    args.option("-chardev", format!("socket,id=agent,fd={}", options.fds.agent));
    args.option("-device", "virtserialport,bus=serial.0,nr=1,chardev=agent,name=org.qemu.guest_agent.0");
    // QEMU writes it into the guest's memory when the guest boots, and again, with an event for the guest, when it has
    // loaded a state.
    args.option("-device", format!("vmgenid,guid={}", options.generation));
    args.option("-object", "rng-random,id=rng,filename=/dev/urandom");
    args.option("-device", format!("virtio-rng-pci,rng=rng,{LEGACY}"));
    for (n, (nic, fd)) in hardware.nics.iter().zip(&options.fds.nics).enumerate() {
        args.option("-netdev", format!("stream,id=n{n},server=off,addr.type=fd,addr.str={fd}"));
        // The stream carries no virtio-net headers: QEMU then offers the guest no offloads by itself.
        args.option(
            "-device",
            format!("virtio-net-pci,netdev=n{n},mac={},romfile=,rx_queue_size=1024,{LEGACY}", nic.mac),
        );
    }
    for (n, ((volume, socket), place)) in hardware.volumes.iter().zip(&options.volumes).zip(boot_order).enumerate() {
        let bootindex = place.map_or(String::new(), |place| format!(",bootindex={place}"));
        let path = socket.to_str().ok_or_else(|| refuse("a volume's socket has a path that is not UTF-8".into()))?;
        args.option(
            "-blockdev",
            if options.rehearsal {
                format!("driver=null-co,node-name=v{n},size={},read-zeroes=on", volume.size)
            } else {
                // A discard means zeros, on every host the same. QEMU would otherwise not pass it on.
                format!(
                    "driver=nbd,node-name=v{n},server.type=unix,server.path={},export={},discard=unmap",
                    path.replace(',', ",,"),
                    volume.name
                )
            },
        );
        // Errors go to the guest: a VM that stands still because of one would be taken for a dead one.
        args.option(
            "-device",
            format!(
                "virtio-blk-pci,drive=v{n},serial={},rerror=report,werror=report{bootindex},{LEGACY}",
                serial(&volume.name)
            ),
        );
    }
    if let Some(watchdog) = hardware.watchdog {
        // Behind the others: they keep their places on the bus. What follows a failure is the keeper's to decide, and the
        // guest stands still until it has.
        args.option(
            "-device",
            match watchdog {
                WatchdogDevice::I6300esb => "i6300esb",
                WatchdogDevice::Ib700 => "ib700",
            },
        );
        // The kinds of event that QEMU 7.2 knows: the guest reads them, and a newer QEMU would offer it another.
        args.option("-device", "pvpanic,events=3");
        args.option("-action", "watchdog=pause,panic=pause");
    }
    match boot {
        Boot::Linux { kernel, initrd, cmdline } => {
            args.path("-kernel", kernel.as_os_str());
            if let Some(initrd) = initrd {
                if initrd.as_os_str().as_encoded_bytes().contains(&b',') {
                    return Err(refuse("the initrd's path has a comma, which QEMU takes for a list".into()));
                }
                args.path("-initrd", initrd.as_os_str());
            }
            if !cmdline.is_empty() {
                args.option("-append", cmdline);
            }
        }
        Boot::BootSector { image } => {
            let path = image.to_str().ok_or_else(|| refuse("the image's path is not UTF-8".into()))?;
            // A comma is doubled in QEMU's option syntax.
            let path = path.replace(',', ",,");
            args.option("-drive", format!("if=none,id=boot,format=raw,readonly=on,file={path}"));
            // The firmware takes a disk of less than one cylinder for broken, unless told its geometry.
            args.option(
                "-device",
                format!("virtio-blk-pci,drive=boot,bootindex=0,lcyls=1,lheads=16,lsecs=63,{LEGACY}"),
            );
        }
        // The firmware tries what has a bootindex, and nothing else.
        Boot::Volume => {
            args.option("-boot", "strict=on");
        }
    }
    if options.incoming {
        args.option("-incoming", "defer");
    }
    Ok(args.0)
}

/// How memory is mapped of which nothing is to be written: no swap space is reserved for a copy of all of it, unless the host reserves
/// for everything (proc_sys_vm(5), overcommit_memory), where QEMU refuses to be told otherwise.
fn private() -> &'static str {
    let strict = std::fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.trim() == "2");
    if strict { "share=off" } else { "share=off,reserve=off" }
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, flag: &str) -> &mut Self {
        self.0.push(flag.into());
        self
    }

    fn option(&mut self, name: &str, value: impl AsRef<str>) -> &mut Self {
        self.flag(name).flag(value.as_ref())
    }

    fn path(&mut self, name: &str, path: &std::ffi::OsStr) -> &mut Self {
        self.flag(name).0.push(path.to_owned());
        self
    }
}

/// The arguments as a person would type them, for logs.
pub fn display(args: &[OsString]) -> String {
    args.iter().fold(String::new(), |mut line, arg| {
        let _ = write!(line, "{}{}", if line.is_empty() { "" } else { " " }, arg.to_string_lossy());
        line
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ninefold_model::VmId;
    use ninefold_model::spec::{AccelChoice, Arch, BootKind, Nic, VolumeSpec};

    fn spec() -> VmSpec {
        let hardware = Hardware {
            arch: Arch::X86_64,
            vcpus: 2,
            memory_mib: 64,
            accel: AccelChoice::Tcg,
            boot: BootKind::Linux { cmdline: String::new() },
            nics: vec![Nic { mac: "52:54:00:00:00:01".parse().unwrap() }],
            volumes: Vec::new(),
            watchdog: None,
            uuid: None,
        };
        VmSpec { id: VmId::random(7), name: "t".parse().unwrap(), hardware, policy: Default::default() }
    }

    fn linux() -> Boot {
        Boot::Linux { kernel: "/k".into(), initrd: None, cmdline: String::new() }
    }

    fn options() -> LaunchOptions {
        let fds = Descriptors { ram: 10, qmp: 11, console: 12, agent: 13, log: 15, nics: vec![14] };
        let generation = Uuid::random(7);
        LaunchOptions { accel: Accel::Tcg, incoming: true, generation, fds, rehearsal: false, volumes: Vec::new() }
    }

    #[test]
    fn everything_is_inherited() {
        let boot = Boot::Linux { kernel: "/k".into(), initrd: Some("/i".into()), cmdline: "quiet".into() };
        let line = display(&arguments(&spec(), &boot, &options()).unwrap());
        for part in [
            "mem-path=/proc/self/fd/10,share=on",
            "socket,id=mon,fd=11",
            "socket,id=console,fd=12",
            "socket,id=agent,fd=13",
            "stream,id=n0,server=off,addr.type=fd,addr.str=14",
            "mac=52:54:00:00:00:01",
            "-kernel /k -initrd /i -append quiet",
            "-smp 2",
            "-incoming defer",
            "suppress-vmdesc=on",
            "mem-merge=off",
            "migration.send-configuration=off",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    #[test]
    fn volumes_are_nbd_exports() {
        let mut with = spec();
        let name = "data".parse().unwrap();
        with.hardware.volumes.push(VolumeSpec::new(name, 1 << 20));
        assert!(arguments(&with, &linux(), &options()).is_err(), "no socket");
        let options = LaunchOptions { volumes: vec!["/run/a,b".into()], ..options() };
        let line = display(&arguments(&with, &linux(), &options).unwrap());
        assert!(line.contains("server.path=/run/a,,b,export=data,discard=unmap"), "{line}");
        assert!(line.contains("virtio-blk-pci,drive=v0,serial=data,"), "{line}");
        assert!(!line.contains("bootindex"), "{line}");
        let line = display(&arguments(&with, &Boot::Volume, &options).unwrap());
        assert!(line.contains("drive=v0,serial=data,rerror=report,werror=report,bootindex=0,"), "{line}");
        assert!(line.contains("-boot strict=on") && !line.contains("-kernel"), "{line}");
        with.hardware.volumes.clear();
        assert!(
            arguments(&with, &Boot::Volume, &LaunchOptions { volumes: Vec::new(), ..options }).is_err(),
            "nothing to boot from"
        );
    }

    #[test]
    fn the_guest_is_shown_who_it_is() {
        let mut vm = spec();
        let line = display(&arguments(&vm, &linux(), &options()).unwrap());
        assert!(line.contains(&format!(" -uuid {} ", vm.uuid())), "{line}");
        assert!(line.contains(" vmgenid,guid=00000000-0000-4000-8000-000000000007 "), "{line}");
        vm.hardware.uuid = Some("1b4e28ba-2fa1-41d2-883f-0016d3cca427".parse().unwrap());
        let line = display(&arguments(&vm, &linux(), &options()).unwrap());
        assert!(line.contains(" -uuid 1b4e28ba-2fa1-41d2-883f-0016d3cca427 "), "{line}");
    }

    #[test]
    fn every_disk_has_a_serial_number_of_its_own() {
        let mut vm = spec();
        let names = ["a-database-of-customers-1", "a-database-of-customers-2"];
        vm.hardware.volumes = names.map(|name| VolumeSpec::new(name.parse().unwrap(), 1 << 20)).to_vec();
        let options = LaunchOptions { volumes: vec!["/a".into(), "/b".into()], ..options() };
        let line = display(&arguments(&vm, &linux(), &options).unwrap());
        let serials: Vec<_> = line.split("serial=").skip(1).map(|rest| rest.split(',').next().unwrap()).collect();
        assert_eq!(serials.len(), 2);
        assert_ne!(serials[0], serials[1]);
        assert!(serials.iter().all(|s| s.len() <= 20), "{serials:?}");
        vm.hardware.volumes[1] = vm.hardware.volumes[0].clone();
        assert!(arguments(&vm, &linux(), &options).is_err());
    }

    #[test]
    fn a_watchdog_leaves_the_decision_to_the_keeper() {
        let mut with = spec();
        assert!(!display(&arguments(&with, &linux(), &options()).unwrap()).contains("-action"));
        with.hardware.watchdog = Some(WatchdogDevice::I6300esb);
        let line = display(&arguments(&with, &linux(), &options()).unwrap());
        assert!(
            line.contains("-device i6300esb -device pvpanic,events=3 -action watchdog=pause,panic=pause"),
            "{line}"
        );
        with.hardware.watchdog = Some(WatchdogDevice::Ib700);
        assert!(display(&arguments(&with, &linux(), &options()).unwrap()).contains("-device ib700 "));
    }

    #[test]
    fn what_cannot_be_built_is_refused() {
        let initrd =
            |initrd: &str| Boot::Linux { kernel: "/k".into(), initrd: Some(initrd.into()), cmdline: String::new() };
        assert!(arguments(&spec(), &initrd("/a,b"), &options()).is_err());
        let mut none = spec();
        none.hardware.vcpus = 0;
        assert!(arguments(&none, &initrd("/i"), &options()).is_err());
        let mut fewer = options();
        fewer.fds.nics.clear();
        assert!(arguments(&spec(), &initrd("/i"), &fewer).is_err());
    }

    #[test]
    fn commas_in_an_image_path_are_doubled() {
        let line = display(&arguments(&spec(), &Boot::BootSector { image: "/a,b".into() }, &options()).unwrap());
        assert!(line.contains("file=/a,,b"));
    }
}
