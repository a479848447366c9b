//! The backward pass where channels lie side by side.

use core::ops::Range;

use super::{
    super::grid::{Grid, Pass, Summed, Written, by_segments},
    Call, Constants, Either, Slab, Specialized, Tensors,
};
use crate::{
    Element,
    cpu::{
        memory::{Run, Shared, Source, Span},
        moments::Sums,
        parallel,
        simd::{Lanes, Simd, dispatch},
        totals::UnitSums,
    },
};

/// What the slabs of a segment are made with, for each column.
struct Expanded {
    mean: Vec<f32>,
    /// Where slabs are not folded.
    known: Option<[Vec<f32>; 2]>,
    /// From the sums over the slabs, once these are there; where slabs are not folded the weight is there before.
    of_sums: [Vec<f32>; 3],
}

impl Expanded {
    fn new(grid: &Grid, slabs: &[Slab], folds: bool) -> Self {
        let known =
            || [grid.expand(|channel| slabs[channel].rstd), grid.expand(|channel| slabs[channel].bias)];
        let weight = if folds { Vec::new() } else { grid.expand(|channel| slabs[channel].weight) };
        Self {
            mean: grid.expand(|channel| slabs[channel].mean),
            known: (!folds).then(known),
            of_sums: [weight, Vec::new(), Vec::new()],
        }
    }

    fn complete(&mut self, grid: &Grid, slabs: &[Slab]) {
        self.of_sums = [
            grid.expand(|channel| slabs[channel].weight),
            grid.expand(|channel| slabs[channel].minus_mean_g),
            grid.expand(|channel| slabs[channel].slope),
        ];
    }

    fn sources(&self) -> [Source<'_, f32>; 6] {
        // What is not there is not looked at, but has to be as long.
        let or_any = |v| Source::new(if <[f32]>::is_empty(v) { &self.mean } else { v });
        let [rstd, bias] = self.known.as_ref().map_or([&self.mean; 2], |[rstd, bias]| [rstd, bias]);
        let [weight, minus_mean_g, slope] = &self.of_sums;
        [&self.mean, rstd, weight, bias, minus_mean_g, slope].map(|v| or_any(v))
    }
}

/// Writes what is wanted, and gives the sums over each slab where they are.
pub(super) fn backward<T: Element>(call: &Call<'_, T>, sums_wanted: bool) -> Vec<Sums> {
    if !by_segments(call.shape, call.bytes) {
        return at_once(call, sums_wanted);
    }
    let slabs = call.shape.channels();
    let mut sums = vec![Sums::default(); call.shape.slabs()];
    let out = Shared::new(&mut sums);
    parallel::for_each(call.shape.segments(), call.bytes, |segment| {
        // SAFETY: each segment has slabs of its own.
        let out = unsafe { out.target().slice(segment * slabs, slabs) };
        out.copy_from_slice(&at_once(&call.segment(segment), sums_wanted));
    });
    sums
}

fn at_once<T: Element>(call: &Call<'_, T>, sums_wanted: bool) -> Vec<Sums> {
    let (shape, grid) = (call.shape, Grid::new(call.shape));
    let mut slabs = call.slabs();
    let share = (shape.per_statistic() as f64).recip();
    let mut sums = vec![Sums::default(); shape.slabs()];
    let mut expanded: Vec<_> = slabs
        .chunks(shape.channels())
        .zip(&call.folds)
        .map(|(slabs, &folds)| Expanded::new(&grid, slabs, folds))
        .collect();
    if sums_wanted || call.training && call.dx.is_some() {
        add_up(call, grid, &expanded, &mut sums);
        for (sums, slab) in sums.iter_mut().zip(&slabs) {
            sums.squares *= Call::<T>::left_out(slab);
        }
    }
    if call.dx.is_none() && call.dresidual.is_none() {
        return sums;
    }
    for (slabs, sums) in slabs.chunks_mut(shape.group()).zip(sums.chunks(shape.group())) {
        call.complete(share, slabs, sums);
    }
    for (expanded, slabs) in expanded.iter_mut().zip(slabs.chunks(shape.channels())) {
        expanded.complete(&grid, slabs);
    }
    parallel::for_each_last_first(grid.units(), 2 * grid.block_bytes::<T>(), call.bytes, |unit| {
        // SAFETY: a unit touches its own rows only.
        let tensors = unsafe { Tensors::written(call, call.folds[grid.segment(unit)]) };
        let numbers = expanded[grid.segment(unit)].sources();
        dispatch(Either { is_plain: tensors.is_plain(), work: Block { grid, unit, tensors, numbers } });
    });
    sums
}

fn add_up<T: Element>(call: &Call<'_, T>, grid: Grid, expanded: &[Expanded], sums: &mut [Sums]) {
    let totals = grid.totals(call.bytes, |segment, blocks, sums| {
        let (tensors, numbers) = (Tensors::read(call, call.folds[segment]), expanded[segment].sources());
        let work = BlockSums { grid, blocks, tensors, numbers, sums };
        dispatch(Either { is_plain: tensors.is_plain(), work });
    });
    for (sums, columns) in sums.chunks_mut(call.shape.channels()).zip(totals) {
        let (d, dx_hat) = columns.split_at(grid.width);
        grid.per_channel(d, |channel, v| sums[channel].sum += v);
        grid.per_channel(dx_hat, |channel, v| sums[channel].squares += v);
    }
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
    blocks: Range<usize>,
    tensors: Tensors<'a, T>,
    numbers: [Source<'a, f32>; 6],
    sums: UnitSums<'a>,
}

impl<T: Element> Specialized for BlockSums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const PLAIN: bool>(self) {
        let Self { grid, blocks, tensors, numbers, sums } = self;
        grid.sum::<S, T, _>(blocks, Columns::<T, PLAIN> { tensors, numbers }, sums, tensors.far);
    }
}

/// A block to be written.
struct Block<'a, T> {
    grid: Grid,
    unit: usize,
    tensors: Tensors<'a, T>,
    numbers: [Source<'a, f32>; 6],
}

impl<T: Element> Specialized for Block<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const PLAIN: bool>(self) {
        let Self { grid, unit, tensors, numbers } = self;
        grid.write::<S, T, _>(unit, Columns::<T, PLAIN> { tensors, numbers }, tensors.far);
    }
}
