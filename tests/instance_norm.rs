//! InstanceNorm, with statistics of the instances and running ones, forward and backward.

use warpnorm::{Affine, DType, Element, InstanceNorm, Layout, RunningStats};

use crate::support::{
    check,
    data::{Rng, dims, instance_norm, instance_norm_eval, tensor_of, values_of, vary_params},
    expect_the_same_alone, on_every_backend, outputs,
    problem::{Op, Problem},
    run::{Options, Params, Sliced},
    small,
};

on_every_backend!(
    every_size_and_option_is_within_the_rule,
    long_reductions_stay_within_the_rule,
    every_rank_and_layout_is_understood,
    any_finite_momentum_moves_the_running_statistics,
    the_cumulative_average_weighs_all_batches_alike,
    running_statistics_are_means_over_many_samples,
    a_sample_alone_gives_the_bits_it_gives_among_others,
    an_empty_batch_counts_but_changes_nothing,
    the_allocating_methods_return_what_the_others_write,
);

const BOTH: [Layout; 2] = [Layout::ChannelsFirst, Layout::ChannelsLast];

/// `[outer, channels, inner]`, with more than one value in an instance.
const SHAPES: [[usize; 3]; 14] = [
    [1, 1, 2],
    [2, 3, 2],
    [3, 1, 7],
    [65, 3, 3],
    [2, 33, 7],
    [2, 64, 4],
    [3, 8, 31],
    [2, 7, 33],
    [2, 35, 9],
    [1, 63, 17],
    [33, 2, 33],
    [1, 3, 1023],
    [1, 2, 1025],
    [1, 1023, 2],
];

fn every_size_and_option_is_within_the_rule<T: Element, B: Sliced>(on: &B) {
    for (i, shape) in SHAPES.into_iter().enumerate() {
        for layout in BOTH {
            for make in [instance_norm, instance_norm_eval] {
                let seed = (2 * i + layout as usize) as u64;
                let mut problem = make(&dims(shape, layout), layout, seed);
                let mut rng = Rng(seed ^ problem.op as u64);
                let options = vary_params(&mut problem, &mut rng);
                problem.running =
                    problem.running.filter(|_| problem.op == Op::InstanceNormEval || rng.flip());
                let max_start = (rng.bits() % 4) as usize;
                check::<T, B>(on, &problem, &Options { max_start, ..options });
            }
        }
    }
}

/// A sum in `f32` by one accumulator fails the rule from about a thousand elements on.
fn long_reductions_stay_within_the_rule<T: Element, B: Sliced>(on: &B) {
    let shapes: &[[usize; 3]] = match small() {
        true => &[[1, 2, 4501], [301, 2, 3]],
        false => &[[1, 2, 20_001], [1, 8, 4097], [3001, 2, 3]],
    };
    for (seed, &shape) in shapes.iter().enumerate() {
        for layout in BOTH {
            let mut problem = instance_norm(&dims(shape, layout), layout, seed as u64);
            // All of one sign and following x, so that neither the sums nor their roundings cancel.
            for (dy, x) in problem.dy.iter_mut().zip(&problem.x[0]) {
                *dy = dy.abs() + x.abs();
            }
            check::<T, B>(on, &problem, &Options::default());
        }
    }
}

fn every_rank_and_layout_is_understood<T: Element, B: Sliced>(on: &B) {
    let all: [&[usize]; 5] = [&[4, 3, 5], &[2, 3, 5, 7], &[2, 3, 2, 5, 3], &[2, 2, 3, 1], &[1, 2, 1, 2, 2]];
    for (seed, dims) in all.into_iter().enumerate() {
        for layout in BOTH {
            for make in [instance_norm, instance_norm_eval] {
                let options = Options { max_start: seed, ..Options::default() };
                check::<T, B>(on, &make(dims, layout, seed as u64), &options);
            }
        }
    }
}

/// Several batches of random data, running statistics of some earlier ones.
fn several_steps(steps: u64, momentum: Option<f32>, layout: Layout) -> Problem {
    let mut problem = instance_norm(&dims([4, 3, 5], layout), layout, 11);
    problem.x = (0..steps).map(|step| Rng(step).normals(60, step as f64 - 1.0, 1.0 + step as f64)).collect();
    problem.momentum = momentum;
    problem
}

fn any_finite_momentum_moves_the_running_statistics<T: Element, B: Sliced>(on: &B) {
    for layout in BOTH {
        for momentum in [0.0, 1.0, 0.3, -1.2, 2.5] {
            let problem = several_steps(4, Some(momentum), layout);
            for device_momentum in [false, true] {
                let options = Options { device_momentum, ..Options::default() };
                let got = check::<T, B>(on, &problem, &options);
                if momentum == 0.0 {
                    let before = problem.running.clone().unwrap();
                    assert_eq!(got["running_mean"], before.mean.repeat(4), "momentum 0 leaves the means");
                    assert_eq!(got["running_var"], before.var.repeat(4), "momentum 0 leaves the variances");
                }
            }
        }
    }
}

fn the_cumulative_average_weighs_all_batches_alike<T: Element, B: Sliced>(on: &B) {
    for batches in [0, 7] {
        let problem = Problem { batches, ..several_steps(5, None, Layout::ChannelsFirst) };
        check::<T, B>(on, &problem, &Options::default());
    }
}

/// More samples than a block has threads, of means that one accumulator would round away.
fn running_statistics_are_means_over_many_samples<T: Element, B: Sliced>(on: &B) {
    let samples = if small() { 700 } else { 3000 };
    for layout in BOTH {
        let mut problem = instance_norm(&dims([samples, 3, 2], layout), layout, 12);
        let len = problem.dy.len();
        problem.x = vec![Rng(13).normals(len, 3.0, 0.1)];
        check::<T, B>(on, &problem, &Options::default());
    }
}

fn a_sample_alone_gives_the_bits_it_gives_among_others<T: Element, B: Sliced>(on: &B) {
    for shape in [[9, 8, 16], [33, 6, 5], [3, 32, 64]] {
        for layout in BOTH {
            let problem = instance_norm(&dims(shape, layout), layout, 8).rounded(T::DTYPE, DType::F32);
            expect_the_same_alone::<T, B>(on, &problem, &[0, shape[0] / 2, shape[0] - 1]);
        }
    }
}

fn an_empty_batch_counts_but_changes_nothing<T: Element, B: Sliced>(on: &B) {
    for (dims, layout) in [
        (&[0, 5, 9][..], Layout::ChannelsFirst),
        (&[0, 2, 2, 5], Layout::ChannelsLast),
        (&[3, 5, 0], Layout::ChannelsFirst),
    ] {
        for momentum in [Some(0.1), None] {
            let problem = Problem { momentum, ..instance_norm(dims, layout, 3) }.rounded(T::DTYPE, T::DTYPE);
            let before = problem.running.clone().unwrap();
            // The runner sees to it that the batch is counted.
            let got = outputs::<T, B>(on, &problem, &Options { params: Params::Same, ..Options::default() });
            assert!(got["y"].is_empty() && got["dx"].is_empty());
            assert_eq!((&got["running_mean"], &got["running_var"]), (&before.mean, &before.var));
            assert_eq!((&got["dgamma"][..], &got["dbeta"][..]), (&[0.0; 5][..], &[0.0; 5][..]));
        }
        let problem = instance_norm_eval(dims, layout, 3).rounded(T::DTYPE, DType::F32);
        let got = outputs::<T, B>(on, &problem, &Options::default());
        assert!(got["y"].is_empty() && got["dx"].is_empty());
        assert_eq!((&got["dgamma"][..], &got["dbeta"][..]), (&[0.0; 5][..], &[0.0; 5][..]));
    }
}

fn the_allocating_methods_return_what_the_others_write<T: Element, B: Sliced>(on: &B) {
    for layout in BOTH {
        let dims = dims([4, 6, 5], layout);
        let problem = instance_norm(&dims, layout, 23).rounded(T::DTYPE, DType::F32);
        let tensor = |values: &[f64]| {
            let tensor = tensor_of::<T, B>(on, values, &dims);
            if layout == Layout::ChannelsLast { tensor.channels_last() } else { tensor }
        };
        let vector = |values: &[f64]| tensor_of::<f32, B>(on, values, &[values.len()]);
        let (x, dy) = (tensor(problem.last_x()), tensor(&problem.dy));
        let (weight, bias) =
            (vector(problem.weight.as_ref().unwrap()), vector(problem.bias.as_ref().unwrap()));
        let affine = || Affine::f32(&weight, &bias);
        let before = problem.running.clone().unwrap();
        let stats = || RunningStats { mean: vector(&before.mean), var: vector(&before.var), batches: 0 };
        let norm = InstanceNorm::new(6).momentum(problem.momentum);

        let expected = outputs::<T, B>(on, &problem, &Options::default());
        let mut running = stats();
        let out = norm.forward(on, &x, affine(), Some(&mut running)).unwrap();
        assert_eq!((out.y.dims(), out.y.layout()), (x.dims(), x.layout()));
        assert_eq!(values_of(on, &out.y), expected["y"]);
        assert_eq!(values_of(on, &out.mean), expected["mean"]);
        assert_eq!(values_of(on, &out.rstd), expected["rstd"]);
        assert_eq!((values_of(on, &running.mean), running.batches), (expected["running_mean"].clone(), 1));
        assert_eq!(values_of(on, &running.var), expected["running_var"]);
        let grads = norm.backward(on, &x, &dy, affine(), &out).unwrap();
        assert_eq!(values_of(on, &grads.dx), expected["dx"]);
        assert_eq!(values_of(on, &grads.dweight.unwrap()), expected["dgamma"]);
        assert_eq!(values_of(on, &grads.dbias.unwrap()), expected["dbeta"]);
        let mut y = tensor(problem.last_x());
        norm.forward_in_place(on, &mut y, affine()).unwrap();
        assert_eq!(values_of(on, &y), expected["y"]);

        let problem = Problem { op: Op::InstanceNormEval, ..problem };
        let expected = outputs::<T, B>(on, &problem, &Options::default());
        let y = norm.forward_eval(on, &x, affine(), &stats()).unwrap();
        assert_eq!(values_of(on, &y), expected["y"]);
        let grads = norm.backward_eval(on, &x, &dy, affine(), &stats()).unwrap();
        assert_eq!(values_of(on, &grads.dx), expected["dx"]);
        assert_eq!(values_of(on, &grads.dweight.unwrap()), expected["dgamma"]);
        assert_eq!(values_of(on, &grads.dbias.unwrap()), expected["dbeta"]);
    }
}
