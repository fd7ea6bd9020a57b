//! The backup's part of the protocol: it holds checkpoints, and claims the VM when its primary is lost.

use ninefold_model::event::EventKind;
use ninefold_model::{Epoch, HostName, Record, Term};

use super::give_back::{Spare, heirs};
use super::primary::Primary;
use super::{Action, Proposal, Protocol, Rules, State};

const NOT_GRANTED: &str = "the witness did not grant the take-over";

/// A backup in one session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Backup {
    pub(super) session: Term,
    pub(super) primary: HostName,
    held: Option<Epoch>,
    /// The newest record with us in it that the primary told of.
    pub(super) told: Option<Record>,
}

impl Backup {
    /// Whether this backup may take over from `record`: that, and nothing else. Whoever the record names has let nothing go since that
    /// this backup does not hold: it is the session's primary, or one that could not resume and has given the VM back.
    pub(super) fn may_claim(&self, me: &HostName, record: &Record) -> bool {
        record.binds(me, self.session)
    }

    /// Whether another backup has won the VM from this one's primary, as `record` shows: it goes on with it, or gives it back.
    pub(super) fn is_passed(&self, me: &HostName, record: &Record) -> bool {
        record.primary != self.primary && record.primary != *me && (record.is_alone() || self.may_claim(me, record))
    }

    /// Whether that is so of one that holds a checkpoint, and has not noticed.
    pub(super) fn is_overtaken(&self, me: &HostName, record: &Record) -> bool {
        self.held.is_some() && record.term > self.known_term() && self.is_passed(me, record)
    }

    /// The record to claim from first. Who was told of none claims from one that never was, since no record binds a session in
    /// the session's own term: so the witness shows what it holds. Not from the record that most likely comes: if the primary
    /// has not won it yet, a claim that was lost, and whose host has given up, would win by being repeated late.
    fn expected(&self, me: &HostName, rules: Rules) -> Record {
        let term = if rules.claim_from_what_was { self.session } else { self.session.next() };
        self.told.clone().unwrap_or_else(|| Record {
            term,
            primary: self.primary.clone(),
            backups: vec![ninefold_model::Backup { host: me.clone(), session: self.session }],
        })
    }

    /// The newest term that the witness has held: it named the primary in that of the session before the session was accepted.
    pub(super) fn known_term(&self) -> Term {
        self.told.as_ref().map_or(self.session, |r| r.term)
    }

    /// Whether `record`, which the witness holds, means that this session will never be claimed from.
    pub(super) fn is_void(&self, me: &HostName, record: &Record) -> bool {
        let was_bound = self.told.is_some();
        let over = record.primary != self.primary || was_bound;
        record.term > self.known_term() && over && !self.may_claim(me, record) && !self.is_overtaken(me, record)
    }
}

impl Protocol {
    pub(super) fn offer(&mut self, from: HostName, session: Term, out: &mut Vec<Action>) {
        let refusal = match &self.state {
            State::Standby | State::Backup(_) | State::Spare(_) | State::Gone(_) if session > self.newest_session => {
                None
            }
            State::Standby | State::Backup(_) | State::Spare(_) | State::Gone(_) => {
                Some(format!("session {session} is not newer than session {}", self.newest_session))
            }
            State::Claiming { .. } => Some("this host is taking the VM over".into()),
            State::Starting { .. } => Some("this host is starting the VM".into()),
            State::Primary(p) => Some(format!("this host runs the VM (term {})", p.record.term)),
            State::GivingBack(_) => Some("this host gives the VM back".into()),
        };
        if let Some(reason) = refusal {
            out.push(Action::RefuseSession { session, reason });
            return;
        }
        self.newest_session = session;
        if self.is_spare() {
            // Whoever opens a session runs the VM.
            out.push(Action::StandDown);
        }
        self.state = State::Backup(Backup { session, primary: from, held: None, told: None });
        out.push(Action::AcceptSession { session });
    }

    pub(super) fn checkpoint_held(&mut self, session: Term, epoch: Epoch, first: bool, out: &mut Vec<Action>) {
        let in_order = self.rules.ack_in_order;
        let backup = match &mut self.state {
            State::Backup(b) => b,
            State::Claiming { backup, .. } if !self.rules.no_ack_while_claiming => backup,
            _ => return,
        };
        let due = match backup.held {
            None => first,
            Some(held) => !first && epoch == held.next(),
        };
        if backup.session != session || (in_order && !due) {
            return;
        }
        let ready = backup.held.is_none();
        backup.held = Some(epoch);
        out.push(Action::SendAck { session, epoch });
        if ready {
            out.push(Action::Emit(EventKind::BackupReady { primary: backup.primary.clone(), epoch }));
        }
    }

    pub(super) fn bound_notice(&mut self, session: Term, record: Record) {
        if let State::Backup(b) = &mut self.state
            && b.session == session
            && record.primary == b.primary
            && b.may_claim(&self.me, &record)
            && b.told.as_ref().is_none_or(|told| told.term < record.term)
        {
            b.told = Some(record);
        }
    }

    pub(super) fn primary_lost(&mut self, session: Term, reason: String, out: &mut Vec<Action>) {
        let State::Backup(backup) = &self.state else {
            return;
        };
        if backup.session != session {
            return;
        }
        let backup = backup.clone();
        let Some(epoch) = backup.held else {
            out.push(Action::StandDown);
            self.state = State::Standby;
            return;
        };
        out.push(Action::Emit(EventKind::PrimaryLost { reason, epoch }));
        let expected = backup.expected(&self.me, self.rules);
        if !self.rules.win_before_resuming {
            out.push(Action::ResumeFrom { epoch });
            self.state = State::Primary(Primary::alone(expected.alone(self.me.clone())));
            return;
        }
        self.claim(expected, backup, epoch, out);
    }

    pub(super) fn claim(&mut self, expected: Record, backup: Backup, epoch: Epoch, out: &mut Vec<Action>) {
        let new = expected.alone(self.me.clone());
        let proposal = Proposal::begin(self.next_proposal(), Some(expected), new, self.rules, out);
        self.state = State::Claiming { proposal, backup, epoch, failed: None };
    }

    /// `lost`: what the witness holds instead of what was proposed.
    pub(super) fn claim_answered(&mut self, lost: Option<Option<Record>>, out: &mut Vec<Action>) {
        let State::Claiming { proposal, backup, epoch, failed } = &self.state else {
            return;
        };
        let (backup, epoch) = (backup.clone(), *epoch);
        match (lost, failed) {
            (None, failed) => {
                let heirs = heirs(&self.me, proposal.expected.as_ref(), &backup, self.rules);
                let (record, failed) = (proposal.new.clone(), failed.clone());
                self.state = State::Primary(Primary::resuming(record, heirs));
                match failed {
                    None => out.push(Action::ResumeFrom { epoch }),
                    Some(reason) => self.cannot_resume(reason, out),
                }
            }
            // The record has changed and we may claim all the same: the primary has bound or lost another backup, or another that
            // had won gives the VM back. Each is a change that somebody else has won, so this comes to an end.
            (Some(Some(current)), None)
                if backup.may_claim(&self.me, &current)
                    || (!self.rules.claim_own_session && current.primary == backup.primary) =>
            {
                self.claim(current, backup, epoch, out);
            }
            (Some(Some(current)), None) if backup.is_passed(&self.me, &current) => {
                self.state = State::Spare(Spare { backup, epoch, seen: current.term });
                out.push(Action::Emit(EventKind::ClaimLost { term: current.term }));
            }
            (Some(current), _) => {
                let term = current.map_or(Term(0), |r| r.term);
                self.stand_down(term, NOT_GRANTED, out);
            }
        }
    }
}
