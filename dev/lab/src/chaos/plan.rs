//! What is going to happen: from a seed and a time to a script, pure.
//!
//! A script has stages, each with a VM of one kind; a stage has *bursts*. In a burst up to [`MAX_FAULTS`] faults begin, up to
//! [`MAX_AT_ONCE`] of them at a time; each has the time of its end. After a burst everything is mended, and the VM has to come to
//! rest before the next one: so what is found can be told from what was done.
//!
//! ```text
//!   burst 4     ├── disk of b hangs ──────────┤              ┆ rest
//!               ┆    ├─ a freezes ─┤                         ┆
//!               ┆          ├ QEMU of b is killed             ┆
//!         0 ms ─┴──────────────────────────────────► 4300 ms ┴──────► next burst
//! ```
//!
//! The script knows hosts by their names, not by their roles: which of them is the primary then depends on what happened before.

use ninefold_model::HostName;
use serde::{Deserialize, Serialize};

use super::dice::Dice;
use super::fault::{Away, Fault, Kind, Resource};
use crate::faults::Cut;
use crate::topology::Network;

/// Most faults of a burst.
pub const MAX_FAULTS: u64 = 4;
/// Most faults at a time.
pub const MAX_AT_ONCE: usize = 3;
/// Between the end of a fault and the beginning of another that needs the same.
const APART_MS: u64 = 100;
/// Within this time the faults of a burst begin.
const BEGIN_MS: u64 = 4000;
/// What coming to rest after a burst is reckoned at.
pub const REST_MS: u64 = 4000;
/// The volume that is overwritten, MiB.
pub const SCRATCH_MIB: u64 = 128;
/// Longest stage, seconds.
const STAGE_S: u64 = 300;

/// What a script is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The hosts where a VM may live: each takes as many of them as it needs, from the first on.
    pub hosts: Vec<HostName>,
    pub witness: HostName,
    /// The VMs that take turns; not empty.
    pub subjects: Vec<Subject>,
    /// Hosts have disks of their own.
    pub disks: bool,
    /// Disks can be made slow.
    pub slow_disks: bool,
}

/// A VM under its ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// redis in memory.
    Redis,
    /// redis in a non-volatile VM.
    RedisNonVolatile,
    /// PostgreSQL on a volume that acknowledges in memory.
    PostgresMemory,
    /// PostgreSQL on a volume that acknowledges on disk.
    PostgresDisk,
    /// PostgreSQL in a non-volatile VM.
    PostgresNonVolatile,
    /// redis in memory, with two backups.
    RedisTwoBackups,
}

impl Subject {
    pub const ALL: [Subject; 6] = [
        Subject::Redis,
        Subject::PostgresDisk,
        Subject::RedisNonVolatile,
        Subject::PostgresMemory,
        Subject::PostgresNonVolatile,
        Subject::RedisTwoBackups,
    ];

    pub fn is_postgres(self) -> bool {
        !matches!(self, Subject::Redis | Subject::RedisNonVolatile | Subject::RedisTwoBackups)
    }

    /// How many backups it has.
    pub fn backups(self) -> u8 {
        if self == Subject::RedisTwoBackups { 2 } else { 1 }
    }

    /// The hosts that it needs.
    pub fn hosts(self) -> usize {
        usize::from(self.backups()) + 1
    }

    /// It has volumes, one of them to be overwritten.
    pub fn has_volumes(self) -> bool {
        !matches!(self, Subject::Redis | Subject::RedisTwoBackups)
    }

    /// What it acknowledges to its clients is in its volumes: if its hosts lose it, it can be started again from them.
    pub fn can_be_started_again(self) -> bool {
        matches!(self, Subject::PostgresDisk | Subject::PostgresMemory)
    }

    /// What it acknowledges is on a disk.
    pub fn is_durable(self) -> bool {
        self == Subject::PostgresDisk
    }

    /// Each host keeps a log of it.
    pub fn is_non_volatile(self) -> bool {
        matches!(self, Subject::RedisNonVolatile | Subject::PostgresNonVolatile)
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Subject::Redis => "redis",
            Subject::RedisNonVolatile => "redis, non-volatile",
            Subject::PostgresMemory => "PostgreSQL, acknowledged in memory",
            Subject::PostgresDisk => "PostgreSQL, acknowledged on disk",
            Subject::PostgresNonVolatile => "PostgreSQL, non-volatile",
            Subject::RedisTwoBackups => "redis, two backups",
        })
    }
}

/// All that is going to happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    pub seed: u64,
    pub stages: Vec<Stage>,
}

/// What happens to one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    pub subject: Subject,
    pub bursts: Vec<Burst>,
}

/// Faults that overlap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Burst {
    /// Counts up from 0 through the whole script.
    pub number: u64,
    /// In the order in which they begin.
    pub faults: Vec<Planned>,
}

/// A fault with its times, milliseconds from the beginning of its burst.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    pub begin_ms: u64,
    pub end_ms: u64,
    #[serde(flatten)]
    pub fault: Fault,
}

impl Planned {
    fn overlaps(&self, other: &Self, apart: u64) -> bool {
        self.begin_ms < other.end_ms + apart && other.begin_ms < self.end_ms + apart
    }
}

impl Burst {
    /// The burst of this number: the same for the same seed, whatever came before.
    pub fn new(seed: u64, number: u64, subject: Subject, scope: &Scope) -> Self {
        let mut dice = Dice::new(seed, number + 1);
        // Two or three are the rule.
        let count = *dice.pick(&[1, 2, 2, 2, 3, 3, 3, MAX_FAULTS]);
        // A volatile VM whose hosts are all killed is gone, which is legitimate and shows nothing: rarely, then.
        let rarely = subject.is_non_volatile() || dice.one_in(8);
        let most_kills = if rarely { MAX_FAULTS } else { subject.backups().into() };
        let mut faults: Vec<Planned> = Vec::new();
        // One that finds no room is left out; the bound makes the end sure.
        for _ in 0..count * 8 {
            if faults.len() as u64 == count {
                break;
            }
            let begin_ms = if faults.is_empty() { 0 } else { dice.below(BEGIN_MS) };
            let (fault, lasts) = draw(&mut dice, subject, scope);
            let new = Planned { begin_ms, end_ms: begin_ms + lasts, fault };
            let kills = faults.iter().filter(|f| f.fault.kind().kills()).count() as u64;
            if fits(&new, &faults) && !(new.fault.kind().kills() && kills >= most_kills) {
                faults.push(new);
            }
        }
        faults.sort_by_key(|f| f.begin_ms);
        Self { number, faults }
    }

    /// When its last fault ends, milliseconds.
    pub fn end_ms(&self) -> u64 {
        self.faults.iter().map(|f| f.end_ms).max().unwrap_or(0)
    }
}

fn fits(new: &Planned, others: &[Planned]) -> bool {
    let same = |f: &&Planned| f.fault.shares(&new.fault).is_some();
    let at_once = |at: u64| others.iter().filter(|f| f.begin_ms <= at && at < f.end_ms).count();
    // The number at a time grows where one begins.
    let begins = others.iter().map(|f| f.begin_ms).filter(|at| (new.begin_ms..new.end_ms).contains(at));
    let crowd = begins.chain([new.begin_ms]).map(at_once).max().unwrap_or(0);
    crowd < MAX_AT_ONCE && !others.iter().filter(same).any(|f| f.overlaps(new, APART_MS))
}

/// A fault and how long it lasts, milliseconds.
fn draw(dice: &mut Dice, subject: Subject, scope: &Scope) -> (Fault, u64) {
    loop {
        let kind = *dice.pick(&Kind::ALL);
        if (kind.needs_disk() && !scope.disks) || (kind == Kind::SlowDisk && !scope.slow_disks) {
            continue;
        }
        if kind == Kind::Writes && !subject.has_volumes() {
            continue;
        }
        let hosts = &scope.hosts[..subject.hosts().min(scope.hosts.len())];
        // A VM that has nothing on a disk is gone then, and shows nothing.
        if kind == Kind::PowerLoss && !subject.has_volumes() {
            continue;
        }
        let host = dice.pick(hosts).clone();
        return match kind {
            // Its keeper starts another by itself: there is nothing to be mended.
            Kind::KillQemu => (Fault::KillQemu { host }, 1),
            Kind::KillKeeper => (Fault::KillKeeper { host }, dice.spread(20, 4000)),
            Kind::KillHost => (Fault::KillHost { host }, dice.spread(100, 4000)),
            // A primary that has lost its backup is alone after 250 ms, and its images have all of it a second later.
            Kind::PowerLoss => {
                let apart_ms = dice.spread(1, 3000);
                let others = hosts.iter().filter(|h| **h != host).cloned();
                let in_order: Vec<_> = std::iter::once(host.clone()).chain(others).collect();
                let lasts = apart_ms * in_order.len() as u64 + dice.spread(100, 2000);
                (Fault::PowerLoss { hosts: in_order, apart_ms }, lasts)
            }
            Kind::KillMemory => (Fault::KillMemory { host }, 1),
            Kind::Freeze => (Fault::Freeze { host }, dice.spread(10, 3000)),
            Kind::Cut | Kind::Blackhole => {
                let network = *dice.pick(&[Network::Replication, Network::Replication, Network::Public]);
                let how = if kind == Kind::Cut { Cut::Carrier } else { Cut::Blackhole };
                (Fault::Cut { host, network, how }, dice.spread(20, 4000))
            }
            Kind::Witness => {
                let how = *dice.pick(&[Away::Killed, Away::Frozen, Away::CutOff, Away::Unpowered]);
                (Fault::Witness { how }, dice.spread(50, 5000))
            }
            Kind::SlowDisk => {
                let kib_per_s = dice.spread(64, 4096);
                // Longer than 10 s: what is given up after that time must be what nobody needs.
                let longest = if dice.one_in(4) { 16_000 } else { 6000 };
                (Fault::SlowDisk { host, kib_per_s }, dice.spread(500, longest))
            }
            Kind::FullDisk => (Fault::FullDisk { host }, dice.spread(200, 6000)),
            Kind::BrokenDisk => (Fault::BrokenDisk { host }, dice.spread(100, 6000)),
            Kind::HungDisk => {
                let host = if dice.one_in(4) { scope.witness.clone() } else { host };
                // Longer than 10 s: then a log is given up.
                let longest = if dice.one_in(4) { 16_000 } else { 4000 };
                (Fault::HungDisk { host }, dice.spread(50, longest))
            }
            Kind::Processor => (Fault::Processor { threads: dice.between(2, 8) }, dice.spread(200, 4000)),
            Kind::Memory => (Fault::Memory { mib: dice.spread(128, 1024) }, dice.spread(200, 4000)),
            Kind::Writes => (Fault::Writes { mib: dice.spread(4, SCRATCH_MIB) }, dice.spread(500, 6000)),
            Kind::Switchover => (Fault::Switchover, 1),
        };
    }
}

impl Script {
    /// What happens in `seconds` of this seed, the times of rest reckoned in. At least one burst.
    pub fn new(seed: u64, seconds: u64, scope: &Scope) -> Self {
        let mut stages = Vec::new();
        let mut number = 0;
        let mut left_ms = seconds.saturating_mul(1000);
        // Several stages also in a short time, but none too short for its boot to be worth it.
        let stage_s = (seconds / scope.subjects.len().max(1) as u64).clamp(60, STAGE_S);
        let first = Dice::new(seed, 0).below(scope.subjects.len() as u64) as usize;
        for subject in scope.subjects.iter().cycle().skip(first) {
            let mut bursts = Vec::new();
            let mut stage_ms = stage_s * 1000;
            loop {
                let burst = Burst::new(seed, number, *subject, scope);
                let takes = burst.end_ms() + REST_MS;
                let none = stages.is_empty() && bursts.is_empty();
                if takes > left_ms.min(stage_ms) && !none {
                    break;
                }
                number += 1;
                (left_ms, stage_ms) = (left_ms.saturating_sub(takes), stage_ms.saturating_sub(takes));
                bursts.push(burst);
            }
            if bursts.is_empty() {
                break;
            }
            stages.push(Stage { subject: *subject, bursts });
        }
        Self { seed, stages }
    }

    /// The same from a burst on.
    pub fn from_burst(mut self, first: u64) -> Self {
        for stage in &mut self.stages {
            stage.bursts.retain(|b| b.number >= first);
        }
        self.stages.retain(|s| !s.bursts.is_empty());
        self
    }

    /// How many bursts it has.
    pub fn bursts(&self) -> u64 {
        self.stages.iter().map(|s| s.bursts.len() as u64).sum()
    }
}

/// What two faults must not have at the same time.
pub fn clashes(burst: &Burst) -> Option<(Resource, &Planned, &Planned)> {
    burst.faults.iter().enumerate().find_map(|(i, one)| {
        let shared = |f: &Planned| one.fault.shares(&f.fault).filter(|_| f.overlaps(one, 0));
        burst.faults[i + 1..].iter().find_map(|other| shared(other).map(|resource| (resource, one, other)))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn scope(disks: bool) -> Scope {
        Scope {
            hosts: ["a", "b", "c"].map(|h| h.parse().unwrap()).to_vec(),
            witness: "w".parse().unwrap(),
            subjects: Subject::ALL.to_vec(),
            disks,
            slow_disks: disks,
        }
    }

    proptest! {
        #[test]
        fn a_script_is_well_formed_and_the_same_each_time(seed: u64, seconds in 1u64..4000) {
            let script = Script::new(seed, seconds, &scope(true));
            prop_assert_eq!(&script, &Script::new(seed, seconds, &scope(true)));
            let numbers: Vec<_> = script.stages.iter().flat_map(|s| &s.bursts).map(|b| b.number).collect();
            prop_assert_eq!(numbers, (0..script.bursts()).collect::<Vec<_>>());
            let takes: u64 = script.stages.iter().flat_map(|s| &s.bursts).map(|b| b.end_ms() + REST_MS).sum();
            prop_assert!(script.bursts() == 1 || takes <= seconds * 1000);
            for burst in script.stages.iter().flat_map(|s| &s.bursts) {
                prop_assert!((1..=MAX_FAULTS as usize).contains(&burst.faults.len()));
                prop_assert!(burst.faults.iter().all(|f| f.begin_ms < f.end_ms));
                prop_assert!(burst.faults.is_sorted_by_key(|f| f.begin_ms));
                prop_assert!(clashes(burst).is_none(), "{:?}", burst);
                // A disk that is to be broken, and a host that is to die of it, have nothing else done to them meanwhile.
                for (i, one) in burst.faults.iter().enumerate() {
                    let Fault::BrokenDisk { host } = &one.fault else { continue };
                    let others = burst.faults.iter().enumerate().filter(|(j, f)| *j != i && f.overlaps(one, 0));
                    for (_, other) in others {
                        let on_it = match &other.fault {
                            Fault::KillQemu { host: h }
                            | Fault::KillKeeper { host: h }
                            | Fault::KillHost { host: h }
                            | Fault::Freeze { host: h }
                            | Fault::SlowDisk { host: h, .. }
                            | Fault::FullDisk { host: h }
                            | Fault::BrokenDisk { host: h }
                            | Fault::HungDisk { host: h } => h == host,
                            _ => false,
                        };
                        prop_assert!(!on_it, "{:?}", burst);
                    }
                }
                for at in 0..burst.end_ms() {
                    let at_once = burst.faults.iter().filter(|f| f.begin_ms <= at && at < f.end_ms).count();
                    prop_assert!(at_once <= MAX_AT_ONCE);
                }
            }
        }
    }

    #[test]
    fn everything_happens_and_much_of_it_at_once() {
        let script = Script::new(1, 4 * 3600, &scope(true));
        let bursts: Vec<_> = script.stages.iter().flat_map(|s| &s.bursts).collect();
        let kinds: BTreeSet<_> = bursts.iter().flat_map(|b| &b.faults).map(|f| f.fault.kind()).collect();
        assert_eq!(kinds.len(), Kind::ALL.len());
        let subjects: BTreeSet<_> = script.stages.iter().map(|s| format!("{:?}", s.subject)).collect();
        assert_eq!(subjects.len(), Subject::ALL.len());
        let overlapping =
            |b: &&&Burst| b.faults.iter().enumerate().any(|(i, f)| b.faults[i + 1..].iter().any(|g| f.overlaps(g, 0)));
        assert!(bursts.iter().filter(overlapping).count() > bursts.len() / 4);
    }

    /// Whose memory is gone for good, and who has nothing on a disk, is not asked for it.
    #[test]
    fn all_power_is_lost_where_something_remains() {
        let script = Script::new(5, 4 * 3600, &scope(true));
        for stage in script.stages.iter().filter(|s| s.bursts.len() > 10) {
            let faults = stage.bursts.iter().flat_map(|b| &b.faults).map(|f| (&f.fault, f.end_ms - f.begin_ms));
            let mut losses = 0;
            for (fault, lasts) in faults {
                let Fault::PowerLoss { hosts, apart_ms } = fault else { continue };
                losses += 1;
                assert_eq!(hosts.iter().collect::<BTreeSet<_>>().len(), stage.subject.hosts());
                assert!(lasts > apart_ms * (hosts.len() as u64 - 1), "none comes back before the last is gone");
            }
            assert_eq!(losses > 0, stage.subject.has_volumes(), "{}", stage.subject);
        }
    }

    /// A third host has something done to it only where the VM has it.
    #[test]
    fn a_vm_has_as_many_hosts_as_it_needs() {
        let script = Script::new(4, 4 * 3600, &scope(true));
        // The last may be a short one.
        for stage in script.stages.iter().filter(|s| s.bursts.len() > 10) {
            let faults = stage.bursts.iter().flat_map(|b| &b.faults);
            let third = faults.filter(|f| serde_json::to_value(&f.fault).unwrap()["host"] == "c").count();
            assert_eq!(third > 0, stage.subject.hosts() > 2, "{}", stage.subject);
        }
    }

    #[test]
    fn what_a_machine_cannot_do_is_left_out() {
        let script = Script::new(2, 3600, &scope(false));
        let bad = |f: &Planned| f.fault.kind().needs_disk();
        assert!(!script.stages.iter().flat_map(|s| &s.bursts).flat_map(|b| &b.faults).any(bad));
    }

    #[test]
    fn a_script_goes_on_from_any_burst() {
        let whole = Script::new(3, 1000, &scope(true));
        let rest = whole.clone().from_burst(20);
        assert_eq!(rest.bursts(), whole.bursts() - 20);
        assert_eq!(rest.stages.iter().flat_map(|s| &s.bursts).next().map(|b| b.number), Some(20));
    }
}
