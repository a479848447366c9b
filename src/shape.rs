//! Sizes: the last place where they are checked. Whoever holds one of these shapes may multiply and narrow freely.

use core::fmt;

use crate::{Error, Result};

/// Where the channels of a tensor lie. Dimensions are always given as they lie in memory, slowest first; with two
/// dimensions, `[samples, channels]`, both layouts are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `[samples, channels, spatial...]`, also called NCHW.
    #[default]
    ChannelsFirst,
    /// `[samples, spatial..., channels]`, also called NHWC.
    ChannelsLast,
}

/// The most dimensions a tensor may have.
pub(crate) const MAX_DIMS: usize = 8;

/// The dimensions of a tensor and how they are laid out, small enough to copy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dims {
    dims: [usize; MAX_DIMS],
    rank: usize,
    pub(crate) layout: Layout,
    /// Elements between the starts of consecutive entries of the first dimension.
    stride: usize,
}

impl Dims {
    /// Checks that the elements can be counted.
    pub(crate) fn new(arg: &'static str, dims: &[usize]) -> Result<Self> {
        if dims.len() > MAX_DIMS {
            return Err(Error::TooManyDims { arg, limit: MAX_DIMS, actual: dims.len() });
        }
        // A zero dimension must not hide the overflow of the others, which are multiplied on their own later.
        if !Self::countable(dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))) {
            let limit = "its elements cannot be addressed";
            return Err(Error::TooLarge { arg, dims: dims.to_vec(), limit });
        }
        let mut all = [1; MAX_DIMS];
        all[..dims.len()].copy_from_slice(dims);
        let stride = dims.iter().skip(1).product();
        Ok(Self { dims: all, rank: dims.len(), layout: Layout::ChannelsFirst, stride })
    }

    /// The same with gaps: entries of the first dimension start `stride` elements apart.
    pub(crate) fn strided(arg: &'static str, dims: &[usize], stride: usize) -> Result<Self> {
        let dense = Self::new(arg, dims)?;
        if stride < dense.stride {
            return Err(Error::Stride { arg, stride, row: dense.stride });
        }
        if !Self::countable(stride.checked_mul(dense.dims[0].max(1))) {
            let limit = "its elements cannot be addressed";
            return Err(Error::TooLarge { arg, dims: dims.to_vec(), limit });
        }
        Ok(Self { stride, ..dense })
    }

    fn countable(len: Option<usize>) -> bool {
        len.is_some_and(|len| len <= isize::MAX as usize / 4)
    }

    /// Elements between the starts of consecutive entries of the first dimension.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Whether there are no gaps; one entry of the first dimension has none after it.
    pub(crate) fn is_dense(&self) -> bool {
        self.dims[0] <= 1 || self.stride == self.as_slice().iter().skip(1).product()
    }

    /// Elements from the first to the last, gaps between them included.
    pub(crate) fn extent(&self) -> usize {
        if self.len() == 0 || self.rank == 0 {
            return self.len();
        }
        (self.dims[0] - 1) * self.stride + self.as_slice()[1..].iter().product::<usize>()
    }

    /// `Ok` unless there are gaps, which `op` does not take.
    pub(crate) fn check_dense(&self, arg: &'static str, op: &'static str) -> Result<()> {
        if self.is_dense() { Ok(()) } else { Err(Error::Strided { arg, op }) }
    }

    pub(crate) fn as_slice(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    pub(crate) fn len(&self) -> usize {
        self.as_slice().iter().product()
    }

    /// Two-dimensional tensors have one layout, whatever they are marked as.
    fn canonical_layout(&self) -> Layout {
        if self.rank <= 2 { Layout::ChannelsFirst } else { self.layout }
    }

    /// `Ok` where `other` has the same dimensions and layout as `self`, which is `x`.
    pub(crate) fn check_same(&self, arg: &'static str, other: &Self) -> Result<()> {
        if self.as_slice() == other.as_slice() && self.canonical_layout() == other.canonical_layout() {
            return Ok(());
        }
        Err(Error::ShapeMismatch { arg, expected: format!("{self:?}"), actual: format!("{other:?}") })
    }
}

impl fmt::Debug for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_slice())?;
        match self.canonical_layout() {
            Layout::ChannelsFirst => Ok(()),
            Layout::ChannelsLast => f.write_str(" channels last"),
        }
    }
}

/// What the statistics of a channel norm are taken over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scope {
    /// Each channel, over the batch and all positions.
    Channel,
    /// All values of the batch.
    WholeBatch,
    /// Each channel within each of so many entries of the first dimension, behind which the batch follows.
    TimeStep(usize),
    /// Each channel within chunks of so many samples.
    Chunk(usize),
    /// So many groups of channels within each sample.
    Group(usize),
}

/// A tensor as the channel norms see it: element `(s, o, c, i)` lies at `((s * outer + o) * channels + c) * inner + i`.
///
/// A *slab* is what one segment and one channel have in common; slab `s * channels + c`. `group` neighboring slabs
/// share a statistic. Channels last is `inner == 1`. The fields are private so that holding one is the proof: the
/// elements can be counted in `i64`, and `inner`, the slabs, and the neighbors in a group fit in `i32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelShape {
    segments: usize,
    outer: usize,
    channels: usize,
    inner: usize,
    group: usize,
    samples: bool,
}

impl ChannelShape {
    /// The view of `dims` with the given number of channels.
    pub(crate) fn of(
        op: &'static str,
        arg: &'static str,
        dims: &Dims,
        channels: usize,
        scope: Scope,
    ) -> Result<Self> {
        dims.check_dense(arg, op)?;
        let all = dims.as_slice();
        let (fewest, expected) = match scope {
            Scope::TimeStep(_) => (3, "3 to 5 where statistics are per time step"),
            _ if op == "InstanceNorm" => (3, "3 to 5"),
            _ => (2, "2 to 5"),
        };
        if !(fewest..=5).contains(&all.len()) {
            return Err(Error::Rank { arg, op, expected, actual: all.len() });
        }
        let (time, batch) = all.split_at(usize::from(matches!(scope, Scope::TimeStep(_))));
        let layout = if batch.len() == 2 { Layout::ChannelsFirst } else { dims.layout };
        let last = batch.len() - 1;
        let (samples, actual, rows, inner) = match layout {
            Layout::ChannelsFirst => (batch[0], batch[1], 1, batch[2..].iter().product()),
            Layout::ChannelsLast => (batch[0], batch[last], batch[1..last].iter().product(), 1),
        };
        if actual != channels {
            return Err(Error::Channels { arg, op, expected: channels, actual });
        }
        let (segments, outer, group) = match scope {
            Scope::Channel => (1, samples * rows, 1),
            Scope::WholeBatch => (1, samples * rows, channels.max(1)),
            Scope::TimeStep(steps) if time[0] == steps => (steps, samples * rows, 1),
            Scope::TimeStep(steps) => return Err(Error::TimeSteps { arg, expected: steps, actual: time[0] }),
            Scope::Chunk(chunk) if chunk > 0 && samples.is_multiple_of(chunk) => {
                (samples / chunk, chunk * rows, 1)
            }
            Scope::Chunk(chunk) => return Err(Error::VirtualBatch { arg, samples, chunk }),
            Scope::Group(groups) if groups > 0 && channels.is_multiple_of(groups) => {
                (samples, rows, (channels / groups).max(1))
            }
            Scope::Group(groups) => return Err(Error::Groups { groups, channels }),
        };
        let shape = Self::new(segments, outer, channels, inner, group).ok_or_else(|| Error::TooLarge {
            arg,
            dims: all.to_vec(),
            limit: "2^31 positions, slabs or neighbors in a group, or 2^46 elements, and more",
        })?;
        Ok(if matches!(scope, Scope::Group(_)) { shape.of_samples() } else { shape })
    }

    /// The same, whose segments are samples: the bits of one must not depend on how many came with it, also where it is
    /// the only one. So it is with any shape of several segments.
    #[must_use]
    pub fn of_samples(self) -> Self {
        Self { samples: true, ..self }
    }

    /// Fewer elements than this: it is more than any memory holds, and leaves 32-bit offsets within a block's share.
    const MAX_LEN: usize = 1 << 46;

    /// `None` where `inner`, the slabs or the neighbors in a group do not fit in `i32`, where there are 2^46 elements
    /// and more, or where `group` does not divide the channels.
    pub fn new(segments: usize, outer: usize, channels: usize, inner: usize, group: usize) -> Option<Self> {
        let samples = segments > 1;
        let fits = |n: usize| i32::try_from(n).is_ok();
        let slabs = segments.checked_mul(channels).filter(|&slabs| fits(slabs))?;
        if !fits(inner) || group == 0 || !channels.is_multiple_of(group) {
            return None;
        }
        let len = slabs.checked_mul(outer)?.checked_mul(inner).filter(|&len| len < Self::MAX_LEN)?;
        if len == 0 {
            // No position is ever looked up, so any `inner` will do; this one divides safely.
            return Some(Self { segments, outer: 0, channels, inner: 1, group, samples });
        }
        if group < channels && !fits(group * inner) {
            return None;
        }
        if channels == 1 && fits(outer * inner) {
            // One run of elements rather than many short ones.
            return Some(Self { segments, outer: 1, channels, inner: outer * inner, group, samples });
        }
        Some(Self { segments, outer, channels, inner, group, samples })
    }

    /// So many segments of the same kind; `None` where that is too many.
    pub(crate) fn with_segments(self, segments: usize) -> Option<Self> {
        Some(Self {
            samples: self.samples,
            ..Self::new(segments, self.outer, self.channels, self.inner, self.group)?
        })
    }

    /// One of its segments.
    pub(crate) fn segment(self) -> Self {
        Self { segments: 1, ..self }
    }

    /// The same elements with the slabs of each group as one: its slabs are the statistics.
    pub(crate) fn merged(self) -> Self {
        let Self { segments, outer, channels, inner, group, samples } = self;
        if group == 1 {
            return self;
        }
        if group < channels {
            return Self { channels: channels / group, inner: group * inner, group: 1, ..self };
        }
        let rows = outer * channels;
        let (outer, inner) = match i32::try_from(rows * inner) {
            Ok(_) => (1, rows * inner),
            Err(_) if inner == 1 => (outer, channels),
            Err(_) => (rows, inner),
        };
        Self { segments, outer, channels: 1, inner, group: 1, samples }
    }

    /// Segments: parts of the tensor that share no statistic.
    pub fn segments(&self) -> usize {
        self.segments
    }
    /// Whether the segments are samples.
    pub(crate) fn is_of_samples(&self) -> bool {
        self.samples
    }
    /// Within a segment: samples, or samples and positions where channels are last.
    pub fn outer(&self) -> usize {
        self.outer
    }
    /// Channels.
    pub fn channels(&self) -> usize {
        self.channels
    }
    /// Positions that lie side by side within one slab.
    pub fn inner(&self) -> usize {
        self.inner
    }
    /// Neighboring slabs that share a statistic.
    pub fn group(&self) -> usize {
        self.group
    }
    /// Elements in all.
    pub fn len(&self) -> usize {
        self.slabs() * self.per_slab()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Slabs in all.
    pub fn slabs(&self) -> usize {
        self.segments * self.channels
    }
    /// Elements of each slab.
    pub fn per_slab(&self) -> usize {
        self.outer * self.inner
    }
    /// Statistics in all.
    pub fn statistics(&self) -> usize {
        self.slabs() / self.group
    }
    /// Elements behind each statistic.
    pub fn per_statistic(&self) -> usize {
        self.per_slab() * self.group
    }
}

/// A tensor as the row norms see it: `[rows, cols]`, statistics per row.
///
/// Row `r` starts at element `(r / block) * stride + (r % block) * cols`, with a stride of each tensor's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowShape {
    rows: usize,
    cols: usize,
    block: usize,
}

impl RowShape {
    /// The trailing dimensions of `dims` that hold `cols` elements are a row.
    pub(crate) fn of(op: &'static str, arg: &'static str, dims: &Dims, cols: usize) -> Result<Self> {
        let all = dims.as_slice();
        let rank = (0..all.len()).rev().find(|&rank| all[rank..].iter().product::<usize>() == cols);
        let rank =
            rank.ok_or_else(|| Error::NormalizedShape { arg, op, expected: cols, actual: all.to_vec() })?;
        let rows = all[..rank].iter().product();
        let shape = Self::new(rows, cols).ok_or_else(|| Error::TooLarge {
            arg,
            dims: all.to_vec(),
            limit: "2^31 columns, 2^37 rows or 2^46 elements, and more",
        })?;
        if rank == 0 {
            // The row itself would have gaps.
            dims.check_dense(arg, op)?;
            return Ok(shape);
        }
        Ok(Self { block: all[1..rank].iter().product::<usize>().max(1), ..shape })
    }

    /// Dense rows; `None` where `cols` does not fit in `i32`, or there are 2^37 rows or 2^46 elements and more.
    pub fn new(rows: usize, cols: usize) -> Option<Self> {
        i32::try_from(cols).ok()?;
        let fits = rows < 1 << 37 && rows.checked_mul(cols)? < ChannelShape::MAX_LEN;
        fits.then_some(Self { rows, cols, block: rows.max(1) })
    }

    /// Elements between the starts of consecutive blocks of a tensor of this shape.
    pub(crate) fn stride(&self, dims: &Dims) -> usize {
        if dims.is_dense() { self.block * self.cols } else { dims.stride() }
    }

    /// Rows: what statistics are kept for.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Columns: what is reduced over.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// Rows that lie densely one after another.
    pub fn block(&self) -> usize {
        self.block
    }
    /// Elements in all.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
