//! The layers' gradients against differences of their outputs.

use warpnorm::{Cpu, Result};

use crate::{
    layers::{Batch, Conv, Dense, Init, Layer, MaxPool, Mode, Relu},
    network::cross_entropy,
    norm::Norm,
    rng::Rng,
};

const STEP: f32 = 1e-2;

fn random(rng: &mut Rng, dims: [usize; 4]) -> Batch {
    let mut batch = Batch::zeros(dims);
    batch.data.iter_mut().for_each(|v| *v = rng.normal());
    batch
}

/// A scalar made of the layer's output: the sum of its elements, each scaled by its factor.
fn objective(layer: &mut dyn Layer<Cpu>, x: &Batch, factors: &Batch) -> Result<f64> {
    let y = layer.forward(&Cpu, x.clone(), Mode::Train)?;
    Ok(y.data.iter().zip(&factors.data).map(|(y, f)| f64::from(*y) * f64::from(*f)).sum())
}

fn assert_near(what: &str, index: usize, grad: f32, above: f64, below: f64) {
    let difference = ((above - below) / (2.0 * f64::from(STEP))) as f32;
    assert!(
        (grad - difference).abs() < 1e-2 * (1.0 + grad.abs()),
        "{what}[{index}]: {grad}, by differences {difference}"
    );
}

/// Holds every element of the gradients of input and parameters against a central difference.
fn check(mut layer: impl Layer<Cpu>, x: Batch) -> Result<()> {
    let y = layer.forward(&Cpu, x.clone(), Mode::Train)?;
    let factors = random(&mut Rng::new(7), y.dims);
    let dx = layer.backward(&Cpu, factors.clone())?;
    let grads: Vec<Vec<f32>> = layer.params().iter().map(|param| param.grad.clone()).collect();
    for (i, &grad) in dx.data.iter().enumerate() {
        let [above, below] = [STEP, -STEP].map(|step| {
            let mut moved = x.clone();
            moved.data[i] += step;
            objective(&mut layer, &moved, &factors)
        });
        assert_near("dx", i, grad, above?, below?);
    }
    for (p, grads) in grads.iter().enumerate() {
        for (i, &grad) in grads.iter().enumerate() {
            let [above, below] = [STEP, -STEP].map(|step| {
                let value = layer.params()[p].value[i];
                layer.params()[p].value[i] = value + step;
                let moved = objective(&mut layer, &x, &factors);
                layer.params()[p].value[i] = value;
                moved
            });
            assert_near("parameter", i, grad, above?, below?);
        }
    }
    Ok(())
}

#[test]
fn a_convolution_has_the_gradient_of_its_differences() -> Result<()> {
    let rng = &mut Rng::new(1);
    check(Conv::new(rng, Init::He, 2, 3), random(rng, [2, 3, 4, 2]))
}

#[test]
fn a_dense_layer_has_the_gradient_of_its_differences() -> Result<()> {
    let rng = &mut Rng::new(2);
    check(Dense::new(rng, Init::He, 2 * 2 * 3, 5), random(rng, [3, 2, 2, 3]))
}

/// Values far apart, since within a step of a kink the difference is no gradient.
fn spread(dims: [usize; 4]) -> Batch {
    let mut batch = Batch::zeros(dims);
    let middle = batch.data.len() as f32 / 2.0 + 0.5;
    batch.data.iter_mut().enumerate().for_each(|(i, v)| *v = 0.1 * (i as f32 - middle));
    Rng::new(3).shuffle(&mut batch.data);
    batch
}

#[test]
fn pooling_has_the_gradient_of_its_differences() -> Result<()> {
    check(MaxPool::default(), spread([2, 4, 6, 3]))
}

#[test]
fn a_relu_has_the_gradient_of_its_differences() -> Result<()> {
    check(Relu::default(), spread([1, 2, 3, 4]))
}

#[test]
fn batch_norm_has_the_gradient_of_its_differences() -> Result<()> {
    check(Norm::new(&Cpu, 3)?, random(&mut Rng::new(4), [4, 2, 2, 3]))
}

#[test]
fn cross_entropy_has_the_gradient_of_its_differences() {
    let logits = random(&mut Rng::new(5), [2, 1, 1, 10]);
    let (_, grad) = cross_entropy(logits.clone(), &[3, 9]);
    for (i, &grad) in grad.data.iter().enumerate() {
        let [above, below] = [STEP, -STEP].map(|step| {
            let mut moved = logits.clone();
            moved.data[i] += step;
            f64::from(cross_entropy(moved, &[3, 9]).0)
        });
        assert_near("dlogits", i, grad, above, below);
    }
}
