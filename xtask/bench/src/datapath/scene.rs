//! A node with one isolated pod: its policies go through the real compiler and the real writer
//! into maps of its own, and the real programs run on them. Must never write a verdict by hand.

use std::net::IpAddr;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use netpol_common::layout::N_COUNTERS;
use netpol_compile::{Backend, ClassId, Compiler, EndpointId, ServiceKey, Step};
use netpol_datapath::run::{Place, RunResult, run};
use netpol_datapath::{AttachMode, Datapath, Link, LoadOptions, Maps, Pins, observe};
use netpol_endpoint::Exit;
use netpol_model::{Change, Direction, Protocol};

use super::cluster::{POD, POD6, pod_name};
use super::frames::{GUARD, NOTHING, SPREAD_EGRESS, SPREAD_INGRESS, SPREAD_NOTHING};
use crate::progress;

const ID: EndpointId = EndpointId(1);
/// The interface of the programs on their way out.
const UPLINK: &str = "uplink0";
/// A class that no row allows anything: what a backend is that no policy names.
const NOBODY: ClassId = ClassId(0);

/// The node.
pub struct Scene {
    datapath: Datapath,
    maps: Maps,
    pins: Pins,
    interface: String,
    ifindex: u32,
    uplink: u32,
}

impl Scene {
    /// In the calling thread's network namespace; `name` has at most nine bytes and is used once.
    /// `flow_buckets`: of both flow tables, if not as many as agents choose.
    ///
    /// # Errors
    /// Something cannot be made there, or does not fit into the tables.
    pub fn new(name: &str, changes: Vec<Change>, flow_buckets: Option<u32>) -> Result<Self> {
        let started = Instant::now();
        let interface = format!("{name}-pod");
        if ifindex(UPLINK).is_err() {
            make_veth(UPLINK)?;
        }
        make_veth(&interface)?;
        let pins = Pins::new(format!("/sys/fs/bpf/{name}"));
        let flow_buckets = flow_buckets.map(|count| [count; 2]);
        let options = LoadOptions { flow_buckets, ..LoadOptions::default() };
        let mut datapath = Datapath::open(&pins, &options, AttachMode::Auto)?;
        let (ifindex, uplink) = (ifindex(&interface)?, ifindex(UPLINK)?);
        datapath.add_endpoint(ID, ifindex, addresses())?;
        let exit = Exit { ifindex: uplink, incarnation: 1, has_link_header: true };
        succeed(datapath.set_exits(&[exit]))?;
        for program in [NOTHING, SPREAD_NOTHING, SPREAD_INGRESS, SPREAD_EGRESS, GUARD] {
            datapath.programs().load_program(program)?;
        }
        let maps = Maps::open(&pins, true)?;
        let mut scene = Self { datapath, maps, pins, interface, ifindex, uplink };
        scene.put_in_force(changes)?;
        progress::say(format_args!("{name}: made in {:.1} s", started.elapsed().as_secs_f64()));
        Ok(scene)
    }

    /// As on a bridge, where the source of each frame is checked, or as on a link of its own. Frames
    /// that say how they are to be changed say it in their source.
    pub fn share_link(&mut self, is_shared: bool) {
        let address = Some([2, 0, 0, 0, 0, 2]);
        self.datapath.set_link(ID, Link { address, is_shared, ..Link::default() });
    }

    fn put_in_force(&mut self, changes: Vec<Change>) -> Result<()> {
        let mut compiler = Compiler::new();
        compiler.apply_all(changes);
        let plan = compiler.set_endpoint(ID, pod_name());
        ensure!(
            plan.iter().any(|step| matches!(step, Step::SetEndpoint(..))),
            "no policy isolates"
        );
        succeed(self.datapath.apply(&plan))?;
        let overflow = self.datapath.tables().into_iter().find(|table| table.overflow.is_some());
        overflow.map_or(Ok(()), |table| bail!("{} does not hold all this", table.table))
    }

    /// A Service one of whose two backends, `allowed`, may be reached: packets to it are judged
    /// again on their way.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add_service(&mut self, address: &str, port: u16, allowed: IpAddr) -> Result<()> {
        let address = address.parse().context("the address of a Service")?;
        let key = ServiceKey { address, protocol: Protocol::Tcp, port };
        let classes = observe::classes(&self.maps)?;
        let class = classes.into_iter().filter(|(block, _)| block.contains(&allowed));
        let (_, class) = class.max_by_key(|(block, _)| block.prefix_len()).context("a class")?;
        let backends = [class, NOBODY].map(|class| Backend::at(class, port));
        succeed(self.datapath.apply(&[Step::SetService(key, backends.into())]))
    }

    /// Runs a program of this name.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn run(&mut self, program: &str, frame: &[u8], is_out: bool, n: u32) -> Result<RunResult> {
        let ingress_ifindex = if is_out { self.ifindex } else { self.uplink };
        let place = Place { ifindex: self.ifindex, ingress_ifindex };
        Ok(run(self.datapath.programs().program(program)?, frame, place, n)?)
    }

    /// Forgets every flow.
    pub fn forget_flows(&self) {
        for table in self.maps.flow_buckets() {
            for index in 0..table.len() {
                (0..table.value(index).len()).for_each(|word| table.store(index, word, 0));
            }
        }
    }

    /// How many flows are known.
    pub fn count_flows(&self) -> usize {
        observe::flows(&self.maps).len()
    }

    /// What was counted so far, in both directions.
    ///
    /// # Errors
    /// The counters cannot be read.
    pub fn counters(&self) -> Result<[u64; N_COUNTERS]> {
        let mut sum = [0; N_COUNTERS];
        for direction in Direction::BOTH {
            let counters = observe::counters(&self.maps, ID.0, direction)?;
            sum.iter_mut().zip(counters).for_each(|(sum, count)| *sum += count);
        }
        Ok(sum)
    }

    /// Instructions that the verifier looked at, and bytes of machine code, of a program.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn size(&mut self, program: &str) -> Result<(u32, u32)> {
        let info = self.datapath.programs().info(program)?;
        Ok((info.verified_instruction_count().unwrap_or_default(), info.size_jitted()))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // What stays goes with the namespaces; this is for the memory of those that come next.
        let _ = self.pins.remove_all();
        let _ = ip(&["link", "del", &self.interface]);
    }
}

fn addresses() -> [IpAddr; 2] {
    [POD, POD6].map(|text| text.parse().expect("an address"))
}

fn succeed(failures: Vec<netpol_datapath::EndpointFailure>) -> Result<()> {
    failures.into_iter().next().map_or(Ok(()), |failure| Err(failure.error.into()))
}

fn make_veth(name: &str) -> Result<()> {
    ip(&["link", "add", name, "type", "veth", "peer", "name", &format!("{name}-p")])?;
    ip(&["link", "set", name, "up"])
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output();
    let output = output.context("cannot start `ip`; on Debian it is in the package iproute2")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`ip {}` failed: {}", arguments.join(" "), said.trim_end());
    Ok(())
}

fn ifindex(name: &str) -> Result<u32> {
    use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None).context("open a socket")?;
    name_to_index(&any, name).with_context(|| format!("find interface {name}"))
}
