//! How the programs for measurements choose another packet in each run: by a note that stands
//! where the frame's link-layer addresses would, which no other program reads. Must never be used
//! by a program that is attached.

/// Bytes of a [`Spread`] at the beginning of a frame.
pub const BYTES: usize = 12;

/// Visit in turn, not in random order.
pub const IN_TURN: u8 = 1;
/// The choice becomes the lower three bytes of the remote address.
pub const ADDRESS: u8 = 2;
/// The choice becomes the destination port: [`Spread::first_port`] and every eighth after it.
pub const PORT: u8 = 4;
/// The source port counts up, so that every run is of a flow of its own.
pub const FRESH: u8 = 8;
/// The packet comes from the pod, so its destination is remote.
pub const EGRESS: u8 = 16;
/// Distance of the ports that [`PORT`] chooses from.
pub const PORT_STEP: u16 = 8;

/// What is chosen from, and where the choice stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    /// The last choice, or where the random numbers have got to.
    pub state: u32,
    /// How many there are to choose from.
    pub count: u32,
    /// See [`PORT`].
    pub first_port: u16,
    /// The bits above.
    pub flags: u8,
}

impl Spread {
    /// From the beginning of a frame.
    #[inline(always)]
    pub const fn from_words(words: [u32; 3]) -> Self {
        let [state, count, rest] = words;
        Self { state, count, first_port: rest as u16, flags: (rest >> 16) as u8 }
    }

    /// For the beginning of a frame.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 3] {
        [self.state, self.count, self.first_port as u32 | (self.flags as u32) << 16]
    }

    /// Whether this bit is set.
    #[inline(always)]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The next choice, below the count.
    #[inline(always)]
    pub const fn choose(&mut self) -> u32 {
        if self.has(IN_TURN) {
            self.state = if self.state + 1 < self.count { self.state + 1 } else { 0 };
            return self.state;
        }
        // Of a linear congruential generator (Numerical Recipes) the upper bits are the good ones;
        // multiplied by the count, they say which.
        self.state = self.state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((self.state as u64 * self.count as u64) >> 32) as u32
    }

    /// The destination port of this choice.
    #[inline(always)]
    pub const fn port(&self, choice: u32) -> u16 {
        self.first_port.wrapping_add((choice as u16).wrapping_mul(PORT_STEP))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Spread = Spread { state: 0, count: 1_000, first_port: 10_000, flags: 0 };

    #[test]
    fn it_survives_the_frame() {
        let spread = Spread { state: 0x1234_5678, flags: PORT | EGRESS, ..NONE };
        assert_eq!(Spread::from_words(spread.words()), spread);
    }

    #[test]
    fn in_turn_visits_each_once() {
        let mut spread = Spread { flags: IN_TURN, ..NONE };
        let mut seen: Vec<u32> = (0..1_000).map(|_| spread.choose()).collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..1_000));
        let mut single = Spread { flags: IN_TURN, count: 1, ..NONE };
        assert_eq!([single.choose(), single.choose()], [0, 0]);
    }

    #[test]
    fn random_order_reaches_nearly_all_about_equally_often() {
        let mut spread = NONE;
        let mut visits = [0u32; 1_000];
        for _ in 0..100_000 {
            visits[spread.choose() as usize] += 1;
        }
        assert!(visits.iter().all(|count| (40..200).contains(count)), "{visits:?}");
    }

    #[test]
    fn ports_are_eight_apart() {
        assert_eq!([NONE.port(0), NONE.port(1), NONE.port(999)], [10_000, 10_008, 17_992]);
    }
}
