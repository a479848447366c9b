//! candle's memory as warpnorm sees it.

use candle::{
    CpuStorage, Error, Layout, Result, Storage, Tensor, WithDType, backend::BackendStorage, op::BackpropOp,
};
use warpnorm::{Backend, Cpu};

/// What candle asks of elements on a GPU.
#[cfg(feature = "cuda")]
pub(crate) use candle::cuda_backend::CudaDType as OnDevice;

/// What candle asks of elements on a GPU; in this build nothing.
#[cfg(not(feature = "cuda"))]
pub(crate) trait OnDevice {}
#[cfg(not(feature = "cuda"))]
impl<T> OnDevice for T {}

/// Elements that both libraries know.
pub(crate) trait Number: warpnorm::Element + WithDType + OnDevice {}
impl<T: warpnorm::Element + WithDType + OnDevice> Number for T {}

/// The memory of one of candle's devices.
pub(crate) trait Memory: 'static {
    type Backend: Backend;
    /// What candle keeps tensors of this device in.
    type Storage: BackendStorage;
    /// Elements of our own, on their way to candle.
    type Buffer<T: Number>: Send + Sync;

    /// The storage of a tensor of this device.
    fn of(storage: &Storage) -> Result<&Self::Storage>;
    /// What runs on the device, in the order of candle's own work.
    fn backend(storage: &Self::Storage) -> Result<Self::Backend>;
    /// Some elements of a storage.
    fn elements<T: Number>(
        storage: &Self::Storage,
        start: usize,
        len: usize,
    ) -> Result<<Self::Backend as Backend>::Ref<'_, T>>;
    /// Elements beside a storage, all of which are to be written.
    fn buffer<T: Number>(beside: &Self::Storage, len: usize) -> Result<Self::Buffer<T>>;
    /// A copy of elements of a storage.
    fn copy<T: Number>(storage: &Self::Storage, start: usize, len: usize) -> Result<Self::Buffer<T>>;
    fn borrow<T: Number>(buffer: &Self::Buffer<T>) -> <Self::Backend as Backend>::Ref<'_, T>;
    fn borrow_mut<T: Number>(buffer: &mut Self::Buffer<T>) -> <Self::Backend as Backend>::Mut<'_, T>;
    /// Both halves of a buffer.
    fn halves_mut<T: Number>(buffer: &mut Self::Buffer<T>) -> [<Self::Backend as Backend>::Mut<'_, T>; 2];
    /// Hands a buffer over to candle.
    fn store<T: Number>(beside: &Self::Storage, buffer: Self::Buffer<T>) -> Self::Storage;
    fn wrap(storage: Self::Storage) -> Storage;
    fn unwrap(storage: Storage) -> Option<Self::Storage>;

    /// A tensor without a history.
    fn tensor<T: Number>(beside: &Self::Storage, buffer: Self::Buffer<T>, dims: &[usize]) -> Tensor {
        let storage = Self::wrap(Self::store(beside, buffer));
        Tensor::from_storage(storage, dims, BackpropOp::none(), false)
    }
}

/// Elements of such memory that are read.
pub(crate) type Ref<'a, M, T> = <<M as Memory>::Backend as Backend>::Ref<'a, T>;
/// Elements of such memory that are written.
pub(crate) type Mut<'a, M, T> = <<M as Memory>::Backend as Backend>::Mut<'a, T>;

/// What a contiguous layout covers of its storage.
pub(crate) fn offset(op: &'static str, layout: &Layout) -> Result<usize> {
    match layout.contiguous_offsets() {
        Some((start, _)) => Ok(start),
        None => Err(Error::RequiresContiguous { op }.bt()),
    }
}

pub(crate) struct CpuMemory;

impl Memory for CpuMemory {
    type Backend = Cpu;
    type Storage = CpuStorage;
    type Buffer<T: Number> = Vec<T>;

    fn of(storage: &Storage) -> Result<&CpuStorage> {
        match storage {
            Storage::Cpu(storage) => Ok(storage),
            _ => Err(Error::msg("tensors of one call are on different devices")),
        }
    }
    fn backend(_: &CpuStorage) -> Result<Cpu> {
        Ok(Cpu)
    }
    fn elements<T: Number>(storage: &CpuStorage, start: usize, len: usize) -> Result<&[T]> {
        Ok(&T::cpu_storage_as_slice(storage)?[start..start + len])
    }
    fn buffer<T: Number>(_: &CpuStorage, len: usize) -> Result<Vec<T>> {
        Cpu.zeros(len).map_err(Error::wrap)
    }
    fn copy<T: Number>(storage: &CpuStorage, start: usize, len: usize) -> Result<Vec<T>> {
        Cpu.upload(Self::elements(storage, start, len)?).map_err(Error::wrap)
    }
    fn borrow<T: Number>(buffer: &Vec<T>) -> &[T] {
        buffer
    }
    fn borrow_mut<T: Number>(buffer: &mut Vec<T>) -> &mut [T] {
        buffer
    }
    fn halves_mut<T: Number>(buffer: &mut Vec<T>) -> [&mut [T]; 2] {
        let half = buffer.len() / 2;
        buffer.split_at_mut(half).into()
    }
    fn store<T: Number>(_: &CpuStorage, buffer: Vec<T>) -> CpuStorage {
        T::to_cpu_storage_owned(buffer)
    }
    fn wrap(storage: CpuStorage) -> Storage {
        Storage::Cpu(storage)
    }
    fn unwrap(storage: Storage) -> Option<CpuStorage> {
        match storage {
            Storage::Cpu(storage) => Some(storage),
            _ => None,
        }
    }
}
