//! What goes into a BatchNorm and comes out of it. InstanceNorm has the same.

use crate::{
    Affine, AffineGrad, Backend, Element, Result, Tensor, View, ViewMut, Workspace,
    channel_norm::{BackwardTensors, BatchStatistics, FixedStatistics, ForwardTensors, RunningUpdate},
};

#[cfg(doc)]
use super::BatchNorm;

/// Running mean and variance of a [`BatchNorm`] or an [`InstanceNorm`](crate::InstanceNorm); they belong to the caller.
#[derive(Debug)]
pub struct RunningStats<B: Backend> {
    /// Running mean, at first 0.
    pub mean: Tensor<f32, B>,
    /// Running variance, unbiased, at first 1.
    pub var: Tensor<f32, B>,
    /// Accepted training calls so far, empty batches included. The cumulative average divides by it.
    pub batches: u64,
}

impl<B: Backend> RunningStats<B> {
    /// Fresh statistics: [`BatchNorm::running_len`] means and variances.
    ///
    /// # Errors
    ///
    /// What the backend says of memory.
    pub fn new(on: &B, len: usize) -> Result<Self> {
        let var = Tensor::from_slice(on, &vec![1.0; len], &[len])?;
        Ok(Self { mean: Tensor::zeros(on, &[len])?, var, batches: 0 })
    }

    pub(crate) fn fixed(&self) -> FixedStatistics<'_, B> {
        FixedStatistics { mean: self.mean.data(), var: self.var.data() }
    }

    /// Borrows them for one training call.
    pub fn borrow_mut(&mut self) -> RunningStatsMut<'_, B> {
        RunningStatsMut {
            mean: self.mean.data_mut(),
            var: self.var.data_mut(),
            batches: &mut self.batches,
            momentum: None,
        }
    }
}

/// Running statistics borrowed for one training call.
pub struct RunningStatsMut<'a, B: Backend> {
    /// Running mean.
    pub mean: B::Mut<'a, f32>,
    /// Running variance, unbiased.
    pub var: B::Mut<'a, f32>,
    /// Accepted training calls so far.
    pub batches: &'a mut u64,
    /// The weight of the new value as one number on the device, in place of the op's: it is read when the kernel runs,
    /// so that a captured graph can be replayed with another one. 0 leaves the running statistics as they are, bit for
    /// bit. It is not checked: one that is not finite makes them NaN or infinite.
    pub momentum: Option<B::Ref<'a, f32>>,
}

impl<'a, B: Backend> RunningStatsMut<'a, B> {
    /// The same borrow for a shorter time.
    pub fn reborrow(&mut self) -> RunningStatsMut<'_, B> {
        RunningStatsMut {
            mean: B::reborrow_mut(&mut self.mean),
            var: B::reborrow_mut(&mut self.var),
            batches: self.batches,
            momentum: self.momentum.as_ref().map(B::reborrow),
        }
    }

    /// What moves `len` running statistics, and where calls are counted.
    pub(crate) fn update(self, momentum: Option<f32>, len: usize) -> (RunningUpdate<'a, B>, &'a mut u64) {
        let factor = momentum.unwrap_or_else(|| 1.0 / self.batches.saturating_add(1) as f32);
        let update = RunningUpdate {
            mean: self.mean,
            var: self.var,
            momentum: factor,
            device_momentum: self.momentum,
            len,
        };
        (update, self.batches)
    }
}

/// What [`BatchNorm::forward_train`] and [`InstanceNorm::forward`](crate::InstanceNorm::forward) return: the output,
/// and what the backward pass needs. Where the batch is empty the statistics are zeros.
#[derive(Debug)]
pub struct BatchNormOutput<T: Element, B: Backend> {
    /// The output, shaped like `x`.
    pub y: Tensor<T, B>,
    /// Means that normalized, [`BatchNorm::saved_len`] values.
    pub mean: Tensor<f32, B>,
    /// Reciprocal standard deviations, `1 / sqrt(var + eps)`, likewise.
    pub rstd: Tensor<f32, B>,
}

/// Buffers of [`BatchNorm::forward_train_into`].
pub struct BatchNormTrain<'a, T: Element, B: Backend> {
    /// Input.
    pub x: View<'a, T, B>,
    /// Added before the activation, shaped like `x`.
    pub residual: Option<View<'a, T, B>>,
    /// Output, shaped like `x`.
    pub y: ViewMut<'a, T, B>,
    /// Scale and shift, `[channels]`.
    pub affine: Affine<'a, T, B>,
    /// Where to keep the means that normalize, [`BatchNorm::saved_len`] values.
    pub mean: Option<B::Mut<'a, f32>>,
    /// Where to keep their reciprocal standard deviations, likewise.
    pub rstd: Option<B::Mut<'a, f32>>,
    /// Running statistics to move.
    pub running: Option<RunningStatsMut<'a, B>>,
    /// Scratch memory made by [`BatchNorm::workspace`].
    pub workspace: &'a mut Workspace<B>,
}

/// Buffers of [`BatchNorm::forward_train_in_place_into`].
pub struct BatchNormTrainInPlace<'a, T: Element, B: Backend> {
    /// Input, which the output replaces.
    pub x: ViewMut<'a, T, B>,
    /// Added before the activation, shaped like `x`.
    pub residual: Option<View<'a, T, B>>,
    /// Scale and shift, `[channels]`.
    pub affine: Affine<'a, T, B>,
    /// Where to keep the means that normalize, [`BatchNorm::saved_len`] values.
    pub mean: Option<B::Mut<'a, f32>>,
    /// Where to keep their reciprocal standard deviations, likewise.
    pub rstd: Option<B::Mut<'a, f32>>,
    /// Running statistics to move.
    pub running: Option<RunningStatsMut<'a, B>>,
    /// Scratch memory made by [`BatchNorm::workspace`].
    pub workspace: &'a mut Workspace<B>,
}

/// Buffers of [`BatchNorm::forward_eval_into`].
pub struct BatchNormEval<'a, T: Element, B: Backend> {
    /// Input.
    pub x: View<'a, T, B>,
    /// Added before the activation, shaped like `x`.
    pub residual: Option<View<'a, T, B>>,
    /// Output, shaped like `x`.
    pub y: ViewMut<'a, T, B>,
    /// Scale and shift, `[channels]`.
    pub affine: Affine<'a, T, B>,
    /// Running mean, [`BatchNorm::running_len`] values.
    pub running_mean: B::Ref<'a, f32>,
    /// Running variance, likewise.
    pub running_var: B::Ref<'a, f32>,
}

/// Buffers of [`BatchNorm::forward_eval_in_place_into`].
pub struct BatchNormEvalInPlace<'a, T: Element, B: Backend> {
    /// Input, which the output replaces.
    pub x: ViewMut<'a, T, B>,
    /// Added before the activation, shaped like `x`.
    pub residual: Option<View<'a, T, B>>,
    /// Scale and shift, `[channels]`.
    pub affine: Affine<'a, T, B>,
    /// Running mean, [`BatchNorm::running_len`] values.
    pub running_mean: B::Ref<'a, f32>,
    /// Running variance, likewise.
    pub running_var: B::Ref<'a, f32>,
}

/// Buffers of [`BatchNorm::backward_train_into`].
pub struct BatchNormBackwardTrain<'a, T: Element, B: Backend> {
    /// Input of the forward pass.
    pub x: View<'a, T, B>,
    /// What the forward pass added, if anything; read where there is an activation.
    pub residual: Option<View<'a, T, B>>,
    /// Gradient of the forward pass' output, shaped like `x`.
    pub dy: View<'a, T, B>,
    /// Scale and shift of the forward pass; the shift is read where there is an activation.
    pub affine: Affine<'a, T, B>,
    /// Means that the forward pass saved.
    pub mean: B::Ref<'a, f32>,
    /// Reciprocal standard deviations that the forward pass saved.
    pub rstd: B::Ref<'a, f32>,
    /// Gradient of the input, shaped like it, if wanted.
    pub dx: Option<ViewMut<'a, T, B>>,
    /// Gradient of the residual, shaped like it, if wanted.
    pub dresidual: Option<ViewMut<'a, T, B>>,
    /// Gradients of scale and shift, `[channels]`, as far as wanted.
    pub grads: AffineGrad<'a, T, B>,
    /// Whether these are added to what `grads` holds.
    pub accumulate: bool,
    /// Scratch memory made by [`BatchNorm::workspace`].
    pub workspace: &'a mut Workspace<B>,
}

/// Buffers of [`BatchNorm::backward_eval_into`].
pub struct BatchNormBackwardEval<'a, T: Element, B: Backend> {
    /// Input of the forward pass.
    pub x: View<'a, T, B>,
    /// What the forward pass added, if anything; read where there is an activation.
    pub residual: Option<View<'a, T, B>>,
    /// Gradient of the forward pass' output, shaped like `x`.
    pub dy: View<'a, T, B>,
    /// Scale and shift of the forward pass; the shift is read where there is an activation.
    pub affine: Affine<'a, T, B>,
    /// Running mean of the forward pass.
    pub running_mean: B::Ref<'a, f32>,
    /// Running variance of the forward pass.
    pub running_var: B::Ref<'a, f32>,
    /// Gradient of the input, shaped like it, if wanted.
    pub dx: Option<ViewMut<'a, T, B>>,
    /// Gradient of the residual, shaped like it, if wanted.
    pub dresidual: Option<ViewMut<'a, T, B>>,
    /// Gradients of scale and shift, `[channels]`, as far as wanted.
    pub grads: AffineGrad<'a, T, B>,
    /// Whether these are added to what `grads` holds.
    pub accumulate: bool,
    /// Scratch memory made by [`BatchNorm::workspace`].
    pub workspace: &'a mut Workspace<B>,
}

/// A training call taken apart: tensors, where statistics go, running statistics.
pub(crate) type TrainParts<'a, T, B> =
    (ForwardTensors<'a, T, B>, BatchStatistics<'a, B>, Option<RunningStatsMut<'a, B>>);

impl<'a, T: Element, B: Backend> BatchNormTrain<'a, T, B> {
    pub(crate) fn parts(self) -> TrainParts<'a, T, B> {
        let Self { x, residual, y, affine, mean, rstd, running, workspace } = self;
        let statistics = BatchStatistics { mean, rstd, running: None, workspace };
        (ForwardTensors { x: Some(x), residual, y, affine }, statistics, running)
    }
}

impl<'a, T: Element, B: Backend> BatchNormTrainInPlace<'a, T, B> {
    pub(crate) fn parts(self) -> TrainParts<'a, T, B> {
        let Self { x, residual, affine, mean, rstd, running, workspace } = self;
        let statistics = BatchStatistics { mean, rstd, running: None, workspace };
        (ForwardTensors { x: None, residual, y: x, affine }, statistics, running)
    }
}

impl<'a, T: Element, B: Backend> BatchNormEval<'a, T, B> {
    pub(crate) fn parts(self) -> (ForwardTensors<'a, T, B>, FixedStatistics<'a, B>) {
        let Self { x, residual, y, affine, running_mean: mean, running_var: var } = self;
        (ForwardTensors { x: Some(x), residual, y, affine }, FixedStatistics { mean, var })
    }
}

impl<'a, T: Element, B: Backend> BatchNormEvalInPlace<'a, T, B> {
    pub(crate) fn parts(self) -> (ForwardTensors<'a, T, B>, FixedStatistics<'a, B>) {
        let Self { x, residual, affine, running_mean: mean, running_var: var } = self;
        (ForwardTensors { x: None, residual, y: x, affine }, FixedStatistics { mean, var })
    }
}

impl<'a, T: Element, B: Backend> BatchNormBackwardTrain<'a, T, B> {
    pub(crate) fn parts(self) -> (BackwardTensors<'a, T, B>, B::Ref<'a, f32>, B::Ref<'a, f32>) {
        let Self { x, residual, dy, affine, mean, rstd, dx, dresidual, grads, accumulate, workspace } = self;
        let tensors =
            BackwardTensors { x, residual, dy, affine, dx, dresidual, grads, accumulate, workspace };
        (tensors, mean, rstd)
    }
}

impl<'a, T: Element, B: Backend> BatchNormBackwardEval<'a, T, B> {
    pub(crate) fn parts(self) -> (BackwardTensors<'a, T, B>, FixedStatistics<'a, B>) {
        let Self {
            x,
            residual,
            dy,
            affine,
            running_mean,
            running_var,
            dx,
            dresidual,
            grads,
            accumulate,
            workspace,
        } = self;
        let tensors =
            BackwardTensors { x, residual, dy, affine, dx, dresidual, grads, accumulate, workspace };
        (tensors, FixedStatistics { mean: running_mean, var: running_var })
    }
}
