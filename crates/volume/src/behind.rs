//! The note in a volume that its image may be behind what clients were told.
//!
//! While a VM is protected its clients are told of what a checkpoint has, and that is in the memory of two hosts before it is on the
//! disk of either. Should both lose their power, the images are as some earlier epoch left them: right, and old. So this note lies in
//! the volume from before anybody is told anything that only memory has, until all of it is on this disk:
//!
//! ```text
//!   a pause with which the volume begins to be held is near ──► note ──► held, released, committed …
//!       … ──► the VM is alone, or has ended ──► all of that time is in the image, and flushed ──► no note
//!         └── the power goes: nobody starts from the image unless he says that he knows
//! ```
//!
//! It is the [applier](crate::served) that writes and removes it: nobody else waits for the disk. A note that cannot be written, or
//! takes too long, keeps no VM from being protected, since a backup is what helps a VM whose disk fails; it is tried again.

use std::time::{Duration, Instant};

use crate::note::Note;

/// A volume that is protected again soon finds the note still there.
const LINGER: Duration = Duration::from_secs(1);
/// After an attempt that failed.
const RETRY: Duration = Duration::from_secs(1);

/// What is to be done about the note.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// It is to be written.
    Write,
    /// It may go, if what the image has is made durable first.
    Remove,
    /// Something may be to be done after this time.
    In(Duration),
    Nothing,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Behind {
    /// None for an image of which nobody asks it.
    note: Option<Note>,
    /// It is there, durably.
    is_there: bool,
    /// It may be there.
    may_be: bool,
    /// What it is to say, from when it is wanted until nothing is behind any more.
    wanted: Option<String>,
    /// Since when nobody is told what the image does not get by itself.
    since: Option<Instant>,
    /// It need not linger.
    ended: bool,
    /// What an earlier process has left: nothing of what is missing is in this one's memory.
    left: Option<String>,
    failed: Option<Instant>,
}

impl Behind {
    pub(crate) fn of(note: Note) -> Self {
        let left = note.found();
        let there = left.is_some();
        Self { note: Some(note), is_there: there, may_be: there, left, ..Self::default() }
    }

    pub(crate) fn note(&self) -> Option<Note> {
        self.note.clone()
    }

    /// Somebody is about to be told what is in memory alone.
    pub(crate) fn want(&mut self, since: &str) {
        (self.since, self.ended, self.left) = (None, false, None);
        if self.wanted.is_none() {
            self.wanted = Some(since.to_owned());
        }
    }

    /// Nobody is told such things from now on: the VM is alone here, or has `ended`.
    pub(crate) fn over(&mut self, ended: bool) {
        (self.wanted, self.left) = (None, None);
        self.since.get_or_insert_with(Instant::now);
        self.ended = ended;
    }

    /// The VM has gone from here: what others tell of it is not known. One that had ended before is told of by nobody.
    pub(crate) fn part(&mut self) {
        if !self.ended {
            (self.wanted, self.since) = (None, None);
        }
    }

    /// What the note is to say.
    pub(crate) fn text(&self) -> String {
        self.wanted.clone().unwrap_or_default()
    }

    /// What an earlier process has left, if nobody has had the VM here since.
    pub(crate) fn found(&self) -> Option<&str> {
        self.left.as_deref()
    }

    /// Whether it is wanted and there, or nobody asks for it.
    pub(crate) fn is_noted(&self) -> bool {
        self.note.is_none() || (self.is_there && self.wanted.is_some())
    }

    /// Whether the last attempt has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// What is to be done, if the image has all that was committed, `whole`; the process is about to end, `ending`.
    pub(crate) fn due(&self, whole: bool, ending: bool) -> Due {
        if self.note.is_none() {
            return Due::Nothing;
        }
        if let Some(left) = self.failed.and_then(|failed| RETRY.checked_sub(failed.elapsed())) {
            return if ending { Due::Nothing } else { Due::In(left) };
        }
        if self.wanted.is_some() {
            return if self.is_there || ending { Due::Nothing } else { Due::Write };
        }
        match self.since.filter(|_| self.may_be && whole) {
            None => Due::Nothing,
            Some(_) if self.ended || ending => Due::Remove,
            Some(since) => match LINGER.checked_sub(since.elapsed()) {
                Some(left) if !left.is_zero() => Due::In(left),
                _ => Due::Remove,
            },
        }
    }

    /// It is about to be written or removed: nobody may rely on it.
    pub(crate) fn begins(&mut self) {
        (self.is_there, self.may_be) = (false, true);
    }

    /// It has been written, or removed, or nobody knows.
    pub(crate) fn done(&mut self, wrote: bool, done: &std::io::Result<()>) {
        match done {
            Ok(()) => (self.is_there, self.may_be, self.failed) = (wrote, wrote, None),
            Err(_) => self.failed = Some(Instant::now()),
        }
    }
}
