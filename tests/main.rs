//! Tests of the crate from outside. Each test body runs on every backend and element type; `support` says how.

mod support;

mod batch_norm;
mod bindings;
mod composed;
mod cuda;
mod edges;
mod elements;
#[cfg(feature = "emulator")]
mod emulator;
mod errors;
mod every_op;
mod extremes;
mod fold;
mod fused;
mod golden;
mod gradients;
mod group_norm;
mod instance_norm;
#[cfg(feature = "emulator")]
mod kernels;
mod layer_norm;
mod naive;
mod onnx;
mod peers;
mod perf;
mod population;
mod pytorch;
mod rms_norm;
mod row_norm;
#[cfg(feature = "emulator")]
mod row_plans;
mod segments;
#[cfg(feature = "emulator")]
mod strategies;
mod sums;
mod threads;
#[cfg(feature = "emulator-check")]
mod traffic;
