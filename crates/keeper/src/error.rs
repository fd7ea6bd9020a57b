//! What can keep a keeper from its work.

use std::path::PathBuf;

use ninefold_model::{VmId, VmName};

/// Why a keeper could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// Something of what the configuration names is not on this host.
    #[error("{0}")]
    Binding(String),
    #[error("a network interface of the VM cannot be made")]
    Tap(#[from] ninefold_net::tap::TapError),
    #[error(transparent)]
    Port(#[from] ninefold_net::port::PortError),
    #[error(transparent)]
    Channel(#[from] ninefold_net::channel::ChannelError),
    #[error("the host's identity cannot be used")]
    Identity(#[source] Box<ninefold_transport::TransportError>),
    #[error("replication cannot be accepted at {addr}")]
    Listen {
        addr: std::net::SocketAddr,
        #[source]
        source: Box<ninefold_transport::TransportError>,
    },
    #[error("{what} {path}")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("another keeper of this VM runs on this host (it holds {path})")]
    Locked { path: PathBuf },
    /// A name is one VM's on a host.
    #[error("this host keeps a VM called {name} already: {other}, and not {vm}")]
    NameTaken { name: VmName, vm: VmId, other: VmId },
    /// Two ids begin alike.
    #[error("the TAP device {tap} of {vm} is that of {other} already, whose id begins with the same digits")]
    TapTaken { tap: String, vm: VmId, other: VmId },
    #[error("metrics cannot be served at {addr}: {reason}")]
    Metrics { addr: std::net::SocketAddr, reason: String },
    #[error("a volume of the VM cannot be used")]
    Volume(#[from] ninefold_volume::VolumeError),
    #[error("volume '{name}' has {found} bytes in this host's pool and {wanted} in the VM's specification")]
    VolumeSize { name: String, wanted: u64, found: u64 },
    #[error(transparent)]
    Image(#[from] crate::health::images::ImageError),
    /// Fault points that there are not.
    #[error("{0}")]
    Faults(String),
    #[error("a thread cannot be started")]
    Thread(#[source] std::io::Error),
}

/// An error with its causes, on one line.
pub fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        text.push_str(": ");
        text.push_str(&c.to_string());
        cause = c.source();
    }
    text
}
