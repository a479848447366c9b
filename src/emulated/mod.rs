//! The kernels on the host: the same sources, compiled with the host's C++ compiler and run by the emulator in
//! `emulator/`. For tests, on machines without a GPU.
#![allow(unsafe_code)]

#[allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    non_camel_case_types,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)] // bindgen's output
#[rustfmt::skip]
mod sys;

use core::{ffi::CStr, fmt, marker::PhantomData, ops::Range, ptr};

use crate::{
    Backend, Element, Error, Result, View, ViewMut,
    backend::WorkspaceLen,
    channel_norm::{ChannelNormBackward, ChannelNormForward},
    cuda::{
        launch,
        launch::Device,
        plan::{self, DeviceLimits},
        sys as cuda_sys,
    },
    row_norm::{RowNormBackward, RowNormForward},
    sealed::Sealed,
    shape::{ChannelShape, RowShape},
};

/// Runs the CUDA kernels on the host, one call at a time.
///
/// With the feature `emulator-check` every access of the kernels is checked: races, bounds, alignment, uninitialized
/// memory. A fault is an [`Error::Launch`] that says which thread did what, and where.
#[derive(Clone, Copy, Debug)]
pub struct Emulated {
    limits: DeviceLimits,
}

/// One kernel launch, as [`Emulated::record`] saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmulatedLaunch {
    /// Name and template arguments of the kernel.
    pub kernel: String,
    /// Blocks of the grid.
    pub blocks: u64,
    /// Bytes read from global memory; 0 without the feature `emulator-check`.
    pub bytes_read: u64,
    /// Bytes written to global memory; 0 without the feature `emulator-check`.
    pub bytes_written: u64,
    /// Of the bytes read, what the L2 cache of [`Emulated::limits`] had not, by the model in `emulator/README.md`; 0
    /// without the feature `emulator-check`.
    pub dram_read: u64,
    /// What that cache wrote back of the launch's writes, at once or later.
    pub dram_written: u64,
}

impl Default for Emulated {
    fn default() -> Self {
        Self::new()
    }
}

impl Emulated {
    /// The device that [`DeviceLimits::SMALL`] describes.
    pub fn new() -> Self {
        Self::describing(DeviceLimits::SMALL)
    }

    /// A device for which plans are made as for `limits`. Kernels whose blocks must be resident together run only where
    /// [`DeviceLimits::SMALL`] could hold them.
    pub fn describing(limits: DeviceLimits) -> Self {
        Self { limits }
    }

    /// Whether accesses are checked and counted.
    pub fn checks() -> bool {
        // SAFETY: the function takes nothing.
        unsafe { sys::wn_emulated_checks() != 0 }
    }

    /// What plans are made for.
    pub fn limits(&self) -> DeviceLimits {
        self.limits
    }

    /// Checks that every kernel can be launched, without running any.
    ///
    /// # Errors
    ///
    /// [`Error::Launch`] where one cannot.
    pub fn warm_up(&self) -> Result<()> {
        launch::warm_up(self)
    }

    /// Runs `body` and returns what it returns, with the launches that this thread made in it. The L2 cache is empty at
    /// the start, and written back at the end.
    pub fn record<R>(&self, body: impl FnOnce() -> R) -> (R, Vec<EmulatedLaunch>) {
        // SAFETY: the log belongs to this thread, and so does every call on it.
        unsafe { sys::wn_emulated_log_start(self.limits.l2 as u64) };
        let result = body();
        // SAFETY: as above.
        let count = unsafe { sys::wn_emulated_log_stop() };
        let launches = (0..count).map(|i| {
            // SAFETY: a C struct of integers and a pointer, for which zeros are a value.
            let mut raw: sys::wn_emulated_launch = unsafe { core::mem::zeroed() };
            // SAFETY: `i` is below the count just returned, and `raw` is ours to fill.
            unsafe { sys::wn_emulated_log_get(i, &mut raw) };
            // SAFETY: the emulator's names are C strings that live as long as the program.
            let kernel = unsafe { CStr::from_ptr(raw.kernel) }.to_string_lossy().into_owned();
            let blocks = u64::from(raw.grid_x) * u64::from(raw.grid_y) * u64::from(raw.grid_z);
            EmulatedLaunch {
                kernel,
                blocks,
                bytes_read: raw.bytes_read,
                bytes_written: raw.bytes_written,
                dram_read: raw.dram_read,
                dram_written: raw.dram_written,
            }
        });
        (result, launches.collect())
    }

    /// Sees elements of the emulated device as a tensor of the given dimensions, channels first.
    ///
    /// # Errors
    ///
    /// As [`View::new`].
    pub fn view<'a, T: Element>(
        &self,
        data: EmulatedRef<'a, T>,
        dims: &[usize],
    ) -> Result<View<'a, T, Self>> {
        View::new(data, dims)
    }

    /// Sees elements of the emulated device as a tensor to write.
    ///
    /// # Errors
    ///
    /// As [`View::new`].
    pub fn view_mut<'a, T: Element>(
        &self,
        data: EmulatedMut<'a, T>,
        dims: &[usize],
    ) -> Result<ViewMut<'a, T, Self>> {
        ViewMut::new(data, dims)
    }
}

/// Elements of the emulated device that a tensor owns.
pub struct EmulatedBuf<T> {
    data: *mut T,
    len: usize,
}

impl<T> EmulatedBuf<T> {
    fn new(len: usize) -> Result<Self> {
        let mut data = ptr::null_mut();
        let bytes = (len.max(1) * size_of::<T>()) as u64;
        // SAFETY: `data` is ours to fill.
        check("malloc", unsafe { sys::wn_emulated_malloc(&mut data, bytes) })?;
        Ok(Self { data: data.cast(), len })
    }

    fn bytes(&self) -> u64 {
        (self.len * size_of::<T>()) as u64
    }
}

impl<T> Drop for EmulatedBuf<T> {
    fn drop(&mut self) {
        // SAFETY: `data` came from the emulator's malloc, and every borrow of it has ended.
        unsafe { sys::wn_emulated_free(self.data.cast()) };
    }
}

impl<T> fmt::Debug for EmulatedBuf<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EmulatedBuf({} elements)", self.len)
    }
}

/// A shared borrow of elements of the emulated device.
#[derive(Clone, Copy, Debug)]
pub struct EmulatedRef<'a, T> {
    data: *const T,
    len: usize,
    life: PhantomData<&'a T>,
}

impl<T> EmulatedRef<'_, T> {
    /// Some of the elements.
    ///
    /// # Panics
    ///
    /// As slices do, where the range is not within the elements.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} elements", self.len);
        Self { data: self.data.wrapping_add(range.start), len: range.len(), life: PhantomData }
    }
}

/// An exclusive borrow of elements of the emulated device.
#[derive(Debug)]
pub struct EmulatedMut<'a, T> {
    data: *mut T,
    len: usize,
    life: PhantomData<&'a mut T>,
}

impl<T> EmulatedMut<'_, T> {
    /// Some of the elements.
    ///
    /// # Panics
    ///
    /// As slices do, where the range is not within the elements.
    #[must_use]
    pub fn slice(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} elements", self.len);
        Self { data: self.data.wrapping_add(range.start), len: range.len(), life: PhantomData }
    }
}

impl Sealed for Emulated {}

impl Backend for Emulated {
    type Buf<T: Element> = EmulatedBuf<T>;
    type Ref<'a, T: Element> = EmulatedRef<'a, T>;
    type Mut<'a, T: Element> = EmulatedMut<'a, T>;

    fn zeros<T: Element>(&self, len: usize) -> Result<EmulatedBuf<T>> {
        let buf = EmulatedBuf::<T>::new(len)?;
        // SAFETY: the buffer has this many bytes.
        check("zero", unsafe { sys::wn_emulated_zero(buf.data.cast(), buf.bytes()) })?;
        Ok(buf)
    }

    fn upload<T: Element>(&self, data: &[T]) -> Result<EmulatedBuf<T>> {
        let buf = EmulatedBuf::<T>::new(data.len())?;
        // SAFETY: both sides have this many bytes.
        let code = unsafe { sys::wn_emulated_copy_in(buf.data.cast(), data.as_ptr().cast(), buf.bytes()) };
        check("copy_in", code)?;
        Ok(buf)
    }

    fn download<T: Element>(&self, data: &EmulatedRef<'_, T>) -> Result<Vec<T>> {
        let mut host = vec![T::default(); data.len];
        let bytes = size_of_val(host.as_slice()) as u64;
        // SAFETY: both sides have this many bytes, and every bit pattern is a value of an element type.
        check("copy_out", unsafe {
            sys::wn_emulated_copy_out(host.as_mut_ptr().cast(), data.data.cast(), bytes)
        })?;
        Ok(host)
    }

    fn borrow<T: Element>(buf: &EmulatedBuf<T>) -> EmulatedRef<'_, T> {
        EmulatedRef { data: buf.data, len: buf.len, life: PhantomData }
    }
    fn borrow_mut<T: Element>(buf: &mut EmulatedBuf<T>) -> EmulatedMut<'_, T> {
        EmulatedMut { data: buf.data, len: buf.len, life: PhantomData }
    }
    fn reborrow<'a, T: Element>(data: &'a EmulatedRef<'_, T>) -> EmulatedRef<'a, T> {
        *data
    }
    fn reborrow_mut<'a, T: Element>(data: &'a mut EmulatedMut<'_, T>) -> EmulatedMut<'a, T> {
        EmulatedMut { data: data.data, len: data.len, life: PhantomData }
    }
    fn len<T: Element>(data: &EmulatedRef<'_, T>) -> usize {
        data.len
    }
    fn len_mut<T: Element>(data: &EmulatedMut<'_, T>) -> usize {
        data.len
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

impl Device for Emulated {
    type Guard<'a> = ();

    fn launchers(&self) -> &'static cuda_sys::wn_launchers {
        // SAFETY: the function takes nothing, and returns the address of a constant table.
        unsafe { &*cuda_sys::wn_emulated_launchers() }
    }
    fn raw_stream(&self) -> cuda_sys::wn_stream {
        ptr::null_mut()
    }
    fn limits(&self) -> DeviceLimits {
        self.limits
    }
    fn enter(&self) -> Result<()> {
        Ok(())
    }
    fn ready(&self) -> Result<()> {
        Ok(())
    }
    fn leave(&self, call: &'static str, code: i32) -> Result<()> {
        check(call, code)
    }
    fn read<'a, T: Element>(&'a self, _: &'static str, data: &'a EmulatedRef<'_, T>) -> Result<(u64, ())> {
        Ok((data.data as u64, ()))
    }
    fn write<'a, T: Element>(
        &'a self,
        _: &'static str,
        data: &'a mut EmulatedMut<'_, T>,
    ) -> Result<(u64, ())> {
        Ok((data.data as u64, ()))
    }
}

/// The emulator's answer, with its diagnosis.
fn check(call: &'static str, code: i32) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: the emulator returns a C string that lives until this thread's next call.
    let report = unsafe { CStr::from_ptr(sys::wn_emulated_last_report()) }.to_string_lossy();
    let report = if report.is_empty() { String::new() } else { format!(": {report}") };
    Err(Error::Launch { call, code, report })
}
