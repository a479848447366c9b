//! The division of work among threads.
//!
//! What is added up, and in which order, follows from the shape alone: units of work are fixed, and each has a place of
//! its own for its results. How many threads there are decides only who runs which unit.

mod ranges;

use super::simd;

/// Bytes that a call moves from which on it is worth to wake other threads. Two of AMD Zen 4 instead of one, BatchNorm's
/// inference: 0.5 MB 18 us instead of 19, 0.8 MB 10 instead of 15, 1.6 MB 12 instead of 20.
const WORTH_THREADS: usize = 512 << 10;

/// Bytes read and written from which on results are written past the caches, by the way through the tensors. One thread of
/// AMD Zen 4 with a last cache of 32 MiB, instead of through the caches, in ms: winding, BatchNorm training in f16 of 26 MB
/// 1.3 instead of 2.0; straight, its inference 0.74 and not 0.59, channels last 0.85 and not 0.68, but in f32 of 51 MB,
/// channels last, 1.45 instead of 1.94; two threads, GroupNorm in f32 of 21 MB 0.41 and not 0.22.
const FAR_WINDING: usize = 16 << 20;
const FAR_STRAIGHT: usize = 28 << 20;

/// Bytes of a run that is written past the caches, at least: the lines at its ends are written in part.
const STREAMED_RUN: usize = 4 << 10;

/// Ranges of units per thread: more than one, so that a thread that is late does not hold up the others.
const RANGES_PER_THREAD: usize = 8;

/// How a call goes through its tensors.
#[derive(Clone, Copy)]
pub(super) enum Way {
    /// In the order of memory, to write one.
    Straight,
    Winding,
}

/// Whether so many bytes are in no cache.
pub(super) fn is_far(bytes: usize, way: Way) -> bool {
    #[cfg(test)]
    if let Some(far) = FORCED.get() {
        return far;
    }
    bytes
        >= match way {
            Way::Straight => FAR_STRAIGHT,
            Way::Winding => FAR_WINDING,
        }
}

/// Whether results that are `far` are written past the caches, in runs of `run` elements.
pub(super) fn streams<T>(far: bool, run: usize) -> bool {
    far && run * size_of::<T>() >= STREAMED_RUN
}

#[cfg(test)]
thread_local! {
    /// What a test asks for whatever the size.
    static FORCED: core::cell::Cell<Option<bool>> = const { core::cell::Cell::new(None) };
}

/// Calls `body` as if all tensors were, or were not, in no cache.
#[cfg(test)]
pub(super) fn as_if_far<R>(far: bool, body: impl FnOnce() -> R) -> R {
    FORCED.set(Some(far));
    let result = body();
    FORCED.set(None);
    result
}

/// Threads of the pool that the call runs in.
pub(super) fn threads(bytes: usize) -> usize {
    if bytes < WORTH_THREADS { 1 } else { rayon::current_num_threads() }
}

/// Calls `unit` with each of `0..units`, on several threads where `bytes` are worth it.
pub(super) fn for_each(units: usize, bytes: usize, unit: impl Fn(usize) + Sync) {
    let threads = threads(bytes).min(units);
    if threads < 2 {
        (0..units).for_each(unit);
        return simd::fence();
    }
    let per_range = units.div_ceil(threads * RANGES_PER_THREAD);
    ranges::share(units.div_ceil(per_range), threads, &|range| {
        let first = range * per_range;
        (first..(first + per_range).min(units)).for_each(&unit);
        simd::fence();
    });
}
