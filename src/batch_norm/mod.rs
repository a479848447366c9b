use crate::{
    Activation, Affine, Backend, Element, Error, Gradients, Result, Tensor, View, Workspace,
    channel_norm::ChannelOp, shape::Scope,
};

pub(crate) use buffers::TrainParts;
pub use buffers::{
    BatchNormBackwardEval, BatchNormBackwardTrain, BatchNormEval, BatchNormEvalInPlace, BatchNormOutput,
    BatchNormTrain, BatchNormTrainInPlace, RunningStats, RunningStatsMut,
};

mod buffers;
mod into;

/// What the statistics of a BatchNorm are taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Statistics {
    /// A mean and a variance for each channel, over the batch and all positions.
    #[default]
    PerChannel,
    /// One mean and one variance over all values of the batch. Weight and bias stay per channel.
    WholeBatch,
    /// A mean and a variance for each channel at each time step, over the batch and all positions, for tensors
    /// `[time, batch, channels]` and longer (Cooijmans et al., [arXiv:1603.09025](https://arxiv.org/abs/1603.09025)).
    /// Weight and bias are shared by the steps.
    PerTimeStep {
        /// Entries of the first dimension.
        steps: usize,
    },
}

/// Batch normalization (Ioffe and Szegedy, [arXiv:1502.03167](https://arxiv.org/abs/1502.03167)).
///
/// `y = (x - mean) / sqrt(var + eps) * weight + bias`
///
/// for tensors of 2 to 5 dimensions, channels first or last; weight and bias have one value per channel. In training,
/// `mean` and the biased `var = sum((x - mean)²) / n` are those of the batch, per channel over samples and positions; in
/// inference they are the running statistics, which training moves by
///
/// `running_mean = (1 - momentum) * running_mean + momentum * mean`
/// `running_var  = (1 - momentum) * running_var  + momentum * var * n / (n - 1)`
///
/// With `momentum` `None` each call weighs the same: the factor is `1 / k` in the `k`-th call. [`Statistics`] and
/// [`virtual_batch`](Self::virtual_batch) say what else a mean may be taken over.
///
/// With an activation, or a residual among the buffers, `y = act(x_hat * weight + bias + residual)`, with no more
/// traffic than reading the residual. Backward, with `d = act'(z) * dy`, where `z` is what the activation was given,
/// `g = d * weight`, `x_hat = (x - mean) * rstd` and means over what shares a statistic:
///
/// `dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat))` in training, `dx = rstd * g` in inference,
/// `dweight = sum(d * x_hat)`, `dbias = sum(d)`, `dresidual = d`. `z` is computed again, not kept.
///
/// The methods without `_into` allocate what they return and know neither residual nor accumulation. Those with it write
/// to the caller's buffers and allocate no device memory.
///
/// # Beside other libraries
///
/// | | here | PyTorch | ONNX | Keras 3 |
/// |---|---|---|---|---|
/// | running variance | unbiased | unbiased | biased | biased |
/// | `momentum` weighs | the new value, 0.1 | the new value, 0.1 | the old value, 0.9 | the old value, 0.99 |
/// | default `eps` | 1e-5 | 1e-5 | 1e-5 | 1e-3 |
///
/// So ONNX's momentum of 0.9 is 0.1 here. A biased running variance is `(n - 1) / n` of the unbiased one.
///
/// # Special values
///
/// - One value per statistic in training is [`Error::OneValue`], as in PyTorch: its unbiased variance would be `0 / 0`.
/// - An empty batch gives an empty `y`, leaves the running statistics alone and counts as a call; `dweight` and `dbias`
///   are zeros, or stay as they are if accumulated.
/// - Equal values give exactly the bias (then activation and residual) with `eps > 0`, NaN with `eps` 0.
/// - A NaN or an infinity in training makes all that shares its statistic NaN, the running statistics that move with
///   it NaN or infinite, and nothing else. With a momentum of 0 these stay as they are, bit for bit.
///
/// # Examples
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
///
/// The end of a residual block, `y = relu(norm(x) + residual)`, and its gradients:
///
/// ```
/// use warpnorm::{Activation, Affine, AffineGrad, BatchNorm, BatchNormBackwardTrain, BatchNormTrain, Cpu, Tensor};
///
/// let x = Tensor::from_slice(&Cpu, &[1.0_f32, 3.0, 1.0, 3.0], &[4, 1])?; // x_hat is -1, 1, -1, 1
/// let residual = Tensor::from_slice(&Cpu, &[2.0_f32, 0.0, 0.0, 0.0], &[4, 1])?;
/// let mut y = Tensor::zeros(&Cpu, &[4, 1])?;
/// let (mut mean, mut rstd) = (Tensor::zeros(&Cpu, &[1])?, Tensor::zeros(&Cpu, &[1])?);
/// let bn = BatchNorm::new(1).eps(0.0).activation(Activation::Relu);
/// let mut workspace = bn.workspace(&Cpu, &x)?;
/// let args = BatchNormTrain {
///     x: x.view(),
///     residual: Some(residual.view()),
///     y: y.view_mut(),
///     affine: Affine::None,
///     mean: Some(mean.data_mut()),
///     rstd: Some(rstd.data_mut()),
///     running: None,
///     workspace: &mut workspace,
/// };
/// bn.forward_train_into(&Cpu, args)?;
/// assert_eq!(y.to_vec(&Cpu)?, [1.0, 1.0, 0.0, 1.0]);
///
/// let dy = Tensor::from_slice(&Cpu, &[4.0_f32, 0.0, 4.0, 0.0], &[4, 1])?;
/// let (mut dx, mut dresidual) = (Tensor::zeros(&Cpu, &[4, 1])?, Tensor::zeros(&Cpu, &[4, 1])?);
/// let mut dbias = Tensor::from_slice(&Cpu, &[0.5_f32], &[1])?;
/// let args = BatchNormBackwardTrain {
///     x: x.view(),
///     residual: Some(residual.view()),
///     dy: dy.view(),
///     affine: Affine::None,
///     mean: mean.data(),
///     rstd: rstd.data(),
///     dx: Some(dx.view_mut()),
///     dresidual: Some(dresidual.view_mut()),
///     grads: AffineGrad::F32 { dweight: None, dbias: Some(dbias.data_mut()) },
///     accumulate: true,
///     workspace: &mut workspace,
/// };
/// bn.backward_train_into(&Cpu, args)?;
/// assert_eq!(dresidual.to_vec(&Cpu)?, [4.0, 0.0, 0.0, 0.0]); // the third was cut off
/// assert_eq!(dx.to_vec(&Cpu)?, [2.0, 0.0, -2.0, 0.0]); // d - 1 + x_hat
/// assert_eq!(dbias.to_vec(&Cpu)?, [4.5]); // 0.5 was there
/// # Ok::<(), warpnorm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNorm {
    pub(crate) channels: usize,
    pub(crate) eps: f32,
    momentum: Option<f32>,
    pub(crate) statistics: Statistics,
    virtual_batch: Option<usize>,
    activation: Activation,
}

impl BatchNorm {
    /// Normalizes tensors of `channels` channels, with `eps` 1e-5, `momentum` 0.1 and statistics per channel.
    pub fn new(channels: usize) -> Self {
        Self {
            channels,
            eps: 1e-5,
            momentum: Some(0.1),
            statistics: Statistics::PerChannel,
            virtual_batch: None,
            activation: Activation::None,
        }
    }

    /// Sets the number added to the variance, inside the root: finite, not negative.
    #[must_use]
    pub fn eps(mut self, eps: f32) -> Self {
        self.eps = eps;
        self
    }

    /// Sets the weight of the new value in the running statistics, any finite number; `None` averages all calls.
    /// [`RunningStatsMut::momentum`] takes its place where it is given.
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

    /// Takes the statistics of a training pass over chunks of `samples` consecutive samples, as if each were a batch
    /// (Hoffer et al., [arXiv:1705.08741](https://arxiv.org/abs/1705.08741), "ghost batches"). The running statistics
    /// move once per call, as with `virtual_batch_size` in earlier versions of Keras (the paper moves them chunk by
    /// chunk): by the mean over the chunks of the means and of the unbiased variances. The samples must be a multiple;
    /// for [`Statistics::PerChannel`]. Inference is not cut.
    #[must_use]
    pub fn virtual_batch(mut self, samples: impl Into<Option<usize>>) -> Self {
        self.virtual_batch = samples.into();
        self
    }

    /// Sets what is applied last.
    #[must_use]
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Length of running means and variances: the channels, 1 for the whole batch, or steps times channels.
    pub fn running_len(&self) -> usize {
        match self.statistics {
            Statistics::PerChannel => self.channels,
            Statistics::WholeBatch => 1,
            Statistics::PerTimeStep { steps } => steps.saturating_mul(self.channels),
        }
    }

    /// Length of the means and reciprocal standard deviations that a training pass over `x` saves: as many as
    /// [`running_len`](Self::running_len), or channels times chunks, chunk by chunk, with a virtual batch.
    ///
    /// # Errors
    ///
    /// The shape errors of [`forward_train`](Self::forward_train).
    pub fn saved_len<T: Element, B: Backend>(&self, x: &View<'_, T, B>) -> Result<usize> {
        self.op()?.saved_len(&x.dims)
    }

    /// Normalizes with the statistics of the batch and moves the running statistics, if given.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`], [`Error::Channels`], [`Error::Length`], [`Error::VirtualBatch`], [`Error::TimeSteps`] or
    /// [`Error::TooLarge`] for shapes that do not fit, [`Error::Eps`] and [`Error::Momentum`] for settings out of
    /// range, [`Error::Unsupported`] for a virtual batch with other statistics than per channel, [`Error::OneValue`]
    /// where a statistic would be taken over a single value, and what the backend says of memory and launches.
    pub fn forward_train<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        affine: Affine<'_, T, B>,
        running: Option<&mut RunningStats<B>>,
    ) -> Result<BatchNormOutput<T, B>> {
        self.op()?.normalized(on, x, &affine, running)
    }

    /// Normalizes with the running statistics.
    ///
    /// # Errors
    ///
    /// As [`forward_train`](Self::forward_train), less [`Error::Momentum`], [`Error::OneValue`] and
    /// [`Error::VirtualBatch`].
    pub fn forward_eval<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        affine: Affine<'_, T, B>,
        running: &RunningStats<B>,
    ) -> Result<Tensor<T, B>> {
        self.op()?.normalized_by(on, x, &affine, running)
    }

    /// [`forward_eval`](Self::forward_eval) into `x` itself.
    ///
    /// # Errors
    ///
    /// As [`forward_eval`](Self::forward_eval).
    pub fn forward_eval_in_place<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &mut Tensor<T, B>,
        affine: Affine<'_, T, B>,
        running: &RunningStats<B>,
    ) -> Result<()> {
        let args = BatchNormEvalInPlace {
            x: x.view_mut(),
            residual: None,
            affine: affine.reborrow(),
            running_mean: running.mean.data(),
            running_var: running.var.data(),
        };
        self.forward_eval_in_place_into(on, args)
    }

    /// Gradients of [`forward_train`](Self::forward_train), from its saved `mean` and `rstd`.
    ///
    /// # Errors
    ///
    /// As [`forward_train`](Self::forward_train), less [`Error::Momentum`], and [`Error::ShapeMismatch`]
    /// where `dy` is not shaped like `x`.
    pub fn backward_train<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        dy: &Tensor<T, B>,
        affine: Affine<'_, T, B>,
        saved: &BatchNormOutput<T, B>,
    ) -> Result<Gradients<T, B>> {
        self.op()?.gradients(on, x, dy, &affine, [&saved.mean, &saved.rstd])
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
    ) -> Result<Gradients<T, B>> {
        self.op()?.gradients_by(on, x, dy, &affine, running)
    }

    /// Scratch memory for tensors shaped like `x`, enough for every method and element type.
    ///
    /// # Errors
    ///
    /// The shape errors of [`forward_eval`](Self::forward_eval), and what the backend says of memory.
    pub fn workspace<T: Element, B: Backend>(&self, on: &B, x: &Tensor<T, B>) -> Result<Workspace<B>> {
        self.workspace_for(on, x.view())
    }

    /// As [`workspace`](Self::workspace), for a view.
    ///
    /// # Errors
    ///
    /// As [`workspace`](Self::workspace).
    pub fn workspace_for<T: Element, B: Backend>(&self, on: &B, x: View<'_, T, B>) -> Result<Workspace<B>> {
        self.op()?.workspace(on, &x.dims)
    }

    pub(crate) fn has_virtual_batch(&self) -> bool {
        self.virtual_batch.is_some()
    }

    fn op(&self) -> Result<ChannelOp> {
        let fixed_scope = match self.statistics {
            Statistics::PerChannel => Scope::Channel,
            Statistics::WholeBatch => Scope::WholeBatch,
            Statistics::PerTimeStep { steps } => Scope::TimeStep(steps),
        };
        let scope = match self.virtual_batch {
            None => fixed_scope,
            Some(samples) if fixed_scope == Scope::Channel => Scope::Chunk(samples),
            Some(_) => {
                return Err(Error::Unsupported("a virtual batch needs statistics per channel"));
            }
        };
        Ok(ChannelOp {
            name: "BatchNorm",
            channels: self.channels,
            eps: self.eps,
            activation: self.activation,
            scope,
            fixed_scope,
            one_value_is_enough: false,
            momentum: self.momentum,
            running_len: self.running_len(),
        })
    }
}
