//! Normalization layers for NVIDIA GPUs: hand-written CUDA kernels behind a safe Rust API, with a CPU backend of the
//! same interface.
//!
//! | op | statistics over | affine per |
//! |---|---|---|
//! | [`BatchNorm`] | batch and positions, per channel; or the whole batch; in training or given | channel |
//! | [`InstanceNorm`] | positions, per sample and channel; or given | channel |
//! | [`GroupNorm`] | positions and channels of a group, per sample | channel |
//! | [`LayerNorm`], [`RmsNorm`] | trailing dimensions | column |
//!
//! All have forward and backward passes, for `f32`, `f16` and `bf16`; the first three take both layouts.
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
//! so that it can be captured into a CUDA graph; see [`Cuda::warm_up`] for what a capture asks.
//!
//! The same code runs on a GPU: [`Cuda::new`] gives the backend, or says why there is none.
//!
//! # Numbers
//!
//! Elements are stored as `f32`, [`f16`](half::f16) or [`bf16`](half::bf16); all arithmetic and every statistic is in
//! `f32` or wider. Statistics come from Welford's algorithm, on the CPU from two passes in `f64`, so a mean thousands of
//! times the spread does no harm. On the GPU squares of deviations must fit in `f32`: a spread between 1e-19 and 1e19.
//! The same input gives the same bits, run after run: there are no floating-point atomics.

// The few modules that need it allow it.
#![deny(unsafe_code)]

mod activation;
mod affine;
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
pub use backend::{Backend, Workspace, WorkspaceLen};
pub use batch_norm::{
    BatchNorm, BatchNormBackwardEval, BatchNormBackwardTrain, BatchNormEval, BatchNormEvalInPlace,
    BatchNormOutput, BatchNormTrain, BatchNormTrainInPlace, RunningStats, RunningStatsMut, Statistics,
};
pub use channel_norm::Gradients;
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
