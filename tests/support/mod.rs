//! What the tests share: backends to run on, data, and the rule that outputs are judged by.

use std::{
    collections::BTreeMap,
    env,
    io::{self, Write},
    path::PathBuf,
    sync::Once,
};

use warpnorm::{Cuda, Element, Result};

pub(crate) mod data;
#[allow(dead_code)] // the example `verify` shares it and writes files
pub(crate) mod golden;
pub(crate) mod judge;
pub(crate) mod problem;
pub(crate) mod reference;
pub(crate) mod run;

use judge::Verdict;
use problem::{Op, Problem, Values};
use run::{Options, Sliced};

/// Makes tests of generic functions: `claim::<T, B>(&on)` for every element type and backend.
///
/// A test of the GPU passes where there is none, after saying `skipped`; see [`gpu`].
macro_rules! on_every_backend {
    ($($claim:ident),+ $(,)?) => {$(
        mod $claim {
            use warpnorm::{Cpu, half::{bf16, f16}};
            #[cfg(feature = "emulator")]
            use warpnorm::Emulated;
            use super::$claim as claim;
            use $crate::support::gpu;

            #[test]
            fn cpu_f32() {
                claim::<f32, _>(&Cpu);
            }
            #[test]
            fn cpu_f16() {
                claim::<f16, _>(&Cpu);
            }
            #[test]
            fn cpu_bf16() {
                claim::<bf16, _>(&Cpu);
            }

            #[test]
            fn cuda_f32() {
                gpu().iter().for_each(claim::<f32, _>);
            }
            #[test]
            fn cuda_f16() {
                gpu().iter().for_each(claim::<f16, _>);
            }
            #[test]
            fn cuda_bf16() {
                gpu().iter().for_each(claim::<bf16, _>);
            }

            #[cfg(feature = "emulator")]
            #[test]
            fn emulated_f32() {
                claim::<f32, _>(&Emulated::new());
            }
            #[cfg(feature = "emulator")]
            #[test]
            fn emulated_f16() {
                claim::<f16, _>(&Emulated::new());
            }
            #[cfg(feature = "emulator")]
            #[test]
            fn emulated_bf16() {
                claim::<bf16, _>(&Emulated::new());
            }
        }
    )+};
}
pub(crate) use on_every_backend;

/// The first GPU, or `None` after saying so once. With `WARPNORM_REQUIRE_GPU=1` a missing GPU is a failure, so that a
/// run that was meant to have one cannot pass by skipping.
pub(crate) fn gpu() -> Option<Cuda> {
    static SAID: Once = Once::new();
    match Cuda::new(0) {
        Ok(on) => Some(on),
        Err(error) if env::var_os("WARPNORM_REQUIRE_GPU").is_some_and(|v| v == "1") => {
            panic!("WARPNORM_REQUIRE_GPU is set: {error}")
        }
        Err(error) => {
            // Not `eprintln!`, which the test harness keeps to itself where a test passes.
            SAID.call_once(|| drop(writeln!(io::stderr(), "skipped: {error}")));
            None
        }
    }
}

/// Whether shapes must be small: the emulator's access checker does about a million elements a second, and
/// compute-sanitizer, for which `WARPNORM_SMALL_SHAPES=1` asks, is slow too.
pub(crate) fn small() -> bool {
    cfg!(feature = "emulator-check") || env::var_os("WARPNORM_SMALL_SHAPES").is_some()
}

/// A file or folder of `tests/data`, or of the folder that `WARPNORM_TEST_DATA` names in its place.
pub(crate) fn data_dir(name: &str) -> PathBuf {
    let dir = env::var_os("WARPNORM_TEST_DATA").map(PathBuf::from);
    dir.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data")).join(name)
}

/// Runs the problem, rounded to the types of the run, and panics unless every output is within the rule.
pub(crate) fn check<T: Element, B: Sliced>(on: &B, problem: &Problem, options: &Options) -> Values {
    let types = options.types(T::DTYPE);
    let problem = problem.rounded(types.data, types.affine);
    let got = expect(&problem, options, run::run::<T, B>(on, &problem, options));
    let expected = reference::reference(&problem);
    let verdicts = judge::judge(&problem, &expected, &BTreeMap::new(), &got, types);
    expect_all_right(&format!("{} {options:?}", describe(&problem)), &verdicts, &expected, &got);
    got
}

/// The run's outputs, which must be there.
fn expect(problem: &Problem, options: &Options, got: Result<Values>) -> Values {
    got.unwrap_or_else(|error| panic!("{} {options:?}: {error}", describe(problem)))
}

/// The outputs for a problem that is not judged. Its numbers must be exact in the types of the run.
pub(crate) fn outputs<T: Element, B: Sliced>(on: &B, problem: &Problem, options: &Options) -> Values {
    expect(problem, options, run::run::<T, B>(on, problem, options))
}

/// Panics with every tensor that is off, its worst element first.
pub(crate) fn expect_all_right(
    what: &str,
    verdicts: &BTreeMap<&'static str, Verdict>,
    expected: &Values,
    got: &Values,
) {
    let mut complaints = Vec::new();
    for (name, Verdict { worst, at, .. }) in verdicts.iter().filter(|(_, verdict)| !verdict.ok) {
        let found = match (got.get(name), expected.get(name)) {
            (Some(got), Some(expected)) => format!("{:e} instead of {:e}", got[*at], expected[*at]),
            _ => format!("{:e}", got["y"][*at]),
        };
        complaints.push(format!("\n  {name}[{at}] is {found}, {worst:.3} of what is allowed"));
    }
    assert!(complaints.is_empty(), "{what}:{}", complaints.concat());
}

/// The problem without its elements.
pub(crate) fn describe(problem: &Problem) -> String {
    let Problem { op, dims, layout, statistics, virtual_batch, norm_dims, groups, .. } = problem;
    let Problem { activation, weight_offset, eps, momentum, .. } = problem;
    let over = match op {
        op if op.is_row_norm() => format!("over {norm_dims}, offset {weight_offset}"),
        Op::GroupNorm => format!("{layout:?} in {groups} groups, {activation:?}"),
        _ => format!("{layout:?} {statistics:?} {virtual_batch:?}, {activation:?}"),
    };
    let extras = [
        (problem.residual.is_some(), ", residual"),
        (problem.dh.is_some(), ", dh"),
        (problem.old_grads.is_some(), ", accumulating"),
    ];
    let extras: String = extras.iter().filter(|(there, _)| *there).map(|(_, extra)| *extra).collect();
    let parameters = match (&problem.weight, &problem.bias) {
        (Some(_), Some(_)) => "weight and bias",
        (Some(_), None) => "weight",
        (None, Some(_)) => "bias",
        (None, None) => "no parameters",
    };
    format!("{op:?} {dims:?} {over}, {parameters}{extras}, eps {eps}, momentum {momentum:?}")
}

/// Panics unless each of `samples`, which share no statistics, gives the same bits alone and among the others.
pub(crate) fn expect_the_same_alone<T: Element, B: Sliced>(on: &B, problem: &Problem, samples: &[usize]) {
    let all = outputs::<T, B>(on, problem, &Options::default());
    for &sample in samples {
        let of = |values: &[f64]| {
            let len = values.len() / problem.dims[0];
            values[sample * len..(sample + 1) * len].to_vec()
        };
        let mut alone = problem.clone();
        (alone.dims[0], alone.x, alone.dy) = (1, vec![of(&problem.x[0])], of(&problem.dy));
        let mut got = outputs::<T, B>(on, &alone, &Options::default());
        got.retain(|name, _| ["y", "dx", "mean", "var", "rstd"].contains(name));
        let want = got.keys().map(|&name| (name, of(&all[name]))).collect();
        expect_same_bits(&format!("sample {sample} of {}", describe(problem)), &got, &want);
    }
}

/// The bits of every tensor, for comparisons that no rounding may pass. All NaN are one.
pub(crate) fn bits(values: &Values) -> BTreeMap<&'static str, Vec<u64>> {
    let bits = |v: &f64| if v.is_nan() { f64::NAN.to_bits() } else { v.to_bits() };
    values.iter().map(|(&name, values)| (name, values.iter().map(bits).collect())).collect()
}

/// Panics unless every tensor of `got` has the bits that it has in `want`, which may hold more.
pub(crate) fn expect_same_bits(what: &str, got: &Values, want: &Values) {
    let want = bits(want);
    for (name, got) in bits(got) {
        assert_eq!(got.len(), want[name].len(), "{what}: elements of {name}");
        let differs = got.iter().zip(&want[name]).position(|(got, want)| got != want);
        if let Some(at) = differs {
            let (got, want) = (f64::from_bits(got[at]), f64::from_bits(want[name][at]));
            panic!("{what}: {name}[{at}] is {got:e} instead of {want:e}");
        }
    }
}
