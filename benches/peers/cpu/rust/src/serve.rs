//! A worker's side of the conversation with `run`: a request per line on standard input, an answer per line on standard
//! output. `serve.py` is the same for the workers in Python.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    collections::BTreeMap,
    error::Error,
    io::{BufRead, Write},
    time::Instant,
};

use serde::{Deserialize, Serialize};

use crate::suite::{self, Case, Extent};

/// Has tensors begin at a line of the cache, as those of PyTorch and JAX do: a `Vec` need not.
struct FromLine;

/// Bytes.
const LINE: usize = 64;

/// Bytes of the smallest tensor, about. What is smaller is no tensor, and not slowed down by the search for a line.
const TENSOR: usize = 4096;

impl FromLine {
    fn layout(layout: Layout) -> Layout {
        if layout.size() < TENSOR { layout } else { layout.align_to(LINE).unwrap_or(layout) }
    }
}

// SAFETY: the system's allocator, which is given the same layout for the same allocation.
unsafe impl GlobalAlloc for FromLine {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the size is the caller's.
        unsafe { System.alloc(Self::layout(layout)) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `alloc` has made it of this layout.
        unsafe { System.dealloc(at, Self::layout(layout)) }
    }
}

#[global_allocator]
static ALLOCATOR: FromLine = FromLine;

pub(crate) type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Names of results, and their elements as they lie in memory.
pub(crate) type Outputs = Vec<(&'static str, Vec<f32>)>;

/// A case with its buffers.
pub(crate) trait Problem {
    fn call(&mut self) -> Outcome;
    /// What the last call computed.
    fn outputs(&mut self) -> Outcome<Outputs>;
}

#[derive(Deserialize)]
struct Request {
    case: String,
    /// Seconds.
    min_time: f64,
    /// Whether results are to be compared.
    check: bool,
}

#[derive(Default, Serialize)]
struct Answer {
    min_us: Option<f64>,
    median_us: Option<f64>,
    /// Why there are no times.
    left_out: Option<String>,
    outputs: BTreeMap<&'static str, Digest>,
}

/// What two results are compared by.
#[derive(Serialize)]
struct Digest {
    len: usize,
    mean_abs: Option<f64>,
    /// Evenly spread over the elements; one that is not finite is null.
    samples: Vec<Option<f32>>,
}

/// Elements of a result that are compared one by one.
const SAMPLES: usize = 64;

impl Digest {
    fn new(values: &[f32]) -> Self {
        let finite = |v: f64| v.is_finite().then_some(v);
        let sum: f64 = values.iter().map(|v| f64::from(v.abs())).sum();
        let samples = (0..SAMPLES).map(|i| values[i * values.len() / SAMPLES]);
        Self {
            len: values.len(),
            mean_abs: finite(sum / values.len() as f64),
            samples: samples.map(|v| v.is_finite().then_some(v)).collect(),
        }
    }
}

/// Says who it is, then answers until the requests end.
pub(crate) fn serve(version: &str, mut prepare: impl FnMut(&Case) -> Outcome<Box<dyn Problem>>) -> Outcome {
    let cases = suite::cases(Extent::Cpu);
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::json!({ "version": version }))?;
    for line in std::io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?)?;
        let case = cases.iter().find(|case| case.name() == request.case).ok_or("no such case")?;
        let answer = prepare(case).and_then(|problem| answer(problem, &request));
        let answer = answer
            .unwrap_or_else(|error| Answer { left_out: Some(first_line(&*error)), ..Answer::default() });
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        out.flush()?;
    }
    Ok(())
}

fn answer(mut problem: Box<dyn Problem>, request: &Request) -> Outcome<Answer> {
    let mut times = time(|| problem.call(), request.min_time)?;
    times.sort_by(f64::total_cmp);
    let mut outputs = BTreeMap::new();
    if request.check {
        outputs = problem.outputs()?.into_iter().map(|(name, values)| (name, Digest::new(&values))).collect();
    }
    Ok(Answer { min_us: Some(times[0]), median_us: Some(times[times.len() / 2]), left_out: None, outputs })
}

/// Microseconds of a call, in samples of several calls each, as `time` in serve.py takes them.
fn time(mut call: impl FnMut() -> Outcome, min_time: f64) -> Outcome<Vec<f64>> {
    const WARM_UP: usize = 3;
    /// So long that reading the clock does not count.
    const SAMPLE_US: f64 = 150.0;
    const MIN_SAMPLES: usize = 15;
    const MAX_SAMPLES: usize = 3000;
    /// After which even a slow call has been timed enough.
    const MAX_SECONDS: f64 = 1.0;
    const MIN_SLOW_SAMPLES: usize = 3;

    let mut timed = |calls: usize| -> Outcome<f64> {
        let start = Instant::now();
        for _ in 0..calls {
            call()?;
        }
        Ok(start.elapsed().as_secs_f64() * 1e6 / calls as f64)
    };
    timed(WARM_UP)?;
    let calls = (SAMPLE_US / timed(1)?.max(0.5)).ceil().clamp(1.0, 500.0) as usize;
    let mut times = Vec::new();
    let start = Instant::now();
    loop {
        let passed = start.elapsed().as_secs_f64();
        let enough = times.len() >= MIN_SAMPLES && passed >= min_time;
        let slow = times.len() >= MIN_SLOW_SAMPLES && passed >= MAX_SECONDS.max(min_time);
        if enough || slow || times.len() == MAX_SAMPLES {
            return Ok(times);
        }
        times.push(timed(calls)?);
    }
}

fn first_line(error: &dyn Error) -> String {
    error.to_string().lines().next().unwrap_or_default().into()
}
