//! The report as pictures (SVG).

use std::fmt::Display;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::plan::{Loss, Measure, Mode, PauseLoad};
use super::results::Report;
use crate::error::LabError;

const SIZE: (u32, u32) = (900, 520);
const TITLE: (&str, u32) = ("sans-serif", 22);
const LABEL: (&str, u32) = ("sans-serif", 15);
/// Colours that people with any kind of colour vision can tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
];

/// All plots: file name and contents.
///
/// # Errors
/// A picture cannot be drawn from the report's figures.
pub fn all(r: &Report) -> Result<Vec<(String, String)>, LabError> {
    let plots: [(&str, Draw); 5] =
        [("ratios", ratios), ("epochs", epochs), ("ping", ping), ("pauses", pauses), ("failovers", failovers)];
    let mut out = Vec::new();
    for (name, draw) in plots {
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            let done = area.fill(&WHITE).map_err(text).and_then(|()| draw(r, &area));
            done.and_then(|()| area.present().map_err(text))
                .map_err(|detail| LabError::Command { what: format!("drawing {name}.svg"), detail })?;
        }
        out.push((format!("{name}.svg"), svg));
    }
    Ok(out)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), String>;
type Draw = fn(&Report, &Area<'_>) -> Drawn;

fn text(e: impl Display) -> String {
    e.to_string()
}

fn colour(i: usize) -> RGBColor {
    COLOURS[i % COLOURS.len()]
}

/// Horizontal bars of the ratios, with the rounds' range.
fn ratios(r: &Report, area: &Area<'_>) -> Drawn {
    let all: Vec<_> = r.comparisons.iter().filter(|c| c.measure != Measure::Ping).collect();
    let most = all.iter().map(|c| c.ratio.max).fold(1.1, f64::max);
    let n = all.len();
    let mut chart = ChartBuilder::on(area)
        .caption(format!("Protected / unprotected (QEMU {}, {}), adaptive epochs", r.qemu, r.accel), TITLE)
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(210)
        .build_cartesian_2d(0.0..most, (0..n.saturating_sub(1)).into_segmented())
        .map_err(text)?;
    let names: Vec<_> = all.iter().rev().map(|c| c.name.clone()).collect();
    chart
        .configure_mesh()
        .disable_y_mesh()
        .x_desc("rate, protected / unprotected (1 = free); bars: median, lines: smallest to largest round")
        .y_labels(n)
        .y_label_formatter(&|at| match at {
            SegmentValue::CenterOf(i) => names.get(*i).cloned().unwrap_or_default(),
            _ => String::new(),
        })
        .label_style(LABEL)
        .draw()
        .map_err(text)?;
    for (i, c) in all.iter().rev().enumerate() {
        let bar = [(0.0, SegmentValue::Exact(i)), (c.ratio.median, SegmentValue::Exact(i + 1))];
        let mut bar = Rectangle::new(bar, colour(0).mix(0.75).filled());
        bar.set_margin(5, 5, 0, 0);
        chart.draw_series([bar]).map_err(text)?;
        let range = [(c.ratio.min, SegmentValue::CenterOf(i)), (c.ratio.max, SegmentValue::CenterOf(i))];
        chart.draw_series([PathElement::new(range, BLACK.stroke_width(2))]).map_err(text)?;
        let style = TextStyle::from(LABEL.into_font()).pos(Pos::new(HPos::Left, VPos::Center));
        let label = Text::new(format!("{:.2}", c.ratio.median), (0.015, SegmentValue::CenterOf(i)), style);
        chart.draw_series([label]).map_err(text)?;
    }
    // What would be free.
    let free = [(1.0, SegmentValue::Exact(0)), (1.0, SegmentValue::Exact(n))];
    chart.draw_series([PathElement::new(free, BLACK.mix(0.6))]).map_err(text)?;
    Ok(())
}

/// Groups of bars: for each epoch policy the ratio of every measure.
fn epochs(r: &Report, area: &Area<'_>) -> Drawn {
    let rows: Vec<_> = r.policies.iter().filter(|p| p.mode != Mode::Unprotected).collect();
    let measures: Vec<_> = Measure::OF_POLICIES.into_iter().filter(|m| *m != Measure::Ping).collect();
    let ratio =
        |row: usize, m: Measure| rows[row].cells.iter().find(|c| c.measure == m).map_or(0.0, |c| c.ratio.median);
    let most = (0..rows.len()).flat_map(|i| measures.iter().map(move |m| (i, *m)));
    let most = most.map(|(i, m)| ratio(i, m)).fold(1.1, f64::max) * 1.25;
    let mut chart = ChartBuilder::on(area)
        .caption("Epochs: what protection leaves of the unprotected rate", TITLE)
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..rows.len() as f64, 0.0..most)
        .map_err(text)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .y_desc("protected / unprotected")
        .label_style(LABEL)
        .draw()
        .map_err(text)?;
    let width = 0.8 / measures.len() as f64;
    for (m, measure) in measures.iter().enumerate() {
        let bars = (0..rows.len()).map(|i| {
            let left = i as f64 + 0.1 + m as f64 * width;
            Rectangle::new([(left, 0.0), (left + width * 0.92, ratio(i, *measure))], colour(m).filled())
        });
        chart
            .draw_series(bars)
            .map_err(text)?
            .label(measure.to_string())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour(m).filled()));
    }
    for (i, row) in rows.iter().enumerate() {
        let ping = row.cells.iter().find(|c| c.measure == Measure::Ping).map_or(0.0, |c| c.value.median / 1e3);
        let at = chart.backend_coord(&(i as f64 + 0.1, 0.0));
        let label = format!("{}  (ping {ping:.1} ms)", row.mode);
        area.draw(&Text::new(label, (at.0, at.1 + 10), LABEL)).map_err(text)?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)
}

/// How many echoes came back within which time.
fn ping(r: &Report, area: &Area<'_>) -> Drawn {
    let most = r.pings.iter().map(|p| p.rtt_us.max).max().unwrap_or(1).max(100) as f64 / 1e3;
    let least = r.pings.iter().map(|p| p.rtt_us.min).min().unwrap_or(10).max(10) as f64 / 1e3;
    let mut chart = ChartBuilder::on(area)
        .caption("Ping to an idle guest", TITLE)
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(60)
        .build_cartesian_2d((least..most).log_scale(), 0.0..100.0)
        .map_err(text)?;
    chart
        .configure_mesh()
        .x_desc("round trip, milliseconds (logarithmic)")
        .y_desc("share of the echoes that were back, %")
        .label_style(LABEL)
        .draw()
        .map_err(text)?;
    for (i, p) in r.pings.iter().enumerate() {
        let mut sorted = p.all_us.clone();
        sorted.sort_unstable();
        let n = sorted.len().max(1) as f64;
        let steps = sorted.iter().enumerate().map(|(k, us)| (*us as f64 / 1e3, (k + 1) as f64 * 100.0 / n));
        chart
            .draw_series(LineSeries::new(steps, colour(i).stroke_width(2)))
            .map_err(text)?
            .label(format!(
                "{} (p50 {:.2} ms, p99 {:.2} ms)",
                p.mode,
                p.rtt_us.p50 as f64 / 1e3,
                p.rtt_us.p99 as f64 / 1e3
            ))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour(i).stroke_width(3)));
    }
    legend(&mut chart, SeriesLabelPosition::LowerRight)
}

/// For each load the steps side by side: the save runs beside scan and copy, so they cannot be stacked.
fn pauses(r: &Report, area: &Area<'_>) -> Drawn {
    const STEPS: [&str; 6] = ["stop", "save", "scan", "copy", "cont", "whole pause"];
    let rows: Vec<[(u64, u64); 6]> = r
        .pauses
        .iter()
        .map(|p| {
            let (c, s) = (&p.checkpoints, &p.checkpoints.steps);
            [&s.stop, &s.save, &s.scan, &s.copy, &s.cont, &c.pause].map(|s| (s.p50, s.p99))
        })
        .collect();
    let most = rows.iter().flatten().map(|(_, p99)| *p99).max().unwrap_or(1).max(1) as f64 / 1e3 * 1.15;
    let mut chart = ChartBuilder::on(area)
        .caption("What a pause is made of", TITLE)
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..STEPS.len() as f64, 0.0..most)
        .map_err(text)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .y_desc("milliseconds (bar: p50, line: p99)")
        .label_style(LABEL)
        .draw()
        .map_err(text)?;
    let width = 0.8 / rows.len().max(1) as f64;
    for (i, row) in rows.iter().enumerate() {
        let p = &r.pauses[i];
        let load = match p.load {
            PauseLoad::Idle => "idle guest".to_owned(),
            PauseLoad::Dirty2000 => format!("dirtying {} MB/s", p.dirtied_mb_per_s),
        };
        let left = move |step: usize| step as f64 + 0.1 + i as f64 * width;
        let bars = row.iter().enumerate().map(|(step, (p50, _))| {
            Rectangle::new([(left(step), 0.0), (left(step) + width * 0.92, *p50 as f64 / 1e3)], colour(i).filled())
        });
        chart
            .draw_series(bars)
            .map_err(text)?
            .label(format!("{load}: {} ms epochs, {} pages", p.epoch_ms, p.checkpoints.dirty_pages.p50))
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour(i).filled()));
        let tails = row.iter().enumerate().map(|(step, (p50, p99))| {
            let x = left(step) + width * 0.46;
            PathElement::new([(x, *p50 as f64 / 1e3), (x, *p99 as f64 / 1e3)], BLACK.stroke_width(2))
        });
        chart.draw_series(tails).map_err(text)?;
    }
    for (step, name) in STEPS.iter().enumerate() {
        let at = chart.backend_coord(&(step as f64 + 0.3, 0.0));
        area.draw(&Text::new(*name, (at.0, at.1 + 10), LABEL)).map_err(text)?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)
}

/// Every failover after a kill, its phases stacked, in order of time.
fn failovers(r: &Report, area: &Area<'_>) -> Drawn {
    const PHASES: [&str; 4] =
        ["detect", "arbitrate or load, the longer", "resume", "rest: the primary notices and tells"];
    let rows: Vec<[f64; 4]> = r
        .failovers
        .all
        .iter()
        .filter(|f| f.how == Loss::QemuKilled)
        .map(|f| {
            let p = f.phases;
            let known = p.detect_us + p.arbitrate_us.max(p.load_us) + p.resume_us;
            let parts = [p.detect_us, p.arbitrate_us.max(p.load_us), p.resume_us, f.total_us.saturating_sub(known)];
            parts.map(|us| us as f64 / 1e3)
        })
        .collect();
    let most = rows.iter().map(|row| row.iter().sum::<f64>()).fold(1.0, f64::max) * 1.3;
    let mut chart = ChartBuilder::on(area)
        .caption("QEMU killed: to the guest running on the other host", TITLE)
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..rows.len().max(1) as f64, 0.0..most)
        .map_err(text)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_desc("failover, in order of time")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_desc("milliseconds")
        .label_style(LABEL)
        .draw()
        .map_err(text)?;
    for (phase, name) in PHASES.iter().enumerate() {
        let bars = rows.iter().enumerate().map(|(i, row)| {
            let below: f64 = row[..phase].iter().sum();
            Rectangle::new([(i as f64 + 0.1, below), (i as f64 + 0.9, below + row[phase])], colour(phase).filled())
        });
        chart
            .draw_series(bars)
            .map_err(text)?
            .label(*name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour(phase).filled()));
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)
}

fn legend<'a, X, Y>(chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>, at: SeriesLabelPosition) -> Drawn
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    chart
        .configure_series_labels()
        .position(at)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.4))
        .label_font(LABEL)
        .draw()
        .map_err(text)
}
