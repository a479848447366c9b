//! The op's gradients.

use candle::{DType, Device, Error, Result, Tensor, WithDType, backend::BackendStorage};
use warpnorm::{
    Affine, AffineGrad, Backend, BatchNorm, BatchNormBackwardEval, BatchNormBackwardTrain, GroupNormBackward,
    LayerNormBackward, RmsNormBackward, View, ViewMut,
    half::{bf16, f16},
};

use super::{Arg, Channels, Norm, Op, Params, Rows, Running, Statistics, guarded, lost, stored};
use crate::memory::{CpuMemory, Memory, Mut, Number};

impl Op {
    /// Gradients of the arguments, of which those that track none get none.
    pub(super) fn backward(&self, args: &[&Tensor], grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        match grad.device() {
            Device::Cpu => self.backward_on::<CpuMemory>(args, grad),
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => self.backward_on::<crate::cuda::CudaMemory>(args, grad),
            _ => Err(Error::BackwardNotSupported { op: self.norm.name() }.bt()),
        }
    }

    fn backward_on<M: Memory>(&self, args: &[&Tensor], grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let grad = grad.contiguous()?;
        let tracks: Vec<bool> = args.iter().map(|arg| arg.track_op()).collect();
        let guards = guarded(args.iter().copied().chain([&grad]));
        let stored = stored::<M>(&guards)?;
        match grad.dtype() {
            DType::F32 => self.backward_as::<f32, M>(&tracks, &stored),
            DType::F16 => self.backward_as::<f16, M>(&tracks, &stored),
            DType::BF16 => self.backward_as::<bf16, M>(&tracks, &stored),
            other => Err(Error::UnsupportedDTypeForOp(other, self.norm.name()).bt()),
        }
    }

    /// `stored` are the arguments, and the gradient of the result.
    fn backward_as<T: Number, M: Memory>(
        &self,
        tracks: &[bool],
        stored: &[Arg<'_, M>],
    ) -> Result<Vec<Option<Tensor>>> {
        let (args, grad) = stored.split_at(tracks.len());
        let grad = grad[0];
        let (storage, layout) = args[0];
        let (dims, len) = (&self.dims(layout)[..], layout.shape().elem_count());
        let on = M::backend(storage)?;
        let params = 1 + usize::from(self.has_residual);
        let affine = self.affine::<T, M>(&args[params..])?;
        let (x, dy) = (self.view::<T, M>(args[0])?, self.view::<T, M>(grad)?);
        let residual = args[1..].first().filter(|_| self.has_residual);
        let residual = residual.map(|&arg| self.view::<T, M>(arg)).transpose()?;

        let mut dx = tracks[0].then(|| M::buffer::<T>(storage, len)).transpose()?;
        let mut dresidual =
            (self.has_residual && tracks[1]).then(|| M::buffer::<T>(storage, len)).transpose()?;
        let mut same = ParamGrads::<T, M>::default();
        let mut wide = ParamGrads::<f32, M>::default();
        let is_same =
            args[params..].first().is_some_and(|(param, _)| param.dtype() == <T as WithDType>::DTYPE);
        for (index, (&(param, layout), &tracks)) in args[params..].iter().zip(&tracks[params..]).enumerate() {
            let len = layout.shape().elem_count();
            match (tracks, is_same) {
                (false, _) => {}
                (true, true) => same.buffers[index] = Some(M::buffer(param, len)?),
                (true, false) => wide.buffers[index] = Some(M::buffer(param, len)?),
            }
        }
        {
            let is_stacked = self.params == Params::Stacked;
            let grads = match is_same {
                true => {
                    let [dweight, dbias] = same.borrow_mut(is_stacked);
                    AffineGrad::Same { dweight, dbias }
                }
                false => {
                    let [dweight, dbias] = wide.borrow_mut(is_stacked);
                    AffineGrad::F32 { dweight, dbias }
                }
            };
            let dx = dx.as_mut().map(|dx| self.seen_mut(M::borrow_mut(dx), dims)).transpose()?;
            let dresidual = dresidual.as_mut().map(|d| self.seen_mut(M::borrow_mut(d), dims)).transpose()?;
            self.gradients::<T, M>(&on, Tensors { x, residual, dy, affine, dx, dresidual, grads })?;
        }

        let dims = layout.dims();
        let dx = dx.map(|dx| M::tensor(storage, dx, dims));
        let mut all = vec![dx];
        if self.has_residual {
            all.push(dresidual.map(|d| M::tensor(storage, d, dims)));
        }
        for (index, &(param, layout)) in args[params..].iter().enumerate() {
            let of_same = same.buffers[index].take().map(|d| M::tensor(param, d, layout.dims()));
            let of_wide = wide.buffers[index].take().map(|d| M::tensor(param, d, layout.dims()));
            all.push(of_same.or(of_wide));
        }
        Ok(all)
    }

    fn gradients<T: Number, M: Memory>(&self, on: &M::Backend, tensors: Tensors<'_, '_, T, M>) -> Result<()> {
        let saved = || {
            let saved = self.saved.statistics.get();
            saved.and_then(|saved| saved.downcast_ref::<Statistics<M>>()).ok_or_else(lost)
        };
        match &self.norm {
            Norm::Rows(norm) => norm.gradients(on, tensors, saved()?),
            Norm::Channels(norm) => norm.gradients(on, tensors, saved()?),
            Norm::Running(norm, running) => gradients_by(on, tensors, norm, running),
        }
    }
}

impl Rows {
    fn gradients<T: Number, M: Memory>(
        &self,
        on: &M::Backend,
        mut tensors: Tensors<'_, '_, T, M>,
        saved: &Statistics<M>,
    ) -> Result<()> {
        let mut workspace = match self {
            Self::Layer(norm) => norm.workspace_for(on, tensors.x.reborrow()),
            Self::Rms(norm) => norm.workspace_for(on, tensors.x.reborrow()),
        }
        .map_err(Error::wrap)?;
        let Tensors { x, dy, affine, dx, grads, .. } = &mut tensors;
        let (x, dy, affine, grads) = (x.reborrow(), dy.reborrow(), affine.reborrow(), grads.reborrow());
        let (dx, dh) = (dx.as_mut().map(ViewMut::reborrow), None);
        let (rstd, accumulate, workspace) = (M::borrow(&saved.rstd), false, &mut workspace);
        match self {
            Self::Layer(norm) => {
                let mean = M::borrow(saved.mean.as_ref().ok_or_else(lost)?);
                let args =
                    LayerNormBackward { x, dy, dh, affine, mean, rstd, dx, grads, accumulate, workspace };
                norm.backward_into(on, args)
            }
            Self::Rms(norm) => {
                let args = RmsNormBackward { x, dy, dh, affine, rstd, dx, grads, accumulate, workspace };
                norm.backward_into(on, args)
            }
        }
        .map_err(Error::wrap)
    }
}

impl Channels {
    fn gradients<T: Number, M: Memory>(
        &self,
        on: &M::Backend,
        mut tensors: Tensors<'_, '_, T, M>,
        saved: &Statistics<M>,
    ) -> Result<()> {
        let mut workspace = self.workspace::<T, M>(on, &tensors.x)?;
        let Tensors { x, residual, dy, affine, dx, dresidual, grads } = &mut tensors;
        // InstanceNorm's arguments are of the same type.
        let args = BatchNormBackwardTrain {
            x: x.reborrow(),
            residual: residual.as_ref().map(View::reborrow),
            dy: dy.reborrow(),
            affine: affine.reborrow(),
            mean: M::borrow(saved.mean.as_ref().ok_or_else(lost)?),
            rstd: M::borrow(&saved.rstd),
            dx: dx.as_mut().map(ViewMut::reborrow),
            dresidual: dresidual.as_mut().map(ViewMut::reborrow),
            grads: grads.reborrow(),
            accumulate: false,
            workspace: &mut workspace,
        };
        match self {
            Self::Batch(norm, _) => norm.backward_train_into(on, args),
            Self::Instance(norm) => norm.backward_into(on, args),
            Self::Group(norm) => {
                let args = GroupNormBackward {
                    x: args.x,
                    residual: args.residual,
                    dy: args.dy,
                    affine: args.affine,
                    mean: args.mean,
                    rstd: args.rstd,
                    dx: args.dx,
                    dresidual: args.dresidual,
                    grads: args.grads,
                    accumulate: args.accumulate,
                    workspace: args.workspace,
                };
                norm.backward_into(on, args)
            }
        }
        .map_err(Error::wrap)
    }
}

fn gradients_by<T: Number, M: Memory>(
    on: &M::Backend,
    mut tensors: Tensors<'_, '_, T, M>,
    norm: &BatchNorm,
    running: &[Tensor; 2],
) -> Result<()> {
    let mut workspace = norm.workspace_for(on, tensors.x.reborrow()).map_err(Error::wrap)?;
    let running = Running::new(running);
    let [running_mean, running_var] = &running.statistics::<M>()?;
    let Tensors { x, residual, dy, affine, dx, dresidual, grads } = &mut tensors;
    let args = BatchNormBackwardEval {
        x: x.reborrow(),
        residual: residual.as_ref().map(View::reborrow),
        dy: dy.reborrow(),
        affine: affine.reborrow(),
        running_mean: M::Backend::reborrow(running_mean),
        running_var: M::Backend::reborrow(running_var),
        dx: dx.as_mut().map(ViewMut::reborrow),
        dresidual: dresidual.as_mut().map(ViewMut::reborrow),
        grads: grads.reborrow(),
        accumulate: false,
        workspace: &mut workspace,
    };
    norm.backward_eval_into(on, args).map_err(Error::wrap)
}

/// The tensors of a backward pass: those that are read, and those that are written.
struct Tensors<'r, 'w, T: Number, M: Memory> {
    x: View<'r, T, M::Backend>,
    residual: Option<View<'r, T, M::Backend>>,
    dy: View<'r, T, M::Backend>,
    affine: Affine<'r, T, M::Backend>,
    dx: Option<ViewMut<'w, T, M::Backend>>,
    dresidual: Option<ViewMut<'w, T, M::Backend>>,
    grads: AffineGrad<'w, T, M::Backend>,
}

/// Gradients of the arguments that hold weight and bias, as far as they are wanted.
struct ParamGrads<P: Number, M: Memory> {
    buffers: [Option<M::Buffer<P>>; 2],
}

impl<P: Number, M: Memory> Default for ParamGrads<P, M> {
    fn default() -> Self {
        Self { buffers: [None, None] }
    }
}

impl<P: Number, M: Memory> ParamGrads<P, M> {
    /// Of weight and bias.
    fn borrow_mut(&mut self, is_stacked: bool) -> [Option<Mut<'_, M, P>>; 2] {
        let [first, second] = self.buffers.each_mut().map(Option::as_mut);
        match first {
            Some(both) if is_stacked => M::halves_mut(both).map(Some),
            weight => [weight.map(M::borrow_mut), second.map(M::borrow_mut)],
        }
    }
}
