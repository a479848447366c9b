//! Runs the cases of a folder of golden vectors and writes what the crate computes.
//!
//! ```text
//! cargo run --release --features emulator --example verify -- \
//!     DIR OUT.safetensors --backend cpu|emulated|cuda --dtype f32|f16|bf16 [--params f32|same]
//! ```
//!
//! DIR holds `manifest.json` and `inputs.safetensors`, as `tests/data/golden` does. `<id>/<tensor>` is written to OUT
//! for every tensor that an op produces: `y` and `dx` in the storage type, the rest in `f32`; `--params same` stores
//! weight, bias and their gradients in the storage type too. Where DIR has an `expected.safetensors`, each case is
//! judged by it, after the outputs are written. The last line counts the cases: a failure of the tier `stretch`,
//! which asks for more than `f32` accumulation gives, counts as skipped. Cases that ran but have no expected values are
//! counted in a line of their own.

use std::{
    collections::BTreeMap,
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
};

use safetensors::{Dtype, tensor::TensorView};
use warpnorm::{
    Cpu, DType, Element,
    half::{bf16, f16},
};

// What the test suite is made of; it uses more of each than this program does.
#[allow(dead_code)]
#[path = "../tests/support/golden.rs"]
mod golden;
#[allow(dead_code)]
#[path = "../tests/support/judge.rs"]
mod judge;
#[allow(dead_code)]
#[path = "../tests/support/problem.rs"]
mod problem;
#[path = "../tests/support/reference.rs"]
mod reference;
#[allow(dead_code)]
#[path = "../tests/support/run.rs"]
mod run;

use golden::Case;
use problem::{Problem, Values};
use run::{Options, Params, Sliced, run};

const USAGE: &str =
    "usage: verify DIR OUT.safetensors --backend cpu|emulated|cuda --dtype f32|f16|bf16 [--params f32|same]";

fn main() -> ExitCode {
    match Arguments::parse(std::env::args().skip(1)).and_then(|arguments| verify(&arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("verify: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    dir: PathBuf,
    out: PathBuf,
    backend: String,
    dtype: DType,
    params: Params,
}

impl Arguments {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let (mut paths, mut backend, mut dtype, mut params) = (Vec::new(), None, None, Params::F32);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--backend" => backend = args.next(),
                "--dtype" => {
                    dtype = match args.next().as_deref() {
                        Some("f32") => Some(DType::F32),
                        Some("f16") => Some(DType::F16),
                        Some("bf16") => Some(DType::BF16),
                        _ => return Err(USAGE.into()),
                    };
                }
                "--params" => {
                    params = match args.next().as_deref() {
                        Some("f32") => Params::F32,
                        Some("same") => Params::Same,
                        _ => return Err(USAGE.into()),
                    };
                }
                _ if arg.starts_with("--") => return Err(USAGE.into()),
                _ => paths.push(PathBuf::from(arg)),
            }
        }
        match (<[PathBuf; 2]>::try_from(paths), backend, dtype) {
            (Ok([dir, out]), Some(backend), Some(dtype)) => Ok(Self { dir, out, backend, dtype, params }),
            _ => Err(USAGE.into()),
        }
    }
}

/// Whether cases ran and none failed.
fn verify(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    match arguments.backend.as_str() {
        "cpu" => verify_on(&Cpu, arguments),
        #[cfg(feature = "emulator")]
        "emulated" => verify_on(&warpnorm::Emulated::new(), arguments),
        #[cfg(not(feature = "emulator"))]
        "emulated" => Err("the backend `emulated` needs the feature `emulator`".into()),
        "cuda" => verify_on(&warpnorm::Cuda::new(0)?, arguments),
        _ => Err(USAGE.into()),
    }
}

fn verify_on<B: Sliced>(on: &B, arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    match arguments.dtype {
        DType::F32 => verify_in::<f32, B>(on, arguments),
        DType::F16 => verify_in::<f16, B>(on, arguments),
        _ => verify_in::<bf16, B>(on, arguments),
    }
}

/// A case that the storage type allows: the problem in that type, and what came of it.
struct Ran<'a> {
    case: &'a Case,
    problem: Problem,
    outputs: warpnorm::Result<Values>,
}

#[derive(Default)]
struct Counts {
    ran: usize,
    passed: usize,
    failed: usize,
    skipped: usize,
}

fn verify_in<T: Element, B: Sliced>(on: &B, arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    let options = Options { params: arguments.params, grads: arguments.params, ..Options::default() };
    let types = options.types(T::DTYPE);
    let folder = golden::read(&arguments.dir)?;

    let mut counts = Counts { skipped: folder.unknown, ..Counts::default() };
    let mut ran = Vec::new();
    for case in &folder.cases {
        match case.problem(types) {
            Some(problem) => {
                let outputs = run::<T, B>(on, &problem, &options);
                ran.push(Ran { case, problem, outputs });
            }
            None => counts.skipped += 1,
        }
    }
    write(&arguments.out, &ran, types)?;

    let expected = golden::read_expected(&arguments.dir, &folder.cases)?.unwrap_or_default();
    for Ran { case, problem, outputs } in &ran {
        let id = &case.id;
        let complaint = match (outputs, expected.get(id)) {
            (Err(error), _) => Some(error.to_string()),
            (Ok(_), None) => {
                println!("ran  {id}");
                counts.ran += 1;
                continue;
            }
            (Ok(outputs), Some(expected)) => {
                let verdicts = case.judge(problem, expected, outputs, types);
                let failed = verdicts.iter().filter(|(_, verdict)| !verdict.ok);
                let said: Vec<String> = failed
                    .map(|(name, verdict)| {
                        format!("{name} is off by {:.2} of what is allowed", verdict.worst)
                    })
                    .collect();
                (!said.is_empty()).then(|| said.join(", "))
            }
        };
        match complaint {
            None => {
                println!("pass {id}");
                counts.passed += 1;
            }
            Some(complaint) if case.stretch => {
                println!("fail {id} (stretch, not counted): {complaint}");
                counts.skipped += 1;
            }
            Some(complaint) => {
                println!("fail {id}: {complaint}");
                counts.failed += 1;
            }
        }
    }
    if counts.ran > 0 {
        println!("{} ran without expected values", counts.ran);
    }
    println!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped);
    Ok(counts.failed == 0 && ran.iter().any(|ran| ran.outputs.is_ok()))
}

/// Writes the outputs of the cases that ran.
fn write(path: &Path, ran: &[Ran<'_>], types: judge::Types) -> Result<(), Box<dyn Error>> {
    let mut tensors = Vec::new();
    for Ran { case, outputs, .. } in ran {
        for (name, values) in outputs.iter().flatten() {
            let (dtype, bytes) = encoded(types.of(name), values);
            tensors.push((format!("{}/{name}", case.id), dtype, case.shape_of(name), bytes));
        }
    }
    let mut views = BTreeMap::new();
    for (name, dtype, shape, bytes) in &tensors {
        views.insert(name, TensorView::new(*dtype, shape.clone(), bytes)?);
    }
    safetensors::serialize_to_file(views, None, path)
        .map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}

fn encoded(dtype: DType, values: &[f64]) -> (Dtype, Vec<u8>) {
    match dtype {
        DType::F16 => (Dtype::F16, values.iter().flat_map(|&v| f16::from_f64(v).to_le_bytes()).collect()),
        DType::BF16 => (Dtype::BF16, values.iter().flat_map(|&v| bf16::from_f64(v).to_le_bytes()).collect()),
        _ => (Dtype::F32, values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect()),
    }
}
