//! A host's log of a non-volatile VM: its thread, and going on from it. What a job has written is durable when it is done.

use ninefold_core::LogFailure;
use ninefold_core::effect::{Beginning, LogOrder, RecoveryOrder};
use ninefold_core::event::{Event, RecoveryNews, Source};
use ninefold_model::Term;
use ninefold_replica::protocol::LogRole;

use crate::guest::{Checkpoint, Writes};
use crate::keeper::{Log, LogJob, LogState, OnDisk};
use crate::plan::Moment;
use crate::world::{MS, What, World};

impl World {
    fn disk_takes(&mut self, host: usize) -> u64 {
        self.rng.u64(100..3 * MS) + self.hosts[host].disk_slow
    }

    pub(crate) fn log_order(&mut self, host: usize, id: u64, order: LogOrder) {
        match order {
            LogOrder::Start { reign, beginning } => {
                let mut log = Log {
                    state: LogState::Nothing,
                    jobs: Default::default(),
                    note: None,
                    busy: false,
                    steps: 0,
                    session: Term(0),
                    term: reign,
                    reigns: false,
                    standing: None,
                };
                let mut first = None;
                match beginning {
                    Beginning::New { standing, .. } => {
                        log.reigns = matches!(standing.role, LogRole::Primary { .. });
                        first = Some(LogJob::Begin(standing));
                    }
                    Beginning::Awaited => {}
                    Beginning::Continued { recovery } => {
                        if self.keeper(host).recovered != Some(recovery) {
                            let failure = LogFailure::from("it is gone".to_owned());
                            return self.keeper(host).answers.push_back(Event::LogFailed { id, failure });
                        }
                        log.state = LogState::Log;
                    }
                }
                self.keeper(host).logs.insert(id, log);
                if let Some(job) = first {
                    self.log_job(host, id, job);
                }
            }
            LogOrder::Stand { ticket, standing } => {
                self.comes(Moment::Notes);
                if let Some(log) = self.keeper(host).logs.get_mut(&id) {
                    log.note = Some((ticket, standing));
                    self.log_works(host, id);
                }
            }
            LogOrder::Reign(term) => {
                if let Some(log) = self.keeper(host).logs.get_mut(&id) {
                    (log.reigns, log.term) = (true, log.term.max(term));
                }
            }
            LogOrder::Term(term) => {
                if let Some(log) = self.keeper(host).logs.get_mut(&id) {
                    log.term = log.term.max(term);
                }
            }
            LogOrder::Remove => {
                if self.keeper(host).logs.contains_key(&id) {
                    self.log_job(host, id, LogJob::Remove);
                } else {
                    self.keeper(host).answers.push_back(Event::LogRemoved { id, removed: false });
                }
            }
            LogOrder::Drop => drop(self.keeper(host).logs.remove(&id)),
        }
    }

    pub(crate) fn log_job(&mut self, host: usize, id: u64, job: LogJob) {
        let Some(log) = self.keeper(host).logs.get_mut(&id) else { return };
        if log.state == LogState::Failed {
            return self.log_refuses(host, &job);
        }
        log.jobs.push_back(job);
        self.log_works(host, id);
    }

    /// A thread that has ended answers, so that nobody waits for it.
    fn log_refuses(&mut self, host: usize, job: &LogJob) {
        if let LogJob::Drain { connection } = job {
            self.drained(host, *connection, false);
        }
    }

    fn log_works(&mut self, host: usize, id: u64) {
        let takes = self.disk_takes(host);
        let Some(log) = self.keeper(host).logs.get_mut(&id) else { return };
        if log.busy || log.state == LogState::Failed {
            return;
        }
        // What it was told comes before the next job.
        let what = match (&log.note, log.jobs.pop_front()) {
            (Some(_), Some(job)) => {
                log.jobs.push_front(job);
                What::LogNotes { id }
            }
            (Some(_), None) => What::LogNotes { id },
            (None, Some(job)) => What::LogDoes { id, job },
            (None, None) => return,
        };
        log.busy = true;
        log.steps += 1;
        self.later(host, takes, what);
    }

    fn log_next(&mut self, host: usize, id: u64) {
        let Some(keeper) = &mut self.hosts[host].keeper else { return };
        if let Some(log) = keeper.logs.get_mut(&id) {
            log.busy = false;
            self.log_works(host, id);
        }
    }

    fn log_breaks(&mut self, host: usize, id: u64) -> bool {
        let Some(noted) = self.hosts[host].log_fails.take() else { return false };
        let Some(log) = self.keeper(host).logs.get_mut(&id) else { return true };
        let (was, reigns) = (log.state, log.reigns);
        log.state = LogState::Failed;
        let jobs = std::mem::take(&mut log.jobs);
        // A backup's says nothing of itself: it is not known who will run the VM.
        let noted = match (reigns, was) {
            (true, LogState::Log) => noted,
            (true, _) => true,
            (false, _) => false,
        };
        if was == LogState::New {
            self.hosts[host].log = None;
        } else if noted && let Some(disk) = &mut self.hosts[host].log {
            disk.standing.behind = true;
        }
        for job in jobs {
            self.log_refuses(host, &job);
        }
        self.judge_holders("a log that failed");
        let failure = LogFailure { noted, reason: "its disk fails".into() };
        self.tell(host, Event::LogFailed { id, failure });
        true
    }

    pub(crate) fn log_notes(&mut self, host: usize, id: u64) {
        if !self.keeper(host).logs.contains_key(&id) || self.log_breaks(host, id) {
            return;
        }
        let Some(log) = self.keeper(host).logs.get_mut(&id) else { return };
        let Some((ticket, standing)) = log.note.take() else { return };
        let state = log.state;
        log.standing = Some(standing.clone());
        match state {
            LogState::Log => {
                if let Some(disk) = &mut self.hosts[host].log {
                    disk.standing = standing;
                }
            }
            // Whoever has no log speaks for nothing.
            LogState::Nothing | LogState::New | LogState::Failed => {}
        }
        self.log_done(host, id, Some(Event::Stood { id, ticket }));
    }

    fn log_done(&mut self, host: usize, id: u64, event: Option<Event>) {
        if let Some(event) = event {
            self.tell(host, event);
        }
        self.log_next(host, id);
    }

    pub(crate) fn log_does(&mut self, host: usize, id: u64, job: LogJob) {
        if !self.keeper(host).logs.contains_key(&id) {
            return;
        }
        if self.hosts[host].log_fails.is_some() {
            // It has no answer from the thread, as little as those that wait behind it.
            if let Some(log) = self.keeper(host).logs.get_mut(&id) {
                log.jobs.push_front(job);
            }
            self.log_breaks(host, id);
            return;
        }
        let Some(log) = self.keeper(host).logs.get_mut(&id) else { return };
        let (state, of) = (log.state, log.term);
        let event = match job {
            LogJob::Begin(standing) => {
                (log.state, log.standing) = (LogState::New, Some(standing));
                self.hosts[host].log = None;
                Some(Event::LogBegun { id })
            }
            LogJob::Session { session, standing } => {
                if session < log.session {
                    return self.log_next(host, id);
                }
                (log.session, log.state, log.standing) = (session, LogState::New, Some(standing));
                self.hosts[host].log = None;
                None
            }
            LogJob::Checkpoint { checkpoint, rest } if state == LogState::New => {
                let epoch = checkpoint.epoch;
                self.log_begins(host, id, *checkpoint, rest, (Term(0), of));
                Some(holds(id, epoch, true))
            }
            LogJob::Checkpoint { checkpoint, .. } if state == LogState::Log => {
                let epoch = checkpoint.epoch;
                self.log_takes(host, *checkpoint, (Term(0), of));
                Some(holds(id, epoch, false))
            }
            LogJob::Received { session, term, checkpoint, rest, first } if session == log.session => {
                if matches!(state, LogState::Nothing | LogState::Failed) {
                    // What the log does not take the volumes do not get.
                    return self.log_next(host, id);
                }
                let epoch = checkpoint.epoch;
                self.volumes_take(host, &checkpoint, rest.as_ref());
                let rest = rest.map(|rest| rest.held);
                match state {
                    LogState::New => self.log_begins(host, id, *checkpoint, rest, (session, term)),
                    _ => self.log_takes(host, *checkpoint, (session, term)),
                }
                Some(Event::Held { session, epoch, first })
            }
            LogJob::Drain { connection } => {
                let here = self.keeper(host).standbys.get(&connection).and_then(|s| {
                    let epoch = s.checkpoint.as_ref()?.epoch;
                    Some((s.session, epoch))
                });
                let logged = self.hosts[host].log.as_ref().is_some_and(|disk| Some(disk.at) == here);
                self.drained(host, connection, logged && state == LogState::Log);
                None
            }
            LogJob::Remove => {
                self.hosts[host].log = None;
                self.keeper(host).logs.remove(&id);
                return self.tell(host, Event::LogRemoved { id, removed: true });
            }
            LogJob::Checkpoint { .. } | LogJob::Received { .. } => None,
        };
        self.log_done(host, id, event);
    }

    fn drained(&mut self, host: usize, connection: u64, logged: bool) {
        if let Some(standby) = self.keeper(host).standbys.get_mut(&connection) {
            standby.logged = Some(logged);
            self.try_sentence(host, connection);
        }
    }

    /// `of`: its session and its term.
    fn log_begins(&mut self, host: usize, id: u64, checkpoint: Checkpoint, rest: Option<Writes>, of: (Term, Term)) {
        let Some(log) = self.keeper(host).logs.get_mut(&id) else { return };
        log.state = LogState::Log;
        // What it rests on is.
        self.hosts[host].disk.sync();
        let Some(log) = self.keeper(host).logs.get_mut(&id) else { return };
        let Some(standing) = log.standing.clone() else { return };
        let (at, term) = ((of.0, checkpoint.epoch), of.1);
        self.hosts[host].log = Some(OnDisk { standing, checkpoint, writes: rest.unwrap_or_default(), at, term });
    }

    fn log_takes(&mut self, host: usize, checkpoint: Checkpoint, of: (Term, Term)) {
        if let Some(disk) = &mut self.hosts[host].log {
            disk.writes.extend(checkpoint.writes.iter().copied());
            (disk.at, disk.term) = ((of.0, checkpoint.epoch), of.1);
            disk.checkpoint = checkpoint;
        }
    }

    // ---- going on from it ----

    pub(crate) fn recovery_order(&mut self, host: usize, id: u64, order: &RecoveryOrder) {
        let takes = self.disk_takes(host);
        match order {
            RecoveryOrder::Look => {
                self.keeper(host).recovery = Some((id, false));
                self.later(host, takes, What::LogLooked { id });
            }
            RecoveryOrder::Load => {
                if let Some((_, going)) = self.keeper(host).recovery.as_mut().filter(|(of, _)| *of == id) {
                    *going = true;
                    self.later(host, takes + 10 * MS, What::LogLoaded { id });
                }
            }
            RecoveryOrder::Drop => drop(self.keeper(host).recovery.take_if(|(of, _)| *of == id)),
        }
    }

    pub(crate) fn log_looked(&mut self, host: usize, id: u64) {
        if self.keeper(host).recovery.is_none_or(|(of, _)| of != id) {
            return;
        }
        let news = match &self.hosts[host].log {
            Some(disk) => {
                let (standing, epoch) = (disk.standing.clone(), disk.checkpoint.epoch);
                RecoveryNews::Found { standing, epoch, term: disk.term }
            }
            None => RecoveryNews::Nothing,
        };
        self.tell(host, Event::Recovery { id, news });
    }

    pub(crate) fn log_loaded(&mut self, host: usize, id: u64) {
        if self.keeper(host).recovery.is_none_or(|(of, _)| of != id) {
            return;
        }
        let Some(disk) = self.hosts[host].log.clone() else {
            return self.tell(host, Event::Recovery { id, news: RecoveryNews::Failed("it is gone".into()) });
        };
        // What it has of the volumes is done again.
        for (block, node) in &disk.writes {
            self.hosts[host].disk.write(*block, *node);
        }
        let loaded = Box::new(self.loaded(&disk.checkpoint, true));
        if !self.tick_if_due(host) {
            return;
        }
        let keeper = self.keeper(host);
        keeper.recovered = Some(id);
        keeper.waiting = Some((Source::Log(id), disk.checkpoint.guest));
        self.tell(host, Event::Recovery { id, news: RecoveryNews::Loaded(loaded) });
    }
}

fn holds(id: u64, epoch: ninefold_model::Epoch, first: bool) -> Event {
    let first = first.then_some(std::time::Duration::from_millis(1));
    Event::LogHolds { id, epoch, first, commit_bytes: 1, bytes: 1, commit_us: 1 }
}
