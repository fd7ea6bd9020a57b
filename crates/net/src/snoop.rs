//! What a frame says about who has an address: ARP (RFC 826), IPv6 neighbour discovery (RFC 4861), the end of a
//! membership in a solicited-node group (RFC 2710, RFC 3810), and DHCP's release and decline (RFC 2131, RFC 8415).
//!
//! Only what a station says about itself counts: the sender of an ARP packet, the source of a neighbour message, the target of
//! an advertisement. Addresses of others that a station merely forwards for are not its own. Nothing here allocates.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ninefold_model::spec::Mac;

use crate::vlan::Vlan;

const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const LISTENER_DONE: u8 = 132;
const LISTENER_REPORT_V2: u8 = 143;
/// A record of such a report: the station listens to the sources in it alone, and there are none.
const CHANGE_TO_INCLUDE: u8 = 3;

/// Routers do not forward what has come with this hop limit, so that it is of the sender's own link.
const OF_THIS_LINK: u8 = 255;

/// What one frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// The speaker has this address. Whether it is a router, if the frame says so.
    Has(IpAddr, Option<bool>),
    /// The speaker asks who has this address. It does not have it itself, and whoever does answers.
    Asks(IpAddr),
    /// The speaker gives this address back.
    Lacks(IpAddr),
    /// The speaker has none of the IPv6 addresses that end in these three bytes: it has left their solicited-node group
    /// (RFC 4291, section 2.7.1).
    LacksAllEndingIn([u8; 3]),
}

impl Word {
    /// Whether it is about this address.
    #[must_use]
    pub fn is_about(&self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::Has(of, _) | Self::Asks(of) | Self::Lacks(of), _) => *of == address,
            (Self::LacksAllEndingIn(end), IpAddr::V6(v6)) => v6.octets().ends_with(end),
            (Self::LacksAllEndingIn(_), IpAddr::V4(_)) => false,
        }
    }
}

/// Who sent a frame; `None` if it is too short to be one.
#[must_use]
pub fn sender(frame: &[u8]) -> Option<Mac> {
    frame.get(6..12)?.try_into().ok().map(Mac)
}

/// Hands every word that the sender of `frame` says about itself to `sink`, with the VLAN where it says it.
pub fn words(frame: &[u8], mut sink: impl FnMut(Vlan, Word)) {
    // What is cut off, or makes no sense, ends the look; the words before that count.
    let _ = look(frame, &mut sink);
}

fn look(frame: &[u8], sink: &mut impl FnMut(Vlan, Word)) -> Option<()> {
    let speaker = sender(frame)?;
    let (vlan, kind, packet) = Vlan::of(frame)?;
    let mut say = |word| {
        let stands = match word {
            Word::Has(address, _) | Word::Asks(address) | Word::Lacks(address) => {
                !(address.is_unspecified() || address.is_multicast() || address.is_loopback())
                    && address != IpAddr::V4(Ipv4Addr::BROADCAST)
            }
            Word::LacksAllEndingIn(_) => true,
        };
        if stands {
            sink(vlan, word);
        }
    };
    match kind {
        ARP => arp(packet, speaker, &mut say),
        IPV4 => ipv4(packet, &mut say),
        IPV6 => ipv6(packet, &mut say),
        _ => None,
    }
}

fn v4(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?).into())
}

fn v6(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    Some(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?.into())
}

fn arp(packet: &[u8], speaker: Mac, say: &mut impl FnMut(Word)) -> Option<()> {
    // Hardware type Ethernet, protocol IPv4, lengths 6 and 4; then operation, sender's MAC and address, the target's.
    let operation = *packet.get(7)?;
    if !packet.starts_with(&[0, 1, 8, 0, 6, 4, 0]) || !matches!(operation, 1 | 2) || packet.get(8..14)? != speaker.0 {
        return None;
    }
    let (sender, target) = (v4(packet, 14)?, v4(packet, 24)?);
    say(Word::Has(sender, None));
    // Also who looks whether anybody has it already (RFC 5227).
    if operation == 1 && target != sender {
        say(Word::Asks(target));
    }
    Some(())
}

fn ipv4(packet: &[u8], say: &mut impl FnMut(Word)) -> Option<()> {
    let first = *packet.first()?;
    let header = usize::from(first & 0xf) * 4;
    let fragment = u16::from_be_bytes(packet.get(6..8)?.try_into().ok()?) & 0x3fff;
    if first >> 4 != 4 || header < 20 || *packet.get(9)? != UDP || fragment != 0 {
        return None;
    }
    let udp = packet.get(header..)?;
    // From a client to a server, a BOOTP request for Ethernet.
    if !udp.starts_with(&[0, 68, 0, 67]) || !udp.get(8..)?.starts_with(&[1, 1, 6]) {
        return None;
    }
    let bootp = udp.get(8..)?;
    if bootp.get(236..240)? != [99, 130, 83, 99] {
        return None;
    }
    let (mut kind, mut requested) = (0, None);
    let mut options = bootp.get(240..)?;
    loop {
        match options {
            [] | [255, ..] => break,
            [0, rest @ ..] => options = rest,
            [code, length, rest @ ..] => {
                let Some((value, rest)) = rest.split_at_checked(usize::from(*length)) else { break };
                match code {
                    53 => kind = value.first().copied().unwrap_or(0),
                    50 => requested = v4(value, 0),
                    _ => {}
                }
                options = rest;
            }
            [_] => break,
        }
    }
    match kind {
        4 => say(Word::Lacks(requested?)),
        7 => say(Word::Lacks(v4(bootp, 12)?)),
        _ => {}
    }
    Some(())
}

fn ipv6(packet: &[u8], say: &mut impl FnMut(Word)) -> Option<()> {
    if packet.first()? >> 4 != 6 {
        return None;
    }
    let hop_limit = *packet.get(7)?;
    match *packet.get(6)? {
        ICMPV6 if hop_limit == OF_THIS_LINK => neighbour(v6(packet, 8)?, packet.get(40..)?, say),
        // Listeners' reports have a hop-by-hop header of eight bytes, with an alert for routers.
        HOP_BY_HOP if packet.get(40..42)? == [ICMPV6, 0] => listener(packet.get(48..)?, say),
        UDP => dhcpv6(packet.get(40..)?, say),
        _ => None,
    }
}

fn neighbour(source: Ipv6Addr, message: &[u8], say: &mut impl FnMut(Word)) -> Option<()> {
    match *message.first()? {
        ROUTER_SOLICITATION => say(Word::Has(source.into(), None)),
        ROUTER_ADVERTISEMENT => say(Word::Has(source.into(), Some(true))),
        NEIGHBOUR_SOLICITATION => {
            let target = v6(message, 8)?;
            say(Word::Has(source.into(), None));
            if target != source {
                // Also who looks whether anybody has it already (RFC 4862, section 5.4).
                say(Word::Asks(target.into()));
            }
        }
        NEIGHBOUR_ADVERTISEMENT => {
            let flags = *message.get(4)?;
            // Without the override flag it is an anycast address, or somebody else's.
            if flags & 0x20 != 0 {
                say(Word::Has(v6(message, 8)?.into(), Some(flags & 0x80 != 0)));
            }
        }
        _ => {}
    }
    Some(())
}

fn listener(message: &[u8], say: &mut impl FnMut(Word)) -> Option<()> {
    match *message.first()? {
        LISTENER_DONE => left(v6(message, 8)?, say),
        LISTENER_REPORT_V2 => {
            let records = u16::from_be_bytes(message.get(6..8)?.try_into().ok()?);
            let mut rest = message.get(8..)?;
            for _ in 0..records {
                let sources = u16::from_be_bytes(rest.get(2..4)?.try_into().ok()?);
                let group = v6(rest, 4)?;
                if *rest.first()? == CHANGE_TO_INCLUDE && sources == 0 {
                    left(group, say);
                }
                let length = 20 + usize::from(sources) * 16 + usize::from(*rest.get(1)?) * 4;
                rest = rest.get(length..)?;
            }
        }
        _ => {}
    }
    Some(())
}

fn left(group: Ipv6Addr, say: &mut impl FnMut(Word)) {
    if let [0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c] = group.octets() {
        say(Word::LacksAllEndingIn([a, b, c]));
    }
}

fn dhcpv6(udp: &[u8], say: &mut impl FnMut(Word)) -> Option<()> {
    // From a client to a server: release or decline, and a transaction id of three bytes.
    if !udp.starts_with(&[2, 34, 2, 35]) || !matches!(*udp.get(8)?, 8 | 9) {
        return None;
    }
    let mut options = udp.get(12..)?;
    while let Some((code, value, rest)) = option(options) {
        // An association of addresses: an id and two times, then its options.
        if code == 3 {
            let mut inner = value.get(12..)?;
            while let Some((code, value, rest)) = option(inner) {
                if code == 5 {
                    say(Word::Lacks(v6(value, 0)?.into()));
                }
                inner = rest;
            }
        }
        options = rest;
    }
    Some(())
}

/// The first of DHCPv6's options: its code, its value, and what follows.
fn option(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    let [a, b, c, d] = *head;
    let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([c, d])))?;
    Some((u16::from_be_bytes([a, b]), value, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::announce::{gratuitous_arp, neighbour_advertisement, rarp};

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

    fn said(frame: &[u8]) -> Vec<Word> {
        let mut all = Vec::new();
        words(frame, |_, word| all.push(word));
        all
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn ethernet(kind: [u8; 2], packet: &[u8]) -> Vec<u8> {
        [&[0xff; 6][..], &MAC.0, &kind, packet].concat()
    }

    fn arp(operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let head = [0, 1, 8, 0, 6, 4, 0, operation];
        ethernet(ARP, &[&head[..], &MAC.0, &sender, &[0; 6], &target].concat())
    }

    fn packet6(next: u8, hop_limit: u8, source: &str, rest: &[u8]) -> Vec<u8> {
        let source: Ipv6Addr = source.parse().unwrap();
        let head = [0x60, 0, 0, 0, 0, rest.len() as u8, next, hop_limit];
        ethernet(IPV6, &[&head[..], &source.octets(), &[0xff; 16], rest].concat())
    }

    fn message(kind: u8, flags: u8, target: &str) -> Vec<u8> {
        [&[kind, 0, 0, 0, flags, 0, 0, 0][..], &target.parse::<Ipv6Addr>().unwrap().octets()].concat()
    }

    #[test]
    fn arp_says_what_its_sender_has_and_has_not() {
        let [seven, nine] = [ip("10.0.0.7"), ip("10.0.0.9")];
        assert_eq!(said(&gratuitous_arp(MAC, [10, 0, 0, 7].into())), [Word::Has(seven, None)]);
        assert_eq!(said(&arp(1, [10, 0, 0, 7], [10, 0, 0, 9])), [Word::Has(seven, None), Word::Asks(nine)]);
        assert_eq!(said(&arp(2, [10, 0, 0, 7], [10, 0, 0, 9])), [Word::Has(seven, None)], "an answer");
        assert_eq!(said(&arp(1, [0; 4], [10, 0, 0, 9])), [Word::Asks(nine)], "a probe");
        assert_eq!(said(&arp(3, [10, 0, 0, 7], [10, 0, 0, 9])), []);
        assert_eq!(said(&rarp(MAC)), []);
        let mut forwarded = gratuitous_arp(MAC, [10, 0, 0, 7].into());
        forwarded[6] ^= 4;
        assert_eq!(said(&forwarded), [], "somebody else's");
    }

    #[test]
    fn neighbour_discovery_says_it_of_ipv6() {
        let [a, b] = [ip("fe80::7"), ip("fe80::9")];
        let advertised = neighbour_advertisement(MAC, "fe80::7".parse().unwrap(), true);
        assert_eq!(said(&advertised), [Word::Has(a, Some(true))]);
        let solicitation = message(135, 0, "fe80::9");
        let asks = packet6(ICMPV6, 255, "fe80::7", &solicitation);
        assert_eq!(said(&asks), [Word::Has(a, None), Word::Asks(b)]);
        assert_eq!(said(&packet6(ICMPV6, 255, "::", &solicitation)), [Word::Asks(b)], "a probe");
        assert_eq!(said(&packet6(ICMPV6, 64, "fe80::7", &solicitation)), [], "it may have been forwarded");
        assert_eq!(said(&packet6(ICMPV6, 255, "fe80::7", &message(136, 0x40, "fe80::9"))), [], "anycast");
        assert_eq!(said(&packet6(ICMPV6, 255, "fe80::7", &message(133, 0, "::"))), [Word::Has(a, None)]);
        assert_eq!(said(&packet6(ICMPV6, 255, "fe80::7", &message(134, 0, "::"))), [Word::Has(a, Some(true))]);
    }

    #[test]
    fn who_leaves_a_solicited_node_group_has_none_of_its_addresses() {
        let group: Ipv6Addr = "ff02::1:ff12:3456".parse().unwrap();
        let alert = [ICMPV6, 0, 5, 2, 0, 0, 1, 0];
        let gone = [Word::LacksAllEndingIn([0x12, 0x34, 0x56])];
        let done = [&alert[..], &[132, 0, 0, 0, 0, 0, 0, 0], &group.octets()].concat();
        assert_eq!(said(&packet6(HOP_BY_HOP, 1, "fe80::7", &done)), gone);
        let record = |kind: u8, sources: u8| {
            let addresses = vec![0; usize::from(sources) * 16];
            [&[kind, 0, 0, sources][..], &group.octets(), &addresses].concat()
        };
        let report = |records: &[Vec<u8>]| {
            let head = [143, 0, 0, 0, 0, 0, 0, records.len() as u8];
            packet6(HOP_BY_HOP, 1, "fe80::7", &[&alert[..], &head, &records.concat()].concat())
        };
        assert_eq!(said(&report(&[record(4, 2), record(3, 1), record(3, 0)])), gone);
        assert_eq!(said(&report(&[record(4, 0), record(2, 0)])), [], "it has joined");
        assert!(gone[0].is_about(ip("fe80::5054:ff:fe12:3456")) && !gone[0].is_about(ip("fe80::1")));
        assert!(!gone[0].is_about(ip("18.52.86.1")));
    }

    fn dhcp(options: &[u8]) -> Vec<u8> {
        let mut bootp = vec![0; 240];
        bootp[..4].copy_from_slice(&[1, 1, 6, 0]);
        bootp[12..16].copy_from_slice(&[10, 0, 0, 7]);
        bootp[236..240].copy_from_slice(&[99, 130, 83, 99]);
        let mut header = [0; 28];
        header[0] = 0x45;
        header[9] = UDP;
        header[20..24].copy_from_slice(&[0, 68, 0, 67]);
        ethernet(IPV4, &[&header[..], &bootp, options].concat())
    }

    #[test]
    fn dhcp_gives_addresses_back() {
        assert_eq!(said(&dhcp(&[0, 12, 1, 65, 53, 1, 7, 255])), [Word::Lacks(ip("10.0.0.7"))]);
        assert_eq!(said(&dhcp(&[53, 1, 4, 50, 4, 10, 0, 0, 9, 255])), [Word::Lacks(ip("10.0.0.9"))]);
        for other in [&[53, 1, 3, 255][..], &[53], &[53, 9, 7], &[]] {
            assert_eq!(said(&dhcp(other)), []);
        }
        let address: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let inner = [&[0, 5, 0, 24][..], &address.octets(), &[0; 8]].concat();
        let outer = [&[0, 3, 0, (12 + inner.len()) as u8][..], &[0; 12], &inner].concat();
        let message = |kind: u8| {
            let udp = [2, 34, 2, 35, 0, 0, 0, 0];
            packet6(UDP, 1, "fe80::7", &[&udp[..], &[kind, 1, 2, 3], &[0, 1, 0, 2, 8, 8], &outer].concat())
        };
        assert_eq!(said(&message(8)), [Word::Lacks(address.into())]);
        assert_eq!(said(&message(9)), [Word::Lacks(address.into())]);
        assert_eq!(said(&message(3)), []);
    }

    #[test]
    fn a_word_in_a_vlan_is_of_that_vlan() {
        let plain = arp(1, [10, 0, 0, 7], [10, 0, 0, 7]);
        let tagged = [&plain[..12], &[0x81, 0, 0xe0, 5], &plain[12..]].concat();
        let mut seen = None;
        words(&tagged, |vlan, word| seen = Some((vlan.to_string(), word)));
        assert_eq!(seen, Some(("8100:5".to_owned(), Word::Has(ip("10.0.0.7"), None))));
    }

    /// Frames that come far: the heads are right and the rest is anything.
    fn nearly() -> impl Strategy<Value = Vec<u8>> {
        let heads = vec![
            ethernet(ARP, &[0, 1, 8, 0, 6, 4, 0, 1]),
            packet6(ICMPV6, 255, "fe80::7", &[135, 0, 0, 0]),
            packet6(HOP_BY_HOP, 1, "fe80::7", &[ICMPV6, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0, 0, 0]),
            packet6(UDP, 1, "fe80::7", &[2, 34, 2, 35, 0, 0, 0, 0, 8, 1, 2, 3, 0, 3]),
            dhcp(&[53, 1, 7]),
            ethernet([0x81, 0], &[0, 5, 0x88, 0xa8]),
            ethernet(IPV4, &[0x4f]),
            Vec::new(),
        ];
        let tail = prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xff), any::<u8>()], 0..300);
        (prop::sample::select(heads), tail, 0..700usize).prop_map(|(head, tail, cut)| {
            let mut frame = [head, tail].concat();
            frame.truncate(cut);
            frame
        })
    }

    proptest! {
        #[test]
        fn garbage_never_panics_and_says_nothing_about_what_nobody_can_have(frame in nearly()) {
            for word in said(&frame) {
                if let Word::Has(address, _) | Word::Asks(address) | Word::Lacks(address) = word {
                    prop_assert!(!address.is_unspecified() && !address.is_multicast());
                }
            }
        }
    }
}
