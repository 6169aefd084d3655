//! What is known of one kind: just enough to tell after a new list what has vanished, and
//! whether a barrier is reached. Must never hold an object, and never drop one that a list that
//! did not complete fails to mention.

use std::collections::{HashMap, HashSet};

use rustc_hash::FxHashMap;

use super::Out;
use super::object::{Kind, WatchedObject};
use crate::convert;
use netpol_model::{Change, ObjectName, Str, Strings, Uid};

/// How often in turn ClusterNetworkPolicies have to be refused until netpol goes on without them. An
/// API server that starts refuses what it has not read the roles for yet, and without them pods are
/// open that an earlier agent had closed.
const TOLD_REFUSED: u32 = 4;

#[derive(Debug)]
struct Tracked {
    /// Of a pod: nobody asks for another's.
    uid: Option<Uid>,
    version: u64,
    /// Whether a barrier is about it: of pods only those of this node.
    local: bool,
    /// Whether a version of it was sent.
    sent: bool,
    /// The last list that it was in, or that was the last one when it was seen.
    list: u32,
}

/// What a consistent read of the API server found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The version of the list.
    pub version: u64,
    /// The objects in it.
    pub objects: HashMap<ObjectName, u64>,
}

/// What must be delivered before a barrier is reached.
#[derive(Debug)]
struct Awaited {
    version: u64,
    gone: HashSet<ObjectName>,
}

/// The state of one watch.
#[derive(Debug)]
pub(crate) struct Tracker {
    kind: Kind,
    node: Str,
    known: FxHashMap<ObjectName, Tracked>,
    /// Namespaces of known objects.
    namespaces: Strings,
    /// How many lists have begun.
    lists: u32,
    /// One of them goes on.
    is_listing: bool,
    synced: bool,
    /// How often in turn it was refused.
    n_refusals: u32,
    /// The highest version delivered since the last list began.
    newest: u64,
    awaited: Option<Awaited>,
}

impl Tracker {
    /// Nothing known yet.
    pub fn new(kind: Kind, node: &str) -> Self {
        Self {
            kind,
            node: node.into(),
            known: FxHashMap::default(),
            namespaces: Strings::default(),
            lists: 0,
            is_listing: false,
            synced: false,
            n_refusals: 0,
            newest: 0,
            awaited: None,
        }
    }

    /// Whether a list has completed.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// How many objects are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// A list begins, maybe after one that did not complete.
    pub(crate) fn list_begins(&mut self) {
        self.lists = self.lists.wrapping_add(1);
        self.is_listing = true;
        self.newest = 0;
    }

    /// A list is complete: what it did not mention is gone.
    pub(crate) fn list_ends(&mut self, out: &mut Out) {
        self.synced = true;
        self.n_refusals = 0;
        if !std::mem::take(&mut self.is_listing) {
            return;
        }
        let is_gone = |known: &Tracked| known.list != self.lists;
        let gone = self.known.iter().filter(|(_, known)| is_gone(known));
        let gone: Vec<ObjectName> = gone.map(|(id, _)| id.clone()).collect();
        for id in gone {
            self.remove(&id, out);
        }
    }

    /// The kind, which can be done without, was refused.
    pub(crate) fn is_refused(&mut self) {
        self.n_refusals = self.n_refusals.saturating_add(1);
        if self.kind != Kind::ClusterPolicy || self.n_refusals >= TOLD_REFUSED {
            self.is_denied();
        }
    }

    /// The kind cannot be read, and can be done without: nothing more is to be expected.
    pub fn is_denied(&mut self) {
        self.synced = true;
        self.is_listing = false;
    }

    /// The API server does not have the kind: nothing is to be expected, and if that is sure, nothing
    /// is left of it.
    pub(crate) fn is_absent(&mut self, is_sure: bool, out: &mut Out) {
        if is_sure || self.known.is_empty() {
            self.list_begins();
            self.list_ends(out);
        }
    }

    /// An object exists in this version.
    pub fn exists(&mut self, mut seen: WatchedObject, out: &mut Out) {
        self.share_names(&mut seen);
        let title = self.kind.title(&seen.id);
        self.newest = self.newest.max(seen.version);
        if let Some(awaited) = &mut self.awaited
            && seen.version > awaited.version
        {
            awaited.gone.remove(&seen.id);
        }
        let sent_before = self.known.get(&seen.id).is_some_and(|known| known.sent);
        let known = Tracked {
            uid: (self.kind == Kind::Pod).then_some(seen.uid),
            version: seen.version,
            local: self.kind != Kind::Pod || seen.node.as_ref() == Some(&self.node),
            sent: seen.change.is_some() || sent_before,
            list: self.lists,
        };
        self.known.insert(seen.id, known);
        let usable = seen.change.is_some();
        if let Some(change) = seen.change {
            out.change(change);
        }
        if seen.problems.is_empty() {
            out.resolved(&title);
        } else {
            let what = convert::join(&seen.problems);
            out.problem(title, message(&what, usable, sent_before));
        }
    }

    /// Names are most of what is kept of an object: no second copy of any stays.
    fn share_names(&mut self, seen: &mut WatchedObject) {
        match self.known.get_key_value(&seen.id) {
            Some((id, _)) => seen.id = id.clone(),
            None => self.namespaces.share(&mut seen.id.namespace),
        }
        if let Some(name) = seen.change.as_mut().and_then(Change::name_mut)
            && *name == seen.id
        {
            *name = seen.id.clone();
        }
    }

    /// An object was deleted; its last version is that of the deletion.
    pub fn is_gone(&mut self, seen: &WatchedObject, out: &mut Out) {
        self.newest = self.newest.max(seen.version);
        self.remove(&seen.id, out);
    }

    fn remove(&mut self, id: &ObjectName, out: &mut Out) {
        if let Some(awaited) = &mut self.awaited {
            awaited.gone.remove(id);
        }
        out.resolved(&self.kind.title(id));
        if let Some(known) = self.known.remove(id)
            && known.sent
        {
            out.change(self.kind.gone(id.clone(), known.uid));
        }
    }

    /// Awaits what a consistent read found: its newest object, and the end of every object that
    /// it did not find any more.
    pub(crate) fn await_listed(&mut self, listed: &Listed) {
        let gone = self.known.iter().filter(|(id, known)| {
            known.local && known.version <= listed.version && !listed.objects.contains_key(*id)
        });
        let gone = gone.map(|(id, _)| id.clone()).collect();
        let version = listed.objects.values().copied().max().unwrap_or(0);
        self.awaited = Some(Awaited { version, gone });
    }

    /// Whether everything awaited was delivered. Watch events come in the order of versions, a
    /// list does not: in the middle of one nothing is sure.
    pub fn is_reached(&self) -> bool {
        self.synced
            && !self.is_listing
            && self
                .awaited
                .as_ref()
                .is_none_or(|awaited| awaited.gone.is_empty() && self.newest >= awaited.version)
    }
}

fn message(what: &str, usable: bool, sent_before: bool) -> String {
    match (usable, sent_before) {
        (true, _) => format!("used without this: {what}"),
        (false, true) => format!("cannot be used: {what}; its last good version stays in force"),
        (false, false) => format!("cannot be used: {what}; nothing of it is in force"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_policies_are_done_without_only_after_several_refusals_in_turn() {
        let mut services = Tracker::new(Kind::Service, "n1");
        services.is_refused();
        assert!(services.is_synced());

        let mut policies = Tracker::new(Kind::ClusterPolicy, "n1");
        for _ in 1..TOLD_REFUSED {
            policies.list_begins();
            policies.is_refused();
            assert!(!policies.is_synced());
        }
        policies.list_begins();
        policies.is_refused();
        assert!(policies.is_synced() && policies.is_reached());
    }

    #[test]
    fn an_absence_that_is_not_sure_takes_nothing_away() {
        let (tx, _rx) = tokio::sync::mpsc::channel(1);
        let mut out = Out { tx, events: Default::default(), problems: Default::default() };
        let mut policies = Tracker::new(Kind::ClusterPolicy, "n1");
        policies.is_absent(false, &mut out);
        assert!(policies.is_synced(), "there was nothing: that is complete");

        let id = ObjectName::new("", "one");
        let (uid, change) = ("u".into(), Some(Change::ClusterPolicyGone("one".into())));
        let seen = WatchedObject { id, uid, version: 1, node: None, change, problems: Vec::new() };
        policies.exists(seen, &mut out);
        policies.is_absent(false, &mut out);
        assert_eq!(policies.len(), 1);
        policies.is_absent(true, &mut out);
        assert_eq!(policies.len(), 0);
    }
}
