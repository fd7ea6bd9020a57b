//! The log of a process, on standard error. What is said at INFO or louder is folded ([`crate::lines`]); who asks for more than
//! that with RUST_LOG gets all of it.

use std::fmt::{self, Write};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::apart::Apart;
use crate::lines::{LineAction, Lines, clip};

/// The target of what whoever logs it has folded already: it is printed as it is.
pub const FOLDED: &str = "ninefold::folded";

/// How long a process that ends waits for what it has said to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

static APART: OnceLock<Apart> = OnceLock::new();

/// From now on this process logs to standard error: what RUST_LOG says, or else what is at this level or louder. Who says something waits until it
/// is written: for a command, that a person has asked for.
pub fn begin(level: &str) {
    init(level, std::io::stderr);
}

/// The same for a process that serves others: no thread of it waits for who takes its log. [`settle`] is to be called at its end.
pub fn begin_apart(level: &str) {
    match Apart::to(std::io::stderr()) {
        Ok(apart) => {
            let log = APART.get_or_init(|| apart).clone();
            init(level, move || log.clone());
        }
        Err(_) => begin(level),
    }
}

/// Waits until what was said is written, but not for ever: who takes it may hang.
pub fn settle() {
    if let Some(log) = APART.get() {
        log.settle(LAST_WORDS);
    }
}

fn init(level: &str, writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(writer)
        .event_format(Folding::default())
        .init();
}

/// Prints lines as they are by default, without those that only repeat others.
pub struct Folding {
    format: Format,
    begun: Instant,
    lines: Mutex<Lines<Identifier>>,
}

impl Default for Folding {
    fn default() -> Self {
        Self { format: Format::default().with_ansi(false), begun: Instant::now(), lines: Mutex::default() }
    }
}

impl<S, N> FormatEvent<S, N> for Folding
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let about = event.metadata();
        let mut line = String::new();
        let mut missed = 0;
        if *about.level() <= Level::INFO && about.target() != FOLDED {
            let mut text = Text::default();
            event.record(&mut text);
            let now = self.begun.elapsed();
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            for quiet in lines.missed(now) {
                writeln!(writer, "{} more like this, the last: {}", quiet.times, quiet.latest)?;
            }
            match lines.judge(about.callsite(), &text.0, now) {
                LineAction::Print { missed: times } => missed = times,
                LineAction::Count => return Ok(()),
            }
        }
        self.format.format_event(ctx, Writer::new(&mut line), event)?;
        let whole = line.trim_end_matches('\n');
        writer.write_str(clip(whole))?;
        if clip(whole).len() < whole.len() {
            writer.write_char('…')?;
        }
        if missed > 0 {
            write!(writer, " (and {missed} more like it before)")?;
        }
        writer.write_char('\n')
    }
}

/// A message and its fields, in the order in which they are logged.
#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let before = if self.0.is_empty() { "" } else { " " };
        // A String takes whatever it is given.
        let _ = match field.name() {
            "message" => write!(self.0, "{before}{value:?}"),
            name => write!(self.0, "{before}{name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_loud_fault_is_a_few_lines() {
        let sink = Sink::default();
        let to = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new("debug"))
            .with_writer(move || to.clone())
            .event_format(Folding::default())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            for port in 0..10_000 {
                tracing::warn!(addr = format!("10.0.0.1:{port}"), "turned away");
            }
            tracing::error!(why = "x".repeat(100_000), "the disk is full");
            for n in 0..100 {
                tracing::debug!(n, "asked for");
                tracing::info!(target: FOLDED, n, "counted");
            }
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let lines = |what: &str| text.lines().filter(|l| l.contains(what)).count();
        assert_eq!([lines("turned away"), lines("full"), lines("asked for"), lines("counted")], [16, 1, 100, 100]);
        assert!(text.lines().all(|l| l.len() < 5000), "a line is bounded");
    }
}
