//! What can be done to a lab's hosts and cables.

use std::fs;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::LabError;
use crate::lab::Lab;
use crate::link;
use crate::netns::{in_netns, io_in_netns};
use crate::programs::{KEEPER, MEMORY, QEMU};
use crate::topology::{BRIDGE, Network, Topology};

/// How a cable is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// The host sees that its interface has no carrier.
    Carrier,
    /// The switch passes nothing on, either way; the host sees nothing.
    Blackhole,
}

impl Lab {
    /// Kills a host's QEMU and waits until it is dead.
    ///
    /// # Errors
    /// The lab has no such host, no QEMU runs on it, or QEMU is not dead within 20 s.
    pub fn kill_qemu(&self, host: &str) -> Result<(), LabError> {
        self.kill_one(host, QEMU)
    }

    /// Kills a host's keeper and waits until it is dead.
    ///
    /// # Errors
    /// The lab has no such host, no keeper runs on it, or the keeper is not dead within 20 s.
    pub fn kill_keeper(&self, host: &str) -> Result<(), LabError> {
        self.kill_one(host, KEEPER)
    }

    /// Kills the process that holds the memory of a host's standby, and waits until it is dead.
    ///
    /// # Errors
    /// The lab has no such host, no process on it holds a standby's memory, or it is not dead within 20 s.
    pub fn kill_memory(&self, host: &str) -> Result<(), LabError> {
        self.kill_one(host, MEMORY)
    }

    fn kill_one(&self, host: &str, program: &str) -> Result<(), LabError> {
        let killed = self.processes(host)?.kill_program(program)?;
        self.reap();
        match killed {
            0 => Err(LabError::Host { host: host.to_owned(), what: format!("no {program} runs here") }),
            _ => Ok(()),
        }
    }

    pub(crate) fn set_links(&self, host: &str, up: bool) -> Result<(), LabError> {
        let networks = Network::ALL.into_iter().filter(|n| self.topology().is_on(host, *n));
        let interfaces: Vec<_> = networks.map(Network::interface).collect();
        io_in_netns(&self.netns(host)?, "set the interfaces up or down", || {
            interfaces.iter().try_for_each(|name| link::set_up(name, up))
        })
    }

    /// Waits until the kernel has given up the connections of killed processes: a host that comes back from a loss of
    /// power knows nothing of them, and its peers must not hear of them either.
    pub(crate) fn forget_connections(&self, host: &str) -> Result<(), LabError> {
        let patience = Duration::from_secs(30);
        let deadline = Instant::now() + patience;
        let netns = self.netns(host)?;
        while io_in_netns(&netns, "read /proc/net/tcp", || fs::read_to_string("/proc/thread-self/net/tcp"))?
            .lines()
            .skip(1)
            .any(is_orphan)
        {
            if Instant::now() > deadline {
                let what = format!("end of the connections of host {host}");
                return Err(LabError::Timeout { what, after: patience, detail: String::new() });
            }
            // The kernel reports this nowhere.
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Stops all of a host's processes where they are. Its kernel goes on (it answers ARP and TCP), as that of a host
    /// whose processes get no CPU time.
    ///
    /// # Errors
    /// The lab has no such host, or its processes are not still within 20 s.
    pub fn freeze(&self, host: &str) -> Result<(), LabError> {
        self.processes(host)?.freeze()
    }

    /// Lets a frozen host go on.
    ///
    /// # Errors
    /// The lab has no such host, or its processes do not go on within 20 s.
    pub fn thaw(&self, host: &str) -> Result<(), LabError> {
        self.processes(host)?.thaw()
    }

    /// Cuts a host's cable to one network.
    ///
    /// # Errors
    /// The lab has no such host, the host is not on this network, or the switch's port cannot be changed.
    pub fn cut(&self, host: &str, network: Network, how: Cut) -> Result<(), LabError> {
        self.plugged(host, network)?;
        let port = Topology::port(host);
        io_in_netns(&self.topology().switch(network), "cut a cable", || match how {
            Cut::Carrier => link::set_up(&port, false),
            Cut::Blackhole => link::set_bridged(BRIDGE, &port, false),
        })
    }

    /// Heals a host's cable to one network, however it was cut.
    ///
    /// # Errors
    /// It fails as [`Lab::cut`] does.
    pub fn heal(&self, host: &str, network: Network) -> Result<(), LabError> {
        self.plugged(host, network)?;
        let port = Topology::port(host);
        io_in_netns(&self.topology().switch(network), "heal a cable", || {
            link::set_up(&port, true)?;
            link::set_bridged(BRIDGE, &port, true)
        })
    }

    /// Whether a host's interface on a network is up and has carrier, as the host itself sees it.
    ///
    /// # Errors
    /// The lab has no such host, the host is not on this network, or its interface cannot be asked.
    pub fn carrier(&self, host: &str, network: Network) -> Result<bool, LabError> {
        self.plugged(host, network)?;
        let (up, carrier) =
            io_in_netns(&self.netns(host)?, "read the state of an interface", || link::state(network.interface()))?;
        Ok(up && carrier)
    }

    fn plugged(&self, host: &str, network: Network) -> Result<(), LabError> {
        self.check(host)?;
        match self.topology().is_on(host, network) {
            true => Ok(()),
            false => Err(LabError::Host { host: host.to_owned(), what: format!("is not on the {network:?} network") }),
        }
    }

    /// Waits until a program of the host listens on a TCP port.
    pub(crate) fn await_listener(
        &self,
        host: &str,
        port: u16,
        mut given_up: impl FnMut() -> bool,
    ) -> Result<bool, LabError> {
        let wanted = format!(":{port:04X}");
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let table = in_netns(&self.netns(host)?, || {
                // Either family: a listener on `::` takes IPv4 too.
                ["tcp", "tcp6"].map(|t| fs::read_to_string(format!("/proc/thread-self/net/{t}")).unwrap_or_default())
            })?;
            let listens = table.iter().flat_map(|t| t.lines().skip(1)).any(|line| {
                let mut fields = line.split_ascii_whitespace().skip(1);
                fields.next().is_some_and(|local| local.ends_with(&wanted)) && fields.nth(1) == Some(LISTEN)
            });
            if listens {
                return Ok(true);
            }
            if given_up() || Instant::now() > deadline {
                return Ok(false);
            }
            // The kernel reports this nowhere.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// State numbers of /proc/net/tcp (the kernel's `net/tcp_states.h`).
const LISTEN: &str = "0A";
const FIN_WAIT2: &str = "05";
const TIME_WAIT: &str = "06";

/// Whether a line of /proc/net/tcp is a connection that could still send something. One that has sent its end and had
/// it acknowledged could not; it would last for a minute where the other end is frozen.
fn is_orphan(line: &str) -> bool {
    line.split_ascii_whitespace().nth(3).is_some_and(|state| ![LISTEN, FIN_WAIT2, TIME_WAIT].contains(&state))
}
