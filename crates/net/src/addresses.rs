//! Which addresses the guest has on one NIC, so that a new host can announce them.
//!
//! ```text
//!                guest: "I have it"                                   heard for MAX_AGE no more
//!    unknown ───────────────────────▶ known since, and where ────────────────────────────────────▶ unknown
//!                                           │
//!                                           ├─ the guest asks who has it, gives it back, leaves its group
//!                                           ├─ another station: "I have it"
//!                                           └─ somebody asks for it again and again, and the guest does not answer
//! ```
//!
//! Pure: the caller says what time it is. The primary learns and the backup, which hears nothing, is told with the checkpoints
//! ([`Addresses::tell`], [`PeerAddresses`]).

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::announce::Announced;
use crate::snoop::Word;
use crate::vlan::Vlan;

/// Addresses of a NIC that are remembered; the one that was heard least recently makes room.
pub const MAX_ADDRESSES: usize = 16;

/// How long an address is believed that the guest does not speak for: as long as BSD believes its neighbours'. A guest with any
/// traffic speaks for its addresses every minute or so. If nobody has heard of one for longer, nobody has to be told either.
pub const MAX_AGE: Duration = Duration::from_secs(20 * 60);

/// The guest does not answer for an address when it is asked again after this and has not spoken for it in between. Who asks
/// does so once a second, three times (Linux `mcast_solicit`, `retrans_time_ms`; RFC 4861, section 10).
pub const UNANSWERED: Duration = Duration::from_millis(1500);

#[derive(Debug, Clone, Copy)]
struct Known {
    vlan: Vlan,
    address: IpAddr,
    router: bool,
    heard: Instant,
    /// The first question that the guest has not answered.
    asked: Option<Instant>,
}

impl Known {
    fn is_of(&self, vlan: Vlan, word: Word) -> bool {
        self.vlan == vlan && word.is_about(self.address)
    }
}

/// A NIC's addresses, bounded. Allocates nothing after it was made, but in [`Addresses::tell`].
#[derive(Debug)]
pub struct Addresses {
    /// The most recently heard first.
    known: Vec<Known>,
    changes: u64,
}

impl Default for Addresses {
    fn default() -> Self {
        Self { known: Vec::with_capacity(MAX_ADDRESSES), changes: 0 }
    }
}

impl Addresses {
    /// Grows with every change, but for the passing of time.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The guest said `word` about itself.
    pub fn guest_said(&mut self, vlan: Vlan, word: Word, now: Instant) {
        match word {
            Word::Has(address, router) => self.learn(vlan, address, router, now),
            Word::Asks(_) | Word::Lacks(_) | Word::LacksAllEndingIn(_) => self.forget(|k| k.is_of(vlan, word)),
        }
    }

    /// Another station said `word` about itself.
    pub fn other_said(&mut self, vlan: Vlan, word: Word, now: Instant) {
        match word {
            Word::Has(..) => self.forget(|k| k.is_of(vlan, word)),
            Word::Asks(_) => {
                let unanswered = |k: &Known| k.asked.is_some_and(|since| now - since >= UNANSWERED);
                self.forget(|k| k.is_of(vlan, word) && unanswered(k));
                for known in self.known.iter_mut().filter(|k| k.is_of(vlan, word)) {
                    known.asked.get_or_insert(now);
                }
            }
            Word::Lacks(_) | Word::LacksAllEndingIn(_) => {}
        }
    }

    fn learn(&mut self, vlan: Vlan, address: IpAddr, router: Option<bool>, heard: Instant) {
        let same = |k: &Known| k.vlan == vlan && k.address == address;
        let at = self.known.iter().position(same).unwrap_or_else(|| {
            if self.known.len() == MAX_ADDRESSES {
                self.known.pop();
            }
            self.changes += 1;
            self.known.push(Known { vlan, address, router: false, heard, asked: None });
            self.known.len() - 1
        });
        let known = &mut self.known[at];
        let router = router.unwrap_or(known.router);
        self.changes += u64::from(router != known.router);
        (known.router, known.heard, known.asked) = (router, heard, None);
        self.known[..=at].rotate_right(1);
    }

    fn forget(&mut self, which: impl Fn(&Known) -> bool) {
        let before = self.known.len();
        self.known.retain(|known| !which(known));
        self.changes += (before - self.known.len()) as u64;
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        self.forget(|_| true);
    }

    fn fresh(&self, now: Instant) -> impl Iterator<Item = &Known> {
        self.known.iter().filter(move |k| now.saturating_duration_since(k.heard) < MAX_AGE)
    }

    /// What may be announced, the most recently heard first.
    #[must_use]
    pub fn announced(&self, now: Instant) -> Vec<Announced> {
        self.fresh(now).map(|&Known { vlan, address, router, .. }| Announced { vlan, address, router }).collect()
    }

    /// Appends a line for each address: `nic`, VLAN, seconds since the guest spoke for it, `router` or `host`, address.
    pub fn tell(&self, nic: usize, now: Instant, lines: &mut String) {
        for known in self.fresh(now) {
            let age = now.saturating_duration_since(known.heard).as_secs();
            let what = if known.router { "router" } else { "host" };
            let _ = writeln!(lines, "{nic} {} {age} {what} {}", known.vlan, known.address);
        }
    }

    /// Knows what `told` says of this NIC, and nothing else.
    pub fn replace(&mut self, nic: usize, told: &PeerAddresses<'_>, now: Instant) {
        self.clear();
        for (vlan, address, router, age) in told.of(nic).take(MAX_ADDRESSES) {
            // Older than this machine's clock can say is too old.
            if let Some(heard) = now.checked_sub(age) {
                self.learn(vlan, address, Some(router), heard);
            }
        }
        // They came in the order in which `learn` puts them last.
        self.known.reverse();
    }
}

/// The first line of what one host tells another. With it an empty list is one; without it nothing was told.
pub const PEER_ADDRESSES: &str = "addresses 1\n";

/// What another host has told of all NICs. What makes no sense in it is passed over.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddresses<'a>(&'a str);

impl<'a> PeerAddresses<'a> {
    /// `None`: nothing was told, or in another form.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        std::str::from_utf8(bytes).ok()?.strip_prefix(PEER_ADDRESSES).map(Self)
    }

    fn of(self, nic: usize) -> impl Iterator<Item = (Vlan, IpAddr, bool, Duration)> {
        self.0.lines().filter_map(move |line| {
            let mut words = line.split(' ');
            if words.next()?.parse() != Ok(nic) {
                return None;
            }
            let vlan = words.next()?.parse().ok()?;
            let age = Duration::from_secs(words.next()?.parse().ok()?);
            let router = match words.next()? {
                "router" => true,
                "host" => false,
                _ => return None,
            };
            let address: IpAddr = words.next()?.parse().ok()?;
            let stands = !(address.is_unspecified() || address.is_multicast()) && words.next().is_none();
            stands.then_some((vlan, address, router, age))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn untagged() -> Vlan {
        Vlan::default()
    }

    fn of(table: &Addresses, now: Instant) -> Vec<String> {
        table.announced(now).iter().map(|a| format!("{} {}", a.vlan, a.address)).collect()
    }

    /// A NIC whose guest has spoken for these, the last one last.
    fn knowing(addresses: &[&str], now: Instant) -> Addresses {
        let mut table = Addresses::default();
        addresses.iter().for_each(|a| table.guest_said(untagged(), Word::Has(ip(a), None), now));
        table
    }

    #[test]
    fn what_the_guest_gives_up_is_forgotten() {
        let now = Instant::now();
        for word in [
            Word::Asks(ip("fe80::12:3456")),
            Word::Lacks(ip("fe80::12:3456")),
            Word::LacksAllEndingIn([0x12, 0x34, 0x56]),
        ] {
            let mut table = knowing(&["10.0.0.7", "fe80::12:3456"], now);
            let before = table.changes();
            table.guest_said("8100:5".parse().unwrap(), word, now);
            assert_eq!(table.changes(), before, "in another VLAN");
            table.guest_said(untagged(), word, now);
            assert_eq!(of(&table, now), ["- 10.0.0.7"], "{word:?}");
            assert_eq!(table.changes(), before + 1);
        }
    }

    #[test]
    fn what_another_station_speaks_for_is_forgotten_until_the_guest_speaks_for_it_again() {
        let now = Instant::now();
        for address in ["10.0.0.7", "fe80::7"] {
            let mut table = knowing(&[address], now);
            table.other_said("8100:5".parse().unwrap(), Word::Has(ip(address), None), now);
            table.other_said(untagged(), Word::Lacks(ip(address)), now);
            assert_eq!(of(&table, now).len(), 1, "in another VLAN; of itself");
            table.other_said(untagged(), Word::Has(ip(address), None), now);
            assert!(of(&table, now).is_empty());
            table.guest_said(untagged(), Word::Has(ip(address), None), now);
            assert_eq!(of(&table, now).len(), 1);
        }
    }

    #[test]
    fn what_the_guest_does_not_answer_for_is_forgotten() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut table = knowing(&["10.0.0.7"], start);
        let ask = |table: &mut Addresses, ms| table.other_said(untagged(), Word::Asks(ip("10.0.0.7")), at(ms));
        for second in 0..10 {
            ask(&mut table, second * 1000);
            table.guest_said(untagged(), Word::Has(ip("10.0.0.7"), None), at(second * 1000 + 5));
        }
        assert_eq!(of(&table, at(10_000)).len(), 1, "it answers");
        ask(&mut table, 20_000);
        ask(&mut table, 21_000);
        assert_eq!(of(&table, at(21_000)).len(), 1, "the answer may be lost");
        ask(&mut table, 22_000);
        assert!(of(&table, at(22_000)).is_empty());
    }

    #[test]
    fn what_is_not_heard_for_long_is_not_announced() {
        let start = Instant::now();
        let mut table = knowing(&["10.0.0.7", "10.0.0.8"], start);
        table.guest_said(untagged(), Word::Has(ip("10.0.0.7"), None), start + Duration::from_secs(1));
        assert_eq!(of(&table, start + MAX_AGE), ["- 10.0.0.7"]);
        assert!(of(&table, start + MAX_AGE + Duration::from_secs(1)).is_empty());
    }

    #[test]
    fn a_router_stays_one_until_it_says_otherwise() {
        let now = Instant::now();
        let mut table = Addresses::default();
        let mut say = |router| {
            table.guest_said(untagged(), Word::Has(ip("fe80::1"), router), now);
            (table.announced(now)[0].router, table.changes())
        };
        assert_eq!(say(Some(true)), (true, 2));
        assert_eq!(say(None), (true, 2));
        assert_eq!(say(Some(false)), (false, 3));
    }

    #[test]
    fn the_table_is_bounded_and_keeps_the_latest() {
        let now = Instant::now();
        let mut table = Addresses::default();
        (0..100).for_each(|i| table.guest_said(untagged(), Word::Has(IpAddr::from([10, 0, 0, i]), None), now));
        let known = of(&table, now);
        assert_eq!((known.len(), known[0].as_str(), known[15].as_str()), (16, "- 10.0.0.99", "- 10.0.0.84"));
    }

    fn told(text: &str) -> String {
        format!("{PEER_ADDRESSES}{text}")
    }

    #[test]
    fn a_backup_knows_of_each_nic_what_it_was_told_last() {
        let now = Instant::now();
        let mut backup = knowing(&["10.0.0.9"], now);
        let lines =
            told("0 - 3 host 10.0.0.7\n1 8100:5 0 router fe80::7\n0 - 1200 host 10.0.0.8\n0 - 4 host 0.0.0.0\n");
        for (nic, want) in [(0, "- 10.0.0.7"), (1, "8100:5 fe80::7")] {
            backup.replace(nic, &PeerAddresses::parse(lines.as_bytes()).unwrap(), now + MAX_AGE * 2);
            assert_eq!(of(&backup, now + MAX_AGE * 2), [want]);
        }
        backup.replace(0, &PeerAddresses::parse(PEER_ADDRESSES.as_bytes()).unwrap(), now);
        assert!(of(&backup, now).is_empty());
        assert!(PeerAddresses::parse(b"").is_none() && PeerAddresses::parse(b"10.0.0.7\n").is_none());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Guest(usize, u8, u8),
        Other(usize, u8, u8),
        Pass(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..2usize, 0..40u8, 0..4u8).prop_map(|(v, a, w)| Step::Guest(v, a, w)),
            2 => (0..2usize, 0..40u8, 0..4u8).prop_map(|(v, a, w)| Step::Other(v, a, w)),
            1 => (0..900u16).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// Whatever is said: who was last heard to have an address, and when, decides; and a backup that is told announces the same.
        #[test]
        fn nothing_is_announced_that_the_guest_was_not_the_last_to_speak_for(steps in prop::collection::vec(step(), 0..200)) {
            let vlans = [Vlan::default(), "8100:5".parse().unwrap()];
            let address = |a: u8| if a < 20 { IpAddr::from([10, 0, 0, a + 1]) } else { ip(&format!("fe80::{a}")) };
            let word = |w, a| match w {
                0 => Word::Asks(address(a)),
                1 => Word::Lacks(address(a)),
                _ => Word::Has(address(a), None),
            };
            let (mut table, mut now) = (Addresses::default(), Instant::now() + MAX_AGE * 2);
            let mut guests = std::collections::HashMap::new();
            for step in steps {
                match step {
                    Step::Guest(v, a, w) => {
                        table.guest_said(vlans[v], word(w, a), now);
                        if w > 1 { guests.insert((v, a), now); } else { guests.remove(&(v, a)); }
                    }
                    Step::Other(v, a, w) => {
                        table.other_said(vlans[v], word(w, a), now);
                        if w > 1 { guests.remove(&(v, a)); }
                    }
                    Step::Pass(seconds) => now += Duration::from_secs(seconds.into()),
                }
                let announced = table.announced(now);
                prop_assert!(announced.len() <= MAX_ADDRESSES);
                for a in &announced {
                    let live = guests.iter().any(|((v, n), heard)| {
                        vlans[*v] == a.vlan && address(*n) == a.address && now - *heard < MAX_AGE
                    });
                    prop_assert!(live, "{a:?}");
                }
                let mut lines = PEER_ADDRESSES.to_owned();
                table.tell(3, now, &mut lines);
                let mut backup = Addresses::default();
                backup.replace(3, &PeerAddresses::parse(lines.as_bytes()).unwrap(), now);
                prop_assert_eq!(backup.announced(now), announced);
                backup.replace(2, &PeerAddresses::parse(lines.as_bytes()).unwrap(), now);
                prop_assert!(backup.announced(now).is_empty());
            }
        }

        #[test]
        fn garbage_that_is_told_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "([0-9a-f:./ -]|host|\n){0,200}") {
            for bytes in [&bytes[..], text.as_bytes(), &[PEER_ADDRESSES.as_bytes(), &bytes].concat(), told(&text).as_bytes()] {
                if let Some(told) = PeerAddresses::parse(bytes) {
                    let mut table = knowing(&["10.0.0.7"], Instant::now());
                    table.replace(0, &told, Instant::now());
                    table.replace(usize::MAX, &told, Instant::now());
                }
            }
        }
    }
}
