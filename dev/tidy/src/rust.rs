//! A Rust file, taken apart into code and comments, without a parser.

/// A comment on one line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comment {
    /// From 1 on.
    pub line: usize,
    /// Without what marks it.
    pub text: String,
}

/// What a Rust file consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// The file with its comments and the contents of its texts made blank; every character else is where it was, and so
    /// are the ends of lines.
    pub code: String,
    /// In their order, one for each line of a comment.
    pub comments: Vec<Comment>,
}

/// Takes a file apart. Texts, raw texts, characters and nested comments are understood as the compiler does; a file that
/// does not compile gives whatever it gives.
pub fn parts(source: &str) -> Parts {
    let mut scanner = Scanner { rest: source, line: 1, code: String::with_capacity(source.len()), comments: vec![] };
    while !scanner.rest.is_empty() {
        scanner.step();
    }
    Parts { code: scanner.code, comments: scanner.comments }
}

struct Scanner<'a> {
    rest: &'a str,
    line: usize,
    code: String,
    comments: Vec<Comment>,
}

impl<'a> Scanner<'a> {
    /// Moves over `length` bytes, which are kept as code.
    fn keep(&mut self, length: usize) {
        let (taken, rest) = self.rest.split_at(length);
        self.line += taken.matches('\n').count();
        self.code.push_str(taken);
        self.rest = rest;
    }

    /// Moves over `length` bytes, which become blank.
    fn blank(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.line += taken.matches('\n').count();
        self.code.extend(taken.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        self.rest = rest;
        taken
    }

    fn step(&mut self) {
        let first = self.rest.chars().next().expect("called with something left");
        let before = self.code.chars().next_back();
        let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
        if self.rest.starts_with("//") {
            let (line, end) = (self.line, self.rest.find('\n').unwrap_or(self.rest.len()));
            let text = self.blank(end).trim_start_matches('/').trim_start_matches('!').trim().to_owned();
            self.comments.push(Comment { line, text });
        } else if self.rest.starts_with("/*") {
            let (line, end) = (self.line, block_comment(self.rest));
            let text = self.blank(end);
            let lines = text.lines().enumerate();
            self.comments.extend(lines.map(|(n, text)| Comment {
                line: line + n,
                text: text.trim().trim_matches(['/', '*', '!']).trim().to_owned(),
            }));
        } else if first == '"' {
            self.text(1, text_end(&self.rest[1..]));
        } else if let (false, Some((begin, length))) = (in_word, raw_text(self.rest)) {
            self.text(begin, length);
        } else if first == '\'' {
            match character(&self.rest[1..]) {
                Some(length) => self.text(1, length),
                // A lifetime.
                None => self.keep(1),
            }
        } else {
            self.keep(first.len_utf8());
        }
    }

    /// Keeps `begin` bytes, makes `length` blank.
    fn text(&mut self, begin: usize, length: usize) {
        self.keep(begin);
        self.blank(length.min(self.rest.len()));
        let end = self.rest.chars().next().map_or(0, char::len_utf8);
        self.keep(end);
    }
}

/// Bytes of the comment that begins here, with the comments within it.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// Bytes up to the quotation mark that ends a text.
fn text_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at,
            _ => {}
        }
    }
    text.len()
}

/// Of a raw text that begins here: bytes up to its content, and of its content.
fn raw_text(text: &str) -> Option<(usize, usize)> {
    let marks = text.strip_prefix("br").or_else(|| text.strip_prefix("cr")).or_else(|| text.strip_prefix('r'))?;
    let content = marks.trim_start_matches('#');
    let hashes = marks.len() - content.len();
    let content = content.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some((text.len() - content.len(), content.find(&end).unwrap_or(content.len())))
}

/// Bytes of a character's content, after its first quotation mark; None for a lifetime.
fn character(text: &str) -> Option<usize> {
    if let Some(escape) = text.strip_prefix('\\') {
        let first = escape.chars().next()?.len_utf8();
        return Some(1 + first + escape[first..].find('\'')?);
    }
    let length = text.chars().next()?.len_utf8();
    text[length..].starts_with('\'').then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comments(source: &str) -> Vec<(usize, String)> {
        parts(source).comments.into_iter().map(|c| (c.line, c.text)).collect()
    }

    #[test]
    fn comments_are_told_from_texts() {
        let source = "//! One.\nlet a = \"// no \\\" comment\"; // Two.\nlet b = r#\"\"/* no */\"#;\n/* Three\n * /* four */ five */ let c = 'x';";
        let found = comments(source);
        let expected = [(1, "One."), (2, "Two."), (4, "Three"), (5, "/* four */ five")];
        assert_eq!(found, expected.map(|(line, text)| (line, text.to_owned())));
        let code = parts(source).code;
        assert_eq!(code.lines().count(), source.lines().count());
        assert!(!code.contains("no") && code.contains("let c = ' ';"), "{code}");
    }

    #[test]
    fn lifetimes_and_characters_are_told_apart() {
        let code =
            parts("fn f<'a>(x: &'a str) -> char { '\\'' } // It's a comment.\nlet q = '\"'; let y = b'\\\\'; g(\"z\")")
                .code;
        assert!(code.contains("fn f<'a>(x: &'a str)") && !code.contains("comment") && !code.contains('z'), "{code}");
        assert_eq!(code.lines().count(), 2);
    }
}
