//! The verbs that change a VM's life. Each waits until what it asked for has happened.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use ninefold_control::ClientError;
use ninefold_control::Request;
use ninefold_model::HostName;
use ninefold_model::event::{Event, EventKind};
use ninefold_model::spec::{EpochPolicy, Protection};
use ninefold_model::status::{ProtectionState, Role, VmStatus};
use ninefold_shell::{Output, ShellError, interrupt, progress};
use serde::Serialize;

use super::awaited::Awaited;
use super::events::words;
use super::follow::Marks;
use super::handover::{End, Handover};
use super::keepers::{Keeper, Keepers, Where};
use super::operation::{carry_out, carry_out_within};
use crate::error::CliError;

/// How long a first copy may take: memory of any sensible size at the speed of a poor link.
const SYNC_LIMIT: Duration = Duration::from_secs(600);
/// Between two looks at a keeper's status.
const EVERY: Duration = Duration::from_millis(50);
/// How long anything else may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Boot a VM that runs nowhere
///
/// Waits until it is protected, if it shall be.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ninefold vm start\n  ninefold vm start --host b\n  ninefold vm start --force")]
pub struct StartArgs {
    #[command(flatten)]
    at: Where,
    /// Where; without it the host that had the VM last
    #[arg(long)]
    host: Option<String>,
    /// Boot it although the witness says that it may live elsewhere: only when you know that it does not
    #[arg(long)]
    force: bool,
    /// Do not wait until it is protected
    #[arg(long)]
    no_wait: bool,
}

/// End a VM, as by pulling its plug
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold vm stop")]
pub struct StopArgs {
    #[command(flatten)]
    at: Where,
}

/// Ask for fault tolerance, and wait until a backup is synced
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ninefold vm protect\n  ninefold vm protect --no-wait")]
pub struct ProtectArgs {
    #[command(flatten)]
    at: Where,
    /// Do not wait until it is protected
    #[arg(long)]
    no_wait: bool,
}

/// Go on without a backup: no more checkpoints, and no survival of the host
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold vm unprotect")]
pub struct UnprotectArgs {
    #[command(flatten)]
    at: Where,
}

/// Hand a protected VM to its backup, as for maintenance of its host
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold vm switchover")]
pub struct SwitchoverArgs {
    #[command(flatten)]
    at: Where,
}

/// Press the guest's reset button
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold vm reset")]
pub struct ResetArgs {
    #[command(flatten)]
    at: Where,
}

/// Set when checkpoints are taken
///
/// Each host has its own: it holds while the VM is there, until its keeper is started anew. All keepers that are asked are told, whatever their role; the one of
/// another machine is told there, so that it holds after a failover, too.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ninefold vm epochs adaptive --max-ms 100\n  ninefold vm epochs fixed --ms 25")]
pub struct EpochsArgs {
    #[command(subcommand)]
    policy: Policy,
}

#[derive(Debug, Subcommand)]
enum Policy {
    /// Soon after output waits, else seldom
    #[command(after_help = "Example:\n  ninefold vm epochs adaptive --max-ms 100")]
    Adaptive {
        #[command(flatten)]
        at: Where,
        /// Longest time between two checkpoints, milliseconds
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=60_000))]
        max_ms: u32,
    },
    /// Always after the same time
    #[command(after_help = "Example:\n  ninefold vm epochs fixed --ms 25")]
    Fixed {
        #[command(flatten)]
        at: Where,
        /// Time between two checkpoints, milliseconds
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=60_000))]
        ms: u32,
    },
}

/// What a verb did, for programs.
#[derive(Debug, Serialize)]
struct Done {
    done: &'static str,
    /// Where the VM runs now.
    host: String,
    /// The event that ended the wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<Event>,
}

/// What an operation did, for programs.
#[derive(Debug, Serialize)]
struct CarriedOut {
    done: &'static str,
    host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<EventKind>,
}

/// Which hosts have been told when checkpoints are taken, for programs.
#[derive(Debug, Serialize)]
struct Epochs {
    done: &'static str,
    hosts: Vec<String>,
}

pub fn start(args: &StartArgs, output: &Output) -> Result<(), CliError> {
    let keepers = args.at.keepers()?;
    let reports = keepers.ask_all();
    if let Some(running) = reports.iter().find(|r| r.status.as_ref().is_some_and(|s| s.role == Role::Primary)) {
        return Err(CliError::Running { host: running.host.clone() });
    }
    let mut keeper = match &args.host {
        Some(host) => keepers.of_host(host)?.clone(),
        None => {
            let place = reports.iter().position(|r| r.status.is_some());
            keepers.all[place.ok_or_else(|| keepers.silent(&reports))?].clone()
        }
    };
    let since = keepers.marks();
    let start = |keeper: &Keeper| -> Result<(), CliError> {
        carry_out(keeper, &Request::Start { force: args.force }, &format!("the VM boots on {}", keeper.host)).map(drop)
    };
    let mut started = start(&keeper);
    if let Some(host) = asks_elsewhere(args.host.as_deref(), args.force, &started)
        && let Ok(other) = keepers.of_host(host.as_str())
    {
        keeper = other.clone();
        started = start(&keeper);
    }
    started?;
    let wanted = keeper.client.status()?.wanted;
    let mut event = None;
    if wanted == Protection::FaultTolerant && !args.no_wait {
        event = Some(await_protection(&keepers, &since, output)?);
    }
    tell(output, "start", &keeper.host, event, "the VM runs")
}

/// The host that is asked next. Any keeper knows from the witness which host had the VM last: that one is asked, unless a host was named. Nobody
/// forces a host that he has not named: what he knows, he knows of another.
fn asks_elsewhere<'a>(named: Option<&str>, force: bool, started: &'a Result<(), CliError>) -> Option<&'a HostName> {
    match started {
        Err(CliError::Keeper(ClientError::Refused(refusal))) if named.is_none() && !force => refusal.host(),
        _ => None,
    }
}

pub fn stop(args: &StopArgs, output: &Output) -> Result<(), CliError> {
    let keepers = args.at.keepers()?;
    let (keeper, _) = keepers.primary()?;
    // A protected VM's end is first agreed with the witness, so that its backup does not take over.
    carry_out_within(&keeper, &Request::Stop, "the VM is stopped", LIMIT)?;
    tell(output, "stop", &keeper.host, None, "the VM has stopped")
}

pub fn reset(args: &ResetArgs, output: &Output) -> Result<(), CliError> {
    let (keeper, _) = args.at.keepers()?.primary()?;
    keeper.client.command(&Request::Reset)?;
    tell(output, "reset", &keeper.host, None, "the guest was reset")
}

pub fn protect(args: &ProtectArgs, output: &Output) -> Result<(), CliError> {
    let keepers = args.at.keepers()?;
    // Before the look at its state, so that no event between the two is missed.
    let since = keepers.marks();
    let (keeper, status) = keepers.primary()?;
    keeper.client.command(&Request::Protect)?;
    if status.protection == Some(ProtectionState::Protected) {
        return tell(output, "protect", &keeper.host, None, "the VM is protected already");
    }
    if args.no_wait {
        return tell(output, "protect", &keeper.host, None, "the VM will be protected as soon as a host allows");
    }
    let event = await_protection(&keepers, &since, output)?;
    tell(output, "protect", &keeper.host, Some(event), "")
}

pub fn unprotect(args: &UnprotectArgs, output: &Output) -> Result<(), CliError> {
    let keepers = args.at.keepers()?;
    let (keeper, _) = keepers.primary()?;
    keeper.client.command(&Request::Unprotect)?;
    // The witness must have agreed before the VM goes on alone.
    await_status(&keeper, "going on without a backup", is_alone)?;
    tell(output, "unprotect", &keeper.host, None, "the VM runs without a backup")
}

pub fn switchover(args: &SwitchoverArgs, output: &Output) -> Result<(), CliError> {
    let keepers = args.at.keepers()?;
    let (keeper, _) = keepers.primary()?;
    let since = keepers.marks();
    keeper.client.command(&Request::Switchover)?;
    let bar = progress::spinner("the VM is handed over");
    let end = await_handover(&keepers, &keeper, &since);
    bar.finish_and_clear();
    match end? {
        End::Taken(event) => tell(output, "switchover", &event.host.to_string(), Some(*event), ""),
        End::Moved { to } => {
            tell(output, "switchover", &to, None, &format!("has the VM now, says host {}", keeper.host))
        }
        End::Stayed { reason } => Err(CliError::Stayed { host: keeper.host, reason }),
        End::Ended { reason } => Err(CliError::Ended { host: keeper.host, reason }),
    }
}

fn await_handover(keepers: &Keepers, keeper: &Keeper, since: &Marks) -> Result<End, CliError> {
    let events = since.follow();
    let mut handover = Handover::new(&keeper.host, keepers.hosts());
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        let end = match events.recv_timeout(EVERY) {
            Ok(event) => handover.event(&event),
            // A keeper that is gone will tell nothing more; another may.
            Err(_) => keeper.client.status().ok().and_then(|status| handover.status(&status)),
        };
        if let Some(end) = end {
            return Ok(end);
        }
    }
    handover.at_last().ok_or_else(|| timed_out("the hand-over", LIMIT))
}

pub fn epochs(args: &EpochsArgs, output: &Output) -> Result<(), CliError> {
    let (at, policy) = match &args.policy {
        Policy::Adaptive { at, max_ms } => (at, EpochPolicy::Adaptive { max_ms: *max_ms }),
        Policy::Fixed { at, ms } => (at, EpochPolicy::Fixed { ms: *ms }),
    };
    let keepers = at.keepers()?;
    let reports = keepers.ask_all();
    let mut told = Vec::new();
    for (keeper, report) in keepers.all.iter().zip(&reports).filter(|(_, r)| r.status.is_some()) {
        keeper.client.command(&Request::SetEpochs { policy })?;
        told.push(report.host.clone());
    }
    if told.is_empty() {
        return Err(keepers.silent(&reports));
    }
    let words = match policy {
        EpochPolicy::Fixed { ms } => format!("a checkpoint every {ms} ms"),
        EpochPolicy::Adaptive { max_ms } => format!("a checkpoint soon after output, at most {max_ms} ms apart"),
    };
    let shown = Epochs { done: "epochs", hosts: told };
    output.show(&shown, || format!("while the VM is on host {}: {words}", shown.hosts.join(" or ")))?;
    Ok(())
}

pub(super) fn tell(
    output: &Output,
    done: &'static str,
    host: &str,
    event: Option<Event>,
    text: &str,
) -> Result<(), CliError> {
    let done = Done { done, host: host.to_owned(), event };
    output.show(&done, || match &done.event {
        Some(event) => format!("host {}: {}", event.host, words(&event.kind)),
        None => format!("host {host}: {text}"),
    })?;
    Ok(())
}

/// Tells the end of an operation on a host, by the event that tells most of it.
pub(super) fn tell_outcome(
    output: &Output,
    done: &'static str,
    host: &str,
    event: Option<EventKind>,
) -> Result<(), CliError> {
    let done = CarriedOut { done, host: host.to_owned(), event };
    output.show(&done, || match &done.event {
        Some(event) => format!("host {host}: {}", words(event)),
        None => format!("host {host}: done"),
    })?;
    Ok(())
}

/// Waits, with a bar, until the VM is protected, wherever it runs by then.
fn await_protection(keepers: &Keepers, since: &Marks, output: &Output) -> Result<Event, CliError> {
    let bar = progress::spinner("the backup gets ready");
    // A program reads one object from the standard error, if any; the reason is in that.
    let tell = |why: &str| match output.is_json() {
        true => {}
        false => progress::note(crate::error::NAME, &bar, &format!("waiting for protection: {why}")),
    };
    let done = until_protected(keepers, since, &bar, tell);
    bar.finish_and_clear();
    done
}

fn until_protected(
    keepers: &Keepers,
    since: &Marks,
    bar: &progress::ProgressBar,
    tell: impl Fn(&str),
) -> Result<Event, CliError> {
    let events = since.follow();
    let interrupted = interrupt::stop_flag()?;
    let deadline = Instant::now() + SYNC_LIMIT;
    let mut awaited = Awaited::default();
    while Instant::now() < deadline {
        if interrupted.load(Ordering::Relaxed) {
            tell(
                "interrupted; the VM will be protected as soon as a host allows, unless `ninefold vm unprotect` says otherwise",
            );
            return Err(ShellError::Interrupted.into());
        }
        let event = events.recv_timeout(Duration::from_millis(100)).ok();
        if let Some(event) = &event {
            awaited.event(event);
        }
        if let Some(why) = awaited.news() {
            tell(why);
        }
        match event.as_ref().map(|e| &e.kind) {
            Some(EventKind::Lost { .. } | EventKind::Stopped { .. } | EventKind::Retired { .. }) => {
                let hosts = event.into_iter().map(|e| e.host.to_string()).collect();
                return Err(CliError::NotRunning { hosts, role: Role::Standby, peer: None });
            }
            // Perhaps the backup was lost again since.
            Some(EventKind::Protected { .. }) => {
                if let (Some(event), Ok((_, status))) = (event, keepers.primary())
                    && status.protection == Some(ProtectionState::Protected)
                {
                    return Ok(event);
                }
            }
            Some(_) => {}
            None => match keepers.primary() {
                Ok((_, status)) => {
                    awaited.status(&status);
                    progress::sync(bar, status.sync.as_ref());
                }
                Err(error) if keepers.is_elsewhere(&error) => return Err(error),
                Err(_) => {}
            },
        }
    }
    let what = awaited.why().map_or_else(|| "protection".into(), |why| format!("protection ({why})"));
    Err(timed_out(&what, SYNC_LIMIT))
}

/// Waits until a keeper says what is wanted of it, or that this will not come. No event says this in every case.
fn await_status(
    keeper: &Keeper,
    what: &str,
    end: impl Fn(&VmStatus) -> Option<Result<(), CliError>>,
) -> Result<(), CliError> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(end) = end(&keeper.client.status()?) {
            return end;
        }
        if Instant::now() > deadline {
            return Err(timed_out(what, LIMIT));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a VM that was to run without a backup does; one that has left this host does not, here.
fn is_alone(status: &VmStatus) -> Option<Result<(), CliError>> {
    match (status.role, status.protection) {
        (Role::Primary, Some(ProtectionState::Off)) => Some(Ok(())),
        (Role::Primary, _) => None,
        _ => Some(Err(went(status))),
    }
}

/// The VM has left this host.
fn went(status: &VmStatus) -> CliError {
    CliError::NotRunning {
        hosts: vec![status.host.to_string()],
        role: status.role,
        peer: status.peer.as_ref().map(ToString::to_string),
    }
}

pub(super) fn await_event(
    keepers: &Keepers,
    since: &Marks,
    limit: Duration,
    what: &str,
    wanted: impl Fn(&Event) -> bool,
) -> Result<Event, CliError> {
    let events = since.follow();
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        match events.recv_timeout(EVERY) {
            Ok(event) if wanted(&event) => return Ok(event),
            Ok(_) => {}
            Err(_) => match keepers.primary() {
                Err(error) if keepers.is_elsewhere(&error) => return Err(error),
                _ => {}
            },
        }
    }
    Err(timed_out(what, limit))
}

pub(super) fn timed_out(what: &str, after: Duration) -> CliError {
    CliError::TimedOut { what: what.to_owned(), seconds: after.as_secs() }
}

#[cfg(test)]
mod tests {
    use ninefold_control::Refusal;
    use ninefold_shell::Failure;

    use super::super::handover::tests::status;
    use super::*;

    /// A command that waits for its end sees that the VM has left, where only this host's keeper tells it.
    #[test]
    fn a_vm_that_leaves_meanwhile_is_not_waited_for() {
        let (off, protected) = (Some("off"), Some("protected"));
        let moved = status("backup", None, Some("b"));
        let says = |end: Option<Result<(), CliError>>| end.map(|end| end.map_err(|e| (e.to_string(), e.help())));
        let elsewhere = Err((
            "the VM does not run on a".to_owned(),
            Some("it is the backup of b: ask the keeper there".to_owned()),
        ));
        assert_eq!(says(is_alone(&status("primary", protected, Some("b")))), None);
        assert_eq!(says(is_alone(&status("primary", off, None))), Some(Ok(())));
        assert_eq!(says(is_alone(&moved)), Some(elsewhere));
        assert!(is_alone(&status("standby", None, None)).unwrap().is_err());
    }

    /// Whoever forces a start means the host that is asked, and knows nothing of the one that it names.
    #[test]
    fn only_a_start_that_forces_nothing_is_asked_of_another_host() {
        let refused = |try_host: Option<&str>| {
            let host = try_host.map(|name| name.parse().unwrap());
            Err(CliError::Keeper(ClientError::Refused(Refusal::RunsElsewhere { host })))
        };
        let goes_to = |named, force, started| asks_elsewhere(named, force, &started).map(HostName::to_string);
        assert_eq!(goes_to(None, false, refused(Some("b"))).as_deref(), Some("b"));
        assert_eq!(goes_to(None, true, refused(Some("b"))), None);
        assert_eq!(goes_to(Some("a"), false, refused(Some("b"))), None);
        assert_eq!(goes_to(None, false, refused(None)), None);
        assert_eq!(goes_to(None, false, Ok(())), None);
    }
}
