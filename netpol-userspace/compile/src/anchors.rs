//! Finds the selector atoms that a pod may satisfy without trying all of them: each atom is filed
//! under one thing it insists on. Must never miss an atom that matches; extra ones are harmless.

use rustc_hash::FxHashMap;

use super::atoms::AtomId;
use netpol_model::{Labels, NamespaceScope, Operator, Selector, Str};

type ByLabel = FxHashMap<Str, FxHashMap<Str, Vec<AtomId>>>;

/// Selector atoms of one namespace.
#[derive(Debug, Default)]
struct Here {
    by_pod_label: ByLabel,
    anywhere: Vec<AtomId>,
}

/// Selector atoms by anchor.
#[derive(Debug, Default)]
pub(super) struct Anchors {
    by_namespace: FxHashMap<Str, Here>,
    by_pod_label: ByLabel,
    by_namespace_label: ByLabel,
    anywhere: Vec<AtomId>,
}

impl Anchors {
    /// Files an atom.
    pub fn insert(&mut self, id: AtomId, namespaces: &NamespaceScope, pods: &Selector) {
        self.lists(namespaces, pods, |list| list.push(id));
    }

    /// Takes an atom out again.
    pub fn remove(&mut self, id: AtomId, namespaces: &NamespaceScope, pods: &Selector) {
        self.lists(namespaces, pods, |list| list.retain(|&other| other != id));
    }

    /// Calls `found` with every atom that may match, each once.
    pub fn candidates(
        &self,
        namespace: &str,
        namespace_labels: &Labels,
        labels: &Labels,
        mut found: impl FnMut(AtomId),
    ) {
        let here = self.by_namespace.get(namespace);
        here.into_iter().flat_map(|here| &here.anywhere).copied().for_each(&mut found);
        let here = here.map(|here| (&here.by_pod_label, labels));
        let wide = [(&self.by_pod_label, labels), (&self.by_namespace_label, namespace_labels)];
        for (index, labels) in wide.into_iter().chain(here) {
            if index.is_empty() {
                continue;
            }
            for (key, value) in labels.iter() {
                let list = index.get(key).and_then(|values| values.get(value));
                list.into_iter().flatten().copied().for_each(&mut found);
            }
        }
        self.anywhere.iter().copied().for_each(found);
    }

    /// Edits the lists an atom is filed in: several if its anchor admits several values, of which
    /// a pod can have only one.
    fn lists(
        &mut self,
        namespaces: &NamespaceScope,
        pods: &Selector,
        mut edit: impl FnMut(&mut Vec<AtomId>),
    ) {
        match (namespaces, anchor(pods)) {
            (NamespaceScope::Named(name), anchor) => {
                let here = self.by_namespace.entry(name.clone()).or_default();
                match anchor {
                    Some((key, values)) => edit_label(&mut here.by_pod_label, key, values, edit),
                    None => edit(&mut here.anywhere),
                }
                if here.by_pod_label.is_empty() && here.anywhere.is_empty() {
                    self.by_namespace.remove(name);
                }
            }
            (NamespaceScope::Matching(_), Some((key, values))) => {
                edit_label(&mut self.by_pod_label, key, values, edit);
            }
            (NamespaceScope::Matching(selector), None) => match anchor(selector) {
                Some((key, values)) => {
                    edit_label(&mut self.by_namespace_label, key, values, edit);
                }
                None => edit(&mut self.anywhere),
            },
        }
    }
}

fn edit_label(
    index: &mut ByLabel,
    key: &Str,
    values: &[Str],
    mut edit: impl FnMut(&mut Vec<AtomId>),
) {
    let by_value = index.entry(key.clone()).or_default();
    for value in values {
        edit_and_prune(by_value, value, &mut edit);
    }
    if by_value.is_empty() {
        index.remove(key);
    }
}

fn edit_and_prune(
    index: &mut FxHashMap<Str, Vec<AtomId>>,
    key: &Str,
    edit: impl FnOnce(&mut Vec<AtomId>),
) {
    let list = index.entry(key.clone()).or_default();
    edit(list);
    if list.is_empty() {
        index.remove(key);
    }
}

/// The `In` requirement with the fewest values.
fn anchor(selector: &Selector) -> Option<(&Str, &[Str])> {
    selector
        .requirements()
        .iter()
        .filter_map(|requirement| match &requirement.operator {
            Operator::In(values) => Some((&requirement.key, values.as_slice())),
            Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => None,
        })
        .min_by_key(|(_, values)| values.len())
}
