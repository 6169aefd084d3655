//! What is known and in force at one moment, taken together: whether that is everything, and what people
//! are told of it. Must never change anything.

use crate::capacity;
use crate::compilation::Compilation;
use crate::endpoints::Endpoints;
use crate::enforcement::{Enforcement, Names as _};
use crate::sandboxes::Sandboxes;
use crate::source_state::SourceState;
use crate::speakers::Speakers;
use crate::view;
use netpol_api::installation::Report;
use netpol_api::state::{DatapathStatus, EndpointView, ObjectError, Status};

/// The parts of the agent's state that say so.
#[derive(Clone, Copy)]
pub(crate) struct Overview<'a> {
    /// What was read.
    pub(crate) source: &'a SourceState,
    /// What of it is on its way.
    pub(crate) compilation: &'a Compilation,
    /// What is in force.
    pub(crate) enforcement: &'a Enforcement,
    /// For whom.
    pub(crate) endpoints: &'a Endpoints,
    /// What the container runtime says of them.
    pub(crate) sandboxes: &'a Sandboxes,
    /// Who of them may speak as whom.
    pub(crate) speakers: &'a Speakers,
}

/// What there is to say beside that.
#[derive(Debug, Default)]
pub(crate) struct Remarks {
    /// For as long as the agent runs.
    pub(crate) notes: Vec<String>,
    /// About the CNI plugin, until there is something else to say.
    pub(crate) installation: Report,
}

impl Overview<'_> {
    /// Whether everything is in force that is the agent's own to put in force, but for what takes its
    /// time: how much that is may be any tenant's doing.
    pub(crate) fn is_able_to_enforce(&self) -> bool {
        let tables = self.enforcement.datapath().tables();
        self.source.is_synced()
            && self.enforcement.is_without_failures()
            && capacity::is_enough(&tables, &self.compilation.compiler().size())
    }

    /// Whether nothing is missing of what was read, but for what is being put in force.
    pub(crate) fn is_whole(&self) -> bool {
        let compiler = self.compilation.compiler();
        self.is_able_to_enforce()
            && compiler.left_out().next().is_none()
            && self.enforcement.left_out_services(compiler).is_empty()
            && !self.source.has_unused()
            && !self.endpoints.has_lost(compiler)
    }

    /// The endpoints, with what policies say or without.
    pub(crate) fn endpoint_views(&self, has_rules: bool) -> Vec<EndpointView> {
        let compiler = self.compilation.compiler();
        view::endpoints(compiler, self.endpoints.numbered(), has_rules)
    }

    /// The status of this moment.
    pub(crate) fn status(&self, remarks: &Remarks) -> Status {
        let compiler = self.compilation.compiler();
        let datapath = self.enforcement.datapath();
        let tables = datapath.tables();
        let (mut errors, mut notes) = self.messages(remarks);
        let name = |id| self.endpoints.name(id);
        capacity::add_overflows(&tables, name, &mut errors, &mut notes);
        capacity::add_left_out(compiler.left_out(), &mut errors);
        let left_out_services = self.enforcement.left_out_services(compiler);
        capacity::add_left_out_services(&left_out_services, &mut errors);
        notes.extend(self.enforcement.evictions_note(self.endpoints.ids(), self.endpoints));
        Status {
            ready: self.is_whole() && !self.compilation.is_behind(),
            source: self.source.status(),
            datapath: DatapathStatus {
                endpoints: self.endpoints.list().len(),
                guarded: datapath.guarded(),
                applied_revision: self.source.applied_revision(),
                attach: datapath.attach_mode().to_owned(),
                errors,
                left_out_rules: capacity::left_out_rules(compiler.left_out()),
                tables: capacity::views(&tables, &datapath.flow_tables(), &compiler.size()),
                notes,
                compiling: self.compilation.views(),
            },
        }
    }

    /// What is wrong, and what is merely so, but for the tables.
    fn messages(&self, remarks: &Remarks) -> (Vec<ObjectError>, Vec<String>) {
        let Remarks { notes, installation } = remarks;
        let compiler = self.compilation.compiler();
        let datapath = self.enforcement.datapath();
        let mut errors = self.enforcement.errors(self.endpoints);
        let mut notes = notes.clone();
        notes.extend(datapath.lacks().iter().cloned());
        notes.extend(self.endpoints.snapshot().problems.iter().cloned());
        notes.extend(self.unconfirmed());
        notes.extend(self.speakers.undeclared(self.endpoints, self.sandboxes, datapath));
        notes.extend(installation.note.clone());
        errors.extend(installation.problem.iter().map(|problem| ObjectError {
            object: "CNI plugin".to_owned(),
            message: problem.clone(),
        }));
        self.endpoints.add_findings(compiler, &mut errors, &mut notes);
        errors.extend(compiler.problems().into_iter().map(|problem| ObjectError {
            object: "policies".to_owned(),
            message: problem.to_string(),
        }));
        (errors, notes)
    }

    /// Says which pods started without us.
    fn unconfirmed(&self) -> impl Iterator<Item = String> {
        self.sandboxes.live().filter(|sandbox| sandbox.is_unconfirmed).map(|sandbox| {
            format!(
                "pod {} was started before its policies were confirmed to be in force, as \
                 \"on-unreachable\": \"allow\" asks for",
                sandbox.name()
            )
        })
    }
}
