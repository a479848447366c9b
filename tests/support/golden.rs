//! Folders of golden vectors: `manifest.json`, `inputs.safetensors` and, where there is one, `expected.safetensors`.

use std::{collections::BTreeMap, error::Error, fs, path::Path};

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use warpnorm::{
    Activation, DType, Layout, Statistics,
    half::{bf16, f16},
};

use super::{
    judge::{Types, Verdict, judge},
    problem::{Op, Problem, Running, Values},
    reference::reference,
};

/// A folder's cases, without their expected values.
pub(crate) struct Folder {
    /// Those of ops that the crate has.
    pub(crate) cases: Vec<Case>,
    /// How many are of other ops.
    pub(crate) unknown: usize,
}

/// A case of an op that the crate has.
pub(crate) struct Case {
    pub(crate) id: String,
    problem: Problem,
    /// A failure is worth knowing but allowed: `f32` accumulation does not reach that far.
    pub(crate) stretch: bool,
    /// Every input is exact in `f16`.
    fits_f16: bool,
    /// How far the expected values may be off themselves, by tensor.
    spread: BTreeMap<String, f64>,
    steps: usize,
    unspecified: Vec<String>,
}

/// A case of the manifest, as far as it is read.
#[derive(Deserialize)]
struct Entry {
    id: String,
    op: String,
    layout: String,
    shape: Vec<usize>,
    storage: String,
    tier: String,
    eps_exact: f64,
    momentum_exact: Option<f64>,
    #[serde(default)]
    nbt_start: u64,
    #[serde(default = "one")]
    steps: usize,
    #[serde(default)]
    norm_ndim: usize,
    #[serde(default)]
    groups: usize,
    /// Tensors in which the peer and the formulas differ in where NaN and infinity fall.
    #[serde(default)]
    unspecified: Vec<String>,
    #[serde(default)]
    ref_err: BTreeMap<String, f64>,
}

fn one() -> usize {
    1
}

#[derive(Deserialize)]
struct Manifest {
    cases: Vec<Entry>,
}

/// Reads the manifest and the inputs of the ops that the crate has.
pub(crate) fn read(dir: &Path) -> Result<Folder, Box<dyn Error>> {
    let manifest: Manifest = serde_json::from_slice(&read_file(dir, "manifest.json")?)?;
    let inputs = read_file(dir, "inputs.safetensors")?;
    let inputs = SafeTensors::deserialize(&inputs)?;
    let mut folder = Folder { cases: Vec::new(), unknown: 0 };
    for entry in manifest.cases {
        match Op::named(&entry.op) {
            Some(op) => folder.cases.push(Case::new(op, entry, &inputs)?),
            None => folder.unknown += 1,
        }
    }
    Ok(folder)
}

/// The expected values of each case that has any, by its id; `None` where the folder has none.
pub(crate) fn read_expected(
    dir: &Path,
    cases: &[Case],
) -> Result<Option<BTreeMap<String, Values>>, Box<dyn Error>> {
    if !dir.join("expected.safetensors").exists() {
        return Ok(None);
    }
    let file = read_file(dir, "expected.safetensors")?;
    let file = SafeTensors::deserialize(&file)?;
    let mut expected = BTreeMap::new();
    for case in cases {
        let mut values = Values::new();
        let specified = |name: &&&str| !case.unspecified.iter().any(|other| other == **name);
        for &name in case.problem.op.tensors().iter().filter(specified) {
            values.extend(numbers(&file, &format!("{}/{name}", case.id))?.map(|v| (name, v)));
        }
        if !values.is_empty() {
            expected.insert(case.id.clone(), values);
        }
    }
    Ok(Some(expected))
}

fn read_file(dir: &Path, name: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let path = dir.join(name);
    fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()).into())
}

/// The elements of a tensor, `None` where the file has none of that name.
pub(crate) fn numbers(file: &SafeTensors, name: &str) -> Result<Option<Vec<f64>>, Box<dyn Error>> {
    let Ok(tensor) = file.tensor(name) else { return Ok(None) };
    let bytes = tensor.data();
    let values = match tensor.dtype() {
        Dtype::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).into()).collect(),
        Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).into()).collect(),
        other => return Err(format!("`{name}` is of type {other:?}").into()),
    };
    Ok(Some(values))
}

impl Case {
    fn new(op: Op, entry: Entry, inputs: &SafeTensors) -> Result<Self, Box<dyn Error>> {
        let Entry { id, shape: dims, steps, .. } = entry;
        let input = |name: &str| numbers(inputs, &format!("{id}/{name}"));
        let needed = |name: &str| -> Result<Vec<f64>, Box<dyn Error>> {
            Ok(input(name)?.ok_or_else(|| format!("`{id}/{name}` is missing from the inputs"))?)
        };
        let x = needed("x")?;
        let len = x.len() / steps.max(1);
        if x.len() != dims.iter().product::<usize>() * steps {
            return Err(
                format!("`{id}/x` has {} elements, {dims:?} in {steps} steps need others", x.len()).into()
            );
        }
        let running = match (input("running_mean_in")?, input("running_var_in")?) {
            (Some(mean), Some(var)) => Some(Running { mean, var }),
            _ => None,
        };
        let problem = Problem {
            op,
            layout: if entry.layout == "NHWC" { Layout::ChannelsLast } else { Layout::ChannelsFirst },
            statistics: Statistics::PerChannel,
            virtual_batch: None,
            norm_dims: entry.norm_ndim,
            groups: entry.groups,
            x: (0..steps).map(|step| x[step * len..(step + 1) * len].to_vec()).collect(),
            residual: None,
            dy: needed("dy")?,
            dh: None,
            weight: input("gamma")?,
            bias: input("beta")?,
            weight_offset: 0.0,
            activation: Activation::None,
            eps: entry.eps_exact as f32,
            running,
            momentum: entry.momentum_exact.map(|m| m as f32),
            batches: entry.nbt_start,
            old_grads: None,
            data: None,
            dims,
        };
        Ok(Self {
            problem,
            stretch: entry.tier == "stretch",
            fits_f16: entry.storage == "f16",
            spread: entry.ref_err,
            steps,
            unspecified: entry.unspecified,
            id,
        })
    }

    /// The problem in these types, `None` where its inputs do not allow them.
    pub(crate) fn problem(&self, types: Types) -> Option<Problem> {
        (types.data == DType::F32 || self.fits_f16).then(|| self.problem.rounded(types.data, types.affine))
    }

    /// The shape of one of the case's tensors.
    pub(crate) fn shape_of(&self, tensor: &str) -> Vec<usize> {
        let Problem { op, dims, norm_dims, groups, .. } = &self.problem;
        let channels = || self.problem.channels();
        let rows = || match &dims[..dims.len() - norm_dims] {
            [] => vec![1],
            rows => rows.to_vec(),
        };
        match (op, tensor) {
            (_, "y" | "dx") => dims.clone(),
            (op, "dgamma" | "dbeta") if op.is_row_norm() => dims[dims.len() - norm_dims..].to_vec(),
            (_, "dgamma" | "dbeta") => vec![channels()],
            (_, "running_mean" | "running_var") => vec![self.steps, channels()],
            (op, _) if op.is_row_norm() => rows(),
            (Op::GroupNorm, _) => vec![dims[0], *groups],
            (Op::InstanceNorm, _) => vec![dims[0], channels()],
            _ => vec![channels()],
        }
    }

    /// Judges a run's outputs by the folder's expected values. In `bf16`, which those were not made for, by the
    /// formulas applied to the rounded inputs.
    pub(crate) fn judge(
        &self,
        problem: &Problem,
        expected: &Values,
        got: &Values,
        types: Types,
    ) -> BTreeMap<&'static str, Verdict> {
        if types.data != DType::BF16 {
            return judge(problem, expected, &self.spread, got, types);
        }
        let mut formulas = reference(problem);
        formulas.retain(|name, _| expected.contains_key(name));
        judge(problem, &formulas, &BTreeMap::new(), got, types)
    }
}
