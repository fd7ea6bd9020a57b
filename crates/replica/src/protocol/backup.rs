//! The backup's part of the protocol: it holds checkpoints, and claims the VM when its primary is lost.

use ninefold_model::event::EventKind;
use ninefold_model::{Epoch, HostName, Record, Term};

use super::primary::Primary;
use super::{Action, Outcome, Protocol, State};

/// A backup in one session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Backup {
    pub(super) session: Term,
    pub(super) primary: HostName,
    held: Option<Epoch>,
    /// The newest record with us in it that the primary told of.
    told: Option<Record>,
}

impl Backup {
    /// Whether this backup may take over from `record`: that, and nothing else.
    fn may_claim(&self, me: &HostName, record: &Record) -> bool {
        record.primary == self.primary && record.binds(me, self.session)
    }

    /// The record to claim from first. A primary that had no time to tell has most likely bound us and nobody else; if it
    /// has not, the witness shows what it holds.
    fn expected(&self, me: &HostName) -> Record {
        self.told.clone().unwrap_or_else(|| Record {
            term: self.session.next(),
            primary: self.primary.clone(),
            backups: vec![ninefold_model::Backup { host: me.clone(), session: self.session }],
        })
    }

    /// Whether `record`, which the witness holds, means that this session will never be claimed from.
    pub(super) fn is_void(&self, me: &HostName, record: &Record) -> bool {
        let newest = self.told.as_ref().map_or(self.session, |r| r.term);
        let was_bound = self.told.is_some();
        record.term > newest && (record.primary != self.primary || (was_bound && !record.binds(me, self.session)))
    }
}

impl Protocol {
    pub(super) fn offer(&mut self, from: HostName, session: Term, out: &mut Vec<Action>) {
        let refusal = match &self.state {
            State::Standby | State::Backup(_) if session > self.newest_session => None,
            State::Standby | State::Backup(_) => {
                Some(format!("session {session} is not newer than session {}", self.newest_session))
            }
            State::Claiming { .. } => Some("this host is taking the VM over".into()),
            State::Starting { .. } => Some("this host is starting the VM".into()),
            State::Primary(p) => Some(format!("this host runs the VM (term {})", p.record.term)),
        };
        if let Some(reason) = refusal {
            out.push(Action::RefuseSession { session, reason });
            return;
        }
        self.newest_session = session;
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
        let expected = backup.expected(&self.me);
        if !self.rules.win_before_resuming {
            out.push(Action::ResumeFrom { epoch });
            self.state = State::Primary(Primary::alone(expected.alone(self.me.clone())));
            return;
        }
        self.claim(expected, backup, epoch, out);
    }

    fn claim(&mut self, expected: Record, backup: Backup, epoch: Epoch, out: &mut Vec<Action>) {
        let new = expected.alone(self.me.clone());
        let proposal = self.next_proposal();
        out.push(Action::Propose { id: proposal, expected: Some(expected), new: new.clone() });
        self.state = State::Claiming { proposal, new, backup, epoch };
    }

    pub(super) fn claim_answered(&mut self, outcome: Outcome, out: &mut Vec<Action>) {
        let State::Claiming { new, backup, epoch, .. } = &self.state else {
            return;
        };
        match outcome {
            Outcome::Won => {
                let (record, epoch) = (new.clone(), *epoch);
                out.push(Action::ResumeFrom { epoch });
                self.state = State::Primary(Primary::alone(record));
            }
            // The record has changed and we may claim all the same: the primary has bound or lost another backup. Each
            // such loss is a change that somebody else has won, so this comes to an end.
            Outcome::Lost(Some(current))
                if backup.may_claim(&self.me, &current)
                    || (!self.rules.claim_own_session && current.primary == backup.primary) =>
            {
                let (backup, epoch) = (backup.clone(), *epoch);
                self.claim(current, backup, epoch, out);
            }
            Outcome::Lost(current) => {
                let term = current.map_or(Term(0), |r| r.term);
                self.stand_down(term, "the witness did not grant the take-over", out);
            }
        }
    }
}
