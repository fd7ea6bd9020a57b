//! The records of the stream.
//!
//! Integers are little endian and unaligned. `Hello` is JSON, because it is sent once and grows; all others are fixed
//! binary. `docs/stream.md` has the tables.

use std::fmt;

use ninefold_model::health::Health;
use ninefold_model::spec::{Accel, EpochPolicy, VmSpec};
use ninefold_model::{Epoch, HostName, Term, Uuid};
use serde::{Deserialize, Serialize};

use super::error::StreamError;
use super::header::{close_record, open_record};
pub use super::kind::{Kind, MAX_DIFFERENCES, MAX_HELLO, MAX_PAD, MAX_TEXT, MAX_VOLUME_STATE};
use super::layout::Layout;
use super::origin::{Origin, Reign};
use super::page::{PAGE_SIZE, PageEntry, next_entry};

/// Bytes of device state of one checkpoint, at most. QEMU's is about 33 KB for a small PC.
pub const MAX_DEVICE_STATE: u64 = 64 << 20;
/// Bytes of channel output of one checkpoint, at most.
pub const MAX_OUTPUT: u64 = 16 << 20;

/// Bytes of volume writes of one checkpoint, at most. More than a primary's budget lets it have.
pub const MAX_VOLUME_WRITES: u64 = 1 << 30;
/// Volumes of a VM, at most.
pub const MAX_VOLUMES: u16 = 64;

/// Length of the fields before the bytes in `Pages`, `DeviceState` and `ChannelOutput`.
pub(super) const PART_LEN: usize = 32;
const END_LEN: usize = PASS_LEN + 48;
const PASS_LEN: usize = 24;

/// What a pass carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PassKind {
    /// A round of the initial copy, taken while the guest runs. Applied as it comes.
    Sync = 1,
    /// The guest as it stood at one moment. Applied when it is whole, or not at all.
    Checkpoint = 2,
}

impl PassKind {
    fn from_wire(kind: u8) -> Option<Self> {
        match kind {
            1 => Some(PassKind::Sync),
            2 => Some(PassKind::Checkpoint),
            _ => None,
        }
    }
}

impl fmt::Display for PassKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PassKind::Sync => "sync round",
            PassKind::Checkpoint => "checkpoint",
        })
    }
}

/// Which pass a record belongs to. Every record of a pass carries it, so that nothing of another one can slip in, over
/// whichever connection it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pass {
    /// The replication session: a random number that the primary chose in `Hello`.
    pub session: u64,
    pub kind: PassKind,
    /// Sync rounds and checkpoints count separately, each from 1 and without gaps.
    pub epoch: Epoch,
}

/// The opening of a session, from the primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub session: u64,
    pub from: HostName,
    /// The term under which the primary runs the VM.
    pub term: Term,
    /// The VM, by its id, as it was booted, wherever that was: so the backup has to build it. No host's file need say so any more.
    pub spec: VmSpec,
    pub epoch_policy: EpochPolicy,
    /// What the primary's QEMU is: the backup's must suit.
    pub qemu: String,
    /// Its versioned machine type.
    #[serde(default)]
    pub machine: String,
    /// Its CPU model with its flags.
    #[serde(default)]
    pub cpu: String,
    pub accel: Accel,
    /// The primary's RAM blocks: the backup's must be equal.
    pub layout: Layout,
    /// How many connections carry the pages, this one included; the others open with `Join`.
    #[serde(default = "one")]
    pub lanes: u8,
    /// How the guest's health was found, and which image it runs.
    #[serde(default)]
    pub health: Health,
    /// Of which the checkpoints are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reign: Option<Reign>,
    /// The checkpoint from which the primary went on, while only what differs from it needs to be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The generation id that the guest was shown; without it, the VM's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Uuid>,
}

fn one() -> u8 {
    1
}

/// Bytes that a VM's RAM blocks may have beside the guest's memory: firmware, video memory, tables.
pub const MAX_OTHER_MEMORY: u64 = 1 << 30;

impl Hello {
    /// Whether a VM can be what it says: whoever reads it keeps something for each page and each volume.
    ///
    /// # Errors
    /// What it cannot be.
    pub fn check(&self) -> Result<(), &'static str> {
        let memory = self.spec.hardware.memory_mib.saturating_mul(1 << 20).saturating_add(MAX_OTHER_MEMORY);
        if self.layout.total_pages().saturating_mul(PAGE_SIZE as u64) > memory {
            return Err("its RAM blocks are larger than the VM's memory");
        }
        if self.spec.hardware.volumes.len() > usize::from(MAX_VOLUMES) {
            return Err("it has too many volumes");
        }
        Ok(())
    }
}

/// The backup's answer to a `Hello` that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    pub session: u64,
}

/// Why a backup refuses a `Hello` or a `Join`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum RefuseCode {
    /// A reason that this version does not know.
    Other = 0,
    /// No common stream version.
    Version = 1,
    /// This keeper keeps another VM.
    WrongVm = 2,
    /// The term is over.
    WrongTerm = 3,
    /// The memory layouts differ.
    Layout = 4,
    /// This keeper is no standby, or is in another session.
    Busy = 5,
    /// The VM cannot be built here.
    CannotBuild = 6,
    /// The stream broke a rule.
    Protocol = 7,
    /// No such session.
    UnknownSession = 8,
}

impl RefuseCode {
    fn from_wire(code: u16) -> Self {
        use RefuseCode::*;
        [Other, Version, WrongVm, WrongTerm, Layout, Busy, CannotBuild, Protocol, UnknownSession]
            .get(usize::from(code))
            .copied()
            .unwrap_or(Other)
    }
}

/// Pages of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages<'a> {
    pub pass: Pass,
    pub block: u16,
    /// The entries as they stand on the wire: see [`super::page`].
    pub entries: &'a [u8],
}

impl<'a> Pages<'a> {
    /// The entries, each checked as it is taken. After an error there is nothing more.
    pub fn iter(&self) -> impl Iterator<Item = Result<PageEntry<'a>, StreamError>> + use<'a> {
        let mut rest = self.entries;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let entry = next_entry(&mut rest);
            if entry.is_err() {
                rest = &[];
            }
            Some(entry)
        })
    }
}

/// A piece of the device state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceState<'a> {
    pub pass: Pass,
    /// Where in the state these bytes stand: pieces come in order.
    pub offset: u64,
    pub bytes: &'a [u8],
}

/// What the guest wrote to a byte channel (console, guest agent) in this epoch: the backup holds it, so that it can emit
/// it should the primary not live to do so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output<'a> {
    pub pass: Pass,
    pub channel: u8,
    /// Where in this epoch's output of the channel these bytes stand: pieces come in order.
    pub offset: u64,
    pub bytes: &'a [u8],
}

/// Writes to a volume, in the order in which the guest made them. In a checkpoint they are applied with it or not at all;
/// in a sync round they are the volume's present content and are applied as they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeWrites<'a> {
    pub pass: Pass,
    /// Which of the VM's volumes, in the order of its spec.
    pub volume: u16,
    /// Where in this pass's writes to the volume these bytes stand: pieces come in order. Each holds whole operations.
    pub offset: u64,
    /// Operations as `ninefold_volume` encodes them.
    pub bytes: &'a [u8],
}

/// What a pass holds, by which the receiver knows that nothing is missing. Sums over all its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Records between `Begin` and `End`.
    pub records: u64,
    /// Pages, each page of a zero run counted.
    pub pages: u64,
    pub state_bytes: u64,
    pub output_bytes: u64,
    pub volume_bytes: u64,
    /// The sum, modulo 2^64, of the checksums of those records: the same in whichever order they come.
    pub digest: u64,
}

impl Totals {
    /// Adds those of another connection.
    pub fn add(&mut self, other: &Totals) {
        self.records = self.records.wrapping_add(other.records);
        self.pages = self.pages.wrapping_add(other.pages);
        self.state_bytes = self.state_bytes.wrapping_add(other.state_bytes);
        self.output_bytes = self.output_bytes.wrapping_add(other.output_bytes);
        self.volume_bytes = self.volume_bytes.wrapping_add(other.volume_bytes);
        self.digest = self.digest.wrapping_add(other.digest);
    }
}

/// A sign of life, either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    pub session: u64,
    /// Counts up.
    pub seq: u64,
    /// The sender's public uplink works: who has none is the worse primary.
    pub uplink: bool,
    /// From a primary: its CLOCK_BOOTTIME, microseconds. From a backup: what was in the newest heartbeat that it has read, 0 for
    /// none. So the primary can tell when its backup was last with it.
    pub time_us: u64,
}

/// In a log on disk: which log this is and where in it the reader is. It comes before each commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The log's own number: random, so that a guest cannot write what would be taken for a mark of it.
    pub log: u128,
    /// The number of the commit that follows. All before it are durable.
    pub commit: u64,
    /// What follows: the primary's session, or 0 while that is not known.
    pub session: u64,
    /// And its checkpoint, counted as the session does.
    pub epoch: Epoch,
    /// When this was written by the host's clock, milliseconds since 1970; 0: that clock is before 1970. For people: nothing is decided
    /// by it.
    pub time_ms: u64,
}

/// The parts of a snapshot file that are no part of a pass; `ninefold_snapshot` knows what is in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Section {
    Head,
    Volume,
    Index,
    End,
}

impl Section {
    pub(super) fn kind(self) -> Kind {
        match self {
            Section::Head => Kind::SnapshotHead,
            Section::Volume => Kind::VolumeContent,
            Section::Index => Kind::SnapshotIndex,
            Section::End => Kind::SnapshotEnd,
        }
    }
}

/// What a backup has become ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Ready {
    /// Its QEMU stands by with the same layout: pages may be sent.
    Receive = 1,
    /// It holds the session's first checkpoint whole, and has loaded it once: what is left to be done before it acknowledges that is its
    /// disks'.
    TakeOver = 2,
}

/// A record. `'a` is the reader's buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record<'a> {
    /// primary → backup: opens a session.
    Hello(Box<Hello>),
    /// primary → backup: opens a further connection of a session.
    Join {
        session: u64,
        lane: u8,
    },
    /// backup → primary: the `Hello` or `Join` is taken.
    Welcome(Welcome),
    /// Either way: no, and why.
    Refuse {
        code: RefuseCode,
        reason: &'a str,
    },
    /// primary → backup: a pass begins.
    Begin {
        pass: Pass,
        term: Term,
    },
    Pages(Pages<'a>),
    DeviceState(DeviceState<'a>),
    ChannelOutput(Output<'a>),
    VolumeWrites(VolumeWrites<'a>),
    /// backup → primary: what it has of a volume, as `ninefold_volume` describes it. Comes before `Ready`.
    VolumeState {
        session: u64,
        volume: u16,
        bytes: &'a [u8],
    },
    /// primary → backup: checksums of the volume's blocks from block `first` on. Which of them differ?
    VolumeSums {
        session: u64,
        volume: u16,
        first: u64,
        sums: &'a [u8],
    },
    /// backup → primary: the answer, a bit for each of the blocks asked about; set where its own differs.
    VolumeDiffers {
        session: u64,
        volume: u16,
        first: u64,
        bits: &'a [u8],
    },
    /// backup → primary: the volume's writes of all epochs up to this one would survive a loss of power there.
    VolumeDurable {
        session: u64,
        volume: u16,
        epoch: Epoch,
    },
    /// backup → primary: its memory holds this checkpoint of the reign that the primary's has come from, so that only
    /// differences need to be sent. Comes before `Ready`, to a primary whose `Hello` has an origin.
    Base {
        session: u64,
        epoch: Epoch,
        /// As [`continuation::Base`](crate::continuation::Base) writes and reads them.
        changes: &'a [u8],
    },
    /// backup → primary: in what its host's file differs from the VM that it is about to hold. Comes before `Ready`.
    Differences {
        session: u64,
        /// A list of [`ninefold_model::difference::Difference`].
        json: &'a [u8],
    },
    /// primary → backup: the pass is sent.
    End {
        pass: Pass,
        totals: Totals,
    },
    /// backup → primary: the pass is here, whole and checked.
    Ack {
        pass: Pass,
    },
    Heartbeat(Heartbeat),
    /// primary → backup: the witness has bound us to each other in this term.
    Bound {
        session: u64,
        term: Term,
    },
    /// primary → backup: I have stopped for good after this epoch; take over.
    Relinquish {
        session: u64,
        epoch: Epoch,
        reason: &'a str,
    },
    /// backup → primary.
    Ready {
        session: u64,
        what: Ready,
    },
    /// Either way: I am closing this session.
    Bye {
        reason: &'a str,
    },
    /// In files only.
    Mark(Mark),
    /// In files only: nothing, so that what follows begins at a multiple of the page size.
    Pad {
        bytes: &'a [u8],
    },
    /// In snapshot files only.
    Section {
        section: Section,
        bytes: &'a [u8],
    },
}

impl Record<'_> {
    /// The kind of this record.
    pub fn kind(&self) -> Kind {
        match self {
            Record::Hello(_) => Kind::Hello,
            Record::Join { .. } => Kind::Join,
            Record::Welcome(_) => Kind::Welcome,
            Record::Refuse { .. } => Kind::Refuse,
            Record::Begin { .. } => Kind::Begin,
            Record::Pages(_) => Kind::Pages,
            Record::DeviceState(_) => Kind::DeviceState,
            Record::ChannelOutput(_) => Kind::ChannelOutput,
            Record::End { .. } => Kind::End,
            Record::Ack { .. } => Kind::Ack,
            Record::Heartbeat(_) => Kind::Heartbeat,
            Record::Bound { .. } => Kind::Bound,
            Record::Relinquish { .. } => Kind::Relinquish,
            Record::Ready { .. } => Kind::Ready,
            Record::Bye { .. } => Kind::Bye,
            Record::VolumeWrites(_) => Kind::VolumeWrites,
            Record::VolumeState { .. } => Kind::VolumeState,
            Record::VolumeSums { .. } => Kind::VolumeSums,
            Record::VolumeDiffers { .. } => Kind::VolumeDiffers,
            Record::VolumeDurable { .. } => Kind::VolumeDurable,
            Record::Base { .. } => Kind::Base,
            Record::Differences { .. } => Kind::Differences,
            Record::Mark(_) => Kind::Mark,
            Record::Pad { .. } => Kind::Pad,
            Record::Section { section, .. } => section.kind(),
        }
    }

    /// Appends the record with its header; answers its checksum. Allocates only if `out` has to grow.
    ///
    /// # Errors
    /// [`StreamError::TooLarge`]; `out` is then as before.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<u32, StreamError> {
        let kind = self.kind();
        let start = open_record(out, kind);
        match self {
            Record::Hello(hello) => {
                if let Err(e) = serde_json::to_writer(&mut *out, hello) {
                    out.truncate(start);
                    return Err(StreamError::Io(e.into()));
                }
            }
            Record::Join { session, lane } => {
                put_u64(out, *session);
                out.push(*lane);
            }
            Record::Welcome(welcome) => put_u64(out, welcome.session),
            Record::Refuse { code, reason } => {
                out.extend_from_slice(&(*code as u16).to_le_bytes());
                put_text(out, reason);
            }
            Record::Begin { pass, term } => {
                put_pass(out, pass, 0, 0);
                put_u64(out, term.0);
            }
            Record::Pages(pages) => {
                put_pass(out, &pages.pass, 0, pages.block);
                put_u64(out, 0);
                out.extend_from_slice(pages.entries);
            }
            Record::DeviceState(state) => {
                put_pass(out, &state.pass, 0, 0);
                put_u64(out, state.offset);
                out.extend_from_slice(state.bytes);
            }
            Record::ChannelOutput(output) => {
                put_pass(out, &output.pass, output.channel, 0);
                put_u64(out, output.offset);
                out.extend_from_slice(output.bytes);
            }
            Record::End { pass, totals } => {
                put_pass(out, pass, 0, 0);
                put_u64(out, totals.records);
                put_u64(out, totals.pages);
                put_u64(out, totals.state_bytes);
                put_u64(out, totals.output_bytes);
                put_u64(out, totals.volume_bytes);
                put_u64(out, totals.digest);
            }
            Record::Ack { pass } => put_pass(out, pass, 0, 0),
            Record::Heartbeat(beat) => {
                put_u64(out, beat.session);
                put_u64(out, beat.seq);
                put_u64(out, beat.time_us);
                out.push(beat.uplink.into());
            }
            Record::Bound { session, term } => {
                put_u64(out, *session);
                put_u64(out, term.0);
            }
            Record::Relinquish { session, epoch, reason } => {
                put_u64(out, *session);
                put_u64(out, epoch.0);
                put_text(out, reason);
            }
            Record::Ready { session, what } => {
                put_u64(out, *session);
                out.push(*what as u8);
            }
            Record::Bye { reason } => put_text(out, reason),
            Record::VolumeWrites(writes) => {
                put_pass(out, &writes.pass, 0, writes.volume);
                put_u64(out, writes.offset);
                out.extend_from_slice(writes.bytes);
            }
            Record::VolumeState { session, volume, bytes } => {
                put_volume(out, *session, *volume);
                out.extend_from_slice(bytes);
            }
            Record::VolumeSums { session, volume, first, sums: bytes }
            | Record::VolumeDiffers { session, volume, first, bits: bytes } => {
                put_volume(out, *session, *volume);
                put_u64(out, *first);
                out.extend_from_slice(bytes);
            }
            Record::VolumeDurable { session, volume, epoch } => {
                put_volume(out, *session, *volume);
                put_u64(out, epoch.0);
            }
            Record::Base { session, epoch, changes } => {
                put_u64(out, *session);
                put_u64(out, epoch.0);
                out.extend_from_slice(changes);
            }
            Record::Differences { session, json } => {
                put_u64(out, *session);
                out.extend_from_slice(json);
            }
            Record::Mark(mark) => {
                out.extend_from_slice(&mark.log.to_le_bytes());
                put_u64(out, mark.commit);
                put_u64(out, mark.session);
                put_u64(out, mark.epoch.0);
                put_u64(out, mark.time_ms);
            }
            Record::Pad { bytes } | Record::Section { bytes, .. } => out.extend_from_slice(bytes),
        }
        close_record(out, start, kind)
    }
}

impl<'a> Record<'a> {
    /// Reads a payload, whose checksum is right. Entries of `Pages` are checked when they are taken.
    pub(super) fn decode(kind: Kind, payload: &'a [u8]) -> Result<Self, StreamError> {
        let mut fields = Fields { record: kind.name(), rest: payload };
        let record = match kind {
            Kind::Hello => {
                let hello: Box<Hello> = serde_json::from_slice(payload)
                    .map_err(|_| fields.bad("it is not the JSON of a Hello of this version"))?;
                hello.check().map_err(|what| fields.bad(what))?;
                fields.rest = &[];
                Record::Hello(hello)
            }
            Kind::Join => Record::Join { session: fields.u64()?, lane: fields.u8()? },
            Kind::Welcome => Record::Welcome(Welcome { session: fields.u64()? }),
            Kind::Refuse => Record::Refuse { code: RefuseCode::from_wire(fields.u16()?), reason: fields.text()? },
            Kind::Begin => Record::Begin { pass: fields.bare_pass()?, term: Term(fields.u64()?) },
            Kind::Pages => {
                let (pass, aux, block) = fields.pass()?;
                if aux != 0 || fields.u64()? != 0 {
                    return Err(fields.bad("a reserved field is not zero"));
                }
                Record::Pages(Pages { pass, block, entries: fields.take_rest() })
            }
            Kind::DeviceState => Record::DeviceState(DeviceState {
                pass: fields.bare_pass()?,
                offset: fields.u64()?,
                bytes: fields.take_rest(),
            }),
            Kind::ChannelOutput => {
                let (pass, channel, reserved) = fields.pass()?;
                if reserved != 0 {
                    return Err(fields.bad("a reserved field is not zero"));
                }
                Record::ChannelOutput(Output { pass, channel, offset: fields.u64()?, bytes: fields.take_rest() })
            }
            Kind::End => Record::End {
                pass: fields.bare_pass()?,
                totals: Totals {
                    records: fields.u64()?,
                    pages: fields.u64()?,
                    state_bytes: fields.u64()?,
                    output_bytes: fields.u64()?,
                    volume_bytes: fields.u64()?,
                    digest: fields.u64()?,
                },
            },
            Kind::Ack => Record::Ack { pass: fields.bare_pass()? },
            Kind::Heartbeat => Record::Heartbeat(Heartbeat {
                session: fields.u64()?,
                seq: fields.u64()?,
                time_us: fields.u64()?,
                uplink: match fields.u8()? {
                    0 => false,
                    1 => true,
                    _ => return Err(fields.bad("unknown flag")),
                },
            }),
            Kind::Bound => Record::Bound { session: fields.u64()?, term: Term(fields.u64()?) },
            Kind::Relinquish => {
                Record::Relinquish { session: fields.u64()?, epoch: Epoch(fields.u64()?), reason: fields.text()? }
            }
            Kind::Ready => Record::Ready {
                session: fields.u64()?,
                what: match fields.u8()? {
                    1 => Ready::Receive,
                    2 => Ready::TakeOver,
                    _ => return Err(fields.bad("ready for something unknown")),
                },
            },
            Kind::Bye => Record::Bye { reason: fields.text()? },
            Kind::VolumeWrites => {
                let (pass, reserved, volume) = fields.pass()?;
                if reserved != 0 {
                    return Err(fields.bad("a reserved field is not zero"));
                }
                fields.in_bounds(volume)?;
                Record::VolumeWrites(VolumeWrites { pass, volume, offset: fields.u64()?, bytes: fields.take_rest() })
            }
            Kind::VolumeState => {
                let (session, volume) = fields.volume()?;
                Record::VolumeState { session, volume, bytes: fields.take_rest() }
            }
            Kind::VolumeSums => {
                let (session, volume) = fields.volume()?;
                Record::VolumeSums { session, volume, first: fields.u64()?, sums: fields.take_rest() }
            }
            Kind::VolumeDiffers => {
                let (session, volume) = fields.volume()?;
                Record::VolumeDiffers { session, volume, first: fields.u64()?, bits: fields.take_rest() }
            }
            Kind::VolumeDurable => {
                let (session, volume) = fields.volume()?;
                Record::VolumeDurable { session, volume, epoch: Epoch(fields.u64()?) }
            }
            Kind::Base => {
                Record::Base { session: fields.u64()?, epoch: Epoch(fields.u64()?), changes: fields.take_rest() }
            }
            Kind::Differences => Record::Differences { session: fields.u64()?, json: fields.take_rest() },
            Kind::Mark => Record::Mark(Mark {
                log: u128::from_le_bytes(fields.array()?),
                commit: fields.u64()?,
                session: fields.u64()?,
                epoch: Epoch(fields.u64()?),
                time_ms: fields.u64()?,
            }),
            Kind::Pad => Record::Pad { bytes: fields.take_rest() },
            Kind::SnapshotHead => Record::Section { section: Section::Head, bytes: fields.take_rest() },
            Kind::VolumeContent => Record::Section { section: Section::Volume, bytes: fields.take_rest() },
            Kind::SnapshotIndex => Record::Section { section: Section::Index, bytes: fields.take_rest() },
            Kind::SnapshotEnd => Record::Section { section: Section::End, bytes: fields.take_rest() },
        };
        if fields.rest.is_empty() { Ok(record) } else { Err(fields.bad("it is too long")) }
    }
}

/// The bytes of the fields that open every record of a pass.
pub(super) fn put_pass(out: &mut Vec<u8>, pass: &Pass, aux: u8, block: u16) {
    put_u64(out, pass.session);
    put_u64(out, pass.epoch.0);
    let [b0, b1] = block.to_le_bytes();
    out.extend_from_slice(&[pass.kind as u8, aux, b0, b1, 0, 0, 0, 0]);
}

pub(super) fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// The fields that open the records about a volume outside passes.
fn put_volume(out: &mut Vec<u8>, session: u64, volume: u16) {
    put_u64(out, session);
    put_u64(out, volume.into());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.extend_from_slice(&text.as_bytes()[..end]);
}

/// The fields of a payload, taken one by one.
struct Fields<'a> {
    record: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn bad(&self, what: &'static str) -> StreamError {
        StreamError::Malformed { record: self.record, what }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StreamError> {
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.bad("it is too short"))?;
        self.rest = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, StreamError> {
        self.array::<1>().map(|[b]| b)
    }

    fn u16(&mut self) -> Result<u16, StreamError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, StreamError> {
        self.array().map(u64::from_le_bytes)
    }

    fn volume(&mut self) -> Result<(u64, u16), StreamError> {
        let (session, volume) = (self.u64()?, self.u64()?);
        let volume = u16::try_from(volume).map_err(|_| self.bad("there is no such volume"))?;
        self.in_bounds(volume)?;
        Ok((session, volume))
    }

    fn in_bounds(&self, volume: u16) -> Result<(), StreamError> {
        if volume < MAX_VOLUMES { Ok(()) } else { Err(self.bad("there is no such volume")) }
    }

    fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    fn text(&mut self) -> Result<&'a str, StreamError> {
        let bytes = self.take_rest();
        if bytes.len() > MAX_TEXT {
            return Err(self.bad("its text is too long"));
        }
        std::str::from_utf8(bytes).map_err(|_| self.bad("its text is not UTF-8"))
    }

    fn pass(&mut self) -> Result<(Pass, u8, u16), StreamError> {
        let (session, epoch) = (self.u64()?, Epoch(self.u64()?));
        let [kind, aux, b0, b1, 0, 0, 0, 0] = self.array::<8>()? else {
            return Err(self.bad("a reserved field is not zero"));
        };
        let kind = PassKind::from_wire(kind).ok_or_else(|| self.bad("unknown kind of pass"))?;
        Ok((Pass { session, kind, epoch }, aux, u16::from_le_bytes([b0, b1])))
    }

    fn bare_pass(&mut self) -> Result<Pass, StreamError> {
        match self.pass()? {
            (pass, 0, 0) => Ok(pass),
            _ => Err(self.bad("a reserved field is not zero")),
        }
    }
}

// The sizes that `docs/stream.md` gives.
const _: () = assert!(PART_LEN == PASS_LEN + 8 && END_LEN == 72);
