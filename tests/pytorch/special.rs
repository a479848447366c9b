//! The special cases of `test_nn.py` and of the tests of PyTorch's C++ API, smaller where the size is not the point.

use warpnorm::{DType, Element, Layout};

use super::{blank, by_backend, check_both_layouts, filled};
use crate::support::{
    bits, check,
    data::{Rng, running},
    judge::Format,
    on_every_backend, outputs,
    problem::{Op, Problem, Running, Values},
    run::{Options, Params, Sliced},
};

on_every_backend!(
    a_batch_may_be_larger_than_a_grid,
    sums_that_16_bits_cannot_hold_do_no_harm,
    channels_last_gives_what_channels_first_gives,
    group_norm_with_channels_last_gives_what_channels_first_gives,
    small_integers_train_in_both_layouts,
    inference_gives_the_same_bits_in_both_layouts,
    a_running_variance_of_zero_is_a_variance,
    a_weight_of_one_and_a_bias_of_zero_are_none,
    instance_norm_leaves_mean_zero_and_variance_one,
    a_momentum_of_one_keeps_the_mean_of_the_instances,
    inference_of_instance_norm_shifts_with_its_input,
    layer_norm_leaves_mean_zero_and_variance_one,
    a_long_row_of_three_dimensions_is_within_the_rule,
    rows_of_equal_values_are_exactly_zero,
    sixteen_bit_rows_are_rounded_once,
    group_norm_leaves_mean_zero_and_variance_one,
    group_norm_of_no_samples_is_empty,
    arange_gives_the_literals_of_the_cpp_api,
);

/// `test_batchnorm_large_batch`, and the issues 2917, 16998 and 19911 about the limits on the way there.
fn a_batch_may_be_larger_than_a_grid<T: Element, B: Sliced>(on: &B) {
    let batch = by_backend::<B, _>(880_801, 131_073, 20_001);
    check::<T, B>(on, &filled(blank(Op::BatchNormTrain, &[batch, 1, 1, 1]), 1), &Options::default());
    let batches: &[usize] = by_backend::<B, _>(&[65_535, 65_536, 65_537, 131_072], &[65_537], &[]);
    for &batch in batches {
        for op in [Op::BatchNormTrain, Op::BatchNormEval] {
            check::<T, B>(on, &filled(blank(op, &[batch, 3]), batch as u64), &Options::default());
        }
    }
    let channels = by_backend::<B, _>(65_537, 65_537, 9_001);
    check::<T, B>(on, &filled(blank(Op::BatchNormTrain, &[2, channels]), 2), &Options::default());
}

/// `test_batchnorm_half_overflow`: neither sums nor squares fit in `f16`.
fn sums_that_16_bits_cannot_hold_do_no_harm<T: Element, B: Sliced>(on: &B) {
    for dims in [&[4, 3, 25, 25][..], &[4, 2, 5, 10, 10]] {
        for op in [Op::BatchNormTrain, Op::InstanceNorm, Op::GroupNorm] {
            let mut problem = filled(blank(op, dims), 3);
            problem.x = vec![Rng(4).normals(problem.dy.len(), 300.0, 100.0)];
            for got in check_both_layouts::<T, B>(on, &problem, &Options::default()) {
                assert!(got.values().flatten().all(|v| v.is_finite()));
            }
        }
    }
}

/// The memory of one channel, or of one position, is the same in both layouts.
fn expect_equal_where_memory_is(dims: &[usize], [first, last]: &[Values; 2]) {
    if dims[1] == 1 || dims[2..].iter().all(|&n| n == 1) {
        assert_eq!(bits(first), bits(last), "{dims:?}");
    }
}

/// `test_batchnorm_nhwc_cpu`, with its shapes N1HW and NC11.
fn channels_last_gives_what_channels_first_gives<T: Element, B: Sliced>(on: &B) {
    let shapes: [&[usize]; 6] =
        [&[4, 8, 10, 10], &[4, 1, 9, 9], &[4, 9, 1, 1], &[4, 8, 3, 4, 5], &[4, 1, 3, 4, 5], &[4, 9, 1, 1, 1]];
    for (seed, dims) in shapes.into_iter().enumerate() {
        for params in [Params::F32, Params::Same] {
            let options = Options { params, grads: params, ..Options::default() };
            for op in [Op::BatchNormTrain, Op::BatchNormEval] {
                let problem = filled(blank(op, dims), seed as u64);
                expect_equal_where_memory_is(dims, &check_both_layouts::<T, B>(on, &problem, &options));
            }
        }
    }
}

/// `test_groupnorm_nhwc` and `test_GroupNorm_memory_format`.
fn group_norm_with_channels_last_gives_what_channels_first_gives<T: Element, B: Sliced>(on: &B) {
    let shapes: [(&[usize], usize); 8] = [
        (&[4, 8, 10, 10], 4),
        (&[2, 30, 9, 9], 3),
        (&[4, 8, 20, 20], 4),
        (&[4, 40, 7, 7], 2),
        (&[2, 60, 5, 5], 3),
        (&[2, 9, 7, 11, 5], 3),
        (&[2, 9, 7, 2, 15], 3),
        (&[2, 60, 7, 2, 5], 3),
    ];
    for (seed, (dims, groups)) in shapes.into_iter().enumerate() {
        let params = if seed % 2 == 0 { Params::F32 } else { Params::Same };
        let options = Options { params, grads: params, ..Options::default() };
        let problem = filled(Problem { groups, ..blank(Op::GroupNorm, dims) }, seed as u64);
        check_both_layouts::<T, B>(on, &problem, &options);
    }
}

/// `test_batchnorm_cudnn_nhwc`; issue 42588 got the gradient wrong where one spatial dimension is 1.
fn small_integers_train_in_both_layouts<T: Element, B: Sliced>(on: &B) {
    for dims in [[4, 8, 2, 2], [2, 8, 8, 1]] {
        let mut problem = filled(blank(Op::BatchNormTrain, &dims), 5);
        let mut rng = Rng(6);
        let mut integers = |len| (0..len).map(|_| (1 + rng.bits() % 9) as f64).collect::<Vec<_>>();
        problem.x = vec![integers(problem.dy.len())];
        problem.dy = integers(problem.dy.len());
        check_both_layouts::<T, B>(on, &problem, &Options::default());
    }
}

/// `test_batchnorm_nhwc_cuda`; and twice the same, as `test_batchnorm_eval` asks.
fn inference_gives_the_same_bits_in_both_layouts<T: Element, B: Sliced>(on: &B) {
    let problem = filled(blank(Op::BatchNormEval, &[2, 64, 5, 5]), 7);
    let [first, last] = check_both_layouts::<T, B>(on, &problem, &Options::default());
    for name in ["y", "dx"] {
        assert_eq!(bits(&first)[name], bits(&last)[name], "{name}");
    }
    assert_eq!(bits(&check::<T, B>(on, &problem, &Options::default())), bits(&first));
}

/// `test_batchnorm_grad`, in training and inference.
fn a_running_variance_of_zero_is_a_variance<T: Element, B: Sliced>(on: &B) {
    let ramp = |len: usize, from: f64, step: f64| (0..len).map(|i| from + step * i as f64).collect();
    for op in [Op::BatchNormTrain, Op::BatchNormEval] {
        let problem = Problem {
            x: vec![ramp(120, 0.0, 1.0)],
            dy: ramp(120, 120.0, -1.0),
            weight: Some(ramp(5, 1.0, 1.0)),
            bias: Some(ramp(5, 0.0, 1.0)),
            running: Some(Running { mean: ramp(5, 1.0, -1.0), var: ramp(5, 0.0, 2.0) }),
            momentum: Some(0.1),
            eps: 1e-4,
            ..blank(op, &[4, 5, 6])
        };
        check_both_layouts::<T, B>(on, &problem, &Options::default());
    }
}

/// `test_batchnorm_affine`, for every op.
fn a_weight_of_one_and_a_bias_of_zero_are_none<T: Element, B: Sliced>(on: &B) {
    let ops = [
        Op::BatchNormTrain,
        Op::BatchNormEval,
        Op::LayerNorm,
        Op::RmsNorm,
        Op::GroupNorm,
        Op::InstanceNorm,
        Op::InstanceNormEval,
    ];
    for op in ops {
        let shaped = Problem { norm_dims: 2, groups: 2, ..blank(op, &[3, 6, 11]) };
        let filled = filled(shaped, 8).rounded(T::DTYPE, DType::F32);
        let params = filled.weight.as_ref().unwrap().len();
        let neutral =
            Problem { weight: Some(vec![1.0; params]), bias: Some(vec![0.0; params]), ..filled.clone() };
        let none = Problem { weight: None, bias: None, ..filled };
        let [neutral, none] =
            [neutral, none].map(|problem| outputs::<T, B>(on, &problem, &Options::default()));
        for name in none.keys() {
            // Not the bits: adding a bias of 0 turns -0 into 0.
            assert_eq!(neutral[name], none[name], "{op:?} {name}");
        }
    }
}

/// Asserts that each group of `y` has mean 0 and variance 1 within 1e-5, for `f32`.
fn expect_standardized<T: Element>(problem: &Problem, got: &Values) {
    if T::DTYPE != DType::F32 {
        return;
    }
    let (y, geometry) = (&got["y"], problem.geometry());
    let n = geometry.count();
    let (sums, squares) = (geometry.group_sums(|i| y[i]), geometry.group_sums(|i| y[i] * y[i]));
    for (sum, square) in sums.iter().zip(squares) {
        assert!((sum / n).abs() < 1e-5 && (square / n - 1.0).abs() < 1e-5, "{:?}", problem.dims);
    }
}

/// An op without parameters and an `eps` of 0.
fn bare(op: Op, dims: &[usize], seed: u64) -> Problem {
    let problem = blank(op, dims);
    Problem { x: vec![Rng(seed).normals(problem.dy.len(), 0.5, 2.0)], eps: 0.0, ..problem }
}

/// `test_InstanceNorm1d_general` to `3d`.
fn instance_norm_leaves_mean_zero_and_variance_one<T: Element, B: Sliced>(on: &B) {
    for dims in [&[4, 5, 7][..], &[3, 4, 7, 6], &[5, 3, 4, 3, 4]] {
        let problem = bare(Op::InstanceNorm, dims, 9);
        for got in check_both_layouts::<T, B>(on, &problem, &Options::default()) {
            expect_standardized::<T>(&problem, &got);
        }
    }
}

fn a_momentum_of_one_keeps_the_mean_of_the_instances<T: Element, B: Sliced>(on: &B) {
    for dims in [&[4, 5, 7][..], &[3, 4, 7, 6], &[5, 3, 4, 3, 4]] {
        let mut problem = bare(Op::InstanceNorm, dims, 10).rounded(T::DTYPE, DType::F32);
        (problem.momentum, problem.running) = (Some(1.0), Some(running(dims[1], 3)));
        let got = check::<T, B>(on, &problem, &Options::default());
        let positions = dims[2..].iter().product::<usize>() as f64;
        let samples = dims[0] as f64;
        let geometry = problem.geometry();
        let x = problem.last_x();
        let means: Vec<f64> = geometry.group_sums(|i| x[i]).iter().map(|sum| sum / positions).collect();
        let m2 = geometry.group_sums(|i| (x[i] - means[geometry.group[i]]).powi(2));
        let of = |values: &[f64], c: usize| values.iter().skip(c).step_by(dims[1]).sum::<f64>() / samples;
        for (c, (&got_mean, &got_var)) in got["running_mean"].iter().zip(&got["running_var"]).enumerate() {
            let (mean, var) = (of(&means, c), of(&m2, c) / (positions - 1.0));
            assert!((got_mean - mean).abs() <= 1e-6 * (1.0 + mean.abs()), "mean of channel {c}");
            assert!((got_var - var).abs() <= 1e-6 * (1.0 + var), "variance of channel {c}");
        }
    }
}

/// Running statistics of one batch, then inference on it shifted by so many deviations: the means are these numbers.
fn inference_of_instance_norm_shifts_with_its_input<T: Element, B: Sliced>(on: &B) {
    let dims = [4, 5, 9, 7];
    let mut problem = bare(Op::InstanceNorm, &dims, 11).rounded(T::DTYPE, DType::F32);
    (problem.momentum, problem.running) = (Some(1.0), Some(running(5, 3)));
    let trained = check::<T, B>(on, &problem, &Options::default());
    let deviations: Vec<f64> = trained["running_var"].iter().map(|var| var.sqrt()).collect();
    let channel = |i: usize| i / 63 % 5;
    for (i, x) in problem.x[0].iter_mut().enumerate() {
        *x += deviations[channel(i)] * channel(i) as f64;
    }
    problem.op = Op::InstanceNormEval;
    problem.running =
        Some(Running { mean: trained["running_mean"].clone(), var: trained["running_var"].clone() });
    let got = check::<T, B>(on, &problem, &Options::default());
    for c in 0..5 {
        let of_channel = got["y"].iter().enumerate().filter(|(i, _)| channel(*i) == c);
        let mean = of_channel.map(|(_, y)| y).sum::<f64>() / 252.0;
        let rounding = Format::of(T::DTYPE).step(4.0);
        assert!((mean - c as f64).abs() <= rounding, "channel {c} has a mean of {mean}");
    }
}

/// `test_LayerNorm_general`.
fn layer_norm_leaves_mean_zero_and_variance_one<T: Element, B: Sliced>(on: &B) {
    for (dims, norm_dims) in
        [(&[4, 6][..], 1), (&[3, 5, 2], 2), (&[2, 5, 7, 3], 1), (&[2, 3, 4, 3, 2], 3), (&[5, 4, 3, 2, 3], 4)]
    {
        let problem = Problem { norm_dims, ..bare(Op::LayerNorm, dims, 12) };
        expect_standardized::<T>(&problem, &check::<T, B>(on, &problem, &Options::default()));
    }
}

/// `test_LayerNorm_numeric`, `test_GroupNorm_numeric`.
fn a_long_row_of_three_dimensions_is_within_the_rule<T: Element, B: Sliced>(on: &B) {
    let row = by_backend::<B, _>([64, 64, 36], [32, 16, 9], [16, 16, 9]);
    let dims = [&[2][..], &row].concat();
    check::<T, B>(
        on,
        &filled(Problem { norm_dims: 3, ..blank(Op::LayerNorm, &dims) }, 13),
        &Options::default(),
    );
    let dims = by_backend::<B, _>([1, 8, 64, 64, 18], [1, 8, 16, 16, 9], [1, 8, 8, 8, 9]);
    check_both_layouts::<T, B>(
        on,
        &filled(Problem { groups: 2, ..blank(Op::GroupNorm, &dims) }, 14),
        &Options::default(),
    );
}

/// `test_layer_norm_eps`, issue 108072.
fn rows_of_equal_values_are_exactly_zero<T: Element, B: Sliced>(on: &B) {
    let problem = Problem {
        norm_dims: 1,
        x: vec![[2.0, 2.0, 14.0, 14.0].repeat(2)],
        eps: 1e-6,
        ..blank(Op::LayerNorm, &[2, 2, 2])
    };
    assert_eq!(check::<T, B>(on, &problem, &Options::default())["y"], [0.0; 8]);
}

/// `test_layernorm_half_precision`: what `f32` gives, rounded, to the bit.
fn sixteen_bit_rows_are_rounded_once<T: Element, B: Sliced>(on: &B) {
    let width = 128;
    let mut problem = Problem { norm_dims: 1, eps: 1e-5, ..blank(Op::LayerNorm, &[1, 5, width]) };
    let mut rng = Rng(15);
    problem.x = vec![(0..5 * width).map(|_| 0.1 * rng.unit()).collect()];
    problem.weight = Some(vec![1.0; width]);
    problem.bias = Some(vec![0.0; width]);
    let problem = problem.rounded(T::DTYPE, T::DTYPE);
    let wide = check::<f32, B>(on, &problem, &Options::default());
    let narrow = check::<T, B>(on, &problem, &Options::default());
    let rounded: Vec<f64> = wide["y"].iter().map(|&y| Format::of(T::DTYPE).round(y)).collect();
    assert_eq!(narrow["y"], rounded);
}

/// `test_GroupNorm_general`.
fn group_norm_leaves_mean_zero_and_variance_one<T: Element, B: Sliced>(on: &B) {
    let shapes: [(&[usize], usize); 5] = [
        (&[1, 2, 3, 4], 2),
        (&[2, 3, 10], 3),
        (&[3, 1, 1, 1, 2], 1),
        (&[2, 6, 4, 2, 2], 3),
        (&[1, 256, 1, 1], 32),
    ];
    for (dims, groups) in shapes {
        let problem = Problem { groups, ..bare(Op::GroupNorm, dims, 16) };
        for got in check_both_layouts::<T, B>(on, &problem, &Options::default()) {
            expect_standardized::<T>(&problem, &got);
        }
    }
}

/// `test_GroupNorm_empty`, and the same of the other ops that take it.
fn group_norm_of_no_samples_is_empty<T: Element, B: Sliced>(on: &B) {
    for op in [Op::GroupNorm, Op::InstanceNorm, Op::InstanceNormEval] {
        for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
            let dims = if layout == Layout::ChannelsFirst { [0, 4, 2, 2] } else { [0, 2, 2, 4] };
            let problem = filled(Problem { layout, groups: 2, ..blank(op, &dims) }, 18);
            let got = outputs::<T, B>(on, &problem.rounded(T::DTYPE, DType::F32), &Options::default());
            assert!(got["y"].is_empty() && got["dx"].is_empty());
            assert_eq!((&got["dgamma"][..], &got["dbeta"][..]), (&[0.0; 4][..], &[0.0; 4][..]), "{op:?}");
        }
    }
}

/// `BatchNorm1d` to `3d` in inference, which changes next to nothing, and `InstanceNorm1d` to `3d`.
fn arange_gives_the_literals_of_the_cpp_api<T: Element, B: Sliced>(on: &B) {
    let arange = |op, dims: &[usize]| {
        let problem = blank(op, dims);
        Problem { x: vec![(0..problem.dy.len()).map(|i| i as f64).collect()], ..problem }
    };
    let near = |got: &[f64], literals: &[f64]| {
        for (i, (got, expected)) in got.iter().zip(literals.iter().cycle()).enumerate() {
            let rounding = Format::of(T::DTYPE).step(*expected);
            assert!((got - expected).abs() <= 1e-3 + rounding, "y[{i}] is {got} instead of {expected}");
        }
    };
    for dims in [&[2, 5][..], &[2, 5, 2], &[2, 5, 2, 2], &[2, 5, 2, 2, 2]] {
        let mut problem = arange(Op::BatchNormEval, dims);
        problem.running = Some(Running { mean: vec![0.0; 5], var: vec![1.0; 5] });
        let got = check::<T, B>(on, &problem, &Options::default());
        near(&got["y"], &problem.x[0]);
    }
    let literals: [(&[usize], &[f64]); 3] = [
        (&[2, 5, 2], &[-1.0, 1.0]),
        (&[2, 5, 2, 2], &[-1.3416, -0.4472, 0.4472, 1.3416]),
        (&[2, 5, 2, 2, 2], &[-1.5275, -1.0911, -0.6547, -0.2182, 0.2182, 0.6547, 1.0911, 1.5275]),
    ];
    for (dims, literals) in literals {
        let got = check::<T, B>(on, &arange(Op::InstanceNorm, dims), &Options::default());
        near(&got["y"], literals);
    }
}
