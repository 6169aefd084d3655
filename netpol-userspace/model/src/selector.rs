//! Labels and label selectors (apimachinery `labels.Selector` semantics). Pure matching; must
//! never parse or validate user input, that is `source::convert`'s.

use std::fmt;
use std::sync::Arc;

use super::Str;

/// A sorted label set. Cheap to clone: the replicas of a pod share theirs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Labels(Arc<[(Str, Str)]>);

impl Labels {
    /// The value of `key`, if the label is there.
    pub fn get(&self, key: &str) -> Option<&Str> {
        let index = self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        Some(&self.0[index].1)
    }

    /// All labels in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&Str, &Str)> {
        self.0.iter().map(|(k, v)| (k, v))
    }

    /// How many have this very memory.
    pub(super) fn n_sharers(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// Number of labels.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no label.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K: Into<Str>, V: Into<Str>> FromIterator<(K, V)> for Labels {
    /// The last value of a repeated key wins.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(iter: I) -> Self {
        let mut list: Vec<(Str, Str)> =
            iter.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        // Stable, so that equal keys stay in their order.
        list.sort_by(|(a, _), (b, _)| a.cmp(b));
        list.dedup_by(|(key, value), (kept_key, kept)| {
            let is_same = key == kept_key;
            if is_same {
                std::mem::swap(value, kept);
            }
            is_same
        });
        Self(list.into())
    }
}

/// The operator of a requirement, with its values sorted and distinct.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operator {
    /// The label exists and its value is one of these.
    In(Vec<Str>),
    /// The label is absent, or its value is none of these.
    NotIn(Vec<Str>),
    /// The label exists.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

/// One requirement of a selector.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label key.
    pub key: Str,
    /// What its value must satisfy.
    pub operator: Operator,
}

impl Requirement {
    /// Whether `labels` satisfy it.
    pub fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.contains(v)),
            Operator::NotIn(values) => !value.is_some_and(|v| values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// A label selector in canonical form: requirements sorted and distinct, so that equal selectors
/// compare equal however they were written. No requirement: selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(Box<[Requirement]>);

impl Selector {
    /// The selector with these requirements, all of which must hold. A matchLabels entry is
    /// `In` with one value.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Self {
        let mut list: Vec<Requirement> = requirements
            .into_iter()
            .map(|mut requirement| {
                if let Operator::In(values) | Operator::NotIn(values) = &mut requirement.operator {
                    values.sort();
                    values.dedup();
                }
                requirement
            })
            .collect();
        list.sort();
        list.dedup();
        Self(list.into())
    }

    /// The selector that selects everything (`{}`).
    pub fn everything() -> Self {
        Self::default()
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Its requirements in canonical order.
    pub fn requirements(&self) -> &[Requirement] {
        &self.0
    }

    /// The same, for strings to be shared: what they say must stay.
    pub(super) fn requirements_mut(&mut self) -> &mut [Requirement] {
        &mut self.0
    }

    /// Whether `labels` satisfy every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.matches(labels))
    }
}

/// As `kubectl -l` takes it: `app=web,tier in (a,b),!legacy`; nothing for "everything".
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Requirement { key, operator }) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match operator {
                Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Operator::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Operator::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Operator::Exists => write!(f, "{key}")?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}
