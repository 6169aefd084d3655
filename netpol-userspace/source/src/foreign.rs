//! Kinds of policies of other products, which netpol does not enforce: to be named where they are met,
//! since who has written one expects it to do something. Must never take one for Kubernetes' own.

/// The product whose policy an object of this group and kind is, if it is one.
pub fn product(group: &str, kind: &str) -> Option<&'static str> {
    let is_policy = kind.contains("NetworkPolicy") || kind.contains("NetworkSet");
    match group {
        "cilium.io" if is_policy => Some("Cilium"),
        "crd.projectcalico.org" | "projectcalico.org" if is_policy => Some("Calico"),
        "crd.antrea.io" if is_policy => Some("Antrea"),
        "networking.k8s.aws" | "vpcresources.k8s.aws" => Some("AWS"),
        // The kinds from which ClusterNetworkPolicy was made.
        "policy.networking.k8s.io" if kind.ends_with("AdminNetworkPolicy") => {
            Some("an earlier version of network-policy-api")
        }
        _ => None,
    }
}

/// What is said of such an object.
pub fn note(product: &str) -> String {
    format!(
        "is not used: it is a policy of {product}, and netpol enforces NetworkPolicies and \
         ClusterNetworkPolicies"
    )
}
