//! Times each layer beside `candle_nn`'s, forward, and forward and backward, interleaved in one run.
//!
//! ```text
//! cargo bench -p warpnorm-candle [--features cuda] [-- --seconds 0.3] [--only PART]
//! ```
//!
//! Prints a table of the best times, how many times as fast this crate is, and the lower quartile and geometric mean of that, of
//! the layers and of the fused forms, which are beside `candle_nn`'s layer and candle's other ops.
//! Forward passes are of tensors without history. Forward and backward passes give gradients of `x`, weight and bias: where
//! `candle_nn`'s fused op has none, of the composed ops that it offers beside it (`layer_norm_slow`, `rms_norm_slow`).

use std::{
    env,
    time::{Duration, Instant},
};

use candle::{DType, Device, Module, ModuleT, Result, Tensor, Var};
use candle_nn::ops;
use warpnorm_candle as ours;

const EPS: f64 = 1e-5;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Op {
    LayerNorm,
    /// Of a sum, which is wanted too.
    AddLayerNorm,
    AddRmsNorm,
    GroupNormSilu(usize),
    RmsNorm,
    GroupNorm(usize),
    BatchNormTrain,
    BatchNormEval,
}

const CASES: [(Op, &[usize]); 16] = [
    (Op::AddLayerNorm, &[16, 128, 768]),
    (Op::AddRmsNorm, &[1024, 4096]),
    (Op::GroupNormSilu(32), &[8, 320, 32, 32]),
    (Op::LayerNorm, &[16, 128, 768]),
    (Op::LayerNorm, &[1024, 4096]),
    (Op::LayerNorm, &[8192, 64]),
    (Op::LayerNorm, &[1, 768]),
    (Op::RmsNorm, &[1024, 4096]),
    (Op::RmsNorm, &[16, 128, 768]),
    (Op::RmsNorm, &[1, 4096]),
    (Op::GroupNorm(32), &[8, 320, 32, 32]),
    (Op::GroupNorm(8), &[2, 64, 16, 16]),
    (Op::BatchNormTrain, &[32, 64, 56, 56]),
    (Op::BatchNormTrain, &[64, 32, 8, 8]),
    (Op::BatchNormEval, &[32, 64, 56, 56]),
    (Op::BatchNormEval, &[1, 256, 14, 14]),
];

/// A layer of one of the crates, for tensors with and without history.
type Layer = Box<dyn Fn(&Tensor) -> Result<Tensor>>;

struct Layers {
    theirs: Layer,
    /// Theirs with a backward pass.
    theirs_tracked: Layer,
    ours: Layer,
}

/// Layers and the sum before them, of which `ours` gives both.
fn with_sum(
    theirs: impl Module + 'static,
    theirs_tracked: impl Fn(&Tensor) -> Result<Tensor> + 'static,
    ours: impl Fn(&Tensor) -> Result<(Tensor, Tensor)> + 'static,
) -> Layers {
    let after_sum = |layer: Layer| -> Layer {
        Box::new(move |x| {
            let h = (x + x)?;
            layer(&h)? + h
        })
    };
    Layers {
        theirs: after_sum(Box::new(move |h| theirs.forward(h))),
        theirs_tracked: after_sum(Box::new(theirs_tracked)),
        ours: Box::new(move |x| {
            let (y, h) = ours(x)?;
            y + h
        }),
    }
}

fn layers(op: Op, dims: &[usize], weight: &Tensor, bias: &Tensor) -> Result<Layers> {
    let (w, b) = (|| weight.clone(), || bias.clone());
    let channels = weight.elem_count();
    let module = |module: Box<dyn Module>| -> Layer { Box::new(move |x| module.forward(x)) };
    Ok(match op {
        Op::LayerNorm => {
            let (weight, bias) = (w(), b());
            Layers {
                theirs: module(Box::new(candle_nn::LayerNorm::new(w(), b(), EPS))),
                theirs_tracked: Box::new(move |x| ops::layer_norm_slow(x, &weight, &bias, EPS as f32)),
                ours: module(Box::new(ours::LayerNorm::new(w(), b(), EPS))),
            }
        }
        Op::RmsNorm => {
            let weight = w();
            Layers {
                theirs: module(Box::new(candle_nn::RmsNorm::new(w(), EPS))),
                theirs_tracked: Box::new(move |x| ops::rms_norm_slow(x, &weight, EPS as f32)),
                ours: module(Box::new(ours::RmsNorm::new(w(), EPS))),
            }
        }
        // Residuals are the tensor itself: no other is needed for the time it takes.
        Op::AddLayerNorm => {
            let (weight, bias) = (w(), b());
            let ours = ours::LayerNorm::new(w(), b(), EPS);
            with_sum(
                candle_nn::LayerNorm::new(w(), b(), EPS),
                move |h| ops::layer_norm_slow(h, &weight, &bias, EPS as f32),
                move |x| ours.forward_residual(x, x),
            )
        }
        Op::AddRmsNorm => {
            let weight = w();
            let ours = ours::RmsNorm::new(w(), EPS);
            with_sum(
                candle_nn::RmsNorm::new(w(), EPS),
                move |h| ops::rms_norm_slow(h, &weight, EPS as f32),
                move |x| ours.forward_residual(x, x),
            )
        }
        Op::GroupNormSilu(groups) => {
            let theirs = || -> Result<Layer> {
                let layer = candle_nn::GroupNorm::new(w(), b(), channels, groups, EPS)?;
                Ok(Box::new(move |x| layer.forward(x)?.silu()))
            };
            let layer = ours::GroupNorm::new(w(), b(), channels, groups, EPS)?;
            Layers {
                theirs: theirs()?,
                theirs_tracked: theirs()?,
                ours: Box::new(move |x| layer.forward_fused(x, None, ours::FusedActivation::Silu)),
            }
        }
        Op::GroupNorm(groups) => {
            let theirs = || candle_nn::GroupNorm::new(w(), b(), channels, groups, EPS);
            Layers {
                theirs: module(Box::new(theirs()?)),
                theirs_tracked: module(Box::new(theirs()?)),
                ours: module(Box::new(ours::GroupNorm::new(w(), b(), channels, groups, EPS)?)),
            }
        }
        Op::BatchNormTrain | Op::BatchNormEval => {
            let train = op == Op::BatchNormTrain;
            let device = weight.device();
            // candle_nn takes statistics of the tensor's own type only.
            let mean = || Tensor::zeros(dims[1], weight.dtype(), device);
            let var = || Tensor::ones(dims[1], weight.dtype(), device);
            let theirs = || -> Result<Layer> {
                let layer = candle_nn::BatchNorm::new(channels, mean()?, var()?, w(), b(), EPS)?;
                Ok(Box::new(move |x| layer.forward_t(x, train)))
            };
            let layer = ours::BatchNorm::new(channels, mean()?, var()?, w(), b(), EPS)?;
            Layers {
                theirs: theirs()?,
                theirs_tracked: theirs()?,
                ours: Box::new(move |x| layer.forward_t(x, train)),
            }
        }
    })
}

/// The best times of two calls, taken in turns.
fn best(device: &Device, budget: Duration, calls: [&dyn Fn() -> Result<()>; 2]) -> Result<[f64; 2]> {
    let mut best = [f64::INFINITY; 2];
    let start = Instant::now();
    let mut rounds = 0;
    while rounds < 3 || start.elapsed() < budget {
        for (best, call) in best.iter_mut().zip(calls) {
            let start = Instant::now();
            call()?;
            device.synchronize()?;
            *best = best.min(start.elapsed().as_secs_f64());
        }
        rounds += 1;
    }
    Ok(best)
}

struct Options {
    budget: Duration,
    only: String,
}

/// How many times as fast forward passes are, and both passes together.
fn run(options: &Options, device: &Device, dtype: DType, of_all: &mut [[Vec<f64>; 2]; 2]) -> Result<()> {
    for (op, dims) in CASES {
        let name = format!("{op:?} {dims:?} {dtype:?}");
        if !name.contains(&options.only) {
            continue;
        }
        let is_fused = matches!(op, Op::AddLayerNorm | Op::AddRmsNorm | Op::GroupNormSilu(_));
        let ratios = &mut of_all[usize::from(is_fused)];
        let params = if matches!(op, Op::LayerNorm | Op::RmsNorm | Op::AddLayerNorm | Op::AddRmsNorm) {
            dims[dims.len() - 1]
        } else {
            dims[1]
        };
        let made = |dims: &[usize]| Tensor::randn(0f32, 1.0, dims, device)?.to_dtype(dtype);
        let x = made(dims)?;
        let (weight, bias) = (made(&[params])?, made(&[params])?);
        let of = layers(op, dims, &weight, &bias)?;
        let forward = |layer: &Layer| layer(&x).map(drop);
        if let Err(error) = forward(&of.theirs) {
            let message = error.to_string();
            println!("| {name} | | refused: {} | | |", message.lines().next().unwrap_or_default());
            continue;
        }
        let times = best(device, options.budget, [&|| forward(&of.theirs), &|| forward(&of.ours)])?;
        report(&name, "forward", times, &mut ratios[0]);

        let x = Var::from_tensor(&x)?;
        let (weight, bias) = (Var::from_tensor(&weight)?, Var::from_tensor(&bias)?);
        let of = layers(op, dims, weight.as_tensor(), bias.as_tensor())?;
        let both = |layer: &Layer| -> Result<()> {
            let grads = layer(x.as_tensor())?.backward()?;
            assert!(grads.get(&x).is_some() && grads.get(&weight).is_some(), "{name} has no gradient");
            Ok(())
        };
        let times = best(device, options.budget, [&|| both(&of.theirs_tracked), &|| both(&of.ours)])?;
        report(&name, "both", times, &mut ratios[1]);
    }
    Ok(())
}

fn report(name: &str, direction: &str, [theirs, ours]: [f64; 2], ratios: &mut Vec<f64>) {
    let ratio = theirs / ours;
    println!("| {name} | {direction} | {:.1} | {:.1} | {ratio:.2} |", theirs * 1e6, ours * 1e6);
    ratios.push(ratio);
}

fn summary(direction: &str, mut ratios: Vec<f64>) {
    if ratios.is_empty() {
        return;
    }
    ratios.sort_by(f64::total_cmp);
    let mean = (ratios.iter().map(|r| r.ln()).sum::<f64>() / ratios.len() as f64).exp();
    let (least, quartile) = (ratios[0], ratios[ratios.len() / 4]);
    println!(
        "{direction}: {} cases, least {least:.2}, lower quartile {quartile:.2}, geometric mean {mean:.2}",
        ratios.len()
    );
}

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let value = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    let seconds = value("--seconds").map_or(0.3, |v| v.parse().expect("--seconds takes a number"));
    let only = value("--only").cloned().unwrap_or_default();
    let options = Options { budget: Duration::from_secs_f64(seconds), only };
    let gpu = Device::new_cuda(0).ok();
    for device in [Some(Device::Cpu), gpu].into_iter().flatten() {
        println!("{device:?}\n\n| case | direction | candle_nn, us | warpnorm-candle, us | times as fast |");
        println!("|---|---|---:|---:|---:|");
        let mut all = [const { [Vec::new(), Vec::new()] }; 2];
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            run(&options, &device, dtype, &mut all)?;
        }
        println!();
        for (what, [forward, both]) in ["layers", "fused forms"].into_iter().zip(all) {
            summary(&format!("{what}, forward"), forward);
            summary(&format!("{what}, forward and backward"), both);
        }
    }
    Ok(())
}
