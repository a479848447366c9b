//! What the kernels and the callers take for granted of plans.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{
    channel::{COLUMN_CHUNK, MAX_CHAIN, SLAB_CHUNK},
    row::{DEEP_CHAIN, FLAT_CHAIN, HELD_STATIC, HELD_THREADS, MAX_CLUSTER, STREAMED_ROWS_PER_PART, WARP_ROW},
    *,
};
use crate::backend::WorkspaceLen;

/// The plans of every way to share statistics.
fn plans(dims: [usize; 4], sms: usize) -> Vec<(ChannelPlan, WorkspaceLen)> {
    let [segments, outer, channels, inner] = dims;
    let device = DeviceLimits { sms, ..DeviceLimits::H200 };
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

const DEVICES: [DeviceLimits; 4] =
    [DeviceLimits::H200, DeviceLimits::A100, DeviceLimits::RTX_4090, DeviceLimits::SMALL];

fn check_row_plans(rows: usize, cols: usize, align: usize, sms: usize) {
    for device in DEVICES {
        check_row_plans_on(rows, cols, align, DeviceLimits { sms, ..device });
    }
}

fn check_row_plans_on(rows: usize, cols: usize, align: usize, device: DeviceLimits) {
    let shape = RowShape::new(rows, cols).unwrap();
    let enough = row_norm_workspace(shape, device);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for direction in [Direction::Forward, Direction::Backward] {
            for extra in [false, true] {
                let call = RowCall { direction, shape, dtype, align, extra };
                let all = call.candidates(&device);
                assert!(!all.is_empty(), "no shape is without a plan: {call:?}");
                for plan in &all {
                    check_row_plan(plan, &call, &device);
                    if direction == Direction::Backward {
                        let needed = plan.workspace(shape);
                        assert_eq!(needed.max(enough), enough, "the workspace is enough: {plan:?}");
                    }
                }
                let chosen = call.plan(&device);
                let one = RowShape::new(1, cols).unwrap();
                let alone = RowCall { shape: one, ..call }.plan(&device);
                let tree = |p: RowPlan| (p.strategy, p.vec, p.threads, p.lanes, p.cluster, p.packs);
                assert_eq!(tree(chosen), tree(alone), "a row's bits: {chosen:?}");
            }
        }
    }
}

/// What the kernels take for granted.
fn check_row_plan(plan: &RowPlan, call: &RowCall, device: &DeviceLimits) {
    let (rows, cols) = (call.shape.rows(), call.shape.cols());
    assert_eq!(cols % plan.vec, 0, "{plan:?}");
    assert!(plan.vec == 1 || plan.vec * call.dtype.size() == VEC_BYTES && call.align >= 16, "{plan:?}");
    assert!(plan.parts >= 1 && plan.parts * plan.cluster <= MAX_BLOCKS, "the grid fits: {plan:?}");
    assert!(plan.parts * plan.span >= rows, "all rows: {plan:?}");
    assert!((plan.parts - 1) * plan.span < rows.max(1), "no part is empty: {plan:?}");
    if plan.strategy == RowStrategy::Streaming {
        let tiles = cols.div_ceil(MAX_COLUMNS * plan.vec);
        assert!(plan.span <= STREAMED_ROWS_PER_PART, "chain of rows: {plan:?}");
        assert!(plan.parts * tiles <= MAX_BLOCKS, "the grid fits: {plan:?}");
        return;
    }
    let block = plan.lanes * plan.packs * plan.vec;
    assert!(block * plan.cluster >= cols, "all columns: {plan:?}");
    assert!(plan.lanes.is_power_of_two() && plan.threads.is_power_of_two(), "{plan:?}");
    assert!(plan.lanes <= plan.threads && (WARP..=HELD_THREADS).contains(&plan.threads), "{plan:?}");
    assert!(plan.strategy != RowStrategy::WarpPerRow || plan.lanes <= WARP && cols <= WARP_ROW, "{plan:?}");
    assert!(plan.cluster.is_power_of_two() && plan.cluster <= MAX_CLUSTER, "{plan:?}");
    assert!(plan.cluster <= 8 || device.cluster >= 8, "not portable: {plan:?}");
    assert!(plan.cluster == 1 || device.cluster > 1 && plan.lanes == plan.threads, "{plan:?}");
    assert!(plan.smem + HELD_STATIC <= device.smem_per_block, "fits shared memory: {plan:?}");
    assert!(plan.per_sm(call.direction, device) >= 1, "fits an SM: {plan:?}");
    if call.direction == Direction::Backward {
        let groups = plan.threads / plan.lanes;
        let chain = if plan.deep { DEEP_CHAIN } else { FLAT_CHAIN };
        assert!(plan.span <= chain * groups, "chain of rows: {plan:?}");
        assert!(plan.packs * plan.vec <= 32, "columns of a thread: {plan:?}");
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
    let device = DeviceLimits::SMALL;
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
    let device = DeviceLimits::H200;
    let plan = |outer, channels, inner| {
        let shape = ChannelShape::new(1, outer, channels, inner, 1).unwrap();
        ChannelPlan::forward(shape, DType::F16, 16, device)
    };
    let few = plan(32, 3, 224 * 224);
    assert_eq!(few.strategy, ChannelStrategy::Split);
    assert!(few.stats.splits * 3 >= 132 * (BLOCKS_PER_SM - 1), "all SMs have work: {few:?}");
    let small = plan(8, 512, 49);
    assert_eq!((small.strategy, small.stats.tile), (ChannelStrategy::Single, ChannelTile::WarpPerChannel));
    assert_eq!(plan(64, 32, 1).strategy, ChannelStrategy::Single);
}

/// Rows and columns of the benchmarks.
const ROW_SHAPES: [(usize, usize); 18] = [
    (1_048_576, 128),
    (131_072, 128),
    (16_384, 128),
    (32_768, 256),
    (32_768, 768),
    (32_768, 1024),
    (32_768, 2048),
    (16_384, 4096),
    (32_768, 8192),
    (1024, 12_288),
    (32_768, 16_384),
    (32_768, 32_768),
    (32_768, 65_536),
    (16_384, 131_072),
    (8192, 262_144),
    (8, 4096),
    (4096, 4097),
    (1000, 65_537),
];

fn row_calls() -> impl Iterator<Item = RowCall> {
    ROW_SHAPES.into_iter().flat_map(|(rows, cols)| {
        let shape = RowShape::new(rows, cols).unwrap();
        [Direction::Forward, Direction::Backward].into_iter().flat_map(move |direction| {
            [DType::F32, DType::F16].map(|dtype| RowCall { direction, shape, dtype, align: 16, extra: false })
        })
    })
}

/// The law that a row's bits do not depend on rows leaves one strategy for all of them, so it is for many rows that no
/// legal plan may be predicted to be much faster.
#[test]
fn no_legal_row_plan_is_predicted_to_be_a_tenth_faster() {
    for device in [DeviceLimits::H200, DeviceLimits::A100, DeviceLimits::RTX_4090] {
        for call in row_calls() {
            let many = call.reference();
            let chosen = many.plan(&device).work(&many, &device).seconds(&device);
            for other in many.candidates(&device) {
                let seconds = other.work(&many, &device).seconds(&device);
                assert!(chosen <= 1.1 * seconds, "{many:?}: {chosen:e} s, and {seconds:e} s by {other:?}");
            }
        }
    }
}

#[test]
fn on_an_h200_every_row_of_the_benchmarks_is_read_once() {
    let device = DeviceLimits::H200;
    for call in row_calls() {
        let plan = call.plan(&device);
        assert_ne!(plan.strategy, RowStrategy::Streaming, "{call:?}");
        let bytes = (call.shape.rows() * call.shape.cols() * call.dtype.size()) as f64;
        if call.direction == Direction::Forward && plan.vec > 1 && bytes >= f64::from(64 << 20) {
            let share =
                2e-9 * bytes / device.copy_gb_per_s as f64 / plan.work(&call, &device).seconds(&device);
            assert!(share > 0.85, "{share} of a copy's speed: {call:?} {plan:?}");
        }
    }
}
