//! BatchNorm with statistics of parts of a batch: of chunks of samples and of time steps.

use warpnorm::{BatchNorm, DType, Element, Layout, Statistics, Tensor};

use crate::support::{
    check,
    data::{Rng, batch_norm_eval, batch_norm_train, dims, in_time_steps, running},
    expect_same_bits, on_every_backend, outputs,
    problem::{Op, Problem},
    run::{Options, Params, Sliced},
    small,
};

on_every_backend!(
    chunks_of_every_size_train_within_the_rule,
    time_steps_train_and_infer_within_the_rule,
    running_statistics_move_once_for_all_chunks,
    many_chunks_are_averaged_within_the_rule,
    one_chunk_or_step_is_the_batch,
    nan_and_infinity_poison_only_their_own_segment,
    an_empty_batch_counts_but_changes_nothing,
    lengths_are_those_of_the_buffers,
);

const BOTH: [Layout; 2] = [Layout::ChannelsFirst, Layout::ChannelsLast];

/// Turns the problem's and the run's options by a seed.
fn vary(problem: &mut Problem, seed: u64) -> Options {
    let mut rng = Rng(seed ^ 0xc0ffee);
    problem.weight = problem.weight.take().filter(|_| rng.flip());
    problem.bias = problem.bias.take().filter(|_| rng.flip());
    if problem.op == Op::BatchNormTrain && rng.flip() {
        problem.running = None;
    }
    let params = |rng: &mut Rng| if rng.flip() { Params::F32 } else { Params::Same };
    let (params, grads) = (params(&mut rng), params(&mut rng));
    Options { params, grads, max_start: (rng.bits() % 4) as usize, ..Options::default() }
}

fn chunks_of_every_size_train_within_the_rule<T: Element, B: Sliced>(on: &B) {
    let shapes: &[([usize; 3], &[usize])] = &[
        ([6, 3, 1], &[2, 3, 6]),
        ([6, 35, 1], &[3]),
        ([4, 3, 7], &[1, 2, 4]),
        ([4, 8, 16], &[1, 2]),
        ([9, 64, 3], &[3]),
        ([66, 2, 1], &[33]),
        ([2, 2, 1025], &[1]),
        ([130, 5, 2], &[2, 65]),
    ];
    for (i, (shape, chunks)) in shapes.iter().enumerate() {
        for layout in BOTH {
            for &chunk in *chunks {
                let seed = (20 * i + 2 * chunk + layout as usize) as u64;
                let mut problem = batch_norm_train(&dims(*shape, layout), layout, seed);
                problem.virtual_batch = Some(chunk);
                let options = vary(&mut problem, seed);
                check::<T, B>(on, &problem, &options);
            }
        }
    }
    let long = if small() { [4, 2, 2001] } else { [4, 2, 20_001] };
    let problem = batch_norm_train(&dims(long, Layout::ChannelsFirst), Layout::ChannelsFirst, 1);
    check::<T, B>(on, &Problem { virtual_batch: Some(2), ..problem }, &Options::default());
}

fn time_steps_train_and_infer_within_the_rule<T: Element, B: Sliced>(on: &B) {
    let shapes = [
        ([6, 3, 1], 3),
        ([6, 35, 1], 2),
        ([4, 3, 7], 4),
        ([4, 8, 16], 1),
        ([66, 2, 1], 2),
        ([2, 2, 1025], 2),
    ];
    for (i, (shape, steps)) in shapes.into_iter().enumerate() {
        for layout in BOTH {
            for make in [batch_norm_train, batch_norm_eval] {
                let seed = (2 * i + layout as usize) as u64;
                let mut problem = in_time_steps(make(&dims(shape, layout), layout, seed), steps, seed);
                let options = vary(&mut problem, seed);
                check::<T, B>(on, &problem, &options);
            }
        }
    }
    // Two to three dimensions behind the time.
    for (seed, all) in [&[3, 4, 5][..], &[2, 3, 4, 5, 3]].into_iter().enumerate() {
        for layout in BOTH {
            for make in [batch_norm_train, batch_norm_eval] {
                let flat = [&[all[0] * all[1]], &all[2..]].concat();
                let problem = in_time_steps(make(&flat, layout, seed as u64), all[0], seed as u64);
                check::<T, B>(on, &problem, &Options::default());
            }
        }
    }
}

/// Several batches of random data.
fn several_steps(mut problem: Problem, momentum: Option<f32>) -> Problem {
    let len = problem.dy.len();
    problem.x = (0u64..4).map(|step| Rng(step).normals(len, step as f64 - 1.0, 1.0 + step as f64)).collect();
    problem.momentum = momentum;
    problem
}

fn running_statistics_move_once_for_all_chunks<T: Element, B: Sliced>(on: &B) {
    for layout in BOTH {
        let train = batch_norm_train(&dims([6, 3, 5], layout), layout, 11);
        let chunks = Problem { virtual_batch: Some(2), ..train.clone() };
        for problem in [chunks, in_time_steps(train, 3, 12)] {
            for momentum in [Some(0.0), Some(1.0), Some(0.3), Some(-1.2), None] {
                let problem = several_steps(problem.clone(), momentum);
                for device_momentum in [false, true] {
                    check::<T, B>(on, &problem, &Options { device_momentum, ..Options::default() });
                }
            }
        }
    }
}

/// More chunks than a block has threads, of means that one accumulator would round away.
fn many_chunks_are_averaged_within_the_rule<T: Element, B: Sliced>(on: &B) {
    let samples = if small() { 1402 } else { 4002 };
    for layout in BOTH {
        let mut problem = batch_norm_train(&dims([samples, 3, 1], layout), layout, 13);
        let len = problem.dy.len();
        problem.x = vec![Rng(14).normals(len, 3.0, 0.1)];
        check::<T, B>(on, &Problem { virtual_batch: Some(2), ..problem }, &Options::default());
    }
}

/// The same formulas; so that both are right where they agree with the reference, and no more is promised.
fn one_chunk_or_step_is_the_batch<T: Element, B: Sliced>(on: &B) {
    for layout in BOTH {
        let plain = batch_norm_train(&dims([4, 6, 9], layout), layout, 15);
        let chunk = Problem { virtual_batch: Some(4), ..plain.clone() };
        let step = Problem {
            dims: [&[1][..], &plain.dims].concat(),
            statistics: Statistics::PerTimeStep { steps: 1 },
            ..plain.clone()
        };
        let [plain, chunk, step] =
            [plain, chunk, step].map(|problem| check::<T, B>(on, &problem, &Options::default()));
        expect_same_bits("one chunk", &chunk, &plain);
        expect_same_bits("one step", &step, &plain);
    }
}

fn nan_and_infinity_poison_only_their_own_segment<T: Element, B: Sliced>(on: &B) {
    for (shape, layout) in [([6, 8, 9], Layout::ChannelsFirst), ([6, 8, 4], Layout::ChannelsLast)] {
        let train = batch_norm_train(&dims(shape, layout), layout, 17);
        let chunks = Problem { virtual_batch: Some(2), ..train.clone() };
        for healthy in [chunks, in_time_steps(train, 3, 18)] {
            let healthy = healthy.rounded(T::DTYPE, DType::F32);
            let clean = outputs::<T, B>(on, &healthy, &Options::default());
            let (group, channels) = (healthy.geometry().group, healthy.channels());
            for poison in [f64::NAN, f64::INFINITY] {
                let mut problem = healthy.clone();
                let at = problem.dy.len() / 2;
                problem.x[0][at] = poison;
                let mut got = outputs::<T, B>(on, &problem, &Options::default());
                for (&name, values) in &mut got {
                    // Each value's statistic; sums over segments have the sick one's channel in them.
                    let len = values.len();
                    let of = |i: usize| match name {
                        "y" | "dx" => group[i] == group[at],
                        _ if len == channels => i == group[at] % channels,
                        _ => i == group[at],
                    };
                    for i in (0..len).filter(|&i| of(i)) {
                        let sick = name == "dbeta" || !values[i].is_finite();
                        assert!(sick, "{name}[{i}] is {} of a poisoned segment", values[i]);
                        values[i] = clean[name][i];
                    }
                }
                expect_same_bits("the other segments", &got, &clean);
            }
        }
    }
}

fn an_empty_batch_counts_but_changes_nothing<T: Element, B: Sliced>(on: &B) {
    let none = batch_norm_train(&[0, 5, 9], Layout::ChannelsFirst, 3);
    let chunks = Problem { virtual_batch: Some(2), ..none.clone() };
    let steps = Problem {
        dims: vec![2, 0, 5, 9],
        statistics: Statistics::PerTimeStep { steps: 2 },
        running: Some(running(10, 4)),
        ..none
    };
    for problem in [chunks, steps] {
        for momentum in [Some(0.1), None] {
            let problem = Problem { momentum, ..problem.clone() }.rounded(T::DTYPE, DType::F32);
            let before = problem.running.clone().unwrap();
            // The runner sees to it that the batch is counted.
            let got = outputs::<T, B>(on, &problem, &Options::default());
            assert!(got["y"].is_empty() && got["dx"].is_empty());
            assert_eq!((&got["running_mean"], &got["running_var"]), (&before.mean, &before.var));
            assert_eq!((&got["dgamma"][..], &got["dbeta"][..]), (&[0.0; 5][..], &[0.0; 5][..]));
        }
    }
}

fn lengths_are_those_of_the_buffers<T: Element, B: Sliced>(on: &B) {
    let x = Tensor::<T, B>::zeros(on, &[6, 4, 5]).unwrap();
    let bn = BatchNorm::new(4);
    let lens = |bn: BatchNorm| (bn.running_len(), bn.saved_len(&x.view()).unwrap());
    assert_eq!(lens(bn), (4, 4));
    assert_eq!(lens(bn.statistics(Statistics::WholeBatch)), (1, 1));
    assert_eq!(lens(bn.virtual_batch(2)), (4, 12));
    let steps = Statistics::PerTimeStep { steps: 6 };
    assert_eq!(lens(BatchNorm::new(5).statistics(steps)), (30, 30));
}
