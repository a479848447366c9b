//! Who owns which elements of a tensor's channels, and how a grid walks them.

use super::{
    super::{DeviceLimits, MAX_BLOCKS, MAX_COLUMNS, THREADS, VEC_BYTES, WARP},
    COLUMN_CHUNK, ChannelPass, MAX_CHAIN, SLAB_CHUNK,
};
use crate::{DType, shape::ChannelShape};

/// Chunks that one accumulator of a thread should take; more, up to `MAX_CHAIN`, where blocks run out.
const CHAIN: usize = 64;
/// Chunks that a block should have before its channel is shared. A guess: below that the second launch costs more than
/// the missing blocks.
const MIN_CHUNKS: usize = 4;
/// Elements of a channel up to which a warp alone takes it, in any case and where there are warps for every SM.
/// Guesses: at 512 each lane has two chunks.
pub(super) const WARP_CHANNEL: usize = 512;
pub(super) const WARP_CHANNEL_MANY: usize = 4096;

/// How the threads of a block share the channels of a channel norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ChannelTile {
    /// A block owns one channel.
    BlockPerChannel,
    /// Each warp of a block owns a channel of its own.
    WarpPerChannel,
    /// A block owns neighboring channels and walks down the rows; for `inner == 1`.
    Columns,
}

/// A tensor as channels, and how a grid walks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelWalk {
    /// The tensor.
    pub shape: ChannelShape,
    /// Who owns what.
    pub tile: ChannelTile,
    /// Elements per memory access: 16 bytes' worth, or 1.
    pub vec: usize,
    /// Threads side by side in a column tile, a power of two; else 1.
    pub columns: usize,
    /// Blocks that share a channel.
    pub splits: usize,
    /// Elements of a channel that one block takes.
    pub span: usize,
}

impl ChannelWalk {
    /// A walk over `shape` that shares slabs until `blocks_wanted` blocks have work on each segment.
    pub(super) fn new(shape: ChannelShape, vec: usize, blocks_wanted: usize, device: DeviceLimits) -> Self {
        let per_slab = shape.per_slab();
        let (tile, columns) = Self::tile(shape, vec, device);
        let (tiles, chunk) = match tile {
            ChannelTile::WarpPerChannel => {
                let span = per_slab.max(1);
                return Self { shape, tile, vec, columns, splits: 1, span };
            }
            ChannelTile::BlockPerChannel => (shape.channels(), THREADS * SLAB_CHUNK),
            ChannelTile::Columns => {
                (shape.channels().div_ceil(columns * vec), THREADS / columns * COLUMN_CHUNK)
            }
        };
        // As if there were one segment: a sample's bits must not depend on how many came with it.
        let to_fill = blocks_wanted.div_ceil(tiles).min(per_slab.div_ceil(MIN_CHUNKS * chunk));
        let for_chains = per_slab.div_ceil(CHAIN * chunk);
        // The block that merges the splits does so in chains of chains, and the grid has an end.
        let most =
            (MAX_CHAIN * MAX_CHAIN * THREADS / columns).min(MAX_BLOCKS / (tiles * shape.segments()).max(1));
        let splits = to_fill.max(for_chains).clamp(1, most);
        let span = per_slab.div_ceil(splits).next_multiple_of(chunk).max(chunk);
        Self { shape, tile, vec, columns, splits: per_slab.div_ceil(span).max(1), span }
    }

    /// Threads that share a slab.
    fn owners(&self) -> usize {
        match self.tile {
            ChannelTile::BlockPerChannel => THREADS,
            ChannelTile::WarpPerChannel => WARP,
            ChannelTile::Columns => THREADS / self.columns,
        }
    }

    /// Elements of a slab that its threads read with one load each.
    pub(super) fn step(&self) -> usize {
        self.owners() * if self.tile == ChannelTile::Columns { 1 } else { self.vec }
    }

    /// Slabs of a tile.
    pub(super) fn width(&self) -> usize {
        match self.tile {
            ChannelTile::BlockPerChannel => 1,
            ChannelTile::WarpPerChannel => THREADS / WARP,
            ChannelTile::Columns => self.columns * self.vec,
        }
    }

    /// Blocks of a grid in which each piece has one.
    pub(crate) fn blocks(&self) -> usize {
        let tiles = match self.tile {
            ChannelTile::Columns => self.shape.segments() * self.shape.channels().div_ceil(self.width()),
            _ => self.shape.slabs().div_ceil(self.width()),
        };
        tiles * self.splits
    }

    /// Loads of a chunk of a team's tile, as `visit_team_tile` has them.
    pub(crate) fn loads_of_chunk(&self, pass: ChannelPass) -> usize {
        match (self.tile, self.vec) {
            (_, 1) => 2 * pass.loads(),
            (ChannelTile::Columns, 8) => pass.loads() / 2,
            _ => pass.loads(),
        }
    }

    /// Tiles and slabs of a team's unit, and how many units there are.
    pub(super) fn unit(&self) -> (usize, usize, usize) {
        let (shape, width) = (self.shape, self.width());
        if self.tile == ChannelTile::Columns {
            let across = shape.channels().div_ceil(width);
            return match shape.group() {
                1 => (1, 0, shape.segments() * across),
                _ => (across, 0, shape.segments()),
            };
        }
        // So many statistics that no warp is idle, unless that takes too many.
        let group = shape.group();
        let even = (1..=width).find(|n| (n * group).is_multiple_of(width)).unwrap_or(1);
        let slabs = if even * group <= 8 * width { even * group } else { group };
        (slabs.div_ceil(width), slabs, shape.slabs().div_ceil(slabs))
    }

    /// The part of the threads' loads that have elements.
    pub(super) fn used(&self) -> f64 {
        let loads = self.span.div_ceil(self.step()) * self.step() * self.splits;
        let (tiles, slabs, _) = self.unit();
        let filled = if self.tile == ChannelTile::Columns {
            1.0
        } else {
            slabs as f64 / (tiles * self.width()) as f64
        };
        filled * self.shape.per_slab() as f64 / loads as f64
    }

    /// Shared memory that a team's kernel declares: `block_merge`, `merge_group` and `sum_columns_in_launch`.
    pub(super) fn static_smem(&self, pass: ChannelPass) -> usize {
        let warps = THREADS / WARP;
        let in_launch = warps * 8 * 4 * size_of::<f32>(); // two sums with what they lost, of 8 columns
        let merging = match self.tile {
            ChannelTile::BlockPerChannel => warps * pass.stat_bytes(1),
            ChannelTile::WarpPerChannel => 0,
            ChannelTile::Columns => {
                let columns = max_columns(self.vec);
                columns * (warps * pass.stat_bytes(self.vec) + self.vec * pass.stat_bytes(1))
            }
        };
        merging + in_launch
    }

    fn tile(shape: ChannelShape, vec: usize, device: DeviceLimits) -> (ChannelTile, usize) {
        if shape.inner() == 1 && shape.channels() > 1 {
            return (
                ChannelTile::Columns,
                shape.channels().div_ceil(vec).next_power_of_two().min(max_columns(vec)),
            );
        }
        let warps_per_block = THREADS / WARP;
        let per_slab = shape.per_slab();
        let warps_fill = shape.channels() / warps_per_block >= device.sms;
        if per_slab <= WARP_CHANNEL || per_slab <= WARP_CHANNEL_MANY && warps_fill {
            (ChannelTile::WarpPerChannel, 1)
        } else {
            (ChannelTile::BlockPerChannel, 1)
        }
    }
}

/// 16 bytes' worth where every access of the walk would be aligned, else 1.
pub(super) fn channel_vec(shape: ChannelShape, dtype: DType, align: usize) -> usize {
    let wide = VEC_BYTES / dtype.size();
    // Whichever lies side by side: positions of a channel, or channels.
    let run = if shape.inner() == 1 { shape.channels() } else { shape.inner() };
    if !shape.is_empty() && align.is_multiple_of(VEC_BYTES) && run.is_multiple_of(wide) { wide } else { 1 }
}

/// The most threads side by side in a column tile; `ColumnTile::kMaxColumns`.
pub(super) fn max_columns(vec: usize) -> usize {
    if vec == 1 { MAX_COLUMNS } else { MAX_COLUMNS / 2 }
}
