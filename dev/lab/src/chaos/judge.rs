//! Whether the loss of a VM was legitimate: from what was done, what the keepers said and what the witness held. Pure.
//!
//! A VM that ran must go on as long as one *holder* of its state lives. Who is a holder:
//!
//! * The **witness's record** says who may have the VM: its primary, and the backups that it binds. Nobody else's state counts: a host
//!   that was dropped, or was never bound, may hold an old one.
//! * Of these a host holds it **in memory** from the moment at which its keeper says so (`booted`, `took_over`, `recovered`, `restored`;
//!   of a backup `backup_ready`) until its QEMU, its keeper or the host is killed, or the keeper says that it has ended it (`stood_down`,
//!   `gave_back`, `lost`, `stopped`). One that has lost its claim to another backup (`claim_lost`) still holds it. A frozen host holds it, and one that is cut off: it will be thawed and healed.
//! * And it holds the state of a non-volatile VM **on disk**, whatever is killed: a primary from `non_volatile` on, a backup from
//!   `backup_ready` on (what it acknowledges is in its log), until `log_lost`.
//!
//! ```text
//!   record        (a, [])          (a, [b])                    (b, [])
//!   a in memory   ├────────────────────────────────── killed ┤
//!   b in memory            backup_ready ├──────────────────────────────────►
//!   holders       {a}               {a, b}             {b}       {b}
//! ```
//!
//! What a standby's memory is to the process that keeps it beyond its keeper's death (`ninefold-memory`) counts for nothing here: no
//! host goes on with it. It spares a copy when that host is a backup again of the primary that took its checkpoints; whoever kills it takes
//! no state from anybody.
//!
//! A loss is legitimate if there was a moment without a holder. Only a kill or the loss of a log makes one, so it is
//! looked for there. What the witness held at a kill is read *after* it: a dead primary changes no record, so what is then found is what
//! was there, or what a living backup has made of it. A backup that has taken over meanwhile was a holder, and is found to be one.
//!
//! A guest whose VM runs **alone** on a host whose disk fails is given I/O errors, as by any disk: what it makes of them is its own affair
//! ([`may_see_errors`]). With a backup that is bound it must never see one.
//!
//! A VM that was lost legitimately, and has volumes, is started again from a disk. There nothing that clients were told may be missing if a plain
//! start is not refused, or if the volumes acknowledge on disk and the host is one that must have all of it ([`may_lack`]).
//!
//! Where something cannot be known the judge is for the defendant: an event that died with its keeper is missing, and a holder is
//! then not counted; a record that was read late may bind fewer. So a loss that is called illegitimate is one.
//!
//! A property test (below) plays random lives by the protocol's rules beside the truth, and holds the judge to both: no legitimate loss
//! is called otherwise, and with every record read in time no other one is excused.

use std::collections::{BTreeMap, BTreeSet};

use ninefold_model::event::EventKind;
use ninefold_model::{HostName, Record};
use serde::{Deserialize, Serialize};

/// Something that the judge has to know, with its time: microseconds of CLOCK_MONOTONIC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fact {
    pub at_us: u64,
    #[serde(flatten)]
    pub what: What,
}

/// See [`Fact`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
pub enum What {
    /// Whatever the host had of the VM in memory is gone by this time.
    Killed { host: HostName },
    /// A keeper said so.
    Said { host: HostName, event: EventKind },
    /// The witness held this record at this time or later; it was read because somebody was killed, or because it had changed.
    Held { record: Option<Record> },
}

/// Where a host has the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    Memory,
    Log,
}

/// One that holds the whole state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    pub host: HostName,
    pub place: Place,
}

/// The holders at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    pub at_us: u64,
    /// Why it was looked at: the host that was killed or lost its log.
    pub host: HostName,
    /// What the witness held; `None` if it had no record, or was not read any more.
    pub record: Option<Record>,
    pub holders: Vec<Holder>,
}

/// What the judge says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// Every moment at which a holder may have gone, in order.
    pub moments: Vec<Moment>,
}

impl Verdict {
    /// The first moment without a holder: from then on the VM may be lost.
    pub fn end(&self) -> Option<&Moment> {
        self.moments.iter().find(|m| m.holders.is_empty())
    }

    /// Whether the VM may be lost.
    pub fn may_be_lost(&self) -> bool {
        self.end().is_some()
    }
}

/// What each host has, by its own account.
#[derive(Debug, Clone, Default)]
struct Hosts {
    memory: BTreeSet<HostName>,
    logs: BTreeSet<HostName>,
}

impl Hosts {
    fn hear(&mut self, host: &HostName, event: &EventKind, non_volatile: bool) {
        match event {
            EventKind::Booted { .. } | EventKind::TookOver { .. } | EventKind::Restored { .. } => {
                self.memory.insert(host.clone());
            }
            EventKind::Recovered { .. } => {
                self.memory.insert(host.clone());
                self.logs.insert(host.clone());
            }
            EventKind::BackupReady { .. } => {
                self.memory.insert(host.clone());
                if non_volatile {
                    self.logs.insert(host.clone());
                }
            }
            EventKind::NonVolatile { .. } => {
                self.logs.insert(host.clone());
            }
            EventKind::LogLost { .. } => {
                self.logs.remove(host);
            }
            EventKind::StoodDown { .. } | EventKind::GaveBack { .. } | EventKind::Lost { .. } => {
                self.memory.remove(host);
            }
            EventKind::Stopped { .. } | EventKind::Retired { .. } => {
                self.memory.remove(host);
                self.logs.remove(host);
            }
            _ => {}
        }
    }

    fn holders(&self, record: &Record) -> Vec<Holder> {
        let named = std::iter::once(&record.primary).chain(record.backups.iter().map(|b| &b.host));
        let of = |host: &HostName| {
            let places = [(Place::Memory, &self.memory), (Place::Log, &self.logs)];
            places.map(|(place, all)| all.contains(host).then(|| Holder { host: host.clone(), place }))
        };
        let all: BTreeSet<_> = named.flat_map(of).flatten().collect();
        all.into_iter().collect()
    }
}

/// Looks at all facts, in any order. What is not in the records yet at the end counts as the last record that was read.
pub fn judge(facts: &[Fact], non_volatile: bool) -> Verdict {
    // Of facts with one time the record comes last: it was read after what it is to tell of.
    let mut order: Vec<&Fact> = facts.iter().collect();
    order.sort_by_key(|f| (f.at_us, matches!(f.what, What::Held { .. })));
    let mut hosts = Hosts::default();
    let mut verdict = Verdict::default();
    let mut last: Option<Record> = None;
    // Moments for which the record has not been read yet, with what the hosts had.
    let mut open: Vec<(Moment, Hosts)> = Vec::new();
    let settle = |open: &mut Vec<(Moment, Hosts)>, record: Option<&Record>, verdict: &mut Verdict| {
        for (mut moment, hosts) in open.drain(..) {
            moment.holders = record.map(|r| hosts.holders(r)).unwrap_or_default();
            moment.record = record.cloned();
            verdict.moments.push(moment);
        }
    };
    for fact in order {
        let gone = match &fact.what {
            What::Killed { host } => {
                hosts.memory.remove(host);
                Some(host)
            }
            What::Said { host, event } => {
                hosts.hear(host, event, non_volatile);
                matches!(event, EventKind::LogLost { .. }).then_some(host)
            }
            What::Held { record } => {
                settle(&mut open, record.as_ref(), &mut verdict);
                last.clone_from(record);
                None
            }
        };
        if let Some(host) = gone {
            let moment = Moment { at_us: fact.at_us, host: host.clone(), record: None, holders: Vec::new() };
            open.push((moment, hosts.clone()));
        }
    }
    settle(&mut open, last.as_ref(), &mut verdict);
    verdict
}

/// Whether the guest may have been given I/O errors: some host ran it, without a backup that was bound, while its disk failed.
pub fn may_see_errors(facts: &[Fact]) -> bool {
    let mut order: Vec<&Fact> = facts.iter().collect();
    order.sort_by_key(|f| f.at_us);
    let (mut alone, mut failing) = (BTreeSet::new(), BTreeSet::new());
    order.into_iter().any(|fact| {
        match &fact.what {
            What::Killed { host } => drop((alone.remove(host), failing.remove(host))),
            What::Held { .. } => {}
            What::Said { host, event } => match event {
                EventKind::Booted { .. }
                | EventKind::TookOver { .. }
                | EventKind::Recovered { .. }
                | EventKind::Restored { .. }
                | EventKind::BackupLost { .. }
                | EventKind::Unprotected { .. } => drop(alone.insert(host.clone())),
                EventKind::Protected { .. } | EventKind::StoodDown { .. } | EventKind::Lost { .. } => {
                    alone.remove(host);
                }
                EventKind::VolumeFailed { .. } => drop(failing.insert(host.clone())),
                EventKind::VolumeRecovered { .. } => drop(failing.remove(host)),
                _ => {}
            },
        }
        alone.intersection(&failing).next().is_some()
    })
}

/// How a VM that nobody holds any more is started again, from its volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    Plain,
    Forced,
}

/// The hosts whose disks have all that clients were told, of a VM whose volumes acknowledge on disk, when it has ended everywhere.
///
/// While a backup is bound, what leaves has been acknowledged by it, and so is on *its* disk; the primary's may be behind. A primary that
/// is alone lets out only what is on its own. What another host has is old, or a mixture.
pub fn whole_on_disk(facts: &[Fact]) -> Vec<HostName> {
    let records = facts.iter().filter_map(|f| match &f.what {
        What::Held { record } => Some((f.at_us, record)),
        _ => None,
    });
    let Some((_, Some(record))) = records.max_by_key(|(at_us, _)| *at_us) else { return Vec::new() };
    match record.backups.is_empty() {
        true => vec![record.primary.clone()],
        false => record.backups.iter().map(|b| b.host.clone()).collect(),
    }
}

/// Whether a VM that was started again on a host may lack what clients were told. A plain start that is not refused says that
/// it does not, whatever its volumes acknowledge in; one that is forced lacks nothing where the disk has all of it.
pub fn may_lack(start: Start, host: &HostName, durable: bool, facts: &[Fact]) -> bool {
    start == Start::Forced && !(durable && whole_on_disk(facts).contains(host))
}

/// What to tell about a verdict: the holders at each moment.
pub fn words(verdict: &Verdict) -> String {
    let mut by_time: BTreeMap<u64, String> = BTreeMap::new();
    for m in &verdict.moments {
        let holders: Vec<_> = m
            .holders
            .iter()
            .map(|h| format!("{} ({})", h.host, if h.place == Place::Memory { "memory" } else { "log" }))
            .collect();
        let holders = if holders.is_empty() { "nobody".to_owned() } else { holders.join(", ") };
        let record = m.record.as_ref().map_or("no record".to_owned(), |r| {
            let backups: Vec<_> = r.backups.iter().map(|b| format!("{} in {}", b.host, b.session.0)).collect();
            format!("({}, {}, [{}])", r.term.0, r.primary, backups.join(", "))
        });
        let line = format!("{:>14} after a loss on {}: record {record}; whole at {holders}\n", m.at_us, m.host);
        by_time.entry(m.at_us).or_default().push_str(&line);
    }
    by_time.into_values().collect()
}
