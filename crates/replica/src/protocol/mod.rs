//! Who may run a VM and who may speak for it.
//!
//! A pure state machine: no sockets, no clock, no threads. The keeper drives it with real input, the model checker
//! (`tests/model.rs`) explores it, and both run this very code.
//!
//! ```text
//!                 Start                                  Offer
//!   ┌──────────┐ ──────► Starting ─Won─► PRIMARY   ┌─────────┐ ──────► ┌────────┐
//!   │ STANDBY  │ ◄─Lost────┘                       │ STANDBY │         │ BACKUP │◄─┐ CheckpointHeld / ack
//!   └──────────┘                                   └─────────┘ ◄────── └────────┘──┘
//!        ▲                                          ▲   nothing held     │ PrimaryLost, a checkpoint is held
//!        │ lost a swap, VM ended                    │                    ▼
//!   ┌────┴──── PRIMARY ─────────┐                   └────Lost──────── Claiming ──Won──► PRIMARY (alone)
//!   │ a session with each backup│                                      ▲    │ Lost, and the record shown still binds
//!   └───────────────────────────┘                                      ├────┘ this session: again, from that record
//!                                                                      │
//!                                       Lost to another backup ──► Spare: it gives back, and binds this session
//!
//!   each session of a primary (`session.rs`):
//!
//!     OpenSession ──► Syncing ──FirstCheckpoint──► Binding ──Acked, Won──► Bound
//!                        │                            │                      │ SessionLost, Stop, …
//!                        ▼ SessionLost                ▼ nothing asked        ▼
//!                       over                         over ◄──────Won──── Unbinding
//! ```
//!
//! **The gate.** While no session is past its first checkpoint, output leaves at once. From the first checkpoint of the first
//! session on it is held, and the output of an epoch leaves when *every* backup that may take over, or may have been
//! allowed to without our knowing yet, has acknowledged it. A backup counts from the first checkpoint of its session on;
//! it ceases to count when the witness has said that it is not in the record (or was never asked to put it there).
//!
//! **The record.** At most one proposal of a primary is unanswered. When it is answered, the primary compares whom the
//! record binds with whom it should bind, and proposes what differs, all at once: whoever was lost goes, whoever holds a
//! first checkpoint comes. A lost proposal means that another host has the VM: this one stands down.
//!
//! **What an answer proves.** Only a record that is newer than all that this host knows, and that names another, ends what is
//! here. A witness that knows nothing of the VM, shows a term that it had left behind, or refuses has lost what it knew or is
//! none: its answer is said and asked for again, as if it had not come ([`Protocol::disbelieves`]).
//!
//! **Sessions are terms.** A replication session is named by a term at which its primary was the primary, and a term names at
//! most one session: a primary that has used its term takes a new one before it opens another session. A record binds
//! pairs of host and session. So whatever record a backup sees, it can tell whether it may take over from it: it may if the
//! record binds it with that session, and then from that record only. Any other record,
//! also a later one in which the same primary has bound it again, does not speak of the checkpoint that it holds.
//!
//! **A winner that cannot go on.** See [`give_back`]. **A primary whose QEMU dies while it releases its backups.** See [`gone`].
//! **A VM that is no more.** See [`retired`].
//!
//! **Doubt.** A primary that stood still, or that hears late, may have been replaced without having noticed. It then releases
//! nothing and asks the witness for the same backups in another term. If it wins, none of them had taken over when the witness
//! answered, and it goes on as if nothing had been: its sessions are the same. (A claim that is under way finds another
//! record, which still binds its session, and is made again from that.) It may as well go on when each backup that may claim
//! has acknowledged what was sent after the doubt arose.
//!
//! **The log.** A VM may be logged: its host then keeps its checkpoints on disk, and the log counts like a backup: from its
//! first checkpoint on output waits for it, too. A backup of such a VM acknowledges only what its own log has. So whatever was
//! let go is in the log of every host that the record names, and after a loss of power each of them may go on from its log,
//! once it has won the record that follows ([`LogStanding::allows`]): a former primary as if its backups had been lost, a former
//! backup as if its primary had.
//!
//! A session's messages travel over connections between two living processes: what was sent to a backup that has
//! restarted since never reaches its successor (TCP, and TLS where it is used, see to that), and a backup accepts each
//! session once. So an old session cannot be played again into a backup that the witness has bound since.
//!
//! **The rules**, each of which the model checker misses when it is switched off ([`Rules`]):
//!
//! * output is held from the first checkpoint of a session on, before the witness is asked to bind the backup;
//! * held output of an epoch is released when every backup that counts has acknowledged that epoch;
//! * a backup counts from its first checkpoint on, not only when the witness has answered;
//! * a primary that loses a session after it asked for the binding wins the witness before it releases more;
//! * a backup wins the witness before it resumes;
//! * a backup claims only from a record that binds the session in which it holds its checkpoint, and that it has seen;
//! * a backup acknowledges only whole checkpoints, in order, and none once it has begun to claim;
//! * a primary in doubt releases nothing until it knows that it has not been replaced;
//! * a session has a term of its own;
//! * a log that counts is waited for;
//! * a host goes on only from a log that allows for the record, and notes in it what it proposes;
//! * only a newer record that names another ends a VM;
//! * who has won the VM and cannot go on gives it back to those that were bound in the record from which it has claimed, to nobody
//!   else, and not once its guest has run;
//! * what this host proposes is noted in its log first, and who has given up meanwhile proposes nothing;
//! * what was asked for may be granted as long as no record of its term, or of a later one, is seen.
//!
//! Proposals to the witness are answered exactly once from this machine's point of view: the shell repeats an
//! unanswered one until it has an answer, which is safe (see [`Record`]).

mod backup;
mod give_back;
mod gone;
mod log_standing;
mod primary;
mod refused;
mod release;
mod retired;
mod session;

use ninefold_model::event::EventKind;
use ninefold_model::spec::Protection;
use ninefold_model::status::{ProtectionState, Role};
use ninefold_model::{Epoch, HostName, Record, Term};

use backup::Backup;
use give_back::{GivingBack, Spare};
use gone::Gone;
pub use log_standing::{LogRole, LogStanding};
use primary::Primary;
pub use refused::Refused;
pub use release::ReleasePolicy;
pub use session::{Phase, Session};

/// Names a proposal, so that an answer to an abandoned one is not taken for another's.
pub type ProposalId = u32;

/// What the owner wants of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Wanted {
    pub protection: Protection,
    /// How many backups it shall have when it is protected: 1 to [`MAX_BACKUPS`](ninefold_model::record::MAX_BACKUPS).
    pub backups: usize,
}

impl Wanted {
    /// How many backups there should be.
    pub fn count(self) -> usize {
        match self.protection {
            Protection::None => 0,
            Protection::FaultTolerant => self.backups.clamp(1, ninefold_model::record::MAX_BACKUPS),
        }
    }
}

/// What the shell tells the machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    /// The owner asks to boot the VM here; `found` is the record that the witness holds now.
    Start { found: Option<Record>, force: bool },
    /// The same for a VM that is not booted: it is loaded from a snapshot.
    StartLoaded { found: Option<Record>, force: bool },
    /// What has to come before proposal `id` is done: see [`Action::Prepare`].
    Prepared { id: ProposalId },
    /// The witness answered proposal `id`.
    Answer { id: ProposalId, outcome: Outcome },
    /// The owner asks for a level of protection.
    Want(Wanted),
    /// (Primary) Go on without a backup for now: the VM's QEMU is to be launched anew. [`Protocol::is_alone`] tells when.
    Part { reason: String },
    /// (Primary) `peer` is connected and willing to be a backup.
    PeerAvailable { peer: HostName },
    /// (Primary) `epoch` ends and its checkpoint will be the session's first; the guest is paused. Epochs grow for as long
    /// as output is held; when it is not they may begin anew.
    FirstCheckpoint { session: Term, epoch: Epoch },
    /// (Primary) The backup holds this epoch.
    Acked { session: Term, epoch: Epoch },
    /// (Primary) This host stood still, or hears its backups late: one of them may have taken the VM over meanwhile.
    Doubt,
    /// (Primary) This backup has answered what was sent after the doubt had arisen: it had not begun to claim when it did.
    Sure { session: Term },
    /// (Primary) The session is gone: connection closed, peer silent, peer refused.
    SessionLost { session: Term, reason: String },
    /// (Primary) The owner, or the state of the uplink, asks to hand the VM over: to this host, or to whichever is bound
    /// first.
    Switchover { to: Option<HostName>, reason: String },
    /// (After [`Action::ResumeFrom`]) The guest runs here: from now on this host lets things go.
    Resumed,
    /// (Claiming, or after [`Action::ResumeFrom`]) The checkpoint cannot be resumed from here, for this reason. Its guest has not run
    /// here, and nothing was let go.
    CannotResume { reason: String },
    /// (Primary) The last checkpoint before a switchover is taken: the guest stands still after this epoch.
    FinalTaken { epoch: Epoch },
    /// (Primary) The VM was stopped by its owner or has shut itself down.
    Stop { reason: String },
    /// (Primary) QEMU is gone.
    MachineLost { reason: String },
    /// (Backup) A primary offers a session.
    Offer { from: HostName, session: Term },
    /// (Backup) A whole and checked checkpoint is in memory. `first` of its session: it needs none before it.
    CheckpointHeld { session: Term, epoch: Epoch, first: bool },
    /// (Backup) The primary says that it has won this record, and that it binds us.
    BoundNotice { session: Term, record: Record },
    /// (Backup) The primary is silent, its connection closed, or it said that it has stopped.
    PrimaryLost { session: Term, reason: String },
    /// The witness was read and holds this.
    Observed(Record),
    /// The witness says, to whatever it was asked, that the VM was retired, and that its end is of this term.
    Retired { term: Term },
    /// (Standby) A log is here that ends with checkpoint `epoch`, and it is loaded; the witness holds `record`.
    Recover { standing: LogStanding, epoch: Epoch, record: Record },
    /// (Primary) `epoch` ends and its checkpoint will be the log's first, or the first that follows what the log holds: from
    /// here on output waits for the log.
    LogFirst { epoch: Epoch },
    /// (Primary) The log has this epoch.
    LogHolds { epoch: Epoch },
    /// (Primary) The log has ended, and it is noted there that it is behind. Unless it is `noted`, the witness has to make it
    /// worthless first, by another term.
    LogLost { noted: bool },
}

/// The witness's answer to a proposal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The register holds the proposed record.
    Won,
    /// The register holds something else.
    Lost(Option<Record>),
    /// The witness will not do it, for this reason, and has changed nothing.
    Refused(String),
}

/// What the shell is to do, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Note in this host's log, if it keeps one, that `new` is about to be proposed, then say [`Input::Prepared`]. A shell that
    /// cannot go on with the VM any more never says it, and gives up: then nothing is proposed.
    Prepare { id: ProposalId, new: Record },
    /// Ask the witness once more: what it has answered proves nothing. After a while, with what was prepared.
    AskAgain { id: ProposalId, expected: Option<Record>, new: Record },
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
    /// Release all that is held, in order, and hold no more.
    OpenGate,
    /// Let the guest run that was paused for a switchover which has failed.
    GoOn,
    /// Open a session to `peer`: copy the VM while it runs, then take the first checkpoint.
    OpenSession { session: Term, peer: HostName },
    /// (Primary) Close the session's connections.
    CloseSession { session: Term },
    /// (Primary) Take a last checkpoint, for all sessions, and leave the guest paused.
    TakeFinalCheckpoint,
    /// (Primary) Tell the backup that the witness has bound it by this record. `first`: it was not bound before, the
    /// others hear of a change.
    SendBound { session: Term, record: Record, first: bool },
    /// (Primary) Tell the backup that this VM has stopped: it should take over now.
    SendRelinquish { session: Term, reason: String },
    /// (Backup) Accept the session; forget any checkpoint of an earlier one.
    AcceptSession { session: Term },
    /// (Backup) Refuse the session.
    RefuseSession { session: Term, reason: String },
    /// (Backup) Acknowledge.
    SendAck { session: Term, epoch: Epoch },
    /// End whatever of the VM is here (QEMU, checkpoint, sessions), muted, and become a fresh standby.
    StandDown,
    /// The owner's request cannot be carried out.
    Refuse(Refused),
    /// Tell the world.
    Emit(EventKind),
}

/// The rules, switchable only so that the model checker can show what each is for.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rules {
    pub hold_from_first_checkpoint: bool,
    pub release_only_acked: bool,
    pub release: ReleasePolicy,
    pub count_before_bound: bool,
    pub win_before_speaking_alone: bool,
    pub win_before_resuming: bool,
    pub claim_own_session: bool,
    pub ack_in_order: bool,
    pub no_ack_while_claiming: bool,
    pub ask_when_in_doubt: bool,
    pub one_session_a_term: bool,
    pub say_when_unprotected: bool,
    pub wait_for_log: bool,
    pub only_allowed_logs: bool,
    pub invalidate_a_lost_log: bool,
    pub end_only_for_another: bool,
    pub prepare_before_asking: bool,
    pub claim_from_what_was: bool,
    pub give_back_before_running: bool,
    pub give_back_to_the_bound: bool,
    pub wait_for_what_was_asked: bool,
}

impl Rules {
    pub const ALL: Self = Self {
        hold_from_first_checkpoint: true,
        release_only_acked: true,
        release: ReleasePolicy::All,
        count_before_bound: true,
        win_before_speaking_alone: true,
        win_before_resuming: true,
        claim_own_session: true,
        ack_in_order: true,
        no_ack_while_claiming: true,
        ask_when_in_doubt: true,
        one_session_a_term: true,
        say_when_unprotected: true,
        wait_for_log: true,
        only_allowed_logs: true,
        invalidate_a_lost_log: true,
        end_only_for_another: true,
        prepare_before_asking: true,
        claim_from_what_was: true,
        give_back_before_running: true,
        give_back_to_the_bound: true,
        wait_for_what_was_asked: true,
    };
}

/// The protocol of one VM at one host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Protocol {
    me: HostName,
    wanted: Wanted,
    last_proposal: ProposalId,
    /// The newest session accepted here as a backup, so that an old one cannot be played again.
    newest_session: Term,
    rules: Rules,
    state: State,
}

/// What the witness is asked for, or is about to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Proposal {
    id: ProposalId,
    expected: Option<Record>,
    new: Record,
    /// It is prepared, and may have reached the witness.
    sent: bool,
}

impl Proposal {
    /// Begins one: it is to be prepared.
    fn begin(id: ProposalId, expected: Option<Record>, new: Record, rules: Rules, out: &mut Vec<Action>) -> Self {
        out.push(Action::Prepare { id, new: new.clone() });
        let mut proposal = Self { id, expected, new, sent: false };
        if !rules.prepare_before_asking {
            proposal.send(out);
        }
        proposal
    }

    fn send(&mut self, out: &mut Vec<Action>) {
        self.sent = true;
        let Self { id, expected, new, .. } = self.clone();
        out.push(Action::Propose { id, expected, new });
    }

    fn ask_again(&self, out: &mut Vec<Action>) {
        let Self { id, expected, new, .. } = self.clone();
        out.push(Action::AskAgain { id, expected, new });
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    Standby,
    /// From nothing, or from what is loaded.
    Starting {
        proposal: Proposal,
        from: Option<Epoch>,
    },
    Backup(Backup),
    Claiming {
        proposal: Proposal,
        backup: Backup,
        epoch: Epoch,
        /// The witness has been asked, and the checkpoint cannot be resumed from any more.
        failed: Option<String>,
    },
    /// Another backup was first: see [`Spare`].
    Spare(Spare),
    Primary(Primary),
    GivingBack(GivingBack),
    /// Nothing of the VM is here any more: see [`Gone`].
    Gone(Gone),
}

impl Protocol {
    /// A standby.
    pub fn new(me: HostName, wanted: Wanted) -> Self {
        Self::with_rules(me, wanted, Rules::ALL)
    }

    #[doc(hidden)]
    pub fn with_rules(me: HostName, wanted: Wanted, rules: Rules) -> Self {
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
            State::Standby | State::Starting { .. } | State::Spare(_) | State::Gone(_) => Role::Standby,
            State::Backup(_) | State::Claiming { .. } => Role::Backup,
            State::Primary(_) | State::GivingBack(_) => Role::Primary,
        }
    }

    pub fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// Whether the VM would survive the loss of its primary; known to the primary only.
    pub fn protection(&self) -> Option<ProtectionState> {
        match &self.state {
            State::Primary(p) => Some(p.protection(self.wanted, self.rules.say_when_unprotected)),
            State::GivingBack(_) => Some(ProtectionState::Unprotected),
            _ => None,
        }
    }

    /// The newest term known here.
    pub fn term(&self) -> Term {
        match &self.state {
            State::Standby | State::Gone(_) => Term(0),
            State::Starting { proposal, .. } | State::Claiming { proposal, .. } => proposal.new.term,
            State::Backup(b) => b.session,
            State::Spare(s) => s.seen,
            State::Primary(p) => p.record.term,
            State::GivingBack(g) => g.proposal.new.term,
        }
    }

    /// The primary that this host is a backup of.
    pub fn primary(&self) -> Option<&HostName> {
        match &self.state {
            State::Backup(b) | State::Claiming { backup: b, .. } => Some(&b.primary),
            _ => None,
        }
    }

    /// The session in which this host is the backup.
    pub fn backing(&self) -> Option<Term> {
        match &self.state {
            State::Backup(b) => Some(b.session),
            _ => None,
        }
    }

    /// A primary's sessions, in the order in which they were opened; also those that are lost and not yet over.
    pub fn sessions(&self) -> &[Session] {
        match &self.state {
            State::Primary(p) => &p.sessions,
            _ => &[],
        }
    }

    /// How far one of a primary's sessions is.
    pub fn phase(&self, session: Term) -> Option<Phase> {
        match &self.state {
            State::Primary(p) => p.session(session).map(|s| p.phase(s)),
            _ => None,
        }
    }

    /// Whether a primary's output leaves at once.
    pub fn speaks_freely(&self) -> bool {
        matches!(&self.state, State::Primary(p) if !p.holding)
    }

    /// Whether a primary has a log that is behind and would be believed: the witness has still to make it worthless.
    pub fn invalidates(&self) -> bool {
        matches!(&self.state, State::Primary(p) if p.invalidates())
    }

    /// Whether a primary does not know whether it has been replaced: it releases nothing until the witness has said that it
    /// has not, or its backups have.
    pub fn doubts(&self) -> bool {
        matches!(&self.state, State::Primary(p) if p.doubts())
    }

    /// Whether this is a primary without a session, and no host may take the VM over.
    pub fn is_alone(&self) -> bool {
        matches!(&self.state, State::Primary(p) if p.sessions.is_empty() && p.nobody_may_claim())
    }

    /// Whether this is a primary in whose place no host may take the VM over: what a backup that is still being synced has counts for
    /// nothing.
    pub fn nobody_may_claim(&self) -> bool {
        matches!(&self.state, State::Primary(p) if p.nobody_may_claim())
    }

    /// Whether a primary here could use another backup.
    pub fn wants_peer(&self) -> bool {
        matches!(&self.state, State::Primary(p) if p.wants_peer(self.wanted))
    }

    /// Whether a claim or another proposal is waiting for the witness.
    pub fn awaits_witness(&self) -> bool {
        match &self.state {
            State::Starting { .. } | State::Claiming { .. } | State::GivingBack(_) => true,
            State::Primary(p) => p.pending.is_some(),
            _ => false,
        }
    }

    /// Whether the VM has ended here and the witness has still to say whether another host may have it.
    pub fn is_gone(&self) -> bool {
        matches!(self.state, State::Gone(_))
    }

    /// Whether the VM is to be stopped, and the witness has still to say that nobody may take it over. Its QEMU may be gone by now.
    pub fn is_stopping(&self) -> bool {
        match &self.state {
            State::Primary(p) => p.is_stopping(),
            State::Gone(g) => g.stopping.is_some(),
            _ => false,
        }
    }

    /// Whether nothing of the VM is here, so that it may come here: as it is loaded, or is booted.
    fn is_free(&self) -> bool {
        match &self.state {
            State::Standby => true,
            State::Gone(g) => g.stopping.is_none(),
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
            Input::Start { found, force } => self.start(found, force, None, out),
            Input::StartLoaded { found, force } => self.start(found, force, Some(Epoch(0)), out),
            Input::Prepared { id } => self.prepared(id, out),
            Input::Answer { id, outcome } => self.answer(id, outcome, out),
            Input::Want(wanted) => self.want(wanted, out),
            Input::Offer { from, session } => self.offer(from, session, out),
            Input::CheckpointHeld { session, epoch, first } => self.checkpoint_held(session, epoch, first, out),
            Input::BoundNotice { session, record } => self.bound_notice(session, record),
            Input::PrimaryLost { session, reason } => self.primary_lost(session, reason, out),
            Input::Observed(record) => self.observed(&record, out),
            Input::Retired { term } => self.retired(term, out),
            Input::Part { reason } => self.part(&reason, out),
            Input::PeerAvailable { peer } => self.peer_available(peer, out),
            Input::FirstCheckpoint { session, epoch } => self.first_checkpoint(session, epoch, out),
            Input::Acked { session, epoch } => self.acked(session, epoch, out),
            Input::Doubt => self.doubt(out),
            Input::Sure { session } => self.sure(session, out),
            Input::SessionLost { session, reason } => self.session_lost(session, reason, out),
            Input::Resumed => self.resumed(),
            Input::CannotResume { reason } => self.cannot_resume(reason, out),
            Input::Switchover { to, reason } => self.switchover(to, reason, out),
            Input::FinalTaken { epoch } => self.final_taken(epoch, out),
            Input::Stop { reason } => self.stop(reason, out),
            Input::MachineLost { reason } => self.machine_lost(reason, out),
            Input::Recover { standing, epoch, record } => self.recover(&standing, epoch, record, out),
            Input::LogFirst { epoch } => self.log_first(epoch, out),
            Input::LogHolds { epoch } => self.log_holds(epoch, out),
            Input::LogLost { noted } => self.log_lost(noted, out),
        }
    }

    /// Whether a switchover is under way.
    pub fn hands_over(&self) -> bool {
        matches!(&self.state, State::Primary(p) if p.handover.is_some())
    }

    /// The record that a primary has asked the witness for, or is about to, and has no answer to.
    pub fn proposed(&self) -> Option<&Record> {
        match &self.state {
            State::Primary(p) => p.pending.as_ref().map(|pending| &pending.new),
            _ => None,
        }
    }

    /// Whether the VM may be this host's without its knowing yet: it has asked the witness for it. Who gives up then leaves a VM
    /// that perhaps nobody has.
    pub fn may_have_won(&self) -> bool {
        match &self.state {
            State::Starting { proposal, from: Some(_) } | State::Claiming { proposal, .. } => proposal.sent,
            // It has, and the others wait for its word.
            State::GivingBack(_) => true,
            _ => false,
        }
    }

    /// Whether this host has won a VM that it could still give back to others.
    pub fn has_heirs(&self) -> bool {
        matches!(&self.state, State::Primary(p) if p.heirs.as_ref().is_some_and(|heirs| !heirs.is_empty()))
    }

    /// Whether a backup here has lost its primary, and asks the witness for the VM or is about to. The primary may be dead.
    pub fn claims(&self) -> bool {
        matches!(self.state, State::Claiming { .. })
    }

    /// Whether this host keeps its checkpoint in case that the one that has won the VM gives it back.
    pub fn is_spare(&self) -> bool {
        matches!(self.state, State::Spare(_))
    }

    /// Whether `record`, which the witness holds, means that another backup has won the VM from this one's primary. The session is over
    /// then, whatever its primary still says.
    pub fn is_overtaken(&self, record: &Record) -> bool {
        matches!(&self.state, State::Backup(b) if b.is_overtaken(&self.me, record))
    }

    /// Whether an answer to this proposal is one to what this host wants now.
    pub fn awaits(&self, id: ProposalId) -> bool {
        let proposal = match &self.state {
            State::Starting { proposal, .. } | State::Claiming { proposal, .. } => Some(proposal),
            State::Primary(p) => p.pending.as_ref(),
            State::GivingBack(g) => Some(&g.proposal),
            State::Gone(g) => Some(&g.asked),
            State::Standby | State::Backup(_) | State::Spare(_) => None,
        };
        proposal.is_some_and(|p| p.id == id)
    }

    /// What this host is about to ask for, or has asked for.
    fn proposal(&mut self) -> Option<&mut Proposal> {
        match &mut self.state {
            State::Starting { proposal, .. } | State::Claiming { proposal, .. } => Some(proposal),
            State::Primary(p) => p.pending.as_mut(),
            State::GivingBack(g) => Some(&mut g.proposal),
            State::Gone(g) => Some(&mut g.asked),
            State::Standby | State::Backup(_) | State::Spare(_) => None,
        }
    }

    fn prepared(&mut self, id: ProposalId, out: &mut Vec<Action>) {
        if let Some(proposal) = self.proposal().filter(|p| p.id == id && !p.sent) {
            proposal.send(out);
        }
    }

    /// The newest term that the register has held, as this host knows.
    fn known_term(&self) -> Option<Term> {
        match &self.state {
            State::Standby => None,
            State::Starting { proposal, .. } => proposal.expected.as_ref().map(|r| r.term),
            State::Backup(b) | State::Claiming { backup: b, .. } => Some(b.known_term()),
            State::Spare(s) => Some(s.seen),
            State::Primary(p) => Some(p.record.term),
            State::GivingBack(g) => Some(g.from.term),
            State::Gone(g) => g.asked.expected.as_ref().map(|r| r.term),
        }
    }

    /// Why nothing follows from it if this is what the witness holds; `None` if it can be believed. Terms only grow and records
    /// are not forgotten: a witness that shows less than it held is not the one that it was.
    pub fn disbelieves(&self, found: Option<&Record>) -> Option<String> {
        let known = self.known_term()?;
        let Some(found) = found else {
            return Some(format!("it has no record of the VM, which was in term {known}"));
        };
        if found.term < known {
            return Some(format!("it names {} in term {}, and was in term {known}", found.primary, found.term));
        }
        let State::Primary(p) = &self.state else { return None };
        let ours = *found == p.record || p.pending.as_ref().is_some_and(|pending| pending.new == *found);
        let another = found.primary != self.me && found.term > known;
        (!ours && !another)
            .then(|| format!("it names {} in term {} by a record that was never won", found.primary, found.term))
    }

    /// The same of its answer to what this host has proposed.
    pub fn disbelieves_answer(&self, outcome: &Outcome) -> Option<String> {
        match outcome {
            Outcome::Won => None,
            Outcome::Lost(found) => self.disbelieves(found.as_ref()),
            Outcome::Refused(reason) => Some(format!("it refuses: {reason}")),
        }
    }

    /// What this host's log is to note of its role before it is proposed to replace the record. A backup's log, and one that is
    /// recovered from, says so already.
    pub fn log_role(&self) -> Option<LogRole> {
        match &self.state {
            State::Primary(p) => Some(LogRole::Primary { record: p.record.clone() }),
            State::Backup(b) | State::Claiming { backup: b, .. } => {
                Some(LogRole::Backup { session: b.session, primary: b.primary.clone() })
            }
            // It has let nothing go under this one, and goes on from its log if nobody else does.
            State::GivingBack(g) => Some(LogRole::Primary { record: g.from.clone() }),
            State::Standby | State::Starting { .. } | State::Spare(_) | State::Gone(_) => None,
        }
    }

    /// Whether this host may go on from a log that says this of itself, while the witness holds `record`.
    pub fn may_recover(&self, standing: &LogStanding, record: &Record) -> bool {
        standing.allows(record, &self.me) || !self.rules.only_allowed_logs
    }

    fn recover(&mut self, standing: &LogStanding, epoch: Epoch, record: Record, out: &mut Vec<Action>) {
        if !self.is_free() || !self.may_recover(standing, &record) {
            out.push(Action::Refuse(Refused::LogSilent { primary: record.primary, term: record.term }));
            return;
        }
        let new = record.alone(self.me.clone());
        let proposal = Proposal::begin(self.next_proposal(), Some(record), new, self.rules, out);
        self.state = State::Starting { proposal, from: Some(epoch) };
    }

    fn start(&mut self, found: Option<Record>, force: bool, from: Option<Epoch>, out: &mut Vec<Action>) {
        match self.may_start(found.as_ref(), force) {
            Ok(new) => {
                let proposal = Proposal::begin(self.next_proposal(), found, new, self.rules, out);
                self.state = State::Starting { proposal, from };
            }
            Err(refused) => out.push(Action::Refuse(refused)),
        }
    }

    /// What would be proposed to start the VM here, while the witness holds `found`.
    ///
    /// # Errors
    /// Why it would be refused.
    pub fn may_start(&self, found: Option<&Record>, force: bool) -> Result<Record, Refused> {
        self.check_free()?;
        match found {
            None => Ok(Record::boot(self.me.clone())),
            // We were its only keeper and have nothing of it: it is gone, nobody else can have it.
            Some(r) if (r.primary == self.me && r.is_alone()) || force => Ok(r.alone(self.me.clone())),
            Some(r) => Err(Refused::Held { record: r.clone(), me: self.me.clone() }),
        }
    }

    /// That nothing of the VM is here.
    fn check_free(&self) -> Result<(), Refused> {
        if self.is_spare() {
            return Err(Refused::JustTakenOver);
        }
        if self.is_stopping() {
            return Err(Refused::Stopping);
        }
        if self.is_free() { Ok(()) } else { Err(Refused::Here) }
    }

    fn answer(&mut self, id: ProposalId, outcome: Outcome, out: &mut Vec<Action>) {
        let doubt = self.disbelieves_answer(&outcome).filter(|_| self.rules.end_only_for_another);
        if self.is_gone() && self.awaits(id) {
            return self.gone_answered(outcome, out);
        }
        let Some(proposal) = self.proposal().filter(|p| p.id == id).map(|p| p.clone()) else { return };
        if let Some(reason) = doubt {
            // What is loaded from a snapshot is still in that.
            let refused = proposal.expected.is_none() && matches!(outcome, Outcome::Refused(_));
            if matches!(&self.state, State::Starting { from: Some(_), .. }) && refused {
                return self.stand_down(Term(0), &format!("the witness cannot be believed: {reason}"), out);
            }
            // Nothing is here yet that would be worth waiting.
            if let State::Starting { from: None, .. } = &self.state {
                out.push(Action::Refuse(Refused::Doubted { reason }));
                self.state = State::Standby;
            } else {
                proposal.ask_again(out);
            }
            return;
        }
        let current = match outcome {
            Outcome::Won => None,
            Outcome::Lost(current) => Some(current),
            Outcome::Refused(_) => Some(None),
        };
        match &self.state {
            State::Starting { proposal, from } => match current {
                None => {
                    let (record, from) = (proposal.new.clone(), *from);
                    if let Some(epoch) = from {
                        out.push(Action::ResumeFrom { epoch });
                    } else {
                        out.push(Action::Boot);
                        out.push(Action::Emit(EventKind::Booted { term: record.term }));
                    }
                    self.state = State::Primary(match from {
                        // What it is loaded from is still there.
                        Some(_) => Primary::resuming(record, Vec::new()),
                        None => Primary::alone(record),
                    });
                }
                Some(current) if from.is_some() => {
                    let term = current.map_or(Term(0), |r| r.term);
                    self.stand_down(term, "another host has the VM", out);
                }
                Some(_) => {
                    out.push(Action::Refuse(Refused::Overtaken));
                    self.state = State::Standby;
                }
            },
            State::Claiming { .. } => self.claim_answered(current, out),
            State::Primary(_) => self.primary_answer(current, out),
            State::GivingBack(_) => self.give_back_answered(current, out),
            State::Standby | State::Backup(_) | State::Spare(_) | State::Gone(_) => {}
        }
    }

    /// The witness holds `record`, which we read rather than proposed. It matters only if it means that an operator forced
    /// the VM away from here, or that our session is void.
    fn observed(&mut self, record: &Record, out: &mut Vec<Action>) {
        let obsolete = match &self.state {
            State::Primary(p) => record.term > p.record.term && record.primary != self.me,
            State::Backup(b) => b.is_void(&self.me, record),
            State::Spare(_) => return self.spare_sees(record, out),
            State::Gone(_) => return self.gone_sees(record, out),
            // Nothing has been asked yet, and nothing can come of it.
            State::Claiming { proposal, backup, .. } => !proposal.sent && backup.is_void(&self.me, record),
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
