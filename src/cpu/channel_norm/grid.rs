//! Tensors whose channels lie side by side: rows of them, walked in blocks.

mod strips;

use core::ops::Range;
use std::borrow::Cow;

use self::strips::positions_of_strip;
use super::super::{
    memory::{Run, Source, Span, Target, for_spans},
    parallel,
    simd::{Lanes, Simd},
    totals::{Division, Parts, Totals, UnitSums},
};
use crate::shape::ChannelShape;

/// Rows whose columns are added up in `f32`: rounding errors grow with it.
const BLOCK_ROWS: usize = 32;

/// Several short rows are one: full vectors, and what is kept of each column outweighs the block less.
const WIDTH: usize = 256;

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
    width: usize,
    /// Elements of a segment.
    len: usize,
    /// Blocks of rows in a segment; its last row may be shorter.
    blocks: usize,
}

impl Grid {
    pub(super) fn new(shape: ChannelShape) -> Self {
        let columns = shape.channels() * shape.inner();
        let positions = positions_of_strip(columns).unwrap_or(WIDTH.div_ceil(columns));
        // Rows of whole lines, for elements of 2 bytes too, where these are not many times as long.
        let whole = positions.next_multiple_of(LINE >> columns.trailing_zeros().min(LINE.trailing_zeros()));
        let positions = if whole * columns <= 8 * WIDTH { whole } else { positions };
        let positions = positions.min(shape.outer());
        let (width, len) = (positions * columns, shape.outer() * columns);
        Self { shape, width, len, blocks: len.div_ceil(width).div_ceil(BLOCK_ROWS) }
    }

    /// Adds rows to a table. `set` is given what of them is of the channels.
    pub(super) fn add_to<R, const N: usize>(
        &self,
        table: &mut Table,
        set: impl FnOnce([&mut [f32]; N]) -> R,
    ) -> R {
        let (channels, inner) = (self.shape.channels(), self.shape.inner());
        let start = table.rows.len();
        table.rows.resize(start + N * table.width, 0.0);
        let mut rows = table.rows[start..].chunks_exact_mut(table.width);
        let mut rows: [&mut [f32]; N] = core::array::from_fn(|_| rows.next().expect("as many rows"));
        let result = set(rows.each_mut().map(|row| &mut row[..channels]));
        for row in rows {
            if inner > 1 {
                // From behind, because it takes the place of others.
                for channel in (0..channels).rev() {
                    let v = row[channel];
                    row[channel * inner..(channel + 1) * inner].fill(v);
                }
            }
            let mut filled = channels * inner;
            while filled < row.len() {
                let more = filled.min(row.len() - filled);
                row.copy_within(..more, filled);
                filled += more;
            }
        }
        result
    }

    /// A row of a table, without what it has more than the channels.
    pub(super) fn of_channels<'a>(&self, table: &'a Table, row: usize) -> Cow<'a, [f32]> {
        let (channels, inner) = (self.shape.channels(), self.shape.inner());
        let row = &table.rows[row * table.width..][..channels * inner];
        if inner == 1 { row.into() } else { row.iter().step_by(inner).copied().collect() }
    }

    /// Sums of the columns of each channel, of one segment.
    fn per_channel(&self, columns: Vec<f64>) -> Vec<f64> {
        let (channels, inner) = (self.shape.channels(), self.shape.inner());
        if self.width == channels {
            return columns;
        }
        let mut sums = vec![0.0; columns.len() / self.width * channels];
        for (sums, row) in sums.chunks_mut(channels).zip(columns.chunks(self.width)) {
            for position in row.chunks(channels * inner) {
                for (sum, columns) in sums.iter_mut().zip(position.chunks(inner)) {
                    columns.iter().for_each(|v| *sum += v);
                }
            }
        }
        sums
    }

    /// Sums over each segment: a row of a value for each channel, then one of the products. `sum` is given a segment and what of
    /// it to add up, column by column.
    pub(super) fn totals(&self, bytes: usize, sum: impl Fn(usize, Summands<'_>) + Sync) -> Vec<f64> {
        let (segments, blocks) = (self.shape.segments(), self.blocks);
        // Whatever the number of segments, since the bits of one do not depend on it.
        let division = Division::of(blocks, self.width, BLOCK_ROWS * self.width);
        let per_unit = division.per_unit;
        let of_segment = blocks.div_ceil(per_unit);
        let mut totals = Totals::new(segments * of_segment, 2 * self.width, division);
        let parts = totals.parts();
        parallel::for_ranges(segments * of_segment, bytes, |units| {
            for (segment, units) in by(of_segment, units) {
                let first = segment * of_segment;
                sum(segment, Summands { parts: &parts, segment, first, units, per_unit });
            }
        });
        let of = |segment: usize| {
            self.per_channel(totals.add_up(segment * of_segment..(segment + 1) * of_segment, bytes))
        };
        if segments == 1 { of(0) } else { (0..segments).flat_map(of).collect() }
    }

    /// Calls `write` with segments and some of their blocks. `last_first`: the last ones of a thread first, since they are the
    /// most likely to be still in a cache, of as many `tensors` as a pass before has read.
    pub(super) fn for_blocks<T>(
        &self,
        tensors: usize,
        last_first: bool,
        bytes: usize,
        write: impl Fn(usize, Range<usize>) + Sync,
    ) {
        let of_block = tensors * BLOCK_ROWS * self.width * size_of::<T>();
        let blocks = self.shape.segments() * self.blocks;
        let write = |blocks| by(self.blocks, blocks).for_each(|(segment, blocks)| write(segment, blocks));
        match last_first {
            true => parallel::for_ranges_last_first(blocks, of_block, bytes, write),
            false => parallel::for_ranges(blocks, bytes, write),
        }
    }

    /// The elements of some blocks of a segment.
    #[inline(always)]
    fn run_of(&self, segment: usize, blocks: Range<usize>) -> Run {
        let before = |block: usize| (block * BLOCK_ROWS * self.width).min(self.len);
        let (start, end) = (before(blocks.start), before(blocks.end));
        Run::new(segment * self.len + start, end - start, self.shape.len())
    }
}

/// Segments of `len` that a range is of, and what of each.
fn by(len: usize, range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    (range.start / len..range.end.div_ceil(len)).map(move |segment| {
        let first = segment * len;
        (segment, range.start.max(first) - first..range.end.min(first + len) - first)
    })
}

/// What of a segment is to be added up.
pub(super) struct Summands<'a> {
    parts: &'a Parts<'a>,
    segment: usize,
    /// The first unit of the segment.
    first: usize,
    /// Those of the segment that are meant.
    units: Range<usize>,
    /// Blocks of a unit.
    per_unit: usize,
}

/// Rows of numbers of the columns, with those of the first columns again behind the last.
pub(super) struct Table {
    rows: Vec<f32>,
    /// Numbers of a row.
    width: usize,
}

impl Table {
    /// For so many rows of a grid.
    pub(super) fn with_capacity(grid: &Grid, rows: usize) -> Self {
        let width = grid.width + LINE;
        Self { rows: Vec::with_capacity(rows * width), width }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.rows.len() / self.width
    }

    /// Some rows, which follow each other.
    pub(super) fn rows<const N: usize>(&self, first: usize) -> [Source<'_, f32>; N] {
        Source::new(&self.rows).runs(first * self.width, self.width)
    }
}

/// What a pass over a grid does with vectors. It is copied, so that the compiler knows that nobody changes it meanwhile.
pub(super) trait Pass<S: Simd>: Copy {
    /// What is the same in all rows.
    type Constant: Copy;
    /// Tensors whose rows are walked, but for residuals.
    const TENSORS: usize;
    /// Whether there are registers for the constants and sums of two strips.
    const TWO_STRIPS: bool;

    fn constant(self, columns: Span) -> Self::Constant;
    /// Has the cache of the second level fetch `len` elements of what it reads, `ahead` of the start of a run.
    fn prefetch_next(self, run: Run, ahead: usize, len: usize);
}

/// A pass that adds up, for each column, a value and a product.
pub(super) trait Summed<S: Simd>: Pass<S> {
    /// The value and both factors.
    fn terms(self, constant: Self::Constant, span: Span) -> [Lanes<S>; 3];
    /// Before a block of short rows is added up: has the cache fetch some of what follows.
    #[inline(always)]
    fn prefetch_pages(self, _: Run) {}
}

/// A pass that writes.
pub(super) trait Written<S: Simd>: Pass<S> {
    /// What is written with: loaded early, as [`for_spans`] says.
    type Loaded: Copy;

    /// Whether it writes past the caches.
    fn streams(self) -> bool;
    /// Elements of a block before the first line that can be streamed.
    fn head(self, block: Run) -> usize;
    fn load(self, span: Span) -> Self::Loaded;
    /// Where rows are walked as they lie: has the cache fetch what comes some way behind a vector.
    #[inline(always)]
    fn prefetch_ahead(self, _: Span) {}
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

    /// Adds up rows. `far`: the tensor is in no cache.
    #[inline(always)]
    pub(super) fn sum<S: Simd, T, P: Summed<S>>(&self, summands: Summands<'_>, pass: P, far: bool) {
        let Summands { parts, segment, first, units, per_unit } = summands;
        // SAFETY: each unit has its own, and is in one of the summands.
        let mut sums = unsafe { parts.of(first + units.start..first + units.end) };
        for (i, unit) in units.enumerate() {
            sums.begin(i);
            let blocks = unit * per_unit..((unit + 1) * per_unit).min(self.blocks);
            if self.has_short_rows::<S, P>() {
                self.sum_short_rows(pass, self.run_of(segment, blocks), &mut sums);
            } else {
                for block in blocks {
                    let block = self.run_of(segment, block..block + 1);
                    self.sum_block::<S, T, P>(block, pass, &mut sums, far);
                }
            }
            sums.end();
        }
    }

    #[inline(always)]
    fn sum_block<S: Simd, T, P: Summed<S>>(&self, block: Run, pass: P, sums: &mut UnitSums<'_>, far: bool) {
        let width = self.width;
        // Not one that ends within a row: that row continues sums of those above, which strips would have handed on.
        let column = match block.len().is_multiple_of(width) {
            true => self.sum_strips::<S, T, P>(pass, block, sums, far),
            false => 0,
        };
        if column == width {
            return;
        }
        let to = sums.block();
        let by_several = self.by_several::<S, T, P>(far, false);
        let (mut start, rest) = (0, width - column);
        while by_several && start + ROWS * width <= block.len() {
            self.sum_rows::<S, P, ROWS>(pass, column, rows(block, start + column, width, rest), to);
            start += ROWS * width;
        }
        while start + width <= block.len() {
            self.sum_rows::<S, P, 1>(pass, column, [block.run(start + column, rest)], to);
            start += width;
        }
        if start < block.len() {
            self.sum_rows::<S, P, 1>(pass, 0, [block.run(start, block.len() - start)], to);
        }
        sums.end_block::<S>();
    }

    /// Adds up rows from a column on.
    #[inline(always)]
    fn sum_rows<S: Simd, P: Summed<S>, const R: usize>(
        &self,
        pass: P,
        column: usize,
        rows: [Run; R],
        sums: Target<'_, f32>,
    ) {
        let len = rows[0].len();
        let (values, products) = (sums.run(column, len), sums.run(self.width + column, len));
        let columns = self.columns(column, len);
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

    /// Writes the rows of some blocks of one segment. `last_first`: the last ones may be in a cache.
    #[inline(always)]
    pub(super) fn write<S: Simd, T, P: Written<S>>(
        &self,
        segment: usize,
        blocks: Range<usize>,
        pass: P,
        far: bool,
        last_first: bool,
    ) {
        let (width, block) = (self.width, self.run_of(segment, blocks));
        let by_several = self.by_several::<S, T, P>(far, true);
        // As many columns fewer at the start, and all rows begin behind them: where rows are of whole lines, no line is
        // written in two parts.
        let head = if self.width < LINE { 0 } else { pass.head(block) };
        self.write_rows::<S, P, 1>(pass, 0, [block.run(0, head)]);
        let mut start = head;
        let whole = (block.len() - head) / width * width;
        if self.has_short_rows::<S, P>() {
            self.write_short_rows(pass, head, block.run(head, whole), last_first);
            start += whole;
        } else if self.writes_strips::<S, T, P>(pass) {
            self.write_strips(pass, head, block.run(head, whole), far);
            start += whole;
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
                    pass.prefetch_ahead(span);
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

    /// Some of the columns of a [`Table`].
    #[inline(always)]
    fn columns(&self, start: usize, len: usize) -> Run {
        Run::new(start, len, self.width + LINE)
    }
}

/// What is loaded of a span of several rows.
#[inline(always)]
fn load_rows<S: Simd, P: Written<S>, const R: usize>(pass: P, rows: [Run; R], span: Span) -> [P::Loaded; R] {
    for row in rows {
        pass.prefetch_ahead(row.span(span));
    }
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
