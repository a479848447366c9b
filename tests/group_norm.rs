//! GroupNorm, forward and backward.

use warpnorm::{Affine, DType, Element, GroupNorm, Layout};

use crate::support::{
    check,
    data::{Rng, dims, group_norm, tensor_of, values_of, vary_params},
    expect_the_same_alone,
    judge::Format,
    on_every_backend, outputs,
    problem::Problem,
    run::{Options, Sliced},
    small,
};

on_every_backend!(
    every_size_and_option_is_within_the_rule,
    long_reductions_stay_within_the_rule,
    every_rank_and_layout_is_understood,
    a_group_of_one_value_is_the_bias,
    a_sample_alone_gives_the_bits_it_gives_among_others,
    no_samples_and_no_positions_give_no_output,
    the_allocating_methods_return_what_the_others_write,
);

const BOTH: [Layout; 2] = [Layout::ChannelsFirst, Layout::ChannelsLast];

/// `[outer, channels, inner]` and groups: short and long ones, of one channel and of all, no multiple of any vector width.
const SHAPES: [([usize; 3], usize); 20] = [
    ([1, 1, 1], 1),
    ([2, 3, 1], 1),
    ([3, 6, 1], 2),
    ([65, 4, 1], 2),
    ([2, 33, 1], 11),
    ([2, 32, 1], 32),
    ([2, 64, 4], 8),
    ([3, 8, 7], 1),
    ([2, 8, 7], 8),
    ([1, 12, 31], 3),
    ([2, 6, 33], 2),
    ([5, 10, 9], 5),
    ([2, 35, 9], 7),
    ([1, 63, 17], 21),
    ([1, 130, 4], 13),
    ([9, 2, 3], 1),
    ([1, 3, 1023], 3),
    ([1, 2, 1025], 1),
    ([33, 2, 33], 2),
    ([1, 1023, 2], 33),
];

fn every_size_and_option_is_within_the_rule<T: Element, B: Sliced>(on: &B) {
    for (i, (shape, groups)) in SHAPES.into_iter().enumerate() {
        for layout in BOTH {
            for parameters in 0..if small() { 1 } else { 2 } {
                let seed = (4 * i + 2 * parameters + layout as usize) as u64;
                let mut rng = Rng(seed);
                let mut problem = group_norm(&dims(shape, layout), layout, groups, seed);
                let options = vary_params(&mut problem, &mut rng);
                let max_start = (rng.bits() % 4) as usize;
                check::<T, B>(on, &problem, &Options { max_start, ..options });
            }
        }
    }
}

/// A sum in `f32` by one accumulator fails the rule from about a thousand elements on.
fn long_reductions_stay_within_the_rule<T: Element, B: Sliced>(on: &B) {
    let shapes: &[([usize; 3], usize)] = match small() {
        true => &[([1, 2, 4501], 1), ([301, 4, 2], 2)],
        false => &[([1, 2, 20_001], 1), ([1, 8, 4097], 2), ([2001, 4, 2], 2), ([1, 2048, 9], 1)],
    };
    for (seed, &(shape, groups)) in shapes.iter().enumerate() {
        for layout in BOTH {
            let mut problem = group_norm(&dims(shape, layout), layout, groups, seed as u64);
            // All of one sign and following x, so that neither the sums nor their roundings cancel.
            for (dy, x) in problem.dy.iter_mut().zip(&problem.x[0]) {
                *dy = dy.abs() + x.abs();
            }
            check::<T, B>(on, &problem, &Options::default());
        }
    }
}

fn every_rank_and_layout_is_understood<T: Element, B: Sliced>(on: &B) {
    let all: [(&[usize], usize); 6] = [
        (&[5, 6], 3),
        (&[4, 6, 8], 2),
        (&[2, 4, 5, 6], 2),
        (&[2, 3, 2, 5, 3], 3),
        (&[2, 2, 3, 2], 1),
        (&[3, 4, 1, 1, 4], 4),
    ];
    for (seed, (dims, groups)) in all.into_iter().enumerate() {
        for layout in BOTH {
            let problem = group_norm(dims, layout, groups, seed as u64);
            check::<T, B>(on, &problem, &Options { max_start: seed, ..Options::default() });
        }
    }
}

/// Unlike BatchNorm, which would forget its input, GroupNorm takes it for a group like any other.
fn a_group_of_one_value_is_the_bias<T: Element, B: Sliced>(on: &B) {
    let problem = group_norm(&[3, 5], Layout::ChannelsFirst, 5, 2);
    let got = check::<T, B>(on, &problem, &Options::default());
    let bias = problem.rounded(T::DTYPE, DType::F32).bias.unwrap();
    for (i, &y) in got["y"].iter().enumerate() {
        assert_eq!(y, Format::of(T::DTYPE).round(bias[i % 5]));
    }
    assert!(got["dx"].iter().all(|&dx| dx == 0.0), "a constant has no slope");
}

fn a_sample_alone_gives_the_bits_it_gives_among_others<T: Element, B: Sliced>(on: &B) {
    for (shape, groups) in [([9, 8, 16], 2), ([33, 6, 5], 3), ([3, 32, 64], 8)] {
        for layout in BOTH {
            let problem = group_norm(&dims(shape, layout), layout, groups, 8).rounded(T::DTYPE, DType::F32);
            expect_the_same_alone::<T, B>(on, &problem, &[0, shape[0] / 2, shape[0] - 1]);
        }
    }
}

fn no_samples_and_no_positions_give_no_output<T: Element, B: Sliced>(on: &B) {
    for (dims, layout) in [
        (&[0, 6][..], Layout::ChannelsFirst),
        (&[0, 5, 6], Layout::ChannelsLast),
        (&[2, 6, 0], Layout::ChannelsFirst),
    ] {
        let problem = group_norm(dims, layout, 3, 1).rounded(T::DTYPE, DType::F32);
        let got = outputs::<T, B>(on, &problem, &Options::default());
        assert!(got["y"].is_empty() && got["dx"].is_empty());
        assert_eq!((&got["dgamma"][..], &got["dbeta"][..]), (&[0.0; 6][..], &[0.0; 6][..]));
    }
}

fn the_allocating_methods_return_what_the_others_write<T: Element, B: Sliced>(on: &B) {
    for layout in BOTH {
        let dims = dims([4, 6, 5], layout);
        let problem = group_norm(&dims, layout, 2, 23).rounded(T::DTYPE, DType::F32);
        let problem = Problem { eps: 1e-3, ..problem };
        let tensor = |values: &[f64]| {
            let tensor = tensor_of::<T, B>(on, values, &dims);
            if layout == Layout::ChannelsLast { tensor.channels_last() } else { tensor }
        };
        let (x, dy) = (tensor(problem.last_x()), tensor(&problem.dy));
        let weight = tensor_of(on, problem.weight.as_ref().unwrap(), &[6]);
        let bias = tensor_of(on, problem.bias.as_ref().unwrap(), &[6]);
        let affine = || Affine::f32(&weight, &bias);
        let norm = GroupNorm::new(2, 6).eps(1e-3);

        let expected = outputs::<T, B>(on, &problem, &Options::default());
        let out = norm.forward(on, &x, affine()).unwrap();
        assert_eq!((out.y.dims(), out.y.layout()), (x.dims(), x.layout()));
        assert_eq!(values_of(on, &out.y), expected["y"]);
        assert_eq!(values_of(on, &out.mean), expected["mean"]);
        assert_eq!(values_of(on, &out.rstd), expected["rstd"]);
        let grads = norm.backward(on, &x, &dy, affine(), &out).unwrap();
        assert_eq!((grads.dx.dims(), grads.dx.layout()), (x.dims(), x.layout()));
        assert_eq!(values_of(on, &grads.dx), expected["dx"]);
        assert_eq!(values_of(on, &grads.dweight.unwrap()), expected["dgamma"]);
        assert_eq!(values_of(on, &grads.dbias.unwrap()), expected["dbeta"]);
        let mut y = tensor(problem.last_x());
        norm.forward_in_place(on, &mut y, affine()).unwrap();
        assert_eq!(values_of(on, &y), expected["y"]);
    }
}
