//! Rows that are added up several at a time, strip by strip, before the first of them is written.

use core::ops::Range;

use super::{Block, RowSums, Unit};
use crate::{
    Element,
    cpu::{
        memory::{Source, Span, Target},
        moments::CHAIN,
        simd::{self, Kernel, LANES, Lanes, Simd},
    },
};

/// Rows of at least so many columns are added up by groups in f32: sums of columns are read and written once for all rows of a
/// group, and are in registers meanwhile; where results are streamed, the next group is fetched then. One thread of AMD Zen 4,
/// LayerNorm, so / row by row: 256 rows of 2,048 159 / 187 us, 1,024 of 1,024 328 / 361; 17 MB, 1,024 of 4,096 2.0 / 2.5 ms and 64
/// of 65,536 2.8 / 3.8. But 4,096 of 768 1.24 / 1.20 ms, though a loop in C gains.
const GROUPED: usize = 1024;

/// Rows of a group, and bytes of both tensors, so that it is in a cache of the second level, and much of the next one too. Loops in
/// C, rows of 4,096, by 8 / 4 / 2: 1.53 / 1.65 / 1.85 ms; of 16,384, by 8 / 4 / 2, 2.5 / 1.9 / 1.8, and of 65,536 2.8 / 2.3 / 2.3.
const GROUP_ROWS: usize = 8;
const FEWEST_ROWS: usize = 2;
const GROUP_BYTES: usize = 512 << 10;

/// Bytes of groups of which the next one is fetched while this one is added up, not only while it is written: both fit in a cache of
/// the second level, and some prefetches seem to come to nothing beside streamed results. One thread of AMD Zen 4, LayerNorm,
/// both / only while writing: rows of 4,096, 17 MB 1.53 / 1.67 ms, 42 MB 4.2 / 4.8; with groups of 1 MiB, rows of 65,536,
/// 2.02 / 1.89.
const PREFETCHED_BYTES: usize = GROUP_BYTES / 2;

/// Columns of a strip, whose sums are in registers.
const STRIP: usize = STRIP_VECTORS * LANES;
const STRIP_VECTORS: usize = 8;

/// Rows of a group, for rows of `cols` elements.
pub(super) fn group_rows<T>(cols: usize) -> usize {
    if size_of::<T>() < 4 || cols < GROUPED {
        return 1;
    }
    // A power of two, so that blocks are of whole groups.
    let rows = (GROUP_BYTES / (2 * cols * size_of::<T>())).clamp(FEWEST_ROWS, GROUP_ROWS);
    1 << rows.ilog2()
}

/// Some of the rows, group by group where there are registers for it. A kernel of its own: beside the loops of rows registers are
/// short.
pub(super) struct Groups<'a, T>(pub(super) Unit<'a, T>);

impl<T: Element> Kernel for Groups<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self(unit) = self;
        match S::ROWS {
            4 => unit.walk::<S, true>(),
            _ => unit.walk::<S, false>(),
        }
    }
}

/// The rows of a group.
struct Group<'a, T> {
    rows: usize,
    x: [Source<'a, T>; GROUP_ROWS],
    dy: [Source<'a, T>; GROUP_ROWS],
    mean: [f32; GROUP_ROWS],
    rstd: [f32; GROUP_ROWS],
    /// Where the next group begins, from this one on, of `x` and `dy`.
    next: [usize; 2],
    prefetches: bool,
}

/// Sums over rows, of some of the columns.
struct Chains<S: Simd> {
    g: [Lanes<S>; GROUP_ROWS],
    gx: [Lanes<S>; GROUP_ROWS],
}

/// Where gradients of weight and bias are added up.
#[derive(Clone, Copy)]
struct Grads<'a> {
    weight: Target<'a, f32>,
    bias: Target<'a, f32>,
}

impl<T: Element> Block<'_, T> {
    /// Some of the rows, group by group.
    #[inline(always)]
    pub(super) fn groups<S: Simd>(&self, rows: Range<usize>) {
        for first in rows.clone().step_by(self.call.group) {
            self.group::<S>(first..(first + self.call.group).min(rows.end));
        }
    }

    #[inline(always)]
    fn group<S: Simd>(&self, rows: Range<usize>) {
        for row in rows.clone() {
            self.prefetch_ends::<S, 1>(row);
        }
        let sums = match (self.sums, self.dx.is_some()) {
            (Some(to), _) => self.group_sums::<S, true>(rows.clone(), to),
            // Of a place that nothing is written to.
            (None, true) => self.group_sums::<S, false>(rows.clone(), Target::new(&mut [])),
            (None, false) => return,
        };
        for (r, row) in rows.enumerate() {
            let sums = RowSums { g: [sums.g[r]], gx: [sums.gx[r]] };
            self.finish::<S, 1, true>(row, &self.at::<S, 1>(row), sums);
        }
    }

    #[inline(always)]
    fn rows_of_group(&self, rows: Range<usize>) -> Group<'_, T> {
        let call = self.call;
        let (x, dy) = (Source::new(call.x.0), Source::new(call.dy.0));
        let bytes = 2 * call.group * call.shape.cols() * size_of::<T>();
        let mut group = Group {
            rows: rows.len(),
            x: [x; GROUP_ROWS],
            dy: [dy; GROUP_ROWS],
            mean: [0.0; GROUP_ROWS],
            rstd: [0.0; GROUP_ROWS],
            next: [call.x.1, call.dy.1].map(|place| place.of(rows.start + call.group) - place.of(rows.start)),
            prefetches: call.stream && bytes <= PREFETCHED_BYTES,
        };
        for (r, row) in rows.enumerate() {
            [group.x[r]] = call.x.1.rows(x, row);
            [group.dy[r]] = call.dy.1.rows(dy, row);
            group.mean[r] = call.mean.map_or(0.0, |mean| mean[row]);
            group.rstd[r] = call.rstd[row];
        }
        group
    }

    /// As [`sums`](Self::sums), with the same bits.
    #[inline(always)]
    fn group_sums<S: Simd, const WANTED: bool>(
        &self,
        rows: Range<usize>,
        to: Target<'_, f32>,
    ) -> RowSums<GROUP_ROWS> {
        let cols = self.call.shape.cols();
        let weight = to.run(0, if WANTED { cols } else { 0 });
        let grads = Grads { weight, bias: to.run(weight.len(), weight.len()) };
        let group = self.rows_of_group(rows);
        let mut sums = RowSums { g: [0.0; GROUP_ROWS], gx: [0.0; GROUP_ROWS] };
        let zero = Lanes::<S>::splat(0.0);
        let mut start = 0;
        while start < cols {
            let end = (start + CHAIN * LANES).min(cols);
            let mut chains = Chains { g: [zero; GROUP_ROWS], gx: [zero; GROUP_ROWS] };
            while start + STRIP <= end {
                self.strip::<S, STRIP_VECTORS, WANTED>(&group, start, STRIP, grads, &mut chains);
                start += STRIP;
            }
            while start < end {
                let len = LANES.min(end - start);
                self.strip::<S, 1, WANTED>(&group, start, len, grads, &mut chains);
                start += len;
            }
            for first in (0..group.rows).step_by(4) {
                let (g, gx) = (simd::sums(four(&chains.g, first)), simd::sums(four(&chains.gx, first)));
                for r in 0..4 {
                    sums.g[first + r] += f64::from(g[r]);
                    sums.gx[first + r] += f64::from(gx[r]);
                }
            }
        }
        sums
    }

    /// Adds `len` columns from `start` on, which are `V` vectors.
    #[inline(always)]
    fn strip<S: Simd, const V: usize, const WANTED: bool>(
        &self,
        group: &Group<'_, T>,
        start: usize,
        len: usize,
        grads: Grads<'_>,
        chains: &mut Chains<S>,
    ) {
        let span = |k: usize| Span::new(k * LANES, LANES.min(len - k * LANES), len);
        let weight = Source::new(self.call.weight).run(start, len);
        let part = if WANTED { start..start + len } else { 0..0 };
        let to_weight = grads.weight.run(part.start, part.len());
        let to_bias = grads.bias.run(part.start, part.len());
        let (mut dweight, mut dbias) = ([Lanes::<S>::splat(0.0); V], [Lanes::<S>::splat(0.0); V]);
        if WANTED {
            for k in 0..V {
                dweight[k] = to_weight.source().load(span(k));
                dbias[k] = to_bias.source().load(span(k));
            }
        }
        for r in 0..group.rows.min(GROUP_ROWS) {
            let (x, dy_row) = (group.x[r].run(start, len), group.dy[r].run(start, len));
            let (mean, rstd) = (Lanes::<S>::splat(group.mean[r]), Lanes::<S>::splat(group.rstd[r]));
            let (mut g_sum, mut gx_sum) = (chains.g[r], chains.gx[r]);
            for k in 0..V {
                if group.prefetches {
                    x.prefetch_second::<S>(span(k), group.next[0]);
                    dy_row.prefetch_second::<S>(span(k), group.next[1]);
                }
                let dy = dy_row.load(span(k));
                // Behind the end there are zeros, whose product with an infinity would not be one.
                let x_hat = ((x.load(span(k)) - mean) * rstd).first(span(k).n());
                if WANTED {
                    dweight[k] = dy.mul_add(x_hat, dweight[k]);
                    dbias[k] = dbias[k] + dy;
                }
                let g = dy * weight.load(span(k));
                g_sum = g_sum + g;
                gx_sum = g.mul_add(x_hat, gx_sum);
            }
            (chains.g[r], chains.gx[r]) = (g_sum, gx_sum);
        }
        if WANTED {
            for k in 0..V {
                to_weight.store(span(k), dweight[k], false);
                to_bias.store(span(k), dbias[k], false);
            }
        }
    }
}

#[inline(always)]
fn four<S: Simd>(all: &[Lanes<S>; GROUP_ROWS], first: usize) -> [Lanes<S>; 4] {
    [all[first], all[first + 1], all[first + 2], all[first + 3]]
}
