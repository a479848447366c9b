//! What a normalization is asked to compute, with every number as an `f64`.

use std::collections::BTreeMap;

use warpnorm::{DType, Layout, Statistics};

use super::judge::Format;

/// Tensors by the names of the golden vectors: `y`, `dx`, `dgamma`, `batch_mean` and so on.
pub(crate) type Values = BTreeMap<&'static str, Vec<f64>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    BatchNormTrain,
    BatchNormEval,
    LayerNorm,
}

impl Op {
    /// The op of this name in a manifest, if the crate has it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "batch_norm_train" => Some(Self::BatchNormTrain),
            "batch_norm_eval" => Some(Self::BatchNormEval),
            "layer_norm" => Some(Self::LayerNorm),
            _ => None,
        }
    }

    /// Every tensor that a reference of the op may hold, whether the crate returns it or not.
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
            Self::BatchNormEval => &["y", "dx", "dgamma", "dbeta"],
            Self::LayerNorm => &["y", "dx", "dgamma", "dbeta", "mean", "var", "rstd"],
        }
    }

    /// What the op calls its mean, biased variance and reciprocal standard deviation; `None` where they are given.
    pub(crate) fn statistics(self) -> Option<[&'static str; 3]> {
        match self {
            Self::BatchNormTrain => Some(["batch_mean", "batch_var", "batch_invstd"]),
            Self::BatchNormEval => None,
            Self::LayerNorm => Some(["mean", "var", "rstd"]),
        }
    }
}

/// Mean and unbiased variance, one each for every statistic.
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
    /// How many trailing dimensions a LayerNorm normalizes over.
    pub(crate) norm_dims: usize,
    /// One batch per step; everything but the running statistics is of the last.
    pub(crate) x: Vec<Vec<f64>>,
    pub(crate) dy: Vec<f64>,
    pub(crate) weight: Option<Vec<f64>>,
    pub(crate) bias: Option<Vec<f64>>,
    pub(crate) eps: f32,
    /// Before the first step, or what inference normalizes with.
    pub(crate) running: Option<Running>,
    pub(crate) momentum: Option<f32>,
    /// Batches that the running statistics have seen before the first step.
    pub(crate) batches: u64,
}

impl Problem {
    pub(crate) fn last_x(&self) -> &[f64] {
        self.x.last().expect("a problem has a batch")
    }

    /// The weight of step `step` in the running statistics.
    pub(crate) fn momentum_at(&self, step: usize) -> f64 {
        self.momentum.map_or_else(|| 1.0 / (self.batches + step as u64 + 1) as f64, f64::from)
    }

    /// The running statistics that training moves; those of inference stay where they are.
    pub(crate) fn tracked(&self) -> Option<&Running> {
        self.running.as_ref().filter(|_| self.op == Op::BatchNormTrain)
    }

    pub(crate) fn channels(&self) -> usize {
        match self.layout {
            Layout::ChannelsFirst => self.dims[1],
            Layout::ChannelsLast => self.dims[self.dims.len() - 1],
        }
    }

    /// Elements that a LayerNorm normalizes over.
    pub(crate) fn cols(&self) -> usize {
        self.dims[self.dims.len() - self.norm_dims..].iter().product()
    }

    /// The same problem with `x` and `dy` rounded to `data`, weight and bias to `affine`.
    pub(crate) fn rounded(&self, data: DType, affine: DType) -> Self {
        let round = |values: &Vec<f64>, to| values.iter().map(|&v| Format::of(to).round(v)).collect();
        Self {
            x: self.x.iter().map(|x| round(x, data)).collect(),
            dy: round(&self.dy, data),
            weight: self.weight.as_ref().map(|v| round(v, affine)),
            bias: self.bias.as_ref().map(|v| round(v, affine)),
            ..self.clone()
        }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        let len = self.dims.iter().product();
        if self.op == Op::LayerNorm {
            let cols = self.cols();
            let rows = self.dims[..self.dims.len() - self.norm_dims].iter().product();
            let at = |i: usize| (i / cols, i % cols);
            let (group, param) = (0..len).map(at).unzip();
            return Geometry { group, param, groups: rows, params: cols };
        }
        let channels = self.channels();
        let inner = match self.layout {
            Layout::ChannelsFirst => self.dims[2..].iter().product(),
            Layout::ChannelsLast => 1,
        };
        let param: Vec<usize> = (0..len).map(|i| i / inner % channels).collect();
        match self.statistics {
            Statistics::PerChannel => {
                Geometry { group: param.clone(), param, groups: channels, params: channels }
            }
            Statistics::WholeBatch => Geometry { group: vec![0; len], param, groups: 1, params: channels },
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
