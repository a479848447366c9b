//! Random problems. A seed always gives the same one.

use core::f64::consts::TAU;

use warpnorm::{
    Activation, Affine, Backend, BatchNormTrain, DType, Element, Layout, Statistics, Tensor, Workspace,
};

use super::{
    judge::Format,
    problem::{Op, Problem, Running},
    run::{Options, Params},
};

/// A value whose sums in f32 round the same way step after step: a chain of 64 is off by 16 units in the last place, one
/// of 128 by 26. Of 1/3 they are off by 1.5 and 7.5.
pub(crate) const ROUNDS_ONE_WAY: f64 = 0.434_424_4;

/// SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly distributed over `(0, 1]`.
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn flip(&mut self) -> bool {
        self.bits() >> 63 == 1
    }

    /// Normally distributed, mean 0, standard deviation 1.
    pub(crate) fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (TAU * self.unit()).cos()
    }

    pub(crate) fn normals(&mut self, len: usize, mean: f64, sd: f64) -> Vec<f64> {
        (0..len).map(|_| mean + sd * self.normal()).collect()
    }
}

/// Dimensions that a kernel sees as `[outer, channels, inner]`.
pub(crate) fn dims([outer, channels, inner]: [usize; 3], layout: Layout) -> Vec<usize> {
    match layout {
        Layout::ChannelsFirst => vec![outer, channels, inner],
        Layout::ChannelsLast => vec![outer, inner, channels],
    }
}

/// A training problem of normally distributed `x` and `dy`, with weight and bias and running statistics.
pub(crate) fn batch_norm_train(dims: &[usize], layout: Layout, seed: u64) -> Problem {
    let mut problem = batch_norm(Op::BatchNormTrain, dims, layout, seed);
    problem.momentum = Some(0.1);
    problem
}

/// An inference problem likewise.
pub(crate) fn batch_norm_eval(dims: &[usize], layout: Layout, seed: u64) -> Problem {
    batch_norm(Op::BatchNormEval, dims, layout, seed)
}

/// A LayerNorm over the last `norm_dims` dimensions, likewise.
pub(crate) fn layer_norm(dims: &[usize], norm_dims: usize, seed: u64) -> Problem {
    let params = dims[dims.len() - norm_dims..].iter().product();
    problem(Op::LayerNorm, dims, Layout::ChannelsFirst, norm_dims, params, seed)
}

/// An RMSNorm over the last `norm_dims` dimensions, likewise.
pub(crate) fn rms_norm(dims: &[usize], norm_dims: usize, seed: u64) -> Problem {
    Problem { op: Op::RmsNorm, ..layer_norm(dims, norm_dims, seed) }
}

/// A GroupNorm, likewise.
pub(crate) fn group_norm(dims: &[usize], layout: Layout, groups: usize, seed: u64) -> Problem {
    Problem { groups, ..problem(Op::GroupNorm, dims, layout, 0, channels(dims, layout), seed) }
}

/// An InstanceNorm with running statistics, likewise.
pub(crate) fn instance_norm(dims: &[usize], layout: Layout, seed: u64) -> Problem {
    Problem { momentum: Some(0.1), ..batch_norm(Op::InstanceNorm, dims, layout, seed) }
}

/// An InstanceNorm that normalizes with running statistics, likewise.
pub(crate) fn instance_norm_eval(dims: &[usize], layout: Layout, seed: u64) -> Problem {
    batch_norm(Op::InstanceNormEval, dims, layout, seed)
}

/// What may follow or come before a norm, added to a problem: a residual, what reaches a row norm's sum by its other
/// uses, gradients to add to.
pub(crate) fn with_residual(problem: Problem, seed: u64) -> Problem {
    let mut rng = Rng(seed ^ 0x5eed);
    let len = problem.dy.len();
    let dh = problem.op.is_row_norm().then(|| rng.normals(len, 0.0, 1.0));
    Problem { residual: Some(rng.normals(len, 0.0, 1.5)), dh, ..problem }
}

/// The problem with gradients that the new ones are added to.
pub(crate) fn accumulating(problem: Problem, seed: u64) -> Problem {
    let mut rng = Rng(seed ^ 0xadd);
    let as_bf16 = |v: f64| Format::of(DType::BF16).round(v); // exact in every type
    let mut old = || rng.normals(problem.params(), 0.0, 3.0).into_iter().map(as_bf16).collect();
    let old_grads = Some([old(), old()]);
    Problem { old_grads, ..problem }
}

/// Leaves out weight and bias, and gives them and their gradients types, by chance.
pub(crate) fn vary_params(problem: &mut Problem, rng: &mut Rng) -> Options {
    let mut params = || if rng.flip() { Params::F32 } else { Params::Same };
    let (params, grads) = (params(), params());
    problem.weight = problem.weight.take().filter(|_| !rng.flip());
    problem.bias = problem.bias.take().filter(|_| !rng.flip());
    Options { params, grads, ..Options::default() }
}

fn channels(dims: &[usize], layout: Layout) -> usize {
    if layout == Layout::ChannelsLast { dims[dims.len() - 1] } else { dims[1] }
}

fn batch_norm(op: Op, dims: &[usize], layout: Layout, seed: u64) -> Problem {
    let channels = channels(dims, layout);
    let mut problem = problem(op, dims, layout, 0, channels, seed);
    problem.running = Some(running(channels, seed));
    problem
}

/// Running statistics as of some batches before.
pub(crate) fn running(len: usize, seed: u64) -> Running {
    let mut rng = Rng(!seed);
    // Exact in f32, which is what they are stored in.
    let as_f32 = |v: f64| f64::from(v as f32);
    let mean = rng.normals(len, 0.0, 1.0).into_iter().map(as_f32).collect();
    Running { mean, var: (0..len).map(|_| as_f32(0.25 + 3.0 * rng.unit())).collect() }
}

fn problem(op: Op, dims: &[usize], layout: Layout, norm_dims: usize, params: usize, seed: u64) -> Problem {
    let mut rng = Rng(seed);
    let len = dims.iter().product();
    Problem {
        layout,
        norm_dims,
        x: vec![rng.normals(len, 0.5, 2.0)],
        dy: rng.normals(len, 0.0, 1.0),
        weight: Some(rng.normals(params, 1.0, 0.5)),
        bias: Some(rng.normals(params, 0.0, 0.5)),
        ..zeros(op, dims)
    }
}

/// A problem of zeros, channels first, with nothing that may be left out.
pub(crate) fn zeros(op: Op, dims: &[usize]) -> Problem {
    let zeros = vec![0.0; dims.iter().product()];
    Problem {
        op,
        dims: dims.to_vec(),
        layout: Layout::ChannelsFirst,
        statistics: Statistics::PerChannel,
        virtual_batch: None,
        norm_dims: 0,
        groups: 1,
        x: vec![zeros.clone()],
        residual: None,
        dy: zeros,
        dh: None,
        weight: None,
        bias: None,
        weight_offset: 0.0,
        activation: Activation::None,
        eps: 1e-5,
        running: None,
        momentum: None,
        batches: 0,
        old_grads: None,
        data: None,
    }
}

/// A training pass of a BatchNorm without parameters that leaves nothing but `y`.
pub(crate) fn only_y<'a, T: Element, B: Backend>(
    x: &'a Tensor<T, B>,
    y: &'a mut Tensor<T, B>,
    workspace: &'a mut Workspace<B>,
) -> BatchNormTrain<'a, T, B> {
    BatchNormTrain {
        x: x.view(),
        residual: None,
        y: y.view_mut(),
        affine: Affine::None,
        mean: None,
        rstd: None,
        running: None,
        workspace,
    }
}

/// The values as a tensor.
pub(crate) fn tensor_of<T: Element, B: Backend>(on: &B, values: &[f64], dims: &[usize]) -> Tensor<T, B> {
    let values: Vec<T> = values.iter().map(|&v| T::from_f64(v)).collect();
    Tensor::from_slice(on, &values, dims).expect("the dimensions are those of the values")
}

/// The elements of a tensor.
pub(crate) fn values_of<T: Element, B: Backend>(on: &B, tensor: &Tensor<T, B>) -> Vec<f64> {
    let values = tensor.to_vec(on).expect("the backend reads back");
    values.iter().map(|v| v.to_f32().into()).collect()
}

/// A problem of every channel norm and kind of statistics, over the same elements: four samples of six channels.
pub(crate) fn every_channel_norm(inner: usize, layout: Layout, seed: u64) -> Vec<Problem> {
    let all = dims([4, 6, inner], layout);
    let mut problems = vec![group_norm(&all, layout, 3, seed)];
    for plain in [batch_norm_train(&all, layout, seed), batch_norm_eval(&all, layout, seed)] {
        problems.push(Problem {
            statistics: Statistics::WholeBatch,
            running: Some(running(1, seed)),
            ..plain.clone()
        });
        problems.push(in_time_steps(plain.clone(), 2, seed));
        problems.push(plain);
    }
    problems.push(Problem { virtual_batch: Some(2), ..batch_norm_train(&all, layout, seed) });
    if inner > 1 {
        problems.extend([instance_norm(&all, layout, seed), instance_norm_eval(&all, layout, seed)]);
    }
    problems
}

/// The BatchNorm of the samples as steps of a batch, each with statistics of its own.
pub(crate) fn in_time_steps(problem: Problem, steps: usize, seed: u64) -> Problem {
    let samples = problem.dims[0] / steps;
    let stepped = [&[steps, samples][..], &problem.dims[1..]].concat();
    Problem {
        statistics: Statistics::PerTimeStep { steps },
        running: Some(running(steps * problem.channels(), seed)),
        dims: stepped,
        ..problem
    }
}

/// The same, and the row norms over the last dimension.
pub(crate) fn every_op(inner: usize, layout: Layout, seed: u64) -> Vec<Problem> {
    let rows = [24, inner.max(2)];
    let mut problems = every_channel_norm(inner, layout, seed);
    problems.extend([layer_norm(&rows, 1, seed), rms_norm(&rows, 1, seed)]);
    problems
}
