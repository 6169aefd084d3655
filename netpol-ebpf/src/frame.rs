//! Packet access: straight from the linear part for the common headers, by helper for all others.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use netpol_common::layout::{Address, Direction};
use netpol_common::packet::{
    self, Chain, Frame, LINK_HEADER, Packet, TCP, UDP, set_addresses, set_ports, set_tcp_flags,
};

/// Bytes that stand where words of them can be read at once.
#[repr(C, align(8))]
struct Words<const N: usize>([u8; N]);

/// A packet, read by `bpf_skb_load_bytes`: works for any offset and any fragment layout.
pub struct Skb(pub *mut __sk_buff);

impl Frame for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        // Not set to zero first: for that a function would be called, with a frame of its own.
        let mut bytes = MaybeUninit::<Words<N>>::uninit();
        // SAFETY: the helper writes exactly N bytes to a buffer of N bytes, or fails.
        let result = unsafe {
            bpf_skb_load_bytes(self.0.cast(), offset, bytes.as_mut_ptr().cast(), N as u32)
        };
        // SAFETY: it did not fail, so it has written them.
        if result == 0 { Some(unsafe { bytes.assume_init() }.0) } else { None }
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

    #[inline(always)]
    fn follow(&self, next: u8, offset: u32, end: u32) -> Chain {
        Chain(netpol_follow(self.0, next.into(), offset, end))
    }

    #[inline(always)]
    fn addresses_v6(&self, direction: Direction, offset: u32, packet: &mut Packet) -> bool {
        netpol_addresses_v6(self.0, direction as u32, offset, packet) == 1
    }
}

/// The same on a device without link-layer header: one is pretended to be there.
pub struct RawSkb(pub *mut __sk_buff);

impl Frame for RawSkb {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        if offset >= LINK_HEADER {
            return Skb(self.0).load(offset - LINK_HEADER);
        }
        let mut bytes = [0u8; N];
        // SAFETY: the context pointer is valid for the run of the program.
        let protocol = unsafe { (*self.0).protocol } as u16;
        if offset as usize != ETHERTYPE || N < 2 {
            return None;
        }
        // It stands there in network byte order.
        [bytes[0], bytes[1]] = protocol.to_ne_bytes();
        Some(bytes)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        Skb(self.0).length() + LINK_HEADER
    }

    #[inline(always)]
    fn has_vlan_tag(&self) -> bool {
        Skb(self.0).has_vlan_tag()
    }

    #[inline(always)]
    fn follow(&self, next: u8, offset: u32, end: u32) -> Chain {
        let chain = Skb(self.0).follow(next, offset - LINK_HEADER, end - LINK_HEADER);
        chain.shifted(LINK_HEADER)
    }

    #[inline(always)]
    fn addresses_v6(&self, direction: Direction, offset: u32, packet: &mut Packet) -> bool {
        Skb(self.0).addresses_v6(direction, offset - LINK_HEADER, packet)
    }
}

/// [`packet::follow`], as the word that the answer is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn netpol_follow(skb: *mut __sk_buff, next: u32, offset: u32, end: u32) -> u64 {
    packet::follow(&Skb(skb), next as u8, offset, end).0
}

/// [`packet::addresses_v6`], as 1 or 0.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn netpol_addresses_v6(
    skb: *mut __sk_buff,
    direction: u32,
    offset: u32,
    packet: *mut Packet,
) -> u32 {
    // SAFETY: the verifier lets only null or a writable Packet through.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return 0 };
    let direction = if direction == 0 { Direction::Ingress } else { Direction::Egress };
    packet::addresses_v6(&Skb(skb), direction, offset, packet).into()
}

/// The linear part of the packet.
pub struct Linear {
    data: usize,
    end: usize,
}

impl Linear {
    #[inline(always)]
    pub fn of(skb: *mut __sk_buff) -> Self {
        // SAFETY: the context pointer is valid for the run of the program.
        unsafe { Self { data: (*skb).data as usize, end: (*skb).data_end as usize } }
    }

    #[inline(always)]
    pub fn at<T: Copy>(&self, offset: usize) -> Option<T> {
        if self.data + offset + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: the bytes lie between data and data_end, as the verifier sees from the check
        // above; packets may be read unaligned.
        Some(unsafe { core::ptr::read_unaligned((self.data + offset) as *const T) })
    }

    /// Writes where there are so many bytes, else nothing. For measurements only: netpol changes
    /// no packet.
    #[inline(always)]
    pub fn put<T: Copy>(&self, offset: usize, value: T) {
        if self.data + offset + size_of::<T>() <= self.end {
            // SAFETY: the bytes lie between data and data_end, as the verifier sees from the check.
            unsafe { core::ptr::write_unaligned((self.data + offset) as *mut T, value) }
        }
    }
}

/// Where the ethertype stands.
pub const ETHERTYPE: usize = 12;

/// Where the network header begins.
#[inline(always)]
const fn l3(raw: bool) -> usize {
    if raw { 0 } else { LINK_HEADER as usize }
}

/// A field of the linear part at a constant offset, in memory's byte order, read by one
/// instruction whether it is aligned or not. LLVM 22 reads one byte after the other where it
/// cannot see the alignment; allowed to do otherwise (allows-misaligned-mem-access), it does so on
/// the stack too, which the verifier refuses.
macro_rules! field {
    ($linear:expr, $type:ty, $width:literal, $offset:expr) => {{
        let linear: &Linear = $linear;
        if linear.data + $offset + size_of::<$type>() > linear.end {
            return None;
        }
        let value: u64;
        // SAFETY: the bytes lie between data and data_end, as the verifier sees from the check
        // above; it lets packets be read unaligned where the machine can.
        unsafe {
            core::arch::asm!(
                concat!("{value} = *(", $width, " *)({data} + {offset})"),
                value = lateout(reg) value,
                data = in(reg) linear.data,
                offset = const $offset,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        value as $type
    }};
}

impl Linear {
    /// The ethertype in network byte order.
    #[inline(always)]
    pub fn ethertype(&self) -> Option<u16> {
        Some(field!(self, u16, "u16", ETHERTYPE))
    }

    /// The source of the frame, as of [`netpol_common::neighbour::link_word`].
    #[inline(always)]
    pub fn link_source(&self) -> Option<u64> {
        let high = field!(self, u16, "u16", 10);
        let low = field!(self, u32, "u32", 6);
        Some(u64::from(u16::from_le(high)) << 32 | u64::from(u32::from_le(low)))
    }

    /// The source of an IPv4 packet, in memory's order.
    #[inline(always)]
    pub fn source4(&self) -> Option<u32> {
        Some(field!(self, u32, "u32", LINK_HEADER as usize + 12))
    }

    /// The destination of an IPv4 packet, likewise.
    #[inline(always)]
    pub fn destination4(&self) -> Option<u32> {
        Some(field!(self, u32, "u32", LINK_HEADER as usize + 16))
    }

    /// The destination of an IPv6 packet, likewise.
    #[inline(always)]
    pub fn destination6(&self) -> Option<[u64; 2]> {
        let second = field!(self, u64, "u64", LINK_HEADER as usize + 32);
        Some([field!(self, u64, "u64", LINK_HEADER as usize + 24), second])
    }

    /// The source of an IPv6 packet, in memory's order.
    #[inline(always)]
    pub fn source6(&self) -> Option<[u64; 2]> {
        let second = field!(self, u64, "u64", LINK_HEADER as usize + 16);
        Some([field!(self, u64, "u64", LINK_HEADER as usize + 8), second])
    }
}

/// The ethertype in network byte order.
#[inline(always)]
fn ethertype<const RAW: bool>(skb: *mut __sk_buff, linear: &Linear) -> Option<u16> {
    if RAW {
        // SAFETY: the context pointer is valid for the run of the program.
        return Some(unsafe { (*skb).protocol } as u16);
    }
    Some(field!(linear, u16, "u16", ETHERTYPE))
}

/// An untagged IPv4 TCP or UDP packet without options and not a fragment, else `None`; `RAW`: on a
/// device without link-layer header.
#[inline(always)]
pub fn common_v4<const RAW: bool>(skb: *mut __sk_buff, direction: Direction) -> Option<Packet> {
    let linear = Linear::of(skb);
    // The last byte first: one bounds check serves all the reads (UDP is the shortest).
    let ports = field!(&linear, u32, "u32", l3(RAW) + 20).to_ne_bytes();
    let ethertype = ethertype::<RAW>(skb, &linear)?;
    let version: u8 = linear.at(l3(RAW))?;
    let fragment = field!(&linear, u16, "u16", l3(RAW) + 6);
    let length = u32::from(u16::from_be(field!(&linear, u16, "u16", l3(RAW) + 2)));
    // SAFETY: the context pointer is valid for the run of the program.
    let (frame_length, vlan) = unsafe { ((*skb).len, (*skb).vlan_present) };
    if ethertype != 0x0800u16.to_be()
        || version != 0x45
        || fragment & 0x3fffu16.to_be() != 0
        || vlan != 0
        || l3(RAW) as u32 + length > frame_length
    {
        return None;
    }
    let mut packet = Packet::default();
    let source = Address::v4(field!(&linear, u32, "u32", l3(RAW) + 12));
    let destination = Address::v4(field!(&linear, u32, "u32", l3(RAW) + 16));
    set_addresses(&mut packet, direction, source, destination);
    packet.protocol = linear.at(l3(RAW) + 9)?;
    common_transport(&linear, l3(RAW) + 20, length.checked_sub(20)?, direction, ports, packet)
}

/// An untagged IPv6 TCP or UDP packet without extension headers, else `None`.
#[inline(always)]
pub fn common_v6<const RAW: bool>(skb: *mut __sk_buff, direction: Direction) -> Option<Packet> {
    let linear = Linear::of(skb);
    let ports = field!(&linear, u32, "u32", l3(RAW) + 40).to_ne_bytes();
    let ethertype = ethertype::<RAW>(skb, &linear)?;
    let version: u8 = linear.at(l3(RAW))?;
    let length = u32::from(u16::from_be(field!(&linear, u16, "u16", l3(RAW) + 4)));
    // SAFETY: the context pointer is valid for the run of the program.
    let (frame_length, vlan) = unsafe { ((*skb).len, (*skb).vlan_present) };
    if ethertype != 0x86ddu16.to_be()
        || version >> 4 != 6
        || vlan != 0
        || l3(RAW) as u32 + 40 + length > frame_length
    {
        return None;
    }
    let mut packet = Packet::default();
    let source = Address::v6([
        field!(&linear, u32, "u32", l3(RAW) + 8),
        field!(&linear, u32, "u32", l3(RAW) + 12),
        field!(&linear, u32, "u32", l3(RAW) + 16),
        field!(&linear, u32, "u32", l3(RAW) + 20),
    ]);
    let destination = Address::v6([
        field!(&linear, u32, "u32", l3(RAW) + 24),
        field!(&linear, u32, "u32", l3(RAW) + 28),
        field!(&linear, u32, "u32", l3(RAW) + 32),
        field!(&linear, u32, "u32", l3(RAW) + 36),
    ]);
    set_addresses(&mut packet, direction, source, destination);
    packet.protocol = linear.at(l3(RAW) + 6)?;
    common_transport(&linear, l3(RAW) + 40, length, direction, ports, packet)
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
