//! A guest of one boot sector and what tests need around it.
//!
//! It counts at [`COUNTER`] and, per count, writes one random word to one of 2,048 pages above 1 MiB, or where [`WHERE`] says. The other vCPUs,
//! if any, count at [`OTHER_COUNTER`] and write to 64 pages from 128 KiB on.

pub mod protected;
pub mod sweep;
pub mod timed;

use std::arch::global_asm;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ninefold_machine::{Machine, MachineConfig, Memory, PAGE_SIZE, PageRun, Ports, Ram};
use ninefold_model::spec::{Accel, AccelChoice, Arch, Boot, BootKind, Hardware, Nic, Policy, VmSpec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Physical address of the first vCPU's 32-bit count.
pub const COUNTER: u64 = 0x500;
/// The same for the others.
pub const OTHER_COUNTER: u64 = 0x510;
/// The bytes behind 1 MiB where those pages begin: 0 after a boot. In the page of the counters, which is written all the time
/// anyway.
pub const WHERE: u64 = 0x520;
/// Guest memory, MiB.
pub const MEMORY_MIB: u64 = 32;

global_asm!(
    r#"
    .section .rodata.nf_boot, "a"
    .globl nf_boot
    .globl nf_boot_end
    .code16
nf_boot:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl (nf_gdtr - nf_boot + 0x7c00)
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $8, $(nf_flat - nf_boot + 0x7c00)
nf_other:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw $0x1357, %bx
1:  incl 0x510
    imulw $25173, %bx, %bx
    addw $13849, %bx
    movw %bx, %ax
    shrw $10, %ax
    shlw $8, %ax
    addw $0x2000, %ax
    movw %ax, %es
    movw %bx, %di
    andw $0xffe, %di
    movw %bx, %es:(%di)
    movw $100, %cx
2:  loop 2b
    jmp 1b
nf_other_end:
    .code32
nf_flat:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $(nf_other - nf_boot + 0x7c00), %esi
    movl $0x8000, %edi
    movl $(nf_other_end - nf_other), %ecx
    rep movsb
    movl $0xc4500, 0xfee00300
    movl $1000000, %ecx
3:  loop 3b
    movl $0xc4608, 0xfee00300
    movl $0x12345678, %ebx
4:  incl 0x500
    movl %ebx, %eax
    shll $13, %eax
    xorl %eax, %ebx
    movl %ebx, %eax
    shrl $17, %eax
    xorl %eax, %ebx
    movl %ebx, %eax
    shll $5, %eax
    xorl %eax, %ebx
    movl %ebx, %eax
    andl $0x7ff, %eax
    shll $12, %eax
    movl %ebx, %ecx
    shrl $20, %ecx
    andl $0xffc, %ecx
    addl 0x520, %eax
    movl %ebx, 0x100000(%eax,%ecx)
    movl $200, %ecx
5:  loop 5b
    jmp 4b
    .balign 8
nf_gdt:
    .quad 0
    .quad 0x00cf9a000000ffff
    .quad 0x00cf92000000ffff
nf_gdtr:
    .word 23
    .long (nf_gdt - nf_boot + 0x7c00)
nf_boot_end:
    .code64
    .text
    "#,
    options(att_syntax)
);

unsafe extern "C" {
    static nf_boot: u8;
    static nf_boot_end: u8;
}

/// Writes the boot sector to a file.
pub fn boot_sector(dir: &Path) -> PathBuf {
    // SAFETY: both symbols are in the section above, in this order.
    unsafe { write_sector(&dir.join("boot.img"), &raw const nf_boot, &raw const nf_boot_end) }
}

/// Writes a boot sector of the code between two symbols to a file.
///
/// # Safety
/// Both are in one section, in this order.
unsafe fn write_sector(path: &Path, start: *const u8, end: *const u8) -> PathBuf {
    let length = end as usize - start as usize;
    // SAFETY: as the caller says.
    let code = unsafe { std::slice::from_raw_parts(start, length) };
    let mut sector = [0; 512];
    assert!(length <= 510, "{length} bytes do not fit");
    sector[..length].copy_from_slice(code);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(path, sector).unwrap();
    path.to_owned()
}

/// Waits until the guest has said this on its console.
pub fn hears(ports: &Ports, text: &str) {
    let mut heard: Vec<u8> = Vec::new();
    let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
    while !heard.windows(text.len()).any(|w| w == text.as_bytes()) {
        assert_eq!(poll(&mut [PollFd::new(&ports.console, PollFlags::IN)], Some(&limit)).unwrap(), 1, "no '{text}'");
        let mut bytes = [0; 256];
        let n = rustix::io::read(&ports.console, &mut bytes).unwrap();
        heard.extend(&bytes[..n]);
    }
}

/// Where the project keeps what is built outside of the tree.
pub fn cache() -> PathBuf {
    std::env::var_os("NINEFOLD_CACHE").map_or_else(|| "/var/cache/ninefold".into(), PathBuf::from)
}

/// The QEMUs that are here: the installed one, and 7.2 where it has been unpacked.
pub fn qemus() -> Vec<PathBuf> {
    let old = cache().join("qemu-7.2/qemu-system-x86_64");
    let mut found = vec![PathBuf::from("qemu-system-x86_64")];
    found.extend(old.exists().then_some(old));
    found
}

/// TCG, and KVM where it can be opened: a boot sector runs even where an ordinary kernel does not.
pub fn accels() -> Vec<Accel> {
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let mut found = vec![Accel::Tcg];
    found.extend(kvm.then_some(Accel::Kvm));
    found
}

/// A boot-sector VM with one NIC.
pub fn config(qemu: &Path, accel: Accel, vcpus: u16, image: &Path) -> MachineConfig {
    MachineConfig {
        qemu: qemu.into(),
        spec: VmSpec {
            id: ninefold_model::VmId::random(1),
            name: "test".parse().unwrap(),
            hardware: Hardware {
                arch: Arch::X86_64,
                vcpus,
                memory_mib: MEMORY_MIB,
                accel: AccelChoice::Auto,
                boot: BootKind::BootSector,
                nics: vec![Nic { mac: "52:54:00:00:00:01".parse().unwrap() }],
                volumes: Vec::new(),
                watchdog: None,
                uuid: None,
            },
            policy: Policy::default(),
        },
        boot: Boot::BootSector { image: image.into() },
        accel,
        incoming: false,
        generation: ninefold_model::Uuid::random(1),
        // A /dev/kvm that cannot run an ordinary kernel may lack the CPU model that we ask for, too.
        volumes: Vec::new(),
        extra_args: if accel == Accel::Kvm { vec!["-cpu".into(), "qemu64".into()] } else { Vec::new() },
    }
}

/// The same VM, waiting for state.
pub fn standby(config: &MachineConfig) -> MachineConfig {
    MachineConfig { incoming: true, ..config.clone() }
}

/// Launches with new memory.
pub fn launch(config: &MachineConfig) -> (Machine, Ports) {
    launch_with(config, Ram::create(config.spec.hardware.memory_mib << 20).unwrap())
}

/// Launches with this memory.
pub fn launch_with(config: &MachineConfig, ram: Ram) -> (Machine, Ports) {
    Machine::launch(config, Arc::new(ram)).unwrap_or_else(|e| panic!("{}: {e}", config.qemu.display()))
}

/// Some more 2 MiB pages in the host's pool, given back at the end.
pub struct HugePages {
    before: u64,
}

impl HugePages {
    const POOL: &str = "/proc/sys/vm/nr_hugepages";

    fn count() -> Option<u64> {
        std::fs::read_to_string(Self::POOL).ok()?.trim().parse().ok()
    }

    /// None when the host does not give them.
    pub fn reserve(more: u64) -> Option<HugePages> {
        let before = Self::count()?;
        std::fs::write(Self::POOL, (before + more).to_string()).ok()?;
        let reserved = HugePages { before };
        (Self::count()? >= before + more).then_some(reserved)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::POOL, self.before.to_string());
    }
}

/// A 32-bit number in guest memory.
pub fn word(memory: &Memory, address: u64) -> u32 {
    let mut page = [0; PAGE_SIZE as usize];
    memory.read_run(PageRun { block: 0, first: address / PAGE_SIZE, count: 1 }, &mut page).unwrap();
    let at = (address % PAGE_SIZE) as usize;
    u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
}

/// Where the first vCPU is to write from now on: see [`WHERE`].
pub fn write_where(memory: &Memory, place: u32) {
    let file = std::fs::File::from(memory.ram().as_fd().try_clone_to_owned().unwrap());
    std::os::unix::fs::FileExt::write_all_at(&file, &place.to_le_bytes(), WHERE).unwrap();
}

/// Waits until the guest has counted `by` further.
pub fn await_count(memory: &Memory, address: u64, by: u32) {
    let from = word(memory, address);
    let deadline = Instant::now() + Duration::from_secs(60);
    while word(memory, address).wrapping_sub(from) < by {
        assert!(Instant::now() < deadline, "the guest does not count at {address:#x}");
        std::thread::yield_now();
    }
}

/// Waits until the boot sector runs on all vCPUs.
pub fn await_boot(memory: &Memory, vcpus: u16) {
    let deadline = Instant::now() + Duration::from_secs(60);
    // The guest's first write above 1 MiB cannot be told from the firmware's, its code can: the copy at 0x8000.
    while word(memory, 0x8000) & 0x00ff_ffff != 0x00c0_31fa {
        assert!(Instant::now() < deadline, "the boot sector is not reached");
        std::thread::yield_now();
    }
    await_count(memory, COUNTER, 10);
    if vcpus > 1 {
        await_count(memory, OTHER_COUNTER, 10);
    }
}

/// A copy of all blocks, kept up from runs.
pub struct Shadow {
    pub blocks: Vec<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Shadow {
    pub fn empty(memory: &Memory) -> Shadow {
        let blocks = memory.layout().blocks.iter().map(|b| vec![0; b.total as usize]).collect();
        Shadow { blocks, buffer: vec![0; 1 << 20] }
    }

    /// Copies what `runs` cover.
    pub fn take(&mut self, memory: &Memory, runs: &[PageRun]) {
        for run in runs {
            let at = (run.first * PAGE_SIZE) as usize;
            memory.read_run(*run, &mut self.blocks[usize::from(run.block)][at..at + run.bytes()]).unwrap();
        }
    }

    /// Copies everything.
    pub fn take_all(&mut self, memory: &Memory) {
        let runs: Vec<_> = memory.all_runs(256).collect();
        self.take(memory, &runs);
    }

    /// Fails unless every byte of every block is as in the copy.
    pub fn assert_same(&mut self, memory: &Memory, when: &str) {
        for run in memory.all_runs(256) {
            let at = (run.first * PAGE_SIZE) as usize;
            let ours = &self.blocks[usize::from(run.block)][at..at + run.bytes()];
            memory.read_run(run, &mut self.buffer[..run.bytes()]).unwrap();
            if ours != &self.buffer[..run.bytes()] {
                let page = memory.first_difference(run, ours).unwrap();
                panic!("{when}: '{}' differs in page {page:?}", memory.layout().blocks[usize::from(run.block)].name);
            }
        }
    }

    /// Writes the copy into another QEMU.
    pub fn give(&self, memory: &Memory) {
        for run in memory.all_runs(256) {
            let at = (run.first * PAGE_SIZE) as usize;
            memory.write_run(run, &self.blocks[usize::from(run.block)][at..at + run.bytes()]).unwrap();
        }
    }
}
