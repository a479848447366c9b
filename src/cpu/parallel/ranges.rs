use core::{
    any::Any,
    hint::spin_loop,
    mem::transmute,
    ops::Range,
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicUsize, Ordering},
};
use std::{
    panic::{catch_unwind, resume_unwind},
    sync::{Arc, Mutex, PoisonError},
    thread::yield_now,
};

/// Calls `body` with each of `0..count`, on this thread and up to `threads - 1` of the pool that it is in.
///
/// This thread works too, and waits for those only that have begun: where the pool is asleep or has other things to do, it
/// does everything itself, and leaves two small jobs behind that will find nothing to do.
///
/// Each thread begins in a share of its own, the same in each call as far as it can be: what it has left in its caches then
/// serves the next pass over the same tensors. Two threads of AMD Zen 4, medians, with shares / without: LayerNorm forward and
/// backward, 64 rows of 65,536 in f32, 2.88 / 3.07 ms.
pub(super) fn share(count: usize, threads: usize, order: Order, body: &(dyn Fn(usize) + Sync)) {
    // SAFETY: only the lifetime is another one; `Ranges::work` says why that is long enough.
    let body =
        unsafe { transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync)>(body) };
    let ranges = Arc::new(Ranges {
        body,
        count,
        order,
        shares: (0..threads).map(|_| Share(AtomicUsize::new(0))).collect(),
        done: AtomicUsize::new(0),
        panic: Mutex::new(None),
    });
    ranges.clone().help(0);
    ranges.wait();
    let panic = ranges.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

/// The order of a share's ranges.
#[derive(Clone, Copy)]
pub(super) enum Order {
    FirstFirst,
    LastFirst,
}

/// Ranges of a share that have been taken. In a line of its own, since threads count in different ones.
#[repr(align(64))]
struct Share(AtomicUsize);

/// Ranges of work that threads take one after another.
struct Ranges {
    body: *const (dyn Fn(usize) + Sync),
    count: usize,
    order: Order,
    /// One for each thread.
    shares: Vec<Share>,
    done: AtomicUsize,
    /// The first one of a range.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: what `body` points to may be called from any thread, and the rest may cross them.
unsafe impl Send for Ranges {}
// SAFETY: likewise.
unsafe impl Sync for Ranges {}

impl Ranges {
    /// What helper `index` does, or the caller as number 0. Each wakes two more, so that the first need not wake them all.
    fn help(self: Arc<Self>, index: usize) {
        let threads = self.shares.len();
        let is_taken =
            |share: usize| self.shares[share].0.load(Ordering::Relaxed) >= self.ranges(share).len();
        if (0..threads).all(is_taken) {
            return;
        }
        for next in 2 * index + 1..(2 * index + 3).min(threads) {
            let ranges = self.clone();
            rayon::spawn(move || ranges.help(next));
        }
        // The caller has the first share; which of the helpers a thread is changes from call to call.
        let of_helper = rayon::current_thread_index().unwrap_or(index);
        let own = if index == 0 { 0 } else { 1 + of_helper % (threads - 1) };
        (own..threads).chain(0..own).for_each(|share| self.work(share));
    }

    fn ranges(&self, share: usize) -> Range<usize> {
        let start = |share: usize| share * self.count / self.shares.len();
        start(share)..start(share + 1)
    }

    /// What is left of a share.
    fn work(&self, share: usize) {
        let ranges = self.ranges(share);
        loop {
            let taken = self.shares[share].0.fetch_add(1, Ordering::Relaxed);
            if taken >= ranges.len() {
                return;
            }
            let range = match self.order {
                Order::FirstFirst => ranges.start + taken,
                Order::LastFirst => ranges.end - 1 - taken,
            };
            // SAFETY: `share` has borrowed it, and does not return before this range is done.
            let body = unsafe { &*self.body };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(range))) {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            }
            // What the range has written is there for whom this tells that it is done.
            self.done.fetch_add(1, Ordering::Release);
        }
    }

    /// Until all ranges are done. They are short beside the call, so that it is not worth to sleep meanwhile.
    fn wait(&self) {
        /// Of some nanoseconds each, before others that want this processor have it. A guess.
        const SPINS: usize = 1 << 10;
        let mut spins = 0;
        while self.done.load(Ordering::Acquire) < self.count {
            spins += 1;
            if spins < SPINS { spin_loop() } else { yield_now() }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        thread,
        time::{Duration, Instant},
    };

    use rayon::ThreadPoolBuilder;

    use super::*;

    #[test]
    fn the_pool_helps() {
        let pool = ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let begun = AtomicUsize::new(0);
        let threads = Mutex::new(Vec::new());
        let body = |_| {
            threads.lock().unwrap().push(thread::current().id());
            begun.fetch_add(1, Ordering::Relaxed);
            let deadline = Instant::now() + Duration::from_secs(60);
            while begun.load(Ordering::Relaxed) < 2 && Instant::now() < deadline {
                yield_now();
            }
        };
        pool.install(|| share(2, 2, Order::FirstFirst, &body));
        let threads = threads.into_inner().unwrap();
        assert!(threads[0] != threads[1], "one thread did both ranges");
    }

    #[test]
    fn each_range_is_done_once_and_a_panic_comes_back() {
        let pool = ThreadPoolBuilder::new().num_threads(5).build().unwrap();
        let orders = [Order::FirstFirst, Order::LastFirst];
        for (count, order) in [1, 2, 3, 40, 1000].into_iter().zip(orders.into_iter().cycle()) {
            for panics_at in [None, Some(count / 2)] {
                let times: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                let body = |range: usize| {
                    times[range].fetch_add(1, Ordering::Relaxed);
                    assert!(Some(range) != panics_at, "range {range}");
                };
                let outcome =
                    pool.install(|| catch_unwind(AssertUnwindSafe(|| share(count, 5, order, &body))));
                let message = outcome.err().map(|panic| panic.downcast_ref::<String>().cloned().unwrap());
                assert_eq!(message, panics_at.map(|range| format!("range {range}")));
                assert!(times.iter().all(|times| times.load(Ordering::Relaxed) == 1), "{count} ranges");
            }
        }
    }
}
