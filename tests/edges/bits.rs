//! Bits that must not change.

use warpnorm::{Cpu, Element, Layout};

use super::{LAYOUTS, round};
use crate::support::{
    bits,
    data::{
        batch_norm_eval, group_norm, instance_norm, instance_norm_eval, layer_norm, rms_norm, with_residual,
    },
    describe, on_every_backend, outputs,
    problem::Problem,
    run::{Options, Sliced},
    small,
};

on_every_backend!(a_sample_alone_gives_the_bits_it_gives_among_others);

/// The ops in which samples do not meet, and the first dimension is the samples.
fn sample_by_sample([samples, channels, positions]: [usize; 3]) -> Vec<Problem> {
    let rows = [samples, channels * positions];
    let mut all = vec![layer_norm(&rows, 1, 8), rms_norm(&rows, 1, 8)];
    for layout in LAYOUTS {
        let dims = match layout {
            Layout::ChannelsFirst => [samples, channels, positions],
            Layout::ChannelsLast => [samples, positions, channels],
        };
        all.extend([1, 2, channels].map(|groups| group_norm(&dims, layout, groups, 8)));
        all.extend([instance_norm_eval(&dims, layout, 8), batch_norm_eval(&dims, layout, 8)]);
        all.extend((positions > 1).then(|| instance_norm(&dims, layout, 8)));
    }
    let residuals: Vec<Problem> = all.iter().map(|problem| with_residual(problem.clone(), 8)).collect();
    all.extend(residuals);
    all
}

fn a_sample_alone_gives_the_bits_it_gives_among_others<T: Element, B: Sliced>(on: &B) {
    let shapes: &[[usize; 3]] = match small() {
        true => &[[65, 2, 3], [5, 8, 16], [3, 2, 513], [2, 2, 1032]],
        false => &[
            [65, 2, 3],
            [5, 8, 16],
            [3, 2, 513],
            [2, 2, 1032],
            [3, 34, 64],
            [3, 40, 1],
            [3, 2, 9000],
            [3, 32, 700],
            [2, 130, 65],
        ],
    };
    for &shape in shapes {
        for problem in sample_by_sample(shape) {
            expect_the_same_alone::<T, B>(on, problem);
        }
    }
}

/// Samples that are worked on one after the other or all together, as there are threads; the last ones have so many rows that
/// sums of them are kept in `f64`.
#[test]
fn cpu_large_samples_alone_give_the_bits_they_give_among_others() {
    for problem in [
        instance_norm(&[8, 70_000, 4], Layout::ChannelsLast, 8),
        group_norm(&[3, 180_000, 4], Layout::ChannelsLast, 2, 8),
        instance_norm(&[3, 530_000, 4], Layout::ChannelsLast, 8),
    ] {
        expect_the_same_alone::<f32, Cpu>(&Cpu, problem);
    }
}

/// The second sample is so large that its gradients are made with other formulas.
#[test]
fn cpu_a_sample_out_of_the_ordinary_changes_no_bits_of_another() {
    for layout in LAYOUTS {
        for dims in [[2, 64, 8], [2, 8, 64]] {
            for mut problem in [group_norm(&dims, layout, 4, 8), instance_norm(&dims, layout, 8)] {
                let second = problem.x[0].len() / 2;
                problem.x[0][second..].iter_mut().for_each(|x| *x *= 1e15);
                expect_the_same_alone::<f32, Cpu>(&Cpu, problem);
            }
        }
    }
}

fn expect_the_same_alone<T: Element, B: Sliced>(on: &B, problem: Problem) {
    let samples = problem.dims[0];
    let mut problem = round::<T>(&problem);
    problem.running = problem.running.filter(|_| problem.op.statistics().is_none());
    let all = bits(&outputs::<T, B>(on, &problem, &Options::default()));
    for sample in [0, samples / 2, samples - 1] {
        let of = |values: &Vec<f64>| {
            let len = values.len() / samples;
            values[sample * len..(sample + 1) * len].to_vec()
        };
        let mut alone = problem.clone();
        alone.dims[0] = 1;
        alone.x = vec![of(&problem.x[0])];
        alone.dy = of(&problem.dy);
        alone.dh = problem.dh.as_ref().map(of);
        alone.residual = problem.residual.as_ref().map(of);
        let alone = bits(&outputs::<T, B>(on, &alone, &Options::default()));
        for name in ["y", "h", "dx", "dresidual", "mean", "rstd"] {
            let Some(all) = all.get(name) else { continue };
            let len = all.len() / samples;
            let here = &all[sample * len..(sample + 1) * len];
            // Not `assert_eq`, which would print them all.
            let differing = alone[name].iter().zip(here).position(|(alone, here)| alone != here);
            assert_eq!(differing, None, "{}: {name} of sample {sample}", describe(&problem));
        }
    }
}
