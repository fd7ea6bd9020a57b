//! Who spoke for the VM on the public network: the proof for invariant I3 (one speaker).
//!
//! Every frame with the VM's source address that *enters* the public switch from a host's cable is seen there, with the
//! kernel's time of its arrival ([`capture`]). The frames in order of time make turns of speakers ([`speakers`]).
//! A host whose cable is blackholed is still heard: what it says is said, though the switch drops it.

pub mod capture;
pub mod speakers;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use ninefold_model::spec::Mac;
use rustix::event::{PollFd, PollFlags, poll};

use crate::error::{LabError, io_at};
use crate::lab::Lab;
use crate::netns::io_in_netns;
use crate::topology::{Network, Topology};
use capture::Capture;
use speakers::Speakers;
pub use speakers::{Frame, FrameKind, Late, Report, Span, Takeover};

/// A running observer. Dropping it ends it.
#[derive(Debug)]
pub struct Observer {
    shared: Arc<Mutex<Speakers>>,
    /// Closing it ends the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    /// Listens on the switch's port of each VM host.
    ///
    /// # Errors
    /// The switch's namespace is not there, a packet socket cannot be opened on one of the ports, or there are no more
    /// descriptors.
    pub fn start(lab: &Lab, mac: Mac) -> Result<Self, LabError> {
        let hosts: Vec<_> = lab.topology().hosts.iter().map(|h| h.to_string()).collect();
        let switch = lab.topology().switch(Network::Public);
        let captures = io_in_netns(&switch, "open a packet socket", || {
            hosts.iter().map(|host| Capture::open(&Topology::port(host), mac)).collect::<std::io::Result<Vec<_>>>()
        })?;
        let (wake, stop) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io_at("make a pipe"))?;
        let shared = Arc::new(Mutex::new(Speakers::new(hosts)));
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || run(&captures, &wake, &theirs));
        Ok(Self { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// What was seen up to now, frames that wait in the kernel included.
    pub fn report(&self) -> Report {
        // The thread reads what is there whenever it holds no lock; one turn of it is awaited by its count.
        let before = self.turns();
        let deadline = Instant::now() + std::time::Duration::from_secs(2);
        while self.turns() < before + 2 && Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        self.lock().report()
    }

    fn turns(&self) -> u64 {
        self.lock().turns
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Speakers> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(captures: &[Capture], wake: &OwnedFd, shared: &Mutex<Speakers>) {
    let mut batch = Vec::new();
    let turn = crate::processes::timespec(std::time::Duration::from_millis(10));
    loop {
        let mut fds: Vec<_> = captures.iter().map(|c| PollFd::new(c, PollFlags::IN)).collect();
        fds.push(PollFd::new(wake, PollFlags::IN));
        if poll(&mut fds, Some(&turn)).is_err_and(|e| e != rustix::io::Errno::INTR) {
            return;
        }
        if fds.last().is_some_and(|f| !f.revents().is_empty()) {
            return;
        }
        batch.clear();
        let mut lost = 0;
        for (host, capture) in captures.iter().enumerate() {
            capture.read(host, &mut batch);
            lost += capture.lost();
        }
        let mut speakers = shared.lock().unwrap_or_else(PoisonError::into_inner);
        speakers.turns += 1;
        speakers.missed += lost;
        speakers.add(&batch);
    }
}
