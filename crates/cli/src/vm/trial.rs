//! `ninefold vm trial`, `commit-image` and `fall-back`: booting an image that may prove bad.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Args;
use ninefold_control::Request;
use ninefold_model::event::{Event, EventKind};
use ninefold_model::health::{HealthySign, Trial};
use ninefold_model::spec::Boot;
use ninefold_model::status::Role;
use ninefold_shell::Output;
use ninefold_shell::progress;
use ninefold_shell::progress::ProgressBar;

use super::control::{await_event, tell, timed_out};
use super::follow::Marks;
use super::keepers::{Keepers, Where};
use crate::error::CliError;

/// Between two looks at the trial, and two probes.
const EVERY: Duration = Duration::from_millis(200);
/// A probe that is not answered for so long is made again.
const PROBE: Duration = Duration::from_secs(1);
/// How long it may take to end the VM's session, launch a QEMU and agree with the witness, besides the trial's own time.
const MARGIN: Duration = Duration::from_secs(120);

/// Boot another image, and go back to the committed one unless it proves healthy
///
/// The guest is restarted from the image. Found healthy in time it becomes the committed image, which the VM boots from now
/// on, on every host. Otherwise, or when it panics or its watchdog fires, the VM is booted from the committed image again. What
/// is not given of the image is as in the committed one. The files must be on every host of the VM, under the same
/// names. A protected VM is unprotected from the restart on until its backup is synced again.
///
/// Waits for the end of the trial; interrupted, it leaves the trial to the keepers. With --probe it is this command that finds
/// the guest healthy: interrupted, it does not.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold vm trial --kernel /boot/vmlinuz-6.12 --initrd /boot/initrd-6.12 --healthy-within 60s --probe tcp:10.9.0.10:6379\n  \
    ninefold vm trial --cmdline 'console=ttyS0 mitigations=off' --console-line 'login:'\n  \
    ninefold vm trial --boot-sector /new/boot.img --healthy-within 10min --console-line ready\n  \
    ninefold vm trial --kernel /new/vmlinuz --detach; …; ninefold vm commit-image\n\n\
    The exit code is 0 when the image was committed.")]
pub struct TrialArgs {
    #[command(flatten)]
    at: Where,
    #[command(flatten)]
    image: ImageArgs,
    /// How long the guest may take to be found healthy, counted while it runs
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    healthy_within: Duration,
    /// It is healthy when it prints this text on its serial console
    #[arg(long, value_name = "TEXT", conflicts_with = "probe")]
    console_line: Option<String>,
    /// It is healthy when it accepts a TCP connection from here
    #[arg(long, value_name = "tcp:ADDRESS:PORT", conflicts_with = "detach")]
    probe: Option<Probe>,
    /// Do not wait for the end of the trial
    #[arg(long)]
    detach: bool,
}

/// An image, as far as it differs from the committed one.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct ImageArgs {
    /// The Linux kernel
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The initramfs
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// A raw disk image of one boot sector
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel", "initrd", "cmdline"])]
    boot_sector: Option<PathBuf>,
}

impl ImageArgs {
    fn image(&self, committed: &Boot) -> Result<Boot, CliError> {
        // Keepers have working directories of their own.
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(CliError::io(format!("find out where {} is", path.display())))
        };
        if let Some(image) = &self.boot_sector {
            return Ok(Boot::BootSector { image: absolute(image)? });
        }
        let (old_kernel, old_initrd, old_cmdline) = match committed {
            Boot::Linux { kernel, initrd, cmdline } => (Some(kernel), initrd.as_ref(), cmdline.as_str()),
            Boot::BootSector { .. } | Boot::Volume => (None, None, ""),
        };
        let kernel = match (&self.kernel, old_kernel) {
            (Some(kernel), _) => absolute(kernel)?,
            (None, Some(kernel)) => kernel.clone(),
            (None, None) => return Err(CliError::NoKernel),
        };
        let initrd = match (&self.initrd, old_initrd) {
            (Some(initrd), _) => Some(absolute(initrd)?),
            (None, initrd) => initrd.cloned(),
        };
        let cmdline = self.cmdline.clone().unwrap_or_else(|| old_cmdline.to_owned());
        Ok(Boot::Linux { kernel, initrd, cmdline })
    }
}

/// What shows from outside that a guest is healthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Probe(SocketAddr);

impl FromStr for Probe {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let address = s.strip_prefix("tcp:").and_then(|a| a.parse().ok());
        address.map(Self).ok_or_else(|| "use tcp:ADDRESS:PORT, such as tcp:10.9.0.10:6379 or tcp:[fd09::10]:22".into())
    }
}

/// Commit the image on trial: it is healthy
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold vm commit-image")]
pub struct CommitImageArgs {
    #[command(flatten)]
    at: Where,
}

/// End a trial: boot the committed image
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  ninefold vm fall-back")]
pub struct FallBackArgs {
    #[command(flatten)]
    at: Where,
}

pub fn run(args: &TrialArgs, output: &Output) -> Result<(), CliError> {
    let keepers = args.at.keepers()?;
    let (keeper, status) = keepers.primary()?;
    let committed = status.health.map(|h| h.committed);
    let image = args.image.image(&committed.ok_or(CliError::OldKeeper { host: keeper.host.clone() })?)?;
    let sign = match &args.console_line {
        Some(text) => HealthySign::Console { text: text.clone() },
        None => HealthySign::Asked,
    };
    let within_ms = u64::try_from(args.healthy_within.as_millis()).unwrap_or(u64::MAX);
    let since = keepers.marks();
    keeper.client.command(&Request::Trial { image, within_ms, sign })?;
    if args.detach {
        return tell(output, "trial", &keeper.host, None, "the image is on trial");
    }
    let bar = progress::spinner("the image is launched");
    let ended = end(&keepers, &since, args, &bar);
    bar.finish_and_clear();
    let event = ended?;
    let host = event.host.to_string();
    tell(output, "trial", &host, Some(event), "")
}

/// Waits until the image is committed, wherever the VM runs by then.
fn end(keepers: &Keepers, since: &Marks, args: &TrialArgs, bar: &ProgressBar) -> Result<Event, CliError> {
    let limit = args.healthy_within.saturating_add(MARGIN);
    let deadline = Instant::now() + limit;
    let events = since.follow();
    while Instant::now() < deadline {
        if let Ok(event) = events.recv_timeout(EVERY) {
            match &event.kind {
                EventKind::ImageCommitted { .. } => return Ok(event),
                EventKind::FellBack { reason, .. } => return Err(CliError::FellBack(reason.clone())),
                EventKind::Lost { .. } | EventKind::Stopped { .. } | EventKind::Retired { .. } => {
                    let hosts = vec![event.host.to_string()];
                    return Err(CliError::NotRunning { hosts, role: Role::Standby, peer: None });
                }
                _ => continue,
            }
        }
        let (keeper, status) = match keepers.primary() {
            Ok(found) => found,
            Err(error) if keepers.is_elsewhere(&error) => return Err(error),
            Err(_) => continue,
        };
        let trial = status.health.and_then(|h| h.trial).filter(runs);
        progress::trial(bar, trial.as_ref());
        if let (Some(Probe(address)), Some(_)) = (args.probe, trial)
            && TcpStream::connect_timeout(&address, PROBE).is_ok()
        {
            // Refused when the trial has ended meanwhile: an event tells how.
            let _ = keeper.client.command(&Request::CommitImage);
        }
    }
    Err(timed_out("the end of the trial", limit))
}

/// Whether the guest on trial runs: before, the former one may still answer.
fn runs(trial: &Trial) -> bool {
    trial.left_ms < trial.within_ms
}

pub fn commit_image(args: &CommitImageArgs, output: &Output) -> Result<(), CliError> {
    let committed = |kind: &EventKind| matches!(kind, EventKind::ImageCommitted { .. } | EventKind::FellBack { .. });
    let event = asked(&args.at, &Request::CommitImage, "the commit", committed)?;
    match &event.kind {
        EventKind::FellBack { reason, .. } => Err(CliError::FellBack(reason.clone())),
        _ => tell(output, "commit-image", &event.host.to_string(), Some(event), ""),
    }
}

pub fn fall_back(args: &FallBackArgs, output: &Output) -> Result<(), CliError> {
    let fell = |kind: &EventKind| matches!(kind, EventKind::FellBack { .. });
    let event = asked(&args.at, &Request::FallBack, "the fall-back", fell)?;
    tell(output, "fall-back", &event.host.to_string(), Some(event), "")
}

fn asked(at: &Where, request: &Request, what: &str, wanted: impl Fn(&EventKind) -> bool) -> Result<Event, CliError> {
    let keepers = at.keepers()?;
    let (keeper, _) = keepers.primary()?;
    let since = keepers.marks();
    keeper.client.command(request)?;
    await_event(&keepers, &since, Duration::from_secs(30), what, |e| wanted(&e.kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes() {
        assert_eq!("tcp:10.9.0.10:6379".parse(), Ok(Probe(([10, 9, 0, 10], 6379).into())));
        assert!("tcp:[fd09::10]:22".parse::<Probe>().is_ok());
        for bad in ["", "10.9.0.10:1", "udp:10.9.0.10:1", "tcp:10.9.0.10", "tcp:host:1"] {
            assert!(bad.parse::<Probe>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_not_given_is_as_committed() {
        let committed = Boot::Linux { kernel: "/k".into(), initrd: Some("/i".into()), cmdline: "quiet".into() };
        let mut args = ImageArgs { kernel: Some("/new".into()), initrd: None, cmdline: None, boot_sector: None };
        let expected = Boot::Linux { kernel: "/new".into(), initrd: Some("/i".into()), cmdline: "quiet".into() };
        assert_eq!(args.image(&committed).unwrap(), expected);
        args.kernel = None;
        args.cmdline = Some("loud".into());
        let expected = Boot::Linux { kernel: "/k".into(), initrd: Some("/i".into()), cmdline: "loud".into() };
        assert_eq!(args.image(&committed).unwrap(), expected);
        assert!(args.image(&Boot::BootSector { image: "/s".into() }).is_err(), "no kernel");
    }
}
