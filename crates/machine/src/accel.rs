//! Whether KVM really runs an ordinary kernel here.
//!
//! Some hosts offer a /dev/kvm on which small guests run and an ordinary kernel never comes up. The only decisive test is
//! to boot one: the probe starts the VM's own kernel with `-accel kvm` and no root file system, and awaits the text with
//! which it gives up looking for one. The answer is remembered for the host kernel, QEMU and kernel file.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use ninefold_model::spec::Accel;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use crate::error::{MachineError, Result};
use crate::process;
use crate::version::QemuVersion;

/// The whole probe's limit.
pub const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// A kernel that has been silent for this long does not come up.
const SILENCE_LIMIT: Duration = Duration::from_secs(4);
/// A kernel that gets here has its memory, interrupts, timers and PCI devices.
const DECISIVE: [&str; 3] = ["Unable to mount root fs", "Run /init", "Cannot open root device"];

/// Which accelerator, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccelReport {
    pub accel: Accel,
    /// For a person, one line.
    pub reason: String,
    /// From the cache, not tried now.
    #[serde(default)]
    pub remembered: bool,
}

/// What the answer depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    host_kernel: String,
    host_kernel_build: String,
    qemu: String,
    /// Path, size, modification time and inode of the kernel file.
    kernel: (String, u64, i64, u64),
}

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    key: Key,
    report: AccelReport,
}

/// Finds out, or remembers, whether `kernel` comes up under KVM in `qemu`. The answer is kept in
/// `cache_dir/accel-probe.json`; a cache that cannot be read or written costs only time.
///
/// # Errors
/// When QEMU or the kernel file is not there. A KVM that does not work is an answer, not an error.
pub fn probe(kernel: &Path, qemu: &Path, cache_dir: &Path) -> Result<AccelReport> {
    let meta = std::fs::metadata(kernel).map_err(|source| MachineError::File {
        what: "cannot read the kernel to probe with,",
        path: kernel.into(),
        source,
    })?;
    let host = rustix::system::uname();
    let key = Key {
        host_kernel: host.release().to_string_lossy().into_owned(),
        host_kernel_build: host.version().to_string_lossy().into_owned(),
        qemu: QemuVersion::of_program(qemu)?.to_string(),
        kernel: (kernel.to_string_lossy().into_owned(), meta.size(), meta.mtime(), meta.ino()),
    };
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        // Not remembered: it changes with a module or a permission.
        let reason = format!("/dev/kvm cannot be opened ({error})");
        return Ok(AccelReport { accel: Accel::Tcg, reason, remembered: false });
    }
    let cache = cache_dir.join("accel-probe.json");
    let remembered = std::fs::read(&cache).ok().and_then(|text| serde_json::from_slice::<Remembered>(&text).ok());
    if let Some(found) = remembered.filter(|r| r.key == key) {
        return Ok(AccelReport { remembered: true, ..found.report });
    }
    let report = try_kvm(kernel, qemu)?;
    if let Err(error) = remember(&cache, &Remembered { key, report: report.clone() }) {
        tracing::warn!(%error, file = %cache.display(), "the probe's answer is not remembered");
    }
    Ok(report)
}

/// Written beside and renamed, so that a reader never sees half.
fn remember(cache: &Path, what: &Remembered) -> std::io::Result<()> {
    if let Some(dir) = cache.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let part = cache.with_extension(format!("part-{}", std::process::id()));
    std::fs::write(&part, serde_json::to_vec(what)?)?;
    std::fs::rename(&part, cache).inspect_err(|_| {
        let _ = std::fs::remove_file(&part);
    })
}

fn try_kvm(kernel: &Path, qemu: &Path) -> Result<AccelReport> {
    let (mut serial, theirs) = UnixStream::pair().map_err(MachineError::io("socketpair"))?;
    serial.set_nonblocking(true).map_err(MachineError::io("non-blocking socket"))?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&theirs);
    let mut args: Vec<std::ffi::OsString> = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-accel",
        "kvm",
        "-m",
        "256",
        "-machine",
        crate::command_line::MACHINE,
        "-cpu",
        crate::command_line::CPU,
        "-serial",
        "chardev:serial",
        "-append",
        "console=ttyS0 earlyprintk=ttyS0 panic=-1",
    ]
    .iter()
    .map(Into::into)
    .collect();
    args.extend(["-chardev".into(), format!("socket,id=serial,fd={fd}").into(), "-kernel".into(), kernel.into()]);
    let child = process::spawn(qemu, &args, &[], &[theirs.as_fd()])?;
    drop(theirs);

    let began = Instant::now();
    let mut heard = began;
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    let said = |text: &[u8]| {
        let text = String::from_utf8_lossy(text);
        let last = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("").trim();
        if last.is_empty() {
            "it said nothing".to_owned()
        } else {
            format!("its last words: '{}'", last.chars().take(100).collect::<String>())
        }
    };
    let no = |reason: String| Ok(AccelReport { accel: Accel::Tcg, reason, remembered: false });
    loop {
        match serial.read(&mut buffer) {
            Ok(0) => {
                let exit = child.wait(Duration::from_secs(1));
                // The last line is the error, what is before it are warnings.
                let why = exit.map(|e| format!("{e} {}", e.stderr.lines().last().unwrap_or_default()));
                let why = why.unwrap_or_default();
                return no(format!("QEMU with KVM ended before the kernel came up ({}); {}", why.trim(), said(&text)));
            }
            Ok(count) => {
                heard = Instant::now();
                text.extend_from_slice(&buffer[..count]);
                let all = String::from_utf8_lossy(&text);
                if DECISIVE.iter().any(|d| all.contains(d)) {
                    let took = began.elapsed().as_millis();
                    let reason = format!("an ordinary kernel came up under KVM in {took} ms");
                    return Ok(AccelReport { accel: Accel::Kvm, reason, remembered: false });
                }
                // A kernel in a loop of messages must not fill the memory.
                if text.len() > 1 << 20 {
                    text.drain(..1 << 19);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(MachineError::io("reading the probe's console")(error)),
        }
        if heard.elapsed() >= SILENCE_LIMIT || began.elapsed() >= PROBE_LIMIT {
            let took = began.elapsed().as_millis();
            return no(format!("an ordinary kernel does not come up under KVM within {took} ms; {}", said(&text)));
        }
        let left = SILENCE_LIMIT.saturating_sub(heard.elapsed()).min(PROBE_LIMIT.saturating_sub(began.elapsed()));
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let _ = poll(&mut [PollFd::new(&serial, PollFlags::IN)], Some(&left));
    }
}
