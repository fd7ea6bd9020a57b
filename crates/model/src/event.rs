//! What happened to a VM, for people and for programs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::health::{Freeze, WatchdogAction};
use crate::spec::{Boot, Mac};
use crate::{Epoch, HostName, Incarnation, SnapshotName, Term, VmName, VolumeName};

/// One event with its time and place. One that happens again and again is folded: it is told as it was the last time, with how
/// often it was and when it was first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// The life of the keeper that says it.
    pub incarnation: Incarnation,
    /// Counts up from 1 in each incarnation. Of a folded event it is the last one's, so that whoever follows sees it again.
    pub seq: u64,
    /// When, microseconds since the Unix epoch, by this host's clock, which may be wrong and may be set back: no protocol decides by it.
    pub unix_us: u64,
    /// When, microseconds of this host's CLOCK_MONOTONIC. It means nothing on another machine, nor after a restart of this one: what one keeper
    /// says is in the order of its positions, and what several say is ordered by [`EventKind::of_record`] and `unix_us`.
    pub monotonic_us: u64,
    pub host: HostName,
    /// How many events this stands for: 1, unless it is folded.
    #[serde(default = "one")]
    pub times: u64,
    /// When the first of them was. None unless it is folded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<Moment>,
    #[serde(flatten)]
    pub kind: EventKind,
}

/// A place in what a keeper says: all that it says is in this order, and one can go on from any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Position {
    pub incarnation: Incarnation,
    pub seq: u64,
}

impl Position {
    /// Before everything that any keeper has said.
    pub const START: Self = Self { incarnation: Incarnation(0), seq: 0 };
}

impl Event {
    /// Its place; of a folded event that of the last one.
    pub fn position(&self) -> Position {
        Position { incarnation: self.incarnation, seq: self.seq }
    }

    /// When it was first; if it was once, when it was.
    pub fn first(&self) -> Moment {
        self.first.unwrap_or(Moment { seq: self.seq, unix_us: self.unix_us, monotonic_us: self.monotonic_us })
    }
}

/// An older keeper folds nothing.
fn one() -> u64 {
    1
}

/// When an event was; the fields as in [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Moment {
    pub seq: u64,
    pub unix_us: u64,
    pub monotonic_us: u64,
}

/// The kinds of event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum EventKind {
    /// The VM booted here.
    Booted { term: Term },
    /// Copying to a backup began.
    SyncStarted { backup: HostName },
    /// The witness bound this primary to a synced backup: the VM is protected.
    /// `bytes` of memory and `volume_bytes` of volumes were sent to it.
    Protected {
        term: Term,
        backup: HostName,
        sync_ms: u64,
        bytes: u64,
        #[serde(default)]
        volume_bytes: u64,
        /// It was a backup of the primary before, too, and was sent only what differs.
        #[serde(default)]
        continued: bool,
    },
    /// A backup is gone; if it was bound, output waits until the witness allows to go on without it.
    BackupLost {
        #[serde(default)]
        backup: Option<HostName>,
        reason: String,
    },
    /// This host, a primary or a backup, was frozen, suspended or starved for so long that it distrusts what it knew.
    StoodStill { ms: u64 },
    /// The VM runs without a backup.
    Unprotected { term: Term, reason: String },
    /// This host now holds a whole checkpoint and will take over when it must.
    BackupReady { primary: HostName, epoch: Epoch },
    /// The primary is gone or silent.
    PrimaryLost { reason: String, epoch: Epoch },
    /// This host took over.
    TookOver { term: Term, epoch: Epoch, phases: FailoverPhases },
    /// The witness does not answer; what needs it waits.
    WitnessUnreachable { reason: String },
    /// The witness answers, and its answers prove nothing: it has lost the VM's record, shows one that it had left behind, or
    /// refuses. What needs it waits, as if it did not answer.
    WitnessDoubted { reason: String },
    /// The witness answers again, and can be believed.
    WitnessReachable,
    /// This host lost its role and has stopped its VM.
    StoodDown { term: Term, reason: String },
    /// Another backup has won the VM. This host keeps what it holds for a while: the VM may be given back to it.
    ClaimLost { term: Term },
    /// This host had won the VM and could not go on with it. These others hold it, and may take it over.
    GaveBack { term: Term, backups: Vec<HostName>, reason: String },
    /// The VM could not be booted here: its QEMU did not come up. Nothing is lost.
    StartFailed { reason: String },
    /// The VM ended with this host and no backup could take over.
    Lost { reason: String },
    /// The VM's role is being handed over on purpose.
    SwitchoverStarted { to: HostName, reason: String },
    /// The file of host `at`, the VM's own or a backup's, differs from the VM that runs, which is what it was booted with: a sentence
    /// for each field, which says what holds now and what from the next boot on.
    ConfiguredOtherwise { at: HostName, differences: Vec<String> },
    /// A peer or stream was refused.
    Refused { peer: String, reason: String },
    /// Another certificate of this host's is used for new connections; or the one in use is on its disk again. Good until then,
    /// seconds since the Unix epoch.
    CertificateTaken { serial: String, valid_until_s: u64 },
    /// This host's certificate is good for so many days more; 0 or less: it has ended, and no other host accepts it. Once a day.
    CertificateEnds { valid_until_s: u64, days: i64 },
    /// Another revocation list is used: it names so many certificates, and the next one is due by then, seconds since the Unix epoch.
    RevocationListTaken { revoked: u64, next_update_s: u64 },
    /// The next revocation list was due by then and has not come. The one that is here is used on. Once a day.
    RevocationListOverdue { next_update_s: u64 },
    /// The files of this host's identity cannot be used as they are. What was read of them before is used on.
    IdentityUnusable { reason: String },
    /// A host's certificate is revoked, or of no trusted authority any more, and this host has ended its connections with it. Without
    /// any it is this host's own.
    HostDistrusted { peer: HostName, links: u64, reason: String },
    /// From this epoch on a loss of power loses nothing: the VM is in this host's log. Output waits for it if so configured.
    NonVolatile { epoch: Epoch, log_ms: u64 },
    /// The VM is not logged any more: a loss of power would lose it.
    LogLost { reason: String },
    /// The VM goes on from the log, after a loss of power or of its QEMU.
    Recovered { term: Term, epoch: Epoch, load_ms: u64 },
    /// A snapshot of the VM was taken; and whether the guest's file systems were frozen at its moment, if they were to be.
    SnapshotTaken {
        name: SnapshotName,
        snapshot: SnapshotFigures,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        freeze: Option<Box<Freeze>>,
    },
    /// None could be taken.
    SnapshotFailed { name: SnapshotName, reason: String },
    /// The VM was started from a snapshot.
    Restored { term: Term, name: SnapshotName, load_ms: u64 },
    /// It could not be.
    RestoreFailed { name: SnapshotName, reason: String },
    /// The guest's agent was asked to freeze its file systems, and has not said that it has thawed them.
    MayBeFrozen { reason: String },
    /// There is a log, and the VM cannot go on from it.
    LogUnusable { reason: String },
    /// This host's image of a volume cannot be written, or not be read. A primary that is protected goes on; a backup is
    /// none until it can.
    VolumeFailed { volume: VolumeName, reason: String },
    /// Its disk has not answered for so long, and there is no error. A protected VM goes on from memory, and is handed over
    /// when the disk goes on not to answer.
    VolumeSlow { volume: VolumeName, stalled_ms: u64 },
    /// It can again; it answers again.
    VolumeRecovered { volume: VolumeName },
    /// So many bytes of the guest's writes are held, all that may be: further ones wait, and the guest with them.
    WritesWait { held: u64, limit: u64 },
    /// They go on.
    WritesGoOn,
    /// Another station on the VM's network has the Ethernet address of one of its interfaces: most likely another life of the VM, a clone
    /// or a restored copy. Frames for one reach the other.
    AddressTwice { mac: Mac, bridge: String },
    /// QEMU lives and has not answered for long. Unless another host has the VM, it is waited for.
    Stuck { reason: String },
    /// The guest stands still, as its owner wants: also one that this host has gone on with. When it is protected, its backups have that.
    Paused,
    /// It was let go on.
    Resumed,
    /// The guest has suspended itself to memory, or this host has gone on with one that had.
    Suspended,
    /// It was woken.
    Woke,
    /// The guest has not switched itself off in the time that its owner has given it. `ended`: so it is ended.
    ShutdownIgnored { within_ms: u64, ended: bool },
    /// The guest shut down or was stopped.
    Stopped { reason: String },
    /// The witness says that the VM was retired, at that time of its clock, seconds since the Unix epoch: the VM is no more, and whatever of it
    /// was here has ended.
    Retired { term: Term, at_s: u64 },
    /// The VM was renamed: this host calls it so now.
    Renamed { from: VmName, to: VmName },
    /// The VM was renamed, and this host cannot call it so, for this reason: it has the name that it had here.
    NotRenamed { name: VmName, reason: String },
    /// The guest did not pat its watchdog in time, for the `count`th time within the policy's period; 0 for
    /// an image on trial.
    WatchdogFired { action: WatchdogAction, count: u32 },
    /// The guest's kernel panicked; counts as a firing.
    GuestPanicked { action: WatchdogAction, count: u32 },
    /// The guest's memory was written to a file of `bytes` bytes.
    Dumped { path: PathBuf, bytes: u64, took_ms: u64 },
    /// No dump could be made.
    DumpFailed { reason: String },
    /// The guest is booted from an image that is not committed yet.
    TrialStarted { image: Boot, within_ms: u64 },
    /// The image on trial was found healthy: it is what the VM boots from now on.
    ImageCommitted { image: Boot, reason: String },
    /// The image on trial failed: the guest is booted from the committed one.
    FellBack { image: Boot, reason: String },
    /// A kind that a later keeper has told, and of which nothing is known here. No keeper of this version says it.
    #[serde(other)]
    #[cfg_attr(feature = "schema", schemars(skip))]
    Unknown,
}

/// What an event tells of the witness's record, whose versions follow each other whatever the hosts' clocks say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfRecord {
    /// This keeper has made the record of this version; no other has.
    Made(Term),
    /// This keeper has seen the record of this version, which may be another's.
    Seen(Term),
}

impl EventKind {
    /// What it tells of the witness's record, if anything.
    pub fn of_record(&self) -> Option<OfRecord> {
        match self {
            Self::Booted { term }
            | Self::Protected { term, .. }
            | Self::Unprotected { term, .. }
            | Self::TookOver { term, .. }
            | Self::GaveBack { term, .. }
            | Self::Recovered { term, .. }
            | Self::Restored { term, .. } => Some(OfRecord::Made(*term)),
            Self::StoodDown { term, .. } | Self::ClaimLost { term } | Self::Retired { term, .. } => {
                Some(OfRecord::Seen(*term))
            }
            _ => None,
        }
    }
}

/// What a snapshot took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SnapshotFigures {
    /// How long the guest stood still, microseconds.
    pub pause_us: u64,
    /// For how long, in all, what the guest wrote had to wait until what it wrote over was read, microseconds.
    #[serde(default)]
    pub waited_us: u64,
    /// From the request to the finished file, milliseconds.
    pub took_ms: u64,
    /// The file's length.
    pub bytes: u64,
    /// Pages of memory and blocks of volumes that are not zero; and how many of them are in the parents.
    pub pages: u64,
    pub pages_in_parent: u64,
    pub blocks: u64,
    pub blocks_in_parent: u64,
}

/// How long each phase of a failover took, microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FailoverPhases {
    /// From the last sign of life (or the closing of the connection) to suspicion.
    pub detect_us: u64,
    /// From suspicion to the witness's answer. It is asked when the last checkpoint is whole in the standby's memory.
    pub arbitrate_us: u64,
    /// Finishing the checkpoint, and loading it into the standby QEMU after the witness's answer.
    pub load_us: u64,
    /// From loaded to running.
    pub resume_us: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of a kind lie beside those that every event has: none may have the name of one of those.
    #[test]
    fn no_field_of_a_kind_hides_one_of_the_event() {
        let source = include_str!("event.rs");
        let (all, kinds) = source.split_once("pub enum EventKind {").unwrap();
        let (_, event) = all.split_once("pub struct Event {").unwrap();
        let (event, _) = event.split_once("\n}").unwrap();
        let (kinds, _) = kinds.split_once("\n}").unwrap();
        let common: Vec<_> = event.lines().filter_map(|l| l.trim().strip_prefix("pub ")?.split_once(':')).collect();
        assert!(common.len() > 6);
        for (name, _) in common {
            let field = |l: &str| l.split([' ', '{', '(']).any(|word| word == format!("{name}:"));
            let of: Vec<_> = kinds.lines().filter(|l| !l.trim().starts_with("//") && field(l)).collect();
            assert!(of.is_empty(), "'{name}' is also in: {of:?}");
        }
        let kind = EventKind::WatchdogFired { action: WatchdogAction::Dump, count: 3 };
        let host = "a".parse().unwrap();
        let incarnation = Incarnation(9);
        let event = Event { incarnation, seq: 1, unix_us: 2, monotonic_us: 3, host, times: 4, first: None, kind };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event, "{text}");
    }

    /// Who follows a keeper that is newer than he is hears what he knows, and goes on behind what he does not.
    #[test]
    fn a_kind_that_a_later_keeper_tells_is_unknown_and_no_fault() {
        let later = r#"{"event":"sang","song":"x","host":"a","incarnation":9,"seq":4,"unix_us":2,"monotonic_us":3}"#;
        let event: Event = serde_json::from_str(later).unwrap();
        assert_eq!((event.kind, event.seq), (EventKind::Unknown, 4));
        // One that is known is as it is documented, or an error.
        assert!(serde_json::from_str::<EventKind>(r#"{"event":"booted"}"#).is_err());
    }

    /// Whoever adds a kind that names a term says what it tells of the record.
    #[test]
    fn each_kind_that_names_a_term_tells_of_the_record() {
        let source = include_str!("event.rs");
        let (_, kinds) = source.split_once("pub enum EventKind {").unwrap();
        let (kinds, rest) = kinds.split_once("\n}").unwrap();
        let (_, told) = rest.split_once("fn of_record").unwrap();
        let (told, _) = told.split_once("\n    }").unwrap();
        let mut name = "";
        let mut found = 0;
        for line in kinds.lines() {
            if let Some(rest) = line.strip_prefix("    ").filter(|l| l.starts_with(char::is_uppercase)) {
                name = rest.split([' ', ',']).next().unwrap();
            }
            if line.contains("term: Term") {
                found += 1;
                assert!(told.contains(&format!("Self::{name} ")), "{name}");
            }
        }
        assert!(found >= 9, "{found}");
    }
}
