use core::ops::Range;

use super::{ByRows, LONG_ROW, Place, ROWS_WITH_MANY_SUMS, as_long, load, splat, walk};
use crate::{
    Element,
    cpu::{
        Cpu,
        memory::{Shared, Source, Span, Target, for_spans},
        moments::CHAIN,
        parallel::{self, Way},
        params::{Params, store_grads},
        simd::{self, Kernel, LANES, Lanes, Simd, dispatch},
        totals::{self, Totals, UnitSums},
    },
    row_norm::RowNormBackward,
    shape::RowShape,
};

/// Rows whose gradients of weight and bias are added up in `f32`, at most: of equal values each may err by a quarter of a
/// unit in the last place, and the tests allow 8 units.
const BLOCK_ROWS: usize = 24;

/// Units of work where rows are enough for them; each writes sums for all columns, which costs as much as some rows.
const UNITS: usize = 64;
const MIN_ROWS: usize = 16;

/// Rows of so many elements of 2 bytes are prefetched while those before them are written; what is shorter, or of 4 bytes,
/// the processor fetches better by itself. One thread of AMD Zen 4, prefetched / not: f16, 1,024 rows of 4,096 1.40 / 1.59
/// ms, 4,096 of 768 0.95 / 0.92; f32, 4,096 of 768 1.60 / 1.35, 8,192 of 64 0.25 / 0.22. 2,048 is a guess in between.
const PREFETCHED_ROW: usize = 2048;

/// What all units of a call share.
struct Call<'a, T> {
    shape: RowShape,
    x: (&'a [T], Place),
    dy: (&'a [T], Place),
    dh: Option<(&'a [T], Place)>,
    weight: &'a [f32],
    /// `None` for RMSNorm.
    mean: Option<&'a [f32]>,
    rstd: &'a [f32],
    dx: Option<(Shared<'a, T>, Place)>,
    sums_wanted: bool,
    stream: bool,
}

pub(in crate::cpu) fn backward<T: Element>(shape: RowShape, args: RowNormBackward<'_, T, Cpu>) {
    let RowNormBackward { x, dy, dh, affine, weight_offset, mean, rstd, dx, grads, accumulate, workspace: _ } =
        args;
    let place = |stride| Place { shape, stride };
    let params = Params::of(&affine, shape.cols()).offset(weight_offset, &affine);
    let bytes = (2 + usize::from(dx.is_some())) * shape.len() * size_of::<T>();
    let call = Call {
        shape,
        x: (x.data, place(x.stride)),
        dy: (dy.data, place(dy.stride)),
        dh: dh.map(|v| (v.data, place(v.stride))),
        weight: &params.weight,
        mean,
        rstd,
        dx: dx.map(|v| (Shared::new(v.data), place(v.stride))),
        sums_wanted: !grads.is_none(),
        stream: parallel::streams::<T>(parallel::is_far(bytes, Way::Winding), shape.cols()),
    };
    // No rows are no reason to look for the first one's elements.
    let rows = if shape.is_empty() { 0 } else { shape.rows() };
    let block = rows.div_ceil(UNITS).clamp(MIN_ROWS, BLOCK_ROWS).next_multiple_of(4);
    let per_unit = block * totals::blocks_per_unit(rows.div_ceil(block), shape.cols());
    let units = rows.div_ceil(per_unit);
    let mut totals =
        Totals::new(if call.sums_wanted { units } else { 0 }, 2 * shape.cols(), per_unit > block);
    let parts = totals.parts();
    parallel::for_each(units, bytes, |unit| {
        let first = unit * per_unit;
        let last = (first + per_unit).min(rows);
        // SAFETY: a unit touches its own rows and its own sums only, and no two rows share an element.
        let (dx, sums) =
            unsafe { (call.dx.as_ref().map(|dx| dx.0.target()), call.sums_wanted.then(|| parts.of(unit))) };
        dispatch(Unit { call: &call, rows: first..last, block, dx, sums });
    });
    if call.sums_wanted {
        let sums = totals.add_up(0..units, bytes);
        let (dweight, dbias) = sums.split_at(shape.cols());
        store_grads(grads, dweight, dbias, accumulate);
    }
}

/// Some of the rows.
struct Unit<'a, T> {
    call: &'a Call<'a, T>,
    rows: Range<usize>,
    /// Rows of a block.
    block: usize,
    dx: Option<Target<'a, T>>,
    /// Gradients of weights, then of biases, over these rows, where they are wanted.
    sums: Option<UnitSums<'a>>,
}

/// Rows whose sums are added up in `f32`.
struct Block<'a, T> {
    call: &'a Call<'a, T>,
    dx: Option<Target<'a, T>>,
    sums: Option<Target<'a, f32>>,
}

impl<T: Element> Kernel for Unit<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { call, rows, block, dx, mut sums } = self;
        for first in rows.clone().step_by(block) {
            let last = (first + block).min(rows.end);
            walk::<S>(&Block { call, dx, sums: sums.as_mut().map(UnitSums::block) }, first..last);
            if let Some(sums) = &mut sums {
                sums.end_block::<S>();
            }
        }
        if let Some(sums) = sums {
            sums.end();
        }
    }
}

/// The numbers of several rows.
#[inline(always)]
fn numbers<const R: usize>(of: &[f32], row: usize) -> [f32; R] {
    let mut all = [0.0; R];
    all.copy_from_slice(&of[row..row + R]);
    all
}

/// Sums over rows of `g = dy * weight` and of `g * x_hat`.
struct RowSums<const R: usize> {
    g: [f64; R],
    gx: [f64; R],
}

/// The rows at hand.
struct Rows<'a, S: Simd, T, const R: usize> {
    x: [Source<'a, T>; R],
    dy: [Source<'a, T>; R],
    mean: [Lanes<S>; R],
    rstd: [Lanes<S>; R],
}

impl<S: Simd, T: Element, const R: usize> Rows<'_, S, T, R> {
    /// Some of the columns.
    #[inline(always)]
    fn run(&self, start: usize, len: usize) -> Self {
        Self { x: self.x.map(|x| x.run(start, len)), dy: self.dy.map(|dy| dy.run(start, len)), ..*self }
    }

    /// `x` and `dy`.
    #[inline(always)]
    fn load(&self, span: Span) -> [[Lanes<S>; R]; 2] {
        [load(self.x, span), load(self.dy, span)]
    }

    #[inline(always)]
    fn x_hat(&self, r: usize, x: Lanes<S>) -> Lanes<S> {
        (x - self.mean[r]) * self.rstd[r]
    }
}

impl<T: Element> ByRows for Block<'_, T> {
    #[inline(always)]
    fn cols(&self) -> usize {
        self.call.shape.cols()
    }

    #[inline(always)]
    fn by_four(&self) -> bool {
        let (call, cols) = (self.call, self.call.shape.cols());
        // Of rows that begin in the middle of a line only the first would be streamed.
        let streams_all = !call.stream || cols.is_multiple_of(LANES);
        let has_many_sums = self.sums.is_some() && size_of::<T>() == 4 && ROWS_WITH_MANY_SUMS.contains(&cols);
        cols <= LONG_ROW || has_many_sums && streams_all
    }

    #[inline(always)]
    fn rows<S: Simd, const R: usize>(&self, row: usize) {
        let call = self.call;
        let rows: Rows<'_, S, T, R> = Rows {
            x: call.x.1.rows(Source::new(call.x.0), row),
            dy: call.dy.1.rows(Source::new(call.dy.0), row),
            mean: splat(match call.mean {
                Some(mean) => numbers(mean, row),
                None => [0.0; R],
            }),
            rstd: splat(numbers(call.rstd, row)),
        };
        if let (Some(dx), Some((_, place))) = (self.dx, call.dx) {
            for dx in place.rows_mut::<T, R>(dx, row) {
                dx.prefetch_ends::<S>(call.stream);
            }
        }
        let sums = match (self.sums, self.dx.is_some()) {
            (Some(to), _) => self.sums::<S, R, true>(&rows, to),
            // Of a place that nothing is written to.
            (None, true) => self.sums::<S, R, false>(&rows, Target::new(&mut [])),
            (None, false) => return,
        };
        let Some(dx) = self.dx else { return };
        let share = (call.shape.cols() as f64).recip();
        let centered = call.mean.is_some();
        let (mut mean_g, mut minus_mean_gx) = ([0.0; R], [0.0; R]);
        for r in 0..R {
            mean_g[r] = if centered { (sums.g[r] * share) as f32 } else { 0.0 };
            minus_mean_gx[r] = (-sums.gx[r] * share) as f32;
        }
        self.write(row, &rows, dx, splat(mean_g), splat(minus_mean_gx));
    }
}

impl<T: Element> Block<'_, T> {
    /// Sums over each row; and, where they are `WANTED`, over rows per column.
    #[inline(always)]
    fn sums<S: Simd, const R: usize, const WANTED: bool>(
        &self,
        rows: &Rows<'_, S, T, R>,
        to: Target<'_, f32>,
    ) -> RowSums<R> {
        let cols = self.call.shape.cols();
        let weight = Source::new(self.call.weight);
        let to_weight = to.run(0, if WANTED { cols } else { 0 });
        let to_bias = to.run(to_weight.len(), to_weight.len());
        let mut sums = RowSums { g: [0.0; R], gx: [0.0; R] };
        let mut start = 0;
        while start < cols {
            let len = (cols - start).min(CHAIN * LANES);
            let weight = weight.run(start, len);
            let part = if WANTED { start..start + len } else { 0..0 };
            let (to_weight, to_bias) =
                (to_weight.run(part.start, part.len()), to_bias.run(part.start, part.len()));
            let rows = rows.run(start, len);
            let (mut g_sums, mut gx_sums) = ([Lanes::<S>::splat(0.0); R], [Lanes::<S>::splat(0.0); R]);
            for_spans!(len, 0, |span| {
                let weight = weight.load(span);
                let (mut dweight, mut dbias) = match WANTED {
                    true => (to_weight.source().load(span), to_bias.source().load(span)),
                    false => (weight, weight),
                };
                let [x, dy] = rows.load(span);
                for r in 0..R {
                    let dy = dy[r];
                    // Behind the end there are zeros, whose product with an infinity would not be one.
                    let x_hat = rows.x_hat(r, x[r]).first(span.n());
                    if WANTED {
                        dweight = dy.mul_add(x_hat, dweight);
                        dbias = dbias + dy;
                    }
                    let g = dy * weight;
                    g_sums[r] = g_sums[r] + g;
                    gx_sums[r] = g.mul_add(x_hat, gx_sums[r]);
                }
                if WANTED {
                    to_weight.store(span, dweight, false);
                    to_bias.store(span, dbias, false);
                }
            });
            let (g, gx) = (simd::sums(g_sums), simd::sums(gx_sums));
            for r in 0..R {
                sums.g[r] += f64::from(g[r]);
                sums.gx[r] += f64::from(gx[r]);
            }
            start += len;
        }
        sums
    }

    #[inline(always)]
    fn write<S: Simd, const R: usize>(
        &self,
        row: usize,
        rows: &Rows<'_, S, T, R>,
        dx: Target<'_, T>,
        mean_g: [Lanes<S>; R],
        minus_mean_gx: [Lanes<S>; R],
    ) {
        let Some((_, place)) = self.call.dx else { return };
        let (cols, past) = (self.call.shape.cols(), self.call.stream);
        let rows = rows.run(0, cols);
        let mut dx = place.rows_mut::<T, R>(dx, row);
        for dx in &mut dx {
            *dx = dx.run(0, cols);
        }
        let dh = match self.call.dh {
            Some((dh, place)) => Some(as_long(place.rows::<T, R>(Source::new(dh), row), 0, cols)),
            None => None,
        };
        let weight = Source::new(self.call.weight).run(0, cols);
        let prefetches = size_of::<T>() == 2 && cols >= PREFETCHED_ROW;
        let [x_ahead, dy_ahead] = match prefetches {
            true => [self.call.x.1, self.call.dy.1].map(|place| place.of(row + R) - place.of(row)),
            false => [0; 2],
        };
        for_spans!(S, 2 * R, cols, dx[0].head::<S>(past), |span| loaded = rows.load(span), {
            let (weight, [x, dy]) = (weight.load(span), loaded);
            for r in 0..R {
                if prefetches {
                    rows.x[r].prefetch::<S>(span, x_ahead);
                    rows.dy[r].prefetch::<S>(span, dy_ahead);
                }
                let g = (dy[r] * weight) - mean_g[r];
                let moved = rows.x_hat(r, x[r]).mul_add(minus_mean_gx[r], g);
                let v = match &dh {
                    Some(dh) => moved.mul_add(rows.rstd[r], dh[r].load(span)),
                    None => moved * rows.rstd[r],
                };
                dx[r].store(span, v, past);
            }
        });
    }
}
