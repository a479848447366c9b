//! Plans of the channel norms.

use super::{
    BLOCKS_PER_SM, DeviceLimits, MAX_BLOCKS, MAX_COLUMNS, THREADS, VEC_BYTES, WARP, WORKSPACE_CASES,
};
use crate::{DType, backend::WorkspaceLen, shape::ChannelShape};

/// Values of one channel that a thread of a block or warp tile takes at a time; `kSlabChunk` in
/// `kernels/prim/channel_tile.cuh`.
pub(super) const SLAB_CHUNK: usize = 8;
/// Rows that a thread of a column tile takes at a time; `ColumnTile::kLoads` there.
pub(super) const COLUMN_CHUNK: usize = 4;

/// Chunks that one accumulator of a thread should take, and the most that it may. The error of a chain of merges grows
/// with its length, and at 512 passes what the tests allow.
const CHAIN: usize = 64;
pub(super) const MAX_CHAIN: usize = 256;

/// Chunks that a block should have before its channel is shared. A guess: below that the second launch costs more than
/// the missing blocks.
const MIN_CHUNKS: usize = 4;
/// Elements of a channel up to which a warp alone takes it, in any case and where there are warps for every SM.
/// Guesses: at 512 each lane has two chunks.
const WARP_CHANNEL: usize = 512;
const WARP_CHANNEL_MANY: usize = 4096;

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

/// How often a channel norm reads its input, and in how many launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ChannelStrategy {
    /// One launch: whoever owns a channel reads it twice, the second time from cache.
    Single,
    /// One launch for the statistics, blocks sharing channels, and one to apply them.
    Split,
}

/// A tensor as channels, and how a grid walks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    fn new(shape: ChannelShape, vec: usize, blocks_wanted: usize, device: DeviceLimits) -> Self {
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

/// How to run a channel norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelPlan {
    /// How often the input is read.
    pub strategy: ChannelStrategy,
    /// The walk that gathers statistics.
    pub stats: ChannelWalk,
    /// The walk that applies them.
    pub apply: ChannelWalk,
}

impl ChannelPlan {
    fn new(
        stats_shape: ChannelShape,
        shape: ChannelShape,
        dtype: DType,
        align: usize,
        device: DeviceLimits,
    ) -> Self {
        let vec = |shape| channel_vec(shape, dtype, align);
        let blocks = device.sms * BLOCKS_PER_SM;
        let stats = ChannelWalk::new(stats_shape, vec(stats_shape), blocks, device);
        // Twice the blocks: a walk that only applies has no partial results to merge.
        let apply = ChannelWalk::new(shape, vec(shape), 2 * blocks, device);
        let strategy = match shape.group() == 1 && stats.splits == 1 {
            true => ChannelStrategy::Single,
            false => ChannelStrategy::Split,
        };
        Self { strategy, stats, apply }
    }

    /// The plan of a forward pass. `align` divides every address that the kernels touch by the vector.
    pub fn forward(shape: ChannelShape, dtype: DType, align: usize, device: DeviceLimits) -> Self {
        Self::new(shape.merged(), shape, dtype, align, device)
    }

    /// The plan of a backward pass, whose sums are per slab even where the statistics are not.
    pub fn backward(shape: ChannelShape, dtype: DType, align: usize, device: DeviceLimits) -> Self {
        Self::new(shape, shape, dtype, align, device)
    }

    /// What it needs of a workspace; `ChannelWorkspace` in `kernels/prim/channel_launch.cuh` divides the words.
    pub(super) fn workspace(&self) -> WorkspaceLen {
        let (shape, stats) = (self.apply.shape, self.stats.shape.slabs());
        // Statistics, or sums, that a later launch reads: those of segments are summed once more.
        let kept = 3 * shape.slabs() + 2 * shape.statistics();
        match self.strategy {
            ChannelStrategy::Single if shape.segments() == 1 => WorkspaceLen::default(),
            ChannelStrategy::Single => WorkspaceLen { counters: 0, words: kept },
            ChannelStrategy::Split => {
                WorkspaceLen { counters: stats, words: kept + 2 * self.stats.splits * stats }
            }
        }
    }
}

/// What is enough for both directions, every type and every alignment.
pub fn channel_norm_workspace(shape: ChannelShape, device: DeviceLimits) -> WorkspaceLen {
    let mut enough = WorkspaceLen::default();
    for (dtype, align) in WORKSPACE_CASES {
        for plan in [ChannelPlan::forward, ChannelPlan::backward] {
            enough = enough.max(plan(shape, dtype, align, device).workspace());
        }
    }
    enough
}

/// 16 bytes' worth where every access of the walk would be aligned, else 1.
fn channel_vec(shape: ChannelShape, dtype: DType, align: usize) -> usize {
    let wide = VEC_BYTES / dtype.size();
    // Whichever lies side by side: positions of a channel, or channels.
    let run = if shape.inner() == 1 { shape.channels() } else { shape.inner() };
    if !shape.is_empty() && align.is_multiple_of(VEC_BYTES) && run.is_multiple_of(wide) { wide } else { 1 }
}

/// The most threads side by side in a column tile; `ColumnTile::kMaxColumns`.
pub(super) fn max_columns(vec: usize) -> usize {
    if vec == 1 { MAX_COLUMNS } else { MAX_COLUMNS / 2 }
}
