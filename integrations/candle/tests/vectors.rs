//! The core crate's golden vectors through the layers, judged by the same rule.

use std::path::Path;

use candle::{DType, Device, Module, Result, Tensor, Var};
use warpnorm_candle::{BatchNorm, GroupNorm, InstanceNorm, LayerNorm, ModuleT, RmsNorm, warpnorm};

use super::{
    devices, flat,
    golden::{read, read_expected},
    judge::Types,
    problem::{Op, Problem, Values},
};

/// candle's name of a type.
fn candle_type(dtype: warpnorm::DType) -> DType {
    match dtype {
        warpnorm::DType::F32 => DType::F32,
        warpnorm::DType::F16 => DType::F16,
        warpnorm::DType::BF16 => DType::BF16,
        other => panic!("{other:?} is new"),
    }
}

fn variable(values: &[f64], dims: &[usize], dtype: DType, device: &Device) -> Result<Var> {
    let values = Tensor::from_slice(values, dims, &Device::Cpu)?.to_dtype(DType::F32)?;
    Var::from_tensor(&values.to_dtype(dtype)?.to_device(device)?)
}

/// What a layer gives for a problem, as far as it has it; `None` where no layer is made for it.
fn run(problem: &Problem, types: Types, device: &Device) -> Result<Option<Values>> {
    let [data, params] = [types.data, types.affine].map(candle_type);
    let is_last = problem.layout == warpnorm::Layout::ChannelsLast && problem.dims.len() > 2;
    let dims = match problem.op.is_row_norm() {
        true => {
            let (rows, cols) = problem.dims.split_at(problem.dims.len() - problem.norm_dims);
            vec![rows.iter().product(), cols.iter().product()]
        }
        false => problem.dims.clone(),
    };
    let len = match problem.op.is_row_norm() {
        true => dims[1],
        false if is_last => dims[dims.len() - 1],
        false => dims[1],
    };
    let rank = dims.len();
    // Channels last are seen as candle sees them: in the second place, with strides.
    let seen = |t: &Tensor| match is_last {
        true => t.permute([0, rank - 1].into_iter().chain(1..rank - 1).collect::<Vec<_>>()),
        false => Ok(t.clone()),
    };
    let stored = |t: &Tensor| match is_last {
        true => t.permute([0].into_iter().chain(2..rank).chain([1]).collect::<Vec<_>>()),
        false => Ok(t.clone()),
    };
    let param = |values: &Option<Vec<f64>>, missing: f64| {
        variable(values.as_ref().unwrap_or(&vec![missing; len]), &[len], params, device)
    };
    let (weight, bias) = (param(&problem.weight, 1.0)?, param(&problem.bias, 0.0)?);
    let (w, b) = (weight.as_tensor().clone(), bias.as_tensor().clone());
    let eps = f64::from(problem.eps);
    let mut values = Values::new();
    let mut last = None;
    for x in &problem.x {
        let x = variable(x, &dims, data, device)?;
        let at = seen(&x)?;
        let y = match problem.op {
            Op::LayerNorm => LayerNorm::new(w.clone(), b.clone(), eps).forward(&at)?,
            Op::RmsNorm => RmsNorm::new(w.clone(), eps).forward(&at)?,
            Op::GroupNorm => GroupNorm::new(w.clone(), b.clone(), len, problem.groups, eps)?.forward(&at)?,
            Op::InstanceNorm => InstanceNorm::new_affine(len, w.clone(), b.clone(), eps).forward(&at)?,
            Op::BatchNormTrain | Op::BatchNormEval => {
                let Some(momentum) = problem.momentum else { return Ok(None) };
                if !(0.0..=1.0).contains(&momentum) {
                    return Ok(None);
                }
                let before = |name: &str, missing: f64| {
                    let of_steps =
                        values.get(name).map(|values: &Vec<f64>| values[values.len() - len..].to_vec());
                    let at_first = problem
                        .running
                        .as_ref()
                        .map(|r| if name == "running_mean" { &r.mean } else { &r.var });
                    let values = of_steps.or(at_first.cloned()).unwrap_or(vec![missing; len]);
                    Tensor::from_vec(values, len, &Device::Cpu)?.to_dtype(DType::F32)?.to_device(device)
                };
                let (mean, var) = (before("running_mean", 0.0)?, before("running_var", 1.0)?);
                let momentum = f64::from(momentum);
                let norm = BatchNorm::new_with_momentum(len, mean, var, w.clone(), b.clone(), eps, momentum)?;
                let y = norm.forward_t(&at, problem.op == Op::BatchNormTrain)?;
                if problem.op == Op::BatchNormTrain && problem.running.is_some() {
                    values.entry("running_mean").or_default().extend(flat(norm.running_mean()));
                    values.entry("running_var").or_default().extend(flat(norm.running_var()));
                }
                y
            }
            Op::InstanceNormEval => return Ok(None),
        };
        last = Some((x, y));
    }
    let Some((x, y)) = last else { return Ok(None) };
    let dy = variable(&problem.dy, &dims, data, device)?;
    let grads = backward_of(&y, &seen(dy.as_tensor())?)?;
    values.insert("y", flat(&stored(&y)?));
    values.insert("dx", flat(grads.get(&x).expect("x has a gradient")));
    if problem.weight.is_some() {
        values.insert("dgamma", flat(grads.get(&weight).expect("weight has a gradient")));
    }
    if problem.bias.is_some() && problem.op != Op::RmsNorm {
        values.insert("dbeta", flat(grads.get(&bias).expect("bias has a gradient")));
    }
    Ok(Some(values))
}

/// Gradients where that of `y` is `dy`, with no rounding or overflow in between.
fn backward_of(y: &Tensor, dy: &Tensor) -> Result<candle::backprop::GradStore> {
    // candle begins with ones: the gradient of a product with a constant is the constant.
    (y * dy.detach())?.backward()
}

#[test]
fn golden_vectors() -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden");
    let folder = read(&dir).unwrap();
    let expected = read_expected(&dir, &folder.cases).unwrap().unwrap();
    for device in devices() {
        for (data, affine, cases) in [
            (warpnorm::DType::F32, warpnorm::DType::F32, 158),
            (warpnorm::DType::F16, warpnorm::DType::F32, 45),
            (warpnorm::DType::F16, warpnorm::DType::F16, 45),
            (warpnorm::DType::BF16, warpnorm::DType::F32, 45),
        ] {
            let types = || Types { data, affine, grads: affine };
            let (mut judged, mut wrong) = (0, Vec::new());
            for case in folder.cases.iter().filter(|case| !case.stretch) {
                let Some(problem) = case.problem(types()) else { continue };
                let Some(got) = run(&problem, types(), &device)? else { continue };
                let mut expected = expected[&case.id].clone();
                expected.retain(|name, _| got.contains_key(name));
                let verdicts = case.judge(&problem, &expected, &got, types());
                assert!(verdicts.contains_key("y") && verdicts.contains_key("dx"), "{}", case.id);
                wrong.extend(verdicts.iter().filter(|(_, v)| !v.ok).map(|(name, v)| {
                    format!("{}: {name}[{}] is {:.3} times as far off as it may be", case.id, v.at, v.worst)
                }));
                judged += 1;
            }
            assert!(wrong.is_empty(), "{data:?}, {affine:?}:\n{}", wrong.join("\n"));
            assert_eq!(judged, cases, "cases of {data:?}");
        }
    }
    Ok(())
}
