//! Means and variances: sums in `f32` lanes of the differences from a value near the mean, added up in `f64`.

use super::simd::{Lanes, Simd};

/// Values that a lane adds up in `f32` before it hands its sum on. Rounding errors grow with it: where all values are
/// equal, they have the same sign, and may come to a quarter of a rounding for each.
pub(super) const CHAIN: usize = 32;

/// Sums over some elements of `x - shift` and of its square.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub(super) sum: f64,
    pub(super) squares: f64,
}

impl Sums {
    #[inline(always)]
    pub(super) fn add(&mut self, other: Self) {
        self.sum += other.sum;
        self.squares += other.squares;
    }
}

/// Mean and biased variance of `n` elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Moments {
    pub(super) mean: f64,
    pub(super) var: f64,
}

impl Moments {
    /// `None` where the shift was too far from the mean, or squares may have left the range of `f32`.
    ///
    /// Four variances between shift and mean cost less than three bits of the variance, and are rare with any value of
    /// the data as the shift.
    #[inline(always)]
    pub(super) fn of(sums: Sums, shift: f32, n: f64, eps: f32) -> Option<Self> {
        let share = n.recip();
        let delta = sums.sum * share;
        let square = sums.squares * share;
        let var = square - delta * delta;
        let in_range = (1e-24..1e34).contains(&square);
        // Squares of what is too small for f32 are nothing beside an eps like this.
        let nothing = sums.sum == 0.0 && sums.squares == 0.0 && eps >= 1e-20;
        let near = delta * delta <= 4.0 * var;
        (near && (in_range || nothing)).then_some(Self { mean: f64::from(shift) + delta, var })
    }

    /// Where [`of`](Self::of) gives none: in two passes of `f64`.
    #[cold]
    pub(super) fn exact(n: f64, values: impl Iterator<Item = f32> + Clone) -> Self {
        let mean = values.clone().map(f64::from).sum::<f64>() / n;
        let var = values.map(|v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        Self { mean, var }
    }
}

/// A chain of additions in each lane of two vectors, so that one need not wait for the other.
#[derive(Clone, Copy)]
pub(super) struct Chains<S: Simd> {
    sum: [Lanes<S>; 2],
    squares: [Lanes<S>; 2],
}

impl<S: Simd> Chains<S> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        let zero = Lanes::splat(0.0);
        Self { sum: [zero; 2], squares: [zero; 2] }
    }

    /// Adds differences from the shift to one of the chains.
    #[inline(always)]
    pub(super) fn push(&mut self, chain: usize, d: Lanes<S>) {
        self.sum[chain] = self.sum[chain] + d;
        self.squares[chain] = d.mul_add(d, self.squares[chain]);
    }

    /// Only their squares: the sum is not wanted.
    #[inline(always)]
    pub(super) fn push_square(&mut self, chain: usize, d: Lanes<S>) {
        self.squares[chain] = d.mul_add(d, self.squares[chain]);
    }

    #[inline(always)]
    pub(super) fn sums(&self) -> Sums {
        Sums {
            sum: f64::from((self.sum[0] + self.sum[1]).sum()),
            squares: f64::from((self.squares[0] + self.squares[1]).sum()),
        }
    }
}
