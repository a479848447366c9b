use super::{LANES, Simd};

/// What every CPU has, and the compiler makes vectors of by itself.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Portable;

/// Aligned as the widest registers are.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in crate::cpu) struct Array([f32; LANES]);

#[inline(always)]
fn zip(mut a: Array, b: Array, f: impl Fn(f32, f32) -> f32) -> Array {
    for i in 0..LANES {
        a.0[i] = f(a.0[i], b.0[i]);
    }
    a
}

impl Simd for Portable {
    type V = Array;

    const ROWS: usize = 1;
    const AHEAD: bool = false;
    const STREAM_ALIGN: Option<usize> = None;

    #[inline(always)]
    fn splat(v: f32) -> Array {
        Array([v; LANES])
    }
    #[inline(always)]
    fn from_array(v: [f32; LANES]) -> Array {
        Array(v)
    }
    #[inline(always)]
    fn to_array(v: Array) -> [f32; LANES] {
        v.0
    }
    #[inline(always)]
    fn add(a: Array, b: Array) -> Array {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(a: Array, b: Array) -> Array {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(a: Array, b: Array) -> Array {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn mul_add(a: Array, b: Array, mut c: Array) -> Array {
        // Where there is no instruction it would be a call.
        let fused = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
        for i in 0..LANES {
            c.0[i] = if fused { a.0[i].mul_add(b.0[i], c.0[i]) } else { a.0[i] * b.0[i] + c.0[i] };
        }
        c
    }
    #[inline(always)]
    fn relu(v: Array) -> Array {
        zip(v, v, |v, _| if v < 0.0 { 0.0 } else { v })
    }
    #[inline(always)]
    fn where_positive(v: Array, z: Array) -> Array {
        zip(v, z, |v, z| if z <= 0.0 { 0.0 } else { v })
    }
    #[inline(always)]
    fn first(mut v: Array, n: usize) -> Array {
        for (i, v) in v.0.iter_mut().enumerate() {
            *v = if i < n { *v } else { 0.0 };
        }
        v
    }
    #[inline(always)]
    fn sum(v: Array) -> f32 {
        let mut v = v.0;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] += v[i + half];
            }
        }
        v[0]
    }

    #[inline(always)]
    fn widen_f16(bits: [u16; LANES]) -> Array {
        Array(bits.map(widen_f16))
    }
    #[inline(always)]
    fn widen_bf16(bits: [u16; LANES]) -> Array {
        Array(bits.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }
    #[inline(always)]
    fn narrow_f16(v: Array) -> [u16; LANES] {
        v.0.map(narrow_f16)
    }
    #[inline(always)]
    fn narrow_bf16(v: Array) -> [u16; LANES] {
        v.0.map(narrow_bf16)
    }
}

/// Without branches, so that it can be vectorized.
#[inline(always)]
fn widen_f16(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let (sign, rest) = ((bits & 0x8000) << 16, bits & 0x7fff);
    // The exponent's bias grows by 112: a multiplication does it, and normalizes subnormals.
    let finite = f32::from_bits(rest << 13) * f32::from_bits((127 + 112) << 23);
    // Infinity stays what it is; NaN is made quiet.
    let quiet = if rest > 0x7c00 { 1 << 22 } else { 0 };
    let special = rest << 13 | 0xff << 23 | quiet;
    f32::from_bits(sign | if rest >= 0x7c00 { special } else { finite.to_bits() })
}

/// Without branches, so that it can be vectorized.
#[inline(always)]
fn narrow_f16(v: f32) -> u16 {
    let bits = v.to_bits();
    let (sign, rest) = (bits >> 16 & 0x8000, bits & 0x7fff_ffff);
    // Normal results: add just less than half of the last digit, and the digit itself for ties.
    let normal = rest.wrapping_sub(112 << 23).wrapping_add(0xfff + (rest >> 13 & 1)) >> 13;
    // Subnormal ones: added to 0.5, the value is rounded where the last digit of the sum is.
    let subnormal = (f32::from_bits(rest) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let nan = 0x7e00 | rest >> 13 & 0x3ff;
    let finite = if rest < 113 << 23 { subnormal } else { normal };
    let finite = if rest >= 143 << 23 { 0x7c00 } else { finite };
    (sign | if rest > 0xff << 23 { nan } else { finite }) as u16
}

#[inline(always)]
fn narrow_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let nan = bits >> 16 | 0x40;
    (if v.is_nan() { nan } else { rounded }) as u16
}

/// # Safety
///
/// `n < LANES` values can be read at `from`.
#[inline(always)]
pub(super) unsafe fn load_part<W: Copy + Default>(from: *const W, n: usize) -> [W; LANES] {
    let mut all = [W::default(); LANES];
    // SAFETY: as promised, and `all` has more than `n`.
    unsafe { all.as_mut_ptr().copy_from_nonoverlapping(from, n) };
    all
}

/// # Safety
///
/// `n < LANES` values can be written at `to`.
#[inline(always)]
pub(super) unsafe fn store_part<W: Copy>(to: *mut W, v: [W; LANES], n: usize) {
    // SAFETY: as promised, and `v` has more than `n`.
    unsafe { to.copy_from_nonoverlapping(v.as_ptr(), n) }
}
