//! `ninefold-lab bench`: what protection costs. The measuring is `ninefold_lab::bench`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use ninefold_lab::LabError;
use ninefold_lab::bench::{self, Options, Progress, Report, VolumeReport, volume};
use ninefold_shell::output::{Output, bytes};
use ninefold_shell::progress::{ProgressBar, style};
use serde::Serialize;

use crate::error::CommandError;

/// Measure protected against unprotected, on this machine, in one run
///
/// Two parts: a VM in memory (redis, ping, computing, failovers, …), and one that works on its volumes (PostgreSQL, jobs
/// named after fio's, resyncs). Makes labs of its own and takes them down. Nothing else should run meanwhile: the report
/// says how busy the machine was. Writes ft.json, ft.md and plots (SVG); volume.json and volume.md.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold-lab bench                  under half an hour\n  \
    ninefold-lab bench --quick          under seven minutes, and coarser\n  \
    ninefold-lab bench --only volume\n  \
    ninefold-lab bench --out /tmp/bench --json | jq .ratios\n\n\
    With --json: the contents of ft.json, with those of volume.json as its field 'volume', on standard output; of a single \
    part its own file's.")]
pub struct BenchArgs {
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// One part alone
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// The directory for the report
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
    /// Another QEMU than the first on the PATH
    #[arg(long, value_name = "FILE")]
    qemu: Option<PathBuf>,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A VM in memory, and failovers
    Ft,
    /// A VM that works on its volumes, and resyncs
    Volume,
}

/// What a run came to, for programs.
#[derive(Serialize)]
#[serde(untagged)]
enum Results {
    Ft(Box<Report>),
    Volume(Box<VolumeReport>),
    Both {
        #[serde(flatten)]
        ft: Box<Report>,
        volume: Box<VolumeReport>,
    },
}

pub fn run(args: &BenchArgs, output: &Output) -> Result<(), CommandError> {
    // Found out now and not after a quarter of an hour.
    std::fs::create_dir_all(&args.out).map_err(CommandError::io(format!("make {}", args.out.display())))?;
    let begin = Instant::now();
    let options = Options { quick: args.quick, qemu: args.qemu.clone() };
    let mut text = Vec::new();
    let ft = match args.only {
        Some(Part::Volume) => None,
        _ => {
            let report = with_bar(|tell| bench::run(&options, tell))?;
            let files = bench::write(&report, &args.out)?;
            text.push(summary(&report, &files));
            Some(Box::new(report))
        }
    };
    let volume = match args.only {
        Some(Part::Ft) => None,
        _ => {
            let report = with_bar(|tell| volume::run(&options, tell))?;
            let files = volume::write(&report, &args.out)?;
            text.push(volume_summary(&report, &files));
            Some(Box::new(report))
        }
    };
    text.push(format!("{} s in all", begin.elapsed().as_secs()));
    let results = match (ft, volume) {
        (Some(ft), Some(volume)) => Results::Both { ft, volume },
        (Some(ft), None) => Results::Ft(ft),
        (None, Some(volume)) => Results::Volume(volume),
        // Only one of them can be left out.
        (None, None) => return Ok(()),
    };
    output.show(&results, || text.join("\n"))?;
    Ok(())
}

/// Runs a part with a bar on the terminal. A signal ends this process, and the labs' guardians see it and take them down.
fn with_bar<T>(run: impl FnOnce(&mut dyn FnMut(&Progress)) -> Result<T, LabError>) -> Result<T, LabError> {
    let bar = ProgressBar::new(0);
    let template = "{spinner} [{bar:30}] {percent}% {elapsed_precise:.dim}, {prefix} left · {msg}";
    bar.set_style(style(template));
    bar.enable_steady_tick(Duration::from_millis(200));
    let done = run(&mut |progress| show(&bar, progress));
    bar.finish_and_clear();
    done
}

fn show(bar: &ProgressBar, progress: &Progress) {
    bar.set_length(progress.total.as_millis() as u64);
    bar.set_position(progress.done.as_millis() as u64);
    let left = progress.left.as_secs();
    bar.set_prefix(format!("{}:{:02}", left / 60, left % 60));
    bar.set_message(progress.what.clone());
}

fn summary(r: &Report, files: &[PathBuf]) -> String {
    let ms = |us: u64| us as f64 / 1e3;
    let mut lines = vec![
        format!("QEMU {} with {}; protected / unprotected, medians of {} rounds:", r.qemu, r.accel, r.plan.rounds),
        String::new(),
    ];
    lines.extend(
        r.comparisons
            .iter()
            .map(|c| format!("  {:<30} {:>6.2}   [{:.2} to {:.2}]", c.name, c.ratio.median, c.ratio.min, c.ratio.max)),
    );
    let (p, d) = (r.pause_us.idle, r.pause_us.dirty_2000);
    lines.extend([
        String::new(),
        format!("  pause, idle guest              p50 {:.2} ms, p99 {:.2} ms", ms(p.p50), ms(p.p99)),
        format!("  pause, 2,000 dirty pages       p50 {:.2} ms, p99 {:.2} ms", ms(d.p50), ms(d.p99)),
        format!(
            "  ping                           p50 {:.2} ms (unprotected {:.2} ms), p99 {:.2} ms",
            ms(r.ping_us.protected_p50),
            ms(r.ping_us.unprotected_p50),
            ms(r.ping_us.protected_p99)
        ),
        format!(
            "  {} failovers (QEMU killed)      p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
            r.failover_ms.count, r.failover_ms.p50, r.failover_ms.p99, r.failover_ms.max
        ),
        format!(
            "  {} writes acknowledged meanwhile, {} lost, {} connections reset",
            r.failovers.client.acked, r.failovers.client.lost, r.failovers.client.resets
        ),
        String::new(),
    ]);
    lines.extend(busy(r.machine.load_before, r.unplanned_takeovers));
    lines.push(written(files));
    lines.join("\n")
}

fn volume_summary(r: &VolumeReport, files: &[PathBuf]) -> String {
    let rounds = r.plan.rounds;
    let mut lines = vec![
        format!(
            "QEMU {} with {}; work on volumes, protected / unprotected, medians of {rounds} rounds:",
            r.qemu, r.accel
        ),
        String::new(),
    ];
    lines.extend(
        r.comparisons
            .iter()
            .map(|c| format!("  {:<40} {:>6.2}   [{:.2} to {:.2}]", c.name, c.ratio.median, c.ratio.min, c.ratio.max)),
    );
    lines.push(format!(
        "\n  resync of a volume of {} after a share of it has changed:",
        bytes(r.plan.resync_volume_bytes)
    ));
    lines.extend(
        r.resync.iter().map(|s| {
            format!("  {:>4.0} %   {:>6.2} s   {} sent", s.changed_fraction * 100.0, s.seconds, bytes(s.bytes))
        }),
    );
    lines.push(String::new());
    lines.extend(busy(r.machine.load_before, r.unplanned_takeovers));
    lines.push(written(files));
    lines.join("\n")
}

fn busy(load: f64, unasked: u64) -> Option<String> {
    (load > 0.5 || unasked > 0).then(|| {
        format!(
            "This machine was busy (load {load:.1} at the beginning, {unasked} unasked failovers): measure again when it is \
             not.\n"
        )
    })
}

fn written(files: &[PathBuf]) -> String {
    let names: Vec<_> = files.iter().map(|f| f.display().to_string()).collect();
    format!("Written: {}\n", names.join(", "))
}
