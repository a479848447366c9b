//! Rows that are added up several at a time before the first of them is written.

use core::ops::Range;

use super::{
    super::{ByRows, LONG_ROW, splat},
    Scales, Unit,
};
use crate::{
    Element,
    cpu::{
        memory::{Source, Span},
        parallel,
        simd::{Kernel, LANES, Simd},
    },
};

/// Bytes of rows that are added up before the first of them is written, where one thread has more than its caches: strips of
/// them share weights that are in a cache of the first level, and what is streamed does not wait for those. One thread of AMD
/// Zen 4 in f32, 42 MB, so / row by row: loops in C, rows of 4,096, 2.8 / 3.6 ms; groups of 4 to 16 rows were within 8 %. Two
/// threads are 4 to 8 % faster row by row, and in f16, 17 MB, nothing is gained. That rows below 4,096 gain too is a guess.
const GROUP_BYTES: usize = 128 << 10;
const GROUP_ROWS: usize = 8;
/// Of rows for which that is too little, where as many have room in a cache of the second level: rows of 65,536, 17 MB, by 4 /
/// by 1 1.11 / 1.28 ms.
const FEWEST_ROWS: usize = 4;
const MOST_GROUP_BYTES: usize = 1 << 20;

/// Columns of a strip of such rows. One thread of AMD Zen 4, LayerNorm of 42 MB in f32, rows of 4,096, 256 columns that are
/// fetched just before / 1,024 while the next rows are fetched: 3.2 / 3.6 ms. In C, 128 and 512 are 10 to 30 % slower: rows of
/// whole pages have the places of a strip in a cache in common.
const STRIP: usize = 256;

/// Rows of a group, for streamed rows of `cols` elements without a residual.
pub(super) fn group_rows<T>(bytes: usize, cols: usize) -> usize {
    let of_row = cols * size_of::<T>();
    let gains = size_of::<T>() == 4 && cols > LONG_ROW && of_row <= MOST_GROUP_BYTES / FEWEST_ROWS;
    match gains && parallel::threads(bytes) == 1 && parallel::is_beyond_caches(bytes) {
        true => (GROUP_BYTES / of_row).clamp(FEWEST_ROWS, GROUP_ROWS),
        false => 1,
    }
}

/// Some of the rows, group by group.
pub(super) struct Groups<'a, T>(pub(super) Unit<'a, T>);

impl<T: Element> Kernel for Groups<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self(unit) = self;
        for first in (unit.first..unit.last).step_by(unit.call.group) {
            unit.group::<S>(first..(first + unit.call.group).min(unit.last));
        }
    }
}

impl<T: Element> Unit<'_, T> {
    /// Several rows, strip by strip once all their numbers are there.
    #[inline(always)]
    fn group<S: Simd>(&self, rows: Range<usize>) {
        let (cols, stream) = (self.cols(), self.call.stream);
        // What is written by strips: a row, from where a line of `y` begins.
        let mut ready = [const { None }; GROUP_ROWS];
        for (row, ready) in rows.zip(&mut ready) {
            let ([x], [y]) = (self.source::<1>(row), self.call.y.1.rows_mut(self.y, row));
            y.prefetch_ends::<S>(stream);
            let numbers = self.numbers::<S, 1>([x], row);
            match numbers.will_do() {
                true => *ready = Some((row, y.head::<S>(stream), Scales::new(numbers, self.call.rms))),
                false => self.write_exact(x, row, numbers),
            }
        }
        let ready = ready.iter().flatten();
        // Of all rows, wherever their lines begin.
        let strips = (cols - (LANES - 1)) / STRIP;
        for strip in 0..strips {
            for (row, head, _) in ready.clone() {
                let [x] = self.source::<1>(*row);
                x.prefetch_run::<S>(head + strip * STRIP, STRIP);
            }
            for (row, head, scales) in ready.clone() {
                self.write_strip::<S>(*row, head + strip * STRIP, scales);
            }
        }
        for (row, head, scales) in ready {
            for columns in [0..*head, head + strips * STRIP..cols] {
                self.write_columns::<S, 1>(self.source(*row), *row, scales, columns);
            }
        }
    }

    /// A strip of a row from column `start` on.
    #[inline(always)]
    fn write_strip<S: Simd>(&self, row: usize, start: usize, scales: &Scales<1>) {
        let ([x], [y]) = (self.source::<1>(row), self.call.y.1.rows_mut(self.y, row));
        let (x, y) = (x.run(start, STRIP), y.run(start, STRIP));
        let weight = Source::new(&self.call.params.weight).run(start, STRIP);
        let bias = Source::new(&self.call.params.bias).run(start, STRIP);
        let [high, rstd, low] = [scales.high, scales.rstd, scales.low].map(|v| splat::<S, 1>(v)[0]);
        let vector = |k: usize| Span::new(k * LANES, LANES, STRIP);
        const VECTORS: usize = STRIP / LANES;
        let (mut next, mut after) = (x.load::<S>(vector(0)), x.load::<S>(vector(1)));
        for k in 0..VECTORS {
            let v = next;
            next = after;
            after = x.load(vector((k + 2).min(VECTORS - 1)));
            let x_hat = (v - high).mul_add(rstd, low);
            let span = vector(k);
            y.store(span, x_hat.mul_add(weight.load(span), bias.load(span)), self.call.stream);
        }
    }
}
