//! `ninefold vm shutdown`, `pause`, `resume`, `wake`: what the guest is asked to do, and whether it may run.

use std::time::Duration;

use clap::{Args, ValueEnum};
use ninefold_control::Request;
use ninefold_keeper::devices::agent::{Agent, AgentError};
use ninefold_model::event::{Event, EventKind};
use ninefold_shell::Output;
use ninefold_shell::progress;

use super::control::{tell, timed_out};
use super::follow::Marks;
use super::keepers::{Keeper, Keepers, Where};
use crate::error::CliError;

/// How long pause, resume and wake may take: a checkpoint is part of a pause.
const LIMIT: Duration = Duration::from_secs(30);
/// How long the end of the VM may take once the guest has switched itself off.
const END: Duration = Duration::from_secs(60);
/// Between two looks at whether the keeper still answers.
const EVERY: Duration = Duration::from_millis(100);

/// How long it may take to find the guest's agent.
const FIND: Duration = Duration::from_secs(3);
/// An agent that cannot shut the guest down says so within this time. One that can says nothing.
const REFUSES: Duration = Duration::from_secs(2);

/// Ask the guest to shut down, and wait until it has switched itself off
///
/// By its agent (qemu-guest-agent) if that answers, otherwise by its power button (ACPI), with which the guest's operating system
/// does what it likes: one without acpid or logind ignores it. If the guest does not obey in time the VM runs on, and the command
/// fails with status 1; with --force it is ended then, as by `ninefold vm stop`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold vm shutdown\n  \
    ninefold vm shutdown --within 10m\n  \
    ninefold vm shutdown --mode agent\n  \
    ninefold vm shutdown --within 30s --force")]
pub struct ShutdownArgs {
    #[command(flatten)]
    at: Where,
    /// How the guest is asked
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    mode: Mode,
    /// How long it may take
    #[arg(long, value_name = "TIME", default_value = "3min", value_parser = humantime::parse_duration)]
    within: Duration,
    /// End the VM if it has not obeyed by then
    #[arg(long)]
    force: bool,
}

/// How a guest is asked to shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// By its agent, or by its power button if no agent answers or the agent cannot
    Auto,
    /// By its agent alone
    Agent,
    /// By its power button
    Acpi,
}

/// Stop the guest's processors until `resume`
///
/// The VM is protected meanwhile: a host that takes it over keeps it paused, and so do switchovers, snapshots, and a recovery from a
/// log. No time passes for the guest.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  ninefold vm pause\n  ninefold vm status --json | jq -r '.hosts[].machine.run_state'"
)]
pub struct PauseArgs {
    #[command(flatten)]
    at: Where,
}

/// Let a paused guest go on
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold vm resume")]
pub struct ResumeArgs {
    #[command(flatten)]
    at: Where,
}

/// Wake a guest that has suspended itself to memory, as by its power button
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold vm wake")]
pub struct WakeArgs {
    #[command(flatten)]
    at: Where,
}

pub fn pause(args: &PauseArgs, output: &Output) -> Result<(), CliError> {
    let (keeper, status) = args.at.keepers()?.primary()?;
    if status.machine.is_some_and(|m| m.run_state == "paused") {
        return tell(output, "pause", &keeper.host, None, "the VM is paused already");
    }
    let event = ask(&keeper, &Request::Pause, LIMIT, "the pause", |kind| matches!(kind, EventKind::Paused))?;
    tell(output, "pause", &keeper.host, Some(event), "")
}

pub fn resume(args: &ResumeArgs, output: &Output) -> Result<(), CliError> {
    let (keeper, _) = args.at.keepers()?.primary()?;
    let event = ask(&keeper, &Request::Resume, LIMIT, "the end of the pause", |k| matches!(k, EventKind::Resumed))?;
    tell(output, "resume", &keeper.host, Some(event), "")
}

pub fn wake(args: &WakeArgs, output: &Output) -> Result<(), CliError> {
    let (keeper, _) = args.at.keepers()?.primary()?;
    let event = ask(&keeper, &Request::Wake, LIMIT, "the guest to wake", |kind| matches!(kind, EventKind::Woke))?;
    tell(output, "wake", &keeper.host, Some(event), "")
}

pub fn shutdown(args: &ShutdownArgs, output: &Output) -> Result<(), CliError> {
    let (keeper, status) = args.at.keepers()?.primary()?;
    // One that stands still hears nothing; its keeper says what to do.
    let still = status.machine.is_some_and(|m| matches!(m.run_state.as_str(), "paused" | "suspended"));
    let mode = if still { Mode::Acpi } else { args.mode };
    let within_ms = u64::try_from(args.within.as_millis()).unwrap_or(u64::MAX);
    let since = Keepers::from(keeper.clone()).marks();
    let asked = match asked(mode, &keeper) {
        Ok(()) => true,
        Err(Some(source)) if mode == Mode::Agent => {
            return Err(CliError::AgentShutdown { host: keeper.host, source });
        }
        Err(_) => false,
    };
    let refused = keeper.client.command(&Request::Shutdown { within_ms, end: args.force, asked });
    // A guest that its agent has switched off is gone before anybody can wait for it.
    let limit = match refused {
        Err(_) if asked => END,
        other => {
            other?;
            args.within.saturating_add(END)
        }
    };
    let bar = progress::spinner("the guest shuts down");
    let event = await_event(&keeper, &since, limit, "the end of the guest", |kind| {
        matches!(kind, EventKind::Stopped { .. } | EventKind::ShutdownIgnored { ended: false, .. })
    });
    bar.finish_and_clear();
    match event? {
        Event { kind: EventKind::ShutdownIgnored { .. }, .. } => {
            Err(CliError::DidNotShutDown { host: keeper.host, within: args.within })
        }
        event => tell(output, "shutdown", &keeper.host, Some(event), ""),
    }
}

/// Has the guest's agent shut it down, if that is to be asked.
///
/// # Errors
/// It is not to be, or why it does not.
fn asked(mode: Mode, keeper: &Keeper) -> Result<(), Option<AgentError>> {
    if mode == Mode::Acpi {
        return Err(None);
    }
    let mut agent = Agent::connect(&keeper.agent(), FIND)?;
    Ok(agent.shut_down(REFUSES)?)
}

/// Asks the keeper, and waits for what it says when that has happened.
fn ask(
    keeper: &Keeper,
    request: &Request,
    limit: Duration,
    what: &str,
    wanted: impl Fn(&EventKind) -> bool,
) -> Result<Event, CliError> {
    let since = Keepers::from(keeper.clone()).marks();
    keeper.client.command(request)?;
    await_event(keeper, &since, limit, what, wanted)
}

/// Waits for an event since then. What this host's keeper knows is enough: a VM that leaves this host meanwhile ends the wait.
fn await_event(
    keeper: &Keeper,
    since: &Marks,
    limit: Duration,
    what: &str,
    wanted: impl Fn(&EventKind) -> bool,
) -> Result<Event, CliError> {
    let events = since.follow();
    let began = std::time::Instant::now();
    while began.elapsed() < limit {
        match events.recv_timeout(EVERY) {
            Ok(event) if wanted(&event.kind) => return Ok(event),
            Ok(event) => match event.kind {
                EventKind::Lost { reason } | EventKind::Stopped { reason } | EventKind::StoodDown { reason, .. } => {
                    return Err(CliError::Ended { host: keeper.host.clone(), reason });
                }
                _ => {}
            },
            Err(_) => drop(keeper.client.status()?),
        }
    }
    Err(timed_out(what, limit))
}
