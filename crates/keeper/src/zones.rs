//! Socket addresses in configurations: as the standard library reads them, and IPv6 addresses with a zone by name, such as
//! `[fe80::1%eth0]:7701` (RFC 4007, section 11).

use std::net::{SocketAddr, SocketAddrV6};

use ninefold_model::spec::{Address, Place};
use serde::{Deserialize, Deserializer, de};

/// For `#[serde(deserialize_with)]`.
///
/// # Errors
/// The value is no text, or its text is no address: see [`parse`].
pub fn address<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    parse(&String::deserialize(from)?).map_err(de::Error::custom)
}

/// As [`address`], for one that may be left out.
///
/// # Errors
/// It fails as [`address`] does. A value that is left out, or null, is no error.
pub fn address_if_any<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    Option::<String>::deserialize(from)?.map(|text| parse(&text).map_err(de::Error::custom)).transpose()
}

/// An address with its port. A zone is a name of this host's interfaces, which must be there, or its number.
///
/// # Errors
/// The text is not an address with a port, or this host has no interface of the zone's name or cannot be asked for it.
pub fn parse(text: &str) -> Result<SocketAddr, String> {
    resolve(&text.parse::<Address>().map_err(|e| e.to_string())?)
}

/// The same of an address that is one.
///
/// # Errors
/// This host has no such interface.
pub fn resolve(address: &Address) -> Result<SocketAddr, String> {
    match address.place() {
        Some(Place::Here(addr)) => Ok(addr),
        Some(Place::Zone { address: host, zone, port }) => {
            let index = rustix::net::netdevice::name_to_index(&socket()?, zone)
                .map_err(|e| format!("'{address}': this host has no interface '{zone}' ({e})"))?;
            Ok(SocketAddrV6::new(host, port, 0, index).into())
        }
        None => Err(format!("'{address}' is not an address with a port")),
    }
}

/// Any socket can be asked about interfaces.
fn socket() -> Result<std::os::fd::OwnedFd, String> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    socket_with(AddressFamily::INET6, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .or_else(|_| socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None))
        .map_err(|e| format!("no socket: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_have_names() {
        for good in ["10.8.0.1:7701", "[fd09::1]:7701"] {
            assert_eq!(parse(good).unwrap(), good.parse().unwrap());
        }
        let lo = std::fs::read_to_string("/sys/class/net/lo/ifindex").unwrap().trim().parse().unwrap();
        let expected = SocketAddrV6::new("fe80::1".parse().unwrap(), 7701, 0, lo);
        assert_eq!(parse("[fe80::1%lo]:7701").unwrap(), expected.into());
        assert_eq!(parse(&format!("[fe80::1%{lo}]:7701")).unwrap(), expected.into());
        assert!(parse("[fe80::1%nowhere]:7701").unwrap_err().contains("no interface 'nowhere'"));
        for bad in ["", "10.8.0.1", "[fe80::1%]:1", "[fe80::1%lo]", "[fe80::1%lo]:x", "[x%lo]:1", "host:1"] {
            assert!(parse(bad).unwrap_err().contains("such as"), "{bad}");
        }
    }
}
