//! Plans of the row norms.

use super::{BLOCKS_PER_SM, DeviceLimits, MAX_COLUMNS, THREADS, VEC_BYTES, WARP, WORKSPACE_CASES};
use crate::{DType, backend::WorkspaceLen, shape::RowShape};

/// Columns up to which a warp holds a row in its registers; `kWarpRow` in `kernels/prim/row.cuh`.
pub(super) const WARP_ROW: usize = 1024;
/// Rows of a part of the backward pass. A warp sums those it holds one after another, which for equal values errs by a
/// quarter of a unit in the last place each: 128 rows in 8 warps leave 5 of the 8 units that the tests allow. Longer
/// rows are summed with compensation; their parts end where the error of that would.
pub(super) const WARP_ROWS_PER_PART: usize = 128;
pub(super) const BLOCK_ROWS_PER_PART: usize = 2048;

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
    pub(super) fn workspace(&self, shape: RowShape) -> WorkspaceLen {
        WorkspaceLen { counters: 0, words: 2 * self.parts * shape.cols() }
    }
}

/// What is enough for every type and every alignment.
pub fn row_norm_workspace(shape: RowShape, device: DeviceLimits) -> WorkspaceLen {
    let mut enough = WorkspaceLen::default();
    for (dtype, align) in WORKSPACE_CASES {
        enough = enough.max(RowPlan::new(shape, dtype, align, device).workspace(shape));
    }
    enough
}
