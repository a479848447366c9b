//! Backward passes against the slopes of the formulas: nothing here knows a derivative.

use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed, TestRunner},
};
use warpnorm::{Element, Layout, Statistics};

use crate::support::{
    data::{batch_norm_eval, batch_norm_train, running},
    judge::{Format, tolerances},
    on_every_backend, outputs,
    problem::Problem,
    reference::reference,
    run::{Options, Params, Sliced},
    small,
};

on_every_backend!(backward_gives_the_slopes_of_forward);

/// Small problems of every rank, layout and option, in which no spread is too small for a difference quotient.
fn problems() -> impl Strategy<Value = (Problem, Params)> {
    let dims = (2..4usize, 1..4usize, prop::collection::vec(1..3usize, 0..4));
    (dims, any::<u64>(), any::<[bool; 6]>()).prop_map(|((outer, channels, spatial), seed, flags)| {
        let [train, last, weight, bias, whole, same] = flags;
        let mut dims = vec![outer, channels];
        dims.extend(spatial);
        let layout = if last { Layout::ChannelsLast } else { Layout::ChannelsFirst };
        if last {
            dims[1..].rotate_left(1);
        }
        let make = if train { batch_norm_train } else { batch_norm_eval };
        let mut problem = make(&dims, layout, seed);
        problem.eps = 0.1;
        problem.weight = problem.weight.filter(|_| weight);
        problem.bias = problem.bias.filter(|_| bias);
        if whole {
            problem.statistics = Statistics::WholeBatch;
            problem.running = Some(running(1, seed));
        }
        (problem, if same { Params::Same } else { Params::F32 })
    })
}

fn backward_gives_the_slopes_of_forward<T: Element, B: Sliced>(on: &B) {
    let config = Config {
        cases: if small() { 8 } else { 48 },
        rng_seed: RngSeed::Fixed(T::DTYPE as u64),
        failure_persistence: None,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&problems(), |(problem, params)| {
        let options = Options { params, ..Options::default() };
        let types = options.types(T::DTYPE);
        let problem = problem.rounded(types.data, types.affine);
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
                    "{name}[{i}] is {got:e}, the slope is {slope:e} +- {t:e}"
                );
            }
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// The derivatives of `sum(dy * y)` with respect to `x`, weight and bias.
fn slopes(problem: &Problem) -> Vec<(&'static str, Vec<f64>)> {
    let loss = |problem: &Problem| -> f64 {
        reference(problem)["y"].iter().zip(&problem.dy).map(|(y, dy)| y * dy).sum()
    };
    let of = |values: fn(&mut Problem) -> &mut Vec<f64>| -> Vec<f64> {
        let mut problem = problem.clone();
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
    let mut slopes = vec![("dx", of(|problem| &mut problem.x[0]))];
    if problem.weight.is_some() {
        slopes.push(("dgamma", of(|problem| problem.weight.as_mut().unwrap())));
    }
    if problem.bias.is_some() {
        slopes.push(("dbeta", of(|problem| problem.bias.as_mut().unwrap())));
    }
    slopes
}
