//! The samples of PyTorch's OpInfo and ModuleInfo, with its outputs and gradients.

use std::{collections::BTreeMap, fs};

use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::{Map, Value};
use warpnorm::{Affine, BatchNorm, Element, Error, RunningStats, Tensor};

use super::blank;
use crate::support::{
    data_dir, expect_all_right,
    golden::numbers,
    judge::{judge, tolerances},
    on_every_backend,
    problem::{Op, Problem, Running, Values},
    reference::reference,
    run::{Options, Sliced, run},
};

on_every_backend!(every_sample_is_within_the_rule);

#[derive(Deserialize)]
struct Manifest {
    cases: Vec<Case>,
}

/// A sample of a function or of a module.
#[derive(Deserialize)]
struct Case {
    id: String,
    #[serde(alias = "op", alias = "module")]
    of: String,
    /// Arguments of a function.
    #[serde(default)]
    attrs: Map<String, Value>,
    /// Arguments of a module.
    #[serde(default)]
    args: Vec<Value>,
    #[serde(default)]
    training: bool,
    tensors: BTreeMap<String, Vec<usize>>,
}

/// What this crate does with a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Judged,
    /// PyTorch computes with a negative `eps`, NaN for the most part.
    NegativeEps,
    /// PyTorch takes a tensor of one dimension where it has no element.
    OneDimension,
}

/// Samples of each function and module, how many of them have a negative `eps`, and how many have one dimension.
const SAMPLES: [(&str, [usize; 3]); 17] = [
    ("BatchNorm1d", [16, 0, 0]),
    ("BatchNorm2d", [14, 0, 0]),
    ("BatchNorm3d", [14, 0, 0]),
    ("GroupNorm", [20, 0, 0]),
    ("InstanceNorm1d", [12, 0, 0]),
    ("InstanceNorm2d", [12, 0, 0]),
    ("InstanceNorm3d", [12, 0, 0]),
    ("LayerNorm", [14, 0, 0]),
    ("RMSNorm", [12, 0, 0]),
    ("native_batch_norm", [10, 0, 0]),
    ("native_group_norm", [21, 4, 0]),
    ("native_layer_norm", [16, 4, 0]),
    ("nn.functional.batch_norm", [10, 0, 2]),
    ("nn.functional.group_norm", [21, 4, 0]),
    ("nn.functional.instance_norm", [9, 0, 0]),
    ("nn.functional.layer_norm", [5, 1, 0]),
    ("nn.functional.rms_norm", [5, 1, 0]),
];

/// Reads all samples and hands each to `answer`, then counts the answers.
fn for_each_sample(mut answer: impl FnMut(&Case, &SafeTensors) -> Answer) {
    let dir = data_dir("pytorch");
    let manifest: Manifest = serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    let file = fs::read(dir.join("pytorch_suite.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(manifest.cases.len(), 239);
    let mut answers = BTreeMap::<&str, [usize; 3]>::new();
    for case in &manifest.cases {
        answers.entry(&case.of).or_default()[answer(case, &file) as usize] += 1;
    }
    assert_eq!(answers, BTreeMap::from(SAMPLES), "samples judged, of a negative eps, of one dimension");
}

fn every_sample_is_within_the_rule<T: Element, B: Sliced>(on: &B) {
    let options = Options::default();
    let types = options.types(T::DTYPE);
    for_each_sample(|case, file| {
        if case.has_one_dimension_too_few() {
            return case.refuses_one_dimension::<T, B>(on);
        }
        let problem = case.problem(file, f32::EPSILON.into()).rounded(types.data, types.affine);
        let got = run::<T, B>(on, &problem, &options);
        if problem.eps < 0.0 {
            assert_eq!(got.unwrap_err(), Error::Eps(problem.eps), "{}", case.id);
            return Answer::NegativeEps;
        }
        let got = got.unwrap_or_else(|error| panic!("{}: {error}", case.id));
        let mut expected = reference(&problem);
        let stored = case.stored(file);
        expected.retain(|name, _| stored.contains_key(name));
        assert_eq!(expected.len(), stored.len(), "{}: tensors that the formulas define", case.id);
        assert!(stored.keys().all(|name| got.contains_key(name)), "{}: outputs", case.id);
        let verdicts = judge(&problem, &expected, &BTreeMap::new(), &got, types);
        expect_all_right(&case.id, &verdicts, &expected, &got);
        Answer::Judged
    });
}

/// What the run above is judged by gives PyTorch's numbers for PyTorch's inputs.
#[test]
fn the_formulas_give_what_pytorch_stores() {
    for_each_sample(|case, file| {
        if case.has_one_dimension_too_few() {
            assert!(numbers(file, &format!("{}/out.y", case.id)).unwrap().unwrap().is_empty());
            return Answer::OneDimension;
        }
        let problem = case.problem(file, f64::EPSILON);
        let formulas = case.exact_reference(&problem);
        let tolerances = tolerances(&problem);
        for (name, stored) in case.stored(file) {
            assert_eq!(stored.len(), formulas[name].len(), "{} {name}", case.id);
            for (i, (&stored, &formula)) in stored.iter().zip(&formulas[name]).enumerate() {
                // A thousandth of what an output may be off by, and what f64 itself cannot tell apart.
                let room = tolerances[name][i] / 1000.0 + 1e-13 * stored.abs().max(1.0);
                let same = (stored - formula).abs() <= room || stored.is_nan() && formula.is_nan();
                assert!(same, "{} {name}[{i}]: {formula:e} instead of {stored:e}", case.id);
            }
        }
        if case.eps(f64::EPSILON) < 0.0 { Answer::NegativeEps } else { Answer::Judged }
    });
}

impl Case {
    fn has(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    fn has_one_dimension_too_few(&self) -> bool {
        let batch_norm = matches!(self.op(), Op::BatchNormTrain | Op::BatchNormEval);
        batch_norm && self.tensors["input"].len() < 2
    }

    fn op(&self) -> Op {
        let flag = |name: &str, default: bool| self.attrs.get(name).map_or(default, |v| v.as_bool().unwrap());
        let batch_norm = |training: bool| if training { Op::BatchNormTrain } else { Op::BatchNormEval };
        let instance_norm = |training: bool| if training { Op::InstanceNorm } else { Op::InstanceNormEval };
        // Modules that track no statistics take those of the batch in inference, too.
        let untracked = !self.has("running_mean");
        match self.of.as_str() {
            "native_batch_norm" | "nn.functional.batch_norm" => batch_norm(flag("training", false)),
            "BatchNorm1d" | "BatchNorm2d" | "BatchNorm3d" => batch_norm(self.training || untracked),
            "nn.functional.instance_norm" => instance_norm(flag("use_input_stats", true)),
            "InstanceNorm1d" | "InstanceNorm2d" | "InstanceNorm3d" => {
                instance_norm(self.training || untracked)
            }
            "native_layer_norm" | "nn.functional.layer_norm" | "LayerNorm" => Op::LayerNorm,
            "nn.functional.rms_norm" | "RMSNorm" => Op::RmsNorm,
            "native_group_norm" | "nn.functional.group_norm" | "GroupNorm" => Op::GroupNorm,
            other => panic!("no op of this crate is PyTorch's {other}"),
        }
    }

    /// An argument of a function by its name, or of a module by its position.
    fn argument(&self, name: &str, position: usize) -> Option<&Value> {
        self.attrs.get(name).or_else(|| self.args.get(position))
    }

    fn eps(&self, epsilon_of_the_type: f64) -> f64 {
        let default = if self.op() == Op::RmsNorm { epsilon_of_the_type } else { 1e-5 };
        let position = if self.op() == Op::GroupNorm { 2 } else { 1 };
        self.argument("eps", position).map_or(default, |eps| eps.as_f64().unwrap())
    }

    /// `None` for the cumulative average.
    fn momentum(&self) -> Option<f64> {
        self.argument("momentum", 2).map_or(Some(0.1), Value::as_f64)
    }

    /// `eps` and momentum rounded down to `f32`, everything else as stored.
    fn problem(&self, file: &SafeTensors, epsilon_of_the_type: f64) -> Problem {
        let tensor = |name: &str| numbers(file, &format!("{}/{name}", self.id)).unwrap();
        let mut dims = self.tensors["input"].clone();
        // The modules of InstanceNorm take a sample without its batch dimension.
        let spatial = self.of.strip_prefix("InstanceNorm").and_then(|rest| rest[..1].parse::<usize>().ok());
        if spatial.is_some_and(|spatial| dims.len() == spatial + 1) {
            dims.insert(0, 1);
        }
        let op = self.op();
        let group_name = if self.of == "native_group_norm" { "group" } else { "num_groups" };
        let mut problem = blank(op, &dims);
        problem.x = vec![tensor("input").unwrap()];
        problem.dy = tensor("dy").unwrap();
        problem.weight = tensor("weight");
        problem.bias = tensor("bias");
        problem.running =
            tensor("running_mean").zip(tensor("running_var")).map(|(mean, var)| Running { mean, var });
        problem.eps = below(self.eps(epsilon_of_the_type));
        problem.momentum = self.momentum().map(below);
        match op {
            Op::LayerNorm | Op::RmsNorm => {
                let shape = self.argument("normalized_shape", 0).unwrap();
                problem.norm_dims = shape.as_array().unwrap().len();
            }
            Op::GroupNorm => {
                problem.groups = self.argument(group_name, 0).unwrap().as_u64().unwrap() as usize;
            }
            _ => {}
        }
        problem
    }

    /// Outputs and gradients by the names of the formulas.
    fn stored(&self, file: &SafeTensors) -> Values {
        let op = self.op();
        let moves_statistics = matches!(op, Op::BatchNormTrain | Op::InstanceNorm);
        let mut stored = Values::new();
        for name in self.tensors.keys() {
            let tensor = |name: &str| numbers(file, &format!("{}/{name}", self.id)).unwrap().unwrap();
            let values = tensor(name);
            let ours = match name.as_str() {
                "input" | "dy" | "weight" | "bias" | "running_mean" | "running_var" => continue,
                "out.y" => "y",
                "out.mean" => "mean",
                "out.rstd" => "rstd",
                "grad.input" => "dx",
                "grad.weight" => "dgamma",
                "grad.bias" => "dbeta",
                "out.save_mean" | "out.save_invstd" if op == Op::BatchNormEval => {
                    assert!(values.is_empty(), "inference saves nothing");
                    continue;
                }
                "out.save_mean" => "batch_mean",
                "out.save_invstd" => "batch_invstd",
                "after.running_mean" if moves_statistics => "running_mean",
                "after.running_var" if moves_statistics => "running_var",
                "after.running_mean" | "after.running_var" => {
                    let before = tensor(name.trim_start_matches("after."));
                    assert_eq!(values, before, "inference leaves the running statistics as they are");
                    continue;
                }
                other => panic!("{} has a tensor {other}", self.id),
            };
            stored.insert(ours, values);
        }
        stored
    }

    /// The formulas with PyTorch's `eps` and momentum in `f64`: between neighboring `f32` both are straight lines to
    /// the last bits of an `f64`.
    fn exact_reference(&self, problem: &Problem) -> Values {
        let (eps, momentum) = (self.eps(f64::EPSILON), self.momentum());
        let above = Problem {
            eps: problem.eps.next_up(),
            momentum: problem.momentum.map(f32::next_up),
            ..problem.clone()
        };
        let share = |exact: f64, below: f32| {
            let (below, above) = (f64::from(below), f64::from(below.next_up()));
            (exact - below) / (above - below)
        };
        let mut values = reference(problem);
        for (name, high) in reference(&above) {
            let share = match (name, momentum, problem.momentum) {
                ("running_mean" | "running_var", Some(exact), Some(below)) => share(exact, below),
                ("running_mean" | "running_var", ..) => 0.0,
                _ => share(eps, problem.eps),
            };
            for (low, high) in values.get_mut(name).unwrap().iter_mut().zip(high) {
                if share > 0.0 {
                    *low += share * (high - *low);
                }
            }
        }
        values
    }

    fn refuses_one_dimension<T: Element, B: Sliced>(&self, on: &B) -> Answer {
        assert_eq!(self.tensors["input"], [0]);
        let x = Tensor::<T, B>::zeros(on, &[0]).unwrap();
        let (bn, running) = (BatchNorm::new(0), RunningStats::new(on, 0).unwrap());
        let answer = match self.op() {
            Op::BatchNormEval => bn.forward_eval(on, &x, Affine::None, &running).map(drop),
            _ => bn.forward_train(on, &x, Affine::None, None).map(drop),
        };
        let refusal = Error::Rank { arg: "x", op: "BatchNorm", expected: "2 to 5", actual: 1 };
        assert_eq!(answer, Err(refusal), "{}", self.id);
        Answer::OneDimension
    }
}

/// The nearest `f32` that is not above `v`.
fn below(v: f64) -> f32 {
    let nearest = v as f32;
    if f64::from(nearest) > v { nearest.next_down() } else { nearest }
}
