//! From checked arguments to the C ABI: looks up the plan, takes the addresses, calls a launcher. The same code serves
//! the GPU and the emulator.
#![allow(unsafe_code)]

mod abi;
mod addresses;
mod warm_up;

#[cfg(feature = "cuda")]
pub(crate) use warm_up::probe;
pub(crate) use warm_up::warm_up;

use self::addresses::Addresses;
use super::{
    plan::{ChannelPass, DeviceLimits, Direction},
    sys,
};
use crate::{
    Activation, Backend, Element, Result,
    channel_norm::{BackwardSource, ChannelNormBackward, ChannelNormForward, ForwardSource},
    row_norm::{RowNormBackward, RowNormForward, RowSum},
    shape::{ChannelShape, RowShape},
};

/// A launcher of the C ABI; every build has each.
type Launcher<Args, Plan> =
    Option<unsafe extern "C" fn(*const Args, *const Plan, sys::wn_action, sys::wn_stream) -> i32>;

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

pub(crate) fn channel_norm_fwd<D: Device, T: Element>(
    on: &D,
    shape: ChannelShape,
    mut args: ChannelNormForward<'_, T, D>,
) -> Result<()> {
    let mut taken = Addresses::enter(on)?;
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
        activation: abi::activation(args.activation),
        param_dtype: abi::dtype(param_dtype),
        ..abi::blank_channel_fwd(T::DTYPE)
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
    let plan = taken.channel_plan::<T>(shape, ChannelPass::Forward)?;
    // SAFETY: the addresses are of `taken`, or null where the header allows it; the op matched each length to `shape`
    // and checked the workspace against the largest plan; and the plan keeps the laws that its tests state, so no
    // kernel leaves these buffers.
    unsafe { taken.launch("channel_norm_fwd", on.launchers().channel_norm_fwd, &raw, &plan) }
}

pub(crate) fn channel_norm_bwd<D: Device, T: Element>(
    on: &D,
    shape: ChannelShape,
    mut args: ChannelNormBackward<'_, T, D>,
) -> Result<()> {
    let mut taken = Addresses::enter(on)?;
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
        x_dtype: abi::dtype(T::DTYPE),
        param_dtype: abi::dtype(param_dtype),
        grad_dtype: abi::dtype(grad_dtype),
        activation: abi::activation(args.activation),
        accumulate: i32::from(args.accumulate),
        running_only,
    };
    let pass = match args.activation {
        Activation::None => ChannelPass::Backward,
        _ => ChannelPass::BackwardFused,
    };
    let plan = taken.channel_plan::<T>(shape, pass)?;
    // SAFETY: as in `channel_norm_fwd`.
    unsafe { taken.launch("channel_norm_bwd", on.launchers().channel_norm_bwd, &raw, &plan) }
}

pub(crate) fn row_norm_fwd<D: Device, T: Element>(
    on: &D,
    shape: RowShape,
    mut args: RowNormForward<'_, T, D>,
) -> Result<()> {
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

    let mut taken = Addresses::enter(on)?;
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
        x_dtype: abi::dtype(T::DTYPE),
        param_dtype: abi::dtype(param_dtype),
        rms: i32::from(args.rms),
    };
    let plan = taken.row_plan::<T>(shape, Direction::Forward, !h.is_null())?;
    // SAFETY: the addresses are of `taken`, or null where the header allows it; the op matched each length to `shape`
    // and to the strides; and the plan keeps the laws that its tests state, so no kernel leaves these buffers.
    unsafe { taken.launch("row_norm_fwd", on.launchers().row_norm_fwd, &raw, &plan) }
}

pub(crate) fn row_norm_bwd<D: Device, T: Element>(
    on: &D,
    shape: RowShape,
    mut args: RowNormBackward<'_, T, D>,
) -> Result<()> {
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
    let mut taken = Addresses::enter(on)?;
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
    let (counters, workspace) = taken.workspace(&mut args.workspace)?;
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
        counters,
        workspace,
        weight_offset: args.weight_offset,
        x_dtype: abi::dtype(T::DTYPE),
        param_dtype: abi::dtype(param_dtype),
        grad_dtype: abi::dtype(grad_dtype),
        accumulate: i32::from(args.accumulate),
        rms: i32::from(rms),
    };
    let plan = taken.row_plan::<T>(shape, Direction::Backward, !dh.is_null())?;
    // SAFETY: as in `row_norm_fwd`; the op checked the workspace against the largest plan.
    unsafe { taken.launch("row_norm_bwd", on.launchers().row_norm_bwd, &raw, &plan) }
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
