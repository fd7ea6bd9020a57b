//! `ft.md`: the report for people.

use std::fmt::Write as _;

use ninefold_model::spec::Accel;

use super::plan::{Break, Loss, Measure, Mode, PauseLoad};
use super::results::{Checkpoints, MachineDescription, PauseSeries, Quantiles, Report};
use super::spread::Spread;
use ninefold_model::series::Summary;

/// The whole report; `plots` are the names of the SVGs beside it.
pub fn markdown(r: &Report, plots: &[String]) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write_all(&mut out, r, plots);
    out
}

fn write_all(out: &mut String, r: &Report, plots: &[String]) -> std::fmt::Result {
    writeln!(out, "# Protected against unprotected\n")?;
    about(out, r)?;
    headline(out, r)?;
    comparisons(out, r)?;
    pings(out, r)?;
    policies(out, r)?;
    pauses(out, r)?;
    failovers(out, r)?;
    breaks(out, r)?;
    scaling(out, r)?;
    snapshots(out, r)?;
    syncs_and_tls(out, r)?;
    if !plots.is_empty() {
        writeln!(out, "## Plots\n")?;
        for plot in plots {
            writeln!(out, "![{}]({plot})\n", plot.trim_end_matches(".svg"))?;
        }
    }
    Ok(())
}

/// QEMU and machine, a paragraph.
pub(super) fn about_machine(qemu: &str, accel: Accel, accel_reason: &str, m: &MachineDescription) -> String {
    format!(
        "QEMU {qemu} with {accel} ({}). Machine: {}, {} cores, {} MiB, Linux {}; load {:.2} before and {:.2} after. Guest: {} \
         vCPU, {} MiB.{} Both hosts, the witness, the client and the guest share this one machine.\n",
        accel_reason.lines().next().unwrap_or_default(),
        m.cpu,
        m.cores,
        m.memory_mib,
        m.kernel,
        m.load_before,
        m.load_after,
        m.guest_vcpus,
        m.guest_memory_mib,
        if m.debug_build { " **A debug build: slower than it need be.**" } else { "" },
    )
}

/// Word of failovers that nobody asked for.
pub(super) fn unasked(out: &mut String, takeovers: u64) -> std::fmt::Result {
    match takeovers {
        0 => Ok(()),
        n => writeln!(
            out,
            "**The VM changed hosts {n} times unasked: this machine was too busy, and the figures suffer from it.**\n"
        ),
    }
}

fn about(out: &mut String, r: &Report) -> std::fmt::Result {
    writeln!(out, "{}", about_machine(&r.qemu, r.accel, &r.accel_reason, &r.machine))?;
    writeln!(
        out,
        "{} rounds of {:.1} s a measurement{}, sides taking turns; {} s in all. Figures are medians over the rounds; in \
         brackets the smallest and the largest. No value was left out.\n",
        r.plan.rounds,
        f64::from(r.plan.sample_ms) / 1e3,
        if r.quick { " (a quick run)" } else { "" },
        r.took_s,
    )?;
    unasked(out, r.unplanned_takeovers)
}

fn headline(out: &mut String, r: &Report) -> std::fmt::Result {
    let ms = |us: u64| us as f64 / 1e3;
    writeln!(out, "| what | figure | goal |\n|---|---:|---:|")?;
    writeln!(out, "| redis SET, pipelined: protected / unprotected | {:.2} | 0.85 |", r.ratios.redis_set_pipelined)?;
    writeln!(out, "| pause, idle guest, p50 | {:.2} ms | 2 ms |", ms(r.pause_us.idle.p50))?;
    writeln!(out, "| pause, 2,000 dirty pages, p50 | {:.2} ms | 4 ms |", ms(r.pause_us.dirty_2000.p50))?;
    let c = &r.clock_ppm;
    writeln!(
        out,
        "| the guest's clock, idle / dirtying 100 MB/s / SET pipelined (unprotected) | {:.0} / {:.0} / {:.0} ({:.0}) ppm | 50 ppm |",
        c.idle, c.dirty_100, c.redis, c.unprotected
    )?;
    let f = &r.failovers;
    writeln!(out, "| failover, QEMU killed, p50 / max | {} | 100 ms |", p50_max(&f.killed_ms))?;
    writeln!(out, "| failover, host frozen, p50 / max | {} | 500 ms |", p50_max(&f.frozen_ms))?;
    writeln!(
        out,
        "| switchover, from the request to running there, p50 / max | {} | 20 ms |",
        p50_max(&f.switchover_ms)
    )?;
    writeln!(out, "| acknowledged writes / lost | {} / {} | 0 lost |", f.client.acked, f.client.lost)?;
    writeln!(out, "| connections reset | {} | 0 |\n", f.client.resets)
}

fn p50_max(q: &Quantiles) -> String {
    match q.count {
        0 => "-".to_owned(),
        _ => format!("{:.1} / {:.1} ms", q.p50, q.max),
    }
}

fn comparisons(out: &mut String, r: &Report) -> std::fmt::Result {
    writeln!(out, "## Protected (adaptive epochs) against unprotected\n")?;
    writeln!(
        out,
        "| measure | unprotected | protected | ratio | checkpoints/s | pause p50 | commit p50 | paused |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|"
    )?;
    for c in &r.comparisons {
        let k = &c.checkpoints;
        writeln!(
            out,
            "| {} | {} | {} | {} | {:.0} | {} | {} | {:.0} % |",
            c.name,
            with_unit(&c.unprotected, &c.unit),
            with_unit(&c.protected, &c.unit),
            ratio(&c.ratio),
            k.per_second,
            ms(k.pause.p50),
            ms(k.commit.p50),
            k.paused_share * 100.0,
        )?;
    }
    writeln!(
        out,
        "\n*Pause*: how long the guest stood still for a checkpoint. *Commit*: from the end of the pause to the backup's \
         acknowledgement; output waits for it. *Paused*: share of the time. Of ping, less is better.\n"
    )
}

fn pings(out: &mut String, r: &Report) -> std::fmt::Result {
    writeln!(
        out,
        "## Round trips, microseconds\n\n| | count | lost | min | p50 | p99 | max |\n|---|---:|---:|---:|---:|---:|---:|"
    )?;
    for p in &r.pings {
        let s = &p.rtt_us;
        writeln!(out, "| {} | {} | {} | {} | {} | {} | {} |", p.mode, s.count, p.lost, s.min, s.p50, s.p99, s.max)?;
    }
    writeln!(out)
}

fn policies(out: &mut String, r: &Report) -> std::fmt::Result {
    writeln!(out, "## Epochs: ratio to unprotected (ping: round trip)\n")?;
    let heads: Vec<_> = Measure::OF_POLICIES.iter().map(ToString::to_string).collect();
    writeln!(out, "| epochs | {} | pause p50 | pages p50 |", heads.join(" | "))?;
    writeln!(out, "|---|{}---:|---:|", "---:|".repeat(heads.len()))?;
    for row in &r.policies {
        write!(out, "| {} |", row.mode)?;
        for cell in &row.cells {
            match (cell.measure, row.mode) {
                (Measure::Ping, _) => write!(out, " {} |", ms(cell.value.median as u64))?,
                (_, Mode::Unprotected) => write!(out, " {} |", with_unit(&cell.value, &cell.unit))?,
                _ => write!(out, " {} |", ratio(&cell.ratio))?,
            }
        }
        // Of the pipelined SET, which is the first.
        let k = row.cells.first().map(|c| c.checkpoints).unwrap_or_default();
        match row.mode {
            Mode::Unprotected => writeln!(out, " | |")?,
            _ => writeln!(out, " {} | {} |", ms(k.pause.p50), k.dirty_pages.p50)?,
        }
    }
    writeln!(out, "\n*Pause* and *pages* are those of the pipelined SET.\n")
}

fn pauses(out: &mut String, r: &Report) -> std::fmt::Result {
    writeln!(out, "## Pauses by step, milliseconds (p50 / p99)\n")?;
    writeln!(
        out,
        "| guest | epoch | checkpoints | pages | stop | save | scan | copy | cont | **pause** | commit |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    )?;
    for p in &r.pauses {
        let Checkpoints { dirty_pages, pause, commit, steps: s, .. } = &p.checkpoints;
        let pair = |s: &Summary| format!("{:.2} / {:.2}", s.p50 as f64 / 1e3, s.p99 as f64 / 1e3);
        writeln!(
            out,
            "| {} | {} ms | {} | {} | {} | {} | {} | {} | {} | **{}** | {} |",
            guest(p),
            p.epoch_ms,
            pause.count,
            dirty_pages.p50,
            pair(&s.stop),
            pair(&s.save),
            pair(&s.scan),
            pair(&s.copy),
            pair(&s.cont),
            pair(pause),
            pair(commit),
        )?;
    }
    writeln!(
        out,
        "\nThe device state is saved while the pages are scanned and copied, so the steps add up to more than the pause.\n"
    )
}

fn guest(p: &PauseSeries) -> String {
    match p.load {
        PauseLoad::Idle => "idle".to_owned(),
        PauseLoad::Dirty2000 => format!("dirtying {} MB/s", p.dirtied_mb_per_s),
    }
}

fn failovers(out: &mut String, r: &Report) -> std::fmt::Result {
    writeln!(out, "## Loss of the primary, milliseconds (p50 / p99 / max)\n")?;
    writeln!(
        out,
        "| primary | count | detect | arbitrate | load | resume | **running again** | client's silence |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|"
    )?;
    let f = &r.failovers;
    for (how, total, gap) in [
        (Loss::QemuKilled, &f.killed_ms, &f.client_gap_killed_ms),
        (Loss::HostFrozen, &f.frozen_ms, &f.client_gap_frozen_ms),
        (Loss::Switchover, &f.switchover_ms, &f.client_gap_switchover_ms),
    ] {
        let phases = f
            .phases(how)
            .map(|s| format!("{:.1} / {:.1} / {:.1}", s.p50 as f64 / 1e3, s.p99 as f64 / 1e3, s.max as f64 / 1e3));
        let three = |q: &Quantiles| format!("{:.1} / {:.1} / {:.1}", q.p50, q.p99, q.max);
        writeln!(out, "| {how} | {} | {} | **{}** | {} |", total.count, phases.join(" | "), three(total), three(gap))?;
    }
    let c = &f.client;
    writeln!(
        out,
        "\nOne TCP connection wrote throughout: {} writes acknowledged, {} lost, {} repeated, {} connections reset. Arbitration \
         and loading go on at the same time. The client is silent for longer than the VM is away, because TCP sends again after \
         200 ms at the earliest what was on its way to the lost host. A switchover is counted from the \
         request, so its downtime is less than this.\n",
        c.acked, c.lost, c.repeated, c.resets
    )
}

fn scaling(out: &mut String, r: &Report) -> std::fmt::Result {
    if r.scaling.is_empty() {
        return Ok(());
    }
    writeln!(out, "## Pauses over the guest's memory\n")?;
    writeln!(
        out,
        "| guest memory | filled | vCPUs | checkpoints | pages, p50 | scan, p50 | **pause**, p50 | p99 |\n|---:|---:|---:|---:|---:|---:|---:|---:|"
    )?;
    for row in &r.scaling {
        writeln!(
            out,
            "| {} MiB | {} MiB | {} | {} | {} | {} us | **{} us** | {} us |",
            row.memory_mib,
            row.populated_mib,
            row.vcpus,
            row.checkpoints,
            row.pages_p50,
            row.scan_us_p50,
            row.pause_us_p50,
            row.pause_us_p99
        )?;
    }
    writeln!(out, "\nAn idle guest that has filled so much of its memory once, with a checkpoint every 25 ms.\n")
}

fn snapshots(out: &mut String, r: &Report) -> std::fmt::Result {
    if r.snapshot.is_empty() {
        return Ok(());
    }
    writeln!(out, "## Snapshots over the guest's memory\n")?;
    writeln!(
        out,
        "| guest memory | written to | written before | meanwhile | **pause** | writes waited | whole time | file |\n|---:|---:|---:|---:|---:|---:|---:|---:|"
    )?;
    for row in &r.snapshot {
        writeln!(
            out,
            "| {} MiB | {} MiB | {} MB/s | {} MB/s | **{:.1} ms** | {:.1} s | {:.1} s | {} MiB |",
            row.memory_mib,
            row.written_mib,
            row.dirty_mb_s,
            row.dirty_meanwhile_mb_s,
            row.pause_us as f64 / 1e3,
            row.waited_us as f64 / 1e6,
            row.total_ms as f64 / 1e3,
            row.file_mib
        )?;
    }
    writeln!(out, "\nA snapshot of an unprotected guest that writes so much of its memory again and again.\n")
}

fn breaks(out: &mut String, r: &Report) -> std::fmt::Result {
    writeln!(out, "## A backup that was away for a moment\n")?;
    writeln!(
        out,
        "| break | guest memory | count | protected again, p50 / max | went on with what it held | memory sent before the first \
         checkpoint |\n|---|---:|---:|---:|---:|---:|"
    )?;
    let kinds = [
        (Break::Cut300Ms, &r.rebind_ms.cut_300ms),
        (Break::BackupKeeperRestarted, &r.rebind_ms.backup_keeper_restarted),
    ];
    for (how, rows) in kinds {
        for row in rows {
            writeln!(
                out,
                "| {how} | {} GiB | {} | {:.0} / {:.0} ms | {} | {:.0} MB |",
                row.memory_gib, row.count, row.p50, row.max, row.continued, row.mb_sent
            )?;
        }
    }
    writeln!(
        out,
        "\nFrom the end of the break: the cable is whole, or the new keeper is started. In {} further cuts the backup won the \
         witness and took the VM over.\n",
        r.taken_over_in_breaks
    )
}

fn syncs_and_tls(out: &mut String, r: &Report) -> std::fmt::Result {
    writeln!(out, "## First copy\n")?;
    let mib: Vec<f64> = r.syncs.iter().map(|s| s.bytes as f64 / 1e6).collect();
    let times: Vec<f64> = r.syncs.iter().map(|s| s.ms as f64).collect();
    writeln!(
        out,
        "{} copies of {} MB in {} ms: {} MB/s. The time includes the standby's start.\n",
        r.syncs.len(),
        plain(&Spread::of(mib)),
        plain(&Spread::of(times)),
        plain(&r.sync_mb_per_s)
    )?;
    let Some(tls) = &r.tls else { return Ok(()) };
    writeln!(out, "## Mutual TLS against plain text, both protected\n")?;
    writeln!(
        out,
        "| measure | plain text | mutual TLS | ratio | commit p50, plain text | commit p50, TLS |\n|---|---:|---:|---:|---:|---:|"
    )?;
    for row in &tls.rows {
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            row.name,
            with_unit(&row.plain, &row.unit),
            with_unit(&row.tls, &row.unit),
            ratio(&row.ratio),
            ms(row.plain_checkpoints.commit.p50),
            ms(row.tls_checkpoints.commit.p50),
        )?;
    }
    writeln!(
        out,
        "| first copy | {} MB/s | {} MB/s | {:.2} | | |\n",
        plain(&tls.sync_mb_per_s_plain),
        plain(&tls.sync_mb_per_s_tls),
        tls.sync_mb_per_s_tls.median / tls.sync_mb_per_s_plain.median.max(1e-9)
    )
}

pub(super) fn with_unit(s: &Spread, unit: &str) -> String {
    let (factor, unit) = match unit {
        "us (median)" => (1e-3, "ms"),
        "requests/s" | "writes/s" | "transactions/s" if s.median >= 10_000.0 => (1e-3, "k/s"),
        "requests/s" | "iterations/s" | "writes/s" | "transactions/s" => (1.0, "/s"),
        other => (1.0, other),
    };
    let [median, min, max] = [s.median, s.min, s.max].map(|v| short(v * factor));
    format!("{median} {unit} [{min}, {max}]")
}

fn plain(s: &Spread) -> String {
    format!("{} [{}, {}]", short(s.median), short(s.min), short(s.max))
}

/// Three figures are all that a median of few rounds is good for.
fn short(v: f64) -> String {
    match v.abs() {
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.1}"),
        _ => format!("{v:.2}"),
    }
}

pub(super) fn ratio(s: &Spread) -> String {
    format!("**{:.2}** [{:.2}, {:.2}]", s.median, s.min, s.max)
}

pub(super) fn ms(us: u64) -> String {
    format!("{:.2} ms", us as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!([short(72_992.7), short(12.34), short(0.567)], ["72993", "12.3", "0.57"]);
        let s = Spread::of(vec![41_500.0]);
        assert_eq!(with_unit(&s, "requests/s"), "41.5 k/s [41.5, 41.5]");
        assert_eq!(with_unit(&Spread::of(vec![1500.0]), "us (median)"), "1.50 ms [1.50, 1.50]");
    }
}
