//! The forms an answer can take. Tables are for eyes: aligned, without lines and decoration.

use std::io::Write;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;

/// How a listing is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Aligned columns, for people
    #[default]
    Table,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
}

/// How an answer that is no listing is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum TextFormat {
    /// Sentences, for people
    #[default]
    #[value(alias = "table")]
    Text,
    /// JSON
    Json,
}

/// How an answer that is one text, and no stream, is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum AnswerFormat {
    /// Sentences, for people
    #[default]
    #[value(alias = "table")]
    Text,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
}

impl From<AnswerFormat> for Format {
    fn from(format: AnswerFormat) -> Self {
        match format {
            AnswerFormat::Text => Self::Table,
            AnswerFormat::Json => Self::Json,
            AnswerFormat::Yaml => Self::Yaml,
        }
    }
}

/// Shows `value`; in table form by `table`.
pub fn show<T: Serialize>(
    out: &mut dyn Write,
    format: Format,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<()> {
    match format {
        Format::Table => out.write_all(table(value).as_bytes())?,
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, value).map_err(std::io::Error::from)?;
            writeln!(out)?;
        }
        Format::Yaml => {
            let yaml = serde_saphyr::to_string(value).context("cannot write YAML")?;
            writeln!(out, "{}", yaml.trim_end())?;
        }
    }
    Ok(())
}

/// Shows a list; in table form an empty one is the sentence `none` on standard error.
pub fn list<T: Serialize>(
    out: &mut dyn Write,
    format: Format,
    items: &[T],
    none: &str,
    rows: impl FnOnce(&[T]) -> String,
) -> Result<()> {
    if items.is_empty() && format == Format::Table {
        note(none);
        return Ok(());
    }
    show(out, format, &items, |items| rows(items))
}

/// Says something beside the answer.
pub fn note(text: &str) {
    anstream::eprintln!("netpol: {text}");
}

/// Says why names that only an agent knows are not shown, if they are not.
pub fn warn_of_missing_names(why: Option<String>) {
    if let Some(why) = why {
        note(&format!("pods of other nodes and Services are shown without their names: {why}"));
    }
}

/// Aligned columns below a header.
pub fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n") + "\n"
}

/// Who has an address: `shop/web`, `shop/web on node-2`, `service shop/web`, `node node-2`.
pub fn owner(pod: Option<&str>, service: Option<&str>, node: Option<&str>) -> Option<String> {
    Some(match (pod, service, node) {
        (Some(pod), _, Some(node)) => format!("{pod} on {node}"),
        (Some(pod), _, None) => pod.to_owned(),
        (None, Some(service), _) => format!("service {service}"),
        (None, None, Some(node)) => format!("node {node}"),
        (None, None, None) => return None,
    })
}

/// Up to three names, and how many more there are.
pub fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_blanks() {
        let rows = [["a".to_owned(), "b".to_owned()], ["long name".to_owned(), String::new()]];
        assert_eq!(table(["NAME", "X"], rows), "NAME       X\na          b\nlong name\n");
    }

    #[test]
    fn json_and_yaml_of_an_empty_list_are_lists() {
        for format in [Format::Json, Format::Yaml] {
            let mut out = Vec::new();
            list::<u8>(&mut out, format, &[], "nothing", |_| unreachable!()).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), "[]\n", "{format:?}");
        }
        let mut out = Vec::new();
        list::<u8>(&mut out, Format::Table, &[], "nothing", |_| unreachable!()).unwrap();
        assert!(out.is_empty());
    }

    #[test]
    fn long_lists_are_cut() {
        let names = ["a", "b", "c", "d", "e"].map(String::from);
        assert_eq!(some_of(&names), "a, b, c and 2 more");
        assert_eq!(some_of(&names[..3]), "a, b, c");
        assert_eq!(some_of(&[]), "");
    }
}
