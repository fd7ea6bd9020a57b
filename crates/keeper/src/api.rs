//! Talking to a keeper over its control socket: one JSON object a line each way (see `ninefold_model::control`).

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ninefold_listen::Within;
use ninefold_model::HostName;
use ninefold_model::control::{CheckpointRecord, Request, Response};
use ninefold_model::event::{Event, Position};
use ninefold_model::status::VmStatus;

use crate::config::KeeperConfig;

/// Longest line accepted in either direction, bytes.
pub const MAX_LINE: u64 = 8 << 20;

/// Why a request got no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("no keeper answers at {socket}: is it running?")]
    Unreachable { socket: PathBuf, source: std::io::Error },
    #[error("the keeper at {socket} closed the connection")]
    Closed { socket: PathBuf },
    #[error("the keeper's answer makes no sense: {0}")]
    Garbled(String),
    #[error("{message}")]
    Refused {
        message: String,
        help: Option<String>,
        /// Whose keeper to ask instead.
        try_host: Option<HostName>,
    },
}

/// A client of one keeper. Each request uses a connection of its own, so a client can be shared and kept.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The keeper whose run directory this is.
    pub fn new(run_dir: &Path) -> Self {
        Self { socket: KeeperConfig::control_socket(run_dir) }
    }

    /// Sends one request. Waits at most 30 s beyond what the request itself asks to wait.
    pub fn request(&self, request: &Request) -> Result<Response, ApiError> {
        let unreachable = |source| ApiError::Unreachable { socket: self.socket.clone(), source };
        let patience = match request {
            Request::Events { wait_ms, .. } => Duration::from_millis(*wait_ms),
            _ => Duration::ZERO,
        };
        let stream = UnixStream::connect(&self.socket).map_err(unreachable)?;
        let deadline = Instant::now() + Duration::from_secs(30) + patience;
        let mut stream = Within::new(&stream, deadline, usize::MAX);
        let mut line = serde_json::to_vec(request).map_err(|e| ApiError::Garbled(e.to_string()))?;
        line.push(b'\n');
        stream.write_all(&line).map_err(unreachable)?;
        let mut answer = Vec::new();
        BufReader::new(stream).take(MAX_LINE).read_until(b'\n', &mut answer).map_err(unreachable)?;
        if answer.is_empty() {
            return Err(ApiError::Closed { socket: self.socket.clone() });
        }
        match serde_json::from_slice(&answer).map_err(|e| ApiError::Garbled(e.to_string()))? {
            Response::Error { message, help, try_host } => Err(ApiError::Refused { message, help, try_host }),
            response => Ok(response),
        }
    }

    /// A request whose answer is `Done`.
    pub fn command(&self, request: &Request) -> Result<(), ApiError> {
        match self.request(request)? {
            Response::Done => Ok(()),
            other => Err(ApiError::Garbled(format!("{other:?}"))),
        }
    }

    pub fn status(&self) -> Result<VmStatus, ApiError> {
        match self.request(&Request::Status)? {
            Response::Status { status } => Ok(*status),
            other => Err(ApiError::Garbled(format!("{other:?}"))),
        }
    }

    /// Events after `after` ([`Position::START`]: all); waits up to `wait` for the first one. A keeper that was started anew since tells all that it
    /// has.
    ///
    /// # Errors
    /// It does not answer, or not so.
    pub fn events(&self, after: Position, wait: Duration) -> Result<Vec<Event>, ApiError> {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        match self.request(&Request::Events { after, wait_ms })? {
            Response::Events { events } => Ok(events),
            other => Err(ApiError::Garbled(format!("{other:?}"))),
        }
    }

    /// The checkpoints measured after number `after` (a bounded history).
    pub fn checkpoints(&self, after: u64) -> Result<Vec<CheckpointRecord>, ApiError> {
        match self.request(&Request::Checkpoints { after })? {
            Response::Checkpoints { checkpoints } => Ok(checkpoints),
            other => Err(ApiError::Garbled(format!("{other:?}"))),
        }
    }
}
