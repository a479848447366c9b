//! The forward pass where channels lie side by side.

use core::ops::Range;

use super::{
    forward::{Call, Computed},
    grid::{Grid, Pass, Summands, Summed, Table, Written, by_segments},
    numbers::{self, of_slabs},
    runs::Finish,
    slab::{Slab, activate, write_exact},
};
use crate::{
    Activation, Element,
    cpu::{
        memory::{AHEAD_OF_STREAM, Run, Shared, Source, Span, Target, copy, for_spans},
        moments::{Moments, Sums},
        parallel,
        simd::{Kernel, Lanes, Simd, dispatch},
    },
    shape::ChannelShape,
};

/// Positions that a first shift is the mean of, at most, evenly apart from the first one on.
const SAMPLES: usize = 16;

/// Normalizes with statistics of the tensor itself, and gives them.
pub(super) fn train<T: Element>(call: &Call<'_, T>, out: &mut Computed<'_>) {
    if !by_segments(call.shape, call.bytes) {
        return train_at_once(call, out);
    }
    let segments = call.shape.segments();
    let statistics = out.mean.len() / segments;
    let out = [&mut *out.mean, &mut *out.var, &mut *out.rstd].map(Shared::new);
    parallel::for_each(segments, call.bytes, |segment| {
        let [mean, var, rstd] = out.map(|values| {
            // SAFETY: each segment has statistics of its own.
            unsafe { values.target().slice(segment * statistics, statistics) }
        });
        train_at_once(&call.segment(segment), &mut Computed { mean, var, rstd });
    });
}

fn train_at_once<T: Element>(call: &Call<'_, T>, out: &mut Computed<'_>) {
    let grid = Grid::new(call.shape);
    let mut table = Table::with_capacity(&grid, (1 + OF_SCALE) * call.shape.segments());
    statistics(call, grid, &mut table, out);
    write(call, grid, table, out.mean, out.rstd);
}

/// Leaves shifts in the table.
fn statistics<T: Element>(call: &Call<'_, T>, grid: Grid, table: &mut Table, out: &mut Computed<'_>) {
    let shape = call.shape;
    // SAFETY: nobody writes it here.
    let x = call.source(unsafe { call.y.target() });
    (0..shape.segments())
        .for_each(|segment| grid.add_to(table, |[shifts]| first_shifts(shape, x, segment, shifts)));
    if shape.group() == 1 {
        return statistics_of_slabs(call, grid, x, table, out);
    }
    let mut values = vec![0.0; 3 * shape.slabs()];
    let mut slabs = Computed::new(&mut values);
    statistics_of_slabs(call, grid, x, table, &mut slabs);
    let groups = slabs.mean.chunks(shape.group()).zip(slabs.var.chunks(shape.group()));
    for ((mean, var), (means, vars)) in out.mean.iter_mut().zip(&mut *out.var).zip(groups) {
        let parts = means.iter().zip(vars).map(|(&mean, &var)| Moments { mean, var });
        Moments { mean: *mean, var: *var } = merged(parts);
    }
    numbers::reciprocal_stds(out.var, call.eps, out.rstd);
}

/// As if each slab were a statistic. `shifts`: a row for each segment.
fn statistics_of_slabs<T: Element>(
    call: &Call<'_, T>,
    grid: Grid,
    x: Source<'_, T>,
    shifts: &Table,
    out: &mut Computed<'_>,
) {
    let (segments, channels) = (call.shape.segments(), call.shape.channels());
    let n = call.shape.per_slab() as f64;
    // Slabs without moments in their order, with shifts near their means.
    let mut without = Vec::new();
    for (segment, totals) in sums(call, grid, shifts).chunks(2 * channels).enumerate() {
        let first = segment * channels;
        let (values, squares) = totals.split_at(channels);
        let (shifts, of_segment) = (grid.of_channels(shifts, segment), first..first + channels);
        let out = [&mut *out.mean, &mut *out.var, &mut *out.rstd].map(|v| &mut v[of_segment.clone()]);
        for channel in numbers::statistics([values, squares], &shifts, n, call.eps, out) {
            let shift = (f64::from(shifts[channel]) + values[channel] / n) as f32;
            without.push((segment, channel, shift));
        }
    }
    if without.is_empty() {
        return;
    }
    let mut again = Table::with_capacity(&grid, segments);
    let mut new_shifts = without.iter().peekable();
    for segment in 0..segments {
        grid.add_to(&mut again, |[row]| {
            row.copy_from_slice(&grid.of_channels(shifts, segment));
            while let Some(&(_, channel, shift)) = new_shifts.next_if(|&&(of, ..)| of == segment) {
                row[channel] = shift;
            }
        });
    }
    let totals = sums(call, grid, &again);
    for (segment, channel, shift) in without {
        let (values, squares) = totals[segment * 2 * channels..][..2 * channels].split_at(channels);
        let sums = Sums { sum: values[channel], squares: squares[channel] };
        let slab = segment * channels + channel;
        let moments = Moments::of(sums, shift, n, call.eps).unwrap_or_else(|| exact(call, x, slab));
        (out.mean[slab], out.var[slab]) = (moments.mean, moments.var);
        out.rstd[slab] = numbers::reciprocal_std(moments.var, call.eps);
    }
}

/// Moments of as many elements each as those of all.
fn merged(parts: impl Iterator<Item = Moments>) -> Moments {
    let mut all = Moments::default();
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

/// For each channel of a segment a value near its mean. It is that of its elements where they are equal.
fn first_shifts<T: Element>(shape: ChannelShape, x: Source<'_, T>, segment: usize, out: &mut [f32]) {
    if shape.inner() == 1 {
        return dispatch(FirstShifts { shape, x, segment, shifts: Target::new(out) });
    }
    let mut of_columns = vec![0.0; out.len() * shape.inner()];
    dispatch(FirstShifts { shape, x, segment, shifts: Target::new(&mut of_columns) });
    out.iter_mut().zip(of_columns.iter().step_by(shape.inner())).for_each(|(out, shift)| *out = *shift);
}

/// Means of some positions of a segment, column by column.
struct FirstShifts<'a, T> {
    shape: ChannelShape,
    x: Source<'a, T>,
    segment: usize,
    shifts: Target<'a, f32>,
}

impl<T: Element> Kernel for FirstShifts<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { shape, x, segment, shifts } = self;
        let (outer, columns) = (shape.outer(), shifts.len());
        let samples = outer.min(SAMPLES);
        let segment = Run::new(segment * outer * columns, outer * columns, shape.len());
        let step = outer / samples * columns;
        let share = Lanes::<S>::splat((samples as f32).recip());
        for_spans!(columns, 0, |span| {
            let first = x.load::<S>(segment.run(0, columns).span(span));
            let mut sum = Lanes::splat(0.0);
            for sample in 1..samples {
                sum = sum + (x.load(segment.run(sample * step, columns).span(span)) - first);
            }
            let near = sum.mul_add(share, first);
            // Where they cannot be added, the first will do.
            let (mut near, first) = (near.to_array(), first.to_array());
            for (near, first) in near.iter_mut().zip(first) {
                *near = if near.is_finite() { *near } else { first };
            }
            shifts.store(span, Lanes::<S>::from_array(near), false);
        });
    }
}

/// Sums of the differences from a shift, then of their squares, for each channel of each segment.
fn sums<T: Element>(call: &Call<'_, T>, grid: Grid, shifts: &Table) -> Vec<f64> {
    grid.totals(call.bytes, |segment, summands| {
        // SAFETY: nobody writes `y` here.
        let y = unsafe { call.y.target() };
        let [shifts] = shifts.rows(segment);
        let shifted = Shifted { x: call.source(y), shifts };
        dispatch(BlockSums { grid, summands, shifted, far: call.far });
    })
}

/// The sums of some blocks.
struct BlockSums<'a, T> {
    grid: Grid,
    summands: Summands<'a>,
    shifted: Shifted<'a, T>,
    far: bool,
}

impl<T: Element> Kernel for BlockSums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        self.grid.sum::<S, T, _>(self.summands, self.shifted, self.far);
    }
}

/// Differences from a shift per column.
struct Shifted<'a, T> {
    x: Source<'a, T>,
    shifts: Source<'a, f32>,
}
copy!(Shifted);

impl<S: Simd, T: Element> Pass<S> for Shifted<'_, T> {
    type Constant = Lanes<S>;
    const TENSORS: usize = 1;
    const TWO_STRIPS: bool = true;

    #[inline(always)]
    fn constant(self, columns: Span) -> Lanes<S> {
        self.shifts.load(columns)
    }
    #[inline(always)]
    fn prefetch_next(self, run: Run, ahead: usize, len: usize) {
        run.from(self.x).prefetch_second_run::<S>(ahead, len);
    }
}

impl<S: Simd, T: Element> Summed<S> for Shifted<'_, T> {
    #[inline(always)]
    fn prefetch_pages(self, rows: Run) {
        rows.from(self.x).prefetch_pages::<S>();
    }
    #[inline(always)]
    fn terms(self, shift: Lanes<S>, span: Span) -> [Lanes<S>; 3] {
        let d = self.x.load(span) - shift;
        [d, d, d]
    }
}

/// Where the runs of a slab start.
fn slab_runs(shape: ChannelShape, slab: usize) -> impl Iterator<Item = usize> + Clone {
    let (segment, channel) = (slab / shape.channels(), slab % shape.channels());
    let rows = segment * shape.outer()..(segment + 1) * shape.outer();
    rows.map(move |row| (row * shape.channels() + channel) * shape.inner())
}

/// Moments of a slab in `f64`.
fn exact<T: Element>(call: &Call<'_, T>, x: Source<'_, T>, slab: usize) -> Moments {
    let inner = call.shape.inner();
    let values = slab_runs(call.shape, slab).flat_map(|start| start..start + inner);
    Moments::exact(call.shape.per_slab() as f64, values.map(|i| x.one(i)))
}

/// Normalizes with statistics that are there.
pub(super) fn normalize<T: Element>(call: &Call<'_, T>, mean: &[f64], rstd: &[f64]) {
    let grid = Grid::new(call.shape);
    let table = Table::with_capacity(&grid, OF_SCALE * call.shape.segments());
    write(call, grid, table, mean, rstd);
}

/// The rows of a segment that normalize: those of a [`Scale`](super::slab::Scale).
const OF_SCALE: usize = 3;

/// Normalizes, with a table that has room for its numbers.
fn write<T: Element>(call: &Call<'_, T>, grid: Grid, mut table: Table, mean: &[f64], rstd: &[f64]) {
    let (shape, first) = (call.shape, table.len());
    let (channels, of_segment) = (shape.channels(), shape.statistics() / shape.segments());
    // Of slabs without a scale, and before `y` is written, which `x` may be in.
    let mut exact = Vec::new();
    for (segment, (mean, rstd)) in mean.chunks(of_segment).zip(rstd.chunks(of_segment)).enumerate() {
        let (mean, rstd) = (of_slabs(mean, shape.group()), of_slabs(rstd, shape.group()));
        let params = &call.params;
        let without =
            grid.add_to(&mut table, |rows| numbers::scales(&mean, &rstd, &params.weight, &params.bias, rows));
        exact.extend(without.into_iter().map(|channel| {
            let slab = call.slab(channel, mean[channel], rstd[channel]);
            let index = segment * channels + channel;
            (index, normalized_exactly(call, &slab, index))
        }));
    }
    // Of rows, where those of all segments are in a cache.
    let last_first = !call.beyond;
    grid.for_blocks::<T>(1, true, call.bytes, |segment, blocks| {
        let [high, factor, term] = table.rows(first + OF_SCALE * segment);
        // SAFETY: blocks have rows of their own.
        let y = unsafe { call.y.target() };
        let scaled = Scaled { x: call.source(y), y, high, factor, term, past: call.finish.past };
        let (finish, residual) = (call.finish, call.residual.map(Source::new));
        let far = call.far;
        dispatch(Blocks { grid, segment, blocks, scaled, finish, residual, far, last_first });
    });
    // SAFETY: the blocks are done.
    let y = unsafe { call.y.target() };
    for (slab, values) in exact {
        for (start, values) in slab_runs(shape, slab).zip(values.chunks(shape.inner())) {
            (start..).zip(values).for_each(|(at, &v)| y.set(at, v));
        }
    }
}

/// The elements of a slab whose factor is no proper `f32`.
#[cold]
fn normalized_exactly<T: Element>(call: &Call<'_, T>, slab: &Slab, index: usize) -> Vec<T> {
    let (shape, inner) = (call.shape, call.shape.inner());
    let mut values = vec![T::default(); shape.outer() * inner];
    let shared = Shared::new(&mut values);
    // SAFETY: this is the only unit.
    let (y, out) = unsafe { (call.y.target(), shared.target()) };
    for (row, start) in slab_runs(shape, index).enumerate() {
        let residual = call.residual.map(|v| Source::new(v).run(start, inner));
        let out = out.run(row * inner, inner);
        write_exact(slab, call.finish.activation, call.source(y).run(start, inner), residual, out);
    }
    values
}

/// Blocks of one segment to be written.
struct Blocks<'a, T> {
    grid: Grid,
    segment: usize,
    blocks: Range<usize>,
    scaled: Scaled<'a, T>,
    finish: Finish,
    residual: Option<Source<'a, T>>,
    far: bool,
    last_first: bool,
}

impl<T: Element> Kernel for Blocks<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { grid, segment, blocks, scaled, finish, residual, far, last_first } = self;
        match (finish.activation, residual) {
            // A loop of its own, that need not ask at each vector: registers are short.
            (Activation::None, None) if !scaled.past => {
                grid.write::<S, T, _>(segment, blocks, Scaled { past: false, ..scaled }, far, last_first);
            }
            (Activation::None, None) => grid.write::<S, T, _>(segment, blocks, scaled, far, last_first),
            (activation, residual) => {
                grid.write::<S, T, _>(
                    segment,
                    blocks,
                    Finished { scaled, activation, residual },
                    far,
                    last_first,
                );
            }
        }
    }
}

/// Normalizes, with numbers per column.
struct Scaled<'a, T> {
    x: Source<'a, T>,
    y: Target<'a, T>,
    high: Source<'a, f32>,
    factor: Source<'a, f32>,
    term: Source<'a, f32>,
    past: bool,
}
copy!(Scaled);

impl<T: Element> Scaled<'_, T> {
    #[inline(always)]
    fn z<S: Simd>(self, [high, factor, term]: [Lanes<S>; 3], x: Lanes<S>) -> Lanes<S> {
        (x - high).mul_add(factor, term)
    }
}

impl<S: Simd, T: Element> Pass<S> for Scaled<'_, T> {
    type Constant = [Lanes<S>; 3];
    const TENSORS: usize = 2;
    const TWO_STRIPS: bool = true;

    #[inline(always)]
    fn constant(self, columns: Span) -> [Lanes<S>; 3] {
        [self.high.load(columns), self.factor.load(columns), self.term.load(columns)]
    }
    #[inline(always)]
    fn prefetch_next(self, run: Run, ahead: usize, len: usize) {
        run.from(self.x).prefetch_second_run::<S>(ahead, len);
    }
}

impl<S: Simd, T: Element> Written<S> for Scaled<'_, T> {
    type Loaded = Lanes<S>;
    #[inline(always)]
    fn streams(self) -> bool {
        self.past
    }
    #[inline(always)]
    fn head(self, block: Run) -> usize {
        block.of(self.y).before_line::<S>(self.past)
    }
    #[inline(always)]
    fn load(self, span: Span) -> Lanes<S> {
        self.x.load(span)
    }
    #[inline(always)]
    fn prefetch_ahead(self, span: Span) {
        if self.past {
            self.x.prefetch::<S>(span, AHEAD_OF_STREAM);
        }
    }
    #[inline(always)]
    fn write(self, constants: [Lanes<S>; 3], x: Lanes<S>, span: Span) {
        self.y.store(span, self.z(constants, x), self.past);
    }
}

/// The same, and what follows the norm.
struct Finished<'a, T> {
    scaled: Scaled<'a, T>,
    activation: Activation,
    residual: Option<Source<'a, T>>,
}
copy!(Finished);

impl<S: Simd, T: Element> Pass<S> for Finished<'_, T> {
    type Constant = [Lanes<S>; 3];
    const TENSORS: usize = 2;
    const TWO_STRIPS: bool = false;

    #[inline(always)]
    fn constant(self, columns: Span) -> [Lanes<S>; 3] {
        self.scaled.constant(columns)
    }
    #[inline(always)]
    fn prefetch_next(self, run: Run, ahead: usize, len: usize) {
        Pass::<S>::prefetch_next(self.scaled, run, ahead, len);
        if let Some(residual) = self.residual {
            run.from(residual).prefetch_second_run::<S>(ahead, len);
        }
    }
}

impl<S: Simd, T: Element> Written<S> for Finished<'_, T> {
    type Loaded = Lanes<S>;
    #[inline(always)]
    fn streams(self) -> bool {
        self.scaled.past
    }
    #[inline(always)]
    fn head(self, block: Run) -> usize {
        Written::<S>::head(self.scaled, block)
    }
    #[inline(always)]
    fn load(self, span: Span) -> Lanes<S> {
        self.scaled.load(span)
    }
    #[inline(always)]
    fn prefetch_ahead(self, span: Span) {
        Written::<S>::prefetch_ahead(self.scaled, span);
    }
    #[inline(always)]
    fn write(self, constants: [Lanes<S>; 3], x: Lanes<S>, span: Span) {
        let z = self.scaled.z(constants, x);
        let z = match self.residual {
            Some(residual) => z + residual.load(span),
            None => z,
        };
        self.scaled.y.store(span, activate(self.activation, z), self.scaled.past);
    }
}
