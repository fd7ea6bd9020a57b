//! How many devices QEMU has room for: the limit that configurations are checked against.

use std::process::Command;

/// QEMU's words when so many devices beside the chipset are asked for; none if it takes them.
fn complaint(devices: usize) -> Option<String> {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args([
        "-machine",
        ninefold_machine::command_line::MACHINE,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
    ]);
    // It ends at once: nobody is at the other end of its monitor.
    qemu.args(["-S", "-accel", "tcg", "-m", "16", "-monitor", "none"]);
    qemu.args(["-qmp", "stdio"]);
    for _ in 0..devices {
        qemu.args(["-device", "virtio-rng-pci"]);
    }
    let mut child = qemu
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let quit = br#"{"execute":"qmp_capabilities"}{"execute":"quit"}"#;
    // It may have ended already.
    let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), quit);
    let output = child.wait_with_output().unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_bus_has_thirty_slots_beside_the_chipset() {
    assert_eq!(complaint(30), None);
    let said = complaint(31).expect("it has room for more: so may configurations");
    assert!(said.contains("no slot"), "{said}");
}
