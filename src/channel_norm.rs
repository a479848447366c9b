//! What BatchNorm, GroupNorm and InstanceNorm share: the checks, and what is handed to a backend once they have passed.

use crate::{
    Activation, Affine, AffineGrad, Backend, Element, Error, Result, View, ViewMut, Workspace,
    backend::WorkspaceMut,
    batch_norm::TrainParts,
    error::{check_eps, check_len},
    shape::{ChannelShape, Dims, Scope},
};

/// An op of the channel family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChannelOp {
    pub(crate) name: &'static str,
    pub(crate) channels: usize,
    pub(crate) eps: f32,
    pub(crate) activation: Activation,
    /// What statistics of the tensor at hand are taken over.
    pub(crate) scope: Scope,
    /// What those that are given for inference were.
    pub(crate) fixed_scope: Scope,
    /// Whether a single value may be a statistic's only one.
    pub(crate) one_value_is_enough: bool,
    /// The weight of a training call in the running statistics; `None` averages all calls.
    pub(crate) momentum: Option<f32>,
    /// How many running means there are.
    pub(crate) running_len: usize,
}

/// Statistics of the tensor at hand: where they go, and what follows them.
pub(crate) struct BatchStatistics<'a, B: Backend> {
    pub(crate) mean: Option<B::Mut<'a, f32>>,
    pub(crate) rstd: Option<B::Mut<'a, f32>>,
    pub(crate) running: Option<RunningUpdate<'a, B>>,
    pub(crate) workspace: &'a mut Workspace<B>,
}

/// Running statistics that a forward pass moves.
pub(crate) struct RunningUpdate<'a, B: Backend> {
    pub(crate) mean: B::Mut<'a, f32>,
    pub(crate) var: B::Mut<'a, f32>,
    /// The weight of the new value.
    pub(crate) momentum: f32,
    /// One value on the device, in place of `momentum`.
    pub(crate) device_momentum: Option<B::Ref<'a, f32>>,
    /// How many there are: as many as statistics, or as channels.
    pub(crate) len: usize,
}

/// Statistics that are given.
pub(crate) struct FixedStatistics<'a, B: Backend> {
    pub(crate) mean: B::Ref<'a, f32>,
    pub(crate) var: B::Ref<'a, f32>,
}

/// The tensors of a forward pass; without `x`, `y` holds it.
pub(crate) struct ForwardTensors<'a, T: Element, B: Backend> {
    pub(crate) x: Option<View<'a, T, B>>,
    pub(crate) residual: Option<View<'a, T, B>>,
    pub(crate) y: ViewMut<'a, T, B>,
    pub(crate) affine: Affine<'a, T, B>,
}

/// The tensors of a backward pass, and the gradients wanted.
pub(crate) struct BackwardTensors<'a, T: Element, B: Backend> {
    pub(crate) x: View<'a, T, B>,
    pub(crate) residual: Option<View<'a, T, B>>,
    pub(crate) dy: View<'a, T, B>,
    pub(crate) affine: Affine<'a, T, B>,
    pub(crate) dx: Option<ViewMut<'a, T, B>>,
    pub(crate) dresidual: Option<ViewMut<'a, T, B>>,
    pub(crate) grads: AffineGrad<'a, T, B>,
    pub(crate) accumulate: bool,
    pub(crate) workspace: &'a mut Workspace<B>,
}

impl ChannelOp {
    /// The shape of a tensor, `x` or whatever it is called where there is no other, as `scope` cuts it.
    fn shape(&self, dims: &Dims, scope: Scope) -> Result<ChannelShape> {
        check_eps(self.eps)?;
        ChannelShape::of(self.name, "x", dims, self.channels, scope)
    }

    /// Statistics that a tensor has.
    pub(crate) fn saved_len(&self, dims: &Dims) -> Result<usize> {
        Ok(self.shape(dims, self.scope)?.statistics())
    }

    /// Enough for every method on such a tensor.
    pub(crate) fn workspace<B: Backend>(&self, on: &B, dims: &Dims) -> Result<Workspace<B>> {
        let fixed = on.channel_norm_workspace(self.shape(dims, self.fixed_scope)?);
        // A batch that a training pass refuses may still be one for inference.
        let batch = self.shape(dims, self.scope).map(|shape| on.channel_norm_workspace(shape));
        Workspace::new(on, fixed.max(batch.unwrap_or_default()))
    }

    /// A forward pass that moves and counts for the running statistics, if given.
    pub(crate) fn train<T: Element, B: Backend>(&self, on: &B, parts: TrainParts<'_, T, B>) -> Result<()> {
        let (tensors, mut statistics, running) = parts;
        if let Some(momentum) = self.momentum.filter(|momentum| !momentum.is_finite()) {
            return Err(Error::Momentum(momentum));
        }
        let mut batches = None;
        if let Some(running) = running {
            let (update, count) = running.update(self.momentum, self.running_len);
            (statistics.running, batches) = (Some(update), Some(count));
        }
        self.forward_batch(on, tensors, statistics)?;
        if let Some(batches) = batches {
            *batches = batches.saturating_add(1);
        }
        Ok(())
    }

    pub(crate) fn forward_batch<'a, T: Element, B: Backend>(
        &self,
        on: &B,
        tensors: ForwardTensors<'a, T, B>,
        statistics: BatchStatistics<'a, B>,
    ) -> Result<()> {
        let shape = self.check_forward(&tensors, self.scope)?;
        let BatchStatistics { mean, rstd, running, workspace } = statistics;
        mean.as_ref().map_or(Ok(()), |v| check_len("mean", shape.statistics(), B::len_mut(v)))?;
        rstd.as_ref().map_or(Ok(()), |v| check_len("rstd", shape.statistics(), B::len_mut(v)))?;
        if let Some(running) = &running {
            check_len("running_mean", running.len, B::len_mut(&running.mean))?;
            check_len("running_var", running.len, B::len_mut(&running.var))?;
            running.device_momentum.as_ref().map_or(Ok(()), |m| check_len("momentum", 1, B::len(m)))?;
        }
        self.check_spread(shape)?;
        if shape.is_empty() {
            return Ok(());
        }
        workspace.check(on.channel_norm_workspace(shape))?;
        let averaged = running.as_ref().is_some_and(|running| running.len != shape.statistics());
        let source =
            ForwardSource::Batch { mean, rstd, running, averaged, workspace: workspace.borrow_mut() };
        on.channel_norm_fwd(shape, self.forward(tensors, source))
    }

    pub(crate) fn forward_fixed<'a, T: Element, B: Backend>(
        &self,
        on: &B,
        tensors: ForwardTensors<'a, T, B>,
        statistics: FixedStatistics<'a, B>,
    ) -> Result<()> {
        let shape = self.check_forward(&tensors, self.fixed_scope)?;
        check_len("running_mean", shape.statistics(), B::len(&statistics.mean))?;
        check_len("running_var", shape.statistics(), B::len(&statistics.var))?;
        if shape.is_empty() {
            return Ok(());
        }
        on.channel_norm_fwd(shape, self.forward(tensors, ForwardSource::Fixed(statistics)))
    }

    pub(crate) fn backward_batch<'a, T: Element, B: Backend>(
        &self,
        on: &B,
        tensors: BackwardTensors<'a, T, B>,
        mean: B::Ref<'a, f32>,
        rstd: B::Ref<'a, f32>,
    ) -> Result<()> {
        let shape = self.check_backward(&tensors, self.scope)?;
        check_len("mean", shape.statistics(), B::len(&mean))?;
        check_len("rstd", shape.statistics(), B::len(&rstd))?;
        self.check_spread(shape)?;
        self.backward(on, shape, tensors, BackwardSource::Batch { mean, rstd })
    }

    pub(crate) fn backward_fixed<'a, T: Element, B: Backend>(
        &self,
        on: &B,
        tensors: BackwardTensors<'a, T, B>,
        statistics: FixedStatistics<'a, B>,
    ) -> Result<()> {
        let shape = self.check_backward(&tensors, self.fixed_scope)?;
        check_len("running_mean", shape.statistics(), B::len(&statistics.mean))?;
        check_len("running_var", shape.statistics(), B::len(&statistics.var))?;
        self.backward(on, shape, tensors, BackwardSource::Fixed(statistics))
    }

    fn forward<'a, T: Element, B: Backend>(
        &self,
        tensors: ForwardTensors<'a, T, B>,
        source: ForwardSource<'a, B>,
    ) -> ChannelNormForward<'a, T, B> {
        let ForwardTensors { x, residual, y, affine } = tensors;
        ChannelNormForward {
            x: x.map(|x| x.data),
            residual: residual.map(|residual| residual.data),
            y: y.data,
            affine,
            eps: self.eps,
            activation: self.activation,
            source,
        }
    }

    fn backward<'a, T: Element, B: Backend>(
        &self,
        on: &B,
        shape: ChannelShape,
        tensors: BackwardTensors<'a, T, B>,
        source: BackwardSource<'a, B>,
    ) -> Result<()> {
        let BackwardTensors { x, residual, dy, affine, dx, dresidual, grads, accumulate, workspace } =
            tensors;
        let elements_wanted = (dx.is_some() || dresidual.is_some()) && !shape.is_empty();
        // Sums over nothing are zeros, which an accumulating call need not add.
        let sums_wanted = !grads.is_none() && shape.channels() > 0 && !(shape.is_empty() && accumulate);
        if !elements_wanted && !sums_wanted {
            return Ok(());
        }
        workspace.check(on.channel_norm_workspace(shape))?;
        let args = ChannelNormBackward {
            x: x.data,
            residual: residual.map(|v| v.data),
            dy: dy.data,
            affine,
            eps: self.eps,
            activation: self.activation,
            source,
            dx: dx.map(|v| v.data),
            dresidual: dresidual.map(|v| v.data),
            grads,
            accumulate,
            workspace: workspace.borrow_mut(),
        };
        on.channel_norm_bwd(shape, args)
    }

    fn check_forward<T: Element, B: Backend>(
        &self,
        tensors: &ForwardTensors<'_, T, B>,
        scope: Scope,
    ) -> Result<ChannelShape> {
        let ForwardTensors { x, residual, y, affine } = tensors;
        let dims = x.as_ref().map_or(&y.dims, |x| &x.dims);
        let shape = self.shape(dims, scope)?;
        self.check_like(dims, "y", Some(&y.dims))?;
        self.check_like(dims, "residual", residual.as_ref().map(|v| &v.dims))?;
        affine.check(self.channels)?;
        Ok(shape)
    }

    fn check_backward<T: Element, B: Backend>(
        &self,
        tensors: &BackwardTensors<'_, T, B>,
        scope: Scope,
    ) -> Result<ChannelShape> {
        let BackwardTensors { x, residual, dy, affine, dx, dresidual, grads, .. } = tensors;
        let shape = self.shape(&x.dims, scope)?;
        self.check_like(&x.dims, "dy", Some(&dy.dims))?;
        self.check_like(&x.dims, "residual", residual.as_ref().map(|v| &v.dims))?;
        self.check_like(&x.dims, "dx", dx.as_ref().map(|v| &v.dims))?;
        self.check_like(&x.dims, "dresidual", dresidual.as_ref().map(|v| &v.dims))?;
        affine.check(self.channels)?;
        grads.check(self.channels)?;
        Ok(shape)
    }

    /// `Ok` where a tensor that there is has the dimensions and layout of `x`, and no gaps.
    fn check_like(&self, x: &Dims, arg: &'static str, dims: Option<&Dims>) -> Result<()> {
        dims.map_or(Ok(()), |dims| x.check_same(arg, dims).and_then(|()| dims.check_dense(arg, self.name)))
    }

    fn check_spread(&self, shape: ChannelShape) -> Result<()> {
        if self.one_value_is_enough || shape.is_empty() || shape.per_statistic() > 1 {
            return Ok(());
        }
        let per = match self.scope {
            Scope::Channel => "channel",
            Scope::WholeBatch => "batch",
            Scope::TimeStep(_) => "channel and time step",
            Scope::Chunk(_) => "channel and virtual batch",
            Scope::Group(_) => "channel and sample",
        };
        Err(Error::OneValue { arg: "x", per })
    }
}

/// A forward pass of the channel norms, checked against its shape.
pub struct ChannelNormForward<'a, T: Element, B: Backend> {
    /// `None`: `y` holds it.
    pub(crate) x: Option<B::Ref<'a, T>>,
    pub(crate) residual: Option<B::Ref<'a, T>>,
    pub(crate) y: B::Mut<'a, T>,
    pub(crate) affine: Affine<'a, T, B>,
    pub(crate) eps: f32,
    pub(crate) activation: Activation,
    pub(crate) source: ForwardSource<'a, B>,
}

/// Where a forward pass takes its statistics from.
pub(crate) enum ForwardSource<'a, B: Backend> {
    Batch {
        mean: Option<B::Mut<'a, f32>>,
        rstd: Option<B::Mut<'a, f32>>,
        running: Option<RunningUpdate<'a, B>>,
        /// Whether running statistics are per channel, and move by the mean over the segments.
        averaged: bool,
        #[cfg_attr(not(any(feature = "cuda", feature = "emulator")), expect(dead_code))]
        // the CPU needs none
        workspace: WorkspaceMut<'a, B>,
    },
    Fixed(FixedStatistics<'a, B>),
}

/// A backward pass of the channel norms, checked against its shape.
pub struct ChannelNormBackward<'a, T: Element, B: Backend> {
    pub(crate) x: B::Ref<'a, T>,
    pub(crate) residual: Option<B::Ref<'a, T>>,
    pub(crate) dy: B::Ref<'a, T>,
    pub(crate) affine: Affine<'a, T, B>,
    pub(crate) eps: f32,
    pub(crate) activation: Activation,
    pub(crate) source: BackwardSource<'a, B>,
    pub(crate) dx: Option<B::Mut<'a, T>>,
    pub(crate) dresidual: Option<B::Mut<'a, T>>,
    pub(crate) grads: AffineGrad<'a, T, B>,
    pub(crate) accumulate: bool,
    #[cfg_attr(not(any(feature = "cuda", feature = "emulator")), expect(dead_code))] // the CPU needs none
    pub(crate) workspace: WorkspaceMut<'a, B>,
}

/// The statistics that a backward pass differentiates through, or takes as constants.
pub(crate) enum BackwardSource<'a, B: Backend> {
    Batch { mean: B::Ref<'a, f32>, rstd: B::Ref<'a, f32> },
    Fixed(FixedStatistics<'a, B>),
}
