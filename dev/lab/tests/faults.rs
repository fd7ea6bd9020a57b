//! Each fault does what its name says, and its opposite undoes it. Real namespaces and processes; needs root.

mod fixture;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use fixture::{lab, wait_until};
use ninefold_lab::netns::in_netns;
use ninefold_lab::status::LinkState;
use ninefold_lab::{Cut, Lab, LabConfig, Network};

/// A UDP socket of each of two hosts on the replication network.
fn sockets(lab: &Lab, hosts: [&str; 2]) -> [UdpSocket; 2] {
    hosts.map(|host| {
        let address = lab.topology().address(host).unwrap();
        in_netns(&lab.netns(host).unwrap(), || UdpSocket::bind((address, 7)).unwrap()).unwrap()
    })
}

/// Whether a datagram passes. A refusal by the sender's own stack counts as "no".
fn passes([from, to]: &[UdpSocket; 2], patience: Duration) -> bool {
    let address = to.local_addr().unwrap();
    to.set_read_timeout(Some(patience)).unwrap();
    let _ = from.send_to(b"x", address);
    to.recv_from(&mut [0; 8]).is_ok()
}

const SOON: Duration = Duration::from_secs(20);
/// Long enough for any datagram that would pass: the wire is memory.
const NEVER: Duration = Duration::from_millis(100);

#[test]
fn a_cut_cable_passes_nothing_and_shows() {
    let lab = lab("cut");
    let pair = sockets(&lab, ["a", "b"]);
    assert!(passes(&pair, SOON));

    lab.cut("b", Network::Replication, Cut::Carrier).unwrap();
    wait_until("loss of carrier", || !lab.carrier("b", Network::Replication).unwrap());
    assert!(lab.carrier("a", Network::Replication).unwrap(), "the other host's cable is whole");
    assert!(lab.carrier("b", Network::Public).unwrap(), "the other network's cable is whole");
    assert_eq!(lab.link_state("b", Network::Replication).unwrap(), LinkState::Cut);
    assert!(!passes(&pair, NEVER));
    lab.heal("b", Network::Replication).unwrap();
    wait_until("carrier", || lab.carrier("b", Network::Replication).unwrap());
    wait_until("passage", || passes(&pair, NEVER));

    lab.cut("b", Network::Replication, Cut::Blackhole).unwrap();
    assert!(lab.carrier("b", Network::Replication).unwrap(), "a blackhole does not show");
    assert_eq!(lab.link_state("b", Network::Replication).unwrap(), LinkState::Blackhole);
    assert!(!passes(&pair, NEVER));
    lab.heal("b", Network::Replication).unwrap();
    assert_eq!(lab.link_state("b", Network::Replication).unwrap(), LinkState::Up);
    wait_until("passage", || passes(&pair, NEVER));

    assert!(lab.cut("w", Network::Public, Cut::Carrier).is_err(), "the witness is not on the public network");
    assert!(lab.cut("nobody", Network::Public, Cut::Carrier).is_err());
    lab.down().unwrap();
}

#[test]
fn frozen_processes_stand_still_until_thawed() {
    freeze_thaw_kill(lab("freeze"));
}

#[test]
fn the_same_without_control_groups() {
    let mut config = LabConfig::new(&fixture::name("signal")).unwrap();
    config.control_groups = false;
    let lab = Lab::up(&config).unwrap();
    let name = lab.name().to_owned();
    freeze_thaw_kill(lab);
    assert_eq!(fixture::traces(&name), Vec::<String>::new());
}

fn freeze_thaw_kill(lab: Lab) {
    let log = lab.run_dir("a").join("count.log");
    let mut counter = lab.command("a", "sh").unwrap();
    counter.args(["-c", "while :; do echo tick; sleep 0.01; done"]);
    lab.spawn("a", counter, "count.log").unwrap();
    let ticks = || std::fs::metadata(&log).map_or(0, |m| m.len());
    wait_until("a tick", || ticks() > 0);
    lab.freeze("a").unwrap();
    assert!(lab.processes("a").unwrap().frozen().unwrap());
    let still = ticks();
    assert!(lab.status().unwrap().hosts[0].frozen);
    assert_eq!(ticks(), still);
    lab.thaw("a").unwrap();
    wait_until("a tick after the thaw", || ticks() > still);
    // A frozen host can be killed, and what starts on it later runs.
    lab.freeze("a").unwrap();
    lab.kill_host("a").unwrap();
    assert_eq!(lab.processes("a").unwrap().list().unwrap(), []);
    assert_eq!(lab.link_state("a", Network::Public).unwrap(), LinkState::HostDown);
    lab.restart_host("a").unwrap();
    let end = ticks();
    let mut counter = lab.command("a", "sh").unwrap();
    counter.args(["-c", "while :; do echo tick; sleep 0.01; done"]);
    lab.spawn("a", counter, "count.log").unwrap();
    wait_until("a tick after the restart", || ticks() > end);
    lab.down().unwrap();
}

#[test]
fn one_program_is_killed_and_the_others_live() {
    let lab = lab("kill");
    for seconds in ["1001", "1002"] {
        let mut sleeper = lab.command("a", "sleep").unwrap();
        sleeper.arg(seconds);
        lab.spawn("a", sleeper, "sleep.log").unwrap();
    }
    let mut other = lab.command("a", "tail").unwrap();
    other.args(["-f", "/dev/null"]);
    lab.spawn("a", other, "tail.log").unwrap();
    let processes = lab.processes("a").unwrap();
    wait_until("three programs", || {
        let list = processes.list().unwrap();
        list.iter().filter(|p| ["sleep", "tail"].contains(&p.program.as_str())).count() == 3
    });
    assert_eq!(processes.kill_program("sleep").unwrap(), 2);
    let left: Vec<_> = processes.list().unwrap().into_iter().map(|p| p.program).collect();
    assert_eq!(left, ["tail"]);
    assert!(lab.kill_keeper("a").is_err(), "none runs");
    assert_eq!(processes.stop_program("tail").unwrap(), 1);
    lab.down().unwrap();
}

/// The kernel of a host whose power is pulled sends no FIN and no RST for its processes' connections, neither then nor
/// when it is back.
#[test]
fn a_killed_host_says_no_goodbye() {
    let lab = lab("power");
    let [a, b] = ["a", "b"].map(|h| lab.netns(h).unwrap());
    let address = (lab.topology().address("b").unwrap(), 7000);
    let listener = in_netns(&b, || TcpListener::bind(address).unwrap()).unwrap();
    // A process of host a that holds a connection to b: bash can open one.
    let mut holder = lab.command("a", "bash").unwrap();
    holder.args(["-c", &format!("exec 3<>/dev/tcp/{}/7000; echo hello >&3; read -r x <&3", address.0)]);
    lab.spawn("a", holder, "holder.log").unwrap();
    let (mut held, _) = listener.accept().unwrap();
    let mut hello = [0; 6];
    held.read_exact(&mut hello).unwrap();
    lab.kill_host("a").unwrap();
    held.set_nonblocking(true).unwrap();
    let silent = |s: &mut TcpStream| s.read(&mut [0; 8]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
    assert!(silent(&mut held));
    lab.restart_host("a").unwrap();
    // The host is back for certain when something from it arrives; nothing of the old connection came before.
    in_netns(&a, || TcpStream::connect(address).unwrap().write_all(b"new").unwrap()).unwrap();
    let (mut new, _) = listener.accept().unwrap();
    let mut text = String::new();
    new.read_to_string(&mut text).unwrap();
    assert_eq!(text, "new");
    assert!(silent(&mut held), "a goodbye from a host that had lost its power");
    lab.down().unwrap();
}
