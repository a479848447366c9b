//! [`GroupNorm`].

use candle::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use crate::{
    FusedActivation, channels,
    op::{Channels, Norm},
};

/// `candle_nn`'s layer in one op: normalizes over the positions and channels of each group of each sample.
///
/// `y = (x - mean) / sqrt(var + eps) * weight + bias` for `x` of `[samples, channels, ...]`, with one weight and bias per
/// channel; gradients are those of [`warpnorm::GroupNorm`].
///
/// `x` is of F32, F16 or BF16; weight and bias are of the same type or F32. Tensors whose channels lie last, such as
/// `x.permute((0, 3, 1, 2))` of a contiguous `x`, are read as they lie, and so is `y`; others that are not contiguous are
/// copied once.
///
/// ```
/// use candle::{Device, Module, Tensor};
/// use warpnorm_candle::GroupNorm;
///
/// let (weight, bias) = (Tensor::new(&[1f32, 2.0], &Device::Cpu)?, Tensor::new(&[0f32, 0.5], &Device::Cpu)?);
/// let norm = GroupNorm::new(weight, bias, 2, 1, 0.0)?;
/// let y = norm.forward(&Tensor::new(&[[[1f32], [3.0]]], &Device::Cpu)?)?;
/// assert_eq!(y.to_vec3::<f32>()?, [[[-1.0], [2.5]]]);
/// # Ok::<(), candle::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    norm: warpnorm::GroupNorm,
}

impl GroupNorm {
    /// With scale and shift.
    ///
    /// # Errors
    ///
    /// Where the channels cannot be cut into so many groups.
    pub fn new(
        weight: Tensor,
        bias: Tensor,
        num_channels: usize,
        num_groups: usize,
        eps: f64,
    ) -> Result<Self> {
        if num_groups == 0 || !num_channels.is_multiple_of(num_groups) {
            candle::bail!("GroupNorm: num_groups ({num_groups}) must divide num_channels ({num_channels})")
        }
        let norm = warpnorm::GroupNorm::new(num_groups, num_channels).eps(eps as f32);
        Ok(Self { weight, bias, norm })
    }

    /// `act(norm(x) + residual)` in one pass. With a residual, weight and bias are stacked first, which copies them: candle's
    /// ops take three inputs.
    ///
    /// # Errors
    ///
    /// As [`forward`](Module::forward), and where `residual` is not of the shape and type of `x`.
    pub fn forward_fused(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: FusedActivation,
    ) -> Result<Tensor> {
        let norm = Norm::Channels(Channels::Group(self.norm.activation(activation)));
        Ok(channels::call(norm, x, residual, Some((&self.weight, &self.bias)))?.y)
    }
}

impl Module for GroupNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_fused(x, None, FusedActivation::None)
    }
}

/// A [`GroupNorm`] with the tensors `weight` and `bias`.
///
/// # Errors
///
/// Where the builder has none, or the channels cannot be cut into so many groups.
pub fn group_norm(num_groups: usize, num_channels: usize, eps: f64, vb: VarBuilder) -> Result<GroupNorm> {
    let weight = vb.get_with_hints(num_channels, "weight", candle_nn::Init::Const(1.0))?;
    let bias = vb.get_with_hints(num_channels, "bias", candle_nn::Init::Const(0.0))?;
    GroupNorm::new(weight, bias, num_channels, num_groups, eps)
}
