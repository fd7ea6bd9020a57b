//! QEMU's programs for images.

use std::ffi::OsStr;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Output, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::child::die_with_thread;
use crate::error::VolumeError;

/// Is told how far a long operation is, in parts of 1, at least ten times a second (the same number again when nothing is
/// known). By `Break` it ends the operation, which then leaves nothing and fails with [`VolumeError::Cancelled`].
pub type Progress<'a> = dyn FnMut(f64) -> ControlFlow<()> + 'a;

/// A progress is asked at least this often.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Where they are. The default is to look them up in PATH; any QEMU from 7.2 on will do.
#[derive(Debug, Clone)]
pub struct Tools {
    /// qemu-img(1).
    pub qemu_img: PathBuf,
    /// qemu-storage-daemon(1).
    pub storage_daemon: PathBuf,
}

impl Default for Tools {
    fn default() -> Tools {
        Tools { qemu_img: "qemu-img".into(), storage_daemon: "qemu-storage-daemon".into() }
    }
}

impl Tools {
    fn command<I: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = I>) -> Command {
        let mut command = Command::new(&self.qemu_img);
        command.args(args).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        die_with_thread(&mut command);
        command
    }

    pub(crate) fn missing(program: &Path) -> impl FnOnce(std::io::Error) -> VolumeError + use<'_> {
        move |source| VolumeError::File { what: "cannot run", path: program.into(), source }
    }

    /// Runs qemu-img to its end, whatever its status.
    pub(crate) fn run<I: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = I>) -> Result<Output, VolumeError> {
        self.command(args).output().map_err(Self::missing(&self.qemu_img))
    }

    /// Runs qemu-img, which must succeed; its stdout.
    pub(crate) fn img<I: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = I>) -> Result<Vec<u8>, VolumeError> {
        let output = self.run(args)?;
        if output.status.success() { Ok(output.stdout) } else { Err(self.failed(&output.stderr)) }
    }

    /// The same for one that reports its progress by `-p`: "    (12.34/100%)\r".
    pub(crate) fn img_with_progress<I: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = I>,
        progress: &mut Progress<'_>,
    ) -> Result<(), VolumeError> {
        let mut child = self.command(args).spawn().map_err(Self::missing(&self.qemu_img))?;
        let (out, mut err) = (child.stdout.take(), child.stderr.take());
        let mut said = Vec::new();
        let wanted = std::thread::scope(|scope| {
            // Read at the same time: a program that waits to complain would never come to its end.
            scope.spawn(|| err.as_mut().map(|err| err.read_to_end(&mut said)));
            let wanted = out.map_or(ControlFlow::Continue(()), |out| read_progress(out, progress));
            if wanted.is_break() {
                // It writes into a draft, which goes.
                let _ = child.kill();
            }
            wanted
        });
        let status = child.wait().map_err(Self::missing(&self.qemu_img))?;
        match wanted {
            ControlFlow::Break(()) => Err(VolumeError::Cancelled),
            ControlFlow::Continue(()) if status.success() => Ok(()),
            ControlFlow::Continue(()) => Err(self.failed(&said)),
        }
    }

    pub(crate) fn failed(&self, stderr: &[u8]) -> VolumeError {
        VolumeError::Tool { program: name(&self.qemu_img), report: short(stderr) }
    }
}

/// A program's name, for messages.
pub(crate) fn name(program: &Path) -> String {
    program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()
}

/// The end of what a program said, on one line.
pub(crate) fn short(report: &[u8]) -> String {
    let text = String::from_utf8_lossy(&report[report.len().saturating_sub(1024)..]);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { "it said nothing".into() } else { lines.join("; ") }
}

fn read_progress(mut out: ChildStdout, progress: &mut Progress<'_>) -> ControlFlow<()> {
    let mut last = 0.0;
    let mut line = Vec::new();
    let mut buffer = [0; 256];
    loop {
        match poll(&mut [PollFd::new(&out, PollFlags::IN)], Some(&TICK)) {
            // A signal may be what the progress waits for.
            Ok(0) | Err(Errno::INTR) => {
                progress(last)?;
                continue;
            }
            _ => {}
        }
        let Ok(count @ 1..) = out.read(&mut buffer) else { return ControlFlow::Continue(()) };
        for byte in &buffer[..count] {
            match byte {
                b'\r' | b'\n' => {
                    if let Some(part) = parse_progress(&line) {
                        last = part;
                        progress(part)?;
                    }
                    line.clear();
                }
                _ if line.len() < 64 => line.push(*byte),
                _ => {}
            }
        }
    }
}

fn parse_progress(line: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(line).ok()?;
    let percent: f64 = text.trim().strip_prefix('(')?.strip_suffix("/100%)")?.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read() {
        assert_eq!(parse_progress(b"    (25.00/100%)"), Some(0.25));
        for bad in [&b""[..], b"(x/100%)", b"(101/100%)", b"(NaN/100%)", b"\xff"] {
            assert_eq!(parse_progress(bad), None);
        }
    }

    #[test]
    fn reports_are_short() {
        assert_eq!(short(b""), "it said nothing");
        assert_eq!(short(b"a\n\n b\n"), "a; b");
        assert!(short(&[b'x'; 9999]).len() <= 1024);
    }
}
