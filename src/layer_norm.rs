use crate::{
    Affine, AffineGrad, Backend, Element, Gradients, Residual, Result, Tensor, View, ViewMut, Workspace,
    row_norm::{BackwardTensors, ForwardTensors, RowOp, Sum},
};

#[cfg(doc)]
use crate::Error;

/// Layer normalization (Ba, Kiros and Hinton, [arXiv:1607.06450](https://arxiv.org/abs/1607.06450)) over the trailing
/// dimensions.
///
/// `y = (x - mean) / sqrt(var + eps) * weight + bias`
///
/// with `mean` and the biased `var = sum((x - mean)²) / cols` of each row. A row is the trailing dimensions whose product
/// is `cols`, all others count rows. Weight and bias have one value per column.
///
/// Backward, with `g = dy * weight`, `x_hat = (x - mean) * rstd` and means over a row:
///
/// `dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat))`, `dweight = sum(dy * x_hat)`, `dbias = sum(dy)`, sums over rows.
///
/// With a [`Residual`], as before each block of a transformer, `h = x + residual; y = norm(h)`. Its backward pass is
/// that of `h`, to which the gradient `dh` that reaches `h` by its other uses is added: `dx` is then the gradient of `x`
/// and of `residual`, which are the same.
///
/// Entries of the first dimension may have gaps between them: see [`View::strided`].
///
/// # Beside other libraries
///
/// PyTorch's `normalized_shape` and ONNX's `axis` name the dimensions of a row, here their product does. The definitions
/// agree; `eps` is 1e-5 in both, 1e-3 in Keras.
///
/// # Special values
///
/// - Equal values give exactly the bias with `eps > 0`, NaN with `eps` 0; so does a row of one column.
/// - A NaN or an infinity makes its own row NaN, and nothing else.
/// - No rows give an empty `y`; `dweight` and `dbias` are zeros, or stay as they are if accumulated.
///
/// # Examples
///
/// ```
/// use warpnorm::{Affine, Cpu, LayerNorm, Tensor};
///
/// let x = Tensor::from_slice(&Cpu, &[1.0_f32, 3.0, -5.0, 5.0], &[2, 2])?;
/// let (weight, bias) = (Tensor::from_slice(&Cpu, &[2.0, 1.0], &[2])?, Tensor::zeros(&Cpu, &[2])?);
///
/// let out = LayerNorm::new(2).eps(0.0).forward(&Cpu, &x, Affine::same(&weight, &bias))?;
/// assert_eq!(out.y.to_vec(&Cpu)?, [-2.0, 1.0, -2.0, 1.0]);
/// assert_eq!(out.mean.to_vec(&Cpu)?, [2.0, 0.0]);
/// assert_eq!(out.rstd.to_vec(&Cpu)?, [1.0, 0.2]);
/// # Ok::<(), warpnorm::Error>(())
/// ```
///
/// With a residual, and the gradient that reaches the sum by the residual stream:
///
/// ```
/// use warpnorm::{Affine, AffineGrad, Cpu, LayerNorm, LayerNormBackward, Tensor};
///
/// let x = Tensor::from_slice(&Cpu, &[0.0_f32, 0.0, 3.0, -3.0], &[1, 4])?;
/// let residual = Tensor::from_slice(&Cpu, &[1.0_f32, -1.0, -2.0, 2.0], &[1, 4])?;
/// let norm = LayerNorm::new(4).eps(0.0);
///
/// let (h, out) = norm.forward_residual(&Cpu, &x, &residual, Affine::None)?;
/// assert_eq!(h.to_vec(&Cpu)?, [1.0, -1.0, 1.0, -1.0]);
/// assert_eq!(out.y.to_vec(&Cpu)?, [1.0, -1.0, 1.0, -1.0]);
///
/// let dy = Tensor::from_slice(&Cpu, &[4.0_f32, 0.0, 0.0, 0.0], &[1, 4])?;
/// let dh = Tensor::from_slice(&Cpu, &[0.5_f32, 0.5, 0.5, 0.5], &[1, 4])?;
/// let mut dx = Tensor::zeros(&Cpu, &[1, 4])?;
/// let mut workspace = norm.workspace(&Cpu, &h)?;
/// let args = LayerNormBackward {
///     x: h.view(),
///     dy: dy.view(),
///     dh: Some(dh.view()),
///     affine: Affine::None,
///     mean: out.mean.data(),
///     rstd: out.rstd.data(),
///     dx: Some(dx.view_mut()),
///     grads: AffineGrad::None,
///     accumulate: false,
///     workspace: &mut workspace,
/// };
/// norm.backward_into(&Cpu, args)?;
/// assert_eq!(dx.to_vec(&Cpu)?, [2.5, 0.5, -1.5, 0.5]); // dy - 1 - x_hat + dh
/// # Ok::<(), warpnorm::Error>(())
/// ```
///
/// Input and output are different buffers, which the borrow checker sees to; [`LayerNorm::forward_in_place_into`]
/// takes one:
///
/// ```compile_fail,E0502
/// use warpnorm::{Affine, Cpu, LayerNorm, LayerNormForward};
///
/// let mut x = [1.0_f32, 3.0];
/// let args = LayerNormForward {
///     x: Cpu.view(&x, &[1, 2])?,
///     y: Cpu.view_mut(&mut x, &[1, 2])?,
///     residual: None,
///     affine: Affine::None,
///     mean: None,
///     rstd: None,
/// };
/// LayerNorm::new(2).forward_into(&Cpu, args)?;
/// # Ok::<(), warpnorm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNorm {
    cols: usize,
    eps: f32,
}

impl LayerNorm {
    /// Normalizes over the trailing dimensions that hold `cols` elements, with `eps` 1e-5.
    pub fn new(cols: usize) -> Self {
        Self { cols, eps: 1e-5 }
    }

    /// Sets the number added to the variance, inside the root: finite, not negative.
    #[must_use]
    pub fn eps(mut self, eps: f32) -> Self {
        self.eps = eps;
        self
    }

    /// Normalizes each row of `x`.
    ///
    /// # Errors
    ///
    /// [`Error::NormalizedShape`], [`Error::Length`] or [`Error::TooLarge`] for shapes that do not fit,
    /// [`Error::Eps`] for an `eps` out of range, and what the backend says of memory and launches.
    pub fn forward<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        affine: Affine<'_, T, B>,
    ) -> Result<LayerNormOutput<T, B>> {
        self.forward_to(on, x, None, affine)
    }

    /// Normalizes each row of `h = x + residual` and returns `h` too.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward), and [`Error::ShapeMismatch`] where `residual` is not shaped like `x`.
    pub fn forward_residual<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        residual: &Tensor<T, B>,
        affine: Affine<'_, T, B>,
    ) -> Result<(Tensor<T, B>, LayerNormOutput<T, B>)> {
        let mut h = Tensor::zeros_like(on, x)?;
        let sum = Residual { residual: residual.view(), h: h.view_mut() };
        let out = self.forward_to(on, x, Some(sum), affine)?;
        Ok((h, out))
    }

    fn forward_to<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        mut residual: Option<Residual<'_, T, B>>,
        affine: Affine<'_, T, B>,
    ) -> Result<LayerNormOutput<T, B>> {
        let rows = self.op().shape(&x.view().dims)?.rows();
        let mut y = Tensor::zeros_like(on, x)?;
        let mut mean = Tensor::zeros(on, &[rows])?;
        let mut rstd = Tensor::zeros(on, &[rows])?;
        let args = LayerNormForward {
            x: x.view(),
            y: y.view_mut(),
            residual: residual.as_mut().map(Residual::reborrow),
            affine: affine.reborrow(),
            mean: Some(mean.data_mut()),
            rstd: Some(rstd.data_mut()),
        };
        self.forward_into(on, args)?;
        Ok(LayerNormOutput { y, mean, rstd })
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
        let args = LayerNormInPlace {
            x: x.view_mut(),
            residual: None,
            affine: affine.reborrow(),
            mean: None,
            rstd: None,
        };
        self.forward_in_place_into(on, args)
    }

    /// Gradients of [`forward`](Self::forward), from what it saved. After
    /// [`forward_residual`](Self::forward_residual), `x` is `h`.
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
        saved: &LayerNormOutput<T, B>,
    ) -> Result<Gradients<T, B>> {
        self.op().gradients(on, x, dy, &affine, (Some(&saved.mean), &saved.rstd))
    }

    /// Scratch memory for the backward pass of tensors shaped like `x`, enough for every element type.
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
    /// [`Error::Strided`] where a row itself would have gaps, and [`Error::WrongDevice`].
    pub fn forward_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: LayerNormForward<'_, T, B>,
    ) -> Result<()> {
        let LayerNormForward { x, y, residual, affine, mean, rstd } = args;
        let sum = residual.map(|Residual { residual, h }| Sum { residual: Some(residual), h });
        self.op().forward(on, ForwardTensors { x: Some(x), y, sum, affine, mean, rstd })
    }

    /// [`forward_into`](Self::forward_into) with the output in place of the input, and the sum, if there is one, in
    /// place of the residual.
    ///
    /// # Errors
    ///
    /// As [`forward_into`](Self::forward_into).
    pub fn forward_in_place_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: LayerNormInPlace<'_, T, B>,
    ) -> Result<()> {
        let LayerNormInPlace { x, residual, affine, mean, rstd } = args;
        let sum = residual.map(|h| Sum { residual: None, h });
        self.op().forward(on, ForwardTensors { x: None, y: x, sum, affine, mean, rstd })
    }

    /// [`backward`](Self::backward) into the caller's buffers.
    ///
    /// # Errors
    ///
    /// As [`backward`](Self::backward), [`Error::Strided`] where a row itself would have gaps, [`Error::Workspace`]
    /// where the workspace was made for less, and [`Error::WrongDevice`].
    pub fn backward_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: LayerNormBackward<'_, T, B>,
    ) -> Result<()> {
        let LayerNormBackward { x, dy, dh, affine, mean, rstd, dx, grads, accumulate, workspace } = args;
        let mean = Some(mean);
        let tensors = BackwardTensors { x, dy, dh, affine, mean, rstd, dx, grads, accumulate, workspace };
        self.op().backward(on, tensors)
    }

    fn op(&self) -> RowOp {
        RowOp { name: "LayerNorm", cols: self.cols, eps: self.eps, weight_offset: 0.0, rms: false }
    }
}

/// What [`LayerNorm::forward`] returns: the output, and what the backward pass needs.
#[derive(Debug)]
pub struct LayerNormOutput<T: Element, B: Backend> {
    /// The output, shaped like `x`.
    pub y: Tensor<T, B>,
    /// Mean of each row.
    pub mean: Tensor<f32, B>,
    /// Reciprocal standard deviation of each row, `1 / sqrt(var + eps)`.
    pub rstd: Tensor<f32, B>,
}

/// Buffers of [`LayerNorm::forward_into`].
pub struct LayerNormForward<'a, T: Element, B: Backend> {
    /// Input, whose trailing dimensions are a row.
    pub x: View<'a, T, B>,
    /// Output, shaped like `x`.
    pub y: ViewMut<'a, T, B>,
    /// What is added first, if anything.
    pub residual: Option<Residual<'a, T, B>>,
    /// Scale and shift, one value per column.
    pub affine: Affine<'a, T, B>,
    /// Where to keep each row's mean.
    pub mean: Option<B::Mut<'a, f32>>,
    /// Where to keep each row's reciprocal standard deviation.
    pub rstd: Option<B::Mut<'a, f32>>,
}

/// Buffers of [`LayerNorm::forward_in_place_into`].
pub struct LayerNormInPlace<'a, T: Element, B: Backend> {
    /// Input, which the output replaces.
    pub x: ViewMut<'a, T, B>,
    /// What is added first, if anything, shaped like `x`; the sum replaces it.
    pub residual: Option<ViewMut<'a, T, B>>,
    /// Scale and shift, one value per column.
    pub affine: Affine<'a, T, B>,
    /// Where to keep each row's mean.
    pub mean: Option<B::Mut<'a, f32>>,
    /// Where to keep each row's reciprocal standard deviation.
    pub rstd: Option<B::Mut<'a, f32>>,
}

/// Buffers of [`LayerNorm::backward_into`].
pub struct LayerNormBackward<'a, T: Element, B: Backend> {
    /// What the forward pass normalized: its input, or the sum `h`.
    pub x: View<'a, T, B>,
    /// Gradient of its output, shaped like `x`.
    pub dy: View<'a, T, B>,
    /// Gradient that reaches the sum `h` by its other uses, if any, shaped like `x`; added to `dx`.
    pub dh: Option<View<'a, T, B>>,
    /// Scale and shift of the forward pass; the shift is not read.
    pub affine: Affine<'a, T, B>,
    /// Means that the forward pass saved.
    pub mean: B::Ref<'a, f32>,
    /// Reciprocal standard deviations that the forward pass saved.
    pub rstd: B::Ref<'a, f32>,
    /// Gradient of the input, shaped like it, if wanted.
    pub dx: Option<ViewMut<'a, T, B>>,
    /// Gradients of scale and shift, one value per column, as far as wanted.
    pub grads: AffineGrad<'a, T, B>,
    /// Whether these are added to what `grads` holds.
    pub accumulate: bool,
    /// Scratch memory made by [`LayerNorm::workspace`].
    pub workspace: &'a mut Workspace<B>,
}
