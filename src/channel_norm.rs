//! What the ops of the channel family hand to a backend, checked against its shape.

use crate::{Affine, AffineGrad, Backend, Element, backend::WorkspaceMut};

/// A forward pass of the channel norms, checked against its shape.
pub struct ChannelNormForward<'a, T: Element, B: Backend> {
    pub(crate) x: B::Ref<'a, T>,
    pub(crate) y: B::Mut<'a, T>,
    pub(crate) affine: Affine<'a, T, B>,
    pub(crate) eps: f32,
    pub(crate) source: ForwardStatistics<'a, B>,
}

/// Where a forward pass takes its statistics from.
pub(crate) enum ForwardStatistics<'a, B: Backend> {
    Batch {
        whole_batch: bool,
        mean: Option<B::Mut<'a, f32>>,
        rstd: Option<B::Mut<'a, f32>>,
        running: Option<RunningUpdate<'a, B>>,
        #[cfg_attr(not(any(feature = "cuda", feature = "emulator")), expect(dead_code))]
        // the CPU needs none
        workspace: WorkspaceMut<'a, B>,
    },
    Running {
        whole_batch: bool,
        mean: B::Ref<'a, f32>,
        var: B::Ref<'a, f32>,
    },
}

/// Running statistics, and the weight of the new value in them.
pub(crate) struct RunningUpdate<'a, B: Backend> {
    pub(crate) mean: B::Mut<'a, f32>,
    pub(crate) var: B::Mut<'a, f32>,
    pub(crate) momentum: f32,
}

/// A backward pass of the channel norms, checked against its shape.
pub struct ChannelNormBackward<'a, T: Element, B: Backend> {
    pub(crate) x: B::Ref<'a, T>,
    pub(crate) dy: B::Ref<'a, T>,
    pub(crate) affine: Affine<'a, T, B>,
    pub(crate) eps: f32,
    pub(crate) whole_batch: bool,
    pub(crate) source: BackwardStatistics<'a, B>,
    pub(crate) dx: Option<B::Mut<'a, T>>,
    pub(crate) grads: AffineGrad<'a, T, B>,
    #[cfg_attr(not(any(feature = "cuda", feature = "emulator")), expect(dead_code))] // the CPU needs none
    pub(crate) workspace: WorkspaceMut<'a, B>,
}

/// The statistics that a backward pass differentiates through, or takes as constants.
pub(crate) enum BackwardStatistics<'a, B: Backend> {
    Batch { mean: B::Ref<'a, f32>, rstd: B::Ref<'a, f32> },
    Running { mean: B::Ref<'a, f32>, var: B::Ref<'a, f32> },
}
