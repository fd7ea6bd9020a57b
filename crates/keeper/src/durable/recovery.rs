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

use ninefold_machine::{Machine, Ports};
use ninefold_model::Record;
use ninefold_replica::protocol::{LogRole, LogStanding};
use ninefold_replica::stream::{Hello, Layout};
use ninefold_snapshot::log::{At, Found, Held, LogError, Options, PlayVolume};

use crate::backup::loaded::Loaded;
use crate::backup::standby;
use crate::config::KeeperConfig;
use crate::devices::disks::{Disks, Unused};
use crate::devices::guest_io::{CONSOLE, GuestIo, HEALTH};
use crate::durable::booted;
use crate::durable::generation::Generation;
use crate::durable::log::place as log_place;
use crate::durable::mixture::Cause;
use crate::error::{KeeperError, report};
use crate::health::images::Images;
use crate::health::shared;
use crate::msg::{Msg, RecoveryEvent};
use crate::primary::capture::micros;
use crate::runtime::priority;

/// The core's hold on an attempt. Dropped before [`Recovery::go`], it ends without a trace.
#[derive(Debug)]
pub struct Recovery {
    pub id: u64,
    go: Option<SyncSender<()>>,
}

impl Recovery {
    /// Loads what was found.
    pub fn go(&mut self) {
        if let Some(go) = self.go.take() {
            let _ = go.try_send(());
        }
    }
}

/// What of this host a VM is loaded into.
#[derive(Debug, Clone)]
pub struct Place {
    pub guest_io: Arc<GuestIo>,
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
            Ok(None) => tell(RecoveryEvent::Nothing),
            Err(reason) => tell(RecoveryEvent::Unusable(reason)),
            Ok(Some(found)) => {
                let At { epoch, term, .. } = found.last().at;
                tell(RecoveryEvent::Found { standing: found.standing().clone(), epoch, term });
                // Not if the core does not want it any more.
                if told.recv().is_ok() {
                    tell(load(found, &config, &place).unwrap_or_else(RecoveryEvent::Failed));
                }
            }
        }
    };
    thread::Builder::new().name("recovery".into()).spawn(run).map_err(KeeperError::Thread)?;
    Ok(Recovery { id, go: Some(go) })
}

fn look(config: &KeeperConfig, disks: &Disks) -> Result<Option<Found>, String> {
    let place = log_place::place(config);
    if !place.exists() {
        return Ok(None);
    }
    let storage = log_place::open(&place).map_err(|e| format!("{}: {e}", place.display()))?;
    let found = match Found::look_if(storage, &|hello| check(hello, config)) {
        Err(LogError::None) => return Ok(None),
        other => other.map_err(|e| report(&e))?,
    };
    check_host(found.standing(), config)?;
    check_volumes(disks)?;
    Ok(Some(found))
}

/// Whether the volumes are those that the log goes with.
///
/// # Errors
/// A volume was not in the pool, and an empty one has been made in its place.
pub fn check_volumes(disks: &Disks) -> Result<(), String> {
    match disks.made() {
        Some(volume) => Err(format!(
            "the volume {volume} was not in the pool (is its file system mounted?): an empty one has been made in its place"
        )),
        None => Ok(()),
    }
}

/// Whether the log is of the VM that this keeper keeps.
///
/// # Errors
/// The log is another VM's, or this host cannot build the VM in it: it has other devices than the configuration says, or too much
/// memory or too many vCPUs.
pub fn check(hello: &Hello, config: &KeeperConfig) -> Result<(), String> {
    if hello.spec.id != config.vm.id {
        return Err(format!("the log is of {}", hello.spec.label()));
    }
    booted::can_recover(&hello.spec, config)
}

/// Whether the host on which the VM ran, as the log's standing says, is one of its hosts. The one that the log began with need not be any
/// more: a log goes on with other primaries.
///
/// # Errors
/// The standing names a host as the VM's primary that is none of its hosts.
pub fn check_host(standing: &LogStanding, config: &KeeperConfig) -> Result<(), String> {
    let (LogRole::Primary { record: Record { primary, .. } } | LogRole::Backup { primary, .. }) = &standing.role;
    if *primary == config.host.name || config.vm.policy.peers.iter().any(|p| p.host == *primary) {
        Ok(())
    } else {
        Err(format!("the log speaks of {primary}, which is no host of this VM"))
    }
}

fn load(found: Found, config: &KeeperConfig, place: &Place) -> Result<RecoveryEvent, String> {
    let unused = place.disks.unused();
    let begun = Instant::now();
    let mut hello = found.hello().clone();
    // Its image may be another by now; the last commit says so.
    let health = found.output(HEALTH).to_vec();
    hello.health = shared::heard(&health).unwrap_or(hello.health);
    let (mut machine, ports, layout) = prepare(&mut hello, config, place)?;
    let recovered = found.recover().map_err(|e| report(&e))?;
    let load = |sink: &mut standby::Fresh, volumes: PlayVolume<'_>| recovered.load(&|block| block == 0, sink, volumes);
    let held = play(&load, &machine, &unused, place)?;
    // Before the devices are loaded: what they write to memory then is in no checkpoint yet.
    let tracker = machine.track_with(priority::raise).map_err(|e| report(&e))?;
    machine.load(&held.device_state).map_err(|e| report(&e))?;
    // What was booted is what the log goes on with, whatever the file says by now.
    let spec = hello.spec.as_booted(&config.vm);
    let now = Hello {
        from: config.host.name.clone(),
        spec: spec.clone(),
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
    let loaded =
        Loaded { machine, ports, spec, epoch, health: health_then, load_us, tracker, history, logged, stopped };
    Ok(RecoveryEvent::Loaded { loaded: Box::new(loaded), log: Box::new(log), health })
}

/// A QEMU that waits for what a log has; its guest is told of another life. Nothing else has been touched.
///
/// # Errors
/// The record of the boot image or the new generation id cannot be written, or the QEMU does not come up: see
/// [`standby::launch`].
pub fn prepare(hello: &mut Hello, config: &KeeperConfig, place: &Place) -> Result<(Machine, Ports, Layout), String> {
    place.images.keep(hello.health.committed.as_ref()).map_err(|e| report(&e))?;
    // The guest is to know that it has been put back: others may have seen what it does not remember.
    hello.generation = Some(Generation::of(config).renew().map_err(|e| format!("the VM's generation id: {e}"))?);
    standby::launch(config, hello, place.disks.sockets())
}

/// Loads a log, given memory and who plays operations on volumes.
pub type LoadLog<'a> = &'a dyn Fn(&mut standby::Fresh, PlayVolume<'_>) -> Result<Held, LogError>;

/// Puts a log's memory into a QEMU, its operations onto the images, and its output where it was.
///
/// # Errors
/// The log cannot be read or loaded, or a volume cannot be written.
pub fn play(load: LoadLog<'_>, machine: &Machine, unused: &Unused, place: &Place) -> Result<Held, String> {
    let Place { guest_io, disks, .. } = place;
    let mut sink = standby::Fresh(Arc::clone(machine.memory()));
    // Nothing of an earlier life is to reach the images after what the log has for them.
    disks.settle()?;
    disks.mixture().begin(Cause::Log)?;
    let held = load(&mut sink, &mut |volume, operations| {
        unused.replay(volume, operations).map_err(|why| LogError::Target {
            what: "the log's operations on volumes".into(),
            source: std::io::Error::other(why),
        })
    })
    .map_err(|e| report(&e))?;
    disks.sync_images()?;
    disks.mixture().end_now()?;
    let said = |channel: u8| held.output.get(usize::from(channel)).map_or(&[][..], Vec::as_slice);
    guest_io.forget();
    guest_io.heard(said(CONSOLE));
    guest_io.forget_addresses();
    Ok(held)
}

#[cfg(test)]
mod tests {
    use ninefold_model::{Epoch, Term};
    use ninefold_snapshot::log::New;

    use super::*;

    /// A log has outlived the host that it began with, which is no host of the VM any more.
    #[test]
    fn a_log_is_that_of_the_hosts_of_today() {
        let dir = tempfile::tempdir().unwrap();
        let config = serde_json::json!({
            "id": "3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4", "name": "db",
            "hardware": { "memory_mib": 64, "boot": "boot_sector" },
            "host": {
                "name": "a", "image": "/x", "run_dir": dir.path(), "pool": dir.path(), "listen": "10.8.0.1:7701",
                "security": "plain_text"
            },
            "policy": {
                "peers": [{ "host": "b", "addr": "10.8.0.2:7701" }], "witness": { "host": "w", "addr": "10.8.0.3:7700" }
            }
        });
        let config: KeeperConfig = serde_json::from_value(config).unwrap();
        let hello = |from: &str, session| Hello {
            from: from.parse().unwrap(),
            spec: config.vm.clone(),
            ..crate::hello::hello(session, 4096)
        };
        let backup = |primary: &str, session| {
            LogStanding::new(LogRole::Backup { session: Term(session), primary: primary.parse().unwrap() })
        };
        let at = |session| At { session: Term(session), epoch: Epoch(1), term: Term(session) };
        let place = log_place::place(&config);
        std::fs::create_dir_all(&place).unwrap();
        let storage = log_place::open(&place).unwrap();
        let mut new = New::create(storage, hello("gone", 5), &backup("gone", 5), Options::default()).unwrap();
        new.first(at(5)).unwrap().finish().unwrap();
        let mut log = new.publish().unwrap();
        drop(log.folder().unwrap());
        log.go_on(hello("b", 6), &backup("b", 6)).unwrap();
        log.begin(at(6)).unwrap().finish().unwrap();
        drop(log);
        let found = look(&config, &Disks::default()).unwrap().expect("it is there");
        assert_eq!(found.last().at, at(6));
        drop(found);
        let mut without = config.clone();
        without.vm.policy.peers.clear();
        assert!(look(&without, &Disks::default()).unwrap_err().contains("speaks of b, which is no host of this VM"));
    }
}
