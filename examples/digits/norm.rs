//! warpnorm's BatchNorm as a layer of the network.

use warpnorm::{Affine, Backend, BatchNorm, BatchNormOutput, Result, RunningStats, Tensor};

use crate::layers::{Batch, Layer, Mode, Param};

/// Batch normalization with a learned weight and bias. In training it normalizes with the statistics of the batch and
/// moves the running statistics; in evaluation it normalizes with those and leaves them alone.
pub(crate) struct Norm<B: Backend> {
    op: BatchNorm,
    weight: Param,
    bias: Param,
    running: RunningStats<B>,
    saved: Option<Saved<B>>,
}

/// What the backward pass reads, on the backend.
struct Saved<B: Backend> {
    x: Tensor<f32, B>,
    weight: Tensor<f32, B>,
    bias: Tensor<f32, B>,
    out: BatchNormOutput<f32, B>,
}

impl<B: Backend> Norm<B> {
    pub(crate) fn new(on: &B, channels: usize) -> Result<Self> {
        Ok(Self {
            op: BatchNorm::new(channels),
            weight: Param::new(vec![1.0; channels]),
            bias: Param::new(vec![0.0; channels]),
            running: RunningStats::new(on, channels)?,
            saved: None,
        })
    }
}

impl<B: Backend> Layer<B> for Norm<B> {
    fn forward(&mut self, on: &B, x: Batch, mode: Mode) -> Result<Batch> {
        let dims = x.dims;
        let x = upload(on, &x)?;
        let weight = Tensor::from_slice(on, &self.weight.value, &[self.weight.value.len()])?;
        let bias = Tensor::from_slice(on, &self.bias.value, &[self.bias.value.len()])?;
        let affine = Affine::f32(&weight, &bias);
        let data = match mode {
            Mode::Eval => self.op.forward_eval(on, &x, affine, &self.running)?.to_vec(on)?,
            Mode::Train => {
                let out = self.op.forward_train(on, &x, affine, Some(&mut self.running))?;
                let data = out.y.to_vec(on)?;
                self.saved = Some(Saved { x, weight, bias, out });
                data
            }
        };
        Ok(Batch { data, dims })
    }

    fn backward(&mut self, on: &B, dy: Batch) -> Result<Batch> {
        let Saved { x, weight, bias, out } = self.saved.take().expect("a training pass went before");
        let grads = self.op.backward_train(on, &x, &upload(on, &dy)?, Affine::f32(&weight, &bias), &out)?;
        for (param, grad) in [(&mut self.weight, grads.dweight), (&mut self.bias, grads.dbias)] {
            param.grad = grad.expect("there is a gradient for each parameter").to_vec(on)?;
        }
        Ok(Batch { data: grads.dx.to_vec(on)?, dims: dy.dims })
    }

    fn params(&mut self) -> Vec<&mut Param> {
        vec![&mut self.weight, &mut self.bias]
    }
}

fn upload<B: Backend>(on: &B, batch: &Batch) -> Result<Tensor<f32, B>> {
    Ok(Tensor::from_slice(on, &batch.data, &batch.dims)?.channels_last())
}
