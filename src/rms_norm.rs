use crate::{
    Affine, AffineGrad, Backend, Element, Gradients, Residual, Result, Tensor, View, ViewMut, Workspace,
    row_norm::{BackwardTensors, ForwardTensors, RowOp, Sum},
};

#[cfg(doc)]
use crate::Error;

/// Root mean square normalization (Zhang and Sennrich, [arXiv:1910.07467](https://arxiv.org/abs/1910.07467)) over the
/// trailing dimensions.
///
/// `y = x / sqrt(mean(x²) + eps) * (weight_offset + weight) + bias`
///
/// with the mean over each row. A row is the trailing dimensions whose product is `cols`, all others count rows. Weight
/// and bias have one value per column; a missing weight is a factor of one, whatever the offset. `weight_offset` is 0,
/// or 1 for weights that are stored around zero, as Gemma's are; the sum is in `f32`.
///
/// Backward, with `g = dy * (weight_offset + weight)`, `x_hat = x * rstd` and the mean over a row:
///
/// `dx = rstd * (g - x_hat * mean(g * x_hat))`, `dweight = sum(dy * x_hat)`, `dbias = sum(dy)`, sums over rows.
///
/// With a [`Residual`], as before each block of a transformer, `h = x + residual; y = norm(h)`. Its backward pass is
/// that of `h`, to which the gradient `dh` that reaches `h` by its other uses is added: `dx` is then the gradient of `x`
/// and of `residual`, which are the same.
///
/// Entries of the first dimension may have gaps between them, as the queries and keys of a packed projection do: the
/// example of [`ViewMut::strided`] normalizes both in place.
///
/// # Beside other libraries
///
/// The definitions of PyTorch, ONNX and Keras agree but for `eps`, and have no bias. PyTorch's default is the machine
/// epsilon of the type that it computes in, 2⁻²³ for `f32` and 16-bit tensors; ONNX's is 1e-5, as here; Keras' 1e-6.
/// Everything up to `y` is in `f32` here; models that round `x_hat` to 16 bits before the weight, as Llama does, differ
/// in the last bit.
///
/// # Special values
///
/// - A row of zeros gives exactly the bias with `eps > 0`, NaN with `eps` 0.
/// - A NaN makes its own row NaN. An infinity gives NaN at itself and the bias elsewhere in its row.
/// - On the GPU the sum of squares is in `f32`: from values of about 1e19 on it is infinite.
/// - No rows give an empty `y`; `dweight` and `dbias` are zeros, or stay as they are if accumulated.
///
/// # Examples
///
/// ```
/// use warpnorm::{Affine, Cpu, RmsNorm, Tensor};
///
/// let x = Tensor::from_slice(&Cpu, &[1.0_f32, 7.0], &[1, 2])?; // the mean of the squares is 25
/// let weight = Tensor::from_slice(&Cpu, &[0.0, 1.0], &[2])?;
///
/// let norm = RmsNorm::new(2).eps(0.0).weight_offset(1.0);
/// let out = norm.forward(&Cpu, &x, Affine::Same { weight: Some(weight.data()), bias: None })?;
/// assert_eq!(out.y.to_vec(&Cpu)?, [0.2, 2.8]);
/// assert_eq!(out.rstd.to_vec(&Cpu)?, [0.2]);
/// # Ok::<(), warpnorm::Error>(())
/// ```
///
/// With a residual, in place: the sum takes the place of the residual, the output that of the input.
///
/// ```
/// use warpnorm::{Affine, Cpu, RmsNorm, RmsNormInPlace, Tensor};
///
/// let mut x = Tensor::from_slice(&Cpu, &[1.0_f32, 3.0], &[1, 2])?;
/// let mut stream = Tensor::from_slice(&Cpu, &[1.0_f32, -5.0], &[1, 2])?;
/// let args = RmsNormInPlace {
///     x: x.view_mut(),
///     residual: Some(stream.view_mut()),
///     affine: Affine::None,
///     rstd: None,
/// };
/// RmsNorm::new(2).eps(0.0).forward_in_place_into(&Cpu, args)?;
/// assert_eq!(stream.to_vec(&Cpu)?, [2.0, -2.0]);
/// assert_eq!(x.to_vec(&Cpu)?, [1.0, -1.0]);
/// # Ok::<(), warpnorm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNorm {
    cols: usize,
    eps: f32,
    weight_offset: f32,
}

impl RmsNorm {
    /// Normalizes over the trailing dimensions that hold `cols` elements, with `eps` 1e-5 and `weight_offset` 0.
    pub fn new(cols: usize) -> Self {
        Self { cols, eps: 1e-5, weight_offset: 0.0 }
    }

    /// Sets the number added to the mean square, inside the root: finite, not negative.
    #[must_use]
    pub fn eps(mut self, eps: f32) -> Self {
        self.eps = eps;
        self
    }

    /// Sets what is added to the weight: 0, or 1 for weights stored around zero.
    #[must_use]
    pub fn weight_offset(mut self, weight_offset: f32) -> Self {
        self.weight_offset = weight_offset;
        self
    }

    /// Normalizes each row of `x`.
    ///
    /// # Errors
    ///
    /// [`Error::NormalizedShape`], [`Error::Length`] or [`Error::TooLarge`] for shapes that do not fit,
    /// [`Error::Eps`] and [`Error::WeightOffset`] for settings out of range, and what the backend says of memory and
    /// launches.
    pub fn forward<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        affine: Affine<'_, T, B>,
    ) -> Result<RmsNormOutput<T, B>> {
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
    ) -> Result<(Tensor<T, B>, RmsNormOutput<T, B>)> {
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
    ) -> Result<RmsNormOutput<T, B>> {
        let rows = self.op().shape(&x.view().dims)?.rows();
        let mut y = Tensor::zeros_like(on, x)?;
        let mut rstd = Tensor::zeros(on, &[rows])?;
        let args = RmsNormForward {
            x: x.view(),
            y: y.view_mut(),
            residual: residual.as_mut().map(Residual::reborrow),
            affine: affine.reborrow(),
            rstd: Some(rstd.data_mut()),
        };
        self.forward_into(on, args)?;
        Ok(RmsNormOutput { y, rstd })
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
        let args = RmsNormInPlace { x: x.view_mut(), residual: None, affine: affine.reborrow(), rstd: None };
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
        saved: &RmsNormOutput<T, B>,
    ) -> Result<Gradients<T, B>> {
        self.op().gradients(on, x, dy, &affine, (None, &saved.rstd))
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
    pub fn forward_into<T: Element, B: Backend>(&self, on: &B, args: RmsNormForward<'_, T, B>) -> Result<()> {
        let RmsNormForward { x, y, residual, affine, rstd } = args;
        let sum = residual.map(|Residual { residual, h }| Sum { residual: Some(residual), h });
        self.op().forward(on, ForwardTensors { x: Some(x), y, sum, affine, mean: None, rstd })
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
        args: RmsNormInPlace<'_, T, B>,
    ) -> Result<()> {
        let RmsNormInPlace { x, residual, affine, rstd } = args;
        let sum = residual.map(|h| Sum { residual: None, h });
        self.op().forward(on, ForwardTensors { x: None, y: x, sum, affine, mean: None, rstd })
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
        args: RmsNormBackward<'_, T, B>,
    ) -> Result<()> {
        let RmsNormBackward { x, dy, dh, affine, rstd, dx, grads, accumulate, workspace } = args;
        let mean = None;
        let tensors = BackwardTensors { x, dy, dh, affine, mean, rstd, dx, grads, accumulate, workspace };
        self.op().backward(on, tensors)
    }

    fn op(&self) -> RowOp {
        RowOp {
            name: "RmsNorm",
            cols: self.cols,
            eps: self.eps,
            weight_offset: self.weight_offset,
            rms: true,
        }
    }
}

/// What [`RmsNorm::forward`] returns: the output, and what the backward pass needs.
#[derive(Debug)]
pub struct RmsNormOutput<T: Element, B: Backend> {
    /// The output, shaped like `x`.
    pub y: Tensor<T, B>,
    /// Reciprocal root mean square of each row, `1 / sqrt(mean(x²) + eps)`.
    pub rstd: Tensor<f32, B>,
}

/// Buffers of [`RmsNorm::forward_into`].
pub struct RmsNormForward<'a, T: Element, B: Backend> {
    /// Input, whose trailing dimensions are a row.
    pub x: View<'a, T, B>,
    /// Output, shaped like `x`.
    pub y: ViewMut<'a, T, B>,
    /// What is added first, if anything.
    pub residual: Option<Residual<'a, T, B>>,
    /// Scale and shift, one value per column.
    pub affine: Affine<'a, T, B>,
    /// Where to keep each row's reciprocal root mean square.
    pub rstd: Option<B::Mut<'a, f32>>,
}

/// Buffers of [`RmsNorm::forward_in_place_into`].
pub struct RmsNormInPlace<'a, T: Element, B: Backend> {
    /// Input, which the output replaces.
    pub x: ViewMut<'a, T, B>,
    /// What is added first, if anything, shaped like `x`; the sum replaces it.
    pub residual: Option<ViewMut<'a, T, B>>,
    /// Scale and shift, one value per column.
    pub affine: Affine<'a, T, B>,
    /// Where to keep each row's reciprocal root mean square.
    pub rstd: Option<B::Mut<'a, f32>>,
}

/// Buffers of [`RmsNorm::backward_into`].
pub struct RmsNormBackward<'a, T: Element, B: Backend> {
    /// What the forward pass normalized: its input, or the sum `h`.
    pub x: View<'a, T, B>,
    /// Gradient of its output, shaped like `x`.
    pub dy: View<'a, T, B>,
    /// Gradient that reaches the sum `h` by its other uses, if any, shaped like `x`; added to `dx`.
    pub dh: Option<View<'a, T, B>>,
    /// Scale and shift of the forward pass; the shift is not read.
    pub affine: Affine<'a, T, B>,
    /// Reciprocal root mean squares that the forward pass saved.
    pub rstd: B::Ref<'a, f32>,
    /// Gradient of the input, shaped like it, if wanted.
    pub dx: Option<ViewMut<'a, T, B>>,
    /// Gradients of scale and shift, one value per column, as far as wanted.
    pub grads: AffineGrad<'a, T, B>,
    /// Whether these are added to what `grads` holds.
    pub accumulate: bool,
    /// Scratch memory made by [`RmsNorm::workspace`].
    pub workspace: &'a mut Workspace<B>,
}
