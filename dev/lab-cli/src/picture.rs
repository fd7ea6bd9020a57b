//! A lab, drawn.
//!
//! ```text
//!  ══════╤════════════════╤════════════════╤═════ public
//!        │                │                │
//!  ┌─────┴──────┐   ┌─────┴──────┐   ┌─────┴──────┐   ┌────────────┐
//!  │ a  primary │   │ b  backup  │   │ client     │   │ w  witness │
//!  └─────┬──────┘   └─────┬──────┘   └────────────┘   └─────┬──────┘
//!        ╳                │                                 │
//!  ══════╧════════════════╧═════════════════════════════════╧═════ replication
//! ```

use ninefold_lab::status::{HostStatus, LinkState};
use ninefold_lab::topology::{CLIENT, WITNESS};
use ninefold_lab::{LabStatus, Network};
use ninefold_shell::keepers::HostReport;

/// A host's width, the gap to the next included.
const WIDTH: usize = 20;
/// Inside of a host's box.
const INNER: usize = WIDTH - 4;

/// The hosts as boxes between the two networks; each cable as it is.
pub fn lab(lab: &LabStatus, vm: &[HostReport]) -> String {
    let columns: Vec<_> = lab.hosts.iter().map(|h| Column::new(h, vm)).collect();
    let row = |cell: &dyn Fn(&Column<'_>) -> String| {
        let line: String = columns.iter().map(|c| format!("{:<WIDTH$}", cell(c))).collect();
        format!(" {}\n", line.trim_end())
    };
    let network = |network: Network, knot: char, name: &str| {
        let line: String = columns
            .iter()
            .map(|c| if c.link(network).is_some() { knot } else { '═' })
            .map(|k| format!("{}{k}{}", "═".repeat(WIDTH / 2 - 1), "═".repeat(WIDTH / 2)))
            .collect();
        format!(" {line} {name}\n")
    };
    let cable = |n: Network| row(&|c| format!("{}{}", " ".repeat(WIDTH / 2 - 1), c.link(n).map_or(' ', glyph)));
    let edge = |corners: (char, char), knot: char, n: Network| {
        row(&|c| {
            let knot = if c.link(n).is_some() { knot } else { '─' };
            let side = INNER / 2;
            format!("{}{}{knot}{}{}", corners.0, "─".repeat(side), "─".repeat(INNER - side - 1), corners.1)
        })
    };
    [
        network(Network::Public, '╤', "public"),
        cable(Network::Public),
        edge(('┌', '┐'), '┴', Network::Public),
        row(&|c| format!("│{:<INNER$}│", clip(&c.title))),
        row(&|c| format!("│{:<INNER$}│", clip(&c.below))),
        edge(('└', '┘'), '┬', Network::Replication),
        cable(Network::Replication),
        network(Network::Replication, '╧', "replication"),
        legend(&columns),
    ]
    .concat()
}

struct Column<'a> {
    host: &'a HostStatus,
    title: String,
    below: String,
}

impl<'a> Column<'a> {
    fn new(host: &'a HostStatus, vm: &[HostReport]) -> Self {
        let role = match host.name.as_str() {
            CLIENT => "",
            WITNESS => "witness",
            name => vm.iter().find(|r| r.host == name).map_or("", HostReport::role),
        };
        let off = host.links.iter().any(|l| l.state == LinkState::HostDown);
        let below = match () {
            () if host.frozen => "frozen",
            () if off => "off",
            () if host.processes.is_empty() && host.name != CLIENT => "nothing runs",
            () => vm.iter().find(|r| r.host == host.name).map_or("", HostReport::protection),
        };
        // A host that is off or frozen plays no role, whatever was last heard.
        let role = if off || host.frozen { "" } else { role };
        Self { host, title: format!(" {} {role}", host.name), below: format!(" {below}") }
    }

    fn link(&self, network: Network) -> Option<LinkState> {
        self.host.links.iter().find(|l| l.network == network).map(|l| l.state)
    }
}

fn glyph(state: LinkState) -> char {
    match state {
        LinkState::Up => '│',
        LinkState::HostDown => '╎',
        LinkState::Cut => '╳',
        LinkState::Blackhole => '○',
    }
}

/// What the marks mean, for those that occur.
fn legend(columns: &[Column<'_>]) -> String {
    let mut text = Vec::new();
    for (state, words) in
        [(LinkState::HostDown, "host off"), (LinkState::Cut, "cut"), (LinkState::Blackhole, "black hole")]
    {
        if columns.iter().flat_map(|c| &c.host.links).any(|l| l.state == state) {
            text.push(format!("{} {words}", glyph(state)));
        }
    }
    if text.is_empty() { String::new() } else { format!(" {}\n", text.join("   ")) }
}

fn clip(text: &str) -> String {
    text.chars().take(INNER).collect()
}

#[cfg(test)]
mod tests {
    use ninefold_lab::status::LinkStatus;

    use super::*;

    #[test]
    fn every_line_fits_its_columns_and_a_cut_shows() {
        let host = |name: &str, states: &[(Network, LinkState)]| HostStatus {
            name: name.into(),
            netns: String::new(),
            address: None,
            frozen: false,
            links: states.iter().map(|&(network, state)| LinkStatus { network, state }).collect(),
            processes: Vec::new(),
        };
        let status = LabStatus {
            name: "t".into(),
            persistent: true,
            owner_pid: 1,
            owner_alive: true,
            hosts: vec![
                host("a", &[(Network::Public, LinkState::Up), (Network::Replication, LinkState::Cut)]),
                host("client", &[(Network::Public, LinkState::Blackhole)]),
            ],
        };
        let text = lab(&status, &[]);
        let lines: Vec<_> = text.lines().collect();
        let knot = |line: &str, c: char| line.chars().position(|x| x == c);
        assert_eq!(knot(lines[0], '╤'), knot(lines[1], '│'));
        assert_eq!(knot(lines[1], '│'), knot(lines[2], '┴'));
        assert_eq!(knot(lines[5], '┬'), knot(lines[6], '╳'));
        assert_eq!(knot(lines[6], '╳'), knot(lines[7], '╧'));
        assert!(lines[1].contains('○') && lines.last().unwrap().contains("black hole"), "{text}");
    }
}
