//! Loads the programs of this build on the running kernel.

use netpol_userspace::datapath::{AttachMode, Datapath, LoadOptions, Pins};

#[test]
fn loads() {
    let pins = Pins::new("/sys/fs/bpf/netpol-x1");
    let mut datapath = Datapath::open(&pins, &LoadOptions::default(), AttachMode::Auto)
        .unwrap_or_else(|e| panic!("{e}"));
    for name in ["netpol_ingress", "netpol_egress"] {
        let info = datapath.programs().info(name).unwrap();
        println!(
            "{name}: verified {:?} jitted {} xlated {:?}",
            info.verified_instruction_count(),
            info.size_jitted(),
            info.size_translated()
        );
    }
    drop(datapath);
    pins.remove_all().unwrap();
}
