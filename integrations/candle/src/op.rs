//! The op that stands in candle's graph for every layer.

mod backward;
mod custom;
mod forward;

use std::{
    any::Any,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use candle::{DType, Error, Layout, Result, Storage, StorageRef, Tensor, WithDType, backend::BackendStorage};
use warpnorm::{Affine, Backend, BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RmsNorm, View, ViewMut};

use crate::memory::{Memory, Number, Ref, offset};

/// What is computed.
#[derive(Clone, Debug)]
pub(crate) enum Norm {
    Rows(Rows),
    Channels(Channels),
    /// A norm of channels by a running mean and variance, in `f32` and contiguous.
    Running(BatchNorm, [Tensor; 2]),
}

/// A norm of rows.
#[derive(Clone, Debug)]
pub(crate) enum Rows {
    Layer(LayerNorm),
    Rms(RmsNorm),
}

/// A norm of channels by the statistics of its input.
#[derive(Clone, Debug)]
pub(crate) enum Channels {
    Group(GroupNorm),
    Instance(InstanceNorm),
    /// With a running mean and variance to be moved, in `f32` and contiguous.
    Batch(BatchNorm, [Tensor; 2]),
}

impl Norm {
    fn name(&self) -> &'static str {
        match self {
            Self::Rows(Rows::Layer(_)) => "layer-norm",
            Self::Rows(Rows::Rms(_)) => "rms-norm",
            Self::Channels(Channels::Group(_)) => "group-norm",
            Self::Channels(Channels::Instance(_)) => "instance-norm",
            Self::Channels(Channels::Batch(..)) | Self::Running(..) => "batch-norm",
        }
    }

    fn is_of_rows(&self) -> bool {
        matches!(self, Self::Rows(_))
    }
}

/// How weight and bias come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Params {
    None,
    Weight,
    /// As two arguments.
    Both,
    /// As the rows of one, since an op takes three arguments.
    Stacked,
}

/// A norm of `x`; with a residual, which norms of rows add before and those of channels behind.
pub(crate) struct Call<'a> {
    pub(crate) norm: Norm,
    pub(crate) x: &'a Tensor,
    pub(crate) residual: Option<&'a Tensor>,
    /// A bias comes with a weight.
    pub(crate) weight: Option<&'a Tensor>,
    pub(crate) bias: Option<&'a Tensor>,
    /// Whether the last dimension holds the channels.
    pub(crate) channels_last: bool,
}

/// What a call gives.
pub(crate) struct Output {
    pub(crate) y: Tensor,
    /// Running mean and variance where they move.
    pub(crate) running: Option<[Tensor; 2]>,
}

impl Call<'_> {
    /// Puts the op of a norm of channels, or of rows without a residual, into the graph. All tensors must be contiguous.
    pub(crate) fn apply(self) -> Result<Output> {
        self.check()?;
        let Self { norm, x, residual, weight, bias, channels_last } = self;
        let stacked;
        let (params, first, second) = match (weight, bias, residual) {
            (None, _, _) => (Params::None, None, None),
            (Some(weight), None, _) => (Params::Weight, Some(weight), None),
            (Some(weight), Some(bias), None) => (Params::Both, Some(weight), Some(bias)),
            (Some(weight), Some(bias), Some(_)) => {
                stacked = Tensor::stack(&[weight, bias], 0)?;
                (Params::Stacked, Some(&stacked), None)
            }
        };
        let args: Vec<&Tensor> = [Some(x), residual, first, second].into_iter().flatten().collect();
        let keeps = args.iter().any(|arg| arg.track_op());
        let has_residual = residual.is_some();
        let op = Op {
            norm,
            params,
            has_residual,
            channels_last,
            keeps,
            saved: Arc::default(),
            given: Given::default(),
        };
        let saved = op.saved.clone();
        let y = op.apply(&args)?;
        Ok(Output { y, running: saved.running.get().cloned() })
    }

    /// Computes a norm of rows and the sum that it is of in one pass, and puts both into the graph: `(norm(h), h)`.
    pub(crate) fn apply_sum(self, residual: &Tensor) -> Result<(Tensor, Tensor)> {
        self.check()?;
        check_residual(&self.norm, self.x, residual)?;
        let Self { norm, x, weight, bias, channels_last, .. } = self;
        let of_params: Vec<&Tensor> = [weight, bias].into_iter().flatten().collect();
        let params = [Params::None, Params::Weight, Params::Both][of_params.len()];
        let args: Vec<&Tensor> = [x, residual].into_iter().chain(of_params.iter().copied()).collect();
        let keeps = args.iter().any(|arg| arg.track_op());
        let mut op = Op {
            norm,
            params,
            has_residual: false,
            channels_last,
            keeps,
            saved: Arc::default(),
            given: Given::default(),
        };
        let [y, h] = op.sum(&args)?;
        op.given = Given::new(y);
        let sum = Sum(Given::new(h));
        let tracks = x.track_op() || residual.track_op();
        let h = if tracks { x.apply_op2(residual, sum)? } else { x.apply_op2_no_bwd(residual, &sum)? };
        let args: Vec<&Tensor> = [&h].into_iter().chain(of_params).collect();
        let y = op.apply(&args)?;
        Ok((y, h))
    }

    fn check(&self) -> Result<()> {
        let &Self { ref norm, x, weight, bias, .. } = self;
        for (name, param) in [("weight", weight), ("bias", bias)] {
            let Some(param) = param else { continue };
            let of_weight = weight.is_none_or(|weight| weight.dtype() == param.dtype());
            if !of_weight || param.dtype() != x.dtype() && param.dtype() != DType::F32 {
                return Err(Error::msg(format!(
                    "{}: `{name}` is {:?} beside `x` of {:?}; weight and bias must both be of that type or both F32",
                    norm.name(),
                    param.dtype(),
                    x.dtype(),
                )));
            }
        }
        if let (Some(weight), Some(bias)) = (weight, bias)
            && weight.dims() != bias.dims()
        {
            return Err(Error::msg(format!(
                "{}: `bias` is {:?}, it must be {:?} like `weight`",
                norm.name(),
                bias.dims(),
                weight.dims(),
            )));
        }
        Ok(())
    }
}

/// That both can be added, in the dimensions that the caller knows them by.
pub(crate) fn check_residual(norm: &Norm, x: &Tensor, residual: &Tensor) -> Result<()> {
    if residual.dims() == x.dims() && residual.dtype() == x.dtype() {
        return Ok(());
    }
    Err(Error::msg(format!(
        "{}: `residual` is {:?} of {:?}, it must be {:?} of {:?} like `x`",
        norm.name(),
        residual.dims(),
        residual.dtype(),
        x.dims(),
        x.dtype(),
    )))
}

/// What the forward pass leaves.
#[derive(Default)]
struct Saved {
    /// [`Statistics`] of the memory in question.
    statistics: OnceLock<Box<dyn Any + Send + Sync>>,
    running: OnceLock<[Tensor; 2]>,
}

/// What the backward pass needs beside its arguments.
struct Statistics<M: Memory> {
    /// `None` for RMSNorm.
    mean: Option<M::Buffer<f32>>,
    rstd: M::Buffer<f32>,
}

/// The error where there is nothing of that kind.
fn lost() -> Error {
    Error::msg("the forward pass has kept no statistics")
}

/// One of these stands in the graph for each call.
struct Op {
    norm: Norm,
    params: Params,
    has_residual: bool,
    channels_last: bool,
    /// Whether there will be a backward pass.
    keeps: bool,
    saved: Arc<Saved>,
    /// The result, where it is there before the op is.
    given: Given,
}

/// A result that an op only hands on.
#[derive(Default)]
struct Given(Mutex<Option<Storage>>);

impl Given {
    fn new(storage: Storage) -> Self {
        Self(Mutex::new(Some(storage)))
    }

    fn take<M: Memory>(&self) -> Option<M::Storage> {
        let storage = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        storage.and_then(M::unwrap)
    }
}

/// The sum of two tensors, which has been computed.
struct Sum(Given);

/// A tensor as an op is given it.
type Arg<'a, M> = (&'a <M as Memory>::Storage, &'a Layout);

/// Tensors that nobody writes as long as this lives.
fn guarded<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Vec<(StorageRef<'a>, &'a Layout)> {
    tensors.map(Tensor::storage_and_layout).collect()
}

fn stored<'a, M: Memory>(guards: &'a [(StorageRef<'_>, &'a Layout)]) -> Result<Vec<Arg<'a, M>>> {
    guards.iter().map(|(storage, layout)| Ok((M::of(storage)?, *layout))).collect()
}

impl Op {
    /// Puts itself into the graph, or only does what it does where nothing is tracked.
    fn apply(self, args: &[&Tensor]) -> Result<Tensor> {
        match *args {
            [x] if self.keeps => x.apply_op1(self),
            [x] => x.apply_op1_no_bwd(&self),
            [x, a] if self.keeps => x.apply_op2(a, self),
            [x, a] => x.apply_op2_no_bwd(a, &self),
            [x, a, b] if self.keeps => x.apply_op3(a, b, self),
            [x, a, b] => x.apply_op3_no_bwd(a, b, &self),
            _ => Err(Error::msg("an op takes one to three tensors")),
        }
    }

    /// Elements of an argument.
    fn elements<'a, T: Number, M: Memory>(&self, arg: Arg<'a, M>) -> Result<Ref<'a, M, T>> {
        elements::<T, M>(self.norm.name(), arg)
    }

    fn view<'a, T: Number, M: Memory>(&self, arg: Arg<'a, M>) -> Result<View<'a, T, M::Backend>> {
        self.seen(self.elements::<T, M>(arg)?, &self.dims(arg.1))
    }

    /// Dimensions as warpnorm is told: rows and columns, or those that are there.
    fn dims(&self, layout: &Layout) -> Vec<usize> {
        match (self.norm.is_of_rows(), layout.dims()) {
            (true, [rows @ .., cols]) => vec![rows.iter().product(), *cols],
            (_, dims) => dims.to_vec(),
        }
    }

    /// As a tensor of this op.
    fn seen<'a, T: Number, B: Backend>(&self, data: B::Ref<'a, T>, dims: &[usize]) -> Result<View<'a, T, B>> {
        let view = View::new(data, dims).map_err(Error::wrap)?;
        Ok(if self.channels_last { view.channels_last() } else { view })
    }

    fn seen_mut<'a, T: Number, B: Backend>(
        &self,
        data: B::Mut<'a, T>,
        dims: &[usize],
    ) -> Result<ViewMut<'a, T, B>> {
        let view = ViewMut::new(data, dims).map_err(Error::wrap)?;
        Ok(if self.channels_last { view.channels_last() } else { view })
    }

    /// Weight and bias as they come in these arguments.
    fn affine<'a, T: Number, M: Memory>(&self, args: &[Arg<'a, M>]) -> Result<Affine<'a, T, M::Backend>> {
        let Some(&first) = args.first() else { return Ok(Affine::None) };
        if first.0.dtype() == <T as WithDType>::DTYPE {
            let [weight, bias] = self.parameters::<T, M>(first, args)?;
            return Ok(Affine::Same { weight, bias });
        }
        let [weight, bias] = self.parameters::<f32, M>(first, args)?;
        Ok(Affine::F32 { weight, bias })
    }

    fn parameters<'a, P: Number, M: Memory>(
        &self,
        first: Arg<'a, M>,
        args: &[Arg<'a, M>],
    ) -> Result<[Option<Ref<'a, M, P>>; 2]> {
        if self.params == Params::Stacked {
            let (storage, layout) = first;
            let (start, len) = (offset(self.norm.name(), layout)?, layout.shape().elem_count() / 2);
            return Ok([
                Some(M::elements(storage, start, len)?),
                Some(M::elements(storage, start + len, len)?),
            ]);
        }
        let second = args.get(1).map(|&arg| self.elements::<P, M>(arg)).transpose()?;
        Ok([Some(self.elements::<P, M>(first)?), second])
    }
}

/// Running mean and variance that nobody writes as long as this lives.
struct Running<'a>([(StorageRef<'a>, &'a Layout); 2]);

impl<'a> Running<'a> {
    fn new(running: &'a [Tensor; 2]) -> Self {
        Self(running.each_ref().map(Tensor::storage_and_layout))
    }

    fn statistics<M: Memory>(&self) -> Result<[Ref<'_, M, f32>; 2]> {
        let [(mean, mean_at), (var, var_at)] = &self.0;
        let of = |storage, at| elements::<f32, M>("batch-norm", (M::of(storage)?, at));
        Ok([of(mean, mean_at)?, of(var, var_at)?])
    }
}

/// Elements of a tensor.
fn elements<'a, T: Number, M: Memory>(
    op: &'static str,
    (storage, layout): Arg<'a, M>,
) -> Result<Ref<'a, M, T>> {
    M::elements(storage, offset(op, layout)?, layout.shape().elem_count())
}
