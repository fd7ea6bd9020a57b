//! Going on from this host's log: after a loss of power, or of this host's QEMU.
//!
//! ```text
//!   look ──► Nothing, or Unusable
//!    └─────► Found ──(the core: the witness holds the record that the log speaks of)──► load ──► Loaded, or Failed
//! ```
//!
//! Looking changes nothing. Loading launches a QEMU, puts the memory of the last checkpoint into it, plays the operations on the
//! volumes that the log still has, and loads the devices. Only then the core asks the witness for the VM.

use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::thread;
use std::time::Instant;

use ninefold_model::{Epoch, HostName};
use ninefold_replica::protocol::Standing;
use ninefold_replica::stream::Hello;
use ninefold_snapshot::log::{Found, Log, LogError, Options};

use crate::capture::micros;
use crate::config::KeeperConfig;
use crate::disks::Disks;
use crate::error::{KeeperError, report};
use crate::generation::Generation;
use crate::health::images::Images;
use crate::health::told;
use crate::log;
use crate::mixture::Cause;
use crate::msg::Msg;
use crate::outlets::{CONSOLE, HEALTH, Outlets};
use crate::priority;
use crate::standby::{self, Loaded};

/// What the thread tells the core.
#[derive(Debug)]
pub enum News {
    /// There is no log.
    Nothing,
    /// There is one, and it is damaged or of another VM. Its files are as they were.
    Unusable(String),
    /// There is a good one.
    Found {
        standing: Standing,
        epoch: Epoch,
    },
    /// Its last checkpoint is loaded into a QEMU that waits.
    Loaded {
        loaded: Box<Loaded>,
        log: Box<Log>,
        health: Vec<u8>,
    },
    Failed(String),
}

/// The core's hold on an attempt. Dropped before [`Recovery::go`], it ends without a trace.
#[derive(Debug)]
pub struct Recovery {
    pub id: u64,
    /// Once it is found: on what terms, and its last checkpoint.
    pub found: Option<(Standing, Epoch)>,
    go: Option<SyncSender<()>>,
}

impl Recovery {
    /// Loads what was found.
    pub fn go(&mut self) {
        if let Some(go) = self.go.take() {
            let _ = go.try_send(());
        }
    }

    /// Whether it is being loaded, or is.
    pub fn is_going(&self) -> bool {
        self.go.is_none()
    }
}

/// What of this host a VM is loaded into.
#[derive(Debug, Clone)]
pub struct Place {
    pub outlets: Arc<Outlets>,
    pub disks: Arc<Disks>,
    pub images: Arc<Images>,
}

/// Starts to look for a log.
///
/// # Errors
/// No more threads.
pub fn start(id: u64, config: Arc<KeeperConfig>, place: Place, core: Sender<Msg>) -> Result<Recovery, KeeperError> {
    let (go, told) = sync_channel(1);
    let run = move || {
        let tell = |news| {
            let _ = core.send(Msg::Recovery { id, news });
        };
        match look(&config, &place.disks) {
            Ok(None) => tell(News::Nothing),
            Err(reason) => tell(News::Unusable(reason)),
            Ok(Some(found)) => {
                tell(News::Found { standing: found.standing().clone(), epoch: found.last().at.epoch });
                // Not if the core does not want it any more.
                if told.recv().is_ok() {
                    tell(load(found, &config, &place).unwrap_or_else(News::Failed));
                }
            }
        }
    };
    thread::Builder::new().name("recovery".into()).spawn(run).map_err(KeeperError::Thread)?;
    Ok(Recovery { id, found: None, go: Some(go) })
}

fn look(config: &KeeperConfig, disks: &Disks) -> Result<Option<Found>, String> {
    let place = log::place(config);
    if !place.exists() {
        return Ok(None);
    }
    let storage = log::open(&place).map_err(|e| format!("{}: {e}", place.display()))?;
    let found = match Found::look_if(storage, &|hello| check(hello, config)) {
        Err(LogError::None) => return Ok(None),
        other => other.map_err(|e| report(&e))?,
    };
    if let Some(volume) = disks.made() {
        return Err(format!(
            "the volume {} was not in the pool (is its file system mounted?): an empty one has been made in its place",
            volume
        ));
    }
    Ok(Some(found))
}

/// Whether the log is of the VM that this keeper keeps.
fn check(hello: &Hello, config: &KeeperConfig) -> Result<(), String> {
    let hosts = |host: &HostName| *host == config.host || config.peers.iter().any(|p| p.host == *host);
    if hello.vm != config.vm.name {
        return Err(format!("the log is of {}", hello.vm));
    }
    if !hosts(&hello.from) {
        return Err(format!("the log speaks of {}, which is no host of this VM", hello.from));
    }
    let spec = &hello.spec;
    let differs = [
        (spec.volumes != config.vm.volumes, "volumes"),
        (spec.nics != config.vm.nics, "network interfaces"),
        (spec.memory_mib != config.vm.memory_mib, "memory"),
        (spec.vcpus != config.vm.vcpus, "vCPUs"),
        (spec.arch != config.vm.arch, "architecture"),
    ];
    match differs.iter().find(|(differs, _)| *differs) {
        Some((_, what)) => Err(format!("the VM's {what} are configured otherwise than in the log")),
        None => Ok(()),
    }
}

fn load(found: Found, config: &KeeperConfig, place: &Place) -> Result<News, String> {
    let Place { outlets, disks, images } = place;
    let unused = disks.unused();
    let begun = Instant::now();
    let mut hello = found.hello().clone();
    // Its image may be another by now; the last commit says so.
    let health = found.output(HEALTH).to_vec();
    hello.health = told::heard(&health).unwrap_or(hello.health);
    images.keep(hello.health.committed.as_ref()).map_err(|e| report(&e))?;
    // The guest is to know that it has been put back: others may have seen what it does not remember.
    hello.generation = Some(Generation::of(config).renew().map_err(|e| format!("the VM's generation id: {e}"))?);
    // First the QEMU: if it cannot be built here nothing has been touched.
    let (mut machine, ports, layout) = standby::launch(config, &hello, disks.sockets())?;
    let recovered = found.recover().map_err(|e| report(&e))?;
    let mut sink = standby::Fresh(Arc::clone(machine.memory()));
    // Nothing of an earlier life is to reach the images after what the log has for them.
    disks.settle()?;
    disks.mixture().begin(Cause::Log)?;
    let held = recovered
        .load(&|block| block == 0, &mut sink, &mut |volume, operations| {
            unused.replay(volume, operations).map_err(|why| LogError::Target {
                what: "the log's operations on volumes".into(),
                source: std::io::Error::other(why),
            })
        })
        .map_err(|e| report(&e))?;
    disks.sync_images()?;
    disks.mixture().end_now()?;
    let said = |channel: u8| held.output.get(usize::from(channel)).map_or(&[][..], Vec::as_slice);
    outlets.forget();
    outlets.heard(said(CONSOLE));
    outlets.forget_addresses();
    // Before the devices are loaded: what they write to memory then is in no checkpoint yet.
    let tracker = machine.track_with(priority::raise).map_err(|e| report(&e))?;
    machine.load(&held.device_state).map_err(|e| report(&e))?;
    let now = Hello {
        from: config.host.clone(),
        spec: config.vm.clone(),
        qemu: machine.version().to_string(),
        accel: machine.accel(),
        layout,
        ..hello
    };
    let health_then = now.health.clone();
    let log = recovered.resume(now, Options::default()).map_err(|e| report(&e))?;
    let epoch = held.committed.at.epoch;
    let load_us = micros(begun.elapsed());
    let tracker = Some(tracker);
    let (history, logged, stopped) = (None, true, None);
    let loaded = Loaded { machine, ports, epoch, health: health_then, load_us, tracker, history, logged, stopped };
    Ok(News::Loaded { loaded: Box::new(loaded), log: Box::new(log), health })
}
