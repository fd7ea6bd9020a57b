//! The little HTTP server that shows metrics (RFC 9112): one request a connection, whose head has to come in time and fit.
//!
//! Whoever is slow, silent or does not read costs one of [`PLACES`] until another wants it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ninefold_listen::{Acceptor, Bounds, Guest, Within};

use crate::error::KeeperError;

/// Connections at a time.
const PLACES: usize = 16;
/// Longest head of a request, bytes.
const MAX_HEAD: usize = 8 << 10;
/// For the head of a request, from the connection on.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// For the answer to be taken.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// For a client to close after its answer: closing first while something of it is unread would take the answer back.
const LINGER: Duration = Duration::from_secs(1);

/// Serves `GET /metrics` at `addr` from threads of its own; `page` makes the text.
///
/// # Errors
/// The address cannot be listened on, or there is no thread.
pub fn serve(addr: SocketAddr, page: impl Fn() -> String + Send + Sync + 'static) -> Result<(), KeeperError> {
    let listener = TcpListener::bind(addr).map_err(|e| KeeperError::Metrics { addr, reason: e.to_string() })?;
    let acceptor = Acceptor::new("metrics", listener, Bounds::new(PLACES), Vec::new());
    let page = Arc::new(page);
    let run = move || acceptor.serve(move |guest| drop(answer(&guest, &*page)));
    thread::Builder::new().name("metrics".into()).spawn(run).map(drop).map_err(KeeperError::Thread)
}

/// One connection, from its request to its end.
fn answer(guest: &Guest<TcpListener>, page: &dyn Fn() -> String) -> io::Result<()> {
    let mut socket = Within::new(&*guest.stream, Instant::now() + HEAD_LIMIT, MAX_HEAD);
    let head = read_head(&mut socket)?;
    guest.place.busy();
    socket.set_deadline(Instant::now() + ANSWER_LIMIT);
    socket.write_all(&respond(head.as_deref(), page))?;
    guest.place.idle();
    guest.stream.shutdown(Shutdown::Write)?;
    let mut rest = Within::new(&*guest.stream, Instant::now() + LINGER, MAX_HEAD);
    io::copy(&mut rest, &mut io::sink()).map(drop)
}

/// The head of a request, up to its empty line; none if it is too long.
fn read_head(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !ends(&head) {
        match from.read(&mut piece) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => head.extend_from_slice(&piece[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Ok(None),
            Err(e) => return Err(e),
        }
    }
    Ok(Some(head))
}

/// Whether there is an empty line in it.
fn ends(head: &[u8]) -> bool {
    head.windows(4).any(|w| w == b"\r\n\r\n") || head.windows(2).any(|w| w == b"\n\n")
}

/// The answer to a request with this head.
fn respond(head: Option<&[u8]>, page: &dyn Fn() -> String) -> Vec<u8> {
    let text = "text/plain; charset=utf-8";
    let say = |status, body: &str| write(status, text, body.as_bytes(), true);
    let Some(head) = head else { return say("431 Request Header Fields Too Large", "the request is too long\n") };
    let line = head.split(|&b| b == b'\n').next().unwrap_or_default();
    let mut words = line.trim_ascii().split(|&b| b == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let http = version.is_some_and(|v| v.starts_with(b"HTTP/1."));
    let (Some(method), Some(target), true, None) = (method, target, http, words.next()) else {
        return say("400 Bad Request", "not a request of HTTP/1\n");
    };
    let path = target.split(|&b| b == b'?').next().unwrap_or_default();
    match (method, path) {
        (b"GET" | b"HEAD", b"/metrics") => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            write("200 OK", kind, page().as_bytes(), method == b"GET")
        }
        (b"GET" | b"HEAD", _) => write("404 Not Found", text, b"see /metrics\n", method == b"GET"),
        _ => say("405 Method Not Allowed", "GET or HEAD\n"),
    }
}

fn write(status: &str, kind: &str, body: &[u8], whole: bool) -> Vec<u8> {
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{allow}Connection: close\r\n\r\n"
    );
    let mut answer = head.into_bytes();
    if whole {
        answer.extend_from_slice(body);
    }
    answer
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    fn said(head: &[u8]) -> String {
        String::from_utf8(respond(Some(head), &|| "the page\n".into())).unwrap()
    }

    #[test]
    fn requests_and_what_they_get() {
        let page = said(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.ends_with("\r\n\r\nthe page\n"), "{page}");
        assert!(page.contains("Content-Length: 9\r\n") && page.contains("application/openmetrics-text"), "{page}");
        let head = said(b"HEAD /metrics HTTP/1.0\r\n\r\n");
        assert!(head.contains("Content-Length: 9\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        for (request, status) in [
            (&b"GET /metrics?x=1 HTTP/1.1\n\n"[..], "200"),
            (b"GET / HTTP/1.1\r\n\r\n", "404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
            (b"GET /metrics\r\n\r\n", "400"),
            (b"\x16\x03\x01 \xff\r\n\r\n", "400"),
            (b"\r\n\r\n", "400"),
        ] {
            assert!(said(request).starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}");
        }
        assert!(respond(None, &String::new).starts_with(b"HTTP/1.1 431 "));
    }

    fn port() -> SocketAddr {
        // The kernel's choice, free again: `serve` takes an address as an operator gives it.
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        serve(addr, || "x".repeat(100_000)).unwrap();
        addr
    }

    fn scrape(addr: SocketAddr) -> io::Result<usize> {
        let mut client = TcpStream::connect(addr)?;
        client.set_read_timeout(Some(Duration::from_secs(20)))?;
        client.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut page = Vec::new();
        client.read_to_end(&mut page)
    }

    /// Ten times as many as there are places, and nobody says a word.
    #[test]
    fn idle_connections_keep_no_scraper_out() {
        let addr = port();
        let mut idle = Vec::new();
        for _ in 0..10 * PLACES {
            idle.push(TcpStream::connect(addr).unwrap());
        }
        // One that came while those before it were too young to lose their places is turned away, and tries again.
        let deadline = Instant::now() + HEAD_LIMIT / 2;
        while !scrape(addr).is_ok_and(|n| n > 100_000) {
            assert!(Instant::now() < deadline, "nobody is served before those that are idle are given up");
        }
    }

    #[test]
    fn who_asks_without_reading_holds_up_nobody() {
        let addr = port();
        let deaf: Vec<_> = (0..PLACES / 2)
            .map(|_| {
                let mut client = TcpStream::connect(addr).unwrap();
                client.set_nonblocking(true).unwrap();
                let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50);
                // Until the server takes no more.
                while client.write(&request).is_ok() {}
                client
            })
            .collect();
        assert!(scrape(addr).unwrap() > 100_000);
        drop(deaf);
    }

    #[test]
    fn a_request_that_is_too_long_is_told_so() {
        let addr = port();
        let mut client = TcpStream::connect(addr).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.write_all(b"GET /metrics HTTP/1.1\r\nX: ").unwrap();
        let _ = client.write_all(&vec![b'x'; MAX_HEAD]);
        let mut said = [0; 12];
        client.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"HTTP/1.1 431");
    }
}
