//! A backup that has won the VM and cannot resume it gives it back to the others, which hold it, too.
//!
//! ```text
//!   (t,   P, [B in s, C in s'])     B and C claim: B is first
//!   (t+1, B, [])                    C keeps its checkpoint: it is a spare. B's QEMU refuses the device state
//!   (t+2, B, [C in s'])             B gives back: it has never run the guest, so C holds all that was ever let go
//!   (t+3, C, [])                    C claims, as from any record that binds its session
//! ```
//!
//! Whom may B bind? Those that the record bound from which it has claimed, and nobody else: what was let go under that record, each of them
//! holds. When? As long as its guest has not run: from then on B says what only B has. Both are rules that the model checker misses
//! ([`Rules`]). A session is named by a term, and a term has one primary: so C need not ask who it is that binds its session.
//!
//! What becomes of a spare: whoever opens a session with it runs the VM, and its standby serves that session. Until then, or until the
//! shell has lost patience, it looks at what the witness holds.

use ninefold_model::event::EventKind;
use ninefold_model::{Backup as Bound, Epoch, HostName, Record, Term};

use super::backup::Backup;
use super::{Action, Proposal, Protocol, Rules, State};

/// A backup that has lost its claim to another one, and holds its checkpoint still.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Spare {
    pub(super) backup: Backup,
    pub(super) epoch: Epoch,
    /// The newest term that the witness has shown.
    pub(super) seen: Term,
}

/// A winner that cannot go on with the VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct GivingBack {
    /// The newest record that it has won.
    pub(super) from: Record,
    pub(super) proposal: Proposal,
    to: Vec<Bound>,
    reason: String,
}

/// Who may have the VM back from `me`, which has claimed it from the record `expected`.
pub(super) fn heirs(me: &HostName, expected: Option<&Record>, backup: &Backup, rules: Rules) -> Vec<Bound> {
    let record = if rules.give_back_to_the_bound { expected } else { backup.told.as_ref() };
    record.into_iter().flat_map(|r| &r.backups).filter(|b| b.host != *me).cloned().collect()
}

impl Protocol {
    pub(super) fn resumed(&mut self) {
        if let State::Primary(p) = &mut self.state
            && self.rules.give_back_before_running
        {
            p.heirs = None;
        }
    }

    pub(super) fn cannot_resume(&mut self, reason: String, out: &mut Vec<Action>) {
        match &mut self.state {
            // Nothing was asked of the witness, and will not be.
            State::Claiming { proposal, .. } if !proposal.sent => {
                out.push(Action::StandDown);
                self.state = State::Standby;
            }
            // It may be won all the same, and then it is to be given back.
            State::Claiming { failed, .. } => *failed = Some(reason),
            State::Primary(p) => match p.heirs.take() {
                None => self.machine_lost(reason, out),
                Some(heirs) if heirs.is_empty() => {
                    out.push(Action::Emit(EventKind::Lost { reason }));
                    out.push(Action::StandDown);
                    self.state = State::Standby;
                }
                Some(to) => {
                    let (from, pending) = (p.record.clone(), p.pending.take());
                    self.give_back(from, pending, to, reason, out);
                }
            },
            _ => {}
        }
    }

    /// `pending` was asked for before, and comes first: it binds nobody.
    fn give_back(
        &mut self,
        from: Record,
        pending: Option<Proposal>,
        to: Vec<Bound>,
        reason: String,
        out: &mut Vec<Action>,
    ) {
        let proposal = pending.unwrap_or_else(|| {
            let new = from.bound(to.clone());
            Proposal::begin(self.next_proposal(), Some(from.clone()), new, self.rules, out)
        });
        self.state = State::GivingBack(GivingBack { from, proposal, to, reason });
    }

    /// `lost`: what the witness holds instead of what was proposed.
    pub(super) fn give_back_answered(&mut self, lost: Option<Option<Record>>, out: &mut Vec<Action>) {
        let State::GivingBack(GivingBack { proposal, to, reason, .. }) = &self.state else { return };
        let (record, to, reason) = (proposal.new.clone(), to.clone(), reason.clone());
        match lost {
            Some(current) => {
                let term = current.map_or(Term(0), |r| r.term);
                self.stand_down(term, "the witness names another primary", out);
            }
            None if record.backups != to => self.give_back(record, None, to, reason, out),
            None => {
                let backups = to.into_iter().map(|b| b.host).collect();
                out.push(Action::StandDown);
                out.push(Action::Emit(EventKind::GaveBack { term: record.term, backups, reason }));
                self.state = State::Standby;
            }
        }
    }

    /// The witness holds `record`, as a spare has read.
    pub(super) fn spare_sees(&mut self, record: &Record, out: &mut Vec<Action>) {
        let State::Spare(spare) = &mut self.state else { return };
        if record.term <= spare.seen {
            return;
        }
        if spare.backup.may_claim(&self.me, record) {
            let (backup, epoch) = (spare.backup.clone(), spare.epoch);
            return self.claim(record.clone(), backup, epoch, out);
        }
        if record.is_alone() {
            // It may come back yet.
            spare.seen = record.term;
            return;
        }
        self.stand_down(record.term, "the VM runs elsewhere, and others are bound to it", out);
    }
}
