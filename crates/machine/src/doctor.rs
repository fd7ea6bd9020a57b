//! What this host can do.
//!
//! Each check tries the real thing where that is possible in a moment: a page is really tracked, the kernel really boots
//! under KVM when one is given.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use ninefold_model::spec::Accel;
use serde::{Deserialize, Serialize};

use crate::dirty::host;
use crate::sys;
use crate::version::QemuVersion;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckState {
    Ok,
    /// Works, with less speed or comfort.
    Warning,
    /// A VM cannot run, or cannot be protected, here.
    Failed,
}

/// One line of the doctor's report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at, such as `userfaultfd`.
    pub name: String,
    pub state: CheckState,
    /// What was found.
    pub detail: String,
    /// What to do, unless all is well.
    pub advice: Option<String>,
}

impl Check {
    /// All is well.
    pub fn ok(name: &str, detail: impl Into<String>) -> Check {
        Check { name: name.into(), state: CheckState::Ok, detail: detail.into(), advice: None }
    }

    /// [`CheckState::Warning`], and what to do.
    pub fn warning(name: &str, detail: impl Into<String>, advice: &str) -> Check {
        Check { state: CheckState::Warning, advice: Some(advice.into()), ..Check::ok(name, detail) }
    }

    /// [`CheckState::Failed`], and what to do.
    pub fn failed(name: &str, detail: impl Into<String>, advice: &str) -> Check {
        Check { state: CheckState::Failed, ..Check::warning(name, detail, advice) }
    }
}

/// What to examine.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// QEMU's program.
    pub qemu: &'a Path,
    /// A kernel to boot for the KVM check; without it only the device is opened.
    pub kernel: Option<&'a Path>,
    /// Where the KVM check's answer is remembered.
    pub cache_dir: &'a Path,
}

/// All checks, in the order in which a person would fix them.
pub fn examine(subject: Subject<'_>) -> Vec<Check> {
    vec![
        privileges(),
        qemu(subject.qemu),
        kvm(subject),
        userfaultfd(),
        pagemap_scan(),
        soft_dirty(),
        huge_pages(),
        tun(),
        locked_memory(),
    ]
}

fn privileges() -> Check {
    const NAME: &str = "privileges";
    // Numbers of linux/capability.h.
    const NEEDED: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (19, "CAP_SYS_PTRACE"), (21, "CAP_SYS_ADMIN")];
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let lacking: Vec<&str> =
        NEEDED.iter().filter(|(bit, _)| effective & 1 << bit == 0).map(|(_, name)| *name).collect();
    if lacking.is_empty() {
        return Check::ok(NAME, "all capabilities that are needed");
    }
    let uid = rustix::process::geteuid().as_raw();
    Check::failed(NAME, format!("user {uid} lacks {}", lacking.join(", ")), "run as root")
}

fn qemu(program: &Path) -> Check {
    const NAME: &str = "qemu";
    let version = QemuVersion::of_program(program).and_then(QemuVersion::check);
    match version {
        Ok(version) if version.is_untested() => Check::warning(
            NAME,
            format!("{} {version}", program.display()),
            "newer than any version that was tried: run the test suite here before relying on it",
        ),
        Ok(version) => Check::ok(NAME, format!("{} {version}", program.display())),
        Err(error) => Check::failed(NAME, error.to_string(), "install qemu-system-x86 7.2 or newer"),
    }
}

fn kvm(subject: Subject<'_>) -> Check {
    const NAME: &str = "kvm";
    const ADVICE: &str =
        "VMs run under TCG, several times slower; use hardware, or nested virtualization, that runs KVM";
    /// `_IO(0xAE, 0)`, linux/kvm.h.
    const KVM_GET_API_VERSION: u64 = 0xae00;
    let device = match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(device) => device,
        Err(error) => return Check::warning(NAME, format!("/dev/kvm cannot be opened ({error})"), ADVICE),
    };
    match sys::ioctl_plain(device.as_fd(), KVM_GET_API_VERSION) {
        Ok(12) => {}
        Ok(other) => return Check::warning(NAME, format!("/dev/kvm has API version {other}, not 12"), ADVICE),
        Err(error) => return Check::warning(NAME, format!("/dev/kvm does not answer ({error})"), ADVICE),
    }
    let Some(kernel) = subject.kernel else {
        return Check::warning(NAME, "/dev/kvm opens; no kernel was given to try it with", "name a kernel to be sure");
    };
    match crate::accel::probe(kernel, subject.qemu, subject.cache_dir) {
        Ok(report) if report.accel == Accel::Kvm => Check::ok(NAME, report.reason),
        Ok(report) => Check::warning(NAME, report.reason, ADVICE),
        Err(error) => Check::warning(NAME, format!("it could not be tried: {error}"), ADVICE),
    }
}

/// A check of what tracking by PAGEMAP_SCAN needs. Without it VMs are protected by soft-dirty bits, if these work.
fn preferred(name: &str, found: Result<&str, String>, need: &str) -> Check {
    match found {
        Ok(detail) => Check::ok(name, detail),
        Err(reason) if host::soft_dirty().is_ok() => {
            let advice = format!("VMs are protected by soft-dirty bits, which is slower; better: {need}");
            Check::warning(name, reason, &advice)
        }
        Err(reason) => Check::failed(name, reason, &format!("no VM can be protected: {need}")),
    }
}

fn userfaultfd() -> Check {
    let found = host::userfaultfd().map(|_| "asynchronous write protection, also of shared and of empty memory");
    let need = "use Linux 6.7 or newer with CONFIG_USERFAULTFD, as root or with vm.unprivileged_userfaultfd=1";
    preferred("userfaultfd", found, need)
}

fn pagemap_scan() -> Check {
    let found = host::pagemap_scan().map(|()| "finds exactly the page that was written");
    preferred("pagemap-scan", found, "use Linux 6.7 or newer with CONFIG_PROC_PAGE_MONITOR")
}

fn soft_dirty() -> Check {
    const NAME: &str = "soft-dirty";
    match (host::soft_dirty(), host::pagemap_scan()) {
        (Ok(()), Ok(())) => Check::ok(NAME, "finds exactly the page that was written; not needed"),
        (Ok(()), Err(_)) => Check::ok(NAME, "finds exactly the page that was written"),
        (Err(reason), Ok(())) => Check::ok(NAME, format!("not usable ({reason}); not needed")),
        (Err(reason), Err(_)) => Check::failed(
            NAME,
            reason,
            "no VM can be protected: use Linux 6.7 or newer; or 6.1 or newer with CONFIG_MEM_SOFT_DIRTY, with \
             vm.compact_unevictable_allowed=0 and kernel.numa_balancing=0",
        ),
    }
}

fn huge_pages() -> Check {
    const NAME: &str = "huge-pages";
    let pool = "/sys/kernel/mm/hugepages/hugepages-2048kB/";
    let number = |file: &str| {
        std::fs::read_to_string(format!("{pool}{file}")).ok().and_then(|text| text.trim().parse::<u64>().ok())
    };
    match (number("free_hugepages"), number("nr_hugepages")) {
        (Some(free), Some(all)) => {
            Check::ok(NAME, format!("{free} of {all} pages of 2 MiB free; guests use 4 KiB pages"))
        }
        _ => Check::ok(NAME, "no pool of 2 MiB pages; guests use 4 KiB pages"),
    }
}

fn tun() -> Check {
    const NAME: &str = "tun";
    match File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Check::ok(NAME, "/dev/net/tun opens"),
        Err(error) => Check::failed(
            NAME,
            format!("/dev/net/tun cannot be opened ({error})"),
            "VMs have no network: load the module (modprobe tun) and run as root",
        ),
    }
}

fn locked_memory() -> Check {
    const NAME: &str = "memlock";
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let text = limit.map_or_else(|| "no limit".to_owned(), |bytes| format!("{} KiB may be locked", bytes / 1024));
    // Only tracking by soft-dirty bits locks memory. Everywhere else the kernel may swap a guest out, which makes its pauses long.
    let swap = std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1);
    if swap {
        return Check::warning(NAME, format!("{text}; swap is on"), "switch swap off: a swapped guest pauses for long");
    }
    Check::ok(NAME, format!("{text}; swap is off"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_qemu_and_a_missing_kvm_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let checks = examine(Subject { qemu: Path::new("/nowhere/qemu"), kernel: None, cache_dir: dir.path() });
        let check = |name: &str| checks.iter().find(|c| c.name == name).unwrap();
        assert_eq!(check("qemu").state, CheckState::Failed);
        assert!(check("qemu").detail.contains("/nowhere/qemu"));
        assert!(checks.iter().all(|c| (c.state == CheckState::Ok) == c.advice.is_none()), "{checks:?}");
    }
}
