//! The call of a case, through the public API, on buffers made beforehand.

use warpnorm::{
    Activation, Affine, AffineGrad, Backend, BatchNorm, BatchNormBackwardEval, BatchNormBackwardTrain,
    BatchNormEval, BatchNormTrain, Element, GroupNorm, GroupNormBackward, GroupNormForward, InstanceNorm,
    LayerNorm, LayerNormBackward, LayerNormForward, Residual, Result, RmsNorm, RmsNormBackward,
    RmsNormForward, RunningStats, Tensor, View, Workspace,
};

use crate::suite::{Call, Case, Layout, Op};

enum Norm {
    Batch(BatchNorm),
    Group(GroupNorm),
    Instance(InstanceNorm),
    Layer(LayerNorm),
    Rms(RmsNorm),
}

impl Norm {
    fn new(case: &Case) -> Self {
        let activation = match (case.call.relu, case.call.silu) {
            (true, _) => Activation::Relu,
            (_, true) => Activation::Silu,
            _ => Activation::None,
        };
        match case.op {
            Op::BatchNorm => Self::Batch(BatchNorm::new(case.channels).activation(activation)),
            Op::GroupNorm => {
                let groups = case.groups.expect("the suite says how many groups");
                Self::Group(GroupNorm::new(groups, case.channels).activation(activation))
            }
            Op::InstanceNorm => Self::Instance(InstanceNorm::new(case.channels).activation(activation)),
            Op::LayerNorm => Self::Layer(LayerNorm::new(case.channels)),
            Op::RmsNorm => Self::Rms(RmsNorm::new(case.channels)),
        }
    }

    /// Means and reciprocal standard deviations that a forward pass saves.
    fn saved(&self, case: &Case) -> usize {
        match self {
            Self::Batch(_) => case.channels,
            Self::Group(_) => case.dims[0] * case.groups.unwrap_or(1),
            Self::Instance(_) => case.dims[0] * case.channels,
            Self::Layer(_) | Self::Rms(_) => case.dims[0],
        }
    }

    fn workspace<T: Element, B: Backend>(&self, on: &B, x: &Tensor<T, B>) -> Result<Workspace<B>> {
        match self {
            Self::Batch(norm) => norm.workspace(on, x),
            Self::Group(norm) => norm.workspace(on, x),
            Self::Instance(norm) => norm.workspace(on, x),
            Self::Layer(norm) => norm.workspace(on, x),
            Self::Rms(norm) => norm.workspace(on, x),
        }
    }

    /// The forward pass of the norms whose buffers are a BatchNorm's.
    fn train<T: Element, B: Backend>(&self, on: &B, args: BatchNormTrain<'_, T, B>) -> Result<()> {
        match self {
            Self::Batch(norm) => norm.forward_train_into(on, args),
            Self::Instance(norm) => norm.forward_into(on, args),
            _ => unreachable!("this norm has buffers of its own"),
        }
    }

    /// Their backward pass.
    fn train_backward<T: Element, B: Backend>(
        &self,
        on: &B,
        args: BatchNormBackwardTrain<'_, T, B>,
    ) -> Result<()> {
        match self {
            Self::Batch(norm) => norm.backward_train_into(on, args),
            Self::Instance(norm) => norm.backward_into(on, args),
            _ => unreachable!("this norm has buffers of its own"),
        }
    }
}

/// Weight and bias, or their gradients, in the type that PyTorch keeps them in: f32 for BatchNorm and InstanceNorm, the
/// tensor's own for the others.
enum Params<T: Element, B: Backend> {
    F32(Tensor<f32, B>, Tensor<f32, B>),
    /// RMSNorm has no bias.
    Same(Tensor<T, B>, Option<Tensor<T, B>>),
}

impl<T: Element, B: Backend> Params<T, B> {
    /// The weight and bias of each channel are made of its number.
    fn new(on: &B, case: &Case, weight: impl Fn(usize) -> f32, bias: impl Fn(usize) -> f32) -> Result<Self> {
        fn upload<P: Element, B: Backend>(
            on: &B,
            len: usize,
            value: impl Fn(usize) -> f32,
        ) -> Result<Tensor<P, B>> {
            let values: Vec<P> = (0..len).map(|i| P::from_f32(value(i))).collect();
            Tensor::from_slice(on, &values, &[len])
        }
        let len = case.channels;
        Ok(match case.op {
            Op::BatchNorm | Op::InstanceNorm => Self::F32(upload(on, len, weight)?, upload(on, len, bias)?),
            Op::RmsNorm => Self::Same(upload(on, len, weight)?, None),
            _ => Self::Same(upload(on, len, weight)?, Some(upload(on, len, bias)?)),
        })
    }

    fn affine(&self) -> Affine<'_, T, B> {
        match self {
            Self::F32(weight, bias) => Affine::f32(weight, bias),
            Self::Same(weight, bias) => {
                Affine::Same { weight: Some(weight.data()), bias: bias.as_ref().map(Tensor::data) }
            }
        }
    }

    fn grads(&mut self) -> AffineGrad<'_, T, B> {
        match self {
            Self::F32(weight, bias) => {
                AffineGrad::F32 { dweight: Some(weight.data_mut()), dbias: Some(bias.data_mut()) }
            }
            Self::Same(weight, bias) => AffineGrad::Same {
                dweight: Some(weight.data_mut()),
                dbias: bias.as_mut().map(Tensor::data_mut),
            },
        }
    }
}

/// The buffers of a case.
pub(crate) struct Problem<T: Element, B: Backend> {
    on: B,
    case: Case,
    norm: Norm,
    x: Tensor<T, B>,
    /// Backward.
    dy: Option<Tensor<T, B>>,
    /// With a residual: that, or for the row norms' backward pass the gradient that reaches the sum.
    other: Option<Tensor<T, B>>,
    /// `y`, or `dx` of a backward pass alone.
    out: Tensor<T, B>,
    /// `dx` of a backward pass after a forward pass.
    dx: Option<Tensor<T, B>>,
    /// The row norms' sum, or the gradient of the channel norms' residual.
    second: Option<Tensor<T, B>>,
    params: Params<T, B>,
    grads: Params<T, B>,
    mean: Tensor<f32, B>,
    rstd: Tensor<f32, B>,
    running: RunningStats<B>,
    workspace: Workspace<B>,
}

impl<T: Element, B: Backend> Problem<T, B> {
    /// `noise` has some more elements than a tensor of the case. `x` are its elements from the first on, `dy` those from the
    /// second and the residual those from the third. Weights are spread around 1, biases around 0.
    pub(crate) fn new(on: &B, case: &Case, noise: &[T]) -> Result<Self> {
        let layout = |tensor: Tensor<T, B>| match case.layout {
            Layout::Last => tensor.channels_last(),
            Layout::First | Layout::Rows => tensor,
        };
        let input = |from: usize| Tensor::from_slice(on, &noise[from..from + case.len()], &case.dims);
        let output = || Tensor::zeros(on, &case.dims);
        let weight = |channel: usize| 1.0 + noise[channel].to_f32() / 2.0;
        let bias = |channel: usize| noise[channel + 1].to_f32() / 2.0;
        let (norm, call) = (Norm::new(case), case.call);
        let rows = case.layout == Layout::Rows;
        let x = layout(input(0)?);
        let saved = [norm.saved(case)];
        let mut problem = Self {
            dy: call.backward.then(|| input(1).map(layout)).transpose()?,
            other: call.residual.then(|| input(2).map(layout)).transpose()?,
            out: layout(output()?),
            dx: (call.forward && call.backward).then(|| output().map(layout)).transpose()?,
            second: (call.residual && call.backward != rows).then(|| output().map(layout)).transpose()?,
            params: Params::new(on, case, weight, bias)?,
            grads: Params::new(on, case, |_| 0.0, |_| 0.0)?,
            mean: Tensor::zeros(on, &saved)?,
            rstd: Tensor::zeros(on, &saved)?,
            running: RunningStats::new(on, case.channels)?,
            workspace: norm.workspace(on, &x)?,
            on: on.clone(),
            case: case.clone(),
            norm,
            x,
        };
        if !call.forward && !call.eval {
            problem.forward(false)?; // leaves the statistics that the backward pass reads
        }
        Ok(problem)
    }

    /// Makes the call.
    pub(crate) fn enqueue(&mut self) -> Result<()> {
        let Call { forward, backward, eval, residual, .. } = self.case.call;
        if forward {
            if eval { self.forward_eval() } else { self.forward(residual) }?;
        }
        if backward {
            if eval { self.backward_eval() } else { self.backward() }?;
        }
        Ok(())
    }

    /// What the call left, as it lies in memory: `y`, `dx`, `dweight` and `dbias`, as far as it makes them.
    #[allow(dead_code)] // the benchmark only times
    pub(crate) fn outputs(&self) -> Result<Vec<(&'static str, Vec<f32>)>> {
        fn wide<P: Element, B: Backend>(on: &B, tensor: &Tensor<P, B>) -> Result<Vec<f32>> {
            Ok(tensor.to_vec(on)?.into_iter().map(P::to_f32).collect())
        }
        let Self { on, out, dx, grads, .. } = self;
        let Call { forward, backward, .. } = self.case.call;
        let mut outputs = Vec::new();
        if forward {
            outputs.push(("y", wide(on, out)?));
        }
        if backward {
            outputs.push(("dx", wide(on, dx.as_ref().unwrap_or(out))?));
            let (dweight, dbias) = match grads {
                Params::F32(dweight, dbias) => (wide(on, dweight)?, Some(wide(on, dbias)?)),
                Params::Same(dweight, dbias) => {
                    (wide(on, dweight)?, dbias.as_ref().map(|dbias| wide(on, dbias)).transpose()?)
                }
            };
            outputs.push(("dweight", dweight));
            outputs.extend(dbias.map(|dbias| ("dbias", dbias)));
        }
        Ok(outputs)
    }

    fn forward(&mut self, residual: bool) -> Result<()> {
        let Self { on, x, other, out, second, params, workspace, .. } = self;
        let (x, y, affine) = (x.view(), out.view_mut(), params.affine());
        let (mean, rstd) = (Some(self.mean.data_mut()), Some(self.rstd.data_mut()));
        let residual = other.as_ref().filter(|_| residual).map(Tensor::view);
        match &self.norm {
            norm @ (Norm::Batch(_) | Norm::Instance(_)) => {
                let args = BatchNormTrain { x, residual, y, affine, mean, rstd, running: None, workspace };
                norm.train(on, args)
            }
            Norm::Group(norm) => {
                norm.forward_into(on, GroupNormForward { x, residual, y, affine, mean, rstd, workspace })
            }
            Norm::Layer(norm) => {
                let residual = sum(residual, second);
                norm.forward_into(on, LayerNormForward { x, y, residual, affine, mean, rstd })
            }
            Norm::Rms(norm) => {
                let residual = sum(residual, second);
                norm.forward_into(on, RmsNormForward { x, y, residual, affine, rstd })
            }
        }
    }

    fn backward(&mut self) -> Result<()> {
        let Self { on, x, dy, other, out, dx, second, params, grads, workspace, .. } = self;
        let (x, affine, grads) = (x.view(), params.affine(), grads.grads());
        let dx = Some(dx.as_mut().unwrap_or(out).view_mut());
        let dy = dy.as_ref().expect("a backward pass has one").view();
        let (mean, rstd) = (self.mean.data(), self.rstd.data());
        let other = other.as_ref().map(Tensor::view);
        let dresidual = second.as_mut().map(Tensor::view_mut);
        let accumulate = false;
        match &self.norm {
            norm @ (Norm::Batch(_) | Norm::Instance(_)) => {
                let residual = other;
                norm.train_backward(
                    on,
                    BatchNormBackwardTrain {
                        x,
                        residual,
                        dy,
                        affine,
                        mean,
                        rstd,
                        dx,
                        dresidual,
                        grads,
                        accumulate,
                        workspace,
                    },
                )
            }
            Norm::Group(norm) => {
                let residual = other;
                norm.backward_into(
                    on,
                    GroupNormBackward {
                        x,
                        residual,
                        dy,
                        affine,
                        mean,
                        rstd,
                        dx,
                        dresidual,
                        grads,
                        accumulate,
                        workspace,
                    },
                )
            }
            Norm::Layer(norm) => norm.backward_into(
                on,
                LayerNormBackward { x, dy, dh: other, affine, mean, rstd, dx, grads, accumulate, workspace },
            ),
            Norm::Rms(norm) => norm.backward_into(
                on,
                RmsNormBackward { x, dy, dh: other, affine, rstd, dx, grads, accumulate, workspace },
            ),
        }
    }

    fn forward_eval(&mut self) -> Result<()> {
        let norm = self.batch_norm();
        let args = BatchNormEval {
            x: self.x.view(),
            residual: self.other.as_ref().map(Tensor::view),
            y: self.out.view_mut(),
            affine: self.params.affine(),
            running_mean: self.running.mean.data(),
            running_var: self.running.var.data(),
        };
        norm.forward_eval_into(&self.on, args)
    }

    fn backward_eval(&mut self) -> Result<()> {
        let norm = self.batch_norm();
        let args = BatchNormBackwardEval {
            x: self.x.view(),
            residual: self.other.as_ref().map(Tensor::view),
            dy: self.dy.as_ref().expect("a backward pass has one").view(),
            affine: self.params.affine(),
            running_mean: self.running.mean.data(),
            running_var: self.running.var.data(),
            dx: Some(self.out.view_mut()),
            dresidual: self.second.as_mut().map(Tensor::view_mut),
            grads: self.grads.grads(),
            accumulate: false,
            workspace: &mut self.workspace,
        };
        norm.backward_eval_into(&self.on, args)
    }

    fn batch_norm(&self) -> BatchNorm {
        match self.norm {
            Norm::Batch(norm) => norm,
            _ => unreachable!("the suite has inference of BatchNorm only"),
        }
    }
}

/// What a row norm adds first, and where the sum goes.
fn sum<'a, T: Element, B: Backend>(
    residual: Option<View<'a, T, B>>,
    h: &'a mut Option<Tensor<T, B>>,
) -> Option<Residual<'a, T, B>> {
    residual.zip(h.as_mut()).map(|(residual, h)| Residual { residual, h: h.view_mut() })
}
