//! QEMU's programs for images.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};

use super::child::die_with_thread;
use crate::error::VolumeError;

/// Is told how far a long operation is, in parts of 1, at least ten times a second (the same number again when nothing is
/// known). By `Break` it ends the operation, which then leaves nothing and fails with [`VolumeError::Cancelled`].
pub type Progress<'a> = dyn FnMut(f64) -> ControlFlow<()> + 'a;

/// A progress is asked at least this often.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Address space of a program that reads a stranger's image, bytes: what it takes would otherwise be for the image to say.
pub(crate) const ADDRESS_SPACE: u64 = 1 << 30;
/// What a program may say of a stranger's image, bytes.
const MAX_REPORT: u64 = 1 << 20;
/// The longest line that is read, bytes.
const MAX_LINE: u64 = 4 << 10;
/// How long a program that is read line by line may say nothing.
const PATIENCE: Duration = Duration::from_secs(600);
/// Of what a program complains, bytes that are read.
const MAX_COMPLAINT: u64 = 64 << 10;

/// The file that a program has as its standard input, as that program may name it: the file that is open here, whatever
/// becomes of its name.
pub(crate) const INPUT: &str = "/proc/self/fd/0";

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

    /// Runs qemu-img and hands out what it says line by line, until that wants no more; whether it did.
    ///
    /// # Errors
    /// `Tool`, also if it says nothing for [`PATIENCE`].
    pub(crate) fn lines<I: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = I>,
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, VolumeError> {
        let mut why = None;
        let ended = self.attend(self.command(args), |out| {
            let (mut line, mut buffer, mut heard) = (Vec::new(), [0; 16 << 10], Instant::now());
            loop {
                match poll(&mut [PollFd::new(&*out, PollFlags::IN)], Some(&TICK)) {
                    Ok(0) | Err(Errno::INTR) if heard.elapsed() < PATIENCE => continue,
                    Ok(0) | Err(Errno::INTR) => {
                        why = Some("it says nothing");
                        return ControlFlow::Break(());
                    }
                    _ => {}
                }
                let Ok(count @ 1..) = out.read(&mut buffer) else {
                    return if line.is_empty() { ControlFlow::Continue(()) } else { each(&line) };
                };
                heard = Instant::now();
                for byte in &buffer[..count] {
                    match byte {
                        b'\n' => {
                            each(&line)?;
                            line.clear();
                        }
                        _ if line.len() as u64 >= MAX_LINE => {
                            why = Some("it says more than anybody would read");
                            return ControlFlow::Break(());
                        }
                        _ => line.push(*byte),
                    }
                }
            }
        });
        match (ended, why) {
            (_, Some(why)) => Err(self.failed(why.as_bytes())),
            (Err(VolumeError::Cancelled), None) => Ok(ControlFlow::Break(())),
            (Err(error), None) => Err(error),
            (Ok((status, _)), None) if status.success() => Ok(ControlFlow::Continue(())),
            (Ok((_, stderr)), None) => Err(self.failed(&stderr)),
        }
    }

    /// Runs qemu-img on a stranger's image to its end, whatever its status: with `memory` bytes of address space, a short answer and a
    /// progress that may end it.
    pub(crate) fn examine<I: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = I>,
        memory: u64,
        progress: &mut Progress<'_>,
    ) -> Result<Output, VolumeError> {
        let mut command = self.command(args);
        limit_memory(&mut command, memory);
        let mut stdout = Vec::new();
        let (status, stderr) = self.attend(command, |out| {
            let mut buffer = [0; 16 << 10];
            loop {
                match poll(&mut [PollFd::new(&*out, PollFlags::IN)], Some(&TICK)) {
                    Ok(0) | Err(Errno::INTR) => progress(0.0)?,
                    _ => match out.read(&mut buffer) {
                        // Too much is told by the length of what was kept.
                        Ok(count @ 1..) if stdout.len() as u64 <= MAX_REPORT => {
                            stdout.extend_from_slice(&buffer[..count])
                        }
                        _ => return ControlFlow::Continue(()),
                    },
                }
            }
        })?;
        if stdout.len() as u64 > MAX_REPORT {
            return Err(self.failed(b"it has more to say of the image than anybody would read"));
        }
        Ok(Output { status, stdout, stderr })
    }

    /// Converts an image and reports how far that is. `input` is the program's [`INPUT`].
    pub(crate) fn convert<I: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = I>,
        input: Option<File>,
        progress: &mut Progress<'_>,
    ) -> Result<(), VolumeError> {
        let mut command = self.command(["convert", "-p"]);
        command.args(args);
        if let Some(input) = input {
            command.stdin(input);
        }
        limit_memory(&mut command, ADDRESS_SPACE);
        let (status, said) = self.attend(command, |out| read_progress(out, progress))?;
        if status.success() { Ok(()) } else { Err(self.failed(&said)) }
    }

    /// Runs a program while `read` reads what it says; how it ended, and what it complained of. It is ended if `read` says so,
    /// or wants no more.
    fn attend(
        &self,
        mut command: Command,
        read: impl FnOnce(&mut ChildStdout) -> ControlFlow<()>,
    ) -> Result<(ExitStatus, Vec<u8>), VolumeError> {
        let mut child = command.spawn().map_err(Self::missing(&self.qemu_img))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let mut said = Vec::new();
        let wanted = std::thread::scope(|scope| {
            // Read at the same time: a program that waits to complain would never come to its end.
            scope.spawn(|| {
                let Some(mut err) = err else { return };
                let _ = err.by_ref().take(MAX_COMPLAINT).read_to_end(&mut said);
                let _ = io::copy(&mut err, &mut io::sink());
            });
            let wanted = out.map_or(ControlFlow::Continue(()), |mut out| read(&mut out));
            if wanted.is_break() {
                // It writes into a staged, which goes.
                let _ = child.kill();
            }
            wanted
        });
        let status = child.wait().map_err(Self::missing(&self.qemu_img))?;
        if wanted.is_break() { Err(VolumeError::Cancelled) } else { Ok((status, said)) }
    }

    pub(crate) fn failed(&self, stderr: &[u8]) -> VolumeError {
        VolumeError::Tool { program: name(&self.qemu_img), report: short(stderr) }
    }
}

/// Gives a program so many bytes of address space.
fn limit_memory(command: &mut Command, bytes: u64) {
    let prepare = move || {
        let most = Some(bytes);
        Ok(setrlimit(Resource::As, Rlimit { current: most, maximum: most })?)
    };
    // SAFETY: `prepare` makes only a system call, no allocation and no locks, as is right after a fork.
    unsafe { command.pre_exec(prepare) };
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

fn read_progress(out: &mut ChildStdout, progress: &mut Progress<'_>) -> ControlFlow<()> {
    let mut last = 0.0;
    let mut line = Vec::new();
    let mut buffer = [0; 256];
    loop {
        match poll(&mut [PollFd::new(&*out, PollFlags::IN)], Some(&TICK)) {
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
