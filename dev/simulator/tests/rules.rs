//! Rules of the protocol are switched off, one at a time: the simulator finds the harm, within a bounded number of seeds. Those that are not
//! here are named in `docs/simulator.md`.

use ninefold_replica::protocol::{ReleasePolicy, Rules};
use ninefold_simulator::plan::{Plan, Setup};
use ninefold_simulator::run::{harm, run};
use ninefold_simulator::trace::Trace;

/// Seeds that are tried for a rule, at most.
const SEEDS: u64 = 400;

const PAIR: Setup = Setup { hosts: 2, backups: 1, volumes: 0, log: false };
const STAR: Setup = Setup { hosts: 3, backups: 2, volumes: 0, log: false };
const LOGGED: Setup = Setup { hosts: 2, backups: 1, volumes: 0, log: true };

/// Keepers die, hosts stand still, ways are cut.
const HOSTS: &[u8] = &[0, 4, 8, 9, 11, 12, 13, 15, 16, 18, 27];
/// The witness is not what it should be, or late; ways are cut.
const WITNESS: &[u8] = &[13, 15, 18, 19, 20, 21, 22, 23, 24, 25];
/// Power is lost, logs fail.
const POWER: &[u8] = &[0, 3, 4, 12, 13, 16, 22, 25, 30, 30, 31, 32];

/// The first seed that shows harm without a rule shows none with it.
fn finds_harm(rules: Rules, setup: Setup, kinds: &[u8]) {
    let mut plans = (0..SEEDS).map(|seed| Plan::aimed(seed, setup, kinds));
    let (found, plan) = plans.find_map(|plan| Some((harm(&plan, rules)?, plan))).expect("no harm is found");
    println!("seed {}: {}: {}", plan.seed, found.rule, found.words);
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
    ($($(#[$doc:meta])* $name:ident: $setup:expr, $kinds:expr;)*) => {
        $($(#[$doc])* #[test]
        fn $name() {
            finds_harm(Rules { $name: false, ..Rules::ALL }, $setup, $kinds);
        })*
    };
}

rules! {
    hold_from_first_checkpoint: PAIR, HOSTS;
    count_before_bound: STAR, HOSTS;
    win_before_speaking_alone: PAIR, HOSTS;
    win_before_resuming: PAIR, HOSTS;
    claim_own_session: STAR, HOSTS;
    ask_when_in_doubt: PAIR, HOSTS;
    one_session_a_term: STAR, HOSTS;
    say_when_unprotected: PAIR, HOSTS;
    wait_for_log: LOGGED, POWER;
    disown_a_lost_log: LOGGED, POWER;
    end_only_for_another: PAIR, WITNESS;
}

/// Output that leaves when one of two backups has it.
#[test]
fn release_when_all_hold() {
    finds_harm(Rules { release: ReleasePolicy::One, ..Rules::ALL }, STAR, HOSTS);
}
