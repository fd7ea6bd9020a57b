//! What the keepers of a lab say, as it comes, also across their deaths and restarts.
//!
//! One thread per host asks its keeper for events by long polling, from the position on that it has heard. A keeper that is not there is asked
//! again; a new one tells all that it has.
//!
//! All hosts of a lab are on one machine, and so are those who kill them and listen to them. Here alone CLOCK_MONOTONIC is one clock for all of them, and
//! the lab holds it against the frames that it saw and the faults that it did ([`EventWatch::takeovers`]).

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ninefold_control::Client;
use ninefold_model::event::{Event, EventKind, Position};

use crate::lab::Lab;
use crate::observer::Takeover;
use crate::vm_dir::vm_dir_in;

/// How long one request for events waits.
const POLL: Duration = Duration::from_millis(500);
/// Between two attempts to reach a keeper that is not there.
const RETRY: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct Shared {
    events: Mutex<Vec<Event>>,
    more: Condvar,
    stop: AtomicBool,
}

impl Shared {
    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Collects the events of all of a lab's keepers.
#[derive(Debug)]
pub struct EventWatch {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl EventWatch {
    /// Begins with all events that the keepers still know.
    pub fn start(lab: &Lab) -> Self {
        let shared = Arc::new(Shared::default());
        let threads = lab.topology().hosts.iter().map(|host| {
            let dir = lab.run_dir(host.as_str());
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || follow(&dir, &shared))
        });
        let threads = threads.collect();
        Self { shared, threads }
    }

    /// All events so far, in order of arrival.
    pub fn all(&self) -> Vec<Event> {
        self.shared.events().clone()
    }

    /// How many there are: a mark for [`EventWatch::wait_for`].
    pub fn mark(&self) -> usize {
        self.shared.events().len()
    }

    /// Waits for an event at or after `mark` that satisfies `wanted`; `None` when the deadline passes.
    pub fn wait_for(&self, mark: usize, deadline: Instant, mut wanted: impl FnMut(&Event) -> bool) -> Option<Event> {
        let mut seen = mark;
        let mut events = self.shared.events();
        loop {
            if let Some(found) = events.get(seen..).unwrap_or_default().iter().find(|e| wanted(e)) {
                return Some(found.clone());
            }
            seen = seen.max(events.len());
            let left = deadline.checked_duration_since(Instant::now())?;
            events = self.shared.more.wait_timeout(events, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Who began to speak for the VM, and when, in order of this machine's clock.
    pub fn takeovers(&self) -> Vec<Takeover> {
        let events = self.shared.events();
        let begins = |e: &&Event| {
            matches!(e.kind, EventKind::Booted { .. } | EventKind::TookOver { .. } | EventKind::Recovered { .. })
        };
        let begins = events.iter().filter(begins);
        let mut all: Vec<_> = begins
            .map(|e| Takeover { host: e.host.to_string(), monotonic_ns: e.monotonic_us.saturating_mul(1000) })
            .collect();
        all.sort_by_key(|t| t.monotonic_ns);
        all
    }
}

impl Drop for EventWatch {
    /// Does not wait for the threads: one may hang on a frozen keeper. Each ends with its next answer, at the latest
    /// with the lab.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..).filter(JoinHandle::is_finished) {
            let _ = thread.join();
        }
    }
}

fn follow(host: &Path, shared: &Shared) {
    let mut after = Position::START;
    let mut client = None;
    while !shared.stop.load(Ordering::Relaxed) {
        // The host may be given another VM meanwhile.
        let known = client.take().or_else(|| vm_dir_in(host).ok().map(|dir| Client::new(&dir)));
        match known.as_ref().map(|known| known.events(after, POLL)) {
            Some(Ok(told)) => {
                client = known;
                after = told.next;
                if !told.events.is_empty() {
                    shared.events().extend(told.events);
                    shared.more.notify_all();
                }
            }
            Some(Err(_)) | None => std::thread::sleep(RETRY),
        }
    }
}
