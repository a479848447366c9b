//! candle's worker. It has no channels-last layout, and no way to hand a gradient to a backward pass: that is asked for
//! by multiplying with `dy` and summing up.

#[path = "../../../../norms/noise.rs"]
mod noise;
mod serve;
#[allow(dead_code)]
#[path = "../../../../norms/suite.rs"]
mod suite;

use candle_core::{DType, Device, Module, ModuleT, Result, Tensor, Var, WithDType, backprop::GradStore};
use candle_nn::{BatchNorm, GroupNorm, LayerNorm, RmsNorm, ops};
use noise::{Noise, enough};
use serve::{Outcome, Outputs, Problem, serve};
use suite::{Case, Layout, Op, Type};
use warpnorm::Element;

const EPS: f64 = 1e-5;

struct Norm {
    case: Case,
    x: Var,
    dy: Tensor,
    weight: Var,
    bias: Var,
    /// For inference.
    running: [Tensor; 2],
    y: Option<Tensor>,
    grads: Option<GradStore>,
}

fn main() -> Outcome {
    let mut noise = Noise::default();
    serve("0.11.1", |case| {
        if case.layout == Layout::Last {
            return Err("no channels-last layout".into());
        }
        if case.call.backward && !case.call.forward {
            return Err("no backward pass alone".into());
        }
        let len = case.len();
        Ok(Box::new(match case.ty {
            Type::F32 => Norm::new(case, enough(&mut noise.f32, len))?,
            Type::F16 => Norm::new(case, enough(&mut noise.f16, len))?,
            Type::Bf16 => Norm::new(case, enough(&mut noise.bf16, len))?,
        }))
    })
}

impl Norm {
    fn new<T: Element + WithDType>(case: &Case, noise: &[T]) -> Result<Self> {
        let (cpu, channels) = (&Device::Cpu, case.channels);
        let tensor = |from: usize| Tensor::from_slice(&noise[from..from + case.len()], &case.dims[..], cpu);
        let param = |from: usize, mean: f32| {
            let values: Vec<f32> = (0..channels).map(|i| mean + noise[i + from].to_f32() / 2.0).collect();
            Var::from_tensor(&Tensor::from_vec(values, channels, cpu)?.to_dtype(<T as WithDType>::DTYPE)?)
        };
        Ok(Self {
            case: case.clone(),
            x: Var::from_tensor(&tensor(0)?)?,
            dy: tensor(1)?,
            weight: param(0, 1.0)?,
            bias: param(1, 0.0)?,
            running: [Tensor::zeros(channels, DType::F32, cpu)?, Tensor::ones(channels, DType::F32, cpu)?],
            y: None,
            grads: None,
        })
    }

    fn forward(&self) -> Result<Tensor> {
        // Without gradients, a tensor that is no variable is not recorded.
        let of = |var: &Var| {
            if self.case.call.backward { var.as_tensor().clone() } else { var.as_detached_tensor() }
        };
        let (x, weight, bias) = (of(&self.x), of(&self.weight), of(&self.bias));
        let channels = self.case.channels;
        match self.case.op {
            Op::BatchNorm => self.batch_norm(&x, weight, bias),
            Op::GroupNorm => {
                let groups = self.case.groups.unwrap_or(1);
                GroupNorm::new(weight, bias, channels, groups, EPS)?.forward(&x)
            }
            Op::InstanceNorm => GroupNorm::new(weight, bias, channels, channels, EPS)?.forward(&x),
            // The fused ops have no backward pass.
            Op::LayerNorm if self.case.call.backward => ops::layer_norm_slow(&x, &weight, &bias, EPS as f32),
            Op::RmsNorm if self.case.call.backward => ops::rms_norm_slow(&x, &weight, EPS as f32),
            Op::LayerNorm => LayerNorm::new(weight, bias, EPS).forward(&x),
            Op::RmsNorm => RmsNorm::new(weight, EPS).forward(&x),
        }
    }

    fn batch_norm(&self, x: &Tensor, weight: Tensor, bias: Tensor) -> Result<Tensor> {
        let [mean, var] = &self.running;
        let training = !self.case.call.eval;
        // Running statistics are updated in f32, but read in the tensor's type.
        let kept = if training { DType::F32 } else { x.dtype() };
        let channels = self.case.channels;
        BatchNorm::new(channels, mean.to_dtype(kept)?, var.to_dtype(kept)?, weight, bias, EPS)?
            .forward_t(x, training)
    }
}

impl Problem for Norm {
    fn call(&mut self) -> Outcome {
        let y = self.forward()?;
        if self.case.call.backward {
            self.grads = Some((&y * &self.dy)?.sum_all()?.backward()?);
        }
        self.y = Some(y);
        Ok(())
    }

    fn outputs(&mut self) -> Outcome<Outputs> {
        let values = |tensor: &Tensor| tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>();
        let mut outputs = Vec::new();
        if let Some(y) = &self.y {
            outputs.push(("y", values(y)?));
        }
        if let Some(grads) = &self.grads {
            for (name, var) in [("dx", &self.x), ("dweight", &self.weight), ("dbias", &self.bias)] {
                if let Some(grad) = grads.get(var.as_tensor()) {
                    outputs.push((name, values(grad)?));
                }
            }
        }
        Ok(outputs)
    }
}
