//! How a call is timed, on the GPU and on the CPU.
//!
//! *Cold*: before every call a buffer that the cache cannot hold is written, and the two marks of the clock lie right
//! around the call. What the written buffer leaves in the cache is written back while the call runs, for a call as for
//! the copy it is compared with. *Warm*: calls one after another on the same tensors, so that small ones never leave the
//! L2 cache.
//!
//! On the GPU the marks are CUDA events and what is between them is the replay of a captured graph, of one call or, warm,
//! of several, so that the host's time to enqueue a call is in neither. An event is good to about half a microsecond, and
//! the start of a graph is between the marks: cold times below some 10 us say little, warm ones say more.

use std::{
    collections::BTreeMap,
    error::Error,
    time::{Duration, Instant},
};

use warpnorm::{Backend, Cpu};

pub(crate) type Outcome<T = ()> = Result<T, Box<dyn Error>>;
/// Enqueues the work, or does it.
pub(crate) type Call<'c> = Box<dyn FnMut() -> Outcome + 'c>;

/// Samples of which a median is made, at least.
pub(crate) const SAMPLES: u64 = 50;

/// Calls in a graph of the warm measurement.
#[cfg(feature = "cuda")]
const CALLS_PER_GRAPH: u64 = 10;

/// What the cache holds when a call starts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cache {
    Cold,
    Warm,
}

/// Where calls run.
pub(crate) trait Machine {
    type On: Backend;

    fn on(&self) -> &Self::On;
    /// What the figures depend on, by name.
    fn describe(&self) -> BTreeMap<String, String>;
    /// Makes the call once, and gives what times it.
    fn timer<'c>(&'c self, call: Call<'c>) -> Outcome<Box<dyn Timer + 'c>>;
    /// A copy within the memory that moves so many bytes, read and written both counted.
    fn copy(&self, bytes: u64) -> Outcome<Call<'_>>;
}

/// A call that can be timed.
pub(crate) trait Timer {
    /// The time of each of so many calls; warm ones may be means of several.
    fn time(&mut self, cache: Cache, calls: u64) -> Outcome<Vec<Duration>>;
    /// `graph` or `calls`: what is between the marks.
    fn how(&self) -> &'static str;
}

/// Cold and warm medians of a copy, in microseconds.
pub(crate) fn time_copy<M: Machine>(machine: &M, bytes: u64, samples: u64) -> Outcome<[f64; 2]> {
    let mut timer = machine.timer(machine.copy(bytes)?)?;
    Ok([median(timer.time(Cache::Cold, samples)?), median(timer.time(Cache::Warm, samples)?)])
}

/// In microseconds.
pub(crate) fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    let middle = times.len() / 2;
    let at = |index: usize| times[index].as_secs_f64() * 1e6;
    if times.len() % 2 == 1 { at(middle) } else { (at(middle - 1) + at(middle)) / 2.0 }
}

pub(crate) struct Host;

/// Larger than the caches of most processors.
const HOST_FLUSH: usize = 64 << 20;

struct HostTimer<'c> {
    call: Call<'c>,
    flush: Vec<u8>,
}

impl Machine for Host {
    type On = Cpu;

    fn on(&self) -> &Cpu {
        &Cpu
    }

    fn describe(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("gpu".into(), "none: the CPU backend".into())])
    }

    fn timer<'c>(&'c self, mut call: Call<'c>) -> Outcome<Box<dyn Timer + 'c>> {
        call()?;
        Ok(Box::new(HostTimer { call, flush: vec![0; HOST_FLUSH] }))
    }

    fn copy(&self, bytes: u64) -> Outcome<Call<'_>> {
        let from = vec![1_u8; bytes as usize / 2];
        let mut to = vec![0_u8; from.len()];
        Ok(Box::new(move || {
            to.copy_from_slice(&from);
            std::hint::black_box(&mut to);
            Ok(())
        }))
    }
}

impl Timer for HostTimer<'_> {
    fn time(&mut self, cache: Cache, calls: u64) -> Outcome<Vec<Duration>> {
        let mut times = Vec::new();
        for i in 0..calls {
            if let Cache::Cold = cache {
                self.flush.fill(i as u8);
                std::hint::black_box(&mut self.flush);
            }
            let start = Instant::now();
            (self.call)()?;
            times.push(start.elapsed());
        }
        Ok(times)
    }

    fn how(&self) -> &'static str {
        "calls"
    }
}

#[cfg(feature = "cuda")]
pub(crate) use gpu::Gpu;

#[cfg(feature = "cuda")]
mod gpu {
    use std::{cell::RefCell, collections::BTreeMap, fs, sync::Arc, time::Duration};

    use warpnorm::{
        Cuda,
        cudarc::driver::{
            CudaEvent, CudaGraph, CudaSlice, CudaStream,
            sys::{self, CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode},
        },
    };

    use super::{CALLS_PER_GRAPH, Cache, Call, Machine, Outcome, Timer};

    /// Pairs of events that are in flight at a time.
    const EVENTS: usize = 64;
    /// The least that is written to empty the L2 cache, in bytes.
    const FLUSH: usize = 256 << 20;

    pub(crate) struct Gpu {
        on: Cuda,
        /// What is written before a cold call.
        flush: RefCell<CudaSlice<u8>>,
        events: Vec<[CudaEvent; 2]>,
    }

    impl Gpu {
        pub(crate) fn new(on: Cuda) -> Outcome<Self> {
            let context = on.stream().context().clone();
            // A capture may not wait for the events by which cudarc orders streams, and elsewhere they would be timed.
            // SAFETY: this program uses one stream.
            unsafe { context.disable_event_tracking() };
            on.warm_up()?;
            let flush = on.stream().alloc_zeros(FLUSH.max(4 * on.limits().l2))?;
            let event = || context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
            let events = (0..EVENTS).map(|_| Ok([event()?, event()?])).collect::<Outcome<_>>()?;
            Ok(Self { on, flush: RefCell::new(flush), events })
        }

        fn stream(&self) -> &Arc<CudaStream> {
            self.on.stream()
        }

        /// A graph of so many calls, or `None` where they cannot be captured.
        fn capture(&self, call: &mut Call<'_>, calls: u64) -> Option<CudaGraph> {
            let stream = self.stream();
            stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).ok()?;
            let captured = (0..calls).try_for_each(|_| call());
            let flag = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
            let graph = stream.end_capture(flag).ok()??;
            captured.ok()?;
            graph.upload().ok()?;
            Some(graph)
        }
    }

    impl Machine for Gpu {
        type On = Cuda;

        fn on(&self) -> &Cuda {
            &self.on
        }

        fn describe(&self) -> BTreeMap<String, String> {
            let gpu = self.stream().context().name().unwrap_or_else(|error| error.to_string());
            // "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Fri ..."
            let text = fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
            let version = |word: &&str| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit());
            let driver = text.split_whitespace().find(version).unwrap_or("unknown");
            BTreeMap::from([
                ("gpu".into(), gpu),
                ("driver".into(), driver.into()),
                ("cuda".into(), cuda_version()),
            ])
        }

        fn timer<'c>(&'c self, mut call: Call<'c>) -> Outcome<Box<dyn Timer + 'c>> {
            call()?;
            self.on.synchronize()?;
            let graphs = self.capture(&mut call, 1).zip(self.capture(&mut call, CALLS_PER_GRAPH));
            Ok(Box::new(GpuTimer { gpu: self, call, graphs }))
        }

        fn copy(&self, bytes: u64) -> Outcome<Call<'_>> {
            let from = self.stream().alloc_zeros::<u8>(bytes as usize / 2)?;
            let mut to = self.stream().alloc_zeros::<u8>(bytes as usize / 2)?;
            Ok(Box::new(move || Ok(self.stream().memcpy_dtod(&from, &mut to)?)))
        }
    }

    /// What the driver supports, as in `12.4`.
    fn cuda_version() -> String {
        let mut version = 0;
        // SAFETY: it writes one number; the driver is there, or no `Gpu` would be.
        match unsafe { sys::cuDriverGetVersion(&mut version) }.result() {
            Ok(()) => format!("{}.{}", version / 1000, version % 1000 / 10),
            Err(error) => error.to_string(),
        }
    }

    struct GpuTimer<'c> {
        gpu: &'c Gpu,
        call: Call<'c>,
        /// Of one call, and of several.
        graphs: Option<(CudaGraph, CudaGraph)>,
    }

    impl GpuTimer<'_> {
        fn one(&mut self) -> Outcome {
            match &self.graphs {
                Some((one, _)) => Ok(one.launch()?),
                None => (self.call)(),
            }
        }

        fn several(&mut self) -> Outcome {
            match &self.graphs {
                Some((_, several)) => Ok(several.launch()?),
                None => (0..CALLS_PER_GRAPH).try_for_each(|_| (self.call)()),
            }
        }
    }

    impl Timer for GpuTimer<'_> {
        fn time(&mut self, cache: Cache, calls: u64) -> Outcome<Vec<Duration>> {
            let gpu = self.gpu;
            let stream = gpu.stream();
            let mut times = Vec::with_capacity(calls as usize);
            while (times.len() as u64) < calls {
                let pairs = (calls as usize - times.len()).min(EVENTS);
                for [start, end] in &gpu.events[..pairs] {
                    match cache {
                        Cache::Cold => {
                            stream.memset_zeros(&mut *gpu.flush.borrow_mut())?;
                            start.record(stream)?;
                            self.one()?;
                        }
                        Cache::Warm => {
                            start.record(stream)?;
                            self.several()?;
                        }
                    }
                    end.record(stream)?;
                }
                for [start, end] in &gpu.events[..pairs] {
                    let took = Duration::from_secs_f64(f64::from(start.elapsed_ms(end)?) / 1e3);
                    times.push(match cache {
                        Cache::Cold => took,
                        Cache::Warm => took / CALLS_PER_GRAPH as u32,
                    });
                }
            }
            Ok(times)
        }

        fn how(&self) -> &'static str {
            if self.graphs.is_some() { "graph" } else { "calls" }
        }
    }
}
