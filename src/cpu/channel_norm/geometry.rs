use core::ops::Range;

use crate::shape::ChannelShape;

/// Elements of a part of a statistic, about.
const PART: usize = 64 << 10;

/// Where the elements of a statistic or a slab lie: in runs, one for each of the outer positions.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    pub(super) shape: ChannelShape,
    /// Channels of a run.
    group: usize,
    /// Elements of a run.
    pub(super) run: usize,
    /// Runs of a part, where it has several.
    runs: usize,
    /// Parts of a run, where it has several.
    parts_of_run: usize,
}

/// A part of a statistic: the same piece of some of its runs.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) runs: Range<usize>,
    pub(super) piece: Range<usize>,
}

impl Geometry {
    /// Of each statistic.
    pub(super) fn new(shape: ChannelShape) -> Self {
        Self::grouped(shape, shape.group())
    }

    /// Of each slab.
    pub(super) fn of_slabs(shape: ChannelShape) -> Self {
        Self::grouped(shape, 1)
    }

    fn grouped(shape: ChannelShape, group: usize) -> Self {
        let run = group * shape.inner();
        Self { shape, group, run, runs: (PART / run).max(1), parts_of_run: run.div_ceil(PART) }
    }

    /// Parts of a statistic: they follow from the shape of one segment.
    pub(super) fn parts(&self) -> usize {
        self.shape.outer().div_ceil(self.runs) * self.parts_of_run
    }

    #[inline(always)]
    pub(super) fn part(&self, part: usize) -> Part {
        let first = part / self.parts_of_run * self.runs;
        let start = part % self.parts_of_run * PART;
        Part {
            runs: first..(first + self.runs).min(self.shape.outer()),
            piece: start..if self.parts_of_run == 1 { self.run } else { (start + PART).min(self.run) },
        }
    }

    /// The first element of a run of a statistic.
    #[inline(always)]
    pub(super) fn start(&self, statistic: usize, outer: usize) -> usize {
        let per_segment = self.shape.channels() / self.group;
        let (segment, neighbor) = (statistic / per_segment, statistic % per_segment);
        let row = segment * self.shape.outer() + outer;
        row * self.shape.channels() * self.shape.inner() + neighbor * self.run
    }
}
