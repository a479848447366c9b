//! A call of any method of any op, with arguments of any size.

use warpnorm::{
    Affine, AffineGrad, BatchNorm, BatchNormBackwardEval, BatchNormBackwardTrain, BatchNormEval,
    BatchNormEvalInPlace, BatchNormTrain, BatchNormTrainInPlace, Element, GroupNorm, GroupNormBackward,
    GroupNormForward, GroupNormInPlace, InstanceNorm, LayerNorm, LayerNormBackward, LayerNormForward,
    LayerNormInPlace, Layout, Residual, Result, RmsNorm, RmsNormBackward, RmsNormForward, RmsNormInPlace,
    RunningStatsMut, View, ViewMut, Workspace,
};

use super::buffers::{Buffers, large_workspace};
use crate::support::run::{Placed, Sliced};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Batch,
    Instance,
    Group,
    Layer,
    Rms,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Forward,
    InPlace,
    ForwardEval,
    InPlaceEval,
    Backward,
    BackwardEval,
}

pub(super) use Op::{Batch, Group, Instance, Layer, Rms};
pub(super) use Pass::{Backward, BackwardEval, Forward, ForwardEval, InPlace, InPlaceEval};

pub(super) const CHANNEL_OPS: [Op; 3] = [Batch, Instance, Group];
pub(super) const ROW_OPS: [Op; 2] = [Layer, Rms];
pub(super) const OPS: [Op; 5] = [Batch, Instance, Group, Layer, Rms];

/// One method that takes the caller's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Method(pub(super) Op, pub(super) Pass);

impl Op {
    pub(super) fn name(self) -> &'static str {
        match self {
            Batch => "BatchNorm",
            Instance => "InstanceNorm",
            Group => "GroupNorm",
            Layer => "LayerNorm",
            Rms => "RmsNorm",
        }
    }

    /// Whether weight and bias are per channel.
    pub(super) fn is_channel_op(self) -> bool {
        CHANNEL_OPS.contains(&self)
    }

    pub(super) fn methods(self) -> impl Iterator<Item = Method> {
        let all = [Forward, InPlace, Backward, ForwardEval, InPlaceEval, BackwardEval];
        let passes = if matches!(self, Batch | Instance) { 6 } else { 3 };
        all.into_iter().take(passes).map(move |pass| Method(self, pass))
    }
}

/// Every method of these ops that makes one of these passes.
pub(super) fn methods(ops: &[Op], passes: &[Pass]) -> Vec<Method> {
    ops.iter().flat_map(|op| op.methods()).filter(|method| passes.contains(&method.1)).collect()
}

/// Every method there is.
pub(super) fn all_methods() -> Vec<Method> {
    OPS.iter().flat_map(|op| op.methods()).collect()
}

/// Dimensions and layout, and the stride of a view with gaps.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) dims: Vec<usize>,
    pub(super) layout: Layout,
    pub(super) stride: Option<usize>,
}

impl Shape {
    pub(super) fn dense(dims: &[usize]) -> Self {
        Self { dims: dims.to_vec(), layout: Layout::ChannelsFirst, stride: None }
    }

    pub(super) fn len(&self) -> usize {
        self.stride.map_or_else(|| self.dims.iter().product(), |stride| stride * self.dims[0])
    }

    fn view<'a, T: Element, B: Sliced>(&self, placed: &'a Placed<T, B>) -> Result<View<'a, T, B>> {
        let view = match self.stride {
            None => View::new(placed.data(), &self.dims)?,
            Some(stride) => View::strided(placed.data(), &self.dims, stride)?,
        };
        Ok(if self.layout == Layout::ChannelsLast { view.channels_last() } else { view })
    }

    fn view_mut<'a, T: Element, B: Sliced>(&self, placed: &'a mut Placed<T, B>) -> Result<ViewMut<'a, T, B>> {
        let view = match self.stride {
            None => ViewMut::new(placed.data_mut(), &self.dims)?,
            Some(stride) => ViewMut::strided(placed.data_mut(), &self.dims, stride)?,
        };
        Ok(if self.layout == Layout::ChannelsLast { view.channels_last() } else { view })
    }
}

/// The settings of every op and the sizes of every argument; as they are at first, every method takes them.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) batch: BatchNorm,
    pub(super) instance: InstanceNorm,
    pub(super) group: GroupNorm,
    pub(super) layer: LayerNorm,
    pub(super) rms: RmsNorm,
    pub(super) x: Shape,
    pub(super) y: Shape,
    pub(super) residual: Shape,
    /// The sum that a row norm normalizes.
    pub(super) h: Shape,
    pub(super) dy: Shape,
    pub(super) dx: Shape,
    pub(super) dresidual: Shape,
    pub(super) dh: Shape,
    pub(super) weight: usize,
    pub(super) bias: usize,
    pub(super) dweight: usize,
    pub(super) dbias: usize,
    pub(super) mean: usize,
    pub(super) rstd: usize,
    pub(super) running_mean: usize,
    pub(super) running_var: usize,
    pub(super) momentum: usize,
}

/// Three samples of two channels with four positions, or three rows of eight.
pub(super) const DIMS: [usize; 3] = [3, 2, 4];

impl Call {
    pub(super) fn new(op: Op) -> Self {
        let all = Shape::dense(&DIMS);
        let params = if op.is_channel_op() { 2 } else { 8 };
        let stats = match op {
            Batch => 2,
            Instance => 6,
            Group | Layer | Rms => 3,
        };
        Self {
            batch: BatchNorm::new(2),
            instance: InstanceNorm::new(2),
            group: GroupNorm::new(1, 2),
            layer: LayerNorm::new(8),
            rms: RmsNorm::new(8),
            x: all.clone(),
            y: all.clone(),
            residual: all.clone(),
            h: all.clone(),
            dy: all.clone(),
            dx: all.clone(),
            dresidual: all.clone(),
            dh: all,
            weight: params,
            bias: params,
            dweight: params,
            dbias: params,
            mean: stats,
            rstd: stats,
            running_mean: 2,
            running_var: 2,
            momentum: 1,
        }
    }

    /// The same call with all tensors of this shape.
    pub(super) fn shaped(op: Op, dims: &[usize]) -> Self {
        Self::new(op).with_all(&Shape::dense(dims))
    }

    pub(super) fn with_all(self, shape: &Shape) -> Self {
        let all = || shape.clone();
        Self {
            x: all(),
            y: all(),
            residual: all(),
            h: all(),
            dy: all(),
            dx: all(),
            dresidual: all(),
            dh: all(),
            ..self
        }
    }

    /// The same call with as many statistics, saved and running.
    pub(super) fn with_statistics(self, len: usize) -> Self {
        Self { mean: len, rstd: len, running_mean: len, running_var: len, ..self }
    }

    /// What the method answers. Panics where a refusal has written anything.
    pub(super) fn make<T: Element, B: Sliced>(&self, on: &B, method: Method) -> Result<()> {
        self.make_with::<T, B>(on, method, large_workspace::<T, B>(on, method.0))
    }

    /// The same with a workspace of the caller's.
    pub(super) fn make_with<T: Element, B: Sliced>(
        &self,
        on: &B,
        method: Method,
        workspace: Workspace<B>,
    ) -> Result<()> {
        let mut buffers = Buffers::<T, B>::new(on, self, workspace);
        let result = self.call(on, method, &mut buffers);
        if result.is_err() {
            buffers.expect_untouched(on, method);
        }
        result
    }

    pub(super) fn refused<T: Element, B: Sliced>(&self, on: &B, method: Method, message: &str) {
        match self.make::<T, B>(on, method) {
            Ok(()) => panic!("{method:?} accepted what must give: {message}\n{self:?}"),
            Err(error) => assert_eq!(error.to_string(), message, "{method:?}"),
        }
    }

    pub(super) fn accepted<T: Element, B: Sliced>(&self, on: &B, method: Method) {
        self.make::<T, B>(on, method).unwrap_or_else(|error| panic!("{method:?}: {error}\n{self:?}"));
    }

    fn call<T: Element, B: Sliced>(
        &self,
        on: &B,
        Method(op, pass): Method,
        b: &mut Buffers<T, B>,
    ) -> Result<()> {
        let affine = Affine::Same { weight: Some(b.weight.data()), bias: Some(b.bias.data()) };
        let grads = AffineGrad::F32 { dweight: Some(b.dweight.data_mut()), dbias: Some(b.dbias.data_mut()) };
        let running = RunningStatsMut {
            mean: b.running_mean.data_mut(),
            var: b.running_var.data_mut(),
            batches: &mut b.batches,
            momentum: Some(b.momentum.data()),
        };
        let (mean, rstd) = (Some(b.mean.data_mut()), Some(b.rstd.data_mut()));
        let workspace = &mut b.workspace;
        match (op, pass) {
            (Batch | Instance, Forward) => {
                let args = BatchNormTrain {
                    x: self.x.view(&b.x)?,
                    residual: Some(self.residual.view(&b.residual)?),
                    y: self.y.view_mut(&mut b.y)?,
                    affine,
                    mean,
                    rstd,
                    running: Some(running),
                    workspace,
                };
                match op {
                    Batch => self.batch.forward_train_into(on, args),
                    _ => self.instance.forward_into(on, args),
                }
            }
            (Batch | Instance, InPlace) => {
                let args = BatchNormTrainInPlace {
                    x: self.x.view_mut(&mut b.x)?,
                    residual: Some(self.residual.view(&b.residual)?),
                    affine,
                    mean,
                    rstd,
                    running: Some(running),
                    workspace,
                };
                match op {
                    Batch => self.batch.forward_train_in_place_into(on, args),
                    _ => self.instance.forward_in_place_into(on, args),
                }
            }
            (Batch | Instance, ForwardEval) => {
                let args = BatchNormEval {
                    x: self.x.view(&b.x)?,
                    residual: Some(self.residual.view(&b.residual)?),
                    y: self.y.view_mut(&mut b.y)?,
                    affine,
                    running_mean: b.given_running_mean.data(),
                    running_var: b.given_running_var.data(),
                };
                match op {
                    Batch => self.batch.forward_eval_into(on, args),
                    _ => self.instance.forward_eval_into(on, args),
                }
            }
            (Batch | Instance, InPlaceEval) => {
                let args = BatchNormEvalInPlace {
                    x: self.x.view_mut(&mut b.x)?,
                    residual: Some(self.residual.view(&b.residual)?),
                    affine,
                    running_mean: b.given_running_mean.data(),
                    running_var: b.given_running_var.data(),
                };
                match op {
                    Batch => self.batch.forward_eval_in_place_into(on, args),
                    _ => self.instance.forward_eval_in_place_into(on, args),
                }
            }
            (Batch | Instance, Backward) => {
                let args = BatchNormBackwardTrain {
                    x: self.x.view(&b.x)?,
                    residual: Some(self.residual.view(&b.residual)?),
                    dy: self.dy.view(&b.dy)?,
                    affine,
                    mean: b.given_mean.data(),
                    rstd: b.given_rstd.data(),
                    dx: Some(self.dx.view_mut(&mut b.dx)?),
                    dresidual: Some(self.dresidual.view_mut(&mut b.dresidual)?),
                    grads,
                    accumulate: true,
                    workspace,
                };
                match op {
                    Batch => self.batch.backward_train_into(on, args),
                    _ => self.instance.backward_into(on, args),
                }
            }
            (Batch | Instance, BackwardEval) => {
                let args = BatchNormBackwardEval {
                    x: self.x.view(&b.x)?,
                    residual: Some(self.residual.view(&b.residual)?),
                    dy: self.dy.view(&b.dy)?,
                    affine,
                    running_mean: b.given_running_mean.data(),
                    running_var: b.given_running_var.data(),
                    dx: Some(self.dx.view_mut(&mut b.dx)?),
                    dresidual: Some(self.dresidual.view_mut(&mut b.dresidual)?),
                    grads,
                    accumulate: false,
                    workspace,
                };
                match op {
                    Batch => self.batch.backward_eval_into(on, args),
                    _ => self.instance.backward_eval_into(on, args),
                }
            }
            (Group, Forward) => {
                let args = GroupNormForward {
                    x: self.x.view(&b.x)?,
                    residual: Some(self.residual.view(&b.residual)?),
                    y: self.y.view_mut(&mut b.y)?,
                    affine,
                    mean,
                    rstd,
                    workspace,
                };
                self.group.forward_into(on, args)
            }
            (Group, InPlace) => {
                let args = GroupNormInPlace {
                    x: self.x.view_mut(&mut b.x)?,
                    residual: Some(self.residual.view(&b.residual)?),
                    affine,
                    mean,
                    rstd,
                    workspace,
                };
                self.group.forward_in_place_into(on, args)
            }
            (Group, Backward) => {
                let args = GroupNormBackward {
                    x: self.x.view(&b.x)?,
                    residual: Some(self.residual.view(&b.residual)?),
                    dy: self.dy.view(&b.dy)?,
                    affine,
                    mean: b.given_mean.data(),
                    rstd: b.given_rstd.data(),
                    dx: Some(self.dx.view_mut(&mut b.dx)?),
                    dresidual: Some(self.dresidual.view_mut(&mut b.dresidual)?),
                    grads,
                    accumulate: false,
                    workspace,
                };
                self.group.backward_into(on, args)
            }
            (Layer | Rms, Forward) => {
                let (x, y) = (self.x.view(&b.x)?, self.y.view_mut(&mut b.y)?);
                let residual = Some(Residual {
                    residual: self.residual.view(&b.residual)?,
                    h: self.h.view_mut(&mut b.h)?,
                });
                match op {
                    Layer => {
                        let args = LayerNormForward { x, y, residual, affine, mean, rstd };
                        self.layer.forward_into(on, args)
                    }
                    _ => self.rms.forward_into(on, RmsNormForward { x, y, residual, affine, rstd }),
                }
            }
            (Layer | Rms, InPlace) => {
                let x = self.x.view_mut(&mut b.x)?;
                let residual = Some(self.residual.view_mut(&mut b.residual)?);
                match op {
                    Layer => {
                        let args = LayerNormInPlace { x, residual, affine, mean, rstd };
                        self.layer.forward_in_place_into(on, args)
                    }
                    _ => self.rms.forward_in_place_into(on, RmsNormInPlace { x, residual, affine, rstd }),
                }
            }
            (Layer | Rms, Backward) => {
                let (x, dy) = (self.x.view(&b.x)?, self.dy.view(&b.dy)?);
                let (dh, dx) = (Some(self.dh.view(&b.dh)?), Some(self.dx.view_mut(&mut b.dx)?));
                let (mean, rstd, accumulate) = (b.given_mean.data(), b.given_rstd.data(), true);
                match op {
                    Layer => {
                        let args = LayerNormBackward {
                            x,
                            dy,
                            affine,
                            mean,
                            rstd,
                            dh,
                            dx,
                            grads,
                            accumulate,
                            workspace,
                        };
                        self.layer.backward_into(on, args)
                    }
                    _ => {
                        let args =
                            RmsNormBackward { x, dy, affine, rstd, dh, dx, grads, accumulate, workspace };
                        self.rms.backward_into(on, args)
                    }
                }
            }
            (Group | Layer | Rms, _) => unreachable!("{op:?} has no running statistics"),
        }
    }
}
