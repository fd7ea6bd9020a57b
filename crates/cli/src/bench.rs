//! `ninefold bench`: what protection costs. The measuring is `ninefold_lab::bench`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use ninefold_lab::bench::{self, Options, Progress, Report};

use crate::error::CliError;
use crate::output::Output;

/// Measure protected against unprotected, on this machine, in one run
///
/// Makes labs of its own and takes them down. Nothing else should run meanwhile: the report says how busy the machine
/// was. Writes ft.json, ft.md and plots (SVG).
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    ninefold bench                  about a quarter of an hour\n  \
    ninefold bench --quick          under four minutes, and coarser\n  \
    ninefold bench --out /tmp/bench --json | jq .ratios\n\n\
    With --json: the contents of ft.json on standard output.")]
pub struct BenchArgs {
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// The directory for the report
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
    /// Another QEMU than the first on the PATH
    #[arg(long, value_name = "FILE")]
    qemu: Option<PathBuf>,
}

pub fn run(args: &BenchArgs, output: &Output) -> Result<(), CliError> {
    // Found out now and not after a quarter of an hour.
    std::fs::create_dir_all(&args.out).map_err(CliError::io(format!("make {}", args.out.display())))?;
    let bar = ProgressBar::new(0);
    let template = "{spinner} [{bar:30}] {percent}% {elapsed_precise:.dim}, {prefix} left · {msg}";
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    let begin = Instant::now();
    let options = Options { quick: args.quick, qemu: args.qemu.clone() };
    // A signal ends this process, and the labs' guardians see it and take them down.
    let report = bench::run(&options, &mut |progress| show(&bar, progress));
    bar.finish_and_clear();
    let report = report?;
    let files = bench::write(&report, &args.out)?;
    output.show(&report, || summary(&report, &files, begin.elapsed()))
}

fn show(bar: &ProgressBar, progress: &Progress) {
    bar.set_length(progress.total.as_millis() as u64);
    bar.set_position(progress.done.as_millis() as u64);
    let left = progress.left.as_secs();
    bar.set_prefix(format!("{}:{:02}", left / 60, left % 60));
    bar.set_message(progress.what.clone());
}

fn summary(r: &Report, files: &[PathBuf], took: Duration) -> String {
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
    if r.machine.load_before > 0.5 || r.unplanned_takeovers > 0 {
        lines.push(format!(
            "This machine was busy (load {:.1} at the beginning, {} unasked failovers): measure again when it is not.\n",
            r.machine.load_before, r.unplanned_takeovers
        ));
    }
    let written: Vec<_> = files.iter().map(|f| f.display().to_string()).collect();
    lines.push(format!("Written after {} s: {}", took.as_secs(), written.join(", ")));
    lines.join("\n")
}
