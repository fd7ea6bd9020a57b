//! The loss of power: of one host, or of the whole lab.

use crate::error::LabError;
use crate::lab::Lab;
use crate::topology::WITNESS;

impl Lab {
    /// Like pulling a host's power: its interfaces go down, then all its processes are killed at once. Nothing that the
    /// dying processes or the kernel on their behalf may send gets out. With disks ([`crate::LabConfig::disks`]) what was
    /// not synced is gone.
    ///
    /// # Errors
    /// The lab has no such host, its processes are not dead within 20 s, or its interfaces or its disk cannot be taken from it.
    pub fn kill_host(&self, host: &str) -> Result<(), LabError> {
        self.cut_power(&[host])
    }

    /// Every host and the witness lose their power at the same moment, whatever they are doing; the client does not.
    ///
    /// # Errors
    /// It fails as [`Lab::kill_host`] does, and when the kernel has not given up the hosts' connections within 30 s.
    pub fn power_loss(&self) -> Result<(), LabError> {
        let all: Vec<_> = self.powered().collect();
        self.cut_power(&all)?;
        // What is left of their connections is the lab's affair, not a part of coming back.
        all.iter().try_for_each(|host| self.forget_connections(host))
    }

    /// Power comes back: disks, cables, the witness, the keepers. No VM is started.
    ///
    /// # Errors
    /// It fails as [`Lab::restart_host`] and [`Lab::start_witness`] do.
    pub fn power_on(&self) -> Result<(), LabError> {
        self.restart_host(WITNESS)?;
        self.start_witness()?;
        self.topology().hosts.iter().try_for_each(|host| self.restart_host(host.as_str()))
    }

    fn powered(&self) -> impl Iterator<Item = &str> {
        self.topology().hosts.iter().map(|h| h.as_str()).chain([WITNESS])
    }

    fn cut_power(&self, hosts: &[&str]) -> Result<(), LabError> {
        // All of them are cut off before the first process dies: none sees another die.
        hosts.iter().try_for_each(|host| self.set_links(host, false))?;
        // Who waits for a disk that hangs dies when it answers. It is no error that none does.
        let thaw = |host| drop(self.thaw_disk(host));
        hosts.iter().try_for_each(|host| self.processes(host)?.kill_then(|| thaw(host)))?;
        self.reap();
        if self.record().disks {
            hosts.iter().filter(|h| self.is_mounted(h)).try_for_each(|host| self.forget_unsynced(host))?;
        }
        Ok(())
    }

    /// Gives a killed host its power back: its disk is mounted, its interfaces come up and, if it had a keeper, that is
    /// started.
    ///
    /// # Errors
    /// The lab has no such host, the kernel has not given up its connections within 30 s, its disk cannot be mounted or its
    /// interfaces set up, or its keeper does not come up.
    pub fn restart_host(&self, host: &str) -> Result<(), LabError> {
        self.restart_host_with_faults(host, "")
    }

    /// The same with fault points set in its keeper: see `ninefold_fault`.
    ///
    /// # Errors
    /// It fails as [`Lab::restart_host`] does, and when fault points are wanted and the keeper's program has none.
    pub fn restart_host_with_faults(&self, host: &str, faults: &str) -> Result<(), LabError> {
        self.forget_connections(host)?;
        if self.record().disks && !self.is_mounted(host) {
            self.mount(host)?;
        }
        self.set_links(host, true)?;
        match self.has_keeper(host) {
            true => self.start_keeper_with_faults(host, faults),
            false => Ok(()),
        }
    }
}
