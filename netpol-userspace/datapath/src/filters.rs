//! Which BPF filters are on an interface's clsact hooks, among filters of any kind. Asks the
//! kernel; must never change anything.

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

/// A BPF filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Its place among the filters.
    pub priority: u16,
    /// Its number there.
    pub handle: TcHandle,
    /// Id of its program.
    pub program: u32,
    /// The name it was attached under.
    pub name: String,
}

/// Ids of the programs of all BPF filters on the hook; none if there is no such interface.
pub(crate) fn filter_programs(ifindex: u32, hook: TcAttachType) -> io::Result<Vec<u32>> {
    Ok(filters(ifindex, hook)?.iter().map(|filter| filter.program).collect())
}

/// All BPF filters on the hook; none if there is no such interface.
pub(crate) fn filters(ifindex: u32, hook: TcAttachType) -> io::Result<Vec<Filter>> {
    let mut filters = Vec::new();
    dump(&request(ifindex, hook), |message| {
        if let RouteNetlinkMessage::NewTrafficFilter(filter) = message {
            filters.extend(bpf_filter(&filter));
        }
    })?;
    Ok(filters)
}

/// What stands where filters without a queue are hung.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hooks {
    /// Nothing.
    None,
    /// A clsact qdisc.
    Clsact,
    /// A qdisc of the kind `ingress`. The kernel takes filters for the egress hook there, too, and
    /// runs them on the ingress hook.
    Ingress,
}

/// Which hooks the interface has.
pub(crate) fn hooks(ifindex: u32) -> io::Result<Hooks> {
    let mut message = TcMessage::default();
    message.header.index = ifindex.cast_signed();
    let mut found = Hooks::None;
    dump(&bytes_of(RouteNetlinkMessage::GetQueueDiscipline(message)), |message| {
        // The kernel lists those of all interfaces.
        if let RouteNetlinkMessage::NewQueueDiscipline(qdisc) = message
            && qdisc.header.index == ifindex.cast_signed()
        {
            for attribute in &qdisc.attributes {
                match attribute {
                    TcAttribute::Kind(kind) if kind == "ingress" => found = Hooks::Ingress,
                    TcAttribute::Kind(kind) if kind == "clsact" => found = Hooks::Clsact,
                    _ => {}
                }
            }
        }
    })?;
    Ok(found)
}

/// Asks for a list and calls `each` with every message of the answer.
fn dump(request: &[u8], mut each: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    // Only the kernel may answer.
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(request, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return no_hook(error.to_io()),
                NetlinkPayload::InnerMessage(message) => each(message),
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
    bytes_of(RouteNetlinkMessage::GetTrafficFilter(filter))
}

fn bytes_of(request: RouteNetlinkMessage) -> Vec<u8> {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(request));
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// An interface that is gone, or has no clsact qdisc, has no filters.
fn no_hook(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENODEV | libc::ENOENT) => Ok(()),
        _ => Err(error),
    }
}

fn bpf_filter(message: &TcMessage) -> Option<Filter> {
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let mut filter = Filter {
        // The upper half of tcm_info; the lower is the protocol.
        priority: (message.header.info >> 16) as u16,
        handle: message.header.handle,
        program: 0,
        name: String::new(),
    };
    for option in options {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = *id,
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name.clone_from(name),
            _ => {}
        }
    }
    (filter.program != 0).then_some(filter)
}
