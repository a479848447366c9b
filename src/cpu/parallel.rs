//! The division of work among threads.
//!
//! What is added up, and in which order, follows from the shape alone: units of work are fixed, and each has a place of
//! its own for its results. How many threads there are decides only who runs which unit.

use rayon::prelude::*;

/// Bytes that a call moves from which on it is worth to wake other threads, which takes some 10 us for each pass. Two threads
/// of AMD Zen 4 instead of one: BatchNorm in f32 of 1.6 MB 43 us instead of 33, LayerNorm in f16 of 2.1 MB 150 instead of 237.
const WORTH_THREADS: usize = 2 << 20;

/// Bytes read and written from which on results are written past the caches. One thread of AMD Zen 4 with a last cache of
/// 32 MiB, instead of through the caches: GroupNorm in f32 of 21 MB 0.64 ms instead of 0.91, BatchNorm in f16 of 26 MB,
/// channels last, 1.5 instead of 2.7. (Zen 5, BatchNorm in f32 of 13 MB: 0.26 instead of 0.20.)
const STREAM: usize = 16 << 20;

/// Bytes of a run that is written past the caches, at least: the lines at its ends are written in part.
const STREAMED_RUN: usize = 4 << 10;

/// Ranges of units handed out per thread: more than one, so that a thread that is late does not hold up the others.
const RANGES_PER_THREAD: usize = 4;

/// Whether results are written past the caches, in runs of `run` elements.
pub(super) fn streams<T>(bytes: usize, run: usize) -> bool {
    is_far(bytes) && run * size_of::<T>() >= STREAMED_RUN
}

/// Whether so many bytes are in no cache.
pub(super) fn is_far(bytes: usize) -> bool {
    #[cfg(test)]
    if let Some(far) = FORCED.get() {
        return far;
    }
    bytes >= STREAM
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
pub(super) fn for_each(units: usize, bytes: usize, unit: impl Fn(usize) + Sync + Send) {
    let threads = threads(bytes);
    if units < 2 || threads < 2 {
        return (0..units).for_each(unit);
    }
    let at_least = units.div_ceil(threads * RANGES_PER_THREAD);
    (0..units).into_par_iter().with_min_len(at_least).for_each(unit);
}
