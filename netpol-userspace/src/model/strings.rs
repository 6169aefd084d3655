//! Makes objects share their strings: a cluster has a hundred thousand pods and a few hundred label
//! keys, values, namespaces and nodes. Must never change what an object says.

use rustc_hash::FxHashSet;

use super::{Labels, Pod, Str};

/// The strings that objects share.
#[derive(Debug, Default)]
pub struct Strings {
    known: FxHashSet<Str>,
    /// How many there were after the last clean-up.
    n_kept: usize,
    /// Whole label sets.
    labels: FxHashSet<Labels>,
    n_kept_labels: usize,
}

impl Strings {
    /// Replaces the strings of a pod that others are likely to have too.
    pub fn share_pod(&mut self, pod: &mut Pod) {
        self.share(&mut pod.id.namespace);
        if let Some(node) = &mut pod.node {
            self.share(node);
        }
        for port in &mut pod.ports {
            self.share(&mut port.name);
        }
        self.share_labels(&mut pod.labels);
    }

    fn share_labels(&mut self, labels: &mut Labels) {
        if let Some(known) = self.labels.get(labels) {
            *labels = known.clone();
            return;
        }
        let share = |(key, value): (&Str, &Str)| {
            let (mut key, mut value) = (key.clone(), value.clone());
            self.share(&mut key);
            self.share(&mut value);
            (key, value)
        };
        *labels = labels.iter().map(share).collect();
        if self.labels.len() > 2 * self.n_kept_labels + 1024 {
            self.labels.retain(|labels| labels.n_sharers() > 1);
            self.n_kept_labels = self.labels.len();
        }
        self.labels.insert(labels.clone());
    }

    /// Makes it the one that is equal to it, if there is one.
    pub fn share(&mut self, string: &mut Str) {
        if let Some(known) = self.known.get(string) {
            *string = known.clone();
            return;
        }
        // Strings that nobody uses any more go when there may be as many of them as of others.
        if self.known.len() > 2 * self.n_kept + 1024 {
            self.known.retain(|string| Str::strong_count(string) > 1);
            self.n_kept = self.known.len();
        }
        self.known.insert(string.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_become_one_and_unused_ones_go() {
        let mut strings = Strings::default();
        let (mut first, mut second): (Str, Str) = ("web".into(), "web".into());
        strings.share(&mut first);
        strings.share(&mut second);
        assert!(Str::ptr_eq(&first, &second));
        for number in 0..5000 {
            strings.share(&mut number.to_string().into());
        }
        assert!(strings.known.len() < 2000, "{}", strings.known.len());
        assert!(strings.known.contains("web"));
    }
}
