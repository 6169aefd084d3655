//! One test for each network and mode of kube-proxy. Must never hide which one failed: it is the
//! test's name.

/// Makes tests `NETWORK::MODE` of a function that takes a [`super::Cluster`].
#[macro_export]
macro_rules! on_every_network {
    ($suite:path) => {
        $crate::on_networks! { $suite,
            bridge: BRIDGE, Dual;
            bridge_without_netfilter: BRIDGE_WITHOUT_NETFILTER, V4;
            routed: ROUTED, V6;
            overlay: OVERLAY, Dual;
            routed_overlay: ROUTED_OVERLAY, V4;
        }
    };
}

/// The same on these networks.
#[macro_export]
macro_rules! on_networks {
    ($suite:path, $($name:ident: $topology:ident, $families:ident;)*) => { $(
        mod $name {
            use $crate::kube_proxy::Mode;
            use $crate::lab::{Families, Lab, topology};
            use $crate::service_lab::Cluster;

            fn run(mode: Mode) {
                let lab = Lab::new(topology::$topology, Families::$families);
                $suite(&Cluster::new(&lab, "shop", mode));
            }

            #[test]
            fn nftables() {
                run(Mode::Nftables);
            }

            #[test]
            fn iptables() {
                run(Mode::Iptables);
            }
        }
    )* };
}
