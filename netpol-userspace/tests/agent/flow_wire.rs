//! A flood on the wire, of a flow table that is small: what another pod has stays, and each late
//! answer still gets to it. Needs root and the eBPF object.

use netpol_testkit::world;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};

use netpol_testkit::world::World;

/// Idle connections of each protocol.
const IDLE: usize = 100;
/// A dozen times what the table holds.
const FLOOD: u16 = 60_000;

#[test]
fn late_answers_get_to_a_pod_that_is_isolated_both_ways_after_another_ones_flood() {
    let mut world = World::new();
    world.arguments = ["--flow-table-size", "4096"].map(str::to_owned).into();
    world.pod("server", "10.244.0.1", "{app: server}");
    world.pod("quiet", "10.244.0.2", "{app: quiet}");
    world.pod("flood", "10.244.0.3", "{app: flood}");
    for app in ["quiet", "flood"] {
        let egress = format!(
            "podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [Ingress, Egress], \
             egress: [{{}}]"
        );
        world.policy(app, &egress);
    }
    world.start();

    let listener = world.of("server").run(|| TcpListener::bind("10.244.0.1:80")).unwrap().unwrap();
    let udp = world.of("server").run(|| UdpSocket::bind("10.244.0.1:80")).unwrap().unwrap();
    let (mut streams, sockets): (Vec<TcpStream>, Vec<UdpSocket>) = world
        .of("quiet")
        .run(|| {
            let stream = |_| TcpStream::connect("10.244.0.1:80").unwrap();
            let socket = |_| UdpSocket::bind("10.244.0.2:0").unwrap();
            ((0..IDLE).map(stream).collect(), (0..IDLE).map(socket).collect())
        })
        .unwrap();
    let mut accepted: Vec<TcpStream> = (0..IDLE).map(|_| listener.accept().unwrap().0).collect();
    let mut asked = Vec::new();
    for socket in &sockets {
        socket.send_to(b"?", "10.244.0.1:80").unwrap();
        asked.push(udp.recv_from(&mut [0; 8]).unwrap().1);
    }

    // Each to another port: none is answered, but by an error now and then.
    world
        .of("flood")
        .run(|| {
            let socket = UdpSocket::bind("10.244.0.3:0").unwrap();
            for port in 1_000..1_000 + FLOOD {
                // What an earlier one's error says is no matter.
                let _ = socket.send_to(b"!", ("10.244.0.1", port));
            }
        })
        .unwrap();

    let maps = world.maps();
    let [flood, quiet] = ["flood", "quiet"].map(|pod| maps.flow_use(world.id(pod)));
    assert!(flood.displaced > u64::from(FLOOD) / 2, "the table was not full: {flood:?}");
    assert_eq!((quiet.given, quiet.displaced, quiet.refused), (0, 0, 0));
    for stream in &mut accepted {
        stream.write_all(b"late").unwrap();
    }
    for to in &asked {
        udp.send_to(b"late", to).unwrap();
    }
    for stream in &mut streams {
        stream.set_read_timeout(Some(world::PATIENCE)).unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
    }
    for socket in &sockets {
        socket.set_read_timeout(Some(world::PATIENCE)).unwrap();
        assert_eq!(socket.recv(&mut [0; 8]).unwrap(), 4);
    }
    assert_eq!(world.drops("quiet"), 0);
}
