mod activation;
#[allow(unsafe_code)] // units of work write to parts of the same tensors
mod channel_norm;
#[allow(unsafe_code)]
mod memory;
mod moments;
#[allow(unsafe_code)] // asks the system for large pages
mod pages;
#[allow(unsafe_code)]
mod parallel;
mod params;
#[allow(unsafe_code)] // likewise
mod row_norm;
#[allow(unsafe_code)]
mod simd;
#[allow(unsafe_code)]
mod totals;

#[cfg(test)]
mod tests;

use half::vec::HalfBitsVecExt;

use crate::{
    Backend, Element, Result, View, ViewMut,
    backend::WorkspaceLen,
    channel_norm::{ChannelNormBackward, ChannelNormForward},
    row_norm::{RowNormBackward, RowNormForward},
    sealed::Sealed,
    shape::{ChannelShape, RowShape},
};

/// Runs on the CPU. Its tensors are plain slices and vectors.
///
/// Tensors of 4 MiB and more that it allocates ask Linux for transparent huge pages, as NumPy's do. With them a call that
/// allocates its results can take a third of the time, any other two thirds, where tensors are more than the caches; other memory
/// is worth the same request (`madvise` with `MADV_HUGEPAGE`).
///
/// A call that reads and writes 512 KiB and more is divided among the thread that makes it and those of the [rayon] pool
/// that it is made from, the global one unless it is made in another's `install`: as many as the pool has, in all. It waits
/// only for those that have begun, so a pool that is busy does not hold it up. Smaller calls, and all with a pool of one
/// thread, stay on the calling thread. A call returns when all is done.
///
/// The same input gives the same bits, whatever the number of threads: how sums are divided follows from the shape alone.
/// Kernels are compiled for AVX-512, for AVX2 with FMA and F16C, and for what every CPU of the architecture has; the best
/// that the CPU at hand has is chosen at run time. The first two give the same bits as well, the last may round
/// differently.
///
/// Arithmetic is in `f32`. Sums are taken in `f32` over at most 64 values; up to four such sums over rows are added in `f32`,
/// all others in `f64`. Those for means and variances are of differences from a value near the mean. Where squares do not fit in
/// `f32`, a forward pass takes these again in `f64`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu;

impl Cpu {
    /// Sees a slice as a tensor of the given dimensions, channels first.
    ///
    /// # Errors
    ///
    /// As [`View::new`].
    pub fn view<'a, T: Element>(&self, data: &'a [T], dims: &[usize]) -> Result<View<'a, T, Self>> {
        View::new(data, dims)
    }

    /// Sees an exclusive slice as a tensor of the given dimensions, channels first.
    ///
    /// # Errors
    ///
    /// As [`View::new`].
    pub fn view_mut<'a, T: Element>(
        &self,
        data: &'a mut [T],
        dims: &[usize],
    ) -> Result<ViewMut<'a, T, Self>> {
        ViewMut::new(data, dims)
    }
}

impl Sealed for Cpu {}

/// What the CPU does with tensors of an element type: compiled once, with this crate, for each of them.
pub trait HostElement: Sized + 'static {
    /// Zeros as the system gives them, which costs less than to write them.
    #[doc(hidden)]
    fn zeros(len: usize) -> Vec<Self>;
    #[doc(hidden)]
    fn channel_norm_fwd(shape: ChannelShape, args: ChannelNormForward<'_, Self, Cpu>)
    where
        Self: Element;
    #[doc(hidden)]
    fn channel_norm_bwd(shape: ChannelShape, args: ChannelNormBackward<'_, Self, Cpu>)
    where
        Self: Element;
    #[doc(hidden)]
    fn row_norm_fwd(shape: RowShape, args: RowNormForward<'_, Self, Cpu>)
    where
        Self: Element;
    #[doc(hidden)]
    fn row_norm_bwd(shape: RowShape, args: RowNormBackward<'_, Self, Cpu>)
    where
        Self: Element;
}

macro_rules! host_element {
    ($($t:ty: $zeros:expr;)*) => {$(
        impl HostElement for $t {
            fn zeros(len: usize) -> Vec<Self> {
                $zeros(len)
            }
            fn channel_norm_fwd(shape: ChannelShape, args: ChannelNormForward<'_, Self, Cpu>) {
                channel_norm::forward(shape, args);
            }
            fn channel_norm_bwd(shape: ChannelShape, args: ChannelNormBackward<'_, Self, Cpu>) {
                channel_norm::backward(shape, args);
            }
            fn row_norm_fwd(shape: RowShape, args: RowNormForward<'_, Self, Cpu>) {
                row_norm::forward(shape, args);
            }
            fn row_norm_bwd(shape: RowShape, args: RowNormBackward<'_, Self, Cpu>) {
                row_norm::backward(shape, args);
            }
        }
    )*};
}
host_element! {
    f32: |len| vec![0.0; len];
    // The standard library does not know that zeros of these are.
    half::f16: |len| vec![0_u16; len].reinterpret_into();
    half::bf16: |len| vec![0_u16; len].reinterpret_into();
}

impl Backend for Cpu {
    type Buf<T: Element> = Vec<T>;
    type Ref<'a, T: Element> = &'a [T];
    type Mut<'a, T: Element> = &'a mut [T];

    fn zeros<T: Element>(&self, len: usize) -> Result<Vec<T>> {
        Ok(pages::zeros(len))
    }
    fn upload<T: Element>(&self, data: &[T]) -> Result<Vec<T>> {
        Ok(pages::copy(data))
    }
    fn download<T: Element>(&self, data: &&[T]) -> Result<Vec<T>> {
        Ok(data.to_vec())
    }

    fn borrow<T: Element>(buf: &Vec<T>) -> &[T] {
        buf
    }
    fn borrow_mut<T: Element>(buf: &mut Vec<T>) -> &mut [T] {
        buf
    }
    fn reborrow<'a, T: Element>(data: &'a &[T]) -> &'a [T] {
        data
    }
    fn reborrow_mut<'a, T: Element>(data: &'a mut &mut [T]) -> &'a mut [T] {
        data
    }
    fn len<T: Element>(data: &&[T]) -> usize {
        data.len()
    }
    fn len_mut<T: Element>(data: &&mut [T]) -> usize {
        data.len()
    }

    fn channel_norm_workspace(&self, _: ChannelShape) -> WorkspaceLen {
        WorkspaceLen::default()
    }
    fn channel_norm_fwd<T: Element>(
        &self,
        shape: ChannelShape,
        args: ChannelNormForward<'_, T, Self>,
    ) -> Result<()> {
        T::channel_norm_fwd(shape, args);
        Ok(())
    }
    fn channel_norm_bwd<T: Element>(
        &self,
        shape: ChannelShape,
        args: ChannelNormBackward<'_, T, Self>,
    ) -> Result<()> {
        T::channel_norm_bwd(shape, args);
        Ok(())
    }
    fn row_norm_workspace(&self, _: RowShape) -> WorkspaceLen {
        WorkspaceLen::default()
    }
    fn row_norm_fwd<T: Element>(&self, shape: RowShape, args: RowNormForward<'_, T, Self>) -> Result<()> {
        T::row_norm_fwd(shape, args);
        Ok(())
    }
    fn row_norm_bwd<T: Element>(&self, shape: RowShape, args: RowNormBackward<'_, T, Self>) -> Result<()> {
        T::row_norm_bwd(shape, args);
        Ok(())
    }
}
