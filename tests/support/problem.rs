//! What a normalization is asked to compute, with every number as an `f64`.

use std::{borrow::Cow, collections::BTreeMap};

use warpnorm::{Activation, DType, Layout, Statistics};

use super::{
    judge::{Format, tolerances},
    reference::reference,
};

/// Tensors by the names of the golden vectors: `y`, `dx`, `dgamma`, `batch_mean` and so on.
pub(crate) type Values = BTreeMap<&'static str, Vec<f64>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    BatchNormTrain,
    BatchNormEval,
    LayerNorm,
    RmsNorm,
    GroupNorm,
    InstanceNorm,
    InstanceNormEval,
}

impl Op {
    /// The op of this name in a manifest, if the crate has it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "batch_norm_train" => Some(Self::BatchNormTrain),
            "batch_norm_eval" => Some(Self::BatchNormEval),
            "layer_norm" => Some(Self::LayerNorm),
            "rms_norm" => Some(Self::RmsNorm),
            "group_norm" => Some(Self::GroupNorm),
            "instance_norm" => Some(Self::InstanceNorm),
            "instance_norm_eval" => Some(Self::InstanceNormEval),
            _ => None,
        }
    }

    /// Every tensor that a manifest's reference of the op may hold, whether the crate returns it or not.
    pub(crate) fn tensors(self) -> &'static [&'static str] {
        match self {
            Self::BatchNormTrain => &[
                "y",
                "dx",
                "dgamma",
                "dbeta",
                "batch_mean",
                "batch_var",
                "batch_invstd",
                "running_mean",
                "running_var",
            ],
            Self::BatchNormEval | Self::InstanceNormEval => &["y", "dx", "dgamma", "dbeta"],
            Self::LayerNorm | Self::GroupNorm => &["y", "dx", "dgamma", "dbeta", "mean", "var", "rstd"],
            Self::InstanceNorm => {
                &["y", "dx", "dgamma", "dbeta", "mean", "var", "rstd", "running_mean", "running_var"]
            }
            Self::RmsNorm => &["y", "dx", "dgamma", "dbeta", "rstd"],
        }
    }

    /// What the op calls its mean, biased variance and reciprocal standard deviation; `None` where they are given.
    pub(crate) fn statistics(self) -> Option<[&'static str; 3]> {
        match self {
            Self::BatchNormTrain => Some(["batch_mean", "batch_var", "batch_invstd"]),
            Self::BatchNormEval | Self::InstanceNormEval => None,
            Self::LayerNorm | Self::RmsNorm | Self::GroupNorm | Self::InstanceNorm => {
                Some(["mean", "var", "rstd"])
            }
        }
    }

    /// Whether the op normalizes rows, over trailing dimensions.
    pub(crate) fn is_row_norm(self) -> bool {
        matches!(self, Self::LayerNorm | Self::RmsNorm)
    }
}

/// Mean and unbiased variance, one each for every statistic that is kept.
#[derive(Clone, Debug)]
pub(crate) struct Running {
    pub(crate) mean: Vec<f64>,
    pub(crate) var: Vec<f64>,
}

/// One op and its inputs.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub(crate) op: Op,
    /// As they lie in memory.
    pub(crate) dims: Vec<usize>,
    pub(crate) layout: Layout,
    /// What the statistics of a BatchNorm are taken over.
    pub(crate) statistics: Statistics,
    /// Samples of a chunk that a BatchNorm takes for a batch.
    pub(crate) virtual_batch: Option<usize>,
    /// How many trailing dimensions a row norm normalizes over.
    pub(crate) norm_dims: usize,
    /// Of a GroupNorm.
    pub(crate) groups: usize,
    /// One batch per step; everything but the running statistics is of the last.
    pub(crate) x: Vec<Vec<f64>>,
    /// Added before a row norm, or before the activation of the others.
    pub(crate) residual: Option<Vec<f64>>,
    pub(crate) dy: Vec<f64>,
    /// What reaches the sum before a row norm by its other uses.
    pub(crate) dh: Option<Vec<f64>>,
    pub(crate) weight: Option<Vec<f64>>,
    pub(crate) bias: Option<Vec<f64>>,
    pub(crate) weight_offset: f32,
    pub(crate) activation: Activation,
    pub(crate) eps: f32,
    /// Before the first step, or what inference normalizes with.
    pub(crate) running: Option<Running>,
    pub(crate) momentum: Option<f32>,
    /// Batches that the running statistics have seen before the first step.
    pub(crate) batches: u64,
    /// What the gradients of weight and bias are added to.
    pub(crate) old_grads: Option<[Vec<f64>; 2]>,
    /// The type that the tensors are rounded to, once they are.
    pub(crate) data: Option<DType>,
}

impl Problem {
    pub(crate) fn last_x(&self) -> &[f64] {
        self.x.last().expect("a problem has a batch")
    }

    /// The sum that a row norm normalizes in place of `x`, rounded to the tensor's type as it is stored.
    pub(crate) fn sum(&self) -> Option<Vec<f64>> {
        let residual = self.residual.as_ref().filter(|_| self.op.is_row_norm())?;
        let round = |v: f64| self.data.map_or(v, |data| Format::of(data).round(v));
        Some(self.last_x().iter().zip(residual).map(|(x, r)| round(x + r)).collect())
    }

    /// What is normalized.
    pub(crate) fn normalized(&self) -> Cow<'_, [f64]> {
        self.sum().map_or(Cow::Borrowed(self.last_x()), Cow::Owned)
    }

    /// What an element's `x_hat` is multiplied by, given the index of its weight.
    pub(crate) fn factor(&self, param: usize) -> f64 {
        self.weight.as_ref().map_or(1.0, |w| f64::from(self.weight_offset) + w[param])
    }

    /// The weight of step `step` in the running statistics.
    pub(crate) fn momentum_at(&self, step: usize) -> f64 {
        self.momentum.map_or_else(|| 1.0 / (self.batches + step as u64 + 1) as f64, f64::from)
    }

    /// The running statistics that training moves; those of inference stay where they are.
    pub(crate) fn tracked(&self) -> Option<&Running> {
        self.running.as_ref().filter(|_| matches!(self.op, Op::BatchNormTrain | Op::InstanceNorm))
    }

    /// The dimensions of a batch: without the time steps, where statistics are of each.
    fn batch_dims(&self) -> &[usize] {
        let per_step = matches!(self.statistics, Statistics::PerTimeStep { .. });
        &self.dims[usize::from(per_step)..]
    }

    pub(crate) fn channels(&self) -> usize {
        let dims = self.batch_dims();
        match self.layout {
            Layout::ChannelsLast if dims.len() > 2 => dims[dims.len() - 1],
            _ => dims[1],
        }
    }

    /// Elements that a row norm normalizes over.
    pub(crate) fn cols(&self) -> usize {
        self.dims[self.dims.len() - self.norm_dims..].iter().product()
    }

    /// Weights and biases, where there are any.
    pub(crate) fn params(&self) -> usize {
        if self.op.is_row_norm() { self.cols() } else { self.channels() }
    }

    /// The same problem with the tensors rounded to `data`, weight and bias to `affine`.
    pub(crate) fn rounded(&self, data: DType, affine: DType) -> Self {
        let round = |values: &Vec<f64>, to| values.iter().map(|&v| Format::of(to).round(v)).collect();
        let mut rounded = Self {
            x: self.x.iter().map(|x| round(x, data)).collect(),
            residual: self.residual.as_ref().map(|v| round(v, data)),
            dy: round(&self.dy, data),
            dh: self.dh.as_ref().map(|v| round(v, data)),
            weight: self.weight.as_ref().map(|v| round(v, affine)),
            bias: self.bias.as_ref().map(|v| round(v, affine)),
            data: Some(data),
            ..self.clone()
        };
        // Within rounding of ReLU's kink a gradient may go either way, so none arrives there.
        if self.activation == Activation::Relu {
            let (z, t_z) = (reference(&rounded), tolerances(&rounded));
            for (i, dy) in rounded.dy.iter_mut().enumerate() {
                if z["z"][i].abs() <= t_z["z"][i] {
                    *dy = 0.0;
                }
            }
        }
        rounded
    }

    pub(crate) fn geometry(&self) -> Geometry {
        let len: usize = self.dims.iter().product();
        if self.op.is_row_norm() {
            let cols = self.cols();
            let rows = self.dims[..self.dims.len() - self.norm_dims].iter().product();
            let at = |i: usize| (i / cols, i % cols);
            let (group, param) = (0..len).map(at).unzip();
            return Geometry { group, param, groups: rows, params: cols };
        }
        let (dims, channels) = (self.batch_dims(), self.channels());
        let (samples, sample): (usize, usize) = (dims[0], dims[1..].iter().product());
        let inner = match self.layout {
            Layout::ChannelsLast if dims.len() > 2 => 1,
            _ => dims[2..].iter().product(),
        };
        let param: Vec<usize> = (0..len).map(|i| i / inner % channels).collect();
        // The statistic of an element, from the number of its sample and its channel; samples of all steps are counted.
        let by_sample = |groups: usize, statistic: &dyn Fn(usize, usize) -> usize| Geometry {
            group: (0..len).map(|i| statistic(i / sample, param[i])).collect(),
            param: param.clone(),
            groups,
            params: channels,
        };
        match (self.op, self.statistics, self.virtual_batch) {
            (Op::GroupNorm, ..) => {
                let neighbors = channels / self.groups;
                by_sample(samples * self.groups, &|sample, c| sample * self.groups + c / neighbors)
            }
            (Op::InstanceNorm, ..) => by_sample(samples * channels, &|sample, c| sample * channels + c),
            (Op::BatchNormTrain, Statistics::PerChannel, Some(chunk)) => {
                by_sample(samples / chunk * channels, &|sample, c| sample / chunk * channels + c)
            }
            (_, Statistics::PerChannel, _) => by_sample(channels, &|_, c| c),
            (_, Statistics::WholeBatch, _) => by_sample(1, &|_, _| 0),
            (_, Statistics::PerTimeStep { steps }, _) => {
                by_sample(steps * channels, &|sample, c| sample / samples * channels + c)
            }
        }
    }
}

/// Which statistic normalizes each element, and which weight and bias follow: all that the ops differ in.
pub(crate) struct Geometry {
    pub(crate) group: Vec<usize>,
    pub(crate) param: Vec<usize>,
    pub(crate) groups: usize,
    pub(crate) params: usize,
}

impl Geometry {
    /// Elements behind each statistic.
    pub(crate) fn count(&self) -> f64 {
        self.group.len() as f64 / self.groups as f64
    }

    /// Sums `term(i)` over the elements of each statistic.
    pub(crate) fn group_sums(&self, term: impl Fn(usize) -> f64) -> Vec<f64> {
        sums(&self.group, self.groups, term)
    }

    /// Sums `term(i)` over the elements of each weight.
    pub(crate) fn param_sums(&self, term: impl Fn(usize) -> f64) -> Vec<f64> {
        sums(&self.param, self.params, term)
    }
}

fn sums(index: &[usize], len: usize, term: impl Fn(usize) -> f64) -> Vec<f64> {
    let mut sums = vec![0.0; len];
    for (i, &to) in index.iter().enumerate() {
        sums[to] += term(i);
    }
    sums
}
