/// What an op of the channel family applies last: `y = act(norm(x) * weight + bias + residual)`.
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
    /// [arXiv:1606.08415](https://arxiv.org/abs/1606.08415)).
    Gelu,
    /// Its approximation `z / 2 * (1 + tanh(sqrt(2 / pi) * (z + 0.044715 * z³)))`.
    GeluTanh,
}
