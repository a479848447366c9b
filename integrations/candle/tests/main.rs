//! The layers beside candle's composed ops, the golden vectors of the core crate, and `candle_nn`'s layers.

// The core crate's judge and vectors; its tests use more of each than these do.
#[allow(dead_code)]
#[path = "../../../tests/support/golden.rs"]
mod golden;
#[allow(dead_code)]
#[path = "../../../tests/support/judge.rs"]
mod judge;
#[allow(dead_code)]
#[path = "../../../tests/support/problem.rs"]
mod problem;
#[allow(dead_code)]
#[path = "../../../tests/support/reference.rs"]
mod reference;

mod candle_nn_today;
mod composed;
mod drop_in;
mod layouts;
mod vectors;

use candle::{Device, Result, Tensor, Var, backprop::GradStore};

/// The CPU, and the first GPU where there is one: with `WARPNORM_REQUIRE_GPU=1` its absence is a failure.
fn devices() -> Vec<Device> {
    let required = std::env::var_os("WARPNORM_REQUIRE_GPU").is_some_and(|v| v == "1");
    match Device::new_cuda(0) {
        Ok(gpu) => vec![Device::Cpu, gpu],
        Err(error) if required => panic!("WARPNORM_REQUIRE_GPU is set: {error}"),
        Err(_) => vec![Device::Cpu],
    }
}

/// Numbers between -1 and 2, some apart from each other.
fn numbers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i + seed) * 2_654_435_761 % 3001) as f32 / 1000.0 - 1.0).collect()
}

fn tensor(dims: &[usize], seed: usize, device: &Device) -> Tensor {
    Tensor::from_vec(numbers(dims.iter().product(), seed), dims, device).unwrap()
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.to_dtype(candle::DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The gradient of `sum(y * dy)`.
fn backward(y: &Tensor, dy: &Tensor) -> Result<GradStore> {
    (y * dy.to_dtype(y.dtype())?)?.sum_all()?.backward()
}

/// Panics where a tensor is further from what is wanted than this part of the largest value wanted.
#[track_caller]
fn assert_near(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (flat(got), flat(want));
    let scale = want.iter().fold(0.0f64, |scale, v| scale.max(v.abs()));
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        // Not `>`, which NaN passes.
        let near = (got - want).abs() <= tolerance * scale;
        assert!(near, "{what}: element {i} is {got} instead of {want}, beside a largest of {scale}");
    }
}

/// The gradient of a variable, which there must be.
#[track_caller]
fn gradient<'a>(what: &str, grads: &'a GradStore, var: &Var) -> &'a Tensor {
    grads.get(var).unwrap_or_else(|| panic!("{what} has no gradient"))
}
