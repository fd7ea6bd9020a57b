//! Memory for the jobs, refused before the guest's out-of-memory killer has to decide.

/// 8-byte words in a page of 4 KiB.
pub const PAGE_WORDS: usize = 512;
/// Bytes in a page.
pub const PAGE_BYTES: u64 = 4096;
/// What must stay free for the rest of the guest, KiB.
const RESERVE_KIB: u64 = 16 * 1024;

/// One page, where the guest's own pages begin: a write to one never touches two.
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct Page(pub [u64; PAGE_WORDS]);

/// The guest has less memory than was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLittle {
    pub asked_mib: u64,
    pub free_mib: u64,
}

impl std::fmt::Display for TooLittle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} MiB asked for, {} MiB can be had", self.asked_mib, self.free_mib)
    }
}

/// Takes `mib` MiB in `parts` equal shares (each at least one page).
///
/// # Errors
/// When that would leave the guest short (`MemAvailable` in proc(5)).
pub fn take(mib: u64, parts: u64) -> Result<Vec<Vec<Page>>, TooLittle> {
    let free_kib = available_kib().saturating_sub(RESERVE_KIB);
    let refused = TooLittle { asked_mib: mib, free_mib: free_kib / 1024 };
    if mib.checked_mul(1024).is_none_or(|kib| kib > free_kib) {
        return Err(refused);
    }
    let pages = usize::try_from((mib << 20) / PAGE_BYTES / parts.max(1)).map_err(|_| refused)?.max(1);
    (0..parts)
        .map(|_| {
            let mut share: Vec<Page> = Vec::new();
            share.try_reserve_exact(pages).map_err(|_| refused)?;
            share.resize(pages, Page([0; PAGE_WORDS]));
            Ok(share)
        })
        .collect()
}

/// `MemAvailable`, or nothing when it cannot be read: then nothing is given.
fn available_kib() -> u64 {
    let Ok(text) = std::fs::read_to_string("/proc/meminfo") else {
        return 0;
    };
    text.lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))
        .and_then(|v| v.trim().strip_suffix("kB"))
        .and_then(|v| v.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_refusal() {
        let shares = take(2, 3).expect("2 MiB");
        assert_eq!(shares.len(), 3);
        assert!(shares.iter().all(|s| s.len() == 170));
        assert_eq!(take(1, 64).expect("1 MiB").len(), 64);
        assert!(take(u64::MAX, 1).is_err());
    }
}
