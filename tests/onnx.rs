//! The node cases of ONNX's backend suite, from the files it ships and by its own tolerance.

use std::{collections::BTreeMap, fs};

use safetensors::SafeTensors;
use serde::Deserialize;
use warpnorm::{DType, Element};

use crate::{
    pytorch::blank,
    support::{
        check, data_dir,
        golden::numbers,
        on_every_backend,
        problem::{Op, Problem, Running, Values},
        run::{Options, Sliced},
    },
};

on_every_backend!(every_node_case_gives_what_onnx_expects);

#[derive(Deserialize)]
struct Manifest {
    default_tolerance: Tolerance,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Tolerance {
    rtol: f64,
    atol: f64,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    op: String,
    attrs: Attributes,
    inputs: BTreeMap<String, Vec<usize>>,
    outputs: BTreeMap<String, Vec<usize>>,
}

#[derive(Deserialize)]
struct Attributes {
    #[serde(default)]
    epsilon: f64,
    momentum: Option<f64>,
    #[serde(default)]
    training_mode: u32,
    axis: Option<isize>,
    axes: Option<Vec<usize>>,
    num_groups: Option<usize>,
}

/// Sixteen-bit types, which ONNX has no cases for, are judged by the rule.
fn every_node_case_gives_what_onnx_expects<T: Element, B: Sliced>(on: &B) {
    let dir = data_dir("onnx");
    let manifest: Manifest = serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    let file = fs::read(dir.join("onnx.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let Tolerance { rtol, atol } = manifest.default_tolerance;
    assert_eq!((rtol, atol), (1e-3, 1e-7));

    let mut ran = BTreeMap::<&str, usize>::new();
    for case in &manifest.cases {
        let tensor = |name: &str| numbers(&file, &format!("{}/{name}", case.id)).unwrap();
        let problem = case.problem(tensor);
        let got = case.as_onnx(&problem, check::<T, B>(on, &problem, &Options::default()));
        *ran.entry(&case.op).or_default() += 1;
        if T::DTYPE != DType::F32 {
            continue;
        }
        for name in case.outputs.keys() {
            let expected = tensor(&format!("out.{name}")).unwrap();
            let got = &got[name.as_str()];
            assert_eq!(got.len(), expected.len(), "{} {name}", case.id);
            for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
                assert!(
                    (got - expected).abs() <= atol + rtol * expected.abs(),
                    "{} {name}[{i}] is {got:e} instead of {expected:e}",
                    case.id
                );
            }
        }
    }
    let expected = [
        ("BatchNormalization", 9),
        ("GroupNormalization", 2),
        ("InstanceNormalization", 2),
        ("LayerNormalization", 19),
        ("MeanVarianceNormalization", 1),
        ("RMSNormalization", 19),
    ];
    assert_eq!(ran, BTreeMap::from(expected), "cases of each op");
}

impl Case {
    fn problem(&self, tensor: impl Fn(&str) -> Option<Vec<f64>>) -> Problem {
        let Self { attrs, .. } = self;
        let dims = &self.inputs["x"];
        let training = attrs.training_mode == 1;
        let op = match self.op.as_str() {
            "BatchNormalization" if !training => Op::BatchNormEval,
            "BatchNormalization" => Op::BatchNormTrain,
            "LayerNormalization" => Op::LayerNorm,
            "RMSNormalization" => Op::RmsNorm,
            "GroupNormalization" => Op::GroupNorm,
            "InstanceNormalization" => Op::InstanceNorm,
            // Over all axes but that of the channels.
            "MeanVarianceNormalization" if attrs.axes.as_deref() == Some(&[0, 2, 3]) => Op::BatchNormTrain,
            other => panic!("no op of this crate is ONNX's {other}"),
        };
        let rank = dims.len() as isize;
        let mut problem = blank(op, dims);
        problem.x = vec![tensor("x").unwrap()];
        problem.weight = tensor("scale");
        problem.bias = tensor("bias");
        problem.eps = attrs.epsilon as f32;
        problem.norm_dims = attrs.axis.map_or(0, |axis| (rank - axis.rem_euclid(rank)) as usize);
        problem.groups = attrs.num_groups.unwrap_or(1);
        problem.running = tensor("mean").zip(tensor("var")).map(|(mean, var)| Running { mean, var });
        // ONNX's is the weight of the old value.
        problem.momentum = attrs.momentum.map(|keep| (1.0 - keep) as f32);
        problem
    }

    /// The outputs by ONNX's names, the running variance as the average of biased variances that it is there.
    fn as_onnx(&self, problem: &Problem, mut got: Values) -> Values {
        if let Some(running) = problem.tracked() {
            let count = problem.last_x().len() as f64 / problem.channels() as f64;
            let keep = 1.0 - f64::from(problem.momentum.unwrap());
            let unbiased = got.get_mut("running_var").unwrap();
            for (var, old) in unbiased.iter_mut().zip(&running.var) {
                *var = (*var - keep * old) * (count - 1.0) / count + keep * old;
            }
        }
        let rstd = got.get("rstd").cloned();
        got.extend(rstd.map(|rstd| ("inv_std_dev", rstd)));
        got
    }
}
