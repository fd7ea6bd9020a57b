//! The primary's side: the VM, its session, its acknowledgements.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ninefold_machine::{Machine, MachineConfig, Ram, accel};
use ninefold_model::control::CheckpointRecord;
use ninefold_model::spec::{Accel, AccelChoice, Boot};
use ninefold_model::status::ProtectionState;
use ninefold_model::{Epoch, Term};
use ninefold_replica::pacing::MAX_IN_FLIGHT;
use ninefold_replica::protocol::Input;
use ninefold_replica::stream::Hello;

use super::{Core, RETRY_FIRST, RETRY_LAST};
use crate::capture::micros;
use crate::config::KeeperConfig;
use crate::error;
use crate::msg::Msg;
use crate::session::Settings;
use crate::standby;
use crate::vm::{self, Command};

impl Core {
    pub(super) fn acked(&mut self, session: Term, epoch: Epoch) {
        if self.session.as_ref().is_none_or(|s| s.name != session) || epoch <= self.committed {
            return;
        }
        // As many as can be unacknowledged: the pacer's, and a switchover's last.
        if epoch.0 > self.committed.0 + u64::from(MAX_IN_FLIGHT) + 1 {
            self.lose_session(format!("the backup acknowledges epoch {epoch} after {}", self.committed));
            return;
        }
        self.committed = epoch;
        self.input(Input::Acked { session, epoch });
        self.command(Command::Acked { session, epoch });
        let mut i = 0;
        while let Some(&(e, resumed, record)) = self.unacked.get(i) {
            if e <= epoch {
                self.unacked.swap_remove(i);
                self.measured(record, resumed);
            } else {
                i += 1;
            }
        }
    }

    pub(super) fn measured(&mut self, mut record: CheckpointRecord, resumed: Instant) {
        record.commit_us = micros(resumed.elapsed());
        self.parts.board.checkpoint(&record);
        self.parts.journal.checkpoint(record);
    }

    pub(super) fn start_vm(&mut self, obtain: vm::Obtain) {
        self.generation += 1;
        let started = vm::start(
            self.generation,
            obtain,
            Arc::clone(&self.parts.outlets),
            Arc::clone(&self.parts.disks),
            self.parts.bell.clone(),
            self.epochs,
            self.parts.core.clone(),
        );
        match started {
            Ok(handle) => self.vm = Some(handle),
            Err(error) => {
                let reason = error::report(&error);
                self.start_failed(reason.clone());
                self.input(Input::MachineLost { reason });
            }
        }
    }

    pub(super) fn boot(&mut self) {
        let config = Arc::clone(&self.parts.config);
        let core = self.parts.core.clone();
        let generation = self.generation + 1;
        let volumes = self.parts.disks.sockets();
        self.start_vm(Box::new(move || {
            let (machine, ports, reason) = launch(&config, volumes)?;
            let layout = standby::layout(&machine)?;
            let status = standby::status(&machine, &reason, "prelaunch");
            let (up, attached) = std::sync::mpsc::sync_channel(1);
            let _ = core.send(Msg::VmStarted { generation, status, layout, ports, up });
            // Its first frames must find the gate open.
            let _ = attached.recv_timeout(Duration::from_secs(5));
            Ok(machine)
        }));
    }

    pub(super) fn open_session(&mut self, session: Term) {
        let (Some(link), Some(layout), Some(machine)) = (self.link.take(), self.layout.clone(), &self.machine) else {
            self.input(Input::SessionLost { session, reason: "the peer is gone".into() });
            return;
        };
        let config = &self.parts.config;
        let mut spec = config.vm.clone();
        spec.protection = self.protocol.wanted().protection;
        let hello = Hello {
            session: session.0,
            vm: config.vm.name.clone(),
            from: config.host.clone(),
            term: session,
            spec,
            epoch_policy: self.epochs,
            qemu: machine.qemu.clone(),
            accel: machine.accel,
            layout,
            lanes: 1,
        };
        let settings = Settings {
            heartbeat: Duration::from_millis(config.timing.heartbeat_ms.into()),
            uplink: Arc::clone(&self.uplink),
            disks: Arc::clone(&self.parts.disks),
            bell: self.parts.bell.clone(),
        };
        self.sync = None;
        self.sync_began = Instant::now();
        self.volume_bytes = 0;
        self.session_ready = false;
        self.final_epoch = None;
        self.committed = Epoch(0);
        self.unacked.clear();
        self.peer_uplink = false;
        match crate::session::open(link, hello, settings, self.parts.core.clone()) {
            Ok(opened) => self.session = Some(opened),
            Err(error) => {
                let reason = error::report(&error);
                self.input(Input::SessionLost { session, reason });
            }
        }
    }

    pub(super) fn close_session(&mut self) {
        if self.session.is_some() && self.protocol.protection() == Some(ProtectionState::Syncing) {
            let pause = self.retry.map_or(RETRY_FIRST, |(_, pause)| (pause * 2).min(RETRY_LAST));
            self.retry = Some((Instant::now(), pause));
        }
        // A guest that a switchover has paused stays paused until the witness has spoken: see `Action::GoOn`.
        if let Some(session) = self.session.take() {
            self.command(Command::RemoveSink(session.name));
        }
        self.sync = None;
    }

    /// Closes the session, if there is one, and tells the protocol.
    pub(super) fn lose_session(&mut self, reason: String) {
        let Some(session) = self.session.as_ref().map(|s| s.name) else { return };
        self.close_session();
        self.input(Input::SessionLost { session, reason });
    }

    pub(super) fn command(&self, command: Command) {
        if let Some(vm) = &self.vm {
            vm.send(command);
        }
    }
}

/// Boots the VM's QEMU, with the accelerator that works here; says why that one.
fn launch(config: &KeeperConfig, volumes: Vec<PathBuf>) -> Result<(Machine, ninefold_machine::Ports, String), String> {
    let (accel, reason) = match (config.vm.accel, &config.vm.boot) {
        (AccelChoice::Kvm, _) => (Accel::Kvm, "asked for".to_owned()),
        (AccelChoice::Tcg, _) => (Accel::Tcg, "asked for".to_owned()),
        (AccelChoice::Auto, Boot::Linux { kernel, .. }) => {
            let report = accel::probe(kernel, &config.qemu, &config.cache_dir).map_err(|e| error::report(&e))?;
            (report.accel, report.reason)
        }
        (AccelChoice::Auto, Boot::BootSector { .. }) => {
            (Accel::Tcg, "there is no kernel to probe KVM with; ask for kvm if it works here".to_owned())
        }
    };
    let ram = config
        .vm
        .memory_mib
        .checked_mul(1 << 20)
        .ok_or_else(|| "the VM's memory has an absurd size".to_owned())
        .and_then(|bytes| Ram::create(bytes).map_err(|e| error::report(&e)))?;
    let machine = MachineConfig {
        qemu: config.qemu.clone(),
        spec: config.vm.clone(),
        accel,
        incoming: false,
        volumes,
        extra_args: Vec::new(),
    };
    let (machine, ports) = Machine::launch(&machine, Arc::new(ram)).map_err(|e| error::report(&e))?;
    Ok((machine, ports, reason))
}
