//! What a log that is damaged can be gone back to.
//!
//! ```text
//!   base │ 5 │ 6 │ 7 │ ✗ │ 9 │ 10 │ mark 11            6 and 7 can be gone back to; 10 is known to have been durable
//! ```
//!
//! The base is written in place while a segment is folded into it, and the head says so only afterwards. So it may have pages of any commit of
//! the *first* segment: what is gone back to is the end of that segment, or later, unless nothing was ever folded from it.
//!
//! Nothing is changed: the files are for a person to look at.

use std::sync::Arc;

use ninefold_replica::protocol::LogStanding;
use ninefold_replica::stream::{Hello, PageSink};

use super::chain::{Chain, Nowhere};
use super::error::LogError;
use super::head::Head;
use super::recover::{Found, Held, PlayVolume};
use super::segment::{self, name};
use super::{Committed, Options};
use crate::storage::Storage;

/// A log as far as it is whole.
#[derive(Debug)]
pub struct Back {
    found: Found,
    damage: Option<String>,
    known: Known,
}

/// The newest commit that a log says was durable, whether it can be read or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Its number; 0 if nothing is known.
    pub commit: u64,
    /// By when it was, by the host's clock, milliseconds since 1970; 0: not known.
    pub time_ms: u64,
}

impl Back {
    /// Reads the log in this directory as far as it is whole, if the VM `suits`. Nothing is changed.
    ///
    /// # Errors
    /// `None`: there is no log. `Refused`: what `suits` says. `Damaged`, `Version`: nothing can be gone back to. `Storage`.
    pub fn look(storage: Arc<dyn Storage>, suits: &dyn Fn(&Hello) -> Result<(), String>) -> Result<Self, LogError> {
        let head = Head::load(&*storage)?;
        suits(&head.hello).map_err(LogError::Refused)?;
        let mark = Chain::new(&storage, &head).newest_mark()?;
        let known = mark.map_or(Known { commit: 0, time_ms: 0 }, |m| Known {
            commit: m.commit.saturating_sub(1),
            time_ms: m.time_ms,
        });
        let this = |found: Found, damage| {
            let last = found.last();
            // Its mark may be gone; it is there.
            let seen = Known { commit: last.number, time_ms: last.time_ms };
            let known = if known.commit > last.number {
                known
            } else {
                Known { time_ms: known.time_ms.max(seen.time_ms), ..seen }
            };
            Self { found, damage, known }
        };
        let (file, what) = match Found::read(Arc::clone(&storage), head.clone(), u64::MAX) {
            Ok(found) => return Ok(this(found, None)),
            Err(LogError::Damaged { file, what }) => (file, what),
            Err(other) => return Err(other),
        };
        let damage = format!("{file}: {what}");
        // What has no checkpoint of its own, or no device state, is no commit to go back to.
        let (mut last, mut end_of_first): (Option<Committed>, Option<u64>) = (None, None);
        let chain = Chain::new(&storage, &head);
        let _damaged = chain.read(&mut Nowhere, &mut |committed, _| {
            last = (committed.at.session.0 != 0).then_some(*committed).or(last);
            Ok(())
        });
        let to = last.ok_or_else(|| LogError::damaged(&*file, format!("{what}; no whole checkpoint comes before")))?;
        if let Ok(extent) = chain.segment(head.first, head.base + 1, &mut Nowhere, &mut |_, _| Ok(())) {
            end_of_first = extent.last;
        }
        if !may_go_back(&storage, &head, end_of_first, to.number)? {
            let what = format!("{what}; pages of later checkpoints may be in the base, so that none before is whole");
            return Err(LogError::damaged(file, what));
        }
        let found = Found::read(storage, head, to.number)?;
        Ok(this(found, Some(damage)))
    }

    /// The VM, as it was when the log was made.
    pub fn hello(&self) -> &Hello {
        self.found.hello()
    }

    /// On what terms with the witness the log was written.
    pub fn standing(&self) -> &LogStanding {
        self.found.standing()
    }

    /// The commit that can be gone back to.
    pub fn last(&self) -> Committed {
        self.found.last()
    }

    /// What is wrong with what comes after it; none: it is the last that there is.
    pub fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// The newest that is known of.
    pub fn known(&self) -> Known {
        self.known
    }

    /// It is a backup's, which was being brought up to date for another session.
    pub fn is_between_sessions(&self) -> bool {
        self.found.is_between_sessions()
    }

    /// What the guest said on a channel in the commit.
    pub fn output(&self, channel: u8) -> &[u8] {
        self.found.output(channel)
    }

    /// Whether all that [`Back::load`] would read checks out.
    ///
    /// # Errors
    /// As [`Back::load`].
    pub fn verify(&self) -> Result<(), LogError> {
        self.load(&|_| true, &mut Nowhere, &mut |_, _| Ok(())).map(drop)
    }

    /// Makes sure that what was read is on the disk, and not in the host's memory alone.
    ///
    /// # Errors
    /// `Storage`.
    pub fn sync(&self) -> Result<(), LogError> {
        for extent in &self.found.extents {
            let name = name(extent.number);
            let file = self.found.storage.open(&name).map_err(LogError::storage("cannot open", &*name))?;
            file.sync().map_err(LogError::storage("cannot sync", &*name))?;
        }
        Ok(())
    }

    /// As [`Recovered::load`](super::Recovered::load), as of the commit that can be gone back to.
    ///
    /// # Errors
    /// As [`Recovered::load`](super::Recovered::load).
    pub fn load(
        &self,
        fresh: &dyn Fn(u16) -> bool,
        sink: &mut dyn PageSink,
        volumes: PlayVolume<'_>,
    ) -> Result<Held, LogError> {
        self.found.load(fresh, sink, volumes)
    }
}

/// Whether the base has no page of a commit after this one. `end_of_first` is the last commit of the first segment, if all of that is whole.
fn may_go_back(storage: &Arc<dyn Storage>, head: &Head, end_of_first: Option<u64>, to: u64) -> Result<bool, LogError> {
    if end_of_first.is_some_and(|end| to >= end) {
        return Ok(true);
    }
    let names = storage.names().map_err(LogError::storage("cannot list", "the log's directory"))?;
    let first = name(head.first);
    let file = storage.open(&first).map_err(LogError::storage("cannot open", &*first))?;
    let length = file.len().map_err(LogError::storage("cannot read", &*first))?;
    // A segment is folded when it is full and a commit behind it is durable.
    let later = names.iter().filter_map(|n| segment::number(n)).any(|n| n > head.first);
    Ok(!later && length < Options::default().segment)
}
