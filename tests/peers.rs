//! What other libraries test their normalization layers with, smaller where the size is not the point: TensorFlow, Keras,
//! Flax, cuDNN's frontend, apex, oneDNN, TransformerEngine, Liger, quack, candle, burn, and reports of what went wrong.

mod exact;
mod poison;

use warpnorm::{Activation, DType, Element, Layout};

use crate::{
    pytorch::{blank, by_backend, check_both_layouts, filled},
    support::{
        check,
        data::Rng,
        on_every_backend, outputs,
        problem::{Op, Problem, Running},
        reference::reference,
        run::{Options, Params, Sliced},
        small,
    },
};

on_every_backend!(
    tensorflow_shapes_pass_in_both_layouts,
    keras_shapes_pass_in_both_layouts,
    values_near_the_largest_f16_do_no_harm,
    no_rows_in_the_middle_give_no_output,
    a_large_mean_does_no_harm_in_any_op,
    equivalent_ops_pass_with_one_reference,
    a_relu_of_batch_norm_passes_as_cudnn_fuses_it,
    rows_of_language_models_pass,
    many_short_rows_pass,
    rows_with_gaps_between_them_pass,
    batches_of_uneven_scale_pass,
    group_norm_of_diffusion_models_passes,
    one_dnn_shapes_pass_with_every_flag,
    one_dnn_groups_pass,
    liger_groups_pass,
);

/// `FusedBatchNormTest`, whose shapes have the channels last.
fn tensorflow_shapes_pass_in_both_layouts<T: Element, B: Sliced>(on: &B) {
    for (seed, dims) in [[1, 1, 1, 6], [1, 2, 1, 6], [1, 6, 1, 2], [3, 6, 13, 12]].into_iter().enumerate() {
        for op in [Op::BatchNormTrain, Op::BatchNormEval] {
            let problem = filled(blank(op, &dims), seed as u64);
            check_both_layouts::<T, B>(on, &problem, &Options::default());
        }
    }
    for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
        let dims = if layout == Layout::ChannelsFirst { [0, 6, 131, 127] } else { [0, 131, 127, 6] };
        let problem = filled(Problem { layout, ..blank(Op::BatchNormTrain, &dims) }, 5);
        let got = outputs::<T, B>(on, &problem.rounded(T::DTYPE, DType::F32), &Options::default());
        assert!(got["y"].is_empty() && got["dx"].is_empty());
        assert_eq!((&got["dgamma"][..], &got["dbeta"][..]), (&[0.0; 6][..], &[0.0; 6][..]));
    }
}

fn keras_shapes_pass_in_both_layouts<T: Element, B: Sliced>(on: &B) {
    for (seed, dims) in [&[5, 3, 2][..], &[5, 2, 3, 3]].into_iter().enumerate() {
        for op in [Op::BatchNormTrain, Op::BatchNormEval, Op::GroupNorm] {
            let problem = Problem { eps: 1e-3, ..filled(blank(op, dims), seed as u64) };
            check_both_layouts::<T, B>(on, &problem, &Options::default());
        }
    }
}

/// Keras's issue 22586, where a layer of 16 bits squared 70,000, and its moving variance of 70,000 in such a scope.
fn values_near_the_largest_f16_do_no_harm<T: Element, B: Sliced>(on: &B) {
    for op in [Op::GroupNorm, Op::InstanceNorm, Op::BatchNormTrain, Op::BatchNormEval] {
        let mut problem = filled(Problem { groups: 2, ..blank(op, &[2, 4, 3, 5]) }, 6);
        let mut rng = Rng(7);
        problem.x = vec![(0..120).map(|_| 65_000.0 * (1.0 - 0.5 * rng.unit())).collect()];
        if op == Op::BatchNormEval {
            problem.running = Some(Running { mean: vec![50_000.0; 4], var: vec![70_000.0; 4] });
        }
        let options = Options { params: Params::Same, ..Options::default() };
        for got in check_both_layouts::<T, B>(on, &problem, &options) {
            assert!(got["y"].iter().all(|y| y.is_finite()), "{op:?}");
        }
    }
}

fn no_rows_in_the_middle_give_no_output<T: Element, B: Sliced>(on: &B) {
    for op in [Op::LayerNorm, Op::RmsNorm] {
        let problem = filled(Problem { norm_dims: 1, ..blank(op, &[1, 0, 10]) }, 8);
        let got = outputs::<T, B>(on, &problem.rounded(T::DTYPE, DType::F32), &Options::default());
        assert!(got["y"].is_empty() && got["dx"].is_empty());
        assert_eq!((&got["dgamma"][..], &got["dbeta"][..]), (&[0.0; 10][..], &[0.0; 10][..]), "{op:?}");
    }
}

/// Flax adds 1e6 to the input of LayerNorm and 1e4 to that of InstanceNorm; the others are issues: PyTorch 40302 and
/// 51102, tt-metal 45968, onnxruntime 28463.
fn a_large_mean_does_no_harm_in_any_op<T: Element, B: Sliced>(on: &B) {
    for (mean, sd) in [(1e6, 1.0), (1e4, 1.0), (2000.0, 1.0), (100.0, 0.01), (5.0, 0.1), (40_001.5, 1.1)] {
        for op in [Op::LayerNorm, Op::GroupNorm, Op::InstanceNorm, Op::BatchNormTrain] {
            if T::DTYPE == DType::F16 && mean > 65_504.0 {
                continue; // no f16 is that large
            }
            let shaped = Problem { norm_dims: 2, groups: 2, ..blank(op, &[2, 4, 33]) };
            let mut problem = filled(shaped, 9);
            problem.x = vec![Rng(10).normals(264, mean, sd)];
            check::<T, B>(on, &problem, &Options::default());
        }
    }
}

/// One group is LayerNorm over channels and positions; as many as channels are InstanceNorm; and that is BatchNorm of a
/// single sample. Without parameters, of which LayerNorm has others.
fn equivalent_ops_pass_with_one_reference<T: Element, B: Sliced>(on: &B) {
    let same = |pair: [Problem; 2]| {
        let [one, other] = pair.each_ref().map(reference);
        for name in ["y", "dx"] {
            let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-12 * (1.0 + a.abs());
            assert!(one[name].iter().zip(&other[name]).all(near), "{name} of {:?}", pair[0].dims);
        }
        pair.map(|problem| check::<T, B>(on, &problem, &Options::default()))
    };
    for dims in [&[3, 4, 5][..], &[2, 6, 5, 5], &[1, 8, 3, 3, 3]] {
        let of = |op, groups| Problem {
            x: vec![Rng(11).normals(dims.iter().product(), 0.5, 2.0)],
            norm_dims: dims.len() - 1,
            groups,
            ..blank(op, dims)
        };
        same([of(Op::GroupNorm, 1), of(Op::LayerNorm, 1)]);
        same([of(Op::GroupNorm, dims[1]), of(Op::InstanceNorm, 1)]);
        if dims[0] == 1 {
            same([of(Op::InstanceNorm, 1), of(Op::BatchNormTrain, 1)]);
        }
    }
}

/// The frontend's sample, 4x16x56x56 there: `f16`, channels last, `eps` 1e-3, statistics in `f32`; and with a residual.
fn a_relu_of_batch_norm_passes_as_cudnn_fuses_it<T: Element, B: Sliced>(on: &B) {
    let dims = by_backend::<B, _>([4, 16, 28, 28], [4, 16, 14, 14], [4, 16, 5, 5]);
    let plain = Problem {
        activation: Activation::Relu,
        momentum: Some(0.1),
        eps: 1e-3,
        running: Some(Running { mean: vec![0.5; 16], var: vec![2.0; 16] }),
        ..filled(blank(Op::BatchNormTrain, &dims), 12)
    };
    let len = plain.dy.len();
    let with_residual = Problem { residual: Some(Rng(13).normals(len, 0.0, 1.0)), ..plain.clone() };
    for problem in [plain, with_residual] {
        check_both_layouts::<T, B>(on, &problem, &Options::default());
    }
}

/// cuDNN's frontend (inputs of `3 randn - 0.5`, weights of `5 randn - 1`), TransformerEngine, Liger, quack, oneDNN.
fn rows_of_language_models_pass<T: Element, B: Sliced>(on: &B) {
    let full: &[&[usize]] = &[
        &[5, 768],
        &[3, 1024],
        &[3, 1280],
        &[3, 1600],
        &[71, 229],
        &[29, 541],
        &[3, 6144],
        &[2, 12_288],
        &[1, 1, 1023],
        &[3, 7, 256],
        &[199, 64],
        &[15, 3],
        &[2, 2, 4, 1024],
        &[1, 262_144],
    ];
    let emulated = &full[..full.len() - 1];
    let smallest: &[&[usize]] =
        &[&[2, 768], &[1, 1600], &[7, 229], &[3, 541], &[1, 6144], &[3, 7, 128], &[15, 3]];
    for (seed, dims) in by_backend::<B, _>(full, emulated, smallest).iter().enumerate() {
        for op in [Op::LayerNorm, Op::RmsNorm] {
            let mut problem = filled(Problem { norm_dims: 1, ..blank(op, dims) }, seed as u64);
            let mut rng = Rng(seed as u64);
            let (len, cols) = (problem.dy.len(), dims[dims.len() - 1]);
            problem.x = vec![rng.normals(len, -0.5, 3.0)];
            problem.weight = Some(rng.normals(cols, -1.0, 5.0));
            let params = if seed % 2 == 0 { Params::Same } else { Params::F32 };
            check::<T, B>(on, &problem, &Options { params, grads: params, ..Options::default() });
        }
    }
}

/// apex's issue 411: 65,536 rows were too many.
fn many_short_rows_pass<T: Element, B: Sliced>(on: &B) {
    let dims = by_backend::<B, _>([65_537, 5], [65_537, 3], [4_099, 2]);
    for op in [Op::LayerNorm, Op::RmsNorm] {
        let problem = filled(Problem { norm_dims: 1, ..blank(op, &dims) }, 14);
        check::<T, B>(on, &problem, &Options::default());
    }
}

/// apex's `[::3, ::5, ::3]` as far as views go here: gaps between the entries of the first dimension. And in place.
fn rows_with_gaps_between_them_pass<T: Element, B: Sliced>(on: &B) {
    for op in [Op::LayerNorm, Op::RmsNorm] {
        for (gap, in_place) in [(1, false), (48, false), (48, true), (0, true)] {
            let problem = filled(Problem { norm_dims: 2, ..blank(op, &[5, 11, 6]) }, 23);
            check::<T, B>(on, &problem, &Options { gap, in_place, ..Options::default() });
        }
    }
}

/// apex's two ranks of 16 and 8 rows, the first with 50 times the data, as the one batch that they are together.
fn batches_of_uneven_scale_pass<T: Element, B: Sliced>(on: &B) {
    let mut problem = filled(blank(Op::BatchNormTrain, &[24, 10, 5, 5]), 15);
    for x in &mut problem.x[0][..16 * 250] {
        *x *= 50.0;
    }
    (problem.momentum, problem.running) =
        (Some(1.0), Some(Running { mean: vec![0.0; 10], var: vec![1.0; 10] }));
    check_both_layouts::<T, B>(on, &problem, &Options::default());
}

/// apex's GroupNorm with channels last: 128 channels in 32 groups of values around -2.3.
fn group_norm_of_diffusion_models_passes<T: Element, B: Sliced>(on: &B) {
    let side = by_backend::<B, _>(16, 8, 4);
    for activation in [Activation::None, Activation::Silu] {
        let mut problem =
            filled(Problem { groups: 32, activation, ..blank(Op::GroupNorm, &[2, 128, side, side]) }, 16);
        problem.x = vec![Rng(17).normals(problem.dy.len(), -2.3, 0.5)];
        check_both_layouts::<T, B>(on, &problem, &Options::default());
    }
}

/// benchdnn's flags: global statistics, scale or shift alone, a fused ReLU, and a ReLU after an addition; in place and not.
fn one_dnn_shapes_pass_with_every_flag<T: Element, B: Sliced>(on: &B) {
    let shapes: [&[usize]; 6] =
        [&[2, 23], &[2, 32, 32], &[5, 33, 27], &[2, 200, 3, 2], &[1, 19, 4, 6, 6], &[1, 257, 3, 3]];
    let flags = [(Op::BatchNormTrain, "C"), (Op::BatchNormTrain, "HR"), (Op::BatchNormTrain, "CHA")];
    let flags =
        [&flags[..], &[(Op::BatchNormEval, "H"), (Op::BatchNormEval, "CR"), (Op::BatchNormEval, "A")]];
    let flags = flags.concat();
    for (seed, dims) in shapes.into_iter().enumerate() {
        for (i, &(op, flags)) in flags.iter().enumerate() {
            if small() && (seed + i) % 3 > 0 {
                continue; // every flag still meets two shapes, every shape two flags
            }
            let mut problem = filled(blank(op, dims), seed as u64);
            let has = |flag| flags.contains(flag);
            problem.weight = problem.weight.filter(|_| has('C'));
            problem.bias = problem.bias.filter(|_| has('H'));
            problem.activation = if has('R') || has('A') { Activation::Relu } else { Activation::None };
            problem.residual = has('A').then(|| Rng(18).normals(problem.dy.len(), 0.0, 1.0));
            let options = Options { in_place: (seed + i) % 2 == 1, ..Options::default() };
            check_both_layouts::<T, B>(on, &problem, &options);
        }
    }
    // One value per channel has statistics only where they are given.
    let problem = filled(blank(Op::BatchNormEval, &[1, 1, 1, 1]), 19);
    check::<T, B>(on, &problem, &Options::default());
}

fn one_dnn_groups_pass<T: Element, B: Sliced>(on: &B) {
    for (dims, groups) in [(&[2, 80, 2, 1, 5][..], 5), (&[2, 30, 1, 1], 2)] {
        let problem = filled(Problem { groups, ..blank(Op::GroupNorm, dims) }, 20);
        check_both_layouts::<T, B>(on, &problem, &Options::default());
    }
}

fn liger_groups_pass<T: Element, B: Sliced>(on: &B) {
    let dims = by_backend::<B, _>([2, 63, 21, 41], [2, 63, 21, 3], [2, 63, 3, 3]);
    for groups in [1, 21, 63] {
        check_both_layouts::<T, B>(
            on,
            &filled(Problem { groups, ..blank(Op::GroupNorm, &dims) }, 21),
            &Options::default(),
        );
    }
    // Groups longer than what a block of threads keeps in its memory.
    let long = by_backend::<B, _>([2, 4, 12, 8192], [1, 4, 3, 2048], [1, 4, 3, 256]);
    let problem = filled(Problem { groups: 2, ..blank(Op::GroupNorm, &long) }, 22);
    check_both_layouts::<T, B>(on, &problem, &Options::default());
}
