//! Runs each row of the semantics table on each kind of network, as a test `network::row`. Must
//! never know what a row says.

/// `rows! { both: [a], v4: [b], v6: [c] }` makes a test of each function `fn(&Scene)` on every
/// network; rows of one family only where nodes and pods have that family.
#[macro_export]
macro_rules! rows {
    (both: [$($both:ident),* $(,)?], v4: [$($v4:ident),* $(,)?], v6: [$($v6:ident),* $(,)?] $(,)?) => {
        $crate::rows!(@ bridge_dual, BRIDGE, Dual, [$($both,)* $($v4,)* $($v6),*]);
        $crate::rows!(@ bridge_v6, BRIDGE, V6, [$($both,)* $($v6),*]);
        $crate::rows!(@ bridge_without_netfilter_dual, BRIDGE_WITHOUT_NETFILTER, Dual,
            [$($both,)* $($v4,)* $($v6),*]);
        $crate::rows!(@ overlay_dual, OVERLAY, Dual, [$($both,)* $($v4,)* $($v6),*]);
        $crate::rows!(@ routed_dual, ROUTED, Dual, [$($both,)* $($v4,)* $($v6),*]);
        $crate::rows!(@ routed_overlay_v4, ROUTED_OVERLAY, V4, [$($both,)* $($v4),*]);
        $crate::rows!(@ routed_v6, ROUTED, V6, [$($both,)* $($v6),*]);
    };
    (@ $network:ident, $topology:ident, $families:ident, [$($row:ident),* $(,)?]) => {
        mod $network {
            static LAB: $crate::lab::shared::Shared = $crate::lab::shared::Shared::new(
                $crate::lab::topology::$topology,
                $crate::lab::Families::$families,
            );

            $(
                #[test]
                fn $row() {
                    let lab = LAB.get();
                    super::$row(&lab.scene(stringify!($row)));
                }
            )*
        }
    };
}
