//! A flow and an event of a small node, for tests of whatever shows such. Must never be part of a
//! release.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::SystemTime;

use netpol_api::testing::{endpoint, state};
use netpol_common::layout::{Address, Event as Raw, Reason};
use netpol_datapath::observe::{EndpointEntry, Flow as Tracked};
use netpol_model::Direction;

use crate::events::{self, BootTime, Event};
use crate::flows::{self, Flow};
use crate::names::Names;

pub(crate) fn entry() -> EndpointEntry {
    EndpointEntry { ifindex: 11, id: 1, ingress: 2, egress: 0, epoch: 9, born: 5 }
}

pub(crate) fn tracked(protocol: u8) -> Tracked {
    Tracked {
        endpoint: 1,
        protocol,
        local: "10.0.0.1".parse().unwrap(),
        local_port: 80,
        remote: "10.0.0.2".parse().unwrap(),
        remote_port: 40000,
        opened: Some(Direction::Ingress),
        is_from_node: false,
        is_replied: true,
        is_closing: false,
        idle_seconds: 3,
        epoch: 9,
    }
}

/// A flow of shop/web from shop/client.
pub fn flow(protocol: u8) -> Flow {
    let names = Names::of(&state(vec![
        endpoint("shop", "web", 1, "10.0.0.1"),
        endpoint("shop", "client", 2, "10.0.0.2"),
    ]));
    flows::view(&tracked(protocol), &entry(), &names)
}

pub(crate) fn v4(text: &str) -> Address {
    let address: std::net::Ipv4Addr = text.parse().unwrap();
    Address::v4(u32::from_ne_bytes(address.octets()))
}

pub(crate) fn raw(reason: Reason, protocol: u8, detail: u8) -> Raw {
    Raw {
        time: 1_500_000_000,
        local: v4("10.0.0.1"),
        remote: v4("10.0.0.2"),
        ifindex: 11,
        length: 74,
        set: 2,
        class: 3,
        local_port: 80,
        remote_port: 40000,
        endpoint: 1,
        protocol,
        direction: 0,
        reason: reason as u8,
        detail,
        ..Raw::default()
    }
}

/// An event of shop/web, about a packet from shop/client if it is on this node.
pub fn event(reason: Reason, protocol: u8, detail: u8) -> Event {
    let mut endpoints = vec![endpoint("shop", "web", 1, "10.0.0.1")];
    endpoints.push(endpoint("shop", "client", 2, "10.0.0.2"));
    let boot = BootTime(SystemTime::UNIX_EPOCH);
    events::explain(&raw(reason, protocol, detail), &Names::of(&state(endpoints)), boot)
}
