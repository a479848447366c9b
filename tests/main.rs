//! Tests of the crate from outside. Each test body runs on every backend and element type; `support` says how.

mod support;

mod batch_norm;
mod bindings;
mod cuda;
mod elements;
#[cfg(feature = "emulator")]
mod emulator;
mod errors;
mod golden;
mod gradients;
#[cfg(feature = "emulator")]
mod kernels;
mod layer_norm;
mod naive;
mod onnx;
mod peers;
mod pytorch;
mod sums;
