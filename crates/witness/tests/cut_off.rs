//! What was sent into a cut is asked again on a new connection, long before TCP repeats it; a witness that is only slow is not.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ninefold_model::Record;
use ninefold_witness::Limits;
use ninefold_witness_client::Witness;
use support::{PATIENT, Place, any_port, host, label, vm};

static ANY: libc::c_int = 0;

/// A way to a server. Its connections can be cut off, as by a cable, and its answers be late.
struct Way {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    /// How late each answer is, milliseconds.
    late: Arc<AtomicU64>,
}

impl Way {
    fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(any_port()).unwrap();
        let way = Way {
            addr: listener.local_addr().unwrap(),
            connections: Arc::default(),
            open: Arc::default(),
            late: Arc::default(),
        };
        let (connections, open, late) = (way.connections.clone(), way.open.clone(), way.late.clone());
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(server).unwrap());
                connections.fetch_add(1, Ordering::SeqCst);
                open.lock().unwrap().push(client.try_clone().unwrap());
                let (requests, back) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || pass(requests, server, || ()));
                let late = late.clone();
                thread::spawn(move || {
                    pass(back, client, || thread::sleep(Duration::from_millis(late.load(Ordering::SeqCst))));
                });
            }
        });
        way
    }

    /// From now on nothing that is sent on the connections that there are reaches this end's TCP, and so nothing is acknowledged.
    fn cut(&self) {
        // A filter of one instruction, `ret #0`: drop everything (socket(7), SO_ATTACH_FILTER).
        let mut drop_all = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 };
        let program = libc::sock_fprog { len: 1, filter: &raw mut drop_all };
        for stream in self.open.lock().unwrap().iter() {
            // SAFETY: the option takes a `sock_fprog`, which points to as many instructions as it says; the kernel copies them.
            let set = unsafe {
                libc::setsockopt(
                    stream.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_ATTACH_FILTER,
                    (&raw const program).cast(),
                    size_of_val(&program) as libc::socklen_t,
                )
            };
            assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        }
    }

    /// They are whole again.
    fn mend(&self) {
        for stream in self.open.lock().unwrap().iter() {
            // SAFETY: the option takes an int, which it does not look at.
            let set = unsafe {
                libc::setsockopt(
                    stream.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_DETACH_FILTER,
                    (&raw const ANY).cast(),
                    size_of_val(&ANY) as libc::socklen_t,
                )
            };
            assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, before: impl Fn()) {
    let mut bytes = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut bytes) {
        before();
        if to.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn what_was_sent_into_a_cut_is_asked_on_a_new_connection() {
    let place = Place::new();
    let server = place.serve(any_port(), Limits::default());
    let way = Way::to(server.addr);
    let mut a = place.client("a", way.addr);
    a.ping().unwrap();
    for cut in 1..=3 {
        way.cut();
        let begun = Instant::now();
        let boot = Record::boot(host("a"));
        a.compare_and_swap(vm("db"), &label(), None, &boot).unwrap();
        // The connection that was kept has half of the time if it is not seen to be cut off.
        assert!(begun.elapsed() < PATIENT.request / 4, "{:?}", begun.elapsed());
        // More, where this machine is so busy that even its kernel acknowledges late.
        assert!(way.connections() > cut);
    }
}

#[test]
fn a_witness_that_is_slow_is_waited_for() {
    let place = Place::new();
    let server = place.serve(any_port(), Limits::default());
    let way = Way::to(server.addr);
    let mut a = place.client("a", way.addr);
    a.ping().unwrap();
    way.late.store(300, Ordering::SeqCst);
    a.compare_and_swap(vm("db"), &label(), None, &Record::boot(host("a"))).unwrap();
    // Its answer is late for each that asks: whoever did not wait for it would have asked five times by then. A busy machine may acknowledge
    // late once.
    assert!(way.connections() <= 2, "{}", way.connections());
}

/// Its kernel acknowledges late what is sent to it, and its handshake has taken as long: who did not wait for that would reach it never.
#[test]
fn a_witness_that_is_far_away_is_waited_for() {
    let place = Place::new();
    let server = place.serve(any_port(), Limits::default());
    let way = Arc::new(Way::to(server.addr));
    let mut a = place.client("a", way.addr);
    way.late.store(800, Ordering::SeqCst);
    a.ping().unwrap();
    way.late.store(0, Ordering::SeqCst);
    // TCP sends it again after 200 ms, and after 400 ms more.
    let before = way.connections();
    way.cut();
    let mends = way.clone();
    let mended = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        mends.mend();
    });
    a.compare_and_swap(vm("db"), &label(), None, &Record::boot(host("a"))).unwrap();
    assert_eq!(way.connections(), before);
    mended.join().unwrap();
}
