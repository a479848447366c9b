use core::ops::Range;

use super::{
    memory::{Shared, Source, Span, Target, for_spans},
    parallel,
    simd::{Kernel, LANES, Lanes, Simd, dispatch},
};

/// Columns up to which, and blocks of rows from which on, a unit of work adds up the sums of several blocks: else all of them
/// together fill the caches. Elsewhere each block is a unit, since longer sums in `f64` would fill them too. One thread of AMD
/// Zen 4, several / one: BatchNorm channels last in f32, 3,136 blocks of 64 columns, forward 1.51 / 1.81 ms, but 196 of 256
/// 327 / 297 us; LayerNorm backward, 171 blocks of 768 columns, 1.70 / 1.59 ms. Both ends are guesses in between.
const FOLDED_WIDTH: usize = 256;
const FOLDED_BLOCKS: usize = 1024;

/// Units of folded sums: enough for many threads.
const FOLDED_UNITS: usize = 64;

/// Blocks of a unit of a sum over so many `blocks` of rows of `width` columns.
pub(super) fn blocks_per_unit(blocks: usize, width: usize) -> usize {
    let folds = width <= FOLDED_WIDTH && blocks >= FOLDED_BLOCKS;
    if folds { blocks.div_ceil(FOLDED_UNITS) } else { 1 }
}

/// Sums that units of work leave, to be added up in the order of the units.
pub(super) struct Totals {
    /// Two rows for each unit: its sums, and what their rounding has left.
    parts: Vec<f32>,
    width: usize,
    rows: usize,
}

/// Where units leave their sums.
pub(super) struct Parts<'a> {
    parts: Shared<'a, f32>,
    width: usize,
    rows: usize,
}

/// The sums of a unit.
pub(super) struct UnitSums<'a> {
    to: Target<'a, f32>,
    folded: Option<Folded>,
}

/// Those of the block at hand, and of all before it.
struct Folded {
    block: Vec<f32>,
    total: Vec<f64>,
}

impl Totals {
    /// For so many units, of several blocks each where it `folds`.
    pub(super) fn new(units: usize, width: usize, folds: bool) -> Self {
        let rows = if folds { 2 } else { 1 };
        Self { parts: vec![0.0; units * rows * width], width, rows }
    }

    pub(super) fn parts(&mut self) -> Parts<'_> {
        Parts { parts: Shared::new(&mut self.parts), width: self.width, rows: self.rows }
    }

    /// The sum over some of the units of each column, for a call that moves so many `bytes`.
    pub(super) fn add_up(&self, units: Range<usize>, bytes: usize) -> Vec<f64> {
        let len = self.rows * self.width;
        let parts = &self.parts[units.start * len..units.end * len];
        let mut totals = vec![0.0; self.width];
        /// Columns of a unit of this work.
        const COLUMNS: usize = 4096;
        let shared = Shared::new(&mut totals);
        parallel::for_each(self.width.div_ceil(COLUMNS), size_of_val(parts).min(bytes), |unit| {
            let start = unit * COLUMNS;
            let len = COLUMNS.min(self.width - start);
            // SAFETY: each unit has columns of its own.
            let totals = unsafe { shared.target().slice(start, len) };
            dispatch(AddUp { parts, width: self.width, start, totals });
        });
        totals
    }
}

impl<'a> Parts<'a> {
    /// # Safety
    ///
    /// Nobody else has the place of this unit.
    pub(super) unsafe fn of(&self, unit: usize) -> UnitSums<'a> {
        let len = self.rows * self.width;
        // SAFETY: as promised.
        let parts = unsafe { self.parts.target() };
        let zeros = || Folded { block: vec![0.0; self.width], total: vec![0.0; self.width] };
        UnitSums { to: parts.run(unit * len, len), folded: (self.rows == 2).then(zeros) }
    }
}

impl UnitSums<'_> {
    /// Where the sums of the next block are to be added; zeros as yet.
    #[inline(always)]
    pub(super) fn block(&mut self) -> Target<'_, f32> {
        match &mut self.folded {
            Some(folded) => Target::new(&mut folded.block),
            None => self.to,
        }
    }

    /// After each block.
    #[inline(always)]
    pub(super) fn end_block<S: Simd>(&mut self) {
        let Some(Folded { block, total }) = &mut self.folded else { return };
        let (block, total) = (Target::new(block), Target::new(total));
        for_spans!(block.len(), 0, |span| {
            let sums = block.source().load::<S>(span).to_array();
            block.store(span, Lanes::<S>::splat(0.0), false);
            // SAFETY: no other borrow of these lives here.
            let total = unsafe { total.slice(span.at(), span.n()) };
            for i in 0..total.len() {
                total[i] += f64::from(sums[i]);
            }
        });
    }

    /// In place of both: the sums of a block in two rows, of as many columns as there are.
    #[inline(always)]
    pub(super) fn add_block<S: Simd, const N: usize>(&mut self, block: [[Lanes<S>; N]; 2]) {
        let Some(Folded { total, .. }) = &mut self.folded else {
            assert_eq!(self.to.len(), 2 * N * LANES);
            for (row, block) in block.iter().enumerate() {
                for (k, &sums) in block.iter().enumerate() {
                    self.to.store(Span::new((row * N + k) * LANES, LANES, 2 * N * LANES), sums, false);
                }
            }
            return;
        };
        assert_eq!(total.len(), 2 * N * LANES);
        for (row, block) in block.iter().enumerate() {
            for (k, sums) in block.iter().enumerate() {
                let (total, sums) = (&mut total[(row * N + k) * LANES..][..LANES], sums.to_array());
                for i in 0..LANES {
                    total[i] += f64::from(sums[i]);
                }
            }
        }
    }

    /// After the last one.
    pub(super) fn end(self) {
        let Some(Folded { total, .. }) = self.folded else { return };
        for (i, &sum) in total.iter().enumerate() {
            let rounded = sum as f32;
            let rest = sum - f64::from(rounded);
            self.to.set(i, rounded);
            // Of what is not finite there is none.
            self.to.set(total.len() + i, if rest.is_finite() { rest as f32 } else { 0.0 });
        }
    }
}

/// Adds up some of the columns.
struct AddUp<'a> {
    parts: &'a [f32],
    width: usize,
    start: usize,
    totals: &'a mut [f64],
}

/// Rows that are added at a time, so that totals are read and written that much less often.
const ROWS: usize = 4;

impl AddUp<'_> {
    /// Adds some rows that follow each other, from an element on.
    #[inline(always)]
    fn add<S: Simd, const R: usize>(&mut self, first: usize) {
        let len = self.totals.len();
        let mut rows = [Source::new(self.parts); R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = row.run(first + r * self.width + self.start, len);
        }
        let (whole, rest) = self.totals.as_chunks_mut::<LANES>();
        for (i, totals) in whole.iter_mut().enumerate() {
            for row in rows {
                let part = row.load::<S>(Span::new(i * LANES, LANES, len)).to_array();
                for i in 0..LANES {
                    totals[i] += f64::from(part[i]);
                }
            }
        }
        for (i, total) in rest.iter_mut().enumerate() {
            for row in rows {
                *total += f64::from(row.one(whole.len() * LANES + i));
            }
        }
    }
}

impl Kernel for AddUp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let mut row = 0;
        while row + ROWS * self.width <= self.parts.len() {
            self.add::<S, ROWS>(row);
            row += ROWS * self.width;
        }
        while row < self.parts.len() {
            self.add::<S, 1>(row);
            row += self.width;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VECTORS: usize = 3;

    /// Adds two blocks to each of two units.
    struct Blocks<'a> {
        units: [UnitSums<'a>; 2],
        /// Each of so many vectors at once, in place of column by column.
        at_once: bool,
    }

    impl Kernel for Blocks<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self) {
            for mut sums in self.units {
                for term in [16_777_216.0, 1.0] {
                    let of_column = |column: usize| term * (column + 1) as f32;
                    if self.at_once {
                        let vector = |k: usize| core::array::from_fn(|i| of_column(k * LANES + i));
                        let row =
                            |r: usize| core::array::from_fn(|k| Lanes::from_array(vector(r * VECTORS + k)));
                        sums.add_block::<S, VECTORS>([row(0), row(1)]);
                        continue;
                    }
                    let block = sums.block();
                    for column in 0..block.len() {
                        let before = block.source().one(column);
                        assert_eq!(before, 0.0, "left in a block");
                        block.set(column, before + of_column(column));
                    }
                    sums.end_block::<S>();
                }
                sums.end();
            }
        }
    }

    #[test]
    fn blocks_of_a_unit_are_added_up_in_f64() {
        for (width, at_once) in [(21, false), (2 * VECTORS * LANES, true)] {
            let mut totals = Totals::new(2, width, true);
            let parts = totals.parts();
            // SAFETY: two units.
            dispatch(Blocks { units: unsafe { [parts.of(0), parts.of(1)] }, at_once });
            let of_unit: Vec<f64> = (1..=width).map(|column| 16_777_217.0 * column as f64).collect();
            assert_eq!(totals.add_up(1..2, 0), of_unit);
            assert_eq!(totals.add_up(0..2, 0), of_unit.iter().map(|sum| 2.0 * sum).collect::<Vec<_>>());
        }
    }
}
