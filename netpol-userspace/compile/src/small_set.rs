//! A set that has one element mostly: then it takes no memory of its own. Pure.

use std::hash::Hash;

use rustc_hash::FxHashSet;

/// Distinct numbers.
#[derive(Debug, Default)]
pub(super) enum SmallSet<T> {
    /// No element.
    #[default]
    None,
    /// One.
    One(T),
    /// Two or more.
    Many(Box<FxHashSet<T>>),
}

impl<T: Copy + Eq + Hash> SmallSet<T> {
    /// Puts one in. Returns whether it was not there.
    pub fn insert(&mut self, item: T) -> bool {
        match self {
            Self::None => *self = Self::One(item),
            Self::One(other) if *other == item => return false,
            Self::One(other) => *self = Self::Many(Box::new([*other, item].into_iter().collect())),
            Self::Many(items) => return items.insert(item),
        }
        true
    }

    /// Takes one out. Returns whether it was there.
    pub fn remove(&mut self, item: T) -> bool {
        match self {
            Self::One(other) if *other == item => {
                *self = Self::None;
                true
            }
            Self::None | Self::One(_) => false,
            Self::Many(items) => {
                let was_there = items.remove(&item);
                if let (1, Some(&last)) = (items.len(), items.iter().next()) {
                    *self = Self::One(last);
                }
                was_there
            }
        }
    }

    /// Whether it is there.
    pub fn contains(&self, item: T) -> bool {
        match self {
            Self::None => false,
            Self::One(other) => *other == item,
            Self::Many(items) => items.contains(&item),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(_) => 1,
            Self::Many(items) => items.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = T> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(item) => (Some(*item), None),
            Self::Many(items) => (None, Some(items.iter().copied())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_come_and_go() {
        let mut few = SmallSet::default();
        assert!(few.is_empty() && !few.remove(1));
        assert!(few.insert(1) && !few.insert(1) && few.insert(2) && few.insert(3));
        assert_eq!(few.len(), 3);
        assert!(few.remove(1) && !few.remove(1) && few.remove(3));
        assert!(matches!(few, SmallSet::One(2)));
        assert_eq!(few.iter().collect::<Vec<_>>(), [2]);
        assert!(!few.remove(3) && few.remove(2) && few.is_empty());
    }
}
