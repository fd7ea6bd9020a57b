//! Runs this test program once more, inside a VM with Debian 12's kernel.
//!
//! The VM's initramfs is the test guest's (see guest/README.md) and, laid over it, this program, QEMU 7.2, their
//! libraries and an `/init` of its own. What the program says comes back over the console.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ninefold_machine::process;

/// Set inside the VM.
const INSIDE: &str = "NINEFOLD_OLD_KERNEL";
/// Begins the line with the program's exit status.
const STATUS: &str = "old-kernel: status ";
/// A VM that says nothing for this long is stuck.
const SILENCE: Duration = Duration::from_secs(240);

/// Whether this program is the one inside.
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs the test `name` of this program in the VM. Answers false when something that it needs is not here.
///
/// # Panics
/// When the test fails there.
pub fn run(name: &str) -> bool {
    let cache = super::guest::cache();
    let (base, kernel, qemu) =
        (cache.join("guest/current/initrd.img"), cache.join("guest/current/vmlinuz"), cache.join("qemu-7.2"));
    for needed in [&base, &kernel, &qemu] {
        if !needed.exists() {
            eprintln!("skipped: {} is not here", needed.display());
            return false;
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let initrd = dir.path().join("initrd.img");
    let mut image = std::fs::read(&base).unwrap();
    image.resize(image.len().next_multiple_of(512), 0);
    image.extend(overlay(name, dir.path(), &cache, &qemu).finish());
    std::fs::write(&initrd, image).unwrap();
    let disk = dir.path().join("swap.img");
    std::fs::File::create(&disk).unwrap().set_len(256 << 20).unwrap();

    let (console, theirs) = UnixStream::pair().unwrap();
    console.set_read_timeout(Some(SILENCE)).unwrap();
    let mut args: Vec<OsString> = [
        "-nodefaults -no-user-config -no-reboot -display none -accel tcg,thread=multi -machine pc -smp 2 -m 1536",
        &format!("-chardev socket,id=console,fd={} -serial chardev:console", theirs.as_raw_fd()),
        "-device virtio-blk-pci,drive=swap",
    ]
    .iter()
    .flat_map(|line| line.split(' '))
    .map(OsString::from)
    .collect();
    let drive = format!("if=none,id=swap,format=raw,cache=unsafe,file={}", disk.display());
    let rest = [
        "-kernel",
        kernel.to_str().unwrap(),
        "-initrd",
        initrd.to_str().unwrap(),
        "-drive",
        &drive,
        "-append",
        "console=ttyS0 quiet no_timer_check mitigations=off panic=-1",
    ];
    args.extend(rest.map(OsString::from));
    let child = process::spawn(Path::new("qemu-system-x86_64"), &args, &[], &[theirs.as_fd()]).unwrap();
    drop(theirs);
    let mut status = None;
    for line in BufReader::new(console).split(b'\n') {
        let Ok(line) = line else { panic!("the VM is silent for {} s", SILENCE.as_secs()) };
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        eprintln!("  | {line}");
        status = status.or_else(|| line.strip_prefix(STATUS).map(str::to_owned));
    }
    child.wait(Duration::from_secs(10));
    assert_eq!(status.as_deref(), Some("0"), "{name} failed under the old kernel: {:?}", child.exit());
    true
}

/// What is laid over the test guest's files.
fn overlay(name: &str, dir: &Path, cache: &Path, qemu: &Path) -> Archive {
    let mut archive = Archive::default();
    // Without what only debuggers read, it is a tenth of the size.
    let program = dir.join("program");
    let own = std::env::current_exe().unwrap();
    assert!(Command::new("strip").arg("-o").arg(&program).arg(&own).status().unwrap().success());
    archive.file("/program", &program);
    let emulator = qemu.join("usr/bin/qemu-system-x86_64");
    let private = qemu.join("usr/lib/x86_64-linux-gnu");
    archive.libraries(&program, &private);
    archive.libraries(&emulator, &private);
    archive.file(emulator.to_str().unwrap(), &emulator);
    for file in [
        "qemu-system-x86_64",
        "usr/share/seabios/bios-256k.bin",
        "usr/share/qemu/kvmvapic.bin",
        "usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so",
    ] {
        let file = qemu.join(file);
        archive.file(file.to_str().unwrap(), &file);
    }
    archive.entry("/init", 0o100_755, init(name, cache).as_bytes());
    archive
}

fn init(name: &str, cache: &Path) -> String {
    format!(
        "#!/bin/sh\n\
         export PATH=/bin:/sbin HOME=/ {INSIDE}=1 NINEFOLD_CACHE={cache} RUST_BACKTRACE=1\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp; mount -t cgroup2 none /sys/fs/cgroup\n\
         while read -r module; do insmod /lib/modules/$module.ko; done </lib/modules/order\n\
         echo \"old-kernel: $(uname -r)\"\n\
         mkswap /dev/vda >/dev/null && swapon /dev/vda\n\
         /program {name} --exact --nocapture --test-threads=1 2>&1\n\
         echo \"{STATUS}$?\"\n\
         reboot -f\n",
        cache = cache.display()
    )
}

/// A cpio archive in the form that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    paths: std::collections::BTreeSet<PathBuf>,
}

impl Archive {
    /// A file under `path`, with the directories above it.
    fn file(&mut self, path: &str, from: &Path) {
        let contents = std::fs::read(from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        let mode = std::fs::metadata(from).unwrap().permissions().mode() & 0o777;
        self.entry(path, 0o100_000 | mode, &contents);
    }

    /// The shared libraries of a program, where its loader looks for them.
    fn libraries(&mut self, program: &Path, private: &Path) {
        let listed = Command::new("ldd").arg(program).env("LD_LIBRARY_PATH", private).output().unwrap();
        for line in String::from_utf8(listed.stdout).unwrap().lines() {
            // "name => path (address)", or "path (address)" for the loader itself.
            let path = line.split_whitespace().find(|word| word.starts_with('/'));
            if let Some(path) = path {
                self.file(path, Path::new(path));
            }
        }
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8]) {
        if !self.paths.insert(path.into()) {
            return;
        }
        let above = Path::new(path).parent().filter(|p| *p != Path::new("/"));
        if let Some(above) = above {
            self.entry(above.to_str().unwrap(), 0o040_755, &[]);
        }
        self.raw(path.trim_start_matches('/'), mode, contents);
    }

    fn raw(&mut self, name: &str, mode: u32, contents: &[u8]) {
        let inode = self.paths.len() as u32;
        let size = contents.len() as u32;
        self.bytes.extend_from_slice(b"070701");
        for field in [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name.len() as u32 + 1, 0] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.raw("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
