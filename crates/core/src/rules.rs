//! Rules of the core and of the protocol in it, which can be switched off: so the simulator shows what each is for.

use ninefold_replica::protocol;

/// See the [module](self).
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    pub protocol: protocol::Rules,
    /// A backup whose disk takes nothing is given up only for a primary that is heard after that.
    pub refuse_for_who_lives: bool,
    /// A primary leaves a disk that fails for a bound backup.
    pub leave_a_failing_disk: bool,
    /// Nobody boots from volumes that a resync has left half done.
    pub refuse_mixtures: bool,
    /// Nobody boots without being told to from volumes that may be behind what clients were told.
    pub refuse_what_is_behind: bool,
    /// What a backup that comes back may be missing begins with the last checkpoint that it has acknowledged, which need not be in its memory
    /// whole.
    pub remember_the_last_acknowledged: bool,
}

impl Rules {
    /// All of them.
    pub const ALL: Self = Self {
        protocol: protocol::Rules::ALL,
        refuse_for_who_lives: true,
        leave_a_failing_disk: true,
        refuse_mixtures: true,
        refuse_what_is_behind: true,
        remember_the_last_acknowledged: true,
    };
}
