use half::{bf16, f16};

use crate::{cpu::HostElement, sealed::Sealed};

/// Run-time name of an [`Element`] type. The discriminants are the C ABI's `wn_dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u32)]
pub enum DType {
    /// IEEE single precision.
    F32 = 0,
    /// IEEE half precision.
    F16 = 1,
    /// bfloat16.
    BF16 = 2,
}

impl DType {
    /// Size of one element in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// What a GPU library asks of an element type; nothing without the `cuda` feature.
#[cfg(feature = "cuda")]
pub trait DeviceElement: cudarc::driver::DeviceRepr + cudarc::driver::ValidAsZeroBits + Unpin {}
/// What a GPU library asks of an element type; nothing without the `cuda` feature.
#[cfg(not(feature = "cuda"))]
pub trait DeviceElement {}

/// A type that tensors can be stored in: `f32`, [`struct@f16`] or [`bf16`]. Arithmetic is never done in it.
pub trait Element:
    Copy + Default + PartialEq + core::fmt::Debug + Send + Sync + 'static + DeviceElement + HostElement + Sealed
{
    /// The run-time tag for this type.
    const DTYPE: DType;
    /// Widens; exact.
    fn to_f32(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn from_f32(v: f32) -> Self;
    /// Rounds to nearest in one step, ties to even.
    fn from_f64(v: f64) -> Self;
}

macro_rules! element {
    ($($t:ty => $tag:ident, $to:expr, $from:expr, $from64:expr;)*) => {$(
        impl Sealed for $t {}
        impl DeviceElement for $t {}
        impl Element for $t {
            const DTYPE: DType = DType::$tag;
            fn to_f32(self) -> f32 { $to(self) }
            fn from_f32(v: f32) -> Self { $from(v) }
            fn from_f64(v: f64) -> Self { $from64(v) }
        }
    )*};
}

element! {
    f32 => F32, core::convert::identity, core::convert::identity, |v| v as f32;
    f16 => F16, f16::to_f32, f16::from_f32, |v| f16::from_f32(round_to_odd(v));
    bf16 => BF16, bf16::to_f32, bf16::from_f32, |v| bf16::from_f32(round_to_odd(v));
}

/// Of the two `f32` around `v`, the one with the odd last bit; `v` itself where it is one. Rounding that to nearest with
/// at least two bits less gives what rounding `v` in one step would (Boldo and Melquiond, "Emulation of a FMA and
/// correctly rounded sums", 2008); rounding to nearest twice would not.
fn round_to_odd(v: f64) -> f32 {
    let nearest = v as f32;
    let bits = nearest.to_bits();
    if f64::from(nearest) == v || v.is_nan() || bits & 1 == 1 {
        return nearest;
    }
    let outward = v.abs() > f64::from(nearest).abs();
    f32::from_bits(if outward { bits + 1 } else { bits - 1 })
}
