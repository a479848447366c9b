//! The addresses of one call.

use core::{ffi::c_void, ptr};

use super::{
    super::{
        plan::{ChannelPass, ChannelPlan, ChannelProblem, Direction, RowCall},
        sys,
    },
    Device, Launcher, abi,
};
use crate::{
    Affine, AffineGrad, DType, Element, Result,
    backend::WorkspaceMut,
    shape::{ChannelShape, RowShape},
};

/// Addresses taken for one call, with their guards.
pub(super) struct Addresses<'a, D: Device> {
    on: &'a D,
    guards: Vec<D::Guard<'a>>,
    /// The addresses that vectors go through, or-ed: its trailing zeros are their common alignment.
    bits: u64,
}

impl<'a, D: Device> Addresses<'a, D> {
    /// No call takes more addresses than this.
    const MOST: usize = 14;

    /// Makes the device current, to begin a call.
    pub(super) fn enter(on: &'a D) -> Result<Self> {
        on.enter()?;
        Ok(Self { on, guards: Vec::with_capacity(Self::MOST), bits: 0 })
    }

    pub(super) fn read<T: Element>(
        &mut self,
        arg: &'static str,
        data: &'a D::Ref<'_, T>,
    ) -> Result<*const c_void> {
        let (address, guard) = self.on.read(arg, data)?;
        self.guards.push(guard);
        Ok(address as *const c_void)
    }

    pub(super) fn write<T: Element>(
        &mut self,
        arg: &'static str,
        data: &'a mut D::Mut<'_, T>,
    ) -> Result<*mut c_void> {
        let (address, guard) = self.on.write(arg, data)?;
        self.guards.push(guard);
        Ok(address as *mut c_void)
    }

    pub(super) fn read_if<T: Element>(
        &mut self,
        arg: &'static str,
        data: Option<&'a D::Ref<'_, T>>,
    ) -> Result<*const c_void> {
        data.map_or(Ok(ptr::null()), |data| self.read(arg, data))
    }

    pub(super) fn write_if<T: Element>(
        &mut self,
        arg: &'static str,
        data: Option<&'a mut D::Mut<'_, T>>,
    ) -> Result<*mut c_void> {
        data.map_or(Ok(ptr::null_mut()), |data| self.write(arg, data))
    }

    /// Weight, bias and their type.
    pub(super) fn affine<T: Element>(
        &mut self,
        affine: &'a Affine<'_, T, D>,
    ) -> Result<(*const c_void, *const c_void, DType)> {
        Ok(match affine {
            Affine::None => (ptr::null(), ptr::null(), T::DTYPE),
            Affine::Same { weight, bias } => {
                (self.read_if("weight", weight.as_ref())?, self.read_if("bias", bias.as_ref())?, T::DTYPE)
            }
            Affine::F32 { weight, bias } => {
                (self.read_if("weight", weight.as_ref())?, self.read_if("bias", bias.as_ref())?, DType::F32)
            }
        })
    }

    /// Gradients of weight and bias, and their type.
    pub(super) fn grads<T: Element>(
        &mut self,
        grads: &'a mut AffineGrad<'_, T, D>,
    ) -> Result<(*mut c_void, *mut c_void, DType)> {
        Ok(match grads {
            AffineGrad::None => (ptr::null_mut(), ptr::null_mut(), T::DTYPE),
            AffineGrad::Same { dweight, dbias } => (
                self.write_if("dweight", dweight.as_mut())?,
                self.write_if("dbias", dbias.as_mut())?,
                T::DTYPE,
            ),
            AffineGrad::F32 { dweight, dbias } => (
                self.write_if("dweight", dweight.as_mut())?,
                self.write_if("dbias", dbias.as_mut())?,
                DType::F32,
            ),
        })
    }

    /// Counters, and everything else.
    pub(super) fn workspace(
        &mut self,
        workspace: &'a mut WorkspaceMut<'_, D>,
    ) -> Result<(*mut u32, *mut f32)> {
        let counters = self.write("workspace", &mut workspace.counters)?.cast();
        Ok((counters, self.write("workspace", &mut workspace.words)?.cast()))
    }

    /// Counts an address, or a distance in bytes, that vector accesses depend on.
    pub(super) fn aligned(&mut self, address_or_stride: u64) {
        self.bits |= address_or_stride;
    }

    /// The largest power of two, up to 256, that divides all that was counted.
    fn alignment(&self) -> usize {
        1 << self.bits.trailing_zeros().min(8)
    }

    /// The plan of a channel norm, when all addresses have been taken.
    pub(super) fn channel_plan<T: Element>(
        &self,
        shape: ChannelShape,
        pass: ChannelPass,
    ) -> Result<sys::wn_channel_plan> {
        self.on.ready()?;
        let problem = ChannelProblem { shape, dtype: T::DTYPE, align: self.alignment().min(16), pass };
        Ok(abi::channel_plan(&ChannelPlan::new(problem, self.on.limits())))
    }

    /// The plan of a row norm, when all addresses have been taken; `extra` as in [`RowCall`].
    pub(super) fn row_plan<T: Element>(
        &self,
        shape: RowShape,
        direction: Direction,
        extra: bool,
    ) -> Result<sys::wn_row_plan> {
        self.on.ready()?;
        let call = RowCall { direction, shape, dtype: T::DTYPE, align: self.alignment(), extra };
        Ok(abi::row_plan(call.plan(&self.on.limits())))
    }

    /// Ends the call with a launch.
    ///
    /// # Safety
    ///
    /// Each address in `args` is one of these, or null where the header allows it; each is of as many elements as the
    /// header says for the sizes in `args`; and `plan` is one for these sizes and for this alignment.
    pub(super) unsafe fn launch<Args, Plan>(
        self,
        call: &'static str,
        launcher: Launcher<Args, Plan>,
        args: &Args,
        plan: &Plan,
    ) -> Result<()> {
        let Self { on, guards, .. } = self;
        let launch = launcher.expect("every build has this launcher");
        // SAFETY: every address is that of live memory of this device, for as long as there are guards; the rest is
        // the caller's promise.
        let code = unsafe { launch(args, plan, sys::wn_action::WN_LAUNCH, on.raw_stream()) };
        drop(guards);
        on.leave(call, code)
    }
}
