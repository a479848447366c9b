//! BatchNorm, in training and inference, forward and backward.

use std::collections::BTreeMap;

use warpnorm::{
    Affine, AffineGrad, BatchNorm, BatchNormBackwardTrain, DType, Element, Layout, RunningStats, Statistics,
    Tensor,
};

use crate::support::{
    bits, check,
    data::{Rng, batch_norm_eval, batch_norm_train, dims, only_y, running, vary_params},
    judge::Format,
    on_every_backend, outputs,
    problem::{Op, Problem, Running},
    run::{Options, Params, Sliced},
    small,
};

on_every_backend!(
    every_size_and_option_trains_within_the_rule,
    every_size_and_option_infers_within_the_rule,
    long_reductions_stay_within_the_rule,
    every_rank_and_layout_is_understood,
    views_may_start_at_any_element,
    a_mean_ten_thousand_times_the_spread_does_no_harm,
    one_statistic_may_serve_the_whole_batch,
    any_finite_momentum_moves_the_running_statistics,
    the_cumulative_average_weighs_all_batches_alike,
    eps_may_be_zero,
    a_constant_channel_gives_exactly_the_bias,
    nan_and_infinity_poison_only_their_own_channel,
    an_empty_batch_counts_but_changes_nothing,
    outputs_that_are_not_asked_for_do_not_change_the_others,
    the_same_input_gives_the_same_bits,
    the_allocating_methods_return_what_the_others_write,
    inference_with_the_statistics_of_the_batch_is_training,
    inference_gradients_of_the_input_do_not_depend_on_it,
    two_dimensional_tensors_have_one_layout,
    one_workspace_serves_every_call_that_needs_no_more,
);

const SIZES: [usize; 8] = [1, 2, 3, 7, 31, 33, 1023, 1025];

/// `[outer, channels, inner]` of every combination of sizes that is not too large to run in a test.
fn shapes() -> impl Iterator<Item = [usize; 3]> {
    let most = if small() { 1100 } else { 7200 };
    let all =
        SIZES.iter().flat_map(|&o| SIZES.iter().flat_map(move |&c| SIZES.iter().map(move |&i| [o, c, i])));
    // Odd channel counts beside the sizes: no multiple of any vector width.
    let odd = [[2, 35, 9], [5, 63, 1], [1, 63, 17], [9, 35, 1], [3, 130, 4]];
    all.filter(move |shape| shape.iter().product::<usize>() <= most).chain(odd)
}

/// Turns the problem's and the run's options by a seed, so that a list of shapes sees all of them.
fn vary(problem: &mut Problem, seed: u64) -> Options {
    let mut rng = Rng(seed ^ 0xc0ffee);
    let options = vary_params(problem, &mut rng);
    if problem.op == Op::BatchNormTrain && rng.flip() {
        problem.running = None;
    }
    if rng.flip() && rng.flip() {
        problem.statistics = Statistics::WholeBatch;
        problem.running = problem.running.as_ref().map(|_| running(1, seed));
    }
    Options { max_start: (rng.bits() % 4) as usize, ..options }
}

fn every_size_and_option_trains_within_the_rule<T: Element, B: Sliced>(on: &B) {
    for (i, shape) in shapes().filter(|[outer, _, inner]| outer * inner > 1).enumerate() {
        for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
            let seed = 2 * i as u64 + u64::from(layout == Layout::ChannelsLast);
            let mut problem = batch_norm_train(&dims(shape, layout), layout, seed);
            let options = vary(&mut problem, seed);
            check::<T, B>(on, &problem, &options);
        }
    }
}

fn every_size_and_option_infers_within_the_rule<T: Element, B: Sliced>(on: &B) {
    for (i, shape) in shapes().enumerate() {
        for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
            let seed = 2 * i as u64 + u64::from(layout == Layout::ChannelsLast);
            let mut problem = batch_norm_eval(&dims(shape, layout), layout, seed);
            let options = vary(&mut problem, seed);
            check::<T, B>(on, &problem, &options);
        }
    }
}

/// A sum in `f32` by one accumulator fails the rule from about a thousand elements on.
fn long_reductions_stay_within_the_rule<T: Element, B: Sliced>(on: &B) {
    let shapes: &[[usize; 3]] = match small() {
        true => &[[1, 1, 9001], [3001, 3, 1], [601, 2, 7]],
        false => {
            &[[1, 1, 150_001], [40_001, 3, 1], [9_001, 2, 7], [17, 2, 4099], [2049, 65, 1], [4, 33, 1025]]
        }
    };
    for (seed, &shape) in shapes.iter().enumerate() {
        for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
            let mut problem = batch_norm_train(&dims(shape, layout), layout, seed as u64);
            problem.statistics = if seed == 2 { Statistics::WholeBatch } else { Statistics::PerChannel };
            problem.running = None;
            // All of one sign and following x, so that neither the sums nor their roundings cancel.
            for (dy, x) in problem.dy.iter_mut().zip(&problem.x[0]) {
                *dy = dy.abs() + x.abs();
            }
            check::<T, B>(on, &problem, &Options::default());
            problem.dy = problem.x[0].clone();
            check::<T, B>(on, &problem, &Options::default());
        }
    }
}

fn every_rank_and_layout_is_understood<T: Element, B: Sliced>(on: &B) {
    let all: [&[usize]; 6] =
        [&[5, 3], &[4, 3, 5], &[2, 3, 5, 7], &[2, 3, 2, 5, 3], &[2, 1, 3, 3], &[3, 4, 1, 1]];
    for (seed, dims) in all.iter().enumerate() {
        for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
            check::<T, B>(on, &batch_norm_train(dims, layout, seed as u64), &Options::default());
            check::<T, B>(on, &batch_norm_eval(dims, layout, seed as u64), &Options::default());
        }
    }
}

fn views_may_start_at_any_element<T: Element, B: Sliced>(on: &B) {
    // Sizes that full vectors divide, so that the starts alone decide whether they may be used.
    for (shape, layout) in [
        ([3, 4, 64], Layout::ChannelsFirst),
        ([2, 64, 9], Layout::ChannelsLast),
        ([33, 32, 1], Layout::ChannelsFirst),
        ([5, 35, 8], Layout::ChannelsFirst),
    ] {
        for max_start in 0..9 {
            for params in [Params::F32, Params::Same] {
                let options = Options { max_start, params, grads: params, ..Options::default() };
                let dims = dims(shape, layout);
                check::<T, B>(on, &batch_norm_train(&dims, layout, max_start as u64), &options);
                check::<T, B>(on, &batch_norm_eval(&dims, layout, max_start as u64), &options);
            }
        }
    }
}

fn a_mean_ten_thousand_times_the_spread_does_no_harm<T: Element, B: Sliced>(on: &B) {
    for (seed, shape) in [[4, 3, 100], [1, 2, 1025], [257, 5, 1], [2, 1, 4000]].into_iter().enumerate() {
        for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
            for statistics in [Statistics::PerChannel, Statistics::WholeBatch] {
                let mut problem = batch_norm_train(&dims(shape, layout), layout, seed as u64);
                let len = problem.dy.len();
                problem.x = vec![Rng(seed as u64).normals(len, 1e4, 1.0)];
                problem.statistics = statistics;
                problem.running = None;
                check::<T, B>(on, &problem, &Options::default());
            }
        }
    }
}

fn one_statistic_may_serve_the_whole_batch<T: Element, B: Sliced>(on: &B) {
    for (seed, shape) in
        [[4, 3, 100], [1, 33, 1], [65, 35, 1], [2, 3, 257], [1, 2, 1]].into_iter().enumerate()
    {
        for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
            let dims = dims(shape, layout);
            let train = batch_norm_train(&dims, layout, seed as u64);
            for mut problem in [train, batch_norm_eval(&dims, layout, seed as u64)] {
                problem.statistics = Statistics::WholeBatch;
                problem.running = Some(running(1, seed as u64));
                check::<T, B>(on, &problem, &Options::default());
            }
        }
    }
}

/// Several batches of random data, running statistics of some earlier ones.
fn several_steps(steps: u64, momentum: Option<f32>) -> Problem {
    let mut problem = batch_norm_train(&[4, 3, 5], Layout::ChannelsFirst, 11);
    problem.x = (0..steps).map(|step| Rng(step).normals(60, step as f64 - 1.0, 1.0 + step as f64)).collect();
    problem.momentum = momentum;
    problem
}

fn any_finite_momentum_moves_the_running_statistics<T: Element, B: Sliced>(on: &B) {
    for momentum in [0.0, 1.0, 0.3, -1.2, 2.5] {
        let problem = several_steps(5, Some(momentum));
        let got = check::<T, B>(on, &problem, &Options::default());
        if momentum == 0.0 {
            let before = problem.running.unwrap();
            assert_eq!(
                got["running_mean"],
                before.mean.repeat(5),
                "momentum 0 leaves the means as they were"
            );
            assert_eq!(
                got["running_var"],
                before.var.repeat(5),
                "momentum 0 leaves the variances as they were"
            );
        }
        if momentum == 1.0 {
            assert_eq!(got["running_mean"][12..], got["batch_mean"], "momentum 1 keeps only the last batch");
        }
    }
}

fn the_cumulative_average_weighs_all_batches_alike<T: Element, B: Sliced>(on: &B) {
    let mut problem = several_steps(5, None);
    check::<T, B>(on, &problem, &Options::default());
    problem.batches = 7;
    check::<T, B>(on, &problem, &Options::default());
    problem.statistics = Statistics::WholeBatch;
    problem.running = Some(running(1, 3));
    check::<T, B>(on, &problem, &Options::default());
}

fn eps_may_be_zero<T: Element, B: Sliced>(on: &B) {
    for (shape, layout) in [([4, 3, 33], Layout::ChannelsFirst), ([2, 7, 9], Layout::ChannelsLast)] {
        for mut problem in [
            batch_norm_train(&dims(shape, layout), layout, 5),
            batch_norm_eval(&dims(shape, layout), layout, 5),
        ] {
            problem.eps = 0.0;
            check::<T, B>(on, &problem, &Options::default());
        }
    }
}

/// Half of all constants are not the rounded quotient of their rounded sum and their number.
fn a_constant_channel_gives_exactly_the_bias<T: Element, B: Sliced>(on: &B) {
    for (seed, shape) in
        [[2, 35, 1], [3, 7, 11], [1, 3, 1025], [8, 33, 8], [700, 2, 1]].into_iter().enumerate()
    {
        for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
            let mut problem = batch_norm_train(&dims(shape, layout), layout, seed as u64);
            let constants = Rng(seed as u64).normals(shape[1], 0.0, 30.0);
            let channel = problem.geometry().param;
            problem.x = vec![channel.iter().map(|&c| constants[c]).collect()];
            let got = check::<T, B>(on, &problem, &Options::default());
            let bias = problem.rounded(T::DTYPE, DType::F32).bias.unwrap();
            for (i, (&y, &c)) in got["y"].iter().zip(&channel).enumerate() {
                assert_eq!(y, Format::of(T::DTYPE).round(bias[c]), "{shape:?} {layout:?}, element {i}");
            }
        }
    }
}

fn nan_and_infinity_poison_only_their_own_channel<T: Element, B: Sliced>(on: &B) {
    for (shape, layout) in [
        ([4, 8, 9], Layout::ChannelsFirst),
        ([3, 8, 64], Layout::ChannelsFirst),
        ([5, 9, 8], Layout::ChannelsLast),
        ([33, 8, 1], Layout::ChannelsFirst),
    ] {
        let healthy = batch_norm_train(&dims(shape, layout), layout, 17).rounded(T::DTYPE, DType::F32);
        let (channels, channel) = (healthy.channels(), healthy.geometry().param);
        let clean = bits(&outputs::<T, B>(on, &healthy, &Options::default()));
        for poison in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut problem = healthy.clone();
            let at = problem.dy.len() / 2;
            let sick = channel[at];
            problem.x[0][at] = poison;
            let got = check_poisoned::<T, B>(on, &problem);
            for (name, clean) in &clean {
                for (i, (clean, got)) in clean.iter().zip(&got[name]).enumerate() {
                    let of = if *name == "y" || *name == "dx" { channel[i] } else { i % channels };
                    assert!(
                        of == sick || clean == got,
                        "{name}[{i}] of channel {of} changed with channel {sick}"
                    );
                }
            }
        }
    }
}

/// Runs a problem with a poisoned channel, in which `y` must not look healthy.
fn check_poisoned<T: Element, B: Sliced>(on: &B, problem: &Problem) -> BTreeMap<&'static str, Vec<u64>> {
    let channel = problem.geometry().param;
    let sick = channel[problem.x[0].iter().position(|v| !v.is_finite()).unwrap()];
    let got = outputs::<T, B>(on, problem, &Options::default());
    for name in ["y", "dx"] {
        for (i, v) in got[name].iter().enumerate().filter(|(i, _)| channel[*i] == sick) {
            assert!(v.is_nan(), "{name}[{i}] is {v} in a poisoned channel");
        }
    }
    for name in ["batch_mean", "batch_invstd", "running_mean", "running_var", "dgamma"] {
        assert!(!got[name][sick].is_finite(), "{name} is {} for a poisoned channel", got[name][sick]);
    }
    assert!(got["dbeta"][sick].is_finite(), "dbeta does not depend on x");
    bits(&got)
}

fn an_empty_batch_counts_but_changes_nothing<T: Element, B: Sliced>(on: &B) {
    for (dims, layout) in [
        (&[0, 5][..], Layout::ChannelsFirst),
        (&[0, 5, 9], Layout::ChannelsFirst),
        (&[0, 2, 2, 5], Layout::ChannelsLast),
        (&[3, 5, 0], Layout::ChannelsFirst),
        (&[3, 0, 5], Layout::ChannelsLast),
    ] {
        for params in [Params::F32, Params::Same] {
            let options = Options { params, grads: params, ..Options::default() };
            for momentum in [Some(0.1), None] {
                let mut problem = batch_norm_train(dims, layout, 3);
                problem.momentum = momentum;
                let before = problem.running.clone().unwrap();
                // The runner sees to it that the batch is counted.
                let got = outputs::<T, B>(on, &problem.rounded(T::DTYPE, T::DTYPE), &options);
                assert!(got["y"].is_empty() && got["dx"].is_empty());
                assert_eq!((&got["running_mean"], &got["running_var"]), (&before.mean, &before.var));
                assert_eq!((&got["dgamma"][..], &got["dbeta"][..]), (&[0.0; 5][..], &[0.0; 5][..]));
            }
            let problem = batch_norm_eval(dims, layout, 3).rounded(T::DTYPE, T::DTYPE);
            let got = outputs::<T, B>(on, &problem, &options);
            assert!(got["y"].is_empty() && got["dx"].is_empty());
            assert_eq!((&got["dgamma"][..], &got["dbeta"][..]), (&[0.0; 5][..], &[0.0; 5][..]));
        }
    }
}

fn outputs_that_are_not_asked_for_do_not_change_the_others<T: Element, B: Sliced>(on: &B) {
    for (shape, layout) in [([3, 5, 33], Layout::ChannelsFirst), ([4, 32, 3], Layout::ChannelsLast)] {
        let dims = dims(shape, layout);
        for problem in [batch_norm_train(&dims, layout, 1), batch_norm_eval(&dims, layout, 1)] {
            let problem = problem.rounded(T::DTYPE, DType::F32);
            let all = bits(&outputs::<T, B>(on, &problem, &Options::default()));
            let without: [&'static [&'static str]; 9] = [
                &["dx"],
                &["dgamma"],
                &["dbeta"],
                &["dgamma", "dbeta"],
                &["dx", "dbeta"],
                &["dx", "dgamma", "dbeta"],
                &["batch_mean"],
                &["batch_invstd"],
                &["batch_mean", "batch_invstd"],
            ];
            for without in without {
                let got = bits(&outputs::<T, B>(on, &problem, &Options { without, ..Options::default() }));
                assert!(without.iter().all(|name| !got.contains_key(name)));
                for (name, got) in &got {
                    assert_eq!(got, &all[name], "{name} without {without:?}");
                }
            }
            let mut alone = problem.clone();
            if alone.op == Op::BatchNormTrain {
                alone.running = None;
                let got = bits(&outputs::<T, B>(on, &alone, &Options::default()));
                assert!(got.iter().all(|(name, got)| got == &all[name]), "without running statistics");
            }
        }
    }
}

fn the_same_input_gives_the_same_bits<T: Element, B: Sliced>(on: &B) {
    for (seed, shape) in [[4, 7, 33], [129, 35, 1], [2, 2, 1025]].into_iter().enumerate() {
        for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
            for statistics in [Statistics::PerChannel, Statistics::WholeBatch] {
                let mut problem = batch_norm_train(&dims(shape, layout), layout, seed as u64);
                problem.statistics = statistics;
                problem.running = None;
                let problem = problem.rounded(T::DTYPE, DType::F32);
                let first = bits(&outputs::<T, B>(on, &problem, &Options::default()));
                for _ in 0..3 {
                    assert_eq!(bits(&outputs::<T, B>(on, &problem, &Options::default())), first);
                }
            }
        }
    }
}

fn the_allocating_methods_return_what_the_others_write<T: Element, B: Sliced>(on: &B) {
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        let dims = dims([4, 6, 5], layout);
        let problem = batch_norm_train(&dims, layout, 23).rounded(T::DTYPE, DType::F32);
        let tensor = |values: &[f64]| {
            let values: Vec<T> = values.iter().map(|&v| T::from_f64(v)).collect();
            let tensor = Tensor::from_slice(on, &values, &dims).unwrap();
            if layout == Layout::ChannelsLast { tensor.channels_last() } else { tensor }
        };
        let vector = |values: &[f64]| {
            let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
            Tensor::from_slice(on, &values, &[values.len()]).unwrap()
        };
        let (x, dy) = (tensor(problem.last_x()), tensor(&problem.dy));
        let (weight, bias) =
            (vector(problem.weight.as_ref().unwrap()), vector(problem.bias.as_ref().unwrap()));
        let before = problem.running.clone().unwrap();
        let stats = || RunningStats { mean: vector(&before.mean), var: vector(&before.var), batches: 0 };
        let wide = |values: Vec<T>| -> Vec<f64> { values.iter().map(|v| v.to_f32().into()).collect() };
        let wide_f32 = |tensor: &Tensor<f32, B>| -> Vec<f64> {
            tensor.to_vec(on).unwrap().into_iter().map(f64::from).collect()
        };
        let affine = || Affine::f32(&weight, &bias);
        let bn = BatchNorm::new(6).momentum(problem.momentum);

        let expected = outputs::<T, B>(on, &problem, &Options::default());
        let mut running = stats();
        let out = bn.forward_train(on, &x, affine(), Some(&mut running)).unwrap();
        assert_eq!((out.y.dims(), out.y.layout()), (x.dims(), x.layout()));
        assert_eq!(wide(out.y.to_vec(on).unwrap()), expected["y"]);
        assert_eq!(wide_f32(&out.mean), expected["batch_mean"]);
        assert_eq!(wide_f32(&out.rstd), expected["batch_invstd"]);
        assert_eq!((wide_f32(&running.mean), running.batches), (expected["running_mean"].clone(), 1));
        assert_eq!(wide_f32(&running.var), expected["running_var"]);
        let grads = bn.backward_train(on, &x, &dy, affine(), &out).unwrap();
        assert_eq!((grads.dx.dims(), grads.dx.layout()), (x.dims(), x.layout()));
        assert_eq!(wide(grads.dx.to_vec(on).unwrap()), expected["dx"]);
        assert_eq!(wide_f32(&grads.dweight.unwrap()), expected["dgamma"]);
        assert_eq!(wide_f32(&grads.dbias.unwrap()), expected["dbeta"]);

        let problem = Problem { op: Op::BatchNormEval, ..problem };
        let expected = outputs::<T, B>(on, &problem, &Options::default());
        let running = stats();
        let y = bn.forward_eval(on, &x, affine(), &running).unwrap();
        assert_eq!(wide(y.to_vec(on).unwrap()), expected["y"]);
        let grads = bn.backward_eval(on, &x, &dy, affine(), &running).unwrap();
        assert_eq!(wide(grads.dx.to_vec(on).unwrap()), expected["dx"]);
        assert_eq!(wide_f32(&grads.dweight.unwrap()), expected["dgamma"]);

        let grads = bn.backward_eval(on, &x, &dy, Affine::None, &running).unwrap();
        assert!(
            grads.dweight.is_none() && grads.dbias.is_none(),
            "gradients of what there is, and no others"
        );
    }
}

fn inference_with_the_statistics_of_the_batch_is_training<T: Element, B: Sliced>(on: &B) {
    // Powers of two and no parameters, so that every way to compute it is exact.
    let mut problem = batch_norm_train(&[1, 2, 4], Layout::ChannelsFirst, 2);
    problem.x = vec![vec![1.0, 3.0, 1.0, 3.0, -4.0, 4.0, 4.0, -4.0]];
    (problem.weight, problem.bias, problem.eps) = (None, None, 0.0);
    let train = check::<T, B>(on, &problem, &Options::default());
    problem.op = Op::BatchNormEval;
    problem.running = Some(Running { mean: vec![2.0, 0.0], var: vec![1.0, 16.0] });
    let eval = check::<T, B>(on, &problem, &Options::default());
    assert_eq!(train["y"], [-1.0, 1.0, -1.0, 1.0, -1.0, 1.0, 1.0, -1.0]);
    assert_eq!(eval["y"], train["y"]);
}

/// The statistics are constants, so that the slope of `y` is the same for every `x`.
fn inference_gradients_of_the_input_do_not_depend_on_it<T: Element, B: Sliced>(on: &B) {
    for (shape, layout) in [([3, 8, 16], Layout::ChannelsFirst), ([3, 16, 8], Layout::ChannelsLast)] {
        let healthy = batch_norm_eval(&dims(shape, layout), layout, 31).rounded(T::DTYPE, DType::F32);
        let dx = bits(&outputs::<T, B>(on, &healthy, &Options::default()))["dx"].clone();
        let mut problem = healthy.clone();
        for (i, x) in problem.x[0].iter_mut().enumerate() {
            *x = [f64::NAN, f64::INFINITY, 0.0, f64::NEG_INFINITY, *x][i % 5];
        }
        assert_eq!(bits(&outputs::<T, B>(on, &problem, &Options::default()))["dx"], dx);
    }
}

fn two_dimensional_tensors_have_one_layout<T: Element, B: Sliced>(on: &B) {
    let first = batch_norm_train(&[9, 7], Layout::ChannelsFirst, 5).rounded(T::DTYPE, DType::F32);
    let last = Problem { layout: Layout::ChannelsLast, ..first.clone() };
    let [first, last] =
        [first, last].map(|problem| bits(&outputs::<T, B>(on, &problem, &Options::default())));
    assert_eq!(first, last);

    let x = Tensor::<T, B>::zeros(on, &[9, 7]).unwrap();
    let dy = Tensor::<T, B>::zeros(on, &[9, 7]).unwrap().channels_last();
    let out = BatchNorm::new(7).forward_train(on, &x, Affine::None, None).unwrap();
    BatchNorm::new(7).backward_train(on, &x, &dy, Affine::None, &out).unwrap();
}

/// Counters of blocks must be zero when a call begins, whatever the workspace was used for before.
fn one_workspace_serves_every_call_that_needs_no_more<T: Element, B: Sliced>(on: &B) {
    let tensor = |dims: &[usize]| {
        let wave = (0..dims.iter().product()).map(|i| T::from_f32((i as f32 * 0.37).sin()));
        Tensor::<T, B>::from_slice(on, &wave.collect::<Vec<_>>(), dims).unwrap()
    };
    let large = tensor(&[64, 24, 64]);
    let whole = |channels| BatchNorm::new(channels).statistics(Statistics::WholeBatch);
    let mut workspace = whole(24).workspace(on, &large).unwrap();
    let (wide, narrow) = ([12, 24, 128], [12, 3, 1024]);
    let calls = [
        (whole(24), wide),
        (BatchNorm::new(24), wide),
        (whole(3), narrow),
        (BatchNorm::new(3), narrow),
        (whole(24), wide),
    ];
    for (bn, dims) in calls {
        let x = tensor(&dims);
        let (mut y, mut dx) = (tensor(&dims), tensor(&dims));
        let want = bn.forward_train(on, &x, Affine::None, None).unwrap();
        bn.forward_train_into(on, only_y(&x, &mut y, &mut workspace)).unwrap();
        assert_eq!(y.to_vec(on).unwrap(), want.y.to_vec(on).unwrap(), "{bn:?}");
        let grads = bn.backward_train(on, &x, &y, Affine::None, &want).unwrap();
        let args = BatchNormBackwardTrain {
            x: x.view(),
            residual: None,
            dresidual: None,
            accumulate: false,
            dy: y.view(),
            affine: Affine::None,
            mean: want.mean.data(),
            rstd: want.rstd.data(),
            dx: Some(dx.view_mut()),
            grads: AffineGrad::None,
            workspace: &mut workspace,
        };
        bn.backward_train_into(on, args).unwrap();
        assert_eq!(dx.to_vec(on).unwrap(), grads.dx.to_vec(on).unwrap(), "{bn:?}");
    }
}
