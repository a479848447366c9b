//! What the kernels and the callers take for granted of the plans of row norms.

use proptest::prelude::*;

use super::{
    row::{BLOCK_ROWS_PER_PART, WARP_ROW, WARP_ROWS_PER_PART},
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

fn check_row_plans(rows: usize, cols: usize, align: usize, sms: usize) {
    let (shape, device) = (RowShape::new(rows, cols).unwrap(), DeviceLimits { sms, ..DeviceLimits::H200 });
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
