mod groups;

use core::ops::Range;

use self::groups::{Groups, group_rows};
use super::{ByRows, LONG_ROW, Place, as_long, load, splat, walk};
use crate::{
    Element,
    cpu::{
        Cpu,
        memory::{Shared, Source, Span, Target, for_spans},
        moments::CHAIN,
        parallel::{self, Way},
        params::{Params, store_grads},
        simd::{self, Kernel, LANES, Lanes, Simd, dispatch},
        totals::{Division, Totals, UnitSums},
    },
    row_norm::RowNormBackward,
    shape::RowShape,
};

/// Rows whose gradients of weight and bias are added up in `f32`, at most: of equal values each may err by a quarter of a
/// unit in the last place and merged sums by 1.5 more, and the tests allow 8 units.
const BLOCK_ROWS: usize = 24;

/// Blocks where rows are enough for them; each has sums for all columns, which cost as much as some rows.
const BLOCKS: usize = 64;
const MIN_ROWS: usize = 16;

/// Rows of so many elements of 2 bytes are prefetched while those before them are written; what is shorter, or of 4 bytes and in no
/// group, the processor fetches better by itself. One thread of AMD Zen 4, prefetched / not: f16, 1,024 rows of 4,096 1.40 / 1.59
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
    by_four: bool,
    /// Rows whose sums are all there before the first of them is written.
    group: usize,
}

pub(in crate::cpu) fn backward<T: Element>(shape: RowShape, args: RowNormBackward<'_, T, Cpu>) {
    let RowNormBackward { x, dy, dh, affine, weight_offset, mean, rstd, dx, grads, accumulate, workspace: _ } =
        args;
    let place = |stride| Place { shape, stride };
    let params = Params::of(&affine, shape.cols()).offset(weight_offset, &affine);
    let bytes = (2 + usize::from(dx.is_some())) * shape.len() * size_of::<T>();
    let dx = dx.map(|v| (Shared::new(v.data), place(v.stride)));
    let stream = parallel::streams::<T>(parallel::is_far(bytes, Way::Winding), shape.cols())
        || parallel::is_far(bytes, Way::ShortRows) && dx.as_ref().is_some_and(is_in_lines);
    let call = Call {
        shape,
        x: (x.data, place(x.stride)),
        dy: (dy.data, place(dy.stride)),
        dh: dh.map(|v| (v.data, place(v.stride))),
        weight: &params.weight,
        mean,
        rstd,
        dx,
        sums_wanted: !grads.is_none(),
        stream,
        by_four: shape.cols() <= LONG_ROW && !parallel::is_far(bytes, Way::Straight),
        group: group_rows::<T>(shape.cols()),
    };
    // No rows are no reason to look for the first one's elements.
    let rows = if shape.is_empty() { 0 } else { shape.rows() };
    let block = rows.div_ceil(BLOCKS).clamp(MIN_ROWS, BLOCK_ROWS).next_multiple_of(8);
    let division = Division::of(rows.div_ceil(block), shape.cols(), block * shape.cols());
    let per_unit = block * division.per_unit;
    let units = rows.div_ceil(per_unit);
    let mut totals = Totals::new(if call.sums_wanted { units } else { 0 }, 2 * shape.cols(), division);
    let parts = totals.parts();
    parallel::for_each(units, bytes, |unit| {
        let first = unit * per_unit;
        let last = (first + per_unit).min(rows);
        // SAFETY: a unit touches its own rows and its own sums only, and no two rows share an element.
        let (dx, sums) = unsafe {
            (call.dx.as_ref().map(|dx| dx.0.target()), call.sums_wanted.then(|| parts.of(unit..unit + 1)))
        };
        let unit = Unit { call: &call, rows: first..last, block, dx, sums };
        match call.group {
            1 => dispatch(unit),
            _ => dispatch(Groups(unit)),
        }
    });
    if call.sums_wanted {
        let sums = totals.add_up(0..units, bytes);
        let (dweight, dbias) = sums.split_at(shape.cols());
        store_grads(grads, dweight, dbias, accumulate);
    }
}

/// Whether each row begins with a line of the caches.
fn is_in_lines<T>((to, place): &(Shared<'_, T>, Place)) -> bool {
    // SAFETY: nothing is read or written through it.
    let to = unsafe { to.target() };
    to.is_in_lines(place.shape.cols()) && to.is_in_lines(place.stride)
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
        self.walk::<S, false>();
    }
}

impl<T: Element> Unit<'_, T> {
    /// Block by block, whose rows are walked by groups where they are `GROUPED`.
    #[inline(always)]
    fn walk<S: Simd, const GROUPED: bool>(self) {
        let Self { call, rows, block, dx, mut sums } = self;
        for first in rows.clone().step_by(block) {
            let last = (first + block).min(rows.end);
            let work = Block { call, dx, sums: sums.as_mut().map(UnitSums::block) };
            match GROUPED {
                true => work.groups::<S>(first..last),
                false => walk::<S>(&work, first..last),
            }
            if let Some(sums) = &mut sums {
                sums.end_block::<S>();
            }
        }
        if let Some(sums) = &mut sums {
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
        self.call.by_four
    }

    #[inline(always)]
    fn rows<S: Simd, const R: usize>(&self, row: usize) {
        let rows = self.at::<S, R>(row);
        self.prefetch_ends::<S, R>(row);
        let sums = match (self.sums, self.dx.is_some()) {
            (Some(to), _) => self.sums::<S, R, true>(&rows, to),
            // Of a place that nothing is written to.
            (None, true) => self.sums::<S, R, false>(&rows, Target::new(&mut [])),
            (None, false) => return,
        };
        self.finish::<S, R, false>(row, &rows, sums);
    }
}

impl<T: Element> Block<'_, T> {
    /// Rows from one on.
    #[inline(always)]
    fn at<S: Simd, const R: usize>(&self, row: usize) -> Rows<'_, S, T, R> {
        let call = self.call;
        Rows {
            x: call.x.1.rows(Source::new(call.x.0), row),
            dy: call.dy.1.rows(Source::new(call.dy.0), row),
            mean: splat(match call.mean {
                Some(mean) => numbers(mean, row),
                None => [0.0; R],
            }),
            rstd: splat(numbers(call.rstd, row)),
        }
    }

    /// Before rows are written.
    #[inline(always)]
    fn prefetch_ends<S: Simd, const R: usize>(&self, row: usize) {
        if let (Some(dx), Some((_, place))) = (self.dx, self.call.dx) {
            for dx in place.rows_mut::<T, R>(dx, row) {
                dx.prefetch_ends::<S>(self.call.stream);
            }
        }
    }

    /// Writes rows whose sums are there.
    #[inline(always)]
    fn finish<S: Simd, const R: usize, const GROUPED: bool>(
        &self,
        row: usize,
        rows: &Rows<'_, S, T, R>,
        sums: RowSums<R>,
    ) {
        let Some(dx) = self.dx else { return };
        let share = (self.call.shape.cols() as f64).recip();
        let centered = self.call.mean.is_some();
        let (mut mean_g, mut minus_mean_gx) = ([0.0; R], [0.0; R]);
        for r in 0..R {
            mean_g[r] = if centered { (sums.g[r] * share) as f32 } else { 0.0 };
            minus_mean_gx[r] = (-sums.gx[r] * share) as f32;
        }
        self.write::<S, R, GROUPED>(row, rows, dx, splat(mean_g), splat(minus_mean_gx));
    }

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
    fn write<S: Simd, const R: usize, const GROUPED: bool>(
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
        // The next group is fetched as it lies while this one is written.
        let further = if GROUPED { self.call.group } else { R };
        let prefetches = if GROUPED { past } else { size_of::<T>() == 2 && cols >= PREFETCHED_ROW };
        let [x_ahead, dy_ahead] = match prefetches {
            true => [self.call.x.1, self.call.dy.1].map(|place| place.of(row + further) - place.of(row)),
            false => [0; 2],
        };
        for_spans!(S, 2 * R, cols, dx[0].head::<S>(past), |span| loaded = rows.load(span), {
            let (weight, [x, dy]) = (weight.load(span), loaded);
            for r in 0..R {
                if prefetches && GROUPED {
                    rows.x[r].prefetch_second::<S>(span, x_ahead);
                    rows.dy[r].prefetch_second::<S>(span, dy_ahead);
                } else if prefetches {
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
