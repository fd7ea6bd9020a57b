//! The ledger against a server that can lose writes and connections: it must notice each, and nothing else.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ninefold_lab::{Ledger, LedgerOptions};

/// As much of a redis as the ledger talks to.
#[derive(Default)]
struct Server {
    data: HashMap<String, String>,
    saved: HashMap<String, String>,
    streams: Vec<TcpStream>,
}

fn serve() -> (SocketAddr, Arc<Mutex<Server>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = Arc::new(Mutex::new(Server::default()));
    let theirs = Arc::clone(&server);
    // Ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            theirs.lock().unwrap().streams.push(stream.try_clone().unwrap());
            let server = Arc::clone(&theirs);
            std::thread::spawn(move || answer_all(&stream, &server));
        }
    });
    (address, server)
}

fn answer_all(stream: &TcpStream, server: &Mutex<Server>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut to = stream;
    loop {
        let words = command(&mut reader)?;
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let mut s = server.lock().unwrap();
        let answer = match words[..] {
            ["PING"] => "+PONG\r\n".to_owned(),
            ["DEL", ..] => {
                s.data.clear();
                ":0\r\n".to_owned()
            }
            ["INCR", key] => {
                let n = s.data.get(key).map_or(0, |v| v.parse::<i64>().unwrap()) + 1;
                s.data.insert(key.to_owned(), n.to_string());
                format!(":{n}\r\n")
            }
            ["SET", key, value] => {
                s.data.insert(key.to_owned(), value.to_owned());
                "+OK\r\n".to_owned()
            }
            ["GET", key] => s.data.get(key).map_or("$-1\r\n".to_owned(), |v| format!("${}\r\n{v}\r\n", v.len())),
            _ => "-ERR unknown command\r\n".to_owned(),
        };
        drop(s);
        to.write_all(answer.as_bytes()).ok()?;
    }
}

fn command(reader: &mut impl BufRead) -> Option<Vec<String>> {
    let number = |reader: &mut dyn BufRead, mark: char| -> Option<usize> {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        line.trim_end().strip_prefix(mark)?.parse().ok()
    };
    let count = number(reader, '*')?;
    (0..count)
        .map(|_| {
            let length = number(reader, '$')?;
            let mut text = vec![0; length + 2];
            reader.read_exact(&mut text).ok()?;
            text.truncate(length);
            String::from_utf8(text).ok()
        })
        .collect()
}

fn start(address: SocketAddr, in_flight: usize) -> Ledger {
    Ledger::start(None, address, &LedgerOptions { in_flight, ..LedgerOptions::default() }).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

#[test]
fn an_honest_server_loses_nothing() {
    for in_flight in [1, 16] {
        let (address, _server) = serve();
        let ledger = start(address, in_flight);
        assert!(ledger.wait_acks(500, soon()));
        let report = ledger.finish().unwrap();
        assert!(report.acked >= 500);
        assert_eq!((report.lost, report.repeated, report.resets), (0, 0, 0), "{report:?}");
    }
}

#[test]
fn a_server_that_falls_back_has_lost_writes() {
    let (address, server) = serve();
    let ledger = start(address, 1);
    assert!(ledger.wait_acks(50, soon()));
    {
        let mut s = server.lock().unwrap();
        s.saved = s.data.clone();
    }
    assert!(ledger.wait_acks(50, soon()));
    {
        // As a backup that takes over from too old a checkpoint.
        let mut s = server.lock().unwrap();
        s.data = std::mem::take(&mut s.saved);
    }
    assert!(ledger.wait_acks(2, soon()));
    let report = ledger.finish().unwrap();
    // 50 acknowledged writes are at least 24 increments.
    assert!(report.lost >= 24, "{report:?}");
    assert!(!report.complaints.is_empty());
}

#[test]
fn a_reset_connection_is_counted_and_hides_nothing() {
    let (address, server) = serve();
    let ledger = start(address, 8);
    assert!(ledger.wait_acks(100, soon()));
    for stream in server.lock().unwrap().streams.drain(..) {
        stream.shutdown(std::net::Shutdown::Both).unwrap();
    }
    assert!(!ledger.wait_acks(u64::MAX, soon()), "it ends with its connection");
    assert_eq!(ledger.resets(), 1);
    let report = ledger.finish().unwrap();
    assert_eq!((report.resets, report.lost, report.repeated), (1, 0, 0), "{report:?}");
}

#[test]
fn a_silence_is_measured() {
    let (address, server) = serve();
    let ledger = start(address, 2);
    assert!(ledger.wait_acks(10, soon()));
    let mark = Instant::now();
    let silence = Duration::from_millis(60);
    {
        let _held = server.lock().unwrap();
        std::thread::sleep(silence);
    }
    assert!(ledger.wait_acks(10, soon()));
    // The answer under way when the server was held can have come a moment into the silence.
    assert!(ledger.gap_since(mark) >= silence / 2);
    drop(ledger);
}
