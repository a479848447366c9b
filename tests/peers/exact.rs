//! Data on which statistics, or whole outputs, are exact: no rounding hides a wrong formula.

use warpnorm::{DType, Element, Layout};

use crate::{
    pytorch::{blank, by_backend, with_channels_last},
    support::{
        check,
        data::Rng,
        judge::Format,
        on_every_backend, outputs,
        problem::{Op, Problem},
        run::{Options, Sliced},
    },
};

on_every_backend!(
    exact_statistics_have_no_error,
    a_constant_of_one_half_gives_exactly_zero,
    constants_give_exactly_the_bias_in_every_op,
    rms_norm_of_huge_values_is_finite,
);

/// Numerators of the deviations, the mean of whose squares is 4.
const DEVIATIONS: [f64; 8] = [1.0, 3.0, 0.0, 1.0, 4.0, 1.0, 0.0, 2.0];

/// benchdnn's data: the means are powers of two, and values come in pairs `m (1 + f)` and `m (1 - f)` with `f` of so few
/// bits that every sum is exact, in any order. Here the standard deviation is a sixteenth of the mean as well, so that
/// its reciprocal and the output are exact, too: half of a small integer.
fn exact_statistics_have_no_error<T: Element, B: Sliced>(on: &B) {
    let first: [(Op, &[usize]); 9] = [
        (Op::BatchNormTrain, &[2, 3, 64]),
        (Op::BatchNormTrain, &[32, 5]),
        (Op::BatchNormTrain, &[4, 19, 4, 4, 4]),
        (Op::BatchNormTrain, &[2, 33, 16, 2]),
        (Op::GroupNorm, &[2, 8, 4, 4]),
        (Op::GroupNorm, &[3, 4, 128]),
        (Op::InstanceNorm, &[2, 5, 32]),
        (Op::InstanceNorm, &[3, 3, 16, 8]),
        (Op::GroupNorm, &[1, 4, 2, 1024]),
    ];
    for (op, dims) in first {
        let problem = Problem { groups: 2, ..blank(op, dims) };
        let last = Problem { x: problem.x.clone(), ..with_channels_last(&problem) };
        for problem in [problem, last] {
            expect_exact::<T, B>(on, problem);
        }
    }
    for dims in [[15, 16], [3, 256], [5, 1024], [2, 4096], [1, 16_384]] {
        expect_exact::<T, B>(on, Problem { norm_dims: 1, ..blank(Op::LayerNorm, &dims) });
    }
}

fn expect_exact<T: Element, B: Sliced>(on: &B, mut problem: Problem) {
    let geometry = problem.geometry();
    let mut seen = vec![0_usize; geometry.groups];
    let mut exact = vec![0.0; problem.dy.len()];
    let mean_of =
        |group: usize| (1 << (group % 5)) as f64 * if group.is_multiple_of(2) { 0.25 } else { -0.25 };
    for (i, &group) in geometry.group.iter().enumerate() {
        let deviation =
            DEVIATIONS[seen[group] / 2 % 8] * if seen[group].is_multiple_of(2) { 1.0 } else { -1.0 };
        seen[group] += 1;
        problem.x[0][i] = mean_of(group) * (1.0 + deviation / 32.0);
        exact[i] = deviation / 2.0 * mean_of(group).signum();
    }
    problem.eps = 0.0;
    let got = check::<T, B>(on, &problem, &Options::default());
    let [mean, _, rstd] = problem.op.statistics().unwrap();
    // Threads share the rows of a tensor with the channels last, and merging unequal shares divides by what is no power
    // of two. The mean stays exact: it is that of every share.
    let even = problem.layout == Layout::ChannelsFirst || problem.channels().is_power_of_two();
    let what = format!("{:?} {:?}", problem.op, problem.dims);
    for (group, (&mean, &rstd)) in got[mean].iter().zip(&got[rstd]).enumerate() {
        let (exact_mean, exact_rstd) = (mean_of(group), 16.0 / mean_of(group).abs());
        assert_eq!(mean, exact_mean, "mean {group} of {what}");
        assert!(!even || rstd == exact_rstd, "deviation {group} of {what}");
    }
    assert!(!even || got["y"] == exact, "y of {what}");
}

/// burn's group of 65,536 values: in 16 bits their sum is not what it should be.
fn a_constant_of_one_half_gives_exactly_zero<T: Element, B: Sliced>(on: &B) {
    let dims = by_backend::<B, _>([1, 4, 128, 128], [1, 4, 128, 128], [1, 4, 32, 64]);
    for op in [Op::GroupNorm, Op::InstanceNorm, Op::BatchNormTrain] {
        let problem = blank(op, &dims);
        let first = Problem { x: vec![vec![0.5; problem.dy.len()]], ..problem };
        for problem in [with_channels_last(&first), first] {
            let got = outputs::<T, B>(on, &problem.rounded(T::DTYPE, DType::F32), &Options::default());
            assert!(got["y"].iter().all(|&y| y == 0.0), "{op:?} {:?}", problem.dims);
        }
    }
}

/// PyTorch's issue 5410 with its constant, onnxruntime's 21935 with 1234, and random ones.
fn constants_give_exactly_the_bias_in_every_op<T: Element, B: Sliced>(on: &B) {
    let mut rng = Rng(1);
    let mut constants = vec![1234.5678, 1234.0];
    constants.extend(rng.normals(3, 0.0, 30.0));
    for constant in constants {
        for (op, dims) in [
            (Op::BatchNormTrain, [4, 6, 33]),
            (Op::GroupNorm, [2, 6, 33]),
            (Op::InstanceNorm, [3, 6, 17]),
            (Op::LayerNorm, [3, 6, 35]),
        ] {
            for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
                let shaped = Problem { groups: 3, norm_dims: 1, layout, ..blank(op, &dims) };
                let geometry = shaped.geometry();
                let mut problem = Problem { x: vec![vec![constant; shaped.dy.len()]], ..shaped };
                problem.bias = Some(rng.normals(geometry.params, 0.0, 1.0));
                let got = check::<T, B>(on, &problem, &Options::default());
                let bias = problem.rounded(T::DTYPE, DType::F32).bias.unwrap();
                for (&y, &param) in got["y"].iter().zip(&geometry.param) {
                    assert_eq!(y, Format::of(T::DTYPE).round(bias[param]), "{op:?} of {constant}");
                }
            }
        }
    }
}

/// candle's rows of 6,912 values up to 7e9, whose squares pass the largest `f16` and nearly that of `f32` in sum.
fn rms_norm_of_huge_values_is_finite<T: Element, B: Sliced>(on: &B) {
    let largest = if T::DTYPE == DType::F16 { 65_000.0 } else { 7e9 };
    let mut rng = Rng(2);
    let mut problem = Problem { norm_dims: 1, ..blank(Op::RmsNorm, &[2, 6912]) };
    problem.x = vec![(0..2 * 6912).map(|_| largest * (2.0 * rng.unit() - 1.0)).collect()];
    problem.weight = Some(rng.normals(6912, 1.0, 0.5));
    let got = check::<T, B>(on, &problem, &Options::default());
    assert!(got["y"].iter().all(|y| y.is_finite() && y.abs() < 10.0));
}
