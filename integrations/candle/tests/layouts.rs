//! What is contiguous, what is not, and what is refused.

use candle::{DType, Device, Module, ModuleT, Result, Tensor, Var};
use warpnorm_candle::{BatchNorm, FusedActivation, GroupNorm, InstanceNorm, LayerNorm, RmsNorm};

use super::{assert_near, backward, devices, flat, gradient, tensor};

fn group_norm(channels: usize, device: &Device) -> Result<GroupNorm> {
    GroupNorm::new(tensor(&[channels], 2, device), tensor(&[channels], 3, device), channels, 2, 1e-5)
}

#[test]
fn channels_last_stay_there() -> Result<()> {
    for device in devices() {
        let norm = group_norm(6, &device)?;
        let last = Var::from_tensor(&tensor(&[2, 5, 7, 6], 1, &device))?;
        let first = Var::from_tensor(&last.permute((0, 3, 1, 2))?.contiguous()?)?;
        let y = norm.forward(&last.permute((0, 3, 1, 2))?)?;
        assert!(y.permute((0, 2, 3, 1))?.is_contiguous(), "the output lies as the input does");
        let want = norm.forward(&first)?;
        assert_near("y", &y, &want, 1e-6);
        let dy = tensor(want.dims(), 7, &device);
        let (grads, wanted) = (backward(&y, &dy)?, backward(&want, &dy)?);
        let dx = gradient("x", &grads, &last).permute((0, 3, 1, 2))?;
        assert_near("dx", &dx, gradient("x", &wanted, &first), 1e-6);
    }
    Ok(())
}

#[test]
fn other_strides_are_copied() -> Result<()> {
    for device in devices() {
        let x = Var::from_tensor(&tensor(&[9, 6, 8], 1, &device))?;
        let contiguous = Var::from_tensor(&x.transpose(0, 2)?.contiguous()?)?;
        let layer_norm = LayerNorm::new(tensor(&[9], 2, &device), tensor(&[9], 3, &device), 1e-5);
        let group_norm = group_norm(6, &device)?;
        let layers: [&dyn Module; 2] = [&layer_norm, &group_norm];
        for layer in layers {
            let (y, want) = (layer.forward(&x.transpose(0, 2)?)?, layer.forward(&contiguous)?);
            assert_eq!(flat(&y), flat(&want));
            let dy = tensor(want.dims(), 7, &device);
            let (grads, wanted) = (backward(&y, &dy)?, backward(&want, &dy)?);
            let dx = gradient("x", &grads, &x).transpose(0, 2)?;
            assert_eq!(flat(&dx), flat(gradient("x", &wanted, &contiguous)));
        }
    }
    Ok(())
}

#[test]
fn rows_from_the_middle_of_a_tensor() -> Result<()> {
    for device in devices() {
        let x = Var::from_tensor(&tensor(&[9, 16], 1, &device))?;
        let norm = RmsNorm::new(tensor(&[16], 2, &device), 1e-5);
        let (y, whole) = (norm.forward(&x.narrow(0, 3, 4)?)?, norm.forward(&x)?);
        assert_eq!(flat(&y), flat(&whole.narrow(0, 3, 4)?));
        let dx = flat(gradient("x", &backward(&y, &tensor(&[4, 16], 7, &device))?, &x));
        assert!(
            dx[..48].iter().chain(&dx[112..]).all(|v| *v == 0.0) && dx[48..112].iter().all(|v| *v != 0.0)
        );
    }
    Ok(())
}

#[test]
fn only_what_is_tracked_has_a_gradient() -> Result<()> {
    for device in devices() {
        let x = tensor(&[4, 16], 1, &device);
        let (weight, bias) = (Var::from_tensor(&tensor(&[16], 2, &device))?, tensor(&[16], 3, &device));
        let y = LayerNorm::new(weight.as_tensor().clone(), bias.clone(), 1e-5).forward(&x)?;
        let grads = backward(&y, &tensor(&[4, 16], 7, &device))?;
        gradient("weight", &grads, &weight);
        assert!(grads.get(&x).is_none() && grads.get(&bias).is_none());
        let y = LayerNorm::new(weight.as_detached_tensor(), bias, 1e-5).forward(&x)?;
        assert!(!y.track_op(), "nothing is kept for a backward pass that there will not be");
    }
    Ok(())
}

/// The message of an error, which there must be.
#[track_caller]
fn refused(result: Result<Tensor>, parts: &[&str]) {
    let message = result.map(|y| format!("{:?}", y.shape())).unwrap_err().to_string();
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[test]
fn errors_name_what_is_wrong() -> Result<()> {
    let device = &Device::Cpu;
    let x = tensor(&[4, 16], 1, device);
    let of = |len| tensor(&[len], 2, device);
    refused(LayerNorm::new(of(15), of(15), 1e-5).forward(&x), &["x", "15", "16"]);
    refused(LayerNorm::new(of(16), of(15), 1e-5).forward(&x), &["`bias`", "15", "16"]);
    refused(LayerNorm::new_no_bias(tensor(&[4, 4], 2, device), 1e-5).forward(&x), &["rank"]);
    let half = of(16).to_dtype(DType::F16)?;
    refused(LayerNorm::new(half.clone(), half.clone(), 1e-5).forward(&x), &["`weight`", "F16", "F32"]);
    let mixed = LayerNorm::new(half, of(16), 1e-5).forward(&x.to_dtype(DType::F16)?);
    refused(mixed, &["`bias`", "F32", "F16"]);
    refused(RmsNorm::new(of(16), 1e-5).forward(&x.to_dtype(DType::F64)?), &["rms-norm", "F64"]);
    let norm = RmsNorm::new(of(16), 1e-5);
    refused(
        norm.forward_residual(&x, &tensor(&[5, 16], 1, device)).map(|both| both.0),
        &["`residual`", "[5, 16]"],
    );
    refused(group_norm(6, device)?.forward(&tensor(&[2, 8, 3], 1, device)), &["x", "8 channels", "6"]);
    // In the dimensions of the caller, who sees the channels in the second place.
    let (last, other) = (tensor(&[2, 4, 5, 6], 1, device), tensor(&[2, 6, 5, 4], 1, device));
    let fused = group_norm(6, device)?.forward_fused(
        &last.permute((0, 3, 1, 2))?,
        Some(&other),
        FusedActivation::None,
    );
    refused(fused, &["`residual`", "[2, 6, 5, 4]", "[2, 6, 4, 5]"]);
    // Beside a residual both are stacked.
    let norm = InstanceNorm::new_affine(6, of(6), of(5), 1e-5);
    refused(norm.forward_fused(&other, Some(&other), FusedActivation::None), &["`bias`", "[5]", "[6]"]);
    assert!(GroupNorm::new(of(6), of(6), 6, 4, 1e-5).is_err());
    let nan = BatchNorm::new_no_bias(6, of(6), of(6), f64::NAN).unwrap_err().to_string();
    assert!(nan.contains("eps") && nan.contains("NaN"), "{nan}");
    let whole = Tensor::ones(6, DType::U32, device)?;
    assert!(BatchNorm::new_no_bias(6, whole.clone(), whole, 1e-5).unwrap_err().to_string().contains("U32"));
    Ok(())
}

#[test]
fn a_refused_batch_leaves_the_running_statistics() -> Result<()> {
    let device = &Device::Cpu;
    let statistics = || Tensor::new(&[0.5f32, 0.5], device);
    let norm = BatchNorm::new_no_bias(2, statistics()?, statistics()?, 1e-5)?;
    // One value per channel has no variance; `candle_nn` gives NaN.
    refused(norm.forward_t(&tensor(&[1, 2, 1], 1, device), true), &["x"]);
    refused(norm.forward_t(&tensor(&[4, 3, 2], 1, device), true), &["3 channels", "2"]);
    assert_eq!(flat(norm.running_mean()), [0.5, 0.5]);
    assert_eq!(flat(norm.running_var()), [0.5, 0.5]);
    let wrong = BatchNorm::new_no_bias(3, statistics()?, statistics()?, 1e-5).unwrap_err().to_string();
    assert!(wrong.contains("running_mean") && wrong.contains("[3]") && wrong.contains("[2]"), "{wrong}");
    Ok(())
}

#[test]
fn any_number_of_positions() -> Result<()> {
    for device in devices() {
        let norm = group_norm(6, &device)?;
        let dims = [2, 6, 2, 1, 3, 2];
        let x = Var::from_tensor(&tensor(&dims, 1, &device))?;
        let flat_x = Var::from_tensor(&x.reshape((2, 6, 12))?)?;
        let last = Var::from_tensor(&x.permute([0, 2, 3, 4, 5, 1].to_vec())?.contiguous()?)?;
        let want = norm.forward(&flat_x)?;
        let dy = tensor(&[2, 6, 12], 7, &device);
        let wanted = backward(&want, &dy)?;
        let seen = last.permute([0, 5, 1, 2, 3, 4].to_vec())?;
        for (x, var, back) in [(x.as_tensor(), &x, [0, 1, 2, 3, 4, 5]), (&seen, &last, [0, 5, 1, 2, 3, 4])] {
            let y = norm.forward(x)?;
            assert_near("y", &y.reshape((2, 6, 12))?, &want, 1e-6);
            let grads = backward(&y, &dy.reshape(&dims)?)?;
            let dx = gradient("x", &grads, var).permute(back.to_vec())?.reshape((2, 6, 12))?;
            assert_near("dx", &dx, gradient("x", &wanted, &flat_x), 1e-6);
        }
    }
    Ok(())
}

#[test]
fn a_backward_pass_goes_by_the_statistics_of_its_forward_pass() -> Result<()> {
    for device in devices() {
        let statistics = |value: f32| Tensor::full(value, 6, &device);
        let norm = BatchNorm::new_no_bias(6, statistics(0.0)?, statistics(1.0)?, 0.0)?;
        let x = Var::from_tensor(&tensor(&[5, 6, 7], 1, &device))?;
        let y = norm.forward_t(&x, false)?;
        norm.forward_t(&(x.as_detached_tensor() * 100.0)?, true)?;
        let dx = flat(gradient("x", &y.sum_all()?.backward()?, &x));
        assert!(dx.iter().all(|v| *v == 1.0), "{dx:?}");
    }
    Ok(())
}
