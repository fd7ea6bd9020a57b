//! The VM that is measured, with its lab.

use std::time::{Duration, Instant};

use ninefold_control::Request;
use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::event::EventKind;
use ninefold_model::spec::Protection;
use ninefold_model::status::{ProtectionState, Role, VmStatus};

use serde::{Deserialize, Serialize};

use super::plan::Mode;
use super::workload::Workload;
use crate::boot::{BootedVm, VmOptions};
use crate::config::LabConfig;
use crate::error::LabError;
use crate::lab::Lab;

/// How long the VM may take to change its protection.
const PATIENCE: Duration = Duration::from_secs(60);

/// A lab with a running VM. Dropping it takes all of it down.
#[derive(Debug)]
pub struct Subject {
    pub workload: Workload,
    pub vm: BootedVm,
    /// The host on which the VM runs.
    pub primary: String,
    asleep: bool,
    /// The latest checkpoint that was asked for.
    seen: u64,
    pub lab: Lab,
}

impl Subject {
    /// Makes a lab and boots its VM, protected with adaptive epochs.
    ///
    /// # Errors
    /// The lab cannot be made, its VM does not boot or is not protected in time, or the guest's workload server does not answer.
    pub fn up(config: &LabConfig, options: &VmOptions) -> Result<Self, LabError> {
        let lab = Lab::up(config)?;
        let primary = "a".to_owned();
        let vm = lab.boot_vm(&primary, options)?;
        let workload = Workload::connect(&lab)?;
        Ok(Self { workload, vm, primary, asleep: false, seen: 0, lab })
    }

    /// What the primary's keeper says.
    ///
    /// # Errors
    /// The lab has no such host for VMs, or its keeper does not answer or refuses.
    pub fn status(&self) -> Result<VmStatus, LabError> {
        self.lab.keeper(&self.primary)?.status().map_err(|e| self.keeper_error(&e))
    }

    fn keeper_error(&self, e: &dyn std::fmt::Display) -> LabError {
        LabError::Host { host: self.primary.clone(), what: format!("{e}{}", self.lab.logs_for_error()) }
    }

    /// Checkpoints measured since this was asked last.
    ///
    /// # Errors
    /// It fails as [`Subject::status`] does.
    pub fn new_checkpoints(&mut self) -> Result<Vec<CheckpointRecord>, LabError> {
        let keeper = self.lab.keeper(&self.primary)?;
        let all = keeper.checkpoints(self.seen).map_err(|e| self.keeper_error(&e))?;
        self.seen = all.last().map_or(self.seen, |c| c.seq);
        Ok(all)
    }

    /// The VM runs on another host now.
    pub fn moved_to(&mut self, host: &str) {
        self.primary = host.to_owned();
        self.seen = 0;
    }

    /// Brings the VM into a mode and waits until it is in it, wherever it runs.
    ///
    /// # Errors
    /// The VM is not in the mode within a minute, or its hosts cannot be thawed.
    pub fn enter(&mut self, mode: Mode) -> Result<(), LabError> {
        self.wake()?;
        let deadline = Instant::now() + PATIENCE;
        let wanted = match mode {
            Mode::Unprotected => ProtectionState::Off,
            _ => ProtectionState::Protected,
        };
        loop {
            if let Some(status) = self.locate()? {
                if status.protection == Some(wanted) && mode.epochs().is_none_or(|e| e == status.epoch_policy) {
                    return Ok(());
                }
                // A keeper that has just lost its role refuses; the one that has it is asked next.
                let keeper = self.lab.keeper(&self.primary)?;
                if let Some(policy) = mode.epochs().filter(|e| *e != status.epoch_policy) {
                    let _ = keeper.command(&Request::SetEpochs { policy });
                }
                let _ = match (mode, status.wanted) {
                    (Mode::Unprotected, Protection::FaultTolerant) => keeper.command(&Request::Unprotect),
                    (Mode::Unprotected, Protection::None) | (_, Protection::FaultTolerant) => Ok(()),
                    (_, Protection::None) => keeper.command(&Request::Protect),
                };
            }
            if Instant::now() > deadline {
                return Err(self.timeout(&format!("VM in the mode '{mode}'")));
            }
            // Not every way there has an event.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Finds out where the VM runs: on a busy machine a failover may have come of itself. `None` while it runs nowhere.
    fn locate(&mut self) -> Result<Option<VmStatus>, LabError> {
        let hosts = [self.primary.clone(), self.other()];
        for host in hosts {
            let status = self.lab.keeper(&host)?.status();
            if let Ok(status) = status
                && status.role == Role::Primary
            {
                if host != self.primary {
                    self.moved_to(&host);
                }
                return Ok(Some(status));
            }
        }
        Ok(None)
    }

    /// Failovers so far.
    pub fn takeovers(&self) -> usize {
        self.vm.events.all().iter().filter(|e| matches!(e.kind, EventKind::TookOver { .. })).count()
    }

    /// The initial copies so far.
    pub fn syncs(&self) -> Vec<Sync> {
        self.vm.events.all().iter().filter_map(|e| Sync::of(&e.kind)).collect()
    }

    /// An error that tells what happened and shows the logs.
    pub fn timeout(&self, what: &str) -> LabError {
        let mut detail = String::new();
        for event in self.vm.events.all().iter().rev().take(12).rev() {
            detail += &format!("\n  {}: {:?}", event.host, event.kind);
        }
        LabError::Timeout { what: what.to_owned(), after: PATIENCE, detail: detail + &self.lab.logs_for_error() }
    }

    /// Stops everything of this lab where it is, so that another can be measured without it.
    ///
    /// # Errors
    /// The VM does not lose its protection within a minute, or a host cannot be frozen.
    pub fn sleep(&mut self) -> Result<(), LabError> {
        if self.asleep {
            return Ok(());
        }
        // A thawed primary would find its backup lost.
        self.enter(Mode::Unprotected)?;
        for host in &self.lab.topology().hosts {
            self.lab.freeze(host.as_str())?;
        }
        self.asleep = true;
        Ok(())
    }

    fn wake(&mut self) -> Result<(), LabError> {
        if !self.asleep {
            return Ok(());
        }
        for host in &self.lab.topology().hosts {
            self.lab.thaw(host.as_str())?;
        }
        self.asleep = false;
        Ok(())
    }

    /// The other host.
    pub fn other(&self) -> String {
        let hosts = &self.lab.topology().hosts;
        hosts.iter().find(|h| h.as_str() != self.primary).map_or_else(String::new, ToString::to_string)
    }
}

/// One initial copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sync {
    pub bytes: u64,
    pub ms: u64,
}

impl Sync {
    /// From the event that ends it.
    pub fn of(event: &EventKind) -> Option<Self> {
        match event {
            EventKind::Protected { sync_ms, bytes, .. } => Some(Self { bytes: *bytes, ms: *sync_ms }),
            _ => None,
        }
    }

    /// 10^6 bytes a second.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / 1e3 / self.ms.max(1) as f64
    }
}
