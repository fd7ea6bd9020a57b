//! Acknowledging, on a backup: a thread of its own waits until what that means is true, and says so in order.
//!
//! ```text
//!   receiver ──► a checkpoint is whole, and on the volumes, in memory ──┐
//!   log      ──► it is in the log, and on the volumes ──────────────────┴─► waits for the disk ──► Held: acknowledged
//! ```
//!
//! Where an acknowledgement means the disk, it waits for one that may be slow, or hang. Who receives must not wait with it: he alone
//! notices that the primary is gone, and a host whose memory has a checkpoint whole can go on with that, whatever its disk does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use ninefold_model::health::Health;
use ninefold_model::{Epoch, Term};
use ninefold_replica::pacing::MAX_IN_FLIGHT;

use crate::devices::disks::Disks;
use crate::msg::Msg;
use crate::runtime::priority;

/// Checkpoints that may wait: as many as a primary sends unacknowledged, with a switchover's last, and one of which the primary has
/// heard before it is crossed off here.
const MOST: u32 = MAX_IN_FLIGHT + 1 + 1;

/// What is done with the guest's health once a checkpoint that says it is acknowledged.
pub type Keep = Box<dyn Fn(&Health) + Send>;

/// A hold on the thread of one session, which ends with the last of them. See the [module](self).
#[derive(Debug, Clone)]
pub struct Acknowledger {
    session: Term,
    disks: Arc<Disks>,
    core: Sender<Msg>,
    jobs: Sender<Job>,
    waiting: Arc<AtomicU32>,
}

#[derive(Debug)]
enum Job {
    /// The volumes have this checkpoint, in memory.
    Holds {
        epoch: Epoch,
        first: bool,
    },
    Keep(Box<Health>),
}

impl Acknowledger {
    /// Starts the thread of a session. What is to be written down of the guest's health is given to `keep`, since that may wait for a
    /// disk as well.
    ///
    /// # Errors
    /// No more threads.
    pub fn start(session: Term, disks: Arc<Disks>, keep: Keep, core: Sender<Msg>) -> Result<Self, String> {
        let (jobs, work) = channel();
        let waiting = Arc::new(AtomicU32::new(0));
        let its = Waits { session, disks: Arc::clone(&disks), core: core.clone(), waiting: Arc::clone(&waiting) };
        thread::Builder::new()
            .name("acknowledge".into())
            .spawn(move || its.run(&work, &keep))
            .map_err(|e| format!("a thread cannot be started: {e}"))?;
        Ok(Self { session, disks, core, jobs, waiting })
    }

    /// A checkpoint has come whole: it will have to be acknowledged.
    ///
    /// # Errors
    /// More wait for that than a primary may send.
    pub fn comes(&self) -> Result<(), String> {
        if self.waiting.fetch_add(1, Ordering::SeqCst) >= MOST {
            return Err("the primary sends more checkpoints than may be unacknowledged".into());
        }
        Ok(())
    }

    /// The volumes have this checkpoint, the `first` of its session or not, and the log of a non-volatile VM has it, too. It is
    /// acknowledged when all that means is true: at once, if it is and none before it waits. Waits for nothing.
    pub fn holds(&self, epoch: Epoch, first: bool) {
        let alone = self.waiting.load(Ordering::SeqCst) == 1;
        if alone && self.disks.may_acknowledge_now(self.session, epoch) {
            acknowledge(self.session, epoch, first, &self.core, &self.waiting);
        } else {
            // A thread that has ended has said why.
            let _ = self.jobs.send(Job::Holds { epoch, first });
        }
    }

    /// Has this written down, behind what waits.
    pub fn keep(&self, health: Health) {
        let _ = self.jobs.send(Job::Keep(Box::new(health)));
    }
}

/// Says that a checkpoint is held, before it is crossed off: so nothing overtakes it.
fn acknowledge(session: Term, epoch: Epoch, first: bool, core: &Sender<Msg>, waiting: &AtomicU32) {
    let _ = core.send(Msg::Held { session, epoch, first });
    waiting.fetch_sub(1, Ordering::SeqCst);
}

/// What the thread has.
struct Waits {
    session: Term,
    disks: Arc<Disks>,
    core: Sender<Msg>,
    waiting: Arc<AtomicU32>,
}

impl Waits {
    fn run(self, work: &Receiver<Job>, keep: &Keep) {
        priority::raise();
        // What follows a checkpoint that cannot be acknowledged cannot either.
        let mut over = false;
        while let Ok(job) = work.recv() {
            match job {
                Job::Holds { .. } if over => {}
                Job::Holds { epoch, first } => match self.disks.wait_to_acknowledge(self.session, epoch) {
                    Ok(()) => acknowledge(self.session, epoch, first, &self.core, &self.waiting),
                    Err(reason) => {
                        over = true;
                        let _ = self.core.send(Msg::CannotAcknowledge { session: self.session, reason });
                    }
                },
                Job::Keep(health) => keep(&health),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ninefold_model::spec::Acknowledge;
    use ninefold_volume::Batch;

    use super::*;
    use crate::devices::disks::tests::{Way, Wayward, block, on};

    /// Only so that a failure ends.
    const LIMIT: Duration = Duration::from_secs(60);
    const SESSION: Term = Term(5);

    struct Backup {
        _dir: tempfile::TempDir,
        disk: Wayward,
        disks: Arc<Disks>,
        acknowledger: Acknowledger,
        heard: Receiver<Msg>,
        kept: Receiver<Health>,
    }

    /// A session of a backup whose volume has got something by a resync, which is not durable.
    fn backup(acknowledge: Acknowledge, way: Way) -> Backup {
        let dir = tempfile::tempdir().unwrap();
        let disk = Wayward::default();
        let disks = Arc::new(on(dir.path(), &disk, acknowledge));
        disks.enter(SESSION).unwrap();
        disks.apply(SESSION, 0, &block(9)).unwrap();
        disk.goes(way);
        let ((core, heard), (keeps, kept)) = (channel(), channel());
        let keep = Box::new(move |health: &Health| keeps.send(health.clone()).unwrap());
        let acknowledger = Acknowledger::start(SESSION, Arc::clone(&disks), keep, core).unwrap();
        Backup { _dir: dir, disk, disks, acknowledger, heard, kept }
    }

    impl Backup {
        /// What the receiver's thread does with a whole checkpoint.
        fn receives(&self, epoch: u8) -> Result<(), String> {
            self.acknowledger.comes()?;
            let batch = Batch::parse(block(epoch), 1 << 20).unwrap();
            self.disks.receive(SESSION, Epoch(epoch.into()), vec![batch])?;
            self.acknowledger.holds(Epoch(epoch.into()), epoch == 1);
            Ok(())
        }

        fn hears(&self, epoch: u64) {
            match self.heard.recv_timeout(LIMIT).unwrap() {
                Msg::Held { session: SESSION, epoch: Epoch(e), first } => assert_eq!((e, first), (epoch, epoch == 1)),
                _ => panic!("epoch {epoch} is not acknowledged"),
            }
        }

        /// What a guest would read.
        fn reads(&self) -> u8 {
            let mut byte = [0];
            self.disks.iter().next().unwrap().served.read(0, &mut byte).unwrap();
            byte[0]
        }
    }

    /// An acknowledgement means the disk, and that hangs. Who receives reads on, up to what a primary may send; what has come whole is
    /// there for a guest that has to go on here; and when the disk answers it is acknowledged, in order.
    #[test]
    fn who_receives_does_not_wait_for_a_disk_that_hangs() {
        let backup = backup(Acknowledge::Disk, Way::Hangs);
        for epoch in 1..=MOST as u8 {
            backup.receives(epoch).unwrap();
            assert_eq!(backup.reads(), epoch, "the VM could go on with it");
        }
        assert!(backup.receives(MOST as u8 + 1).unwrap_err().contains("unacknowledged"));
        assert!(backup.heard.try_recv().is_err(), "something is acknowledged that the disk has not");
        backup.disk.goes(Way::Answers);
        (1..=MOST.into()).for_each(|epoch| backup.hears(epoch));
    }

    /// Nor does what rests on a resync count before that is durable, where an acknowledgement means memory.
    #[test]
    fn what_rests_on_a_resync_waits_for_that() {
        let backup = backup(Acknowledge::Memory, Way::Hangs);
        backup.receives(1).unwrap();
        backup.receives(2).unwrap();
        assert!(backup.heard.try_recv().is_err());
        backup.disk.goes(Way::Answers);
        backup.hears(1);
        backup.hears(2);
        // From then on nobody waits for anybody.
        while backup.acknowledger.waiting.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
        backup.disk.goes(Way::Hangs);
        backup.receives(3).unwrap();
        assert!(matches!(backup.heard.try_recv(), Ok(Msg::Held { epoch: Epoch(3), first: false, .. })));
        backup.disk.goes(Way::Answers);
    }

    /// A disk that fails is said once; nothing that comes after it is acknowledged. What else is to be done still is.
    #[test]
    fn nothing_is_acknowledged_behind_what_could_not_be() {
        let backup = backup(Acknowledge::Disk, Way::Fails);
        (1..=3).for_each(|epoch| backup.receives(epoch).unwrap());
        let Msg::CannotAcknowledge { session: SESSION, reason } = backup.heard.recv_timeout(LIMIT).unwrap() else {
            panic!("it is acknowledged")
        };
        assert!(reason.contains("it is broken"), "{reason}");
        assert_eq!(backup.reads(), 3, "it is whole all the same");
        backup.disk.goes(Way::Answers);
        backup.acknowledger.keep(Health::default());
        backup.kept.recv_timeout(LIMIT).unwrap();
        assert!(backup.heard.try_recv().is_err());
    }
}
