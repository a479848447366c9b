//! Backward passes against the slopes of the formulas: nothing here knows a derivative.

use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed, TestRunner},
};
use warpnorm::{Activation, Element, Layout, Statistics};

use crate::support::{
    data::{
        Rng, accumulating, batch_norm_eval, batch_norm_train, group_norm, instance_norm, instance_norm_eval,
        layer_norm, rms_norm, running, with_residual,
    },
    describe,
    judge::{Format, tolerances},
    on_every_backend, outputs,
    problem::{Op, Problem},
    reference::reference,
    run::{Options, Params, Sliced},
    small,
};

on_every_backend!(
    channel_norms_give_the_slopes_of_their_forward_pass,
    row_norms_give_the_slopes_of_their_forward_pass,
);

/// Half the width of the band around ReLU's kink that no output may lie in: difference quotients reach less far.
const KINK: f64 = 0.1;

/// How options are drawn for the sizes that `problems` chooses: from the bits of a seed, as the data is.
fn options(rng: &mut Rng) -> Options {
    let params = |rng: &mut Rng| if rng.flip() { Params::F32 } else { Params::Same };
    Options {
        params: params(rng),
        grads: params(rng),
        max_start: (rng.bits() % 3) as usize,
        in_place: rng.flip(),
        ..Options::default()
    }
}

fn without_some_parameters(mut problem: Problem, rng: &mut Rng) -> Problem {
    problem.weight = problem.weight.filter(|_| rng.flip() || rng.flip());
    problem.bias = problem.bias.filter(|_| rng.flip() || rng.flip());
    problem.eps = 0.1; // no spread may be too small for a difference quotient
    problem
}

/// Small problems of every channel norm, rank, layout and option.
fn channel_norms() -> impl Strategy<Value = (Problem, Options)> {
    let dims = (1..4usize, 1..4usize, 1..3usize, prop::collection::vec(1..3usize, 0..3));
    (0..8usize, dims, any::<u64>()).prop_map(|(op, (outer, groups, each, spatial), seed)| {
        use Layout::{ChannelsFirst as First, ChannelsLast as Last};
        let mut rng = Rng(seed);
        let layout = if rng.flip() { First } else { Last };
        // Dimensions of this many samples and channels; instances have more than one value, and BatchNorm two samples.
        let dims = |samples: usize, channels: usize, spatial: &[usize]| {
            let positions = spatial.iter().copied();
            let mut dims = vec![samples];
            match layout {
                First => dims.extend([channels].into_iter().chain(positions)),
                Last => dims.extend(positions.chain([channels])),
            }
            dims
        };
        let instances = [&[3][..], &spatial[..spatial.len().min(2)]].concat();
        let mut problem = match op {
            0 => batch_norm_train(&dims(outer + 1, groups, &spatial), layout, seed),
            1 => batch_norm_eval(&dims(outer, groups, &spatial), layout, seed),
            2 => Problem {
                virtual_batch: Some(2),
                ..batch_norm_train(&dims(2 * outer, groups, &spatial), layout, seed)
            },
            3 => group_norm(&dims(outer, groups * each, &spatial), layout, groups, seed),
            4 => instance_norm(&dims(outer, groups, &instances), layout, seed),
            5 => instance_norm_eval(&dims(outer, groups, &instances), layout, seed),
            _ => {
                let steps = dims(2, groups, &spatial[..spatial.len().min(2)]);
                let make = if op == 6 { batch_norm_train } else { batch_norm_eval };
                let channels = steps[if layout == First { 1 } else { steps.len() - 1 }];
                let mut problem = make(&steps, layout, seed);
                // Time comes first, and each of its steps is a batch.
                problem.dims.insert(0, each);
                problem.statistics = Statistics::PerTimeStep { steps: each };
                problem.running = Some(running(each * channels, seed));
                let len = problem.dims.iter().product();
                (problem.x, problem.dy) = (vec![rng.normals(len, 0.5, 2.0)], rng.normals(len, 0.0, 1.0));
                problem
            }
        };
        if op < 2 && rng.flip() {
            problem.statistics = Statistics::WholeBatch;
            problem.running = Some(running(1, seed));
        }
        use Activation::{Gelu, GeluTanh, None, Relu, Silu};
        problem.activation = [None, Relu, Silu, Gelu, GeluTanh][(rng.bits() % 5) as usize];
        if rng.flip() {
            problem = with_residual(problem, seed);
        }
        if rng.flip() {
            problem = accumulating(problem, seed);
        }
        (without_some_parameters(problem, &mut rng), options(&mut rng))
    })
}

/// Small problems of both row norms, every number of dimensions and every option.
fn row_norms() -> impl Strategy<Value = (Problem, Options)> {
    let dims = (prop::collection::vec(1..4usize, 1..4), prop::collection::vec(1..4usize, 1..3));
    (dims, any::<u64>()).prop_map(|((rows, row), seed)| {
        let mut rng = Rng(seed);
        let make = if rng.flip() { layer_norm } else { rms_norm };
        let mut problem = make(&[&rows[..], &row].concat(), row.len(), seed);
        if problem.op == Op::RmsNorm && rng.flip() {
            problem.weight_offset = 1.0;
        }
        if rng.flip() {
            problem = with_residual(problem, seed);
        }
        problem.dh = problem.dh.filter(|_| rng.flip() || rng.flip());
        if rng.flip() {
            problem = accumulating(problem, seed);
        }
        let gap = if rng.flip() { 1 + (rng.bits() % 9) as usize } else { 0 };
        (without_some_parameters(problem, &mut rng), Options { gap, ..options(&mut rng) })
    })
}

fn channel_norms_give_the_slopes_of_their_forward_pass<T: Element, B: Sliced>(on: &B) {
    give_the_slopes::<T, B>(on, channel_norms(), if small() { 24 } else { 120 });
}

fn row_norms_give_the_slopes_of_their_forward_pass<T: Element, B: Sliced>(on: &B) {
    give_the_slopes::<T, B>(on, row_norms(), if small() { 12 } else { 60 });
}

fn give_the_slopes<T: Element, B: Sliced>(
    on: &B,
    problems: impl Strategy<Value = (Problem, Options)>,
    cases: u32,
) {
    let config = Config {
        cases,
        rng_seed: RngSeed::Fixed(T::DTYPE as u64),
        failure_persistence: None,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&problems, |(problem, options)| {
        let types = options.types(T::DTYPE);
        let mut problem = problem.rounded(types.data, types.affine);
        if problem.activation == Activation::Relu {
            let z = reference(&problem)["z"].clone();
            problem.dy.iter_mut().zip(z).filter(|(_, z)| z.abs() < KINK).for_each(|(dy, _)| *dy = 0.0);
        }
        let got = outputs::<T, B>(on, &problem, &options);
        let allowed = tolerances(&problem);
        for (name, slopes) in slopes(&problem) {
            let format = Format::of(types.of(name));
            for (i, &slope) in slopes.iter().enumerate() {
                // The rule, and what the difference quotient itself may be off by.
                let t = allowed[name][i] + 1e-8 * (1.0 + slope.abs());
                let (low, high) = (format.round(slope - t), format.round(slope + t));
                let got = got[name][i];
                prop_assert!(
                    low <= got && got <= high,
                    "{} {options:?}: {name}[{i}] is {got:e}, the slope is {slope:e} +- {t:e}",
                    describe(&problem)
                );
            }
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// The derivatives of `sum(dy * y)` with respect to `x`, residual, weight and bias, added to what gradients are added to.
fn slopes(problem: &Problem) -> Vec<(&'static str, Vec<f64>)> {
    // What a row norm is given for a sum is rounded, which has no slope: it is the rounded sum that moves.
    let mut moving = Problem { x: vec![problem.normalized().into_owned()], ..problem.clone() };
    if problem.op.is_row_norm() {
        moving.residual = None;
    }
    let of = |values: fn(&mut Problem) -> &mut Vec<f64>| -> Vec<f64> {
        let mut problem = moving.clone();
        (0..values(&mut problem).len())
            .map(|i| {
                let here = values(&mut problem)[i];
                let mut at = |offset: f64| {
                    values(&mut problem)[i] = here + offset;
                    loss(&problem)
                };
                // Fourth order in h; the differences of a loss of about 10 are good to 1e-11 of the slope.
                let h = 1e-3;
                let slope = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
                values(&mut problem)[i] = here;
                slope
            })
            .collect()
    };
    let added = |mut slopes: Vec<f64>, which: usize| {
        if let Some(old) = &problem.old_grads {
            slopes.iter_mut().zip(&old[which]).for_each(|(slope, old)| *slope += old);
        }
        slopes
    };
    let mut slopes = vec![("dx", of(|problem| &mut problem.x[0]))];
    if moving.residual.is_some() {
        slopes.push(("dresidual", of(|problem| problem.residual.as_mut().unwrap())));
    }
    if problem.weight.is_some() {
        slopes.push(("dgamma", added(of(|problem| problem.weight.as_mut().unwrap()), 0)));
    }
    if problem.bias.is_some() {
        slopes.push(("dbeta", added(of(|problem| problem.bias.as_mut().unwrap()), 1)));
    }
    slopes
}

/// What the gradients are gradients of: `dy` is that of `y`, and `dh` that of a row norm's sum.
fn loss(problem: &Problem) -> f64 {
    let sum = |values: &[f64], by: &[f64]| values.iter().zip(by).map(|(v, by)| v * by).sum::<f64>();
    let by_sum = problem.dh.as_ref().map_or(0.0, |dh| sum(problem.last_x(), dh));
    sum(&reference(problem)["y"], &problem.dy) + by_sum
}
