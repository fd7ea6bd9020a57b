//! Who may run a VM and who may speak for it.
//!
//! A pure state machine: no sockets, no clock, no threads. The keeper drives it with real input, the model checker
//! (`tests/model.rs`) explores it, and both run this very code.
//!
//! ```text
//!                 Start                                     Offer
//!   ┌──────────┐ ──────► Starting ─Won─► PRIMARY   ┌──────┐ ──────► ┌────────┐
//!   │ STANDBY  │ ◄─Lost────┘                       │STANDBY│         │ BACKUP │◄─┐ CheckpointHeld / ack
//!   └──────────┘                                   └──────┘ ◄─────── └────────┘──┘
//!        ▲                                             ▲  nothing held   │ PrimaryLost, a checkpoint is held
//!        │ lost a swap, VM ended                       │                 ▼
//!   ┌────┴────────────── PRIMARY ───────────────┐      └──────Lost── Claiming ──Won──► PRIMARY (alone)
//!   │                                           │
//!   │  Alone ──► (Renewing) ──► Syncing         │   Alone, Renewing, Syncing: the gate is open
//!   │   ▲  ▲                      │ FirstCheckpoint
//!   │   │  └──── SessionLost ─────┤             │
//!   │   │                         ▼             │   Binding, Bound, Unbinding: output is held; what the
//!   │   │     (nothing asked)  Binding          │   backup has acknowledged is released, if the session lives
//!   │   │◄──── SessionLost ───────┤ Acked, Won  │
//!   │   │                         ▼             │
//!   │   └─Won── Unbinding ◄──── Bound           │
//!   │               │  SessionLost, Stop, …     │
//!   └───────────────┼───────────────────────────┘
//!                   └─Lost─► STANDBY (stand down)
//! ```
//!
//! **Sessions are terms.** A replication session is named by the term at which it was opened, and a term names at most
//! one session: after a session that failed the primary takes a new term (`Renewing`) before it opens another. Session
//! `s` is opened under the record `(s, P, –, unsynced)`, is bound by `(s+1, P, B, synced)` and can be claimed by the
//! backup with exactly one record, `(s+2, B, –, unsynced)`. So a backup that holds a checkpoint of session `s` knows
//! the one record from which it may take over, and whatever else the witness holds means that it may not.
//!
//! A session's messages travel over connections between two living processes: what was sent to a backup that has
//! restarted since never reaches its successor (TCP, and TLS where it is used, see to that), and a backup accepts each
//! session once. So an old session cannot be played again into a backup that the witness has bound since.
//!
//! **The rules**, each of which the model checker misses when it is switched off ([`Rules`]):
//!
//! * output is held from the first checkpoint of a session on, before the witness is asked to bind the backup;
//! * held output of an epoch is released when the backup has acknowledged that epoch;
//! * a primary that loses its session after it asked for the binding wins the witness before it releases more;
//! * a backup wins the witness before it resumes;
//! * a backup acknowledges only whole checkpoints, in order, and none once it has begun to claim;
//! * a session has a term of its own.
//!
//! Proposals to the witness are answered exactly once from this machine's point of view: the shell repeats an
//! unanswered one until it has an answer, which is safe (see [`Record`]).

mod primary;

use ninefold_model::event::EventKind;
use ninefold_model::spec::Protection;
use ninefold_model::status::{ProtectionState, Role};
use ninefold_model::{Epoch, HostName, Record, Term};

pub use primary::Phase;
use primary::{Primary, Then};

/// Names a proposal, so that an answer to an abandoned one is not taken for another's.
pub type ProposalId = u32;

/// What the shell tells the machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// The owner asks to boot the VM here; `found` is the record that the witness holds now.
    Start { found: Option<Record>, force: bool },
    /// The witness answered proposal `id`.
    Answer { id: ProposalId, outcome: Outcome },
    /// The owner asks for a level of protection.
    Want(Protection),
    /// (Primary) `peer` is connected and willing to be the backup.
    PeerAvailable { peer: HostName },
    /// (Primary) The first whole checkpoint of the session is about to be taken: the guest is paused.
    FirstCheckpoint { session: Term },
    /// (Primary) The backup holds this epoch.
    Acked { session: Term, epoch: Epoch },
    /// (Primary) The session is gone: connection closed, peer silent, peer refused.
    SessionLost { session: Term, reason: String },
    /// (Primary) The owner, or the state of the uplink, asks to hand the VM over.
    Switchover { reason: String },
    /// (Primary) The final checkpoint of a switchover is acknowledged: the guest is still and the backup has it all.
    FinalAcked { session: Term },
    /// (Primary) The VM was stopped by its owner or has shut itself down.
    Stop { reason: String },
    /// (Primary) QEMU is gone.
    MachineLost { reason: String },
    /// (Backup) A primary offers a session.
    Offer { from: HostName, session: Term },
    /// (Backup) A whole and checked checkpoint is in memory.
    CheckpointHeld { session: Term, epoch: Epoch },
    /// (Backup) The primary says that the witness bound us.
    BoundNotice { session: Term },
    /// (Backup) The primary is silent, its connection closed, or it said that it has stopped.
    PrimaryLost { session: Term, reason: String },
    /// The witness was read and holds this.
    Observed(Record),
}

/// The witness's answer to a proposal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The register holds the proposed record.
    Won,
    /// The register holds something else.
    Lost(Option<Record>),
}

/// What the shell is to do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Ask the witness to replace `expected` by `new`; repeat until answered.
    Propose { id: ProposalId, expected: Option<Record>, new: Record },
    /// Boot the VM from its image; output passes at once.
    Boot,
    /// Resume the VM from the checkpoint held; output passes at once.
    ResumeFrom { epoch: Epoch },
    /// Hold output from now on (the guest is paused).
    Hold,
    /// Release the output of all epochs up to this one.
    Release { epoch: Epoch },
    /// Release all that is held, in order, and hold no more. If the guest is still paused for a switchover that
    /// failed, let it run.
    OpenGate,
    /// Open a session to `peer`: copy the VM while it runs, then take the first checkpoint.
    OpenSession { session: Term, peer: HostName },
    /// (Primary) Close the session's connections.
    CloseSession { session: Term },
    /// (Primary) Take a last checkpoint and leave the guest paused.
    TakeFinalCheckpoint { session: Term },
    /// (Primary) Tell the backup that the witness has bound it.
    SendBound { session: Term },
    /// (Primary) Tell the backup that this VM has stopped: it should take over now.
    SendRelinquish { session: Term, reason: String },
    /// (Backup) Accept the session; forget any checkpoint of an earlier one.
    AcceptSession { session: Term },
    /// (Backup) Refuse the session.
    RefuseSession { session: Term, reason: String },
    /// (Backup) Acknowledge.
    SendAck { session: Term, epoch: Epoch },
    /// End whatever of the VM is here (QEMU, checkpoint, session), muted, and become a fresh standby.
    StandDown,
    /// The owner's request cannot be carried out.
    Refuse { reason: String },
    /// Tell the world.
    Emit(EventKind),
}

/// The rules, switchable only so that the model checker can show what each is for.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rules {
    pub hold_from_first_checkpoint: bool,
    pub release_only_acked: bool,
    pub win_before_speaking_alone: bool,
    pub win_before_resuming: bool,
    pub ack_in_order: bool,
    pub no_ack_while_claiming: bool,
    pub one_session_a_term: bool,
    pub say_when_unprotected: bool,
}

impl Rules {
    pub const ALL: Self = Self {
        hold_from_first_checkpoint: true,
        release_only_acked: true,
        win_before_speaking_alone: true,
        win_before_resuming: true,
        ack_in_order: true,
        no_ack_while_claiming: true,
        one_session_a_term: true,
        say_when_unprotected: true,
    };
}

/// The protocol of one VM at one host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Protocol {
    me: HostName,
    wanted: Protection,
    last_proposal: ProposalId,
    /// The newest session accepted here as a backup, so that an old one cannot be played again.
    newest_session: Term,
    rules: Rules,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    Standby,
    Starting { proposal: ProposalId, new: Record },
    Backup(Backup),
    Claiming { proposal: ProposalId, new: Record, backup: Backup, epoch: Epoch },
    Primary(Primary),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Backup {
    session: Term,
    primary: HostName,
    held: Option<Epoch>,
    bound: bool,
}

impl Backup {
    /// The one record from which this backup may take over.
    fn claimable(&self, me: &HostName) -> Record {
        Record { term: self.session.next(), primary: self.primary.clone(), backup: Some(me.clone()), synced: true }
    }
}

impl Protocol {
    /// A standby.
    pub fn new(me: HostName, wanted: Protection) -> Self {
        Self::with_rules(me, wanted, Rules::ALL)
    }

    #[doc(hidden)]
    pub fn with_rules(me: HostName, wanted: Protection, rules: Rules) -> Self {
        Self { me, wanted, last_proposal: 0, newest_session: Term(0), rules, state: State::Standby }
    }

    /// A standby whose proposals are numbered from `first` on (so that a restarted one is not confused with its
    /// former self).
    #[doc(hidden)]
    pub fn numbered_from(mut self, first: ProposalId) -> Self {
        self.last_proposal = first;
        self
    }

    /// Forgets what is here and becomes a standby; what would be mistaken for new otherwise is remembered. For a shell that
    /// cannot do what it was told to.
    pub fn abandon(&mut self) {
        self.state = State::Standby;
    }

    pub fn role(&self) -> Role {
        match &self.state {
            State::Standby | State::Starting { .. } => Role::Standby,
            State::Backup(_) | State::Claiming { .. } => Role::Backup,
            State::Primary(_) => Role::Primary,
        }
    }

    pub fn wanted(&self) -> Protection {
        self.wanted
    }

    /// Whether the VM would survive the loss of its primary; known to the primary only.
    pub fn protection(&self) -> Option<ProtectionState> {
        match &self.state {
            State::Primary(p) => Some(p.protection(self.wanted)),
            _ => None,
        }
    }

    /// The newest term known here.
    pub fn term(&self) -> Term {
        match &self.state {
            State::Standby => Term(0),
            State::Starting { new, .. } | State::Claiming { new, .. } => new.term,
            State::Backup(b) => b.session,
            State::Primary(p) => p.record.term,
        }
    }

    /// The other host of the running session.
    pub fn peer(&self) -> Option<&HostName> {
        match &self.state {
            State::Standby | State::Starting { .. } => None,
            State::Backup(b) | State::Claiming { backup: b, .. } => Some(&b.primary),
            State::Primary(p) => p.backup(),
        }
    }

    /// The running session, by its name.
    pub fn session(&self) -> Option<Term> {
        match &self.state {
            State::Backup(b) => Some(b.session),
            State::Primary(p) => p.session(),
            _ => None,
        }
    }

    /// The phase of a primary.
    pub fn phase(&self) -> Option<&Phase> {
        match &self.state {
            State::Primary(p) => Some(&p.phase),
            _ => None,
        }
    }

    /// Whether a primary here could use a backup.
    pub fn wants_peer(&self) -> bool {
        matches!(&self.state, State::Primary(p)
            if p.phase == Phase::Alone && self.wanted == Protection::FaultTolerant)
    }

    /// Whether a claim or another proposal is waiting for the witness.
    pub fn awaits_witness(&self) -> bool {
        match &self.state {
            State::Starting { .. } | State::Claiming { .. } => true,
            State::Primary(p) => p.awaits_witness(),
            _ => false,
        }
    }

    fn next_proposal(&mut self) -> ProposalId {
        self.last_proposal += 1;
        self.last_proposal
    }

    /// Takes one input; appends what is to be done, in order.
    pub fn handle(&mut self, input: Input, out: &mut Vec<Action>) {
        match input {
            Input::Start { found, force } => self.start(found, force, out),
            Input::Answer { id, outcome } => self.answer(id, outcome, out),
            Input::Want(wanted) => {
                self.wanted = wanted;
                if wanted == Protection::None {
                    self.part(Then::GoOn, "protection was switched off", out);
                }
            }
            Input::Offer { from, session } => self.offer(from, session, out),
            Input::CheckpointHeld { session, epoch } => self.checkpoint_held(session, epoch, out),
            Input::BoundNotice { session } => {
                if let State::Backup(b) = &mut self.state
                    && b.session == session
                {
                    b.bound = true;
                }
            }
            Input::PrimaryLost { session, reason } => self.primary_lost(session, reason, out),
            Input::Observed(record) => self.observed(record, out),
            Input::PeerAvailable { .. }
            | Input::FirstCheckpoint { .. }
            | Input::Acked { .. }
            | Input::SessionLost { .. }
            | Input::Switchover { .. }
            | Input::FinalAcked { .. }
            | Input::Stop { .. }
            | Input::MachineLost { .. } => self.primary_input(input, out),
        }
    }

    fn start(&mut self, found: Option<Record>, force: bool, out: &mut Vec<Action>) {
        if self.state != State::Standby {
            out.push(Action::Refuse { reason: format!("the VM is already here ({:?})", self.role()) });
            return;
        }
        let new = match &found {
            None => Record::boot(self.me.clone()),
            // We were its only keeper and have nothing of it: it is gone, nobody else can have it.
            Some(r) if (r.primary == self.me && !r.synced) || force => r.alone(self.me.clone()),
            Some(r) => {
                let holder = match &r.backup {
                    Some(b) if r.synced => format!("{} runs it or {b} may take it over", r.primary),
                    _ => format!("{} runs it", r.primary),
                };
                let reason = format!("the witness says that {holder} (term {})", r.term);
                out.push(Action::Refuse { reason });
                return;
            }
        };
        let proposal = self.next_proposal();
        out.push(Action::Propose { id: proposal, expected: found, new: new.clone() });
        self.state = State::Starting { proposal, new };
    }

    fn answer(&mut self, id: ProposalId, outcome: Outcome, out: &mut Vec<Action>) {
        match &self.state {
            State::Starting { proposal, new } if *proposal == id => match outcome {
                Outcome::Won => {
                    let record = new.clone();
                    out.push(Action::Boot);
                    out.push(Action::Emit(EventKind::Booted { term: record.term }));
                    self.state = State::Primary(Primary::alone(record));
                }
                Outcome::Lost(_) => {
                    out.push(Action::Refuse { reason: "another host was faster".into() });
                    self.state = State::Standby;
                }
            },
            State::Claiming { proposal, new, epoch, .. } if *proposal == id => match outcome {
                Outcome::Won => {
                    let (record, epoch) = (new.clone(), *epoch);
                    out.push(Action::ResumeFrom { epoch });
                    self.state = State::Primary(Primary::alone(record));
                }
                Outcome::Lost(current) => {
                    let term = current.map_or(Term(0), |r| r.term);
                    self.stand_down(term, "the witness did not grant the take-over", out);
                }
            },
            State::Primary(_) => self.primary_answer(id, outcome, out),
            _ => {}
        }
    }

    fn offer(&mut self, from: HostName, session: Term, out: &mut Vec<Action>) {
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
        self.state = State::Backup(Backup { session, primary: from, held: None, bound: false });
        out.push(Action::AcceptSession { session });
    }

    fn checkpoint_held(&mut self, session: Term, epoch: Epoch, out: &mut Vec<Action>) {
        let in_order = self.rules.ack_in_order;
        let backup = match &mut self.state {
            State::Backup(b) => b,
            State::Claiming { backup, .. } if !self.rules.no_ack_while_claiming => backup,
            _ => return,
        };
        if backup.session != session || (in_order && epoch != backup.held.unwrap_or_default().next()) {
            return;
        }
        let first = backup.held.is_none();
        backup.held = Some(epoch);
        out.push(Action::SendAck { session, epoch });
        if first {
            out.push(Action::Emit(EventKind::BackupReady { primary: backup.primary.clone(), epoch }));
        }
    }

    fn primary_lost(&mut self, session: Term, reason: String, out: &mut Vec<Action>) {
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
        let expected = backup.claimable(&self.me);
        let new = expected.alone(self.me.clone());
        if !self.rules.win_before_resuming {
            out.push(Action::ResumeFrom { epoch });
            self.state = State::Primary(Primary::alone(new));
            return;
        }
        let proposal = self.next_proposal();
        out.push(Action::Propose { id: proposal, expected: Some(expected), new: new.clone() });
        self.state = State::Claiming { proposal, new, backup, epoch };
    }

    /// The witness holds `record`, which we read rather than proposed. Only a newer term that names another primary
    /// matters: it means that an operator forced the VM away from here, or that our claim or session is void.
    fn observed(&mut self, record: Record, out: &mut Vec<Action>) {
        let obsolete = match &self.state {
            State::Primary(p) => record.term > p.record.term && record.primary != self.me,
            // From session s, the records up to s+1 are the session's own.
            State::Backup(b) => record.term > b.session.next(),
            _ => false,
        };
        if obsolete {
            let reason = format!("the witness names {} in term {}", record.primary, record.term);
            self.stand_down(record.term, &reason, out);
        }
    }

    fn stand_down(&mut self, term: Term, reason: &str, out: &mut Vec<Action>) {
        out.push(Action::StandDown);
        out.push(Action::Emit(EventKind::StoodDown { term, reason: reason.into() }));
        self.state = State::Standby;
    }
}
