//! Values and gradients beside the same formulas in candle's own ops, in F64.

use candle::{D, DType, Device, Module, ModuleT, Result, Tensor, Var};
use warpnorm_candle::{BatchNorm, FusedActivation, GroupNorm, InstanceNorm, LayerNorm, RmsNorm};

use super::{assert_near, backward, devices, gradient, tensor};

/// Rounding of a type, and of sums of some hundred values.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 4e-6,
        DType::F16 => 1e-3,
        _ => 8e-3,
    }
}

/// The types of `x`, and of weight and bias.
const TYPES: [(DType, DType); 5] = [
    (DType::F32, DType::F32),
    (DType::F16, DType::F16),
    (DType::F16, DType::F32),
    (DType::BF16, DType::BF16),
    (DType::BF16, DType::F32),
];

/// A variable of a type, and one of the same values in F64 on the CPU.
fn pair(dims: &[usize], seed: usize, dtype: DType, device: &Device) -> Result<(Var, Var)> {
    let var = Var::from_tensor(&tensor(dims, seed, device).to_dtype(dtype)?)?;
    let exact = Var::from_tensor(&var.to_device(&Device::Cpu)?.to_dtype(DType::F64)?)?;
    Ok((var, exact))
}

/// Asserts that a layer gives the values of a formula, and gradients for all variables.
fn check(
    what: &str,
    dtype: DType,
    vars: &[(&str, &(Var, Var))],
    layer: impl Fn(&[&Tensor]) -> Result<Tensor>,
    formula: impl Fn(&[&Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let ours: Vec<&Tensor> = vars.iter().map(|(_, (var, _))| var.as_tensor()).collect();
    let exact: Vec<&Tensor> = vars.iter().map(|(_, (_, exact))| exact.as_tensor()).collect();
    let (y, want) = (layer(&ours)?, formula(&exact)?);
    assert_eq!(y.dtype(), dtype, "{what}");
    assert_near(&format!("{what}: y"), &y.to_device(&Device::Cpu)?, &want, tolerance(dtype));
    let dy = tensor(y.dims(), 77, &Device::Cpu).to_dtype(dtype)?;
    let grads = backward(&y, &dy.to_device(y.device())?)?;
    let wanted = backward(&want, &dy.to_dtype(DType::F64)?)?;
    for (name, (var, exact)) in vars {
        let what = format!("{what}: gradient of {name}");
        let (got, want) = (gradient(&what, &grads, var), gradient(&what, &wanted, exact));
        assert_eq!(got.dtype(), var.dtype(), "{what}");
        assert_near(&what, &got.to_device(&Device::Cpu)?, want, 4.0 * tolerance(var.dtype()));
    }
    Ok(())
}

fn rows(x: &Tensor, remove_mean: bool, eps: f64) -> Result<Tensor> {
    let x = if remove_mean { x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)? } else { x.clone() };
    x.broadcast_div(&(x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?)
}

#[test]
fn layer_norm_and_rms_norm() -> Result<()> {
    for device in devices() {
        for (dtype, params) in TYPES {
            for dims in [vec![7, 35], vec![2, 3, 64], vec![5, 1000]] {
                let cols = dims[dims.len() - 1];
                let x = pair(&dims, 1, dtype, &device)?;
                let (weight, bias) = (pair(&[cols], 2, params, &device)?, pair(&[cols], 3, params, &device)?);
                let what = format!("{dims:?} of {dtype:?} with {params:?}");
                check(
                    &format!("LayerNorm {what}"),
                    dtype,
                    &[("x", &x), ("weight", &weight), ("bias", &bias)],
                    |v| LayerNorm::new(v[1].clone(), v[2].clone(), 1e-5).forward(v[0]),
                    |v| rows(v[0], true, 1e-5)?.broadcast_mul(v[1])?.broadcast_add(v[2]),
                )?;
                check(
                    &format!("LayerNorm without bias {what}"),
                    dtype,
                    &[("x", &x), ("weight", &weight)],
                    |v| LayerNorm::new_no_bias(v[1].clone(), 1e-3).forward(v[0]),
                    |v| rows(v[0], true, 1e-3)?.broadcast_mul(v[1]),
                )?;
                check(
                    &format!("RmsNorm {what}"),
                    dtype,
                    &[("x", &x), ("weight", &weight)],
                    |v| RmsNorm::new(v[1].clone(), 1e-5).forward(v[0]),
                    |v| rows(v[0], false, 1e-5)?.broadcast_mul(v[1]),
                )?;
            }
        }
    }
    Ok(())
}

#[test]
fn rows_with_a_residual() -> Result<()> {
    for device in devices() {
        let dims = [2, 3, 35];
        let (x, residual) = (pair(&dims, 1, DType::F32, &device)?, pair(&dims, 5, DType::F32, &device)?);
        let (weight, bias) = (pair(&[35], 2, DType::F32, &device)?, pair(&[35], 3, DType::F32, &device)?);
        // Both outputs are used.
        let sum = |(y, h): (Tensor, Tensor)| y + (h * 0.5)?;
        check(
            "LayerNorm with a residual",
            DType::F32,
            &[("x", &x), ("residual", &residual), ("weight", &weight), ("bias", &bias)],
            |v| sum(LayerNorm::new(v[2].clone(), v[3].clone(), 1e-5).forward_residual(v[0], v[1])?),
            |v| {
                let h = (v[0] + v[1])?;
                sum((rows(&h, true, 1e-5)?.broadcast_mul(v[2])?.broadcast_add(v[3])?, h))
            },
        )?;
        // Only one is.
        check(
            "RmsNorm with a residual",
            DType::F32,
            &[("x", &x), ("residual", &residual), ("weight", &weight)],
            |v| Ok(RmsNorm::new(v[2].clone(), 1e-5).forward_residual(v[0], v[1])?.0),
            |v| rows(&(v[0] + v[1])?, false, 1e-5)?.broadcast_mul(v[2]),
        )?;
    }
    Ok(())
}

/// One value per channel, for a tensor of this rank.
fn of_channels(values: &Tensor, rank: usize) -> Result<Tensor> {
    let dims: Vec<usize> = (0..rank).map(|d| if d == 1 { values.elem_count() } else { 1 }).collect();
    values.reshape(dims)
}

/// Means of all but some leading dimensions.
fn grouped(x: &Tensor, groups: usize, eps: f64) -> Result<Tensor> {
    let dims = x.dims().to_vec();
    rows(&x.reshape((dims[0] * groups, ()))?, true, eps)?.reshape(dims)
}

fn batch(x: &Tensor, eps: f64) -> Result<Tensor> {
    let swapped = x.transpose(0, 1)?.contiguous()?;
    let normed = rows(&swapped.flatten_from(1)?, true, eps)?;
    normed.reshape(swapped.dims())?.transpose(0, 1)
}

fn scaled(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(&of_channels(weight, x.rank())?)?.broadcast_add(&of_channels(bias, x.rank())?)
}

#[test]
fn norms_of_channels() -> Result<()> {
    for device in devices() {
        for (dtype, params) in TYPES {
            for dims in [vec![5, 6, 7], vec![2, 12, 5, 9]] {
                let channels = dims[1];
                let x = pair(&dims, 1, dtype, &device)?;
                let (weight, bias) =
                    (pair(&[channels], 2, params, &device)?, pair(&[channels], 3, params, &device)?);
                let vars = [("x", &x), ("weight", &weight), ("bias", &bias)];
                let what = format!("{dims:?} of {dtype:?} with {params:?}");
                check(
                    &format!("GroupNorm {what}"),
                    dtype,
                    &vars,
                    |v| GroupNorm::new(v[1].clone(), v[2].clone(), channels, 3, 1e-5)?.forward(v[0]),
                    |v| scaled(&grouped(v[0], 3, 1e-5)?, v[1], v[2]),
                )?;
                check(
                    &format!("InstanceNorm {what}"),
                    dtype,
                    &vars,
                    |v| InstanceNorm::new_affine(channels, v[1].clone(), v[2].clone(), 1e-5).forward(v[0]),
                    |v| scaled(&grouped(v[0], channels, 1e-5)?, v[1], v[2]),
                )?;
                let (mean, var) = (tensor(&[channels], 8, &device), (tensor(&[channels], 9, &device) + 1.5)?);
                let layer = |v: &[&Tensor]| {
                    let (weight, bias) = (v[1].clone(), v[2].clone());
                    BatchNorm::new(channels, mean.copy()?, var.copy()?, weight, bias, 1e-5)
                };
                check(
                    &format!("BatchNorm in training {what}"),
                    dtype,
                    &vars,
                    |v| layer(v)?.forward_t(v[0], true),
                    |v| scaled(&batch(v[0], 1e-5)?, v[1], v[2]),
                )?;
                let exact = |t: &Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F64);
                let (mean_f64, std) = (exact(&mean)?, (exact(&var)? + 1e-5)?.sqrt()?);
                check(
                    &format!("BatchNorm in inference {what}"),
                    dtype,
                    &vars,
                    |v| layer(v)?.forward_t(v[0], false),
                    |v| {
                        let rank = v[0].rank();
                        let centered = v[0].broadcast_sub(&of_channels(&mean_f64, rank)?)?;
                        scaled(&centered.broadcast_div(&of_channels(&std, rank)?)?, v[1], v[2])
                    },
                )?;
            }
        }
    }
    Ok(())
}

#[test]
fn fused_forms_of_channels() -> Result<()> {
    for device in devices() {
        let dims = [3, 6, 5, 4];
        let (x, residual) = (pair(&dims, 1, DType::F32, &device)?, pair(&dims, 5, DType::F32, &device)?);
        let (weight, bias) = (pair(&[6], 2, DType::F32, &device)?, pair(&[6], 3, DType::F32, &device)?);
        let vars = [("x", &x), ("weight", &weight), ("bias", &bias), ("residual", &residual)];
        let statistics = || (tensor(&[6], 8, &device), tensor(&[6], 9, &device).abs().unwrap());
        let silu = FusedActivation::Silu;
        check(
            "GroupNorm, residual and SiLU",
            DType::F32,
            &vars,
            |v| {
                let norm = GroupNorm::new(v[1].clone(), v[2].clone(), 6, 2, 1e-5)?;
                norm.forward_fused(v[0], Some(v[3]), silu)
            },
            |v| (scaled(&grouped(v[0], 2, 1e-5)?, v[1], v[2])? + v[3])?.silu(),
        )?;
        check(
            "GroupNorm and SiLU",
            DType::F32,
            &vars[..3],
            |v| GroupNorm::new(v[1].clone(), v[2].clone(), 6, 2, 1e-5)?.forward_fused(v[0], None, silu),
            |v| scaled(&grouped(v[0], 2, 1e-5)?, v[1], v[2])?.silu(),
        )?;
        check(
            "BatchNorm, residual and ReLU",
            DType::F32,
            &vars,
            |v| {
                let (mean, var) = statistics();
                let norm = BatchNorm::new(6, mean, var, v[1].clone(), v[2].clone(), 1e-5)?;
                norm.forward_t_fused(v[0], Some(v[3]), FusedActivation::Relu, true)
            },
            |v| (scaled(&batch(v[0], 1e-5)?, v[1], v[2])? + v[3])?.relu(),
        )?;
        check(
            "InstanceNorm without parameters, residual",
            DType::F32,
            &[("x", &x), ("residual", &residual)],
            |v| InstanceNorm::new(6, 1e-5).forward_fused(v[0], Some(v[1]), FusedActivation::None),
            |v| grouped(v[0], 6, 1e-5)? + v[1],
        )?;
    }
    Ok(())
}

#[test]
fn running_statistics_move_as_in_pytorch() -> Result<()> {
    for device in devices() {
        for dtype in [DType::F32, DType::F16] {
            let statistics = |value: f32| Tensor::full(value, 6, &device)?.to_dtype(dtype);
            let norm =
                BatchNorm::new_no_bias_with_momentum(6, statistics(0.25)?, statistics(2.0)?, 1e-5, 0.3)?;
            let x = tensor(&[5, 6, 7], 1, &device).to_dtype(dtype)?;
            norm.forward_train(&x)?;
            let values = x.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.transpose(0, 1)?.flatten_from(1)?;
            let mean = values.mean_keepdim(1)?;
            let var = values.broadcast_sub(&mean)?.sqr()?.sum(1)?.affine(1.0 / 34.0, 0.0)?;
            let mean = (mean.flatten_all()? * 0.3)?.affine(1.0, 0.7 * 0.25)?;
            let cpu = |t: &Tensor| t.to_device(&Device::Cpu);
            assert_near("running mean", &cpu(norm.running_mean())?, &mean, tolerance(dtype));
            let var = (var * 0.3)?.affine(1.0, 0.7 * 2.0)?;
            assert_near("running variance", &cpu(norm.running_var())?, &var, tolerance(dtype));
        }
    }
    Ok(())
}
