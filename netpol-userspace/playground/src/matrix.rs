//! The reachability matrix as text. Pure; must never leave out or soften a difference.
//!
//! One table per example: its servers are the columns, its hosts the rows. Hosts of other
//! examples follow, those with the same results together in one row.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

use anstyle::{AnsiColor, Style};

use super::outcome::Outcome;
use super::plan::{Host, Place};
use super::pods::Port;
use super::probe::Observed;

const GOOD: Style = AnsiColor::Green.on_default();
const QUIET: Style = Style::new().dimmed();
const BAD: Style = AnsiColor::Red.on_default().bold().invert();
const TITLE: Style = Style::new().bold();
const GAP: &str = "  ";
const CORNER: &str = "from \\ to";
const NOT_PROBED: &str = "-";

/// What the signs mean.
pub(crate) const LEGEND: &str = "Each cell is observed/expected: ✓ allowed, ✗ blocked, r refused, \
! error, - not probed.\n\
Where IPv4 and IPv6 differ both are shown (4✓6✗). Differences are marked with ◀.";

/// What is to be said of the ports that were added because no policy names them.
pub fn unnamed(hosts: &[Host]) -> Option<String> {
    let ports: BTreeSet<&Port> = hosts.iter().filter_map(|host| host.unnamed.as_ref()).collect();
    let names: Vec<String> =
        ports.iter().map(|port| format!("{} {}", port.protocol, port.number)).collect();
    match names.len() {
        0 => None,
        _ => Some(format!("No policy names {}: tried to show what is closed.", names.join(", "))),
    }
}

type Cells = BTreeMap<(usize, usize, Port), Vec<usize>>;

struct Matrix<'a> {
    hosts: &'a [Host],
    outcomes: &'a [Outcome],
    cells: Cells,
}

#[derive(Clone, PartialEq, Eq)]
struct Cell {
    text: String,
    style: Style,
}

struct Row {
    label: String,
    cells: Vec<Cell>,
}

struct Column {
    to: usize,
    port: Port,
    header: Vec<String>,
}

/// The tables of all examples, at most `width` columns wide where that is possible.
pub fn render(hosts: &[Host], outcomes: &[Outcome], width: usize) -> String {
    let mut cells = Cells::new();
    for (index, outcome) in outcomes.iter().enumerate() {
        let key = (outcome.from, outcome.to, outcome.port.clone());
        cells.entry(key).or_default().push(index);
    }
    let matrix = Matrix { hosts, outcomes, cells };
    let mut sections: Vec<&str> = Vec::new();
    for host in hosts {
        if !sections.contains(&&*host.section) {
            sections.push(&host.section);
        }
    }
    let mut text = String::new();
    for section in sections {
        matrix.section(section, width, &mut text);
    }
    text
}

impl Matrix<'_> {
    fn section(&self, section: &str, width: usize, text: &mut String) {
        let inside = |index: &usize| self.hosts[*index].section == section;
        let all = 0..self.hosts.len();
        let mut own: Vec<usize> = all.clone().filter(inside).collect();
        own.sort_by_key(|&index| self.hosts[index].place == Place::Outside);
        let others: Vec<usize> = all.filter(|index| !inside(index)).collect();
        let namespace = &self.hosts[own[0]].id.namespace;
        let one_namespace = own.iter().all(|&index| self.hosts[index].id.namespace == *namespace);
        let title = match (section, one_namespace) {
            ("", false) => String::new(),
            ("", true) => format!("namespace {namespace}"),
            (section, false) => section.to_owned(),
            (section, true) => format!("{section} (namespace {namespace})"),
        };
        let columns = self.columns(&own, one_namespace);
        if !title.is_empty() {
            let _ = writeln!(text, "{TITLE}{title}{TITLE:#}");
        }
        if columns.is_empty() {
            let _ =
                writeln!(text, "{GAP}no port to try: none is declared, and policies name none\n");
            return;
        }
        let mut rows: Vec<Row> = own
            .iter()
            .map(|&index| Row {
                label: self.label(index, one_namespace),
                cells: self.row(index, &columns),
            })
            .collect();
        rows.extend(self.grouped(&others, &columns));
        rows.retain(|row| row.cells.iter().any(|cell| cell.text != NOT_PROBED));
        write_blocks(&columns, &rows, width, text);
    }

    fn columns(&self, own: &[usize], one_namespace: bool) -> Vec<Column> {
        let mut columns = Vec::new();
        for &to in own {
            let host = &self.hosts[to];
            for port in &host.ports {
                let mut header = vec![host.id.name.to_string()];
                if !one_namespace {
                    header.insert(0, host.id.namespace.to_string());
                }
                if host.place == Place::Outside {
                    header.extend(host.addresses.first().map(ToString::to_string));
                }
                header.push(format!("{} {}", port.protocol, port.number));
                columns.push(Column { to, port: port.clone(), header });
            }
        }
        columns
    }

    fn label(&self, index: usize, one_namespace: bool) -> String {
        let host = &self.hosts[index];
        let name = if one_namespace { host.id.name.to_string() } else { host.id.to_string() };
        match host.place {
            Place::Pod(_) => name,
            Place::HostNetwork(_) => format!("{name} [host]"),
            Place::Outside => {
                let address = host.addresses.first().map(IpAddr::to_string).unwrap_or_default();
                format!("{name} [{address}]")
            }
        }
    }

    fn row(&self, from: usize, columns: &[Column]) -> Vec<Cell> {
        columns
            .iter()
            .map(|column| {
                let found = self.cells.get(&(from, column.to, column.port.clone()));
                let outcomes = found.into_iter().flatten().map(|&index| &self.outcomes[index]);
                cell(&outcomes.collect::<Vec<_>>())
            })
            .collect()
    }

    /// Hosts of other examples, those with equal results together.
    fn grouped(&self, others: &[usize], columns: &[Column]) -> Vec<Row> {
        let mut groups: Vec<(Vec<Cell>, Vec<usize>)> = Vec::new();
        for &index in others {
            let cells = self.row(index, columns);
            match groups.iter_mut().find(|(known, _)| *known == cells) {
                Some((_, members)) => members.push(index),
                None => groups.push((cells, vec![index])),
            }
        }
        let row = |(cells, members): (Vec<Cell>, Vec<usize>)| {
            let label = match members[..] {
                [only] => self.label(only, false),
                [first, ref rest @ ..] if members.len() < others.len() => {
                    format!("{} and {} more", self.label(first, false), rest.len())
                }
                _ => format!("all {} other hosts", members.len()),
            };
            Row { label, cells }
        };
        groups.into_iter().map(row).collect()
    }
}

/// `observed/expected`, per family where they are not the same.
fn cell(outcomes: &[&Outcome]) -> Cell {
    let Some(first) = outcomes.first() else {
        return Cell { text: NOT_PROBED.to_owned(), style: QUIET };
    };
    let signs = |sign: &dyn Fn(&Outcome) -> char, same: bool| -> String {
        if same {
            return sign(first).to_string();
        }
        let family = |outcome: &Outcome| if outcome.destination.is_ipv4() { '4' } else { '6' };
        outcomes.iter().flat_map(|outcome| [family(outcome), sign(outcome)]).collect()
    };
    let alike = |sign: &dyn Fn(&Outcome) -> char| outcomes.iter().all(|o| sign(o) == sign(first));
    let same = alike(&observed_sign) && alike(&expected_sign);
    let mark = if outcomes.iter().any(|outcome| outcome.differs()) { " ◀" } else { "" };
    let (observed, expected) = (signs(&observed_sign, same), signs(&expected_sign, same));
    let style = match (mark, first.observed == Observed::Allowed) {
        ("", true) => GOOD,
        ("", false) => QUIET,
        _ => BAD,
    };
    Cell { text: format!("{observed}/{expected}{mark}"), style }
}

fn observed_sign(outcome: &Outcome) -> char {
    match outcome.observed {
        Observed::Allowed => '✓',
        Observed::Blocked => '✗',
        Observed::Refused => 'r',
        Observed::Error(_) => '!',
    }
}

fn expected_sign(outcome: &Outcome) -> char {
    if outcome.expected { '✓' } else { '✗' }
}

/// Writes as many columns beside each other as fit, then the next ones below.
fn write_blocks(columns: &[Column], rows: &[Row], width: usize, text: &mut String) {
    let labels = rows.iter().map(|row| row.label.chars().count());
    let label_width = labels.chain([CORNER.len()]).max().unwrap_or(0);
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(index, column)| {
            let cells = rows.iter().map(|row| row.cells[index].text.chars().count());
            cells.chain(column.header.iter().map(|line| line.chars().count())).max().unwrap_or(0)
        })
        .collect();
    let mut start = 0;
    while start < columns.len() {
        let mut used = GAP.len() + label_width;
        let mut end = start;
        while end < columns.len() && (end == start || used + GAP.len() + widths[end] <= width) {
            used += GAP.len() + widths[end];
            end += 1;
        }
        write_block(&columns[start..end], &widths[start..end], rows, start, label_width, text);
        start = end;
    }
}

fn write_block(
    columns: &[Column],
    widths: &[usize],
    rows: &[Row],
    start: usize,
    label_width: usize,
    text: &mut String,
) {
    let n_lines = columns.iter().map(|column| column.header.len()).max().unwrap_or(0);
    for line in 0..n_lines {
        let corner = if line + 1 == n_lines { CORNER } else { "" };
        let mut written = format!("{GAP}{corner:label_width$}");
        for (column, width) in columns.iter().zip(widths) {
            // Headers stand on the table: shorter ones have their empty lines on top.
            let missing = n_lines - column.header.len();
            let part = line.checked_sub(missing).map_or("", |line| &column.header[line]);
            let _ = write!(written, "{GAP}{part:width$}");
        }
        let _ = writeln!(text, "{}", written.trim_end());
    }
    for row in rows {
        let _ = write!(text, "{GAP}{:label_width$}", row.label);
        for (cell, width) in row.cells[start..].iter().zip(widths) {
            let Cell { text: content, style } = cell;
            let padding = width.saturating_sub(content.chars().count());
            let _ = write!(text, "{GAP}{style}{content}{style:#}{:padding$}", "");
        }
        let trimmed = text.trim_end_matches(' ').len();
        text.truncate(trimmed);
        text.push('\n');
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use anstream::adapter::strip_str;

    use super::*;
    use netpol_model::{ObjectName, Protocol};

    fn host(section: &str, name: &str, place: Place, ports: &[u16]) -> Host {
        let address = if place == Place::Outside { [8, 8, 8, 8] } else { [10, 0, 0, 1] };
        let port = |&number| Port { protocol: Protocol::Tcp, number };
        Host {
            id: ObjectName::new(section, name),
            place,
            addresses: vec![address.into()],
            ports: ports.iter().map(port).collect(),
            unnamed: None,
            section: section.to_owned(),
        }
    }

    fn outcome(from: usize, to: usize, number: u16, expected: bool, observed: Observed) -> Outcome {
        Outcome {
            from,
            to,
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 1].into(),
            port: Port { protocol: Protocol::Tcp, number },
            expected,
            observed,
        }
    }

    fn text(hosts: &[Host], outcomes: &[Outcome], width: usize) -> String {
        strip_str(&render(hosts, outcomes, width)).to_string()
    }

    #[test]
    fn cells_show_both_and_mark_differences() {
        let hosts = [
            host("shop", "web", Place::Pod(1), &[80, 81]),
            host("shop", "monitor", Place::Outside, &[]),
        ];
        let outcomes = [
            outcome(0, 0, 80, true, Observed::Allowed),
            outcome(0, 0, 81, false, Observed::Blocked),
            outcome(1, 0, 80, true, Observed::Blocked),
            outcome(1, 0, 81, true, Observed::Refused),
        ];
        let expected = "\
shop (namespace shop)
                     web     web
  from \\ to          TCP 80  TCP 81
  web                ✓/✓     ✗/✗
  monitor [8.8.8.8]  ✗/✓ ◀   r/✓ ◀

";
        assert_eq!(text(&hosts, &outcomes, 100), expected);
    }

    #[test]
    fn families_are_shown_apart_only_when_they_differ() {
        let hosts = [host("a", "x", Place::Pod(1), &[80])];
        let mut sixth = outcome(0, 0, 80, false, Observed::Blocked);
        sixth.destination = "::1".parse().expect("an address");
        let outcomes = [outcome(0, 0, 80, true, Observed::Allowed), sixth];
        assert!(text(&hosts, &outcomes, 100).contains("  x          4✓6✗/4✓6✗\n"));
    }

    #[test]
    fn other_examples_are_grouped_and_wide_tables_split() {
        let hosts = [
            host("a", "x", Place::Pod(1), &[80, 81]),
            host("b", "p", Place::Pod(1), &[]),
            host("b", "q", Place::Pod(1), &[]),
            host("b", "r", Place::Pod(1), &[]),
        ];
        let mut outcomes = Vec::new();
        for from in 0..4 {
            outcomes.push(outcome(from, 0, 80, true, Observed::Allowed));
            outcomes.push(outcome(from, 0, 81, from == 2, Observed::Allowed));
        }
        let expected = "\
a (namespace a)
                  x
  from \\ to       TCP 80
  x               ✓/✓
  b/p and 1 more  ✓/✓
  b/q             ✓/✓

                  x
  from \\ to       TCP 81
  x               ✓/✗ ◀
  b/p and 1 more  ✓/✗ ◀
  b/q             ✓/✓

b (namespace b)
  no port to try: none is declared, and policies name none

";
        assert_eq!(text(&hosts, &outcomes, 30), expected);
    }

    #[test]
    fn hosts_outside_come_last_and_rows_without_probes_are_left_out() {
        let hosts = [
            host("a", "internet", Place::Outside, &[443]),
            host("a", "nobody", Place::Outside, &[]),
            host("a", "x", Place::Pod(1), &[80]),
        ];
        let outcomes = [
            outcome(0, 2, 80, false, Observed::Blocked),
            outcome(2, 0, 443, true, Observed::Allowed),
        ];
        let expected = "\
a (namespace a)
                              internet
                      x       8.8.8.8
  from \\ to           TCP 80  TCP 443
  x                   -       ✓/✓
  internet [8.8.8.8]  ✗/✗     -

";
        assert_eq!(text(&hosts, &outcomes, 100), expected);
    }
}
