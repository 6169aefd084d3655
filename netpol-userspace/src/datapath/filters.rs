//! Which programs are on an interface's clsact hooks. Asks the kernel; must never change
//! anything.

use std::io;

use aya::programs::TcAttachType;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Ids of the programs of all BPF filters on the hook; none if there is no such interface.
pub fn filter_programs(ifindex: u32, hook: TcAttachType) -> io::Result<Vec<u32>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    // Only the kernel may answer.
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(ifindex, hook), 0)?;
    let mut programs = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(programs),
                NetlinkPayload::Error(error) => return no_hook(error.to_io(), programs),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(filter)) => {
                    programs.extend(program_of(&filter));
                }
                _ => {}
            }
            // Messages are aligned to four bytes, the last one may lack the padding.
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn request(ifindex: u32, hook: TcAttachType) -> Vec<u8> {
    let mut filter = TcMessage::default();
    let minor = match hook {
        TcAttachType::Ingress => TcHandle::MIN_INGRESS,
        _ => TcHandle::MIN_EGRESS,
    };
    filter.header = TcHeader {
        index: ifindex.cast_signed(),
        parent: TcHandle { major: u16::MAX, minor },
        ..TcHeader::default()
    };
    let mut message = NetlinkMessage::new(
        NetlinkHeader::default(),
        NetlinkPayload::from(RouteNetlinkMessage::GetTrafficFilter(filter)),
    );
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// An interface that is gone, or has no clsact qdisc, has no filters.
fn no_hook(error: io::Error, programs: Vec<u32>) -> io::Result<Vec<u32>> {
    const EINVAL: i32 = 22;
    const ENODEV: i32 = 19;
    const ENOENT: i32 = 2;
    match error.raw_os_error() {
        Some(EINVAL | ENODEV | ENOENT) => Ok(programs),
        _ => Err(error),
    }
}

fn program_of(filter: &TcMessage) -> Option<u32> {
    filter.attributes.iter().find_map(|attribute| {
        let TcAttribute::Options(options) = attribute else { return None };
        options.iter().find_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
            _ => None,
        })
    })
}
