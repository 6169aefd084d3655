//! Carries out a plan on tables in memory, as the datapath does in the maps, and checks that each step
//! keeps the rules that make every state between old or new. Must never put a step right.

use netpol_compile::{Backend, ClassId, Step, Tables};

/// What a plan is tried on.
pub trait TakeStep {
    /// Carries out one step. Refuses one that breaks the rules of [`Step`], and says why.
    fn take_step(&mut self, step: &Step) -> Result<(), String>;
}

impl TakeStep for Tables {
    fn take_step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::AddRow(set, class, row) => {
                if self.rows.insert((*set, *class), row.clone()).is_some() {
                    return Err(format!("row ({set:?}, {class:?}) is added twice"));
                }
            }
            Step::SetClass(_, ClassId::NONE) => return Err("class 0 is stored".into()),
            Step::SetClass(block, class) => {
                if self.classes.insert(*block, *class) == Some(*class) {
                    return Err(format!("{block} has {class:?} already"));
                }
            }
            Step::ClearClass(block) => {
                if self.classes.remove(block).is_none() {
                    return Err(format!("{block} has no class to clear"));
                }
            }
            Step::SetEndpoint(endpoint, sets) => {
                if self.endpoints.insert(*endpoint, *sets) == Some(*sets) {
                    return Err(format!("{endpoint:?} has {sets:?} already"));
                }
            }
            Step::SetService(key, backends) => {
                if !backends.is_sorted_by(|a, b| a < b) {
                    return Err(format!("the backends of {key:?} are not sorted and distinct"));
                }
                if self.services.insert(*key, backends.clone()).as_ref() == Some(backends) {
                    return Err(format!("{key:?} has {backends:?} already"));
                }
            }
            Step::ClearService(key) => {
                if self.services.remove(key).is_none() {
                    return Err(format!("{key:?} has no backends to clear"));
                }
            }
            Step::Rejudge(endpoints) => {
                if endpoints.is_empty() {
                    return Err("nobody is judged again".into());
                }
            }
            Step::RemoveRow(set, class) => {
                if self.rows.remove(&(*set, *class)).is_none() {
                    return Err(format!("no row ({set:?}, {class:?}) to remove"));
                }
                let class_used =
                    *class == ClassId::NONE
                        || self.classes.values().any(|used| used == class)
                        || self.services.values().flat_map(|list| &**list).any(
                            |b| matches!(b, Backend::Kind { class: used, .. } if used == class),
                        );
                let set_used =
                    self.endpoints.values().any(|used| used.ingress == *set || used.egress == *set);
                if class_used && set_used {
                    return Err(format!("row ({set:?}, {class:?}) is still in use"));
                }
            }
        }
        Ok(())
    }
}
