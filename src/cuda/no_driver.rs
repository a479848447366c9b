//! The GPU's types in a build without the feature `cuda`: there, but never made.
#![allow(unsafe_code)]

use core::{convert::Infallible, marker::PhantomData};

use super::plan::DeviceLimits;
use crate::{
    Backend, Element, Error, Result,
    backend::WorkspaceLen,
    channel_norm::{ChannelNormBackward, ChannelNormForward},
    row_norm::{RowNormBackward, RowNormForward},
    sealed::Sealed,
    shape::{ChannelShape, RowShape},
};

const FEATURE_OFF: Error = Error::NotCompiled("its feature `cuda` is off");

/// Runs on one stream of one GPU; in this build there is none.
#[derive(Clone, Debug)]
pub struct Cuda(Infallible);

impl Cuda {
    /// Says that this build has no CUDA.
    ///
    /// # Errors
    ///
    /// Always [`Error::NotCompiled`].
    pub fn new(_ordinal: usize) -> Result<Self> {
        Err(FEATURE_OFF)
    }

    /// Says that this build has no CUDA.
    ///
    /// # Errors
    ///
    /// Always [`Error::NotCompiled`].
    ///
    /// # Safety
    ///
    /// None is needed in this build.
    pub unsafe fn from_raw_stream(_ordinal: usize, _stream: *mut core::ffi::c_void) -> Result<Self> {
        Err(FEATURE_OFF)
    }

    /// What plans are made for.
    pub fn limits(&self) -> DeviceLimits {
        match self.0 {}
    }

    /// Loads every kernel.
    ///
    /// # Errors
    ///
    /// None, since there is no value to call it on.
    pub fn warm_up(&self) -> Result<()> {
        match self.0 {}
    }

    /// Waits for all that was enqueued on the stream.
    ///
    /// # Errors
    ///
    /// None, since there is no value to call it on.
    pub fn synchronize(&self) -> Result<()> {
        match self.0 {}
    }
}

/// Elements on a GPU that a tensor owns; in this build there are none.
pub struct CudaBuf<T>(Infallible, PhantomData<T>);

/// A shared borrow of elements on a GPU.
pub struct CudaRef<'a, T> {
    len: usize,
    life: PhantomData<&'a T>,
}

/// An exclusive borrow of elements on a GPU.
pub struct CudaMut<'a, T> {
    len: usize,
    life: PhantomData<&'a mut T>,
}

impl<T> CudaRef<'_, T> {
    /// Borrows `len` elements at a device address that another library owns.
    ///
    /// # Safety
    ///
    /// None is needed in this build, which never reads them.
    pub unsafe fn from_raw(_address: u64, len: usize) -> Self {
        Self { len, life: PhantomData }
    }
}

impl<T> CudaMut<'_, T> {
    /// Borrows `len` elements at a device address that another library owns, exclusively.
    ///
    /// # Safety
    ///
    /// None is needed in this build, which never writes them.
    pub unsafe fn from_raw(_address: u64, len: usize) -> Self {
        Self { len, life: PhantomData }
    }
}

impl<T> Clone for CudaRef<'_, T> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl Sealed for Cuda {}

impl Backend for Cuda {
    type Buf<T: Element> = CudaBuf<T>;
    type Ref<'a, T: Element> = CudaRef<'a, T>;
    type Mut<'a, T: Element> = CudaMut<'a, T>;

    fn zeros<T: Element>(&self, _: usize) -> Result<CudaBuf<T>> {
        match self.0 {}
    }
    fn upload<T: Element>(&self, _: &[T]) -> Result<CudaBuf<T>> {
        match self.0 {}
    }
    fn download<T: Element>(&self, _: &CudaRef<'_, T>) -> Result<Vec<T>> {
        match self.0 {}
    }
    fn borrow<T: Element>(buf: &CudaBuf<T>) -> CudaRef<'_, T> {
        match buf.0 {}
    }
    fn borrow_mut<T: Element>(buf: &mut CudaBuf<T>) -> CudaMut<'_, T> {
        match buf.0 {}
    }
    fn reborrow<'a, T: Element>(data: &'a CudaRef<'_, T>) -> CudaRef<'a, T> {
        data.clone()
    }
    fn reborrow_mut<'a, T: Element>(data: &'a mut CudaMut<'_, T>) -> CudaMut<'a, T> {
        CudaMut { len: data.len, life: PhantomData }
    }
    fn len<T: Element>(data: &CudaRef<'_, T>) -> usize {
        data.len
    }
    fn len_mut<T: Element>(data: &CudaMut<'_, T>) -> usize {
        data.len
    }
    fn channel_norm_workspace(&self, _: ChannelShape) -> WorkspaceLen {
        match self.0 {}
    }
    fn channel_norm_fwd<T: Element>(
        &self,
        _: ChannelShape,
        _: ChannelNormForward<'_, T, Self>,
    ) -> Result<()> {
        match self.0 {}
    }
    fn channel_norm_bwd<T: Element>(
        &self,
        _: ChannelShape,
        _: ChannelNormBackward<'_, T, Self>,
    ) -> Result<()> {
        match self.0 {}
    }
    fn row_norm_workspace(&self, _: RowShape) -> WorkspaceLen {
        match self.0 {}
    }
    fn row_norm_fwd<T: Element>(&self, _: RowShape, _: RowNormForward<'_, T, Self>) -> Result<()> {
        match self.0 {}
    }
    fn row_norm_bwd<T: Element>(&self, _: RowShape, _: RowNormBackward<'_, T, Self>) -> Result<()> {
        match self.0 {}
    }
}
