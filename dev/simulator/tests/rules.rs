//! Rules of the protocol are switched off, one at a time: the simulator finds the harm, within a bounded number of seeds. Those that are not
//! here are named in `docs/simulator.md`.

use ninefold_core::Rules as CoreRules;
use ninefold_replica::protocol::{self, ReleasePolicy};
use ninefold_simulator::plan::{Fault, Moment, Plan, Setup, Timed};
use ninefold_simulator::rules::{KeeperRules, Rules};
use ninefold_simulator::run::{harm, run};
use ninefold_simulator::trace::Trace;

/// Seeds that are tried for a rule, at most.
const SEEDS: u64 = 400;

const PAIR: Setup = Setup { hosts: 2, backups: 1, volumes: 0, log: false, disk: false, watchdog: None };
const STAR: Setup = Setup { hosts: 3, backups: 2, volumes: 0, log: false, disk: false, watchdog: None };
const VOLUME: Setup = Setup { hosts: 2, backups: 1, volumes: 1, log: false, disk: false, watchdog: None };
const DISK: Setup = Setup { disk: true, ..VOLUME };
const LOGGED: Setup = Setup { hosts: 2, backups: 1, volumes: 0, log: true, disk: false, watchdog: None };

/// Keepers die, hosts stand still, ways are cut.
const HOSTS: &[u8] = &[0, 4, 8, 9, 11, 12, 13, 15, 16, 18, 27];
/// The witness is not what it should be, or late; ways are cut.
const WITNESS: &[u8] = &[13, 15, 18, 19, 20, 21, 22, 23, 24, 25];
/// Power is lost, logs fail.
const POWER: &[u8] = &[0, 3, 4, 12, 13, 16, 22, 25, 30, 30, 31, 32];

/// Disks fail and hang, keepers die, power is lost.
const DISKS: &[u8] = &[0, 3, 4, 12, 13, 18, 30, 32, 33, 33, 34, 35];

/// Faults of some kinds, at any time.
fn aimed(setup: Setup, kinds: &'static [u8]) -> impl Fn(u64) -> Plan {
    move |seed| Plan::aimed(seed, setup, kinds)
}

/// Faults that belong together, with times that are left to chance.
fn shaped(setup: Setup, faults: impl Fn(&mut fastrand::Rng) -> Vec<Timed>) -> impl Fn(u64) -> Plan {
    move |seed| Plan { seed, setup, faults: faults(&mut fastrand::Rng::with_seed(seed)) }
}

/// A primary stands still as it is about to release something, is replaced, and stands still again when it has asked the witness.
fn stands_still_twice(rng: &mut fastrand::Rng) -> Vec<Timed> {
    let (at, long, short) = (rng.u64(1000..2500), rng.u64(200..700), rng.u64(5..60));
    vec![
        Timed::at(at, Fault::Freeze { host: 0, for_ms: long, amid: true }),
        Timed::behind(
            at + long - 20,
            Moment::Proposes,
            rng.u64(..500),
            Fault::Freeze { host: 0, for_ms: short, amid: false },
        ),
    ]
}

/// A backup acknowledges its first checkpoint while what is sent to the witness takes more than a second. The primary has just asked for it, and hears
/// of the witness no more; and the two do not hear each other.
fn late_binding(rng: &mut fastrand::Rng) -> Vec<Timed> {
    let (by_ms, for_ms) = (rng.u64(1050..1400), rng.u64(100..1000));
    let after = |us, fault| Timed::behind(200, Moment::AcksFirst, us, fault);
    let lost = rng.u64(3000..40_000);
    vec![
        after(0, Fault::WitnessLate { by_ms, for_ms }),
        after(lost, Fault::WitnessCut { host: 0, for_ms: 3000 }),
        after(lost, Fault::Reset { a: 0, b: 1 }),
    ]
}

/// A backup whose disk is slow takes over, and all hosts lose their power.
fn power_goes_while_a_claim_is_noted(rng: &mut fastrand::Rng) -> Vec<Timed> {
    let at = rng.u64(1500..2500);
    vec![
        Timed::at(at, Fault::DiskSlow { host: 1, by_ms: rng.u64(1..100), for_ms: 1000 }),
        Timed::at(at + 1, Fault::KillKeeper { host: 0, back_ms: 2000 }),
        Timed::behind(at + 1, Moment::Wins, rng.u64(..3000), Fault::PowerLoss { back_ms: 100 }),
    ]
}

/// The backup's disk fails, and then the primary is gone.
fn disk_fails_and_the_primary_dies(rng: &mut fastrand::Rng) -> Vec<Timed> {
    let at = rng.u64(1500..2500);
    vec![
        Timed::at(at, Fault::VolumesFail { host: 1, full: false, for_ms: 2000 }),
        Timed::at(at + rng.u64(..20), Fault::KillKeeper { host: 0, back_ms: 3000 }),
    ]
}

/// Nothing but the disk of the host where the VM was booted.
fn primary_disk_fails(rng: &mut fastrand::Rng) -> Vec<Timed> {
    vec![Timed::at(rng.u64(1500..2500), Fault::VolumesFail { host: 0, full: false, for_ms: 8000 })]
}

/// A primary dies while its volumes are copied to a backup, and a person starts the VM there all the same.
fn dies_amid_a_resync(rng: &mut fastrand::Rng) -> Vec<Timed> {
    let at = rng.u64(150..600);
    vec![
        Timed::at(at, Fault::PowerOff { host: 0, back_ms: 4000 }),
        Timed::at(at + 1000, Fault::StartElsewhere { host: 1 }),
    ]
}

/// A flush of a VM that is alone fails, and soon afterwards its host loses its power.
fn a_flush_fails(rng: &mut fastrand::Rng) -> Vec<Timed> {
    let at = rng.u64(1500..2500);
    vec![
        Timed::at(at, Fault::PowerOff { host: 1, back_ms: 8000 }),
        Timed::at(at + rng.u64(1000..3000), Fault::VolumesFail { host: 0, full: false, for_ms: rng.u64(1..10) }),
        Timed::at(at + 3010 + rng.u64(..40), Fault::PowerOff { host: 0, back_ms: 500 }),
    ]
}

/// The backup's keeper is killed, and is back at once; the memory of its standby outlives it. Then the primary dies.
fn backup_comes_back(rng: &mut fastrand::Rng) -> Vec<Timed> {
    let at = rng.u64(1500..2500);
    vec![
        Timed::at(at, Fault::KillKeeper { host: 1, back_ms: rng.u64(1..20) }),
        Timed::behind(at + 1, Moment::AcksFirst, rng.u64(1500..4000), Fault::KillKeeper { host: 0, back_ms: 1000 }),
    ]
}

/// The first seed that shows harm without a rule shows none with it.
fn finds_harm(rules: Rules, plan: impl Fn(u64) -> Plan) {
    let (found, plan) =
        (0..SEEDS).map(plan).find_map(|plan| Some((harm(&plan, rules)?, plan))).expect("no harm is found");
    println!("{}: {}: {}", found.rule, found.words, serde_json::to_string(&plan).unwrap());
    assert_eq!(harm(&plan, Rules::ALL), None, "the rule is for this");
}

#[test]
fn no_harm_with_all_rules() {
    for seed in 0..150 {
        let plan = Plan::of(seed);
        assert_eq!(harm(&plan, Rules::ALL), None, "seed {seed}: {plan:?}");
    }
}

#[test]
fn a_seed_is_the_same_run_to_the_byte() {
    for seed in 0..6 {
        let plan = Plan::of(seed);
        let one = run(&plan, Rules::ALL, Trace::on()).trace;
        let other = run(&plan, Rules::ALL, Trace::on()).trace;
        assert!(one.len() > 10_000 && one == other, "seed {seed}");
    }
}

macro_rules! rules {
    ($rules:ident, $with:expr; $($name:ident: $plan:expr;)*) => {
        $(#[test]
        fn $name() {
            finds_harm($with($rules { $name: false, ..$rules::ALL }), $plan);
        })*
    };
}

use protocol::Rules as Protocol;

rules! { Protocol, Rules::of_protocol;
    hold_from_first_checkpoint: aimed(PAIR, HOSTS);
    release_only_acked: aimed(PAIR, HOSTS);
    count_before_bound: aimed(STAR, HOSTS);
    win_before_speaking_alone: aimed(PAIR, HOSTS);
    win_before_resuming: aimed(PAIR, HOSTS);
    claim_own_session: aimed(STAR, HOSTS);
    ask_when_in_doubt: shaped(PAIR, stands_still_twice);
    one_session_a_term: aimed(STAR, HOSTS);
    say_when_unprotected: aimed(PAIR, HOSTS);
    wait_for_log: aimed(LOGGED, POWER);
    only_allowed_logs: aimed(LOGGED, POWER);
    invalidate_a_lost_log: aimed(LOGGED, POWER);
    prepare_before_asking: shaped(LOGGED, power_goes_while_a_claim_is_noted);
    end_only_for_another: aimed(PAIR, WITNESS);
    claim_from_what_was: shaped(PAIR, late_binding);
}

rules! { CoreRules, |core| Rules { core, ..Rules::ALL };
    refuse_for_who_lives: shaped(DISK, disk_fails_and_the_primary_dies);
    leave_a_failing_disk: shaped(VOLUME, primary_disk_fails);
    refuse_mixtures: shaped(VOLUME, dies_amid_a_resync);
    refuse_what_is_behind: aimed(VOLUME, &[12, 30]);
}

rules! { KeeperRules, |keeper| Rules { keeper, ..Rules::ALL };
    acknowledge_from_disk: aimed(DISK, DISKS);
    note_what_was_lost: shaped(DISK, a_flush_fails);
    open_when_durable: aimed(DISK, DISKS);
    compare_after_a_keeper: shaped(VOLUME, backup_comes_back);
}

/// A keeper that ends amid a checkpoint leaves memory that is partly of that and partly of the one before. It is noted to be of the one before; and
/// the primary sends the whole of the last that was acknowledged again. Either is enough.
#[test]
fn memory_that_is_not_whole() {
    let core = CoreRules { remember_the_last_acknowledged: false, ..CoreRules::ALL };
    let keeper = KeeperRules { note_what_is_whole: false, ..KeeperRules::ALL };
    finds_harm(Rules { core, keeper }, shaped(PAIR, backup_comes_back));
    for n in 0..SEEDS / 4 {
        let plan = shaped(PAIR, backup_comes_back)(n);
        assert_eq!(harm(&plan, Rules { core, ..Rules::ALL }), None);
        assert_eq!(harm(&plan, Rules { keeper, ..Rules::ALL }), None);
    }
}

/// Output that leaves when one of two backups has it.
#[test]
fn release_when_all_hold() {
    finds_harm(Rules::of_protocol(Protocol { release: ReleasePolicy::One, ..Protocol::ALL }), aimed(STAR, HOSTS));
}
