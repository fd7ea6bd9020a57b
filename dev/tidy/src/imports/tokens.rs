//! Words and marks of Rust code.

use crate::rust;

/// A word, or one character that is no part of a word; `::` is one.
pub(super) fn tokens(source: &str) -> Vec<String> {
    let code = rust::parts(source).code;
    let (mut tokens, mut word) = (Vec::new(), String::new());
    let mut colon = false;
    for c in code.chars() {
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
            colon = false;
            continue;
        }
        if !word.is_empty() {
            tokens.push(std::mem::take(&mut word));
        }
        if c == ':' && colon {
            tokens.pop();
            tokens.push("::".to_owned());
            colon = false;
        } else if !c.is_whitespace() {
            tokens.push(c.to_string());
            colon = c == ':';
        } else {
            colon = false;
        }
    }
    tokens.extend((!word.is_empty()).then_some(word));
    tokens
}

pub(super) fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The place behind the mark that closes what opens at `open`, one of `(`, `[` and `{`.
pub(super) fn behind(tokens: &[String], open: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

/// The place behind the item that begins at `at`: its `;`, or the block that ends it.
pub(super) fn behind_item(tokens: &[String], mut at: usize) -> usize {
    while let Some(token) = tokens.get(at) {
        match token.as_str() {
            ";" => return at + 1,
            // Of a value: `const X: [u8; 2] = { … };`
            "{" => {
                let end = behind(tokens, at);
                return if tokens.get(end).is_some_and(|t| t == ";") { end + 1 } else { end };
            }
            "(" | "[" => at = behind(tokens, at),
            _ => at += 1,
        }
    }
    at
}
