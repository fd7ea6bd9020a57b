//! `ninefold-lab up`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ninefold_lab::topology::GUEST_IP;
use ninefold_lab::{Lab, LabConfig, LabSecurity, LabStatus, VmOptions, demo};
use ninefold_model::health::{Watchdog, WatchdogAction};
use ninefold_model::spec::{AccelChoice, NonVolatile};
use ninefold_model::status::VmStatus;
use ninefold_model::{InvalidName, VmName};
use ninefold_shell::output::{Output, brief, ms};
use serde::Serialize;

use crate::error::CommandError;
use crate::interrupt;
use crate::progress;

/// Make a lab with a protected VM in it
///
/// Two hosts (one more for each further backup), a witness, a client and a Debian guest with redis, which boots on host a
/// and is protected by the others.
/// Interrupted or failed, it leaves nothing.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold-lab up\n  \
    ninefold-lab up --vcpus 2 --memory 512\n  \
    ninefold-lab up --backups 2        hosts a, b and c: two losses one after the other\n  \
    ninefold-lab up --non-volatile     goes on after every host has lost its power\n  \
    ninefold-lab up --watchdog dump\n  \
    ninefold-lab up --apart && ninefold-lab exec a -- ninefold vm status\n  \
    ninefold-lab up --name old --qemu /var/cache/ninefold/qemu-7.2/qemu-system-x86_64\n  \
    ninefold-lab up --no-vm && ninefold-lab exec b -- ninefold vm start")]
pub struct UpArgs {
    /// The lab's name, at most 8 lower-case letters, digits and inner hyphens
    #[arg(long, alias = "lab", value_name = "LAB", default_value = "demo")]
    name: String,
    #[command(flatten)]
    vm: VmShape,
    /// Each host sees its own files alone, and so its own keeper alone, as on machines of their own: `ninefold-lab exec HOST -- ninefold vm …`
    #[arg(long)]
    apart: bool,
    /// Start the witness and the keepers, but do not boot the VM
    #[arg(long)]
    no_vm: bool,
}

/// What the lab's VM is like.
#[derive(Debug, Args)]
pub struct VmShape {
    /// The VM's vCPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    vcpus: u16,
    /// The VM's memory, MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(128..))]
    memory: u64,
    /// The accelerator
    #[arg(long, value_enum, default_value_t = Accelerator::Auto)]
    accel: Accelerator,
    /// How many backups the VM has at once; there is a host for each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=4))]
    backups: u8,
    /// Keep its checkpoints on the hosts' disks, too: it goes on by itself after all of them lost their power
    #[arg(long)]
    non_volatile: bool,
    /// Another QEMU than the first on the PATH
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<PathBuf>,
    /// Give it a watchdog; what is done when that fires
    #[arg(long, value_enum, value_name = "ACTION")]
    watchdog: Option<Action>,
    /// No authentication and no encryption between the hosts
    #[arg(long)]
    plain_text: bool,
}

/// Which accelerator.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Accelerator {
    /// KVM where it runs an ordinary kernel, else TCG
    Auto,
    Kvm,
    Tcg,
}

/// What a watchdog leads to.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Action {
    /// The guest is reset
    Reset,
    /// Its memory is written to a file, then it is reset
    Dump,
    /// Its QEMU is launched anew with the committed image
    FallBack,
    /// The VM is stopped
    Stop,
}

impl VmShape {
    /// As the lab wants it.
    pub fn options(&self) -> Result<VmOptions, CommandError> {
        let name: VmName = "vm"
            .parse()
            .map_err(|e: InvalidName| ninefold_lab::LabError::Name { name: "vm".into(), reason: e.to_string() })?;
        let mut options = VmOptions::new(name);
        options.vcpus = self.vcpus;
        options.memory_mib = self.memory;
        options.backups = self.backups;
        options.non_volatile = self.non_volatile.then(NonVolatile::default);
        options.qemu.clone_from(&self.qemu);
        options.accel = match self.accel {
            Accelerator::Auto => AccelChoice::Auto,
            Accelerator::Kvm => AccelChoice::Kvm,
            Accelerator::Tcg => AccelChoice::Tcg,
        };
        options.watchdog = self.watchdog.map(|action| {
            Watchdog::new(match action {
                Action::Reset => WatchdogAction::Reset,
                Action::Dump => WatchdogAction::Dump,
                Action::FallBack => WatchdogAction::FallBack,
                Action::Stop => WatchdogAction::Stop,
            })
        });
        Ok(options)
    }

    /// How the hosts know each other.
    pub fn security(&self) -> LabSecurity {
        if self.plain_text { LabSecurity::PlainText } else { LabSecurity::MutualTls }
    }
}

#[derive(Debug, Serialize)]
struct Made {
    lab: LabStatus,
    /// The primary's own status; null without a VM.
    vm: Option<VmStatus>,
    /// The guest's address on the public network.
    guest_address: String,
    /// From asking for the start to redis's first answer.
    boot_ms: Option<f64>,
    /// The first copy to the backup; it may be made while the guest boots.
    sync_ms: Option<f64>,
    tls: bool,
}

pub fn run(args: &UpArgs, output: &Output) -> Result<(), CommandError> {
    let mut config = LabConfig::new(&args.name)?;
    config.persistent = true;
    config.apart = args.apart;
    config.security = args.vm.security();
    config.set_hosts(1 + usize::from(args.vm.backups))?;
    let options = args.vm.options()?;
    let armed = interrupt::take_down_on_signal(&args.name)?;
    let bar = progress::spinner("making hosts and networks");
    let lab = Lab::up(&config).inspect_err(|_| bar.finish_and_clear())?;
    let filled = fill(&lab, &options, args.no_vm, &bar);
    bar.finish_and_clear();
    let (vm, boot, sync) = match filled {
        Ok(filled) => filled,
        Err(error) => {
            // Not while a signal's take-down is at it, which ends this process anyway.
            interrupt::wait_if_unmaking();
            if let Err(left) = lab.down() {
                tracing::error!(%left, "the lab is not taken down");
            }
            return Err(error);
        }
    };
    drop(armed);
    let to_ms = |d: Duration| d.as_micros() as f64 / 1000.0;
    let made = Made {
        lab: lab.status()?,
        vm,
        guest_address: GUEST_IP.to_string(),
        boot_ms: boot.map(to_ms),
        sync_ms: sync.map(to_ms),
        tls: config.security == LabSecurity::MutualTls,
    };
    output.show(&made, || tell(&made))?;
    Ok(())
}

type Filled = (Option<VmStatus>, Option<Duration>, Option<Duration>);

/// Starts what runs in the lab.
fn fill(lab: &Lab, options: &VmOptions, no_vm: bool, bar: &progress::ProgressBar) -> Result<Filled, CommandError> {
    if no_vm {
        bar.set_message("starting the witness and the keepers");
        lab.configure_vm(options)?;
        lab.start_witness()?;
        for host in &lab.topology().hosts {
            lab.start_keeper(host.as_str())?;
        }
        return Ok((None, None, None));
    }
    let first = lab.topology().hosts.first().map_or("a", |h| h.as_str());
    let booted = demo::boot::boot(lab, first, options, |p| progress::boot(bar, &p))?;
    Ok((Some(lab.keeper(first)?.status()?), Some(booted.boot), demo::boot::first_copy(&booted)))
}

fn tell(made: &Made) -> String {
    let hosts: Vec<_> = made.lab.hosts.iter().map(|h| h.name.as_str()).collect();
    let security = if made.tls { "mutual TLS between them" } else { "plain text between them" };
    let mut text = format!("lab '{}' is up: hosts {}; {security}\n", made.lab.name, hosts.join(", "));
    match &made.vm {
        Some(vm) => {
            let (boot, sync) = (made.boot_ms.unwrap_or(0.0), made.sync_ms.unwrap_or(0.0));
            let backup = vm.peer.as_ref().map_or_else(String::new, |p| format!(", protected by host {p}"));
            text += &format!("VM '{}' runs on host {}{backup}", vm.vm, vm.host);
            text += &format!(" (boot {:.1} s, first copy {})\n", boot / 1000.0, ms((sync * 1000.0) as u64));
            if let Some(m) = &vm.machine {
                text += &format!("QEMU {} with {}: {}\n", m.qemu, m.accel, brief(&m.accel_reason));
            }
            text += &format!(
                "\nTry:\n  eval \"$(ninefold-lab env)\"\n  ninefold-lab exec client -- redis-cli -h {0} incr visits\n  ninefold-lab kill a host\n  \
                 ninefold vm events\n  ninefold-lab exec client -- redis-cli -h {0} incr visits\n  \
                 ninefold-lab restart a\n  ninefold vm status --watch\n  ninefold-lab down\n",
                made.guest_address
            );
        }
        None => text += "its keepers stand by: `ninefold-lab exec a -- ninefold vm start` boots the VM\n",
    }
    text
}
