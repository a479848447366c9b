use crate::{
    Affine, AffineGrad, Backend, Element, Error, Result, Tensor, View, ViewMut, Workspace,
    channel_norm::{
        BackwardStatistics, ChannelNormBackward, ChannelNormForward, ForwardStatistics, RunningUpdate,
    },
    error::check_len,
    shape::{ChannelShape, Dims},
};

pub use crate::shape::Statistics;
pub use buffers::{
    BatchNormBackwardEval, BatchNormBackwardTrain, BatchNormEval, BatchNormGradients, BatchNormOutput,
    BatchNormTrain, RunningStats, RunningStatsMut,
};

mod buffers;

/// Batch normalization (Ioffe and Szegedy, [arXiv:1502.03167](https://arxiv.org/abs/1502.03167)).
///
/// `y = (x - mean) / sqrt(var + eps) * weight + bias`
///
/// for tensors of 2 to 5 dimensions, channels first or last. In training, `mean` and `var` are those of the batch, per
/// channel over samples and positions; in inference they are the running statistics. Where definitions differ this is
/// PyTorch's: the variance that normalizes is biased, `sum((x - mean)²) / n`, and the running statistics follow
///
/// `running_mean = (1 - momentum) * running_mean + momentum * mean`
/// `running_var  = (1 - momentum) * running_var  + momentum * var * n / (n - 1)`
///
/// (ONNX and Keras call `1 - momentum` the momentum and average the biased variance.) With `momentum` `None` each
/// batch weighs the same: the factor is `1 / k` for the `k`-th batch.
///
/// Backward, with `g = dy * weight` and `x_hat = (x - mean) * rstd`:
///
/// `dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat))` in training, `dx = rstd * g` in inference,
/// `dweight = sum(dy * x_hat)`, `dbias = sum(dy)`.
///
/// The methods without `_into` allocate what they return. Those with it write to the caller's buffers and allocate no
/// device memory.
///
/// ```
/// use warpnorm::{Affine, BatchNorm, Cpu, RunningStats, Tensor};
///
/// let x = Tensor::from_slice(&Cpu, &[1.0_f32, 3.0], &[2, 1])?;
/// let (weight, bias) = (Tensor::from_slice(&Cpu, &[2.0], &[1])?, Tensor::from_slice(&Cpu, &[0.5], &[1])?);
/// let mut running = RunningStats::new(&Cpu, 1)?;
/// let bn = BatchNorm::new(1).eps(0.0).momentum(0.5);
///
/// let out = bn.forward_train(&Cpu, &x, Affine::f32(&weight, &bias), Some(&mut running))?;
/// assert_eq!(out.y.to_vec(&Cpu)?, [-1.5, 2.5]);
/// assert_eq!(running.mean.to_vec(&Cpu)?, [1.0]); // 0.5 * 0 + 0.5 * 2
/// assert_eq!(running.var.to_vec(&Cpu)?, [1.5]); // 0.5 * 1 + 0.5 * 2, the unbiased variance
/// # Ok::<(), warpnorm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNorm {
    channels: usize,
    eps: f32,
    momentum: Option<f32>,
    statistics: Statistics,
}

impl BatchNorm {
    /// Normalizes tensors of `channels` channels, with `eps` 1e-5, `momentum` 0.1 and statistics per channel.
    pub fn new(channels: usize) -> Self {
        Self { channels, eps: 1e-5, momentum: Some(0.1), statistics: Statistics::PerChannel }
    }

    /// Sets the number added to the variance: finite, not negative.
    #[must_use]
    pub fn eps(mut self, eps: f32) -> Self {
        self.eps = eps;
        self
    }

    /// Sets the weight of the new value in the running statistics, any finite number; `None` averages all batches.
    #[must_use]
    pub fn momentum(mut self, momentum: impl Into<Option<f32>>) -> Self {
        self.momentum = momentum.into();
        self
    }

    /// Sets what a mean and a variance are taken over.
    #[must_use]
    pub fn statistics(mut self, statistics: Statistics) -> Self {
        self.statistics = statistics;
        self
    }

    /// Length of means, variances and reciprocal standard deviations: the channels, or 1 for the whole batch.
    pub fn statistics_len(&self) -> usize {
        match self.statistics {
            Statistics::PerChannel => self.channels,
            Statistics::WholeBatch => 1,
        }
    }

    /// Normalizes with the statistics of the batch and moves the running statistics, if given.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`], [`Error::Channels`], [`Error::Length`] or [`Error::TooLarge`] for shapes that do not fit,
    /// [`Error::Eps`] and [`Error::Momentum`] for settings out of range, [`Error::OneValue`] where a statistic would
    /// be taken over a single value, and what the backend says of memory and launches.
    pub fn forward_train<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        affine: Affine<'_, T, B>,
        running: Option<&mut RunningStats<B>>,
    ) -> Result<BatchNormOutput<T, B>> {
        let mut y = Tensor::zeros_like(on, x)?;
        let mut mean = Tensor::zeros(on, &[self.statistics_len()])?;
        let mut rstd = Tensor::zeros(on, &[self.statistics_len()])?;
        let mut workspace = self.workspace(on, x)?;
        let args = BatchNormTrain {
            x: x.view(),
            y: y.view_mut(),
            affine: affine.reborrow(),
            mean: Some(mean.data_mut()),
            rstd: Some(rstd.data_mut()),
            running: running.map(RunningStats::borrow_mut),
            workspace: &mut workspace,
        };
        self.forward_train_into(on, args)?;
        Ok(BatchNormOutput { y, mean, rstd })
    }

    /// Normalizes with the running statistics.
    ///
    /// # Errors
    ///
    /// As [`forward_train`](Self::forward_train), less [`Error::Momentum`] and [`Error::OneValue`].
    pub fn forward_eval<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        affine: Affine<'_, T, B>,
        running: &RunningStats<B>,
    ) -> Result<Tensor<T, B>> {
        let mut y = Tensor::zeros_like(on, x)?;
        let args = BatchNormEval {
            x: x.view(),
            y: y.view_mut(),
            affine: affine.reborrow(),
            running_mean: running.mean.data(),
            running_var: running.var.data(),
        };
        self.forward_eval_into(on, args)?;
        Ok(y)
    }

    /// Gradients of [`forward_train`](Self::forward_train), from its saved `mean` and `rstd`.
    ///
    /// # Errors
    ///
    /// As [`forward_train`](Self::forward_train), and [`Error::ShapeMismatch`] where `dy` is not shaped like `x`.
    pub fn backward_train<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        dy: &Tensor<T, B>,
        affine: Affine<'_, T, B>,
        saved: &BatchNormOutput<T, B>,
    ) -> Result<BatchNormGradients<T, B>> {
        let mut grads = BatchNormGradients::zeros(on, x, &affine)?;
        let mut workspace = self.workspace(on, x)?;
        let args = BatchNormBackwardTrain {
            x: x.view(),
            dy: dy.view(),
            affine: affine.reborrow(),
            mean: saved.mean.data(),
            rstd: saved.rstd.data(),
            dx: Some(grads.dx.view_mut()),
            grads: AffineGrad::F32 {
                dweight: grads.dweight.as_mut().map(Tensor::data_mut),
                dbias: grads.dbias.as_mut().map(Tensor::data_mut),
            },
            workspace: &mut workspace,
        };
        self.backward_train_into(on, args)?;
        Ok(grads)
    }

    /// Gradients of [`forward_eval`](Self::forward_eval), in which the running statistics are constants.
    ///
    /// # Errors
    ///
    /// As [`forward_eval`](Self::forward_eval), and [`Error::ShapeMismatch`] where `dy` is not shaped like `x`.
    pub fn backward_eval<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        dy: &Tensor<T, B>,
        affine: Affine<'_, T, B>,
        running: &RunningStats<B>,
    ) -> Result<BatchNormGradients<T, B>> {
        let mut grads = BatchNormGradients::zeros(on, x, &affine)?;
        let mut workspace = self.workspace(on, x)?;
        let args = BatchNormBackwardEval {
            x: x.view(),
            dy: dy.view(),
            affine: affine.reborrow(),
            running_mean: running.mean.data(),
            running_var: running.var.data(),
            dx: Some(grads.dx.view_mut()),
            grads: AffineGrad::F32 {
                dweight: grads.dweight.as_mut().map(Tensor::data_mut),
                dbias: grads.dbias.as_mut().map(Tensor::data_mut),
            },
            workspace: &mut workspace,
        };
        self.backward_eval_into(on, args)?;
        Ok(grads)
    }

    /// Scratch memory for tensors shaped like `x`, enough for every method and element type.
    ///
    /// # Errors
    ///
    /// The shape errors of [`forward_train`](Self::forward_train), and what the backend says of memory.
    pub fn workspace<T: Element, B: Backend>(&self, on: &B, x: &Tensor<T, B>) -> Result<Workspace<B>> {
        self.workspace_for(on, x.view())
    }

    /// As [`workspace`](Self::workspace), for a view.
    ///
    /// # Errors
    ///
    /// As [`workspace`](Self::workspace).
    pub fn workspace_for<T: Element, B: Backend>(&self, on: &B, x: View<'_, T, B>) -> Result<Workspace<B>> {
        let shape = ChannelShape::of("x", &x.dims, self.channels)?;
        Workspace::new(on, on.channel_norm_workspace(shape, self.whole_batch()))
    }

    /// [`forward_train`](Self::forward_train) into the caller's buffers.
    ///
    /// # Errors
    ///
    /// As [`forward_train`](Self::forward_train), [`Error::ShapeMismatch`] where `y` is not shaped like `x`,
    /// [`Error::Workspace`] where the workspace was made for less, and [`Error::WrongDevice`].
    pub fn forward_train_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: BatchNormTrain<'_, T, B>,
    ) -> Result<()> {
        let BatchNormTrain { x, y, affine, mean, rstd, running, workspace } = args;
        let shape = self.check(&x.dims, &affine)?;
        x.dims.check_same("y", &y.dims)?;
        self.check_statistic_mut::<B>("mean", &mean)?;
        self.check_statistic_mut::<B>("rstd", &rstd)?;
        if let Some(momentum) = self.momentum.filter(|m| !m.is_finite()) {
            return Err(Error::Momentum(momentum));
        }
        let mut batches = None;
        let mut update = None;
        if let Some(stats) = running {
            check_len("running_mean", self.statistics_len(), B::len_mut(&stats.mean))?;
            check_len("running_var", self.statistics_len(), B::len_mut(&stats.var))?;
            let momentum = self.momentum.unwrap_or_else(|| 1.0 / stats.batches.saturating_add(1) as f32);
            batches = Some(stats.batches);
            update = Some(RunningUpdate { mean: stats.mean, var: stats.var, momentum });
        }
        if !shape.is_empty() {
            if self.values_per_statistic(shape) == 1 {
                return Err(Error::OneValue { arg: "x", per: self.per() });
            }
            workspace.check(on.channel_norm_workspace(shape, self.whole_batch()))?;
            let source = ForwardStatistics::Batch {
                whole_batch: self.whole_batch(),
                mean,
                rstd,
                running: update,
                workspace: workspace.borrow_mut(),
            };
            on.channel_norm_fwd(
                shape,
                ChannelNormForward { x: x.data, y: y.data, affine, eps: self.eps, source },
            )?;
        }
        if let Some(batches) = batches {
            *batches = batches.saturating_add(1);
        }
        Ok(())
    }

    /// [`forward_eval`](Self::forward_eval) into the caller's buffers.
    ///
    /// # Errors
    ///
    /// As [`forward_eval`](Self::forward_eval), [`Error::ShapeMismatch`] where `y` is not shaped like `x`, and
    /// [`Error::WrongDevice`].
    pub fn forward_eval_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: BatchNormEval<'_, T, B>,
    ) -> Result<()> {
        let BatchNormEval { x, y, affine, running_mean, running_var } = args;
        let shape = self.check(&x.dims, &affine)?;
        x.dims.check_same("y", &y.dims)?;
        check_len("running_mean", self.statistics_len(), B::len(&running_mean))?;
        check_len("running_var", self.statistics_len(), B::len(&running_var))?;
        if shape.is_empty() {
            return Ok(());
        }
        let source = ForwardStatistics::Running {
            whole_batch: self.whole_batch(),
            mean: running_mean,
            var: running_var,
        };
        on.channel_norm_fwd(shape, ChannelNormForward { x: x.data, y: y.data, affine, eps: self.eps, source })
    }

    /// [`backward_train`](Self::backward_train) into the caller's buffers.
    ///
    /// # Errors
    ///
    /// As [`backward_train`](Self::backward_train), [`Error::Workspace`] where the workspace was made for less, and
    /// [`Error::WrongDevice`].
    pub fn backward_train_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: BatchNormBackwardTrain<'_, T, B>,
    ) -> Result<()> {
        let BatchNormBackwardTrain { x, dy, affine, mean, rstd, dx, grads, workspace } = args;
        check_len("mean", self.statistics_len(), B::len(&mean))?;
        check_len("rstd", self.statistics_len(), B::len(&rstd))?;
        let shape = self.check_backward(&x, &dy, &affine, dx.as_ref(), &grads)?;
        if !shape.is_empty() && self.values_per_statistic(shape) == 1 {
            return Err(Error::OneValue { arg: "x", per: self.per() });
        }
        let source = BackwardStatistics::Batch { mean, rstd };
        self.backward(on, shape, x, dy, affine, source, dx, grads, workspace)
    }

    /// [`backward_eval`](Self::backward_eval) into the caller's buffers.
    ///
    /// # Errors
    ///
    /// As [`backward_train_into`](Self::backward_train_into).
    pub fn backward_eval_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: BatchNormBackwardEval<'_, T, B>,
    ) -> Result<()> {
        let BatchNormBackwardEval { x, dy, affine, running_mean, running_var, dx, grads, workspace } = args;
        check_len("running_mean", self.statistics_len(), B::len(&running_mean))?;
        check_len("running_var", self.statistics_len(), B::len(&running_var))?;
        let shape = self.check_backward(&x, &dy, &affine, dx.as_ref(), &grads)?;
        let source = BackwardStatistics::Running { mean: running_mean, var: running_var };
        self.backward(on, shape, x, dy, affine, source, dx, grads, workspace)
    }

    #[allow(clippy::too_many_arguments)] // the checked pieces of one argument struct
    fn backward<'a, T: Element, B: Backend>(
        &self,
        on: &B,
        shape: ChannelShape,
        x: View<'a, T, B>,
        dy: View<'a, T, B>,
        affine: Affine<'a, T, B>,
        source: BackwardStatistics<'a, B>,
        dx: Option<ViewMut<'a, T, B>>,
        grads: AffineGrad<'a, T, B>,
        workspace: &'a mut Workspace<B>,
    ) -> Result<()> {
        if grads.is_none() && (dx.is_none() || shape.is_empty()) || shape.channels() == 0 {
            return Ok(());
        }
        workspace.check(on.channel_norm_workspace(shape, self.whole_batch()))?;
        let args = ChannelNormBackward {
            x: x.data,
            dy: dy.data,
            affine,
            eps: self.eps,
            whole_batch: self.whole_batch(),
            source,
            dx: dx.map(|v| v.data),
            grads,
            workspace: workspace.borrow_mut(),
        };
        on.channel_norm_bwd(shape, args)
    }

    fn whole_batch(&self) -> bool {
        self.statistics == Statistics::WholeBatch
    }

    fn per(&self) -> &'static str {
        if self.whole_batch() { "batch" } else { "channel" }
    }

    fn values_per_statistic(&self, shape: ChannelShape) -> usize {
        if self.whole_batch() { shape.len() } else { shape.per_channel() }
    }

    fn check<T: Element, B: Backend>(&self, x: &Dims, affine: &Affine<'_, T, B>) -> Result<ChannelShape> {
        if !(self.eps >= 0.0 && self.eps.is_finite()) {
            return Err(Error::Eps(self.eps));
        }
        let shape = ChannelShape::of("x", x, self.channels)?;
        affine.check(self.channels)?;
        Ok(shape)
    }

    fn check_backward<T: Element, B: Backend>(
        &self,
        x: &View<'_, T, B>,
        dy: &View<'_, T, B>,
        affine: &Affine<'_, T, B>,
        dx: Option<&ViewMut<'_, T, B>>,
        grads: &AffineGrad<'_, T, B>,
    ) -> Result<ChannelShape> {
        let shape = self.check(&x.dims, affine)?;
        x.dims.check_same("dy", &dy.dims)?;
        dx.map_or(Ok(()), |dx| x.dims.check_same("dx", &dx.dims))?;
        grads.check(self.channels)?;
        Ok(shape)
    }

    fn check_statistic_mut<B: Backend>(
        &self,
        arg: &'static str,
        data: &Option<B::Mut<'_, f32>>,
    ) -> Result<()> {
        data.as_ref().map_or(Ok(()), |data| check_len(arg, self.statistics_len(), B::len_mut(data)))
    }
}
