//! The notes that a VM's images are a mixture: of what they were and of what they were to become. They lie in the volumes, so that
//! `ninefold volume export` finds them, too.
//!
//! ```text
//!   begin (before the first write) ──► … ──► end (all of it is durable)
//!             └── cut off by whatever: nobody boots from them, nobody exports them, until somebody has overwritten them to the end
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ninefold_volume::Note;

/// By what images become a mixture. What a note says begins with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Another host's volumes are copied to here.
    Resync,
    /// A log's operations are played onto them; that can be repeated.
    Log,
    /// A snapshot is restored; that can be repeated.
    Restore,
}

impl Cause {
    const ALL: [Cause; 3] = [Cause::Resync, Cause::Log, Cause::Restore];

    fn as_str(self) -> &'static str {
        match self {
            Cause::Resync => "a resync",
            Cause::Log => "going on from a log",
            Cause::Restore => "restoring a snapshot",
        }
    }
}

/// See the [module](self).
#[derive(Debug, Clone, Default)]
pub struct Mixture(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    notes: Vec<Note>,
    /// Of the VM: it goes with them.
    restoring: Option<Note>,
    /// What all notes say, if that is known.
    says: Option<Cause>,
    /// Some of them may be there.
    noted: bool,
    /// Another one whenever something is written.
    number: u64,
    /// For which number somebody makes an end.
    claimed: Option<u64>,
}

impl Mixture {
    /// The notes of a VM's volumes, and the one that a snapshot is being restored onto them.
    pub fn of(notes: Vec<Note>, restoring: Note) -> Self {
        let noted = notes.iter().chain([&restoring]).any(|note| note.found().is_some());
        Self(Arc::new(Mutex::new(State { notes, restoring: Some(restoring), noted, ..State::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is whole before anything in it could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By what the images are a mixture, if they are. A note that says nothing that is known counts as a resync's.
    pub fn found(&self) -> Option<Cause> {
        let state = self.lock();
        let cause = |text: String| Cause::ALL.into_iter().find(|c| text.starts_with(c.as_str()));
        let mut found =
            state.notes.iter().filter_map(|note| note.found()).map(|text| cause(text).unwrap_or(Cause::Resync));
        // The one that cannot be repeated first.
        let first = found.next()?;
        Some(if found.any(|c| c == Cause::Resync) { Cause::Resync } else { first })
    }

    /// Something is about to be written. The notes are durable when this returns.
    ///
    /// # Errors
    /// One cannot be written: nothing may be written then.
    pub fn begin(&self, cause: Cause) -> Result<(), String> {
        let mut state = self.lock();
        state.number += 1;
        if state.says == Some(cause) {
            return Ok(());
        }
        state.noted = true;
        state.says = None;
        for note in &state.notes {
            note.write(cause.as_str()).map_err(|e| format!("{}: {e}", note.path().display()))?;
        }
        state.says = Some(cause);
        Ok(())
    }

    /// A number for [`Mixture::end`], if there is a note and nobody else makes an end of it. Waits for nobody.
    pub fn claim(&self) -> Option<u64> {
        let mut state = self.0.try_lock().ok()?;
        let number = state.number;
        if !state.noted || state.claimed == Some(number) {
            return None;
        }
        state.claimed = Some(number);
        Some(number)
    }

    /// All that was written is whole and durable.
    ///
    /// # Errors
    /// As [`Mixture::end`].
    pub fn end_now(&self) -> Result<(), String> {
        let number = self.lock().number;
        self.end(number)
    }

    /// What had been written when the number was given is whole and durable. Unless more has been written since, the notes go, durably.
    ///
    /// # Errors
    /// One cannot be removed. It can be tried again.
    pub fn end(&self, number: u64) -> Result<(), String> {
        let mut state = self.lock();
        if state.number != number || !state.noted {
            return Ok(());
        }
        state.says = None;
        let removed = state
            .notes
            .iter()
            .chain(&state.restoring)
            .try_for_each(|note| note.remove().map_err(|e| format!("{}: {e}", note.path().display())));
        match &removed {
            Ok(()) => state.noted = false,
            // The next checkpoint claims it again.
            Err(_) => state.claimed = None,
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(dir: &std::path::Path) -> Mixture {
        let at = |name: &str| Note::at(dir.join(name));
        Mixture::of(vec![at("one"), at("two")], at("restoring"))
    }

    #[test]
    fn images_are_a_mixture_from_the_first_write_to_the_end_of_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let mixture = notes(dir.path());
        assert_eq!((mixture.found(), mixture.claim()), (None, None));
        mixture.begin(Cause::Log).unwrap();
        assert_eq!(mixture.found(), Some(Cause::Log));
        let first = mixture.claim().unwrap();
        assert_eq!(mixture.claim(), None, "somebody sees to it");
        // Another session writes before the first one's last epoch is durable.
        mixture.begin(Cause::Resync).unwrap();
        mixture.end(first).unwrap();
        assert_eq!(mixture.found(), Some(Cause::Resync));
        // The keeper is started anew.
        let mixture = notes(dir.path());
        assert_eq!(mixture.found(), Some(Cause::Resync));
        let number = mixture.claim().unwrap();
        std::fs::write(dir.path().join("restoring"), "s").unwrap();
        mixture.end(number).unwrap();
        assert_eq!((mixture.found(), notes(dir.path()).claim()), (None, None));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the note of a restore goes with them");
    }

    #[test]
    fn a_note_that_says_nothing_is_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("two"), "").unwrap();
        assert_eq!(notes(dir.path()).found(), Some(Cause::Resync));
        std::fs::write(dir.path().join("one"), Cause::Log.as_str()).unwrap();
        assert_eq!(notes(dir.path()).found(), Some(Cause::Resync), "what cannot be repeated counts");
    }

    #[test]
    fn nothing_is_written_that_is_not_noted() {
        let dir = tempfile::tempdir().unwrap();
        let mixture = notes(&dir.path().join("gone"));
        mixture.begin(Cause::Resync).unwrap_err();
        mixture.begin(Cause::Resync).unwrap_err();
    }
}
