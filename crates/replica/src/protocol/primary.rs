//! The primary's part of the protocol. The diagram is in the parent module.

use ninefold_model::event::EventKind;
use ninefold_model::spec::Protection;
use ninefold_model::status::ProtectionState;
use ninefold_model::{Backup, Epoch, HostName, Record, Term};

use super::gone::Gone;
use super::refused::Refused;
use super::session::{End, Phase, Session};
use super::{Action, Proposal, ProposalId, Protocol, Rules, State, Wanted};

/// A primary: the record under which it acts, and its sessions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Primary {
    /// The newest record that this primary has won.
    pub(super) record: Record,
    /// No session has borne the name `record.term` yet.
    unused: bool,
    /// The proposal whose answer is awaited.
    pub(super) pending: Option<Proposal>,
    pub(super) sessions: Vec<Session>,
    /// A peer with which a session is to be opened when there is a term for it.
    opening: Option<HostName>,
    /// Output is held.
    pub(super) holding: bool,
    /// The newest epoch released since it is.
    released: Epoch,
    pub(super) handover: Option<Handover>,
    /// The VM ends, for this reason, as soon as nobody may take it over.
    stopping: Option<String>,
    log: Option<Log>,
    /// The guest has not run here yet: who may have the VM if it cannot. See [`super::give_back`].
    pub(super) heirs: Option<Vec<Backup>>,
    /// It may have been replaced without our noticing: until a record is won by a proposal after this one.
    doubt: Option<ProposalId>,
}

/// A log that output waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Log {
    first: Epoch,
    held: Option<Epoch>,
    /// Output does not wait for it.
    free: bool,
    /// It has ended; it counts until a record is won of which it does not know: by a proposal after this one.
    invalidated: Option<ProposalId>,
}

impl Log {
    /// The newest epoch whose output need not wait for it.
    fn allows(&self) -> Epoch {
        self.held.unwrap_or(Epoch(self.first.0.saturating_sub(1)))
    }
}

/// A switchover in progress.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Handover {
    /// The session of the backup that is to have the VM.
    to: Term,
    reason: String,
    /// After which the guest stands still.
    last: Option<Epoch>,
    relinquished: bool,
}

impl Primary {
    pub(super) fn alone(record: Record) -> Self {
        Self {
            record,
            unused: true,
            pending: None,
            sessions: Vec::new(),
            opening: None,
            holding: false,
            released: Epoch(0),
            handover: None,
            stopping: None,
            log: None,
            heirs: None,
            doubt: None,
        }
    }

    /// The same of one whose guest is to be resumed here: see [`Self::heirs`].
    pub(super) fn resuming(record: Record, heirs: Vec<Backup>) -> Self {
        Self { heirs: Some(heirs), ..Self::alone(record) }
    }

    pub(super) fn doubts(&self) -> bool {
        self.doubt.is_some()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    pub(super) fn session(&self, name: Term) -> Option<&Session> {
        self.sessions.iter().find(|s| s.name == name)
    }

    /// The witness has bound this backup, as far as we know.
    fn is_bound(&self, s: &Session) -> bool {
        self.record.binds(&s.backup, s.name)
    }

    /// The witness has bound this backup, or may have without our knowing yet.
    fn may_claim(&self, s: &Session) -> bool {
        self.is_bound(s) || self.pending.as_ref().is_some_and(|p| p.new.binds(&s.backup, s.name))
    }

    pub(super) fn nobody_may_claim(&self) -> bool {
        self.record.is_alone() && self.pending.as_ref().is_none_or(|p| p.new.is_alone())
    }

    /// None of those who could have replaced us had done so after the doubt had arisen.
    fn is_confirmed(&self) -> bool {
        let known = |s: &Session| s.is_live() && s.sure;
        self.nobody_may_claim() || self.sessions.iter().filter(|s| self.may_claim(s)).all(known)
    }

    /// There is a log that would be believed and is behind.
    pub(super) fn invalidates(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.invalidated.is_some())
    }

    pub(super) fn phase(&self, s: &Session) -> Phase {
        match (s.is_wanted(), s.first) {
            (false, _) => Phase::Unbinding,
            (true, None) => Phase::Syncing,
            (true, Some(_)) if self.is_bound(s) => Phase::Bound,
            (true, Some(_)) => Phase::Binding,
        }
    }

    pub(super) fn protection(&self, wanted: Wanted, honest: bool) -> ProtectionState {
        let any = |test: &dyn Fn(&Session) -> bool| self.sessions.iter().any(test);
        if any(&|s| self.is_bound(s) && (s.is_live() || !honest)) {
            ProtectionState::Protected
        } else if any(&|s| !s.is_live()) {
            ProtectionState::Waiting
        } else if any(&Session::is_wanted) {
            ProtectionState::Syncing
        } else if wanted.protection == Protection::None {
            ProtectionState::Off
        } else {
            ProtectionState::Unprotected
        }
    }

    pub(super) fn wants_peer(&self, wanted: Wanted) -> bool {
        let have = self.sessions.iter().filter(|s| s.is_wanted()).count();
        have < wanted.count() && self.opening.is_none() && self.handover.is_none() && self.stopping.is_none()
    }

    /// Whom the record should bind: whoever it binds and is wanted, then whoever has become ready for it.
    fn should_bind(&self) -> Vec<Backup> {
        let wanted = |b: &Backup| self.session(b.session).is_some_and(Session::is_wanted);
        let kept = self.record.backups.iter().filter(|b| wanted(b)).cloned();
        let ready = self.sessions.iter().filter(|s| s.is_wanted() && s.is_synced() && !self.is_bound(s));
        kept.chain(ready.map(|s| Backup { host: s.backup.clone(), session: s.name })).collect()
    }

    /// The newest epoch that may be released, `None` if output need not be held at all.
    fn allowed(&self, rules: Rules) -> Option<Epoch> {
        let counting = self.sessions.iter().filter(|s| rules.count_before_bound || self.is_bound(s));
        let epochs = counting.filter_map(Session::allows);
        let sessions = rules.release.newest(epochs);
        let log = self.log.as_ref().filter(|log| rules.wait_for_log && !log.free).map(Log::allows);
        sessions.into_iter().chain(log).min()
    }

    /// Output waits for a backup.
    fn waits_for_backups(&self) -> bool {
        self.sessions.iter().any(|s| s.allows().is_some())
    }

    /// From here on output is held, that of the epoch that ends now included.
    fn hold(&mut self, epoch: Epoch, rules: Rules, out: &mut Vec<Action>) {
        if !self.holding {
            self.holding = true;
            self.released = Epoch(epoch.0.saturating_sub(1));
            if rules.hold_from_first_checkpoint {
                out.push(Action::Hold);
            }
        }
    }
}

impl Protocol {
    pub(super) fn want(&mut self, wanted: Wanted, out: &mut Vec<Action>) {
        self.wanted = wanted;
        let State::Primary(p) = &mut self.state else {
            return;
        };
        if wanted.protection == Protection::None {
            p.opening = None;
        }
        let reason = match wanted.protection {
            Protection::None => "protection was switched off",
            Protection::FaultTolerant => "fewer backups are wanted",
        };
        let surplus = p.sessions.iter_mut().filter(|s| s.is_wanted()).skip(wanted.count());
        surplus.for_each(|s| s.end = End::Parting { reason: reason.into() });
        self.settle(out);
    }

    pub(super) fn peer_available(&mut self, peer: HostName, out: &mut Vec<Action>) {
        if let State::Primary(p) = &mut self.state
            && p.wants_peer(self.wanted)
            && peer != self.me
            // Also not while the witness may still believe that it is our backup in an earlier session.
            && p.sessions.iter().all(|s| s.backup != peer)
        {
            p.opening = Some(peer);
            self.settle(out);
        }
    }

    pub(super) fn first_checkpoint(&mut self, session: Term, epoch: Epoch, out: &mut Vec<Action>) {
        let rules = self.rules;
        let State::Primary(p) = &mut self.state else {
            return;
        };
        let Some(s) = p.sessions.iter_mut().find(|s| s.name == session && s.is_wanted() && s.first.is_none()) else {
            return;
        };
        s.first = Some(epoch);
        p.hold(epoch, rules, out);
    }

    pub(super) fn log_first(&mut self, epoch: Epoch, out: &mut Vec<Action>) {
        let rules = self.rules;
        if let State::Primary(p) = &mut self.state {
            p.log = Some(Log { first: epoch, held: None, free: false, invalidated: None });
            p.hold(epoch, rules, out);
        }
    }

    pub(super) fn log_holds(&mut self, epoch: Epoch, out: &mut Vec<Action>) {
        if let State::Primary(p) = &mut self.state
            && let Some(log) = p.log.as_mut().filter(|log| log.invalidated.is_none() && epoch >= log.first)
        {
            log.held = log.held.max(Some(epoch));
            self.settle(out);
        }
    }

    pub(super) fn log_lost(&mut self, noted: bool, out: &mut Vec<Action>) {
        let known = noted || !self.rules.invalidate_a_lost_log;
        let last = self.last_proposal;
        if let State::Primary(p) = &mut self.state {
            if known {
                p.log = None;
            } else {
                // One that output did not wait for is not known here. It would be believed all the same.
                let log = p.log.get_or_insert(Log { first: Epoch(0), held: None, free: true, invalidated: None });
                // It may speak of all that was proposed up to now.
                log.invalidated = Some(last);
            }
            self.settle(out);
        }
    }

    pub(super) fn acked(&mut self, session: Term, epoch: Epoch, out: &mut Vec<Action>) {
        if let State::Primary(p) = &mut self.state
            && let Some(s) = p.sessions.iter_mut().find(|s| s.name == session && s.is_live())
            && s.first.is_some_and(|first| epoch >= first)
        {
            s.acked = s.acked.max(Some(epoch));
            self.settle(out);
        }
    }

    pub(super) fn doubt(&mut self, out: &mut Vec<Action>) {
        let (last, rules) = (self.last_proposal, self.rules);
        if let State::Primary(p) = &mut self.state
            && rules.ask_when_in_doubt
        {
            // An answer that is under way may have been given before.
            p.doubt = Some(last);
            p.sessions.iter_mut().for_each(|s| s.sure = false);
            self.settle(out);
        }
    }

    pub(super) fn sure(&mut self, session: Term, out: &mut Vec<Action>) {
        if let State::Primary(p) = &mut self.state
            && p.doubts()
            && let Some(s) = p.sessions.iter_mut().find(|s| s.name == session && s.is_live())
        {
            s.sure = true;
            self.settle(out);
        }
    }

    pub(super) fn session_lost(&mut self, session: Term, reason: String, out: &mut Vec<Action>) {
        let State::Primary(p) = &mut self.state else {
            return;
        };
        let Some(i) = p.sessions.iter().position(|s| s.name == session && s.is_live()) else {
            return;
        };
        // A copy that fails while nothing waits for it has its own event.
        if p.sessions[i].is_wanted() && p.waits_for_backups() {
            let backup = Some(p.sessions[i].backup.clone());
            out.push(Action::Emit(EventKind::BackupLost { backup, reason: reason.clone() }));
        }
        p.sessions[i].end = End::Lost { reason };
        self.settle(out);
    }

    pub(super) fn switchover(&mut self, to: Option<HostName>, reason: String, out: &mut Vec<Action>) {
        let State::Primary(p) = &mut self.state else {
            out.push(Action::Refuse(Refused::NotHere));
            return;
        };
        if p.handover.is_some() || p.stopping.is_some() {
            out.push(Action::Refuse(if p.stopping.is_some() { Refused::Stopping } else { Refused::HandingOver }));
            return;
        }
        let suits = |s: &&Session| p.phase(s) == Phase::Bound && to.as_ref().is_none_or(|to| *to == s.backup);
        let Some(s) = p.sessions.iter().find(suits) else {
            out.push(Action::Refuse(Refused::NoBackup { named: to }));
            return;
        };
        out.push(Action::Emit(EventKind::SwitchoverStarted { to: s.backup.clone(), reason: reason.clone() }));
        out.push(Action::TakeFinalCheckpoint);
        p.handover = Some(Handover { to: s.name, reason, last: None, relinquished: false });
    }

    pub(super) fn final_taken(&mut self, epoch: Epoch, out: &mut Vec<Action>) {
        if let State::Primary(p) = &mut self.state
            && let Some(handover) = &mut p.handover
            && handover.last.is_none()
        {
            handover.last = Some(epoch);
            self.settle(out);
        }
    }

    /// Ends the VM. The backups hear of it when the witness has released them, not before, so that they have no cause to take
    /// over.
    pub(super) fn stop(&mut self, reason: String, out: &mut Vec<Action>) {
        let State::Primary(p) = &mut self.state else {
            out.push(Action::Refuse(Refused::NotHere));
            return;
        };
        p.stopping.get_or_insert(reason.clone());
        self.part(&reason, out);
    }

    /// Ends all sessions, in the same way; the VM goes on.
    pub(super) fn part(&mut self, reason: &str, out: &mut Vec<Action>) {
        let State::Primary(p) = &mut self.state else {
            return;
        };
        p.opening = None;
        for s in p.sessions.iter_mut().filter(|s| s.is_wanted()) {
            s.end = End::Parting { reason: reason.into() };
        }
        self.settle(out);
    }

    pub(super) fn machine_lost(&mut self, reason: String, out: &mut Vec<Action>) {
        let State::Primary(p) = &mut self.state else {
            return;
        };
        // A binding may have been granted without our knowing: let that backup try, too.
        let heirs = p.sessions.iter().filter(|s| s.is_live() && p.may_claim(s));
        out.extend(heirs.map(|s| Action::SendRelinquish { session: s.name, reason: reason.clone() }));
        let heirs = p.sessions.iter().any(|s| s.is_live() && p.is_bound(s));
        let (record, term, stopping) = (p.record.clone(), p.record.term, p.stopping.take());
        let invalidated = p.log.as_ref().and_then(|log| log.invalidated);
        let asked = p.pending.take().filter(|asked| asked.sent);
        match (stopping, asked) {
            (Some(stopping), asked) => {
                self.stand_down(term, &reason, out);
                let asked = asked.unwrap_or_else(|| self.release_all(record, out));
                self.stop_gone(Gone { asked, stopping: Some(stopping), reason, invalidated }, out);
            }
            (None, Some(asked)) if heirs && asked.new.is_alone() => {
                self.stand_down(term, &reason, out);
                self.state = State::Gone(Gone { asked, stopping: None, reason, invalidated });
            }
            (None, _) if heirs => self.stand_down(term, &reason, out),
            (None, _) => {
                out.push(Action::StandDown);
                out.push(Action::Emit(EventKind::Lost { reason }));
                self.state = State::Standby;
            }
        }
    }

    /// `lost`: what the witness holds instead of what was proposed.
    pub(super) fn primary_answer(&mut self, lost: Option<Option<Record>>, out: &mut Vec<Action>) {
        let State::Primary(p) = &mut self.state else {
            return;
        };
        let Some(Proposal { id, new, .. }) = p.pending.take() else {
            return;
        };
        if let Some(current) = lost {
            let term = current.map_or(Term(0), |r| r.term);
            self.stand_down(term, "the witness names another primary", out);
            return;
        }
        let before = std::mem::replace(&mut p.record, new);
        p.unused = true;
        p.doubt.take_if(|last| id > *last);
        p.log.take_if(|log| log.invalidated.is_some_and(|last| id > last));
        for s in p.sessions.iter().filter(|s| s.is_wanted() && p.is_bound(s)) {
            let first = !before.binds(&s.backup, s.name);
            out.push(Action::SendBound { session: s.name, record: p.record.clone(), first });
        }
        self.settle(out);
    }

    /// Does what follows from the state, whatever has changed in it.
    fn settle(&mut self, out: &mut Vec<Action>) {
        self.forget_sessions(out);
        self.check_handover(out);
        self.open_session(out);
        self.propose(out);
    }

    /// Sessions that are over and that nobody can claim from any more; then the gate.
    fn forget_sessions(&mut self, out: &mut Vec<Action>) {
        let rules = self.rules;
        let State::Primary(p) = &mut self.state else {
            return;
        };
        let mut why = None;
        for s in std::mem::take(&mut p.sessions) {
            let over = match &s.end {
                End::No => None,
                End::Parting { reason } if !p.may_claim(&s) => {
                    out.push(Action::CloseSession { session: s.name });
                    Some(reason)
                }
                End::Lost { reason } if !p.may_claim(&s) || !rules.win_before_speaking_alone => Some(reason),
                End::Parting { .. } | End::Lost { .. } => None,
            };
            match over {
                Some(reason) => why = Some(reason.clone()),
                None => p.sessions.push(s),
            }
        }
        // A log that is believed would bring back what was stopped.
        if p.nobody_may_claim()
            && !p.invalidates()
            && let Some(reason) = p.stopping.take()
        {
            out.push(Action::StandDown);
            out.push(Action::Emit(EventKind::Stopped { reason }));
            self.state = State::Standby;
            return;
        }
        if p.is_confirmed() {
            p.doubt = None;
        }
        match p.allowed(rules) {
            Some(epoch)
                if p.holding && epoch > p.released && !p.doubts() && p.sessions.iter().all(Session::is_live) =>
            {
                p.released = epoch;
                out.push(Action::Release { epoch });
            }
            None if p.holding => {
                p.holding = false;
                out.push(Action::OpenGate);
            }
            _ => {}
        }
        // Also when another backup is being synced.
        if let Some(reason) = why.filter(|_| !p.waits_for_backups()) {
            out.push(Action::Emit(EventKind::Unprotected { term: p.record.term, reason }));
        }
    }

    fn check_handover(&mut self, out: &mut Vec<Action>) {
        let State::Primary(p) = &mut self.state else {
            return;
        };
        let Some(handover) = &mut p.handover else {
            return;
        };
        match p.sessions.iter().find(|s| s.name == handover.to) {
            // The witness has released the backup that was to have the VM: nothing has come of it.
            None => {
                p.handover = None;
                out.push(Action::GoOn);
            }
            Some(s) => {
                let heard = handover.last.is_some_and(|last| last <= p.released);
                if heard && s.is_wanted() && !handover.relinquished {
                    handover.relinquished = true;
                    out.push(Action::SendRelinquish { session: s.name, reason: handover.reason.clone() });
                }
            }
        }
    }

    fn open_session(&mut self, out: &mut Vec<Action>) {
        let State::Primary(p) = &mut self.state else {
            return;
        };
        if !p.unused && self.rules.one_session_a_term {
            return;
        }
        let Some(peer) = p.opening.take() else {
            return;
        };
        p.unused = false;
        let session = p.record.term;
        p.sessions.push(Session::open(session, peer.clone()));
        out.push(Action::OpenSession { session, peer: peer.clone() });
        out.push(Action::Emit(EventKind::SyncStarted { backup: peer }));
    }

    /// Asks the witness for what differs, or for a new term if that is all that is needed.
    fn propose(&mut self, out: &mut Vec<Action>) {
        let (id, rules) = (self.last_proposal + 1, self.rules);
        let State::Primary(p) = &mut self.state else {
            return;
        };
        if p.pending.is_some() {
            return;
        }
        let backups = p.should_bind();
        if backups == p.record.backups && p.opening.is_none() && !p.invalidates() && !p.doubts() {
            return;
        }
        let new = p.record.bound(backups);
        p.pending = Some(Proposal::begin(id, Some(p.record.clone()), new, rules, out));
        self.last_proposal = id;
    }
}
