use crate::{
    Activation, Affine, AffineGrad, Backend, BatchNormOutput, Element, Gradients, Result, Tensor, View,
    ViewMut, Workspace,
    channel_norm::{BackwardTensors, BatchStatistics, ChannelOp, ForwardTensors},
    shape::Scope,
};

#[cfg(doc)]
use crate::Error;

/// Group normalization (Wu and He, [arXiv:1803.08494](https://arxiv.org/abs/1803.08494)).
///
/// `y = (x - mean) / sqrt(var + eps) * weight + bias`
///
/// for tensors of 2 to 5 dimensions, channels first or last, with `mean` and the biased `var = sum((x - mean)²) / n` of
/// each group of `channels / groups` neighboring channels within each sample, over its `n` values. Weight and bias have
/// one value per channel. There are no running statistics: training and inference are the same. One group takes the
/// statistics of a LayerNorm over channels and positions; as many groups as channels are
/// [`InstanceNorm`](crate::InstanceNorm).
///
/// With an activation, or a residual among the buffers, `y = act(x_hat * weight + bias + residual)`. Backward, with
/// `d = act'(z) * dy`, where `z` is what the activation was given, `g = d * weight` and `x_hat = (x - mean) * rstd`:
///
/// `dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat))`, means over the group, `dweight = sum(d * x_hat)` and
/// `dbias = sum(d)`, sums over samples and positions, `dresidual = d`.
///
/// # Beside other libraries
///
/// - PyTorch: the same, `eps` 1e-5 included.
/// - ONNX: the same from opset 21 on. In opset 18 scale and bias are `[groups]`: repeat each value `channels / groups`
///   times.
/// - Keras: the same with `eps` 1e-3; its `groups` of -1 is [`InstanceNorm`](crate::InstanceNorm).
///
/// # Special values
///
/// - A group of one value has a variance of 0, so `y` is the bias. PyTorch refuses such a tensor if it has one sample.
/// - Equal values give exactly the bias with `eps > 0`, NaN with `eps` 0.
/// - A NaN or an infinity makes its own group NaN, and nothing else.
/// - No samples, or no positions, give an empty `y`; `dweight` and `dbias` are zeros, or stay as they are if accumulated.
///
/// # Example
///
/// ```
/// use warpnorm::{Affine, Cpu, GroupNorm, Tensor};
///
/// // One sample of four channels in two groups.
/// let x = Tensor::from_slice(&Cpu, &[1.0_f32, 3.0, 10.0, 30.0], &[1, 4])?;
/// let weight = Tensor::from_slice(&Cpu, &[1.0, 2.0, 3.0, 4.0], &[4])?;
/// let bias = Tensor::from_slice(&Cpu, &[0.0, 0.0, 0.0, 0.5], &[4])?;
///
/// let out = GroupNorm::new(2, 4).eps(0.0).forward(&Cpu, &x, Affine::f32(&weight, &bias))?;
/// assert_eq!(out.y.to_vec(&Cpu)?, [-1.0, 2.0, -3.0, 4.5]);
/// assert_eq!(out.mean.to_vec(&Cpu)?, [2.0, 20.0]);
/// # Ok::<(), warpnorm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    groups: usize,
    channels: usize,
    eps: f32,
    activation: Activation,
}

impl GroupNorm {
    /// Normalizes tensors of `channels` channels in `groups` groups, with `eps` 1e-5.
    pub fn new(groups: usize, channels: usize) -> Self {
        Self { groups, channels, eps: 1e-5, activation: Activation::None }
    }

    /// Sets the number added to the variance, inside the root: finite, not negative.
    #[must_use]
    pub fn eps(mut self, eps: f32) -> Self {
        self.eps = eps;
        self
    }

    /// Sets what is applied last.
    #[must_use]
    pub fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Length of the means and reciprocal standard deviations that a forward pass over `x` saves: samples times groups.
    ///
    /// # Errors
    ///
    /// The shape errors of [`forward`](Self::forward).
    pub fn saved_len<T: Element, B: Backend>(&self, x: &View<'_, T, B>) -> Result<usize> {
        self.op().saved_len(&x.dims)
    }

    /// Normalizes each group of each sample.
    ///
    /// # Errors
    ///
    /// [`Error::Rank`], [`Error::Channels`], [`Error::Groups`], [`Error::Length`] or [`Error::TooLarge`] for shapes
    /// that do not fit, [`Error::Eps`] for an `eps` out of range, and what the backend says of memory and launches.
    pub fn forward<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        affine: Affine<'_, T, B>,
    ) -> Result<GroupNormOutput<T, B>> {
        let BatchNormOutput { y, mean, rstd } = self.op().normalized(on, x, &affine, None)?;
        Ok(GroupNormOutput { y, mean, rstd })
    }

    /// [`forward`](Self::forward) into `x` itself.
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
        let args = GroupNormInPlace {
            x: x.view_mut(),
            residual: None,
            affine: affine.reborrow(),
            mean: None,
            rstd: None,
            workspace: &mut workspace,
        };
        self.forward_in_place_into(on, args)
    }

    /// Gradients of [`forward`](Self::forward), from its saved `mean` and `rstd`.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward), and [`Error::ShapeMismatch`] where `dy` is not shaped like `x`.
    pub fn backward<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        dy: &Tensor<T, B>,
        affine: Affine<'_, T, B>,
        saved: &GroupNormOutput<T, B>,
    ) -> Result<Gradients<T, B>> {
        self.op().gradients(on, x, dy, &affine, [&saved.mean, &saved.rstd])
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
        args: GroupNormForward<'_, T, B>,
    ) -> Result<()> {
        let GroupNormForward { x, residual, y, affine, mean, rstd, workspace } = args;
        let statistics = BatchStatistics { mean, rstd, running: None, workspace };
        self.op().forward_batch(on, ForwardTensors { x: Some(x), residual, y, affine }, statistics)
    }

    /// [`forward_into`](Self::forward_into) with the output in place of the input.
    ///
    /// # Errors
    ///
    /// As [`forward_into`](Self::forward_into).
    pub fn forward_in_place_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: GroupNormInPlace<'_, T, B>,
    ) -> Result<()> {
        let GroupNormInPlace { x, residual, affine, mean, rstd, workspace } = args;
        let statistics = BatchStatistics { mean, rstd, running: None, workspace };
        self.op().forward_batch(on, ForwardTensors { x: None, residual, y: x, affine }, statistics)
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
        args: GroupNormBackward<'_, T, B>,
    ) -> Result<()> {
        let GroupNormBackward {
            x,
            residual,
            dy,
            affine,
            mean,
            rstd,
            dx,
            dresidual,
            grads,
            accumulate,
            workspace,
        } = args;
        let tensors =
            BackwardTensors { x, residual, dy, affine, dx, dresidual, grads, accumulate, workspace };
        self.op().backward_batch(on, tensors, mean, rstd)
    }

    fn op(&self) -> ChannelOp {
        ChannelOp {
            name: "GroupNorm",
            channels: self.channels,
            eps: self.eps,
            activation: self.activation,
            scope: Scope::Group(self.groups),
            fixed_scope: Scope::Group(self.groups),
            one_value_is_enough: true,
            momentum: None,
            running_len: 0,
        }
    }
}

/// What [`GroupNorm::forward`] returns: the output, and what the backward pass needs.
#[derive(Debug)]
pub struct GroupNormOutput<T: Element, B: Backend> {
    /// The output, shaped like `x`.
    pub y: Tensor<T, B>,
    /// Mean of each group, `[samples, groups]`.
    pub mean: Tensor<f32, B>,
    /// Reciprocal standard deviation of each group, `1 / sqrt(var + eps)`.
    pub rstd: Tensor<f32, B>,
}

/// Buffers of [`GroupNorm::forward_into`].
pub struct GroupNormForward<'a, T: Element, B: Backend> {
    /// Input.
    pub x: View<'a, T, B>,
    /// Added before the activation, shaped like `x`.
    pub residual: Option<View<'a, T, B>>,
    /// Output, shaped like `x`.
    pub y: ViewMut<'a, T, B>,
    /// Scale and shift, `[channels]`.
    pub affine: Affine<'a, T, B>,
    /// Where to keep the mean of each group, `[samples, groups]`.
    pub mean: Option<B::Mut<'a, f32>>,
    /// Where to keep its reciprocal standard deviation, likewise.
    pub rstd: Option<B::Mut<'a, f32>>,
    /// Scratch memory made by [`GroupNorm::workspace`].
    pub workspace: &'a mut Workspace<B>,
}

/// Buffers of [`GroupNorm::forward_in_place_into`].
pub struct GroupNormInPlace<'a, T: Element, B: Backend> {
    /// Input, which the output replaces.
    pub x: ViewMut<'a, T, B>,
    /// Added before the activation, shaped like `x`.
    pub residual: Option<View<'a, T, B>>,
    /// Scale and shift, `[channels]`.
    pub affine: Affine<'a, T, B>,
    /// Where to keep the mean of each group, `[samples, groups]`.
    pub mean: Option<B::Mut<'a, f32>>,
    /// Where to keep its reciprocal standard deviation, likewise.
    pub rstd: Option<B::Mut<'a, f32>>,
    /// Scratch memory made by [`GroupNorm::workspace`].
    pub workspace: &'a mut Workspace<B>,
}

/// Buffers of [`GroupNorm::backward_into`].
pub struct GroupNormBackward<'a, T: Element, B: Backend> {
    /// Input of the forward pass.
    pub x: View<'a, T, B>,
    /// What the forward pass added, if anything; read where there is an activation.
    pub residual: Option<View<'a, T, B>>,
    /// Gradient of the forward pass' output, shaped like `x`.
    pub dy: View<'a, T, B>,
    /// Scale and shift of the forward pass; the shift is read where there is an activation.
    pub affine: Affine<'a, T, B>,
    /// Means that the forward pass saved.
    pub mean: B::Ref<'a, f32>,
    /// Reciprocal standard deviations that the forward pass saved.
    pub rstd: B::Ref<'a, f32>,
    /// Gradient of the input, shaped like it, if wanted.
    pub dx: Option<ViewMut<'a, T, B>>,
    /// Gradient of the residual, shaped like it, if wanted.
    pub dresidual: Option<ViewMut<'a, T, B>>,
    /// Gradients of scale and shift, `[channels]`, as far as wanted.
    pub grads: AffineGrad<'a, T, B>,
    /// Whether these are added to what `grads` holds.
    pub accumulate: bool,
    /// Scratch memory made by [`GroupNorm::workspace`].
    pub workspace: &'a mut Workspace<B>,
}
