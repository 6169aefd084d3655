//! Classes: interned sets of atoms, counted by the addresses that have them. Must never renumber
//! a class while it is in use.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Deref;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::atoms::{AtomId, Atoms};
use super::ids::{ClassKey, IdPool};
use super::small_set::SmallSet;
use super::{ClassId, SetId};

/// Atoms, sorted: mostly one, which takes no memory of its own.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// This one.
    One(AtomId),
    /// None or several.
    Others(Arc<[AtomId]>),
}

impl Deref for Content {
    type Target = [AtomId];

    fn deref(&self) -> &[AtomId] {
        match self {
            Self::One(atom) => std::slice::from_ref(atom),
            Self::Others(atoms) => atoms,
        }
    }
}

/// A class in use.
#[derive(Debug)]
pub(super) struct Class {
    /// Its atoms.
    pub atoms: Content,
    /// Sets that have a row for it.
    pub sets: SmallSet<SetId>,
    /// How many addresses and blocks have it.
    pub n_addresses: u32,
}

/// All classes in use.
#[derive(Debug)]
pub(super) struct Classes {
    by_id: FxHashMap<ClassId, Class>,
    /// Those that have one atom.
    by_atom: FxHashMap<AtomId, ClassId>,
    /// The others, by the hash of their content: to make room for more of them must not look at
    /// each.
    by_hash: FxHashMap<u64, SmallSet<ClassId>>,
    hasher: RandomState,
    /// Free numbers.
    pub ids: IdPool,
    /// Numbers that a former run gave, by their content.
    pub adopted: HashMap<ClassKey, u32>,
    /// Classes whose rows are still to be computed.
    pub fresh: Vec<ClassId>,
    /// Classes whose numbers have not been asked for yet.
    pub unnoted: Vec<ClassId>,
    maybe_dead: Vec<ClassId>,
    /// Whether a class could not be numbered since this was last cleared.
    pub exhausted: bool,
}

impl Classes {
    /// No class; numbers up to and including `last`.
    pub fn new(last: u32) -> Self {
        Self {
            by_id: FxHashMap::default(),
            by_atom: FxHashMap::default(),
            by_hash: FxHashMap::default(),
            hasher: RandomState::new(),
            ids: IdPool::new(ClassId::CLOSED.0 + 1, last),
            adopted: HashMap::new(),
            fresh: Vec::new(),
            unnoted: Vec::new(),
            maybe_dead: Vec::new(),
            exhausted: false,
        }
    }

    /// The class of that number; `None` for [`ClassId::NONE`] and [`ClassId::CLOSED`].
    pub fn get(&self, id: ClassId) -> Option<&Class> {
        self.by_id.get(&id)
    }

    /// Likewise, to note its rows.
    pub fn get_mut(&mut self, id: ClassId) -> Option<&mut Class> {
        self.by_id.get_mut(&id)
    }

    /// The class that has these sorted atoms.
    fn known(&self, content: &[AtomId]) -> Option<ClassId> {
        if let [atom] = content {
            return self.by_atom.get(atom).copied();
        }
        let mut alike =
            self.by_hash.get(&self.hasher.hash_one(content)).into_iter().flat_map(SmallSet::iter);
        alike.find(|id| *self.by_id[id].atoms == *content)
    }

    /// The class with these sorted atoms, for one more address.
    pub fn acquire(&mut self, content: &[AtomId], atoms: &mut Atoms) -> ClassId {
        if let Some(id) = self.known(content) {
            self.retain(id);
            return id;
        }
        let known = match self.adopted.is_empty() {
            true => None,
            false => self.adopted.remove(&super::ids::class_key(content, atoms)),
        };
        let Some(id) = known.or_else(|| self.ids.allocate()).map(ClassId) else {
            self.exhausted = true;
            return ClassId::CLOSED;
        };
        for &atom in content {
            atoms.get_mut(atom).classes.insert(id);
        }
        let content = match content {
            [atom] => {
                self.by_atom.insert(*atom, id);
                Content::One(*atom)
            }
            _ => {
                let hash = self.hasher.hash_one(content);
                self.by_hash.entry(hash).or_default().insert(id);
                Content::Others(content.into())
            }
        };
        self.by_id.insert(id, Class { atoms: content, sets: SmallSet::None, n_addresses: 1 });
        self.fresh.push(id);
        self.unnoted.push(id);
        id
    }

    fn retain(&mut self, id: ClassId) {
        let class = self.by_id.get_mut(&id).expect("invariant: interned classes exist");
        class.n_addresses += 1;
    }

    /// One address fewer has the class.
    pub fn release(&mut self, id: ClassId) {
        if let Some(class) = self.by_id.get_mut(&id) {
            class.n_addresses -= 1;
            if class.n_addresses == 0 {
                self.maybe_dead.push(id);
            }
        }
    }

    /// Whether there may be classes that no address has.
    pub fn has_garbage(&self) -> bool {
        !self.maybe_dead.is_empty()
    }

    /// How many may be of no use.
    pub(crate) fn n_maybe_dead(&self) -> usize {
        self.maybe_dead.len()
    }

    /// Forgets classes that no address has any more, of so many, and returns them with the sets that
    /// had rows for them.
    pub(crate) fn take_dead(
        &mut self,
        n_most: usize,
        atoms: &mut Atoms,
    ) -> Vec<(ClassId, SmallSet<SetId>)> {
        let mut dead = Vec::new();
        for id in self.maybe_dead.split_off(self.maybe_dead.len().saturating_sub(n_most)) {
            if self.by_id.get(&id).is_none_or(|class| class.n_addresses > 0) {
                continue;
            }
            let class = self.by_id.remove(&id).expect("invariant: just looked up");
            for &atom in &*class.atoms {
                atoms.leave(atom, id);
            }
            if let Content::One(atom) = &class.atoms {
                self.by_atom.remove(atom);
            } else if let Entry::Occupied(mut alike) =
                self.by_hash.entry(self.hasher.hash_one(&*class.atoms))
            {
                alike.get_mut().remove(id);
                if alike.get().is_empty() {
                    alike.remove();
                }
            }
            self.ids.release(id.0);
            dead.push((id, class.sets));
        }
        dead
    }

    /// All classes in use.
    pub fn iter(&self) -> impl Iterator<Item = (ClassId, &Class)> {
        self.by_id.iter().map(|(&id, class)| (id, class))
    }
}
