//! `ninefold vm checkpoints`.

use clap::Args;
use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::series::{Series, Summary};
use ninefold_shell::output::{self, Output, bytes, count, ms};
use serde::Serialize;

use super::keepers::Where;
use crate::error::CliError;

/// Show the latest checkpoints of a VM, step by step
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold vm checkpoints\n  \
    ninefold vm checkpoints --last 1000 --json | jq .summary.pause_us\n\n\
    Steps: stop (QEMU holds still), save (device state), scan (which pages), copy (those pages), cont (it runs again);\n\
    pause is all of them, commit the time from its end to the backup's acknowledgement.")]
pub struct CheckpointsArgs {
    #[command(flatten)]
    at: Where,
    /// How many
    #[arg(long, value_name = "N", default_value_t = 15)]
    last: usize,
}

#[derive(Debug, Serialize)]
struct Shown {
    host: String,
    summary: Summaries,
    checkpoints: Vec<CheckpointRecord>,
}

#[derive(Debug, Serialize)]
struct Summaries {
    pause_us: Summary,
    commit_us: Summary,
    dirty_pages: Summary,
    wire_bytes: Summary,
}

pub fn run(args: &CheckpointsArgs, output: &Output) -> Result<(), CliError> {
    let (keeper, _) = args.at.keepers()?.primary()?;
    let mut checkpoints = keeper.client.checkpoints(0)?;
    checkpoints.drain(..checkpoints.len().saturating_sub(args.last));
    let of = |f: fn(&CheckpointRecord) -> u64| checkpoints.iter().map(f).collect::<Series>().summary();
    let summary = Summaries {
        pause_us: of(|c| c.pause_us),
        commit_us: of(|c| c.commit_us),
        dirty_pages: of(|c| c.dirty_pages),
        wire_bytes: of(|c| c.wire_bytes),
    };
    let shown = Shown { host: keeper.host.clone(), summary, checkpoints };
    Ok(output.show(&shown, || tell(&shown))?)
}

fn tell(shown: &Shown) -> String {
    if shown.checkpoints.is_empty() {
        return format!("host {} has committed no checkpoint yet", shown.host);
    }
    let header = ["EPOCH", "RUN", "PAUSE", "STOP", "SAVE", "SCAN", "COPY", "CONT", "PAGES", "ON THE WIRE", "COMMIT"];
    let mut table = output::table(&header);
    for c in &shown.checkpoints {
        let times = [c.run_us, c.pause_us, c.stop_us, c.save_us, c.scan_us, c.copy_us, c.cont_us].map(step);
        let [run, pause, stop, save, scan, copy, cont] = times;
        let epoch = count(c.epoch);
        table.add_row([
            epoch,
            run,
            pause,
            stop,
            save,
            scan,
            copy,
            cont,
            count(c.dirty_pages),
            bytes(c.wire_bytes),
            step(c.commit_us),
        ]);
    }
    let (p, c) = (&shown.summary.pause_us, &shown.summary.commit_us);
    format!(
        "{}\n\nof these {} on host {}: pause p50 {}, p99 {}, max {}; commit p50 {}, p99 {}",
        output::text(&table),
        p.count,
        shown.host,
        step(p.p50),
        step(p.p99),
        step(p.max),
        step(c.p50),
        step(c.p99)
    )
}

/// Short times need more digits.
fn step(us: u64) -> String {
    if us < 1000 { format!("{us} us") } else { ms(us) }
}
