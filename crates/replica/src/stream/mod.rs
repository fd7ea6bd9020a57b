//! The checkpoint stream: everything that two keepers say to each other about one VM, and what a snapshot file holds.
//!
//! The format is written down byte by byte in `docs/stream.md`. In short: a [`Preamble`], then records; each has its
//! length and a CRC-32 over its header and payload. A **pass** ([`Pass`]) is one unit of guest memory: a *sync round* (the
//! initial copy, while the guest runs) or a *checkpoint* (the guest as it stood at one moment). It is sent as
//! `Begin, Pages*, DeviceState*, ChannelOutput*, End`, and `End` carries the totals by which the receiver knows that
//! it holds the whole.
//!
//! ```text
//!   sender                                                     receiver
//!   PassWriter ──► PageEncoder ──► W: Write ···► RecordReader ──► CheckpointAssembler ──► PageSink
//!                   (Shadow)                                      (staging memory)       (guest RAM)
//! ```
//!
//! The receiver's life, as [`CheckpointAssembler`] has it (one owner: the thread that reads the stream):
//!
//! ```text
//!             Begin sync n        End n            Begin checkpoint 1
//!   ┌───────┐ ──────────► ┌──────┐ ──► (n is in) ─────────────────┐
//!   │ fresh │             │ sync │ ◄── Begin sync n+1             ▼
//!   └───────┘ ◄────────── └──────┘                        ┌──────────────┐  End, totals right   ┌────────────┐
//!       │        End                                      │ collecting n │ ───────────────────► │ n is whole │
//!       └──────────────── Begin checkpoint 1 ───────────► └──────────────┘                      └────────────┘
//!                                                            ▲      │ any error                       │ commit
//!                                          Begin checkpoint  │      ▼                                 ▼
//!                                                 n+1        │  the part is dropped,           ┌──────────────┐
//!                                                            │  n-1 stays usable               │ n is applied │
//!                                                            └──────────────────────────────── └──────────────┘
//! ```
//!
//! * [`record`]: the records · [`header`]: preamble and record header · [`reader`]: records out of a `Read`
//! * [`layout`]: the RAM blocks of a VM · [`page`]: how one page is written · [`shadow`]: what the receiver is known to hold
//! * [`origin`]: of which checkpoint both can speak · [`encoder`]: pages into records · [`chooser`]: which encoding pays · [`writer`]: one pass into a `Write`
//! * [`assembler`]: records into whole checkpoints, applied through a [`PageSink`]

pub mod assembler;
pub mod chooser;
pub mod encoder;
pub mod error;
pub mod header;
pub mod kind;
pub mod layout;
pub mod origin;
pub mod page;
pub mod reader;
pub mod record;
pub mod shadow;
pub mod version;
pub mod writer;

pub use assembler::{Checkpoint, CheckpointAssembler, Fed, PageSink, Pending};
pub use chooser::{ModeChooser, Sample};
pub use encoder::{EncodeStats, Mode, PageEncoder};
pub use error::StreamError;
pub use header::Preamble;
pub use layout::{BlockInfo, Layout, LayoutError, PAGE_SIZE, PageRun};
pub use origin::{Origin, Reign};
pub use reader::{Frame, RecordReader};
pub use record::{
    DeviceState, Heartbeat, Hello, Mark, Output, Pages, Pass, PassKind, Ready, Record, RefuseCode, Section, Totals,
    VolumeWrites, Welcome,
};
pub use shadow::Shadow;
pub use version::{OLDEST_VERSION, VERSION};
pub use writer::{PassWriter, write_record};
