//! How a lab is at the moment, read from the kernel rather than remembered.

use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::error::LabError;
use crate::lab::Lab;
use crate::link;
use crate::netns::in_netns;
use crate::processes::Process;
use crate::topology::{BRIDGE, CLIENT, CLIENT_IP, Network, Topology};

/// A lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabStatus {
    pub name: String,
    /// It stays when its maker ends.
    pub persistent: bool,
    pub owner_pid: u32,
    pub owner_alive: bool,
    pub hosts: Vec<HostStatus>,
}

/// A host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostStatus {
    pub name: String,
    pub netns: String,
    /// On the replication network; for the client on the public one. A VM's host has no public address.
    pub address: Option<String>,
    pub frozen: bool,
    pub links: Vec<LinkStatus>,
    pub processes: Vec<Process>,
}

/// A host's cable to a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    pub network: Network,
    pub state: LinkState,
}

/// The state of a cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    Up,
    /// The host has set its interface down (or is without power).
    HostDown,
    /// Cut with loss of carrier.
    Cut,
    /// The switch drops everything.
    Blackhole,
}

impl Lab {
    /// How the lab is now.
    ///
    /// # Errors
    /// A host's processes or cables cannot be looked at.
    pub fn status(&self) -> Result<LabStatus, LabError> {
        let record = self.record();
        let hosts = self.topology().nodes().map(|n| self.host_status(n)).collect::<Result<_, _>>()?;
        Ok(LabStatus {
            name: self.name().to_owned(),
            persistent: record.persistent,
            owner_pid: record.owner.pid,
            owner_alive: record.owner.alive(),
            hosts,
        })
    }

    fn host_status(&self, host: &str) -> Result<HostStatus, LabError> {
        let processes = self.processes(host)?;
        let mut links = Vec::new();
        for network in Network::ALL.into_iter().filter(|n| self.topology().is_on(host, *n)) {
            links.push(LinkStatus { network, state: self.link_state(host, network)? });
        }
        let address = self.topology().address(host).map(|a| a.to_string());
        Ok(HostStatus {
            name: host.to_owned(),
            netns: self.netns(host)?,
            address: address.or_else(|| (host == CLIENT).then(|| CLIENT_IP.to_string())),
            frozen: processes.frozen()?,
            links,
            processes: processes.list()?,
        })
    }

    /// The state of a host's cable.
    ///
    /// # Errors
    /// The lab has no such host, the host is not on this network, or ip(8) cannot be started.
    pub fn link_state(&self, host: &str, network: Network) -> Result<LinkState, LabError> {
        let at = |source| LabError::Io { what: format!("read the cable of host {host}"), source };
        let port = Topology::port(host);
        let switch = self.topology().switch(network);
        let (up, _) = in_netns(&switch, || link::state(&port))?.map_err(at)?;
        if !up {
            return Ok(LinkState::Cut);
        }
        let shown = Command::new("ip").args(["-n", &switch, "-o", "link", "show", "dev", &port]).output();
        let shown = shown.map_err(at)?.stdout;
        if !String::from_utf8_lossy(&shown).contains(&format!(" master {BRIDGE} ")) {
            return Ok(LinkState::Blackhole);
        }
        let (host_up, _) = in_netns(&self.netns(host)?, || link::state(network.interface()))?.map_err(at)?;
        Ok(if host_up { LinkState::Up } else { LinkState::HostDown })
    }
}
