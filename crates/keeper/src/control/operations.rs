//! The operations of this keeper's life, for whoever asks: the core tells each that begins, gets on or ends.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ninefold_control::Refusal;
use ninefold_control::operation::{Operation, OperationId};
use ninefold_model::Incarnation;

/// Operations kept: more than can run. The oldest that has ended goes first.
const KEPT: usize = 256;

/// Them. Shared by the core's thread, which writes, and those that answer questions.
#[derive(Debug, Clone)]
pub struct Operations {
    incarnation: Incarnation,
    inner: Arc<(Mutex<VecDeque<Operation>>, Condvar)>,
}

impl Operations {
    /// None yet in this life.
    pub fn new(incarnation: Incarnation) -> Self {
        Self { incarnation, inner: Arc::new((Mutex::new(VecDeque::new()), Condvar::new())) }
    }

    /// The life of the keeper whose they are.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Operation>> {
        self.inner.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One begins, gets on or ends.
    pub fn note(&self, operation: Operation) {
        let mut all = self.lock();
        match all.iter_mut().find(|o| o.id == operation.id) {
            Some(known) => *known = operation,
            None => {
                all.push_back(operation);
                if all.len() > KEPT
                    && let Some(oldest) = all.iter().position(Operation::has_ended)
                {
                    all.remove(oldest);
                }
            }
        }
        drop(all);
        self.inner.1.notify_all();
    }

    /// All that are kept, the oldest first.
    pub fn list(&self) -> Vec<Operation> {
        self.lock().iter().cloned().collect()
    }

    /// The operation as it is; waits up to `wait` until it has ended.
    ///
    /// # Errors
    /// It is of an earlier life of this keeper, of which nothing is known any more; or there is none of this name, or none any more.
    pub fn get(&self, id: OperationId, wait: Duration) -> Result<Operation, Refusal> {
        if id.incarnation != self.incarnation {
            return Err(Refusal::EarlierKeeper { operation: id, incarnation: self.incarnation });
        }
        let until = Instant::now() + wait.min(Duration::from_secs(3600));
        let mut all = self.lock();
        loop {
            let found = all.iter().find(|o| o.id == id).cloned();
            let operation = found.ok_or(Refusal::UnknownOperation { operation: id })?;
            let left = until.saturating_duration_since(Instant::now());
            if operation.has_ended() || left.is_zero() {
                return Ok(operation);
            }
            all = self.inner.1.wait_timeout(all, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use ninefold_control::operation::{OperationKind, State};

    use super::*;

    fn operation(number: u64, state: State) -> Operation {
        let id = OperationId { incarnation: Incarnation(5), number };
        Operation { id, kind: OperationKind::Dump, token: None, state }
    }

    fn running() -> State {
        State::Running { progress: None }
    }

    #[test]
    fn who_waits_for_an_operation_hears_its_end() {
        let operations = Operations::new(Incarnation(5));
        operations.note(operation(1, running()));
        let id = operation(1, running()).id;
        assert!(!operations.get(id, Duration::ZERO).unwrap().has_ended());
        let waits = {
            let operations = operations.clone();
            thread::spawn(move || operations.get(id, Duration::from_secs(60)))
        };
        operations.note(operation(1, State::Done { outcome: None }));
        assert!(waits.join().unwrap().unwrap().has_ended());
        assert_eq!(operations.list().len(), 1);
    }

    /// A keeper that was started anew knows nothing of what its former life has begun, and says that it is that.
    #[test]
    fn an_operation_of_an_earlier_life_has_a_code_of_its_own() {
        let operations = Operations::new(Incarnation(6));
        let former = operation(1, running()).id;
        let expected = Refusal::EarlierKeeper { operation: former, incarnation: Incarnation(6) };
        assert_eq!(operations.get(former, Duration::from_secs(60)), Err(expected));
        let none = OperationId { incarnation: Incarnation(6), number: 1 };
        assert_eq!(operations.get(none, Duration::from_secs(60)), Err(Refusal::UnknownOperation { operation: none }));
    }

    /// The history is bounded, and what runs stays in it.
    #[test]
    fn what_has_ended_long_ago_is_forgotten() {
        let operations = Operations::new(Incarnation(5));
        operations.note(operation(1, running()));
        for number in 2..1000 {
            operations.note(operation(number, State::Done { outcome: None }));
        }
        let numbers: Vec<_> = operations.list().iter().map(|o| o.id.number).collect();
        assert_eq!((numbers.len(), numbers[0], numbers[1]), (KEPT, 1, 1000 - KEPT as u64 + 1));
    }
}
