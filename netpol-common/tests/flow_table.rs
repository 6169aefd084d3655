//! What the flow table remembers, forgets, and counts as lost.

#![expect(clippy::cast_possible_truncation, reason = "small or random numbers")]

mod support;

use std::collections::HashMap;

use netpol_common::flow::{
    self, Bucket as _, Clock, FIN_LOCAL, FIN_REMOTE, HEARD, Inserted, KEY4, KEY6, Key,
    OPENED_BY_NODE, OPENED_BY_REMOTE, REPLIED, RESET, SLOTS, Slot, Table as _, Timeouts, WORDS4,
    WORDS6,
};
use netpol_common::layout::{Address, EPOCH_MASK};
use netpol_common::packet::{ICMP, ICMPV6, Packet, SCTP, TCP, UDP};
use support::{AtomicTable, Random, SECRET, TIMEOUTS, v4, v6};

/// More than the longest limit, so that a slot that was never written counts as expired.
const START: u64 = 1_000;

fn clock(now: u64) -> Clock {
    Clock { now, timeouts: TIMEOUTS }
}

fn packet(protocol: u8, remote_port: u16) -> Packet {
    Packet {
        local: v4([10, 1, 0, 1]),
        remote: v4([10, 2, 0, 1]),
        local_port: 80,
        remote_port,
        protocol,
        ..Packet::default()
    }
}

fn key(protocol: u8, remote_port: u16) -> Key<KEY4> {
    flow::key4(&packet(protocol, remote_port), 7)
}

fn insert<const KEY: usize>(
    table: &AtomicTable,
    key: &Key<KEY>,
    epoch: u32,
    opener: u64,
    now: u64,
) -> Inserted {
    flow::insert(&table, key, flow::hash(key, SECRET), epoch, opener, &clock(now))
}

/// Epoch, opener bits and whether it is expired.
fn look_up<const KEY: usize>(
    table: &AtomicTable,
    key: &Key<KEY>,
    now: u64,
) -> Option<(u32, u64, bool)> {
    let entry = flow::find(&table, key, flow::hash(key, SECRET))?;
    let opener = entry.state & (OPENED_BY_REMOTE | OPENED_BY_NODE);
    Some((entry.epoch(), opener, entry.is_expired(&clock(now))))
}

fn slots<const KEY: usize>(table: &AtomicTable) -> Vec<Slot<KEY>> {
    table.buckets().flat_map(Slot::<KEY>::read).collect()
}

fn touch(table: &AtomicTable, key: &Key<KEY4>, now: u64, bits: u64, is_opening: bool) {
    let entry = flow::find(&table, key, flow::hash(key, SECRET)).expect("the flow is known");
    entry.touch(now, bits, is_opening);
}

#[test]
fn what_was_inserted_is_found_as_it_was_and_nothing_else_is() {
    let table = AtomicTable::new(64, WORDS4);
    let mut expected = HashMap::new();
    for port in 0..100 {
        let (epoch, opener) = (u32::from(port) * 7, u64::from(port % 4) * 2);
        assert_eq!(insert(&table, &key(TCP, port), epoch, opener, START), Inserted::Free);
        expected.insert(port, (epoch, opener, false));
    }
    for port in 0..200 {
        let found = look_up(&table, &key(TCP, port), START);
        assert_eq!(found, expected.get(&port).copied(), "{port}");
        assert_eq!(look_up(&table, &key(UDP, port), START), None, "another protocol");
    }
    assert_eq!(slots::<KEY4>(&table).len(), 100);
}

#[test]
fn every_part_of_the_key_tells_flows_apart() {
    let base = packet(TCP, 1000);
    let others = [
        Packet { local: v4([10, 1, 0, 2]), ..base },
        Packet { remote: v4([10, 2, 0, 2]), ..base },
        Packet { local: base.remote, remote: base.local, ..base },
        Packet { local_port: 81, ..base },
        Packet { remote_port: 1001, ..base },
        Packet { local_port: base.remote_port, remote_port: base.local_port, ..base },
        Packet { protocol: UDP, ..base },
    ];
    for other in others {
        assert_ne!(flow::key4(&base, 7), flow::key4(&other, 7), "{other:?}");
    }
    assert_ne!(flow::key4(&base, 7), flow::key4(&base, 8), "another endpoint");

    let base = Packet { local: v6(1, 1), remote: v6(2, 2), ..base };
    for word in 0..4 {
        for bit in [0, 7, 31] {
            let flipped = |address: Address| {
                let mut words = address.words;
                words[word] ^= 1 << bit;
                Address::v6(words)
            };
            let local = Packet { local: flipped(base.local), ..base };
            let remote = Packet { remote: flipped(base.remote), ..base };
            assert_ne!(flow::key6(&base, 7), flow::key6(&local, 7));
            assert_ne!(flow::key6(&base, 7), flow::key6(&remote, 7));
        }
    }
    assert_ne!(flow::key6(&base, 7), flow::key6(&base, 8), "another endpoint");
}

#[test]
fn slots_are_listed_as_they_were_written() {
    let table = AtomicTable::new(4, WORDS4);
    insert(&table, &key(TCP, 1000), 9, OPENED_BY_REMOTE, START);
    let [slot] = slots::<KEY4>(&table)[..] else { panic!("one flow") };
    assert_eq!((slot.endpoint(), slot.protocol()), (7, TCP));
    assert_eq!((slot.local_port(), slot.remote_port()), (80, 1000));
    assert_eq!((slot.epoch(), slot.last_seen()), (9, START));
    let words = [packet(TCP, 1000).local.words, packet(TCP, 1000).remote.words];
    assert_eq!(slot.addresses(), words);
    assert!(!slot.is_expired(&clock(START + TIMEOUTS.tcp_other)));
    assert!(slot.is_expired(&clock(START + TIMEOUTS.tcp_other + 1)));

    let table = AtomicTable::new(4, WORDS6);
    let packet = Packet { local: v6(1, 1), remote: v6(2, 2), ..packet(UDP, 53) };
    insert(&table, &flow::key6(&packet, 300), 9, 0, START);
    let [slot] = slots::<KEY6>(&table)[..] else { panic!("one flow") };
    assert_eq!((slot.endpoint(), slot.protocol()), (300, UDP));
    assert_eq!((slot.local_port(), slot.remote_port()), (80, 53));
    assert_eq!(slot.addresses(), [packet.local.words, packet.remote.words]);
}

#[test]
fn the_same_flow_again_takes_its_own_slot_also_when_it_had_expired() {
    let table = AtomicTable::new(8, WORDS4);
    let key = key(UDP, 1000);
    insert(&table, &key, 1, OPENED_BY_REMOTE, START);
    let late = START + TIMEOUTS.udp + 1;
    assert_eq!(look_up(&table, &key, late), Some((1, OPENED_BY_REMOTE, true)));
    assert_eq!(insert(&table, &key, 2, OPENED_BY_NODE, late), Inserted::Free);
    assert_eq!(look_up(&table, &key, late), Some((2, OPENED_BY_NODE, false)));
    assert_eq!(slots::<KEY4>(&table).len(), 1);
}

#[test]
fn a_flow_that_starts_over_has_not_been_replied_to() {
    let table = AtomicTable::new(8, WORDS4);
    let key = key(TCP, 1000);
    insert(&table, &key, 1, 0, START);
    touch(&table, &key, START, REPLIED | FIN_LOCAL | FIN_REMOTE | RESET, false);
    insert(&table, &key, 2, 0, START + 1);
    let [slot] = slots::<KEY4>(&table)[..] else { panic!("one flow") };
    assert_eq!(slot.meta & 0xff, 0);
    touch(&table, &key, START + 2, REPLIED, false);
    touch(&table, &key, START + 3, FIN_LOCAL, false);
    let bits = REPLIED | HEARD | FIN_LOCAL;
    assert_eq!(slots::<KEY4>(&table)[0].meta & 0xff, bits, "bits add up");
    touch(&table, &key, START + 3, RESET, false);
    assert_eq!(slots::<KEY4>(&table)[0].meta & 0xff, bits | RESET);
    touch(&table, &key, START + 3, 0, false);
    assert_eq!(slots::<KEY4>(&table)[0].meta & 0xff, bits, "it goes on");
    touch(&table, &key, START + 4, 0, true);
    assert_eq!(slots::<KEY4>(&table)[0].meta & 0xff, 0);
    assert_eq!(slots::<KEY4>(&table)[0].last_seen(), START + 4);
}

#[test]
fn idle_limits_are_those_of_the_protocol_and_state() {
    let Timeouts { tcp_established, tcp_other, sctp, udp, icmp, other } = TIMEOUTS;
    let closing = FIN_LOCAL | FIN_REMOTE;
    for (protocol, bits, limit) in [
        (TCP, 0, tcp_other),
        (TCP, REPLIED, tcp_established),
        (TCP, FIN_LOCAL, tcp_other),
        (TCP, REPLIED | FIN_LOCAL, tcp_established),
        (TCP, REPLIED | FIN_REMOTE, tcp_established),
        (TCP, REPLIED | closing, tcp_other),
        (TCP, REPLIED | RESET, tcp_other),
        (UDP, 0, udp),
        (UDP, REPLIED | RESET | closing, udp),
        (SCTP, REPLIED, sctp),
        (ICMP, REPLIED, icmp),
        (ICMPV6, 0, icmp),
        (47, 0, other),
    ] {
        let table = AtomicTable::new(1, WORDS4);
        let key = key(protocol, 1000);
        insert(&table, &key, 1, 0, START);
        touch(&table, &key, START, bits, false);
        for (now, expected) in [(START, false), (START + limit, false), (START + limit + 1, true)] {
            let found = look_up(&table, &key, now).map(|(_, _, is_expired)| is_expired);
            assert_eq!(found, Some(expected), "protocol {protocol} bits {bits:#x} at {now}");
        }
        // A clock behind the one that saw the last packet.
        assert_eq!(look_up(&table, &key, START - 5), Some((1, 0, false)));
    }
}

#[test]
fn epochs_have_31_bits_and_no_more_touch_the_rest_of_the_word() {
    let table = AtomicTable::new(8, WORDS4);
    let key = key(TCP, 1);
    for epoch in [0, 1, EPOCH_MASK - 1, EPOCH_MASK, EPOCH_MASK + 1, u32::MAX] {
        insert(&table, &key, epoch, OPENED_BY_REMOTE, START);
        let expected = Some((epoch & EPOCH_MASK, OPENED_BY_REMOTE, false));
        assert_eq!(look_up(&table, &key, START), expected, "{epoch:#x}");
        let entry = flow::find(&&table, &key, flow::hash(&key, SECRET)).expect("known");
        entry.renew(epoch.wrapping_add(1), OPENED_BY_NODE);
        let expected = Some((epoch.wrapping_add(1) & EPOCH_MASK, OPENED_BY_NODE, false));
        assert_eq!(look_up(&table, &key, START), expected, "{epoch:#x}");
    }
    assert_eq!(slots::<KEY4>(&table).len(), 1);
}

#[test]
fn a_full_bucket_loses_the_flow_that_was_idle_for_longest_and_says_so() {
    let table = AtomicTable::new(1, WORDS4);
    // One bucket for all, and one of the endpoint's own.
    for port in 0..2 * SLOTS as u16 {
        let now = START + u64::from(port);
        assert_eq!(insert(&table, &key(UDP, port), 1, 0, now), Inserted::Free);
    }
    touch(&table, &key(UDP, 0), START + 9, 0, false);
    assert_eq!(insert(&table, &key(UDP, 9), 1, 0, START + 10), Inserted::Evicted);
    for (port, is_there) in [(0, true), (1, false), (2, true), (7, true), (9, true)] {
        let found = look_up(&table, &key(UDP, port), START + 10);
        assert_eq!(found.is_some(), is_there, "{port}");
    }
    // An expired one goes before the oldest live one: ICMP's limit is shorter.
    insert(&table, &key(ICMP, 5), 1, 0, START + 11);
    let now = START + 11 + TIMEOUTS.icmp + 1;
    touch(&table, &key(UDP, 9), now, 0, false);
    assert_eq!(insert(&table, &key(UDP, 10), 1, 0, now), Inserted::Free);
    assert_eq!(look_up(&table, &key(ICMP, 5), now), None);
    table.assert_accounts::<KEY4>();
}

#[test]
fn the_other_bucket_is_used_before_anything_is_lost() {
    // Random keys choose both buckets or one of them; none is lost while each has room for all
    // that chose only it.
    let mut random = Random(1);
    for _ in 0..200 {
        let table = AtomicTable::new(2, WORDS4);
        let first_port = random.next() as u16;
        for i in 0..SLOTS as u16 {
            let inserted = insert(&table, &key(UDP, first_port.wrapping_add(i)), 1, 0, START);
            assert_eq!(inserted, Inserted::Free);
        }
        assert_eq!(slots::<KEY4>(&table).len(), SLOTS);
    }
}

#[test]
fn fetching_changes_nothing() {
    let mut random = Random(3);
    let (narrow, wide) = (AtomicTable::new(4, WORDS4), AtomicTable::new(4, WORDS6));
    let all = |table: &AtomicTable, words: usize| -> Vec<u64> {
        table.buckets().flat_map(|bucket| (0..SLOTS * words).map(move |i| bucket.load(i))).collect()
    };
    for _ in 0..64 {
        let any = |random: &mut Random| [(); 4].map(|()| random.next() as u8);
        let packet = Packet {
            local: v4(any(&mut random)),
            remote: v4(any(&mut random)),
            local_port: random.next() as u16,
            remote_port: random.next() as u16,
            protocol: random.next() as u8,
            ..Packet::default()
        };
        let endpoint = 1 + random.below(1_023) as u16;
        let key4 = flow::key4(&packet, endpoint);
        insert(&narrow, &key4, u32::MAX, OPENED_BY_NODE, START);
        let local = Address::v6([(); 4].map(|()| random.next() as u32));
        let remote = Address::v6([(); 4].map(|()| random.next() as u32));
        let key6 = flow::key6(&Packet { local, remote, ..packet }, endpoint);
        insert(&wide, &key6, u32::MAX, OPENED_BY_NODE, START);
        let before = (all(&narrow, WORDS4), all(&wide, WORDS6));
        flow::fetch::<_, KEY4>(&&narrow, flow::hash(&key4, SECRET));
        flow::fetch::<_, KEY6>(&&wide, flow::hash(&key6, SECRET));
        assert_eq!((all(&narrow, WORDS4), all(&wide, WORDS6)), before);
    }
}

#[test]
fn a_flow_in_its_second_bucket_is_found_once_its_first_one_was_full() {
    let mut random = Random(7);
    for _ in 0..200 {
        let table = AtomicTable::new(2, WORDS4);
        let first_port = random.next() as u16;
        let mut kept = Vec::new();
        for port in (0..2 * SLOTS as u16).map(|i| first_port.wrapping_add(i)) {
            if insert(&table, &key(UDP, port), 1, 0, START) != Inserted::Free {
                break;
            }
            kept.push(port);
            assert!(kept.iter().all(|&port| look_up(&table, &key(UDP, port), START).is_some()));
        }
        assert!(kept.len() >= SLOTS);
    }
}

#[test]
fn slots_that_are_being_written_are_neither_found_listed_nor_taken() {
    let table = AtomicTable::new(1, WORDS4);
    let bucket = (&table).bucket(0).expect("bucket 0");
    let key = key(UDP, 1);
    for bucket in [bucket, (&table).bucket(1 + 7).expect("the endpoint's own")] {
        for slot in 0..SLOTS {
            // The key is there already, the state not yet.
            for (i, word) in key.iter().enumerate() {
                bucket.store(slot * WORDS4 + i, *word);
            }
            bucket.store(slot * WORDS4 + KEY4, flow::BUSY);
        }
    }
    assert_eq!(look_up(&table, &key, START), None);
    assert!(slots::<KEY4>(&table).is_empty());
    assert_eq!(insert(&table, &key, 1, 0, START), Inserted::Refused);
    bucket.store(2 * WORDS4 + KEY4, flow::EMPTY);
    assert_eq!(insert(&table, &key, 1, 0, START), Inserted::Free);
    assert_eq!(look_up(&table, &key, START), Some((1, 0, false)));
    for slot in [0, 1, 3] {
        assert_eq!(bucket.load(slot * WORDS4 + KEY4), flow::BUSY, "slot {slot}");
    }
}

#[test]
fn judging_again_does_not_alter_a_slot_that_was_given_away() {
    let table = AtomicTable::new(1, WORDS4);
    let key = key(UDP, 1);
    insert(&table, &key, 1, 0, START);
    let entry = flow::find(&&table, &key, flow::hash(&key, SECRET)).expect("known");
    let late = START + TIMEOUTS.udp + 1;
    for port in 10..10 + SLOTS as u16 {
        insert(&table, &self::key(UDP, port), 5, OPENED_BY_REMOTE, late);
    }
    entry.renew(9, OPENED_BY_NODE);
    assert_eq!(look_up(&table, &key, late), None);
    for port in 10..10 + SLOTS as u16 {
        let found = look_up(&table, &self::key(UDP, port), late);
        assert_eq!(found, Some((5, OPENED_BY_REMOTE, false)));
    }
}

/// Random operations against a map, in a table with room for everything.
#[test]
fn the_table_is_a_map_as_long_as_there_is_room() {
    for seed in 0..40 {
        let mut random = Random(seed);
        let table = AtomicTable::new(256, WORDS6);
        let mut model: HashMap<Key<KEY6>, (u32, u64, u64)> = HashMap::new();
        let mut now = START;
        for _ in 0..2_000 {
            now += random.below(3);
            let packet = Packet {
                local: v6(1, 1),
                remote: v6(2, random.below(4) as u8),
                ..packet(UDP, random.below(40) as u16)
            };
            let key = flow::key6(&packet, 1 + random.below(2) as u16);
            let hash = flow::hash(&key, SECRET);
            let entry = flow::find(&&table, &key, hash);
            let found = entry.map(|entry| {
                let opener = entry.state & (OPENED_BY_REMOTE | OPENED_BY_NODE);
                (entry.epoch(), opener, entry.meta >> 8)
            });
            let (epoch, opener) = (random.next() as u32 & EPOCH_MASK, random.below(4) * 2);
            // What has expired may have been given away; what has not must be there.
            let is_live = |&(_, _, seen): &(u32, u64, u64)| now <= seen + TIMEOUTS.udp;
            let expected = model.get(&key).copied();
            if expected.as_ref().is_some_and(is_live) || found.is_some() {
                assert_eq!(found, expected, "seed {seed}");
            }
            match (random.below(3), entry) {
                (0, Some(entry)) => {
                    entry.touch(now, 0, false);
                    model.entry(key).and_modify(|flow| flow.2 = now);
                }
                (1, Some(entry)) => {
                    entry.renew(epoch, opener);
                    model.entry(key).and_modify(|flow| (flow.0, flow.1) = (epoch, opener));
                }
                _ => {
                    let inserted = flow::insert(&&table, &key, hash, epoch, opener, &clock(now));
                    assert_eq!(inserted, Inserted::Free);
                    model.insert(key, (epoch, opener, now));
                }
            }
        }
        let mut keys: Vec<_> = slots::<KEY6>(&table).iter().map(|slot| slot.key).collect();
        let n_listed = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), n_listed, "no flow is there twice");
    }
}
