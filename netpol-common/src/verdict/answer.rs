//! What a verdict is made of, and the words in which separately verified functions of the kernel
//! pass it to each other. Must never decide anything.

use crate::flow::{OPENER, STAMPED};
use crate::layout::{Direction, Reason};

/// A verdict and what it was based on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the packet passes.
    pub is_allowed: bool,
    /// Why it was dropped, or [`Reason::NewFlow`].
    pub reason: Reason,
    /// Whether to count and report it (a packet of a known flow is neither).
    pub is_noted: bool,
    /// A live flow made room.
    pub has_evicted: bool,
    /// The packet passes, and is to be judged again once it is translated.
    pub is_stamped: bool,
    /// What is left to do in the flow table.
    pub then: Then,
    /// The remote address's class, if it was looked up.
    pub class: u32,
}

impl Verdict {
    pub(super) const PASS: Self = Self {
        is_allowed: true,
        reason: Reason::NewFlow,
        is_noted: false,
        has_evicted: false,
        is_stamped: false,
        then: Then::NOTHING,
        class: 0,
    };

    /// The verdict in one word, for passing between separately verified functions.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.is_allowed as u64
            | (self.is_noted as u64) << 1
            | (self.has_evicted as u64) << 2
            | (self.is_stamped as u64) << 3
            | (self.reason as u64) << 8
            | (self.then.0 as u64) << 16
            | (self.class as u64) << 32
    }

    /// The inverse of [`Self::pack`].
    #[inline(always)]
    pub fn unpack(word: u64) -> Self {
        Self {
            is_allowed: word & 1 != 0,
            is_noted: word & 2 != 0,
            has_evicted: word & 4 != 0,
            is_stamped: word & 8 != 0,
            reason: Reason::from_number((word >> 8) as u8).unwrap_or(Reason::Inconsistent),
            then: Then((word >> 16) as u8),
            class: (word >> 32) as u32,
        }
    }

    /// A drop for this reason, of a packet from or to an address of this class.
    #[inline(always)]
    pub const fn drop(reason: Reason, class: u32) -> Self {
        Self { is_allowed: false, reason, is_noted: true, class, ..Self::PASS }
    }
}

/// What is left to do in the flow table once a packet was judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Then(u8);

impl Then {
    /// Nothing.
    pub const NOTHING: Self = Self(0);
    /// To note that its flow was answered.
    pub const SETTLE: Self = Self(1);
    /// To note that its flow, which nobody translated, gets nowhere.
    pub const BAR: Self = Self(2);
    /// To note that it gets there again.
    pub const LIFT: Self = Self(3);
    const ENTER: u8 = 0x10;

    /// To enter its flow, with these bits for opener and stamp.
    #[inline(always)]
    pub const fn enter(bits: u64) -> Self {
        Self(Self::ENTER | (bits & (OPENER | STAMPED)) as u8)
    }

    /// Whether its flow was answered.
    #[inline(always)]
    pub const fn is_settling(self) -> bool {
        self.0 == Self::SETTLE.0
    }

    /// Whether its flow gets nowhere, if that is to be noted.
    #[inline(always)]
    pub const fn barring(self) -> Option<bool> {
        match self {
            Self::BAR => Some(true),
            Self::LIFT => Some(false),
            _ => None,
        }
    }

    /// The bits with which to enter its flow.
    #[inline(always)]
    pub const fn entering(self) -> Option<u64> {
        if self.0 & Self::ENTER == 0 { None } else { Some(self.0 as u64 & (OPENER | STAMPED)) }
    }
}

/// What is known of the flow that a packet belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum FlowState {
    /// Nothing that lets it pass without another look.
    Unknown = 0,
    /// It is allowed.
    Allowed = 1,
    /// It is allowed so far, and what the pod sends in it is to be judged again, translated.
    Stamped = 2,
}

impl FlowState {
    #[inline(always)]
    pub(super) const fn of(state: u64) -> Self {
        if state & STAMPED != 0 { Self::Stamped } else { Self::Allowed }
    }
}

/// What the policies say of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyVerdict {
    pub(super) is_allowed: bool,
    /// Its packets are to be judged again, translated.
    pub(super) is_stamped: bool,
    /// Denied because nobody can see where it will go.
    pub(super) is_undecidable: bool,
    /// Class of the remote address, if it was looked up.
    pub(super) class: u32,
}

impl PolicyVerdict {
    pub(super) const ALLOWED: Self =
        Self { is_allowed: true, is_stamped: false, is_undecidable: false, class: 0 };
    pub(super) const STAMPED: Self = Self { is_stamped: true, ..Self::ALLOWED };
    pub(super) const DENIED: Self = Self { is_allowed: false, ..Self::ALLOWED };
    pub(super) const UNDECIDABLE: Self = Self { is_undecidable: true, ..Self::DENIED };

    /// In one word, for passing between separately verified functions. Never zero.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.is_allowed as u64
            | (self.is_stamped as u64) << 1
            | (self.is_undecidable as u64) << 2
            | 1 << 3
            | (self.class as u64) << 32
    }

    /// The inverse of [`Self::pack`]; zero denies.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self {
            is_allowed: word & 1 != 0,
            is_stamped: word & 2 != 0,
            is_undecidable: word & 4 != 0,
            class: (word >> 32) as u32,
        }
    }

    /// Allowed if it can be judged again.
    #[inline(always)]
    pub(super) const fn stamped_if(is_ready: bool) -> Self {
        if is_ready { Self::STAMPED } else { Self::UNDECIDABLE }
    }

    #[inline(always)]
    pub(super) const fn reason(&self, otherwise: Reason) -> Reason {
        if self.is_undecidable { Reason::ServiceMixed } else { otherwise }
    }
}

/// What the policies said about one packet so far, by the direction of the flow: [`PolicyVerdict::pack`]
/// of it, zero where nobody asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Answers {
    /// Opened by the other side.
    pub ingress: u64,
    /// Opened by the pod.
    pub egress: u64,
}

impl Answers {
    #[inline(always)]
    pub(super) const fn get(self, direction: Direction) -> Result<PolicyVerdict, Direction> {
        let word = match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        };
        if word == 0 { Err(direction) } else { Ok(PolicyVerdict::unpack(word)) }
    }

    #[inline(always)]
    pub(super) const fn set(&mut self, direction: Direction, judged: PolicyVerdict) {
        match direction {
            Direction::Ingress => self.ingress = judged.pack(),
            Direction::Egress => self.egress = judged.pack(),
        }
    }
}

/// A verdict, or the direction that the policies have to be asked about first.
pub type FirstLook = Result<Verdict, Direction>;

/// In one word, see [`Verdict::pack`].
#[inline(always)]
pub const fn pack_looked(looked: FirstLook) -> u64 {
    match looked {
        Ok(verdict) => verdict.pack(),
        Err(Direction::Ingress) => ASKS,
        Err(Direction::Egress) => ASKS | ASKS_EGRESS,
    }
}

/// The inverse of [`pack_looked`].
#[inline(always)]
pub fn unpack_looked(word: u64) -> FirstLook {
    match (word & ASKS != 0, word & ASKS_EGRESS != 0) {
        (false, _) => Ok(Verdict::unpack(word)),
        (true, false) => Err(Direction::Ingress),
        (true, true) => Err(Direction::Egress),
    }
}

/// Bits that [`Verdict::pack`] does not use.
const ASKS: u64 = 1 << 4;
const ASKS_EGRESS: u64 = 1 << 5;
