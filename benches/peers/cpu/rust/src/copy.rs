//! The ceiling's worker: the fastest of several ways to copy as many bytes as the kernels of a case must move.

mod serve;
#[allow(dead_code)]
#[path = "../../../../norms/suite.rs"]
mod suite;
mod ways;

use std::{
    hint,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use serve::{Outcome, Outputs, Problem, serve};
use ways::Way;

/// Threads start at multiples of it: those that stream whole cache lines need it, and no two threads share one.
const ALIGN: usize = 128;

fn main() -> Outcome {
    let threads = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let names: Vec<&str> = ways::all().iter().map(|way| way.name).collect();
    serve(&names.join(", "), |case| Ok(Box::new(Copy::fastest(case.cpu_floor_bytes() as usize / 2, threads))))
}

#[derive(Clone, Copy)]
#[repr(align(128))]
struct Line(#[allow(dead_code)] [u8; ALIGN]);

/// One way to copy, with its buffers and threads.
struct Copy {
    way: Way,
    from: Vec<Line>,
    to: Vec<Line>,
    team: Team,
}

impl Copy {
    /// With the way that does best in a few milliseconds each.
    fn fastest(bytes: usize, threads: usize) -> Self {
        const SECONDS: f64 = 0.02;
        let lines = bytes.div_ceil(ALIGN);
        let [from, to] = [1, 0].map(|byte| vec![Line([byte; ALIGN]); lines]);
        let ways = ways::all();
        let mut copy = Self { way: ways[0], from, to, team: Team::new(threads) };
        let mut best = (f64::INFINITY, ways[0]);
        for way in ways {
            copy.way = *way;
            let start = Instant::now();
            while start.elapsed().as_secs_f64() < SECONDS {
                let call = Instant::now();
                copy.once();
                let took = call.elapsed().as_secs_f64();
                if took < best.0 {
                    best = (took, *way);
                }
            }
        }
        copy.way = best.1;
        copy
    }

    fn once(&mut self) {
        self.team.copy(self.way, &self.from, &mut self.to);
    }
}

impl Problem for Copy {
    fn call(&mut self) -> Outcome {
        self.once();
        hint::black_box(&mut self.to);
        Ok(())
    }

    fn outputs(&mut self) -> Outcome<Outputs> {
        Ok(Vec::new())
    }
}

/// Threads that spin while they wait, so that waking them costs nothing: the ceiling is of the memory.
struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// Grows by one for each copy; `STOP` ends the helpers.
    turn: AtomicUsize,
    finished: AtomicUsize,
    way: AtomicUsize,
    from: AtomicUsize,
    to: AtomicUsize,
    lines: AtomicUsize,
}

const STOP: usize = usize::MAX;

impl Team {
    fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let helper = |number| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.help(number, threads))
        };
        let helpers = (1..threads).map(helper).collect();
        Self { shared, helpers }
    }

    fn copy(&mut self, way: Way, from: &[Line], to: &mut [Line]) {
        let shared = &*self.shared;
        shared.way.store(ways::all().iter().position(|w| w.name == way.name).unwrap_or(0), Ordering::Relaxed);
        shared.from.store(from.as_ptr() as usize, Ordering::Relaxed);
        shared.to.store(to.as_mut_ptr() as usize, Ordering::Relaxed);
        shared.lines.store(from.len().min(to.len()), Ordering::Relaxed);
        shared.finished.store(0, Ordering::Relaxed);
        shared.turn.fetch_add(1, Ordering::Release);
        let threads = self.helpers.len() + 1;
        // SAFETY: both slices are borrowed until every helper has said that it is done, and parts are disjoint.
        unsafe { shared.part(0, threads) };
        let mut wait = Wait::default();
        while shared.finished.load(Ordering::Acquire) < self.helpers.len() {
            wait.a_moment();
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.turn.store(STOP, Ordering::Release);
        for helper in self.helpers.drain(..) {
            helper.join().expect("a copy does not panic");
        }
    }
}

/// Spins, and after a while lets others run: on a busy machine what is waited for may need this very processor.
#[derive(Default)]
struct Wait(u32);

impl Wait {
    fn a_moment(&mut self) {
        const SPINS: u32 = 10_000;
        self.0 += 1;
        if self.0.is_multiple_of(SPINS) {
            thread::yield_now();
        } else {
            hint::spin_loop();
        }
    }
}

impl Shared {
    fn help(&self, number: usize, threads: usize) {
        let (mut last, mut wait) = (0, Wait::default());
        loop {
            let turn = self.turn.load(Ordering::Acquire);
            if turn == STOP {
                return;
            }
            if turn == last {
                wait.a_moment();
                continue;
            }
            (last, wait) = (turn, Wait::default());
            // SAFETY: `Team::copy` waits for this part while it borrows both slices.
            unsafe { self.part(number, threads) };
            self.finished.fetch_add(1, Ordering::Release);
        }
    }

    /// Copies one of `threads` parts.
    ///
    /// # Safety
    ///
    /// The slices that were stored are alive, and nobody else touches this part of them.
    unsafe fn part(&self, number: usize, threads: usize) {
        let lines = self.lines.load(Ordering::Relaxed);
        let [start, end] = [number, number + 1].map(|n| lines * n / threads * ALIGN);
        let from = self.from.load(Ordering::Relaxed) as *const u8;
        let to = self.to.load(Ordering::Relaxed) as *mut u8;
        let way = ways::all()[self.way.load(Ordering::Relaxed)];
        // SAFETY: the range lies in both slices, which the caller vouches for, and starts at a line.
        unsafe { (way.copy)(from.add(start), to.add(start), end - start) };
    }
}
