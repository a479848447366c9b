//! What is done in the same pass as the norm: residuals, activations, momentum from the device.

use warpnorm::{
    Activation, DType, Element, Layout,
    half::{bf16, f16},
};

use crate::support::{
    check,
    data::{
        Rng, accumulating, batch_norm_eval, every_channel_norm, every_op, layer_norm, rms_norm, with_residual,
    },
    expect_same_bits, on_every_backend, outputs,
    problem::{Problem, Running},
    run::{Options, Params, Sliced},
    small,
};

on_every_backend!(
    every_activation_is_within_the_rule_after_every_norm,
    activations_of_large_arguments_do_not_overflow,
    relu_keeps_nan_and_has_no_slope_at_zero,
    relu_is_the_plain_norm_where_it_is_positive,
    relu_lets_no_gradient_through_where_it_is_zero,
    the_gradient_of_a_residual_is_that_of_the_output,
    a_norm_of_a_sum_gives_the_bits_of_the_sum_and_then_the_norm,
    a_sum_that_rounds_to_infinity_is_normalized_as_such,
    what_reaches_the_sum_elsewhere_is_added_to_its_gradient,
    a_momentum_on_the_device_replaces_that_of_the_op,
    a_momentum_of_zero_leaves_no_trace_of_any_batch,
);

const BOTH: [Layout; 2] = [Layout::ChannelsFirst, Layout::ChannelsLast];
const ACTIVATIONS: [Activation; 4] =
    [Activation::Relu, Activation::Silu, Activation::Gelu, Activation::GeluTanh];

fn every_activation_is_within_the_rule_after_every_norm<T: Element, B: Sliced>(on: &B) {
    for (inner, layout) in
        [(1, Layout::ChannelsFirst), (9, Layout::ChannelsLast), (32, Layout::ChannelsFirst)]
    {
        for activation in ACTIVATIONS {
            for (i, problem) in every_channel_norm(inner, layout, inner as u64).into_iter().enumerate() {
                let mut problem = Problem { activation, ..problem };
                let mut rng = Rng((i + inner) as u64 ^ activation as u64);
                problem.weight = problem.weight.filter(|_| rng.flip() || rng.flip());
                problem.bias = problem.bias.filter(|_| rng.flip() || rng.flip());
                let params = if rng.flip() { Params::F32 } else { Params::Same };
                let options = Options { params, max_start: i % 3, ..Options::default() };
                let fused = with_residual(problem.clone(), i as u64);
                let fused = if rng.flip() { accumulating(fused, i as u64) } else { fused };
                check::<T, B>(on, &problem, &options);
                check::<T, B>(on, &fused, &Options { in_place: rng.flip(), ..options });
            }
        }
    }
}

/// Given statistics, without parameters: the activation's argument is `x`.
fn arguments(x: Vec<f64>) -> Problem {
    let mut problem = batch_norm_eval(&[x.len(), 1], Layout::ChannelsFirst, 1);
    problem.running = Some(Running { mean: vec![0.0], var: vec![1.0] });
    Problem { x: vec![x], weight: None, bias: None, eps: 0.0, ..problem }
}

fn activations_of_large_arguments_do_not_overflow<T: Element, B: Sliced>(on: &B) {
    let mut x = vec![0.0];
    for v in [1e-4, 0.75, 1.25, 3.0, 5.5, 9.0, 15.0, 40.0, 90.0, 200.0, 1e4, 6e4] {
        x.extend([v, -v]);
    }
    for activation in ACTIVATIONS {
        let got = check::<T, B>(on, &Problem { activation, ..arguments(x.clone()) }, &Options::default());
        assert!(got["y"].iter().chain(&got["dx"]).all(|v| v.is_finite()), "{activation:?}");
    }
}

fn relu_keeps_nan_and_has_no_slope_at_zero<T: Element, B: Sliced>(on: &B) {
    let x = vec![f64::NAN, f64::NEG_INFINITY, f64::INFINITY, 0.0, -0.0, -1.0, 2.0];
    let problem = Problem { activation: Activation::Relu, ..arguments(x) };
    let problem = with_residual(Problem { dy: vec![3.0; 7], ..problem }, 1);
    let problem = Problem { residual: Some(vec![0.0; 7]), data: Some(T::DTYPE), ..problem };
    let got = outputs::<T, B>(on, &problem, &Options::default());
    assert!(got["y"][0].is_nan());
    assert_eq!(got["y"][1..], [0.0, f64::INFINITY, 0.0, 0.0, 0.0, 2.0]);
    for slope in ["dresidual", "dx"] {
        assert_eq!(got[slope][1..], [0.0, 3.0, 0.0, 0.0, 0.0, 3.0], "{slope}");
    }
}

fn relu_is_the_plain_norm_where_it_is_positive<T: Element, B: Sliced>(on: &B) {
    for layout in BOTH {
        for plain in every_channel_norm(9, layout, 2) {
            let plain = plain.rounded(T::DTYPE, DType::F32);
            let fused = Problem { activation: Activation::Relu, ..plain.clone() };
            let [mut plain, fused] =
                [plain, fused].map(|problem| outputs::<T, B>(on, &problem, &Options::default()));
            let y = plain.get_mut("y").unwrap();
            y.iter_mut().filter(|y| **y < 0.0).for_each(|y| *y = 0.0);
            assert_eq!(fused["y"], plain["y"]);
        }
    }
}

fn relu_lets_no_gradient_through_where_it_is_zero<T: Element, B: Sliced>(on: &B) {
    for layout in BOTH {
        for problem in every_channel_norm(9, layout, 8) {
            let problem = Problem { activation: Activation::Relu, ..problem };
            let y = &outputs::<T, B>(on, &problem, &Options::default())["y"];
            let with = |gradient: f64| {
                let dy = problem.dy.iter().zip(y).map(|(dy, y)| if *y == 0.0 { gradient } else { *dy });
                outputs::<T, B>(on, &Problem { dy: dy.collect(), ..problem.clone() }, &Options::default())
            };
            let want = with(0.0);
            for gradient in [f64::NAN, f64::NEG_INFINITY] {
                expect_same_bits("where no gradient goes through", &with(gradient), &want);
            }
        }
    }
}

fn the_gradient_of_a_residual_is_that_of_the_output<T: Element, B: Sliced>(on: &B) {
    for layout in BOTH {
        for (i, problem) in every_channel_norm(9, layout, 3).into_iter().enumerate() {
            let problem = with_residual(problem, i as u64).rounded(T::DTYPE, DType::F32);
            let got = check::<T, B>(on, &problem, &Options::default());
            assert_eq!(got["dresidual"], problem.dy, "{:?}", problem.op);
        }
    }
}

/// A batch of each row norm: rows that fit a warp, a block, and neither.
fn row_norms(seed: u64) -> Vec<Problem> {
    let shapes: [&[usize]; 6] = [&[5, 1], &[9, 7], &[3, 64], &[2, 3, 33], &[2, 1025], &[2, 4096]];
    let of = |dims| [layer_norm(dims, 1, seed), rms_norm(dims, 1, seed)];
    shapes.into_iter().flat_map(of).collect()
}

fn a_norm_of_a_sum_gives_the_bits_of_the_sum_and_then_the_norm<T: Element, B: Sliced>(on: &B) {
    for (i, problem) in row_norms(4).into_iter().enumerate() {
        let all = [(0, 0, false), (3, 8, true), (0, 0, true), (5, 0, false)];
        for (max_start, gap, in_place) in all.into_iter().take(if small() { 2 } else { 4 }) {
            let fused = Problem { dh: None, ..with_residual(problem.clone(), i as u64) };
            let options = Options { max_start, gap, in_place, ..Options::default() };
            let mut got = check::<T, B>(on, &fused, &options);
            let fused = fused.rounded(T::DTYPE, DType::F32);
            let h = got.remove("h").unwrap();
            assert_eq!(h, fused.sum().unwrap(), "the sum, rounded once");
            let plain = Problem { residual: None, x: vec![h], ..fused };
            let want = outputs::<T, B>(on, &plain, &options);
            expect_same_bits(&format!("{:?} {:?} {options:?}", plain.op, plain.dims), &got, &want);
        }
    }
}

fn a_sum_that_rounds_to_infinity_is_normalized_as_such<T: Element, B: Sliced>(on: &B) {
    let largest = match T::DTYPE {
        DType::F16 => f64::from(f16::MAX),
        DType::BF16 => f64::from(bf16::MAX),
        _ => f64::from(f32::MAX),
    };
    for make in [layer_norm, rms_norm] {
        let mut problem = with_residual(make(&[2, 8], 1, 5), 6).rounded(T::DTYPE, DType::F32);
        (problem.x[0][3], problem.residual.as_mut().unwrap()[3]) = (largest, largest);
        let got = outputs::<T, B>(on, &problem, &Options::default());
        assert_eq!(got["h"], problem.sum().unwrap());
        assert!(got["h"][3] == f64::INFINITY && got["y"][3].is_nan());
        assert!(got["y"][8..].iter().all(|y| y.is_finite()), "the other row");
    }
}

fn what_reaches_the_sum_elsewhere_is_added_to_its_gradient<T: Element, B: Sliced>(on: &B) {
    for (i, problem) in row_norms(7).into_iter().enumerate() {
        let fused = with_residual(problem, i as u64);
        check::<T, B>(on, &fused, &Options::default());
        // Also without a residual: the input may have other uses, too.
        let fused = Problem { residual: None, ..fused };
        check::<T, B>(on, &fused, &Options { max_start: 3, ..Options::default() });
        // Where no gradient arrives by the norm, it is all there is.
        let zeros = Problem { dy: vec![0.0; fused.dy.len()], ..fused }.rounded(T::DTYPE, DType::F32);
        let got = outputs::<T, B>(on, &zeros, &Options::default());
        assert_eq!(&got["dx"], zeros.dh.as_ref().unwrap());
    }
}

fn a_momentum_on_the_device_replaces_that_of_the_op<T: Element, B: Sliced>(on: &B) {
    for layout in BOTH {
        for problem in every_op(9, layout, 8).into_iter().filter(|problem| problem.tracked().is_some()) {
            for momentum in [Some(0.25), Some(1.0), Some(-1.2), None] {
                let problem = Problem { momentum, ..problem.clone() }.rounded(T::DTYPE, DType::F32);
                let of_the_op = outputs::<T, B>(on, &problem, &Options::default());
                let options = Options { device_momentum: true, ..Options::default() };
                let got = check::<T, B>(on, &problem, &options);
                expect_same_bits("from the device", &got, &of_the_op);
            }
        }
    }
}

/// As it must be while a graph is captured or warmed up.
fn a_momentum_of_zero_leaves_no_trace_of_any_batch<T: Element, B: Sliced>(on: &B) {
    for layout in BOTH {
        for mut problem in every_op(9, layout, 9).into_iter().filter(|problem| problem.tracked().is_some()) {
            problem.momentum = Some(0.0);
            for (i, x) in problem.x[0].iter_mut().enumerate() {
                *x = [f64::NAN, f64::INFINITY, *x][i % 3];
            }
            let before = problem.running.clone().unwrap();
            let problem = problem.rounded(T::DTYPE, DType::F32);
            let options = Options { device_momentum: true, ..Options::default() };
            let got = outputs::<T, B>(on, &problem, &options);
            assert_eq!((&got["running_mean"], &got["running_var"]), (&before.mean, &before.var));
        }
    }
}
