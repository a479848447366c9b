//! Loads kernels before the calls that need them.

use super::{
    super::{
        plan::{
            ChannelPlan, ChannelStrategy, ChannelTeam, ChannelTile, ChannelWalk, Join, RowPlan, RowStrategy,
        },
        sys,
    },
    Device, Launcher, abi,
};
use crate::{Activation, DType, Result, shape::ChannelShape};

/// Loads one kernel: an error if the machine cannot run any.
#[cfg(feature = "cuda")]
pub(crate) fn probe<D: Device>(on: &D) -> Result<()> {
    on.enter()?;
    let plan = abi::row_plan(blank_row_plan(RowStrategy::WarpPerRow, 1, 1));
    prepare(on, "probe", on.launchers().row_norm_fwd, &abi::blank_row_fwd(DType::F32), &plan)
}

/// Loads every kernel, so that none has to be loaded while a graph is captured.
pub(crate) fn warm_up<D: Device>(on: &D) -> Result<()> {
    on.enter()?;
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for vec in [1, 16 / dtype.size()] {
            warm_up_channels(on, dtype, vec)?;
            warm_up_rows(on, dtype, vec)?;
        }
    }
    Ok(())
}

fn warm_up_channels<D: Device>(on: &D, dtype: DType, vec: usize) -> Result<()> {
    let sys::wn_launchers { channel_norm_fwd, channel_norm_bwd, .. } = *on.launchers();
    for tile in [ChannelTile::BlockPerChannel, ChannelTile::WarpPerChannel, ChannelTile::Columns] {
        for with_team in [false, true] {
            for activation in [Activation::None, Activation::Relu] {
                let team_vec = if tile == ChannelTile::Columns { vec.min(4) } else { vec };
                let activation = abi::activation(activation);
                let fwd = sys::wn_channel_norm_fwd {
                    activation,
                    running: sys::wn_running::WN_RUNNING_AVERAGED,
                    ..abi::blank_channel_fwd(dtype)
                };
                let plan = abi::channel_plan(&two_segment_plan(with_team, tile, vec, vec));
                prepare(on, "warm_up", channel_norm_fwd, &fwd, &plan)?;
                let bwd = sys::wn_channel_norm_bwd { activation, ..abi::blank_channel_bwd(dtype) };
                let plan = abi::channel_plan(&two_segment_plan(with_team, tile, vec, team_vec));
                prepare(on, "warm_up", channel_norm_bwd, &bwd, &plan)?;
            }
        }
    }
    Ok(())
}

fn warm_up_rows<D: Device>(on: &D, dtype: DType, vec: usize) -> Result<()> {
    let sys::wn_launchers { row_norm_fwd, row_norm_bwd, .. } = *on.launchers();
    for rms in [0, 1] {
        for strategy in [RowStrategy::WarpPerRow, RowStrategy::Streaming] {
            let plan = abi::row_plan(blank_row_plan(strategy, vec, 1));
            let args = sys::wn_row_norm_fwd { rms, ..abi::blank_row_fwd(dtype) };
            prepare(on, "warm_up", row_norm_fwd, &args, &plan)?;
        }
    }
    // Every number of columns of a thread that there is a kernel for.
    for (strategy, cols) in [
        (RowStrategy::WarpPerRow, 8),
        (RowStrategy::WarpPerRow, 16),
        (RowStrategy::WarpPerRow, 32),
        (RowStrategy::Streaming, vec),
    ] {
        let plan = abi::row_plan(blank_row_plan(strategy, vec, cols / vec));
        prepare(on, "warm_up", row_norm_bwd, &abi::blank_row_bwd(dtype), &plan)?;
    }
    Ok(())
}

fn prepare<D: Device, Args, Plan>(
    on: &D,
    call: &'static str,
    launcher: Launcher<Args, Plan>,
    args: &Args,
    plan: &Plan,
) -> Result<()> {
    let launch = launcher.expect("every build has this launcher");
    // SAFETY: WN_PREPARE reads the enums and sizes of its arguments and follows no address.
    on.leave(call, unsafe { launch(args, plan, sys::wn_action::WN_PREPARE, on.raw_stream()) })
}

/// With every launch that a call may have.
fn two_segment_plan(with_team: bool, tile: ChannelTile, vec: usize, team_vec: usize) -> ChannelPlan {
    let shape = ChannelShape::new(2, 1, 2, 1, 1).expect("four elements are not too large");
    let walk = ChannelWalk { shape, tile, vec, columns: 1, splits: 1, span: 1 };
    let team = ChannelTeam {
        walk: ChannelWalk { vec: team_vec, ..walk },
        join: Join::Alone,
        size: 1,
        teams: 1,
        units: 1,
        tiles: 1,
        slabs: 1,
        chunks: 1,
        folds: true,
        held: 0,
        smem: 0,
        blocks_per_sm: 1,
    };
    let strategy = if with_team { ChannelStrategy::Wave } else { ChannelStrategy::Split };
    ChannelPlan { strategy, team: with_team.then_some(team), stats: walk, apply: walk }
}

/// Of a call for one column.
fn blank_row_plan(strategy: RowStrategy, vec: usize, packs: usize) -> RowPlan {
    let (threads, smem) = (32, 32 << 10);
    RowPlan {
        strategy,
        vec,
        threads,
        lanes: 1,
        cluster: 1,
        stages: 1,
        packs,
        deep: false,
        folds: false,
        smem,
        parts: 1,
        span: 1,
    }
}
