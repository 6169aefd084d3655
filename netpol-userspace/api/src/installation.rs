//! What whoever keeps the CNI plugin installed tells the agent, for `netpol status`. Plain data.

/// What there is to say about the installation of the CNI plugin, for `netpol status`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What keeps it from being installed.
    pub problem: Option<String>,
    /// What is waited for.
    pub note: Option<String>,
}
