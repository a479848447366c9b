//! Which kernel variant runs and how its grid is cut: pure functions of the problem and the device, testable without a
//! GPU. A plan is a value that can be printed.

use crate::{DType, backend::WorkspaceLen};

pub use crate::shape::{ChannelShape, RowShape};

/// Threads of a block; `kThreads` in `kernels/prim/reduce.cuh`.
const THREADS: usize = 256;
const WARP: usize = 32;
/// Bytes of the widest memory access.
const VEC_BYTES: usize = 16;
/// Values of one channel that a thread of a block or warp tile takes at a time; `kSlabChunk` in
/// `kernels/prim/channel_tile.cuh`.
const SLAB_CHUNK: usize = 8;
/// Rows that a thread of a column tile takes at a time; `ColumnTile::kLoads` there.
const COLUMN_CHUNK: usize = 4;
/// The most lanes side by side in a column tile.
const MAX_COLUMNS: usize = 32;
/// A grid's largest x.
const MAX_BLOCKS: usize = i32::MAX as usize;

/// Chunks that one accumulator of a thread should take, and the most that it may. The error of a chain of merges grows
/// with its length, and at 512 passes what the tests allow.
const CHAIN: usize = 64;
const MAX_CHAIN: usize = 256;

/// Blocks per SM that a grid should have before channels are no longer shared. A guess: 4 blocks of 256 threads are the
/// least that hides the latency of memory on most GPUs.
const BLOCKS_PER_SM: usize = 4;
/// Chunks that a block should have before its channel is shared. A guess: below that the second launch costs more than
/// the missing blocks.
const MIN_CHUNKS: usize = 4;
/// Elements of a channel up to which a warp alone takes it, in any case and where there are warps for every SM.
/// Guesses: at 512 each lane has two chunks.
const WARP_CHANNEL: usize = 512;
const WARP_CHANNEL_MANY: usize = 4096;
/// Columns up to which a warp holds a row in its registers; `kWarpRow` in `kernels/row_norm_fwd.cuh`.
const WARP_ROW: usize = 1024;

/// What a plan may know of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Streaming multiprocessors.
    pub sms: usize,
}

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
    /// A walk over `shape` that shares channels until `blocks_wanted` blocks have work.
    fn new(shape: ChannelShape, vec: usize, blocks_wanted: usize, device: DeviceLimits) -> Self {
        let per_channel = shape.per_channel();
        let (tile, columns) = Self::tile(shape, vec, device);
        let (tiles, chunk) = match tile {
            ChannelTile::WarpPerChannel => {
                let span = per_channel.max(1);
                return Self { shape, tile, vec, columns, splits: 1, span };
            }
            ChannelTile::BlockPerChannel => (shape.channels(), THREADS * SLAB_CHUNK),
            ChannelTile::Columns => {
                (shape.channels().div_ceil(columns * vec), THREADS / columns * COLUMN_CHUNK)
            }
        };
        let to_fill = blocks_wanted.div_ceil(tiles).min(per_channel.div_ceil(MIN_CHUNKS * chunk));
        let for_chains = per_channel.div_ceil(CHAIN * chunk);
        // The block that merges the splits does so in chains of chains, and the grid has an end.
        let most = (MAX_CHAIN * MAX_CHAIN * THREADS / columns).min(MAX_BLOCKS / tiles);
        let splits = to_fill.max(for_chains).clamp(1, most);
        let span = per_channel.div_ceil(splits).next_multiple_of(chunk).max(chunk);
        Self { shape, tile, vec, columns, splits: per_channel.div_ceil(span).max(1), span }
    }

    fn tile(shape: ChannelShape, vec: usize, device: DeviceLimits) -> (ChannelTile, usize) {
        if shape.inner() == 1 && shape.channels() > 1 {
            return (
                ChannelTile::Columns,
                shape.channels().div_ceil(vec).next_power_of_two().min(MAX_COLUMNS),
            );
        }
        let warps_per_block = THREADS / WARP;
        let per_channel = shape.per_channel();
        let warps_fill = shape.channels() / warps_per_block >= device.sms;
        if per_channel <= WARP_CHANNEL || per_channel <= WARP_CHANNEL_MANY && warps_fill {
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
    /// `stats_shape` is `shape` itself, or the same elements as one channel.
    fn new(
        stats_shape: ChannelShape,
        shape: ChannelShape,
        single: bool,
        vec: impl Fn(ChannelShape) -> usize,
        device: DeviceLimits,
    ) -> Self {
        let blocks = device.sms * BLOCKS_PER_SM;
        let stats = ChannelWalk::new(stats_shape, vec(stats_shape), blocks, device);
        // Twice the blocks: a walk that only applies has no partial results to merge.
        let apply = ChannelWalk::new(shape, vec(shape), 2 * blocks, device);
        let strategy = match single && stats.splits == 1 {
            true => ChannelStrategy::Single,
            false => ChannelStrategy::Split,
        };
        Self { strategy, stats, apply }
    }

    /// The plan of a forward pass. `align` divides every address that the kernels touch by the vector.
    pub fn forward(
        shape: ChannelShape,
        whole_batch: bool,
        dtype: DType,
        align: usize,
        device: DeviceLimits,
    ) -> Self {
        let stats = if whole_batch { shape.as_one_channel() } else { shape };
        Self::new(stats, shape, stats == shape, |shape| channel_vec(shape, dtype, align), device)
    }

    /// The plan of a backward pass, whose sums are per channel even where the statistics are not.
    pub fn backward(
        shape: ChannelShape,
        whole_batch: bool,
        dtype: DType,
        align: usize,
        device: DeviceLimits,
    ) -> Self {
        let single = !whole_batch || shape.channels() == 1;
        Self::new(shape, shape, single, |shape| channel_vec(shape, dtype, align), device)
    }

    /// What it needs of a workspace; `ChannelWorkspace` in `kernels/prim/channel_launch.cuh` divides the words.
    fn workspace(&self) -> WorkspaceLen {
        let channels = self.stats.shape.channels();
        match self.strategy {
            ChannelStrategy::Single => WorkspaceLen::default(),
            ChannelStrategy::Split => WorkspaceLen {
                counters: channels,
                words: 2 * channels + 2 + 2 * self.stats.splits * channels,
            },
        }
    }
}

/// What is enough for both directions, every type and every alignment.
pub fn channel_norm_workspace(shape: ChannelShape, whole_batch: bool, device: DeviceLimits) -> WorkspaceLen {
    let mut enough = WorkspaceLen::default();
    for (dtype, align) in [(DType::F32, 1), (DType::F32, VEC_BYTES), (DType::F16, VEC_BYTES)] {
        for plan in [ChannelPlan::forward, ChannelPlan::backward] {
            enough = enough.max(plan(shape, whole_batch, dtype, align, device).workspace());
        }
    }
    enough
}

/// 16 bytes' worth where every access of the walk would be aligned, else 1.
fn channel_vec(shape: ChannelShape, dtype: DType, align: usize) -> usize {
    let wide = VEC_BYTES / dtype.size();
    // Whichever lies side by side: positions of a channel, or channels.
    let run = if shape.inner() == 1 { shape.channels() } else { shape.inner() };
    if align.is_multiple_of(VEC_BYTES) && run.is_multiple_of(wide) { wide } else { 1 }
}

/// How the elements of a row are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RowStrategy {
    /// The row stays in the registers of one warp.
    WarpPerRow,
    /// A block reads the row twice.
    BlockPerRow,
}

/// How to run a row norm. It does not depend on the number of rows, so a row's bits do not either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowPlan {
    /// Who owns a row.
    pub strategy: RowStrategy,
    /// Elements per memory access: 16 bytes' worth, or 1.
    pub vec: usize,
}

/// The plan of a row norm. `align` divides every address and every row's distance to the next, in bytes.
pub fn row_plan(shape: RowShape, dtype: DType, align: usize) -> RowPlan {
    let wide = VEC_BYTES / dtype.size();
    let vec = if align.is_multiple_of(VEC_BYTES) && shape.cols().is_multiple_of(wide) { wide } else { 1 };
    let strategy = if shape.cols() <= WARP_ROW { RowStrategy::WarpPerRow } else { RowStrategy::BlockPerRow };
    RowPlan { strategy, vec }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plans(outer: usize, channels: usize, inner: usize, sms: usize) -> Vec<(ChannelPlan, WorkspaceLen)> {
        let Some(shape) = ChannelShape::new(outer, channels, inner) else { return Vec::new() };
        let device = DeviceLimits { sms };
        let mut all = Vec::new();
        for whole_batch in [false, true] {
            let enough = channel_norm_workspace(shape, whole_batch, device);
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                for align in [2, 4, 8, 16] {
                    all.push((ChannelPlan::forward(shape, whole_batch, dtype, align, device), enough));
                    all.push((ChannelPlan::backward(shape, whole_batch, dtype, align, device), enough));
                }
            }
        }
        all
    }

    /// What the kernels take for granted.
    fn check_walk(walk: &ChannelWalk) {
        let shape = walk.shape;
        let tiles = match walk.tile {
            ChannelTile::BlockPerChannel => shape.channels(),
            ChannelTile::WarpPerChannel => shape.channels().div_ceil(THREADS / WARP),
            ChannelTile::Columns => shape.channels().div_ceil(walk.columns * walk.vec),
        };
        let peers = match walk.tile {
            ChannelTile::BlockPerChannel => THREADS,
            ChannelTile::WarpPerChannel => WARP,
            ChannelTile::Columns => THREADS / walk.columns,
        };
        let chunk = if walk.tile == ChannelTile::Columns { COLUMN_CHUNK } else { SLAB_CHUNK };
        assert!(walk.splits >= 1 && walk.splits * walk.span >= shape.per_channel(), "all elements: {walk:?}");
        let started = (walk.splits - 1) * walk.span;
        assert!(started < shape.per_channel().max(1), "no empty split: {walk:?}");
        assert!(tiles.max(1) * walk.splits <= MAX_BLOCKS, "the grid fits: {walk:?}");
        assert!(walk.columns.is_power_of_two() && walk.columns <= MAX_COLUMNS, "columns: {walk:?}");
        assert!(walk.span <= i32::MAX as usize / 2, "32-bit offsets within a split: {walk:?}");
        // Rounding only, and of tensors that some machine may have the memory for.
        if shape.len() <= 1 << 42 {
            assert!(walk.span.div_ceil(peers * chunk) <= MAX_CHAIN, "chain of chunks: {walk:?}");
            assert!(walk.splits.div_ceil(peers) <= MAX_CHAIN * MAX_CHAIN, "chains of splits: {walk:?}");
        }
        let run = if walk.tile == ChannelTile::Columns { shape.channels() } else { shape.inner() };
        assert_eq!(run % walk.vec, 0, "a vector never leaves its run: {walk:?}");
        if walk.tile == ChannelTile::Columns {
            assert_eq!(shape.inner(), 1, "{walk:?}");
        }
        if walk.tile == ChannelTile::WarpPerChannel {
            assert_eq!(walk.splits, 1, "{walk:?}");
        }
    }

    fn check(outer: usize, channels: usize, inner: usize, sms: usize) {
        for (plan, enough) in plans(outer, channels, inner, sms) {
            check_walk(&plan.stats);
            check_walk(&plan.apply);
            assert_eq!(plan.workspace().max(enough), enough, "the workspace is enough: {plan:?}");
            if plan.strategy == ChannelStrategy::Single {
                assert_eq!((plan.stats.splits, plan.stats.shape), (1, plan.apply.shape), "{plan:?}");
            }
        }
    }

    #[test]
    fn every_channel_plan_keeps_the_kernels_assumptions() {
        for outer in [0, 1, 2, 3, 31, 33, 1023, 1025, 880_801] {
            for channels in [1, 2, 3, 7, 8, 31, 33, 64, 1025, 65_537] {
                for inner in [0, 1, 2, 7, 49, 1023, 1024, 1 << 20] {
                    check(outer, channels, inner, 4);
                    check(outer, channels, inner, 132);
                }
            }
        }
    }

    #[test]
    fn more_elements_than_32_bits_count_are_planned() {
        check(40, 64, 1 << 20, 132);
        check(1 << 33, 3, 1, 132);
        check(1 << 40, 1, 1, 132);
        check(1, 1, i32::MAX as usize, 132);
        check(2, i32::MAX as usize, 1, 132);
        check(2, i32::MAX as usize, 3, 132);
    }

    proptest! {
        #[test]
        fn any_channel_plan_keeps_the_kernels_assumptions(
            outer in 0usize..3_000_000, channels in 0usize..70_000, inner in 0usize..70_000, sms in 1usize..200,
        ) {
            check(outer, channels, inner, sms);
        }

        #[test]
        fn every_row_plan_divides_the_row(rows in 0usize..9, cols in 0usize..5000, align in 0u32..9) {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let plan = row_plan(RowShape::new(rows, cols).unwrap(), dtype, 1 << align);
                prop_assert_eq!(cols % plan.vec, 0);
                prop_assert!(plan.vec == 1 || plan.vec * dtype.size() == VEC_BYTES && align >= 4);
                prop_assert!(plan.strategy == RowStrategy::BlockPerRow || cols <= WARP_ROW);
                prop_assert_eq!(plan, row_plan(RowShape::new(1, cols).unwrap(), dtype, 1 << align));
            }
        }
    }

    #[test]
    fn few_channels_are_shared_and_many_small_ones_share_a_block() {
        let device = DeviceLimits { sms: 132 };
        let plan = |outer, channels, inner| {
            ChannelPlan::forward(
                ChannelShape::new(outer, channels, inner).unwrap(),
                false,
                DType::F16,
                16,
                device,
            )
        };
        let few = plan(32, 3, 224 * 224);
        assert_eq!(few.strategy, ChannelStrategy::Split);
        assert!(few.stats.splits * 3 >= 132 * (BLOCKS_PER_SM - 1), "all SMs have work: {few:?}");
        let small = plan(8, 512, 49);
        assert_eq!(
            (small.strategy, small.stats.tile),
            (ChannelStrategy::Single, ChannelTile::WarpPerChannel)
        );
        assert_eq!(plan(64, 32, 1).strategy, ChannelStrategy::Single);
    }
}
