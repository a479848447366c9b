//! The backward pass where channels lie side by side.

use super::{
    super::grid::{Grid, Pass, Summed, Written},
    Call, Constants, Either, Slab, Specialized, Tensors,
};
use crate::{
    Element,
    cpu::{
        memory::{Run, Source, Span, Target},
        moments::Sums,
        parallel,
        simd::{Lanes, Simd, dispatch},
    },
};

/// What the slabs of a segment are made with, for each column.
struct Expanded {
    known: [Vec<f32>; 4],
    /// From the sums over the slabs, once these are there.
    of_sums: [Vec<f32>; 2],
}

impl Expanded {
    fn new(grid: &Grid, slabs: &[Slab]) -> Self {
        let known = [
            grid.expand(|channel| slabs[channel].mean),
            grid.expand(|channel| slabs[channel].rstd),
            grid.expand(|channel| slabs[channel].weight),
            grid.expand(|channel| slabs[channel].bias),
        ];
        let zeros = vec![0.0; known[0].len()];
        Self { known, of_sums: [zeros.clone(), zeros] }
    }

    fn complete(&mut self, grid: &Grid, slabs: &[Slab]) {
        self.of_sums =
            [grid.expand(|channel| slabs[channel].mean_g), grid.expand(|channel| slabs[channel].slope)];
    }

    fn sources(&self) -> [Source<'_, f32>; 6] {
        let ([mean, rstd, weight, bias], [mean_g, slope]) = (&self.known, &self.of_sums);
        [mean, rstd, weight, bias, mean_g, slope].map(|v| Source::new(v))
    }
}

/// Writes what is wanted, and gives the sums over each slab where they are.
pub(super) fn backward<T: Element>(call: &Call<'_, T>, sums_wanted: bool) -> Vec<Sums> {
    let (shape, grid) = (call.shape, Grid::new(call.shape));
    let mut slabs: Vec<Slab> = (0..shape.slabs()).map(|slab| call.slab(slab)).collect();
    let mut sums = vec![Sums::default(); shape.slabs()];
    let mut expanded: Vec<_> =
        slabs.chunks(shape.channels()).map(|slabs| Expanded::new(&grid, slabs)).collect();
    if sums_wanted || call.training && call.dx.is_some() {
        add_up(call, grid, &expanded, &mut sums);
    }
    if call.dx.is_none() && call.dresidual.is_none() {
        return sums;
    }
    for (slabs, sums) in slabs.chunks_mut(shape.group()).zip(sums.chunks(shape.group())) {
        call.complete(slabs, sums);
    }
    for (expanded, slabs) in expanded.iter_mut().zip(slabs.chunks(shape.channels())) {
        expanded.complete(&grid, slabs);
    }
    parallel::for_each(grid.units(), call.bytes, |unit| {
        let unit = grid.last_first(unit);
        // SAFETY: a unit touches its own rows only.
        let tensors = unsafe { Tensors::written(call) };
        let numbers = expanded[grid.segment(unit)].sources();
        dispatch(Either(Block { grid, unit, tensors, numbers, sums: None }));
    });
    sums
}

fn add_up<T: Element>(call: &Call<'_, T>, grid: Grid, expanded: &[Expanded], sums: &mut [Sums]) {
    let mut totals = grid.totals();
    let shared = totals.shared();
    parallel::for_each(grid.units(), call.bytes, |unit| {
        // SAFETY: each unit has sums of its own.
        let sums = unsafe { shared.target() }.run(unit * 2 * grid.width, 2 * grid.width);
        let numbers = expanded[grid.segment(unit)].sources();
        dispatch(Either(Block { grid, unit, tensors: Tensors::read(call), numbers, sums: Some(sums) }));
    });
    for (segment, sums) in sums.chunks_mut(call.shape.channels()).enumerate() {
        let columns = totals.add_up(segment * grid.blocks..(segment + 1) * grid.blocks);
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
        let [mean, rstd, weight, bias, mean_g, slope] = self.numbers;
        Constants {
            mean: mean.load(columns),
            rstd: rstd.load(columns),
            weight: weight.load(columns),
            bias: bias.load(columns),
            mean_g: mean_g.load(columns),
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

/// A block of rows, to be written or, where there are `sums`, added up to these.
struct Block<'a, T> {
    grid: Grid,
    unit: usize,
    tensors: Tensors<'a, T>,
    numbers: [Source<'a, f32>; 6],
    sums: Option<Target<'a, f32>>,
}

impl<T: Element> Specialized for Block<'_, T> {
    type Output = ();

    #[inline(always)]
    fn is_plain(&self) -> bool {
        self.tensors.is_plain()
    }

    #[inline(always)]
    fn run<S: Simd, const PLAIN: bool>(self) {
        let Self { grid, unit, tensors, numbers, sums } = self;
        let columns = Columns::<T, PLAIN> { tensors, numbers };
        match sums {
            Some(sums) => grid.sum::<S, T, _>(unit, columns, sums, tensors.far),
            None => grid.write::<S, T, _>(unit, columns, tensors.far),
        }
    }
}
