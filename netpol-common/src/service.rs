//! What a policy set says of packets to a Service. A policy speaks of pods and their ports; at the
//! client's interface the packet still has the Service's address, so its backends are asked. Where
//! they do not agree the packet passes *stamped*: its true destination is judged once it can be
//! seen. This module must never touch a map itself; it asks [`Policies`].

use crate::layout::{
    BACKEND_ENDPOINT, BACKEND_ON_NODE, Backend, ServiceKey, backend_class, backend_port,
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
            _ => Self::Denied,
        }
    }
}

/// A Service's backends, asked one by one. Plain numbers, so that the kernel's loop can carry it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Asked {
    /// The set that is asked; 0: everything is allowed.
    pub set: u32,
    /// The endpoint that sends.
    pub endpoint: u32,
    /// The protocol.
    pub protocol: u32,
    /// Where the backends stand in the arena.
    pub offset: u32,
    n_asked: u32,
    n_allowed: u32,
    has_self: u32,
    hides_denied: u32,
}

impl Asked {
    /// Nobody has been asked yet.
    #[inline(always)]
    pub const fn new(set: u16, endpoint: u16, protocol: u8, offset: u32) -> Self {
        Self {
            set: set as u32,
            endpoint: endpoint as u32,
            protocol: protocol as u32,
            offset,
            n_asked: 0,
            n_allowed: 0,
            has_self: 0,
            hides_denied: 0,
        }
    }

    /// Takes one backend's word into account; `allows` is asked about its class and port.
    #[inline(always)]
    pub fn add(&mut self, backend: Backend, allows: impl FnOnce(u32, u16) -> bool) {
        if backend & BACKEND_ENDPOINT != 0 {
            self.has_self |= (backend_class(backend) == self.endpoint) as u32;
            return;
        }
        self.n_asked += 1;
        if self.set == 0 || allows(backend_class(backend), backend_port(backend)) {
            self.n_allowed += 1;
        } else if backend & BACKEND_ON_NODE != 0 {
            self.hides_denied = 1;
        }
    }

    /// The answer of all of them together.
    #[inline(always)]
    pub const fn answer(&self) -> ToService {
        let has_self = self.has_self != 0;
        if self.n_asked == self.n_allowed {
            return match (has_self, self.n_asked) {
                (true, _) => ToService::Own,
                (false, 0) => ToService::Empty,
                (false, _) => ToService::Allowed,
            };
        }
        if self.n_allowed == 0 && !has_self {
            ToService::Denied
        } else if self.hides_denied != 0 {
            ToService::Undecidable
        } else {
            ToService::Mixed
        }
    }
}

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
    let mut asked = Asked::new(set, endpoint, key.protocol, offset);
    for index in offset..offset + count {
        // A word that is not there is a backend that nothing allows.
        let backend = maps.backend(index);
        asked.add(backend.unwrap_or_default(), |class, port| {
            backend.is_some() && row_allows(maps, set, class, key.protocol, port)
        });
    }
    asked.answer()
}
