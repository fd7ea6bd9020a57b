//! Looking for a backup: tries the other hosts in turn while the core wants one.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use ninefold_model::HostName;
use ninefold_transport::{Security, connect};

use crate::config::KeeperConfig;
use crate::error::{KeeperError, report};
use crate::msg::Msg;

/// For one attempt, handshake included.
const PATIENCE: Duration = Duration::from_millis(1500);
/// After a round over all peers that found none.
const PAUSE: Duration = Duration::from_millis(250);

/// The core's way to ask for a peer.
#[derive(Debug, Clone)]
pub struct Connector(SyncSender<Vec<HostName>>);

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

    /// Asks for one attempt at every peer but these, until one answers: `PeerConnected`, or else `NoPeer`.
    pub fn ask(&self, but: Vec<HostName>) {
        match self.0.try_send(but) {
            Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }
}

fn run(config: &KeeperConfig, security: &Security, asked: &Receiver<Vec<HostName>>, core: &Sender<Msg>) {
    let mut next = 0;
    while let Ok(but) = asked.recv() {
        let mut failed = Vec::new();
        let found = (0..config.peers.len()).any(|_| {
            let Some(peer) = config.peers.get(next % config.peers.len()) else { return false };
            next += 1;
            if but.contains(&peer.host) {
                return false;
            }
            match connect(peer.addr, &peer.host, security, PATIENCE) {
                Ok(link) => core.send(Msg::PeerConnected { link }).is_ok(),
                Err(error) => {
                    failed.push(format!("{}: {}", peer.host, report(&error)));
                    false
                }
            }
        });
        if !found {
            thread::sleep(PAUSE);
            let reason = if failed.is_empty() { "no other host is configured".into() } else { failed.join("; ") };
            let _ = core.send(Msg::NoPeer { reason });
        }
    }
}
