//! Where a process on another host is found.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::HostName;

/// Longest name of a network interface, bytes (`IFNAMSIZ` without the terminating zero, netdevice(7)).
const MAX_ZONE: usize = 15;

/// An IP address with a port, as a person writes it. An IPv6 address may have a zone by name, such as `[fe80::1%eth0]:7701` (RFC 4007,
/// section 11); only a host knows which of its interfaces that is.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(String);

/// Why an address was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an address with a port, such as 10.8.0.1:7701, [fd09::1]:7701 or [fe80::1%eth0]:7701")]
pub struct InvalidAddress(String);

/// An address, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// All that is needed is in it.
    Here(SocketAddr),
    /// An address that means something only together with an interface.
    Zone { address: Ipv6Addr, zone: &'a str, port: u16 },
}

impl Address {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What it says. `None` for none: there is no such address.
    #[must_use]
    pub fn place(&self) -> Option<Place<'_>> {
        place(&self.0)
    }
}

fn place(text: &str) -> Option<Place<'_>> {
    if let Ok(addr) = text.parse() {
        return Some(Place::Here(addr));
    }
    let (host, port) = text.strip_prefix('[')?.split_once("]:")?;
    let (host, zone) = host.split_once('%')?;
    let (address, port) = (host.parse().ok()?, port.parse().ok()?);
    (1..=MAX_ZONE).contains(&zone.len()).then_some(Place::Zone { address, zone, port })
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        match place(text) {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err(InvalidAddress(text.chars().take(80).collect())),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = InvalidAddress;

    fn try_from(text: String) -> Result<Self, InvalidAddress> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> String {
        address.0
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Self {
        Self(addr.to_string())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Another process on another host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub host: HostName,
    pub addr: Address,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_with_a_port() {
        for good in ["10.8.0.1:7701", "[fd09::1]:7701", "[fe80::1%eth0]:7701"] {
            let address: Address = good.parse().unwrap();
            assert_eq!(address.to_string(), good);
            assert_eq!(serde_json::to_value(&address).unwrap(), good);
        }
        let zone: Address = "[fe80::1%eth0]:7701".parse().unwrap();
        assert_eq!(zone.place(), Some(Place::Zone { address: "fe80::1".parse().unwrap(), zone: "eth0", port: 7701 }));
        for bad in ["", "10.8.0.1", "[fe80::1%]:1", "[fe80::1%lo]", "[fe80::1%lo]:x", "[x%lo]:1", "host:1"] {
            assert!(bad.parse::<Address>().unwrap_err().to_string().contains("such as"), "{bad}");
        }
        assert!("[fe80::1%an-interface-of-long-name]:1".parse::<Address>().is_err());
    }
}
