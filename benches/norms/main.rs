//! `cargo bench`: the cases of `benches/suite.json` on the first GPU, or those for the CPU where there is none.
//! `timing.rs` says what is measured, `benches/peers/run.py` measures others on the same cases in the same way,
//! and the example `perf_report` puts both side by side.
//!
//! ```text
//! cargo bench [-- OPTION... [FILTER]]
//!     --quick          a few cases of each op
//!     --sweep PATTERN  every legal plan of the cases whose names contain PATTERN, in place of the benchmark
//!     --list           the names of the cases
//!     FILTER           only cases whose names contain it
//! ```
//!
//! Criterion's other options serve too. Beside its own files the results go to `target/bench/warpnorm.json`, or where
//! `WARPNORM_BENCH_JSON` says. With `WARPNORM_REQUIRE_GPU=1` a missing GPU is a failure.
//!
//! `--quick` must end within four minutes on a GPU with its peers, and so within one alone. It has 69 cases. Criterion
//! times cold and warm calls for 100 to 200 ms each and takes 50 ms to look at them; a copy takes 30 ms, making and
//! filling the tensors 350 ms at most (411 MB, three times), 60 ms as a rule: 69 * 0.6 s = 41 s. Without `--quick` the
//! 992 cases take about 1 s each.

mod calls;
mod noise;
mod results;
mod suite;
mod sweep;
mod timing;

use std::{
    collections::BTreeMap,
    env, fs,
    path::PathBuf,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use calls::Problem;
use criterion::{BenchmarkFilter, Criterion, Throughput};
use noise::{Noise, enough};
use results::{Measured, Peer, Run};
use suite::{Case, Extent, Type};
use timing::{Cache, Host, Machine, Outcome, SAMPLES};
use warpnorm::{Cuda, Element};

/// The name in the results.
const OWN: &str = "warpnorm";

struct Options {
    quick: bool,
    sweep: Option<String>,
    list: bool,
    /// Criterion's `--test`, and what `cargo test --benches` asks: every case once, no results.
    test: bool,
    filter: String,
}

impl Options {
    fn new(args: &[String]) -> Outcome<Self> {
        let has = |option: &str| args.iter().any(|arg| arg == option);
        let value = |option: &str| args.iter().position(|arg| arg == option).map(|at| args.get(at + 1));
        let sweep = match value("--sweep") {
            Some(None) => return Err("--sweep asks for a part of the cases' names".into()),
            pattern => pattern.flatten().cloned(),
        };
        // What follows an option of criterion may be its value; these have none.
        let bare = |arg: &String| !arg.starts_with('-') || ["--bench", "--quick", "--test"].contains(&&**arg);
        let filter = (0..args.len()).find(|&i| !args[i].starts_with('-') && (i == 0 || bare(&args[i - 1])));
        Ok(Self {
            quick: has("--quick"),
            sweep,
            list: has("--list"),
            test: has("--test") || !has("--bench"),
            filter: filter.map(|i| args[i].clone()).unwrap_or_default(),
        })
    }

    fn cases(&self, gpu: bool) -> Vec<Case> {
        let extent = match () {
            () if !gpu && self.test => Extent::Test,
            () if !gpu => Extent::Cpu,
            () if self.quick || self.test => Extent::Quick,
            () => Extent::Full,
        };
        let wanted = |case: &Case| case.name().contains(self.sweep.as_ref().unwrap_or(&self.filter));
        suite::cases(extent).into_iter().filter(wanted).collect()
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome {
    let options = Options::new(&env::args().skip(1).collect::<Vec<_>>())?;
    let cuda = Cuda::new(0);
    let cases = options.cases(cuda.is_ok());
    if options.list {
        cases.iter().for_each(|case| println!("{}: benchmark", case.name()));
        return Ok(());
    }
    if cases.is_empty() {
        return Err("no case has such a name; --list prints them".into());
    }
    match cuda {
        #[cfg(feature = "cuda")]
        Ok(on) => on_machine(&timing::Gpu::new(on)?, &cases, &options),
        #[cfg(not(feature = "cuda"))]
        Ok(_) => unreachable!("there is no GPU without the feature `cuda`"),
        Err(error) if env::var_os("WARPNORM_REQUIRE_GPU").is_some() => Err(error.into()),
        Err(error) => {
            eprintln!("on the CPU: {error}");
            on_machine(&Host, &cases, &options)
        }
    }
}

fn on_machine<M: Machine>(machine: &M, cases: &[Case], options: &Options) -> Outcome {
    if options.sweep.is_some() { sweep::all(machine, cases) } else { bench(machine, cases, options) }
}

fn bench<M: Machine>(machine: &M, cases: &[Case], options: &Options) -> Outcome {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .nresamples(1001) // one more than criterion warns of
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(200))
        .without_plots()
        .configure_from_args()
        // It would be read as a regular expression, in which the `+` of a name is something else.
        .with_benchmark_filter(BenchmarkFilter::AcceptAll);
    let peer = Peer { name: OWN.into(), version: Some(env!("CARGO_PKG_VERSION").into()), missing: None };
    let mut run = Run { machine: describe(machine), peers: vec![peer], results: Vec::new() };
    let samples = if options.test { 1 } else { SAMPLES };
    let mut noise = Noise::default();
    let start = Instant::now();
    for (i, case) in cases.iter().enumerate() {
        let name = case.name();
        eprintln!("[{}/{}, {} s] {name}", i + 1, cases.len(), start.elapsed().as_secs());
        let took = measure(machine, case, &mut noise, &mut criterion, samples);
        let measured = took.unwrap_or_else(|error| {
            eprintln!("left out: {error}");
            Measured { left_out: Some(error.to_string()), ..Measured::default() }
        });
        if options.test && measured.left_out.is_some() {
            return Err(format!("{name} could not be run").into());
        }
        run.results.push(Measured {
            case: name,
            peer: OWN.into(),
            floor_bytes: case.floor_bytes(),
            ..measured
        });
        if !options.test {
            write(&run)?; // now, so that a run that is cut short leaves what it has
        }
    }
    criterion.final_summary();
    Ok(())
}

/// Times and how they were taken, beside a copy's.
fn measure<M: Machine>(
    machine: &M,
    case: &Case,
    noise: &mut Noise,
    criterion: &mut Criterion,
    samples: u64,
) -> Outcome<Measured> {
    let [copy_cold_us, copy_warm_us] = timing::time_copy(machine, case.floor_bytes(), samples)?.map(Some);
    let mut measured = Measured { copy_cold_us, copy_warm_us, ..Measured::default() };
    with_call(machine, case, noise, &mut |call| {
        let mut timer = machine.timer(Box::new(call))?;
        for cache in [Cache::Cold, Cache::Warm] {
            let mut times = Vec::new();
            let mut group = criterion.benchmark_group("norms");
            group.throughput(Throughput::Bytes(case.floor_bytes()));
            let id = format!("{}/{cache:?}", case.name()).to_lowercase();
            group.bench_function(id, |b| {
                b.iter_custom(|calls| {
                    let took = timer.time(cache, calls).expect("the call was accepted once");
                    times.extend(&took);
                    took.iter().sum()
                });
            });
            group.finish();
            let missing = samples.saturating_sub(times.len() as u64);
            times.extend(timer.time(cache, missing)?);
            let us = Some(timing::median(times));
            match cache {
                Cache::Cold => measured.cold_us = us,
                Cache::Warm => measured.warm_us = us,
            }
        }
        measured.how = Some(timer.how().into());
        Ok(())
    })?;
    Ok(measured)
}

/// Hands the case's call to `body`.
fn with_call<M: Machine>(
    machine: &M,
    case: &Case,
    noise: &mut Noise,
    body: &mut dyn FnMut(&mut dyn FnMut() -> Outcome) -> Outcome,
) -> Outcome {
    fn typed<T: Element, M: Machine>(
        machine: &M,
        case: &Case,
        noise: &[T],
        body: &mut dyn FnMut(&mut dyn FnMut() -> Outcome) -> Outcome,
    ) -> Outcome {
        let mut problem = Problem::new(machine.on(), case, noise)?;
        body(&mut || Ok(problem.enqueue()?))
    }
    let len = case.len();
    match case.ty {
        Type::F32 => typed(machine, case, enough(&mut noise.f32, len), body),
        Type::F16 => typed(machine, case, enough(&mut noise.f16, len), body),
        Type::Bf16 => typed(machine, case, enough(&mut noise.bf16, len), body),
    }
}

fn describe<M: Machine>(machine: &M) -> BTreeMap<String, String> {
    let mut about = machine.describe();
    let date = Command::new("date").args(["-u", "+%Y-%m-%d"]).output();
    let date = date.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    about.insert("date".into(), date.map_or("unknown".into(), |date| date.trim().into()));
    about
}

fn write(run: &Run) -> Outcome {
    let path = match env::var_os("WARPNORM_BENCH_JSON") {
        Some(path) => PathBuf::from(path),
        None => {
            let target = env::var_os("CARGO_TARGET_DIR").unwrap_or("target".into());
            PathBuf::from(target).join("bench/warpnorm.json")
        }
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    Ok(fs::write(path, serde_json::to_string_pretty(run)? + "\n")?)
}
