//! `ninefold doctor`: what this host can do.
//!
//! * [`certificates`]: whether other hosts will know it

mod certificates;

use std::path::PathBuf;

use clap::Args;
use ninefold_keeper::config::{KeeperConfig, cache_dir};
use ninefold_machine::doctor::{Check, CheckState, Subject, examine};
use ninefold_shell::output::{self, Output, brief};
use ninefold_shell::progress;
use ninefold_transport::UtcTime;
use serde::Serialize;

use crate::error::CliError;

/// Check what this host can do: QEMU, KVM, dirty tracking, network, its certificate; with advice for each lack
///
/// Exit code 1 when a VM could not run or could not be protected here.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold doctor\n  \
    ninefold doctor --kernel /boot/vmlinuz-$(uname -r)\n  \
    ninefold doctor --config /etc/ninefold/db.json     with the certificate that this keeper uses\n  \
    ninefold doctor --json | jq '.checks[] | select(.state != \"ok\")'\n\n\
    With --json: ok, and for each check its name, state (ok, warning, failed), detail and advice.")]
pub struct DoctorArgs {
    /// A kernel to boot for the KVM check; without it the test guest's, if that is built
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// QEMU's program
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// The configuration of a keeper: its certificate is looked at, and whether it is of the keeper's host
    #[arg(long, value_name = "FILE", conflicts_with = "identity")]
    config: Option<PathBuf>,
    /// The directory with a host's certificate; without it /etc/ninefold/identity, if that is there
    #[arg(long, value_name = "DIR")]
    identity: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Shown {
    /// VMs can run and be protected here.
    ok: bool,
    checks: Vec<Check>,
}

pub fn run(args: &DoctorArgs, output: &Output) -> Result<(), CliError> {
    if let Some(kernel) = &args.kernel
        && !kernel.is_file()
    {
        return Err(CliError::Host { what: "there is no such kernel".into(), path: kernel.clone() });
    }
    let whose = match (&args.config, &args.identity) {
        (Some(config), _) => certificates::Subject::of(KeeperConfig::load(config)?),
        (None, Some(dir)) => certificates::Subject::Identity(dir.clone()),
        (None, None) => certificates::Subject::Usual,
    };
    let cache = cache_dir();
    let guest = cache.join("guest/current/vmlinuz");
    let kernel = args.kernel.clone().or_else(|| guest.is_file().then_some(guest));
    let bar = progress::spinner("examining this host (a kernel may be booted)");
    let mut checks = examine(Subject { qemu: &args.qemu, kernel: kernel.as_deref(), cache_dir: &cache });
    checks.extend(certificates::examine(&whose, UtcTime::now()));
    bar.finish_and_clear();
    let failed: Vec<_> = checks.iter().filter(|c| c.state == CheckState::Failed).map(|c| c.name.clone()).collect();
    let shown = Shown { ok: failed.is_empty(), checks };
    output.show(&shown, || tell(&shown.checks))?;
    if failed.is_empty() { Ok(()) } else { Err(CliError::Doctor(failed)) }
}

fn tell(checks: &[Check]) -> String {
    let mut table = output::table(&["", "CHECK", "FOUND"]);
    for check in checks {
        let mark = match check.state {
            CheckState::Ok => "ok",
            CheckState::Warning => "warn",
            CheckState::Failed => "FAIL",
        };
        table.add_row([mark, &check.name, &brief(&check.detail)]);
        if let Some(advice) = &check.advice {
            table.add_row(["", "", &format!("-> {advice}")]);
        }
    }
    output::text(&table)
}
