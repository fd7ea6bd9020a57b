//! How the guest stands, and what follows for the VM's thread. Pure.
//!
//! ```text
//!                 SUSPEND                       SHUTDOWN
//!   running ◄───────────────► suspended       ───────────► off
//!                 WAKEUP
//!   and, whatever it does: paused by its owner, or not
//! ```
//!
//! A checkpoint says how the guest stood when its devices were saved. Whoever goes on from it leaves the guest so.

use ninefold_model::{Activity, Standing};

/// See the [module](self).
#[derive(Debug, Clone, Default)]
pub struct Stance {
    now: Standing,
    /// What the latest checkpoint says.
    taken: Option<Standing>,
}

impl Stance {
    /// Of a guest that goes on from a checkpoint which says this.
    pub fn of(standing: Standing) -> Self {
        Self { now: standing, taken: None }
    }

    pub fn now(&self) -> Standing {
        self.now
    }

    /// Its owner pauses it, or lets it go on; true if that changes anything.
    pub fn pause(&mut self, paused: bool) -> bool {
        std::mem::replace(&mut self.now.paused, paused) != paused
    }

    /// What QEMU says of it; true if that changes anything. What is off stays off, until another QEMU is launched.
    pub fn does(&mut self, activity: Activity) -> bool {
        if self.now.activity == Activity::Off {
            return false;
        }
        std::mem::replace(&mut self.now.activity, activity) != activity
    }

    /// A checkpoint is taken; whether the guest was suspended when its devices were saved. QEMU's word for what is so now may be on
    /// its way still, and may be of later. What the checkpoint says.
    pub fn checkpoint(&mut self, suspended: bool) -> Standing {
        let activity = match (self.now.activity, suspended) {
            (Activity::Off, _) => Activity::Off,
            (_, true) => Activity::Suspended,
            (_, false) => Activity::Running,
        };
        let said = Standing { activity, ..self.now };
        self.taken = Some(said);
        said
    }

    /// The guest does not run, and the latest checkpoint says so: the next would be the same.
    pub fn rests(&self) -> bool {
        !self.now.runs() && self.taken == Some(self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSED: Standing = Standing { activity: Activity::Running, paused: true };

    #[test]
    fn a_checkpoint_says_how_the_guest_stood_then() {
        let mut stance = Stance::default();
        assert!(stance.checkpoint(false).runs());
        // It has suspended itself before the devices were saved; QEMU's word has not been taken yet.
        assert_eq!(stance.checkpoint(true).activity, Activity::Suspended);
        assert!(stance.now().runs());
        assert!(stance.does(Activity::Suspended));
        assert!(!stance.does(Activity::Suspended));
        // And has woken since they were.
        assert!(stance.does(Activity::Running));
        assert_eq!(stance.checkpoint(true).activity, Activity::Suspended);
        // Off is off, whatever comes behind it.
        assert!(stance.does(Activity::Off));
        assert!(!stance.does(Activity::Running));
        assert_eq!(stance.checkpoint(false).activity, Activity::Off);
    }

    #[test]
    fn a_pause_is_its_owners_and_hides_nothing() {
        let mut stance = Stance::of(PAUSED);
        assert!(!stance.pause(true));
        assert!(stance.does(Activity::Suspended), "it was about to be suspended");
        assert_eq!(stance.checkpoint(true), Standing { activity: Activity::Suspended, paused: true });
        assert!(stance.pause(false));
        assert_eq!(stance.now(), Standing { activity: Activity::Suspended, paused: false });
    }

    #[test]
    fn it_rests_when_the_checkpoint_says_what_is_so() {
        let mut stance = Stance::default();
        stance.checkpoint(false);
        assert!(!stance.rests(), "a guest that runs changes");
        stance.pause(true);
        assert!(!stance.rests(), "no checkpoint says that it is paused");
        stance.checkpoint(false);
        assert!(stance.rests());
        stance.pause(false);
        assert!(!stance.rests());
        assert!(!Stance::of(PAUSED).rests(), "another host's checkpoint is not this one's");
    }
}
