//! `volume.md`: the report for people.

use std::fmt::Write as _;

use super::results::VolumeReport;
use crate::bench::table::{about_machine, ms, ratio, unasked, with_unit};

/// The whole report.
pub fn markdown(r: &VolumeReport) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write_all(&mut out, r);
    out
}

fn write_all(out: &mut String, r: &VolumeReport) -> std::fmt::Result {
    writeln!(out, "# Volumes: protected against unprotected\n")?;
    writeln!(out, "{}", about_machine(&r.qemu, r.accel, &r.accel_reason, &r.machine))?;
    let disks = if r.disks {
        "The hosts' images are on file systems of their own on this machine's disk."
    } else {
        "The hosts' images are in /run, which may be in memory: a flush may cost nothing."
    };
    writeln!(
        out,
        "{} rounds of {} s of pgbench (scale {}) and {:.1} s of each other job{}, sides taking turns; {} s in all. Figures are \
         medians over the rounds; in brackets the smallest and the largest. No value was left out. Volumes acknowledge in \
         memory. {disks}\n",
        r.plan.rounds,
        r.plan.pgbench_s,
        r.plan.pgbench_scale,
        f64::from(r.plan.sample_ms) / 1e3,
        if r.quick { " (a quick run)" } else { "" },
        r.took_s,
    )?;
    unasked(out, r.unplanned_takeovers)?;
    writeln!(
        out,
        "| job | unprotected | protected | ratio | checkpoints/s | pause p50 | commit p50 | MB/s sent |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|"
    )?;
    for c in &r.comparisons {
        let k = &c.checkpoints;
        writeln!(
            out,
            "| {} | {} | {} | {} | {:.0} | {} | {} | {:.0} |",
            c.name,
            with_unit(&c.unprotected, &c.unit),
            with_unit(&c.protected, &c.unit),
            ratio(&c.ratio),
            k.per_second,
            ms(k.pause.p50),
            ms(k.commit.p50),
            k.bytes_per_second / 1e6,
        )?;
    }
    writeln!(
        out,
        "\nUnprotected, a write is in the host's image when it is answered, and a flush makes it durable. Protected, both are \
         answered from memory, and what the guest says of them waits for the backup's acknowledgement.\n"
    )?;
    writeln!(
        out,
        "## Snapshots of a guest at work (pgbench)\n\n| snapshot | guest stood still | whole time | file |\n|---|---:|---:|---:|"
    )?;
    for s in &r.snapshots {
        writeln!(
            out,
            "| {} | {:.2} ms [{:.2}, {:.2}] | {:.2} s [{:.2}, {:.2}] | {:.0} MB |",
            if s.whole { "all of it" } else { "what differs from the one before" },
            s.pause_us.median / 1e3,
            s.pause_us.min / 1e3,
            s.pause_us.max / 1e3,
            s.seconds.median,
            s.seconds.min,
            s.seconds.max,
            s.bytes.median / 1e6,
        )?;
    }
    writeln!(
        out,
        "\nA volume of a golden image of {} MiB: a thin clone (qcow2) in {:.0} ms, a whole copy (raw) in {:.0} ms.\n",
        r.clones.image_bytes >> 20,
        r.clones.thin_ms,
        r.clones.whole_ms,
    )?;
    writeln!(
        out,
        "## Resync of a volume of {} MiB\n\n| changed while the backup was down | time | sent of the volume | of the memory |\n\
         |---:|---:|---:|---:|",
        r.plan.resync_volume_bytes >> 20
    )?;
    for s in &r.resync {
        writeln!(
            out,
            "| {:.0} % | {:.2} s [{:.2}, {:.2}] | {:.1} MB | {:.0} MB |",
            s.changed_fraction * 100.0,
            s.seconds,
            s.rounds_s.min,
            s.rounds_s.max,
            s.bytes as f64 / 1e6,
            s.memory_bytes as f64 / 1e6,
        )?;
    }
    writeln!(
        out,
        "\nThe time is from the beginning of the copy to protection: the standby's start, checksums of the whole volume on both \
         hosts, what differs, and the VM's memory."
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::{Checkpoints, MachineDescription};
    use crate::bench::spread::Spread;
    use crate::bench::volume::plan::{Job, VolumePlan};
    use crate::bench::volume::results::{CloneResult, Resync, SnapshotResult, VolumeComparison, VolumeRatios};
    use ninefold_model::spec::Accel;

    #[test]
    fn the_report_says_what_was_measured_and_how() {
        let report = VolumeReport {
            ratios: VolumeRatios::default(),
            snapshot_pause_us: 2100.0,
            snapshots: vec![SnapshotResult {
                whole: true,
                pause_us: Spread::of(vec![2100.0]),
                seconds: Spread::of(vec![1.25]),
                bytes: Spread::of(vec![700e6]),
            }],
            clones: CloneResult { image_bytes: 512 << 20, thin_ms: 31.0, whole_ms: 1900.0 },
            resync: vec![Resync {
                changed_fraction: 0.1,
                seconds: 1.5,
                bytes: 26_843_546,
                memory_bytes: 230_000_000,
                rounds_s: Spread::of(vec![1.5]),
            }],
            comparisons: vec![VolumeComparison {
                job: Job::FioFsync,
                name: Job::FioFsync.to_string(),
                unit: Job::FioFsync.unit().into(),
                unprotected: Spread::of(vec![500.0]),
                protected: Spread::of(vec![1000.0]),
                ratio: Spread::of(vec![2.0]),
                checkpoints: Checkpoints::default(),
            }],
            accel: Accel::Tcg,
            qemu: "10.0.2".into(),
            accel_reason: "no KVM".into(),
            machine: MachineDescription::default(),
            plan: VolumePlan::quick(),
            disks: false,
            quick: true,
            took_s: 100,
            unplanned_takeovers: 1,
        };
        let text = markdown(&report);
        let parts = [
            "a quick run",
            "may be in memory",
            "1 times unasked",
            "500 /s",
            "**2.00**",
            "| all of it | 2.10 ms [2.10, 2.10] | 1.25 s [1.25, 1.25] | 700 MB |",
            "in 31 ms",
            "| 10 % | 1.50 s",
            "26.8 MB",
        ];
        for part in parts {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
