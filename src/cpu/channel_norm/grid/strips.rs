//! Columns of which so few are walked down that what is kept of each stays in registers.

use super::{
    super::super::{
        memory::{Run, Span},
        simd::{LANES, Lanes, Simd},
        totals::UnitSums,
    },
    BLOCK_ROWS, Grid, LINE, Pass, Summed, Written,
};

/// Columns of rows whose constants and sums stay in registers from row to row.
pub(super) const STRIP: usize = STRIP_VECTORS * LANES;
const STRIP_VECTORS: usize = 4;

impl Grid {
    /// Whether rows are as long as a strip, and there are registers for it.
    #[inline(always)]
    pub(super) fn has_strips<S: Simd>(&self) -> bool {
        S::ROWS == 4 && self.width == STRIP
    }

    /// Adds up blocks of rows that are strips. Little is done between two blocks: meanwhile the processor does not look for what
    /// is to be read next.
    #[inline(always)]
    pub(super) fn sum_strips<S: Simd, P: Summed<S>>(&self, pass: P, blocks: Run, sums: &mut UnitSums<'_>) {
        let constants = self.strip_constants(pass, 0);
        let whole = blocks.len() / (BLOCK_ROWS * STRIP) * BLOCK_ROWS * STRIP;
        for block in blocks.run(0, whole).parts(BLOCK_ROWS * STRIP) {
            pass.prefetch_pages(block);
            sums.add_block(strip_sums(pass, block, constants));
        }
        let rest = blocks.run(whole, blocks.len() - whole);
        if rest.len() == 0 {
            return;
        }
        let to = sums.block();
        for (k, sum) in strip_sums(pass, rest, constants).into_iter().enumerate() {
            to.store(Span::new(k * LANES, LANES, 2 * STRIP), sum, false);
        }
        let rows = rest.len() / STRIP * STRIP;
        self.sum_rows::<S, P, 1>(pass, [rest.run(rows, rest.len() - rows)], to);
        sums.end_block::<S>();
    }

    /// Whether longer rows are written strip by strip: where they are streamed, but read from a cache. AMD Zen 4, BatchNorm
    /// backward of 6.4 MB in f32, 256 channels, one thread, so / row by row 0.53 / 0.65 ms; but of 26 MB 4.9 / 3.0 where nothing
    /// else is done.
    #[inline(always)]
    pub(super) fn writes_strips<S: Simd, P: Written<S>>(&self, pass: P, far: bool) -> bool {
        S::ROWS == 4
            && pass.streams_from_cache()
            && !far
            && self.width > STRIP
            && self.width.is_multiple_of(LINE)
    }

    /// Writes whole rows, which begin at a column of the table.
    #[inline(always)]
    pub(super) fn write_strips<S: Simd, P: Written<S>>(&self, pass: P, column: usize, rows: Run) {
        let width = self.width;
        let mut first = 0;
        while first + STRIP <= width {
            self.write_strip(pass, column + first, rows.run(first, rows.len() - first));
            first += STRIP;
        }
        if first == width {
            return;
        }
        for row in 0..rows.len() / width {
            let row = rows.run(row * width + first, width - first);
            self.write_rows::<S, P, 1>(pass, column + first, [row]);
        }
    }

    /// Writes the first strip of rows.
    #[inline(always)]
    pub(super) fn write_strip<S: Simd, P: Written<S>>(&self, pass: P, column: usize, rows: Run) {
        let constants = self.strip_constants(pass, column);
        let width = self.width;
        let last = (rows.len() - STRIP) / width * width;
        let (mut row, mut here) = (0, strip(rows, 0));
        let (mut next, mut after) = (pass.load(here[0]), pass.load(here[1]));
        loop {
            // Of the last row its own vectors once more, which nobody uses, in place of a branch.
            let below = strip(rows, (row + width).min(last));
            for k in 0..STRIP_VECTORS {
                let loaded = next;
                next = after;
                after =
                    pass.load(if k + 2 < STRIP_VECTORS { here[k + 2] } else { below[k + 2 - STRIP_VECTORS] });
                pass.write(constants[k], loaded, here[k]);
            }
            if row == last {
                return;
            }
            (row, here) = (row + width, below);
        }
    }

    #[inline(always)]
    fn strip_constants<S: Simd, P: Pass<S>>(&self, pass: P, column: usize) -> [P::Constant; STRIP_VECTORS] {
        let columns = self.columns(column, STRIP);
        let mut constants = [pass.constant(columns.span(Span::new(0, LANES, STRIP))); STRIP_VECTORS];
        for (k, constant) in constants.iter_mut().enumerate().skip(1) {
            *constant = pass.constant(columns.span(Span::new(k * LANES, LANES, STRIP)));
        }
        constants
    }
}

/// The vectors of a row from `at` on.
#[inline(always)]
fn strip(rows: Run, at: usize) -> [Span; STRIP_VECTORS] {
    let mut spans = Span::vectors(at, rows.len());
    for span in &mut spans {
        *span = rows.span(*span);
    }
    spans
}

/// The sums of whole rows that are strips: of the values, then of the products.
#[inline(always)]
fn strip_sums<S: Simd, P: Summed<S>>(
    pass: P,
    rows: Run,
    constants: [P::Constant; STRIP_VECTORS],
) -> [Lanes<S>; 2 * STRIP_VECTORS] {
    let mut sums = [Lanes::splat(0.0); 2 * STRIP_VECTORS];
    for row in rows.parts(STRIP) {
        for k in 0..STRIP_VECTORS {
            let [v, a, b] = pass.terms(constants[k], row.span(Span::new(k * LANES, LANES, STRIP)));
            sums[k] = sums[k] + v;
            sums[STRIP_VECTORS + k] = a.mul_add(b, sums[STRIP_VECTORS + k]);
        }
    }
    sums
}
