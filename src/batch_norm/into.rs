//! The calls of a BatchNorm that write to the caller's buffers.

use super::{
    BatchNorm, BatchNormBackwardEval, BatchNormBackwardTrain, BatchNormEval, BatchNormEvalInPlace,
    BatchNormTrain, BatchNormTrainInPlace,
};
use crate::{Backend, Element, Result};

#[cfg(doc)]
use crate::Error;

/// Into the caller's buffers.
impl BatchNorm {
    /// [`forward_train`](Self::forward_train) into the caller's buffers.
    ///
    /// # Errors
    ///
    /// As [`forward_train`](Self::forward_train), [`Error::ShapeMismatch`] where a tensor is not shaped like `x`,
    /// [`Error::Strided`] where one has gaps, [`Error::Workspace`] where the workspace was made for less, and
    /// [`Error::WrongDevice`].
    pub fn forward_train_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: BatchNormTrain<'_, T, B>,
    ) -> Result<()> {
        self.op()?.train(on, args.parts())
    }

    /// [`forward_train_into`](Self::forward_train_into) with the output in place of the input. A backward pass needs
    /// the input, so this serves networks that keep it elsewhere or have none.
    ///
    /// # Errors
    ///
    /// As [`forward_train_into`](Self::forward_train_into).
    pub fn forward_train_in_place_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: BatchNormTrainInPlace<'_, T, B>,
    ) -> Result<()> {
        self.op()?.train(on, args.parts())
    }

    /// [`forward_eval`](Self::forward_eval) into the caller's buffers.
    ///
    /// # Errors
    ///
    /// As [`forward_eval`](Self::forward_eval), [`Error::ShapeMismatch`] where a tensor is not shaped like `x`,
    /// [`Error::Strided`] where one has gaps, and [`Error::WrongDevice`].
    pub fn forward_eval_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: BatchNormEval<'_, T, B>,
    ) -> Result<()> {
        let (tensors, statistics) = args.parts();
        self.op()?.forward_fixed(on, tensors, statistics)
    }

    /// [`forward_eval_into`](Self::forward_eval_into) with the output in place of the input.
    ///
    /// # Errors
    ///
    /// As [`forward_eval_into`](Self::forward_eval_into).
    pub fn forward_eval_in_place_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: BatchNormEvalInPlace<'_, T, B>,
    ) -> Result<()> {
        let (tensors, statistics) = args.parts();
        self.op()?.forward_fixed(on, tensors, statistics)
    }

    /// [`backward_train`](Self::backward_train) into the caller's buffers.
    ///
    /// # Errors
    ///
    /// As [`backward_train`](Self::backward_train), [`Error::Strided`] where a tensor has gaps, [`Error::Workspace`]
    /// where the workspace was made for less, and [`Error::WrongDevice`].
    pub fn backward_train_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: BatchNormBackwardTrain<'_, T, B>,
    ) -> Result<()> {
        let (tensors, mean, rstd) = args.parts();
        self.op()?.backward_batch(on, tensors, mean, rstd)
    }

    /// [`backward_eval`](Self::backward_eval) into the caller's buffers.
    ///
    /// # Errors
    ///
    /// As [`backward_train_into`](Self::backward_train_into).
    pub fn backward_eval_into<T: Element, B: Backend>(
        &self,
        on: &B,
        args: BatchNormBackwardEval<'_, T, B>,
    ) -> Result<()> {
        let (tensors, statistics) = args.parts();
        self.op()?.backward_fixed(on, tensors, statistics)
    }
}
