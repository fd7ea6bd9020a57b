//! A run as a person reads it: time, host, what happens, what is done.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fmt::Write;

use ninefold_core::effect::{Effect, SessionOrder};
use ninefold_core::event::Event;
use ninefold_model::HostName;

use crate::plan::Fault;
use crate::witness::Answer;

/// What is kept of a run.
#[derive(Debug, Default)]
pub struct Trace {
    lines: Option<String>,
    /// How often each kind of event and effect was seen.
    pub seen: Option<BTreeMap<String, u64>>,
}

impl Trace {
    /// All that happens is written down.
    pub fn on() -> Self {
        Self { lines: Some(String::new()), seen: None }
    }

    /// It is counted what happens.
    pub fn counting() -> Self {
        Self { lines: None, seen: Some(BTreeMap::new()) }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.lines.is_some()
    }

    /// The text.
    pub fn text(&self) -> &str {
        self.lines.as_deref().unwrap_or_default()
    }

    fn line(&mut self, at: u64, who: &str, mark: &str, what: &str) {
        if let Some(lines) = &mut self.lines {
            let what: String = what.chars().take(220).collect();
            let _ = writeln!(lines, "{:>9}.{:03} {who:<3}{mark} {what}", at / 1000, at % 1000);
        }
    }

    pub(crate) fn say(&mut self, at: u64, host: &HostName, what: impl FnOnce() -> String) {
        if self.is_on() {
            self.line(at, host.as_str(), "*", &what());
        }
    }

    pub(crate) fn judge(&mut self, at: u64, what: impl FnOnce() -> String) {
        if self.is_on() {
            self.line(at, "", "!", &what());
        }
    }

    pub(crate) fn fault(&mut self, at: u64, fault: &Fault) {
        if self.is_on() {
            self.line(at, "", "!", &format!("{fault:?}"));
        }
    }

    pub(crate) fn witness(&mut self, at: u64, from: &HostName, ask: &str, answer: &Answer) {
        if self.is_on() {
            self.line(at, "w", " ", &format!("{from} asks {}: {}", short(ask), short(&format!("{answer:?}"))));
        }
    }

    fn count(&mut self, of: &str, what: &dyn Debug) {
        if let Some(seen) = &mut self.seen {
            let text = format!("{what:?}");
            // The kind, and that of the order within.
            let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty());
            let kinds: Vec<_> = words.take_while(|w| w.starts_with(|c: char| c.is_uppercase())).take(2).collect();
            *seen.entry(format!("{of} {}", kinds.join(" "))).or_default() += 1;
        }
    }

    pub(crate) fn event(&mut self, at: u64, host: &HostName, event: &Event) {
        self.count("event", event);
        if !self.is_on() || matches!(event, Event::Tick(_)) {
            return;
        }
        let text = match event {
            Event::Offer { offer, hello } => format!("Offer {offer:?} of {} in session {}", hello.from, hello.term),
            Event::Loaded { session, loaded } => format!("Loaded {session} epoch {}", loaded.epoch),
            Event::VmStarted { generation, .. } => format!("VmStarted {generation}"),
            Event::StandbyReady { session, .. } => format!("StandbyReady {session}"),
            Event::GuestStarted { .. } => "GuestStarted".into(),
            event => short(&format!("{event:?}")),
        };
        self.line(at, host.as_str(), "<", &text);
    }

    pub(crate) fn effect(&mut self, at: u64, host: &HostName, effect: &Effect) {
        self.count("effect", effect);
        if !self.is_on() || matches!(effect, Effect::Measure(_) | Effect::Parking(_)) {
            return;
        }
        let text = match effect {
            Effect::Session { session, order: SessionOrder::Open { peer, .. } } => format!("open {session} to {peer}"),
            effect => short(&format!("{effect:?}")),
        };
        self.line(at, host.as_str(), ">", &text);
    }
}

/// Without what says nothing.
fn short(text: &str) -> String {
    text.replace("Term(", "(").replace("Epoch(", "(").replace("HostName", "").replace("Boottime", "")
}
