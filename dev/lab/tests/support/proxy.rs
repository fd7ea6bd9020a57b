//! A proxy on the way between two keepers, which can spoil what a primary says to its backup. Only of use without
//! encryption: with it, the first spoilt byte ends the connection.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use ninefold_keeper::config::KeeperConfig;
use ninefold_lab::Lab;
use ninefold_lab::boot::KEEPER_PORT;
use ninefold_lab::netns::io_in_netns;

/// Where the proxy listens on each host.
const PROXY_PORT: u16 = KEEPER_PORT + 100;

/// What is done to the next piece of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// One bit of it is turned.
    Corrupt,
    /// It ends in the middle, and so does the connection.
    Truncate,
    /// It is sent twice.
    Repeat,
    /// A record that claims to have 4 GiB comes in between.
    Oversize,
    /// Half of it is left out.
    Omit,
}

impl Harm {
    pub const ALL: [Harm; 5] = [Harm::Corrupt, Harm::Truncate, Harm::Repeat, Harm::Oversize, Harm::Omit];
}

/// A host's way to the other.
pub struct Proxy {
    pub host: String,
    next: Arc<Mutex<Option<Harm>>>,
    address: SocketAddr,
    netns: String,
    stop: Arc<AtomicBool>,
}

impl Proxy {
    /// Does harm to the next piece of what this host sends.
    pub fn harm(&self, harm: Harm) {
        *self.next.lock().unwrap() = Some(harm);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let _ = io_in_netns(&self.netns, "end a proxy", || TcpStream::connect(self.address));
    }
}

/// Puts a proxy into each keeper's way to the other; before the keepers start.
pub fn between(lab: &Lab) -> Vec<Proxy> {
    [("a", "b"), ("b", "a")].map(|(from, to)| place(lab, from, to)).into()
}

fn place(lab: &Lab, from: &str, to: &str) -> Proxy {
    let path = lab.run_dir(from).join("keeper.json");
    let mut config: KeeperConfig = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let peer = config.vm.policy.peers.iter_mut().find(|p| p.host.as_str() == to).unwrap();
    let beyond: SocketAddr = peer.addr.as_str().parse().unwrap();
    let address = SocketAddr::new(config.host.listen.ip(), PROXY_PORT);
    peer.addr = address.into();
    std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    let netns = lab.netns(from).unwrap();
    let listener = io_in_netns(&netns, "listen", || TcpListener::bind(address)).unwrap();
    let next = Arc::new(Mutex::new(None));
    let stop = Arc::new(AtomicBool::new(false));
    let proxy =
        Proxy { host: from.into(), next: Arc::clone(&next), address, netns: netns.clone(), stop: Arc::clone(&stop) };
    thread::spawn(move || {
        for client in listener.incoming() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let Ok(client) = client else { continue };
            let Ok(server) = io_in_netns(&netns, "connect", || TcpStream::connect(beyond)) else { continue };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (back, forth) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            let next = Arc::clone(&next);
            thread::spawn(move || relay(forth, server, &next));
            thread::spawn(move || relay(back, client, &Mutex::new(None)));
        }
    });
    proxy
}

fn relay(mut from: TcpStream, mut to: TcpStream, next: &Mutex<Option<Harm>>) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(n) = from.read(&mut bytes) {
        if n == 0 {
            break;
        }
        // Pieces of a checkpoint, not heartbeats: those are small.
        let harm = if n > 1024 { next.lock().unwrap().take() } else { None };
        let piece = match harm {
            None => bytes[..n].to_vec(),
            Some(Harm::Corrupt) => {
                bytes[n / 2] ^= 4;
                bytes[..n].to_vec()
            }
            Some(Harm::Truncate) => {
                let _ = to.write_all(&bytes[..n / 2]);
                break;
            }
            Some(Harm::Repeat) => [&bytes[..n], &bytes[..n]].concat(),
            Some(Harm::Oversize) => [&[0xff; 12][..], &bytes[..n]].concat(),
            Some(Harm::Omit) => bytes[n / 2..n].to_vec(),
        };
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
