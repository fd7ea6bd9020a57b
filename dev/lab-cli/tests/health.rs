//! A panic, a memory dump and trials of images, through the command. A Linux guest; needs root and the test guest.

mod fixture;

use std::io::Write;
use std::process::Stdio;

use fixture::LabName;

/// Types at the guest's console, and leaves after a moment of silence.
fn types(lab: &LabName, input: &str) {
    let mut command = lab.ninefold().command(&["vm", "console", "--linger", "1"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait().unwrap();
}

/// Until the guest has booted: what is typed before is lost.
fn boots(lab: &str) {
    let ask = "for i in {1..600}; do (exec 3<>/dev/tcp/10.9.0.10/6379) 2>/dev/null && exit; sleep 0.1; done; exit 1";
    fixture::lab().ok(&["exec", "client", "--name", lab, "--", "bash", "-c", ask]);
}

#[test]
fn a_guest_that_panics_and_images_on_trial() {
    fixture::build();
    let lab = LabName::new();
    let name = lab.name();
    // With the keeper of the one host alone, as on a real host.
    let ninefold = fixture::ninefold([lab.run_dir("a").as_path()]);
    let vm = |verb: &[&str]| ninefold.json(&[&["vm"], verb].concat());
    fixture::lab().json(&["up", "--name", name, "--watchdog", "dump"]);
    let told = ninefold.ok(&["vm", "status"]);
    assert!(told.contains("watchdog: i6300esb, then dump; 0 of 3 failures in 10m\n"), "{told}");
    let image = |status: &serde_json::Value| status["hosts"][0]["status"]["health"]["image"]["linux"].clone();
    let committed = image(&vm(&["status"]));

    // The guest is up already: what it said before is no sign of the image on trial.
    let cmdline = format!("{} tried=1", committed["cmdline"].as_str().unwrap());
    let trial = ["trial", "--cmdline", &cmdline];
    let done = vm(&[&trial[..], &["--console-line", "ninefold-guest: ready", "--healthy-within", "3min"]].concat());
    assert_eq!(done["event"]["event"], "image_committed", "{done:#}");
    let tried = image(&vm(&["status"]));
    assert_eq!((&tried["cmdline"], &tried["kernel"]), (&cmdline.as_str().into(), &committed["kernel"]));
    vm(&["protect"]);

    // By a probe from a host that reaches the guest.
    let back = committed["cmdline"].as_str().unwrap();
    let probed = fixture::lab()
        .command(&["exec", "client", "--name", name, "--"])
        .arg(fixture::ninefold_path())
        .args(["--json", "vm", "trial", "--run-dir", lab.run_dir("a").to_str().unwrap()])
        .args(["--cmdline", back, "--healthy-within", "3min", "--probe", "tcp:10.9.0.10:6379"])
        .output()
        .unwrap();
    assert!(probed.status.success(), "{}", String::from_utf8_lossy(&probed.stderr));
    assert_eq!(image(&vm(&["status"])), committed);

    // One that does not come up, and one that cannot even be tried.
    let none = [&trial[..], &["--console-line", "never said", "--healthy-within", "2s"]].concat();
    let said = ninefold.fails(&[&["vm"], &none[..]].concat(), 1);
    assert!(said.contains("not found healthy within 2 s") && said.contains("\nhelp: "), "{said}");
    let said = ninefold.fails(&["vm", "trial", "--kernel", "/nowhere/vmlinuz"], 1);
    assert!(said.contains("/nowhere/vmlinuz") && said.contains("on every host"), "{said}");
    assert!(ninefold.fails(&["vm", "commit-image"], 1).contains("no image is on trial"));
    assert!(ninefold.fails(&["vm", "fall-back"], 1).contains("no image is on trial"));
    assert_eq!(image(&vm(&["status"])), committed);
    vm(&["protect"]);
    boots(name);

    // A dump on request: the guest goes on, and stays protected.
    let dumped = vm(&["dump"]);
    let path = dumped["event"]["path"].as_str().unwrap();
    assert!(std::fs::metadata(path).unwrap().len() >= 256 << 20, "{dumped:#}");
    assert_eq!(vm(&["status"])["protection"], "protected");

    // Debian's own kernel panics, and says so.
    let events = || ninefold.ok(&["vm", "events"]);
    let before = events();
    assert!(!before.contains("PANICKED"), "{before}");
    types(&lab, "echo c > /proc/sysrq-trigger\n");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !events().contains("THE GUEST PANICKED (number 1): dump") || events().matches(".core (").count() < 2 {
        assert!(std::time::Instant::now() < deadline, "{}", events());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(vm(&["status"])["hosts"][0]["status"]["health"]["failures"], 1);
    // It has been reset, not left behind.
    vm(&["protect"]);
    fixture::lab().json(&["down", "--name", name]);
    assert_eq!(lab.traces(), Vec::<String>::new());
}
