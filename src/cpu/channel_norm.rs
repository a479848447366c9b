mod backward;
mod columns;
mod forward;
mod geometry;
mod grid;
mod numbers;
mod runs;
mod slab;

pub(super) use backward::backward;
pub(super) use forward::forward;

use super::{Cpu, simd::LANES};
use crate::{channel_norm::FixedStatistics, shape::ChannelShape};

/// Whether elements are visited row by row, with channels side by side, rather than channel by channel: where the runs
/// of a channel are too short for vectors, and there are rows enough.
fn by_columns(shape: ChannelShape) -> bool {
    shape.outer() > 1 && (shape.inner() == 1 || shape.group() * shape.inner() < LANES)
}

/// Reciprocal standard deviations of variances that are given.
fn reciprocal_std(statistics: &FixedStatistics<'_, Cpu>, eps: f32) -> Vec<f64> {
    let mut rstd = vec![0.0; statistics.var.len()];
    numbers::reciprocal_stds(statistics.var, eps, &mut rstd);
    rstd
}
