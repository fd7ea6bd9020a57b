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

use ninefold_model::{Activity, GuestState};

/// See the [module](self).
#[derive(Debug, Clone, Default)]
pub struct RunState {
    now: GuestState,
    /// What the latest checkpoint says. None when something has changed since: although it may stand again as it did then, it has
    /// run in between.
    taken: Option<GuestState>,
}

impl RunState {
    /// Of a guest that goes on from a checkpoint which says this.
    pub fn of(standing: GuestState) -> Self {
        Self { now: standing, taken: None }
    }

    pub fn now(&self) -> GuestState {
        self.now
    }

    /// Its owner pauses it, or lets it go on; true if that changes anything.
    pub fn pause(&mut self, paused: bool) -> bool {
        self.becomes(GuestState { paused, ..self.now })
    }

    /// What QEMU says of it; true if that changes anything. What is off stays off, until another QEMU is launched.
    pub fn does(&mut self, activity: Activity) -> bool {
        self.now.activity != Activity::Off && self.becomes(GuestState { activity, ..self.now })
    }

    fn becomes(&mut self, next: GuestState) -> bool {
        let before = std::mem::replace(&mut self.now, next);
        // What a checkpoint has said before QEMU's word for it was taken is not out of date by that word.
        self.taken.take_if(|taken| before != next && *taken == before);
        before != next
    }

    /// A checkpoint is taken; whether the guest was suspended when its devices were saved. QEMU's word for what is so now may be on
    /// its way still, and may be of later. What the checkpoint says.
    pub fn checkpoint(&mut self, suspended: bool) -> GuestState {
        let activity = match (self.now.activity, suspended) {
            (Activity::Off, _) => Activity::Off,
            (_, true) => Activity::Suspended,
            (_, false) => Activity::Running,
        };
        let said = GuestState { activity, ..self.now };
        self.taken = Some(said);
        said
    }

    /// The latest checkpoint was of no use, and nobody has it.
    pub fn forget_taken(&mut self) {
        self.taken = None;
    }

    /// Whether the latest checkpoint says how the guest stands now.
    pub fn is_taken(&self) -> bool {
        self.taken == Some(self.now)
    }

    /// The guest does not run, and the latest checkpoint says so: the next would be the same.
    pub fn rests(&self) -> bool {
        !self.now.runs() && self.is_taken()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSED: GuestState = GuestState { activity: Activity::Running, paused: true };

    #[test]
    fn a_checkpoint_says_how_the_guest_stood_then() {
        let mut stance = RunState::default();
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

    /// It rests with that checkpoint: no later one says anything.
    #[test]
    fn a_checkpoint_may_say_it_before_qemu_is_heard() {
        let mut stance = RunState::default();
        stance.checkpoint(true);
        assert!(!stance.is_taken(), "QEMU is not heard yet");
        assert!(stance.does(Activity::Suspended));
        assert!(stance.is_taken() && stance.rests());
    }

    #[test]
    fn what_has_run_since_the_checkpoint_is_not_in_it() {
        let mut stance = RunState::default();
        stance.does(Activity::Suspended);
        stance.checkpoint(true);
        assert!(!stance.does(Activity::Suspended) && stance.rests(), "nothing has changed");
        stance.does(Activity::Running);
        stance.does(Activity::Suspended);
        assert!(!stance.is_taken() && !stance.rests(), "it has run");
        stance.checkpoint(true);
        assert!(stance.rests());
        stance.pause(true);
        stance.pause(false);
        assert!(!stance.rests(), "what is told of it waits for a checkpoint");
    }

    #[test]
    fn a_pause_is_its_owners_and_hides_nothing() {
        let mut stance = RunState::of(PAUSED);
        assert!(!stance.pause(true));
        assert!(stance.does(Activity::Suspended), "it was about to be suspended");
        assert_eq!(stance.checkpoint(true), GuestState { activity: Activity::Suspended, paused: true });
        assert!(stance.pause(false));
        assert_eq!(stance.now(), GuestState { activity: Activity::Suspended, paused: false });
    }

    #[test]
    fn it_rests_when_the_checkpoint_says_what_is_so() {
        let mut stance = RunState::default();
        stance.checkpoint(false);
        assert!(!stance.rests(), "a guest that runs changes");
        stance.pause(true);
        assert!(!stance.rests(), "no checkpoint says that it is paused");
        stance.checkpoint(false);
        assert!(stance.rests());
        stance.pause(false);
        assert!(!stance.rests());
        assert!(!RunState::of(PAUSED).rests(), "another host's checkpoint is not this one's");
    }
}
