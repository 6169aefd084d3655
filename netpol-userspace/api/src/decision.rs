//! What became, or would become, of packets: the words that commands, JSON and metrics have in common.
//! Must never decide anything.

use std::fmt;

use netpol_common::layout::Reason;
use serde::{Deserialize, Serialize, Serializer};

/// What becomes of a packet, or of every packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It passes.
    Allow,
    /// It is dropped.
    Deny,
}

impl Decision {
    /// Allowed only if all of these are.
    #[must_use]
    pub fn of_all(decisions: impl IntoIterator<Item = Self>) -> Self {
        Self::from(decisions.into_iter().all(Self::is_allow))
    }

    /// Whether packets pass.
    #[must_use]
    pub fn is_allow(self) -> bool {
        self == Self::Allow
    }
}

impl From<bool> for Decision {
    /// Of whether packets are allowed.
    fn from(is_allowed: bool) -> Self {
        if is_allowed { Self::Allow } else { Self::Deny }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

/// What becomes of a pod's connections to a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceDecision {
    /// They pass, to whichever backend.
    Allow,
    /// It depends on the backend.
    Mixed,
    /// They are dropped.
    Deny,
    /// There is no backend.
    Empty,
}

impl ServiceDecision {
    /// All of them, as they are listed.
    pub const ALL: [Self; 4] = [Self::Allow, Self::Mixed, Self::Deny, Self::Empty];
}

impl fmt::Display for ServiceDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Allow => "allow",
            Self::Mixed => "mixed",
            Self::Deny => "deny",
            Self::Empty => "empty",
        })
    }
}

/// Who opened a connection, from the pod's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Opened {
    /// The other side.
    Ingress,
    /// The pod.
    Egress,
    /// Nobody knows: it was under way when it was met.
    Unseen,
}

impl fmt::Display for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::Unseen => "unseen",
        })
    }
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowState {
    /// No answer was seen yet.
    New,
    /// Both sides have sent.
    Established,
    /// One side has ended it.
    Closing,
}

impl fmt::Display for FlowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::New => "new",
            Self::Established => "established",
            Self::Closing => "closing",
        })
    }
}

/// Writes a reason as its word: for fields of JSON.
///
/// # Errors
/// Those of the serializer.
pub fn reason<S: Serializer>(reason: &Reason, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(reason.as_str())
}

/// The same where there may be none.
///
/// # Errors
/// Those of the serializer.
pub fn reason_if_any<S: Serializer>(
    reason: &Option<Reason>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    reason.map(Reason::as_str).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_read_is_what_programs_read() {
        fn same<T: Serialize + fmt::Display>(values: impl IntoIterator<Item = T>) {
            for value in values {
                assert_eq!(serde_json::json!(value), serde_json::json!(value.to_string()));
            }
        }
        same([Decision::Allow, Decision::Deny]);
        same(ServiceDecision::ALL);
        same([Opened::Ingress, Opened::Egress, Opened::Unseen]);
        same([FlowState::New, FlowState::Established, FlowState::Closing]);
    }

    #[test]
    fn one_that_is_denied_denies_all() {
        use Decision::{Allow, Deny};
        assert_eq!(Decision::of_all([]), Allow);
        assert_eq!(Decision::of_all([Allow, Allow]), Allow);
        assert_eq!(Decision::of_all([Allow, Deny]), Deny);
        assert!(Decision::from(true).is_allow() && !Decision::from(false).is_allow());
    }
}
