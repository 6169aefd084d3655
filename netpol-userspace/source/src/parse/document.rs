//! One document -> its fields, with the elements of a list handed over one by one: a file may list
//! every object of a cluster, and as one tree they take many times the room of their text. Must
//! never hand over an element as another than it would be in a tree.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The field that lists elements.
pub(super) const ITEMS: &str = "items";

/// What becomes of a key that stands twice in a map. (In YAML it is always refused.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Twice {
    /// The last value counts.
    Allowed,
    /// The document cannot be read.
    Refused,
}

/// What is made of the elements of a document that lists any, with `make`.
#[derive(Debug)]
pub(super) struct Elements<T, F> {
    pub(super) make: F,
    pub(super) made: Option<Vec<T>>,
}

impl<T, F: FnMut(Value) -> T> Elements<T, F> {
    /// None so far.
    pub fn new(make: F) -> Self {
        Self { make, made: None }
    }

    /// What was made of them; `None`: the document has no list of elements.
    pub fn made(self) -> Option<Vec<T>> {
        self.made
    }

    /// Reads a document. In what is returned the list of elements is empty.
    pub fn read<'de, D: Deserializer<'de>>(
        &mut self,
        twice: Twice,
        document: D,
    ) -> Result<Value, D::Error> {
        Tree { elements: self, twice, place: Place::Document }.deserialize(document)
    }
}

/// Where in a document a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It is all of it.
    Document,
    /// It is what the document's field of that name says.
    Items,
    /// Elsewhere.
    Inside,
}

/// A value that is about to be read.
struct Tree<'a, T, F> {
    elements: &'a mut Elements<T, F>,
    twice: Twice,
    place: Place,
}

impl<T, F: FnMut(Value) -> T> Tree<'_, T, F> {
    fn at(&mut self, place: Place) -> Tree<'_, T, F> {
        Tree { elements: self.elements, twice: self.twice, place }
    }
}

impl<'de, T, F: FnMut(Value) -> T> DeserializeSeed<'de> for Tree<'_, T, F> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T, F: FnMut(Value) -> T> Visitor<'de> for Tree<'_, T, F> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let is_items = self.place == Place::Document && key == ITEMS;
            if is_items {
                self.elements.made = None;
            }
            let place = if is_items { Place::Items } else { Place::Inside };
            let value = access.next_value_seed(self.at(place))?;
            if self.twice == Twice::Refused && fields.contains_key(&key) {
                return Err(A::Error::custom(format_args!("duplicate key {key:?}")));
            }
            fields.insert(key, value);
        }
        Ok(Value::Object(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        let mut made = Vec::new();
        while let Some(element) = access.next_element_seed(self.at(Place::Inside))? {
            match self.place {
                Place::Items => made.push((self.elements.make)(element)),
                Place::Document | Place::Inside => list.push(element),
            }
        }
        if self.place == Place::Items {
            self.elements.made = Some(made);
        }
        Ok(Value::Array(list))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}
