//! From checked arguments to the C ABI: looks up the plan, takes the addresses, calls a launcher. The same code serves
//! the GPU and the emulator.
#![allow(unsafe_code)]

use core::{ffi::c_void, ptr};

use super::{
    plan::{
        ChannelPlan, ChannelStrategy, ChannelTile, ChannelWalk, DeviceLimits, RowPlan, RowStrategy,
        channel_norm_workspace, row_plan,
    },
    sys,
};
use crate::{
    Affine, AffineGrad, Backend, DType, Element, Result,
    backend::{WorkspaceLen, WorkspaceMut},
    channel_norm::{BackwardStatistics, ChannelNormBackward, ChannelNormForward, ForwardStatistics},
    layer_norm::RowNormForward,
    shape::{ChannelShape, RowShape},
};

// These discriminants cross the ABI by value.
const _: () = assert!(DType::F32 as u32 == sys::wn_dtype::WN_F32.0);
const _: () = assert!(DType::F16 as u32 == sys::wn_dtype::WN_F16.0);
const _: () = assert!(DType::BF16 as u32 == sys::wn_dtype::WN_BF16.0);

/// A backend that runs the compiled kernels.
pub(crate) trait Device: Backend {
    /// Lives until the launch that uses an address has been enqueued.
    type Guard<'a>;

    fn launchers(&self) -> &'static sys::wn_launchers;
    fn raw_stream(&self) -> sys::wn_stream;
    fn limits(&self) -> DeviceLimits;
    /// Before every call: makes the device current for this thread.
    fn enter(&self) -> Result<()>;
    /// When all addresses of a call have been taken: what went wrong in that.
    fn ready(&self) -> Result<()>;
    /// After the call: its outcome.
    fn leave(&self, call: &'static str, code: i32) -> Result<()>;
    /// The address of elements to read; `arg` is for the error where they belong to another device.
    fn read<'a, T: Element>(
        &'a self,
        arg: &'static str,
        data: &'a Self::Ref<'_, T>,
    ) -> Result<(u64, Self::Guard<'a>)>;
    /// The address of elements to write.
    fn write<'a, T: Element>(
        &'a self,
        arg: &'static str,
        data: &'a mut Self::Mut<'_, T>,
    ) -> Result<(u64, Self::Guard<'a>)>;
}

/// Addresses taken for one call, with their guards.
struct Addresses<'a, D: Device> {
    on: &'a D,
    guards: Vec<D::Guard<'a>>,
    /// The addresses that vectors go through, or-ed: its trailing zeros are their common alignment.
    bits: u64,
}

impl<'a, D: Device> Addresses<'a, D> {
    /// No call takes more addresses than this.
    const MOST: usize = 11;

    fn new(on: &'a D) -> Self {
        Self { on, guards: Vec::with_capacity(Self::MOST), bits: 0 }
    }

    fn read<T: Element>(&mut self, arg: &'static str, data: &'a D::Ref<'_, T>) -> Result<*const c_void> {
        let (address, guard) = self.on.read(arg, data)?;
        self.guards.push(guard);
        Ok(address as *const c_void)
    }

    fn write<T: Element>(&mut self, arg: &'static str, data: &'a mut D::Mut<'_, T>) -> Result<*mut c_void> {
        let (address, guard) = self.on.write(arg, data)?;
        self.guards.push(guard);
        Ok(address as *mut c_void)
    }

    fn read_if<T: Element>(
        &mut self,
        arg: &'static str,
        data: Option<&'a D::Ref<'_, T>>,
    ) -> Result<*const c_void> {
        data.map_or(Ok(ptr::null()), |data| self.read(arg, data))
    }

    fn write_if<T: Element>(
        &mut self,
        arg: &'static str,
        data: Option<&'a mut D::Mut<'_, T>>,
    ) -> Result<*mut c_void> {
        data.map_or(Ok(ptr::null_mut()), |data| self.write(arg, data))
    }

    /// Weight, bias and their type.
    fn affine<T: Element>(
        &mut self,
        affine: &'a Affine<'_, T, D>,
    ) -> Result<(*const c_void, *const c_void, DType)> {
        Ok(match affine {
            Affine::None => (ptr::null(), ptr::null(), T::DTYPE),
            Affine::Same { weight, bias } => {
                (self.read_if("weight", weight.as_ref())?, self.read_if("bias", bias.as_ref())?, T::DTYPE)
            }
            Affine::F32 { weight, bias } => {
                (self.read_if("weight", weight.as_ref())?, self.read_if("bias", bias.as_ref())?, DType::F32)
            }
        })
    }

    /// Gradients of weight and bias, and their type.
    fn grads<T: Element>(
        &mut self,
        grads: &'a mut AffineGrad<'_, T, D>,
    ) -> Result<(*mut c_void, *mut c_void, DType)> {
        Ok(match grads {
            AffineGrad::None => (ptr::null_mut(), ptr::null_mut(), T::DTYPE),
            AffineGrad::Same { dweight, dbias } => (
                self.write_if("dweight", dweight.as_mut())?,
                self.write_if("dbias", dbias.as_mut())?,
                T::DTYPE,
            ),
            AffineGrad::F32 { dweight, dbias } => (
                self.write_if("dweight", dweight.as_mut())?,
                self.write_if("dbias", dbias.as_mut())?,
                DType::F32,
            ),
        })
    }

    /// Counters, and everything else.
    fn workspace(&mut self, workspace: &'a mut WorkspaceMut<'_, D>) -> Result<(*mut u32, *mut f32)> {
        let counters = self.write("workspace", &mut workspace.counters)?.cast();
        Ok((counters, self.write("workspace", &mut workspace.words)?.cast()))
    }

    /// Counts an address, or a distance in bytes, that vector accesses depend on.
    fn aligned(&mut self, address_or_stride: u64) {
        self.bits |= address_or_stride;
    }

    /// The largest power of two, up to 256, that divides all that was counted.
    fn alignment(&self) -> usize {
        1 << self.bits.trailing_zeros().min(8)
    }
}

pub(crate) fn workspace<D: Device>(on: &D, shape: ChannelShape, whole_batch: bool) -> WorkspaceLen {
    channel_norm_workspace(shape, whole_batch, on.limits())
}

pub(crate) fn channel_norm_fwd<D: Device, T: Element>(
    on: &D,
    shape: ChannelShape,
    mut args: ChannelNormForward<'_, T, D>,
) -> Result<()> {
    on.enter()?;
    let mut taken = Addresses::new(on);
    let x = taken.read("x", &args.x)?;
    let y = taken.write("y", &mut args.y)?;
    taken.aligned(x as u64 | y as u64);
    let (weight, bias, param_dtype) = taken.affine(&args.affine)?;
    let mut raw = sys::wn_batch_norm_fwd {
        x,
        y,
        weight,
        bias,
        mean: ptr::null_mut(),
        rstd: ptr::null_mut(),
        running_mean: ptr::null_mut(),
        running_var: ptr::null_mut(),
        counters: ptr::null_mut(),
        workspace: ptr::null_mut(),
        eps: args.eps,
        keep: 0.0,
        take: 0.0,
        x_dtype: abi_dtype(T::DTYPE),
        param_dtype: abi_dtype(param_dtype),
        whole_batch: 0,
        running_only: 0,
    };
    match &mut args.source {
        ForwardStatistics::Batch { whole_batch, mean, rstd, running, workspace } => {
            raw.whole_batch = i32::from(*whole_batch);
            raw.mean = taken.write_if("mean", mean.as_mut())?.cast();
            raw.rstd = taken.write_if("rstd", rstd.as_mut())?.cast();
            if let Some(running) = running {
                raw.running_mean = taken.write("running_mean", &mut running.mean)?.cast();
                raw.running_var = taken.write("running_var", &mut running.var)?.cast();
                // In f64, so that keep + take is 1 to the last bit that f32 has.
                raw.keep = (1.0 - f64::from(running.momentum)) as f32;
                raw.take = running.momentum;
            }
            (raw.counters, raw.workspace) = taken.workspace(workspace)?;
        }
        ForwardStatistics::Running { whole_batch, mean, var } => {
            raw.whole_batch = i32::from(*whole_batch);
            raw.running_only = 1;
            // The kernels write these in training only.
            raw.running_mean = taken.read("running_mean", mean)?.cast_mut().cast();
            raw.running_var = taken.read("running_var", var)?.cast_mut().cast();
        }
    }
    on.ready()?;
    let plan = ChannelPlan::forward(shape, raw.whole_batch != 0, T::DTYPE, taken.alignment(), on.limits());
    let plan = abi_channel_plan(&plan);
    let launch = on.launchers().batch_norm_fwd.expect("every build has this launcher");
    // SAFETY: every address is that of live memory of this device, or null where the header allows it; the op matched
    // each length to `shape` and checked the workspace against the largest plan; the plan keeps the laws that its
    // tests state, so no kernel leaves these buffers; and `taken` holds the guards until after the call.
    let code = unsafe { launch(&raw, &plan, sys::wn_action::WN_LAUNCH, on.raw_stream()) };
    drop(taken);
    on.leave("batch_norm_fwd", code)
}

pub(crate) fn channel_norm_bwd<D: Device, T: Element>(
    on: &D,
    shape: ChannelShape,
    mut args: ChannelNormBackward<'_, T, D>,
) -> Result<()> {
    on.enter()?;
    let mut taken = Addresses::new(on);
    let x = taken.read("x", &args.x)?;
    let dy = taken.read("dy", &args.dy)?;
    let dx = taken.write_if("dx", args.dx.as_mut())?;
    taken.aligned(x as u64 | dy as u64 | dx as u64);
    let (weight, _, param_dtype) = taken.affine(&args.affine)?;
    let (dweight, dbias, grad_dtype) = taken.grads(&mut args.grads)?;
    let (mean, rstd, running_only) = match &args.source {
        BackwardStatistics::Batch { mean, rstd } => (taken.read("mean", mean)?, taken.read("rstd", rstd)?, 0),
        BackwardStatistics::Running { mean, var } => {
            (taken.read("running_mean", mean)?, taken.read("running_var", var)?, 1)
        }
    };
    let (counters, workspace) = taken.workspace(&mut args.workspace)?;
    let raw = sys::wn_batch_norm_bwd {
        x,
        dy,
        weight,
        mean: mean.cast(),
        rstd: rstd.cast(),
        dx,
        dweight,
        dbias,
        counters,
        workspace,
        eps: args.eps,
        x_dtype: abi_dtype(T::DTYPE),
        param_dtype: abi_dtype(param_dtype),
        grad_dtype: abi_dtype(grad_dtype),
        whole_batch: i32::from(args.whole_batch),
        running_only,
    };
    on.ready()?;
    let plan = ChannelPlan::backward(shape, args.whole_batch, T::DTYPE, taken.alignment(), on.limits());
    let plan = abi_channel_plan(&plan);
    let launch = on.launchers().batch_norm_bwd.expect("every build has this launcher");
    // SAFETY: as in `channel_norm_fwd`.
    let code = unsafe { launch(&raw, &plan, sys::wn_action::WN_LAUNCH, on.raw_stream()) };
    drop(taken);
    on.leave("batch_norm_bwd", code)
}

pub(crate) fn row_norm_fwd<D: Device, T: Element>(
    on: &D,
    shape: RowShape,
    mut args: RowNormForward<'_, T, D>,
) -> Result<()> {
    on.enter()?;
    let mut taken = Addresses::new(on);
    let x = taken.read("x", &args.x)?;
    let y = taken.write("y", &mut args.y)?;
    let (weight, bias, param_dtype) = taken.affine(&args.affine)?;
    taken.aligned(x as u64 | y as u64 | weight as u64 | bias as u64);
    taken.aligned((shape.cols() * T::DTYPE.size()) as u64);
    let raw = sys::wn_row_norm_fwd {
        rows: shape.rows() as i64,
        cols: shape.cols() as i64,
        x_row_stride: shape.cols() as i64,
        y_row_stride: shape.cols() as i64,
        x,
        y,
        weight,
        bias,
        mean: taken.write_if("mean", args.mean.as_mut())?.cast(),
        rstd: taken.write_if("rstd", args.rstd.as_mut())?.cast(),
        eps: args.eps,
        x_dtype: abi_dtype(T::DTYPE),
        param_dtype: abi_dtype(param_dtype),
    };
    on.ready()?;
    let plan = abi_row_plan(row_plan(shape, T::DTYPE, taken.alignment()));
    let launch = on.launchers().row_norm_fwd.expect("every build has this launcher");
    // SAFETY: every address is that of live memory of this device, or null where the header allows it; the op matched
    // each length to `shape`; and `taken` holds the guards until after the call.
    let code = unsafe { launch(&raw, &plan, sys::wn_action::WN_LAUNCH, on.raw_stream()) };
    drop(taken);
    on.leave("row_norm_fwd", code)
}

/// Loads one kernel: an error if the machine cannot run any.
#[cfg(feature = "cuda")]
pub(crate) fn probe<D: Device>(on: &D) -> Result<()> {
    on.enter()?;
    let launch = on.launchers().row_norm_fwd.expect("every build has this launcher");
    let (args, plan) =
        (blank_row(DType::F32), abi_row_plan(RowPlan { strategy: RowStrategy::WarpPerRow, vec: 1 }));
    // SAFETY: WN_PREPARE reads the enums and sizes of its arguments and follows no address.
    on.leave("probe", unsafe { launch(&args, &plan, sys::wn_action::WN_PREPARE, on.raw_stream()) })
}

/// Loads every kernel, so that none has to be loaded while a graph is captured.
pub(crate) fn warm_up<D: Device>(on: &D) -> Result<()> {
    on.enter()?;
    let launchers = on.launchers();
    let (forward, backward, row) =
        (launchers.batch_norm_fwd, launchers.batch_norm_bwd, launchers.row_norm_fwd);
    let (prepare, stream) = (sys::wn_action::WN_PREPARE, on.raw_stream());
    let mut code = 0;
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for vec in [1, 16 / dtype.size()] {
            for tile in [ChannelTile::BlockPerChannel, ChannelTile::WarpPerChannel, ChannelTile::Columns] {
                let (fwd, bwd) = (blank_fwd(dtype), blank_bwd(dtype));
                for strategy in [ChannelStrategy::Single, ChannelStrategy::Split] {
                    let plan = abi_channel_plan(&one_block_plan(strategy, tile, vec));
                    // SAFETY: WN_PREPARE reads the enums and sizes of its arguments and follows no address.
                    unsafe {
                        code |= forward.expect("every build has this launcher")(&fwd, &plan, prepare, stream);
                        code |=
                            backward.expect("every build has this launcher")(&bwd, &plan, prepare, stream);
                    }
                }
            }
            for strategy in [RowStrategy::WarpPerRow, RowStrategy::BlockPerRow] {
                let (args, plan) = (blank_row(dtype), abi_row_plan(RowPlan { strategy, vec }));
                // SAFETY: as above.
                code |= unsafe { row.expect("every build has this launcher")(&args, &plan, prepare, stream) };
            }
        }
    }
    on.leave("warm_up", code)
}

fn one_block_plan(strategy: ChannelStrategy, tile: ChannelTile, vec: usize) -> ChannelPlan {
    let shape = ChannelShape::new(1, 1, 1).expect("one element is not too large");
    let walk = ChannelWalk { shape, tile, vec, columns: 1, splits: 1, span: 1 };
    ChannelPlan { strategy, stats: walk, apply: walk }
}

fn blank_fwd(dtype: DType) -> sys::wn_batch_norm_fwd {
    sys::wn_batch_norm_fwd {
        x: ptr::null(),
        y: ptr::null_mut(),
        weight: ptr::null(),
        bias: ptr::null(),
        mean: ptr::null_mut(),
        rstd: ptr::null_mut(),
        running_mean: ptr::null_mut(),
        running_var: ptr::null_mut(),
        counters: ptr::null_mut(),
        workspace: ptr::null_mut(),
        eps: 0.0,
        keep: 0.0,
        take: 0.0,
        x_dtype: abi_dtype(dtype),
        param_dtype: abi_dtype(dtype),
        whole_batch: 0,
        running_only: 0,
    }
}

/// `dx` and `whole_batch` are such that every kernel is reached.
fn blank_bwd(dtype: DType) -> sys::wn_batch_norm_bwd {
    sys::wn_batch_norm_bwd {
        x: ptr::null(),
        dy: ptr::null(),
        weight: ptr::null(),
        mean: ptr::null(),
        rstd: ptr::null(),
        dx: ptr::dangling_mut::<u8>().cast(),
        dweight: ptr::null_mut(),
        dbias: ptr::null_mut(),
        counters: ptr::null_mut(),
        workspace: ptr::null_mut(),
        eps: 0.0,
        x_dtype: abi_dtype(dtype),
        param_dtype: abi_dtype(dtype),
        grad_dtype: abi_dtype(dtype),
        whole_batch: 1,
        running_only: 0,
    }
}

fn blank_row(dtype: DType) -> sys::wn_row_norm_fwd {
    sys::wn_row_norm_fwd {
        rows: 1,
        cols: 1,
        x_row_stride: 1,
        y_row_stride: 1,
        x: ptr::null(),
        y: ptr::null_mut(),
        weight: ptr::null(),
        bias: ptr::null(),
        mean: ptr::null_mut(),
        rstd: ptr::null_mut(),
        eps: 0.0,
        x_dtype: abi_dtype(dtype),
        param_dtype: abi_dtype(dtype),
    }
}

fn abi_dtype(dtype: DType) -> sys::wn_dtype {
    sys::wn_dtype(dtype as u32)
}

fn abi_channel_plan(plan: &ChannelPlan) -> sys::wn_channel_plan {
    sys::wn_channel_plan {
        strategy: match plan.strategy {
            ChannelStrategy::Single => sys::wn_channel_strategy::WN_SINGLE,
            ChannelStrategy::Split => sys::wn_channel_strategy::WN_SPLIT,
        },
        stats: abi_walk(&plan.stats),
        apply: abi_walk(&plan.apply),
    }
}

/// `ChannelShape` and the laws of the plans say that nothing is cut off here.
fn abi_walk(walk: &ChannelWalk) -> sys::wn_channel_walk {
    sys::wn_channel_walk {
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

fn abi_row_plan(plan: RowPlan) -> sys::wn_row_plan {
    sys::wn_row_plan {
        strategy: match plan.strategy {
            RowStrategy::WarpPerRow => sys::wn_row_strategy::WN_WARP_PER_ROW,
            RowStrategy::BlockPerRow => sys::wn_row_strategy::WN_BLOCK_PER_ROW,
        },
        vec: plan.vec as i32,
    }
}
