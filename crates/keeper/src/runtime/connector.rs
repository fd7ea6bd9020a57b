//! Looking for a backup: tries the other hosts in turn while the core wants one.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use ninefold_core::effect::BackupSearch;
use ninefold_transport::{Security, connect};

use crate::config::KeeperConfig;
use crate::error::{KeeperError, report};
use crate::msg::Msg;
use crate::zones;

/// For one attempt, handshake included.
const PATIENCE: Duration = Duration::from_millis(1500);
/// For the first attempt at a host that was just there. What is sent to one that is cut off is lost, and TCP repeats it only after
/// a second: a new attempt is sooner. Each further one has twice as long, so that a long way is long enough in the end.
const QUICK: Duration = Duration::from_millis(60);
/// After a round over all peers that found none.
const PAUSE: Duration = Duration::from_millis(250);
/// The same while there is a host that was just there.
const QUICK_PAUSE: Duration = Duration::from_millis(20);

/// The core's way to ask for a peer.
#[derive(Debug, Clone)]
pub struct Connector(SyncSender<BackupSearch>);

impl Connector {
    /// Starts the thread. It ends when the connector is dropped.
    pub fn start(config: Arc<KeeperConfig>, security: Security, core: Sender<Msg>) -> Result<Self, KeeperError> {
        let (ask, asked) = sync_channel(1);
        thread::Builder::new()
            .name("connect".into())
            .spawn(move || run(&config, &security, &asked, &core))
            .map_err(KeeperError::Thread)?;
        Ok(Self(ask))
    }

    /// Asks for one attempt at every peer that is wished for, until one answers: `PeerConnected`, or else `NoPeer`.
    pub fn ask(&self, wish: BackupSearch) {
        match self.0.try_send(wish) {
            Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }
}

fn run(config: &KeeperConfig, security: &Security, asked: &Receiver<BackupSearch>, core: &Sender<Msg>) {
    // Each is the first to be tried in its turn.
    let mut next = 0;
    let mut quick = QUICK;
    while let Ok(BackupSearch { but, first, last }) = asked.recv() {
        let mut failed = Vec::new();
        let peers = &config.vm.policy.peers;
        let (before, after) = peers.split_at(next % peers.len().max(1));
        next += 1;
        let mut peers: Vec<_> = after.iter().chain(before).filter(|p| !but.contains(&p.host)).collect();
        peers.sort_by_key(|p| (!first.contains(&p.host), last.as_ref() == Some(&p.host)));
        let found = peers.into_iter().any(|peer| {
            let patience = if first.contains(&peer.host) { quick } else { PATIENCE };
            let link = zones::resolve(&peer.addr)
                .and_then(|addr| connect(addr, &peer.host, security, patience).map_err(|e| report(&e)));
            match link {
                Ok(link) => core.send(Msg::PeerConnected { link }).is_ok(),
                Err(error) => {
                    failed.push(format!("{}: {error}", peer.host));
                    false
                }
            }
        });
        quick = if found || first.is_empty() { QUICK } else { (quick * 2).min(PATIENCE) };
        if !found {
            thread::sleep(if first.is_empty() { PAUSE } else { QUICK_PAUSE });
            let reason = match failed.is_empty() {
                true if config.vm.policy.peers.is_empty() => "no other host is configured".into(),
                true => "no further host is to be asked".into(),
                false => failed.join("; "),
            };
            let _ = core.send(Msg::NoPeer { reason });
        }
    }
}
