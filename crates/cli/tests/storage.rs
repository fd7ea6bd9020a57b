//! Volumes and golden images through the command, with files that QEMU's own tools made.

mod fixture;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fixture::{fails, json, ninefold, ok};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A directory with a pool and files in it.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A command line in this pool.
    fn args<'a>(&self, words: &[&'a str], pool: &'a str) -> Vec<&'a str> {
        [words, &["--pool", pool]].concat()
    }

    fn json(&self, words: &[&str]) -> Value {
        json(&self.args(words, &self.text("pool")))
    }

    fn ok(&self, words: &[&str]) -> String {
        ok(&self.args(words, &self.text("pool")))
    }

    fn fails(&self, words: &[&str]) -> String {
        let said = fails(&self.args(words, &self.text("pool")), 1);
        assert!(said.starts_with("ninefold: ") && said.contains("\nhelp: "), "{said}");
        said
    }

    /// Everything below the pool but its lock.
    fn inside(&self) -> Vec<PathBuf> {
        let folders = ["volumes", "images"].map(|folder| self.path("pool").join(folder));
        let entries = folders.iter().flat_map(|f| fs::read_dir(f).into_iter().flatten());
        let mut all: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
        all.sort();
        all
    }
}

fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    assert!(output.status.success(), "qemu-img {args:?}: {output:?}");
}

/// A qcow2 file of 16 MiB with a pattern in it.
fn qcow2(file: &Path) {
    let file = file.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", file, "16M"]);
    let write = ["-f", "qcow2", "-c", "write -P 7 0 1M", "-c", "write -P 9 9M 64k", file];
    assert!(Command::new("qemu-io").args(write).stdout(Stdio::null()).status().unwrap().success());
}

fn is_patterned(bytes: &[u8]) -> bool {
    let at = |from: usize, length: usize, byte: u8| bytes[from..][..length].iter().all(|&b| b == byte);
    let mib = MIB as usize;
    at(0, mib, 7) && at(mib, 8 * mib, 0) && at(9 * mib, 64 << 10, 9)
}

#[test]
fn a_volume_from_its_making_to_its_end() {
    let bench = Bench::new();
    let said = fails(&["volume", "list", "--pool", &bench.text("pool")], 1);
    assert!(said.contains("there is no storage pool") && said.contains("--pool"), "{said}");
    assert!(!bench.path("pool").exists(), "looking makes none");

    let made = bench.json(&["volume", "create", "data", "--size", "64M"]);
    assert_eq!((&made["size"], &made["format"]), (&(64 * MIB).into(), &"raw".into()), "{made:#}");
    bench.ok(&["volume", "create", "thin", "--size", "1G", "--format", "qcow2"]);
    assert!(bench.fails(&["volume", "create", "data", "--size", "1M"]).contains("already a volume 'data'"));

    let list = bench.json(&["volume", "list"]);
    let names: Vec<_> = list["volumes"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["data", "thin"]);
    assert!(list["free"].as_u64().unwrap() > 0);
    let text = bench.ok(&["volume", "list"]);
    assert!(text.contains("data  64.0 MiB  raw") && text.contains(" free"), "{text}");
    assert!(bench.ok(&["image", "list"]).starts_with("no images\n"));

    // Growing and shrinking, with the guard.
    assert_eq!(bench.json(&["volume", "grow", "data", "128M"])["size"], 128 * MIB);
    assert!(bench.fails(&["volume", "grow", "data", "64M"]).contains("cannot grow to"));
    for volume in ["data", "thin"] {
        let format = if volume == "data" { "raw" } else { "qcow2" };
        let image = bench.path("pool").join("volumes").join(volume).join(format!("image.{format}"));
        let write = ["-f", format, "-c", "write -P 1 40M 4k", image.to_str().unwrap()];
        assert!(Command::new("qemu-io").args(write).stdout(Stdio::null()).status().unwrap().success());
        let said = bench.fails(&["volume", "shrink", volume, "32M"]);
        assert!(said.contains(&format!("data at byte {}", 40 * MIB)) && said.contains("--discard-data"), "{said}");
        assert_eq!(bench.json(&["volume", "shrink", volume, "41M"])["size"], 41 * MIB);
        assert_eq!(bench.json(&["volume", "shrink", volume, "32M", "--discard-data"])["size"], 32 * MIB);
    }

    assert_eq!(bench.json(&["volume", "remove", "data"])["removed"], "data");
    assert!(bench.ok(&["volume", "remove", "thin"]).contains("volume 'thin' is gone"));
    assert!(bench.fails(&["volume", "remove", "thin"]).contains("there is no volume 'thin'"));
    assert_eq!(bench.inside(), Vec::<PathBuf>::new());
}

#[test]
fn images_come_in_are_cloned_and_go_out() {
    let bench = Bench::new();
    let source = bench.text("debian.qcow2");
    qcow2(source.as_ref());
    let image = bench.json(&["image", "import", "debian", &source]);
    assert_eq!((&image["size"], &image["clones"]), (&(16 * MIB).into(), &Value::Array(Vec::new())), "{image:#}");

    let thin = bench.json(&["image", "clone", "debian", "root", "--size", "1G"]);
    assert_eq!((&thin["format"], &thin["golden"]), (&"qcow2".into(), &"debian".into()), "{thin:#}");
    assert!(thin["allocated"].as_u64().unwrap() < MIB, "{thin:#}");
    let copy = bench.json(&["image", "clone", "debian", "alone", "--format", "raw"]);
    assert_eq!(copy["size"], 16 * MIB);
    assert_eq!(bench.json(&["image", "info", "debian"])["clones"], serde_json::json!(["root"]));
    assert!(bench.ok(&["volume", "info", "root"]).contains("a thin clone of image 'debian'"));
    assert!(bench.fails(&["image", "remove", "debian"]).contains("'root' is a clone of it"));
    assert!(bench.fails(&["image", "clone", "debian", "small", "--size", "1M"]).contains("which 1048576 cannot hold"));

    // Out of each and back in again, in every format; `.img` tells nothing.
    for volume in ["root", "alone"] {
        for (ending, told) in
            [("raw", None), ("vmdk", None), ("vhdx", None), ("img", Some("qcow2")), ("x", Some("vdi"))]
        {
            let file = bench.text(&format!("{volume}.{ending}"));
            let format = told.map_or(Vec::new(), |f| vec!["--file-format", f]);
            if told.is_some() {
                assert!(bench.fails(&["volume", "export", volume, &file]).contains("does not tell its format"));
            }
            bench.ok(&[&["volume", "export", volume, &file][..], &format].concat());
            assert!(bench.fails(&[&["volume", "export", volume, &file][..], &format].concat()).contains(&file));
            bench.ok(&[&["volume", "import", "back", &file, "--size", "2G"][..], &format].concat());
            let back = bench.path("pool").join("volumes/back/image.raw");
            let mut bytes = vec![0; 16 * MIB as usize];
            std::io::Read::read_exact(&mut fs::File::open(&back).unwrap(), &mut bytes).unwrap();
            assert!(is_patterned(&bytes), "{file}");
            bench.ok(&["volume", "remove", "back"]);
        }
    }
    bench.ok(&["volume", "remove", "root"]);
    bench.ok(&["image", "export", "debian", &bench.text("out.raw")]);
    assert!(is_patterned(&fs::read(bench.path("out.raw")).unwrap()));
    bench.ok(&["image", "remove", "debian"]);
}

#[test]
fn what_cannot_be_imported_is_said_and_leaves_nothing() {
    let bench = Bench::new();
    bench.ok(&["volume", "create", "data", "--size", "1M"]);
    let before = bench.inside();

    // Damaged: cut off, overwritten, of another format.
    let cut = bench.path("cut.qcow2");
    qcow2(&cut);
    fs::File::options().write(true).open(&cut).unwrap().set_len(MIB).unwrap();
    let junk = bench.path("junk.qcow2");
    fs::write(&junk, b"junk").unwrap();
    let vmdk = bench.path("vmdk.qcow2");
    qemu_img(&["create", "-q", "-f", "vmdk", vmdk.to_str().unwrap(), "1M"]);
    for file in [&cut, &junk, &vmdk] {
        for noun in ["volume", "image"] {
            let said = bench.fails(&[noun, "import", "new", file.to_str().unwrap()]);
            assert!(said.contains("is damaged") && said.contains("qemu-img check"), "{said}");
        }
    }
    // Too large for what was asked, empty, not there, leading elsewhere.
    let good = bench.text("good.qcow2");
    qcow2(good.as_ref());
    let said = bench.fails(&["volume", "import", "new", &good, "--size", "1M"]);
    assert!(said.contains("the image has 16777216 bytes, which 1048576 cannot hold"), "{said}");
    fs::write(bench.path("empty.raw"), b"").unwrap();
    for missing in ["empty.raw", "nothing.raw"] {
        bench.fails(&["volume", "import", "new", &bench.text(missing)]);
    }
    let backed = bench.text("backed.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", &backed]);
    assert!(bench.fails(&["image", "import", "new", &backed]).contains("backing file of its own"));
    assert_eq!(bench.inside(), before);

    // Names and paths that lead out of the pool, or into it.
    for name in ["../data", "/etc/passwd", "a/b", ".."] {
        let said = fails(&["volume", "info", name, "--pool", &bench.text("pool")], 2);
        assert!(said.contains("is not a name: use 1 to 32"), "{said}");
    }
    let into = bench.text("pool/volumes/stray.raw");
    let said = bench.fails(&["volume", "export", "data", &into]);
    assert!(said.contains("outside the pool"), "{said}");
    for device in ["/etc/passwd", "/dev/null", &bench.text("good.qcow2")] {
        assert!(bench.fails(&["volume", "adopt", "lun", device]).contains("not a block device"));
    }
    assert_eq!(bench.inside(), before);

    // Damage in the pool itself is listed, and can be removed.
    fs::write(bench.path("pool/volumes/data/volume.json"), b"{").unwrap();
    assert!(bench.ok(&["volume", "list"]).contains("data  ! "));
    assert!(bench.json(&["volume", "list"])["volumes"][0]["error"].as_str().unwrap().contains("is damaged"));
    assert!(bench.fails(&["volume", "info", "data"]).contains("is damaged"));
    bench.ok(&["volume", "remove", "data"]);
}

#[test]
fn what_is_in_use_is_left_alone() {
    let bench = Bench::new();
    let pool = ninefold_volume::Pool::open(&bench.path("pool"), ninefold_volume::Tools::default()).unwrap();
    for format in ["raw", "qcow2"] {
        bench.ok(&["volume", "create", format, "--size", "1M", "--format", format]);
        let open = pool.open_volume(&format.parse().unwrap()).unwrap();
        let file = bench.text(&format!("{format}.out.raw"));
        for verb in [
            &["volume", "remove", format][..],
            &["volume", "grow", format, "2M"],
            &["volume", "shrink", format, "512K", "--discard-data"],
            &["volume", "export", format, &file],
        ] {
            let said = bench.fails(verb);
            let me = format!("is in use by {} ({})", comm(), std::process::id());
            assert!(said.contains(&me) && said.contains("ninefold vm stop"), "{said}");
        }
        assert_eq!(bench.json(&["volume", "info", format])["size"], MIB);
        assert!(bench.json(&["volume", "info", format])["holder"].is_string());
        drop(open);
        bench.ok(&["volume", "remove", format]);
    }
}

fn comm() -> String {
    fs::read_to_string("/proc/self/comm").unwrap().trim().to_owned()
}

/// A file system of 8 MiB. Needs root, as the lab does.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(&at).status().unwrap();
        assert!(done.success(), "tmpfs cannot be mounted: run this as root");
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_pool_without_room_says_so_and_keeps_what_it_has() {
    let bench = Bench::new();
    let _small = Small::mount(bench.path("small"));
    let pool = bench.text("small/pool");
    let full = bench.path("full.raw");
    fs::write(&full, vec![7; 16 * MIB as usize]).unwrap();
    let on_small = |words: &[&str]| fails(&bench.args(words, &pool), 1);
    for format in ["raw", "qcow2"] {
        for noun in ["volume", "image"] {
            let said = on_small(&[noun, "import", "new", full.to_str().unwrap(), "--format", format]);
            assert!(
                said.contains("No space left on device") && said.contains("\nhelp: the pool's file system has"),
                "{said}"
            );
            let left = json(&bench.args(&["volume", "list"], &pool));
            assert_eq!(left["volumes"], serde_json::json!([]));
            assert!(left["free"].as_u64().unwrap() > 7 * MIB, "nothing of it is left: {left}");
        }
    }
    // A copy of an image that fits once.
    let half = bench.path("half.raw");
    fs::write(&half, vec![7; 5 * MIB as usize]).unwrap();
    ok(&bench.args(&["image", "import", "half", half.to_str().unwrap()], &pool));
    let said = on_small(&["image", "clone", "half", "copy", "--format", "raw"]);
    assert!(said.contains("No space left on device"), "{said}");
    ok(&bench.args(&["image", "clone", "half", "thin"], &pool));
    let names = json(&bench.args(&["volume", "list"], &pool));
    assert_eq!(names["volumes"].as_array().unwrap().len(), 1);
}

/// A signal to the command alone, as `kill` sends it: its helpers end, and nothing half-made is left.
#[test]
fn an_interrupted_import_leaves_nothing() {
    let bench = Bench::new();
    // Compressed data is slow to make anew: the import is still at work when the signal comes.
    let source = bench.path("large.raw");
    let text: Vec<u8> = (0..64 * MIB).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 7) as u8).collect();
    let file = fs::File::create(&source).unwrap();
    for at in 0..16 {
        std::os::unix::fs::FileExt::write_all_at(&file, &text, at * text.len() as u64).unwrap();
    }
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 130)] {
        let pool = bench.text("pool");
        let words = bench.args(&["volume", "import", "new", source.to_str().unwrap(), "--format", "qcow2"], &pool);
        let mut running = ninefold(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("a draft", || {
            assert!(running.try_wait().unwrap().is_none(), "it ended by itself");
            bench.inside().iter().any(|d| d.join("image.qcow2").exists())
        });
        kill_process(Pid::from_child(&running), signal).unwrap();
        assert_eq!(running.wait().unwrap().code(), Some(code));
        assert_eq!(bench.inside(), Vec::<PathBuf>::new());
    }
    // Killed, it cannot clean up: its helper is gone all the same, and the next command sweeps.
    let pool = bench.text("pool");
    let words = bench.args(&["volume", "import", "new", source.to_str().unwrap(), "--format", "qcow2"], &pool);
    let mut running = ninefold(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("a draft", || bench.inside().iter().any(|d| d.join("image.qcow2").exists()));
    running.kill().unwrap();
    running.wait().unwrap();
    let draft = bench.inside().pop().unwrap();
    wait_until("end of the helper", || !has_open(&draft));
    assert!(bench.ok(&["volume", "list"]).starts_with("no volumes"));
    assert_eq!(bench.inside(), Vec::<PathBuf>::new());
}

/// Whether any process has a file below `directory` open.
fn has_open(directory: &Path) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let open = processes.flat_map(|p| fs::read_dir(p.path().join("fd")).into_iter().flatten().flatten());
    open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| target.starts_with(directory))
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A loop device stands for a LUN.
#[test]
fn a_device_is_adopted_used_and_let_go_of() {
    let bench = Bench::new();
    let file = bench.path("lun");
    fs::write(&file, vec![3; 4 * MIB as usize]).unwrap();
    let made = Command::new("losetup").args(["-f", "--show"]).arg(&file).output().unwrap();
    assert!(made.status.success(), "no loop device to be had: run this as root");
    let device = Detach(String::from_utf8(made.stdout).unwrap().trim().to_owned());
    let adopted = bench.json(&["volume", "adopt", "lun", &device.0]);
    assert_eq!((&adopted["device"], &adopted["size"]), (&device.0.as_str().into(), &(4 * MIB).into()));
    assert!(bench.ok(&["volume", "list"]).contains(&format!("device  4.0 MiB    {}", device.0)));
    let said = bench.fails(&["volume", "adopt", "again", &device.0]);
    assert!(said.contains("volume 'lun': it is this device already"), "{said}");
    let said = bench.fails(&["volume", "grow", "lun", "8M"]);
    assert!(said.contains("a device has the size that it has"), "{said}");
    bench.ok(&["volume", "export", "lun", &bench.text("copy.qcow2")]);
    bench.ok(&["volume", "remove", "lun"]);
    assert!(fs::read(&file).unwrap().iter().all(|&b| b == 3), "its bytes stay");
    // Mounted or open elsewhere, it is nobody's.
    let taken = ninefold_volume::open(device.0.as_ref(), ninefold_volume::Format::Raw, &Default::default()).unwrap();
    assert!(bench.fails(&["volume", "adopt", "lun", &device.0]).contains("is in use"));
    drop(taken);
}

struct Detach(String);

impl Drop for Detach {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}
