//! What the kernels and the callers take for granted of the plans of channel norms, and what the plans are worth.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{
    channel::{COLUMN_CHUNK, MAX_CHAIN, SLAB_CHUNK, TEAM_BLOCKS},
    *,
};

const PASSES: [ChannelPass; 3] = [ChannelPass::Forward, ChannelPass::Backward, ChannelPass::BackwardFused];
const DEVICES: [(&str, DeviceLimits); 3] =
    [("H200", DeviceLimits::H200), ("A100", DeviceLimits::A100), ("RTX 4090", DeviceLimits::RTX_4090)];

/// A problem for every way to share statistics, type, alignment and direction.
fn problems(dims: [usize; 4]) -> Vec<ChannelProblem> {
    let [segments, outer, channels, inner] = dims;
    let mut all = Vec::new();
    let divisor = (2..6).find(|&n| channels.is_multiple_of(n)).unwrap_or(1);
    for group in BTreeSet::from([1, divisor, channels / divisor, channels]) {
        let Some(shape) = ChannelShape::new(segments, outer, channels, inner, group) else { continue };
        let samples = (segments > 1).then(|| shape.of_samples());
        for shape in samples.into_iter().chain([shape]) {
            for (dtype, align) in
                [(DType::F32, 4), (DType::F32, 16), (DType::F16, 2), (DType::F16, 8), (DType::F16, 16)]
            {
                all.extend(PASSES.map(|pass| ChannelProblem { shape, dtype, align, pass }));
            }
        }
    }
    all
}

/// What the kernels take for granted of any walk, whose threads take `chunk` elements of a slab at a time.
fn check_walk(walk: &ChannelWalk, chunk: usize) {
    let shape = walk.shape;
    let peers = match walk.tile {
        ChannelTile::BlockPerChannel => THREADS,
        ChannelTile::WarpPerChannel => WARP,
        ChannelTile::Columns => THREADS / walk.columns,
    };
    assert!(walk.splits >= 1 && walk.splits * walk.span >= shape.per_slab(), "all elements: {walk:?}");
    let started = (walk.splits - 1) * walk.span;
    assert!(started < shape.per_slab().max(1), "no empty split: {walk:?}");
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
    assert!(
        walk.splits == 1 || walk.span.is_multiple_of(walk.vec) || run == walk.vec,
        "nor its split: {walk:?}"
    );
    if walk.tile == ChannelTile::Columns {
        assert_eq!(shape.inner(), 1, "{walk:?}");
    }
    if walk.tile == ChannelTile::WarpPerChannel {
        assert_eq!(walk.splits, 1, "{walk:?}");
    }
}

/// What the kernels take for granted of teams, beyond their walk.
fn check_team(team: &ChannelTeam, problem: ChannelProblem, device: DeviceLimits) {
    let (walk, shape) = (team.walk, problem.shape);
    assert_eq!(walk.shape, shape, "{team:?}");
    let loads = walk.loads_of_chunk(problem.pass);
    let per_load = if walk.tile == ChannelTile::Columns { 1 } else { walk.vec };
    check_walk(&walk, loads * per_load);
    let owners = match walk.tile {
        ChannelTile::BlockPerChannel => THREADS,
        ChannelTile::WarpPerChannel => WARP,
        ChannelTile::Columns => THREADS / walk.columns,
    };
    assert!(team.chunks * loads * owners * per_load >= walk.span, "chunks cover a piece: {team:?}");
    match walk.tile {
        ChannelTile::Columns => {
            let across = shape.channels().div_ceil(walk.columns * walk.vec);
            assert_eq!(team.units * team.tiles, across * shape.segments(), "tiles: {team:?}");
            assert!(shape.group() == 1 || team.tiles == across, "whole statistics: {team:?}");
        }
        tile => {
            let width = if tile == ChannelTile::WarpPerChannel { THREADS / WARP } else { 1 };
            assert!(team.slabs.is_multiple_of(shape.group()), "whole statistics: {team:?}");
            assert!(team.tiles * width >= team.slabs, "tiles cover a unit: {team:?}");
            assert!((team.tiles - 1) * width < team.slabs, "no empty tile: {team:?}");
            assert!(team.units * team.slabs >= shape.slabs(), "units cover the slabs: {team:?}");
            assert!((team.units - 1) * team.slabs < shape.slabs(), "no empty unit: {team:?}");
        }
    }
    assert!(team.size >= 1 && team.size <= team.pieces(), "no idle block: {team:?}");
    assert!(team.teams >= 1 && team.teams <= team.units, "no idle team: {team:?}");
    assert!(team.teams * team.size <= MAX_BLOCKS, "the grid fits: {team:?}");
    assert!(team.held <= team.pieces_per_block() * team.chunks, "held: {team:?}");
    // The kernels count all of these in 32 bits.
    assert!(team.pieces() * team.chunks <= i32::MAX as usize, "{team:?}");
    assert!(team.units * team.tiles <= i32::MAX as usize, "{team:?}");
    assert!(shape.group() * walk.splits <= i32::MAX as usize, "{team:?}");
    assert!(team.rounds() * team.size <= u32::MAX as usize, "the counter: {team:?}");

    let slot = THREADS * walk.vec * problem.dtype.size() * problem.pass.tensors();
    assert!(team.smem <= device.smem_per_block, "shared memory of a block: {team:?}");
    let per_piece = walk.span.div_ceil(owners * per_load);
    let most_held =
        (team.held / team.chunks * per_piece + (team.held % team.chunks * loads).min(per_piece)) * slot;
    assert!(team.smem >= most_held, "what is held has room: {team:?}");
    assert!(team.blocks_per_sm >= 1 && team.blocks_per_sm <= TEAM_BLOCKS, "{team:?}");
    let of_sm = team.blocks_per_sm * (team.smem + DeviceLimits::SMEM_RESERVED);
    assert!(of_sm <= device.smem_per_sm, "shared memory of an SM: {team:?}");
    if team.folds || team.join == Join::Grid {
        let resident = device.sms * team.blocks_per_sm;
        assert!(team.size * team.teams <= resident, "resident together: {team:?}");
    }
    match team.join {
        Join::Alone => assert_eq!(team.size, 1, "{team:?}"),
        Join::Cluster => assert!([2, 4, 8].contains(&team.size) && team.size <= device.cluster, "{team:?}"),
        Join::Grid => {}
    }
}

fn check(dims: [usize; 4], device: DeviceLimits) {
    for problem in problems(dims) {
        let enough = channel_norm_workspace(problem.shape, device);
        let plans = ChannelPlan::candidates(problem, device);
        assert!(!plans.is_empty(), "no shape is without a plan: {problem:?}");
        for plan in plans {
            for walk in [plan.stats, plan.apply] {
                let chunk = if walk.tile == ChannelTile::Columns { COLUMN_CHUNK } else { SLAB_CHUNK };
                check_walk(&walk, chunk);
                assert!(walk.blocks() <= MAX_BLOCKS, "the grid fits: {walk:?}");
            }
            assert_eq!(plan.workspace().max(enough), enough, "the workspace is enough: {plan:?}");
            let seconds = plan.work(problem, device).seconds(&device);
            assert!(seconds.is_finite() && seconds > 0.0, "{plan:?}");
            match plan.team {
                Some(team) => check_team(&team, problem, device),
                None => assert_eq!(plan.strategy, ChannelStrategy::Split),
            }
        }
    }
}

#[test]
fn every_channel_plan_keeps_the_kernels_assumptions() {
    for outer in [0, 1, 3, 33, 1025, 880_801] {
        for channels in [1, 3, 8, 33, 64, 1025, 65_537] {
            for inner in [0, 1, 7, 49, 1024, 1 << 20] {
                check([1, outer, channels, inner], DeviceLimits::SMALL);
                check([1, outer, channels, inner], DeviceLimits::H200);
            }
        }
    }
}

#[test]
fn more_elements_than_32_bits_count_are_planned() {
    for dims in [
        [1, 40, 64, 1 << 20],
        [1, 1 << 33, 3, 1],
        [1, 1 << 40, 1, 1],
        [1, 1, 1, i32::MAX as usize],
        [1, 2, i32::MAX as usize, 1],
        [1, 2, i32::MAX as usize, 3],
        [1 << 20, 3, 1 << 10, 64],
    ] {
        check(dims, DeviceLimits::H200);
        check(dims, DeviceLimits::SMALL);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_channel_plan_keeps_the_kernels_assumptions(
        outer in 0usize..3_000_000, channels in 0usize..70_000, inner in 0usize..70_000, sms in 1usize..200,
    ) {
        check([1, outer, channels, inner], DeviceLimits { sms, ..DeviceLimits::H200 });
        check([1, outer % 99, channels % 999, inner], DeviceLimits { sms, ..DeviceLimits::RTX_4090 });
    }

    #[test]
    fn any_segmented_plan_keeps_the_kernels_assumptions(
        segments in 0usize..3000, outer in 0usize..300, channels in 0usize..3000, inner in 0usize..70_000,
        sms in 1usize..200,
    ) {
        check([segments, outer, channels, inner], DeviceLimits { sms, ..DeviceLimits::A100 });
    }
}

/// What a sample's bits depend on.
fn order(plan: &ChannelPlan) -> (bool, ChannelTile, usize, usize, usize, usize) {
    let walk = plan.team.map_or(plan.stats, |team| team.walk);
    (plan.team.is_some(), walk.tile, walk.vec, walk.columns, walk.splits, walk.span)
}

#[test]
fn a_samples_bits_do_not_depend_on_how_many_came_with_it() {
    for (_, device) in DEVICES {
        for (outer, channels, inner, group) in
            [(1, 32, 49, 1), (1, 64, 1000, 8), (50, 64, 1, 4), (1, 6, 40_000, 3), (1, 512, 1 << 16, 16)]
        {
            let problem = |segments, pass| ChannelProblem {
                shape: ChannelShape::new(segments, outer, channels, inner, group).unwrap().of_samples(),
                dtype: DType::F16,
                align: 16,
                pass,
            };
            for pass in PASSES {
                let alone = order(&ChannelPlan::new(problem(1, pass), device));
                for segments in [1, 2, 3, 64, 1000] {
                    for plan in ChannelPlan::candidates(problem(segments, pass), device) {
                        assert_eq!(order(&plan), alone, "{segments} of {channels} channels, {pass:?}");
                    }
                }
            }
        }
    }
}

/// The shapes of the benchmark suite: samples, channels, positions, groups (0: BatchNorm), channels last.
const SUITE: [(usize, usize, usize, usize, bool); 22] = [
    (256, 64, 112 * 112, 0, false),
    (256, 64, 112 * 112, 0, true),
    (256, 64, 56 * 56, 0, false),
    (256, 256, 56 * 56, 0, false),
    (256, 256, 56 * 56, 0, true),
    (256, 512, 28 * 28, 0, false),
    (256, 512, 28 * 28, 0, true),
    (256, 1024, 14 * 14, 0, false),
    (256, 2048, 7 * 7, 0, false),
    (32, 64, 112 * 112, 0, false),
    (32, 512, 7 * 7, 0, true),
    (4, 128, 1 << 20, 0, false),
    (100_000, 32, 1, 0, false),
    (4096, 1024, 1, 0, false),
    (8, 64, 32 * 32, 0, false),
    (32, 256, 56 * 56, 32, false),
    (32, 256, 56 * 56, 32, true),
    (2, 320, 64 * 64, 32, false),
    (1, 512, 256 * 256, 32, false),
    (1, 128, 1 << 20, 32, false),
    (8, 32, 512 * 512, 32, false),
    (2, 320, 512, 320, false),
];

fn suite(pass: ChannelPass) -> Vec<ChannelProblem> {
    let problems = SUITE.iter().map(|&(samples, channels, positions, groups, last)| {
        let (outer, inner) = if last { (positions, 1) } else { (1, positions) };
        let shape = match groups {
            0 => ChannelShape::new(1, samples * outer, channels, inner, 1),
            _ => ChannelShape::new(samples, outer, channels, inner, channels / groups),
        };
        let shape = shape.expect("the suite is not too large");
        let shape = if groups == 0 { shape } else { shape.of_samples() };
        ChannelProblem { shape, dtype: DType::F16, align: 16, pass }
    });
    problems.collect()
}

#[test]
fn the_chosen_plan_is_within_a_tenth_of_the_best_that_is_legal() {
    for (name, device) in DEVICES {
        for problem in PASSES.into_iter().flat_map(suite) {
            let seconds = |plan: &ChannelPlan| plan.work(problem, device).seconds(&device);
            let chosen = seconds(&ChannelPlan::new(problem, device));
            let candidates = ChannelPlan::candidates(problem, device);
            let best = candidates.iter().map(seconds).min_by(f64::total_cmp).unwrap();
            assert!(chosen <= 1.1 * best, "{name}: {chosen} of {best} s for {problem:?}");
        }
    }
}

/// In bytes of the tensor, under the model: no slab of channels first is read twice from memory, and those of channels
/// last that are larger than the chip stay in part.
#[test]
fn on_an_h200_the_suite_moves_little_more_than_its_floor() {
    for pass in [ChannelPass::Forward, ChannelPass::Backward] {
        for (problem, case) in suite(pass).into_iter().zip(SUITE) {
            let plan = ChannelPlan::new(problem, DeviceLimits::H200);
            let size = (problem.shape.len() * problem.dtype.size()) as f64;
            let moved = plan.work(problem, DeviceLimits::H200).dram_bytes / size;
            let floor = (1 + pass.tensors()) as f64;
            let larger_than_the_chip = case.4 && size > 400e6;
            let most = match (larger_than_the_chip, pass) {
                (false, _) => floor,
                (true, ChannelPass::Forward) => 2.75,
                (true, _) => 4.8,
            };
            assert!(moved <= most * 1.0001, "{moved} S for {case:?} {pass:?}: {plan:?}");
            assert!(plan.team.is_some(), "one launch for {case:?}: {plan:?}");
        }
    }
}

#[test]
fn small_tensors_take_one_launch() {
    for (name, device) in DEVICES {
        // The last two are a GroupNorm and an InstanceNorm.
        let of_batches = [(1, 8, 64, 1024, 1), (1, 32, 64, 1, 1), (1, 4, 256, 784, 1), (1, 64, 1024, 1, 1)];
        let of_samples = [(8, 1, 64, 1024, 2), (10, 1, 64, 784, 1)];
        for (segments, outer, channels, inner, group) in of_batches.into_iter().chain(of_samples) {
            let shape = ChannelShape::new(segments, outer, channels, inner, group).unwrap();
            let shape = if segments > 1 { shape.of_samples() } else { shape };
            for pass in PASSES {
                let problem = ChannelProblem { shape, dtype: DType::F16, align: 16, pass };
                let work = ChannelPlan::new(problem, device).work(problem, device);
                assert_eq!(work.launches, 1, "{name}: {problem:?}");
            }
        }
    }
}
