//! Packet access: straight from the linear part for the common headers, by helper for all others.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use netpol_common::layout::{Address, Direction};
use netpol_common::packet::{Frame, Packet, TCP, UDP, set_addresses, set_ports, set_tcp_flags};

/// A packet, read by `bpf_skb_load_bytes`: works for any offset and any fragment layout.
pub struct Skb(pub *mut __sk_buff);

impl Frame for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = [0u8; N];
        // SAFETY: the helper writes exactly N bytes to a buffer of N bytes, or fails.
        let result = unsafe {
            bpf_skb_load_bytes(self.0.cast(), offset, bytes.as_mut_ptr().cast(), N as u32)
        };
        if result == 0 { Some(bytes) } else { None }
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context pointer is valid for the run of the program.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    fn has_vlan_tag(&self) -> bool {
        // SAFETY: the context pointer is valid for the run of the program.
        unsafe { (*self.0).vlan_present != 0 }
    }
}

/// The linear part of the packet.
struct Linear {
    data: usize,
    end: usize,
}

impl Linear {
    #[inline(always)]
    fn of(skb: *mut __sk_buff) -> Self {
        // SAFETY: the context pointer is valid for the run of the program.
        unsafe { Self { data: (*skb).data as usize, end: (*skb).data_end as usize } }
    }

    #[inline(always)]
    fn at<T: Copy>(&self, offset: usize) -> Option<T> {
        if self.data + offset + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: the bytes lie between data and data_end, as the verifier sees from the check
        // above; packets may be read unaligned.
        Some(unsafe { core::ptr::read_unaligned((self.data + offset) as *const T) })
    }
}

const ETHERTYPE: usize = 12;
const L3: usize = 14;

/// An untagged IPv4 TCP or UDP packet without options and not a fragment, else `None`.
#[inline(always)]
pub fn common_v4(skb: *mut __sk_buff, direction: Direction) -> Option<Packet> {
    let linear = Linear::of(skb);
    // The last byte first: one bounds check serves all the reads (UDP is the shortest).
    let ports: [u8; 4] = linear.at(L3 + 20)?;
    let ethertype: u16 = linear.at(ETHERTYPE)?;
    let version: u8 = linear.at(L3)?;
    let fragment: u16 = linear.at(L3 + 6)?;
    let length = u16::from_be(linear.at(L3 + 2)?) as u32;
    // SAFETY: the context pointer is valid for the run of the program.
    let (frame_length, vlan) = unsafe { ((*skb).len, (*skb).vlan_present) };
    if ethertype != 0x0800u16.to_be()
        || version != 0x45
        || fragment & 0x3fffu16.to_be() != 0
        || vlan != 0
        || L3 as u32 + length > frame_length
    {
        return None;
    }
    let mut packet = Packet::default();
    let source = Address::v4(linear.at(L3 + 12)?);
    let destination = Address::v4(linear.at(L3 + 16)?);
    set_addresses(&mut packet, direction, source, destination);
    packet.protocol = linear.at(L3 + 9)?;
    common_transport(&linear, L3 + 20, length.checked_sub(20)?, direction, ports, packet)
}

/// An untagged IPv6 TCP or UDP packet without extension headers, else `None`.
#[inline(always)]
pub fn common_v6(skb: *mut __sk_buff, direction: Direction) -> Option<Packet> {
    let linear = Linear::of(skb);
    let ports: [u8; 4] = linear.at(L3 + 40)?;
    let ethertype: u16 = linear.at(ETHERTYPE)?;
    let version: u8 = linear.at(L3)?;
    let length = u16::from_be(linear.at(L3 + 4)?) as u32;
    // SAFETY: the context pointer is valid for the run of the program.
    let (frame_length, vlan) = unsafe { ((*skb).len, (*skb).vlan_present) };
    if ethertype != 0x86ddu16.to_be()
        || version >> 4 != 6
        || vlan != 0
        || L3 as u32 + 40 + length > frame_length
    {
        return None;
    }
    let mut packet = Packet::default();
    let source = Address::v6(linear.at(L3 + 8)?);
    let destination = Address::v6(linear.at(L3 + 24)?);
    set_addresses(&mut packet, direction, source, destination);
    packet.protocol = linear.at(L3 + 6)?;
    common_transport(&linear, L3 + 40, length, direction, ports, packet)
}

#[inline(always)]
fn common_transport(
    linear: &Linear,
    offset: usize,
    length: u32,
    direction: Direction,
    ports: [u8; 4],
    mut packet: Packet,
) -> Option<Packet> {
    set_ports(&mut packet, direction, ports);
    match packet.protocol {
        TCP if length >= 20 => set_tcp_flags(&mut packet, linear.at(offset + 13)?),
        UDP if length >= 8 => {}
        _ => return None,
    }
    Some(packet)
}
