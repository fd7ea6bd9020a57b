//! Tells switches and peers the VM's new place after a switch.
//!
//! A switch learns from any frame with the VM's source address; the reverse ARP request does it without saying
//! anything else and is what QEMU sends after a migration. Peers need nothing new, since the VM keeps its Ethernet
//! address; gratuitous ARP and unsolicited neighbour advertisements also refresh those that had given up on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ninefold_model::spec::Mac;

use crate::vlan::Vlan;

/// The shortest Ethernet frame, without its checksum.
const SHORTEST: usize = 60;

const BROADCAST: [u8; 6] = [0xff; 6];

/// A reverse ARP request (RFC 903) as QEMU's `announce_self_create` makes it (`net/announce.c`).
#[must_use]
pub fn rarp(mac: Mac) -> [u8; SHORTEST] {
    arp_frame([0x80, 0x35], 3, mac, Ipv4Addr::UNSPECIFIED, mac.0, Ipv4Addr::UNSPECIFIED)
}

/// An ARP announcement (RFC 5227, section 2.3): a broadcast request with `address` as sender and target.
#[must_use]
pub fn gratuitous_arp(mac: Mac, address: Ipv4Addr) -> [u8; SHORTEST] {
    arp_frame([0x08, 0x06], 1, mac, address, [0; 6], address)
}

fn arp_frame(
    kind: [u8; 2],
    operation: u8,
    sender: Mac,
    sender_address: Ipv4Addr,
    target: [u8; 6],
    target_address: Ipv4Addr,
) -> [u8; SHORTEST] {
    let mut frame = [0; SHORTEST];
    frame[..6].copy_from_slice(&BROADCAST);
    frame[6..12].copy_from_slice(&sender.0);
    frame[12..14].copy_from_slice(&kind);
    // Ethernet, IPv4, address lengths, operation (RFC 826).
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, operation]);
    frame[22..28].copy_from_slice(&sender.0);
    frame[28..32].copy_from_slice(&sender_address.octets());
    frame[32..38].copy_from_slice(&target);
    frame[38..42].copy_from_slice(&target_address.octets());
    frame
}

/// Bytes of a neighbour advertisement with one link-layer address option: Ethernet 14, IPv6 40, message 24, option 8.
const ADVERTISEMENT: usize = 86;

/// An unsolicited neighbour advertisement (RFC 4861, sections 4.4 and 7.2.6) to all nodes, with the override flag. A `router` has
/// to say that it is one: hosts drop their routes through a neighbour that says that it is none (section 7.2.5).
#[must_use]
pub fn neighbour_advertisement(mac: Mac, address: Ipv6Addr, router: bool) -> [u8; ADVERTISEMENT] {
    let mut frame = [0; ADVERTISEMENT];
    // ff02::1 on Ethernet: RFC 2464, section 7.
    frame[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    frame[6..12].copy_from_slice(&mac.0);
    frame[12..14].copy_from_slice(&[0x86, 0xdd]);
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // Version 6; payload length 32; next header ICMPv6; hop limit 255.
    frame[14..22].copy_from_slice(&[0x60, 0, 0, 0, 0, 32, 58, 255]);
    frame[22..38].copy_from_slice(&address.octets());
    frame[38..54].copy_from_slice(&all_nodes.octets());
    frame[54] = 136;
    frame[58] = 0x20 | if router { 0x80 } else { 0 };
    frame[62..78].copy_from_slice(&address.octets());
    // Target link-layer address, in units of 8 bytes.
    frame[78..80].copy_from_slice(&[2, 1]);
    frame[80..86].copy_from_slice(&mac.0);
    let sum = icmpv6_checksum(&address, &all_nodes, &frame[54..]);
    frame[56..58].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// RFC 4443, section 2.3, over a message of an even length whose checksum field is zero.
fn icmpv6_checksum(source: &Ipv6Addr, destination: &Ipv6Addr, message: &[u8]) -> u16 {
    let words =
        |bytes: &[u8]| -> u32 { bytes.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum() };
    let mut sum = words(&source.octets()) + words(&destination.octets()) + words(message);
    sum += message.len() as u32 + 58;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An address that is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// Where it is announced.
    pub vlan: Vlan,
    /// The address.
    pub address: IpAddr,
    /// Whether the guest says of itself that it is an IPv6 router there.
    pub router: bool,
}

/// Hands all that one announcement consists of to `sink`, frame by frame: a reverse ARP request in each VLAN where the guest has an
/// address, and without one, since switches may learn in each VLAN apart; and one frame for each address.
pub fn frames(mac: Mac, addresses: &[Announced], mut sink: impl FnMut(&[u8])) {
    sink(&rarp(mac));
    for (n, Announced { vlan, address, router }) in addresses.iter().enumerate() {
        if *vlan != Vlan::default() && addresses[..n].iter().all(|a| a.vlan != *vlan) {
            vlan.tag(&rarp(mac), &mut sink);
        }
        match address {
            IpAddr::V4(v4) => vlan.tag(&gratuitous_arp(mac, *v4), &mut sink),
            IpAddr::V6(v6) => vlan.tag(&neighbour_advertisement(mac, *v6, *router), &mut sink),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn rarp_is_qemus() {
        let want = hex("ffffffffffff 525400123456 8035 0001 0800 06 04 0003
             525400123456 00000000 525400123456 00000000
             000000000000000000000000000000000000");
        assert_eq!(rarp(MAC).to_vec(), want);
    }

    #[test]
    fn gratuitous_arp_is_an_announcement() {
        let want = hex("ffffffffffff 525400123456 0806 0001 0800 06 04 0001
             525400123456 c0a80107 000000000000 c0a80107
             000000000000000000000000000000000000");
        assert_eq!(gratuitous_arp(MAC, Ipv4Addr::new(192, 168, 1, 7)).to_vec(), want);
    }

    #[test]
    fn neighbour_advertisement_by_hand() {
        // The checksum by hand: pseudo-header fe80::5054:ff:fe12:3456 and ff02::1, length 0x20, next header 0x3a:
        //   fe80+5054+00ff+fe12+3456 = 2823b; ff02+0001 = ff03; 20+3a = 5a
        //   8800+0000+2000+0000 = a800; target again 2823b; option 0201+5254+0012+3456 = 88bd
        //   sum 2823b+ff03+5a+a800+2823b+88bd = 69150 - folded by hand below
        let sum: u32 = 0x2823b + 0xff03 + 0x5a + 0xa800 + 0x2823b + 0x88bd;
        let folded = (sum & 0xffff) + (sum >> 16);
        let checksum = format!("{:04x}", !(folded as u16));
        let want = hex(&format!(
            "333300000001 525400123456 86dd 60000000 0020 3a ff
             fe80000000000000505400fffe123456 ff020000000000000000000000000001
             88 00 {checksum} 20000000 fe80000000000000505400fffe123456 02 01 525400123456"
        ));
        let frame = neighbour_advertisement(MAC, "fe80::5054:ff:fe12:3456".parse().unwrap(), false);
        assert_eq!(frame.to_vec(), want);
    }
}
