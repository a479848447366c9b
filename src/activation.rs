/// What an op of the channel family applies last: `y = act(x_hat * weight + bias + residual)`.
///
/// Values and derivatives are computed in `f32` (`f64` on the CPU), before `y` is rounded to the tensor's type. A
/// backward pass computes what the activation was given again, from the `x`, `residual` and parameters it is handed.
///
/// ```
/// use warpnorm::{Activation, Affine, BatchNorm, Cpu, RunningStats, Tensor};
///
/// let x = Tensor::from_slice(&Cpu, &[-1.0_f32, 2.0], &[2, 1])?;
/// let running = RunningStats::new(&Cpu, 1)?; // mean 0, variance 1
/// let bn = BatchNorm::new(1).eps(0.0).activation(Activation::Relu);
/// assert_eq!(bn.forward_eval(&Cpu, &x, Affine::None, &running)?.to_vec(&Cpu)?, [0.0, 2.0]);
/// # Ok::<(), warpnorm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `max(z, 0)`; NaN stays NaN, the derivative at 0 is 0.
    Relu,
    /// `z * sigmoid(z)`, also called swish (Ramachandran et al., [arXiv:1710.05941](https://arxiv.org/abs/1710.05941)).
    Silu,
    /// `z * Phi(z)` with the distribution function of the normal distribution (Hendrycks and Gimpel,
    /// [arXiv:1606.08415](https://arxiv.org/abs/1606.08415)); PyTorch's default GELU.
    Gelu,
    /// Its approximation `z / 2 * (1 + tanh(sqrt(2 / pi) * (z + 0.044715 * z³)))`; PyTorch's `approximate="tanh"`.
    GeluTanh,
}
