//! One VM in a lab of its own: bursts, rests, and what is found at each.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ninefold_model::event::EventKind;
use ninefold_model::spec::{Acknowledge, NonVolatile, VolumeSpec};
use ninefold_model::status::{BackupState, LogState, ProtectionState, Role, VmStatus};
use ninefold_model::{HostName, InvalidName, VmName};
use serde::Serialize;

use super::fault::Fault;
use super::inflict::{Done, Ground, SCRATCH};
use super::judge::{Fact, Start, Verdict, What, judge, may_see_errors, words};
use super::plan::{Burst, Planned, SCRATCH_MIB, Subject};
use super::register::{Facts, Register};
use super::report::{ChaosReport, Violation, ViolationKind};
use super::restart::{self, Again};
use crate::boot::VmOptions;
use crate::config::LabConfig;
use crate::error::{LabError, io_at};
use crate::guest::Guest;
use crate::lab::Lab;
use crate::ledger::{Ledger, LedgerOptions, LedgerReport, Pulse, SqlLedger, sql};
use crate::observer::Observer;
use crate::topology::CLIENT;
use crate::watch::EventWatch;

/// How long a VM may take to come to rest when everything is mended. A log that was given up is begun anew after up to 60 s.
const REST: Duration = Duration::from_secs(120);
/// So long nobody has the VM, and nobody is about to: then it is lost.
const GONE: Duration = Duration::from_secs(10);
/// Between two looks. Keepers do not tell of everything that is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Answers that show that the VM serves its client.
const ANSWERS: u64 = 20;
/// What a host that has stood still may finish: frames that were committed before. For each fault.
const LATE_FRAMES: u64 = 64;

enum AnyLedger {
    Redis(Ledger),
    Sql(SqlLedger),
}

impl AnyLedger {
    fn pulse(&self) -> &Pulse {
        match self {
            AnyLedger::Redis(ledger) => ledger.pulse(),
            AnyLedger::Sql(ledger) => ledger.pulse(),
        }
    }

    fn finish(self) -> Result<LedgerReport, LabError> {
        match self {
            AnyLedger::Redis(ledger) => ledger.finish(),
            AnyLedger::Sql(ledger) => ledger.finish(),
        }
    }
}

/// What is found after a burst.
pub(super) enum Found {
    Rest {
        took: Duration,
    },
    /// The VM is gone, and nobody held it any more.
    LegitimateLoss,
    /// It was, and has been started again from a disk that must have all that was acknowledged. It serves its client.
    StartedAgain {
        host: HostName,
        start: Start,
    },
    /// The guest ran alone on a disk that failed, and has made of it what it could.
    GuestSawErrors,
    Violation(Box<Violation>),
    Interrupted,
}

/// How a VM comes to rest, or not.
enum Rest {
    Calm,
    Lost(String),
    Stuck(String),
    Broken,
    Interrupted,
}

/// See the [module](self). Fields go in this order: the lab last.
pub(super) struct Scene<'a> {
    ledger: Option<AnyLedger>,
    register: Register,
    observer: Observer,
    events: EventWatch,
    facts: Arc<Facts>,
    subject: Subject,
    script: Vec<Burst>,
    done: Vec<Done>,
    stop: &'a AtomicBool,
    keep: &'a Path,
    seed: u64,
    /// From the guest's first boot until its client was answered, on this machine and beside whatever else it does.
    boot: Duration,
    lab: Lab,
}

/// What is kept of a violation, beside the logs.
#[derive(Serialize)]
struct Kept<'a> {
    seed: u64,
    violation: &'a Violation,
    /// The bursts that this VM went through.
    script: &'a [Burst],
    /// What was really done.
    done: &'a [Done],
    verdict: &'a Verdict,
    facts: &'a [Fact],
}

impl<'a> Scene<'a> {
    /// Makes a lab, boots the VM on its first host and waits until it is at rest.
    pub fn begin(
        lab: &LabConfig,
        subject: Subject,
        seed: u64,
        keep: &'a Path,
        stop: &'a AtomicBool,
    ) -> Result<Self, LabError> {
        let lab = Lab::up(lab)?;
        let vm = options(subject)?;
        let facts = Arc::new(Facts::default());
        let first = lab.topology().hosts.first().map(ToString::to_string).unwrap_or_default();
        let booted = lab.boot_vm(&first, &vm)?;
        let observer = Observer::start(&lab, vm.mac)?;
        let register = Register::watch(&lab, vm.id, &facts)?;
        let netns = lab.netns(CLIENT)?;
        let since = Instant::now();
        let ledger = match subject.is_postgres() {
            false => AnyLedger::Redis(Ledger::start(Some(&netns), vm.guest.service(), &patience())?),
            true => AnyLedger::Sql(SqlLedger::start(Some(&netns), vm.guest.service(), &patience())?),
        };
        let (ledger, boot) = (Some(ledger), since.elapsed());
        let (script, done) = (Vec::new(), Vec::new());
        let scene = Self {
            ledger,
            register,
            observer,
            events: booted.events,
            facts,
            subject,
            script,
            done,
            stop,
            keep,
            seed,
            boot,
            lab,
        };
        match scene.come_to_rest(0) {
            Rest::Calm | Rest::Interrupted => Ok(scene),
            Rest::Lost(what) | Rest::Stuck(what) => Err(scene.no_rest(&what)),
            Rest::Broken => Err(scene.no_rest("the client's connection broke")),
        }
    }

    fn no_rest(&self, what: &str) -> LabError {
        LabError::Timeout {
            what: "rest before the first fault".into(),
            after: REST,
            detail: format!(": {what}{}", self.lab.logs_for_error()),
        }
    }

    pub fn acked(&self) -> u64 {
        self.ledger.as_ref().map_or(0, |l| l.pulse().acked())
    }

    /// Does a burst, mends everything and looks.
    pub fn burst(&mut self, burst: &Burst) -> Found {
        let mark = self.events.mark();
        self.script.push(burst.clone());
        let ground = Ground { lab: &self.lab, facts: &self.facts, register: &self.register, stop: self.stop };
        let done = ground.inflict(burst);
        self.done.extend(done);
        let begin = Instant::now();
        if let Err(error) = self.lab.mend() {
            return self.violation(ViolationKind::NotMended, error.to_string());
        }
        match self.look(mark, begin) {
            Found::LegitimateLoss if self.subject.can_be_started_again() => self.start_again(),
            found => found,
        }
    }

    /// Nobody has it in memory any more: it goes on from a disk, its client with the same book.
    fn start_again(&mut self) -> Found {
        let mark = self.events.mark();
        let (host, start) = match restart::start_again(&self.lab, self.subject, &self.facts()) {
            Ok(Again::Started { host, start }) => (host, start),
            Ok(Again::Refused(why)) => {
                tracing::info!(%why, "no host starts it again by itself");
                return Found::LegitimateLoss;
            }
            Ok(Again::Withheld(what)) => return self.violation(ViolationKind::NotStarted, what),
            Err(error) => return self.violation(ViolationKind::NotStarted, error.to_string()),
        };
        match self.resume() {
            Ok(()) => {}
            Err(error) => return self.violation(ViolationKind::NotStarted, format!("{host}: {error}")),
        }
        match self.come_to_rest(mark) {
            Rest::Calm => Found::StartedAgain { host, start },
            Rest::Interrupted => Found::Interrupted,
            Rest::Broken => self.violation(ViolationKind::ConnectionBroken, "after it was started again".into()),
            Rest::Lost(what) | Rest::Stuck(what) => {
                self.violation(ViolationKind::NoRest, format!("after it was started again on {host}: {what}"))
            }
        }
    }

    /// The client of a database connects anew.
    fn resume(&mut self) -> Result<(), LabError> {
        let Some(AnyLedger::Sql(ledger)) = self.ledger.take() else { return Ok(()) };
        let book = ledger.cut();
        let netns = self.lab.netns(CLIENT)?;
        let server = Guest::Postgres.service();
        // It boots once more, and its database has a log to go through.
        let limit = REST.max(self.boot * 5);
        if !sql::await_answer(&netns, server, Instant::now() + limit)? {
            let detail = self.lab.logs_for_error();
            return Err(LabError::Timeout { what: "answer of the database".into(), after: limit, detail });
        }
        self.ledger = Some(AnyLedger::Sql(SqlLedger::resume(book, Some(&netns), server, &patience())?));
        Ok(())
    }

    fn look(&self, mark: usize, begin: Instant) -> Found {
        match self.come_to_rest(mark) {
            Rest::Interrupted => Found::Interrupted,
            Rest::Lost(what) => match self.verdict().may_be_lost() {
                true => Found::LegitimateLoss,
                false => self.violation(ViolationKind::VmLost, what),
            },
            // Who is gone for ever does not come to rest either.
            Rest::Stuck(_) if self.verdict().may_be_lost() && self.nobody_runs() => Found::LegitimateLoss,
            Rest::Stuck(_) | Rest::Broken if may_see_errors(&self.facts()) => Found::GuestSawErrors,
            Rest::Stuck(what) => self.violation(ViolationKind::NoRest, what),
            Rest::Broken => self.violation(ViolationKind::ConnectionBroken, String::new()),
            Rest::Calm => {
                let late = self.late_frames();
                match late <= LATE_FRAMES * self.done.len() as u64 {
                    true => Found::Rest { took: begin.elapsed() },
                    false => self.violation(ViolationKind::TwoSpeakers, format!("{late} late frames")),
                }
            }
        }
    }

    /// The VM is moved once more, everything is read back, and the lab goes away.
    pub fn end(mut self, report: &mut ChaosReport) -> Result<Option<Violation>, LabError> {
        let mut violation = None;
        // What is read back is the other host's copy, too.
        if let Some(primary) = self.primary()
            && !self.stop.load(Ordering::Relaxed)
        {
            let number = self.script.last().map_or(0, |b| b.number);
            let last = Planned { begin_ms: 0, end_ms: 1, fault: Fault::KillQemu { host: primary } };
            match self.burst(&Burst { number, faults: vec![last] }) {
                Found::Violation(found) => violation = Some(*found),
                Found::LegitimateLoss | Found::GuestSawErrors => return self.abandon(report).map(|()| None),
                Found::Rest { .. } | Found::StartedAgain { .. } | Found::Interrupted => {}
            }
        }
        self.read_back(violation, report)
    }

    /// Everything that was acknowledged is read back, and the lab goes away.
    pub fn read_back(
        mut self,
        mut violation: Option<Violation>,
        report: &mut ChaosReport,
    ) -> Result<Option<Violation>, LabError> {
        let ledger = self.ledger.take();
        if let Some(ledger) = ledger
            && violation.is_none()
        {
            match ledger.finish() {
                Ok(found) => {
                    self.count_acks(report, found.acked, found.longest_gap_ms);
                    report.acked_lost += found.lost + found.repeated;
                    if found.lost + found.repeated > 0 {
                        let words = format!("{} lost, {} repeated: {:?}", found.lost, found.repeated, found.complaints);
                        violation = self.violation_of(self.violation(ViolationKind::DataLost, words));
                    }
                }
                Err(_) if may_see_errors(&self.facts()) => {}
                Err(error) => {
                    violation = self.violation_of(self.violation(ViolationKind::NoRest, error.to_string()));
                }
            }
        }
        self.close(report)?;
        Ok(violation)
    }

    /// The VM is gone, or something was found: nothing can be read back, and the lab goes away.
    pub fn abandon(mut self, report: &mut ChaosReport) -> Result<(), LabError> {
        if let Some(ledger) = self.ledger.take() {
            let acked = ledger.pulse().acked();
            self.count_acks(report, acked, 0);
            report.acked_unverified += acked;
        }
        self.close(report)
    }

    fn close(mut self, report: &mut ChaosReport) -> Result<(), LabError> {
        for done in &self.done {
            *report.faults.entry(done.fault.kind()).or_default() += 1;
        }
        for event in self.events.all() {
            match event.kind {
                EventKind::TookOver { .. } => report.failovers += 1,
                EventKind::Recovered { .. } => report.recoveries += 1,
                EventKind::Protected { .. } => report.protected += 1,
                _ => {}
            }
        }
        report.late_frames += self.late_frames();
        self.ledger = None;
        let Self { register, observer, events, lab, .. } = self;
        drop((register, observer, events));
        lab.down()
    }

    fn count_acks(&self, report: &mut ChaosReport, acked: u64, gap_ms: u64) {
        match self.subject.is_postgres() {
            false => report.acked_writes += acked,
            true => report.acked_transactions += acked,
        }
        report.longest_gap_ms = report.longest_gap_ms.max(gap_ms);
    }

    fn late_frames(&self) -> u64 {
        self.observer.report().overlaps(&self.events.takeovers()).iter().map(|l| l.frames).sum()
    }

    fn statuses(&self) -> Vec<Option<VmStatus>> {
        let hosts = self.lab.topology().hosts.iter();
        hosts.map(|h| self.lab.keeper(h.as_str()).ok()?.status().ok()).collect()
    }

    fn primary(&self) -> Option<HostName> {
        self.statuses().into_iter().flatten().find(|s| s.role == Role::Primary).map(|s| s.host)
    }

    fn nobody_runs(&self) -> bool {
        self.statuses().iter().flatten().all(|s| s.role == Role::Standby)
    }

    /// Waits until the VM is protected by a host, and in a log if it is non-volatile, and serves its client.
    fn come_to_rest(&self, mark: usize) -> Rest {
        let deadline = Instant::now() + REST;
        let mut gone_since: Option<Instant> = None;
        let mut calm_at: Option<u64> = None;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Rest::Interrupted;
            }
            let statuses = self.statuses();
            let gone = statuses.iter().all(|s| s.as_ref().is_some_and(is_idle));
            let since = *gone_since.get_or_insert_with(Instant::now);
            if !gone {
                gone_since = None;
            } else if since.elapsed() > GONE {
                return Rest::Lost(self.why_lost(mark));
            }
            let pulse = self.ledger.as_ref().map(AnyLedger::pulse);
            let acked = pulse.map_or(0, Pulse::acked);
            // A connection that broke with its VM is part of the loss.
            if pulse.is_some_and(|p| p.resets() > 0) && !gone {
                return Rest::Broken;
            }
            match (self.is_calm(&statuses), calm_at) {
                (false, _) => calm_at = None,
                (true, None) => calm_at = Some(acked),
                (true, Some(before)) if acked >= before + ANSWERS => return Rest::Calm,
                (true, Some(_)) => {}
            }
            if Instant::now() > deadline {
                let roles: Vec<_> = statuses.iter().flatten().map(describe).collect();
                return Rest::Stuck(format!("{}; {acked} acknowledged", roles.join("; ")));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn is_calm(&self, statuses: &[Option<VmStatus>]) -> bool {
        let all: Vec<_> = statuses.iter().flatten().collect();
        let primaries: Vec<_> = all.iter().filter(|s| s.role == Role::Primary).collect();
        let [primary] = primaries[..] else { return false };
        all.len() == statuses.len()
            && primary.protection == Some(ProtectionState::Protected)
            && primary.backups.iter().filter(|b| b.state == BackupState::Bound).count()
                == usize::from(self.subject.backups())
            && all.iter().all(|s| s.witness_reachable && s.volumes.iter().all(|v| v.failure.is_none()))
            && (!self.subject.is_non_volatile() || primary.log.is_some_and(|l| l.state == LogState::On))
    }

    fn why_lost(&self, mark: usize) -> String {
        let said = self.events.all();
        let lost = said.iter().skip(mark).rev().find_map(|e| match &e.kind {
            EventKind::Lost { reason } | EventKind::StoodDown { reason, .. } | EventKind::LogUnusable { reason } => {
                Some(format!("{}: {reason}", e.host))
            }
            _ => None,
        });
        lost.unwrap_or_else(|| "nobody runs it, and nobody says why".into())
    }

    fn facts(&self) -> Vec<Fact> {
        // All that was done has to be held against the witness's record.
        self.register.want_and_wait(Instant::now() + Duration::from_secs(5));
        let said = self
            .events
            .all()
            .into_iter()
            .map(|e| Fact { at_us: e.monotonic_us, what: What::Said { host: e.host, event: e.kind } });
        let mut all = self.facts.all();
        all.extend(said);
        all.sort_by_key(|f| f.at_us);
        all
    }

    fn verdict(&self) -> Verdict {
        judge(&self.facts(), self.subject.is_non_volatile())
    }

    fn violation_of(&self, found: Found) -> Option<Violation> {
        match found {
            Found::Violation(v) => Some(*v),
            _ => None,
        }
    }

    fn violation(&self, kind: ViolationKind, words: String) -> Found {
        let burst = self.script.last().map_or(0, |b| b.number);
        let mut violation = Violation { kind, subject: self.subject, burst, words, kept: None };
        match self.keep_debris(&mut violation) {
            Ok(kept) => violation.kept = Some(kept),
            Err(error) => tracing::warn!(%error, "what was found cannot be kept"),
        }
        Found::Violation(Box::new(violation))
    }

    fn keep_debris(&self, violation: &mut Violation) -> Result<PathBuf, LabError> {
        let dir = self.keep.join(format!("seed-{}-burst-{}", self.seed, violation.burst));
        fs::create_dir_all(&dir).map_err(io_at(format!("make {}", dir.display())))?;
        let facts = self.facts();
        let verdict = judge(&facts, self.subject.is_non_volatile());
        let (script, done) = (&self.script[..], &self.done[..]);
        let kept = Kept { seed: self.seed, violation, script, done, verdict: &verdict, facts: &facts };
        let json = serde_json::to_vec_pretty(&kept).map_err(|e| io_at("write violation.json")(e))?;
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            fs::write(&path, bytes).map_err(io_at(format!("write {}", path.display())))
        };
        write("violation.json", &json)?;
        write("violation.txt", self.tell(violation, &verdict).as_bytes())?;
        self.lab.save_logs(&dir)?;
        Ok(dir)
    }

    /// For people: what was done and said, in order of time, from the last burst on.
    fn tell(&self, violation: &Violation, verdict: &Verdict) -> String {
        let mut lines: Vec<(u64, String)> = Vec::new();
        let begin = self.done.iter().filter(|d| d.burst == violation.burst).map(|d| d.begun_us).min().unwrap_or(0);
        for done in &self.done {
            lines.push((
                done.begun_us,
                format!(">>> {} (in effect {:+} us)", done.fault, done.done_us as i64 - done.begun_us as i64),
            ));
            lines.push((done.ended_us, format!("<<< {} {:?}", done.fault, done.trouble)));
        }
        for event in self.events.all() {
            lines.push((event.monotonic_us, format!("{}: {:?}", event.host, event.kind)));
        }
        lines.retain(|(at, _)| *at + 3_000_000 >= begin);
        lines.sort();
        let mut text =
            format!("seed {}, burst {}: {} ({})\n\n", self.seed, violation.burst, violation.kind, violation.words);
        for (at, line) in lines {
            text += &format!("{:>10.3} {line}\n", (at as f64 - begin as f64) / 1e6);
        }
        text + "\nWho held the state (microseconds of the monotonic clock):\n" + &words(verdict)
    }
}

fn patience() -> LedgerOptions {
    LedgerOptions { patience: REST, ..LedgerOptions::default() }
}

/// Nothing of the VM is here, and nothing is about to be.
fn is_idle(status: &VmStatus) -> bool {
    status.role == Role::Standby && status.log.is_none_or(|l| l.state != LogState::Recovering)
}

fn describe(status: &VmStatus) -> String {
    format!(
        "{}: {:?} {:?}, witness {}, log {:?}, volumes {:?}, no backup: {:?}",
        status.host,
        status.role,
        status.protection,
        status.witness_reachable,
        status.log.map(|l| l.state),
        status.volumes.iter().map(|v| (v.held, &v.failure)).collect::<Vec<_>>(),
        status.no_backup
    )
}

fn options(subject: Subject) -> Result<VmOptions, LabError> {
    let name: VmName =
        "vm".parse().map_err(|e: InvalidName| LabError::Name { name: "vm".into(), reason: e.to_string() })?;
    let mut vm = match subject {
        Subject::Redis | Subject::RedisNonVolatile | Subject::RedisTwoBackups => VmOptions::new(name),
        Subject::PostgresDisk => VmOptions::postgres(name, Acknowledge::Disk)?,
        Subject::PostgresMemory | Subject::PostgresNonVolatile => VmOptions::postgres(name, Acknowledge::Memory)?,
    };
    if subject.has_volumes() {
        let scratch =
            SCRATCH.parse().map_err(|e: InvalidName| LabError::Name { name: SCRATCH.into(), reason: e.to_string() })?;
        vm.volumes.push(VolumeSpec::new(scratch, SCRATCH_MIB << 20));
    }
    vm.non_volatile = subject.is_non_volatile().then(NonVolatile::default);
    vm.backups = subject.backups();
    vm.patience = Duration::from_secs(300);
    Ok(vm)
}
