//! One lab for all tests of a topology that run at about the same time: setting it up costs more
//! than most rows. Must never outlive the tests, whose agents would stay: the last one to hold it
//! takes it down, and if more follow, they set up another.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{Families, Lab, Topology};

/// A place for a lab, in a static.
pub struct Shared {
    topology: Topology,
    families: Families,
    lab: Mutex<Weak<Lab>>,
}

impl Shared {
    pub const fn new(topology: Topology, families: Families) -> Self {
        Self { topology, families, lab: Mutex::new(Weak::new()) }
    }

    /// The lab, which exists at least as long as what this returns.
    pub fn get(&self) -> Arc<Lab> {
        let mut place = self.lab.lock().unwrap_or_else(PoisonError::into_inner);
        place.upgrade().unwrap_or_else(|| {
            let lab = Arc::new(Lab::new(self.topology, self.families));
            *place = Arc::downgrade(&lab);
            lab
        })
    }
}
