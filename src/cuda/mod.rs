//! The CUDA backend, and the planner that its kernels and the emulator's share.
//!
//! [`Cuda`] is there in every build. Where the kernels were not compiled, or the machine has no driver or no GPU,
//! [`Cuda::new`] says so.

#[cfg(feature = "cuda")]
mod driver;
#[cfg(not(feature = "cuda"))]
#[path = "no_driver.rs"]
mod driver;
#[cfg(any(feature = "cuda", feature = "emulator"))]
pub(crate) mod launch;
pub mod plan;
#[cfg(any(feature = "cuda", feature = "emulator"))]
#[allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    non_camel_case_types,
    unsafe_code,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)] // bindgen's output
#[rustfmt::skip]
pub(crate) mod sys;

pub use driver::{Cuda, CudaBuf, CudaMut, CudaRef};

use crate::{Element, Result, View, ViewMut};

impl Cuda {
    /// Sees elements on the GPU as a tensor of the given dimensions, channels first: `&CudaSlice` or `CudaView`.
    ///
    /// # Errors
    ///
    /// As [`View::new`].
    pub fn view<'a, T: Element>(
        &self,
        data: impl Into<CudaRef<'a, T>>,
        dims: &[usize],
    ) -> Result<View<'a, T, Self>> {
        View::new(data.into(), dims)
    }

    /// Sees elements on the GPU as a tensor to write: `&mut CudaSlice` or `CudaViewMut`.
    ///
    /// # Errors
    ///
    /// As [`View::new`].
    pub fn view_mut<'a, T: Element>(
        &self,
        data: impl Into<CudaMut<'a, T>>,
        dims: &[usize],
    ) -> Result<ViewMut<'a, T, Self>> {
        ViewMut::new(data.into(), dims)
    }
}
