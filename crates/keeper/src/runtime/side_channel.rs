//! What a thread is told beside its queue.
//!
//! A queue has a bound, and who is slow lets it fill. What is told here takes one place in it at most, however often something is
//! told, and is not lost when there is none: the thread looks here before each job, and a full queue brings it to another one.

use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A job of a queue that says nothing by itself: something was told beside the queue.
pub trait Wake {
    const WAKE: Self;

    /// Whether this is it.
    fn wakes(&self) -> bool;
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct SideChannel<T>(Mutex<State<T>>);

#[derive(Debug, Default)]
struct State<T> {
    told: T,
    /// A job that [wakes](Wake) is in the queue.
    woken: bool,
}

impl<T: Default> SideChannel<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what the thread behind `jobs` is told, and wakes it. Waits for nothing. A thread that has ended has said why.
    pub fn tell<J: Wake>(&self, jobs: &SyncSender<J>, what: impl FnOnce(&mut T)) {
        let mut state = self.lock();
        what(&mut state.told);
        state.woken = state.woken || jobs.try_send(J::WAKE).is_ok();
    }

    /// Takes what has been told. To be called before each job is done, with that job.
    pub fn hear(&self, before: &impl Wake) -> T {
        let mut state = self.lock();
        state.woken &= !before.wakes();
        std::mem::take(&mut state.told)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    enum Job {
        Other,
        Woken,
    }

    impl Wake for Job {
        const WAKE: Self = Self::Woken;

        fn wakes(&self) -> bool {
            *self == Self::Woken
        }
    }

    #[test]
    fn however_often_something_is_told_it_takes_one_place() {
        let (jobs, work) = sync_channel(3);
        let aside = SideChannel::<Option<u32>>::default();
        for n in 0..100 {
            aside.tell(&jobs, |told| *told = Some(n));
        }
        jobs.try_send(Job::Other).unwrap();
        jobs.try_send(Job::Other).unwrap();
        assert_eq!(aside.hear(&work.recv().unwrap()), Some(99));
        // What is told now comes with the next job, and wakes for itself.
        aside.tell(&jobs, |told| *told = Some(100));
        assert_eq!(aside.hear(&work.recv().unwrap()), Some(100));
        aside.tell(&jobs, |told| *told = Some(101));
        assert_eq!(aside.hear(&work.recv().unwrap()), Some(101));
        assert!(matches!(work.try_recv(), Ok(Job::Woken)) && work.try_recv().is_err());
    }

    #[test]
    fn what_is_told_while_there_is_no_room_comes_with_the_next_job() {
        let (jobs, work) = sync_channel(1);
        let aside = SideChannel::<Option<u32>>::default();
        jobs.try_send(Job::Other).unwrap();
        aside.tell(&jobs, |told| *told = Some(1));
        assert_eq!(aside.hear(&work.recv().unwrap()), Some(1));
        aside.tell(&jobs, |told| *told = Some(2));
        let woken = work.try_recv().unwrap();
        assert!(matches!(woken, Job::Woken));
        assert_eq!(aside.hear(&woken), Some(2));
    }
}
