//! Every RAM block of a QEMU.
//!
//! `m0` is the guest's memory, a memfd that the keeper shares. All others (firmware, option ROMs, ACPI tables, video
//! memory) are private memory of QEMU which the device state does not carry: a migration would. They are followed and
//! copied like the guest's memory, through `/proc/PID/mem`.
//!
//! The list comes from `info ramblock` (HMP; QEMU has no QMP command for it). QEMU 10.0 says:
//!
//! ```text
//!               Block Name    PSize              Offset               Used              Total                HVA  RO
//!                       m0    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000 0x00007fdb4be00000  rw
//! ```
//!
//! QEMU 7.2 has the same up to `Total`. Where its blocks are comes from elsewhere: the guest's memory is found in
//! `/proc/PID/maps` by its file, private blocks by two trace events (QEMU's log, switched on at launch) that come in
//! pairs while blocks are made, the second giving the address of the block with the first's offset:
//!
//! ```text
//! find_ram_offset size: 0x40000 @ 0x4000000
//! qemu_anon_ram_alloc size 262144 ptr 0x7f302ea00000
//! ```

use serde::{Deserialize, Serialize};

use crate::error::{MachineError, Result};

/// The unit of tracking and copying, bytes. Huge pages are runs of it.
pub const PAGE_SIZE: u64 = 4096;

/// The id of the guest's memory among QEMU's objects and RAM blocks.
pub const MAIN_BLOCK: &str = "m0";

/// More blocks than any machine here has; a bound for hostile lists.
const MAX_BLOCKS: usize = 256;

/// One RAM block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    pub name: String,
    /// Bytes that the guest sees. Differs from `total` for blocks that QEMU can grow (ACPI tables).
    pub used: u64,
    /// Bytes reserved; all of it is tracked and copied.
    pub total: u64,
}

impl Block {
    /// Pages of `total`.
    pub fn pages(&self) -> u64 {
        self.total / PAGE_SIZE
    }
}

/// The RAM blocks of a VM in a fixed order: `m0` first, then by name. Two QEMUs of one VM have equal layouts; a page is
/// named by its block's index here and its number in the block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockLayout {
    pub blocks: Vec<Block>,
}

impl BlockLayout {
    /// Bytes of all blocks.
    pub fn bytes(&self) -> u64 {
        self.blocks.iter().map(|b| b.total).sum()
    }

    /// Pages of all blocks.
    pub fn pages(&self) -> u64 {
        self.bytes() / PAGE_SIZE
    }

    /// Refuses a peer whose blocks are not the same, naming the first difference.
    ///
    /// # Errors
    /// `Layout`.
    pub fn check_same(&self, other: &BlockLayout) -> Result<()> {
        let differ = |reason| Err(MachineError::Layout { reason });
        for ours in &self.blocks {
            match other.blocks.iter().find(|b| b.name == ours.name) {
                None => return differ(format!("'{}' is here only", ours.name)),
                Some(theirs) if theirs != ours => {
                    return differ(format!(
                        "'{}' has {} of {} bytes here, {} of {} there",
                        ours.name, ours.used, ours.total, theirs.used, theirs.total
                    ));
                }
                Some(_) => {}
            }
        }
        match other.blocks.iter().find(|b| self.blocks.iter().all(|o| o.name != b.name)) {
            Some(theirs) => differ(format!("'{}' is there only", theirs.name)),
            None if self != other => differ("the order is not the same".into()),
            None => Ok(()),
        }
    }
}

/// A block with its place in one QEMU's address space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedBlock {
    pub block: Block,
    /// QEMU's own number for its place (`ram_addr_t`).
    pub offset: u64,
    /// Address in QEMU; 0 when it is not known.
    pub address: u64,
}

/// Parses the answer of `info ramblock`, ordered as a [`BlockLayout`].
///
/// # Errors
/// `BlockList` when a line is not understood, a size is not whole pages, or names repeat.
pub fn parse(text: &str) -> Result<Vec<PlacedBlock>> {
    let bad = |reason: String| MachineError::BlockList { reason };
    let quote = |line: &str| line.chars().take(120).collect::<String>();
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    let header = lines.next().ok_or_else(|| bad("empty answer".into()))?;
    if !header.starts_with("Block Name") || !header.contains("Total") {
        return Err(bad(format!("unknown header '{}'", quote(header))));
    }
    let has_address = header.contains("HVA");
    let mut placed = Vec::new();
    for line in lines {
        let unknown = || bad(format!("cannot read '{}'", quote(line)));
        let words: Vec<&str> = line.split_whitespace().collect();
        let numbers_at = words.iter().position(|w| w.starts_with("0x")).ok_or_else(unknown)?;
        // Before the numbers: the name, then the page size as two words ("4 KiB").
        let name_words = numbers_at.checked_sub(2).filter(|n| *n > 0).ok_or_else(unknown)?;
        let number = |i: usize| {
            words
                .get(numbers_at + i)
                .and_then(|w| w.strip_prefix("0x"))
                .and_then(|digits| u64::from_str_radix(digits, 16).ok())
                .ok_or_else(unknown)
        };
        let block = Block { name: words[..name_words].join(" "), used: number(1)?, total: number(2)? };
        let (offset, address) = (number(0)?, if has_address { number(3)? } else { 0 });
        let whole = |n: u64| n.is_multiple_of(PAGE_SIZE);
        if block.total == 0 || !whole(block.total) || !whole(address) || block.used > block.total {
            return Err(bad(format!("'{}' is not whole pages", quote(&block.name))));
        }
        if address.checked_add(block.total).is_none() {
            return Err(bad(format!("'{}' leaves the address space", quote(&block.name))));
        }
        if placed.iter().any(|p: &PlacedBlock| p.block.name == block.name) {
            return Err(bad(format!("'{}' appears twice", quote(&block.name))));
        }
        if placed.len() == MAX_BLOCKS {
            return Err(bad(format!("more than {MAX_BLOCKS} blocks")));
        }
        placed.push(PlacedBlock { block, offset, address });
    }
    placed
        .sort_by(|a, b| (a.block.name != MAIN_BLOCK, &a.block.name).cmp(&(b.block.name != MAIN_BLOCK, &b.block.name)));
    match placed.first() {
        Some(first) if first.block.name == MAIN_BLOCK => Ok(placed),
        _ => Err(bad(format!("no block '{MAIN_BLOCK}'"))),
    }
}

/// Completes the addresses of blocks that `info ramblock` did not tell: of private blocks from QEMU's log, of the
/// guest's memory from the text of `/proc/PID/maps`, by the device and inode of its file.
pub(crate) fn locate(placed: &mut [PlacedBlock], log: &str, maps: &str, main: (u64, u64)) {
    let mut offset = None;
    for line in log.lines() {
        if let Some((_, pair)) = line.split_once("find_ram_offset size: ") {
            offset = pair.split_once(" @ 0x").and_then(|(_, at)| u64::from_str_radix(at.trim(), 16).ok());
        } else if let Some((_, pair)) = line.split_once("qemu_anon_ram_alloc size ") {
            let found = pair.split_once(" ptr 0x").and_then(|(size, address)| {
                Some((size.parse::<u64>().ok()?, u64::from_str_radix(address.trim(), 16).ok()?))
            });
            let (Some(offset), Some((size, address))) = (offset.take(), found) else { continue };
            // The size guards against a log in which the two events do not belong together.
            let block = placed.iter_mut().find(|p| p.address == 0 && p.offset == offset && p.block.total == size);
            if let Some(block) = block {
                block.address = address;
            }
        }
    }
    if let Some(first) = placed.first_mut().filter(|p| p.address == 0) {
        first.address = maps.lines().find_map(|line| mapping_of(line, first.block.total, main)).unwrap_or(0);
    }
}

/// The start of a line of `/proc/PID/maps` (proc_pid_maps(5)) when it maps `size` bytes of the file from its beginning.
fn mapping_of(line: &str, size: u64, (device, inode): (u64, u64)) -> Option<u64> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    let offset = hex(words.nth(1)?)?;
    let (major, minor) = words.next()?.split_once(':')?;
    let same = u64::from(rustix::fs::major(device)) == hex(major)?
        && u64::from(rustix::fs::minor(device)) == hex(minor)?
        && words.next()?.parse::<u64>().ok()? == inode;
    (same && offset == 0 && end.checked_sub(start)? == size).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V7_2: &str = "              Block Name    PSize              Offset               Used              Total\r
                 pc.bios    4 KiB  0x0000000004000000 0x0000000000040000 0x0000000000040000\r
                      m0    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000\r\n";
    const V10_0: &str = "              Block Name    PSize              Offset               Used              Total                HVA  RO\r
                      m0    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000 0x00007fdb4be00000  rw\r
    /rom@etc/acpi/tables    4 KiB  0x0000000004080000 0x0000000000020000 0x0000000000200000 0x00007fdb4b000000  ro\r\n";

    #[test]
    fn both_formats() {
        let mut old = parse(V7_2).unwrap();
        assert_eq!(old[1].address, 0);
        let log = "qemu_anon_ram_alloc size 262144 ptr 0x1000\nfind_ram_offset size: 0x40000 @ 0x4000000\n\
                   qemu_anon_ram_alloc size 262144 ptr 0x7fdb94400000\n";
        let maps = "7fdb4be00000-7fdb4fe00000 rw-p 00000000 00:00 0\n\
                    7fda4be00000-7fda4fe00000 rw-s 00000000 00:01 77 /memfd:ninefold-ram (deleted)\n";
        locate(&mut old, log, maps, (rustix::fs::makedev(0, 1), 77));
        assert_eq!(old[0].address, 0x7fda_4be0_0000);
        assert_eq!(old[0].block, Block { name: "m0".into(), used: 64 << 20, total: 64 << 20 });
        assert_eq!((old[1].block.name.as_str(), old[1].address), ("pc.bios", 0x7fdb_9440_0000));
        let new = parse(V10_0).unwrap();
        assert_eq!(new[1].block, Block { name: "/rom@etc/acpi/tables".into(), used: 0x20000, total: 0x20_0000 });
    }

    #[test]
    fn bad_lists_are_refused() {
        let line = |s: &str| format!("Block Name PSize Offset Used Total HVA\n{s}\n");
        for bad in [
            String::new(),
            "unknown command".into(),
            line(""),
            line("m0"),
            line("m0 4 KiB 0x0"),
            line("4 KiB 0x0 0x1000 0x1000 0x1000"),
            line("m0 4 KiB 0x0 0x1000 0x1001 0x1000"),
            line("m0 4 KiB 0x0 0x2000 0x1000 0x1000"),
            line("m0 4 KiB 0x0 0x1000 0x1000 0xfffffffffffff000"),
            line("m0 4 KiB 0x0 0x1000 0x1000 0x1000\nm0 4 KiB 0x0 0x1000 0x1000 0x1000"),
            line("x 4 KiB 0x0 0x1000 0x1000 0x1000"),
        ] {
            assert!(parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn layouts_are_compared_by_name_and_size() {
        let layout = |blocks: &[(&str, u64)]| BlockLayout {
            blocks: blocks.iter().map(|(n, t)| Block { name: (*n).into(), used: *t, total: *t }).collect(),
        };
        let ours = layout(&[("m0", 4096), ("pc.bios", 8192)]);
        assert!(ours.check_same(&ours.clone()).is_ok());
        let text = |other: &[(&str, u64)]| ours.check_same(&layout(other)).unwrap_err().to_string();
        assert!(text(&[("m0", 4096)]).contains("'pc.bios' is here only"));
        assert!(text(&[("m0", 8192), ("pc.bios", 8192)]).contains("'m0' has 4096 of 4096 bytes here, 8192"));
        assert!(text(&[("m0", 4096), ("pc.bios", 8192), ("vga", 4096)]).contains("'vga' is there only"));
    }
}
