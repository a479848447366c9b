//! The GPU through cudarc: streams, memory and addresses.
#![allow(unsafe_code)]

use core::{error::Error as _, fmt, marker::PhantomData};
use std::sync::{Arc, OnceLock};

use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DriverError,
    SyncOnDrop,
    sys::{CUdevice_attribute, CUstream},
};

use super::{
    launch,
    launch::Device,
    plan::{self, DeviceLimits},
    sys,
};
use crate::{
    Backend, Element, Error, Result,
    backend::WorkspaceLen,
    channel_norm::{ChannelNormBackward, ChannelNormForward},
    row_norm::{RowNormBackward, RowNormForward},
    sealed::Sealed,
    shape::{ChannelShape, RowShape},
};

/// Runs on one stream of one GPU. Calls return as soon as the work is enqueued.
#[derive(Clone)]
pub struct Cuda {
    stream: Arc<CudaStream>,
    launchers: &'static sys::wn_launchers,
    limits: DeviceLimits,
}

impl Cuda {
    /// A new stream on the GPU of this number.
    ///
    /// # Errors
    ///
    /// [`Error::NotCompiled`] where the program was built without nvcc, [`Error::NoDriver`] without an NVIDIA driver,
    /// [`Error::NoDevice`] where there is no such GPU, [`Error::UnsupportedArch`] for one older than the kernels, and
    /// [`Error::Driver`] for what else the driver says. It never panics.
    pub fn new(ordinal: usize) -> Result<Self> {
        compiled_launchers()?;
        driver_library()?;
        let count = CudaContext::device_count();
        let count = match count {
            Ok(count) => usize::try_from(count).unwrap_or(0),
            Err(e) if e.0 == cudarc::driver::sys::CUresult::CUDA_ERROR_NO_DEVICE => 0,
            Err(e) => return Err(driver_error("counting devices", e)),
        };
        if ordinal >= count {
            return Err(Error::NoDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal).map_err(|e| driver_error("opening the device", e))?;
        let stream = context.new_stream().map_err(|e| driver_error("making a stream", e))?;
        Self::from_stream(stream)
    }

    /// Enqueues on the user's stream.
    ///
    /// # Errors
    ///
    /// [`Error::NotCompiled`], [`Error::UnsupportedArch`] and [`Error::Driver`], as [`new`](Self::new).
    pub fn from_stream(stream: Arc<CudaStream>) -> Result<Self> {
        let launchers = compiled_launchers()?;
        let context = stream.context();
        let capability =
            context.compute_capability().map_err(|e| driver_error("asking for the architecture", e))?;
        let actual = (capability.0 * 10 + capability.1) as u32;
        if !runs_on(BUILT_ARCHS, actual) {
            return Err(Error::UnsupportedArch { actual, built: BUILT_ARCHS });
        }
        let limits = describe(context).map_err(|e| driver_error("asking for the device's limits", e))?;
        let on = Self { stream, launchers, limits };
        match launch::probe(&on) {
            Err(Error::Launch { code: INSUFFICIENT_DRIVER, .. }) => {
                Err(Error::NoDriver("the one there is too old for the CUDA runtime of this program".into()))
            }
            probed => probed.map(|()| on),
        }
    }

    /// Enqueues on a stream that another library owns, given as its `CUstream` (or `cudaStream_t`, the same thing).
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    ///
    /// # Safety
    ///
    /// `stream` is a stream of the primary context of GPU `ordinal`, and outlives this value and its clones. It may be
    /// null, which is the default stream. Ordering this stream's work with that of others, on memory given by raw
    /// address, is the caller's part.
    pub unsafe fn from_raw_stream(ordinal: usize, stream: *mut core::ffi::c_void) -> Result<Self> {
        compiled_launchers()?;
        driver_library()?;
        let context = CudaContext::new(ordinal).map_err(|e| driver_error("opening the device", e))?;
        let stream = stream as CUstream;
        // SAFETY: the caller vouches that the stream is one of this context and lives long enough; cudarc does not
        // destroy a borrowed stream.
        let stream = unsafe { context.wrap_borrowed_stream(stream) };
        Self::from_stream(stream)
    }

    /// The stream that work is enqueued on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// What plans are made for.
    pub fn limits(&self) -> DeviceLimits {
        self.limits
    }

    /// Loads every kernel. Call it before capturing a CUDA graph, in which nothing can be loaded.
    ///
    /// Three more things to know of captures. cudarc orders streams by events, which a capture may not wait for: turn
    /// that off first (`CudaContext::disable_event_tracking`, with what its safety asks). The tensors and workspaces of
    /// the captured calls must outlive the graph. And what a call computes on the host is captured as it was: every
    /// replay weighs its batch as the captured call did, unless
    /// [`RunningStatsMut::momentum`](crate::RunningStatsMut::momentum) is on the device, and `batches` does not count
    /// replays.
    ///
    /// # Errors
    ///
    /// [`Error::Launch`] with what the CUDA runtime says.
    pub fn warm_up(&self) -> Result<()> {
        launch::warm_up(self)
    }

    /// Waits for all that was enqueued on the stream.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`] where that work failed.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(|e| driver_error("waiting for the stream", e))
    }

    /// [`Error::WrongDevice`] unless the stream belongs to this one's context.
    ///
    /// Two `CudaContext`s of one GPU share its primary context, but each orders only its own streams, so a buffer of
    /// the other one could be freed while a kernel reads it.
    fn check_context(&self, arg: &'static str, owner: &Arc<CudaStream>) -> Result<()> {
        let same = Arc::ptr_eq(owner.context(), self.stream.context());
        if same { Ok(()) } else { Err(Error::WrongDevice { arg }) }
    }
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cuda(device {}, {} SMs)", self.stream.context().ordinal(), self.limits.sms)
    }
}

/// `cudaErrorInsufficientDriver`.
const INSUFFICIENT_DRIVER: i32 = 35;

/// The launchers, where nvcc was there to compile them.
fn compiled_launchers() -> Result<&'static sys::wn_launchers> {
    #[cfg(wn_cuda_kernels)]
    {
        // SAFETY: the function takes nothing, and returns the address of a constant table.
        Ok(unsafe { &*sys::wn_cuda_launchers() })
    }
    #[cfg(not(wn_cuda_kernels))]
    {
        Err(Error::NotCompiled("there was no nvcc when it was built"))
    }
}

/// The architectures that the kernels were compiled for, as in `75;80;90`.
const BUILT_ARCHS: &str = match option_env!("WARPNORM_CUDA_ARCHS") {
    Some(archs) => archs,
    None => "",
};

/// Whether a GPU of this compute capability runs kernels built for these: machine code serves later GPUs of its own
/// generation, and PTX of the newest serves any later one.
fn runs_on(built: &str, actual: u32) -> bool {
    let archs = || built.split(';').filter_map(|arch| arch.parse::<u32>().ok());
    let same_generation = archs().any(|arch| arch / 10 == actual / 10 && arch <= actual);
    same_generation || archs().max().is_some_and(|newest| newest <= actual)
}

/// Looks for the driver's library without cudarc, which panics where it is missing. It stays loaded.
fn driver_library() -> Result<()> {
    static FOUND: OnceLock<Result<libloading::Library, String>> = OnceLock::new();
    let names = if cfg!(windows) { &["nvcuda.dll"][..] } else { &["libcuda.so.1", "libcuda.so"][..] };
    let found = FOUND.get_or_init(|| {
        let mut message = String::new();
        for &name in names {
            // SAFETY: loading NVIDIA's driver runs its initializers, which every CUDA program does.
            match unsafe { libloading::Library::new(name) } {
                Ok(library) => return Ok(library),
                Err(e) => {
                    let reason = e.source().map_or_else(|| e.to_string(), ToString::to_string);
                    message = format!("{name} cannot be loaded ({reason})");
                }
            }
        }
        Err(message)
    });
    found.as_ref().map(drop).map_err(|message| Error::NoDriver(message.clone()))
}

/// Only called where there is a driver: cudarc asks it for the text.
fn driver_error(call: &'static str, error: DriverError) -> Error {
    Error::Driver { call, message: error.to_string() }
}

/// Elements on a GPU that a tensor owns.
pub struct CudaBuf<T> {
    /// At least one element, since the driver does not allocate none.
    slice: CudaSlice<T>,
    len: usize,
}

/// A shared borrow of elements on a GPU: made from a `&CudaSlice`, a `CudaView`, or a raw address.
pub struct CudaRef<'a, T>(Source<'a, T>);

enum Source<'a, T> {
    View(CudaView<'a, T>),
    Raw { address: u64, len: usize },
}

/// An exclusive borrow of elements on a GPU: made from a `&mut CudaSlice`, a `CudaViewMut`, or a raw address.
pub struct CudaMut<'a, T>(Target<'a, T>);

enum Target<'a, T> {
    View(CudaViewMut<'a, T>),
    Raw { address: u64, len: usize, life: PhantomData<&'a mut T> },
}

impl<T> CudaRef<'_, T> {
    /// Borrows `len` elements at a device address that another library owns.
    ///
    /// # Safety
    ///
    /// The address is aligned to `T`, its `len` elements are initialized and stay allocated for `'a` on the GPU whose
    /// stream they are used with, and nothing writes them before the work enqueued with this borrow is done. Waiting
    /// for work on other streams is the caller's part.
    pub unsafe fn from_raw(address: u64, len: usize) -> Self {
        Self(Source::Raw { address, len })
    }
}

impl<T> CudaMut<'_, T> {
    /// Borrows `len` elements at a device address that another library owns, exclusively.
    ///
    /// # Safety
    ///
    /// As [`CudaRef::from_raw`], and nothing else reads or writes them before the work enqueued with this borrow is
    /// done. They need not be initialized where they are only written.
    pub unsafe fn from_raw(address: u64, len: usize) -> Self {
        Self(Target::Raw { address, len, life: PhantomData })
    }
}

impl<T> Clone for CudaRef<'_, T> {
    fn clone(&self) -> Self {
        Self(match &self.0 {
            Source::View(view) => Source::View(view.slice(..)),
            Source::Raw { address, len } => Source::Raw { address: *address, len: *len },
        })
    }
}

impl<'a, T> From<CudaView<'a, T>> for CudaRef<'a, T> {
    fn from(view: CudaView<'a, T>) -> Self {
        Self(Source::View(view))
    }
}

impl<'a, T> From<&'a CudaSlice<T>> for CudaRef<'a, T> {
    fn from(slice: &'a CudaSlice<T>) -> Self {
        slice.as_view().into()
    }
}

impl<'a, T> From<CudaViewMut<'a, T>> for CudaMut<'a, T> {
    fn from(view: CudaViewMut<'a, T>) -> Self {
        Self(Target::View(view))
    }
}

impl<'a, T> From<&'a mut CudaSlice<T>> for CudaMut<'a, T> {
    fn from(slice: &'a mut CudaSlice<T>) -> Self {
        slice.as_view_mut().into()
    }
}

impl Sealed for Cuda {}

impl Backend for Cuda {
    type Buf<T: Element> = CudaBuf<T>;
    type Ref<'a, T: Element> = CudaRef<'a, T>;
    type Mut<'a, T: Element> = CudaMut<'a, T>;

    fn zeros<T: Element>(&self, len: usize) -> Result<CudaBuf<T>> {
        let slice = self.stream.alloc_zeros(len.max(1)).map_err(|e| driver_error("allocating memory", e))?;
        Ok(CudaBuf { slice, len })
    }

    fn upload<T: Element>(&self, data: &[T]) -> Result<CudaBuf<T>> {
        if data.is_empty() {
            return self.zeros(0);
        }
        let slice = self.stream.clone_htod(data).map_err(|e| driver_error("copying to the device", e))?;
        Ok(CudaBuf { slice, len: data.len() })
    }

    fn download<T: Element>(&self, data: &CudaRef<'_, T>) -> Result<Vec<T>> {
        let mut host = vec![T::default(); Self::len(data)];
        if host.is_empty() {
            return Ok(host);
        }
        self.enter()?;
        let (address, guard) = self.read("data", data)?;
        // SAFETY: the borrow is of `host.len()` live elements on this device, and `host` outlives the copy, which the
        // synchronization below waits for.
        unsafe { cudarc::driver::result::memcpy_dtoh_async(&mut host, address, self.stream.cu_stream()) }
            .map_err(|e| driver_error("copying to the host", e))?;
        drop(guard);
        self.synchronize()?;
        Ok(host)
    }

    fn borrow<T: Element>(buf: &CudaBuf<T>) -> CudaRef<'_, T> {
        buf.slice.slice(..buf.len).into()
    }
    fn borrow_mut<T: Element>(buf: &mut CudaBuf<T>) -> CudaMut<'_, T> {
        buf.slice.slice_mut(..buf.len).into()
    }
    fn reborrow<'a, T: Element>(data: &'a CudaRef<'_, T>) -> CudaRef<'a, T> {
        data.clone()
    }
    fn reborrow_mut<'a, T: Element>(data: &'a mut CudaMut<'_, T>) -> CudaMut<'a, T> {
        CudaMut(match &mut data.0 {
            Target::View(view) => Target::View(view.slice_mut(..)),
            Target::Raw { address, len, .. } => {
                Target::Raw { address: *address, len: *len, life: PhantomData }
            }
        })
    }
    fn len<T: Element>(data: &CudaRef<'_, T>) -> usize {
        match &data.0 {
            Source::View(view) => view.len(),
            Source::Raw { len, .. } => *len,
        }
    }
    fn len_mut<T: Element>(data: &CudaMut<'_, T>) -> usize {
        match &data.0 {
            Target::View(view) => view.len(),
            Target::Raw { len, .. } => *len,
        }
    }

    fn channel_norm_workspace(&self, shape: ChannelShape) -> WorkspaceLen {
        plan::channel_norm_workspace(shape, self.limits())
    }
    fn channel_norm_fwd<T: Element>(
        &self,
        shape: ChannelShape,
        args: ChannelNormForward<'_, T, Self>,
    ) -> Result<()> {
        launch::channel_norm_fwd(self, shape, args)
    }
    fn channel_norm_bwd<T: Element>(
        &self,
        shape: ChannelShape,
        args: ChannelNormBackward<'_, T, Self>,
    ) -> Result<()> {
        launch::channel_norm_bwd(self, shape, args)
    }
    fn row_norm_workspace(&self, shape: RowShape) -> WorkspaceLen {
        plan::row_norm_workspace(shape, self.limits())
    }
    fn row_norm_fwd<T: Element>(&self, shape: RowShape, args: RowNormForward<'_, T, Self>) -> Result<()> {
        launch::row_norm_fwd(self, shape, args)
    }
    fn row_norm_bwd<T: Element>(&self, shape: RowShape, args: RowNormBackward<'_, T, Self>) -> Result<()> {
        launch::row_norm_bwd(self, shape, args)
    }
}

impl Device for Cuda {
    /// Records the use of a buffer when it drops; a raw address has none.
    type Guard<'a> = Option<SyncOnDrop<'a>>;

    fn launchers(&self) -> &'static sys::wn_launchers {
        self.launchers
    }
    fn raw_stream(&self) -> sys::wn_stream {
        self.stream.cu_stream().cast()
    }
    fn limits(&self) -> DeviceLimits {
        self.limits
    }

    fn enter(&self) -> Result<()> {
        // The launchers use the CUDA runtime, which works in the calling thread's current context.
        self.stream.context().bind_to_thread().map_err(|e| driver_error("binding the context", e))
    }

    fn ready(&self) -> Result<()> {
        // cudarc keeps what waiting for and recording events ran into.
        self.stream.context().check_err().map_err(|e| driver_error("ordering streams", e))
    }

    fn leave(&self, call: &'static str, code: i32) -> Result<()> {
        if code == 0 { Ok(()) } else { Err(Error::Launch { call, code, report: String::new() }) }
    }

    fn read<'a, T: Element>(
        &'a self,
        arg: &'static str,
        data: &'a CudaRef<'_, T>,
    ) -> Result<(u64, Self::Guard<'a>)> {
        match &data.0 {
            Source::View(view) => {
                self.check_context(arg, cudarc::driver::DeviceSlice::stream(view))?;
                let (address, guard) = view.device_ptr(&self.stream);
                Ok((address, Some(guard)))
            }
            Source::Raw { address, .. } => Ok((*address, None)),
        }
    }

    fn write<'a, T: Element>(
        &'a self,
        arg: &'static str,
        data: &'a mut CudaMut<'_, T>,
    ) -> Result<(u64, Self::Guard<'a>)> {
        match &mut data.0 {
            Target::View(view) => {
                self.check_context(arg, cudarc::driver::DeviceSlice::stream(view))?;
                let (address, guard) = view.device_ptr_mut(&self.stream);
                Ok((address, Some(guard)))
            }
            Target::Raw { address, .. } => Ok((*address, None)),
        }
    }
}

/// What plans may know of the device.
fn describe(context: &CudaContext) -> core::result::Result<DeviceLimits, DriverError> {
    use CUdevice_attribute as Attribute;
    let ask = |attribute| Ok::<_, DriverError>(usize::try_from(context.attribute(attribute)?).unwrap_or(0));
    let has_clusters = ask(Attribute::CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH)? != 0;
    // Bytes that the bus moves at both edges of the clock, in kHz; a copy reaches nine tenths of it.
    let clock = ask(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
    let bus = ask(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)? / 8;
    Ok(DeviceLimits {
        sms: ask(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1),
        smem_per_sm: ask(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
        smem_per_block: ask(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        threads_per_sm: ask(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?.max(1024),
        l2: ask(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        cluster: if has_clusters { 8 } else { 1 },
        copy_gb_per_s: (clock * 2 * bus / 1_000_000 * 9 / 10).max(1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_code_serves_its_generation_and_ptx_what_comes_later() {
        assert!(runs_on("75;80;90", 75) && runs_on("75;80;90", 86) && runs_on("75;80;90", 90));
        assert!(runs_on("75;80;90", 120), "PTX of 90");
        assert!(!runs_on("75;80;90", 70), "older than all");
        assert!(!runs_on("75;90", 80), "between two generations");
        assert!(!runs_on("89;90", 86), "older than the one of its generation");
    }
}
