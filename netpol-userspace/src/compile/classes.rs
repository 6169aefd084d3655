//! Classes: interned sets of atoms, counted by the addresses that have them. Must never renumber
//! a class while it is in use.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::atoms::{AtomId, Atoms};
use super::few::Few;
use super::ids::IdPool;
use super::{ClassId, SetId};

/// A class in use.
#[derive(Debug)]
pub(super) struct Class {
    /// Its atoms, sorted.
    pub atoms: Arc<[AtomId]>,
    /// Sets that have a row for it.
    pub sets: Few<SetId>,
    /// How many addresses and blocks have it.
    pub n_addresses: u32,
}

/// All classes in use.
#[derive(Debug)]
pub(super) struct Classes {
    by_id: FxHashMap<ClassId, Class>,
    /// By the hash of their content: to make room for more of them must not look at each.
    by_hash: FxHashMap<u64, Few<ClassId>>,
    hasher: RandomState,
    /// Free numbers.
    pub ids: IdPool,
    /// Numbers that a former run gave, by the text of their content.
    pub adopted: HashMap<String, u32>,
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

    /// The class with these sorted atoms, for one more address.
    pub fn acquire(&mut self, content: &[AtomId], atoms: &mut Atoms) -> ClassId {
        let hash = self.hasher.hash_one(content);
        let known = {
            let mut alike = self.by_hash.get(&hash).into_iter().flat_map(Few::iter);
            alike.find(|id| *self.by_id[id].atoms == *content)
        };
        if let Some(id) = known {
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
        let content: Arc<[AtomId]> = content.into();
        for &atom in &*content {
            atoms.get_mut(atom).classes.insert(id);
        }
        self.by_hash.entry(hash).or_default().insert(id);
        self.by_id.insert(id, Class { atoms: content, sets: Few::None, n_addresses: 1 });
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
    pub fn n_maybe_dead(&self) -> usize {
        self.maybe_dead.len()
    }

    /// Forgets classes that no address has any more, of so many, and returns them with the sets that
    /// had rows for them.
    pub fn take_dead(&mut self, n_most: usize, atoms: &mut Atoms) -> Vec<(ClassId, Few<SetId>)> {
        let mut dead = Vec::new();
        for id in self.maybe_dead.split_off(self.maybe_dead.len().saturating_sub(n_most)) {
            if self.by_id.get(&id).is_none_or(|class| class.n_addresses > 0) {
                continue;
            }
            let class = self.by_id.remove(&id).expect("invariant: just looked up");
            for &atom in &*class.atoms {
                atoms.leave(atom, id);
            }
            let hash = self.hasher.hash_one(&*class.atoms);
            if let Entry::Occupied(mut alike) = self.by_hash.entry(hash) {
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
