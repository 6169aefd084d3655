//! The objects of one kind and namespace, by name. Most namespaces have few of a kind, and there are many
//! of both: a tree would keep the room of eleven for each few, and every name twice. Pure.

use std::ops::Index;

use super::{EndpointSlice, Pod, Policy, Service, Str};

/// What has a name in its namespace.
pub trait Named {
    /// It.
    fn name(&self) -> &Str;
}

macro_rules! named {
    ($($object:ty),*) => {
        $(impl Named for $object {
            fn name(&self) -> &Str {
                &self.id.name
            }
        })*
    };
}

named!(Pod, Policy, Service, EndpointSlice);

/// Objects sorted by name, each name once.
#[derive(Debug, Clone)]
pub struct ByName<T>(Vec<Box<T>>);

impl<T> Default for ByName<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Named> ByName<T> {
    fn position(&self, name: &str) -> Result<usize, usize> {
        // An API server lists them in this order.
        match self.0.last() {
            Some(last) if **last.name() < *name => Err(self.0.len()),
            _ => self.0.binary_search_by(|object| (**object.name()).cmp(name)),
        }
    }

    /// The object of that name.
    pub fn get(&self, name: &str) -> Option<&T> {
        self.position(name).ok().map(|index| &*self.0[index])
    }

    /// All objects by name.
    pub fn values(&self) -> std::slice::Iter<'_, Box<T>> {
        self.0.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Puts an object in, in the place of the one of its name. Returns whether they differ.
    pub fn put(&mut self, object: T) -> bool
    where
        T: PartialEq,
    {
        match self.position(object.name()) {
            Ok(index) if *self.0[index] == object => return false,
            Ok(index) => *self.0[index] = object,
            Err(index) => self.0.insert(index, Box::new(object)),
        }
        true
    }

    /// Takes an object out. Returns whether it was there.
    pub fn take(&mut self, name: &str) -> bool {
        let found = self.position(name).map(|index| self.0.remove(index));
        if self.0.capacity() > 2 * self.0.len() + 16 {
            self.0.shrink_to(self.0.len() + 8);
        }
        found.is_ok()
    }
}

impl<T: Named> Index<&str> for ByName<T> {
    type Output = T;

    fn index(&self, name: &str) -> &T {
        self.get(name).expect("an object of that name")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(PartialEq)]
    struct Thing(Str, u32);

    impl Named for Thing {
        fn name(&self) -> &Str {
            &self.0
        }
    }

    #[test]
    fn objects_are_found_replaced_and_taken_by_name() {
        let mut things = ByName::default();
        let mut expected = std::collections::BTreeMap::new();
        for number in 0..200_u32 {
            // In no order.
            let (name, is_put) = ((number * 37 % 41).to_string(), number % 3 != 0);
            let before = expected.get(&name).copied();
            if is_put {
                expected.insert(name.clone(), number);
                assert!(things.put(Thing(name.as_str().into(), number)));
                assert!(!things.put(Thing(name.as_str().into(), number)), "the same again");
            } else {
                expected.remove(&name);
                assert_eq!(things.take(&name), before.is_some());
            }
            let all = things.values().map(|thing| (thing.0.to_string(), thing.1));
            assert!(all.eq(expected.clone()), "{number}");
            assert_eq!(things.get(&name).map(|thing| thing.1), expected.get(&name).copied());
            assert_eq!((things.len(), things.is_empty()), (expected.len(), expected.is_empty()));
        }
    }
}
