//! Verdict rows: what a set allows to a class. Computes only pairs that have an atom in common,
//! since for all others the set's row for everybody decides.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::atoms::{Atom, AtomId, Atoms};
use super::classes::Classes;
use super::plan::{Row, Step};
use super::ports::Allowed;
use super::sets::{Set, Sets};
use super::space::Space;
use super::{ClassId, PortSet, SetId, tiers};
use netpol_model::NamedPort;

/// Port sets of all rows, each once.
#[derive(Debug, Default)]
pub(super) struct SharedPorts {
    known: FxHashSet<Arc<PortSet>>,
    /// How many there were after the last clean-up.
    n_kept: usize,
}

impl SharedPorts {
    fn share(&mut self, ports: PortSet) -> Arc<PortSet> {
        if let Some(known) = self.known.get(&ports) {
            return known.clone();
        }
        if self.known.len() > 2 * self.n_kept + 64 {
            self.known.retain(|ports| Arc::strong_count(ports) > 1);
            self.n_kept = self.known.len();
        }
        let ports = Arc::new(ports);
        self.known.insert(ports.clone());
        ports
    }
}

/// Computes the rows of new classes for all sets, and returns the steps that add them.
pub(super) fn add_fresh(
    sets: &mut Sets,
    classes: &mut Classes,
    atoms: &Atoms,
    shared: &mut SharedPorts,
) -> Vec<Step> {
    let mut steps = Vec::new();
    for id in std::mem::take(&mut classes.fresh) {
        for set in sets_of(id, classes, atoms) {
            steps.extend(add_row(set, id, sets, classes, atoms, shared));
        }
    }
    steps
}

/// What a new set allows to everybody: before any other of its rows, of which those that are equal are left out.
pub(super) fn add_first(
    id: SetId,
    sets: &mut Sets,
    classes: &mut Classes,
    atoms: &Atoms,
    shared: &mut SharedPorts,
) -> Vec<Step> {
    let mut steps: Vec<Step> =
        add_row(id, ClassId::NONE, sets, classes, atoms, shared).into_iter().collect();
    // Whom it cannot be told about it may deny what everybody is allowed.
    if let Some(set) = sets.get_mut(id)
        && set.is_ranked()
        && set.rows.contains_key(&ClassId::NONE)
        && !set.rows.contains_key(&ClassId::CLOSED)
    {
        let closed = Row::Ports(shared.share(PortSet::default()));
        set.rows.insert(ClassId::CLOSED, closed.clone());
        steps.push(Step::AddRow(id, ClassId::CLOSED, closed));
    }
    steps
}

/// The atoms of which some class may have one for which a set's row may differ from its row for
/// everybody.
pub(super) fn atoms_of(id: SetId, sets: &Sets, atoms: &Atoms) -> Vec<AtomId> {
    let Some(set) = sets.get(id) else { return Vec::new() };
    let mut found: Vec<AtomId> = set.marks().collect();
    for (protocol, name) in set.to_any().into_iter().flat_map(Allowed::all_names) {
        let numbers =
            atoms.name(*protocol, name).into_iter().flat_map(|name| name.numbers.values());
        found.extend(numbers);
    }
    found
}

/// Sets whose row for the class may differ from their row for everybody.
fn sets_of(id: ClassId, classes: &Classes, atoms: &Atoms) -> BTreeSet<SetId> {
    let content = classes.get(id).map(|class| &*class.atoms).unwrap_or_default();
    content.iter().flat_map(|&atom| atoms.interested_sets(atom)).collect()
}

/// The row of a set for a class, if it has none yet and needs one.
pub(super) fn add_row(
    set_id: SetId,
    class_id: ClassId,
    sets: &mut Sets,
    classes: &mut Classes,
    atoms: &Atoms,
    shared: &mut SharedPorts,
) -> Option<Step> {
    let set = sets.get_mut(set_id)?;
    if set.rows.contains_key(&class_id) {
        return None;
    }
    let content = classes.get(class_id).map(|class| &*class.atoms).unwrap_or_default();
    let row = compute(set, content, atoms, shared);
    let to_everybody = set.rows.get(&ClassId::NONE);
    if to_everybody == row.as_ref() {
        return None;
    }
    let row = row.unwrap_or_else(|| Row::Ports(shared.share(PortSet::default())));
    set.rows.insert(class_id, row.clone());
    if let Some(class) = classes.get_mut(class_id) {
        class.sets.insert(set_id);
    }
    Some(Step::AddRow(set_id, class_id, row))
}

/// What a set allows to addresses with these atoms; `None` if nothing.
fn compute(set: &Set, content: &[AtomId], atoms: &Atoms, shared: &mut SharedPorts) -> Option<Row> {
    let declared: Vec<&NamedPort> = content
        .iter()
        .filter_map(|&id| match &*atoms.get(id).atom {
            Atom::Port(port) => Some(port),
            Atom::Pods { .. } | Atom::Cidr(_) => None,
        })
        .collect();
    let matching = content
        .iter()
        .flat_map(|&atom| set.positions(atom, atoms))
        .filter_map(|position| set.allowed_at(position, content));
    let entries = set.to_any().into_iter().chain(matching);
    if set.is_ranked() {
        return row_of(tiers::judge(entries, &declared), shared);
    }
    let mut sum = Allowed::default();
    for allowed in entries {
        sum.add_resolved(allowed, &declared);
        if sum.everything {
            return Some(Row::All);
        }
    }
    sum.normalise();
    (!sum.numbers.is_empty()).then(|| Row::Ports(shared.share(sum.numbers)))
}

fn row_of(space: Space, shared: &mut SharedPorts) -> Option<Row> {
    if space.is_all() {
        return Some(Row::All);
    }
    if space.is_none() {
        return None;
    }
    let ports = shared.share(space.ports);
    Some(if space.others { Row::PortsAndOthers(ports) } else { Row::Ports(ports) })
}
