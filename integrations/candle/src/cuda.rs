//! candle's memory on a GPU.

use candle::{
    CudaStorage, Error, Result, Storage,
    backend::BackendStorage,
    cuda_backend::{WrapErr, cudarc::driver::CudaSlice},
};
use warpnorm::{Cuda, CudaMut, CudaRef};

use crate::memory::{Memory, Number};

pub(crate) struct CudaMemory;

impl Memory for CudaMemory {
    type Backend = Cuda;
    type Storage = CudaStorage;
    type Buffer<T: Number> = CudaSlice<T>;

    fn of(storage: &Storage) -> Result<&CudaStorage> {
        match storage {
            Storage::Cuda(storage) => Ok(storage),
            _ => Err(Error::msg("tensors of one call are on different devices")),
        }
    }
    fn backend(storage: &CudaStorage) -> Result<Cuda> {
        Cuda::from_stream(storage.device().cuda_stream()).map_err(Error::wrap)
    }
    fn elements<T: Number>(storage: &CudaStorage, start: usize, len: usize) -> Result<CudaRef<'_, T>> {
        Ok(storage.as_cuda_slice::<T>()?.slice(start..start + len).into())
    }
    fn buffer<T: Number>(beside: &CudaStorage, len: usize) -> Result<CudaSlice<T>> {
        // SAFETY: the op that is given the buffer writes all of it before anything reads it, on the same stream.
        unsafe { beside.device().cuda_stream().alloc::<T>(len) }.w()
    }
    fn copy<T: Number>(storage: &CudaStorage, start: usize, len: usize) -> Result<CudaSlice<T>> {
        let source = storage.as_cuda_slice::<T>()?.slice(start..start + len);
        storage.device().cuda_stream().clone_dtod(&source).w()
    }
    fn borrow<T: Number>(buffer: &CudaSlice<T>) -> CudaRef<'_, T> {
        buffer.into()
    }
    fn borrow_mut<T: Number>(buffer: &mut CudaSlice<T>) -> CudaMut<'_, T> {
        buffer.into()
    }
    fn halves_mut<T: Number>(buffer: &mut CudaSlice<T>) -> [CudaMut<'_, T>; 2] {
        let half = buffer.len() / 2;
        let (first, second) = buffer.split_at_mut(half);
        [first.into(), second.into()]
    }
    fn store<T: Number>(beside: &CudaStorage, buffer: CudaSlice<T>) -> CudaStorage {
        CudaStorage::wrap_cuda_slice(buffer, beside.device().clone())
    }
    fn wrap(storage: CudaStorage) -> Storage {
        Storage::Cuda(storage)
    }
    fn unwrap(storage: Storage) -> Option<CudaStorage> {
        match storage {
            Storage::Cuda(storage) => Some(storage),
            _ => None,
        }
    }
}
