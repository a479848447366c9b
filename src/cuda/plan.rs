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
/// Columns up to which a warp holds a row in its registers; `kWarpRow` in `kernels/prim/row.cuh`.
const WARP_ROW: usize = 1024;
/// Rows of a part of the backward pass. A warp sums those it holds one after another, which for equal values errs by a
/// quarter of a unit in the last place each: 128 rows in 8 warps leave 5 of the 8 units that the tests allow. Longer
/// rows are summed with compensation; their parts end where the error of that would.
const WARP_ROWS_PER_PART: usize = 128;
const BLOCK_ROWS_PER_PART: usize = 2048;

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
                shape.channels().div_ceil(vec).next_power_of_two().min(MAX_COLUMNS),
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
    fn workspace(&self) -> WorkspaceLen {
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
    for (dtype, align) in [(DType::F32, 1), (DType::F32, VEC_BYTES), (DType::F16, VEC_BYTES)] {
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

/// How the elements of a row are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RowStrategy {
    /// The row stays in the registers of one warp.
    WarpPerRow,
    /// A block reads the row twice.
    BlockPerRow,
}

/// How to run a row norm. Who owns a row, and in which order, does not depend on the number of rows, so a row's bits do
/// not either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowPlan {
    /// Who owns a row.
    pub strategy: RowStrategy,
    /// Elements per memory access: 16 bytes' worth, or 1.
    pub vec: usize,
    /// Backward: partial sums of the gradients of weight and bias, each by blocks of its own.
    pub parts: usize,
    /// Backward: rows of one part.
    pub span: usize,
}

impl RowPlan {
    /// `align` divides every address and every distance between rows, in bytes.
    pub fn new(shape: RowShape, dtype: DType, align: usize, device: DeviceLimits) -> Self {
        let wide = VEC_BYTES / dtype.size();
        let vec = if align.is_multiple_of(VEC_BYTES) && shape.cols().is_multiple_of(wide) { wide } else { 1 };
        let (strategy, tiles, most) = match shape.cols() <= WARP_ROW {
            true => (RowStrategy::WarpPerRow, 1, WARP_ROWS_PER_PART),
            false => {
                (RowStrategy::BlockPerRow, shape.cols().div_ceil(MAX_COLUMNS * vec), BLOCK_ROWS_PER_PART)
            }
        };
        let row_peers = THREADS / WARP; // warps, or threads of a column
        let to_fill = (device.sms * BLOCKS_PER_SM).div_ceil(tiles).min(shape.rows().div_ceil(row_peers));
        let for_chains = shape.rows().div_ceil(most);
        let span = shape.rows().div_ceil(to_fill.max(for_chains).max(1)).next_multiple_of(row_peers);
        let span = span.max(row_peers);
        Self { strategy, vec, parts: shape.rows().div_ceil(span).max(1), span }
    }

    /// What a backward pass needs of a workspace.
    fn workspace(&self, shape: RowShape) -> WorkspaceLen {
        WorkspaceLen { counters: 0, words: 2 * self.parts * shape.cols() }
    }
}

/// What is enough for every type and every alignment.
pub fn row_norm_workspace(shape: RowShape, device: DeviceLimits) -> WorkspaceLen {
    let mut enough = WorkspaceLen::default();
    for (dtype, align) in [(DType::F32, 1), (DType::F32, VEC_BYTES), (DType::F16, VEC_BYTES)] {
        enough = enough.max(RowPlan::new(shape, dtype, align, device).workspace(shape));
    }
    enough
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The plans of every way to share statistics.
    fn plans(dims: [usize; 4], sms: usize) -> Vec<(ChannelPlan, WorkspaceLen)> {
        let [segments, outer, channels, inner] = dims;
        let device = DeviceLimits { sms };
        let mut all = Vec::new();
        let divisor = (2..6).find(|&n| channels.is_multiple_of(n)).unwrap_or(1);
        let groups = BTreeSet::from([1, divisor, channels / divisor, channels]);
        for group in groups {
            let Some(shape) = ChannelShape::new(segments, outer, channels, inner, group) else { continue };
            let enough = channel_norm_workspace(shape, device);
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                for align in [2, 4, 8, 16] {
                    all.push((ChannelPlan::forward(shape, dtype, align, device), enough));
                    all.push((ChannelPlan::backward(shape, dtype, align, device), enough));
                }
            }
        }
        all
    }

    /// What the kernels take for granted.
    fn check_walk(walk: &ChannelWalk) {
        let shape = walk.shape;
        let tiles = match walk.tile {
            ChannelTile::BlockPerChannel => shape.slabs(),
            ChannelTile::WarpPerChannel => shape.slabs().div_ceil(THREADS / WARP),
            ChannelTile::Columns => shape.segments() * shape.channels().div_ceil(walk.columns * walk.vec),
        };
        let peers = match walk.tile {
            ChannelTile::BlockPerChannel => THREADS,
            ChannelTile::WarpPerChannel => WARP,
            ChannelTile::Columns => THREADS / walk.columns,
        };
        let chunk = if walk.tile == ChannelTile::Columns { COLUMN_CHUNK } else { SLAB_CHUNK };
        assert!(walk.splits >= 1 && walk.splits * walk.span >= shape.per_slab(), "all elements: {walk:?}");
        let started = (walk.splits - 1) * walk.span;
        assert!(started < shape.per_slab().max(1), "no empty split: {walk:?}");
        assert!(tiles.max(1) * walk.splits <= MAX_BLOCKS, "the grid fits: {walk:?}");
        assert!(walk.columns.is_power_of_two() && walk.columns <= MAX_COLUMNS, "columns: {walk:?}");
        assert!(walk.span <= i32::MAX as usize / 2, "32-bit offsets within a split: {walk:?}");
        // `prim/channel_tile.cuh` counts in 32 bits: positions from the start of a run, with a thread's last step beyond
        // the split's end; slabs; and a tile's channels, with lanes beyond the last one.
        let step = peers * chunk;
        assert!(shape.inner() + walk.span + step <= u32::MAX as usize, "positions in 32 bits: {walk:?}");
        assert!(shape.slabs() + THREADS <= u32::MAX as usize, "slabs in 32 bits: {walk:?}");
        assert!(shape.channels() + 2 * walk.columns * walk.vec <= u32::MAX as usize, "channels: {walk:?}");
        // And in 64 bits what it multiplies: elements, and partial results.
        assert!(i64::try_from(shape.slabs() * walk.splits * 2).is_ok(), "partial results: {walk:?}");
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
        check_segments([1, outer, channels, inner], sms);
    }

    fn check_segments(dims: [usize; 4], sms: usize) {
        for (plan, enough) in plans(dims, sms) {
            check_walk(&plan.stats);
            check_walk(&plan.apply);
            assert_eq!(plan.workspace().max(enough), enough, "the workspace is enough: {plan:?}");
            if plan.strategy == ChannelStrategy::Single {
                assert_eq!((plan.stats.splits, plan.stats.shape), (1, plan.apply.shape), "{plan:?}");
                assert_eq!(plan.apply.shape.group(), 1, "{plan:?}");
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
        fn any_segmented_plan_keeps_the_kernels_assumptions(
            segments in 0usize..3000, outer in 0usize..300, channels in 0usize..3000, inner in 0usize..70_000,
            sms in 1usize..200,
        ) {
            check_segments([segments, outer, channels, inner], sms);
        }

        #[test]
        fn any_row_plan_keeps_the_kernels_assumptions(
            rows in 0usize..3_000_000, cols in 0usize..300_000, align in 0u32..9, sms in 1usize..200,
        ) {
            check_row_plans(rows, cols, 1 << align, sms);
            check_row_plans(rows % 9, cols % 5000, 1 << align, sms);
        }
    }

    fn check_row_plans(rows: usize, cols: usize, align: usize, sms: usize) {
        let (shape, device) = (RowShape::new(rows, cols).unwrap(), DeviceLimits { sms });
        let enough = row_norm_workspace(shape, device);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let plan = RowPlan::new(shape, dtype, align, device);
            assert_eq!(cols % plan.vec, 0, "{plan:?}");
            assert!(plan.vec == 1 || plan.vec * dtype.size() == VEC_BYTES && align >= 16, "{plan:?}");
            assert!(plan.strategy == RowStrategy::BlockPerRow || cols <= WARP_ROW, "{plan:?}");
            assert!(plan.parts * plan.span >= rows, "all rows: {plan:?}");
            let (most, tiles) = match plan.strategy {
                RowStrategy::WarpPerRow => (WARP_ROWS_PER_PART, 1),
                RowStrategy::BlockPerRow => (BLOCK_ROWS_PER_PART, cols.div_ceil(MAX_COLUMNS * plan.vec)),
            };
            assert!(plan.span <= most, "chain of rows: {plan:?}");
            assert!(plan.parts * tiles <= MAX_BLOCKS, "the grid fits: {plan:?}");
            assert_eq!(plan.workspace(shape).max(enough), enough, "the workspace is enough: {plan:?}");
            let alone = RowPlan::new(RowShape::new(1, cols).unwrap(), dtype, align, device);
            assert_eq!((plan.strategy, plan.vec), (alone.strategy, alone.vec), "a row's bits: {plan:?}");
        }
    }

    #[test]
    fn the_largest_rows_are_planned() {
        for (rows, cols) in [
            (1, i32::MAX as usize),
            ((1 << 37) - 1, 1),
            ((1 << 36) - 1, 1 << 10),
            ((1 << 15) - 1, i32::MAX as usize),
        ] {
            check_row_plans(rows, cols, 16, 132);
            check_row_plans(rows, cols, 2, 132);
        }
    }

    #[test]
    fn a_samples_statistics_do_not_depend_on_how_many_came_with_it() {
        let device = DeviceLimits { sms: 4 };
        for (outer, channels, inner, group) in
            [(1, 32, 49, 1), (1, 64, 1000, 8), (50, 64, 1, 4), (1, 6, 40_000, 3)]
        {
            let plan = |segments| {
                let shape = ChannelShape::new(segments, outer, channels, inner, group).unwrap();
                ChannelPlan::forward(shape, DType::F16, 16, device).stats
            };
            let order = |walk: ChannelWalk| (walk.tile, walk.vec, walk.columns, walk.splits, walk.span);
            for segments in [2, 3, 64, 1000] {
                assert_eq!(order(plan(1)), order(plan(segments)), "{segments} of {channels} channels");
            }
        }
    }

    #[test]
    fn few_channels_are_shared_and_many_small_ones_share_a_block() {
        let device = DeviceLimits { sms: 132 };
        let plan = |outer, channels, inner| {
            let shape = ChannelShape::new(1, outer, channels, inner, 1).unwrap();
            ChannelPlan::forward(shape, DType::F16, 16, device)
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
