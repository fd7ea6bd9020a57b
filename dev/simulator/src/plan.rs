//! What a run is made of: the setup, and the faults with their times. All of it follows from a seed, or is read from a file.

use ninefold_control::Request;
use ninefold_model::health::{HealthySign, WatchdogAction};
use ninefold_model::spec::{Boot, EpochPolicy};
use serde::{Deserialize, Serialize};

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Of all that is left to chance while it runs: delays, what the guest does.
    pub seed: u64,
    pub setup: Setup,
    pub faults: Vec<Timed>,
}

/// Who is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// 2 to 4.
    pub hosts: usize,
    pub backups: u8,
    pub volumes: usize,
    /// The VM is non-volatile, and its output waits for the log.
    pub log: bool,
    /// Volumes are acknowledged when the backup's disk has what was written.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disk: bool,
    /// What is done about a guest that has stopped patting its watchdog.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<WatchdogAction>,
}

/// A fault and when it happens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    pub at_ms: u64,
    /// From then on it waits for such a moment, and happens so many microseconds after that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<(Moment, u64)>,
    pub fault: Fault,
}

impl Timed {
    /// At this time.
    pub fn at(at_ms: u64, fault: Fault) -> Self {
        Self { at_ms, behind: None, fault }
    }

    /// So many microseconds after the first such moment from this time on.
    pub fn behind(at_ms: u64, moment: Moment, us: u64, fault: Fault) -> Self {
        Self { at_ms, behind: Some((moment, us)), fault }
    }
}

/// What keepers do, of which it matters what comes right after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// The log is told what is about to be proposed.
    Notes,
    /// The witness is asked for a record.
    Proposes,
    /// And holds it.
    Wins,
    /// A backup acknowledges a session's first checkpoint.
    AcksFirst,
    /// A backup acknowledges.
    Acks,
    /// Output is released.
    Releases,
    /// A backup takes its primary for lost.
    Claims,
    /// A guest is let run that was loaded.
    Resumes,
}

const MOMENTS: [Moment; 8] = [
    Moment::Notes,
    Moment::Proposes,
    Moment::Wins,
    Moment::AcksFirst,
    Moment::Acks,
    Moment::Releases,
    Moment::Claims,
    Moment::Resumes,
];

/// What goes wrong, or is asked for by an owner. Hosts are numbered from 0. All of them pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The keeper is killed, and its QEMU with it. Another one begins after a while.
    KillKeeper {
        host: usize,
        back_ms: u64,
    },
    /// The keeper is told to end.
    Quit {
        host: usize,
        back_ms: u64,
    },
    /// The QEMU that runs the VM dies.
    KillQemu {
        host: usize,
    },
    /// The standby's QEMU dies.
    KillStandby {
        host: usize,
    },
    /// The next checkpoint that is loaded on this host is refused by its QEMU.
    LoadFails {
        host: usize,
    },
    /// All processes of a host stand still. `amid`: as soon as they are about to release something.
    Freeze {
        host: usize,
        for_ms: u64,
        amid: bool,
    },
    /// The host is suspended: CLOCK_MONOTONIC stands still as well.
    Suspend {
        host: usize,
        for_ms: u64,
    },
    /// The host loses its power.
    PowerOff {
        host: usize,
        back_ms: u64,
    },
    /// All hosts do.
    PowerLoss {
        back_ms: u64,
    },
    /// Nothing gets from one host to the other.
    Cut {
        from: usize,
        to: usize,
        for_ms: u64,
    },
    /// Nothing gets to any other host nor the witness, nor from there.
    Isolate {
        host: usize,
        for_ms: u64,
    },
    /// What goes from one host to the other takes so much longer.
    Delay {
        from: usize,
        to: usize,
        by_ms: u64,
        for_ms: u64,
    },
    /// All connections between the two end.
    Reset {
        a: usize,
        b: usize,
    },
    WitnessDown {
        for_ms: u64,
    },
    /// Its answers take so long.
    WitnessSlow {
        by_ms: u64,
        for_ms: u64,
    },
    /// It does what it is asked, and its answers are lost.
    WitnessMute {
        for_ms: u64,
    },
    /// What is sent to it arrives, but so late that nobody waits any more.
    WitnessLate {
        by_ms: u64,
        for_ms: u64,
    },
    /// Its register is lost: it has no record, or that of so many changes ago. A person brings it back.
    WitnessForgets {
        changes: Option<usize>,
        for_ms: u64,
    },
    /// It refuses.
    WitnessRefuses {
        for_ms: u64,
    },
    /// This host does not reach it.
    WitnessCut {
        host: usize,
        for_ms: u64,
    },
    /// The disk of a host takes so long for everything.
    DiskSlow {
        host: usize,
        by_ms: u64,
        for_ms: u64,
    },
    /// The log can be written no more; `noted`: but for one last note.
    LogFails {
        host: usize,
        noted: bool,
    },
    /// Nothing can be written to the volumes of a host; `full`: there is no room. A flush that is under way then has lost what it was to write.
    VolumesFail {
        host: usize,
        full: bool,
        for_ms: u64,
    },
    /// The disk of a host's volumes does not answer.
    DiskHangs {
        host: usize,
        for_ms: u64,
    },
    /// The uplink of a host has no carrier.
    Uplink {
        host: usize,
        for_ms: u64,
    },
    Switchover,
    /// A person starts the VM on this host by force, if it is lost, whatever the witness says.
    StartElsewhere {
        host: usize,
    },
    Unprotect {
        for_ms: u64,
    },
    /// The guest switches itself off.
    PowersOff,
    /// The owner asks for this where the VM runs. What is paused or suspended then goes on when all faults have passed.
    Asks(Request),
    /// The guest suspends itself.
    Suspends,
    /// The guest stops patting its watchdog, if it has one.
    GuestFails,
}

impl Fault {
    /// How long it lasts, if it does.
    pub fn lasts(&mut self) -> Option<&mut u64> {
        match self {
            Self::KillKeeper { back_ms: ms, .. }
            | Self::Quit { back_ms: ms, .. }
            | Self::PowerOff { back_ms: ms, .. }
            | Self::PowerLoss { back_ms: ms }
            | Self::Freeze { for_ms: ms, .. }
            | Self::Suspend { for_ms: ms, .. }
            | Self::Cut { for_ms: ms, .. }
            | Self::Isolate { for_ms: ms, .. }
            | Self::Delay { for_ms: ms, .. }
            | Self::WitnessDown { for_ms: ms }
            | Self::WitnessSlow { for_ms: ms, .. }
            | Self::WitnessMute { for_ms: ms }
            | Self::WitnessLate { for_ms: ms, .. }
            | Self::WitnessForgets { for_ms: ms, .. }
            | Self::WitnessRefuses { for_ms: ms }
            | Self::WitnessCut { for_ms: ms, .. }
            | Self::DiskSlow { for_ms: ms, .. }
            | Self::VolumesFail { for_ms: ms, .. }
            | Self::DiskHangs { for_ms: ms, .. }
            | Self::Uplink { for_ms: ms, .. }
            | Self::Unprotect { for_ms: ms } => Some(ms),
            _ => None,
        }
    }
}

impl Plan {
    /// The plan of this seed.
    pub fn of(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x6e69_6e65_666f_6c64);
        let hosts = [2, 2, 3, 3, 4][rng.usize(..5)];
        let backups = rng.u8(1..=(hosts - 1).min(2) as u8);
        let (volumes, log) = (rng.usize(..=2), rng.u8(..3) == 0);
        let action = [WatchdogAction::Reset, WatchdogAction::Dump, WatchdogAction::FallBack, WatchdogAction::Stop];
        let watchdog = (rng.u8(..4) == 0).then(|| action[rng.usize(..4)]);
        let setup = Setup { hosts, backups, volumes, log, disk: volumes > 0 && !log && rng.bool(), watchdog };
        let kinds: Vec<u8> = match (setup.log, volumes) {
            (true, _) => (0..33).chain(37..40).collect(),
            (false, 0) => (0..30).chain(37..40).collect(),
            (false, _) => (0..31).chain(32..40).collect(),
        };
        Self::in_setup(seed, setup, &kinds, &mut rng)
    }

    /// A plan of this seed in a setup that is given, with faults of these kinds alone, as [`Fault`] numbers them.
    pub fn aimed(seed: u64, setup: Setup, kinds: &[u8]) -> Self {
        Self::in_setup(seed, setup, kinds, &mut fastrand::Rng::with_seed(seed))
    }

    fn in_setup(seed: u64, setup: Setup, kinds: &[u8], rng: &mut fastrand::Rng) -> Self {
        let count = rng.usize(1..=8);
        let mut at_ms = rng.u64(200..1500);
        let mut faults = Vec::new();
        for _ in 0..count {
            let kind = kinds[rng.usize(..kinds.len())];
            let fault = one(rng, setup, kind);
            let moment = MOMENTS[rng.usize(..MOMENTS.len())];
            let us = [0, rng.u64(..500), rng.u64(..3000)][rng.usize(..3)];
            let behind = (rng.u8(..3) == 0).then_some((moment, us));
            faults.push(Timed { at_ms, behind, fault });
            // Some come together: what one sets off is not over when the next comes.
            at_ms += match rng.u8(..4) {
                0 => rng.u64(..10),
                1 => rng.u64(..100),
                2 => rng.u64(..500),
                _ => rng.u64(..2000),
            };
        }
        Self { seed, setup, faults }
    }
}

/// From some milliseconds to some seconds, the short ones as often as the long ones.
fn time(rng: &mut fastrand::Rng) -> u64 {
    let most = [20, 200, 400, 1000, 4000][rng.usize(..5)];
    rng.u64(1..=most)
}

fn one(rng: &mut fastrand::Rng, setup: Setup, kind: u8) -> Fault {
    let host = rng.usize(..setup.hosts);
    let other = (host + rng.usize(1..setup.hosts)) % setup.hosts;
    let (for_ms, by_ms) = (time(rng), rng.u64(1..400));
    match kind {
        0..=2 => Fault::KillKeeper { host, back_ms: for_ms },
        3 => Fault::Quit { host, back_ms: for_ms },
        4 | 5 => Fault::KillQemu { host },
        6 => Fault::KillStandby { host },
        7 => Fault::LoadFails { host },
        8..=10 => Fault::Freeze { host, for_ms, amid: rng.bool() },
        11 => Fault::Suspend { host, for_ms },
        12 => Fault::PowerOff { host, back_ms: for_ms },
        13 | 14 => Fault::Cut { from: host, to: other, for_ms },
        15 => Fault::Isolate { host, for_ms },
        16 | 17 => Fault::Delay { from: host, to: other, by_ms, for_ms },
        18 => Fault::Reset { a: host, b: other },
        19 => Fault::WitnessDown { for_ms },
        20 => Fault::WitnessSlow { by_ms, for_ms },
        21 => Fault::WitnessMute { for_ms },
        22 => Fault::WitnessLate { by_ms: by_ms + 1000, for_ms },
        23 => Fault::WitnessForgets { changes: rng.bool().then(|| rng.usize(1..4)), for_ms },
        24 => Fault::WitnessRefuses { for_ms },
        25 => Fault::WitnessCut { host, for_ms },
        26 => Fault::Uplink { host, for_ms },
        27 => Fault::Switchover,
        28 => Fault::Unprotect { for_ms },
        29 => [Fault::PowersOff, Fault::Switchover][rng.usize(..2)].clone(),
        30 => Fault::PowerLoss { back_ms: for_ms },
        31 => Fault::LogFails { host, noted: rng.bool() },
        32 => Fault::DiskSlow { host, by_ms, for_ms },
        33 | 34 => Fault::VolumesFail { host, full: rng.u8(..3) == 0, for_ms },
        36 => Fault::StartElsewhere { host },
        37 => Fault::Asks(asked(rng)),
        38 => Fault::Suspends,
        39 => Fault::GuestFails,
        _ => Fault::DiskHangs { host, for_ms: [for_ms, rng.u64(8000..16_000)][usize::from(rng.u8(..4) == 0)] },
    }
}

/// What an owner may ask for.
fn asked(rng: &mut fastrand::Rng) -> Request {
    let within_ms = rng.u64(50..2000);
    let trial = |sign| Request::Trial { image: Boot::BootSector { image: "/y".into() }, within_ms, sign };
    match rng.u8(..14) {
        0 => Request::Status,
        1 => Request::Stop,
        2 => Request::Shutdown { within_ms, end: rng.bool(), asked: false },
        3 | 4 => Request::Pause,
        5 => Request::Resume,
        6 => Request::Wake,
        7 => Request::Reset,
        8 => Request::Dump,
        9 => trial(HealthySign::Asked),
        10 => trial(HealthySign::Console { text: "login".into() }),
        11 => Request::CommitImage,
        12 => Request::FallBack,
        _ => Request::SetEpochs { policy: EpochPolicy::default() },
    }
}
