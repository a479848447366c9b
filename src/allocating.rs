//! The passes that allocate what they return.

use crate::{
    Affine, AffineGrad, Backend, BatchNormOutput, Element, Result, RunningStats, Tensor, ViewMut, Workspace,
    channel_norm::{self, BatchStatistics, ChannelOp, ForwardTensors},
    row_norm::{self, RowOp},
};

/// Gradients of an op: what every `backward` returns.
#[derive(Debug)]
pub struct Gradients<T: Element, B: Backend> {
    /// Gradient of the input, shaped like it.
    pub dx: Tensor<T, B>,
    /// Gradient of the weight, if there is one.
    pub dweight: Option<Tensor<f32, B>>,
    /// Gradient of the bias, if there is one.
    pub dbias: Option<Tensor<f32, B>>,
}

impl<T: Element, B: Backend> Gradients<T, B> {
    fn zeros(on: &B, x: &Tensor<T, B>, affine: &Affine<'_, T, B>) -> Result<Self> {
        let (weight, bias) = affine.lens();
        let vector = |len: Option<usize>| len.map(|n| Tensor::zeros(on, &[n])).transpose();
        Ok(Self { dx: Tensor::zeros_like(on, x)?, dweight: vector(weight)?, dbias: vector(bias)? })
    }

    /// Where a backward pass writes them.
    fn borrow_mut(&mut self) -> (Option<ViewMut<'_, T, B>>, AffineGrad<'_, T, B>) {
        let grads = AffineGrad::F32 {
            dweight: self.dweight.as_mut().map(Tensor::data_mut),
            dbias: self.dbias.as_mut().map(Tensor::data_mut),
        };
        (Some(self.dx.view_mut()), grads)
    }

    fn of_channels<'a>(
        &'a mut self,
        x: &'a Tensor<T, B>,
        dy: &'a Tensor<T, B>,
        affine: &'a Affine<'_, T, B>,
        workspace: &'a mut Workspace<B>,
    ) -> channel_norm::BackwardTensors<'a, T, B> {
        let (dx, grads) = self.borrow_mut();
        channel_norm::BackwardTensors {
            x: x.view(),
            residual: None,
            dy: dy.view(),
            affine: affine.reborrow(),
            dx,
            dresidual: None,
            grads,
            accumulate: false,
            workspace,
        }
    }
}

impl ChannelOp {
    /// `y` and the statistics of `x`; moves running statistics, if given.
    pub(crate) fn normalized<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        affine: &Affine<'_, T, B>,
        running: Option<&mut RunningStats<B>>,
    ) -> Result<BatchNormOutput<T, B>> {
        let saved = self.saved_len(&x.view().dims)?;
        let mut y = Tensor::zeros_like(on, x)?;
        let mut mean = Tensor::zeros(on, &[saved])?;
        let mut rstd = Tensor::zeros(on, &[saved])?;
        let mut workspace = self.workspace(on, &x.view().dims)?;
        let tensors =
            ForwardTensors { x: Some(x.view()), residual: None, y: y.view_mut(), affine: affine.reborrow() };
        let statistics = BatchStatistics {
            mean: Some(mean.data_mut()),
            rstd: Some(rstd.data_mut()),
            running: None,
            workspace: &mut workspace,
        };
        self.train(on, (tensors, statistics, running.map(RunningStats::borrow_mut)))?;
        Ok(BatchNormOutput { y, mean, rstd })
    }

    /// `y` by running statistics.
    pub(crate) fn normalized_by<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        affine: &Affine<'_, T, B>,
        running: &RunningStats<B>,
    ) -> Result<Tensor<T, B>> {
        let mut y = Tensor::zeros_like(on, x)?;
        let tensors =
            ForwardTensors { x: Some(x.view()), residual: None, y: y.view_mut(), affine: affine.reborrow() };
        self.forward_fixed(on, tensors, running.fixed())?;
        Ok(y)
    }

    /// Gradients of [`normalized`](Self::normalized).
    pub(crate) fn gradients<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        dy: &Tensor<T, B>,
        affine: &Affine<'_, T, B>,
        [mean, rstd]: [&Tensor<f32, B>; 2],
    ) -> Result<Gradients<T, B>> {
        let mut gradients = Gradients::zeros(on, x, affine)?;
        let mut workspace = self.workspace(on, &x.view().dims)?;
        let tensors = gradients.of_channels(x, dy, affine, &mut workspace);
        self.backward_batch(on, tensors, mean.data(), rstd.data())?;
        Ok(gradients)
    }

    /// Gradients of [`normalized_by`](Self::normalized_by).
    pub(crate) fn gradients_by<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        dy: &Tensor<T, B>,
        affine: &Affine<'_, T, B>,
        running: &RunningStats<B>,
    ) -> Result<Gradients<T, B>> {
        let mut gradients = Gradients::zeros(on, x, affine)?;
        let mut workspace = self.workspace(on, &x.view().dims)?;
        let tensors = gradients.of_channels(x, dy, affine, &mut workspace);
        self.backward_fixed(on, tensors, running.fixed())?;
        Ok(gradients)
    }
}

impl RowOp {
    /// Gradients of a norm of `x`, from what it saved.
    pub(crate) fn gradients<T: Element, B: Backend>(
        &self,
        on: &B,
        x: &Tensor<T, B>,
        dy: &Tensor<T, B>,
        affine: &Affine<'_, T, B>,
        (mean, rstd): (Option<&Tensor<f32, B>>, &Tensor<f32, B>),
    ) -> Result<Gradients<T, B>> {
        let mut gradients = Gradients::zeros(on, x, affine)?;
        let mut workspace = self.workspace(on, &x.view().dims)?;
        let (dx, grads) = gradients.borrow_mut();
        let tensors = row_norm::BackwardTensors {
            x: x.view(),
            dy: dy.view(),
            dh: None,
            affine: affine.reborrow(),
            mean: mean.map(Tensor::data),
            rstd: rstd.data(),
            dx,
            grads,
            accumulate: false,
            workspace: &mut workspace,
        };
        self.backward(on, tensors)?;
        Ok(gradients)
    }
}
