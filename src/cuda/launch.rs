//! From checked arguments to the C ABI: looks up the plan, takes the addresses, calls a launcher. The same code serves
//! the GPU and the emulator.
#![allow(unsafe_code)]

use core::{ffi::c_void, ptr};

use super::{
    plan::{
        ChannelPass, ChannelPlan, ChannelProblem, ChannelStrategy, ChannelTeam, ChannelTile, ChannelWalk,
        DeviceLimits, Direction, Join, RowCall, RowPlan, RowStrategy,
    },
    sys,
};
use crate::{
    Activation, Affine, AffineGrad, Backend, DType, Element, Result,
    backend::WorkspaceMut,
    channel_norm::{BackwardSource, ChannelNormBackward, ChannelNormForward, ForwardSource},
    row_norm::{RowNormBackward, RowNormForward, RowSum},
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
    const MOST: usize = 14;

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

pub(crate) fn channel_norm_fwd<D: Device, T: Element>(
    on: &D,
    shape: ChannelShape,
    mut args: ChannelNormForward<'_, T, D>,
) -> Result<()> {
    on.enter()?;
    let mut taken = Addresses::new(on);
    let y = taken.write("y", &mut args.y)?;
    let x = args.x.as_ref().map_or(Ok(y.cast_const()), |x| taken.read("x", x))?;
    let residual = taken.read_if("residual", args.residual.as_ref())?;
    taken.aligned(x as u64 | y as u64 | residual as u64);
    let (weight, bias, param_dtype) = taken.affine(&args.affine)?;
    let mut raw = sys::wn_channel_norm_fwd {
        x,
        y,
        residual,
        weight,
        bias,
        group: shape.group() as i64,
        eps: args.eps,
        activation: abi_activation(args.activation),
        param_dtype: abi_dtype(param_dtype),
        ..blank_channel_fwd(T::DTYPE)
    };
    match &mut args.source {
        ForwardSource::Batch { mean, rstd, running, averaged, workspace } => {
            raw.mean = taken.write_if("mean", mean.as_mut())?.cast();
            raw.rstd = taken.write_if("rstd", rstd.as_mut())?.cast();
            if let Some(running) = running {
                raw.running_mean = taken.write("running_mean", &mut running.mean)?.cast();
                raw.running_var = taken.write("running_var", &mut running.var)?.cast();
                raw.momentum = taken.read_if("momentum", running.device_momentum.as_ref())?.cast();
                // In f64, so that keep + take is 1 to the last bit that f32 has.
                raw.keep = (1.0 - f64::from(running.momentum)) as f32;
                raw.take = running.momentum;
                raw.running = match averaged {
                    true => sys::wn_running::WN_RUNNING_AVERAGED,
                    false => sys::wn_running::WN_RUNNING_EACH,
                };
            }
            (raw.counters, raw.workspace) = taken.workspace(workspace)?;
        }
        ForwardSource::Fixed(statistics) => {
            raw.running = sys::wn_running::WN_RUNNING_FIXED;
            // The kernels write these in training only.
            raw.running_mean = taken.read("running_mean", &statistics.mean)?.cast_mut().cast();
            raw.running_var = taken.read("running_var", &statistics.var)?.cast_mut().cast();
        }
    }
    on.ready()?;
    let problem = ChannelProblem {
        shape,
        dtype: T::DTYPE,
        align: taken.alignment().min(16),
        pass: ChannelPass::Forward,
    };
    let plan = ChannelPlan::new(problem, on.limits());
    let plan = abi_channel_plan(&plan);
    let launch = on.launchers().channel_norm_fwd.expect("every build has this launcher");
    // SAFETY: every address is that of live memory of this device, or null where the header allows it; the op matched
    // each length to `shape` and checked the workspace against the largest plan; the plan keeps the laws that its
    // tests state, so no kernel leaves these buffers; and `taken` holds the guards until after the call.
    let code = unsafe { launch(&raw, &plan, sys::wn_action::WN_LAUNCH, on.raw_stream()) };
    drop(taken);
    on.leave("channel_norm_fwd", code)
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
    let residual = taken.read_if("residual", args.residual.as_ref())?;
    let dx = taken.write_if("dx", args.dx.as_mut())?;
    let dresidual = taken.write_if("dresidual", args.dresidual.as_mut())?;
    taken.aligned(x as u64 | dy as u64 | residual as u64 | dx as u64 | dresidual as u64);
    let (weight, bias, param_dtype) = taken.affine(&args.affine)?;
    let (dweight, dbias, grad_dtype) = taken.grads(&mut args.grads)?;
    let (mean, rstd, running_only) = match &args.source {
        BackwardSource::Batch { mean, rstd } => (taken.read("mean", mean)?, taken.read("rstd", rstd)?, 0),
        BackwardSource::Fixed(statistics) => {
            let mean = taken.read("running_mean", &statistics.mean)?;
            (mean, taken.read("running_var", &statistics.var)?, 1)
        }
    };
    let (counters, workspace) = taken.workspace(&mut args.workspace)?;
    let raw = sys::wn_channel_norm_bwd {
        x,
        dy,
        residual,
        weight,
        bias,
        mean: mean.cast(),
        rstd: rstd.cast(),
        dx,
        dresidual,
        dweight,
        dbias,
        counters,
        workspace,
        group: shape.group() as i64,
        eps: args.eps,
        x_dtype: abi_dtype(T::DTYPE),
        param_dtype: abi_dtype(param_dtype),
        grad_dtype: abi_dtype(grad_dtype),
        activation: abi_activation(args.activation),
        accumulate: i32::from(args.accumulate),
        running_only,
    };
    on.ready()?;
    let pass = match args.activation {
        Activation::None => ChannelPass::Backward,
        _ => ChannelPass::BackwardFused,
    };
    let problem = ChannelProblem { shape, dtype: T::DTYPE, align: taken.alignment().min(16), pass };
    let plan = ChannelPlan::new(problem, on.limits());
    let plan = abi_channel_plan(&plan);
    let launch = on.launchers().channel_norm_bwd.expect("every build has this launcher");
    // SAFETY: as in `channel_norm_fwd`.
    let code = unsafe { launch(&raw, &plan, sys::wn_action::WN_LAUNCH, on.raw_stream()) };
    drop(taken);
    on.leave("channel_norm_bwd", code)
}

pub(crate) fn row_norm_fwd<D: Device, T: Element>(
    on: &D,
    shape: RowShape,
    mut args: RowNormForward<'_, T, D>,
) -> Result<()> {
    on.enter()?;
    let (residual, mut h) = match &mut args.sum {
        Some(RowSum { residual, h }) => (residual.as_ref(), Some(h)),
        None => (None, None),
    };
    let y_stride = args.y.stride;
    let x_stride = args.x.as_ref().map_or(y_stride, |x| x.stride);
    let h_stride = h.as_ref().map(|h| h.stride);
    let residual_stride = residual.map(|r| r.stride).or(h_stride);
    let rows = Strides::of(shape, [Some(x_stride), Some(y_stride), residual_stride, h_stride]);
    let [x_row_stride, y_row_stride, residual_row_stride, h_row_stride] = rows.strides;

    let mut taken = Addresses::new(on);
    let y = taken.write("y", &mut args.y.data)?;
    let x = args.x.as_ref().map_or(Ok(y.cast_const()), |x| taken.read("x", &x.data))?;
    let h = taken.write_if("h", h.as_mut().map(|h| &mut h.data))?;
    let residual = residual.map_or(Ok(h.cast_const()), |r| taken.read("residual", &r.data))?;
    let (weight, bias, param_dtype) = taken.affine(&args.affine)?;
    taken.aligned(x as u64 | y as u64 | h as u64 | residual as u64 | weight as u64 | bias as u64);
    taken.aligned(rows.bytes::<T>());
    let raw = sys::wn_row_norm_fwd {
        rows: shape.rows() as i64,
        cols: shape.cols() as i64,
        block: rows.block,
        x_stride: x_row_stride,
        y_stride: y_row_stride,
        residual_stride: residual_row_stride,
        h_stride: h_row_stride,
        x,
        y,
        residual,
        h,
        weight,
        bias,
        mean: taken.write_if("mean", args.mean.as_mut())?.cast(),
        rstd: taken.write_if("rstd", args.rstd.as_mut())?.cast(),
        eps: args.eps,
        weight_offset: args.weight_offset,
        x_dtype: abi_dtype(T::DTYPE),
        param_dtype: abi_dtype(param_dtype),
        rms: i32::from(args.rms),
    };
    on.ready()?;
    let call = RowCall {
        direction: Direction::Forward,
        shape,
        dtype: T::DTYPE,
        align: taken.alignment(),
        extra: !h.is_null(),
    };
    let plan = abi_row_plan(call.plan(&on.limits()));
    let launch = on.launchers().row_norm_fwd.expect("every build has this launcher");
    // SAFETY: every address is that of live memory of this device, or null where the header allows it; the op matched
    // each length to `shape` and to the strides; and `taken` holds the guards until after the call.
    let code = unsafe { launch(&raw, &plan, sys::wn_action::WN_LAUNCH, on.raw_stream()) };
    drop(taken);
    on.leave("row_norm_fwd", code)
}

pub(crate) fn row_norm_bwd<D: Device, T: Element>(
    on: &D,
    shape: RowShape,
    mut args: RowNormBackward<'_, T, D>,
) -> Result<()> {
    on.enter()?;
    let rows = Strides::of(
        shape,
        [
            Some(args.x.stride),
            Some(args.dy.stride),
            args.dh.as_ref().map(|v| v.stride),
            args.dx.as_ref().map(|v| v.stride),
        ],
    );
    let [x_stride, dy_stride, dh_stride, dx_stride] = rows.strides;
    let mut taken = Addresses::new(on);
    let x = taken.read("x", &args.x.data)?;
    let dy = taken.read("dy", &args.dy.data)?;
    let dh = taken.read_if("dh", args.dh.as_ref().map(|v| &v.data))?;
    let dx = taken.write_if("dx", args.dx.as_mut().map(|v| &mut v.data))?;
    let (weight, _, param_dtype) = taken.affine(&args.affine)?;
    taken.aligned(x as u64 | dy as u64 | dh as u64 | dx as u64 | weight as u64);
    taken.aligned(rows.bytes::<T>());
    let (dweight, dbias, grad_dtype) = taken.grads(&mut args.grads)?;
    let rms = args.mean.is_none();
    let mean = taken.read_if("mean", args.mean.as_ref())?.cast();
    let rstd = taken.read("rstd", &args.rstd)?.cast();
    let (_, workspace) = taken.workspace(&mut args.workspace)?;
    let raw = sys::wn_row_norm_bwd {
        rows: if shape.is_empty() { 0 } else { shape.rows() as i64 },
        cols: shape.cols() as i64,
        block: rows.block,
        x_stride,
        dy_stride,
        dh_stride,
        dx_stride,
        x,
        dy,
        dh,
        weight,
        mean,
        rstd,
        dx,
        dweight,
        dbias,
        workspace,
        weight_offset: args.weight_offset,
        x_dtype: abi_dtype(T::DTYPE),
        param_dtype: abi_dtype(param_dtype),
        grad_dtype: abi_dtype(grad_dtype),
        accumulate: i32::from(args.accumulate),
        rms: i32::from(rms),
    };
    on.ready()?;
    let call = RowCall {
        direction: Direction::Backward,
        shape,
        dtype: T::DTYPE,
        align: taken.alignment(),
        extra: !dh.is_null(),
    };
    let plan = abi_row_plan(call.plan(&on.limits()));
    let launch = on.launchers().row_norm_bwd.expect("every build has this launcher");
    // SAFETY: as in `row_norm_fwd`; the op checked the workspace against the largest plan.
    let code = unsafe { launch(&raw, &plan, sys::wn_action::WN_LAUNCH, on.raw_stream()) };
    drop(taken);
    on.leave("row_norm_bwd", code)
}

/// The strides of a call's tensors as the kernels take them: where all rows are dense, each is a block of its own.
struct Strides {
    block: i64,
    /// 0 for a tensor that is not there.
    strides: [i64; 4],
    cols: usize,
}

impl Strides {
    fn of(shape: RowShape, strides: [Option<usize>; 4]) -> Self {
        let dense = shape.block() * shape.cols();
        let all_dense = strides.iter().flatten().all(|&stride| stride == dense);
        let block = if all_dense { 1 } else { shape.block() };
        let stride = |stride: Option<usize>| match stride {
            Some(_) if all_dense => shape.cols() as i64,
            Some(stride) => stride as i64,
            None => 0,
        };
        Self { block: block as i64, strides: strides.map(stride), cols: shape.cols() }
    }

    /// All distances between rows, or-ed, in bytes.
    fn bytes<T: Element>(&self) -> u64 {
        let elements = self.strides.iter().fold(self.cols as u64, |bits, &stride| bits | stride as u64);
        elements * T::DTYPE.size() as u64
    }
}

/// Loads one kernel: an error if the machine cannot run any.
#[cfg(feature = "cuda")]
pub(crate) fn probe<D: Device>(on: &D) -> Result<()> {
    on.enter()?;
    let launch = on.launchers().row_norm_fwd.expect("every build has this launcher");
    let (args, plan) =
        (blank_row_fwd(DType::F32), abi_row_plan(blank_row_plan(RowStrategy::WarpPerRow, 1, 1)));
    // SAFETY: WN_PREPARE reads the enums and sizes of its arguments and follows no address.
    on.leave("probe", unsafe { launch(&args, &plan, sys::wn_action::WN_PREPARE, on.raw_stream()) })
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
    let launchers = on.launchers();
    let forward = launchers.channel_norm_fwd.expect("every build has this launcher");
    let backward = launchers.channel_norm_bwd.expect("every build has this launcher");
    let (prepare, stream) = (sys::wn_action::WN_PREPARE, on.raw_stream());
    for tile in [ChannelTile::BlockPerChannel, ChannelTile::WarpPerChannel, ChannelTile::Columns] {
        for with_team in [false, true] {
            for activation in [Activation::None, Activation::Relu] {
                let team_vec = if tile == ChannelTile::Columns { vec.min(4) } else { vec };
                let activation = abi_activation(activation);
                let fwd = sys::wn_channel_norm_fwd {
                    activation,
                    running: sys::wn_running::WN_RUNNING_AVERAGED,
                    ..blank_channel_fwd(dtype)
                };
                let plan = abi_channel_plan(&two_segment_plan(with_team, tile, vec, vec));
                // SAFETY: WN_PREPARE reads the enums and sizes of its arguments and follows no address.
                on.leave("warm_up", unsafe { forward(&fwd, &plan, prepare, stream) })?;
                let bwd = sys::wn_channel_norm_bwd { activation, ..blank_channel_bwd(dtype) };
                let plan = abi_channel_plan(&two_segment_plan(with_team, tile, vec, team_vec));
                // SAFETY: as above.
                on.leave("warm_up", unsafe { backward(&bwd, &plan, prepare, stream) })?;
            }
        }
    }
    Ok(())
}

fn warm_up_rows<D: Device>(on: &D, dtype: DType, vec: usize) -> Result<()> {
    let launchers = on.launchers();
    let forward = launchers.row_norm_fwd.expect("every build has this launcher");
    let backward = launchers.row_norm_bwd.expect("every build has this launcher");
    let (prepare, stream) = (sys::wn_action::WN_PREPARE, on.raw_stream());
    for rms in [0, 1] {
        for strategy in [RowStrategy::WarpPerRow, RowStrategy::Streaming] {
            let plan = abi_row_plan(blank_row_plan(strategy, vec, 1));
            let args = sys::wn_row_norm_fwd { rms, ..blank_row_fwd(dtype) };
            // SAFETY: WN_PREPARE reads the enums and sizes of its arguments and follows no address.
            on.leave("warm_up", unsafe { forward(&args, &plan, prepare, stream) })?;
        }
    }
    // Every number of columns of a thread that there is a kernel for.
    for (strategy, cols) in [
        (RowStrategy::WarpPerRow, 8),
        (RowStrategy::WarpPerRow, 16),
        (RowStrategy::WarpPerRow, 32),
        (RowStrategy::Streaming, vec),
    ] {
        let plan = abi_row_plan(blank_row_plan(strategy, vec, cols / vec));
        let args = blank_row_bwd(dtype);
        // SAFETY: as above.
        on.leave("warm_up", unsafe { backward(&args, &plan, prepare, stream) })?;
    }
    Ok(())
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
        smem,
        parts: 1,
        span: 1,
    }
}

fn blank_channel_fwd(dtype: DType) -> sys::wn_channel_norm_fwd {
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
        x_dtype: abi_dtype(dtype),
        param_dtype: abi_dtype(dtype),
        activation: sys::wn_activation::WN_ACT_NONE,
        running: sys::wn_running::WN_RUNNING_NONE,
    }
}

/// Gradients and `group` are such that every kernel is reached.
fn blank_channel_bwd(dtype: DType) -> sys::wn_channel_norm_bwd {
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
        x_dtype: abi_dtype(dtype),
        param_dtype: abi_dtype(dtype),
        grad_dtype: abi_dtype(dtype),
        activation: sys::wn_activation::WN_ACT_NONE,
        accumulate: 0,
        running_only: 0,
    }
}

fn blank_row_fwd(dtype: DType) -> sys::wn_row_norm_fwd {
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
        x_dtype: abi_dtype(dtype),
        param_dtype: abi_dtype(dtype),
        rms: 0,
    }
}

fn blank_row_bwd(dtype: DType) -> sys::wn_row_norm_bwd {
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
        workspace: ptr::null_mut(),
        weight_offset: 0.0,
        x_dtype: abi_dtype(dtype),
        param_dtype: abi_dtype(dtype),
        grad_dtype: abi_dtype(dtype),
        accumulate: 0,
        rms: 0,
    }
}

fn abi_activation(activation: Activation) -> sys::wn_activation {
    match activation {
        Activation::None => sys::wn_activation::WN_ACT_NONE,
        Activation::Relu => sys::wn_activation::WN_ACT_RELU,
        Activation::Silu => sys::wn_activation::WN_ACT_SILU,
        Activation::Gelu => sys::wn_activation::WN_ACT_GELU,
        Activation::GeluTanh => sys::wn_activation::WN_ACT_GELU_TANH,
    }
}

fn abi_dtype(dtype: DType) -> sys::wn_dtype {
    sys::wn_dtype(dtype as u32)
}

fn abi_channel_plan(plan: &ChannelPlan) -> sys::wn_channel_plan {
    sys::wn_channel_plan {
        strategy: match plan.team {
            Some(_) => sys::wn_channel_strategy::WN_TEAM,
            None => sys::wn_channel_strategy::WN_SPLIT,
        },
        team: abi_team(plan.team.as_ref(), &plan.stats),
        stats: abi_walk(&plan.stats),
        apply: abi_walk(&plan.apply),
    }
}

/// Without a team, one of nothing.
fn abi_team(team: Option<&ChannelTeam>, walk: &ChannelWalk) -> sys::wn_channel_team {
    let Some(team) = team else {
        return sys::wn_channel_team {
            walk: abi_walk(walk),
            join: sys::wn_join::WN_ALONE,
            size: 0,
            teams: 0,
            units: 0,
            tiles: 0,
            slabs: 0,
            chunks: 0,
            held: 0,
        };
    };
    sys::wn_channel_team {
        walk: abi_walk(&team.walk),
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
        held: team.held as i32,
    }
}

/// `ChannelShape` and the laws of the plans say that nothing is cut off here.
fn abi_walk(walk: &ChannelWalk) -> sys::wn_channel_walk {
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

fn abi_row_plan(plan: RowPlan) -> sys::wn_row_plan {
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
        smem: plan.smem as i32,
        parts: plan.parts as i32,
        span: plan.span as i64,
    }
}
