//! One JSON object a line, written by hand so that the guest needs no library.

use std::fmt::{Display, Write};

/// A reply under construction.
#[derive(Debug)]
pub struct Reply(String);

impl Reply {
    /// `{"ok":true,"command":"…"`
    pub fn to(command: &str) -> Self {
        let mut r = Self(String::from("{\"ok\":true"));
        r.text("command", command);
        r
    }

    /// `{"ok":false,"error":"…"}`
    pub fn error(error: &dyn Display) -> String {
        let mut r = Self(String::from("{\"ok\":false"));
        r.text("error", &error.to_string());
        r.finish()
    }

    pub fn number(&mut self, key: &str, value: u64) -> &mut Self {
        // Writing to a String cannot fail.
        let _ = write!(self.0, ",\"{key}\":{value}");
        self
    }

    pub fn text(&mut self, key: &str, value: &str) -> &mut Self {
        let _ = write!(self.0, ",\"{key}\":\"");
        for c in value.chars() {
            match c {
                '"' | '\\' => {
                    self.0.push('\\');
                    self.0.push(c);
                }
                c if c.is_control() => {
                    let _ = write!(self.0, "\\u{:04x}", u32::from(c));
                }
                c => self.0.push(c),
            }
        }
        self.0.push('"');
        self
    }

    pub fn finish(mut self) -> String {
        self.0.push_str("}\n");
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_escaped() {
        let mut r = Reply::to("ping");
        r.number("n", 3).text("s", "a\"b\\c\nd");
        assert_eq!(r.finish(), "{\"ok\":true,\"command\":\"ping\",\"n\":3,\"s\":\"a\\\"b\\\\c\\u000ad\"}\n");
        assert_eq!(Reply::error(&"no"), "{\"ok\":false,\"error\":\"no\"}\n");
    }
}
