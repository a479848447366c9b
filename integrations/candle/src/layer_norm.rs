//! [`LayerNorm`] and [`RmsNorm`], the norms of rows.

use candle::{Module, Result, Tensor};
use candle_nn::VarBuilder;

pub use candle_nn::LayerNormConfig;

use crate::op::{Call, Norm, Rows};

/// `candle_nn`'s layer with a backward pass: normalizes over the last dimension.
///
/// `y = (x - mean) / sqrt(var + eps) * weight + bias`, with the mean and the biased variance of each row, or without the mean
/// (RMSNorm) where [`remove_mean`](Self::remove_mean) is false. Gradients are those of
/// [`warpnorm::LayerNorm`] and [`warpnorm::RmsNorm`].
///
/// `x` is of F32, F16 or BF16; weight and bias are of the same type or F32. A tensor that is not contiguous is copied once.
///
/// ```
/// use candle::{Device, Module, Tensor, Var};
/// use warpnorm_candle::LayerNorm;
///
/// let device = Device::Cpu;
/// let weight = Var::new(&[1f32, 2.0], &device)?;
/// let bias = Var::new(&[0f32, 0.5], &device)?;
/// let norm = LayerNorm::new(weight.as_tensor().clone(), bias.as_tensor().clone(), 0.0);
///
/// let y = norm.forward(&Tensor::new(&[[1f32, 3.0], [20.0, 10.0]], &device)?)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[-1.0, 2.5], [1.0, -1.5]]);
/// let grads = y.sum_all()?.backward()?;
/// assert_eq!(grads.get(&bias).unwrap().to_vec1::<f32>()?, [2.0, 2.0]);
/// # Ok::<(), candle::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Option<Tensor>,
    remove_mean: bool,
    eps: f64,
}

impl LayerNorm {
    /// With scale and shift.
    pub fn new(weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self { weight, bias: Some(bias), remove_mean: true, eps }
    }

    /// With a scale only.
    pub fn new_no_bias(weight: Tensor, eps: f64) -> Self {
        Self { weight, bias: None, remove_mean: true, eps }
    }

    /// RMSNorm.
    pub fn rms_norm(weight: Tensor, eps: f64) -> Self {
        Self { weight, bias: None, remove_mean: false, eps }
    }

    /// The scale.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The shift.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// What is added to variances.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// Whether the mean is subtracted; if not, this is RMSNorm.
    pub fn remove_mean(&self) -> bool {
        self.remove_mean
    }

    /// Adds and normalizes in one pass: `(norm(h), h)` with `h = x + residual`, rounded to the tensors' type. In the graph they
    /// are a sum and a norm of it, so nothing is stacked or narrowed, and the backward pass is that of both.
    ///
    /// # Errors
    ///
    /// As [`forward`](Module::forward), and where `residual` is not of the shape and type of `x`.
    pub fn forward_residual(&self, x: &Tensor, residual: &Tensor) -> Result<(Tensor, Tensor)> {
        let (weight, bias) = self.contiguous()?;
        self.call(&x.contiguous()?, &weight, bias.as_ref())?.apply_sum(&residual.contiguous()?)
    }

    fn contiguous(&self) -> Result<(Tensor, Option<Tensor>)> {
        Ok((self.weight.contiguous()?, self.bias.as_ref().map(Tensor::contiguous).transpose()?))
    }

    fn call<'a>(&self, x: &'a Tensor, weight: &'a Tensor, bias: Option<&'a Tensor>) -> Result<Call<'a>> {
        let (cols, eps) = (weight.dims1()?, self.eps as f32);
        let norm = match self.remove_mean {
            true => Norm::Rows(Rows::Layer(warpnorm::LayerNorm::new(cols).eps(eps))),
            false => Norm::Rows(Rows::Rms(warpnorm::RmsNorm::new(cols).eps(eps))),
        };
        Ok(Call { norm, x, residual: None, weight: Some(weight), bias, channels_last: false })
    }
}

impl Module for LayerNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = self.contiguous()?;
        Ok(self.call(&x.contiguous()?, &weight, bias.as_ref())?.apply()?.y)
    }
}

/// A [`LayerNorm`] of `size` columns, with the names that `candle_nn::layer_norm` looks for: `weight` or `gamma`, `bias` or
/// `beta`.
///
/// # Errors
///
/// Where the builder has no such tensors.
pub fn layer_norm<C: Into<LayerNormConfig>>(size: usize, config: C, vb: VarBuilder) -> Result<LayerNorm> {
    let config = config.into();
    // candle_nn's constructor knows the names.
    let layer = candle_nn::layer_norm(size, config, vb)?;
    Ok(LayerNorm {
        weight: layer.weight().clone(),
        bias: layer.bias().cloned(),
        remove_mean: config.remove_mean,
        eps: config.eps,
    })
}

/// A [`LayerNorm`] without a shift.
///
/// # Errors
///
/// As [`layer_norm`].
pub fn layer_norm_no_bias(size: usize, eps: f64, vb: VarBuilder) -> Result<LayerNorm> {
    layer_norm(size, LayerNormConfig { eps, remove_mean: true, affine: false }, vb)
}

/// `candle_nn`'s layer with a backward pass: `y = x / sqrt(mean(x²) + eps) * weight` over the last dimension.
///
/// ```
/// use candle::{Device, Module, Tensor};
/// use warpnorm_candle::RmsNorm;
///
/// let norm = RmsNorm::new(Tensor::new(&[1f32, 2.0], &Device::Cpu)?, 0.0);
/// let y = norm.forward(&Tensor::new(&[[3f32, 3.0], [-2.0, 2.0]], &Device::Cpu)?)?;
/// assert_eq!(y.to_vec2::<f32>()?, [[1.0, 2.0], [-1.0, 2.0]]);
/// # Ok::<(), candle::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RmsNorm(LayerNorm);

impl RmsNorm {
    /// With a scale.
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self(LayerNorm::rms_norm(weight, eps))
    }

    /// The same as a [`LayerNorm`] that does not remove the mean.
    pub fn into_inner(self) -> LayerNorm {
        self.0
    }

    /// The scale.
    pub fn weight(&self) -> &Tensor {
        self.0.weight()
    }

    /// What is added to mean squares.
    pub fn eps(&self) -> f64 {
        self.0.eps()
    }

    /// As [`forward`](Module::forward): every forward pass of this layer has a backward pass.
    ///
    /// # Errors
    ///
    /// As [`forward`](Module::forward).
    pub fn forward_diff(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }

    /// As [`LayerNorm::forward_residual`].
    ///
    /// # Errors
    ///
    /// As [`LayerNorm::forward_residual`].
    pub fn forward_residual(&self, x: &Tensor, residual: &Tensor) -> Result<(Tensor, Tensor)> {
        self.0.forward_residual(x, residual)
    }
}

impl Module for RmsNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }
}

/// An [`RmsNorm`] of `size` columns.
///
/// # Errors
///
/// Where the builder has no tensor of that name, `weight` or `gamma`.
pub fn rms_norm(size: usize, eps: f64, vb: VarBuilder) -> Result<RmsNorm> {
    Ok(RmsNorm(layer_norm(size, LayerNormConfig { eps, remove_mean: false, affine: false }, vb)?))
}
