//! What goes into a BatchNorm and comes out of it.

use crate::{Affine, AffineGrad, Backend, Element, Result, Tensor, View, ViewMut, Workspace};

#[cfg(doc)]
use super::BatchNorm;

/// Running mean and variance of a [`BatchNorm`]; they belong to the caller.
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
    /// Fresh statistics of [`BatchNorm::statistics_len`] means and variances.
    ///
    /// # Errors
    ///
    /// What the backend says of memory.
    pub fn new(on: &B, len: usize) -> Result<Self> {
        let var = Tensor::from_slice(on, &vec![1.0; len], &[len])?;
        Ok(Self { mean: Tensor::zeros(on, &[len])?, var, batches: 0 })
    }

    /// Borrows them for one training call.
    pub fn borrow_mut(&mut self) -> RunningStatsMut<'_, B> {
        RunningStatsMut { mean: self.mean.data_mut(), var: self.var.data_mut(), batches: &mut self.batches }
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
}

impl<B: Backend> RunningStatsMut<'_, B> {
    /// The same borrow for a shorter time.
    pub fn reborrow(&mut self) -> RunningStatsMut<'_, B> {
        RunningStatsMut {
            mean: B::reborrow_mut(&mut self.mean),
            var: B::reborrow_mut(&mut self.var),
            batches: self.batches,
        }
    }
}

/// What [`BatchNorm::forward_train`] returns: the output, and what the backward pass needs.
#[derive(Debug)]
pub struct BatchNormOutput<T: Element, B: Backend> {
    /// The output, shaped like `x`.
    pub y: Tensor<T, B>,
    /// Mean of the batch, [`BatchNorm::statistics_len`] values.
    pub mean: Tensor<f32, B>,
    /// Reciprocal standard deviation of the batch, `1 / sqrt(var + eps)`.
    pub rstd: Tensor<f32, B>,
}

/// Gradients of a [`BatchNorm`].
#[derive(Debug)]
pub struct BatchNormGradients<T: Element, B: Backend> {
    /// Gradient of the input, shaped like it.
    pub dx: Tensor<T, B>,
    /// Gradient of the weight, if there is one.
    pub dweight: Option<Tensor<f32, B>>,
    /// Gradient of the bias, if there is one.
    pub dbias: Option<Tensor<f32, B>>,
}

impl<T: Element, B: Backend> BatchNormGradients<T, B> {
    pub(super) fn zeros(on: &B, x: &Tensor<T, B>, affine: &Affine<'_, T, B>) -> Result<Self> {
        let (weight, bias) = affine.lens();
        let vector = |len: Option<usize>| len.map(|n| Tensor::zeros(on, &[n])).transpose();
        Ok(Self { dx: Tensor::zeros_like(on, x)?, dweight: vector(weight)?, dbias: vector(bias)? })
    }
}

/// Buffers of [`BatchNorm::forward_train_into`].
pub struct BatchNormTrain<'a, T: Element, B: Backend> {
    /// Input.
    pub x: View<'a, T, B>,
    /// Output, shaped like `x`.
    pub y: ViewMut<'a, T, B>,
    /// Scale and shift, `[channels]`.
    pub affine: Affine<'a, T, B>,
    /// Where to keep the mean of the batch, [`BatchNorm::statistics_len`] values.
    pub mean: Option<B::Mut<'a, f32>>,
    /// Where to keep its reciprocal standard deviation, likewise.
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
    /// Output, shaped like `x`.
    pub y: ViewMut<'a, T, B>,
    /// Scale and shift, `[channels]`.
    pub affine: Affine<'a, T, B>,
    /// Running mean, [`BatchNorm::statistics_len`] values.
    pub running_mean: B::Ref<'a, f32>,
    /// Running variance, likewise.
    pub running_var: B::Ref<'a, f32>,
}

/// Buffers of [`BatchNorm::backward_train_into`].
pub struct BatchNormBackwardTrain<'a, T: Element, B: Backend> {
    /// Input of the forward pass.
    pub x: View<'a, T, B>,
    /// Gradient of its output, shaped like `x`.
    pub dy: View<'a, T, B>,
    /// Scale and shift of the forward pass; the shift is not read.
    pub affine: Affine<'a, T, B>,
    /// Mean that the forward pass saved.
    pub mean: B::Ref<'a, f32>,
    /// Reciprocal standard deviation that the forward pass saved.
    pub rstd: B::Ref<'a, f32>,
    /// Gradient of the input, shaped like it, if wanted.
    pub dx: Option<ViewMut<'a, T, B>>,
    /// Gradients of scale and shift, `[channels]`, as far as wanted.
    pub grads: AffineGrad<'a, T, B>,
    /// Scratch memory made by [`BatchNorm::workspace`].
    pub workspace: &'a mut Workspace<B>,
}

/// Buffers of [`BatchNorm::backward_eval_into`].
pub struct BatchNormBackwardEval<'a, T: Element, B: Backend> {
    /// Input of the forward pass.
    pub x: View<'a, T, B>,
    /// Gradient of its output, shaped like `x`.
    pub dy: View<'a, T, B>,
    /// Scale and shift of the forward pass; the shift is not read.
    pub affine: Affine<'a, T, B>,
    /// Running mean of the forward pass.
    pub running_mean: B::Ref<'a, f32>,
    /// Running variance of the forward pass.
    pub running_var: B::Ref<'a, f32>,
    /// Gradient of the input, shaped like it, if wanted.
    pub dx: Option<ViewMut<'a, T, B>>,
    /// Gradients of scale and shift, `[channels]`, as far as wanted.
    pub grads: AffineGrad<'a, T, B>,
    /// Scratch memory made by [`BatchNorm::workspace`].
    pub workspace: &'a mut Workspace<B>,
}
