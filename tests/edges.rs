//! What every op must get right where sizes or values are out of the ordinary.

#[path = "edges/bits.rs"]
mod same_bits;
#[path = "edges/sizes.rs"]
mod sizes;

use warpnorm::{DType, Element, Layout, Statistics};

use crate::support::{
    bits, check,
    data::{
        Rng, accumulating, batch_norm_eval, batch_norm_train, group_norm, instance_norm, instance_norm_eval,
        layer_norm, rms_norm, running,
    },
    describe,
    judge::Format,
    on_every_backend, outputs,
    problem::{Op, Problem},
    run::{Options, Params, Sliced},
};

on_every_backend!(
    nan_and_infinity_poison_only_what_shares_their_statistic,
    equal_values_give_exactly_the_bias,
    the_largest_f16_numbers_do_no_harm,
    outputs_beyond_the_type_become_infinite,
    nothing_in_gives_nothing_out,
    a_single_element_is_enough_where_it_has_a_statistic,
);

const LAYOUTS: [Layout; 2] = [Layout::ChannelsFirst, Layout::ChannelsLast];

/// A problem of each op and kind of statistic with `[samples, channels, positions]`, row norms of rows as long as a
/// sample. Samples and channels are even.
fn every_op([samples, channels, positions]: [usize; 3], seed: u64) -> Vec<Problem> {
    let row = [samples, channels * positions];
    let mut all = vec![layer_norm(&row, 1, seed), rms_norm(&row, 1, seed)];
    for layout in LAYOUTS {
        let dims = match layout {
            Layout::ChannelsFirst => vec![samples, channels, positions],
            Layout::ChannelsLast => vec![samples, positions, channels],
        };
        let train = batch_norm_train(&dims, layout, seed);
        let whole = Problem {
            statistics: Statistics::WholeBatch,
            running: Some(running(1, seed)),
            ..batch_norm_train(&dims, layout, seed)
        };
        // Two chunks, or none of one sample.
        all.push(Problem { virtual_batch: Some((samples / 2).max(1)), ..train.clone() });
        all.extend([train, whole, batch_norm_eval(&dims, layout, seed)]);
        all.extend([1, 2, channels].map(|groups| group_norm(&dims, layout, groups, seed)));
        all.extend([instance_norm(&dims, layout, seed), instance_norm_eval(&dims, layout, seed)]);
        let mut steps = vec![2];
        steps.extend(&dims);
        all.push(Problem {
            statistics: Statistics::PerTimeStep { steps: 2 },
            running: Some(running(2 * channels, seed)),
            ..per_step(batch_norm_train, &steps, layout, seed)
        });
    }
    all
}

/// The generators look for channels where there are no time steps.
fn per_step(
    make: fn(&[usize], Layout, u64) -> Problem,
    dims: &[usize],
    layout: Layout,
    seed: u64,
) -> Problem {
    let mut merged = dims[1..].to_vec();
    merged[0] *= dims[0];
    Problem { dims: dims.to_vec(), ..make(&merged, layout, seed) }
}

fn round<T: Element>(problem: &Problem) -> Problem {
    problem.rounded(T::DTYPE, DType::F32)
}

/// What a poisoned element of `x` may reach.
struct Reach {
    /// Elements that are normalized with its statistic; itself alone, where that is given.
    elements: Vec<bool>,
    statistic: usize,
    /// Parameters that scale any of these.
    params: Vec<bool>,
}

impl Reach {
    fn of(problem: &Problem, at: usize) -> Self {
        let geometry = problem.geometry();
        let (statistic, given) = (geometry.group[at], problem.op.statistics().is_none());
        let reached = |i: usize| if given { i == at } else { geometry.group[i] == statistic };
        let elements: Vec<bool> = (0..geometry.group.len()).map(reached).collect();
        let mut params = vec![false; geometry.params];
        elements.iter().zip(&geometry.param).for_each(|(reached, &param)| params[param] |= reached);
        Self { elements, statistic, params }
    }

    fn covers(&self, problem: &Problem, name: &str, i: usize) -> bool {
        match name {
            "y" => self.elements[i],
            "dx" => self.elements[i] && problem.op.statistics().is_some(),
            "dbeta" => false, // a sum over dy alone, without an activation
            "dgamma" => self.params[i],
            "running_mean" | "running_var" => {
                let len = problem.running.as_ref().unwrap().mean.len();
                self.statistic % len == i % len
            }
            _ => i == self.statistic,
        }
    }
}

fn nan_and_infinity_poison_only_what_shares_their_statistic<T: Element, B: Sliced>(on: &B) {
    for shape in [[4, 4, 9], [2, 8, 16], [6, 2, 65]] {
        for healthy in every_op(shape, 4) {
            let healthy = round::<T>(&healthy);
            let clean = bits(&outputs::<T, B>(on, &healthy, &Options::default()));
            let at = healthy.dy.len() / 2 + 1;
            let reach = Reach::of(&healthy, at);
            for poison in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                let mut problem = healthy.clone();
                problem.x[0][at] = poison;
                let got = outputs::<T, B>(on, &problem, &Options::default());
                let what = describe(&problem);
                assert!(!got["y"][at].is_finite(), "{what}: y is {} where x is {poison}", got["y"][at]);
                if let Some([_, _, rstd]) = problem.op.statistics() {
                    let rstd = got[rstd][reach.statistic];
                    let none = problem.op == Op::RmsNorm && rstd == 0.0; // of an infinite mean square
                    assert!(!rstd.is_finite() || none, "{what}: rstd is {rstd} where x is {poison}");
                    assert!(got["y"][at].is_nan(), "{what}: y is {} where x is {poison}", got["y"][at]);
                }
                for (name, got) in bits(&got) {
                    for (i, (got, clean)) in got.iter().zip(&clean[name]).enumerate() {
                        let may = reach.covers(&problem, name, i);
                        assert!(may || got == clean, "{what}: {name}[{i}] changed with x[{at}]");
                    }
                }
            }
        }
    }
}

/// Half of all constants are not the rounded quotient of their rounded sum and their number.
fn equal_values_give_exactly_the_bias<T: Element, B: Sliced>(on: &B) {
    for shape in [[2, 2, 7], [4, 4, 8], [6, 2, 33], [2, 2, 521], [64, 8, 2]] {
        for mut problem in every_op(shape, 9) {
            let Some(_) = problem.op.statistics().filter(|_| problem.op != Op::RmsNorm) else { continue };
            let geometry = problem.geometry();
            let constants = Rng(3).normals(geometry.groups, 0.0, 30.0);
            problem.x = vec![geometry.group.iter().map(|&group| constants[group]).collect()];
            let got = check::<T, B>(on, &problem, &Options::default());
            let bias = round::<T>(&problem).bias.unwrap();
            for (i, &y) in got["y"].iter().enumerate() {
                let bias = Format::of(T::DTYPE).round(bias[geometry.param[i]]);
                assert_eq!(y, bias, "{}: element {i}", describe(&problem));
            }
        }
    }
}

/// Sums of squares of such numbers leave `f16` at once.
fn the_largest_f16_numbers_do_no_harm<T: Element, B: Sliced>(on: &B) {
    for shape in [[4, 4, 9], [2, 8, 64]] {
        for mut problem in every_op(shape, 6) {
            let mut rng = Rng(8);
            let mut far = || {
                let size = if rng.flip() { 65_504.0 } else { 60_000.0 + 5000.0 * rng.unit() };
                if rng.flip() { size } else { -size }
            };
            problem.x[0].iter_mut().for_each(|x| *x = far());
            if problem.op.statistics().is_none() {
                let running = problem.running.as_mut().unwrap();
                running.var.iter_mut().for_each(|var| *var = 4e9);
            }
            check::<T, B>(on, &problem, &Options::default());
        }
    }
}

/// As any rounding does it; in the wider types nothing overflows.
fn outputs_beyond_the_type_become_infinite<T: Element, B: Sliced>(on: &B) {
    for mut problem in every_op([4, 4, 9], 7) {
        let mut rng = Rng(1);
        problem.weight.as_mut().unwrap().iter_mut().for_each(|w| *w = 30_000.0 + 30_000.0 * rng.unit());
        let got = check::<T, B>(on, &problem, &Options::default());
        let infinite = got["y"].iter().filter(|y| y.is_infinite()).count();
        assert_eq!(infinite > 0, T::DTYPE == DType::F16, "{}: {infinite} infinite", describe(&problem));
    }
}

/// Gradients are zeros, or what they are added to; running statistics stay.
fn nothing_in_gives_nothing_out<T: Element, B: Sliced>(on: &B) {
    for shape in [[0, 4, 9], [0, 4, 1]] {
        for problem in every_op(shape, 3) {
            for params in [Params::F32, Params::Same] {
                let options = Options { params, grads: params, ..Options::default() };
                let problem = problem.rounded(T::DTYPE, params.dtype(T::DTYPE));
                let what = describe(&problem);
                let got = outputs::<T, B>(on, &problem, &options);
                assert!(got["y"].is_empty() && got["dx"].is_empty(), "{what}");
                assert!(got["dgamma"].iter().chain(&got["dbeta"]).all(|&v| v == 0.0), "{what}");
                if let Some(before) = problem.tracked() {
                    let running = (&got["running_mean"], &got["running_var"]);
                    assert_eq!(running, (&before.mean, &before.var), "{what}");
                }
                let adding = accumulating(problem, 5);
                let got = outputs::<T, B>(on, &adding, &options);
                let old = adding.old_grads.as_ref().unwrap();
                assert_eq!([&got["dgamma"], &got["dbeta"]], [&old[0], &old[1]], "{what}");
            }
        }
    }
}

fn a_single_element_is_enough_where_it_has_a_statistic<T: Element, B: Sliced>(on: &B) {
    let mut all = vec![layer_norm(&[1], 1, 1), layer_norm(&[1, 1], 1, 1), layer_norm(&[1, 1, 1], 3, 1)];
    all.extend([rms_norm(&[1], 1, 1), rms_norm(&[1, 1], 1, 1), rms_norm(&[1, 1, 1], 3, 1)]);
    for layout in LAYOUTS {
        for dims in [&[1, 1][..], &[1, 1, 1], &[1; 5]] {
            all.push(group_norm(dims, layout, 1, 1));
            all.push(batch_norm_eval(dims, layout, 1));
            if dims.len() > 2 {
                all.push(instance_norm_eval(dims, layout, 1));
            }
        }
    }
    for problem in all {
        check::<T, B>(on, &problem, &Options::default());
    }
}
