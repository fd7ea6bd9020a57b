//! Asking the witness: one thread, one proposal at a time, repeated until it is answered.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use ninefold_control::{Refusal, Work};
use ninefold_core::effect::WitnessRequest;
use ninefold_core::event::NotAsked;
use ninefold_model::{Label, Record, VmId, VmName};
use ninefold_replica::protocol::Outcome;
use ninefold_witness_client::{Retirement, Swap, Witness, WitnessClient, WitnessError};

use crate::error::KeeperError;
use crate::msg::Msg;
use crate::runtime::priority;

/// Between two attempts at a witness that does not answer.
const RETRY: Duration = Duration::from_millis(50);
/// The same when nothing is proposed: what needs the witness is refused until it answers again, so that is soon seen.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Between two readings of the record while nothing is proposed: they keep the connection warm and show whether an
/// operator has moved the VM.
const LOOK: Duration = Duration::from_millis(1000);

/// Starts the thread. It ends when the sender is dropped.
pub fn start(
    vm: VmId,
    label: Label,
    client: WitnessClient,
    core: Sender<Msg>,
) -> Result<Sender<WitnessRequest>, KeeperError> {
    let (questions, asked) = channel();
    run((vm, label), client, core, asked)?;
    Ok(questions)
}

fn run(
    (vm, label): (VmId, Label),
    client: WitnessClient,
    core: Sender<Msg>,
    asked: Receiver<WitnessRequest>,
) -> Result<(), KeeperError> {
    let proposer = Proposer { vm, label, client, core, asked, reachable: true };
    thread::Builder::new().name("proposer".into()).spawn(move || proposer.run()).map(drop).map_err(KeeperError::Thread)
}

/// What somebody waits for who asks this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    Start,
    Retirement,
    Rename,
}

fn waits(question: &WitnessRequest) -> Option<Waits> {
    match question {
        WitnessRequest::Start { .. } => Some(Waits::Start),
        WitnessRequest::Retire { .. } | WitnessRequest::Bury { .. } => Some(Waits::Retirement),
        WitnessRequest::Rename { .. } => Some(Waits::Rename),
        WitnessRequest::Propose { .. } | WitnessRequest::Look | WitnessRequest::Cancel => None,
    }
}

/// A newer question takes the place of an older one, but for one that is only curious, or about a mere name. Answers who waits for what is then
/// never answered.
fn replace(pending: &mut Option<WitnessRequest>, newer: WitnessRequest) -> Option<Waits> {
    if pending.is_some() && matches!(newer, WitnessRequest::Look | WitnessRequest::Rename { .. }) {
        return waits(&newer);
    }
    let answered = waits(&newer);
    pending.replace(newer).as_ref().and_then(waits).filter(|left| answered != Some(*left))
}

struct Proposer {
    vm: VmId,
    /// What the VM is called, as far as is known here.
    label: Label,
    client: WitnessClient,
    core: Sender<Msg>,
    asked: Receiver<WitnessRequest>,
    reachable: bool,
}

impl Proposer {
    fn replace(&self, pending: &mut Option<WitnessRequest>, newer: WitnessRequest) {
        let _ = match replace(pending, newer) {
            None => return,
            Some(Waits::Start) => self.core.send(Msg::NotAsked(NotAsked::Superseded)),
            // For nothing else would anything be asked meanwhile.
            Some(Waits::Retirement) => self.core.send(Msg::RetireFailed(Refusal::Busy { with: Work::Start })),
            Some(Waits::Rename) => self.core.send(Msg::RenameFailed(Refusal::Busy { with: Work::Witness })),
        };
    }

    fn run(mut self) {
        priority::raise();
        let mut pending = None;
        let mut wait = Duration::ZERO;
        loop {
            match self.asked.recv_timeout(wait) {
                Ok(question) => self.replace(&mut pending, question),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(newer) = self.asked.try_recv() {
                self.replace(&mut pending, newer);
            }
            if matches!(pending, Some(WitnessRequest::Cancel | WitnessRequest::Look)) {
                pending = None;
            }
            if let Some(WitnessRequest::Propose { again, .. }) = &mut pending
                && std::mem::take(again)
            {
                wait = LOOK_AGAIN;
                continue;
            }
            let answer = match &pending {
                None | Some(WitnessRequest::Cancel | WitnessRequest::Look) => self.read().map(Msg::WitnessHolds),
                Some(WitnessRequest::Retire { force }) => {
                    let force = *force;
                    self.read().map(|found| Msg::RetireFrom { found, force })
                }
                Some(WitnessRequest::Rename { name }) => {
                    let name = name.clone();
                    self.rename(name)
                }
                Some(WitnessRequest::Bury { expected, forced }) => {
                    self.client.retire(self.vm, expected, *forced).map(|outcome| match outcome {
                        Retirement::Done(tombstone) => Msg::WitnessRetired(tombstone),
                        Retirement::Lost(_) => Msg::RetireFailed(Refusal::Overtaken),
                    })
                }
                Some(WitnessRequest::Start { force }) => {
                    let force = *force;
                    self.read().map(|found| Msg::StartFrom { found, force })
                }
                Some(WitnessRequest::Propose { id, expected, new, .. }) => {
                    let id = *id;
                    self.client.compare_and_swap(self.vm, &self.label, expected.as_ref(), new).map(|swap| {
                        let outcome = match swap {
                            Swap::Won(_) => Outcome::Won,
                            Swap::Lost(current) => Outcome::Lost(current),
                        };
                        Msg::WitnessAnswer { id, outcome }
                    })
                }
            };
            wait = LOOK;
            let refused = match answer {
                Ok(msg) => {
                    self.tell_reachable(None);
                    pending = None;
                    let _ = self.core.send(msg);
                    None
                }
                Err(error @ WitnessError::Unreachable { .. }) => {
                    let reason = error.to_string();
                    self.tell_reachable(Some(reason.clone()));
                    let msg = pending.as_ref().and_then(waits).map(|waits| match waits {
                        Waits::Start => Msg::NotAsked(NotAsked::Silent(reason)),
                        Waits::Retirement => Msg::RetireFailed(Refusal::WitnessSilent { reason }),
                        Waits::Rename => Msg::RenameFailed(Refusal::WitnessSilent { reason }),
                    });
                    if let Some(msg) = msg {
                        pending = None;
                        let _ = self.core.send(msg);
                    }
                    wait = if pending.is_some() { RETRY } else { LOOK_AGAIN };
                    None
                }
                Err(WitnessError::Refused(reason)) => Some(reason),
                // Whatever was asked has its answer.
                Err(WitnessError::Retired { tombstone, .. }) => {
                    self.tell_reachable(None);
                    pending = None;
                    let _ = self.core.send(Msg::WitnessRetired(tombstone));
                    None
                }
            };
            if let Some(reason) = refused {
                tracing::error!(%reason, "the witness refuses");
                self.tell_reachable(None);
                let _ = match pending.take() {
                    Some(WitnessRequest::Propose { id, .. }) => {
                        self.core.send(Msg::WitnessAnswer { id, outcome: Outcome::Refused(reason) })
                    }
                    Some(WitnessRequest::Start { .. }) => self.core.send(Msg::NotAsked(NotAsked::Refuses(reason))),
                    Some(WitnessRequest::Retire { .. } | WitnessRequest::Bury { .. }) => {
                        let reason = format!("it refuses: {reason}");
                        self.core.send(Msg::RetireFailed(Refusal::WitnessDoubted { reason }))
                    }
                    Some(WitnessRequest::Rename { .. }) => {
                        let reason = format!("it refuses: {reason}");
                        self.core.send(Msg::RenameFailed(Refusal::WitnessDoubted { reason }))
                    }
                    Some(WitnessRequest::Cancel | WitnessRequest::Look) | None => {
                        self.core.send(Msg::WitnessRefuses { reason })
                    }
                };
            }
        }
    }

    /// The VM's record; what it is called is told by the way, if that is news.
    fn read(&mut self) -> Result<Option<Record>, WitnessError> {
        let Some((record, label)) = self.client.read_labelled(self.vm)? else { return Ok(None) };
        if label.number > self.label.number {
            self.label = label.clone();
            let _ = self.core.send(Msg::Labelled(label));
        }
        Ok(Some(record))
    }

    /// Calls the VM so: what to tell of that.
    fn rename(&mut self, name: VmName) -> Result<Msg, WitnessError> {
        let Some((_, known)) = self.client.read_labelled(self.vm)? else {
            return Ok(Msg::RenameFailed(Refusal::NoRecord));
        };
        let number = known.number.max(self.label.number).saturating_add(1);
        Ok(match self.client.rename(self.vm, &Label { name: name.clone(), number })? {
            None => Msg::RenameFailed(Refusal::NoRecord),
            Some(label) if label.name == name => {
                self.label = label.clone();
                Msg::Labelled(label)
            }
            // Somebody else has named it at the same time; the next look tells how.
            Some(_) => Msg::RenameFailed(Refusal::Overtaken),
        })
    }

    fn tell_reachable(&mut self, error: Option<String>) {
        if self.reachable != error.is_none() {
            self.reachable = error.is_none();
            let _ = self.core.send(Msg::Witness { error });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ninefold_model::{HostName, Record, Term};
    use ninefold_replica::protocol::ProposalId;
    use ninefold_transport::{Listener, Security};
    use ninefold_witness::{Limits, Registers, Server, ServerHandle};
    use ninefold_witness_client::Timeouts;

    use super::*;

    /// Only so that a failure ends.
    const LIMIT: Duration = Duration::from_secs(60);

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    /// A real witness that keeps at most so many VMs, and host a's proposer, who has been asked this.
    fn proposer(
        dir: &std::path::Path,
        vms: usize,
        first: impl IntoIterator<Item = WitnessRequest>,
    ) -> (Sender<WitnessRequest>, Receiver<Msg>, ServerHandle) {
        let plain = |name| Security::PlainText { host: host(name) };
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), plain("w")).unwrap();
        let server = Server::new(listener, Registers::open_limited(dir, vms).unwrap(), Limits::default());
        let (addr, stop) = (server.local_addr(), server.handle());
        thread::spawn(move || server.run());
        let (core, heard) = channel();
        let client = WitnessClient::new(addr, host("w"), plain("a"), Timeouts::default());
        let (ask, asked) = channel();
        first.into_iter().for_each(|question| ask.send(question).unwrap());
        let label = Label { name: "db".parse().unwrap(), number: 0 };
        run((VmId::random(1), label), client, core, asked).unwrap();
        (ask, heard, stop)
    }

    fn hear<T>(heard: &Receiver<Msg>, mut wanted: impl FnMut(Msg) -> Option<T>) -> T {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(found) = wanted(heard.recv_timeout(left).expect("an answer")) {
                return found;
            }
        }
    }

    fn answer(heard: &Receiver<Msg>) -> (ProposalId, Outcome) {
        hear(heard, |msg| if let Msg::WitnessAnswer { id, outcome } = msg { Some((id, outcome)) } else { None })
    }

    fn propose(id: ProposalId, expected: Option<Record>, new: Record, again: bool) -> WitnessRequest {
        WitnessRequest::Propose { id, expected, new, again }
    }

    /// Whoever waits for an answer gets one, also when this host has something more urgent to ask.
    #[test]
    fn who_asks_for_a_start_is_answered_whatever_is_asked_after_it() {
        let start = || WitnessRequest::Start { force: false };
        let boot = Record::boot(host("a"));
        let others = [WitnessRequest::Cancel, propose(1, Some(boot.clone()), boot.alone(host("b")), false)];
        for other in others {
            let dir = tempfile::tempdir().unwrap();
            let (_ask, heard, stop) = proposer(dir.path(), 1, [start(), other]);
            hear(&heard, |msg| matches!(msg, Msg::NotAsked(NotAsked::Superseded)).then_some(()));
            stop.stop();
        }
        let dir = tempfile::tempdir().unwrap();
        let (_ask, heard, stop) = proposer(dir.path(), 1, [WitnessRequest::Retire { force: true }, start()]);
        hear(&heard, |msg| matches!(msg, Msg::RetireFailed(Refusal::Busy { .. })).then_some(()));
        stop.stop();
        // One answer is for all that have asked, and a look takes the place of nothing.
        let dir = tempfile::tempdir().unwrap();
        let (_ask, heard, stop) = proposer(dir.path(), 1, [start(), start(), WitnessRequest::Look]);
        hear(&heard, |msg| match msg {
            Msg::NotAsked(why) => panic!("{why}"),
            Msg::StartFrom { found: None, force: false } => Some(()),
            _ => None,
        });
        stop.stop();
    }

    /// For a name nothing is left unasked; whatever is asked about a VM that was retired has that for an answer, once.
    #[test]
    fn a_vm_is_renamed_and_retired() {
        let dir = tempfile::tempdir().unwrap();
        let boot = Record::boot(host("a"));
        let rename = || WitnessRequest::Rename { name: "web".parse().unwrap() };
        let first = [propose(1, None, boot.clone(), false), rename()];
        let (ask, heard, stop) = proposer(dir.path(), 1, first);
        let refused = |msg| if let Msg::RenameFailed(refusal) = msg { Some(refusal) } else { None };
        assert_eq!(hear(&heard, refused), Refusal::Busy { with: Work::Witness });
        assert_eq!(answer(&heard), (1, Outcome::Won));
        ask.send(rename()).unwrap();
        let label = hear(&heard, |msg| if let Msg::Labelled(label) = msg { Some(label) } else { None });
        assert_eq!((label.name.as_str(), label.number), ("web", 1));

        let failed = |msg| if let Msg::RetireFailed(refusal) = msg { Some(refusal) } else { None };
        let bury = |expected| WitnessRequest::Bury { expected, forced: false };
        ask.send(bury(boot.alone(host("a")))).unwrap();
        assert_eq!(hear(&heard, failed), Refusal::Overtaken);
        ask.send(WitnessRequest::Retire { force: true }).unwrap();
        hear(&heard, |msg| match msg {
            Msg::RetireFrom { found, force: true } => {
                assert_eq!(found.as_ref(), Some(&boot));
                Some(())
            }
            _ => None,
        });
        ask.send(bury(boot.clone())).unwrap();
        let ends = |msg| if let Msg::WitnessRetired(tombstone) = msg { Some(tombstone) } else { None };
        assert_eq!(hear(&heard, ends).term, Term(2));
        let any = [
            WitnessRequest::Start { force: true },
            WitnessRequest::Retire { force: false },
            bury(boot.clone()),
            rename(),
            propose(2, Some(boot.clone()), boot.alone(host("a")), false),
            WitnessRequest::Look,
        ];
        for question in any {
            ask.send(question).unwrap();
            assert_eq!(hear(&heard, ends).term, Term(2));
        }
        stop.stop();
    }

    /// What the witness answers reaches the core as what it is: no record is no loss to another, and a refusal is none either.
    #[test]
    fn each_answer_is_told_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (ask, heard, stop) = proposer(dir.path(), 0, []);
        // Nobody has asked: it looks by itself.
        hear(&heard, |msg| matches!(msg, Msg::WitnessHolds(None)).then_some(()));
        let boot = Record::boot(host("a"));
        ask.send(propose(1, None, boot.clone(), false)).unwrap();
        let (id, outcome) = answer(&heard);
        assert!(id == 1 && matches!(&outcome, Outcome::Refused(why) if why.contains("0 VMs")), "{outcome:?}");
        // Its register is lost.
        let later = Record { term: Term(8), ..boot.clone() };
        for again in [false, true] {
            ask.send(propose(2, Some(Record { term: Term(7), ..boot.clone() }), later.clone(), again)).unwrap();
            assert_eq!(answer(&heard), (2, Outcome::Lost(None)));
        }
        // A look at the record takes the place of nothing.
        ask.send(propose(2, Some(Record { term: Term(7), ..boot.clone() }), later.clone(), true)).unwrap();
        ask.send(WitnessRequest::Look).unwrap();
        assert_eq!(answer(&heard), (2, Outcome::Lost(None)));
        // Not one that is not wanted any more, also when it was to be asked again.
        ask.send(propose(3, Some(Record { term: Term(7), ..boot.clone() }), later, true)).unwrap();
        ask.send(WitnessRequest::Cancel).unwrap();
        ask.send(WitnessRequest::Start { force: true }).unwrap();
        hear(&heard, |msg| match msg {
            Msg::StartFrom { found: None, force: true } => Some(()),
            Msg::WitnessAnswer { id, .. } => panic!("proposal {id} was not wanted any more"),
            _ => None,
        });
        stop.stop();
        hear(&heard, |msg| matches!(msg, Msg::Witness { error: Some(_) }).then_some(()));
    }
}
