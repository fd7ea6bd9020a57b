//! Everything through which a VM speaks: its NICs, its console, its guest-agent channel. They share their epochs and are
//! held, released and muted together.

use std::time::{Duration, Instant};

use ninefold_machine::Ports;
use ninefold_model::status::Counters;
use ninefold_model::{Epoch, VmId};
use ninefold_net::addresses::{PEER_ADDRESSES, PeerAddresses};
use ninefold_net::channel::{ChannelConfig, ChannelKind};
use ninefold_net::port::PortConfig;
use ninefold_net::tap::TapError;
use ninefold_net::wake::Wake;
use ninefold_net::{ByteChannel, NetPort, Tap};

use crate::config::KeeperConfig;
use crate::error::KeeperError;
use crate::run_dir;

/// How long a checkpoint waits for QEMU to take the agent's input: it does so at once, if the guest has room for it.
const INPUT_LIMIT: Duration = Duration::from_micros(500);
const INPUT_LOOK: Duration = Duration::from_micros(30);

/// The numbers of the byte channels in the checkpoint stream.
pub const CONSOLE: u8 = 0;
/// See [`CONSOLE`].
pub const AGENT: u8 = 1;
/// Not a channel of the guest: the addresses of each NIC that were learnt from frames, one a line, for announcements.
pub const ADDRESSES: u8 = 2;
/// Nor this: what a backup must know to go on watching the guest's health, as JSON.
pub const HEALTH: u8 = 3;

/// The guest I/O of one VM on this host. They begin mute.
#[derive(Debug)]
pub struct GuestIo {
    nics: Vec<NetPort>,
    console: ByteChannel,
    agent: ByteChannel,
}

impl GuestIo {
    /// Makes the TAPs and listens on the console's and agent's sockets. `wake` is rung when output begins to wait.
    ///
    /// # Errors
    /// A TAP cannot be made or plugged into its bridge, a socket's path cannot be bound, or there are no more threads or
    /// descriptors.
    pub fn open(config: &KeeperConfig, wake: &Wake) -> Result<Self, KeeperError> {
        let mut nics = Vec::new();
        for (i, (nic, bridge)) in config.vm.hardware.nics.iter().zip(&config.host.bridges).enumerate() {
            let name = tap_name(config.vm.id, i);
            let tap = Tap::open(&name, Some(bridge)).map_err(|error| taken(error, name, config))?;
            nics.push(NetPort::start(PortConfig::new(nic.mac), tap, None, wake.clone())?);
        }
        let run_dir = config.vm_dir();
        let channel = |kind, path| ByteChannel::start(ChannelConfig::new(kind, path), None, wake.clone());
        let console = channel(ChannelKind::Console, KeeperConfig::console_socket(&run_dir))?;
        let agent = channel(ChannelKind::Agent, KeeperConfig::agent_socket(&run_dir))?;
        Ok(Self { nics, console, agent })
    }

    /// Serves this QEMU from now on.
    ///
    /// # Errors
    /// One of QEMU's sockets cannot be made non-blocking.
    pub fn attach(&self, ports: Ports) -> std::io::Result<()> {
        for (nic, socket) in self.nics.iter().zip(ports.nics) {
            nic.attach(socket)?;
        }
        self.console.attach(ports.console)?;
        self.agent.attach(ports.agent)
    }

    /// Closes QEMU's sockets.
    pub fn detach(&self) {
        self.nics.iter().for_each(NetPort::detach);
        self.console.detach();
        self.agent.detach();
    }

    /// See [`NetPort::make_room`]. (Bytes of the channels are no frames: they may be written in part.)
    pub fn make_room(&self) {
        self.nics.iter().for_each(NetPort::make_room);
    }

    /// See [`NetPort::drain_and_close`].
    pub fn drain_and_close(&self, epoch: Epoch) {
        for nic in &self.nics {
            nic.drain_and_close(epoch);
        }
        self.console.drain_and_close(epoch);
        self.agent.drain_and_close(epoch);
    }

    /// Gives QEMU nothing that it would write into the memory of a guest that stands still, and waits a moment until it has
    /// taken what it was given. (The console's input changes devices alone, and QEMU lets no frame in.)
    pub fn hold_input(&self) {
        let deadline = Instant::now() + INPUT_LIMIT;
        // When the guest has no room for it, QEMU does not read it while the guest stands still either.
        while !self.agent.hold_input() {
            if Instant::now() > deadline {
                return self.agent.input_is_stuck();
            }
            // Not a yield: QEMU has to run, and this thread has the better priority.
            std::thread::sleep(INPUT_LOOK);
        }
    }

    /// The guest runs again.
    pub fn let_input(&self) {
        self.agent.let_input();
    }

    /// What the byte channels said in `epoch`.
    pub fn epoch_bytes(&self, epoch: Epoch, console: &mut Vec<u8>, agent: &mut Vec<u8>) {
        self.console.epoch_bytes(epoch, console);
        self.agent.epoch_bytes(epoch, agent);
    }

    /// Releases all epochs up to this one, asking `still_ours` before every batch. What it says no to stays where it is, for the
    /// next call; answers whether all left.
    pub fn release(&self, epoch: Epoch, still_ours: &dyn Fn() -> bool) -> bool {
        let nics: u64 = self.nics.iter().map(|nic| nic.release(epoch, still_ours).kept).sum();
        let channels = [&self.console, &self.agent].map(|channel| channel.release(epoch, still_ours).kept);
        nics + channels.iter().sum::<u64>() == 0
    }

    /// From now on output waits for its epoch. What may leave does so first, with `look` called before every batch.
    pub fn hold(&self, look: &dyn Fn()) {
        self.nics.iter().for_each(|nic| nic.hold(look));
        self.console.hold();
        self.agent.hold();
    }

    /// From now on output leaves at once; what was held leaves first, with `look` called before every batch.
    pub fn pass(&self, look: &dyn Fn()) {
        for nic in &self.nics {
            nic.open(look);
        }
        self.console.open();
        self.agent.open();
    }

    /// From now on nothing leaves; what was held is dropped.
    pub fn mute(&self) {
        self.nics.iter().for_each(NetPort::mute);
        self.console.mute();
        self.agent.mute();
    }

    /// Whether output of the epoch that runs is waiting.
    pub fn output_waits(&self) -> bool {
        self.nics.iter().any(|n| n.waiting().is_some())
            || self.console.waiting().is_some()
            || self.agent.waiting().is_some()
    }

    /// Since when output of the epoch that runs waits for which somebody may wait.
    pub fn urgent(&self) -> Option<Instant> {
        let channels = [self.console.waiting(), self.agent.waiting()];
        self.nics.iter().map(NetPort::urgent).chain(channels).flatten().min()
    }

    /// Whether who sends to the guest may wait for it to acknowledge.
    pub fn more_to_come(&self) -> bool {
        self.nics.iter().any(NetPort::more_to_come)
    }

    /// Whether a gate is half full.
    pub fn wants_checkpoint(&self) -> bool {
        self.nics.iter().any(NetPort::wants_checkpoint)
            || self.console.wants_checkpoint()
            || self.agent.wants_checkpoint()
    }

    /// Tells the network where the VM is, if `still_ours` says yes; how many frames it took.
    pub fn announce(&self, still_ours: &dyn Fn() -> bool) -> usize {
        self.nics.iter().map(|nic| nic.announce(still_ours)).sum()
    }

    /// What the console has said lately and what has left.
    pub fn console_history(&self) -> Vec<u8> {
        self.console.history()
    }

    /// What the console has said lately, up to and with this closed epoch, released or not.
    pub fn console_up_to(&self, epoch: Epoch) -> Vec<u8> {
        self.console.history_up_to(epoch)
    }

    /// Takes over what a primary said of its console in a checkpoint.
    pub fn heard(&self, console: &[u8]) {
        self.console.append_history(console);
    }

    /// Forgets the console's history.
    pub fn forget(&self) {
        self.console.clear_history();
    }

    /// Grows when the guest's addresses change. Does not allocate.
    pub fn address_changes(&self) -> u64 {
        self.nics.iter().map(NetPort::address_changes).sum()
    }

    /// Writes down the guest's addresses, NIC by NIC, for [`GuestIo::learn`].
    pub fn addresses(&self, lines: &mut String) {
        lines.clear();
        lines.push_str(PEER_ADDRESSES);
        for (n, nic) in self.nics.iter().enumerate() {
            nic.tell_addresses(n, lines);
        }
    }

    /// Takes over the addresses that a primary has learnt, if it says any, in place of those that are known. What makes no
    /// sense is passed over.
    pub fn learn(&self, lines: &[u8]) {
        if let Some(told) = PeerAddresses::parse(lines) {
            self.nics.iter().enumerate().for_each(|(n, nic)| nic.learn_addresses(n, &told));
        }
    }

    /// Forgets the guest's addresses. After a restore or a recovery nobody knows who has them by now: the guest has to speak first.
    pub fn forget_addresses(&self) {
        self.nics.iter().for_each(NetPort::forget_addresses);
    }

    /// The interfaces, by number, whose Ethernet address another station has been heard to use.
    pub fn twins(&self) -> impl Iterator<Item = usize> {
        self.nics.iter().enumerate().filter(|(_, nic)| nic.take_twin()).map(|(n, _)| n)
    }

    /// Adds the frame counters to `c`.
    pub fn count(&self, c: &mut Counters) {
        for n in self.nics.iter().map(NetPort::counters) {
            c.frames_out += n.frames_out;
            c.frames_in += n.frames_in;
            c.frames_held += n.held;
            c.frames_dropped += n.dropped_full + n.dropped_mute;
            c.frames_stale += n.stale;
        }
    }
}

/// Interface names have at most 15 bytes: a VM has less than a hundred NICs.
fn tap_name(vm: VmId, index: usize) -> String {
    format!("nf{}.{index}", vm.short())
}

/// Whose the TAP's name is, if that is why there is none.
fn taken(error: TapError, tap: String, config: &KeeperConfig) -> KeeperError {
    let vm = config.vm.id;
    let other = || run_dir::list(&config.host.run_dir).into_iter().find(|h| h.id != vm && h.id.short() == vm.short());
    match (error.is_taken(), other()) {
        (true, Some(other)) => KeeperError::TapTaken { tap, vm, other: other.id },
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_is_named_by_the_vms_id_and_its_name_fits() {
        let id: VmId = "3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4".parse().unwrap();
        assert_eq!(tap_name(id, 0), "nf3f0e1c4a.0");
        assert!(tap_name(id, 99).len() <= 15);
    }
}
