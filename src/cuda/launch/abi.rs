//! Plans, types and activations as the C ABI has them, and arguments to fill in.

use core::ptr;

use super::super::{
    plan::{ChannelPlan, ChannelTile, ChannelWalk, Join, RowPlan, RowStrategy},
    sys,
};
use crate::{Activation, DType};

// These discriminants cross the ABI by value.
const _: () = assert!(DType::F32 as u32 == sys::wn_dtype::WN_F32.0);
const _: () = assert!(DType::F16 as u32 == sys::wn_dtype::WN_F16.0);
const _: () = assert!(DType::BF16 as u32 == sys::wn_dtype::WN_BF16.0);

pub(super) fn activation(activation: Activation) -> sys::wn_activation {
    match activation {
        Activation::None => sys::wn_activation::WN_ACT_NONE,
        Activation::Relu => sys::wn_activation::WN_ACT_RELU,
        Activation::Silu => sys::wn_activation::WN_ACT_SILU,
        Activation::Gelu => sys::wn_activation::WN_ACT_GELU,
        Activation::GeluTanh => sys::wn_activation::WN_ACT_GELU_TANH,
    }
}

pub(super) fn dtype(dtype: DType) -> sys::wn_dtype {
    sys::wn_dtype(dtype as u32)
}

pub(super) fn channel_plan(plan: &ChannelPlan) -> sys::wn_channel_plan {
    sys::wn_channel_plan {
        strategy: match plan.team {
            Some(_) => sys::wn_channel_strategy::WN_TEAM,
            None => sys::wn_channel_strategy::WN_SPLIT,
        },
        team: team(plan),
        stats: walk(&plan.stats),
        apply: walk(&plan.apply),
    }
}

/// Without a team, one of nothing.
fn team(plan: &ChannelPlan) -> sys::wn_channel_team {
    let Some(team) = &plan.team else {
        return sys::wn_channel_team {
            walk: walk(&plan.stats),
            join: sys::wn_join::WN_ALONE,
            size: 0,
            teams: 0,
            units: 0,
            tiles: 0,
            slabs: 0,
            chunks: 0,
            folds: 0,
            held: 0,
        };
    };
    sys::wn_channel_team {
        walk: walk(&team.walk),
        join: match team.join {
            Join::Alone => sys::wn_join::WN_ALONE,
            Join::Cluster => sys::wn_join::WN_CLUSTER,
            Join::Grid => sys::wn_join::WN_GRID,
        },
        size: team.size as i32,
        teams: team.teams as i32,
        units: team.units as i64,
        tiles: team.tiles as i32,
        slabs: team.slabs as i32,
        chunks: team.chunks as i32,
        folds: i32::from(team.folds),
        held: team.held as i32,
    }
}

/// `ChannelShape` and the laws of the plans say that nothing is cut off here.
fn walk(walk: &ChannelWalk) -> sys::wn_channel_walk {
    sys::wn_channel_walk {
        segments: walk.shape.segments() as i64,
        outer: walk.shape.outer() as i64,
        channels: walk.shape.channels() as i64,
        inner: walk.shape.inner() as i64,
        span: walk.span as i64,
        splits: walk.splits as i32,
        columns: walk.columns as i32,
        vec: walk.vec as i32,
        tile: match walk.tile {
            ChannelTile::BlockPerChannel => sys::wn_channel_tile::WN_BLOCK_PER_CHANNEL,
            ChannelTile::WarpPerChannel => sys::wn_channel_tile::WN_WARP_PER_CHANNEL,
            ChannelTile::Columns => sys::wn_channel_tile::WN_CHANNEL_COLUMNS,
        },
    }
}

pub(super) fn row_plan(plan: RowPlan) -> sys::wn_row_plan {
    sys::wn_row_plan {
        strategy: match plan.strategy {
            RowStrategy::Streaming => sys::wn_row_strategy::WN_ROW_STREAMED,
            _ => sys::wn_row_strategy::WN_ROW_HELD,
        },
        vec: plan.vec as i32,
        threads: plan.threads as i32,
        lanes: plan.lanes as i32,
        cluster: plan.cluster as i32,
        stages: plan.stages as i32,
        packs: plan.packs as i32,
        deep: i32::from(plan.deep),
        folds: i32::from(plan.folds),
        smem: plan.smem as i32,
        parts: plan.parts as i32,
        span: plan.span as i64,
    }
}

/// Arguments of a call that follows no address.
pub(super) fn blank_channel_fwd(dtype: DType) -> sys::wn_channel_norm_fwd {
    let dtype = self::dtype(dtype);
    sys::wn_channel_norm_fwd {
        x: ptr::null(),
        y: ptr::null_mut(),
        residual: ptr::null(),
        weight: ptr::null(),
        bias: ptr::null(),
        mean: ptr::null_mut(),
        rstd: ptr::null_mut(),
        running_mean: ptr::null_mut(),
        running_var: ptr::null_mut(),
        momentum: ptr::null(),
        counters: ptr::null_mut(),
        workspace: ptr::null_mut(),
        group: 1,
        eps: 0.0,
        keep: 0.0,
        take: 0.0,
        x_dtype: dtype,
        param_dtype: dtype,
        activation: sys::wn_activation::WN_ACT_NONE,
        running: sys::wn_running::WN_RUNNING_NONE,
    }
}

/// Gradients and `group` are such that every kernel is reached.
pub(super) fn blank_channel_bwd(dtype: DType) -> sys::wn_channel_norm_bwd {
    let dtype = self::dtype(dtype);
    sys::wn_channel_norm_bwd {
        x: ptr::null(),
        dy: ptr::null(),
        residual: ptr::null(),
        weight: ptr::null(),
        bias: ptr::null(),
        mean: ptr::null(),
        rstd: ptr::null(),
        dx: ptr::dangling_mut::<u8>().cast(),
        dresidual: ptr::null_mut(),
        dweight: ptr::dangling_mut::<u8>().cast(),
        dbias: ptr::null_mut(),
        counters: ptr::null_mut(),
        workspace: ptr::null_mut(),
        group: 2,
        eps: 0.0,
        x_dtype: dtype,
        param_dtype: dtype,
        grad_dtype: dtype,
        activation: sys::wn_activation::WN_ACT_NONE,
        accumulate: 0,
        running_only: 0,
    }
}

pub(super) fn blank_row_fwd(dtype: DType) -> sys::wn_row_norm_fwd {
    let dtype = self::dtype(dtype);
    sys::wn_row_norm_fwd {
        rows: 1,
        cols: 1,
        block: 1,
        x_stride: 1,
        y_stride: 1,
        residual_stride: 0,
        h_stride: 0,
        x: ptr::null(),
        y: ptr::null_mut(),
        residual: ptr::null(),
        h: ptr::null_mut(),
        weight: ptr::null(),
        bias: ptr::null(),
        mean: ptr::null_mut(),
        rstd: ptr::null_mut(),
        eps: 0.0,
        weight_offset: 0.0,
        x_dtype: dtype,
        param_dtype: dtype,
        rms: 0,
    }
}

pub(super) fn blank_row_bwd(dtype: DType) -> sys::wn_row_norm_bwd {
    let dtype = self::dtype(dtype);
    sys::wn_row_norm_bwd {
        rows: 1,
        cols: 1,
        block: 1,
        x_stride: 1,
        dy_stride: 1,
        dh_stride: 0,
        dx_stride: 1,
        x: ptr::null(),
        dy: ptr::null(),
        dh: ptr::null(),
        weight: ptr::null(),
        mean: ptr::null(),
        rstd: ptr::null(),
        dx: ptr::null_mut(),
        dweight: ptr::null_mut(),
        dbias: ptr::null_mut(),
        counters: ptr::null_mut(),
        workspace: ptr::null_mut(),
        weight_offset: 0.0,
        x_dtype: dtype,
        param_dtype: dtype,
        grad_dtype: dtype,
        accumulate: 0,
        rms: 0,
    }
}
