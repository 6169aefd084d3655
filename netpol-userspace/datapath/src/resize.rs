//! Flow tables of another size take the place of those that are pinned, with their flows. The old
//! tables are set aside until all programs use the new ones; an agent that ends before that leaves
//! the rest to the next.

use std::fs;
use std::path::PathBuf;

use netpol_common::layout::names;

use super::error::{DatapathError, io_error};
use super::flow_tables::{FlowTables, OldTables};
use super::load::LoadOptions;
use super::observe::clock;
use super::pinned::{check_pinned, mapped_at, pinned_buckets};
use super::pins::Pins;

/// The maps that change with the size: accounts are of one pair of tables.
const TABLES: [&str; 3] = [names::FLOWS4, names::FLOWS6, names::FLOW_USE];

/// Flow tables that were in force.
pub(crate) struct SetAside {
    pins: Pins,
    tables: OldTables,
}

impl SetAside {
    /// Sets the pinned flow tables aside if others are wanted, or if an agent had begun to.
    pub(crate) fn prepare(
        pins: &Pins,
        options: &LoadOptions,
    ) -> Result<Option<Self>, DatapathError> {
        check_pinned(pins)?;
        let has_begun = TABLES.iter().any(|name| aside(pins, name).exists());
        if !has_begun && !is_other_size(pins, options)? {
            return Ok(None);
        }
        for name in TABLES {
            let (from, to) = (pins.map(name), aside(pins, name));
            if !to.exists() {
                fs::rename(&from, &to)
                    .map_err(io_error(format!("set map {} aside", from.display())))?;
            }
        }
        let open = |name| mapped_at(&aside(pins, name), name, true);
        let tables = OldTables {
            flows4: open(names::FLOWS4)?,
            flows6: open(names::FLOWS6)?,
            accounts: open(names::FLOW_USE)?,
        };
        Ok(Some(Self { pins: pins.clone(), tables }))
    }

    /// Fills the new tables, before any program uses them.
    pub(crate) fn copy(&self, into: &FlowTables) {
        self.tables.move_accounts(into);
        self.tables.copy_into(into, &clock());
    }

    /// Adds what came into the old tables meanwhile, once no program uses them any more, and
    /// removes them.
    pub(crate) fn finish(self, into: &FlowTables) -> Result<(), DatapathError> {
        super::grace::grace_period()?;
        self.tables.copy_into(into, &clock());
        // The first one last: what an interrupted removal leaves still says that it had begun.
        for name in TABLES.iter().rev() {
            let path = aside(&self.pins, name);
            fs::remove_file(&path).map_err(io_error(format!("remove map {}", path.display())))?;
        }
        let [flows4, flows6] = [into.table4(), into.table6()].map(|table| table.n_slots());
        tracing::info!(flows4, flows6, "the flow tables have another size");
        Ok(())
    }
}

/// Where a map is pinned while its flows move. (A bpffs allows no dots.)
fn aside(pins: &Pins, name: &str) -> PathBuf {
    pins.map(&format!("{name}_OLD"))
}

fn is_other_size(pins: &Pins, options: &LoadOptions) -> Result<bool, DatapathError> {
    let Some(wanted) = options.flow_buckets else { return Ok(false) };
    if !pins.exist() {
        return Ok(false);
    }
    for (name, buckets) in [names::FLOWS4, names::FLOWS6].into_iter().zip(wanted) {
        if let Some(is) = pinned_buckets(pins, name)?
            && is != buckets
        {
            return Ok(true);
        }
    }
    Ok(false)
}
