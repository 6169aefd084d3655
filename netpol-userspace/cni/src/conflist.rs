//! Network configurations, edited as text: netpol added to the plugins of a list, or taken from
//! it. Pure. Must never change or reorder anything else, nor guess what a file means.

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

use super::TYPE;
use super::input::VERSIONS;

/// What one more plugin in a list needs to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `--run-dir` of the agent.
    pub run_dir: String,
    /// `fail` or `allow`.
    pub on_unreachable: String,
}

impl Entry {
    fn to_json(&self) -> Value {
        json!({ "type": TYPE, "run-dir": self.run_dir, "on-unreachable": self.on_unreachable })
    }
}

/// The list with netpol at its end, `None` if it is as it should be. Where netpol is already, its
/// place and what else is set there stay: other programs may have theirs after it for a reason.
pub(crate) fn with_netpol(text: &str, entry: &Entry) -> Result<Option<String>> {
    let mut list = parse(text)?;
    check_version(&list)?;
    let plugins = plugins(&mut list)?;
    let Value::Object(wanted) = entry.to_json() else { bail!("an entry is an object") };
    if let Some(present) = plugins.iter_mut().find(|plugin| plugin["type"] == TYPE) {
        let present = present.as_object_mut().context("a plugin is no object")?;
        if wanted.iter().all(|(key, value)| present.get(key) == Some(value)) {
            return Ok(None);
        }
        present.extend(wanted);
    } else {
        plugins.push(Value::Object(wanted));
    }
    Ok(Some(print(&list)))
}

/// The list without netpol, `None` if it is not in it.
pub fn without_netpol(text: &str) -> Result<Option<String>> {
    let mut list = parse(text)?;
    let plugins = plugins(&mut list)?;
    let before = plugins.len();
    plugins.retain(|plugin| plugin["type"] != TYPE);
    Ok((plugins.len() != before).then(|| print(&list)))
}

/// Whether netpol is in a list; not if it is none.
pub(crate) fn has_netpol(text: &str) -> bool {
    matches!(without_netpol(text), Ok(Some(_)))
}

/// The configuration of a single plugin as a list of one, as runtimes read it.
pub fn wrapped(text: &str) -> Result<String> {
    let single = parse(text)?;
    if single.contains_key("plugins") {
        bail!("it has `plugins` but is no .conflist, so runtimes do not read it as a list");
    }
    if !single.get("type").is_some_and(Value::is_string) {
        bail!("it has no `type`, so it configures no plugin");
    }
    check_version(&single)?;
    let mut list = Map::new();
    for key in ["cniVersion", "name"] {
        list.insert(key.to_owned(), single.get(key).cloned().unwrap_or(Value::Null));
    }
    list.insert("plugins".to_owned(), Value::Array(vec![Value::Object(single)]));
    Ok(print(&list))
}

fn parse(text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text).context("it is not JSON")? {
        Value::Object(list) => Ok(list),
        _ => bail!("it is not a JSON object"),
    }
}

fn plugins(list: &mut Map<String, Value>) -> Result<&mut Vec<Value>> {
    let plugins = list.get_mut("plugins").and_then(Value::as_array_mut);
    let plugins = plugins.context("it has no list of `plugins`")?;
    if plugins.is_empty() {
        bail!("its list of `plugins` is empty");
    }
    if !plugins.iter().all(|plugin| plugin["type"].is_string()) {
        bail!("one of its `plugins` has no `type`");
    }
    Ok(plugins)
}

fn check_version(list: &Map<String, Value>) -> Result<()> {
    let version = list.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
    if !VERSIONS.contains(&version) {
        bail!("its cniVersion is {version:?}; netpol understands {}", VERSIONS.join(", "));
    }
    Ok(())
}

fn print(list: &Map<String, Value>) -> String {
    let text = serde_json::to_string_pretty(list);
    text.expect("invariant: what was read from JSON can be written as JSON") + "\n"
}

#[cfg(test)]
mod tests;
