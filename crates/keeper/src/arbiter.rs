//! Asking the witness: one thread, one proposal at a time, repeated until it is answered.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use ninefold_model::{Record, VmName};
use ninefold_replica::protocol::{Outcome, ProposalId};
use ninefold_store::{Swap, Witness, WitnessClient, WitnessError};

use crate::error::KeeperError;
use crate::msg::Msg;
use crate::priority;

/// Between two attempts at a witness that does not answer.
const RETRY: Duration = Duration::from_millis(50);
/// The same when nothing is proposed: what needs the witness is refused until it answers again, so that is soon seen.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Between two readings of the record while nothing is proposed: they keep the connection warm and show whether an
/// operator has moved the VM.
const LOOK: Duration = Duration::from_millis(1000);

/// A question to the witness. A newer one replaces an unanswered older one.
#[derive(Debug)]
pub enum Question {
    Propose {
        id: ProposalId,
        expected: Option<Record>,
        new: Record,
    },
    /// Read the record and answer the request that waits for it.
    Start {
        force: bool,
    },
    /// What was proposed is not wanted any more. A proposal on its way may win all the same.
    Cancel,
}

/// Starts the thread. It ends when the sender is dropped.
pub fn start(vm: VmName, client: WitnessClient, core: Sender<Msg>) -> Result<Sender<Question>, KeeperError> {
    let (questions, asked) = channel();
    let arbiter = Arbiter { vm, client, core, asked, reachable: true };
    thread::Builder::new().name("arbiter".into()).spawn(move || arbiter.run()).map_err(KeeperError::Thread)?;
    Ok(questions)
}

struct Arbiter {
    vm: VmName,
    client: WitnessClient,
    core: Sender<Msg>,
    asked: Receiver<Question>,
    reachable: bool,
}

impl Arbiter {
    fn run(mut self) {
        priority::raise();
        let mut pending = None;
        let mut wait = Duration::ZERO;
        loop {
            match self.asked.recv_timeout(wait) {
                Ok(question) => pending = Some(question),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(newer) = self.asked.try_recv() {
                pending = Some(newer);
            }
            if matches!(pending, Some(Question::Cancel)) {
                pending = None;
            }
            let answer = match &pending {
                None | Some(Question::Cancel) => self.client.read(&self.vm).map(|r| r.map(Msg::WitnessHolds)),
                Some(Question::Start { force }) => {
                    let force = *force;
                    self.client.read(&self.vm).map(|found| Some(Msg::StartFrom { found, force }))
                }
                Some(Question::Propose { id, expected, new }) => {
                    let id = *id;
                    self.client.compare_and_swap(&self.vm, expected.as_ref(), new).map(|swap| {
                        let outcome = match swap {
                            Swap::Won(_) => Outcome::Won,
                            Swap::Lost(current) => Outcome::Lost(current),
                        };
                        Some(Msg::WitnessAnswer { id, outcome })
                    })
                }
            };
            wait = LOOK;
            let refused = match answer {
                Ok(msg) => {
                    self.tell_reachable(None);
                    pending = None;
                    if let Some(msg) = msg {
                        let _ = self.core.send(msg);
                    }
                    None
                }
                Err(error @ WitnessError::Unreachable { .. }) => {
                    self.tell_reachable(Some(error.to_string()));
                    if let Some(Question::Start { .. }) = pending {
                        pending = None;
                        let _ = self.core.send(Msg::StartFailed(error.to_string()));
                    }
                    wait = if pending.is_some() { RETRY } else { LOOK_AGAIN };
                    None
                }
                Err(WitnessError::Refused(reason)) => Some(reason),
            };
            if let Some(reason) = refused {
                tracing::error!(%reason, "the witness refuses");
                // What the witness will never do has not happened: that is a loss.
                let _ = match pending.take() {
                    Some(Question::Propose { id, .. }) => {
                        self.core.send(Msg::WitnessAnswer { id, outcome: Outcome::Lost(None) })
                    }
                    Some(Question::Start { .. }) => self.core.send(Msg::StartFailed(reason)),
                    Some(Question::Cancel) | None => Ok(()),
                };
            }
        }
    }

    fn tell_reachable(&mut self, error: Option<String>) {
        if self.reachable != error.is_none() {
            self.reachable = error.is_none();
            let _ = self.core.send(Msg::Witness { error });
        }
    }
}
