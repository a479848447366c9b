//! [`BatchNorm`].

use candle::{DType, ModuleT, Result, Tensor, Var};
use candle_nn::VarBuilder;

pub use candle_nn::BatchNormConfig;

use crate::{
    FusedActivation, channels,
    op::{Channels, Norm},
};

/// `candle_nn`'s layer in one op: normalizes over the samples and positions of each channel in training, by running statistics
/// in inference.
///
/// `y = (x - mean) / sqrt(var + eps) * weight + bias` for `x` of `[samples, channels, ...]`. In training `mean` and the biased
/// `var` are those of the batch, gradients flow through them, and with the `n` values per channel
///
/// `running_mean = (1 - momentum) * running_mean + momentum * mean`
/// `running_var  = (1 - momentum) * running_var  + momentum * var * n / (n - 1)`
///
/// as in PyTorch; a single value per channel is an error, and an empty batch leaves them alone. The running statistics are
/// [`Var`]s of any float type, computed in F32. In inference they are constants. Gradients are those of
/// [`warpnorm::BatchNorm`]. Types and layouts are those of [`GroupNorm`](crate::GroupNorm).
///
/// ```
/// use candle::{Device, ModuleT, Tensor};
/// use warpnorm_candle::BatchNorm;
///
/// let device = Device::Cpu;
/// let (mean, var) = (Tensor::new(&[0f32], &device)?, Tensor::new(&[1f32], &device)?);
/// let norm = BatchNorm::new_no_bias(1, mean, var, 0.0)?;
/// let x = Tensor::new(&[[1f32], [3.0]], &device)?;
/// assert_eq!(norm.forward_t(&x, true)?.to_vec2::<f32>()?, [[-1.0], [1.0]]);
/// assert_eq!(norm.running_mean().to_vec1::<f32>()?, [0.2]); // a tenth of the batch's
/// # Ok::<(), candle::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct BatchNorm {
    running_mean: Var,
    running_var: Var,
    weight_and_bias: Option<(Tensor, Tensor)>,
    eps: f64,
    momentum: f64,
}

impl BatchNorm {
    /// With scale and shift.
    ///
    /// # Errors
    ///
    /// Where a tensor is not of `[num_features]`, or `eps` is negative.
    pub fn new(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: f64,
    ) -> Result<Self> {
        Self::new_with_momentum(num_features, running_mean, running_var, weight, bias, eps, 0.1)
    }

    /// Without scale and shift.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn new_no_bias(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        eps: f64,
    ) -> Result<Self> {
        Self::new_no_bias_with_momentum(num_features, running_mean, running_var, eps, 0.1)
    }

    /// With scale, shift and the weight of new statistics.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and where `momentum` is not between 0 and 1.
    pub fn new_with_momentum(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: f64,
        momentum: f64,
    ) -> Result<Self> {
        let params = Some((weight, bias));
        Self::checked(num_features, [running_mean, running_var], params, eps, momentum)
    }

    /// Without scale and shift, with the weight of new statistics.
    ///
    /// # Errors
    ///
    /// As [`new_with_momentum`](Self::new_with_momentum).
    pub fn new_no_bias_with_momentum(
        num_features: usize,
        running_mean: Tensor,
        running_var: Tensor,
        eps: f64,
        momentum: f64,
    ) -> Result<Self> {
        Self::checked(num_features, [running_mean, running_var], None, eps, momentum)
    }

    fn checked(
        num_features: usize,
        [running_mean, running_var]: [Tensor; 2],
        weight_and_bias: Option<(Tensor, Tensor)>,
        eps: f64,
        momentum: f64,
    ) -> Result<Self> {
        check_numbers(eps, momentum)?;
        let (weight, bias) = weight_and_bias.as_ref().map(|(weight, bias)| (weight, bias)).unzip();
        let running = [("running_mean", Some(&running_mean)), ("running_var", Some(&running_var))];
        for (name, tensor) in running.into_iter().chain([("weight", weight), ("bias", bias)]) {
            let Some(dims) = tensor.map(Tensor::dims).filter(|dims| *dims != [num_features]) else {
                continue;
            };
            candle::bail!("BatchNorm: {name} must be of [{num_features}], it is of {dims:?}")
        }
        for (name, tensor) in [("running_mean", &running_mean), ("running_var", &running_var)] {
            if !tensor.dtype().is_float() {
                candle::bail!("BatchNorm: {name} must be of a float type, it is of {:?}", tensor.dtype())
            }
        }
        Ok(Self {
            running_mean: Var::from_tensor(&running_mean)?,
            running_var: Var::from_tensor(&running_var)?,
            weight_and_bias,
            eps,
            momentum,
        })
    }

    /// The running mean.
    pub fn running_mean(&self) -> &Tensor {
        self.running_mean.as_tensor()
    }

    /// The running variance, unbiased.
    pub fn running_var(&self) -> &Tensor {
        self.running_var.as_tensor()
    }

    /// What is added to variances.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// Scale and shift.
    pub fn weight_and_bias(&self) -> Option<(&Tensor, &Tensor)> {
        self.weight_and_bias.as_ref().map(|(weight, bias)| (weight, bias))
    }

    /// The weight of a batch's statistics in the running ones.
    pub fn momentum(&self) -> f64 {
        self.momentum
    }

    /// As [`forward_t`](ModuleT::forward_t) in training.
    ///
    /// # Errors
    ///
    /// As [`forward_t`](ModuleT::forward_t).
    pub fn forward_train(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_t_fused(x, None, FusedActivation::None, true)
    }

    /// `act(norm(x) + residual)` in one pass. With a residual, weight and bias are stacked first, which copies them: candle's
    /// ops take three inputs.
    ///
    /// # Errors
    ///
    /// As [`forward_t`](ModuleT::forward_t), and where `residual` is not of the shape and type of `x`. The running statistics
    /// are as before then.
    pub fn forward_t_fused(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: FusedActivation,
        train: bool,
    ) -> Result<Tensor> {
        let vars = [&self.running_mean, &self.running_var];
        let running = [in_f32(vars[0])?, in_f32(vars[1])?];
        let norm = warpnorm::BatchNorm::new(running[0].elem_count())
            .eps(self.eps as f32)
            .momentum(self.momentum as f32)
            .activation(activation);
        let norm = match train {
            true => Norm::Channels(Channels::Batch(norm, running)),
            // Copies, because a backward pass must not find what is set meanwhile; in training it needs neither.
            false => Norm::Running(norm, [running[0].copy()?, running[1].copy()?]),
        };
        let output = channels::call(norm, x, residual, self.weight_and_bias())?;
        for (var, moved) in vars.into_iter().zip(output.running.into_iter().flatten()) {
            var.set(&moved.to_dtype(var.dtype())?)?;
        }
        Ok(output.y)
    }
}

fn in_f32(var: &Var) -> Result<Tensor> {
    var.as_detached_tensor().to_dtype(DType::F32)?.contiguous()
}

fn check_numbers(eps: f64, momentum: f64) -> Result<()> {
    if !(eps >= 0.0 && eps.is_finite()) {
        candle::bail!("BatchNorm: eps must be finite and not negative, it is {eps}")
    }
    if !(0.0..=1.0).contains(&momentum) {
        candle::bail!("BatchNorm: momentum must be between 0 and 1, it is {momentum}")
    }
    Ok(())
}

impl ModuleT for BatchNorm {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_t_fused(x, None, FusedActivation::None, train)
    }
}

/// A [`BatchNorm`] with the tensors `running_mean`, `running_var` and, where it is affine, `weight` and `bias`.
///
/// # Errors
///
/// Where the builder has none, where `eps` is negative or `momentum` not between 0 and 1, and where the mean is to be kept: a
/// BatchNorm without its mean is not offered here.
pub fn batch_norm<C: Into<BatchNormConfig>>(
    num_features: usize,
    config: C,
    vb: VarBuilder,
) -> Result<BatchNorm> {
    let config = config.into();
    if !config.remove_mean {
        candle::bail!("BatchNorm: remove_mean must be true")
    }
    check_numbers(config.eps, config.momentum)?;
    let get = |name, value| vb.get_with_hints(num_features, name, candle_nn::Init::Const(value));
    let running = [get("running_mean", 0.0)?, get("running_var", 1.0)?];
    let weight_and_bias = match config.affine {
        true => Some((get("weight", 1.0)?, get("bias", 0.0)?)),
        false => None,
    };
    BatchNorm::checked(num_features, running, weight_and_bias, config.eps, config.momentum)
}
