use crate::{
    Affine, Backend, Element, Error, Result, Tensor, View, ViewMut, error::check_len, shape::RowShape,
};

/// Layer normalization (Ba, Kiros and Hinton, [arXiv:1607.06450](https://arxiv.org/abs/1607.06450)) over the trailing
/// dimensions.
///
/// `y = (x - mean) / sqrt(var + eps) * weight + bias`, with `mean` and the biased `var = sum((x - mean)²) / cols` of
/// each row of `cols` elements. Weight and bias have one value per column. PyTorch's, ONNX's and Keras' definitions
/// agree.
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
/// Input and output are different buffers, which the borrow checker sees to:
///
/// ```compile_fail,E0502
/// use warpnorm::{Affine, Cpu, LayerNorm, LayerNormForward};
///
/// let mut x = [1.0_f32, 3.0];
/// let args = LayerNormForward {
///     x: Cpu.view(&x, &[1, 2])?,
///     y: Cpu.view_mut(&mut x, &[1, 2])?,
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

    /// Sets the number added to the variance: finite, not negative.
    #[must_use]
    pub fn eps(mut self, eps: f32) -> Self {
        self.eps = eps;
        self
    }

    /// Normalizes each row of `x`.
    ///
    /// # Errors
    ///
    /// [`Error::NormalizedShape`], [`Error::Length`] or [`Error::TooLarge`] for shapes that do not fit, [`Error::Eps`]
    /// for an `eps` out of range, and what the backend says of memory and launches.
    pub fn forward<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        affine: Affine<'_, T, B>,
    ) -> Result<LayerNormOutput<T, B>> {
        let rows = RowShape::of("x", &x.view().dims, self.cols)?.rows();
        let mut y = Tensor::zeros_like(on, x)?;
        let mut mean = Tensor::zeros(on, &[rows])?;
        let mut rstd = Tensor::zeros(on, &[rows])?;
        let args = LayerNormForward {
            x: x.view(),
            y: y.view_mut(),
            affine: affine.reborrow(),
            mean: Some(mean.data_mut()),
            rstd: Some(rstd.data_mut()),
        };
        self.forward_into(on, args)?;
        Ok(LayerNormOutput { y, mean, rstd })
    }

    /// [`forward`](Self::forward) into the caller's buffers.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward), [`Error::ShapeMismatch`] where `y` is not shaped like `x`, and
    /// [`Error::WrongDevice`].
    pub fn forward_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: LayerNormForward<'_, T, B>,
    ) -> Result<()> {
        let LayerNormForward { x, y, affine, mean, rstd } = args;
        if !(self.eps >= 0.0 && self.eps.is_finite()) {
            return Err(Error::Eps(self.eps));
        }
        let shape = RowShape::of("x", &x.dims, self.cols)?;
        x.dims.check_same("y", &y.dims)?;
        affine.check(shape.cols())?;
        mean.as_ref().map_or(Ok(()), |mean| check_len("mean", shape.rows(), B::len_mut(mean)))?;
        rstd.as_ref().map_or(Ok(()), |rstd| check_len("rstd", shape.rows(), B::len_mut(rstd)))?;
        if shape.is_empty() {
            return Ok(());
        }
        on.row_norm_fwd(shape, RowNormForward { x: x.data, y: y.data, affine, eps: self.eps, mean, rstd })
    }
}

/// What [`LayerNorm::forward`] returns: the output, and what a backward pass needs.
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
    /// Scale and shift, one value per column.
    pub affine: Affine<'a, T, B>,
    /// Where to keep each row's mean.
    pub mean: Option<B::Mut<'a, f32>>,
    /// Where to keep each row's reciprocal standard deviation.
    pub rstd: Option<B::Mut<'a, f32>>,
}

/// A forward pass of the row norms, checked against its shape.
pub struct RowNormForward<'a, T: Element, B: Backend> {
    pub(crate) x: B::Ref<'a, T>,
    pub(crate) y: B::Mut<'a, T>,
    pub(crate) affine: Affine<'a, T, B>,
    pub(crate) eps: f32,
    pub(crate) mean: Option<B::Mut<'a, f32>>,
    pub(crate) rstd: Option<B::Mut<'a, f32>>,
}
