//! Several keepers asked at once how they are, whether they answer or not.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ninefold_control::{Client, ClientError};
use ninefold_keeper::config::KeeperConfig;
use ninefold_model::status::{ProtectionState, Role, VmStatus};
use serde::Serialize;

use crate::refusal;

/// How long a keeper may take to say how it is. One that takes longer is frozen, or its host is.
const PATIENCE: Duration = Duration::from_secs(2);

/// One keeper.
#[derive(Debug, Clone)]
pub struct Keeper {
    /// Its host's name; its run directory when that is all that is known.
    pub host: String,
    pub client: Client,
    run_dir: PathBuf,
}

impl Keeper {
    /// The keeper whose run directory this is, on the host of this name.
    pub fn new(host: &str, run_dir: &Path) -> Self {
        Self { host: host.to_owned(), client: Client::new(run_dir), run_dir: run_dir.to_owned() }
    }

    /// The same keeper under the name that it gives itself.
    pub fn named(self, host: &str) -> Self {
        Self { host: host.to_owned(), ..self }
    }

    /// Its socket to the guest's agent.
    pub fn agent(&self) -> PathBuf {
        KeeperConfig::agent_socket(&self.run_dir)
    }

    /// Its socket to the guest's serial console.
    pub fn console(&self) -> PathBuf {
        KeeperConfig::console_socket(&self.run_dir)
    }
}

/// What a keeper says of itself.
#[derive(Debug, Clone, Serialize)]
pub struct HostReport {
    pub host: String,
    /// Null when it does not answer.
    pub status: Option<VmStatus>,
    pub error: Option<String>,
}

impl HostReport {
    /// For people.
    pub fn role(&self) -> &'static str {
        match self.status.as_ref().map(|s| s.role) {
            None => "?",
            Some(Role::Primary) => "primary",
            Some(Role::Backup) => "backup",
            Some(Role::Standby) => "standby",
        }
    }

    /// For people; empty unless it is the primary.
    pub fn protection(&self) -> &'static str {
        match self.status.as_ref().and_then(|s| s.protection) {
            None => "",
            Some(ProtectionState::Off) => "protection off",
            Some(ProtectionState::Unprotected) => "unprotected",
            Some(ProtectionState::Syncing) => "syncing",
            Some(ProtectionState::Protected) => "protected",
            Some(ProtectionState::Waiting) => "waiting",
        }
    }
}

/// Asks all of them at once how they are. One that does not answer in time is reported so.
pub fn ask_all(keepers: &[Keeper]) -> Vec<HostReport> {
    let answers = ask_each(keepers, Client::status);
    let report = |(keeper, answer): (&Keeper, Result<VmStatus, String>)| match answer {
        Ok(status) => HostReport { host: status.host.to_string(), status: Some(status), error: None },
        Err(error) => HostReport { host: keeper.host.clone(), status: None, error: Some(error) },
    };
    keepers.iter().zip(answers).map(report).collect()
}

/// Asks all of them the same at once: what each says, or in words why it does not. None is waited for longer than two seconds.
pub fn ask_each<T: Send + 'static>(
    keepers: &[Keeper],
    ask: fn(&Client) -> Result<T, ClientError>,
) -> Vec<Result<T, String>> {
    let (sender, answers) = mpsc::channel();
    for (place, keeper) in keepers.iter().enumerate() {
        let (sender, client) = (sender.clone(), keeper.client.clone());
        // A thread that hangs on a frozen keeper ends with this process, or with its answer.
        thread::spawn(move || {
            // Nobody waits for it any more when it comes too late.
            let _ = sender.send((place, ask(&client)));
        });
    }
    drop(sender);
    let late = |k: &Keeper| Err(format!("{}: no answer within {} s", k.host, PATIENCE.as_secs()));
    let mut all: Vec<Result<T, String>> = keepers.iter().map(late).collect();
    let deadline = Instant::now() + PATIENCE;
    while let Ok((place, answer)) = answers.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        all[place] = answer.map_err(|error| format!("{}: {}", keepers[place].host, refusal::told(&error)));
    }
    all
}
