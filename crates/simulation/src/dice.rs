//! Chance, by seed. Each thing that happens draws from dice of its own, so that two things at the same instant cannot swap their luck.

use std::hash::{DefaultHasher, Hash, Hasher};

/// A small generator.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// Dice for one purpose of a run.
    pub(crate) fn of(seed: u64, purpose: impl Hash) -> Self {
        // `DefaultHasher::new` has fixed keys: the same everywhere.
        let mut hasher = DefaultHasher::new();
        (seed, purpose).hash(&mut hasher);
        Self(hasher.finish() | 1)
    }

    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % sides
    }

    pub(crate) fn place(&mut self, sides: usize) -> usize {
        usize::try_from(self.roll(sides as u64)).unwrap_or(0)
    }

    /// True once in `odds` times.
    pub(crate) fn rarely(&mut self, odds: u64) -> bool {
        self.roll(odds) == 0
    }
}
