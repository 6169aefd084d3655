//! Whether an API server has ClusterNetworkPolicies, and in which version: their definition may be
//! installed at any time, or never. Asks again and again while there is none. Must never take "cannot
//! ask", or a version that is not understood, for "there is none".

use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroup, APIResourceList};
use kube::api::ApiResource;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};

use super::object::Kind;
use super::{Input, jitter, until_new_list};
use crate::cluster_policy::{GROUP, KIND, PLURAL, VERSIONS};
use crate::slim::GuardedClusterPolicy;

/// How long until an API server that has none is asked again, and half as long again at most: every
/// node of a cluster asks.
const PAUSE: Duration = Duration::from_secs(8);
/// How often in turn it has to say so until objects that were known are taken to be gone. (Who removes
/// the definition removes its objects first, which the watch tells of.)
const TOLD_ABSENT: u32 = 4;

/// What an API server has of the kind.
pub(super) enum Served {
    /// This is the newest version that is understood.
    As(ApiResource),
    /// Only versions that are not understood.
    Unknown(Vec<String>),
    /// Nothing.
    Nowhere,
}

/// Asks which versions there are.
pub(super) async fn served(client: &Client) -> Result<Served, kube::Error> {
    let group = match client.request::<APIGroup>(get(&format!("/apis/{GROUP}"))?).await {
        Ok(group) => group,
        Err(error) if is_missing(&error) => return Ok(Served::Nowhere),
        Err(error) => return Err(error),
    };
    let versions = || group.versions.iter().map(|served| &*served.version);
    for version in VERSIONS {
        if versions().any(|served| served == version) && is_in(client, version).await? {
            return Ok(Served::As(ApiResource {
                group: GROUP.to_owned(),
                version: version.to_owned(),
                api_version: format!("{GROUP}/{version}"),
                kind: KIND.to_owned(),
                plural: PLURAL.to_owned(),
            }));
        }
    }
    let mut unknown = Vec::new();
    // The group has other kinds, too, in versions of their own.
    for version in versions().filter(|version| !VERSIONS.contains(version)) {
        if is_in(client, version).await? {
            unknown.push(version.to_owned());
        }
    }
    Ok(if unknown.is_empty() { Served::Nowhere } else { Served::Unknown(unknown) })
}

/// Whether this version of the group has the kind.
async fn is_in(client: &Client, version: &str) -> Result<bool, kube::Error> {
    let path = format!("/apis/{GROUP}/{version}");
    match client.request::<APIResourceList>(get(&path)?).await {
        Ok(list) => Ok(list.resources.iter().any(|resource| resource.name == PLURAL)),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn get(path: &str) -> Result<hyper::Request<Vec<u8>>, kube::Error> {
    hyper::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)
}

fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// All ClusterNetworkPolicies, for ever.
pub(super) fn watch(client: Client) -> BoxStream<'static, (Kind, Input)> {
    let rounds = stream::unfold(0, move |n_absent: u32| {
        let client = client.clone();
        async move {
            let (events, n_absent) = match served(&client).await {
                Ok(Served::As(resource)) => (present(client, &resource).boxed(), 0),
                Ok(Served::Unknown(versions)) => {
                    (then_pause(Input::NotUnderstood { versions }).boxed(), 0)
                }
                Ok(Served::Nowhere) => {
                    let n_absent = n_absent.saturating_add(1);
                    let input = Input::Absent { is_sure: n_absent >= TOLD_ABSENT };
                    (then_pause(input).boxed(), n_absent)
                }
                Err(error) => {
                    let error = watcher::Error::InitialListFailed(error);
                    (then_pause(Input::Failed(error)).boxed(), 0)
                }
            };
            Some((events, n_absent))
        }
    });
    rounds.flatten().map(|input| (Kind::ClusterPolicy, input)).boxed()
}

fn then_pause(input: Input) -> impl Stream<Item = Input> {
    let pause = stream::once(async {
        tokio::time::sleep(PAUSE + jitter() * 2).await;
        None
    });
    stream::once(async { Some(input) }).chain(pause).filter_map(std::future::ready)
}

/// Until the version is not served any more, or only a new list mends something.
fn present(client: Client, resource: &ApiResource) -> impl Stream<Item = Input> + use<> {
    let api = Api::<GuardedClusterPolicy>::all_with(client, resource);
    let events = until_new_list(watcher(api, watcher::Config::default()).default_backoff());
    let events = events.map(Some).take_while(|event| {
        let is_over = matches!(event, Some(Err(error)) if is_not_served(error));
        std::future::ready(!is_over)
    });
    let inputs = events.filter_map(std::future::ready).map(Input::of);
    let pause = stream::once(async {
        tokio::time::sleep(jitter()).await;
        None
    });
    inputs.map(Some).chain(pause).filter_map(std::future::ready)
}

/// Whether the version is not there any more: then it is to be seen which one is.
fn is_not_served(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => {
            is_missing(error)
        }
        watcher::Error::WatchError(status) => status.code == 404,
        _ => false,
    }
}
