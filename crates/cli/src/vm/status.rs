//! `ninefold vm status`.

use std::io::IsTerminal;
use std::thread;
use std::time::Duration;

use clap::Args;
use ninefold_model::health::HealthStatus;
use ninefold_model::spec::EpochPolicy;
use ninefold_model::status::{BackupState, CertificateStatus, LogState, ProtectionState, Role, VmStatus};
use ninefold_model::{VmId, VmName};
use ninefold_shell::output::{self, Output, bytes, count, ms};
use ninefold_transport::UtcTime;
use ninefold_transport::identity::refresh::FEW_DAYS;
use serde::Serialize;

use super::events;
use super::keepers::{HostReport, Keepers, Where};
use crate::error::CliError;

/// Between two looks of `--watch`.
const EVERY: Duration = Duration::from_millis(500);

/// Show how a VM is: where it runs, whether it is protected, what protection costs
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold vm status\n  \
    ninefold vm status --watch\n  \
    ninefold vm status --json | jq -r .primary\n\n\
    With --json: id, vm (its name), primary (host or null), protection, and for each host its keeper's status (with retired, of a VM that is no more: its last term, and when) or error.")]
pub struct StatusArgs {
    #[command(flatten)]
    at: Where,
    /// Show it again and again, until interrupted
    #[arg(long, short)]
    watch: bool,
}

/// A VM as its keepers see it.
#[derive(Debug, Serialize)]
struct Shown {
    id: Option<VmId>,
    vm: Option<VmName>,
    /// Where it runs; null when no keeper that answers runs it.
    primary: Option<String>,
    protection: Option<ProtectionState>,
    hosts: Vec<HostReport>,
}

pub fn run(args: &StatusArgs, output: &Output) -> Result<(), CliError> {
    let keepers = args.at.keepers()?;
    if !args.watch {
        let shown = look(&keepers);
        if shown.vm.is_none() {
            return Err(keepers.silent(&shown.hosts));
        }
        return Ok(output.show(&shown, || tell(&shown))?);
    }
    let terminal = std::io::stdout().is_terminal() && !output.is_json();
    loop {
        let shown = look(&keepers);
        // Home, then what is left of the former picture is cleared.
        let text = || if terminal { format!("\x1b[H\x1b[J{}", tell(&shown)) } else { tell(&shown) + "\n" };
        output.line(&shown, text)?;
        thread::sleep(EVERY);
    }
}

fn look(keepers: &Keepers) -> Shown {
    let hosts = keepers.ask_all();
    let statuses = || hosts.iter().filter_map(|r| r.status.as_ref());
    let primary = statuses().filter(|s| s.role == Role::Primary).max_by_key(|s| s.term);
    Shown {
        id: statuses().next().map(|s| s.id),
        vm: statuses().next().map(|s| s.vm.clone()),
        primary: primary.map(|s| s.host.to_string()),
        protection: primary.and_then(|s| s.protection),
        hosts,
    }
}

/// How the guest's health is watched, and which image it runs.
fn health(h: &HealthStatus) -> String {
    let mut text = String::new();
    let period = |s: u64| humantime::format_duration(Duration::from_secs(s)).to_string();
    if let Some(w) = &h.watchdog {
        let (count, times, within) = (h.failures, w.policy.times, period(w.policy.within_s.into()));
        text += &format!("watchdog: {}, then {}; {count} of {times} failures in {within}\n", w.device, w.policy.action);
    }
    match &h.trial {
        Some(trial) => {
            let left = period(trial.left_ms.div_ceil(1000));
            let (tried, committed) = (events::image_name(&h.image), events::image_name(&h.committed));
            text += &format!("image: {tried} ON TRIAL, {left} left; committed: {committed}\n");
        }
        None => text += &format!("image: {}\n", events::image_name(&h.image)),
    }
    if let Some(d) = h.dump {
        text += &format!("its memory is written to a file: {} of {}\n", bytes(d.bytes_done), bytes(d.bytes_total));
    }
    text
}

/// In what the hosts' files differ from the VM that runs, each once: a primary knows its backups' differences, too.
fn differing(hosts: &[HostReport]) -> Vec<String> {
    let mut all = Vec::new();
    for s in hosts.iter().filter_map(|r| r.status.as_ref()) {
        let runner = if s.role == Role::Primary { Some(&s.host) } else { s.peer.as_ref() };
        let Some(runner) = runner else { continue };
        let own = s.differs.iter().map(|d| d.sentence(runner, &s.host));
        let backups = s.backups.iter().flat_map(|b| b.differs.iter().map(|d| d.sentence(runner, &b.host)));
        for sentence in own.chain(backups) {
            if !all.contains(&sentence) {
                all.push(sentence);
            }
        }
    }
    all
}

/// What the VM does on its host.
fn stands(status: &VmStatus) -> &'static str {
    match status.machine.as_ref().map(|m| m.run_state.as_str()) {
        Some("paused") => "is paused",
        Some("suspended") => "is suspended",
        Some("shutdown") => "has switched itself off",
        _ => "runs",
    }
}

/// What there is to do about a host's certificate: nothing, most of the time.
fn certificate_lines(host: &str, certificate: &CertificateStatus, now: UtcTime) -> String {
    let (end, mut text) = (UtcTime(certificate.valid_until_s), String::new());
    match end.days_after(now) {
        ..=0 => text += &format!("certificate of host {host}: EXPIRED at {end}\n"),
        days @ 1..=FEW_DAYS => text += &format!("certificate of host {host}: expires in {days} days, at {end}\n"),
        _ => {}
    }
    if let Some(due) = certificate.next_update_s.map(UtcTime).filter(|due| *due <= now) {
        text += &format!("revocation list of host {host}: OVERDUE since {due}\n");
    }
    if let Some(problem) = &certificate.problem {
        text += &format!("certificate files of host {host}: NOT USED, {problem}\n");
    }
    text
}

fn tell(shown: &Shown) -> String {
    let name = shown.vm.as_ref().map_or_else(|| "?".to_owned(), ToString::to_string);
    let primary = shown.hosts.iter().find(|r| shown.primary.as_ref() == Some(&r.host));
    let mut text = match (primary, primary.and_then(|r| r.status.as_ref())) {
        (Some(report), Some(status)) => {
            let bound = status.backups.iter().filter(|b| b.state == BackupState::Bound);
            let hosts: Vec<_> = bound.map(|b| b.host.to_string()).collect();
            let peer = if hosts.is_empty() { String::new() } else { format!(" by host {}", hosts.join(" and host ")) };
            let protection = report.protection();
            let by = if protection == "protected" { peer } else { String::new() };
            let stands = stands(status);
            let mut text = format!("VM '{name}' {stands} on host {}: {protection}{by}\n", report.host);
            for backup in status.backups.iter().filter(|b| b.state == BackupState::Syncing) {
                if let Some(sync) = backup.sync {
                    let (sent, total) = (bytes(sync.bytes_sent), bytes(sync.bytes_total));
                    text +=
                        &format!("first copy to host {}: {sent} of about {total}, round {}\n", backup.host, sync.round);
                }
            }
            if let Some(reason) = &status.no_backup {
                text += &format!("no further backup: {reason}\n");
            }
            if let Some(machine) = &status.machine {
                text += &format!("QEMU {} with {}, {}\n", machine.qemu, machine.accel, machine.run_state);
            }
            let policy = match status.epoch_policy {
                EpochPolicy::Fixed { ms } => format!("every {ms} ms"),
                EpochPolicy::Adaptive { max_ms } => format!("soon after output, at most {max_ms} ms apart"),
            };
            text += &format!("checkpoints: {policy}\n");
            text += &status.health.as_ref().map_or_else(String::new, health);
            if let Some(log) = &status.log {
                let state = match log.state {
                    LogState::Off => "there is no log: a loss of power would lose the VM".to_owned(),
                    LogState::Copying => "the VM is being copied to the log".to_owned(),
                    LogState::Recovering => "going on from the log waits for the witness".to_owned(),
                    LogState::On => format!(
                        "on disk up to epoch {}, {} after a pause; the log is {} long",
                        count(log.epoch.0),
                        ms(log.commit_us),
                        bytes(log.bytes)
                    ),
                };
                text += &format!("non-volatile: {state}\n");
            }
            text
        }
        _ => match shown.hosts.iter().filter_map(|r| r.status.as_ref()).find(|s| s.role == Role::Backup) {
            Some(VmStatus { host, peer: Some(peer), .. }) => {
                format!("VM '{name}' runs on host {peer}, says its backup on host {host}: ask there for more\n")
            }
            _ => match shown.hosts.iter().find_map(|r| r.status.as_ref()?.retired) {
                Some(end) => {
                    let at = UtcTime(end.at_s);
                    format!("VM '{name}' was RETIRED at {at} (term {}): it is no more\n", end.term)
                }
                None => format!("VM '{name}' runs on no host that answers\n"),
            },
        },
    };
    if let Some(id) = shown.id {
        text += &format!("id: {id}\n");
    }
    for difference in differing(&shown.hosts) {
        text += &format!("configured otherwise: {difference}\n");
    }
    let recovers = |s: &&VmStatus| s.log.as_ref().is_some_and(|log| log.state == LogState::Recovering);
    for s in shown.hosts.iter().filter_map(|r| r.status.as_ref()).filter(recovers) {
        text += &format!("non-volatile: going on from the log on host {} waits for the witness\n", s.host);
    }
    for (host, volume) in
        shown.hosts.iter().flat_map(|r| r.status.iter().flat_map(|s| &s.volumes).map(|v| (&r.host, v)))
    {
        if let Some(reason) = &volume.failure {
            text += &format!("volume {} FAILS on host {host}: {reason}\n", volume.name);
        }
    }
    for (host, certificate) in
        shown.hosts.iter().filter_map(|r| Some((&r.host, r.status.as_ref()?.certificate.as_ref()?)))
    {
        text += &certificate_lines(host, certificate, UtcTime::now());
    }
    text += "\n";
    let mut table = output::table(&[
        "HOST",
        "ROLE",
        "STATE",
        "TERM",
        "EPOCH",
        "PAUSE P50",
        "P99",
        "SENT",
        "FRAMES OUT",
        "HELD",
        "WITNESS",
    ]);
    for report in &shown.hosts {
        let Some(s) = &report.status else {
            table.add_row([report.host.as_str(), "?", "does not answer"]);
            continue;
        };
        let pause =
            |f: fn(&ninefold_model::status::PauseSummary) -> u64| s.pause_us.map_or_else(String::new, |p| ms(f(&p)));
        let witness = if s.witness_reachable { "reachable" } else { "UNREACHABLE" };
        table.add_row([
            report.host.clone(),
            report.role().to_owned(),
            report.protection().to_owned(),
            s.term.to_string(),
            count(s.committed.0),
            pause(|p| p.p50),
            pause(|p| p.p99),
            bytes(s.counters.bytes_sent),
            count(s.counters.frames_out),
            count(s.counters.frames_held),
            witness.to_owned(),
        ]);
    }
    text + &output::text(&table)
}
