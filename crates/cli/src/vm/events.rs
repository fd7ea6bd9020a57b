//! `ninefold vm events`, and waiting for one.

use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use clap::Args;
use ninefold_model::event::{Event, EventKind};

use super::keepers::{Keepers, Where};
use crate::error::CliError;
use crate::output::{Output, bytes, ms, say};

/// One long poll of a keeper.
const POLL: Duration = Duration::from_secs(5);
/// Before a keeper that is not there is asked again.
const RETRY: Duration = Duration::from_millis(100);

/// Show what happened to a VM, from all of its keepers, in order of time
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold vm events\n  \
    ninefold vm events --follow\n  \
    ninefold vm events --json | jq 'select(.event == \"took_over\").phases'\n\n\
    With --json: one event a line. A keeper that was killed takes its events with it.")]
pub struct EventsArgs {
    #[command(flatten)]
    at: Where,
    /// Go on with new events as they come, until interrupted
    #[arg(long, short)]
    follow: bool,
}

pub fn run(args: &EventsArgs, output: &Output) -> Result<(), CliError> {
    let keepers = args.at.keepers()?;
    let mut events = Vec::new();
    let mut errors = Vec::new();
    for report in keepers.ask_all() {
        errors.extend(report.error);
    }
    let mut marks = vec![0; keepers.all.len()];
    for (keeper, mark) in keepers.all.iter().zip(&mut marks) {
        // A frozen keeper would keep us for long; those that do not answer were found above.
        if errors.iter().any(|e| e.starts_with(&format!("{}: ", keeper.host))) {
            continue;
        }
        let new = keeper.client.events(0, Duration::ZERO)?;
        *mark = new.last().map_or(0, |e| e.seq);
        events.extend(new);
    }
    if errors.len() == keepers.all.len() && !args.follow {
        return Err(CliError::NoKeeper(errors));
    }
    events.sort_by_key(|e| (e.monotonic_us, e.seq));
    for event in &events {
        output.line(event, || line(event))?;
    }
    if !args.follow {
        for error in errors.iter().filter(|_| !output.is_json()) {
            say(&format!("({error})"))?;
        }
        return Ok(());
    }
    for event in follow(&keepers, &marks) {
        output.line(&event, || line(&event))?;
    }
    Ok(())
}

/// All events after these marks, as they come, also across the keepers' deaths and restarts.
pub fn follow(keepers: &Keepers, marks: &[u64]) -> Receiver<Event> {
    let (sender, events) = mpsc::channel();
    for (keeper, mark) in keepers.all.iter().zip(marks) {
        let (client, sender, mut after) = (keeper.client.clone(), sender.clone(), *mark);
        // Each ends when nobody listens any more, at the latest with this process.
        thread::spawn(move || {
            // A new keeper counts from 1; an old one found again repeats all: told apart by their time.
            let mut latest = None;
            loop {
                match client.events(after, POLL) {
                    Ok(new) => {
                        for event in new {
                            after = event.seq;
                            if latest.is_none_or(|l| event.monotonic_us >= l) {
                                latest = Some(event.monotonic_us + 1);
                                if sender.send(event).is_err() {
                                    return;
                                }
                            }
                        }
                    }
                    Err(_) => {
                        // Whoever answers next has a history of its own; what is older than this is known.
                        latest = latest.or_else(|| Some(now_us()));
                        after = 0;
                        thread::sleep(RETRY);
                    }
                }
            }
        });
    }
    events
}

/// CLOCK_MONOTONIC in microseconds, as in events of this machine.
fn now_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// An event for people.
pub fn line(event: &Event) -> String {
    let second = event.unix_us / 1_000_000 % 86_400;
    let (h, m, s, us) = (second / 3600, second / 60 % 60, second % 60, event.unix_us % 1_000_000);
    format!("{h:02}:{m:02}:{s:02}.{:03}  {:<8}  {}", us / 1000, event.host, words(&event.kind))
}

/// What happened, in words.
pub fn words(kind: &EventKind) -> String {
    match kind {
        EventKind::Booted { term } => format!("the VM boots here (term {term})"),
        EventKind::SyncStarted { backup } => format!("copying to host {backup} begins"),
        EventKind::Protected { term, backup, sync_ms, bytes: n } => {
            format!("protected by host {backup} (term {term}; {} copied in {sync_ms} ms)", bytes(*n))
        }
        EventKind::Unprotected { term, reason } => format!("runs without a backup (term {term}): {reason}"),
        EventKind::BackupReady { primary, epoch } => {
            format!("holds a checkpoint of host {primary} (epoch {epoch}) and is ready to take over")
        }
        EventKind::PrimaryLost { reason, epoch } => format!("lost the primary at epoch {epoch}: {reason}"),
        EventKind::TookOver { term, epoch, phases: p } => format!(
            "TOOK OVER (term {term}, epoch {epoch}): detect {}, arbitrate {}, load {}, resume {}",
            ms(p.detect_us),
            ms(p.arbitrate_us),
            ms(p.load_us),
            ms(p.resume_us)
        ),
        EventKind::WitnessUnreachable { reason } => format!("the witness does not answer: {reason}"),
        EventKind::WitnessReachable => "the witness answers again".into(),
        EventKind::StoodDown { term, reason } => format!("stood down (term {term}): {reason}"),
        EventKind::Lost { reason } => format!("THE VM IS LOST: {reason}"),
        EventKind::SwitchoverStarted { to, reason } => format!("hands the VM to host {to}: {reason}"),
        EventKind::Refused { peer, reason } => format!("refused {peer}: {reason}"),
        EventKind::Stopped { reason } => format!("the VM has stopped: {reason}"),
    }
}
