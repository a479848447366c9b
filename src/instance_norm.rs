use crate::{
    Activation, Affine, Backend, BatchNormBackwardEval, BatchNormBackwardTrain, BatchNormEval,
    BatchNormEvalInPlace, BatchNormOutput, BatchNormTrain, BatchNormTrainInPlace, Element, Gradients, Result,
    RunningStats, Tensor, View, Workspace, channel_norm::ChannelOp, shape::Scope,
};

#[cfg(doc)]
use crate::Error;

/// What [`InstanceNorm::forward`] returns; `mean` and `rstd` are `[samples, channels]`.
pub type InstanceNormOutput<T, B> = BatchNormOutput<T, B>;
/// Buffers of [`InstanceNorm::forward_into`].
pub type InstanceNormForward<'a, T, B> = BatchNormTrain<'a, T, B>;
/// Buffers of [`InstanceNorm::forward_in_place_into`].
pub type InstanceNormInPlace<'a, T, B> = BatchNormTrainInPlace<'a, T, B>;
/// Buffers of [`InstanceNorm::forward_eval_into`].
pub type InstanceNormEval<'a, T, B> = BatchNormEval<'a, T, B>;
/// Buffers of [`InstanceNorm::forward_eval_in_place_into`].
pub type InstanceNormEvalInPlace<'a, T, B> = BatchNormEvalInPlace<'a, T, B>;
/// Buffers of [`InstanceNorm::backward_into`].
pub type InstanceNormBackward<'a, T, B> = BatchNormBackwardTrain<'a, T, B>;
/// Buffers of [`InstanceNorm::backward_eval_into`].
pub type InstanceNormBackwardEval<'a, T, B> = BatchNormBackwardEval<'a, T, B>;

/// Instance normalization (Ulyanov, Vedaldi and Lempitsky, [arXiv:1607.08022](https://arxiv.org/abs/1607.08022)).
///
/// `y = (x - mean) / sqrt(var + eps) * weight + bias`
///
/// for tensors of 3 to 5 dimensions, channels first or last, with `mean` and the biased `var = sum((x - mean)²) / n` of
/// each channel of each sample, over its `n` positions. Weight and bias have one value per channel. A tensor without a
/// batch dimension is one sample: `[1, channels, ...]`.
///
/// [`forward`](Self::forward) always normalizes with the statistics of the tensor at hand, in training and in
/// inference. Running statistics are optional (PyTorch's `track_running_stats`): `forward` moves them, once per call, by
///
/// `running_mean = (1 - momentum) * running_mean + momentum * mean over the samples of mean`
/// `running_var  = (1 - momentum) * running_var  + momentum * mean over the samples of var * n / (n - 1)`
///
/// and [`forward_eval`](Self::forward_eval) normalizes with them, one mean and variance per channel, as PyTorch does
/// in inference where they are tracked.
///
/// With an activation, or a residual among the buffers, `y = act(x_hat * weight + bias + residual)`. Backward, with
/// `d = act'(z) * dy`, where `z` is what the activation was given, `g = d * weight` and `x_hat = (x - mean) * rstd`:
///
/// `dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat))`, means over positions, or `rstd * g` in inference;
/// `dweight = sum(d * x_hat)`, `dbias = sum(d)`, sums over samples and positions; `dresidual = d`.
///
/// # Beside other libraries
///
/// - PyTorch: the same, but its modules have neither weight nor bias, nor running statistics, unless asked for.
/// - ONNX: the same without running statistics, `eps` 1e-5 too; scale and bias are required there.
/// - Keras: its GroupNormalization with `groups` -1, `eps` 1e-3, no running statistics.
///
/// # Special values
///
/// - A single position per channel is [`Error::OneValue`] in `forward`, as in PyTorch; not in `forward_eval`.
/// - Equal values give exactly the bias with `eps > 0`, NaN with `eps` 0.
/// - A NaN or an infinity makes its own channel of its own sample NaN, and running statistics of that channel NaN or
///   infinite.
/// - No samples, or no positions, give an empty `y`, leave the running statistics alone and count as a call.
///
/// # Example
///
/// ```
/// use warpnorm::{Affine, Cpu, InstanceNorm, RunningStats, Tensor};
///
/// // Two samples of one channel with two positions.
/// let x = Tensor::from_slice(&Cpu, &[1.0_f32, 3.0, 10.0, 30.0], &[2, 1, 2])?;
/// let mut running = RunningStats::new(&Cpu, 1)?;
/// let norm = InstanceNorm::new(1).eps(0.0).momentum(1.0);
///
/// let out = norm.forward(&Cpu, &x, Affine::None, Some(&mut running))?;
/// assert_eq!(out.y.to_vec(&Cpu)?, [-1.0, 1.0, -1.0, 1.0]);
/// assert_eq!(out.mean.to_vec(&Cpu)?, [2.0, 20.0]);
/// assert_eq!(running.mean.to_vec(&Cpu)?, [11.0]); // (2 + 20) / 2
/// assert_eq!(running.var.to_vec(&Cpu)?, [101.0]); // (2 + 200) / 2, of unbiased variances
/// # Ok::<(), warpnorm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InstanceNorm {
    channels: usize,
    eps: f32,
    momentum: Option<f32>,
    activation: Activation,
}

impl InstanceNorm {
    /// Normalizes tensors of `channels` channels, with `eps` 1e-5 and `momentum` 0.1.
    pub fn new(channels: usize) -> Self {
        Self { channels, eps: 1e-5, momentum: Some(0.1), activation: Activation::None }
    }

    /// Sets the number added to the variance, inside the root: finite, not negative.
    #[must_use]
    pub fn eps(mut self, eps: f32) -> Self {
        self.eps = eps;
        self
    }

    /// Sets the weight of the new value in the running statistics, any finite number; `None` averages all calls.
    /// [`RunningStatsMut::momentum`](crate::RunningStatsMut::momentum) takes its place where it is given.
    #[must_use]
    pub fn momentum(mut self, momentum: impl Into<Option<f32>>) -> Self {
        self.momentum = momentum.into();
        self
    }

    /// Sets what is applied last.
    #[must_use]
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Length of running means and variances: the channels.
    pub fn running_len(&self) -> usize {
        self.channels
    }

    /// Length of the means and reciprocal standard deviations that [`forward`](Self::forward) saves: samples times
    /// channels.
    ///
    /// # Errors
    ///
    /// The shape errors of [`forward`](Self::forward).
    pub fn saved_len<T: Element, B: Backend>(&self, x: &View<'_, T, B>) -> Result<usize> {
        self.op().saved_len(&x.dims)
    }

    /// Normalizes each channel of each sample and moves the running statistics, if given.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`], [`Error::Channels`], [`Error::Length`] or [`Error::TooLarge`] for shapes that do not fit,
    /// [`Error::Eps`] and [`Error::Momentum`] for settings out of range, [`Error::OneValue`] where a channel of a
    /// sample holds a single value, and what the backend says of memory and launches.
    pub fn forward<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        affine: Affine<'_, T, B>,
        running: Option<&mut RunningStats<B>>,
    ) -> Result<InstanceNormOutput<T, B>> {
        self.op().normalized(on, x, &affine, running)
    }

    /// Normalizes with the running statistics.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward), less [`Error::Momentum`] and [`Error::OneValue`].
    pub fn forward_eval<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        affine: Affine<'_, T, B>,
        running: &RunningStats<B>,
    ) -> Result<Tensor<T, B>> {
        self.op().normalized_by(on, x, &affine, running)
    }

    /// [`forward`](Self::forward) into `x` itself, without running statistics.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_in_place<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &mut Tensor<T, B>,
        affine: Affine<'_, T, B>,
    ) -> Result<()> {
        let mut workspace = self.workspace(on, x)?;
        let args = InstanceNormInPlace {
            x: x.view_mut(),
            residual: None,
            affine: affine.reborrow(),
            mean: None,
            rstd: None,
            running: None,
            workspace: &mut workspace,
        };
        self.forward_in_place_into(on, args)
    }

    /// Gradients of [`forward`](Self::forward), from its saved `mean` and `rstd`.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward), less [`Error::Momentum`], and [`Error::ShapeMismatch`]
    /// where `dy` is not shaped like `x`.
    pub fn backward<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        dy: &Tensor<T, B>,
        affine: Affine<'_, T, B>,
        saved: &InstanceNormOutput<T, B>,
    ) -> Result<Gradients<T, B>> {
        self.op().gradients(on, x, dy, &affine, [&saved.mean, &saved.rstd])
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
        self.op().gradients_by(on, x, dy, &affine, running)
    }

    /// Scratch memory for tensors shaped like `x`, enough for every method and element type.
    ///
    /// # Errors
    ///
    /// The shape errors of [`forward`](Self::forward), and what the backend says of memory.
    pub fn workspace<T: Element, B: Backend>(&self, on: &B, x: &Tensor<T, B>) -> Result<Workspace<B>> {
        self.workspace_for(on, x.view())
    }

    /// As [`workspace`](Self::workspace), for a view.
    ///
    /// # Errors
    ///
    /// As [`workspace`](Self::workspace).
    pub fn workspace_for<T: Element, B: Backend>(&self, on: &B, x: View<'_, T, B>) -> Result<Workspace<B>> {
        self.op().workspace(on, &x.dims)
    }

    /// [`forward`](Self::forward) into the caller's buffers.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward), [`Error::ShapeMismatch`] where a tensor is not shaped like `x`,
    /// [`Error::Strided`] where one has gaps, [`Error::Workspace`] where the workspace was made for less, and
    /// [`Error::WrongDevice`].
    pub fn forward_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: InstanceNormForward<'_, T, B>,
    ) -> Result<()> {
        self.op().train(on, args.parts())
    }

    /// [`forward_into`](Self::forward_into) with the output in place of the input.
    ///
    /// # Errors
    ///
    /// As [`forward_into`](Self::forward_into).
    pub fn forward_in_place_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: InstanceNormInPlace<'_, T, B>,
    ) -> Result<()> {
        self.op().train(on, args.parts())
    }

    /// [`forward_eval`](Self::forward_eval) into the caller's buffers.
    ///
    /// # Errors
    ///
    /// As [`forward_eval`](Self::forward_eval), [`Error::ShapeMismatch`] where a tensor is not shaped like `x`,
    /// [`Error::Strided`] where one has gaps, and [`Error::WrongDevice`].
    pub fn forward_eval_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: InstanceNormEval<'_, T, B>,
    ) -> Result<()> {
        let (tensors, statistics) = args.parts();
        self.op().forward_fixed(on, tensors, statistics)
    }

    /// [`forward_eval_into`](Self::forward_eval_into) with the output in place of the input.
    ///
    /// # Errors
    ///
    /// As [`forward_eval_into`](Self::forward_eval_into).
    pub fn forward_eval_in_place_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: InstanceNormEvalInPlace<'_, T, B>,
    ) -> Result<()> {
        let (tensors, statistics) = args.parts();
        self.op().forward_fixed(on, tensors, statistics)
    }

    /// [`backward`](Self::backward) into the caller's buffers.
    ///
    /// # Errors
    ///
    /// As [`backward`](Self::backward), [`Error::Strided`] where a tensor has gaps, [`Error::Workspace`] where the
    /// workspace was made for less, and [`Error::WrongDevice`].
    pub fn backward_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: InstanceNormBackward<'_, T, B>,
    ) -> Result<()> {
        let (tensors, mean, rstd) = args.parts();
        self.op().backward_batch(on, tensors, mean, rstd)
    }

    /// [`backward_eval`](Self::backward_eval) into the caller's buffers.
    ///
    /// # Errors
    ///
    /// As [`backward_into`](Self::backward_into).
    pub fn backward_eval_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: InstanceNormBackwardEval<'_, T, B>,
    ) -> Result<()> {
        let (tensors, statistics) = args.parts();
        self.op().backward_fixed(on, tensors, statistics)
    }

    fn op(&self) -> ChannelOp {
        ChannelOp {
            name: "InstanceNorm",
            channels: self.channels,
            eps: self.eps,
            activation: self.activation,
            // As many groups as channels; 0 channels are no reason to speak of groups.
            scope: Scope::Group(self.channels.max(1)),
            fixed_scope: Scope::Channel,
            one_value_is_enough: false,
            momentum: self.momentum,
            running_len: self.channels,
        }
    }
}
