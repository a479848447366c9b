use core::arch::x86_64::*;
use core::mem::transmute;

use super::{Kernel, LANES, Simd};

pub(super) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

pub(super) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512>()
}

/// Only handed to kernels by [`run_avx2`], which has its caller see to it that the CPU can.
#[derive(Clone, Copy)]
pub(super) struct Avx2;

/// Only handed to kernels by [`run_avx512`], which has its caller see to it that the CPU can.
#[derive(Clone, Copy)]
pub(super) struct Avx512;

/// Operations on both halves of a vector.
macro_rules! in_halves {
    ($(fn $name:ident($($arg:ident),*) => $half:expr;)*) => {$(
        #[inline(always)]
        fn $name($($arg: Self::V),*) -> Self::V {
            // SAFETY: see the instruction set's name for why this CPU has it.
            unsafe {
                let low = { $(let $arg = $arg[0];)* $half };
                let high = { $(let $arg = $arg[1];)* $half };
                [low, high]
            }
        }
    )*};
}

/// Operations on a vector.
macro_rules! whole {
    ($(fn $name:ident($($arg:ident),*) => $whole:expr;)*) => {$(
        #[inline(always)]
        fn $name($($arg: Self::V),*) -> Self::V {
            // SAFETY: see the instruction set's name for why this CPU has it.
            unsafe { $whole }
        }
    )*};
}

/// Rounds to the 16 bits of a `bf16`, in words of 32.
///
/// # Safety
///
/// The CPU has AVX2.
#[inline(always)]
unsafe fn narrow_half(v: __m256) -> __m256i {
    // SAFETY: as promised.
    unsafe {
        let bits = _mm256_castps_si256(v);
        let upper = _mm256_srli_epi32::<16>(bits);
        let odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        let nan = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
        let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
        _mm256_blendv_epi8(_mm256_srli_epi32::<16>(rounded), nan, is_nan)
    }
}

/// Lanes `i` and `i + 8` added.
///
/// # Safety
///
/// The CPU has AVX-512 DQ.
#[inline(always)]
unsafe fn halved(v: __m512) -> __m256 {
    // SAFETY: as promised.
    unsafe { _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v)) }
}

/// The sum of the lanes: `i` and `i + 4` first, and so on by halves.
///
/// # Safety
///
/// The CPU has AVX.
#[inline(always)]
unsafe fn sum(v: __m256) -> f32 {
    // SAFETY: as promised.
    unsafe {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
    }
}

/// The same of four vectors.
///
/// # Safety
///
/// The CPU has AVX.
#[inline(always)]
unsafe fn sums([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
    // SAFETY: as promised; arrays and vectors have the same bits.
    unsafe {
        // Two vectors in the halves of one, and at last all four.
        let ab = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
        let cd = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(c, d), _mm256_permute2f128_ps::<0x31>(c, d));
        let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
        let pairs = _mm256_add_ps(
            _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)),
        );
        let all = _mm256_add_ps(pairs, _mm256_movehdup_ps(pairs));
        // In lanes 0 and 2; nothing of use in the others.
        let (ac, bd) = (_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all));
        transmute(_mm_blend_ps::<0b1010>(ac, _mm_moveldup_ps(bd)))
    }
}

impl Simd for Avx2 {
    type V = [__m256; 2];

    const ROWS: usize = 1;
    const AHEAD: bool = false;
    const STREAM_ALIGN: Option<usize> = Some(32);

    in_halves! {
                fn add(a, b) => _mm256_add_ps(a, b);
        fn sub(a, b) => _mm256_sub_ps(a, b);
        fn mul(a, b) => _mm256_mul_ps(a, b);
        fn mul_add(a, b, c) => _mm256_fmadd_ps(a, b, c);
        // The second operand where one is NaN.
        fn relu(v) => _mm256_max_ps(_mm256_setzero_ps(), v);
        fn where_positive(v, z) => {
            _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LE_OQ>(z, _mm256_setzero_ps()), v)
        };
    }

    #[inline(always)]
    fn splat(v: f32) -> Self::V {
        // SAFETY: the CPU has AVX (see `Avx2`).
        unsafe { [_mm256_set1_ps(v); 2] }
    }
    #[inline(always)]
    fn from_array(v: [f32; LANES]) -> Self::V {
        // SAFETY: arrays and vectors have the same bits.
        unsafe { transmute(v) }
    }
    #[inline(always)]
    fn to_array(v: Self::V) -> [f32; LANES] {
        // SAFETY: arrays and vectors have the same bits.
        unsafe { transmute(v) }
    }
    #[inline(always)]
    fn first([low, high]: Self::V, n: usize) -> Self::V {
        // SAFETY: the CPU has AVX2 (see `Avx2`).
        unsafe {
            let [first, second] = first_words(n);
            [_mm256_and_ps(low, _mm256_castsi256_ps(first)), _mm256_and_ps(high, _mm256_castsi256_ps(second))]
        }
    }
    #[inline(always)]
    fn sum([low, high]: Self::V) -> f32 {
        // SAFETY: the CPU has AVX (see `Avx2`).
        unsafe { sum(_mm256_add_ps(low, high)) }
    }
    #[inline(always)]
    fn sums(v: [Self::V; 4]) -> [f32; 4] {
        // SAFETY: the CPU has AVX (see `Avx2`).
        unsafe {
            let [a, b, c, d] = v;
            sums([
                _mm256_add_ps(a[0], a[1]),
                _mm256_add_ps(b[0], b[1]),
                _mm256_add_ps(c[0], c[1]),
                _mm256_add_ps(d[0], d[1]),
            ])
        }
    }

    #[inline(always)]
    fn widen_f16(bits: [u16; LANES]) -> Self::V {
        // SAFETY: the CPU has F16C (see `Avx2`); arrays and vectors have the same bits.
        unsafe {
            let [low, high] = transmute::<[u16; LANES], [__m128i; 2]>(bits);
            [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
        }
    }
    #[inline(always)]
    fn narrow_f16(v: Self::V) -> [u16; LANES] {
        // SAFETY: the CPU has F16C (see `Avx2`); arrays and vectors have the same bits.
        unsafe {
            transmute([
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]),
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]),
            ])
        }
    }
    #[inline(always)]
    fn widen_bf16(bits: [u16; LANES]) -> Self::V {
        // SAFETY: the CPU has AVX2 (see `Avx2`); arrays and vectors have the same bits.
        unsafe {
            let [low, high] = transmute::<[u16; LANES], [__m128i; 2]>(bits);
            let low = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(low));
            let high = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(high));
            [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
        }
    }
    #[inline(always)]
    fn narrow_bf16(v: Self::V) -> [u16; LANES] {
        // SAFETY: the CPU has AVX2 (see `Avx2`); arrays and vectors have the same bits.
        unsafe {
            let (low, high) = (narrow_half(v[0]), narrow_half(v[1]));
            // Packing works on halves of vectors.
            transmute(_mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high)))
        }
    }

    #[inline(always)]
    unsafe fn load_words(from: *const f32, n: usize) -> Self::V {
        // SAFETY: the CPU has AVX2 (see `Avx2`); only words below `n` are read, which the caller has promised.
        unsafe {
            let [low, high] = first_words(n);
            [_mm256_maskload_ps(from, low), _mm256_maskload_ps(from.wrapping_add(8), high)]
        }
    }

    #[inline(always)]
    unsafe fn store_words(to: *mut f32, v: Self::V, n: usize) {
        // SAFETY: the CPU has AVX2 (see `Avx2`); only words below `n` are written, which the caller has promised.
        unsafe {
            let [low, high] = first_words(n);
            _mm256_maskstore_ps(to, low, v[0]);
            _mm256_maskstore_ps(to.wrapping_add(8), high, v[1]);
        }
    }

    #[inline(always)]
    unsafe fn stream_words(to: *mut f32, v: Self::V) {
        // SAFETY: the CPU has AVX (see `Avx2`); the caller has promised space and alignment.
        unsafe {
            _mm256_stream_ps(to, v[0]);
            _mm256_stream_ps(to.add(8), v[1]);
        }
    }

    #[inline(always)]
    unsafe fn stream_halves(to: *mut u16, v: [u16; LANES]) {
        // SAFETY: the CPU has AVX2 (see `Avx2`); the caller has promised space and alignment.
        unsafe { _mm256_stream_si256(to.cast(), transmute::<[u16; LANES], __m256i>(v)) }
    }

    #[inline(always)]
    fn prefetch(from: *const u8) {
        // SAFETY: every CPU of this architecture has it, and it never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) };
    }

    #[inline(always)]
    fn prefetch_second(from: *const u8) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) };
    }
}

/// Masks of the first `n` of 16 words.
///
/// # Safety
///
/// The CPU has AVX2.
#[inline(always)]
unsafe fn first_words(n: usize) -> [__m256i; 2] {
    // SAFETY: the CPU has AVX2.
    unsafe {
        let [low, high] =
            [_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)];
        let n = _mm256_set1_epi32(n as i32);
        [_mm256_cmpgt_epi32(n, low), _mm256_cmpgt_epi32(n, high)]
    }
}

impl Simd for Avx512 {
    type V = __m512;

    const ROWS: usize = 4;
    const AHEAD: bool = true;
    const STREAM_ALIGN: Option<usize> = Some(64);

    whole! {
                fn add(a, b) => _mm512_add_ps(a, b);
        fn sub(a, b) => _mm512_sub_ps(a, b);
        fn mul(a, b) => _mm512_mul_ps(a, b);
        fn mul_add(a, b, c) => _mm512_fmadd_ps(a, b, c);
        // The second operand where one is NaN.
        fn relu(v) => _mm512_max_ps(_mm512_setzero_ps(), v);
        fn where_positive(v, z) => {
            _mm512_maskz_mov_ps(!_mm512_cmp_ps_mask::<_CMP_LE_OQ>(z, _mm512_setzero_ps()), v)
        };
    }

    #[inline(always)]
    fn splat(v: f32) -> Self::V {
        // SAFETY: the CPU has AVX-512 F (see `Avx512`).
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    fn from_array(v: [f32; LANES]) -> Self::V {
        // SAFETY: arrays and vectors have the same bits.
        unsafe { transmute(v) }
    }
    #[inline(always)]
    fn to_array(v: Self::V) -> [f32; LANES] {
        // SAFETY: arrays and vectors have the same bits.
        unsafe { transmute(v) }
    }
    #[inline(always)]
    fn first(v: Self::V, n: usize) -> Self::V {
        // SAFETY: the CPU has AVX-512 F (see `Avx512`).
        unsafe { _mm512_maskz_mov_ps(first(n), v) }
    }
    #[inline(always)]
    fn sum(v: Self::V) -> f32 {
        // SAFETY: the CPU has AVX-512 DQ (see `Avx512`).
        unsafe { sum(halved(v)) }
    }
    #[inline(always)]
    fn sums([a, b, c, d]: [Self::V; 4]) -> [f32; 4] {
        // SAFETY: the CPU has AVX-512 DQ (see `Avx512`).
        unsafe { sums([halved(a), halved(b), halved(c), halved(d)]) }
    }

    #[inline(always)]
    fn widen_f16(bits: [u16; LANES]) -> Self::V {
        // SAFETY: the CPU has AVX-512 F (see `Avx512`); arrays and vectors have the same bits.
        unsafe { _mm512_cvtph_ps(transmute::<[u16; LANES], __m256i>(bits)) }
    }
    #[inline(always)]
    fn narrow_f16(v: Self::V) -> [u16; LANES] {
        // SAFETY: the CPU has AVX-512 F (see `Avx512`); arrays and vectors have the same bits.
        unsafe { transmute(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    fn widen_bf16(bits: [u16; LANES]) -> Self::V {
        // SAFETY: the CPU has AVX-512 F (see `Avx512`); arrays and vectors have the same bits.
        unsafe {
            let words = _mm512_cvtepu16_epi32(transmute::<[u16; LANES], __m256i>(bits));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        }
    }
    #[inline(always)]
    fn narrow_bf16(v: Self::V) -> [u16; LANES] {
        // Not the instruction of AVX512_BF16, which flushes subnormals.
        // SAFETY: the CPU has AVX-512 F (see `Avx512`); arrays and vectors have the same bits.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let upper = _mm512_srli_epi32::<16>(bits);
            let odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let nan = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let narrow = _mm512_mask_mov_epi32(_mm512_srli_epi32::<16>(rounded), is_nan, nan);
            transmute(_mm512_cvtepi32_epi16(narrow))
        }
    }

    #[inline(always)]
    unsafe fn load_words(from: *const f32, n: usize) -> Self::V {
        // SAFETY: the CPU has AVX-512 F (see `Avx512`); only words below `n` are read, which the caller has promised.
        unsafe { _mm512_maskz_loadu_ps(first(n), from) }
    }

    #[inline(always)]
    unsafe fn store_words(to: *mut f32, v: Self::V, n: usize) {
        // SAFETY: the CPU has AVX-512 F (see `Avx512`); only words below `n` are written, which the caller has promised.
        unsafe { _mm512_mask_storeu_ps(to, first(n), v) }
    }

    #[inline(always)]
    unsafe fn load_halves(from: *const u16, n: usize) -> [u16; LANES] {
        // SAFETY: the CPU has AVX-512 BW and VL (see `Avx512`); only words below `n` are read, which the caller has
        // promised.
        unsafe { transmute(_mm256_maskz_loadu_epi16(first(n), from.cast())) }
    }

    #[inline(always)]
    unsafe fn store_halves(to: *mut u16, v: [u16; LANES], n: usize) {
        // SAFETY: the CPU has AVX-512 BW and VL (see `Avx512`); only words below `n` are written, which the caller has
        // promised.
        unsafe { _mm256_mask_storeu_epi16(to.cast(), first(n), transmute::<[u16; LANES], __m256i>(v)) }
    }

    #[inline(always)]
    unsafe fn stream_words(to: *mut f32, v: Self::V) {
        // SAFETY: the CPU has AVX-512 F (see `Avx512`); the caller has promised space and alignment.
        unsafe { _mm512_stream_ps(to, v) }
    }

    #[inline(always)]
    unsafe fn stream_halves(to: *mut u16, v: [u16; LANES]) {
        // SAFETY: the CPU has AVX (see `Avx512`); the caller has promised space and alignment.
        unsafe { _mm256_stream_si256(to.cast(), transmute::<[u16; LANES], __m256i>(v)) }
    }

    #[inline(always)]
    fn prefetch(from: *const u8) {
        // SAFETY: every CPU of this architecture has it, and it never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) };
    }

    #[inline(always)]
    fn prefetch_second(from: *const u8) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) };
    }
}

/// The mask of the first `n` of 16 lanes.
#[inline(always)]
fn first(n: usize) -> u16 {
    (1u32.wrapping_shl(n as u32) - 1) as u16
}
