//! The text of one YAML document -> its fields, as kubectl reads them. Must never take room or time
//! out of proportion to the text, whatever its aliases stand for.

use std::collections::{BTreeMap, BTreeSet};

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use serde_json::{Map, Value};

use super::document::{Elements, Place};
use super::scalar;

/// How deep values may be within each other.
const DEEPEST: usize = 256;
/// How many values, and bytes of their text, aliases may stand for in one document.
const MOST_OF_ALIASES: usize = 16 << 20;

/// Why a document cannot be read.
#[derive(Debug)]
pub(super) struct Malformed {
    /// The line, from 1, of the document.
    pub line: usize,
    /// What is wrong there.
    pub message: String,
}

impl Malformed {
    fn at(span: Span, message: impl Into<String>) -> Self {
        Self { line: span.start.line(), message: message.into() }
    }
}

impl From<ScanError> for Malformed {
    fn from(error: ScanError) -> Self {
        Self { line: error.marker().line(), message: error.info() }
    }
}

/// Reads a document. In what is returned the list of elements is empty.
pub(super) fn read<T, F: FnMut(Value) -> T>(
    text: &str,
    elements: &mut Elements<T, F>,
) -> Result<Value, Malformed> {
    let options = granit_parser::options! { emit_comments: false };
    let events = Parser::new_from_str_with_options(text, options);
    let mut reader = Reader { events, elements, anchors: BTreeMap::new(), of_aliases: 0 };
    let mut document = Value::Null;
    let mut is_read = false;
    loop {
        let (event, span) = reader.next()?;
        match event {
            Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
            Event::StreamEnd => return Ok(document),
            _ if is_read => {
                let message = "another document begins here, without a line --- before it";
                return Err(Malformed::at(span, message));
            }
            event => {
                document = reader.value(event, span, Place::Document, 0)?;
                is_read = true;
            }
        }
    }
}

/// What an anchor is on.
struct Anchored {
    value: Value,
    /// How many values and bytes of text it is.
    size: usize,
    /// How deep values are within it.
    height: usize,
}

struct Reader<'text, 'a, T, F> {
    events: Parser<'text, StrInput<'text>>,
    elements: &'a mut Elements<T, F>,
    anchors: BTreeMap<usize, Anchored>,
    of_aliases: usize,
}

impl<'text, T, F: FnMut(Value) -> T> Reader<'text, '_, T, F> {
    fn next(&mut self) -> Result<(Event<'text>, Span), Malformed> {
        match self.events.next() {
            Some(event) => Ok(event?),
            None => Err(Malformed { line: 1, message: "the document has no end".into() }),
        }
    }

    /// The value that begins with `event`, below `depth` others.
    fn value(
        &mut self,
        event: Event<'text>,
        span: Span,
        place: Place,
        depth: usize,
    ) -> Result<Value, Malformed> {
        let too_deep = || Malformed::at(span, format!("more than {DEEPEST} levels of values"));
        if depth > DEEPEST {
            return Err(too_deep());
        }
        let (anchor, value) = match event {
            Event::Alias(anchor) => {
                let Some(anchored) = self.anchors.get(&anchor) else {
                    return Err(Malformed::at(span, "an alias inside what it stands for"));
                };
                if depth + anchored.height > DEEPEST {
                    return Err(too_deep());
                }
                self.of_aliases += anchored.size;
                if self.of_aliases > MOST_OF_ALIASES {
                    return Err(Malformed::at(span, "aliases make too much of this document"));
                }
                return Ok(anchored.value.clone());
            }
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.as_deref().map(full_tag);
                let value = scalar::value(&text, style == ScalarStyle::Plain, tag.as_deref());
                (anchor, value.map_err(|message| Malformed::at(span, message))?)
            }
            Event::SequenceStart(_, anchor, _) => (anchor, self.sequence(place, anchor, depth)?),
            Event::MappingStart(_, anchor, _) => (anchor, self.mapping(place, depth)?),
            other => return Err(Malformed::at(span, format!("unexpected {other:?}"))),
        };
        if anchor != 0 {
            let (size, height) = measure(&value);
            self.anchors.insert(anchor, Anchored { value: value.clone(), size, height });
        }
        Ok(value)
    }

    fn sequence(&mut self, place: Place, anchor: usize, depth: usize) -> Result<Value, Malformed> {
        let (mut list, mut made) = (Vec::new(), Vec::new());
        // What an alias stands for must stay whole.
        let is_items = place == Place::Items && anchor == 0;
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                break;
            }
            let element = self.value(event, span, Place::Inside, depth + 1)?;
            match is_items {
                true => made.push((self.elements.make)(element)),
                false => list.push(element),
            }
        }
        if is_items {
            self.elements.made = Some(made);
        }
        Ok(Value::Array(list))
    }

    fn mapping(&mut self, place: Place, depth: usize) -> Result<Value, Malformed> {
        let mut fields = Map::new();
        let mut merged = BTreeSet::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(Value::Object(fields));
            }
            let Some(key) = self.key(event, span, depth)? else {
                let (event, span) = self.next()?;
                let value = self.value(event, span, Place::Inside, depth + 1)?;
                merge(value, &mut fields, &mut merged)
                    .map_err(|message| Malformed::at(span, message))?;
                continue;
            };
            if fields.contains_key(&key) && !merged.remove(&key) {
                return Err(Malformed::at(span, twice(&key, place)));
            }
            let is_items = place == Place::Document && key == super::document::ITEMS;
            let place = if is_items { Place::Items } else { Place::Inside };
            let (event, span) = self.next()?;
            let value = self.value(event, span, place, depth + 1)?;
            fields.insert(key, value);
        }
    }

    /// A key; `None` for the one whose value is merged in.
    fn key(
        &mut self,
        event: Event<'text>,
        span: Span,
        depth: usize,
    ) -> Result<Option<String>, Malformed> {
        let Event::Scalar(text, style, anchor, tag) = event else {
            let Event::Alias(_) = event else {
                return Err(Malformed::at(span, "a key that is no word (is {{ }} left over?)"));
            };
            return match self.value(event, span, Place::Inside, depth)? {
                Value::String(key) => Ok(Some(key)),
                other => Err(Malformed::at(span, format!("{other} cannot be a key"))),
            };
        };
        let is_plain = style == ScalarStyle::Plain;
        let tag = tag.as_deref().map(full_tag);
        let tag = tag.as_deref();
        if text == "<<" && ((is_plain && tag.is_none()) || tag == Some("tag:yaml.org,2002:merge")) {
            return Ok(None);
        }
        let key = scalar::key(&text, is_plain, tag).map_err(|m| Malformed::at(span, m))?;
        if anchor != 0 {
            let (size, value) = (1 + key.len(), Value::String(key.clone()));
            self.anchors.insert(anchor, Anchored { value, size, height: 0 });
        }
        Ok(Some(key))
    }
}

fn full_tag(tag: &Tag) -> String {
    format!("{}{}", tag.handle(), tag.suffix())
}

fn twice(key: &str, place: Place) -> String {
    let hint = match (place, key) {
        (Place::Document, "apiVersion" | "kind" | "metadata" | "spec") => {
            " (two documents without a line --- between them?)"
        }
        _ => "",
    };
    format!("{key:?} stands twice in one map{hint}")
}

/// Takes the fields of `value`, a map or a list of maps of which the first counts most.
fn merge(
    value: Value,
    fields: &mut Map<String, Value>,
    merged: &mut BTreeSet<String>,
) -> Result<(), &'static str> {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                merged.insert(key.clone());
                fields.insert(key, value);
            }
            Ok(())
        }
        Value::Array(list) if list.iter().all(Value::is_object) => {
            list.into_iter().rev().try_for_each(|map| merge(map, fields, merged))
        }
        _ => Err("what is merged with << is neither a map nor a list of maps"),
    }
}

/// How many values and bytes of text a value is, and how deep values are within it.
fn measure(value: &Value) -> (usize, usize) {
    let of_all = |all: &mut dyn Iterator<Item = (usize, &Value)>| {
        all.fold((1, 0), |(size, height), (key, value)| {
            let (inner, below) = measure(value);
            (size + key + inner, height.max(below + 1))
        })
    };
    match value {
        Value::Object(map) => of_all(&mut map.iter().map(|(key, value)| (key.len(), value))),
        Value::Array(list) => of_all(&mut list.iter().map(|value| (0, value))),
        Value::String(text) => (1 + text.len(), 0),
        Value::Null | Value::Bool(_) | Value::Number(_) => (1, 0),
    }
}
