mod backward;
mod forward;

pub(super) use backward::backward;
pub(super) use forward::forward;

use core::ops::Range;

use super::{
    memory::{Source, Span, Target},
    simd::{Lanes, Simd},
};
use crate::{Element, shape::RowShape};

/// Longer rows are worked on one at a time, others by four while they are in a cache: memory is read faster as one stream than
/// as four. One thread of AMD Zen 4, one at a time / by four: forward in f32, 4,096 rows of 768 0.52 / 1.65 ms, 16,384 of 256
/// 0.45 / 1.34; backward in f16, 1,024 of 4,096 1.6 / 3.0 ms, in f32 8,192 of 256 0.84 / 2.3, of 128, 12 MB, 0.49 / 0.41 and 100
/// MB 5.1 / 12.9.
const LONG_ROW: usize = 256;

/// Work on some of the rows of a call.
trait ByRows {
    fn cols(&self) -> usize;
    /// Whether rows are worked on by four, where there are registers for it.
    fn by_four(&self) -> bool;
    /// The rows from `row` on: `R` of them have chains of operations that do not wait for one another.
    fn rows<S: Simd, const R: usize>(&self, row: usize);
}

/// As many rows at a time as is fastest.
#[inline(always)]
fn walk<S: Simd>(work: &impl ByRows, rows: Range<usize>) {
    let mut row = rows.start;
    if S::ROWS == 4 && work.by_four() {
        while row + 4 <= rows.end {
            work.rows::<S, 4>(row);
            row += 4;
        }
    }
    while row < rows.end {
        work.rows::<S, 1>(row);
        row += 1;
    }
}

/// Where rows lie in a tensor whose blocks of rows start `stride` apart.
#[derive(Clone, Copy)]
struct Place {
    shape: RowShape,
    stride: usize,
}

impl Place {
    /// Whether there is nothing between blocks.
    #[inline(always)]
    fn is_dense(&self) -> bool {
        self.stride == self.shape.block() * self.shape.cols()
    }

    /// The start of a row.
    #[inline(always)]
    fn of(&self, row: usize) -> usize {
        let (block, cols) = (self.shape.block(), self.shape.cols());
        if self.is_dense() {
            return row * cols;
        }
        row / block * self.stride + row % block * cols
    }

    /// Several rows of a tensor.
    #[inline(always)]
    fn rows<'a, T, const R: usize>(&self, data: Source<'a, T>, first: usize) -> [Source<'a, T>; R] {
        if self.is_dense() {
            return data.runs(self.of(first), self.shape.cols());
        }
        let mut rows = [data; R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = data.run(self.of(first + r), self.shape.cols());
        }
        rows
    }

    /// Several rows of a tensor that is written.
    #[inline(always)]
    fn rows_mut<'a, T, const R: usize>(&self, data: Target<'a, T>, first: usize) -> [Target<'a, T>; R] {
        if self.is_dense() {
            return data.runs(self.of(first), self.shape.cols());
        }
        let mut rows = [data; R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = data.run(self.of(first + r), self.shape.cols());
        }
        rows
    }
}

/// Runs that the compiler knows to be as long as each other.
///
/// Here as elsewhere a loop, because `map` and `from_fn` are calls wherever the compiler finds them too large.
#[inline(always)]
fn as_long<T, const R: usize>(mut rows: [Source<'_, T>; R], start: usize, len: usize) -> [Source<'_, T>; R] {
    for row in &mut rows {
        *row = row.run(start, len);
    }
    rows
}

/// Each number in all lanes of a vector.
#[inline(always)]
fn splat<S: Simd, const R: usize>(values: [f32; R]) -> [Lanes<S>; R] {
    let mut all = [Lanes::splat(0.0); R];
    for r in 0..R {
        all[r] = Lanes::splat(values[r]);
    }
    all
}

/// A vector of each row.
#[inline(always)]
fn load<S: Simd, T: Element, const R: usize>(rows: [Source<'_, T>; R], span: Span) -> [Lanes<S>; R] {
    let mut all = [Lanes::splat(0.0); R];
    for r in 0..R {
        all[r] = rows[r].load(span);
    }
    all
}
