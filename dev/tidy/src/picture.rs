//! The graph of imports as a picture (SVG).
//!
//! Each crate is a box. Its files stand in columns: a file is to the left of all that it uses in its crate, but for the files of a
//! circle, which share a column and are red, as are the lines among them. What a crate uses of others is written under its name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::imports::Graph;

const LINE: usize = 15;
const LETTER: usize = 6;
const BETWEEN: usize = 34;
const MARGIN: usize = 14;
const HEAD: usize = 44;
/// A row of boxes is no wider than this, unless one box alone is.
const WIDTH: usize = 1900;

/// A crate, laid out.
struct Box<'a> {
    name: &'a str,
    uses: String,
    /// Left edge within the box, width, files.
    columns: Vec<(usize, usize, Vec<&'a str>)>,
    width: usize,
    height: usize,
}

/// Draws the graph.
pub fn draw(graph: &Graph) -> String {
    let circles = graph.circles();
    let circle_of: BTreeMap<&str, usize> =
        circles.iter().enumerate().flat_map(|(n, files)| files.iter().map(move |file| (*file, n))).collect();
    let mut crates: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (file, of) in graph.files() {
        crates.entry(of).or_default().insert(file);
    }
    let boxes: Vec<Box<'_>> =
        in_order(graph, &crates).into_iter().map(|name| lay_out(graph, name, &crates[name], &circle_of)).collect();

    let (mut x, mut y, mut row, mut width) = (MARGIN, 40, 0, 0);
    let (mut cells, mut places) = (String::new(), BTreeMap::new());
    for this in &boxes {
        if x > MARGIN && x + this.width > WIDTH {
            (x, y, row) = (MARGIN, y + row + MARGIN, 0);
        }
        draw_box(this, x, y, &circle_of, &mut cells, &mut places);
        x += this.width + MARGIN;
        row = row.max(this.height);
        width = width.max(x);
    }
    let height = y + row + MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"monospace\" font-size=\"10\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"{MARGIN}\" y=\"24\" font-size=\"14\" font-family=\"sans-serif\">{} files, {} uses; in red the files and uses of {} circles</text>\n",
        graph.files().count(),
        graph.uses().count(),
        circles.len(),
    );
    for red in [false, true] {
        for (from, to) in graph.uses().filter(|(from, to)| graph.crate_of(from) == graph.crate_of(to)) {
            let round = circle_of.contains_key(from) && circle_of.get(from) == circle_of.get(to);
            if round == red {
                line(&mut svg, places[from], places[to], red);
            }
        }
    }
    svg + &cells + "</svg>\n"
}

/// Crates, those that use others first.
fn in_order<'a>(graph: &'a Graph, crates: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Vec<&'a str> {
    let uses: BTreeSet<(&str, &str)> = graph
        .uses()
        .map(|(from, to)| (graph.crate_of(from), graph.crate_of(to)))
        .filter(|(from, to)| from != to)
        .collect();
    let mut left: BTreeSet<&str> = crates.keys().copied().collect();
    let mut order = Vec::new();
    while !left.is_empty() {
        let used = |name: &&str| uses.iter().any(|(from, to)| to == name && left.contains(from));
        // There are no circles of crates; if there were, one would do as well as another.
        let next = left
            .iter()
            .copied()
            .find(|name| !used(name))
            .unwrap_or_else(|| left.iter().next().expect("it is not empty"));
        left.remove(next);
        order.push(next);
    }
    order
}

fn lay_out<'a>(
    graph: &'a Graph,
    name: &'a str,
    files: &BTreeSet<&'a str>,
    circle_of: &BTreeMap<&str, usize>,
) -> Box<'a> {
    // A circle counts as one.
    let group = |file: &'a str| circle_of.get(file).map_or_else(|| file.to_owned(), |n| format!("circle {n}"));
    let mut next: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (from, to) in graph.uses().filter(|(from, to)| files.contains(from) && files.contains(to)) {
        if group(from) != group(to) {
            next.entry(group(from)).or_default().insert(group(to));
        }
    }
    let mut level: BTreeMap<String, usize> = files.iter().map(|file| (group(file), 0)).collect();
    // The longest way from the left: there are no circles any more, so this comes to an end.
    let mut moved = true;
    while moved {
        moved = false;
        for (from, all) in &next {
            for to in all {
                if level[to] <= level[from] {
                    level.insert(to.clone(), level[from] + 1);
                    moved = true;
                }
            }
        }
    }
    let mut by_level: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for file in files {
        by_level.entry(level[&group(file)]).or_default().push(file);
    }
    let (mut x, mut columns) = (MARGIN, Vec::new());
    for (_, mut files) in by_level {
        files.sort_by_key(|file| (circle_of.get(file), *file));
        let width = files.iter().map(|file| label(file).len()).max().unwrap_or(0) * LETTER + 8;
        columns.push((x, width, files));
        x += width + BETWEEN;
    }
    let mut others: BTreeMap<&str, usize> = BTreeMap::new();
    for (from, to) in graph.uses() {
        if files.contains(from) && !files.contains(to) {
            *others.entry(graph.crate_of(to)).or_default() += 1;
        }
    }
    let others: Vec<_> = others.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let uses = if others.is_empty() { String::new() } else { format!("uses {}", others.join(", ")) };
    let longest = columns.iter().map(|(_, _, files)| files.len()).max().unwrap_or(0);
    let width = (x - BETWEEN + MARGIN).max(uses.len() * LETTER + 2 * MARGIN);
    Box { name, uses, columns, width, height: HEAD + longest * (LINE + 4) + MARGIN }
}

/// A file's name in its crate.
fn label(file: &str) -> &str {
    file.split_once("/src/").map_or(file, |(_, rest)| rest).trim_end_matches(".rs")
}

/// Left edge, right edge and middle of a cell.
type Place = (usize, usize, usize);

fn draw_box<'a>(
    this: &Box<'a>,
    x: usize,
    y: usize,
    circle_of: &BTreeMap<&str, usize>,
    svg: &mut String,
    places: &mut BTreeMap<&'a str, Place>,
) {
    let Box { name, uses, width, height, .. } = this;
    let mut put = |text: std::fmt::Arguments<'_>| svg.write_fmt(text).expect("a text takes all that is written to it");
    put(format_args!(
        "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"5\" fill=\"none\" stroke=\"#888\"/>\n"
    ));
    let (left, first, second) = (x + MARGIN, y + 17, y + 31);
    put(format_args!("<text x=\"{left}\" y=\"{first}\" font-size=\"14\" font-weight=\"bold\">{name}</text>\n"));
    put(format_args!("<text x=\"{left}\" y=\"{second}\" fill=\"#555\">{uses}</text>\n"));
    for (at, width, files) in &this.columns {
        for (n, file) in files.iter().enumerate() {
            let (left, top) = (x + at, y + HEAD + n * (LINE + 4));
            let (fill, stroke) = if circle_of.contains_key(file) { ("#ffe3e3", "#c00") } else { ("#f3f5f8", "#9ab") };
            put(format_args!(
                "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{LINE}\" rx=\"2\" fill=\"{fill}\" stroke=\"{stroke}\"/>\
                 <text x=\"{}\" y=\"{}\">{}</text>\n",
                left + 4,
                top + 11,
                label(file),
            ));
            places.insert(file, (left, left + width, top + LINE / 2));
        }
    }
}

fn line(svg: &mut String, from: Place, to: Place, red: bool) {
    let (left, right, middle) = from;
    let (to_left, to_right, to_middle) = to;
    let style = if red {
        "stroke=\"#c00\" stroke-width=\"1.1\" opacity=\"0.8\""
    } else {
        "stroke=\"#89a\" stroke-width=\"0.6\" opacity=\"0.55\""
    };
    // Within a column around its right edge.
    let path = if left == to_left {
        let out = right.max(to_right) + 8 + middle.abs_diff(to_middle) / 8;
        format!("M{right} {middle} C{out} {middle} {out} {to_middle} {to_right} {to_middle}")
    } else {
        let half = (right + to_left) / 2;
        format!("M{right} {middle} C{half} {middle} {half} {to_middle} {to_left} {to_middle}")
    };
    writeln!(svg, "<path d=\"{path}\" fill=\"none\" {style}/>").expect("a text takes all that is written to it");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imports;
    use crate::tree::Tree;

    #[test]
    fn circles_are_red_and_nothing_else_is() {
        let picture = |one| {
            draw(&imports::read(&Tree::of(&[
                ("crates/a/Cargo.toml", "[package]\nname = \"ninefold-a\"\n"),
                ("crates/a/src/lib.rs", "mod one; mod two;"),
                ("crates/a/src/one.rs", one),
                ("crates/a/src/two.rs", "use crate::one::One; pub struct Two(One);"),
            ])))
        };
        let straight = picture("pub struct One;");
        assert!(straight.contains(">two</text>") && straight.contains("3 files, 1 uses") && !straight.contains("#c00"));
        let round = picture("pub struct One(crate::two::Two);");
        assert_eq!(round.matches("stroke=\"#c00\" stroke-width").count(), 2);
        assert_eq!(round.matches("fill=\"#ffe3e3\"").count(), 2);
    }
}
