//! What the first round of the initial copy has to carry.

use std::os::fd::AsFd;

use ninefold_machine::{Memory, PAGE_SIZE, PageRun};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Longest run made: 1 GiB.
const LONGEST: u64 = 1 << 18;

/// All pages that may differ from zero: those of the guest's memory that were ever touched, and all of the other blocks.
/// What was never touched is a hole in the memfd and zero; the standby's memory is born that way.
///
/// # Errors
/// The kernel does not say where the guest's memory has holes.
pub fn runs(memory: &Memory) -> rustix::io::Result<Vec<PageRun>> {
    let mut runs = Vec::new();
    let ram = memory.ram();
    let mut at = 0;
    while at < ram.bytes() {
        let begin = match seek(ram.as_fd(), SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // Nothing but a hole from here on.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        let end = seek(ram.as_fd(), SeekFrom::Hole(begin))?;
        push(&mut runs, 0, begin / PAGE_SIZE, end.div_ceil(PAGE_SIZE));
        at = end;
    }
    for (index, block) in memory.layout().blocks.iter().enumerate().skip(1) {
        let index = u16::try_from(index).unwrap_or(u16::MAX);
        push(&mut runs, index, 0, block.pages());
    }
    Ok(runs)
}

fn push(runs: &mut Vec<PageRun>, block: u16, mut first: u64, end: u64) {
    while first < end {
        let count = (end - first).min(LONGEST);
        runs.push(PageRun { block, first, count: count as u32 });
        first += count;
    }
}
