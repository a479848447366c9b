//! Columns of which so few are walked down that what is kept of each stays in registers.

use super::{
    super::super::{
        memory::{Run, Span},
        simd::{LANES, Lanes, Simd},
        totals::UnitSums,
    },
    BLOCK_ROWS, Grid, LINE, Pass, Summed, Written,
};

/// Columns of rows whose constants and sums stay in registers from row to row. Of two strips they do where they are few. One
/// thread of AMD Zen 4, GroupNorm forward of 17 MB in f32, 128 channels, two strips at once / row by row 1.0 / 1.4 ms.
const STRIP: usize = STRIP_VECTORS * LANES;
const STRIP_VECTORS: usize = 4;
const DOUBLE_VECTORS: usize = 2 * STRIP_VECTORS;

/// Elements that are written strip by strip before the next, so that they and what is fetched meanwhile have room in a cache of
/// the second level; and rows of them, at least, which share what is kept of their columns. One thread of AMD Zen 4, BatchNorm
/// backward in f32, 512 channels, 0.8 MB, 64 rows / 32 at a time 50 / 51 us, and 256 channels, 6.4 MB, 128 / 64 / 32 at a time
/// 0.48 / 0.50 / 0.51 ms, 256 as 128.
const WRITTEN: usize = 32 << 10;
const FEWEST_ROWS: usize = 4;

/// Positions that a row should have, of so many columns each, where that makes a strip of it or two of them.
pub(super) fn positions_of_strip(columns: usize) -> Option<usize> {
    match columns {
        _ if STRIP.is_multiple_of(columns) => Some(STRIP / columns),
        _ => (columns == 2 * STRIP).then_some(1),
    }
}

impl Grid {
    /// Whether rows are no longer than columns of which everything stays in registers.
    #[inline(always)]
    pub(super) fn has_short_rows<S: Simd, P: Pass<S>>(&self) -> bool {
        S::ROWS == 4 && (self.width == STRIP || P::TWO_STRIPS && self.width == 2 * STRIP)
    }

    /// Adds up blocks of short rows.
    #[inline(always)]
    pub(super) fn sum_short_rows<S: Simd, P: Summed<S>>(
        &self,
        pass: P,
        blocks: Run,
        sums: &mut UnitSums<'_>,
    ) {
        match self.width {
            STRIP => self.sum_vectors::<S, P, STRIP_VECTORS>(pass, blocks, sums),
            _ => self.sum_vectors::<S, P, DOUBLE_VECTORS>(pass, blocks, sums),
        }
    }

    /// Adds up blocks of rows that are `V` vectors long. Little is done between two blocks: meanwhile the processor does not look
    /// for what is to be read next.
    #[inline(always)]
    fn sum_vectors<S: Simd, P: Summed<S>, const V: usize>(
        &self,
        pass: P,
        blocks: Run,
        sums: &mut UnitSums<'_>,
    ) {
        let len = BLOCK_ROWS * self.width;
        let whole = blocks.len() / len * len;
        let constants = self.strip_constants::<S, P, V>(pass, 0);
        for block in blocks.run(0, whole).parts(len, len) {
            pass.prefetch_pages(block);
            sums.add_strip(0, strip_sums(pass, block.parts(V * LANES, self.width), constants, None));
        }
        if whole < blocks.len() {
            let rest = blocks.run(whole, blocks.len() - whole);
            if rest.len().is_multiple_of(self.width) {
                return self.sum_strip::<S, P, V>(pass, rest, 0, false, sums);
            }
            let to = sums.block();
            for start in (0..rest.len()).step_by(self.width) {
                let row = rest.run(start, self.width.min(rest.len() - start));
                self.sum_rows::<S, P, 1>(pass, 0, [row], to);
            }
            sums.end_block::<S>();
        }
    }

    /// Adds up whole rows strip by strip, as many columns as there are strips of, and gives how many. `far`: the tensors are in no
    /// cache; there, small elements are left to other loops, because strips of them were not measured.
    ///
    /// AMD Zen 4, one thread, so / row by row or by four rows: 256 channels, 6,272 rows, BatchNorm forward in f32 0.28 / 0.29 ms
    /// and in f16 0.210 / 0.220, backward in f32 0.460 / 0.488; but 512 channels, 392 rows, backward 50.6 / 49.3 us. Backward of 26
    /// MB, 2,048 channels, the sums alone, 2.6 / 3.1 ms.
    #[inline(always)]
    pub(super) fn sum_strips<S: Simd, T, P: Summed<S>>(
        &self,
        pass: P,
        block: Run,
        sums: &mut UnitSums<'_>,
        far: bool,
    ) -> usize {
        if S::ROWS != 4 || size_of::<T>() < 4 && far {
            return 0;
        }
        let mut column = 0;
        while P::TWO_STRIPS && column + 2 * STRIP <= self.width {
            self.sum_strip::<S, P, DOUBLE_VECTORS>(pass, block, column, far, sums);
            column += 2 * STRIP;
        }
        while column + STRIP <= self.width {
            self.sum_strip::<S, P, STRIP_VECTORS>(pass, block, column, far, sums);
            column += STRIP;
        }
        column
    }

    /// Adds up `V` vectors, from a column on, of whole rows.
    #[inline(always)]
    fn sum_strip<S: Simd, P: Summed<S>, const V: usize>(
        &self,
        pass: P,
        block: Run,
        column: usize,
        far: bool,
        sums: &mut UnitSums<'_>,
    ) {
        let constants = self.strip_constants::<S, P, V>(pass, column);
        let strip = block.run(column, block.len() - column).parts(V * LANES, self.width);
        let of_strip = strip_sums(pass, strip, constants, self.next_block(block, column, far));
        sums.add_strip(column, of_strip);
    }

    /// What of the next block is to be fetched while a strip of this one is walked, if it is in no cache: in a strip the
    /// processor sees no stream, but it does in the next block as it lies. With each strip its share is fetched.
    ///
    /// One thread of AMD Zen 4, 42 MB in f32, 256 columns, so / without: sums of one tensor 2.2 / 3.1 ms, of two 3.7 / 7.5; written
    /// from one 2.7 / 3.2, from two 4.0 / 7.0. Row by row 2.8, 3.8, 3.0, 5.5.
    #[inline(always)]
    fn next_block(&self, block: Run, column: usize, far: bool) -> Option<Prefetch> {
        far.then_some(Prefetch { after: block, at: block.len() + column * (block.len() / self.width) })
    }

    /// Whether rows are written strip by strip: where they are read from two tensors, or streamed.
    ///
    /// One thread of AMD Zen 4, f32, so / row by row: BatchNorm backward of 0.8 MB, 512 channels, 51 / 55 us, and of 26 MB, 2,048
    /// channels, 5.1 / 6.9 ms; GroupNorm forward of 10 MB, 320 channels, 0.62 / 0.78 ms, but inference of 0.8 MB 21 / 19 us. In f16
    /// backward 3 % are lost.
    #[inline(always)]
    pub(super) fn writes_strips<S: Simd, T, P: Written<S>>(&self, pass: P) -> bool {
        // What is streamed is streamed by whole lines.
        let pays = if pass.streams() { self.width.is_multiple_of(LINE) } else { P::TENSORS > 2 };
        S::ROWS == 4 && size_of::<T>() == 4 && pays && self.width > STRIP
    }

    /// Writes whole short rows, which begin at a column of the table; those of one strip the last ones first where these may be in
    /// a cache.
    ///
    /// AMD Zen 4, so / the first ones first: BatchNorm of 2x8x8x64 in f32, forward 1.7 / 1.8 us and backward 2.3 / 2.4; 64 channels,
    /// 13 MB in f16, inference 0.48 / 0.52 ms; but GroupNorm of 42 MB in f32, 128 channels, 4.5 / 4.4 ms, and of 17 MB, forward and
    /// backward with two threads 2.6 / 2.4.
    #[inline(always)]
    pub(super) fn write_short_rows<S: Simd, P: Written<S>>(
        &self,
        pass: P,
        column: usize,
        rows: Run,
        last_first: bool,
    ) {
        match self.width {
            STRIP => {
                let order = if last_first { Order::LastFirst } else { Order::FirstFirst };
                self.write_strip::<S, P, STRIP_VECTORS>(pass, column, rows, 0, order);
            }
            _ => self.write_strip::<S, P, DOUBLE_VECTORS>(pass, column, rows, 0, Order::FirstFirst),
        }
    }

    /// Writes whole rows, which begin at a column of the table, strip by strip. `far`: the tensors are in no cache.
    #[inline(always)]
    pub(super) fn write_strips<S: Simd, P: Written<S>>(&self, pass: P, column: usize, rows: Run, far: bool) {
        let len = self.width * (WRITTEN / self.width).max(FEWEST_ROWS);
        for block in rows.parts(len, len) {
            self.write_block(pass, column, block, far);
        }
        let rest = rows.len() % len;
        if rest > 0 {
            self.write_block(pass, column, rows.run(rows.len() - rest, rest), far);
        }
    }

    #[inline(always)]
    fn write_block<S: Simd, P: Written<S>>(&self, pass: P, column: usize, block: Run, far: bool) {
        let order = if far { Order::NextFetched } else { Order::FirstFirst };
        let (width, mut first) = (self.width, 0);
        while P::TWO_STRIPS && first + 2 * STRIP <= width {
            self.write_strip::<S, P, DOUBLE_VECTORS>(pass, column, block, first, order);
            first += 2 * STRIP;
        }
        while first + STRIP <= width {
            self.write_strip::<S, P, STRIP_VECTORS>(pass, column, block, first, order);
            first += STRIP;
        }
        if first == width {
            return;
        }
        for row in 0..block.len() / width {
            let row = block.run(row * width + first, width - first);
            self.write_rows::<S, P, 1>(pass, column + first, [row]);
        }
    }

    /// Writes `V` vectors of each row of a block from the `first` on of a row, which itself begins at a column of the table.
    #[inline(always)]
    fn write_strip<S: Simd, P: Written<S>, const V: usize>(
        &self,
        pass: P,
        column: usize,
        block: Run,
        first: usize,
        order: Order,
    ) {
        let constants = self.strip_constants::<S, P, V>(pass, column + first);
        let mut next_block = self.next_block(block, first, order == Order::NextFetched);
        let vector = |k| Span::new(k * LANES, LANES, V * LANES);
        let mut rows = block.run(first, block.len() - first).parts(V * LANES, self.width);
        let last_first = order == Order::LastFirst;
        let Some(mut row) = (if last_first { rows.next_back() } else { rows.next() }) else { return };
        let (mut next, mut after) = (pass.load(row.span(vector(0))), pass.load(row.span(vector(1))));
        loop {
            // Of the last row its own vectors once more, which nobody uses.
            let below = if last_first { rows.next_back() } else { rows.next() };
            let ahead = below.unwrap_or(row);
            match &mut next_block {
                Some(prefetch) => prefetch.step(pass, V * LANES),
                // What lies ahead has been written before.
                None if last_first => {}
                None => {
                    for k in 0..V {
                        pass.prefetch_ahead(row.span(vector(k)));
                    }
                }
            }
            for (k, &constant) in constants.iter().enumerate() {
                let loaded = next;
                next = after;
                after = pass.load(match k + 2 {
                    k if k < V => row.span(vector(k)),
                    k => ahead.span(vector(k - V)),
                });
                pass.write(constant, loaded, row.span(vector(k)));
            }
            match below {
                Some(below) => row = below,
                None => return,
            }
        }
    }

    #[inline(always)]
    fn strip_constants<S: Simd, P: Pass<S>, const V: usize>(
        &self,
        pass: P,
        column: usize,
    ) -> [P::Constant; V] {
        let columns = self.columns(column, V * LANES);
        let mut constants = [pass.constant(columns.span(Span::new(0, LANES, V * LANES))); V];
        for (k, constant) in constants.iter_mut().enumerate().skip(1) {
            *constant = pass.constant(columns.span(Span::new(k * LANES, LANES, V * LANES)));
        }
        constants
    }
}

/// How the rows of a strip are walked.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    FirstFirst,
    LastFirst,
    /// The first ones first, while the cache fetches the next block.
    NextFetched,
}

/// From where on the cache fetches what is needed next.
struct Prefetch {
    /// A run that comes before.
    after: Run,
    /// Elements from the start of the run.
    at: usize,
}

impl Prefetch {
    #[inline(always)]
    fn step<S: Simd, P: Pass<S>>(&mut self, pass: P, len: usize) {
        pass.prefetch_next(self.after, self.at, len);
        self.at += len;
    }
}

/// The sums of strips of rows: of the values, then of the products. Meanwhile as much of the next block is fetched.
#[inline(always)]
fn strip_sums<S: Simd, P: Summed<S>, const V: usize>(
    pass: P,
    rows: impl Iterator<Item = Run>,
    constants: [P::Constant; V],
    mut next_block: Option<Prefetch>,
) -> [[Lanes<S>; V]; 2] {
    let [mut values, mut products] = [[Lanes::splat(0.0); V]; 2];
    for row in rows {
        if let Some(prefetch) = &mut next_block {
            prefetch.step(pass, V * LANES);
        }
        for k in 0..V {
            let [v, a, b] = pass.terms(constants[k], row.span(Span::new(k * LANES, LANES, V * LANES)));
            values[k] = values[k] + v;
            products[k] = a.mul_add(b, products[k]);
        }
    }
    [values, products]
}
