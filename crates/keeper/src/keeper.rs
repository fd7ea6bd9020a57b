//! Starting a keeper: the sockets, the threads, the lock that makes it the only one of its VM on this host.

use std::fs;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use ninefold_listen::{Bounds, descriptors};
use ninefold_net::wake::Wake;
use ninefold_transport::{Listener, Security};
use ninefold_witness_client::{Timeouts, WitnessClient};

use crate::backup::custody::Kept;
use crate::backup::parking::Parking;
use crate::backup::standby::{Door, Standby};
use crate::certificates;
use crate::config::KeeperConfig;
use crate::control::http;
use crate::control::journal::Journal;
use crate::control::metrics::Board;
use crate::control::operations::Operations;
use crate::control::preflight::Preflight;
use crate::control::server::{self, AtHand};
use crate::devices::disks::Disks;
use crate::devices::guest_io::GuestIo;
use crate::durable::incarnation;
use crate::error::KeeperError;
use crate::health::images::Images;
use crate::msg::Msg;
use crate::naming::Naming;
use crate::primary::waker::Waker;
use crate::runtime::connector::Connector;
use crate::runtime::proposer;
use crate::runtime::{Parts, Runtime};
use crate::zones;

/// Fewer may run out.
const FEW_DESCRIPTORS: u64 = 1024;
/// Connections whose peer is not known yet. Strangers may have half of them; the rest is for the addresses of the VM's hosts.
const HANDSHAKES: Bounds = Bounds { strangers: 16, ..Bounds::new(32) };
/// Connections of hosts: the session, those that are being opened, and those that end. Hosts that are not the VM's may have
/// a few, to be told so.
const SESSIONS: Bounds = Bounds { strangers: 4, ..Bounds::new(16) };

/// How long a keeper that ends waits until its VM's name is let go.
const NAME_LIMIT: Duration = Duration::from_secs(1);

/// Runs a keeper until SIGTERM or SIGINT.
///
/// # Errors
/// The keeper cannot start: the VM has another keeper on this host, a file, an address, a network interface or a volume of it
/// cannot be used, its identity is unfit, its environment names fault points that there are not, or there are no more threads.
/// Nothing that happens later ends it with an error.
pub fn run(config: KeeperConfig) -> Result<(), KeeperError> {
    if ninefold_fault::read_environment().map_err(KeeperError::Faults)? {
        tracing::warn!("this keeper has fault points set: it dies or fails on purpose");
    }
    // The ports' bounds sum up to a few hundred; QEMU, volumes and logs come on top.
    let limit = descriptors::raise_limit();
    if limit < FEW_DESCRIPTORS {
        tracing::warn!(limit, "this process may open few files: connections will be turned away when they run out");
    }
    let config = Arc::new(config);
    let at = |what| {
        let path = config.vm_dir();
        move |source| KeeperError::File { what, path, source }
    };
    let run_dir = config.vm_dir();
    let naming = Naming::begin(&config)?;
    let label = naming.label().clone();
    let security = certificates::security(&config)?;
    let (core, inbox) = channel();
    let waker = Waker::new()?;
    let ring = waker.clone();
    let wake: Wake = Arc::new(move || ring.ring());
    let guest_io = Arc::new(GuestIo::open(&config, &wake)?);
    let disks = Arc::new(Disks::open(&config)?);
    let record = config.host.image_record.clone().unwrap_or_else(|| run_dir.join("image.json"));
    let images = Arc::new(Images::open(record, config.vm.id, config.boot().map_err(KeeperError::Binding)?)?);
    let incarnation = incarnation::begin(&run_dir).map_err(at("cannot note this life in"))?;
    let journal = Journal::new(config.host.name.clone(), incarnation);
    let board = Arc::new(Board::new(&label.name));
    if let Some(addr) = config.host.metrics {
        let board = Arc::clone(&board);
        http::serve(addr, move || board.text())?;
    }
    if let Security::MutualTls(identity) = &security {
        certificates::watch(identity, journal.clone(), Arc::clone(&board))?;
    }
    let peers: Vec<_> =
        config.vm.policy.peers.iter().filter_map(|p| Some(zones::resolve(&p.addr).ok()?.ip())).collect();
    let listener = Listener::bind_within(config.host.listen, security.clone(), HANDSHAKES, &peers)
        .map_err(|e| KeeperError::Listen { addr: config.host.listen, source: Box::new(e) })?;
    let (witness, addr) = config.witness().map_err(KeeperError::Binding)?;
    let client = WitnessClient::new(addr, witness.clone(), security.clone(), Timeouts::default());
    let proposer = proposer::start(config.vm.id, label.clone(), client, core.clone())?;
    let connector = Connector::start(Arc::clone(&config), security.clone(), core.clone())?;
    let parking = Arc::new(Parking::with(Kept::find(&run_dir)));
    let standby = Standby {
        config: Arc::clone(&config),
        guest_io: Arc::clone(&guest_io),
        disks: Arc::clone(&disks),
        images: Arc::clone(&images),
        parking: Arc::clone(&parking),
        security: security.clone(),
        core: core.clone(),
    };
    accept(listener, standby)?;
    let operations = Operations::new(incarnation);
    let at_hand = AtHand {
        journal: journal.clone(),
        operations: operations.clone(),
        looks: Preflight::at(Arc::clone(&config), Arc::clone(&disks)),
    };
    server::serve(&KeeperConfig::control_socket(&run_dir), at_hand, security, core.clone())?;
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
    let (naming, named) = naming.serve(core.clone())?;
    tracing::info!(vm = %label.name, id = %config.vm.id, host = %config.host.name, listen = %config.host.listen, "ready");
    let parts = Parts {
        config,
        label,
        naming,
        guest_io,
        disks,
        images,
        journal,
        operations,
        board,
        waker,
        inbox,
        core,
        proposer,
        connector,
        parking,
    };
    Runtime::new(parts).run();
    let _ = fs::remove_file(KeeperConfig::control_socket(&run_dir));
    // The name is let go, unless its note's disk does not answer.
    let _ = named.recv_timeout(NAME_LIMIT);
    Ok(())
}

fn accept(listener: Listener, standby: Standby) -> Result<(), KeeperError> {
    let door = Arc::new(Door::new(SESSIONS));
    let run = move || {
        while let Ok(incoming) = listener.accept() {
            let (standby, door) = (standby.clone(), Arc::clone(&door));
            let served = thread::Builder::new().name("standby".into()).spawn(move || standby.serve(incoming, &door));
            if let Err(error) = served {
                tracing::warn!(%error, "a connection cannot be served");
            }
        }
    };
    thread::Builder::new().name("accept".into()).spawn(run).map(drop).map_err(KeeperError::Thread)
}
