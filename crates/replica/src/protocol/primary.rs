//! The primary's part of the protocol. The diagram is in the parent module.

use ninefold_model::event::EventKind;
use ninefold_model::spec::Protection;
use ninefold_model::status::ProtectionState;
use ninefold_model::{Epoch, HostName, Record, Term};

use super::{Action, Input, Outcome, ProposalId, Protocol, State};

/// A primary: the record under which it acts and how far it has a backup.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Primary {
    /// The newest record that this primary has won.
    pub(super) record: Record,
    /// No session has borne the name `record.term` yet.
    unused: bool,
    pub(super) phase: Phase,
}

/// How far a primary has a backup.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Phase {
    /// No session; the gate is open.
    Alone,
    /// Taking a term for the next session; the gate is open.
    Renewing { proposal: ProposalId, peer: HostName },
    /// The session copies memory while the guest runs; the gate is open.
    Syncing { session: Term, backup: HostName },
    /// Output is held; the backup does not yet hold a checkpoint, or the witness has not yet bound it.
    Binding { session: Term, backup: HostName, proposal: Option<ProposalId> },
    /// The backup may take over at any time.
    Bound { session: Term, backup: HostName, handover: Handover },
    /// The witness is to say that there is no backup any more. `own` is false while the answer awaited is that to the
    /// binding. While the session is `live` (it is ended on purpose) what the backup acknowledges is released and the
    /// backup has no cause to take over; when it is gone nothing is released.
    Unbinding { proposal: ProposalId, own: bool, live: Option<Term>, backup: HostName, then: Then, reason: String },
}

/// Where a switchover stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Handover {
    No,
    /// The final checkpoint is under way. Its epoch is known when it is acknowledged as such.
    Draining {
        reason: String,
    },
}

/// What follows when the witness has released the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Then {
    GoOn,
    Stop,
}

impl Primary {
    pub(super) fn alone(record: Record) -> Self {
        Self { record, unused: true, phase: Phase::Alone }
    }

    pub(super) fn protection(&self, wanted: Protection) -> ProtectionState {
        match &self.phase {
            Phase::Alone if wanted == Protection::None => ProtectionState::Off,
            Phase::Alone | Phase::Renewing { .. } => ProtectionState::Unprotected,
            Phase::Syncing { .. } | Phase::Binding { .. } => ProtectionState::Syncing,
            Phase::Bound { .. } | Phase::Unbinding { live: Some(_), .. } => ProtectionState::Protected,
            Phase::Unbinding { .. } => ProtectionState::Waiting,
        }
    }

    pub(super) fn backup(&self) -> Option<&HostName> {
        match &self.phase {
            Phase::Syncing { backup, .. }
            | Phase::Binding { backup, .. }
            | Phase::Bound { backup, .. }
            | Phase::Unbinding { live: Some(_), backup, .. } => Some(backup),
            _ => None,
        }
    }

    pub(super) fn session(&self) -> Option<Term> {
        match &self.phase {
            Phase::Syncing { session, .. } | Phase::Binding { session, .. } | Phase::Bound { session, .. } => {
                Some(*session)
            }
            Phase::Unbinding { live, .. } => *live,
            _ => None,
        }
    }

    pub(super) fn awaits_witness(&self) -> bool {
        matches!(
            &self.phase,
            Phase::Renewing { .. } | Phase::Unbinding { .. } | Phase::Binding { proposal: Some(_), .. }
        )
    }
}

impl Protocol {
    pub(super) fn primary_input(&mut self, input: Input, out: &mut Vec<Action>) {
        let State::Primary(p) = &self.state else {
            if let Input::Stop { .. } | Input::Switchover { .. } = input {
                out.push(Action::Refuse { reason: "the VM does not run here".into() });
            }
            return;
        };
        let session = p.session();
        match input {
            Input::PeerAvailable { peer } => self.peer_available(peer, out),
            Input::FirstCheckpoint { session: s } if session == Some(s) => self.first_checkpoint(s, out),
            Input::Acked { session: s, epoch } if session == Some(s) => self.acked(epoch, out),
            Input::SessionLost { session: s, reason } if session == Some(s) => {
                self.session_gone(Then::GoOn, &reason, out);
            }
            Input::Switchover { reason } => self.switchover(reason, out),
            Input::FinalAcked { session: s } if session == Some(s) => self.final_acked(out),
            Input::Stop { reason } => {
                self.part(Then::Stop, &reason, out);
            }
            Input::MachineLost { reason } => self.machine_lost(reason, out),
            _ => {}
        }
    }

    fn peer_available(&mut self, peer: HostName, out: &mut Vec<Action>) {
        if !self.wants_peer() {
            return;
        }
        let must_renew = self.rules.one_session_a_term;
        let id = self.last_proposal + 1;
        let State::Primary(p) = &mut self.state else {
            return;
        };
        if p.unused || !must_renew {
            p.unused = false;
            let session = p.record.term;
            p.phase = Phase::Syncing { session, backup: peer.clone() };
            out.push(Action::OpenSession { session, peer: peer.clone() });
            out.push(Action::Emit(EventKind::SyncStarted { backup: peer }));
        } else {
            let new = p.record.alone(p.record.primary.clone());
            out.push(Action::Propose { id, expected: Some(p.record.clone()), new });
            p.phase = Phase::Renewing { proposal: id, peer };
            self.last_proposal = id;
        }
    }

    fn first_checkpoint(&mut self, session: Term, out: &mut Vec<Action>) {
        let hold = self.rules.hold_from_first_checkpoint;
        let State::Primary(p) = &mut self.state else {
            return;
        };
        if let Phase::Syncing { backup, .. } = &p.phase {
            if hold {
                out.push(Action::Hold);
            }
            p.phase = Phase::Binding { session, backup: backup.clone(), proposal: None };
        }
    }

    fn acked(&mut self, epoch: Epoch, out: &mut Vec<Action>) {
        let id = self.last_proposal + 1;
        let State::Primary(p) = &mut self.state else {
            return;
        };
        match &mut p.phase {
            Phase::Binding { backup, proposal, .. } => {
                out.push(Action::Release { epoch });
                if proposal.is_none() {
                    let new = p.record.bound(backup.clone());
                    out.push(Action::Propose { id, expected: Some(p.record.clone()), new });
                    *proposal = Some(id);
                    self.last_proposal = id;
                }
            }
            Phase::Bound { .. } | Phase::Unbinding { .. } => out.push(Action::Release { epoch }),
            _ => {}
        }
    }

    fn switchover(&mut self, reason: String, out: &mut Vec<Action>) {
        let State::Primary(p) = &mut self.state else {
            return;
        };
        match &mut p.phase {
            Phase::Bound { session, backup, handover } if *handover == Handover::No => {
                out.push(Action::Emit(EventKind::SwitchoverStarted { to: backup.clone(), reason: reason.clone() }));
                out.push(Action::TakeFinalCheckpoint { session: *session });
                *handover = Handover::Draining { reason };
            }
            Phase::Bound { .. } => out.push(Action::Refuse { reason: "a switchover is under way".into() }),
            _ => out.push(Action::Refuse { reason: "no backup is ready to take the VM".into() }),
        }
    }

    fn final_acked(&mut self, out: &mut Vec<Action>) {
        if let State::Primary(p) = &self.state
            && let Phase::Bound { session, handover: Handover::Draining { reason }, .. } = &p.phase
        {
            out.push(Action::SendRelinquish { session: *session, reason: reason.clone() });
        }
    }

    /// Ends the session on purpose: the backup hears of it when the witness has spoken, not before, so that it has no
    /// cause to take over.
    pub(super) fn part(&mut self, then: Then, reason: &str, out: &mut Vec<Action>) {
        let State::Primary(p) = &mut self.state else {
            return;
        };
        let (live, reason) = (p.session(), reason.to_owned());
        match p.phase.clone() {
            Phase::Binding { backup, proposal: Some(proposal), .. } => {
                p.phase = Phase::Unbinding { proposal, own: false, live, backup, then, reason };
            }
            Phase::Bound { backup, .. } => {
                let new = p.record.alone(p.record.primary.clone());
                self.last_proposal += 1;
                let proposal = self.last_proposal;
                out.push(Action::Propose { id: proposal, expected: Some(p.record.clone()), new });
                p.phase = Phase::Unbinding { proposal, own: true, live, backup, then, reason };
            }
            Phase::Unbinding { .. } => self.session_goes_on(then),
            Phase::Alone | Phase::Renewing { .. } | Phase::Syncing { .. } | Phase::Binding { .. } => {
                if let Some(session) = live {
                    out.push(Action::CloseSession { session });
                }
                self.session_gone(then, &reason, out);
            }
        }
    }

    /// What follows is decided anew: a stop is not taken back.
    fn session_goes_on(&mut self, then: Then) {
        if let State::Primary(Primary { phase: Phase::Unbinding { then: t, .. }, .. }) = &mut self.state
            && then == Then::Stop
        {
            *t = Then::Stop;
        }
    }

    /// The session is gone. Finds what the witness may believe of it, and has that undone before anything else.
    fn session_gone(&mut self, then: Then, reason: &str, out: &mut Vec<Action>) {
        let id = self.last_proposal + 1;
        let careless = !self.rules.win_before_speaking_alone;
        let State::Primary(p) = &mut self.state else {
            return;
        };
        let term = p.record.term;
        let unprotected = || Action::Emit(EventKind::Unprotected { term, reason: reason.into() });
        match p.phase.clone() {
            Phase::Alone | Phase::Renewing { .. } => {}
            Phase::Syncing { .. } | Phase::Binding { proposal: None, .. } => {
                p.phase = Phase::Alone;
                out.push(Action::OpenGate);
                out.push(unprotected());
            }
            _ if careless => {
                p.phase = Phase::Alone;
                out.push(Action::OpenGate);
                out.push(unprotected());
            }
            Phase::Binding { backup, proposal: Some(asked), .. } => {
                p.phase =
                    Phase::Unbinding { proposal: asked, own: false, live: None, backup, then, reason: reason.into() };
            }
            Phase::Bound { backup, .. } => {
                let new = p.record.alone(p.record.primary.clone());
                out.push(Action::Propose { id, expected: Some(p.record.clone()), new });
                out.push(Action::Emit(EventKind::BackupLost { reason: reason.into() }));
                if self.rules.say_when_unprotected {
                    p.phase =
                        Phase::Unbinding { proposal: id, own: true, live: None, backup, then, reason: reason.into() };
                }
                self.last_proposal = id;
            }
            Phase::Unbinding { .. } => {
                if let Phase::Unbinding { live, .. } = &mut p.phase {
                    *live = None;
                }
                self.session_goes_on(then);
            }
        }
        if let (Then::Stop, State::Primary(Primary { phase: Phase::Alone | Phase::Renewing { .. }, .. })) =
            (then, &self.state)
        {
            self.end(reason, out);
        }
    }

    fn end(&mut self, reason: &str, out: &mut Vec<Action>) {
        out.push(Action::StandDown);
        out.push(Action::Emit(EventKind::Stopped { reason: reason.into() }));
        self.state = State::Standby;
    }

    pub(super) fn primary_answer(&mut self, id: ProposalId, outcome: Outcome, out: &mut Vec<Action>) {
        let next = self.last_proposal + 1;
        let State::Primary(p) = &mut self.state else {
            return;
        };
        let asked = match &p.phase {
            Phase::Renewing { proposal, .. } | Phase::Unbinding { proposal, .. } => Some(*proposal),
            Phase::Binding { proposal, .. } => *proposal,
            _ => None,
        };
        if asked != Some(id) {
            return;
        }
        if let Outcome::Lost(current) = outcome {
            let term = current.map_or(Term(0), |r| r.term);
            self.stand_down(term, "the witness names another primary", out);
            return;
        }
        match p.phase.clone() {
            Phase::Renewing { peer, .. } => {
                p.record = p.record.alone(p.record.primary.clone());
                p.unused = true;
                p.phase = Phase::Alone;
                self.peer_available(peer, out);
            }
            Phase::Binding { session, backup, .. } => {
                p.record = p.record.bound(backup.clone());
                p.unused = false;
                p.phase = Phase::Bound { session, backup, handover: Handover::No };
                out.push(Action::SendBound { session });
            }
            Phase::Unbinding { own: false, live, backup, then, reason, .. } => {
                // The binding was granted, and is not wanted any more: undo it.
                p.record = p.record.bound(backup.clone());
                let new = p.record.alone(p.record.primary.clone());
                out.push(Action::Propose { id: next, expected: Some(p.record.clone()), new });
                p.phase = Phase::Unbinding { proposal: next, own: true, live, backup, then, reason };
                self.last_proposal = next;
            }
            Phase::Unbinding { own: true, live, then, reason, .. } => {
                if let Some(session) = live {
                    out.push(Action::CloseSession { session });
                }
                p.record = p.record.alone(p.record.primary.clone());
                p.unused = true;
                p.phase = Phase::Alone;
                if then == Then::Stop {
                    self.end(&reason, out);
                } else {
                    let term = p.record.term;
                    out.push(Action::OpenGate);
                    out.push(Action::Emit(EventKind::Unprotected { term, reason }));
                }
            }
            _ => {}
        }
    }

    fn machine_lost(&mut self, reason: String, out: &mut Vec<Action>) {
        let State::Primary(p) = &self.state else {
            return;
        };
        match &p.phase {
            Phase::Bound { session, .. } => {
                out.push(Action::SendRelinquish { session: *session, reason: reason.clone() });
                let term = p.record.term;
                self.stand_down(term, &reason, out);
            }
            phase => {
                // The binding may have been granted without our knowing: let the backup try.
                if let Phase::Binding { session, proposal: Some(_), .. } = phase {
                    out.push(Action::SendRelinquish { session: *session, reason: reason.clone() });
                }
                out.push(Action::StandDown);
                out.push(Action::Emit(EventKind::Lost { reason }));
                self.state = State::Standby;
            }
        }
    }
}
