//! The table that the example `traffic` prints: what each strategy may move, over the least that any kernel must.

#[path = "../examples/traffic/table.rs"]
mod table;

use table::Row;
use warpnorm::DType;

/// Bytes to and from memory, all bytes, and kernels: the most that a row may have. All bytes include what each thread
/// reads of parameters, statistics and partial results, which is little of a large tensor only.
struct Most {
    dram: f64,
    raw: f64,
}

fn check(row: &Row, most: &Most) {
    assert!(row.dram() <= most.dram, "{:.3} of the floor to and from memory: {row:?}", row.dram());
    assert!(row.raw() <= most.raw, "{:.3} of the floor: {row:?}", row.raw());
}

#[test]
fn channel_norms_move_what_their_strategy_may() {
    let rows = table::channel_norms().unwrap();
    for strategy in ["Resident", "Wave", "apply"] {
        assert!(rows.iter().any(|row| row.strategy == strategy), "no call was {strategy}");
    }
    for dtype in [DType::F32, DType::F16] {
        assert!(rows.iter().any(|row| row.dtype == dtype), "no call was in {dtype:?}");
    }
    for row in &rows {
        // Odd channels make narrow accesses, of whose sectors neighbors read parts; so do few values a slab.
        let is_wide = !row.shape.contains("35]") && !row.shape.starts_with("[256, 64]");
        let is_large = row.floor >= 1 << 20;
        match row.strategy.as_str() {
            "Resident" if is_wide && is_large => check(row, &Most { dram: 1.02, raw: 1.7 }),
            "Resident" if is_wide => check(row, &Most { dram: 1.1, raw: 4.0 }),
            // Twice the chip and less: a part of the second read is from memory.
            "Wave" if is_wide => check(row, &Most { dram: 1.6, raw: 2.4 }),
            "apply" => check(row, &Most { dram: 1.02, raw: 1.4 }),
            _ => {}
        }
        assert_eq!(row.launches, 1, "{}, and no tensor is larger than 1 MB: {row:?}", row.kernels);
    }
}

#[test]
fn row_norms_are_read_once() {
    for row in &table::row_norms().unwrap() {
        assert_ne!(row.strategy, "Streaming", "{row:?}");
        assert_eq!(row.launches, 1, "{row:?}");
        // With weight and bias, backward writes and reads two f32 sums per column and part; of so few rows each may be
        // a part. The floor is three tensors.
        let sums = 16.0 / (3 * row.dtype.size()) as f64;
        let most = if row.op.ends_with("bwd") && !row.op.contains("bare") { 1.13 + sums } else { 1.13 };
        assert!(row.dram() <= most, "{:.3} of the floor to and from memory: {row:?}", row.dram());
        if row.op.contains("bare") {
            assert!(row.dram() <= 1.02 && row.raw() <= 1.25, "{:.3} of the floor: {row:?}", row.raw());
        }
    }
}
