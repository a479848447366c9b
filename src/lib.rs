//! Normalization layers for NVIDIA GPUs: hand-written CUDA kernels behind a safe Rust API, with a CPU backend of the
//! same interface.
//!
//! | op | statistics over | weight and bias per | fused |
//! |---|---|---|---|
//! | [`BatchNorm`] | batch and positions, per channel; or the whole batch, time steps, chunks of samples; or running ones | channel | `act(norm(x) + residual)` |
//! | [`InstanceNorm`] | positions, per sample and channel; or running ones | channel | `act(norm(x) + residual)` |
//! | [`GroupNorm`] | positions and channels of a group, per sample | channel | `act(norm(x) + residual)` |
//! | [`LayerNorm`], [`RmsNorm`] | trailing dimensions, per row | column | `norm(x + residual)` |
//!
//! All have forward and backward passes, for `f32`, [`f16`](half::f16) and [`bf16`](half::bf16), and a forward pass in
//! place. The *channel norms*, the first three, take both [`Layout`]s; the *row norms* take
//! [strided views](View::strided). [`PopulationStats`] are the statistics of many batches, and [`BatchNorm::fold`] makes
//! a BatchNorm part of the layer before it.
//!
//! Every op comes on two levels. The *convenience* level takes [`Tensor`]s and allocates what it returns:
//!
//! ```
//! use warpnorm::{Affine, BatchNorm, Cpu, RunningStats, Tensor};
//!
//! let x = Tensor::from_slice(&Cpu, &[1.0_f32, 10.0, 3.0, 30.0], &[2, 2])?; // two samples of two channels
//! let mut running = RunningStats::new(&Cpu, 2)?;
//! let bn = BatchNorm::new(2).eps(0.0);
//!
//! let out = bn.forward_train(&Cpu, &x, Affine::None, Some(&mut running))?;
//! assert_eq!(out.y.to_vec(&Cpu)?, [-1.0, -1.0, 1.0, 1.0]);
//! assert_eq!(out.mean.to_vec(&Cpu)?, [2.0, 20.0]);
//! # Ok::<(), warpnorm::Error>(())
//! ```
//!
//! The *core* level, methods that end in `_into`, writes into buffers the caller gives and allocates no device memory,
//! so that it can be captured into a CUDA graph; see [`Cuda::warm_up`] for what a capture asks. It alone has the fused
//! forms of the channel norms, and adds gradients of weight and bias to what is there where `accumulate` is set.
//!
//! The same code runs on a GPU: [`Cuda::new`] gives the backend, or says why there is none.
//!
//! # Numbers
//!
//! All arithmetic and every statistic is in `f32` or wider. Means and variances come from Welford's algorithm, on the
//! CPU from differences from a value near the mean, so a mean thousands of times the spread does no harm. On the GPU squares of deviations,
//! and for RMSNorm those of values, must fit in `f32`: a spread between 1e-19 and 1e19. The same input gives the same
//! bits, run after run: there are no floating-point atomics.
//!
//! Gradients of weight and bias are summed in `f32` (on the CPU in parts, and these in `f64`) and rounded once to the type
//! asked for; only those added up over several calls in 16 bits lose more.

// The few modules that need it allow it.
#![deny(unsafe_code)]

mod activation;
mod affine;
mod allocating;
mod backend;
mod batch_norm;
mod channel_norm;
mod cpu;
pub mod cuda;
mod element;
#[cfg(feature = "emulator")]
mod emulated;
mod error;
mod fold;
mod group_norm;
mod instance_norm;
mod layer_norm;
mod population;
mod rms_norm;
mod row_norm;
mod shape;
mod tensor;

pub use activation::Activation;
pub use affine::{Affine, AffineGrad};
pub use allocating::Gradients;
pub use backend::{Backend, Workspace, WorkspaceLen};
pub use batch_norm::{
    BatchNorm, BatchNormBackwardEval, BatchNormBackwardTrain, BatchNormEval, BatchNormEvalInPlace,
    BatchNormOutput, BatchNormTrain, BatchNormTrainInPlace, RunningStats, RunningStatsMut, Statistics,
};
pub use cpu::Cpu;
pub use cuda::{Cuda, CudaBuf, CudaMut, CudaRef};
pub use element::{DType, Element};
#[cfg(feature = "emulator")]
pub use emulated::{Emulated, EmulatedBuf, EmulatedLaunch, EmulatedMut, EmulatedRef};
pub use error::{Error, Result};
pub use group_norm::{GroupNorm, GroupNormBackward, GroupNormForward, GroupNormInPlace, GroupNormOutput};
pub use instance_norm::{
    InstanceNorm, InstanceNormBackward, InstanceNormBackwardEval, InstanceNormEval, InstanceNormEvalInPlace,
    InstanceNormForward, InstanceNormInPlace, InstanceNormOutput,
};
pub use layer_norm::{LayerNorm, LayerNormBackward, LayerNormForward, LayerNormInPlace, LayerNormOutput};
pub use population::PopulationStats;
pub use rms_norm::{RmsNorm, RmsNormBackward, RmsNormForward, RmsNormInPlace, RmsNormOutput};
pub use row_norm::Residual;
pub use shape::Layout;
pub use tensor::{Tensor, View, ViewMut};

#[cfg(feature = "cuda")]
pub use cudarc;
pub use half;

/// The README's examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod sealed {
    pub trait Sealed {}
}
