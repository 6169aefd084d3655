//! Runs each attack on each kind of network, as a test `network::area::attack`. Must never know what
//! an attack does.

/// `attacks! { link: [a, b], shapes: [c] }` makes a test of each function
/// `attacks::AREA::ATTACK(&Attack)` on every network.
#[macro_export]
macro_rules! attacks {
    (@ $network:ident, $topology:ident, $($area:ident: [$($attack:ident),* $(,)?]),* $(,)?) => {
        mod $network {
            static STAGE: $crate::hostile::stage::Shared = $crate::hostile::stage::Shared::new(
                $crate::lab::topology::$topology,
                $crate::lab::Families::Dual,
            );

            $(
                mod $area {
                    $(
                        #[test]
                        fn $attack() {
                            let stage = super::STAGE.get();
                            $crate::attacks::$area::$attack(&stage.attack());
                        }
                    )*
                }
            )*
        }
    };
    ($($areas:tt)*) => {
        $crate::attacks!(@ bridge, BRIDGE_WITHOUT_NETFILTER, $($areas)*);
        $crate::attacks!(@ overlay, OVERLAY, $($areas)*);
        $crate::attacks!(@ routed, ROUTED, $($areas)*);
    };
}
