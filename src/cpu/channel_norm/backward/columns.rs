//! The backward pass where channels lie side by side.

use core::ops::Range;
use std::borrow::Cow;

use super::{
    super::{
        grid::{Grid, Pass, Summands, Summed, Table, Written, by_segments},
        numbers::{self, of_slabs},
    },
    Call, Constants, Either, SlabSums, Specialized, Tensors,
};
use crate::{
    Element,
    cpu::{
        memory::{Run, Shared, Source, Span},
        parallel,
        simd::{Lanes, Simd, dispatch},
    },
};

/// What gradients are made with, for the columns of each segment.
struct Numbers<'a> {
    /// Of each slab.
    rstd: Cow<'a, [f32]>,
    /// Of each segment what is known, then of each what the sums give: the weight as they complete it, `minus_mean_g` and `slope`.
    table: Table,
    /// Rows of a segment that are known: the mean and, unless all slabs are folded, `rstd`, weight and bias.
    known: usize,
    segments: usize,
    /// Whether there are those of the sums.
    is_complete: bool,
}

/// Rows of a segment that the sums give.
const OF_SUMS: usize = 3;

impl<'a> Numbers<'a> {
    fn new<T: Element>(grid: &Grid, call: &'a Call<'_, T>) -> Self {
        let (shape, segments) = (call.shape, call.shape.segments());
        let known = if call.all_fold() { 1 } else { 4 };
        let (mean, rstd) = (of_slabs(call.mean, shape.group()), of_slabs(call.rstd, shape.group()));
        let mut table = Table::with_capacity(grid, segments * (known + OF_SUMS));
        for (mean, rstd) in mean.chunks(shape.channels()).zip(rstd.chunks(shape.channels())) {
            match known {
                1 => grid.add_to(&mut table, |[row]| row.copy_from_slice(mean)),
                _ => grid.add_to(&mut table, |rows: [&mut [f32]; 4]| {
                    let numbers = [mean, rstd, &call.params.weight, &call.params.bias];
                    rows.into_iter().zip(numbers).for_each(|(row, numbers)| row.copy_from_slice(numbers));
                }),
            }
        }
        Self { rstd, table, known, segments, is_complete: false }
    }

    fn complete<T: Element>(&mut self, grid: &Grid, call: &Call<'_, T>, sums: &SlabSums) {
        let shape = call.shape;
        let share = (shape.per_statistic() as f64).recip();
        for (segment, rstd) in self.rstd.chunks(shape.channels()).enumerate() {
            let left_out = call.folds(segment).then_some(rstd);
            let of_segment = sums.of_segment(segment);
            grid.add_to(&mut self.table, |rows| {
                numbers::completed(of_segment, &call.params.weight, left_out, share, shape.group(), rows);
            });
        }
        self.is_complete = true;
    }

    fn sources(&self, segment: usize) -> [Source<'_, f32>; 6] {
        // What is not there is not looked at, but has to be as long.
        let [mean, rstd, weight, bias] = match self.known {
            1 => [self.table.rows::<1>(segment)[0]; 4],
            known => self.table.rows(segment * known),
        };
        let [weight, minus_mean_g, slope] = match self.is_complete {
            true => self.table.rows(self.segments * self.known + segment * OF_SUMS),
            false => [weight, mean, mean],
        };
        [mean, rstd, weight, bias, minus_mean_g, slope]
    }
}

/// Writes what is wanted, and gives the sums over each slab where they are.
pub(super) fn backward<T: Element>(call: &Call<'_, T>, sums_wanted: bool) -> SlabSums {
    if !by_segments(call.shape, call.bytes) {
        return at_once(call, sums_wanted);
    }
    let mut sums = SlabSums::zeros(call.shape);
    let out = Shared::new(&mut sums.values);
    parallel::for_each(call.shape.segments(), call.bytes, |segment| {
        let SlabSums { values, .. } = at_once(&call.segment(segment), sums_wanted);
        // SAFETY: each segment has slabs of its own.
        let out = unsafe { out.target().slice(segment * values.len(), values.len()) };
        out.copy_from_slice(&values);
    });
    sums
}

fn at_once<T: Element>(call: &Call<'_, T>, sums_wanted: bool) -> SlabSums {
    let grid = Grid::new(call.shape);
    let mut numbers = Numbers::new(&grid, call);
    let sums = match sums_wanted || call.training && call.dx.is_some() {
        true => add_up(call, grid, &numbers),
        false => SlabSums::zeros(call.shape),
    };
    if call.dx.is_none() && call.dresidual.is_none() {
        return sums;
    }
    numbers.complete(&grid, call, &sums);
    // Of two tensors that much, little is left in a cache. One thread of AMD Zen 4, BatchNorm of 26 MB in f32, first / last ones
    // first 3.97 / 4.21 ms.
    let last_first = !parallel::is_beyond_caches(call.bytes);
    grid.for_blocks::<T>(2, last_first, call.bytes, |segment, blocks| {
        // SAFETY: blocks have rows of their own.
        let tensors = unsafe { Tensors::written(call, call.folds(segment)) };
        let work = Blocks { grid, segment, blocks, tensors, numbers: numbers.sources(segment) };
        dispatch(Either { is_plain: tensors.is_plain(), work });
    });
    sums
}

fn add_up<T: Element>(call: &Call<'_, T>, grid: Grid, numbers: &Numbers<'_>) -> SlabSums {
    let mut values = grid.totals(call.bytes, |segment, summands| {
        let tensors = Tensors::read(call, call.folds(segment));
        let work = BlockSums { grid, summands, tensors, numbers: numbers.sources(segment) };
        dispatch(Either { is_plain: tensors.is_plain(), work });
    });
    let channels = call.shape.channels();
    let segments = values.chunks_mut(2 * channels).zip(numbers.rstd.chunks(channels));
    for (segment, (values, rstd)) in segments.enumerate() {
        if call.folds(segment) {
            values[channels..].iter_mut().zip(rstd).for_each(|(dx_hat, &rstd)| *dx_hat *= f64::from(rstd));
        }
    }
    SlabSums { values, channels }
}

/// The tensors, and the numbers of their columns.
struct Columns<'a, T, const PLAIN: bool> {
    tensors: Tensors<'a, T>,
    numbers: [Source<'a, f32>; 6],
}

impl<T, const PLAIN: bool> Clone for Columns<'_, T, PLAIN> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<T, const PLAIN: bool> Copy for Columns<'_, T, PLAIN> {}

impl<S: Simd, T: Element, const PLAIN: bool> Pass<S> for Columns<'_, T, PLAIN> {
    type Constant = Constants<S>;
    const TENSORS: usize = 3;
    const TWO_STRIPS: bool = PLAIN;

    #[inline(always)]
    fn constant(self, columns: Span) -> Constants<S> {
        let [mean, rstd, weight, bias, minus_mean_g, slope] = self.numbers;
        Constants {
            mean: mean.load(columns),
            rstd: rstd.load(columns),
            weight: weight.load(columns),
            bias: bias.load(columns),
            minus_mean_g: minus_mean_g.load(columns),
            slope: slope.load(columns),
        }
    }
    #[inline(always)]
    fn prefetch_next(self, run: Run, ahead: usize, len: usize) {
        run.from(self.tensors.x).prefetch_second_run::<S>(ahead, len);
        run.from(self.tensors.dy).prefetch_second_run::<S>(ahead, len);
        if !PLAIN && let Some(residual) = self.tensors.residual {
            run.from(residual).prefetch_second_run::<S>(ahead, len);
        }
    }
}

impl<S: Simd, T: Element, const PLAIN: bool> Summed<S> for Columns<'_, T, PLAIN> {
    #[inline(always)]
    fn terms(self, constants: Constants<S>, span: Span) -> [Lanes<S>; 3] {
        let (d, x_hat) = self.tensors.gradient::<S, PLAIN>(constants, self.tensors.load(span), span);
        [d, d, x_hat]
    }
}

impl<S: Simd, T: Element, const PLAIN: bool> Written<S> for Columns<'_, T, PLAIN> {
    type Loaded = [Lanes<S>; 2];
    #[inline(always)]
    fn streams(self) -> bool {
        self.tensors.past
    }
    #[inline(always)]
    fn head(self, block: Run) -> usize {
        self.tensors.before_line::<S>(block)
    }
    #[inline(always)]
    fn load(self, span: Span) -> [Lanes<S>; 2] {
        self.tensors.load(span)
    }
    #[inline(always)]
    fn write(self, constants: Constants<S>, loaded: [Lanes<S>; 2], span: Span) {
        self.tensors.write::<S, PLAIN>(constants, loaded, span);
    }
}

/// The sums of some blocks.
struct BlockSums<'a, T> {
    grid: Grid,
    summands: Summands<'a>,
    tensors: Tensors<'a, T>,
    numbers: [Source<'a, f32>; 6],
}

impl<T: Element> Specialized for BlockSums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const PLAIN: bool>(self) {
        let Self { grid, summands, tensors, numbers } = self;
        grid.sum::<S, T, _>(summands, Columns::<T, PLAIN> { tensors, numbers }, tensors.far);
    }
}

/// Blocks of one segment to be written.
struct Blocks<'a, T> {
    grid: Grid,
    segment: usize,
    blocks: Range<usize>,
    tensors: Tensors<'a, T>,
    numbers: [Source<'a, f32>; 6],
}

impl<T: Element> Specialized for Blocks<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const PLAIN: bool>(self) {
        let Self { grid, segment, blocks, tensors, numbers } = self;
        let (far, last_first) = (tensors.far, !tensors.far);
        if !tensors.past {
            // A loop of its own, that need not ask at each vector: registers are short.
            let tensors = Tensors { past: false, ..tensors };
            let columns = Columns::<T, PLAIN> { tensors, numbers };
            return grid.write::<S, T, _>(segment, blocks, columns, far, last_first);
        }
        grid.write::<S, T, _>(segment, blocks, Columns::<T, PLAIN> { tensors, numbers }, far, last_first);
    }
}
