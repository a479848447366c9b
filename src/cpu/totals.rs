use core::ops::Range;

use super::{
    memory::{Shared, Source, Span, Target, for_spans},
    parallel,
    simd::{Kernel, LANES, Lanes, Simd, dispatch},
};

/// Columns up to which, and blocks of rows from which on, a unit of work adds up the sums of many blocks in `f64`: else all of
/// them together fill the caches. Elsewhere longer sums in `f64` would fill them too. One thread of AMD Zen 4, many in `f64` / each
/// a unit: BatchNorm channels last in f32, 3,136 blocks of 64 columns, forward 1.51 / 1.81 ms, but 196 of 256 327 / 297 us;
/// LayerNorm backward, 171 blocks of 768 columns, 1.70 / 1.59 ms. Both ends are guesses in between.
const FOLDED_WIDTH: usize = 256;
const FOLDED_BLOCKS: usize = 1024;

/// Units from which on more blocks make larger ones: enough for many threads.
const UNITS: usize = 64;

/// Blocks whose sums are merged in `f32`, at most: three roundings of half a unit in the last place each, beside those of the
/// blocks. AMD Zen 4, f32, merged / each a unit: BatchNorm channels last, one thread, 4 blocks of 64 columns, forward 1.55 / 1.63
/// us and backward 1.97 / 2.06; LayerNorm backward, two threads, 342 blocks of 64 columns 95 / 100 us.
const MERGED: usize = 4;

/// Elements of merged blocks together that are taken to be too little to be divided among threads. A guess; of calls that are
/// just worth several threads it leaves some for eight.
const MERGED_ELEMENTS: usize = 8 << 10;

/// How many blocks of rows make a unit of work, and how their sums are put together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Division {
    pub(super) per_unit: usize,
    folds: bool,
}

impl Division {
    /// Of a sum over so many `blocks`, of rows of `width` columns and of `len` elements each.
    pub(super) fn of(blocks: usize, width: usize, len: usize) -> Self {
        if width <= FOLDED_WIDTH && blocks >= FOLDED_BLOCKS {
            return Self { per_unit: blocks.div_ceil(UNITS), folds: true };
        }
        let per_unit = (MERGED_ELEMENTS / len.max(1)).max(blocks / UNITS).clamp(1, MERGED);
        Self { per_unit, folds: false }
    }
}

/// Sums that units of work leave, to be added up in the order of the units.
pub(super) struct Totals {
    /// A row for each unit; where sums are folded a second one of what their rounding has left.
    parts: Vec<f32>,
    width: usize,
    rows: usize,
    division: Division,
}

/// Where units leave their sums.
pub(super) struct Parts<'a> {
    parts: Shared<'a, f32>,
    len: usize,
    division: Division,
}

/// The sums of some units, one after the other.
pub(super) struct UnitSums<'a> {
    units: Target<'a, f32>,
    /// Of one of them, at first of the first.
    to: Target<'a, f32>,
    blocks: Blocks,
}

/// What the sums of the blocks of a unit go through.
enum Blocks {
    One,
    /// Those of the block at hand, once there is one.
    Merged(Vec<f32>),
    /// Those of the block at hand, and of all before it.
    Folded {
        block: Vec<f32>,
        total: Vec<f64>,
    },
}

impl Totals {
    /// For so many units.
    pub(super) fn new(units: usize, width: usize, division: Division) -> Self {
        let rows = if division.folds { 2 } else { 1 };
        Self { parts: vec![0.0; units * rows * width], width, rows, division }
    }

    pub(super) fn parts(&mut self) -> Parts<'_> {
        let len = self.rows * self.width;
        Parts { parts: Shared::new(&mut self.parts), len, division: self.division }
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
    /// Nobody else has the places of these units.
    pub(super) unsafe fn of(&self, units: Range<usize>) -> UnitSums<'a> {
        // SAFETY: as promised.
        let parts = unsafe { self.parts.target() };
        let width = if self.division.folds { self.len / 2 } else { self.len };
        let blocks = match self.division {
            Division { folds: true, .. } => {
                Blocks::Folded { block: vec![0.0; width], total: vec![0.0; width] }
            }
            Division { per_unit: 1, .. } => Blocks::One,
            Division { .. } => Blocks::Merged(Vec::new()),
        };
        let units = parts.run(units.start * self.len, units.len() * self.len);
        UnitSums { units, to: units.run(0, self.len), blocks }
    }
}

impl UnitSums<'_> {
    /// Before the blocks of a unit, so many behind the first.
    pub(super) fn begin(&mut self, unit: usize) {
        self.to = self.units.run(unit * self.to.len(), self.to.len());
    }

    /// Where the sums of the next block are to be added: zeros as yet in all columns that [`add_strip`](Self::add_strip) is not
    /// given.
    #[inline(always)]
    pub(super) fn block(&mut self) -> Target<'_, f32> {
        match &mut self.blocks {
            Blocks::One => self.to,
            Blocks::Merged(block) => {
                block.resize(self.to.len(), 0.0);
                Target::new(block)
            }
            Blocks::Folded { block, .. } => Target::new(block),
        }
    }

    /// After each block.
    #[inline(always)]
    pub(super) fn end_block<S: Simd>(&mut self) {
        match &mut self.blocks {
            Blocks::One => {}
            Blocks::Merged(block) => {
                let block = Target::new(block);
                for_spans!(block.len(), 0, |span| {
                    let sums = self.to.source().load::<S>(span) + block.source().load(span);
                    self.to.store(span, sums, false);
                    block.store(span, Lanes::<S>::splat(0.0), false);
                });
            }
            Blocks::Folded { block, total } => {
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
        }
    }

    /// In place of both, for some of the columns, from one on: sums of a block, in two rows of half of all columns each.
    #[inline(always)]
    pub(super) fn add_strip<S: Simd, const N: usize>(&mut self, column: usize, block: [[Lanes<S>; N]; 2]) {
        let Blocks::Folded { total, .. } = &mut self.blocks else {
            for (to, block) in self.to.runs::<2>(0, self.to.len() / 2).into_iter().zip(block) {
                let to = to.run(column, N * LANES);
                for (k, sums) in block.into_iter().enumerate() {
                    let span = Span::new(k * LANES, LANES, N * LANES);
                    to.store(span, to.source().load(span) + sums, false);
                }
            }
            return;
        };
        let half = total.len() / 2;
        for (row, block) in block.iter().enumerate() {
            let total = &mut total[row * half + column..][..N * LANES];
            for (k, sums) in block.iter().enumerate() {
                let (total, sums) = (&mut total[k * LANES..][..LANES], sums.to_array());
                for i in 0..LANES {
                    total[i] += f64::from(sums[i]);
                }
            }
        }
    }

    /// After the last block of a unit.
    pub(super) fn end(&mut self) {
        let Blocks::Folded { total, .. } = &mut self.blocks else { return };
        let len = total.len();
        for (i, total) in total.iter_mut().enumerate() {
            let sum = core::mem::take(total);
            let rounded = sum as f32;
            let rest = sum - f64::from(rounded);
            self.to.set(i, rounded);
            // Of what is not finite there is none.
            self.to.set(len + i, if rest.is_finite() { rest as f32 } else { 0.0 });
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

    /// Adds blocks to each of two units.
    struct Units<'a> {
        sums: UnitSums<'a>,
        width: usize,
        /// What the sums of each block are multiples of.
        blocks: &'a [f32],
        /// Where in each half of the columns there is a strip. The others are added one by one.
        strip: Option<usize>,
    }

    impl Kernel for Units<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self) {
            let Self { mut sums, width, blocks, strip } = self;
            let half = width / 2;
            let is_in_strip =
                |column: usize| strip.is_some_and(|at| (at..at + VECTORS * LANES).contains(&(column % half)));
            for unit in 0..2 {
                sums.begin(unit);
                for factor in blocks {
                    let of_column = |column: usize| factor * (column + 1) as f32;
                    if let Some(at) = strip {
                        let vector =
                            |first: usize| Lanes::from_array(core::array::from_fn(|i| of_column(first + i)));
                        let row = |r: usize| core::array::from_fn(|k| vector(r * half + at + k * LANES));
                        sums.add_strip::<S, VECTORS>(at, [row(0), row(1)]);
                    }
                    let block = sums.block();
                    for column in (0..width).filter(|&column| !is_in_strip(column)) {
                        assert_eq!(block.source().one(column), 0.0, "left in a block");
                        block.set(column, of_column(column));
                    }
                    sums.end_block::<S>();
                }
                sums.end();
            }
        }
    }

    #[test]
    fn sums_of_a_unit_are_those_of_its_blocks() {
        // In f64 what f32 would lose.
        let folded: (_, &[f32]) = (Division { per_unit: 2, folds: true }, &[16_777_216.0, 1.0]);
        let merged: (_, &[f32]) = (Division { per_unit: 3, folds: false }, &[4.0, 1.0, 2.0]);
        let single: (_, &[f32]) = (Division { per_unit: 1, folds: false }, &[5.0]);
        for (division, blocks) in [folded, merged, single] {
            let whole = 2 * VECTORS * LANES;
            for (width, strip) in [(21, None), (whole, Some(0)), (whole + 4 * LANES, Some(LANES))] {
                let mut totals = Totals::new(2, width, division);
                let parts = totals.parts();
                // SAFETY: this is the only use.
                let sums = unsafe { parts.of(0..2) };
                dispatch(Units { sums, width, blocks, strip });
                let factor: f64 = blocks.iter().map(|&factor| f64::from(factor)).sum();
                let of_unit: Vec<f64> = (1..=width).map(|column| factor * column as f64).collect();
                let of_both: Vec<f64> = of_unit.iter().map(|sum| 2.0 * sum).collect();
                assert_eq!(totals.add_up(1..2, 0), of_unit, "{division:?}, {width} columns");
                assert_eq!(totals.add_up(0..2, 0), of_both, "{division:?}, {width} columns");
            }
        }
    }
}
