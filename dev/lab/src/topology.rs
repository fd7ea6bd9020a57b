//! Names, addresses and cables of a lab: pure data, and the batches for ip(8) that make them.
//!
//! ```text
//!                    nf-LAB-pub (switch: br0)                    nf-LAB-rep (switch: br0)
//!                    p-a     p-b     p-client                    p-a     p-b     p-w
//!                     |       |         |                         |       |       |
//!  nf-LAB-a:  br0--eth-pub    |      eth-pub                   eth-rep    |    eth-rep
//!                             |      10.9.0.100                10.8.0.1   |    10.8.0.100
//!  nf-LAB-b:         br0--eth-pub    fd09::100                         eth-rep
//!                                    (nf-LAB-client)                   10.8.0.2      (nf-LAB-w)
//! ```
//!
//! Each host is a network namespace; so is each switch. The VM's TAP joins `br0` of its host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ninefold_model::HostName;
use serde::{Deserialize, Serialize};

use crate::error::LabError;

/// The bridge of each host and each switch.
pub const BRIDGE: &str = "br0";
/// The witness's host.
pub const WITNESS: &str = "w";
/// The host of the VM's clients.
pub const CLIENT: &str = "client";
/// The client's addresses on the public network.
pub const CLIENT_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 100));
/// The guest's address on the public network.
pub const GUEST_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 10));
/// The guest's IPv6 address on the public network.
pub const GUEST_IP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 0x10));

/// The interface number of a switch's first port.
const PORT_INDEX: usize = 101;

/// The lab's two networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Between the VM and its clients.
    Public,
    /// Between the hosts and the witness.
    Replication,
}

impl Network {
    /// Both.
    pub const ALL: [Network; 2] = [Network::Public, Network::Replication];

    fn short(self) -> &'static str {
        match self {
            Network::Public => "pub",
            Network::Replication => "rep",
        }
    }

    /// The interface by which a host is on this network.
    pub fn interface(self) -> &'static str {
        match self {
            Network::Public => "eth-pub",
            Network::Replication => "eth-rep",
        }
    }
}

/// Who is in a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// At most 8 characters, so that it fits everywhere.
    pub lab: String,
    /// The hosts for VMs, in order of their addresses.
    pub hosts: Vec<HostName>,
}

impl Topology {
    /// Checks the names.
    ///
    /// # Errors
    /// The lab's name is not 1 to 8 characters that a host's name can have; a host's name is longer than 8 characters, is the
    /// witness's, the client's or a switch's, or is given twice; or there are not 1 to 90 hosts.
    pub fn new(lab: &str, hosts: &[HostName]) -> Result<Self, LabError> {
        let bad = |name: &str, reason: &str| Err(LabError::Name { name: name.into(), reason: reason.into() });
        if lab.len() > 8 || lab.parse::<HostName>().is_err() {
            return bad(lab, "use 1 to 8 lower-case letters, digits and inner hyphens");
        }
        for (i, host) in hosts.iter().enumerate() {
            let name = host.as_str();
            if name.len() > 8 {
                return bad(name, "at most 8 characters");
            }
            if [WITNESS, CLIENT, "pub", "rep"].contains(&name) || hosts[..i].contains(host) {
                return bad(name, "taken");
            }
        }
        if !(1..=90).contains(&hosts.len()) {
            return bad(lab, "a lab has 1 to 90 hosts");
        }
        Ok(Self { lab: lab.to_owned(), hosts: hosts.to_vec() })
    }

    /// The namespace of a host (a VM host, [`WITNESS`] or [`CLIENT`]).
    pub fn netns(&self, host: &str) -> String {
        format!("nf-{}-{host}", self.lab)
    }

    /// The namespace of a network's switch.
    pub fn switch(&self, network: Network) -> String {
        self.netns(network.short())
    }

    /// The switch's port to which a host is plugged.
    pub fn port(host: &str) -> String {
        format!("p-{host}")
    }

    /// Every host by name: those for VMs, the witness's and the client's.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().map(HostName::as_str).chain([WITNESS, CLIENT])
    }

    /// Every namespace.
    pub fn namespaces(&self) -> Vec<String> {
        self.nodes().map(|n| self.netns(n)).chain(Network::ALL.map(|n| self.switch(n))).collect()
    }

    /// Whether a host is plugged into a network.
    pub fn is_on(&self, host: &str, network: Network) -> bool {
        match host {
            WITNESS => network == Network::Replication,
            CLIENT => network == Network::Public,
            _ => true,
        }
    }

    /// The hosts on a network.
    pub fn on(&self, network: Network) -> impl Iterator<Item = &str> {
        self.nodes().filter(move |n| self.is_on(n, network))
    }

    /// A host's address on the replication network.
    pub fn address(&self, host: &str) -> Option<Ipv4Addr> {
        if host == WITNESS {
            return Some(Ipv4Addr::new(10, 8, 0, 100));
        }
        let place = self.hosts.iter().position(|h| h.as_str() == host)?;
        Some(Ipv4Addr::new(10, 8, 0, u8::try_from(place + 1).ok()?))
    }

    /// Lines for `ip -batch -`, run in the root namespace: the namespaces and the cables between them. The cables are
    /// made in their places and never show up in the root namespace.
    pub(crate) fn cables(&self) -> String {
        let mut batch = String::new();
        for ns in self.namespaces() {
            batch += &format!("netns add {ns}\n");
        }
        for network in Network::ALL {
            let switch = self.switch(network);
            for (place, host) in self.on(network).enumerate() {
                // The two ends must not have the same number: the kernel then takes the cable for an ordinary device
                // and reports changes of its carrier up to a second late (net/core/link_watch.c).
                batch += &format!(
                    "link add {} index {} netns {switch} type veth peer name {} netns {}\n",
                    Self::port(host),
                    PORT_INDEX + place,
                    network.interface(),
                    self.netns(host)
                );
            }
        }
        batch
    }

    /// For each namespace the lines for `ip -n NAMESPACE -batch -` that set it up.
    pub(crate) fn interiors(&self) -> Vec<(String, String)> {
        // No spanning tree, no forwarding delay, no multicast snooping: a port forwards as soon as it is up.
        let bridge = format!(
            "link set lo up\nlink add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set {BRIDGE} up\n"
        );
        let mut all = Vec::new();
        for network in Network::ALL {
            let mut batch = bridge.clone();
            for host in self.on(network) {
                batch += &format!("link set {} master {BRIDGE} up\n", Self::port(host));
            }
            all.push((self.switch(network), batch));
        }
        for host in self.nodes() {
            let mut batch = match host {
                CLIENT => format!(
                    "link set lo up\naddress add {CLIENT_IP}/24 dev eth-pub\naddress add fd09::100/64 dev eth-pub nodad\nlink set eth-pub up\n"
                ),
                WITNESS => "link set lo up\n".to_owned(),
                _ => format!("{bridge}link set eth-pub master {BRIDGE} up\n"),
            };
            if let Some(address) = self.address(host) {
                batch += &format!("address add {address}/24 dev eth-rep\nlink set eth-rep up\n");
            }
            all.push((self.netns(host), batch));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(names: &[&str]) -> Vec<HostName> {
        names.iter().map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    fn names_are_checked() {
        assert!(Topology::new("demo", &hosts(&["a", "b"])).is_ok());
        for lab in ["", "ninechars", "Upper", "../x", "a b"] {
            assert!(Topology::new(lab, &hosts(&["a"])).is_err(), "{lab}");
        }
        for bad in [&["a", "a"][..], &["w"], &["client"], &["pub"], &["a-long-name"], &[]] {
            assert!(Topology::new("demo", &hosts(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn each_host_has_its_cables_and_addresses() {
        let t = Topology::new("t", &hosts(&["a", "b"])).unwrap();
        assert_eq!(t.on(Network::Public).collect::<Vec<_>>(), ["a", "b", "client"]);
        assert_eq!(t.on(Network::Replication).collect::<Vec<_>>(), ["a", "b", "w"]);
        assert_eq!(t.address("b").unwrap().to_string(), "10.8.0.2");
        assert_eq!(t.address("client"), None);
        assert!(
            t.cables().contains("link add p-b index 102 netns nf-t-rep type veth peer name eth-rep netns nf-t-b\n")
        );
        assert_eq!(t.namespaces().len(), 6);
        assert_eq!(t.interiors().len(), 6);
    }
}
