//! How the guest stands, and what its owner wants of that: pause, resume, wake, shutdown.

use std::collections::VecDeque;
use std::time::Duration;

use ninefold_control::{Answer, OperationKind, Refusal, Reply, Request, Work};
use ninefold_model::event::EventKind;
use ninefold_model::{Activity, Epoch, GuestState};
use ninefold_replica::protocol::Input;

use crate::core::Core;
use crate::effect::{Metric, VmOrder};
use crate::time::Monotonic;

/// Changes that wait for their checkpoint, at most. Each takes one request.
const MOST_WAITING: usize = 64;

/// What the core has of it.
#[derive(Debug, Default)]
pub(crate) struct StandingSide {
    now: GuestState,
    /// What is told when the checkpoint with it is held by all that count.
    waiting: VecDeque<(Epoch, EventKind)>,
    shutdown: Option<Shutdown>,
}

/// The power button has been pressed, or the guest's agent asked.
#[derive(Debug)]
struct Shutdown {
    pressed: Monotonic,
    within: Duration,
    end: bool,
}

impl StandingSide {
    /// Whether the guest runs, as far as is known here.
    pub(crate) fn runs(&self) -> bool {
        self.now.runs()
    }
}

/// What is told of a change.
fn told(before: GuestState, now: GuestState) -> Vec<EventKind> {
    let mut events = Vec::new();
    match (before.activity, now.activity) {
        (before, Activity::Suspended) if before != Activity::Suspended => events.push(EventKind::Suspended),
        (Activity::Suspended, Activity::Running) => events.push(EventKind::Woke),
        _ => {}
    }
    match (before.paused, now.paused) {
        (false, true) => events.push(EventKind::Paused),
        (true, false) => events.push(EventKind::Resumed),
        _ => {}
    }
    events
}

impl Core {
    /// Nothing of the VM is here.
    pub(crate) fn forget_standing(&mut self) {
        self.standing = StandingSide::default();
        self.measure(Metric::GuestState(None));
    }

    /// A guest goes on here, or begins, which stands like this.
    pub(crate) fn begins_to_stand(&mut self, standing: GuestState) {
        let waiting = told(GuestState::default(), standing).into_iter().map(|event| (Epoch(0), event)).collect();
        self.standing = StandingSide { now: standing, waiting, shutdown: None };
    }

    pub(crate) fn stands(&mut self, generation: u64, standing: GuestState, epoch: Option<Epoch>) {
        if !self.is_here(generation) {
            return;
        }
        let before = std::mem::replace(&mut self.standing.now, standing);
        self.show_standing();
        let epoch = epoch.unwrap_or(Epoch(0));
        for event in told(before, standing) {
            if self.standing.waiting.len() < MOST_WAITING {
                self.standing.waiting.push_back((epoch, event));
            }
        }
        self.tell_standing();
    }

    /// Puts it into `status` and the metrics.
    pub(crate) fn show_standing(&mut self) {
        let state = self.standing.now.to_string();
        self.measure(Metric::GuestState(Some(self.standing.now)));
        if let Some(machine) = &mut self.machine {
            machine.run_state = state;
        }
    }

    /// Tells what those have that would go on with the guest. What they have not would not be so with them.
    fn tell_standing(&mut self) {
        while let Some((epoch, _)) = self.standing.waiting.front() {
            if self.holding && *epoch > self.committed {
                return;
            }
            if let Some((_, event)) = self.standing.waiting.pop_front() {
                self.event(event);
            }
        }
    }

    pub(crate) fn standing_tick(&mut self) {
        self.tell_standing();
        let Some(shutdown) = &self.standing.shutdown else { return };
        if self.off || self.now.monotonic.since(shutdown.pressed) < shutdown.within {
            return;
        }
        let (within, ended) = (shutdown.within, shutdown.end);
        self.standing.shutdown = None;
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        self.event(EventKind::ShutdownIgnored { within_ms, ended });
        if ended {
            let reason = format!("the guest has not switched itself off within {} s", within.as_secs_f64());
            self.input(Input::Stop { reason });
        }
    }

    /// How long the guest has been given to shut down, and how much of it has passed, milliseconds.
    pub(crate) fn shutdown_so_far(&self) -> Option<(u64, u64)> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let Shutdown { pressed, within, .. } = self.standing.shutdown.as_ref()?;
        let passed = self.now.monotonic.since(*pressed).min(*within);
        // Who follows it wants no word each hundredth of a second.
        Some((millis(passed) / 1000 * 1000, millis(*within)))
    }

    /// The guest has been asked to shut down, and is not ended for not doing so.
    pub(crate) fn forget_shutdown(&mut self) {
        self.standing.shutdown = None;
    }

    /// Pause, resume, wake and shutdown of a VM that is here.
    pub(crate) fn standing_request(&mut self, request: &Request) -> Reply {
        let now = self.standing.now;
        if self.off || now.activity == Activity::Off {
            return Err(Refusal::GuestOff);
        }
        if self.final_epoch.is_some() || self.protocol.hands_over() {
            return Err(Refusal::Busy { with: Work::Switchover });
        }
        if !self.guest_is_up() {
            return Err(Refusal::Busy { with: Work::Launch });
        }
        let suspended = now.activity == Activity::Suspended;
        match request {
            Request::Pause | Request::Resume if self.dumps() => {
                return Err(Refusal::Busy { with: Work::Dump });
            }
            Request::Pause => self.command(VmOrder::Pause(true)),
            // What it is not says nothing of what it is: it may be suspended.
            Request::Resume if !now.paused && suspended => return Err(Refusal::GuestSuspended),
            Request::Resume if !now.paused => return Err(Refusal::NotPaused),
            Request::Resume => self.command(VmOrder::Pause(false)),
            Request::Wake | Request::Shutdown { .. } if now.paused => {
                return Err(Refusal::GuestPaused);
            }
            Request::Wake if !suspended => return Err(Refusal::NotSuspended),
            Request::Wake => self.command(VmOrder::Wake),
            Request::Shutdown { .. } if suspended => {
                return Err(Refusal::GuestSuspended);
            }
            Request::Shutdown { within_ms, end, asked } => {
                let within = Duration::from_millis(*within_ms);
                // The time counts anew, for whoever asks last.
                self.operation_ends(OperationKind::Shutdown, Err(Refusal::Cancelled));
                self.standing.shutdown = Some(Shutdown { pressed: self.now.monotonic, within, end: *end });
                if !asked {
                    self.command(VmOrder::PowerButton);
                }
            }
            _ => return Err(Refusal::Failed { reason: "this is not about how the guest stands".into() }),
        }
        Ok(Answer::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_told_once() {
        let at = |activity, paused| GuestState { activity, paused };
        use Activity::{Off, Running, Suspended};
        for (before, now, expected) in [
            (at(Running, false), at(Running, false), vec![]),
            (at(Running, false), at(Running, true), vec![EventKind::Paused]),
            (at(Running, true), at(Running, false), vec![EventKind::Resumed]),
            (at(Running, false), at(Suspended, false), vec![EventKind::Suspended]),
            (at(Suspended, false), at(Running, false), vec![EventKind::Woke]),
            // A host goes on with one that was both.
            (at(Running, false), at(Suspended, true), vec![EventKind::Suspended, EventKind::Paused]),
            (at(Suspended, true), at(Suspended, false), vec![EventKind::Resumed]),
            // The end of the VM is told elsewhere.
            (at(Running, false), at(Off, false), vec![]),
            (at(Suspended, false), at(Off, false), vec![]),
        ] {
            assert_eq!(told(before, now), expected, "{before:?} {now:?}");
        }
    }
}
