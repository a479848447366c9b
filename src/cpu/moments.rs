//! Means and variances: sums in `f32` lanes of the differences from a value near the mean, added up in `f64`.

use core::ops::Range;

use super::simd::{self, Lanes, Simd};

/// Values that a lane adds up in `f32` before it hands its sum on. Rounding errors grow with it: where all values are
/// equal, they have the same sign, and may come to a quarter of a rounding for each.
pub(super) const CHAIN: usize = 32;

/// Mean squares that leave no doubt that all squares and their sums were inside of the range of `f32`.
const SQUARES: Range<f64> = 1e-24..1e34;

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

/// Moments of the differences from a shift.
#[derive(Clone, Copy)]
struct Shifted {
    delta: f64,
    square: f64,
    var: f64,
}

impl Shifted {
    #[inline(always)]
    fn of(sums: Sums, n: f64) -> Self {
        let share = n.recip();
        let (delta, square) = (sums.sum * share, sums.squares * share);
        Self { delta, square, var: square - delta * delta }
    }

    /// Four variances between shift and mean cost less than three bits of the variance, and are rare with any value of the
    /// data as the shift.
    #[inline(always)]
    fn is_near(self) -> bool {
        self.delta * self.delta <= 4.0 * self.var
    }
}

/// [`Sums`] of several rows, laid out for vectors of them.
#[derive(Clone, Copy)]
pub(super) struct SumsOf<const R: usize> {
    sum: [f64; R],
    squares: [f64; R],
}

impl<const R: usize> SumsOf<R> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { sum: [0.0; R], squares: [0.0; R] }
    }

    /// Sums and sums of squares that are there.
    #[inline(always)]
    pub(super) fn from(sum: [f64; R], squares: [f64; R]) -> Self {
        Self { sum, squares }
    }

    #[inline(always)]
    pub(super) fn add(&mut self, other: Self) {
        for r in 0..R {
            self.sum[r] += other.sum[r];
            self.squares[r] += other.squares[r];
        }
    }

    /// Those of one row.
    #[inline(always)]
    pub(super) fn row(&self, r: usize) -> Sums {
        Sums { sum: self.sum[r], squares: self.squares[r] }
    }
}

/// Means and biased variances of several rows, laid out likewise.
#[derive(Clone, Copy)]
pub(super) struct MomentsOf<const R: usize> {
    pub(super) mean: [f64; R],
    pub(super) var: [f64; R],
}

impl<const R: usize> MomentsOf<R> {
    /// As [`Moments::of`]; `None` where that has to look at a row.
    #[inline(always)]
    pub(super) fn of(sums: &SumsOf<R>, shifts: &[f32; R], n: f64) -> Option<Self> {
        let (mut mean, mut var) = ([0.0; R], [0.0; R]);
        let mut all_good = true;
        for r in 0..R {
            let of_row = Shifted::of(sums.row(r), n);
            mean[r] = f64::from(shifts[r]) + of_row.delta;
            var[r] = of_row.var;
            // Without a branch for each, so that they are computed as a vector.
            all_good &= SQUARES.contains(&of_row.square) & of_row.is_near();
        }
        all_good.then_some(Self { mean, var })
    }
}

/// Mean and biased variance of `n` elements.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Moments {
    pub(super) mean: f64,
    pub(super) var: f64,
}

impl Moments {
    /// `None` where the shift was too far from the mean, or squares may have left the range of `f32`.
    #[inline(always)]
    pub(super) fn of(sums: Sums, shift: f32, n: f64, eps: f32) -> Option<Self> {
        let of_sums = Shifted::of(sums, n);
        let in_range = SQUARES.contains(&of_sums.square);
        // Squares of what is too small for f32 are nothing beside an eps like this.
        let nothing = sums.sum == 0.0 && sums.squares == 0.0 && eps >= 1e-20;
        (of_sums.is_near() && (in_range || nothing))
            .then_some(Self { mean: f64::from(shift) + of_sums.delta, var: of_sums.var })
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

    /// The sums of the chains of several rows.
    #[inline(always)]
    pub(super) fn sums_of<const R: usize>(chains: &[Self; R]) -> SumsOf<R> {
        let zero = Lanes::splat(0.0);
        let (mut sum, mut squares) = ([zero; R], [zero; R]);
        for r in 0..R {
            sum[r] = chains[r].sum[0] + chains[r].sum[1];
            squares[r] = chains[r].squares[0] + chains[r].squares[1];
        }
        let (sum, squares) = (simd::sums(sum), simd::sums(squares));
        let mut sums = SumsOf::new();
        for r in 0..R {
            sums.sum[r] = f64::from(sum[r]);
            sums.squares[r] = f64::from(squares[r]);
        }
        sums
    }

    #[inline(always)]
    pub(super) fn sums(&self) -> Sums {
        Self::sums_of(&[*self]).row(0)
    }
}
