//! The guest's workload server, asked from the client's host.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ninefold_lab::Lab;
use ninefold_lab::netns::io_in_netns;
use ninefold_lab::topology::{CLIENT, GUEST_IP};
use serde_json::Value;

use super::wait_until;

const PATIENCE: Duration = Duration::from_secs(30);

/// Connects to the guest, with patience in reading, too.
pub fn connect(lab: &Lab, to: SocketAddr) -> TcpStream {
    let netns = lab.netns(CLIENT).unwrap();
    io_in_netns(&netns, "connect", || {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
    .unwrap()
}

/// Gives the server a command that it must not refuse; answers what it says.
pub fn work(lab: &Lab, command: &str) -> Value {
    let mut stream = connect(lab, SocketAddr::new(GUEST_IP, 7000));
    stream.write_all(format!("{command}\n").as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    let answer: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(answer["ok"], true, "{command}: {answer}");
    answer
}

/// The job `checksum` goes on, and has found every word as it was written.
pub fn memory_is_sound(lab: &Lab) {
    let rounds = |answer: &Value| answer["checksum_rounds"].as_u64().unwrap();
    let before = rounds(&work(lab, "progress"));
    wait_until("further rounds of checksums", || rounds(&work(lab, "progress")) > before + 1);
    assert_eq!(work(lab, "progress")["checksum_errors"], 0);
}
