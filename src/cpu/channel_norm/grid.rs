//! Tensors whose channels lie side by side: rows of them, walked in blocks.

use core::ops::Range;

use super::super::{
    memory::{Span, Target, for_spans},
    simd::{Lanes, Simd},
    totals::Totals,
};
use crate::shape::ChannelShape;

/// Rows whose columns are added up in `f32`: rounding errors grow with it.
const BLOCK_ROWS: usize = 32;

/// Several short rows are one: full vectors, and what is kept of each column outweighs the block less.
const WIDTH: usize = 256;

/// A segment as rows of columns, each of which belongs to one channel.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    shape: ChannelShape,
    /// Columns of a row, a multiple of those that one position has.
    pub(super) width: usize,
    /// Elements of a segment.
    len: usize,
    /// Blocks of rows in a segment; its last row may be shorter.
    pub(super) blocks: usize,
}

impl Grid {
    pub(super) fn new(shape: ChannelShape) -> Self {
        let columns = shape.channels() * shape.inner();
        let positions = WIDTH.div_ceil(columns).min(shape.outer());
        let (width, len) = (positions * columns, shape.outer() * columns);
        Self { shape, width, len, blocks: len.div_ceil(width).div_ceil(BLOCK_ROWS) }
    }

    /// Blocks of all segments.
    pub(super) fn units(&self) -> usize {
        self.shape.segments() * self.blocks
    }

    /// A number per channel, for each column.
    pub(super) fn expand(&self, value: impl Fn(usize) -> f32) -> Vec<f32> {
        let (channels, inner) = (self.shape.channels(), self.shape.inner());
        let position: Vec<f32> = (0..channels * inner).map(|column| value(column / inner)).collect();
        position.iter().copied().cycle().take(self.width).collect()
    }

    /// The sum of the columns of each channel, of one segment.
    pub(super) fn per_channel(&self, columns: &[f64], mut add: impl FnMut(usize, f64)) {
        let (channels, inner) = (self.shape.channels(), self.shape.inner());
        for position in columns.chunks(channels * inner) {
            for (channel, columns) in position.chunks(inner).enumerate() {
                columns.iter().for_each(|&v| add(channel, v));
            }
        }
    }

    /// Sums of each block, to be added up: two for each column.
    pub(super) fn totals(&self) -> Totals {
        Totals::new(self.units(), 2 * self.width)
    }

    /// Segment and elements of a block.
    #[inline(always)]
    pub(super) fn block(&self, unit: usize) -> (usize, Range<usize>) {
        let (segment, block) = (unit / self.blocks, unit % self.blocks);
        let start = segment * self.len + block * BLOCK_ROWS * self.width;
        let end = (segment * self.len + (block + 1) * BLOCK_ROWS * self.width).min((segment + 1) * self.len);
        (segment, start..end)
    }
}

/// What a pass over a grid does with vectors.
pub(super) trait Pass<S: Simd> {
    /// What is the same in all rows.
    type Constant: Copy;
    /// The tensors of a row.
    type Row: Copy;

    fn constant(&self, span: Span) -> Self::Constant;
    /// The row of `len` elements that starts at element `start`.
    fn row(&self, start: usize, len: usize) -> Self::Row;
}

/// A pass that adds up, for each column, a value and a product.
pub(super) trait Summed<S: Simd>: Pass<S> {
    /// The value and both factors.
    fn terms(row: &Self::Row, constant: Self::Constant, span: Span) -> [Lanes<S>; 3];
}

/// A pass that writes.
pub(super) trait Written<S: Simd>: Pass<S> {
    fn write(&self, row: &Self::Row, constant: Self::Constant, span: Span);
}

/// Rows that are walked at a time, so that constants and sums are read and written that much less often.
const ROWS: usize = 4;

/// Rows that follow each other. A loop, because `from_fn` is a call wherever the compiler finds it too large.
#[inline(always)]
fn rows<S: Simd, P: Pass<S>, const R: usize>(pass: &P, first: usize, width: usize) -> [P::Row; R] {
    let mut rows = [pass.row(first, width); R];
    for (r, row) in rows.iter_mut().enumerate().skip(1) {
        *row = pass.row(first + r * width, width);
    }
    rows
}

/// Adds up the rows of a block; `sums` are zeros before.
#[inline(always)]
pub(super) fn sum<S: Simd, P: Summed<S>>(
    pass: &P,
    elements: Range<usize>,
    width: usize,
    sums: Target<'_, f32>,
) {
    let mut row = elements.start;
    while row + ROWS * width <= elements.end {
        let rows = rows::<S, P, ROWS>(pass, row, width);
        sum_rows::<S, P, ROWS>(pass, rows, width, sums.run(0, width), sums.run(width, width));
        row += ROWS * width;
    }
    while row < elements.end {
        let len = width.min(elements.end - row);
        sum_rows::<S, P, 1>(pass, [pass.row(row, len)], len, sums.run(0, len), sums.run(width, len));
        row += width;
    }
}

#[inline(always)]
fn sum_rows<S: Simd, P: Summed<S>, const R: usize>(
    pass: &P,
    rows: [P::Row; R],
    len: usize,
    values: Target<'_, f32>,
    products: Target<'_, f32>,
) {
    for_spans!(len, 0, |span| {
        let constant = pass.constant(span);
        let mut value = values.source().load::<S>(span);
        let mut product = products.source().load::<S>(span);
        for row in &rows {
            let [v, a, b] = P::terms(row, constant, span);
            value = value + v;
            product = a.mul_add(b, product);
        }
        values.store(span, value, false);
        products.store(span, product, false);
    });
}

/// Writes the rows of a block.
#[inline(always)]
pub(super) fn write<S: Simd, P: Written<S>>(pass: &P, elements: Range<usize>, width: usize) {
    let mut row = elements.start;
    while row + ROWS * width <= elements.end {
        let rows = rows::<S, P, ROWS>(pass, row, width);
        write_rows::<S, P, ROWS>(pass, rows, width);
        row += ROWS * width;
    }
    while row < elements.end {
        let len = width.min(elements.end - row);
        write_rows::<S, P, 1>(pass, [pass.row(row, len)], len);
        row += width;
    }
}

#[inline(always)]
fn write_rows<S: Simd, P: Written<S>, const R: usize>(pass: &P, rows: [P::Row; R], len: usize) {
    for_spans!(len, 0, |span| {
        let constant = pass.constant(span);
        for row in &rows {
            pass.write(row, constant, span);
        }
    });
}
