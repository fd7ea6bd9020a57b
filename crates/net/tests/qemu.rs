//! A port with a real QEMU at the other end. Needs root and qemu-system-x86_64.

mod testbed;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use ninefold_net::port::PortConfig;
use ninefold_net::{NetPort, Tap, announce, socket_pair, wake};
use testbed::{GUEST, Net, PATIENCE, observe};

struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn qemus_own_announcement_comes_through_and_is_ours_byte_for_byte() {
    let _net = Net::new();
    let tap = Tap::open("vm0", Some("br0")).unwrap();
    let observer = Tap::open("obs0", Some("br0")).unwrap();
    let (nic, ours) = socket_pair().unwrap();
    let (qmp, control) = socket_pair().unwrap();
    let child = Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-M", "pc,accel=tcg", "-m", "16"])
        .args(["-netdev", "stream,id=net0,addr.type=fd,addr.str=0"])
        .args(["-device", &format!("virtio-net-pci,netdev=net0,mac={GUEST},romfile=")])
        .args(["-chardev", "socket,id=qmp,fd=1", "-mon", "chardev=qmp,mode=control"])
        .stdin(Stdio::from(nic))
        .stdout(Stdio::from(qmp))
        .spawn()
        .unwrap();
    let _qemu = Qemu(child);
    let port = NetPort::start(PortConfig::new(GUEST), tap, Some(ours), wake::nobody()).unwrap();
    port.open(&|| ());

    let mut control = UnixStream::from(control);
    control.set_read_timeout(Some(PATIENCE)).unwrap();
    control
        .write_all(
            b"{\"execute\":\"qmp_capabilities\"}\n\
              {\"execute\":\"announce-self\",\
               \"arguments\":{\"initial\":50,\"max\":50,\"rounds\":20,\"step\":0}}\n",
        )
        .unwrap();
    // `stream` connects in the background, also over a given descriptor, so an early round may be lost.
    // The greeting and two answers.
    for line in BufReader::new(&control).lines().take(3) {
        let line = line.unwrap();
        assert!(!line.contains("\"error\""), "{line}");
    }
    assert_eq!(observe(&observer), announce::rarp(GUEST));
}
