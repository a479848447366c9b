//! The backward pass where channels lie side by side.

use super::{
    super::grid::{self, Grid, Pass, Summed, Written},
    Call, Constants, Run, Slab,
};
use crate::{
    Element,
    cpu::{
        memory::{Source, Span, Target},
        moments::Sums,
        parallel,
        simd::{Kernel, Lanes, Simd, dispatch},
    },
};

/// What the slabs of a segment are made with, for each column.
struct Expanded([Vec<f32>; 6]);

impl Expanded {
    fn new(grid: &Grid, slabs: &[Slab]) -> Self {
        let of = |field: fn(&Slab) -> f32| grid.expand(|channel| field(&slabs[channel]));
        Self([
            of(|s| s.mean),
            of(|s| s.rstd),
            of(|s| s.weight),
            of(|s| s.bias),
            of(|s| s.mean_g),
            of(|s| s.slope),
        ])
    }

    /// Of all segments.
    fn all<T: Element>(call: &Call<'_, T>, grid: &Grid, slabs: &[Slab]) -> Vec<Self> {
        slabs.chunks(call.shape.channels()).map(|slabs| Self::new(grid, slabs)).collect()
    }
}

/// Writes what is wanted, and gives the sums over each slab where they are.
pub(super) fn backward<T: Element>(call: &Call<'_, T>, sums_wanted: bool) -> Vec<Sums> {
    let (shape, grid) = (call.shape, Grid::new(call.shape));
    let mut slabs: Vec<Slab> = (0..shape.slabs()).map(|slab| call.slab(slab)).collect();
    let mut sums = vec![Sums::default(); shape.slabs()];
    if sums_wanted || call.training && call.dx.is_some() {
        add_up(call, grid, &slabs, &mut sums);
    }
    if call.dx.is_none() && call.dresidual.is_none() {
        return sums;
    }
    for (slabs, sums) in slabs.chunks_mut(shape.group()).zip(sums.chunks(shape.group())) {
        call.complete(slabs, sums);
    }
    let expanded = Expanded::all(call, &grid, &slabs);
    parallel::for_each(grid.units(), call.bytes, |unit| {
        // The last rows are the ones that are most likely still in a cache.
        let unit = grid.units() - 1 - unit;
        // SAFETY: a unit touches its own rows only.
        let (dx, dresidual) = unsafe { (call.dx.map(|v| v.target()), call.dresidual.map(|v| v.target())) };
        let block = Block::new(grid, unit, Run::new(call, dx, dresidual), &expanded);
        dispatch(Write(block));
    });
    sums
}

fn add_up<T: Element>(call: &Call<'_, T>, grid: Grid, slabs: &[Slab], sums: &mut [Sums]) {
    let expanded = Expanded::all(call, &grid, slabs);
    let mut totals = grid.totals();
    let shared = totals.shared();
    parallel::for_each(grid.units(), call.bytes, |unit| {
        // SAFETY: each unit has sums of its own.
        let sums = unsafe { shared.target() }.run(unit * 2 * grid.width, 2 * grid.width);
        dispatch(Sum(Block::new(grid, unit, Run::new(call, None, None), &expanded), sums));
    });
    for (segment, sums) in sums.chunks_mut(call.shape.channels()).enumerate() {
        let columns = totals.add_up(segment * grid.blocks..(segment + 1) * grid.blocks);
        let (d, dx_hat) = columns.split_at(grid.width);
        grid.per_channel(d, |channel, v| sums[channel].sum += v);
        grid.per_channel(dx_hat, |channel, v| sums[channel].squares += v);
    }
}

/// Some rows.
struct Block<'a, T> {
    grid: Grid,
    unit: usize,
    run: Run<'a, T>,
    columns: [Source<'a, f32>; 6],
}

impl<'a, T: Element> Block<'a, T> {
    fn new(grid: Grid, unit: usize, run: Run<'a, T>, expanded: &'a [Expanded]) -> Self {
        let Expanded(columns) = &expanded[grid.block(unit).0];
        Self { grid, unit, run, columns: columns.each_ref().map(|v| Source::new(v)) }
    }

    #[inline(always)]
    fn constants<S: Simd>(&self, span: Span) -> Constants<S> {
        let [mean, rstd, weight, bias, mean_g, slope] = self.columns;
        Constants {
            mean: mean.load(span),
            rstd: rstd.load(span),
            weight: weight.load(span),
            bias: bias.load(span),
            mean_g: mean_g.load(span),
            slope: slope.load(span),
        }
    }
}

/// Adds the block's rows up.
struct Sum<'a, T>(Block<'a, T>, Target<'a, f32>);

impl<T: Element> Kernel for Sum<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (_, elements) = self.0.grid.block(self.0.unit);
        grid::sum::<S, _>(&self, elements, self.0.grid.width, self.1);
    }
}

impl<'a, S: Simd, T: Element> Pass<S> for Sum<'a, T> {
    type Constant = Constants<S>;
    type Row = Run<'a, T>;

    #[inline(always)]
    fn constant(&self, span: Span) -> Constants<S> {
        self.0.constants(span)
    }
    #[inline(always)]
    fn row(&self, start: usize, len: usize) -> Run<'a, T> {
        self.0.run.run(start, len)
    }
}

impl<S: Simd, T: Element> Summed<S> for Sum<'_, T> {
    #[inline(always)]
    fn terms(run: &Run<'_, T>, constants: Constants<S>, span: Span) -> [Lanes<S>; 3] {
        let (d, x_hat) = run.gradient(&constants, span);
        [d, d, x_hat]
    }
}

/// Writes the block's rows.
struct Write<'a, T>(Block<'a, T>);

impl<T: Element> Kernel for Write<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (_, elements) = self.0.grid.block(self.0.unit);
        grid::write::<S, _>(&self, elements, self.0.grid.width);
        S::fence();
    }
}

impl<'a, S: Simd, T: Element> Pass<S> for Write<'a, T> {
    type Constant = Constants<S>;
    type Row = Run<'a, T>;

    #[inline(always)]
    fn constant(&self, span: Span) -> Constants<S> {
        self.0.constants(span)
    }
    #[inline(always)]
    fn row(&self, start: usize, len: usize) -> Run<'a, T> {
        self.0.run.run(start, len)
    }
}

impl<S: Simd, T: Element> Written<S> for Write<'_, T> {
    #[inline(always)]
    fn write(&self, run: &Run<'_, T>, constants: Constants<S>, span: Span) {
        run.write(&constants, span);
    }
}
