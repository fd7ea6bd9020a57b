//! Text for people, or JSON for programs.

use std::io::{self, Write};

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::error::ShellError;

/// How a command speaks.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    /// JSON, or text.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether programs read it.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints a result: `value` for programs, `text` for people.
    ///
    /// # Errors
    /// The standard output takes nothing more.
    pub fn show<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> Result<(), ShellError> {
        match self.json {
            true => self.object(value, true),
            false => say(&text()),
        }
    }

    /// Prints one of many results, a line of its own.
    ///
    /// # Errors
    /// As for [`Output::show`].
    pub fn line<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> Result<(), ShellError> {
        match self.json {
            true => self.object(value, false),
            false => say(&text()),
        }
    }

    fn object<T: Serialize>(&self, value: &T, pretty: bool) -> Result<(), ShellError> {
        let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
        say(&text.map_err(ShellError::io("write JSON"))?)
    }
}

/// Prints a text and the end of its line.
///
/// # Errors
/// The standard output takes nothing more; [`ShellError::OutputClosed`] when nobody reads it.
pub fn say(text: &str) -> Result<(), ShellError> {
    let mut out = io::stdout().lock();
    out.write_all(text.trim_end().as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()).map_err(
        |e| match e.kind() {
            io::ErrorKind::BrokenPipe => ShellError::OutputClosed,
            _ => ShellError::Io { what: "write to the standard output".into(), source: e },
        },
    )
}

/// A table without borders.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    // Columns are told apart by two spaces; the first begins at the edge.
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// A table's text.
pub fn text(table: &Table) -> String {
    table.trim_fmt()
}

/// Microseconds as milliseconds, for people.
pub fn ms(us: u64) -> String {
    let ms = us as f64 / 1000.0;
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// Bytes in binary units, for people.
pub fn bytes(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{n} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// The beginning of a text that may have many lines, for a table; JSON has all of it.
pub fn brief(text: &str) -> String {
    const MOST: usize = 100;
    let first = text.lines().next().unwrap_or_default();
    match first.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", first[..at].trim_end()),
        None if first.len() < text.trim_end().len() => format!("{first}…"),
        None => first.to_owned(),
    }
}

/// A number with its thousands apart.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_for_people() {
        assert_eq!((ms(1_530), ms(23_400)), ("1.5 ms".into(), "23 ms".into()));
        assert_eq!((bytes(12), bytes(5 << 20), bytes(3 << 40)), ("12 B".into(), "5.0 MiB".into(), "3.0 TiB".into()));
        assert_eq!([0, 999, 1000, 1234567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn a_long_text_is_cut() {
        assert_eq!((brief("one"), brief("one\n"), brief("one\ntwo")), ("one".into(), "one".into(), "one…".into()));
        assert_eq!(brief(&"é".repeat(200)).chars().count(), 101);
    }

    #[test]
    fn a_table_has_no_spaces_at_its_edges() {
        let mut t = table(&["A", "B"]);
        t.add_row(["one", "x"]);
        assert_eq!(text(&t), "A    B\none  x");
    }
}
