//! `ninefold vm events`.

use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use clap::Args;
use ninefold_control::{Gap, GapCause};
use ninefold_keeper::devices::agent::plain;
use ninefold_model::event::{Event, EventKind, Position};
use ninefold_model::health::Freeze;
use ninefold_model::order::in_order;
use ninefold_model::spec::Boot;
use ninefold_shell::keepers::ask_each;
use ninefold_shell::output::{Output, bytes, count, ms, say};
use ninefold_transport::UtcTime;
use serde::Serialize;

use super::follow::Marks;
use super::keepers::Where;
use super::repeats::Repeats;
use crate::error::CliError;

/// Between two looks for repeated events that have not been told yet.
const LOOK: Duration = Duration::from_secs(1);

/// Show what happened to a VM, from all keepers that are asked
///
/// What one keeper says is in its order; between hosts the witness's record gives the order where it can (term by term), and else the hosts' clocks,
/// which may differ. With --follow what comes is shown as it comes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold vm events\n  \
    ninefold vm events --follow\n  \
    ninefold vm events --json | jq 'select(.event == \"took_over\").phases'\n\n\
    What happens again and again is one event that says how often it was, when first and when last.\n\n\
    With --json: one event a line; of a folded one `times`, `first`, and in `seq` and the times the last. `incarnation` and `seq` are the\n\
    order of what one keeper says; `monotonic_us` can be compared with nothing of another machine. A keeper that was killed \
    takes its events with it; with --follow a line {host, gap} says so.")]
pub struct EventsArgs {
    #[command(flatten)]
    at: Where,
    /// Go on with new events as they come, until interrupted
    #[arg(long, short)]
    follow: bool,
}

pub fn run(args: &EventsArgs, output: &Output) -> Result<(), CliError> {
    let keepers = args.at.keepers()?;
    // A frozen keeper is not waited for.
    let said = ask_each(&keepers.all, |client| Ok(client.events(Position::START, Duration::ZERO)?.events));
    let marks = Marks::after(&keepers, &said);
    let (mut events, mut errors) = (Vec::new(), Vec::new());
    for said in said {
        match said {
            Ok(said) => events.extend(said),
            Err(error) => errors.push(error),
        }
    }
    if errors.len() == keepers.all.len() && !args.follow {
        return Err(CliError::NoKeeper { errors });
    }
    for event in in_order(events) {
        output.line(&event, || line(&event))?;
    }
    if !args.follow {
        for error in errors.iter().filter(|_| !output.is_json()) {
            say(&format!("({error})"))?;
        }
        return Ok(());
    }
    let shown = *output;
    let missed = move |host: &str, gap: &Gap| {
        let gap = Missed { host: host.to_owned(), gap: *gap };
        // That nobody reads it any more, the next event shows.
        let _ = shown.line(&gap, || gap.words());
    };
    let (events, mut repeats, begun) = (marks.follow_with_gaps(missed), Repeats::default(), Instant::now());
    loop {
        let new = match events.recv_timeout(LOOK) {
            Ok(event) => repeats.take(event, begun.elapsed()),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        for event in repeats.due(begun.elapsed()).into_iter().chain(new) {
            output.line(&event, || again(&event))?;
        }
    }
}

/// A place where events of a host may be missing.
#[derive(Debug, Serialize)]
struct Missed {
    host: String,
    gap: Gap,
}

impl Missed {
    fn words(&self) -> String {
        let why = match self.gap.cause {
            GapCause::Restart => "its keeper was started anew, and what it said last before that may be missing",
            GapCause::Forgotten => "it has said more than it keeps, and the oldest of it is missing",
            GapCause::Unknown => "its keeper, which is newer than this command, says that some is missing",
        };
        format!("(host {}: {why})", self.host)
    }
}

/// An event for people, at the time when it was first.
fn line(event: &Event) -> String {
    let times = match event.times {
        1 => String::new(),
        n => format!(" ({} times until {})", count(n), clock(event.unix_us)),
    };
    format!("{}  {:<8}  {}{times}", clock(event.first().unix_us), event.host, words(&event.kind))
}

/// An event for people who follow, at the time when it was last.
fn again(event: &Event) -> String {
    let times = match event.first {
        None => String::new(),
        Some(first) => format!(" ({} times since {})", count(event.times), clock(first.unix_us)),
    };
    format!("{}  {:<8}  {}{times}", clock(event.unix_us), event.host, words(&event.kind))
}

/// The time of day (UTC) of a moment in microseconds since the Unix epoch.
fn clock(unix_us: u64) -> String {
    let second = unix_us / 1_000_000 % 86_400;
    let (h, m, s, us) = (second / 3600, second / 60 % 60, second % 60, unix_us % 1_000_000);
    format!("{h:02}:{m:02}:{s:02}.{:03}", us / 1000)
}

/// Longest reason of the guest's agent that is shown, characters.
const MAX_REASON: usize = 300;

/// How a guest's file systems are in a snapshot.
pub fn frozen(freeze: &Freeze) -> String {
    match (freeze.file_systems, &freeze.why_not) {
        (Some(1), _) => "1 file system was frozen".into(),
        (Some(n), _) => format!("{n} file systems were frozen"),
        (None, Some(reason)) => format!("file systems not frozen: {}", plain(reason, MAX_REASON)),
        (None, None) => "whether file systems were frozen is not known".into(),
    }
}

/// Which of the failures that count it is.
fn nth(n: u32) -> String {
    if n == 0 { String::new() } else { format!(" (number {n})") }
}

/// What happened, in words.
pub fn words(kind: &EventKind) -> String {
    match kind {
        EventKind::Booted { term } => format!("the VM boots here (term {term})"),
        EventKind::SyncStarted { backup } => format!("copying to host {backup} begins"),
        EventKind::Protected { term, backup, sync_ms, bytes: n, volume_bytes, continued } => {
            let n = bytes(n + volume_bytes);
            let what = if *continued { "with what it had, and" } else { "by a copy:" };
            format!("protected by host {backup} (term {term}; {what} {n} sent in {sync_ms} ms)")
        }
        EventKind::StoodStill { ms } => format!("stood still for {ms} ms"),
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
        EventKind::WitnessDoubted { reason } => format!("the witness cannot be believed: {reason}"),
        EventKind::WitnessReachable => "the witness answers again".into(),
        EventKind::BackupLost { backup: Some(backup), reason } => format!("backup {backup} lost: {reason}"),
        EventKind::BackupLost { backup: None, reason } => format!("backup lost: {reason}"),
        EventKind::StoodDown { term, reason } => format!("stood down (term {term}): {reason}"),
        EventKind::ClaimLost { term } => {
            format!("another backup has won the VM (term {term}); what this host holds is kept for a while")
        }
        EventKind::GaveBack { term, backups, reason } => {
            let hosts: Vec<_> = backups.iter().map(|b| b.as_str()).collect();
            format!("GAVE THE VM BACK (term {term}) to host {}: {reason}", hosts.join(" or "))
        }
        EventKind::StartFailed { reason } => format!("the VM could not be booted: {reason}"),
        EventKind::Lost { reason } => format!("THE VM IS LOST: {reason}"),
        EventKind::SwitchoverStarted { to, reason } => format!("hands the VM to host {to}: {reason}"),
        EventKind::ConfiguredOtherwise { at, differences } => {
            format!("the file of host {at} differs from the VM that runs: {}", differences.join("; "))
        }
        EventKind::Refused { peer, reason } => format!("refused {peer}: {reason}"),
        EventKind::CertificateTaken { serial, valid_until_s } => {
            let until = UtcTime(*valid_until_s);
            format!("this host's certificate with the serial number {serial} is in use, valid until {until}")
        }
        EventKind::CertificateEnds { valid_until_s, days } => {
            let until = UtcTime(*valid_until_s);
            match days {
                ..=0 => format!("THIS HOST'S CERTIFICATE HAS EXPIRED: it was valid until {until}"),
                days => format!("this host's certificate EXPIRES SOON: it is valid until {until}, {days} more days"),
            }
        }
        EventKind::RevocationListTaken { revoked, next_update_s } => {
            let due = UtcTime(*next_update_s);
            format!("a revocation list is in use that names {revoked}; the next one is due by {due}")
        }
        EventKind::RevocationListOverdue { next_update_s } => {
            let due = UtcTime(*next_update_s);
            format!("THE REVOCATION LIST IS OVERDUE: the next one was due by {due}; the one that is here is used on")
        }
        EventKind::IdentityUnusable { reason } => {
            format!("THIS HOST'S CERTIFICATE FILES CANNOT BE USED, and what was read before is used on: {reason}")
        }
        EventKind::HostDistrusted { links: 0, reason, .. } => format!("THIS HOST'S CERTIFICATE IS REVOKED: {reason}"),
        EventKind::HostDistrusted { peer, links, reason } => {
            format!("HOST {peer} IS NOT TRUSTED ANY MORE, its connections ({links}) were ended: {reason}")
        }
        EventKind::NonVolatile { epoch, log_ms } => {
            format!("non-volatile: on disk here from epoch {epoch} on (first copy made durable in {log_ms} ms)")
        }
        EventKind::LogLost { reason } => format!("NOT NON-VOLATILE any more: {reason}"),
        EventKind::Recovered { term, epoch, load_ms } => {
            format!("WENT ON FROM THE LOG (term {term}, epoch {epoch}; loaded in {load_ms} ms)")
        }
        EventKind::SnapshotTaken { name, snapshot: s, freeze } => format!(
            "snapshot '{name}' taken: the guest stood still for {}, its writes waited for {}, {} in {} ms{}",
            ms(s.pause_us),
            ms(s.waited_us),
            bytes(s.bytes),
            s.took_ms,
            freeze.as_ref().map_or_else(String::new, |freeze| format!("; {}", frozen(freeze)))
        ),
        EventKind::MayBeFrozen { reason } => format!(
            "THE GUEST'S FILE SYSTEMS MAY BE FROZEN: {reason}; send guest-fsfreeze-thaw to its agent, or reset it"
        ),
        EventKind::SnapshotFailed { name, reason } => format!("no snapshot '{name}': {reason}"),
        EventKind::Restored { term, name, load_ms } => {
            format!("the VM starts from snapshot '{name}' (term {term}; loaded in {load_ms} ms)")
        }
        EventKind::RestoreFailed { name, reason } => format!("no start from snapshot '{name}': {reason}"),
        EventKind::LogUnusable { reason } => format!("there is a log and the VM does not go on from it: {reason}"),
        EventKind::VolumeFailed { volume, reason } => format!("volume {volume} FAILS on this host: {reason}"),
        EventKind::VolumeSlow { volume, stalled_ms } => {
            format!("volume {volume} IS SLOW on this host: its disk has not answered for {stalled_ms} ms")
        }
        EventKind::WritesWait { held, limit } => {
            format!("THE GUEST'S WRITES WAIT: {} are held, of {} at most", bytes(*held), bytes(*limit))
        }
        EventKind::WritesGoOn => "the guest's writes go on".into(),
        EventKind::AddressTwice { mac, bridge } => {
            format!(
                "ANOTHER STATION on {bridge} has the VM's Ethernet address {mac}: another copy of this VM, most likely"
            )
        }
        EventKind::Stuck { reason } => format!("THE GUEST STANDS STILL: {reason}"),
        EventKind::VolumeRecovered { volume } => format!("volume {volume} works again on this host"),
        EventKind::Paused => "the VM is paused".into(),
        EventKind::Resumed => "the VM goes on after a pause".into(),
        EventKind::Suspended => "the guest has suspended itself".into(),
        EventKind::Woke => "the guest was woken".into(),
        EventKind::ShutdownIgnored { within_ms, ended } => {
            let within = humantime::format_duration(Duration::from_millis(*within_ms));
            let then = if *ended { "it is ended" } else { "it is left to run" };
            format!("THE GUEST DOES NOT SHUT DOWN within {within}: {then}")
        }
        EventKind::Stopped { reason } => format!("the VM has stopped: {reason}"),
        EventKind::Renamed { from, to } => format!("the VM was renamed: {from} is {to} now"),
        EventKind::NotRenamed { name, reason } => {
            format!("the VM was renamed to {name}, and this host cannot call it so: {reason}")
        }
        EventKind::Retired { term, .. } => format!("the VM was retired in term {term}: it is no more"),
        EventKind::WatchdogFired { action, count } => format!("THE WATCHDOG FIRED{}: {action}", nth(*count)),
        EventKind::GuestPanicked { action, count } => format!("THE GUEST PANICKED{}: {action}", nth(*count)),
        EventKind::Dumped { path, bytes: n, took_ms } => {
            format!("the guest's memory is in {} ({}, {took_ms} ms)", path.display(), bytes(*n))
        }
        EventKind::DumpFailed { reason } => format!("NO MEMORY DUMP: {reason}"),
        EventKind::TrialStarted { image, within_ms } => {
            let within = humantime::format_duration(Duration::from_millis(*within_ms));
            format!("{} is tried: to be found healthy within {within}", image_name(image))
        }
        EventKind::ImageCommitted { image, reason } => {
            format!("{} is committed: {reason}", image_name(image))
        }
        EventKind::FellBack { image, reason } => {
            format!("FELL BACK to the committed image from {}: {reason}", image_name(image))
        }
        EventKind::Unknown => "something that this command does not know: its keeper is newer".into(),
    }
}

/// An image for people.
pub fn image_name(image: &Boot) -> String {
    match image {
        Boot::Linux { kernel, initrd: Some(initrd), .. } => format!("{} with {}", kernel.display(), initrd.display()),
        Boot::Linux { kernel, .. } => kernel.display().to_string(),
        Boot::BootSector { image } => image.display().to_string(),
        Boot::Volume => "its first volume".into(),
    }
}

#[cfg(test)]
mod tests {
    use ninefold_model::Incarnation;
    use ninefold_model::event::Moment;

    use super::*;

    #[test]
    fn what_repeats_itself_says_how_often() {
        let hours = |h: u64| h * 3_600_000_000;
        let kind = EventKind::Refused { peer: "10.0.0.7:1".into(), reason: "no".into() };
        let host = "b".parse().unwrap();
        let incarnation = Incarnation(1);
        let mut event =
            Event { incarnation, seq: 9, unix_us: hours(18), monotonic_us: 0, host, times: 1, first: None, kind };
        assert_eq!(line(&event), "18:00:00.000  b         refused 10.0.0.7:1: no");
        assert_eq!(line(&event), again(&event));
        event.times = 4711;
        event.first = Some(Moment { seq: 1, unix_us: hours(10), monotonic_us: 0 });
        assert_eq!(line(&event), "10:00:00.000  b         refused 10.0.0.7:1: no (4,711 times until 18:00:00.000)");
        assert_eq!(again(&event), "18:00:00.000  b         refused 10.0.0.7:1: no (4,711 times since 10:00:00.000)");
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!((&json["times"], &json["first"]["unix_us"]), (&4711.into(), &hours(10).into()));
    }
}
