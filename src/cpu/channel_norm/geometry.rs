use core::ops::Range;

use crate::{cpu::memory::Run, shape::ChannelShape};

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

/// Elements of a unit of pieces, at least.
const UNIT: usize = 16 << 10;

/// A tensor in pieces that are of one slab each, in the order of memory.
#[derive(Clone, Copy)]
pub(super) struct Pieces {
    shape: ChannelShape,
    /// Elements of a piece; the last one of a run may be shorter.
    piece: usize,
    /// Pieces of a run.
    of_run: usize,
    per_unit: usize,
}

impl Pieces {
    pub(super) fn new(shape: ChannelShape) -> Self {
        let piece = shape.inner().min(UNIT);
        Self { shape, piece, of_run: shape.inner().div_ceil(piece), per_unit: UNIT.div_ceil(piece) }
    }

    fn len(&self) -> usize {
        self.shape.len() / self.shape.inner() * self.of_run
    }

    pub(super) fn units(&self) -> usize {
        self.len().div_ceil(self.per_unit)
    }

    /// Slabs and pieces of a unit.
    #[inline(always)]
    pub(super) fn unit(self, unit: usize) -> impl Iterator<Item = (usize, Run)> {
        let (outer, channels) = (self.shape.outer(), self.shape.channels());
        let first = unit * self.per_unit;
        let run = first / self.of_run;
        let row = run / channels;
        PiecesFrom {
            left: self.per_unit.min(self.len() - first),
            run,
            piece: first % self.of_run,
            channel: run % channels,
            outer: row % outer,
            first_slab: row / outer * channels,
            pieces: self,
        }
    }
}

/// Divisions would take longer than short runs do.
struct PiecesFrom {
    pieces: Pieces,
    left: usize,
    run: usize,
    piece: usize,
    channel: usize,
    outer: usize,
    /// Of the segment.
    first_slab: usize,
}

impl Iterator for PiecesFrom {
    type Item = (usize, Run);

    #[inline(always)]
    fn next(&mut self) -> Option<(usize, Run)> {
        self.left = self.left.checked_sub(1)?;
        let Pieces { shape, piece, of_run, .. } = self.pieces;
        let (slab, start) = (self.first_slab + self.channel, self.piece * piece);
        let len = piece.min(shape.inner() - start);
        let run = Run::new(self.run * shape.inner() + start, len, shape.len());
        self.piece += 1;
        if self.piece == of_run {
            (self.piece, self.run, self.channel) = (0, self.run + 1, self.channel + 1);
        }
        if self.channel == shape.channels() {
            (self.channel, self.outer) = (0, self.outer + 1);
        }
        if self.outer == shape.outer() {
            (self.outer, self.first_slab) = (0, self.first_slab + shape.channels());
        }
        Some((slab, run))
    }
}
