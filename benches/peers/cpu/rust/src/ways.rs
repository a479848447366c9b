//! Ways to copy memory. Which is the fastest depends on the size, the threads and the processor.

use std::sync::OnceLock;

/// Copies so many bytes, a multiple of 128, from one address to another, both multiples of 128.
type Copy = unsafe fn(*const u8, *mut u8, usize);

#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) copy: Copy,
}

/// Those that this processor has.
pub(crate) fn all() -> &'static [Way] {
    static ALL: OnceLock<Vec<Way>> = OnceLock::new();
    ALL.get_or_init(|| {
        #[allow(unused_mut)]
        let mut ways = vec![Way { name: "memcpy", copy: memcpy }];
        #[cfg(target_arch = "x86_64")]
        ways.extend(x86::ways());
        ways
    })
}

/// # Safety
///
/// As `std::ptr::copy_nonoverlapping`.
unsafe fn memcpy(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: the caller's.
    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Way;

    pub(super) fn ways() -> Vec<Way> {
        let mut ways = Vec::new();
        if is_x86_feature_detected!("avx2") {
            ways.push(Way { name: "AVX2", copy: avx2 });
            ways.push(Way { name: "AVX2 streaming", copy: avx2_streaming });
        }
        if is_x86_feature_detected!("avx512f") {
            ways.push(Way { name: "AVX-512", copy: avx512 });
            ways.push(Way { name: "AVX-512 streaming", copy: avx512_streaming });
        }
        ways
    }

    macro_rules! copy {
        ($name:ident, $feature:literal, $vector:ty, $load:ident, $store:ident, $end:expr) => {
            /// # Safety
            ///
            /// As `Copy` says, on a processor with the feature.
            #[target_feature(enable = $feature)]
            unsafe fn $name(from: *const u8, to: *mut u8, bytes: usize) {
                const VECTORS: usize = 128 / size_of::<$vector>();
                let (mut from, mut to) = (from.cast::<$vector>(), to.cast::<$vector>());
                for _ in 0..bytes / 128 {
                    // SAFETY: so many vectors are in both buffers, which are aligned.
                    unsafe {
                        let vectors: [$vector; VECTORS] = std::array::from_fn(|i| $load(from.add(i)));
                        for (i, vector) in vectors.into_iter().enumerate() {
                            $store(to.add(i), vector);
                        }
                        (from, to) = (from.add(VECTORS), to.add(VECTORS));
                    }
                }
                $end
            }
        };
    }

    copy!(avx2, "avx2", __m256i, _mm256_load_si256, _mm256_store_si256, ());
    copy!(avx2_streaming, "avx2", __m256i, _mm256_load_si256, _mm256_stream_si256, _mm_sfence());
    copy!(avx512, "avx512f", __m512i, _mm512_load_si512, _mm512_store_si512, ());
    copy!(avx512_streaming, "avx512f", __m512i, _mm512_load_si512, _mm512_stream_si512, _mm_sfence());
}
