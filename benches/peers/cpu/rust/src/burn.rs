//! burn's worker, on its backend `flex`. It has no channels-last layout, and no way to hand a gradient to a backward pass:
//! that is asked for by multiplying with `dy` and summing up.

#[allow(dead_code)]
#[path = "../../../../norms/noise.rs"]
mod noise;
mod serve;
#[allow(dead_code)]
#[path = "../../../../norms/suite.rs"]
mod suite;

use burn::{
    module::Param,
    nn::{GroupNormConfig, InstanceNormConfig, RmsNormConfig},
    tensor::{DType, Device, Gradients, Tensor, TensorData, module},
};
use noise::{Noise, enough};
use serve::{Outcome, Outputs, Problem, serve};
use suite::{Case, Layout, Op, Type};

const EPS: f64 = 1e-5;

/// With the number of its tensor's dimensions.
struct Norm<const D: usize> {
    case: Case,
    x: Tensor<D>,
    dy: Tensor<D>,
    weight: Tensor<1>,
    bias: Tensor<1>,
    y: Option<Tensor<D>>,
    grads: Option<Gradients>,
}

fn main() -> Outcome {
    let mut noise = Noise::default();
    serve("0.22.1", |case| {
        if case.layout == Layout::Last {
            return Err("no channels-last layout".into());
        }
        if case.call.backward && !case.call.forward {
            return Err("no backward pass alone".into());
        }
        let values = enough(&mut noise.f32, case.len());
        Ok(match case.dims.len() {
            2 => Box::new(Norm::<2>::new(case, values)) as Box<dyn Problem>,
            4 => Box::new(Norm::<4>::new(case, values)),
            _ => return Err("no such dimensions".into()),
        })
    })
}

impl<const D: usize> Norm<D> {
    /// Rounds the values to the case's type.
    fn new(case: &Case, noise: &[f32]) -> Self {
        let cpu = Device::flex();
        let device = if case.call.backward { cpu.autodiff() } else { cpu };
        let dtype = match case.ty {
            Type::F32 => DType::F32,
            Type::F16 => DType::F16,
            Type::Bf16 => DType::BF16,
        };
        let dims: [usize; D] = case.dims.clone().try_into().expect("the caller matched the dimensions");
        let tensor = |from: usize| {
            let values = noise[from..from + case.len()].to_vec();
            Tensor::<D>::from_data(TensorData::new(values, dims), &device).cast(dtype)
        };
        let param = |from: usize, mean: f32| {
            let values = Tensor::<1>::from_data(
                TensorData::new(noise[from..from + case.channels].to_vec(), [case.channels]),
                &device,
            );
            (values.cast(dtype).cast(DType::F32) / 2.0 + mean).cast(dtype)
        };
        let (mut x, mut weight, mut bias) = (tensor(0), param(0, 1.0), param(1, 0.0));
        if case.call.backward {
            x = x.detach().require_grad();
            weight = weight.detach().require_grad();
            bias = bias.detach().require_grad();
        }
        Self { case: case.clone(), x, dy: tensor(1), weight, bias, y: None, grads: None }
    }

    fn forward(&self) -> Tensor<D> {
        let (x, weight, bias) = (self.x.clone(), self.weight.clone(), self.bias.clone());
        let channels = self.case.channels;
        match self.case.op {
            Op::BatchNorm if self.case.call.eval => {
                let (mean, var) = (bias.zeros_like(), weight.ones_like());
                module::batch_norm(x, weight, bias, mean, var, EPS)
            }
            Op::BatchNorm => module::batch_norm_train(x, weight, bias, EPS).output,
            Op::LayerNorm => module::layer_norm(x, weight, Some(bias), EPS),
            Op::RmsNorm => {
                let mut norm = RmsNormConfig::new(channels).with_epsilon(EPS).init(&x.device());
                norm.gamma = Param::from_tensor(weight);
                norm.forward(x)
            }
            Op::GroupNorm => {
                let groups = self.case.groups.unwrap_or(1);
                let mut norm = GroupNormConfig::new(groups, channels).init(&x.device());
                norm.gamma = Some(Param::from_tensor(weight));
                norm.beta = Some(Param::from_tensor(bias));
                norm.forward(x)
            }
            Op::InstanceNorm => {
                let mut norm = InstanceNormConfig::new(channels).init(&x.device());
                norm.gamma = Some(Param::from_tensor(weight));
                norm.beta = Some(Param::from_tensor(bias));
                norm.forward(x)
            }
        }
    }
}

impl<const D: usize> Problem for Norm<D> {
    fn call(&mut self) -> Outcome {
        let y = self.forward();
        if self.case.call.backward {
            self.grads = Some((y.clone() * self.dy.clone()).sum().backward());
        }
        self.y = Some(y);
        Ok(())
    }

    fn outputs(&mut self) -> Outcome<Outputs> {
        fn values<const D: usize>(tensor: Tensor<D>) -> Outcome<Vec<f32>> {
            let data = tensor.cast(DType::F32).into_data();
            data.try_to_vec::<f32>().map_err(|error| format!("{error:?}").into())
        }
        let mut outputs = Vec::new();
        if let Some(y) = &self.y {
            outputs.push(("y", values(y.clone())?));
        }
        if let Some(grads) = &self.grads {
            let dx = self.x.grad(grads).map(values).transpose()?;
            let dweight = self.weight.grad(grads).map(values).transpose()?;
            let dbias = self.bias.grad(grads).map(values).transpose()?;
            for (name, grad) in [("dx", dx), ("dweight", dweight), ("dbias", dbias)] {
                outputs.extend(grad.map(|grad| (name, grad)));
            }
        }
        Ok(outputs)
    }
}
