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
}

impl Dims {
    /// Checks that the elements can be counted.
    pub(crate) fn new(arg: &'static str, dims: &[usize]) -> Result<Self> {
        if dims.len() > MAX_DIMS {
            return Err(Error::TooManyDims { arg, limit: MAX_DIMS, actual: dims.len() });
        }
        // A zero dimension must not hide the overflow of the others, which are multiplied on their own later.
        if dims
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))
            .is_none_or(|n| n > isize::MAX as usize / 4)
        {
            let limit = "its elements cannot be addressed";
            return Err(Error::TooLarge { arg, dims: dims.to_vec(), limit });
        }
        let mut all = [1; MAX_DIMS];
        all[..dims.len()].copy_from_slice(dims);
        Ok(Self { dims: all, rank: dims.len(), layout: Layout::ChannelsFirst })
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

/// What the statistics of a BatchNorm are taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Statistics {
    /// A mean and a variance for each channel, over the batch and all positions.
    #[default]
    PerChannel,
    /// One mean and one variance over all values of the batch. Weight and bias stay per channel.
    WholeBatch,
}

/// A tensor as the channel norms see it: element `(o, c, i)` lies at `(o * channels + c) * inner + i`.
///
/// Channels last is `inner == 1`. The fields are private so that holding one is the proof: the elements can be
/// counted in `i64`, and `inner` fits in `i32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelShape {
    outer: usize,
    channels: usize,
    inner: usize,
}

impl ChannelShape {
    /// The view of `dims` with the given number of channels.
    pub(crate) fn of(arg: &'static str, dims: &Dims, channels: usize) -> Result<Self> {
        let all = dims.as_slice();
        if !(2..=5).contains(&all.len()) {
            return Err(Error::Rank { arg, op: "BatchNorm", expected: "2 to 5", actual: all.len() });
        }
        let (outer, actual, inner) = match dims.canonical_layout() {
            Layout::ChannelsFirst => (all[0], all[1], all[2..].iter().product()),
            Layout::ChannelsLast => (all[..all.len() - 1].iter().product(), all[all.len() - 1], 1),
        };
        if actual != channels {
            return Err(Error::Channels { arg, expected: channels, actual });
        }
        Self::new(outer, channels, inner).ok_or_else(|| Error::TooLarge {
            arg,
            dims: all.to_vec(),
            limit: "2^31 positions or channels, or 2^46 elements, and more",
        })
    }

    /// The most elements: more than any memory holds, and few enough for 32-bit offsets within a block's share.
    const MAX_LEN: usize = 1 << 46;

    /// `None` where `inner` or `channels` do not fit in `i32`, or there are more than 2^46 elements.
    pub fn new(outer: usize, channels: usize, inner: usize) -> Option<Self> {
        i32::try_from(inner).ok()?;
        i32::try_from(channels).ok()?;
        let len = outer.checked_mul(channels)?.checked_mul(inner).filter(|&len| len <= Self::MAX_LEN)?;
        if len == 0 {
            // No position is ever looked up, so any `inner` will do; this one divides safely.
            return Some(Self { outer: 0, channels, inner: 1 });
        }
        if channels == 1 && i32::try_from(outer * inner).is_ok() {
            // One run of elements rather than many short ones.
            return Some(Self { outer: 1, channels, inner: outer * inner });
        }
        Some(Self { outer, channels, inner })
    }

    /// The same elements as one channel, for statistics over the whole batch.
    pub(crate) fn as_one_channel(self) -> Self {
        let rows = self.outer * self.channels;
        if i32::try_from(rows * self.inner).is_ok() {
            Self { outer: 1, channels: 1, inner: rows * self.inner }
        } else if self.inner == 1 {
            Self { outer: self.outer, channels: 1, inner: self.channels }
        } else {
            Self { outer: rows, channels: 1, inner: self.inner }
        }
    }

    /// Samples, or samples and positions where channels are last.
    pub fn outer(&self) -> usize {
        self.outer
    }
    /// Channels.
    pub fn channels(&self) -> usize {
        self.channels
    }
    /// Positions that lie side by side within one channel.
    pub fn inner(&self) -> usize {
        self.inner
    }
    /// Elements in all.
    pub fn len(&self) -> usize {
        self.outer * self.channels * self.inner
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Elements of each channel.
    pub fn per_channel(&self) -> usize {
        self.outer * self.inner
    }
}

/// A tensor as the row norms see it: `[rows, cols]`, statistics per row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowShape {
    rows: usize,
    cols: usize,
}

impl RowShape {
    /// The trailing dimensions of `dims` that hold `cols` elements are a row.
    pub(crate) fn of(arg: &'static str, dims: &Dims, cols: usize) -> Result<Self> {
        let all = dims.as_slice();
        let rank = (0..all.len()).rev().find(|&rank| all[rank..].iter().product::<usize>() == cols);
        let rank =
            rank.ok_or_else(|| Error::NormalizedShape { arg, expected: cols, actual: all.to_vec() })?;
        let rows = all[..rank].iter().product();
        Self::new(rows, cols).ok_or_else(|| Error::TooLarge {
            arg,
            dims: all.to_vec(),
            limit: "2^31 columns and more",
        })
    }

    /// `None` where `cols` does not fit in `i32`, or the elements not in `isize`.
    pub fn new(rows: usize, cols: usize) -> Option<Self> {
        i32::try_from(cols).ok()?;
        isize::try_from(rows.checked_mul(cols)?).ok()?;
        Some(Self { rows, cols })
    }

    /// Rows: what statistics are kept for.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Columns: what is reduced over.
    pub fn cols(&self) -> usize {
        self.cols
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
