//! Tensors whose channels lie side by side: rows of them, walked in blocks.

use core::{iter::repeat_n, ops::Range};

use super::super::{
    memory::{Run, Span, Target, for_spans},
    parallel,
    simd::{LANES, Lanes, Simd},
    totals::{self, Totals, UnitSums},
};
use crate::shape::ChannelShape;

/// Rows whose columns are added up in `f32`: rounding errors grow with it.
const BLOCK_ROWS: usize = 32;

/// Several short rows are one: full vectors, and what is kept of each column outweighs the block less.
const WIDTH: usize = 256;

/// Columns of rows whose constants and sums stay in registers from row to row.
const STRIP: usize = STRIP_VECTORS * LANES;
const STRIP_VECTORS: usize = 4;

/// Elements of a line of the cache, where they are small.
const LINE: usize = 32;

/// Whether one segment is finished before the next is begun, so that its second pass finds it in a cache: where all together
/// do not stay there, and all threads have segments enough. AMD Zen 4, GroupNorm, segment by segment / all at once: forward, 8
/// samples of 1.3 MB in f32, two threads 0.46 / 0.54 ms, and in f16 0.22 / 0.26; forward and backward, 2 samples of 4 MB in
/// f16, one thread 2.5 / 2.8.
pub(super) fn by_segments(shape: ChannelShape, bytes: usize) -> bool {
    /// Bytes of a call. A guess.
    const CACHED: usize = 1 << 20;
    /// Segments per thread, where not all threads have as many.
    const PER_THREAD: usize = 4;
    let (segments, threads) = (shape.segments(), parallel::threads(bytes));
    segments > 1 && bytes > CACHED && (segments.is_multiple_of(threads) || segments >= PER_THREAD * threads)
}

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
        let positions = match STRIP.is_multiple_of(columns) {
            true => STRIP / columns,
            false => WIDTH.div_ceil(columns),
        };
        // Rows of whole lines, for elements of 2 bytes too, where these are not many times as long.
        let whole = positions.next_multiple_of(LINE >> columns.trailing_zeros().min(LINE.trailing_zeros()));
        let positions = if whole * columns <= 8 * WIDTH { whole } else { positions };
        let positions = positions.min(shape.outer());
        let (width, len) = (positions * columns, shape.outer() * columns);
        Self { shape, width, len, blocks: len.div_ceil(width).div_ceil(BLOCK_ROWS) }
    }

    /// Blocks of all segments.
    pub(super) fn units(&self) -> usize {
        self.shape.segments() * self.blocks
    }

    pub(super) fn block_bytes<T>(&self) -> usize {
        BLOCK_ROWS * self.width * size_of::<T>()
    }

    /// A number per channel, for each column, and for the first ones again.
    pub(super) fn expand(&self, value: impl Fn(usize) -> f32) -> Vec<f32> {
        let (channels, inner, len) = (self.shape.channels(), self.shape.inner(), self.width + LINE);
        let mut all = Vec::with_capacity(len.max(channels * inner));
        match inner {
            1 => all.extend((0..channels).map(value)),
            _ => (0..channels).for_each(|channel| all.extend(repeat_n(value(channel), inner))),
        }
        while all.len() < len {
            all.extend_from_within(..(len - all.len()).min(channels * inner));
        }
        all
    }

    /// The sum of the columns of each channel, of one segment.
    pub(super) fn per_channel(&self, columns: &[f64], mut add: impl FnMut(usize, f64)) {
        let (channels, inner) = (self.shape.channels(), self.shape.inner());
        for position in columns.chunks(channels * inner) {
            match inner {
                1 => position.iter().enumerate().for_each(|(channel, &v)| add(channel, v)),
                _ => (0..).zip(position.chunks(inner)).for_each(|(channel, columns)| {
                    columns.iter().for_each(|&v| add(channel, v));
                }),
            }
        }
    }

    /// Sums over each segment: two for each column. `sum` is given a segment, some of the blocks, and where to add those up.
    pub(super) fn totals(
        &self,
        bytes: usize,
        sum: impl Fn(usize, Range<usize>, UnitSums<'_>) + Sync,
    ) -> impl Iterator<Item = Vec<f64>> {
        let (segments, blocks) = (self.shape.segments(), self.blocks);
        // Whatever the number of segments, since the bits of one do not depend on it.
        let per_unit = totals::blocks_per_unit(blocks, self.width);
        let of_segment = blocks.div_ceil(per_unit);
        let mut totals = Totals::new(segments * of_segment, 2 * self.width, per_unit > 1);
        let parts = totals.parts();
        parallel::for_each(segments * of_segment, bytes, |unit| {
            let (segment, first) = (unit / of_segment, unit % of_segment * per_unit);
            let of_segment = segment * blocks..(segment + 1) * blocks;
            let first = of_segment.start + first;
            // SAFETY: each unit has its own.
            sum(segment, first..(first + per_unit).min(of_segment.end), unsafe { parts.of(unit) });
        });
        (0..segments)
            .map(move |segment| totals.add_up(segment * of_segment..(segment + 1) * of_segment, bytes))
    }

    /// The segment of a block.
    #[inline(always)]
    pub(super) fn segment(&self, unit: usize) -> usize {
        unit / self.blocks
    }

    #[inline(always)]
    fn block(&self, unit: usize) -> Run {
        let start = unit % self.blocks * BLOCK_ROWS * self.width;
        let len = (BLOCK_ROWS * self.width).min(self.len - start);
        Run::new(self.segment(unit) * self.len + start, len, self.shape.len())
    }
}

/// What a pass over a grid does with vectors. It is copied, so that the compiler knows that nobody changes it meanwhile.
pub(super) trait Pass<S: Simd>: Copy {
    /// What is the same in all rows.
    type Constant: Copy;
    /// Tensors whose rows are walked, but for residuals.
    const TENSORS: usize;

    fn constant(self, columns: Span) -> Self::Constant;
}

/// A pass that adds up, for each column, a value and a product.
pub(super) trait Summed<S: Simd>: Pass<S> {
    /// The value and both factors.
    fn terms(self, constant: Self::Constant, span: Span) -> [Lanes<S>; 3];
}

/// A pass that writes.
pub(super) trait Written<S: Simd>: Pass<S> {
    /// What is written with: loaded early, as [`for_spans`] says.
    type Loaded: Copy;

    /// Elements of a block before the first line that can be streamed.
    fn head(self, block: Run) -> usize;
    fn load(self, span: Span) -> Self::Loaded;
    fn write(self, constant: Self::Constant, loaded: Self::Loaded, span: Span);
}

/// Rows that are walked at a time, so that constants and sums are read and written that much less often.
const ROWS: usize = 4;

/// Rows so far apart have their places in a cache of the first level in common, and at half the distance every other one:
/// four rows are too many for three tensors there. One thread of AMD Zen 4, backward in f32, one row / four at a time: 512
/// channels 59.7 / 63.0 us, 288 columns 57 / 53.
const PAGE: usize = 4096;
const HALF_PAGE: usize = PAGE / 2;

impl Grid {
    /// Whether several rows are walked at a time, when tensors are only read or one is written too. What is in no cache is
    /// read and written faster as one stream; small elements are an exception where they are few tensors', whose time is
    /// that of the constants.
    #[inline(always)]
    fn by_several<S: Simd, T, P: Pass<S>>(&self, far: bool, writes: bool) -> bool {
        let step = self.width * size_of::<T>();
        let collide = match P::TENSORS {
            1 => false,
            3 if writes => step.is_multiple_of(HALF_PAGE),
            _ => step.is_multiple_of(PAGE),
        };
        (!far || size_of::<T>() == 2 && P::TENSORS <= 2) && !collide
    }

    /// Adds up the rows of some blocks. `far`: the tensor is in no cache.
    #[inline(always)]
    pub(super) fn sum<S: Simd, T, P: Summed<S>>(
        &self,
        blocks: Range<usize>,
        pass: P,
        mut sums: UnitSums<'_>,
        far: bool,
    ) {
        for block in blocks {
            self.sum_block::<S, T, P>(block, pass, sums.block(), far);
            sums.end_block::<S>();
        }
        sums.end();
    }

    /// Adds up the rows of a block; `sums` are zeros before.
    #[inline(always)]
    fn sum_block<S: Simd, T, P: Summed<S>>(&self, block: usize, pass: P, sums: Target<'_, f32>, far: bool) {
        let (width, block, by_several) =
            (self.width, self.block(block), self.by_several::<S, T, P>(far, false));
        let mut start = 0;
        if self.has_strips::<S>() && width <= block.len() {
            start = block.len() / width * width;
            self.sum_strip(pass, block.run(0, start), sums);
        }
        while by_several && start + ROWS * width <= block.len() {
            self.sum_rows::<S, P, ROWS>(pass, rows(block, start, width, width), sums);
            start += ROWS * width;
        }
        while start < block.len() {
            self.sum_rows::<S, P, 1>(pass, [block.run(start, width.min(block.len() - start))], sums);
            start += width;
        }
    }

    #[inline(always)]
    fn sum_rows<S: Simd, P: Summed<S>, const R: usize>(
        &self,
        pass: P,
        rows: [Run; R],
        sums: Target<'_, f32>,
    ) {
        let len = rows[0].len();
        let (values, products) = (sums.run(0, len), sums.run(self.width, len));
        let columns = self.columns(0, len);
        for_spans!(len, 0, |span| {
            let constant = pass.constant(columns.span(span));
            let mut value = values.source().load::<S>(span);
            let mut product = products.source().load::<S>(span);
            for row in rows {
                let [v, a, b] = pass.terms(constant, row.span(span));
                value = value + v;
                product = a.mul_add(b, product);
            }
            values.store(span, value, false);
            products.store(span, product, false);
        });
    }

    /// Writes the rows of a block.
    #[inline(always)]
    pub(super) fn write<S: Simd, T, P: Written<S>>(&self, unit: usize, pass: P, far: bool) {
        let (width, block, by_several) =
            (self.width, self.block(unit), self.by_several::<S, T, P>(far, true));
        // As many columns fewer at the start, and all rows begin behind them: where rows are of whole lines, no line is
        // written in two parts.
        let head = if self.width < LINE { 0 } else { pass.head(block) };
        self.write_rows::<S, P, 1>(pass, 0, [block.run(0, head)]);
        let mut start = head;
        if self.has_strips::<S>() && start + width <= block.len() {
            let rows = block.run(head, (block.len() - head) / width * width);
            self.write_strip(pass, head, rows);
            start += rows.len();
        }
        while by_several && start + ROWS * width <= block.len() {
            self.write_rows::<S, P, ROWS>(pass, head, rows(block, start, width, width));
            start += ROWS * width;
        }
        while start < block.len() {
            let row = block.run(start, width.min(block.len() - start));
            self.write_rows::<S, P, 1>(pass, head, [row]);
            start += width;
        }
    }

    #[inline(always)]
    fn write_rows<S: Simd, P: Written<S>, const R: usize>(&self, pass: P, column: usize, rows: [Run; R]) {
        let len = rows[0].len();
        let columns = self.columns(column, len);
        if !S::AHEAD {
            for_spans!(len, 0, |span| {
                let constant = pass.constant(columns.span(span));
                for row in rows {
                    let span = row.span(span);
                    pass.write(constant, pass.load(span), span);
                }
            });
            return;
        }
        for_spans!(
            S,
            R * (P::TENSORS - 1),
            len,
            0,
            |span| loaded = load_rows::<S, P, R>(pass, rows, span),
            {
                let constant = pass.constant(columns.span(span));
                for r in 0..R {
                    pass.write(constant, loaded[r], rows[r].span(span));
                }
            }
        );
    }

    /// Whether rows are as long as a strip, and there are registers for it.
    #[inline(always)]
    fn has_strips<S: Simd>(&self) -> bool {
        S::ROWS == 4 && self.width == STRIP
    }

    /// Adds up whole rows; `sums` are zeros before.
    #[inline(always)]
    fn sum_strip<S: Simd, P: Summed<S>>(&self, pass: P, rows: Run, sums: Target<'_, f32>) {
        let (values, products) = (sums.run(0, STRIP), sums.run(STRIP, STRIP));
        let constants = self.strip_constants(pass, 0);
        let mut value = [Lanes::<S>::splat(0.0); STRIP_VECTORS];
        let mut product = value;
        for row in 0..rows.len() / STRIP {
            let row = rows.run(row * STRIP, STRIP);
            for k in 0..STRIP_VECTORS {
                let [v, a, b] = pass.terms(constants[k], row.span(Span::new(k * LANES, LANES, STRIP)));
                value[k] = value[k] + v;
                product[k] = a.mul_add(b, product[k]);
            }
        }
        for k in 0..STRIP_VECTORS {
            let span = Span::new(k * LANES, LANES, STRIP);
            values.store(span, value[k], false);
            products.store(span, product[k], false);
        }
    }

    /// Writes whole rows.
    #[inline(always)]
    fn write_strip<S: Simd, P: Written<S>>(&self, pass: P, column: usize, rows: Run) {
        let constants = self.strip_constants(pass, column);
        let len = rows.len();
        let (mut next, mut after) = (
            pass.load(rows.span(Span::new(0, LANES, len))),
            pass.load(rows.span(Span::new(LANES, LANES, len))),
        );
        for row in (0..len).step_by(STRIP) {
            for (k, constant) in constants.into_iter().enumerate() {
                let (at, loaded) = (row + k * LANES, next);
                next = after;
                if at + 2 * LANES < len {
                    after = pass.load(rows.span(Span::new(at + 2 * LANES, LANES, len)));
                }
                pass.write(constant, loaded, rows.span(Span::new(at, LANES, len)));
            }
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

    /// Some of the columns, in the numbers of [`expand`](Self::expand).
    #[inline(always)]
    fn columns(&self, start: usize, len: usize) -> Run {
        Run::new(start, len, self.width + LINE)
    }
}

/// What is loaded of a span of several rows.
#[inline(always)]
fn load_rows<S: Simd, P: Written<S>, const R: usize>(pass: P, rows: [Run; R], span: Span) -> [P::Loaded; R] {
    let mut loaded = [pass.load(rows[0].span(span)); R];
    for r in 1..R {
        loaded[r] = pass.load(rows[r].span(span));
    }
    loaded
}

/// Rows of a block, `step` apart. A loop, because `from_fn` is a call wherever the compiler finds it too large.
#[inline(always)]
fn rows<const R: usize>(block: Run, first: usize, step: usize, len: usize) -> [Run; R] {
    let mut rows = [block.run(first, len); R];
    for (r, row) in rows.iter_mut().enumerate().skip(1) {
        *row = block.run(first + r * step, len);
    }
    rows
}
