//! Starting a keeper: the sockets, the threads, the lock that makes it the only one of its VM on this host.

use std::fs::{self, File};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use ninefold_net::wake::Wake;
use ninefold_store::{Timeouts, WitnessClient};
use ninefold_transport::{Identity, Listener, Security, TransportError};
use rustix::fs::{FlockOperation, flock};

use crate::arbiter;
use crate::bell::Bell;
use crate::config::{KeeperConfig, SecurityConfig};
use crate::connector::Connector;
use crate::core::{Core, Parts};
use crate::custody::Kept;
use crate::disks::Disks;
use crate::error::KeeperError;
use crate::health::images::Images;
use crate::journal::Journal;
use crate::metrics::{self, Board};
use crate::msg::Msg;
use crate::outlets::Outlets;
use crate::parking::Parking;
use crate::server;
use crate::standby::Standby;

/// Incoming connections served at a time: one session, and what probes or attacks.
const MAX_INCOMING: usize = 16;
/// After an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Runs a keeper until SIGTERM or SIGINT.
pub fn run(config: KeeperConfig) -> Result<(), KeeperError> {
    if ninefold_volume::fault::read_environment()? {
        tracing::warn!("this keeper has fault points set: it dies or fails on purpose");
    }
    let config = Arc::new(config);
    let at = |what| {
        let path = config.run_dir.clone();
        move |source| KeeperError::File { what, path, source }
    };
    fs::create_dir_all(&config.run_dir).map_err(at("cannot make"))?;
    let _lock = lock(&config)?;
    let security = match &config.security {
        SecurityConfig::MutualTls { identity } => {
            Security::MutualTls(Identity::load(identity).map_err(|e| KeeperError::Identity(Box::new(e)))?)
        }
        SecurityConfig::PlainText => Security::PlainText { host: config.host.clone() },
    };
    let (core, inbox) = channel();
    let bell = Bell::new()?;
    let ring = bell.clone();
    let wake: Wake = Arc::new(move || ring.ring());
    let outlets = Arc::new(Outlets::open(&config, &wake)?);
    let disks = Arc::new(Disks::open(&config)?);
    let record = config.image_record.clone().unwrap_or_else(|| config.run_dir.join("image.json"));
    let images = Arc::new(Images::open(record, config.vm.boot.clone())?);
    let journal = Journal::new(config.host.clone());
    let board = Arc::new(Board::new(&config.vm.name));
    if let Some(addr) = config.metrics {
        metrics::serve(addr, Arc::clone(&board))?;
    }
    let listener = Listener::bind(config.listen, security.clone())
        .map_err(|e| KeeperError::Listen { addr: config.listen, source: Box::new(e) })?;
    let witness = &config.witness;
    let client = WitnessClient::new(witness.addr, witness.host.clone(), security.clone(), Timeouts::default());
    let arbiter = arbiter::start(config.vm.name.clone(), client, core.clone())?;
    let connector = Connector::start(Arc::clone(&config), security.clone(), core.clone())?;
    let parking = Arc::new(Parking::with(Kept::find(&config.run_dir)));
    let standby = Standby {
        config: Arc::clone(&config),
        outlets: Arc::clone(&outlets),
        disks: Arc::clone(&disks),
        images: Arc::clone(&images),
        parking: Arc::clone(&parking),
        security,
        core: core.clone(),
    };
    accept(listener, standby)?;
    server::serve(&KeeperConfig::control_socket(&config.run_dir), journal.clone(), core.clone())?;
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])
        .map_err(KeeperError::Thread)?;
    let to_core = core.clone();
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for _ in signals.forever() {
                let _ = to_core.send(Msg::Quit);
            }
        })
        .map_err(KeeperError::Thread)?;
    tracing::info!(vm = %config.vm.name, host = %config.host, listen = %config.listen, "ready");
    let config = Arc::clone(&config);
    let parts = Parts {
        config: Arc::clone(&config),
        outlets,
        disks,
        images,
        journal,
        board,
        bell,
        inbox,
        core,
        arbiter,
        connector,
        parking,
    };
    Core::new(parts).run();
    let _ = fs::remove_file(KeeperConfig::control_socket(&config.run_dir));
    Ok(())
}

/// A keeper that was killed holds its lock until the kernel has taken all of it down.
const DYING: Duration = Duration::from_secs(3);

fn lock(config: &KeeperConfig) -> Result<File, KeeperError> {
    let path = config.run_dir.join("keeper.lock");
    let file =
        File::create(&path).map_err(|source| KeeperError::File { what: "cannot make", path: path.clone(), source })?;
    let deadline = Instant::now() + DYING;
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() > deadline {
            return Err(KeeperError::Locked { path });
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(file)
}

fn accept(listener: Listener, standby: Standby) -> Result<(), KeeperError> {
    let serving = Arc::new(AtomicUsize::new(0));
    let run = move || {
        loop {
            let incoming = match listener.accept() {
                Ok(incoming) => incoming,
                Err(TransportError::Closed) => break,
                Err(error) => {
                    // Out of descriptors, most likely: it passes.
                    tracing::warn!(%error, "a connection cannot be accepted");
                    thread::sleep(ACCEPT_PAUSE);
                    continue;
                }
            };
            if serving.fetch_add(1, Ordering::Relaxed) >= MAX_INCOMING {
                serving.fetch_sub(1, Ordering::Relaxed);
                incoming.refuse();
                continue;
            }
            let (standby, count) = (standby.clone(), Arc::clone(&serving));
            let served = thread::Builder::new().name("standby".into()).spawn(move || {
                standby.serve(incoming);
                count.fetch_sub(1, Ordering::Relaxed);
            });
            if served.is_err() {
                serving.fetch_sub(1, Ordering::Relaxed);
            }
        }
    };
    thread::Builder::new().name("accept".into()).spawn(run).map(drop).map_err(KeeperError::Thread)
}
