//! [`InstanceNorm`].

use candle::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use crate::{
    FusedActivation, channels,
    op::{Channels, Norm},
};

/// What an [`InstanceNorm`] is made with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InstanceNormConfig {
    /// What is added to variances.
    pub eps: f64,
    /// Whether there are a scale and a shift per channel; as in PyTorch, there are none by default.
    pub affine: bool,
}

impl Default for InstanceNormConfig {
    fn default() -> Self {
        Self { eps: 1e-5, affine: false }
    }
}

impl From<f64> for InstanceNormConfig {
    fn from(eps: f64) -> Self {
        Self { eps, ..Self::default() }
    }
}

/// Instance normalization, which `candle_nn` has not: normalizes over the positions of each channel of each sample.
///
/// `y = (x - mean) / sqrt(var + eps) * weight + bias` for `x` of `[samples, channels, ...]`, in training and in inference
/// (Ulyanov, Vedaldi and Lempitsky, [arXiv:1607.08022](https://arxiv.org/abs/1607.08022)); gradients are those of
/// [`warpnorm::InstanceNorm`]. Types and layouts are those of [`GroupNorm`](crate::GroupNorm).
///
/// ```
/// use candle::{Device, Module, Tensor};
/// use warpnorm_candle::InstanceNorm;
///
/// let norm = InstanceNorm::new(1, 0.0);
/// let y = norm.forward(&Tensor::new(&[[[1f32, 3.0]], [[20.0, 10.0]]], &Device::Cpu)?)?;
/// assert_eq!(y.to_vec3::<f32>()?, [[[-1.0, 1.0]], [[1.0, -1.0]]]);
/// # Ok::<(), candle::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct InstanceNorm {
    weight_and_bias: Option<(Tensor, Tensor)>,
    norm: warpnorm::InstanceNorm,
}

impl InstanceNorm {
    /// Without scale and shift.
    pub fn new(num_features: usize, eps: f64) -> Self {
        Self { weight_and_bias: None, norm: warpnorm::InstanceNorm::new(num_features).eps(eps as f32) }
    }

    /// With scale and shift, one value per channel.
    pub fn new_affine(num_features: usize, weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self { weight_and_bias: Some((weight, bias)), ..Self::new(num_features, eps) }
    }

    /// Scale and shift.
    pub fn weight_and_bias(&self) -> Option<(&Tensor, &Tensor)> {
        self.weight_and_bias.as_ref().map(|(weight, bias)| (weight, bias))
    }

    /// As [`GroupNorm::forward_fused`](crate::GroupNorm::forward_fused).
    ///
    /// # Errors
    ///
    /// As [`GroupNorm::forward_fused`](crate::GroupNorm::forward_fused).
    pub fn forward_fused(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: FusedActivation,
    ) -> Result<Tensor> {
        let norm = Norm::Channels(Channels::Instance(self.norm.activation(activation)));
        Ok(channels::call(norm, x, residual, self.weight_and_bias())?.y)
    }
}

impl Module for InstanceNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_fused(x, None, FusedActivation::None)
    }
}

/// An [`InstanceNorm`] with the tensors `weight` and `bias` where it is affine.
///
/// # Errors
///
/// Where the builder has none.
pub fn instance_norm<C: Into<InstanceNormConfig>>(
    num_features: usize,
    config: C,
    vb: VarBuilder,
) -> Result<InstanceNorm> {
    let config = config.into();
    if !config.affine {
        return Ok(InstanceNorm::new(num_features, config.eps));
    }
    let weight = vb.get_with_hints(num_features, "weight", candle_nn::Init::Const(1.0))?;
    let bias = vb.get_with_hints(num_features, "bias", candle_nn::Init::Const(0.0))?;
    Ok(InstanceNorm::new_affine(num_features, weight, bias, config.eps))
}
