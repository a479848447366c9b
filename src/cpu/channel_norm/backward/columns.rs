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

/// What the gradients of a segment are made with.
struct Numbers<'a> {
    folds: bool,
    /// Of each slab.
    rstd: Cow<'a, [f32]>,
    /// The mean and, where slabs are not folded, `rstd`, weight and bias.
    known: Table,
    /// The weight as the sums over the slabs complete it, `minus_mean_g` and `slope`, once the sums are there.
    of_sums: Option<Table>,
}

impl<'a> Numbers<'a> {
    fn new<T: Element>(grid: &Grid, call: &'a Call<'_, T>, segment: usize) -> Self {
        let (shape, folds) = (call.shape, call.folds[segment]);
        let of_segment = shape.channels() / shape.group();
        let statistics = segment * of_segment..(segment + 1) * of_segment;
        let mean = of_slabs(&call.mean[statistics.clone()], shape.group());
        let rstd = of_slabs(&call.rstd[statistics], shape.group());
        let known = match folds {
            true => grid.table([&mean]),
            false => grid.table([&mean, &rstd, &call.params.weight, &call.params.bias]),
        };
        Self { folds, rstd, known, of_sums: None }
    }

    /// `sums` are of `d` and `d * x_hat`.
    fn complete<T: Element>(&mut self, grid: &Grid, call: &Call<'_, T>, sums: [&[f64]; 2]) {
        let shape = call.shape;
        let left_out = self.folds.then_some(&*self.rstd);
        let share = (shape.per_statistic() as f64).recip();
        let rows = numbers::completed(sums, &call.params.weight, left_out, share, shape.group());
        let (weight, others) = rows.split_at(shape.channels());
        let (minus_mean_g, slope) = others.split_at(shape.channels());
        self.of_sums = Some(grid.table([weight, minus_mean_g, slope]));
    }

    fn sources(&self) -> [Source<'_, f32>; 6] {
        // What is not there is not looked at, but has to be as long.
        let [mean, rstd, weight, bias] = match self.folds {
            true => [self.known.rows::<1>(0)[0]; 4],
            false => self.known.rows(0),
        };
        let [weight, minus_mean_g, slope] = match &self.of_sums {
            Some(of_sums) => of_sums.rows(0),
            None => [weight, mean, mean],
        };
        [mean, rstd, weight, bias, minus_mean_g, slope]
    }
}

/// Writes what is wanted, and gives the sums over each slab where they are.
pub(super) fn backward<T: Element>(call: &Call<'_, T>, sums_wanted: bool) -> SlabSums {
    if !by_segments(call.shape, call.bytes) {
        return at_once(call, sums_wanted);
    }
    let slabs = call.shape.channels();
    let mut sums = SlabSums::zeros(call.shape.slabs());
    let (d, dx_hat) = (Shared::new(&mut sums.d), Shared::new(&mut sums.dx_hat));
    parallel::for_each(call.shape.segments(), call.bytes, |segment| {
        let of_segment = at_once(&call.segment(segment), sums_wanted);
        for (out, sums) in [(d, of_segment.d), (dx_hat, of_segment.dx_hat)] {
            // SAFETY: each segment has slabs of its own.
            let out = unsafe { out.target().slice(segment * slabs, slabs) };
            out.copy_from_slice(&sums);
        }
    });
    sums
}

fn at_once<T: Element>(call: &Call<'_, T>, sums_wanted: bool) -> SlabSums {
    let (shape, grid) = (call.shape, Grid::new(call.shape));
    let slabs = |segment: usize| segment * shape.channels()..(segment + 1) * shape.channels();
    let mut numbers: Vec<_> =
        (0..shape.segments()).map(|segment| Numbers::new(&grid, call, segment)).collect();
    let sums = match sums_wanted || call.training && call.dx.is_some() {
        true => add_up(call, grid, &numbers),
        false => SlabSums::zeros(shape.slabs()),
    };
    if call.dx.is_none() && call.dresidual.is_none() {
        return sums;
    }
    for (segment, numbers) in numbers.iter_mut().enumerate() {
        numbers.complete(&grid, call, [&sums.d[slabs(segment)], &sums.dx_hat[slabs(segment)]]);
    }
    // Of two tensors that much, little is left in a cache. One thread of AMD Zen 4, BatchNorm of 26 MB in f32, first / last ones
    // first 3.97 / 4.21 ms.
    let last_first = !parallel::is_beyond_caches(call.bytes);
    grid.for_blocks::<T>(2, last_first, call.bytes, |segment, blocks| {
        // SAFETY: blocks have rows of their own.
        let tensors = unsafe { Tensors::written(call, numbers[segment].folds) };
        let work = Blocks { grid, segment, blocks, tensors, numbers: numbers[segment].sources() };
        dispatch(Either { is_plain: tensors.is_plain(), work });
    });
    sums
}

fn add_up<T: Element>(call: &Call<'_, T>, grid: Grid, numbers: &[Numbers<'_>]) -> SlabSums {
    let totals = grid.totals(call.bytes, |segment, summands| {
        let (tensors, numbers) = (Tensors::read(call, numbers[segment].folds), numbers[segment].sources());
        let work = BlockSums { grid, summands, tensors, numbers };
        dispatch(Either { is_plain: tensors.is_plain(), work });
    });
    let slabs = call.shape.slabs();
    let mut sums = SlabSums { d: Vec::with_capacity(slabs), dx_hat: Vec::with_capacity(slabs) };
    for (numbers, of_segment) in numbers.iter().zip(totals.chunks(2 * call.shape.channels())) {
        let (d, dx_hat) = of_segment.split_at(call.shape.channels());
        sums.d.extend_from_slice(d);
        match numbers.folds {
            true => {
                sums.dx_hat.extend(dx_hat.iter().zip(&*numbers.rstd).map(|(v, &rstd)| v * f64::from(rstd)))
            }
            false => sums.dx_hat.extend_from_slice(dx_hat),
        }
    }
    sums
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
        if !tensors.past {
            // A loop of its own, that need not ask at each vector: registers are short.
            let tensors = Tensors { past: false, ..tensors };
            return grid.write::<S, T, _>(
                segment,
                blocks,
                Columns::<T, PLAIN> { tensors, numbers },
                tensors.far,
            );
        }
        grid.write::<S, T, _>(segment, blocks, Columns::<T, PLAIN> { tensors, numbers }, tensors.far);
    }
}
