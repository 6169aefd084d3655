//! What does not fit together, in words for a person.

use std::fmt;
use std::net::IpAddr;

use netpol_model::ObjectName;

/// Something that does not fit together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// A pod of this node has no address (yet).
    PodWithoutAddress {
        /// The pod.
        pod: ObjectName,
        /// Although a container of it runs.
        is_running: bool,
    },
    /// A pod of this node has addresses, and no interface is known to be its.
    PodWithoutInterface {
        /// The pod.
        pod: ObjectName,
        /// Its addresses.
        addresses: Vec<IpAddr>,
    },
    /// An interface has no address of a pod of this node: something that is no pod, or a pod
    /// whose status is not known yet.
    InterfaceWithoutPod {
        /// Its index.
        ifindex: u32,
        /// Its name.
        interface: String,
        /// Its addresses.
        addresses: Vec<IpAddr>,
    },
    /// Two pods claim one address.
    AddressOfTwoPods {
        /// The address.
        address: IpAddr,
        /// The younger, which has it.
        pod: ObjectName,
        /// The older, which has lost it.
        loser: ObjectName,
    },
    /// Interfaces in different namespaces have one pod address.
    AddressOnTwoInterfaces {
        /// The address.
        address: IpAddr,
        /// The pod whose address it is.
        pod: ObjectName,
        /// The interfaces' names, by ifindex.
        interfaces: Vec<String>,
    },
    /// A pod's interface is there although the pod should not be.
    LeftOver {
        /// Its name.
        interface: String,
        /// The pod.
        pod: ObjectName,
        /// Why it should not be.
        why: Why,
    },
    /// An interface may be one of several pods'.
    Undecided {
        /// Its index.
        ifindex: u32,
        /// Its name.
        interface: String,
        /// The pods, sorted.
        pods: Vec<ObjectName>,
    },
    /// An interface was enforced, and nobody knows whose it is.
    Unknown {
        /// Its index.
        ifindex: u32,
        /// Its name.
        interface: String,
    },
}

/// Why a pod should have no interface any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Its object is gone.
    Gone,
    /// Its phase is Succeeded or Failed.
    Ended,
    /// It has another one.
    Elsewhere,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => "is gone",
            Self::Ended => "has ended by its phase",
            Self::Elsewhere => "has another one by now",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PodWithoutAddress { pod, is_running: false } => write!(
                f,
                "pod {pod} has no address in its status, so it cannot be enforced; \
                 it will be as soon as it has one"
            ),
            Self::PodWithoutAddress { pod, is_running: true } => write!(
                f,
                "pod {pod} is not enforced: it runs and has no address in its status, and no \
                 interface is known to be its; find out who has changed its status"
            ),
            Self::PodWithoutInterface { pod, addresses } => write!(
                f,
                "pod {pod} is not enforced: no veth or netkit interface of this node leads to {}; \
                 check the pod's network status and that the agent runs in the node's network \
                 namespace",
                list(addresses)
            ),
            Self::InterfaceWithoutPod { interface, addresses, .. } if addresses.is_empty() => {
                write!(f, "interface {interface} leads to a namespace where it has no address yet")
            }
            Self::InterfaceWithoutPod { interface, addresses, .. } => write!(
                f,
                "interface {interface} ({}) belongs to no known pod of this node and is left alone",
                list(addresses)
            ),
            Self::AddressOfTwoPods { address, pod, loser } => write!(
                f,
                "pods {pod} and {loser} both claim {address}: the younger, {pod}, has it; \
                 delete or correct the other if it is not about to end"
            ),
            Self::AddressOnTwoInterfaces { address, pod, interfaces } => write!(
                f,
                "interfaces {} all have {address} of pod {pod}: find out which of their pods \
                 took it, or remove what an ended pod left behind",
                interfaces.join(", ")
            ),
            Self::LeftOver { interface, pod, why } => write!(
                f,
                "interface {interface} of pod {pod} is still there although the pod {why}: it is \
                 enforced as it was until it is gone"
            ),
            Self::Undecided { interface, pods, .. } => write!(
                f,
                "interface {interface} may be that of {}, and nothing tells which: nothing passes \
                 that not all of them may; start its pod anew, or use the CNI plugin, which knows",
                list(pods)
            ),
            Self::Unknown { interface, .. } => write!(
                f,
                "interface {interface} was enforced by an earlier agent, and nobody knows any more \
                 which pod it is: nothing passes; start its pod anew, or remove what an ended pod \
                 left behind"
            ),
        }
    }
}

fn list(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
