//! What a policy set says of packets to a Service. A policy speaks of pods and their ports; at the
//! client's interface the packet still has the Service's address, so its backends are asked. Where
//! they do not agree the packet passes *stamped*: its true destination is judged once it can be
//! seen. This module must never touch a map itself; it asks [`Policies`].

use crate::layout::{
    BACKEND_ELSEWHERE, BACKEND_ENDPOINT, BACKEND_ON_NODE, Backend, ServiceKey, backend_class,
    backend_port, judges_own,
};
use crate::verdict::{Policies, row_allows};

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ToService {
    /// There is no Service there: the address is judged like any other.
    None = 0,
    /// No backend is allowed.
    Denied = 1,
    /// Every backend is allowed.
    Allowed = 2,
    /// Some are and some are not, or the pod itself is one: the one that is chosen decides.
    Mixed = 3,
    /// Every backend is allowed, and one is the pod itself, which has to recognise its own packets.
    Own = 4,
    /// There is none that is known of.
    Empty = 5,
    /// As [`Self::Allowed`], and another node translates.
    AllowedElsewhere = 7,
    /// As [`Self::Own`], and another node translates.
    OwnElsewhere = 8,
    /// As [`Self::Mixed`], but to one that is not allowed packets would go without leaving the
    /// node by an interface: nobody could judge them again.
    Undecidable = 6,
}

impl ToService {
    /// The inverse of `as u32`; an unknown number denies.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::None,
            2 => Self::Allowed,
            3 => Self::Mixed,
            4 => Self::Own,
            5 => Self::Empty,
            6 => Self::Undecidable,
            7 => Self::AllowedElsewhere,
            8 => Self::OwnElsewhere,
            _ => Self::Denied,
        }
    }
}

/// A Service's backends, asked one by one. Plain numbers, so that the kernel's loop can carry it,
/// and few of them, since the loop runs at the depth where the programs' stack ends.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct BackendScan {
    /// The set that is asked; 0: everything is allowed.
    pub set: u16,
    endpoint: u16,
    /// The protocol.
    pub protocol: u8,
    found: Found,
    reserved: u16,
    /// Where the backends stand in the arena.
    pub offset: u32,
}

/// What was found among a Service's backends, whoever looks.
#[derive(Debug, Clone, Copy, Default)]
#[repr(transparent)]
pub struct Found(u8);

impl Found {
    /// One that is allowed.
    pub const ALLOWED: Self = Self(1);
    /// One that is not.
    pub const DENIED: Self = Self(2);
    /// The endpoint itself.
    pub const SELF: Self = Self(4);
    /// One that is not allowed and that no interface leads to.
    pub const HIDDEN: Self = Self(2 | 8);
    /// That another node translates.
    pub const ELSEWHERE: Self = Self(16);
    /// The endpoint itself, which is judged by the kind that it is of.
    pub const JUDGED_SELF: Self = Self(32);
    /// Nothing that matters to the endpoint.
    pub const NOTHING: Self = Self(0);

    /// The endpoint itself, allowed or judged like any other.
    #[inline(always)]
    pub const fn itself(is_judged: bool) -> Self {
        if is_judged { Self::JUDGED_SELF } else { Self::SELF }
    }

    /// A backend, allowed or not; `is_on_node`: it is the node itself.
    #[inline(always)]
    pub const fn backend(is_allowed: bool, is_on_node: bool) -> Self {
        if is_allowed {
            Self::ALLOWED
        } else if is_on_node {
            Self::HIDDEN
        } else {
            Self::DENIED
        }
    }

    /// Adds what else was found.
    #[inline(always)]
    pub const fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    #[inline(always)]
    const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The answer of all of them together.
    #[inline(always)]
    pub const fn answer(self) -> ToService {
        if !self.has(Self::DENIED) {
            let is_elsewhere = self.has(Self::ELSEWHERE);
            let is_itself = self.0 & (Self::SELF.0 | Self::JUDGED_SELF.0) != 0;
            return match (is_itself, self.has(Self::ALLOWED)) {
                (true, _) if is_elsewhere => ToService::OwnElsewhere,
                (true, _) => ToService::Own,
                (false, true) if is_elsewhere => ToService::AllowedElsewhere,
                (false, true) => ToService::Allowed,
                (false, false) => ToService::Empty,
            };
        }
        if !self.has(Self::ALLOWED) && !self.has(Self::SELF) {
            ToService::Denied
        } else if self.has(Self::HIDDEN) {
            ToService::Undecidable
        } else {
            ToService::Mixed
        }
    }
}

impl BackendScan {
    /// Nobody has been asked yet.
    #[inline(always)]
    pub const fn new(set: u16, endpoint: u16, protocol: u8, offset: u32) -> Self {
        Self { set, endpoint, protocol, found: Found::NOTHING, reserved: 0, offset }
    }

    /// Takes one backend's word into account; `allows` is asked about its class and port.
    #[inline(always)]
    pub fn add(&mut self, backend: Backend, allows: impl FnOnce(u32, u16) -> bool) {
        self.found.add(if backend & BACKEND_ELSEWHERE != 0 {
            Found::ELSEWHERE
        } else if backend & BACKEND_ENDPOINT != 0 {
            if backend_class(backend) == self.endpoint as u32 {
                Found::itself(judges_own(self.set))
            } else {
                Found::NOTHING
            }
        } else {
            let is_allowed = self.set == 0 || allows(backend_class(backend), backend_port(backend));
            Found::backend(is_allowed, backend & BACKEND_ON_NODE != 0)
        });
    }

    /// The answer of all of them together.
    #[inline(always)]
    pub const fn answer(&self) -> ToService {
        self.found.answer()
    }
}

const _: () = assert!(size_of::<BackendScan>() == 12);

/// Where the backends of a Service stand in the arena: `(offset, count)`.
#[inline(always)]
pub fn find_service<P: Policies>(maps: &P, key: &ServiceKey) -> Option<(u32, u32)> {
    // Twice, because an element that is being reused says so by a wrong echo.
    let mut attempt = 0;
    while attempt < 2 {
        let value = maps.service(key)?;
        if value as u16 == key.echo() {
            return Some(((value >> 32) as u32, u32::from((value >> 16) as u16)));
        }
        attempt += 1;
    }
    None
}

/// Asks for each backend whether `set` allows it to `endpoint`.
#[inline(always)]
pub fn judge_service<P: Policies>(
    maps: &P,
    set: u16,
    endpoint: u16,
    key: &ServiceKey,
) -> ToService {
    let Some((offset, count)) = find_service(maps, key) else { return ToService::None };
    let mut scan = BackendScan::new(set, endpoint, key.protocol, offset);
    for index in offset..offset + count {
        // A word that is not there is a backend that nothing allows.
        let backend = maps.backend(index);
        scan.add(backend.unwrap_or_default(), |class, port| {
            backend.is_some() && row_allows(maps, set, class, key.protocol, port)
        });
    }
    scan.answer()
}
