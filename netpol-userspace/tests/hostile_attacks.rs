//! Attacks by who owns a pod, or is outside, on the wire of each kind of network: by raw sockets, in
//! both families, with observers everywhere else. What is promised against whom is in SECURITY.md.
//! Needs root and the eBPF object.

#![expect(clippy::unwrap_used, reason = "tests")]

mod attacks;
mod hostile;
mod lab;
mod world;

use hostile::stage::Stage;
use lab::{Families, topology};

attacks! {
    link: [
        plain_packets,
        vlan_tags,
        priority_tags,
        provider_tags,
        stacked_tags,
        tagged_as_arp,
        mpls,
        pppoe,
        lengths_for_ethertypes,
        reserved_groups,
        reverse_arp,
        every_other_ethertype,
        wrong_ethertypes,
        wrong_versions,
        data_behind_the_packet,
        wrong_lengths,
        forged_link_addresses,
        forged_link_addresses_of_a_friend,
        to_itself_by_the_way_of_others,
        to_a_friend_by_the_way_of_others,
        flood_of_link_addresses,
        every_length,
        jumbo_frames,
        segmentation_offload,
    ],
    shapes: [
        every_protocol,
        every_tcp_flag,
        forged_tcp_answers,
        every_sctp_chunk,
        ports_of_note,
        every_service_class_and_hop_limit,
        wrong_checksums,
        every_ipv4_option,
        ipv4_source_routes,
        router_alert,
        extension_headers,
        long_chains_of_extension_headers,
        long_extension_headers,
        endless_extension_headers,
        ipv6_source_routes,
        home_addresses,
        no_next_header,
        jumbograms,
        special_destinations,
        multicast,
        broadcast,
        igmp,
        forged_sources,
        land,
    ],
    tunnels: [
        ip_in_ip,
        six_in_four_and_four_in_six,
        gre,
        vxlan_from_a_pod,
        geneve_from_a_pod,
        other_tunnels,
        tunnels_into_a_victim,
        vxlan_into_a_victim,
    ],
    fragments: [
        in_order,
        backwards,
        without_the_first,
        atomic,
        tiny_first_fragments,
        every_offset,
        overlapping,
        of_other_protocols,
        within_extension_headers,
        from_an_open_port_to_another,
        into_a_friends_datagram,
        to_a_victim,
    ],
    icmp: [
        every_type,
        every_type_with_a_body,
        of_the_other_family,
        errors_about_nothing,
        errors_about_errors,
        redirects,
        errors_about_a_flow_of_the_node,
        every_type_to_a_victim,
        errors_about_nothing_to_a_victim,
        errors_about_nearly_a_flow_to_a_victim,
    ],
    flows: [
        every_tcp_flag_to_a_victim,
        answers_to_a_victim_that_did_not_ask,
        every_sctp_chunk_to_a_victim,
        nearly_a_friends_flow,
        a_victim_that_answers_more_than_it_was_asked,
        a_friend_that_is_asked_in_return,
        in_the_name_of_the_node,
        in_the_name_of_the_victim,
        in_a_flow_of_the_node,
        overhearing,
    ],
    identity: [
        arp_in_the_name_of_others,
        arp_that_sends_others_astray,
        arp_probes_for_others,
        arp_with_data,
        arp_of_other_kinds,
        discovery_with_data,
        discovery_beyond_the_link,
        discovery_by_way_of_the_router,
        discovery_in_the_name_of_others,
        solicitations_in_the_name_of_others,
        discovery_that_sends_others_astray,
        duplicate_addresses,
        router_messages,
        discovery_behind_extension_headers,
        discovery_with_another_hop_limit,
        listener_reports,
        forged_sources_of_a_free_pod,
        forged_ends_of_a_connection,
        forged_link_addresses_of_a_free_pod,
        what_a_link_needs_passes,
    ],
    owner: [
        renamed_interface,
        interface_down_and_up,
        changed_link_address,
        moved_interface,
        interfaces_on_the_interface,
        bridge_in_the_pod,
        while_policies_change,
        interface_recreated,
        addresses_of_others_added,
        a_friends_address_added_by_a_free_pod,
    ],
    tenant: [
        services_of_addresses_of_others,
        backends_that_are_others,
        addresses_by_annotation,
        friends_of_another_namespace,
        pods_that_have_ended_by_their_objects,
        free_pods_that_have_ended_by_their_objects,
    ],
}

#[test]
fn agent_killed_on_a_bridge() {
    attacks::tenant::agent_killed(&mut Stage::new(topology::BRIDGE, Families::Dual));
}

#[test]
fn agent_killed_on_routes() {
    attacks::tenant::agent_killed(&mut Stage::new(topology::ROUTED, Families::Dual));
}
