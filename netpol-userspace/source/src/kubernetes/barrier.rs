//! Answers "has everything written before now been delivered?" by asking the API server for a
//! consistent read and waiting for the watches to catch up with it. Must never answer on hope:
//! when in doubt it asks again, and after its time limit it reports a problem instead.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt as _, try_join};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DynamicObject, ListParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client};
use tokio::time::{Instant, Sleep, sleep};

use super::object::{self, Kind, N_KINDS};
use super::served::Served;
use super::tracker::{Listed, Tracker};
use super::trouble::{chain, is_forbidden_request};
use super::{Out, served};
use crate::Event;
use netpol_model::ObjectName;

const OBJECT: &str = "read the API server";
/// How long to wait for the watches before reading again (an object may have come and gone
/// meanwhile); doubled each time.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// In the order of [`Kind::ALL`].
type Lists = [Listed; N_KINDS];

/// Barriers that were asked for, one round at a time; a round serves all that came before it.
pub struct Barrier {
    client: Client,
    node: String,
    limit: Duration,
    answered: u64,
    round: Option<Round>,
}

struct Round {
    number: u64,
    deadline: Instant,
    wait: Duration,
    error: Option<String>,
    stage: Stage,
}

enum Stage {
    Reading(BoxFuture<'static, Result<Box<Lists>, String>>),
    Read(Result<Box<Lists>, String>),
    /// Until the next read; with what was read being awaited, or after an error.
    Waiting(Pin<Box<Sleep>>),
    Waited,
}

impl Barrier {
    /// No barrier asked for.
    pub fn new(client: Client, node: &str, limit: Duration) -> Self {
        Self { client, node: node.to_owned(), limit, answered: 0, round: None }
    }

    /// Returns when [`Self::step`] has something to do. May be dropped at any point.
    pub async fn progress(&mut self) {
        let Some(round) = &mut self.round else { return std::future::pending().await };
        match &mut round.stage {
            Stage::Reading(read) => round.stage = Stage::Read(read.await),
            Stage::Waiting(wait) => {
                wait.await;
                round.stage = Stage::Waited;
            }
            Stage::Read(_) | Stage::Waited => {}
        }
    }

    /// Goes on as far as possible without waiting.
    pub fn step(&mut self, asked: u64, trackers: &mut [Tracker; N_KINDS], out: &mut Out) {
        loop {
            let Some(round) = &mut self.round else {
                if asked <= self.answered {
                    return;
                }
                self.round = Some(self.begin(asked));
                return;
            };
            let now = Instant::now();
            match &mut round.stage {
                Stage::Reading(_) => return,
                Stage::Read(Ok(lists)) => {
                    for (tracker, listed) in trackers.iter_mut().zip(lists.iter()) {
                        tracker.await_listed(listed);
                    }
                    round.error = None;
                    round.pause(now);
                }
                Stage::Read(Err(error)) => {
                    round.error = Some(std::mem::take(error));
                    round.pause(now);
                }
                Stage::Waiting(_) => {
                    let reached = trackers.iter().all(Tracker::is_reached);
                    if round.error.is_some() || !reached {
                        return;
                    }
                    out.resolved(OBJECT);
                    out.events.push_back(Event::Barrier(round.number));
                    self.end();
                }
                Stage::Waited if now >= round.deadline => {
                    let message = round.failure(self.limit, trackers);
                    out.problem(OBJECT.to_owned(), message);
                    self.end();
                }
                Stage::Waited => {
                    round.stage = Stage::Reading(read(&self.client, &self.node, round.deadline));
                    return;
                }
            }
        }
    }

    fn begin(&self, number: u64) -> Round {
        let deadline = Instant::now() + self.limit;
        Round {
            number,
            deadline,
            wait: FIRST_WAIT,
            error: None,
            stage: Stage::Reading(read(&self.client, &self.node, deadline)),
        }
    }

    fn end(&mut self) {
        if let Some(round) = self.round.take() {
            self.answered = round.number;
        }
    }
}

impl Round {
    fn pause(&mut self, now: Instant) {
        let wait = self.wait.min(self.deadline.saturating_duration_since(now));
        self.wait *= 2;
        self.stage = Stage::Waiting(Box::pin(sleep(wait)));
    }

    fn failure(&self, limit: Duration, trackers: &[Tracker; N_KINDS]) -> String {
        let what = match &self.error {
            Some(error) => error.clone(),
            None => {
                let late = Kind::ALL.into_iter().zip(trackers).filter(|(_, t)| !t.is_reached());
                let late: Vec<_> = late.map(|(kind, _)| kind.resource()).collect();
                format!("the watches of {} are behind", late.join(", "))
            }
        };
        let seconds = limit.as_secs_f32();
        format!("cannot confirm within {seconds} s that the latest changes have arrived: {what}")
    }
}

/// A consistent read of what matters for this node: no resourceVersion asks for the most recent.
fn read(
    client: &Client,
    node: &str,
    deadline: Instant,
) -> BoxFuture<'static, Result<Box<Lists>, String>> {
    let pods = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let client = client.clone();
    let lists = async move {
        let all = ListParams::default();
        let (namespaces, pods, policies, services, slices, nodes, cluster_policies) = try_join!(
            list::<Namespace>(&client, &all, Kind::Namespace),
            list::<Pod>(&client, &pods, Kind::Pod),
            list::<NetworkPolicy>(&client, &all, Kind::Policy),
            list::<Service>(&client, &all, Kind::Service),
            list::<EndpointSlice>(&client, &all, Kind::EndpointSlice),
            list::<Node>(&client, &all, Kind::Node),
            list_cluster_policies(&client, &all),
        )?;
        Ok(Box::new([namespaces, pods, policies, services, slices, nodes, cluster_policies]))
    };
    async move {
        match tokio::time::timeout_at(deadline, lists).await {
            Ok(lists) => lists,
            Err(_) => Err("no answer from the API server".to_owned()),
        }
    }
    .boxed()
}

/// What is to be awaited of a kind: of one that may not be listed and can be done without,
/// nothing.
async fn list<K>(client: &Client, params: &ListParams, kind: Kind) -> Result<Listed, String>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug,
{
    list_of(Api::<PartialObjectMeta<K>>::all(client.clone()), params, kind).await
}

/// Likewise, of a kind that not every API server has.
async fn list_cluster_policies(client: &Client, params: &ListParams) -> Result<Listed, String> {
    match served::served(client).await.map_err(|error| chain(&error))? {
        Served::As(resource) => {
            let api = Api::<PartialObjectMeta<DynamicObject>>::all_with(client.clone(), &resource);
            list_of(api, params, Kind::ClusterPolicy).await
        }
        Served::Unknown(_) | Served::Nowhere => Ok(Listed::default()),
    }
}

async fn list_of<K>(
    api: Api<PartialObjectMeta<K>>,
    params: &ListParams,
    kind: Kind,
) -> Result<Listed, String>
where
    K: kube::Resource + Clone + std::fmt::Debug,
{
    let list = match api.list(params).await {
        Err(error) if kind.without().is_some() && is_forbidden_request(&error) => {
            return Ok(Listed::default());
        }
        list => list.map_err(|error| chain(&error))?,
    };
    let version = object::parse_version(list.metadata.resource_version.as_deref());
    let mut objects = HashMap::new();
    for object in &list.items {
        let metadata = &object.metadata;
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let id = ObjectName::new(namespace, metadata.name.as_deref().unwrap_or_default());
        objects.insert(id, object::version(metadata));
    }
    if version == 0 || objects.values().any(|version| *version == 0) {
        return Err(format!("resourceVersions of {} are no numbers", kind.resource()));
    }
    Ok(Listed { version, objects })
}
