//! What `candle_nn` 0.11 does wrong on inputs that these layers are right on. A test that fails here is good news: candle has
//! mended it, and the README's table is to say so.

use candle::{Device, Module, Result, Tensor, Var};
use candle_nn::VarMap;
use warpnorm_candle as ours;

use super::{assert_near, backward, flat, gradient, tensor};

#[test]
fn its_layer_norm_loses_all_gradients() -> Result<()> {
    let device = &Device::Cpu;
    let [x, weight, bias] =
        [[4, 16].as_slice(), &[16], &[16]].map(|dims| Var::from_tensor(&tensor(dims, 1, device)).unwrap());
    let parameters = || (weight.as_tensor().clone(), bias.as_tensor().clone());
    let dy = tensor(&[4, 16], 7, device);

    let (w, b) = parameters();
    let y = candle_nn::LayerNorm::new(w, b, 1e-5).forward(&x)?;
    let grads = backward(&y, &dy)?;
    for (name, var) in [("x", &x), ("weight", &weight), ("bias", &bias)] {
        assert!(grads.get(var).is_none(), "good news: candle_nn's LayerNorm has a gradient for {name} now");
    }

    let (w, b) = parameters();
    let y = ours::LayerNorm::new(w, b, 1e-5).forward(&x)?;
    let grads = backward(&y, &dy)?;
    for (name, var) in [("x", &x), ("weight", &weight), ("bias", &bias)] {
        assert!(flat(gradient(name, &grads, var)).iter().any(|v| *v != 0.0), "{name}");
    }
    Ok(())
}

#[test]
fn its_layer_norm_gives_nan_at_a_large_mean() -> Result<()> {
    let device = &Device::Cpu;
    let (rows, cols) = (64, 1024);
    let x = (tensor(&[rows, cols], 1, device) + 10_000.0)?;
    let (ones, zeros) =
        (Tensor::ones(cols, candle::DType::F32, device)?, Tensor::zeros(cols, candle::DType::F32, device)?);

    let theirs = candle_nn::LayerNorm::new(ones.clone(), zeros.clone(), 1e-5).forward(&x)?;
    assert!(
        flat(&theirs).iter().any(|v| v.is_nan()),
        "good news: candle_nn's LayerNorm takes large means now"
    );

    let exact = x.to_dtype(candle::DType::F64)?;
    let centered = exact.broadcast_sub(&exact.mean_keepdim(1)?)?;
    let want = centered.broadcast_div(&(centered.sqr()?.mean_keepdim(1)? + 1e-5)?.sqrt()?)?;
    let y = ours::LayerNorm::new(ones, zeros, 1e-5).forward(&x)?;
    // The mean is 10,000 times the spread, and rounded to f32.
    assert_near("y", &y, &want, 1e-3);
    Ok(())
}

/// Not a fault, but what the migration rests on: variables of one map, found under the same names.
#[test]
fn its_variables_are_ours() -> Result<()> {
    let vars = VarMap::new();
    let vb = candle_nn::VarBuilder::from_varmap(&vars, candle::DType::F32, &Device::Cpu);
    candle_nn::layer_norm(4, 1e-5, vb.pp("a"))?;
    candle_nn::rms_norm(4, 1e-5, vb.pp("b"))?;
    candle_nn::batch_norm(4, 1e-5, vb.pp("c"))?;
    candle_nn::group_norm(2, 4, 1e-5, vb.pp("d"))?;
    let before = vars.data().lock().unwrap().len();
    ours::layer_norm(4, 1e-5, vb.pp("a"))?;
    ours::rms_norm(4, 1e-5, vb.pp("b"))?;
    ours::batch_norm(4, 1e-5, vb.pp("c"))?;
    ours::group_norm(2, 4, 1e-5, vb.pp("d"))?;
    assert_eq!((before, vars.data().lock().unwrap().len()), (9, 9));
    Ok(())
}
