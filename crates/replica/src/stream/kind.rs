//! The kinds of record, and how long one of each may be.

use super::layout::PAGE_SIZE;
use super::origin::{MAX_BASE_RUNS, RUN_BYTES};

/// Longest payload of a record, bytes.
pub const MAX_PAYLOAD: usize = (4 << 20) + 4096;
/// Longest text in `Refuse`, `Relinquish` and `Bye`, bytes. A longer one is cut when it is sent.
pub const MAX_TEXT: usize = 1024;

/// Longest `Hello`, bytes.
pub const MAX_HELLO: usize = 1 << 20;

/// Longest `Pad`, bytes.
pub const MAX_PAD: usize = 2 * PAGE_SIZE;

/// Longest JSON in `Differences`, bytes.
pub const MAX_DIFFERENCES: usize = 256 << 10;

/// Longest `VolumeState`, bytes.
pub const MAX_VOLUME_STATE: usize = 64 << 10;

/// The kinds of record; the numbers are those on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    Hello = 1,
    Join = 2,
    Welcome = 3,
    Refuse = 4,
    Begin = 5,
    Pages = 6,
    DeviceState = 7,
    ChannelOutput = 8,
    End = 9,
    Ack = 10,
    Heartbeat = 11,
    Bound = 12,
    Relinquish = 13,
    Ready = 14,
    Bye = 15,
    VolumeWrites = 16,
    VolumeState = 17,
    VolumeSums = 18,
    VolumeDiffers = 19,
    VolumeDurable = 20,
    Base = 21,
    Differences = 22,
    Mark = 32,
    Pad = 33,
    SnapshotHead = 34,
    VolumeContent = 35,
    SnapshotIndex = 36,
    SnapshotEnd = 37,
}

impl Kind {
    pub(super) fn from_wire(kind: u8) -> Option<Self> {
        use Kind::*;
        const KINDS: [Kind; 28] = [
            Hello,
            Join,
            Welcome,
            Refuse,
            Begin,
            Pages,
            DeviceState,
            ChannelOutput,
            End,
            Ack,
            Heartbeat,
            Bound,
            Relinquish,
            Ready,
            Bye,
            VolumeWrites,
            VolumeState,
            VolumeSums,
            VolumeDiffers,
            VolumeDurable,
            Base,
            Differences,
            Mark,
            Pad,
            SnapshotHead,
            VolumeContent,
            SnapshotIndex,
            SnapshotEnd,
        ];
        KINDS.into_iter().find(|known| *known as u8 == kind)
    }

    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Hello => "Hello",
            Kind::Join => "Join",
            Kind::Welcome => "Welcome",
            Kind::Refuse => "Refuse",
            Kind::Begin => "Begin",
            Kind::Pages => "Pages",
            Kind::DeviceState => "DeviceState",
            Kind::ChannelOutput => "ChannelOutput",
            Kind::End => "End",
            Kind::Ack => "Ack",
            Kind::Heartbeat => "Heartbeat",
            Kind::Bound => "Bound",
            Kind::Relinquish => "Relinquish",
            Kind::Ready => "Ready",
            Kind::Bye => "Bye",
            Kind::VolumeWrites => "VolumeWrites",
            Kind::VolumeState => "VolumeState",
            Kind::VolumeSums => "VolumeSums",
            Kind::VolumeDiffers => "VolumeDiffers",
            Kind::VolumeDurable => "VolumeDurable",
            Kind::Base => "Base",
            Kind::Differences => "Differences",
            Kind::Mark => "Mark",
            Kind::Pad => "Pad",
            Kind::SnapshotHead => "SnapshotHead",
            Kind::VolumeContent => "VolumeContent",
            Kind::SnapshotIndex => "SnapshotIndex",
            Kind::SnapshotEnd => "SnapshotEnd",
        }
    }

    /// A record of this kind is refused before its payload is read when it claims more, so that a small record cannot
    /// make the receiver wait for, or keep, megabytes.
    pub(super) fn max_payload(self) -> usize {
        match self {
            Kind::Pages | Kind::DeviceState | Kind::ChannelOutput | Kind::VolumeWrites => MAX_PAYLOAD,
            Kind::VolumeContent | Kind::SnapshotIndex => MAX_PAYLOAD,
            Kind::SnapshotHead => MAX_HELLO,
            Kind::SnapshotEnd => 256,
            Kind::VolumeState | Kind::VolumeSums | Kind::VolumeDiffers => MAX_VOLUME_STATE,
            Kind::Hello => MAX_HELLO,
            Kind::Base => 24 + MAX_BASE_RUNS * RUN_BYTES,
            Kind::Differences => 8 + MAX_DIFFERENCES,
            Kind::Begin | Kind::End | Kind::Ack | Kind::Heartbeat => 128,
            Kind::Join | Kind::Welcome | Kind::Bound | Kind::Ready | Kind::VolumeDurable | Kind::Mark => 128,
            Kind::Pad => MAX_PAD,
            Kind::Refuse | Kind::Relinquish | Kind::Bye => MAX_TEXT + 128,
        }
    }
}
