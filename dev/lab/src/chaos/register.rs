//! What the witness holds, as it changes, and after each kill.
//!
//! The witness is asked from its own host, so that no cut cable is in the way; one that is frozen or dead holds what it held.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ninefold_model::{Record, VmId};
use ninefold_transport::{Identity, Security};
use ninefold_witness_client::{Timeouts, Witness, WitnessClient};
use rustix::time::{ClockId, clock_gettime};

use super::judge::{Fact, What};
use crate::boot::WITNESS_PORT;
use crate::config::LabSecurity;
use crate::error::LabError;
use crate::lab::Lab;
use crate::netns::in_netns;
use crate::topology::WITNESS;

/// Between two reads.
const TURN: Duration = Duration::from_millis(20);
/// For one read. A witness that is frozen answers none.
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_millis(500), request: Duration::from_millis(1000) };

/// CLOCK_MONOTONIC, microseconds: as in events.
pub(super) fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// Facts as they come in, from several threads.
#[derive(Debug, Default)]
pub(super) struct Facts(Mutex<Vec<Fact>>);

impl Facts {
    fn lock(&self) -> MutexGuard<'_, Vec<Fact>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, at_us: u64, what: What) {
        self.lock().push(Fact { at_us, what });
    }

    pub fn all(&self) -> Vec<Fact> {
        self.lock().clone()
    }
}

#[derive(Debug, Default)]
struct State {
    /// The next read counts even if it finds nothing new.
    wanted: bool,
    /// Reads that have been wanted and done.
    done: u64,
}

#[derive(Debug)]
struct Shared {
    facts: Arc<Facts>,
    state: Mutex<State>,
    read: Condvar,
    stop: AtomicBool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a VM's record until it is dropped.
#[derive(Debug)]
pub(super) struct Register {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Register {
    pub fn watch(lab: &Lab, vm: VmId, facts: &Arc<Facts>) -> Result<Self, LabError> {
        let host: ninefold_model::HostName = WITNESS.parse().map_err(|_| LabError::NotFound(WITNESS.to_owned()))?;
        let failed = |what: String| LabError::Host { host: WITNESS.to_owned(), what };
        let security = match lab.record().security {
            LabSecurity::PlainText => Security::PlainText { host: host.clone() },
            LabSecurity::MutualTls => {
                let identity = Identity::load(lab.run_dir(WITNESS).join("identity"));
                Security::MutualTls(identity.map_err(|e| failed(e.to_string()))?)
            }
        };
        let address = lab.topology().address(WITNESS).ok_or_else(|| failed("has no address".into()))?;
        let client = WitnessClient::new((address, WITNESS_PORT).into(), host, security, TIMEOUTS);
        let netns = lab.netns(WITNESS)?;
        let shared = Arc::new(Shared {
            facts: Arc::clone(facts),
            state: Mutex::default(),
            read: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut client = client;
            if let Err(error) = in_netns(&netns, || follow(&mut client, vm, &theirs)) {
                tracing::warn!(%error, "the witness is not read");
            }
        });
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The record as it is now, or a little later, becomes a fact.
    pub fn want(&self) {
        self.shared.state().wanted = true;
    }

    /// The same, and waits for it. `false` when the witness did not answer in time.
    pub fn want_and_wait(&self, deadline: Instant) -> bool {
        let mut state = self.shared.state();
        let before = state.done;
        state.wanted = true;
        while state.done == before {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            state = self.shared.read.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for Register {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn follow(client: &mut WitnessClient, vm: VmId, shared: &Shared) {
    let mut last: Option<Option<Record>> = None;
    while !shared.stop.load(Ordering::Relaxed) {
        // In this order: what is wanted from now on is the next read's.
        let wanted = std::mem::take(&mut shared.state().wanted);
        let at_us = now_us();
        match client.read(vm) {
            Ok(record) => {
                if wanted || last.as_ref() != Some(&record) {
                    shared.facts.add(at_us, What::Held { record: record.clone() });
                    last = Some(record);
                }
                if wanted {
                    shared.state().done += 1;
                    shared.read.notify_all();
                }
            }
            Err(_) if wanted => shared.state().wanted = true,
            Err(_) => {}
        }
        std::thread::sleep(TURN);
    }
}
