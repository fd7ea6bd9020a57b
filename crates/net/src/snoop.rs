//! Learns the guest's addresses from its own frames, so that a new host can announce them.
//!
//! Only what a station says about itself counts: the sender of an ARP packet (RFC 826), the source of an IPv6 neighbour
//! message and the target of an advertisement (RFC 4861). Addresses of others that the guest merely forwards for are
//! not learnt.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ninefold_model::spec::Mac;

/// Addresses remembered; the one that was heard least recently makes room.
pub const MAX_ADDRESSES: usize = 16;

const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// A bounded set of the guest's addresses. Allocates nothing after it was made.
#[derive(Debug, Clone)]
pub struct Snooper {
    mac: Mac,
    /// The most recently heard first.
    addresses: Vec<IpAddr>,
}

impl Snooper {
    /// For the guest's NIC with address `mac`.
    #[must_use]
    pub fn new(mac: Mac) -> Self {
        Self { mac, addresses: Vec::with_capacity(MAX_ADDRESSES) }
    }

    /// The addresses, the most recently heard first.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Looks at a frame that the guest sent.
    pub fn see(&mut self, frame: &[u8]) {
        if let Some(address) = spoken_for(frame, self.mac) {
            self.learn(address);
        }
    }

    /// Remembers an address.
    pub fn learn(&mut self, address: IpAddr) {
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            return;
        }
        let at = self.addresses.iter().position(|a| *a == address).unwrap_or_else(|| {
            if self.addresses.len() == MAX_ADDRESSES {
                self.addresses.pop();
            }
            self.addresses.push(address);
            self.addresses.len() - 1
        });
        self.addresses[..=at].rotate_right(1);
    }
}

/// The address that `frame` says belongs to its sender `mac`.
fn spoken_for(frame: &[u8], mac: Mac) -> Option<IpAddr> {
    if frame.get(6..12)? != mac.0 {
        return None;
    }
    let kind: [u8; 2] = frame.get(12..14)?.try_into().ok()?;
    let packet = frame.get(14..)?;
    match kind {
        // Hardware type Ethernet, protocol IPv4, lengths 6 and 4; then operation, sender's MAC, sender's address.
        ARP if packet.starts_with(&[0, 1, 8, 0, 6, 4]) && packet.get(8..14)? == mac.0 => {
            let sender: [u8; 4] = packet.get(14..18)?.try_into().ok()?;
            Some(Ipv4Addr::from(sender).into())
        }
        IPV6 if *packet.get(6)? == ICMPV6 => {
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            match *packet.get(40)? {
                NEIGHBOUR_SOLICITATION => Some(Ipv6Addr::from(source).into()),
                NEIGHBOUR_ADVERTISEMENT => {
                    let target: [u8; 16] = packet.get(48..64)?.try_into().ok()?;
                    Some(Ipv6Addr::from(target).into())
                }
                _ => None,
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::announce::{gratuitous_arp, neighbour_advertisement, rarp};

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

    #[test]
    fn learns_from_arp_and_neighbour_advertisements_of_the_guest_only() {
        let mut snooper = Snooper::new(MAC);
        let other = Mac([0x52, 0x54, 0, 0, 0, 1]);
        snooper.see(&gratuitous_arp(other, Ipv4Addr::new(10, 0, 0, 9)));
        snooper.see(&rarp(MAC));
        assert!(snooper.addresses().is_empty());
        snooper.see(&gratuitous_arp(MAC, Ipv4Addr::new(10, 0, 0, 7)));
        snooper.see(&neighbour_advertisement(MAC, "fe80::7".parse().unwrap()));
        snooper.see(&gratuitous_arp(MAC, Ipv4Addr::new(10, 0, 0, 7)));
        let want: [IpAddr; 2] = ["10.0.0.7".parse().unwrap(), "fe80::7".parse().unwrap()];
        assert_eq!(snooper.addresses(), want);
    }

    #[test]
    fn an_arp_probe_says_nothing() {
        let mut snooper = Snooper::new(MAC);
        snooper.see(&gratuitous_arp(MAC, Ipv4Addr::UNSPECIFIED));
        assert!(snooper.addresses().is_empty());
    }

    #[test]
    fn the_set_is_bounded_and_keeps_the_latest() {
        let mut snooper = Snooper::new(MAC);
        for i in 0..100 {
            snooper.see(&gratuitous_arp(MAC, Ipv4Addr::new(10, 0, 0, i)));
        }
        assert_eq!(snooper.addresses().len(), MAX_ADDRESSES);
        assert_eq!(snooper.addresses()[0], IpAddr::from([10, 0, 0, 99]));
        assert_eq!(snooper.addresses()[MAX_ADDRESSES - 1], IpAddr::from([10, 0, 0, 84]));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(
            tail in prop::collection::vec(any::<u8>(), 0..100),
            kind in prop::sample::select(vec![ARP, IPV6]),
            cut in 0..120usize,
        ) {
            let mut frame = [&[0xff; 6][..], &MAC.0, &kind, &tail].concat();
            frame.truncate(cut);
            Snooper::new(MAC).see(&frame);
        }
    }
}
