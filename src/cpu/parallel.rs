//! The division of work among threads.
//!
//! What is added up, and in which order, follows from the shape alone: each part of a sum has a place of its own. How many
//! threads there are decides only what is a unit of work, who runs it, and by which way through the caches.

mod ranges;

use core::ops::Range;

use self::ranges::Order;
use super::simd;

/// Bytes that a call moves from which on it is worth to wake other threads. One / two threads of AMD Zen 4, BatchNorm's
/// inference in f16: 0.5 MB channels last 19.2 / 18.0 us, 0.8 MB 15.5 / 9.7 us, and forward in training 36 / 34 and
/// 27.3 / 16.5 us.
const WORTH_THREADS: usize = 512 << 10;

/// Bytes read and written from which on results are written past the caches, by the way through the tensors. Two threads of AMD
/// Zen 4 with a last cache of 32 MiB each, medians of some processes, streamed / through the caches, in ms. Winding: BatchNorm
/// forward in training, f16, 26 MB 0.58 / 0.95; LayerNorm forward, f16, 17 MB 0.32 / 0.36. Straight: GroupNorm forward, f32,
/// 21 MB 0.39 / 0.25; BatchNorm forward in training, channels last, f16, 26 MB 0.68 / 0.55; but its inference, f32, 51 MB
/// 1.45 / 1.94.
const FAR_WINDING: usize = 16 << 20;
const FAR_STRAIGHT: usize = 28 << 20;

/// The same where one thread, which has not as much of the caches, goes straight: GroupNorm forward, f32, 21 MB, channels first
/// 0.48 / 0.57 and last 0.84 / 1.6 ms; BatchNorm in f16, 26 MB, inference 0.50 / 0.64, forward in training, channels last,
/// 1.03 / 1.17.
const FAR_STRAIGHT_ALONE: usize = 16 << 20;

/// Where one thread goes straight in training: of what follows more is in a cache. Medians of GroupNorm forward and backward, f16,
/// 10 MB, channels last, 1.17 / 1.58 ms, and of BatchNorm, f32, 13 MB, 0.97 / 1.42, though forward alone 0.34 / 0.30. That it is
/// so between 8 and 10 MB too is a guess.
const FAR_TRAINING_ALONE: usize = 8 << 20;

/// Backward along rows of less than [`STREAMED_RUN`] that are whole lines: LayerNorm, f32, 4,096 rows of 768, 38 MB, one thread 1.20 /
/// 1.34 ms, two 0.67 / 0.76; but f16, 19 MB, 1.13 / 0.95 and 0.58 / 0.49. In between a guess.
const FAR_SHORT_ROWS: usize = 28 << 20;

/// Bytes of a thread of which little is in a cache when it is read again: where less is read and written, passes through columns
/// walk several rows at a time, and the last first; LayerNorm forward adds up long rows together from there on, and takes short ones
/// one at a time.
const BEYOND_CACHES: usize = 28 << 20;

/// Threads that have a last cache of their own, as far as is known.
const CACHES: usize = 2;

/// Bytes of a run that is written past the caches, at least: the lines at its ends are written in part.
const STREAMED_RUN: usize = 4 << 10;

/// Ranges of units per thread: more than one, so that a thread that is late does not hold up the others. A guess.
const RANGES_PER_THREAD: usize = 8;

/// How a call goes through its tensors.
#[derive(Clone, Copy)]
pub(super) enum Way {
    /// Through long stretches of memory: forward, or row by row.
    Straight,
    /// The same through columns, where a backward pass may follow.
    Training,
    /// Row by row, where rows are short.
    ShortRows,
    /// From run to run of a channel; or part of a step of training, of which more than its tensors is to stay in the caches.
    Winding,
}

/// Whether so many bytes are taken to be in no cache.
pub(super) fn is_far(bytes: usize, way: Way) -> bool {
    #[cfg(test)]
    if let Some(forced) = FORCED.get() {
        return forced != Distance::Near;
    }
    bytes
        >= match way {
            Way::Straight if threads(bytes) == 1 => FAR_STRAIGHT_ALONE,
            Way::Training if threads(bytes) == 1 => FAR_TRAINING_ALONE,
            Way::Straight | Way::Training => FAR_STRAIGHT,
            Way::ShortRows => FAR_SHORT_ROWS,
            Way::Winding => FAR_WINDING,
        }
}

/// Whether what a thread reads and writes of so many bytes is more than stays in the caches.
pub(super) fn is_beyond_caches(bytes: usize) -> bool {
    #[cfg(test)]
    if let Some(forced) = FORCED.get() {
        return forced == Distance::Beyond;
    }
    bytes / threads(bytes).min(CACHES) >= BEYOND_CACHES
}

/// Whether results that are `far` are written past the caches, in runs of `run` elements.
pub(super) fn streams<T>(far: bool, run: usize) -> bool {
    far && run * size_of::<T>() >= STREAMED_RUN
}

/// What a test asks for whatever the size.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Distance {
    Near,
    /// As [`is_far`] says.
    Far,
    /// As [`is_beyond_caches`] says, too.
    Beyond,
}

#[cfg(test)]
thread_local! {
    static FORCED: core::cell::Cell<Option<Distance>> = const { core::cell::Cell::new(None) };
}

/// Calls `body` as if all tensors were at such a distance.
#[cfg(test)]
pub(super) fn as_if<R>(distance: Distance, body: impl FnOnce() -> R) -> R {
    FORCED.set(Some(distance));
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
    for_ranges(units, bytes, |range| range.for_each(&unit));
}

/// The same with several units at a time, which follow each other.
pub(super) fn for_ranges(units: usize, bytes: usize, body: impl Fn(Range<usize>) + Sync) {
    in_order(units, bytes, Order::FirstFirst, body);
}

/// Bytes of units that are walked forward where the last are first, so that memory is read as a stream; much more would not
/// be in a cache of the second level. AMD Zen 4: BatchNorm in 26 MB of f32 with 64 channels, one thread, by 8 / by 128 KiB,
/// forward in training 3.1 / 2.6 ms and backward 5.9 / 4.3; GroupNorm forward and backward in f32, 8 samples of 1.3 MB, two
/// threads, by 128 KiB / 256 KiB / 2.6 MB 1.34 / 1.26 / 1.35 ms.
const TOGETHER: usize = 256 << 10;

/// As [`for_ranges`], where a unit reads `of_unit` bytes that a pass over the same units may have read before: the last ones of a
/// thread are the most likely to be still in a cache.
pub(super) fn for_ranges_last_first(
    units: usize,
    of_unit: usize,
    bytes: usize,
    body: impl Fn(Range<usize>) + Sync,
) {
    let together = (TOGETHER / of_unit).max(1);
    in_order(units, bytes, Order::LastFirst, |range| {
        let mut end = range.end;
        while end > range.start {
            let start = end.saturating_sub(together).max(range.start);
            body(start..end);
            end = start;
        }
    });
}

fn in_order(units: usize, bytes: usize, order: Order, body: impl Fn(Range<usize>) + Sync) {
    let threads = threads(bytes).min(units);
    if threads < 2 {
        body(0..units);
        return simd::fence();
    }
    let per_range = units.div_ceil(threads * RANGES_PER_THREAD);
    ranges::share(units.div_ceil(per_range), threads, order, &|range| {
        let first = range * per_range;
        body(first..(first + per_range).min(units));
        simd::fence();
    });
}
