//! What the op computes.

use candle::{DType, Device, Error, Result, Shape, Storage, Tensor, backend::BackendStorage};
use warpnorm::{
    Affine, Backend, BatchNorm, BatchNormEval, BatchNormTrain, GroupNormForward, InstanceNormForward,
    LayerNormForward, Residual, RmsNormForward, RunningStatsMut, View, ViewMut, Workspace,
    half::{bf16, f16},
};

use super::{Arg, Channels, Norm, Op, Rows, Running, Statistics, guarded, stored};
use crate::memory::{CpuMemory, Memory, Mut, Number, offset};

impl Op {
    pub(super) fn forward<M: Memory>(&self, args: &[Arg<'_, M>]) -> Result<(M::Storage, Shape)> {
        let shape = Shape::from(args[0].1.dims());
        if let Some(y) = self.given.take::<M>() {
            return Ok((y, shape));
        }
        Ok((self.computed::<M>(args, self.has_residual)?.0, shape))
    }

    /// The norm of `x` and a residual, which come first, and their sum.
    pub(super) fn sum(&self, args: &[&Tensor]) -> Result<[Storage; 2]> {
        match args[0].device() {
            Device::Cpu => self.sum_on::<CpuMemory>(args),
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => self.sum_on::<crate::cuda::CudaMemory>(args),
            _ => Err(Error::msg(format!("{}: there is no such op on this device", self.norm.name()))),
        }
    }

    fn sum_on<M: Memory>(&self, args: &[&Tensor]) -> Result<[Storage; 2]> {
        let guards = guarded(args.iter().copied());
        let stored = stored::<M>(&guards)?;
        let (y, h) = self.computed::<M>(&stored, true)?;
        let h = h.ok_or_else(|| Error::msg(format!("{} adds nothing before", self.norm.name())))?;
        Ok([M::wrap(y), M::wrap(h)])
    }

    /// The output, and the sum where a norm of rows `adds` the second argument.
    fn computed<M: Memory>(
        &self,
        args: &[Arg<'_, M>],
        adds: bool,
    ) -> Result<(M::Storage, Option<M::Storage>)> {
        match args[0].0.dtype() {
            DType::F32 => self.computed_as::<f32, M>(args, adds),
            DType::F16 => self.computed_as::<f16, M>(args, adds),
            DType::BF16 => self.computed_as::<bf16, M>(args, adds),
            other => Err(Error::UnsupportedDTypeForOp(other, self.norm.name()).bt()),
        }
    }

    fn computed_as<T: Number, M: Memory>(
        &self,
        args: &[Arg<'_, M>],
        adds: bool,
    ) -> Result<(M::Storage, Option<M::Storage>)> {
        let (storage, layout) = args[0];
        let (dims, len) = (&self.dims(layout)[..], layout.shape().elem_count());
        let on = M::backend(storage)?;
        let x = self.view::<T, M>(args[0])?;
        let residual = args[1..].first().filter(|_| adds);
        let residual = residual.map(|&arg| self.view::<T, M>(arg)).transpose()?;
        let affine = self.affine::<T, M>(&args[1 + usize::from(adds)..])?;
        let [mut mean, mut rstd] = self.statistics::<T, M>(storage, &x)?;
        let mut moving = self.moving::<M>()?;
        let mut y = M::buffer::<T>(storage, len)?;
        let mut h = (adds && self.norm.is_of_rows()).then(|| M::buffer::<T>(storage, len)).transpose()?;
        {
            let tensors = ForwardTensors {
                x,
                residual,
                affine,
                y: self.seen_mut(M::borrow_mut(&mut y), dims)?,
                h: h.as_mut().map(|h| self.seen_mut(M::borrow_mut(h), dims)).transpose()?,
                mean: mean.as_mut().map(M::borrow_mut),
                rstd: rstd.as_mut().map(M::borrow_mut),
                moving: moving.as_mut().map(|moving| moving.each_mut().map(M::borrow_mut)),
            };
            self.normalize::<T, M>(&on, tensors)?;
        }
        if let (Norm::Channels(Channels::Batch(_, running)), Some([mean, var])) = (&self.norm, moving) {
            let tensor = |moved, running: &Tensor| M::tensor::<f32>(storage, moved, running.dims());
            self.saved.running.get_or_init(|| [tensor(mean, &running[0]), tensor(var, &running[1])]);
        }
        if let Some(rstd) = rstd {
            self.saved.statistics.get_or_init(|| Box::new(Statistics::<M> { mean, rstd }));
        }
        Ok((M::store(storage, y), h.map(|h| M::store(storage, h))))
    }

    /// Copies of the running statistics that move.
    fn moving<M: Memory>(&self) -> Result<Option<[M::Buffer<f32>; 2]>> {
        let Norm::Channels(Channels::Batch(_, [mean, var])) = &self.norm else { return Ok(None) };
        let copy = |running: &Tensor| {
            let (running, layout) = running.storage_and_layout();
            M::copy::<f32>(M::of(&running)?, offset(self.norm.name(), layout)?, layout.shape().elem_count())
        };
        Ok(Some([copy(mean)?, copy(var)?]))
    }

    fn normalize<T: Number, M: Memory>(
        &self,
        on: &M::Backend,
        tensors: ForwardTensors<'_, '_, T, M>,
    ) -> Result<()> {
        match &self.norm {
            Norm::Rows(norm) => norm.normalize(on, tensors),
            Norm::Channels(norm) => norm.normalize(on, tensors),
            Norm::Running(norm, running) => normalize_by(on, tensors, norm, running),
        }
    }

    /// Where means and reciprocal standard deviations are kept for the backward pass, where there are any.
    fn statistics<T: Number, M: Memory>(
        &self,
        beside: &M::Storage,
        x: &View<'_, T, M::Backend>,
    ) -> Result<[Option<M::Buffer<f32>>; 2]> {
        if !self.keeps {
            return Ok([None, None]);
        }
        let len = match &self.norm {
            // As many as the first of their two dimensions says.
            Norm::Rows(_) => Ok(x.dims()[0]),
            Norm::Channels(Channels::Group(norm)) => norm.saved_len(x),
            Norm::Channels(Channels::Instance(norm)) => norm.saved_len(x),
            Norm::Channels(Channels::Batch(norm, _)) => norm.saved_len(x),
            Norm::Running(..) => return Ok([None, None]),
        };
        let len = len.map_err(Error::wrap)?;
        let mean =
            (!matches!(self.norm, Norm::Rows(Rows::Rms(_)))).then(|| M::buffer(beside, len)).transpose()?;
        Ok([mean, Some(M::buffer(beside, len)?)])
    }
}

impl Rows {
    fn normalize<T: Number, M: Memory>(
        &self,
        on: &M::Backend,
        mut tensors: ForwardTensors<'_, '_, T, M>,
    ) -> Result<()> {
        let ForwardTensors { x, residual, affine, y, h, mean, rstd, .. } = &mut tensors;
        let (x, affine, y) = (x.reborrow(), affine.reborrow(), y.reborrow());
        let [mean, rstd] = [mean, rstd].map(|kept| kept.as_mut().map(M::Backend::reborrow_mut));
        let added = residual.as_ref().zip(h.as_mut());
        let residual = added.map(|(residual, h)| Residual { residual: residual.reborrow(), h: h.reborrow() });
        match self {
            Self::Layer(norm) => {
                norm.forward_into(on, LayerNormForward { x, y, residual, affine, mean, rstd })
            }
            Self::Rms(norm) => norm.forward_into(on, RmsNormForward { x, y, residual, affine, rstd }),
        }
        .map_err(Error::wrap)
    }
}

impl Channels {
    fn normalize<T: Number, M: Memory>(
        &self,
        on: &M::Backend,
        mut tensors: ForwardTensors<'_, '_, T, M>,
    ) -> Result<()> {
        let workspace = &mut self.workspace::<T, M>(on, &tensors.x)?;
        let ForwardTensors { x, residual, affine, y, mean, rstd, moving, .. } = &mut tensors;
        let (x, affine, y) = (x.reborrow(), affine.reborrow(), y.reborrow());
        let residual = residual.as_ref().map(View::reborrow);
        let [mean, rstd] = [mean, rstd].map(|kept| kept.as_mut().map(M::Backend::reborrow_mut));
        match self {
            Self::Group(norm) => {
                norm.forward_into(on, GroupNormForward { x, residual, y, affine, mean, rstd, workspace })
            }
            Self::Instance(norm) => {
                let running = None;
                let args = InstanceNormForward { x, residual, y, affine, mean, rstd, running, workspace };
                norm.forward_into(on, args)
            }
            Self::Batch(norm, _) => {
                let batches = &mut 0;
                let running = moving.as_mut().map(|moving| {
                    let [mean, var] = moving.each_mut().map(M::Backend::reborrow_mut);
                    RunningStatsMut { mean, var, batches, momentum: None }
                });
                let args = BatchNormTrain { x, residual, y, affine, mean, rstd, running, workspace };
                norm.forward_train_into(on, args)
            }
        }
        .map_err(Error::wrap)
    }

    pub(super) fn workspace<T: Number, M: Memory>(
        &self,
        on: &M::Backend,
        x: &View<'_, T, M::Backend>,
    ) -> Result<Workspace<M::Backend>> {
        match self {
            Self::Group(norm) => norm.workspace_for(on, x.reborrow()),
            Self::Instance(norm) => norm.workspace_for(on, x.reborrow()),
            Self::Batch(norm, _) => norm.workspace_for(on, x.reborrow()),
        }
        .map_err(Error::wrap)
    }
}

fn normalize_by<T: Number, M: Memory>(
    on: &M::Backend,
    mut tensors: ForwardTensors<'_, '_, T, M>,
    norm: &BatchNorm,
    running: &[Tensor; 2],
) -> Result<()> {
    let running = Running::new(running);
    let [running_mean, running_var] = &running.statistics::<M>()?;
    let ForwardTensors { x, residual, affine, y, .. } = &mut tensors;
    let args = BatchNormEval {
        x: x.reborrow(),
        residual: residual.as_ref().map(View::reborrow),
        y: y.reborrow(),
        affine: affine.reborrow(),
        running_mean: M::Backend::reborrow(running_mean),
        running_var: M::Backend::reborrow(running_var),
    };
    norm.forward_eval_into(on, args).map_err(Error::wrap)
}

/// The tensors of a forward pass: those that are read, and those that are written.
struct ForwardTensors<'r, 'w, T: Number, M: Memory> {
    x: View<'r, T, M::Backend>,
    residual: Option<View<'r, T, M::Backend>>,
    affine: Affine<'r, T, M::Backend>,
    y: ViewMut<'w, T, M::Backend>,
    /// The sum of both, of a norm of rows.
    h: Option<ViewMut<'w, T, M::Backend>>,
    mean: Option<Mut<'w, M, f32>>,
    rstd: Option<Mut<'w, M, f32>>,
    /// Running mean and variance.
    moving: Option<[Mut<'w, M, f32>; 2]>,
}
