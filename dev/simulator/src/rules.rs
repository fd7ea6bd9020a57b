//! Rules that can be switched off, to show what each is for: of the protocol, of the core around it, and of a keeper's other parts, which
//! are modelled here.

use ninefold_core::Rules as CoreRules;
use ninefold_replica::protocol;

/// See the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    pub core: CoreRules,
    pub keeper: KeeperRules,
}

/// Of a keeper's threads and volumes, as this simulator has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeeperRules {
    /// Where an acknowledgement means the disk, a backup acknowledges what its disk has.
    pub acknowledge_from_disk: bool,
    /// What a failed flush has lost is noted, and counts as lost until it is written again.
    pub note_what_was_lost: bool,
    /// The gate of a VM that goes on alone opens when what it may tell of is on the disk.
    pub open_when_durable: bool,
    /// Memory of which not all was written is noted to be that of the checkpoint before.
    pub note_what_is_whole: bool,
    /// The volumes of a host whose keeper has gone are compared.
    pub compare_after_a_keeper: bool,
}

impl KeeperRules {
    /// All of them.
    pub const ALL: Self = Self {
        acknowledge_from_disk: true,
        note_what_was_lost: true,
        open_when_durable: true,
        note_what_is_whole: true,
        compare_after_a_keeper: true,
    };
}

impl Rules {
    /// All of them.
    pub const ALL: Self = Self { core: CoreRules::ALL, keeper: KeeperRules::ALL };

    /// With these of the protocol.
    pub const fn of_protocol(protocol: protocol::Rules) -> Self {
        Self { core: CoreRules { protocol, ..CoreRules::ALL }, keeper: KeeperRules::ALL }
    }
}

macro_rules! by_name {
    ($name:ident: $($protocol:ident)*; $($core:ident)*; $($keeper:ident)*) => {
        match $name {
            $(stringify!($protocol) => Some(Rules::of_protocol(protocol::Rules { $protocol: false, ..protocol::Rules::ALL })),)*
            $(stringify!($core) => Some(Rules { core: CoreRules { $core: false, ..CoreRules::ALL }, ..Rules::ALL }),)*
            $(stringify!($keeper) => Some(Rules { keeper: KeeperRules { $keeper: false, ..KeeperRules::ALL }, ..Rules::ALL }),)*
            _ => None,
        }
    };
}

/// All rules but one. None if there is none of this name.
pub fn all_but(name: &str) -> Option<Rules> {
    by_name!(name:
        hold_from_first_checkpoint release_only_acked count_before_bound win_before_speaking_alone
        win_before_resuming claim_own_session ack_in_order no_ack_while_claiming ask_when_in_doubt
        one_session_a_term say_when_unprotected wait_for_log only_allowed_logs invalidate_a_lost_log
        end_only_for_another prepare_before_asking claim_from_what_was give_back_before_running
        give_back_to_the_bound wait_for_what_was_asked;
        refuse_for_who_lives leave_a_failing_disk refuse_mixtures refuse_what_is_behind remember_the_last_acknowledged;
        acknowledge_from_disk note_what_was_lost open_when_durable note_what_is_whole compare_after_a_keeper)
}
