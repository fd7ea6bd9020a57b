//! Runs plans, and makes those that fail smaller.

use std::collections::BTreeMap;

use crate::judge::{Harm, Verdict};
use crate::plan::{Plan, Timed};
use crate::rules::Rules;
use crate::trace::Trace;
use crate::world::World;

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub harm: Option<Harm>,
    /// Simulated microseconds.
    pub us: u64,
    pub takeovers: u32,
    pub lives: u32,
    pub trace: String,
    pub seen: BTreeMap<String, u64>,
}

/// Runs a plan to its end.
pub fn run(plan: &Plan, rules: Rules, trace: Trace) -> Outcome {
    let mut world = World::new(plan.clone(), rules, trace);
    world.run();
    let harm = match &world.judge.verdict {
        Some(Verdict::Harm(harm)) => Some(harm.clone()),
        Some(Verdict::Fine) | None => None,
    };
    Outcome {
        harm,
        us: world.now,
        takeovers: world.judge.takeovers,
        lives: world.judge.lives,
        trace: world.trace.text().to_owned(),
        seen: world.trace.seen.take().unwrap_or_default(),
    }
}

/// What goes wrong with this plan.
pub fn harm(plan: &Plan, rules: Rules) -> Option<Harm> {
    run(plan, rules, Trace::default()).harm
}

/// A smaller plan that comes to the same harm: with fewer faults, and shorter ones.
pub fn shrink(plan: &Plan, rules: Rules) -> Plan {
    let Some(found) = harm(plan, rules) else { return plan.clone() };
    let same = |plan: &Plan| harm(plan, rules).is_some_and(|h| h.rule == found.rule);
    let mut best = plan.clone();
    loop {
        let before = best.clone();
        for n in (0..best.faults.len()).rev() {
            let mut fewer = best.clone();
            fewer.faults.remove(n);
            if same(&fewer) {
                best = fewer;
            }
        }
        for n in 0..best.faults.len() {
            for shorter in shorter(&best.faults[n]) {
                let mut plan = best.clone();
                plan.faults[n] = shorter;
                if same(&plan) {
                    best = plan;
                    break;
                }
            }
        }
        if best == before {
            return best;
        }
    }
}

/// The same fault for less time, the shortest first.
fn shorter(timed: &Timed) -> Vec<Timed> {
    let mut all = Vec::new();
    for part in [0, 1, 2, 3] {
        let mut less = timed.clone();
        let Some(ms) = less.fault.lasts() else { break };
        let shorter = *ms * part / 4;
        if shorter > 0 {
            *ms = shorter;
            all.push(less);
        }
    }
    all
}
