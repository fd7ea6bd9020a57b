//! A burst, done to a lab: each fault in a thread of its own, from its beginning to its end.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ninefold_control::Request;
use ninefold_model::HostName;
use ninefold_model::status::Role;
use serde::{Deserialize, Serialize};

use super::fault::{Away, Fault};
use super::judge::What;
use super::plan::{Burst, Planned, SCRATCH_MIB};
use super::pressure;
use super::register::{Facts, Register, now_us};
use crate::error::LabError;
use crate::faults::Cut;
use crate::lab::Lab;
use crate::netns::io_in_netns;
use crate::programs::{KEEPER, WITNESS_PROGRAM};
use crate::status::LinkState;
use crate::topology::{CLIENT, GUEST_IP, Network, WITNESS};

/// The volume that the guest overwrites when told to.
pub(super) const SCRATCH: &str = "scratch";
/// Where the guest's workload server listens.
const WORKLOAD_PORT: u16 = 7000;
/// How often a fault that lasts looks whether it is to end before its time.
const LOOK: Duration = Duration::from_millis(50);

/// A fault as it was really done: CLOCK_MONOTONIC, microseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Done {
    pub burst: u64,
    pub begun_us: u64,
    /// When it was in effect.
    pub done_us: u64,
    pub ended_us: u64,
    #[serde(flatten)]
    pub fault: Fault,
    /// What could not be done or mended, because of another fault: it is mended after the burst.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub trouble: Vec<String>,
}

/// Where facts go, and when all of it is to end.
pub(super) struct Ground<'a> {
    pub lab: &'a Lab,
    pub facts: &'a Facts,
    pub register: &'a Register,
    pub stop: &'a AtomicBool,
}

impl Ground<'_> {
    /// Does a burst and returns when its last fault has ended.
    pub fn inflict(&self, burst: &Burst) -> Vec<Done> {
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                burst.faults.iter().map(|f| scope.spawn(move || self.suffer(burst.number, f, begin))).collect();
            threads.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect()
        })
    }

    fn suffer(&self, burst: u64, planned: &Planned, begin: Instant) -> Done {
        self.wait_until(begin + Duration::from_millis(planned.begin_ms));
        let end = begin + Duration::from_millis(planned.end_ms);
        let fault = planned.fault.clone();
        let mut done =
            Done { burst, begun_us: now_us(), done_us: 0, ended_us: 0, fault: fault.clone(), trouble: Vec::new() };
        if let Err(error) = self.carry_out(&fault, end, &mut done) {
            done.trouble.push(error.to_string());
        }
        done.ended_us = now_us();
        done
    }

    fn carry_out(&self, fault: &Fault, end: Instant, done: &mut Done) -> Result<(), LabError> {
        let lab = self.lab;
        let mut hold = |result: Result<(), LabError>| {
            done.done_us = now_us();
            if let Err(error) = result {
                done.trouble.push(error.to_string());
            }
            self.wait_until(end);
        };
        match fault {
            Fault::KillQemu { host } => {
                hold(self.kill(host, |h| lab.kill_qemu(h)));
                Ok(())
            }
            Fault::KillKeeper { host } => {
                hold(self.kill(host, |h| lab.kill_keeper(h)));
                lab.ensure_keeper(host.as_str())
            }
            Fault::KillHost { host } => {
                hold(self.kill(host, |h| lab.kill_host(h)));
                lab.restart_host(host.as_str())
            }
            Fault::PowerLoss { hosts, apart_ms } => {
                let mut next = Instant::now();
                hold(hosts.iter().try_for_each(|host| {
                    self.wait_until(next);
                    next = Instant::now() + Duration::from_millis(*apart_ms);
                    self.kill(host, |h| lab.kill_host(h))
                }));
                hosts.iter().try_for_each(|host| lab.restart_host(host.as_str()))
            }
            // Not everybody has one. While its keeper lives nobody needs it.
            Fault::KillMemory { host } => {
                hold(lab.kill_memory(host.as_str()));
                Ok(())
            }
            Fault::Freeze { host } => {
                hold(lab.freeze(host.as_str()));
                lab.thaw(host.as_str())
            }
            Fault::Cut { host, network, how } => {
                hold(lab.cut(host.as_str(), *network, *how));
                lab.heal(host.as_str(), *network)
            }
            Fault::Witness { how } => {
                hold(match how {
                    Away::Killed => lab.kill_witness(),
                    Away::Frozen => lab.freeze(WITNESS),
                    Away::CutOff => lab.cut(WITNESS, Network::Replication, Cut::Blackhole),
                    Away::Unpowered => lab.kill_host(WITNESS),
                });
                match how {
                    Away::Killed => lab.ensure_witness(),
                    Away::Frozen => lab.thaw(WITNESS),
                    Away::CutOff => lab.heal(WITNESS, Network::Replication),
                    Away::Unpowered => lab.restart_host(WITNESS).and_then(|()| lab.ensure_witness()),
                }
            }
            Fault::SlowDisk { host, kib_per_s } => {
                let slow = lab.slow_disk(host.as_str(), kib_per_s << 10)?;
                hold(Ok(()));
                drop(slow);
                Ok(())
            }
            Fault::FullDisk { host } => {
                hold(lab.fill_disk(host.as_str()));
                lab.clear_disk(host.as_str())
            }
            Fault::BrokenDisk { host } => {
                hold(lab.break_disk(host.as_str()));
                self.kill(host, |h| lab.kill_host(h))?;
                lab.restart_host(host.as_str())
            }
            Fault::HungDisk { host } => {
                hold(lab.freeze_disk(host.as_str()));
                lab.thaw_disk(host.as_str())
            }
            Fault::Processor { threads } => {
                pressure::processor(*threads, || hold(Ok(())));
                Ok(())
            }
            Fault::Memory { mib } => {
                pressure::memory(*mib, || hold(Ok(())));
                Ok(())
            }
            Fault::Writes { mib } => {
                hold(self.guest_writes(*mib));
                Ok(())
            }
            Fault::Switchover => {
                hold(self.switch_over());
                Ok(())
            }
        }
    }

    /// Whatever it was, by now it is dead: that is a fact, and so is what the witness holds after it.
    fn kill(&self, host: &HostName, how: impl Fn(&str) -> Result<(), LabError>) -> Result<(), LabError> {
        let killed = how(host.as_str());
        self.facts.add(now_us(), What::Killed { host: host.clone() });
        self.register.want();
        killed
    }

    /// Asks the guest's workload server and does not wait for its answer: what becomes of it depends on the other faults.
    fn guest_writes(&self, mib: u64) -> Result<(), LabError> {
        let percent = (mib * 100 / SCRATCH_MIB).clamp(1, 100);
        let command = format!("rewrite volume={SCRATCH} percent={percent}\n");
        io_in_netns(&self.lab.netns(CLIENT)?, "ask the workload server", || {
            let server = SocketAddr::new(GUEST_IP, WORKLOAD_PORT);
            let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(2))?;
            stream.write_all(command.as_bytes())
        })
    }

    fn switch_over(&self) -> Result<(), LabError> {
        for host in &self.lab.topology().hosts {
            let keeper = self.lab.keeper(host.as_str())?;
            if keeper.status().is_ok_and(|s| s.role == Role::Primary) {
                // It may refuse: the VM may not be protected at this moment.
                keeper
                    .command(&Request::Switchover)
                    .map_err(|e| LabError::Host { host: host.to_string(), what: e.to_string() })?;
            }
        }
        Ok(())
    }

    fn wait_until(&self, when: Instant) {
        while !self.stop.load(Ordering::Relaxed) {
            let left = when.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(LOOK));
        }
    }
}

impl Lab {
    fn runs(&self, host: &str, program: &str) -> Result<bool, LabError> {
        Ok(self.processes(host)?.list()?.iter().any(|p| p.program.starts_with(program)))
    }

    /// Starts a host's keeper unless there is one.
    fn ensure_keeper(&self, host: &str) -> Result<(), LabError> {
        if self.runs(host, KEEPER)? { Ok(()) } else { self.start_keeper(host) }
    }

    fn ensure_witness(&self) -> Result<(), LabError> {
        if self.runs(WITNESS, WITNESS_PROGRAM)? { Ok(()) } else { self.start_witness() }
    }

    /// Everything that a fault may have left is mended: disks, cables, processes.
    pub(super) fn mend(&self) -> Result<(), LabError> {
        let hosts: Vec<_> = self.topology().hosts.iter().map(|h| h.as_str()).chain([WITNESS]).collect();
        for host in &hosts {
            if self.record().disks && self.is_mounted(host) {
                // One that does not hang cannot be thawed.
                let _ = self.thaw_disk(host);
                self.clear_disk(host)?;
            }
            self.thaw(host)?;
            for network in Network::ALL.into_iter().filter(|n| self.topology().is_on(host, *n)) {
                self.heal(host, network)?;
            }
        }
        // The witness first: keepers ask it.
        for host in hosts.iter().rev() {
            if self.link_state(host, Network::Replication)? == LinkState::HostDown {
                self.restart_host(host)?;
            }
            match *host == WITNESS {
                true => self.ensure_witness()?,
                false => self.ensure_keeper(host)?,
            }
        }
        Ok(())
    }
}
