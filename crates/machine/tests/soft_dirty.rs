//! Tracking by soft-dirty bits, under a kernel that has nothing better: Debian 12's, in a VM.

mod old_kernel;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use guest::HugePages;
use guest::protected::{Protected, tracking_is_exact};
use ninefold_machine::doctor::{CheckState, Subject, examine};
use ninefold_machine::{DirtySet, MachineConfig, MachineError, Mechanism, PAGE_SIZE, PageSize, Ram};
use ninefold_model::spec::Accel;
use ninefold_testkit::guest;

const COMPACTION: &str = "/proc/sys/vm/compact_unevictable_allowed";

/// Boots the old kernel and runs the rest of this file there.
#[test]
#[ignore = "long: make soak"]
fn soft_dirty_bits_are_exact() {
    if !old_kernel::inside() {
        old_kernel::run("soft_dirty_bits_are_exact");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = guest::boot_sector(dir.path());
    let qemu = guest::cache().join("qemu-7.2/qemu-system-x86_64");
    let config = guest::config(&qemu, Accel::Tcg, 1, &image);
    step("an unlocked shared page that is paged out loses its bit", a_page_out_loses_the_bit);
    step("a host whose kernel may move locked pages is refused", || unfit_hosts_are_refused(&config));
    step("huge pages are refused", || huge_pages_are_refused(&config));
    let meddling = Meddling::begin();
    std::thread::scope(|scope| {
        scope.spawn(|| meddling.run());
        step("one vCPU", || tracking_is_exact(&qemu, Accel::Tcg, 1));
        step("two vCPUs", || tracking_is_exact(&qemu, Accel::Tcg, 2));
        meddling.end.store(true, Ordering::Relaxed);
    });
    let rounds = meddling.rounds.load(Ordering::Relaxed);
    let [moved, swapped] = ["pgmigrate_success", "pswpout"].map(Meddling::counted);
    eprintln!("meanwhile, in {rounds} rounds, the kernel moved {moved} pages and swapped {swapped} out");
    assert!(rounds > 0 && moved > 0 && swapped > 0);
    step("cost of a scan", || cost(&config));
}

fn step(what: &str, run: impl FnOnce()) {
    let began = Instant::now();
    run();
    eprintln!("{what}: {:.1} s", began.elapsed().as_secs_f64());
}

/// What the lock is for: shown on memory of our own, without it.
fn a_page_out_loses_the_bit() {
    use std::os::unix::fs::FileExt as _;
    const MADV_PAGEOUT: i32 = 21;
    let length = PAGE_SIZE as usize;
    // SAFETY: a new mapping.
    let page = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            length,
            rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
            rustix::mm::MapFlags::SHARED,
        )
    }
    .unwrap();
    let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    let dirty = || {
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, page as u64 / PAGE_SIZE * 8).unwrap();
        u64::from_ne_bytes(entry) >> 55 & 1 == 1
    };
    // SAFETY: the mapping's first byte.
    let write = || unsafe { page.cast::<u8>().write_volatile(7) };
    // SAFETY: the mapping's first byte.
    let read = || unsafe { page.cast::<u8>().read_volatile() };
    // SAFETY: the mapping made above; its contents stay.
    let page_out = || unsafe { libc::madvise(page, length, MADV_PAGEOUT) };
    write();
    std::fs::write("/proc/self/clear_refs", "4").unwrap();
    assert!(!dirty());
    write();
    assert!(dirty());
    assert_eq!(page_out(), 0);
    assert_eq!(read(), 7);
    assert!(!dirty(), "the kernel keeps the bit of a page that was away: the lock may be needless");
    // SAFETY: the mapping made above.
    assert_eq!(unsafe { libc::mlock(page, length) }, 0);
    write();
    assert!(dirty());
    assert_eq!(page_out(), -1);
    assert!(dirty());
    // SAFETY: the mapping made above; nobody uses it any more.
    unsafe { rustix::mm::munmap(page, length) }.unwrap();
}

fn unfit_hosts_are_refused(config: &MachineConfig) {
    let check = |name: &str| {
        let subject = Subject { qemu: Path::new("/nowhere"), kernel: None, cache_dir: Path::new("/tmp") };
        examine(subject).into_iter().find(|c| c.name == name).unwrap()
    };
    std::fs::write(COMPACTION, "1").unwrap();
    for name in ["userfaultfd", "pagemap-scan", "soft-dirty"] {
        let check = check(name);
        assert_eq!(check.state, CheckState::Failed, "{check:?}");
    }
    let (mut machine, _ports) = guest::launch(config);
    assert_eq!(machine.mechanism(), None);
    let error = machine.track().unwrap_err();
    assert!(matches!(&error, MachineError::Kernel { reason } if reason.contains("compact_unevictable")), "{error}");
    machine.quit();

    std::fs::write(COMPACTION, "0").unwrap();
    assert_eq!(check("userfaultfd").state, CheckState::Warning);
    assert_eq!(check("pagemap-scan").state, CheckState::Warning);
    assert_eq!(check("soft-dirty").state, CheckState::Ok);
    let (mut machine, _ports) = guest::launch(config);
    assert_eq!(machine.mechanism(), Some(Mechanism::SoftDirty));
    let tracker = machine.track().unwrap();
    assert_eq!(tracker.mechanism(), Mechanism::SoftDirty);
    assert!(matches!(machine.track(), Err(MachineError::Order { .. })));
    drop(tracker);
    machine.track().unwrap();
    machine.quit();
}

fn huge_pages_are_refused(config: &MachineConfig) {
    let _reserved = HugePages::reserve(guest::MEMORY_MIB / 2 + 4).unwrap();
    let (mut machine, _ports) =
        guest::launch_with(config, Ram::create_with(guest::MEMORY_MIB << 20, PageSize::Huge).unwrap());
    let error = machine.track().unwrap_err();
    assert!(matches!(&error, MachineError::Untrackable { block, reason } if block == "m0" && reason.contains("huge")));
    machine.quit();
}

/// All that the kernel does to memory behind a process's back, as hard as it can be asked to: compaction, reclaim with
/// swap, merging of equal pages, joining of pages to huge ones.
#[derive(Default)]
struct Meddling {
    end: AtomicBool,
    rounds: AtomicU64,
}

impl Meddling {
    /// A control group of this process, so that its memory, and that of the QEMUs that it starts, can be reclaimed.
    const GROUP: &str = "/sys/fs/cgroup/meddled";

    fn begin() -> Meddling {
        for (file, value) in [
            ("/sys/kernel/mm/ksm/sleep_millisecs", "1"),
            ("/sys/kernel/mm/ksm/run", "1"),
            ("/sys/kernel/mm/transparent_hugepage/enabled", "always"),
            ("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "always"),
            ("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "1"),
            ("/sys/fs/cgroup/cgroup.subtree_control", "+memory"),
        ] {
            std::fs::write(file, value).unwrap_or_else(|e| panic!("{file}: {e}"));
        }
        std::fs::create_dir(Self::GROUP).unwrap();
        std::fs::write(format!("{}/cgroup.procs", Self::GROUP), std::process::id().to_string()).unwrap();
        Meddling::default()
    }

    fn run(&self) {
        while !self.end.load(Ordering::Relaxed) {
            std::fs::write("/proc/sys/vm/compact_memory", "1").unwrap();
            // Answers EAGAIN when it finds less than that to take.
            let _ = std::fs::write(format!("{}/memory.reclaim", Self::GROUP), "16M");
            self.rounds.fetch_add(1, Ordering::Relaxed);
            // Not the only thing that the two processors do.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the kernel counts (`/proc/vmstat`).
    fn counted(name: &str) -> u64 {
        let text = std::fs::read_to_string("/proc/vmstat").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in vmstat")).parse().unwrap()
    }
}

/// Prints what a scan of 256 MiB costs: here, under emulation, only in relation to each other.
fn cost(config: &MachineConfig) {
    use std::os::unix::fs::FileExt as _;
    const PAGES: u64 = 65_536;
    const ROUNDS: u32 = 10;
    let mut config = config.clone();
    config.spec.hardware.memory_mib = (PAGES * PAGE_SIZE) >> 20;
    let mut vm = Protected::start_with(&config, Ram::create(PAGES * PAGE_SIZE).unwrap());
    vm.machine.stop().unwrap();
    let process = PathBuf::from(format!("/proc/{}", vm.machine.pid()));
    let maps = std::fs::read_to_string(process.join("maps")).unwrap();
    let start = maps.lines().find(|line| line.contains("/memfd:ninefold-ram")).and_then(|line| line.split_once('-'));
    let start = u64::from_str_radix(start.unwrap().0, 16).unwrap();
    let memory = std::fs::File::options().write(true).open(process.join("mem")).unwrap();
    let mut dirty = DirtySet::for_layout(vm.machine.memory().layout());
    let mut touch = |every: u64| {
        for page in (0..PAGES).step_by(every as usize) {
            memory.write_all_at(&[1], start + page * PAGE_SIZE).unwrap();
        }
        dirty.clear();
        let began = Instant::now();
        let pages = vm.tracker.scan(&mut dirty).unwrap();
        (pages, began.elapsed())
    };
    touch(1);
    for every in [1, 2, 32, PAGES] {
        let mut times: Vec<_> = (0..ROUNDS).map(|_| touch(every)).collect();
        times.sort();
        let (pages, time) = times[times.len() / 2];
        eprintln!("scan of {PAGES} pages, {pages} dirty: {:.2} ms", time.as_secs_f64() * 1e3);
    }
    let parts = |what: &str, part: &dyn Fn()| {
        let mut times: Vec<_> = (0..ROUNDS)
            .map(|_| {
                let began = Instant::now();
                part();
                began.elapsed()
            })
            .collect();
        times.sort();
        eprintln!("{what}: {:.2} ms", times[times.len() / 2].as_secs_f64() * 1e3);
    };
    let pagemap = std::fs::File::open(process.join("pagemap")).unwrap();
    parts("reading the entries alone", &|| {
        let mut entries = vec![0; 64 << 10];
        for part in 0..PAGES * 8 / (64 << 10) {
            pagemap.read_exact_at(&mut entries, start / PAGE_SIZE * 8 + part * (64 << 10)).unwrap();
        }
    });
    parts("clearing alone", &|| std::fs::write(process.join("clear_refs"), "4").unwrap());
    vm.machine.quit();
}
