//! The log of a non-volatile VM: its checkpoints on disk, so that it goes on after a loss of power.
//!
//! ```text
//!   DIR/head.json       the root: which log this is, what the base holds, which segments follow
//!       memory, sums    the base: guest memory as of one commit, and a checksum of each page
//!       standing        on what terms with the witness the host was that wrote here
//!       segment-N       a checkpoint stream: commits, one after another
//! ```
//!
//! A **commit** is one whole checkpoint (memory that changed, device state, channel output, operations on volumes), appended
//! to the last segment and made durable by one sync: [`Commit::finish`]. Commits are counted from 1. A [`Folder`] puts the
//! pages of full segments into the base and removes them, so that the log never gets longer than memory and a few segments.
//!
//! ```text
//!             create                    first commit, publish             begin … finish
//!   (nothing) ──────► New ─ rounds ─►  ──────────────────────► Log ◄────────────────────┐
//!                                                               │  └────────────────────┘
//!       Found ──► Recovered ──► resume ─────────────────────────┘       Folder: segments → base
//!         ▲           └──► load (memory), operations on volumes
//!         └── power lost
//! ```
//!
//! # What survives, and why
//!
//! * **Nothing refers to what is not durable.** `head.json` is replaced by rename(2) after all that it names is synced.
//! * **Replay is idempotent.** Pages are in the log whole, never as patches. A base that a crash left half-way between two
//!   commits is put right by playing the retained segments again: they hold every page that may be half-written, and the
//!   last durable commit is never folded.
//! * **One commit is in flight.** Only the last one can be torn. Before each commit stands a [`Mark`]: the log's secret number
//!   and how many commits are durable by now. What does not check out and is followed by a mark of a later commit is damage,
//!   which is an error; what is not is a commit that the loss of power cut off, and is cut off here too.
//! * **Nothing is believed that only the host's memory holds.** A keeper that died, not the power, may have left a commit that
//!   can be read and is not on the disk: [`Found::recover`] syncs what was found before anything is made of it.
//! * **Damage is not the end of all of it.** What comes before it can be gone back to, by somebody who knows what is lost: [`Back`].
//! * **Volumes.** Operations reach a volume's image only after their commit is durable; a segment is removed only when the
//!   image has them durably ([`Shared::images_hold`]), or when nobody plays them any more ([`Log::go_on`]). After a loss of power the operations of all retained commits are
//!   played onto the image, in order, and image and memory are of the same commit.
//!
//! [`Mark`]: ninefold_replica::stream::Mark

mod back;
mod base;
mod chain;
mod commit;
mod error;
mod fold;
mod head;
mod new;
mod recover;
mod segment;
mod standing;

pub use back::{Back, Known};
pub use commit::{Commit, Log};
pub use error::LogError;
pub use fold::{Folder, Shared};
pub use new::New;
pub use recover::{Found, Held, PlayVolume, Recovered};

use ninefold_model::{Epoch, Term};

/// Which checkpoint of which reign a commit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct At {
    /// The replication session, or the reign of a primary that is alone.
    pub session: Term,
    /// Its checkpoint.
    pub epoch: Epoch,
    /// The newest term.
    pub term: Term,
}

impl At {
    /// Of some of the pages that a session's first checkpoint rests on: it is of no session itself.
    fn part(term: Term) -> Self {
        Self { session: Term(0), epoch: Epoch(0), term }
    }
}

/// A commit that is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Its number: counted from 1 in each log, without gaps.
    pub number: u64,
    pub at: At,
    /// Bytes that it takes.
    pub bytes: u64,
    /// When it was begun by the host's clock, milliseconds since 1970; 0: not known.
    pub time_ms: u64,
}

/// How a log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// A segment that is longer is closed, bytes.
    pub segment: u64,
    /// When more than this waits to be put into the base, nothing more is committed, bytes. The segments are never longer than
    /// this, the segment that is written, and the last commit.
    pub limit: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment: 64 << 20, limit: 512 << 20 }
    }
}
