//! A QEMU that boots the VM from this host's configuration.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ninefold_machine::{Machine, MachineConfig, Ports, Ram, accel};
use ninefold_model::spec::{Accel, AccelChoice, Boot};

use crate::config::KeeperConfig;
use crate::durable::generation::Generation;
use crate::error::report;

/// The accelerator with which `kernel` comes up here, and why that one.
fn probe(config: &KeeperConfig, kernel: &Path) -> Result<(Accel, String), String> {
    let report = accel::probe(kernel, &config.host.qemu, &config.host.cache_dir).map_err(|e| report(&e))?;
    Ok((report.accel, report.reason))
}

/// The kernel that this host runs, where distributions keep it: an ordinary one to probe KVM with for a VM whose own is
/// on its disk.
fn host_kernel() -> Option<PathBuf> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    Some(Path::new("/boot").join(format!("vmlinuz-{release}"))).filter(|kernel| kernel.is_file())
}

/// Boots the VM's QEMU, its vCPUs standing still, with the accelerator that works here; says why that one.
///
/// # Errors
/// What could not be made, for people.
pub fn launch(config: &KeeperConfig, image: Boot, volumes: Vec<PathBuf>) -> Result<(Machine, Ports, String), String> {
    let (accel, reason) = match (config.vm.hardware.accel, &image) {
        (AccelChoice::Kvm, _) => (Accel::Kvm, "asked for".to_owned()),
        (AccelChoice::Tcg, _) => (Accel::Tcg, "asked for".to_owned()),
        (AccelChoice::Auto, Boot::Linux { kernel, .. }) => probe(config, kernel)?,
        (AccelChoice::Auto, Boot::BootSector { .. } | Boot::Volume) => match host_kernel() {
            Some(kernel) => probe(config, &kernel)?,
            None => (Accel::Tcg, "there is no kernel to probe KVM with; ask for kvm if it works here".to_owned()),
        },
    };
    let ram = config
        .vm
        .hardware
        .memory_mib
        .checked_mul(1 << 20)
        .ok_or_else(|| "the VM's memory has an absurd size".to_owned())
        .and_then(|bytes| Ram::create(bytes).map_err(|e| report(&e)))?;
    let machine = MachineConfig {
        qemu: config.host.qemu.clone(),
        spec: config.vm.clone(),
        boot: image,
        accel,
        incoming: false,
        generation: Generation::of(config).current().map_err(|e| format!("the VM's generation id: {e}"))?,
        volumes,
        extra_args: Vec::new(),
    };
    let (machine, ports) = Machine::launch(&machine, Arc::new(ram)).map_err(|e| report(&e))?;
    Ok((machine, ports, reason))
}
