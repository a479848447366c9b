//! Normalization layers for candle that train: `candle_nn`'s names and constructors, with one fused op for the
//! forward pass and one for the backward pass, on the CPU and on NVIDIA GPUs (feature `cuda`).
//!
//! | layer | constructors | gradients of |
//! |---|---|---|
//! | [`LayerNorm`] | [`layer_norm()`], [`layer_norm_no_bias()`] | `x`, weight, bias, residual |
//! | [`RmsNorm`] | [`rms_norm()`] | `x`, weight, residual |
//! | [`BatchNorm`] | [`batch_norm()`] | `x`, weight, bias, residual |
//! | [`GroupNorm`] | [`group_norm()`] | `x`, weight, bias, residual |
//! | [`InstanceNorm`] | [`instance_norm()`] | `x`, weight, bias, residual |
//!
//! Everything else of `candle_nn` is here too, so that `use candle_nn::…` becomes `use warpnorm_candle::…` and nothing else
//! changes:
//!
//! ```
//! use candle::{DType, Device, Module, Tensor};
//! use warpnorm_candle::{LayerNorm, Linear, VarBuilder, VarMap, layer_norm, linear};
//!
//! let vars = VarMap::new();
//! let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
//! let (norm, out): (LayerNorm, Linear) = (layer_norm(4, 1e-5, vb.pp("norm"))?, linear(4, 2, vb.pp("out"))?);
//!
//! let x = Tensor::randn(0f32, 1.0, (3, 4), &Device::Cpu)?;
//! let loss = out.forward(&norm.forward(&x)?)?.sqr()?.sum_all()?;
//! let grads = loss.backward()?;
//! assert!(vars.all_vars().iter().all(|var| grads.get(var).is_some()));
//! # Ok::<(), candle::Error>(())
//! ```

mod channels;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)] // fresh memory that an op writes first
mod cuda;
mod memory;
mod op;

pub mod batch_norm;
pub mod group_norm;
pub mod instance_norm;
pub mod layer_norm;

pub use batch_norm::{BatchNorm, BatchNormConfig, batch_norm};
pub use candle_nn::*;
pub use group_norm::{GroupNorm, group_norm};
pub use instance_norm::{InstanceNorm, InstanceNormConfig, instance_norm};
pub use layer_norm::{LayerNorm, LayerNormConfig, RmsNorm, layer_norm, layer_norm_no_bias, rms_norm};
pub use warpnorm;
/// What the fused methods of the norms of channels apply last.
pub use warpnorm::Activation as FusedActivation;

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
