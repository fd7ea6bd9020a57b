//! `ninefold-simulator`: lives of a VM by their seeds.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use ninefold_simulator::plan::Plan;
use ninefold_simulator::rules::{Rules, all_but};
use ninefold_simulator::run::{harm, run, shrink};
use ninefold_simulator::trace::Trace;

/// Runs whole cores in a simulated world that misbehaves by seed, and says what must never be.
///
/// Examples:
///   ninefold-simulator --seeds 5000
///   ninefold-simulator --seed 42 --replay
///   ninefold-simulator --plan failing.json --replay
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed; with --replay the only one.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Reads the plan from this file instead.
    #[arg(long)]
    plan: Option<PathBuf>,
    /// Runs one plan, and prints all that happens. A plan that fails is made smaller first.
    #[arg(long)]
    replay: bool,
    /// The plan as it is, also if it fails.
    #[arg(long)]
    whole: bool,
    /// Stops after so many seeds that fail.
    #[arg(long, default_value_t = 1)]
    failures: usize,
    /// Switches off this rule, as `Rules` names it.
    #[arg(long)]
    without: Option<String>,
    /// Says how often each kind of event and effect was seen.
    #[arg(long)]
    kinds: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let rules = match args.without.as_deref().map(all_but) {
        None => Rules::ALL,
        Some(Some(rules)) => rules,
        Some(None) => {
            eprintln!("error: there is no rule of that name: docs/protocol.md and docs/simulator.md have them");
            return ExitCode::from(2);
        }
    };
    let plan = match &args.plan {
        Some(path) => match read(path) {
            Ok(plan) => Some(plan),
            Err(why) => {
                eprintln!("error: the plan {} cannot be read: {why}", path.display());
                return ExitCode::from(2);
            }
        },
        None => args.replay.then(|| Plan::of(args.seed)),
    };
    match plan {
        Some(plan) => one(plan, args.whole, rules),
        None => many(&args, rules),
    }
}

fn read(path: &PathBuf) -> Result<Plan, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    serde_json::from_str(&text).map_err(|e| e.to_string())
}

fn one(plan: Plan, whole: bool, rules: Rules) -> ExitCode {
    let plan = if whole { plan } else { shrink(&plan, rules) };
    let outcome = run(&plan, rules, Trace::on());
    print!("{}", outcome.trace);
    tell(&plan);
    match outcome.harm {
        Some(harm) => {
            println!("{}: {} (at {} ms)", harm.rule, harm.words, harm.at_us / 1000);
            ExitCode::FAILURE
        }
        None => {
            println!("nothing is wrong: {} ms, {} times a host went on", outcome.us / 1000, outcome.takeovers);
            ExitCode::SUCCESS
        }
    }
}

fn tell(plan: &Plan) {
    println!("{}", serde_json::to_string(plan).unwrap_or_default());
    println!("{:?}", plan.setup);
    for timed in &plan.faults {
        let behind = timed.behind.map_or_else(String::new, |(moment, us)| format!("{us} us after {moment:?}: "));
        println!("  at {:>5} ms {behind}{:?}", timed.at_ms, timed.fault);
    }
}

fn many(args: &Args, rules: Rules) -> ExitCode {
    let bar = ProgressBar::new(args.seeds);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {per_sec}, {eta} left {msg}") {
        bar.set_style(style);
    }
    let begun = Instant::now();
    let (mut us, mut takeovers, mut lives, mut failed, mut done) = (0, 0, 0, 0, 0);
    let mut kinds = BTreeMap::new();
    for seed in args.seed..args.seed.saturating_add(args.seeds) {
        let plan = Plan::of(seed);
        let trace = if args.kinds { Trace::counting() } else { Trace::default() };
        let outcome = run(&plan, rules, trace);
        us += outcome.us;
        takeovers += outcome.takeovers;
        lives += outcome.lives;
        done += 1;
        for (kind, times) in outcome.seen {
            *kinds.entry(kind).or_insert(0) += times;
        }
        bar.inc(1);
        if let Some(found) = outcome.harm {
            failed += 1;
            bar.suspend(|| {
                println!("seed {seed}: {}: {} (at {} ms)", found.rule, found.words, found.at_us / 1000);
                let small = shrink(&plan, rules);
                tell(&small);
                if let Some(harm) = harm(&small, rules) {
                    println!("  {}: {}", harm.rule, harm.words);
                }
            });
            if failed >= args.failures {
                break;
            }
        }
    }
    bar.finish_and_clear();
    let took = begun.elapsed().as_secs_f64();
    for (kind, times) in kinds {
        println!("{times:>12} {kind}");
    }
    println!(
        "{done} seeds in {took:.1} s ({:.0} a minute): {} s simulated, {lives} times a VM was booted, {takeovers} times a host went on with one; {failed} failed",
        done as f64 * 60.0 / took,
        us / 1_000_000,
    );
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
