//! What a backup is told: the core writes it, the VM's thread puts it into checkpoints when it has changed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ninefold_model::GuestState;
use ninefold_model::health::{Failure, Freeze, Health};

/// The most that is read of a checkpoint's word about the guest's health, bytes.
pub const MAX: usize = 64 << 10;

/// The core's word. Shared with the VM's thread.
#[derive(Debug, Clone, Default)]
pub struct SharedHealth(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    health: Health,
    /// The guest's file systems are frozen, or may be.
    frozen: bool,
    /// Goes up with each change.
    version: u64,
}

/// What a thread has put into checkpoints so far.
#[derive(Debug, Default)]
pub struct Passed {
    version: u64,
    pending: bool,
    /// None: nothing yet.
    standing: Option<GuestState>,
}

impl SharedHealth {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this is so.
    pub fn set(&self, health: Health) {
        let mut inner = self.lock();
        if inner.health != health {
            inner.health = health;
            inner.version += 1;
        }
    }

    /// From now on the guest's file systems are frozen, or may be; or they are not. Answers what was so before.
    pub fn frozen(&self, frozen: bool) -> bool {
        let mut inner = self.lock();
        let before = std::mem::replace(&mut inner.frozen, frozen);
        inner.version += u64::from(before != frozen);
        before
    }

    /// Writes it to `into` if it differs from what was passed on before, or anyhow when `whole`. `standing`: how the
    /// guest stood, `pending`: a failure that the checkpoint contains.
    pub fn pass(
        &self,
        passed: &mut Passed,
        whole: bool,
        standing: GuestState,
        pending: Option<Failure>,
        into: &mut Vec<u8>,
    ) {
        let inner = self.lock();
        into.clear();
        let same = inner.version == passed.version && passed.standing == Some(standing);
        if !whole && same && pending.is_none() && !passed.pending {
            return;
        }
        passed.standing = Some(standing);
        passed.version = inner.version;
        passed.pending = pending.is_some();
        let freeze = inner.frozen.then(|| Freeze { thaw: true, ..Freeze::default() });
        let health = Health { pending, standing, freeze, ..inner.health.clone() };
        // It cannot fail: there is nothing in it that JSON has no form for.
        let _ = serde_json::to_writer(into, &health);
    }
}

/// Reads what a checkpoint says; None when it says nothing, or nothing that can be understood: then what was said before
/// holds.
pub fn heard(bytes: &[u8]) -> Option<Health> {
    if bytes.is_empty() {
        return None;
    }
    let health = if bytes.len() > MAX { None } else { serde_json::from_slice(bytes).ok() };
    if health.is_none() {
        tracing::warn!(bytes = bytes.len(), "what the primary says of the guest's health is not understood");
    }
    health
}

/// What a checkpoint says, and how the guest's file systems are in it, if that is known better.
pub fn with_freeze(bytes: &[u8], freeze: Option<&Freeze>) -> Vec<u8> {
    let (Some(freeze), Some(mut health)) = (freeze, heard(bytes)) else { return bytes.to_vec() };
    let thaw = freeze.thaw || health.freeze.is_some_and(|said| said.thaw);
    health.freeze = Some(Freeze { thaw, ..freeze.clone() });
    // It cannot fail: there is nothing in it that JSON has no form for.
    serde_json::to_vec(&health).unwrap_or_else(|_| bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    /// The first checkpoint of a guest that has gone on from another's: a log that goes on with it knows how the other stood.
    #[test]
    fn the_first_one_says_it_in_any_case() {
        let mut bytes = Vec::new();
        SharedHealth::default().pass(&mut Passed::default(), false, GuestState::default(), None, &mut bytes);
        assert_eq!(heard(&bytes), Some(Health::default()));
    }

    #[test]
    fn only_changes_are_passed_on() {
        let told = SharedHealth::default();
        let mut passed = Passed::default();
        let mut bytes = Vec::new();
        let standing = Cell::new(GuestState::default());
        let mut pass = |whole, pending| {
            told.pass(&mut passed, whole, standing.get(), pending, &mut bytes);
            heard(&bytes)
        };
        assert_eq!(pass(true, None), Some(Health::default()));
        assert_eq!(pass(false, None), None);
        let health = Health { failures_ms: vec![7], ..Health::default() };
        told.set(health.clone());
        told.set(health.clone());
        assert_eq!(pass(false, None), Some(health.clone()));
        assert_eq!(pass(false, None), None);
        let pending = Health { pending: Some(Failure::Panic), ..health.clone() };
        assert_eq!(pass(false, Some(Failure::Panic)), Some(pending));
        assert_eq!(pass(false, None), Some(health.clone()), "it has been acted on");
        assert_eq!(pass(false, None), None);
        assert_eq!(pass(true, None), Some(health.clone()), "another backup knows nothing yet");
        let paused = GuestState { paused: true, ..GuestState::default() };
        standing.set(paused);
        assert_eq!(pass(false, None), Some(Health { standing: paused, ..health.clone() }));
        assert_eq!(pass(false, None), None);
        standing.set(GuestState::default());
        assert_eq!(pass(false, None), Some(health.clone()), "it runs again");
        told.frozen(true);
        let frozen = Health { freeze: Some(Freeze { thaw: true, ..Freeze::default() }), ..health.clone() };
        assert_eq!(pass(false, None), Some(frozen), "whoever goes on with it has it thawed");
        told.frozen(true);
        assert_eq!(pass(false, None), None);
        told.frozen(false);
        assert_eq!(pass(false, None), Some(health), "it is thawed");
    }

    /// A request to thaw that is not known to have been obeyed counts, whoever knows of it.
    #[test]
    fn a_snapshot_says_how_the_file_systems_are_in_it_and_nothing_else_changes() {
        let health = Health { failures_ms: vec![7], ..Health::default() };
        let frozen = |thaw| Some(Freeze { thaw, ..Freeze::default() });
        let says = |word: Option<Freeze>, known: Option<Freeze>| {
            let bytes = serde_json::to_vec(&Health { freeze: word, ..health.clone() }).unwrap();
            let heard = heard(&with_freeze(&bytes, known.as_ref())).unwrap();
            assert_eq!(Health { freeze: None, ..heard.clone() }, health);
            heard.freeze
        };
        let known = |thaw| Some(Freeze { thaw, file_systems: Some(2), why_not: None });
        assert_eq!(says(None, None), None);
        assert_eq!(says(frozen(true), None), frozen(true));
        assert_eq!(says(None, known(true)), known(true));
        assert_eq!(says(None, known(false)), known(false));
        assert_eq!(says(frozen(true), known(false)), known(true));
        assert_eq!(with_freeze(b"nonsense", known(true).as_ref()), b"nonsense");
    }

    proptest! {
        #[test]
        fn anything_may_be_heard(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = heard(&bytes);
        }
    }
}
