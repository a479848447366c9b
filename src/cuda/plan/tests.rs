//! What the kernels and the callers take for granted of the plans of row norms.

use proptest::prelude::*;

use super::{
    row::{DEEP_CHAIN, FLAT_CHAIN, HELD_THREADS, MAX_CLUSTER, STREAMED_ROWS_PER_PART, WARP_ROW, held_static},
    *,
};

proptest! {
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
                assert_eq!(chosen.order(), alone.order(), "a row's bits: {chosen:?}");
                let plain = RowCall { extra: false, ..call }.plan(&device).order();
                let can = all.iter().any(|plan| plan.order() == plain);
                assert!(!can || chosen.order() == plain, "the bits of a sum and then its norm: {chosen:?}");
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
    if plan.folds {
        let resident = device.sms * plan.per_sm(call.direction, device);
        assert!(plan.parts * plan.cluster <= resident, "{plan:?}");
    }
    assert!(plan.strategy != RowStrategy::WarpPerRow || plan.lanes <= WARP && cols <= WARP_ROW, "{plan:?}");
    assert!(plan.cluster.is_power_of_two() && plan.cluster <= MAX_CLUSTER, "{plan:?}");
    assert!(plan.cluster <= 8 || device.cluster >= 8, "not portable: {plan:?}");
    assert!(plan.cluster == 1 || device.cluster > 1 && plan.lanes == plan.threads, "{plan:?}");
    assert!(plan.smem + held_static(call.direction) <= device.smem_per_block, "fits shared memory: {plan:?}");
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
        if plan.vec > 1 && bytes >= f64::from(64 << 20) {
            let (tensors, least) = match call.direction {
                Direction::Forward => (2.0, 0.85),
                Direction::Backward if call.shape.cols() <= 32_768 => (3.0, 0.75),
                Direction::Backward => (3.0, 0.35),
            };
            let at_full_speed = tensors * 1e-9 * bytes / device.copy_gb_per_s as f64;
            let share = at_full_speed / plan.work(&call, &device).seconds(&device);
            assert!(share > least, "{share} of a copy's speed: {call:?} {plan:?}");
        }
    }
}

#[test]
fn small_rows_take_one_launch() {
    let device = DeviceLimits::H200;
    for (rows, cols) in [
        (4096, 128),
        (2048, 256),
        (512, 768),
        (512, 1024),
        (128, 4096),
        (64, 8192),
        (16, 32_768),
        (1, 65_536),
    ] {
        let shape = RowShape::new(rows, cols).unwrap();
        for direction in [Direction::Forward, Direction::Backward] {
            let call = RowCall { direction, shape, dtype: DType::F16, align: 16, extra: false };
            let plan = call.plan(&device);
            assert_eq!(plan.work(&call, &device).launches, 1, "{call:?}: {plan:?}");
        }
    }
}
