//! The forward pass where channels lie side by side.

use super::{
    forward::Call,
    grid::{self, Grid, Pass, Summed, Written},
    runs::Finish,
    slab::{Scale, Slab, activate, write_exact},
};
use crate::{
    Element,
    cpu::{
        memory::{Source, Span, Target},
        moments::{Moments, Sums},
        parallel,
        simd::{Kernel, Lanes, Simd, dispatch},
    },
};

/// Positions that a first shift is the mean of.
const SAMPLES: usize = 16;

/// Moments of each statistic.
pub(super) fn moments<T: Element>(call: &Call<'_, T>, moments: &mut [Moments]) {
    let (shape, grid) = (call.shape, Grid::new(call.shape));
    let slabs = shape.slabs();
    // SAFETY: nobody writes it here.
    let x = call.source(unsafe { call.y.target() });
    let n = shape.per_slab() as f64;

    let shifts = first_shifts(call, x);
    let sums = sums(call, grid, &shifts);
    let mut of_slabs: Vec<_> =
        (0..slabs).map(|slab| Moments::of(sums[slab], shifts[slab], n, call.eps)).collect();
    if of_slabs.iter().any(Option::is_none) {
        let shifts: Vec<f32> =
            (0..slabs).map(|slab| (f64::from(shifts[slab]) + sums[slab].sum / n) as f32).collect();
        let sums = self::sums(call, grid, &shifts);
        for slab in 0..slabs {
            if of_slabs[slab].is_none() {
                let again = Moments::of(sums[slab], shifts[slab], n, call.eps);
                of_slabs[slab] = Some(again.unwrap_or_else(|| exact(call, x, slab)));
            }
        }
    }
    for (statistic, out) in moments.iter_mut().enumerate() {
        let group = &of_slabs[statistic * shape.group()..][..shape.group()];
        *out = merged(group.iter().flatten());
    }
}

/// Moments of as many elements each as those of all.
fn merged<'a>(parts: impl Iterator<Item = &'a Moments>) -> Moments {
    let mut all = Moments { mean: 0.0, var: 0.0 };
    for (i, part) in parts.enumerate() {
        let (before, share) = (i as f64, 1.0 / (i + 1) as f64);
        let delta = part.mean - all.mean;
        all.mean = if i == 0 { part.mean } else { all.mean + delta * share };
        // The first has nothing to differ from; its mean may not be finite.
        let spread = if i == 0 { 0.0 } else { delta * delta * before * share };
        all.var = (all.var * before + part.var + spread) * share;
    }
    all
}

/// For each slab a value near its mean. It is that of its elements where they are equal.
fn first_shifts<T: Element>(call: &Call<'_, T>, x: Source<'_, T>) -> Vec<f32> {
    let shape = call.shape;
    let (outer, channels, inner) = (shape.outer(), shape.channels(), shape.inner());
    let samples = outer.min(SAMPLES);
    let mut shifts = vec![0.0; shape.slabs()];
    for (segment, shifts) in shifts.chunks_mut(channels).enumerate() {
        let start = |sample: usize| (segment * outer + sample * outer / samples) * channels * inner;
        for (channel, shift) in shifts.iter_mut().enumerate() {
            *shift = x.one(start(0) + channel * inner);
        }
        let mut sums = vec![0.0; channels];
        for sample in 0..samples {
            let row = x.run(start(sample), channels * inner);
            for (channel, sum) in sums.iter_mut().enumerate() {
                *sum += row.one(channel * inner) - shifts[channel];
            }
        }
        for (shift, sum) in shifts.iter_mut().zip(sums) {
            let near = *shift + sum / samples as f32;
            *shift = if near.is_finite() { near } else { *shift };
        }
    }
    shifts
}

/// Sums of the differences from a shift, for each slab.
fn sums<T: Element>(call: &Call<'_, T>, grid: Grid, shifts: &[f32]) -> Vec<Sums> {
    let channels = call.shape.channels();
    let expanded: Vec<Vec<f32>> =
        shifts.chunks(channels).map(|shifts| grid.expand(|channel| shifts[channel])).collect();
    let mut totals = grid.totals();
    let shared = totals.shared();
    parallel::for_each(grid.units(), call.bytes, |unit| {
        let (segment, _) = grid.block(unit);
        // SAFETY: nobody writes `y` here, and each unit has sums of its own.
        let (y, sums) = unsafe { (call.y.target(), shared.target()) };
        let sums = sums.run(unit * 2 * grid.width, 2 * grid.width);
        dispatch(BlockSums { grid, unit, x: call.source(y), shifts: Source::new(&expanded[segment]), sums });
    });
    let mut sums = vec![Sums::default(); shifts.len()];
    for (segment, sums) in sums.chunks_mut(channels).enumerate() {
        let columns = totals.add_up(segment * grid.blocks..(segment + 1) * grid.blocks);
        let (values, squares) = columns.split_at(grid.width);
        grid.per_channel(values, |channel, v| sums[channel].sum += v);
        grid.per_channel(squares, |channel, v| sums[channel].squares += v);
    }
    sums
}

/// The sums of one block.
struct BlockSums<'a, T> {
    grid: Grid,
    unit: usize,
    x: Source<'a, T>,
    shifts: Source<'a, f32>,
    sums: Target<'a, f32>,
}

impl<T: Element> Kernel for BlockSums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (_, elements) = self.grid.block(self.unit);
        grid::sum::<S, _>(&self, elements, self.grid.width, self.sums);
    }
}

impl<'a, S: Simd, T: Element> Pass<S> for BlockSums<'a, T> {
    type Constant = Lanes<S>;
    type Row = Source<'a, T>;

    #[inline(always)]
    fn constant(&self, span: Span) -> Lanes<S> {
        self.shifts.load(span)
    }
    #[inline(always)]
    fn row(&self, start: usize, len: usize) -> Source<'a, T> {
        self.x.run(start, len)
    }
}

impl<S: Simd, T: Element> Summed<S> for BlockSums<'_, T> {
    #[inline(always)]
    fn terms(x: &Source<'_, T>, shift: Lanes<S>, span: Span) -> [Lanes<S>; 3] {
        let d = x.load(span) - shift;
        [d, d, d]
    }
}

/// Moments of a slab in `f64`.
fn exact<T: Element>(call: &Call<'_, T>, x: Source<'_, T>, slab: usize) -> Moments {
    let shape = call.shape;
    let (segment, channel) = (slab / shape.channels(), slab % shape.channels());
    let start = |row: usize| ((segment * shape.outer() + row) * shape.channels() + channel) * shape.inner();
    let values = (0..shape.outer()).flat_map(|row| start(row)..start(row) + shape.inner());
    Moments::exact(shape.per_slab() as f64, values.map(|i| x.one(i)))
}

/// Normalizes with statistics that are there.
pub(super) fn normalize<T: Element>(call: &Call<'_, T>, mean: &[f64], rstd: &[f64]) {
    let (shape, grid) = (call.shape, Grid::new(call.shape));
    let slabs: Vec<Slab> = (0..shape.slabs())
        .map(|slab| call.slab(slab, mean[slab / shape.group()], rstd[slab / shape.group()]))
        .collect();
    let scales: Option<Vec<Scale>> = slabs.iter().map(Slab::scale).collect();
    let Some(scales) = scales else { return normalize_exactly(call, &slabs) };
    let expanded: Vec<[Vec<f32>; 3]> = scales
        .chunks(shape.channels())
        .map(|scales| {
            [
                grid.expand(|channel| scales[channel].high),
                grid.expand(|channel| scales[channel].factor),
                grid.expand(|channel| scales[channel].term),
            ]
        })
        .collect();
    parallel::for_each(grid.units(), call.bytes, |unit| {
        // The last rows are the ones that are most likely still in a cache.
        let unit = grid.units() - 1 - unit;
        let [high, factor, term] = &expanded[grid.block(unit).0];
        // SAFETY: a unit touches its own rows only.
        let y = unsafe { call.y.target() };
        let (high, factor, term) = (Source::new(high), Source::new(factor), Source::new(term));
        dispatch(Block { call, grid, unit, high, factor, term, y });
    });
}

/// For factors that are no proper `f32`.
#[cold]
fn normalize_exactly<T: Element>(call: &Call<'_, T>, slabs: &[Slab]) {
    let (shape, inner) = (call.shape, call.shape.inner());
    // SAFETY: this is the only unit.
    let y = unsafe { call.y.target() };
    for run in 0..shape.len() / inner {
        let segment = run / (shape.channels() * shape.outer());
        let slab = &slabs[segment * shape.channels() + run % shape.channels()];
        let residual = call.residual.map(|v| Source::new(v).run(run * inner, inner));
        let x = call.source(y).run(run * inner, inner);
        write_exact(slab, call.finish.activation, x, residual, y.run(run * inner, inner));
    }
}

/// One block.
struct Block<'a, T> {
    call: &'a Call<'a, T>,
    grid: Grid,
    unit: usize,
    high: Source<'a, f32>,
    factor: Source<'a, f32>,
    term: Source<'a, f32>,
    y: Target<'a, T>,
}

impl<T: Element> Kernel for Block<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (_, elements) = self.grid.block(self.unit);
        grid::write::<S, _>(&self, elements, self.grid.width);
        S::fence();
    }
}

/// The tensors of a row.
#[derive(Clone, Copy)]
struct Row<'a, T> {
    x: Source<'a, T>,
    residual: Option<Source<'a, T>>,
    y: Target<'a, T>,
}

impl<'a, S: Simd, T: Element> Pass<S> for Block<'a, T> {
    type Constant = [Lanes<S>; 3];
    type Row = Row<'a, T>;

    #[inline(always)]
    fn constant(&self, span: Span) -> [Lanes<S>; 3] {
        [self.high.load(span), self.factor.load(span), self.term.load(span)]
    }
    #[inline(always)]
    fn row(&self, start: usize, len: usize) -> Row<'a, T> {
        Row {
            x: self.call.source(self.y).run(start, len),
            residual: self.call.residual.map(|v| Source::new(v).run(start, len)),
            y: self.y.run(start, len),
        }
    }
}

impl<S: Simd, T: Element> Written<S> for Block<'_, T> {
    #[inline(always)]
    fn write(&self, row: &Row<'_, T>, [high, factor, term]: [Lanes<S>; 3], span: Span) {
        let Finish { activation, past } = self.call.finish;
        let z = (row.x.load(span) - high).mul_add(factor, term);
        let z = match row.residual {
            Some(residual) => z + residual.load(span),
            None => z,
        };
        row.y.store(span, activate(activation, z), past);
    }
}
