//! The links, headings and words in code of a document in Markdown, as far as this repository's documents go.

/// A link, or the address of a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// From 1 on.
    pub line: usize,
    pub text: String,
    pub target: String,
}

/// What a document consists of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Document {
    pub links: Vec<Link>,
    /// What links to a heading name: `#` and one of these.
    pub anchors: Vec<String>,
    /// What stands in back quotes, and the lines of blocks of code; each with its line.
    pub code: Vec<(usize, String)>,
}

/// Reads a document.
pub fn read(text: &str) -> Document {
    let mut document = Document::default();
    let mut fence: Option<&str> = None;
    for (line, text) in text.lines().enumerate().map(|(n, text)| (n + 1, text)) {
        let start = text.trim_start();
        let marks = ["```", "~~~"].into_iter().find(|marks| start.starts_with(marks));
        match (fence, marks) {
            (None, Some(marks)) => fence = Some(marks),
            (Some(open), Some(marks)) if open == marks => fence = None,
            (Some(_), _) => document.code.push((line, text.to_owned())),
            (None, None) if text.starts_with("    ") && !is_item(start) => document.code.push((line, text.to_owned())),
            (None, None) => {
                if let Some(heading) = heading(text) {
                    let slug = slug(heading);
                    let same = document.anchors.iter().filter(|a| **a == slug).count();
                    document.anchors.push(if same == 0 { slug } else { format!("{slug}-{same}") });
                }
                inline(line, text, &mut document);
            }
        }
    }
    document
}

/// Whether a line that is set in is an item of a list and no block of code.
fn is_item(line: &str) -> bool {
    line.starts_with("* ")
        || line.starts_with("- ")
        || line.split_once(". ").is_some_and(|(n, _)| n.parse::<u8>().is_ok())
}

fn heading(line: &str) -> Option<&str> {
    let text = line.trim_start_matches('#');
    let level = line.len() - text.len();
    ((1..=6).contains(&level) && text.starts_with(' ')).then_some(text.trim())
}

/// The anchor that a heading gets where the documents are shown: lower case, without punctuation, `-` for each space.
fn slug(heading: &str) -> String {
    let shown = without_targets(heading);
    let kept = shown.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// A heading with the texts of its links alone.
fn without_targets(text: &str) -> String {
    let mut document = Document::default();
    inline(0, text, &mut document);
    let links = document.links.iter();
    links.fold(text.to_owned(), |text, link| text.replace(&format!("[{}]({})", link.text, link.target), &link.text))
}

/// Finds code and links in a line.
fn inline(line: usize, text: &str, document: &mut Document) {
    // The places of `[` that have not met their `]`.
    let (mut at, mut open) = (0, Vec::new());
    while let Some(c) = text[at..].chars().next() {
        match c {
            '`' => {
                let marks = text[at..].len() - text[at..].trim_start_matches('`').len();
                let begin = at + marks;
                let Some(length) = text[begin..].find(&"`".repeat(marks)) else { return };
                document.code.push((line, text[begin..begin + length].to_owned()));
                at = begin + length + marks;
                continue;
            }
            '\\' => at += 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
            '[' => {
                open.push(at + 1);
                at += 1;
            }
            ']' => {
                let begin = open.pop();
                let target = text[at + 1..].strip_prefix('(').and_then(|rest| rest.split_once(')'));
                if let (Some(begin), Some((target, _))) = (begin, target) {
                    // A title may follow the address.
                    let target = target.split_whitespace().next().unwrap_or_default().trim_matches(['<', '>']);
                    let text = text[begin..at].to_owned();
                    document.links.push(Link { line, text, target: target.to_owned() });
                }
                at += 1;
            }
            c => at += c.len_utf8(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_and_code_is_not_taken_for_them() {
        let document = read(
            "See [one](a.md#b), ![two](img/x.svg \"title\") and `[no](c.md)`.\n```\n[no](d.md)\n```\n[`x`](e.md)\n",
        );
        let links: Vec<_> = document.links.iter().map(|l| (l.line, l.text.as_str(), l.target.as_str())).collect();
        assert_eq!(links, [(1, "one", "a.md#b"), (1, "two", "img/x.svg"), (5, "`x`", "e.md")]);
        let code: Vec<_> = document.code.iter().map(|(line, text)| (*line, text.as_str())).collect();
        assert_eq!(code, [(1, "[no](c.md)"), (3, "[no](d.md)"), (5, "x")]);
    }

    #[test]
    fn headings_have_the_anchors_that_links_name() {
        let document = read(
            "# 4. Every *RAM* block\n## What `start` refuses, and `--force`\n## Same\n## Same\n    # no heading\n### [A](b.md) link\n",
        );
        let expected = ["4-every-ram-block", "what-start-refuses-and---force", "same", "same-1", "a-link"];
        assert_eq!(document.anchors, expected);
    }
}
