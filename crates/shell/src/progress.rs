//! Bars for what takes seconds. They are drawn on the standard error, and only if that is a terminal.

use std::time::Duration;

pub use indicatif::ProgressBar;
use indicatif::ProgressStyle;
use ninefold_control::operation::{Progress, Unit};
use ninefold_model::health::Trial;
use ninefold_model::status::SyncProgress;

/// A bar that turns until its end is known.
pub fn spinner(text: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.set_style(style("{spinner} {msg} {elapsed:.dim}"));
    bar.set_message(text.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// Says something beside a bar, on the standard error: also where that is no terminal and shows no bar.
pub fn note(program: &str, bar: &ProgressBar, text: &str) {
    bar.suspend(|| eprintln!("{program}: {text}"));
}

/// A bar for what tells its progress in parts of 1: see [`part`].
pub fn parts(text: &str) -> ProgressBar {
    let bar = spinner(text);
    bar.set_style(style("{spinner} {msg} [{bar:24}] {percent}% {elapsed:.dim}"));
    bar.set_length(1000);
    bar
}

/// Shows how far it is.
pub fn part(bar: &ProgressBar, part: f64) {
    bar.set_position((part.clamp(0.0, 1.0) * 1000.0) as u64);
}

/// Shows how far a copy of a VM's memory is.
pub fn sync(bar: &ProgressBar, progress: Option<&SyncProgress>) {
    let Some(p) = progress.filter(|p| p.bytes_total > 0) else {
        return bar.set_message("the backup gets ready");
    };
    bar.set_style(style("{spinner} {msg} [{bar:24}] {percent}% {elapsed:.dim}"));
    bar.set_message(format!("memory is copied to the backup, round {}", p.round));
    bar.set_length(p.bytes_total.max(p.bytes_sent));
    bar.set_position(p.bytes_sent);
}

/// Shows how far an operation is.
pub fn operation(bar: &ProgressBar, progress: Option<&Progress>) {
    let Some(p) = progress.filter(|p| p.total > 0) else { return };
    bar.set_style(style(match p.unit {
        Unit::Bytes => "{spinner} {msg} [{bar:24}] {percent}% {elapsed:.dim}",
        Unit::Milliseconds => "{spinner} {msg} [{bar:24}] {elapsed:.dim}",
    }));
    bar.set_length(p.total.max(p.done));
    bar.set_position(p.done);
}

/// Shows how much of a trial's time is gone.
pub fn trial(bar: &ProgressBar, trial: Option<&Trial>) {
    let Some(t) = trial else { return bar.set_message("the image is launched") };
    bar.set_style(style("{spinner} {msg} [{bar:24}] {elapsed:.dim}"));
    let left = Duration::from_secs(t.left_ms.div_ceil(1000));
    bar.set_message(format!("the image is on trial, {} left", humantime::format_duration(left)));
    bar.set_length(t.within_ms);
    bar.set_position(t.within_ms - t.left_ms.min(t.within_ms));
}

/// The look of a bar, as indicatif's templates say it.
pub fn style(template: &str) -> ProgressStyle {
    // The templates are ours; a wrong one shows a plain bar.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
