//! A standby's memory outlives its keeper: a process of its own holds it, so that a keeper that is killed and started again has
//! still what it held, and is sent what changed since.
//!
//! ```text
//!   keeper ──starts──► ninefold-memory: the memory, and a note: "it is checkpoint N of this reign"
//!     │ dies                 │ sees that, and waits for a while
//!   next keeper ◄──takes─────┘
//!     │ session: Base N, and all blocks but the guest's memory, which have gone with QEMU
//! ```
//!
//! **What the note claims.** It is written when checkpoint *N* is in memory. While checkpoint *N* + 1 is put into it, and from the
//! next session's first page on, memory is *N* but for pages that later checkpoints of the same reign have. That is all that a
//! base has to be: the primary sends every page of the checkpoints after the base, whether the backup has it or not. Memory that
//! is being filled for the first time has no note.

use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use ninefold_core::KEEP;
use ninefold_machine::Ram;
use ninefold_model::{Epoch, Term};
use ninefold_replica::stream::Reign;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The program that holds the memory.
const PROGRAM: &str = "ninefold-memory";
/// Where the next keeper finds it, in the run directory.
const PLACE: &str = "standby-memory";
const MAGIC: u64 = u64::from_le_bytes(*b"9Fmemory");
/// Magic, term, generation, epoch and their sum.
const NOTE: usize = 40;

/// What memory holds: see the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    pub reign: Reign,
    pub epoch: Epoch,
}

impl Note {
    fn words(&self) -> [u64; 4] {
        [MAGIC, self.reign.term.0, self.reign.generation, self.epoch.0]
    }

    fn to_bytes(self) -> [u8; NOTE] {
        let words = self.words();
        let mut out = [0; NOTE];
        for (place, word) in out.chunks_exact_mut(8).zip(words.into_iter().chain([sum(&words)])) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// Nothing if it is none: zeros, or one that was cut off.
    fn parse(bytes: &[u8; NOTE]) -> Option<Self> {
        let mut words = [0; NOTE / 8];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let [magic, term, generation, epoch, check] = words;
        let note = Self { reign: Reign { term: Term(term), generation }, epoch: Epoch(epoch) };
        (magic == MAGIC && check == sum(&note.words())).then_some(note)
    }
}

/// Tells a note from what a write that was cut off leaves.
fn sum(words: &[u64; 4]) -> u64 {
    words.iter().fold(0, |sum: u64, word| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
}

/// The keeper's hold on the process that holds the memory. Dropped, it ends that: the memory is its own again.
#[derive(Debug)]
pub struct Custody {
    note: File,
    place: PathBuf,
    child: Child,
    _alive: PipeWriter,
}

impl Custody {
    /// Has `ram` held by `program`, which is [`program`] but in tests. Nothing is claimed of it yet.
    ///
    /// # Errors
    /// The program is not there, or cannot be started.
    pub fn begin(program: &Path, ram: &Ram, run_dir: &Path) -> io::Result<Self> {
        let note = rustix::fs::memfd_create(c"ninefold-note", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&note, NOTE as u64)?;
        rustix::fs::fcntl_add_seals(&note, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let (ended, alive) = io::pipe()?;
        let place = run_dir.join(PLACE);
        let child = Command::new(program)
            .arg(KEEP.as_secs().to_string())
            .arg(&place)
            .stdin(ram.as_fd().try_clone_to_owned()?)
            .stdout(note.try_clone()?)
            .stderr(ended)
            .current_dir("/")
            .spawn()?;
        let custody = Self { note: note.into(), place, child, _alive: alive };
        let (pid, started) = (custody.child.id(), born(custody.child.id())?);
        // Whole or not at all.
        let new = custody.place.with_extension("new");
        fs::write(&new, format!("{pid} {started}\n"))?;
        fs::rename(&new, &custody.place)?;
        Ok(custody)
    }

    /// Memory holds this checkpoint now.
    ///
    /// # Errors
    /// The note cannot be written. It claims what it did, or nothing.
    pub fn holds(&self, note: Note) -> io::Result<()> {
        self.note.write_all_at(&note.to_bytes(), 0)
    }
}

impl Drop for Custody {
    fn drop(&mut self) {
        // Unless it is a later one's by now.
        let pid = self.child.id().to_string();
        let names_it = |text: String| text.split_once(' ').is_some_and(|(named, _)| named == pid);
        if fs::read_to_string(&self.place).is_ok_and(names_it) {
            let _ = fs::remove_file(&self.place);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Memory that an earlier keeper has left.
#[derive(Debug)]
pub struct Kept {
    pub note: Note,
    memory: OwnedFd,
}

impl Kept {
    /// Takes over what an earlier keeper of this run directory has left, and ends the process that held it. Nothing if there is
    /// none, or nothing is claimed of it.
    pub fn find(run_dir: &Path) -> Option<Self> {
        let place = run_dir.join(PLACE);
        let text = fs::read_to_string(&place).ok()?;
        let _ = fs::remove_file(&place);
        let (pid, started) = text.trim_end().split_once(' ')?;
        let pid: u32 = pid.parse().ok()?;
        let process = pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()?;
        // From here on the number is this process's, or nobody's.
        if born(pid).ok()?.to_string() != started || !is_ours(pid, &place) {
            return None;
        }
        let open = |n: u32| OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/fd/{n}"));
        let found = open(0).and_then(|memory| Ok((memory, open(1)?)));
        let _ = pidfd_send_signal(&process, Signal::KILL);
        let (memory, note) = found.ok()?;
        let mut bytes = [0; NOTE];
        note.read_exact_at(&mut bytes, 0).ok()?;
        Some(Self { note: Note::parse(&bytes)?, memory: memory.into() })
    }

    #[cfg(test)]
    pub(crate) fn of(note: Note, memory: OwnedFd) -> Self {
        Self { note, memory }
    }

    /// The memory, if it has this size.
    ///
    /// # Errors
    /// Another size, or what is no VM's memory.
    pub fn memory(self, bytes: u64) -> ninefold_machine::Result<Ram> {
        Ram::adopt(self.memory, bytes)
    }
}

/// The program that holds memory: beside the keeper's.
///
/// # Errors
/// It is not known where that is.
pub fn program() -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(PROGRAM))
}

/// When a process was started, in the kernel's ticks (proc_pid_stat(5)).
fn born(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let field = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19));
    field.and_then(|f| f.parse().ok()).ok_or_else(|| io::Error::other("/proc/PID/stat cannot be read"))
}

/// Whether this process holds memory for a keeper of this run directory: a note from before the host's last boot may name another.
fn is_ours(pid: u32, place: &Path) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    // A program that was replaced meanwhile shows as "NAME (deleted)".
    program.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.trim_end_matches(" (deleted)") == PROGRAM)
        && command.split(|byte| *byte == 0).nth(2) == Some(place.as_os_str().as_bytes())
}

/// What the program does: holds its descriptors until its keeper has ended, and then for so long.
///
/// # Errors
/// Its descriptors cannot be waited for.
pub fn hold(keep: Duration) -> io::Result<()> {
    let ended = io::stderr();
    while let Err(error) = poll(&mut [PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN)], None) {
        if error != Errno::INTR {
            return Err(error.into());
        }
    }
    std::thread::sleep(keep);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REIGN: Reign = Reign { term: Term(4), generation: 2 };

    #[test]
    fn a_note_is_read_as_it_was_written_or_not_at_all() {
        let note = Note { reign: REIGN, epoch: Epoch(77) };
        let bytes = note.to_bytes();
        assert_eq!(Note::parse(&bytes), Some(note));
        assert_eq!(Note::parse(&[0; NOTE]), None);
        for at in 0..NOTE {
            for bit in 0..8 {
                let mut other = bytes;
                other[at] ^= 1 << bit;
                assert_eq!(Note::parse(&other), None, "bit {bit} of byte {at}");
            }
        }
        // One that overtook another half-way.
        let next = Note { epoch: Epoch(78), ..note }.to_bytes();
        for at in 25..33 {
            let mixed: Vec<u8> = next[..at].iter().chain(&bytes[at..]).copied().collect();
            let mixed: [u8; NOTE] = mixed.try_into().unwrap();
            assert!(Note::parse(&mixed).is_none_or(|n| n == note));
        }
    }
}
