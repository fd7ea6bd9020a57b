//! Whether soft-dirty bits of a RAM block can be relied on, from the flags of QEMU's mappings.

use crate::blocks::PAGE_SIZE;

/// Flags of a mapping (`VmFlags` of proc_pid_smaps(5)) under which a written page could lose its bit, and why.
const REFUSED: [(&str, &str); 3] = [
    ("ht", "huge pages of the hugetlb pool have no soft-dirty bits"),
    ("mg", "the kernel may merge its pages with equal ones (KSM)"),
    ("pf", "it is device memory"),
];

/// Checks the bytes `start..end` of an address space against the text of its `/proc/PID/smaps`.
///
/// # Errors
/// What stands in the way, for a person.
pub(super) fn check(smaps: &str, start: u64, end: u64) -> Result<(), String> {
    // The part of the range not seen yet begins here; mappings come in the order of their addresses.
    let mut at = start;
    let mut mapping = (0, 0);
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let (from, to) = mapping;
            if from > at || to <= at || at >= end {
                continue;
            }
            let has = |flag: &str| flags.split_whitespace().any(|f| f == flag);
            if let Some((_, why)) = REFUSED.iter().find(|(flag, _)| has(flag)) {
                return Err((*why).to_owned());
            }
            if !has("lo") {
                return Err("it is not locked in memory".into());
            }
            at = to;
        } else if let Some(range) = range_of(line) {
            mapping = range;
        }
    }
    if at >= end {
        return Ok(());
    }
    Err(format!("{} of its pages are not mapped", (end - at) / PAGE_SIZE))
}

/// The addresses of a mapping's first line.
fn range_of(line: &str) -> Option<(u64, u64)> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// Whether the kernel makes no transparent huge pages for a process, from its `/proc/PID/status` (PR_SET_THP_DISABLE).
pub(super) fn without_huge_pages(status: &str) -> bool {
    status.lines().find_map(|line| line.strip_prefix("THP_enabled:")).is_some_and(|value| value.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smaps(mappings: &[(u64, u64, &str)]) -> String {
        mappings
            .iter()
            .map(|(start, end, flags)| {
                format!("{start:x}-{end:x} rw-s 00000000 00:01 7 /memfd:ninefold-ram (deleted)\nRss: 4 kB\nVmFlags: {flags} \n")
            })
            .collect()
    }

    #[test]
    fn every_part_of_a_block_must_be_fit() {
        let text = smaps(&[
            (0x1000, 0x2000, "rd"),
            (0x4000, 0x6000, "rd wr lo"),
            (0x6000, 0x9000, "rd lo"),
            (0x9000, 0xa000, "rd"),
        ]);
        assert_eq!(check(&text, 0x4000, 0x9000), Ok(()));
        assert_eq!(check(&text, 0x5000, 0x8000), Ok(()));
        assert_eq!(check(&text, 0x8000, 0xa000), Err("it is not locked in memory".into()));
        assert_eq!(check(&text, 0x3000, 0x5000), Err("2 of its pages are not mapped".into()));
        assert_eq!(check("", 0x1000, 0x2000), Err("1 of its pages are not mapped".into()));
        for (flag, word) in [("ht", "hugetlb"), ("mg", "KSM"), ("pf", "device")] {
            let text = smaps(&[(0x4000, 0x6000, "rd lo"), (0x6000, 0x7000, &format!("rd lo {flag}"))]);
            assert!(check(&text, 0x4000, 0x7000).unwrap_err().contains(word));
            assert_eq!(check(&text, 0x4000, 0x6000), Ok(()));
        }
    }

    #[test]
    fn the_switch_for_huge_pages_is_read() {
        assert!(without_huge_pages("Name:\tqemu\nTHP_enabled:\t0\nThreads:\t4\n"));
        assert!(!without_huge_pages("THP_enabled:\t1\n"));
        assert!(!without_huge_pages("Name:\tqemu\n"));
    }
}
