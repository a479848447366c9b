//! Factors at the ends of what `f32` holds, and what stands beside them.

use warpnorm::{Affine, BatchNorm, Cpu, Element, GroupNorm, LayerNorm, RunningStats, Tensor};

use crate::support::{on_every_backend, run::Sliced};

on_every_backend!(a_running_variance_of_zero_makes_infinities);

fn a_running_variance_of_zero_makes_infinities<T: Element, B: Sliced>(on: &B) {
    // Of infinite factors only those of equal values are not numbers, whether `f32` holds the mean or only almost.
    let values = [-2.0_f32, 1.0, 1.0, 5.0].map(T::from_f32);
    for dims in [[4, 1], [1, 4]] {
        let x = Tensor::from_slice(on, &values, &dims).unwrap();
        let channels = dims[1];
        let running = RunningStats {
            mean: Tensor::from_slice(on, &vec![1.0; channels], &[channels]).unwrap(),
            var: Tensor::from_slice(on, &vec![0.0; channels], &[channels]).unwrap(),
            batches: 1,
        };
        let y = BatchNorm::new(channels).eps(0.0).forward_eval(on, &x, Affine::None, &running).unwrap();
        let y: Vec<f32> = y.to_vec(on).unwrap().into_iter().map(Element::to_f32).collect();
        assert_eq!([y[0], y[3]], [f32::NEG_INFINITY, f32::INFINITY], "{dims:?}: {y:?}");
        assert!(y[1].is_nan() && y[2].is_nan(), "{dims:?}: {y:?}");
    }
}

#[test]
fn a_huge_row_leaves_the_bits_of_its_neighbors_alone() {
    let (rows, cols) = (7, 53);
    let value = |i: usize| (i as f32 * 0.37).sin();
    let mut x: Vec<f32> = (0..rows * cols).map(value).collect();
    for huge in &mut x[2 * cols..3 * cols] {
        *huge *= 1e33;
    }
    let normalized = |x: &[f32]| {
        let x = Tensor::from_slice(&Cpu, x, &[x.len() / cols, cols]).unwrap();
        LayerNorm::new(cols).forward(&Cpu, &x, Affine::None).unwrap().y.to_vec(&Cpu).unwrap()
    };
    let together = normalized(&x);
    assert!(together.iter().all(|v| v.is_finite()));
    for (row, together) in together.chunks(cols).enumerate() {
        let alone = normalized(&x[row * cols..(row + 1) * cols]);
        assert_eq!(alone, together, "row {row}");
    }
}

#[test]
fn a_huge_channel_leaves_the_bits_of_its_neighbors_alone() {
    let (positions, channels) = (200, 24);
    let value = |i: usize| (i as f32 * 0.37).sin();
    let plain: Vec<f32> = (0..positions * channels).map(value).collect();
    let mut huge = plain.clone();
    huge.iter_mut().skip(5).step_by(channels).for_each(|x| *x *= 1e33);
    let normalized = |x: &[f32]| {
        let x = Tensor::from_slice(&Cpu, x, &[positions, channels]).unwrap();
        BatchNorm::new(channels).forward_train(&Cpu, &x, Affine::None, None).unwrap().y.to_vec(&Cpu).unwrap()
    };
    let (want, got) = (normalized(&plain), normalized(&huge));
    for (i, (want, got)) in want.into_iter().zip(got).enumerate() {
        if i % channels == 5 {
            assert!((want - got).abs() < 1e-4, "{i}: {got}, not {want}");
        } else {
            assert_eq!(got, want, "{i}");
        }
    }
}

#[test]
fn a_huge_group_leaves_the_bits_of_other_groups_and_samples_alone() {
    let (samples, positions, channels) = (3, 200, 24);
    let plain: Vec<f32> = (0..samples * positions * channels).map(|i| (i as f32 * 0.37).sin()).collect();
    for group in [1, 2] {
        // The third group of the second sample.
        let is_huge = |i: usize| i / (positions * channels) == 1 && i % channels / group == 2;
        let mut huge = plain.clone();
        huge.iter_mut().enumerate().filter(|(i, _)| is_huge(*i)).for_each(|(_, x)| *x *= 1e33);
        let norm = GroupNorm::new(channels / group, channels);
        let tensor =
            |x: &[f32]| Tensor::from_slice(&Cpu, x, &[samples, positions, channels]).unwrap().channels_last();
        let want = norm.forward(&Cpu, &tensor(&plain), Affine::None).unwrap().y.to_vec(&Cpu).unwrap();
        let got = norm.forward(&Cpu, &tensor(&huge), Affine::None).unwrap().y.to_vec(&Cpu).unwrap();
        let mut in_place = tensor(&huge);
        norm.forward_in_place(&Cpu, &mut in_place, Affine::None).unwrap();
        assert_eq!(in_place.to_vec(&Cpu).unwrap(), got, "groups of {group}");
        for (i, (want, got)) in want.into_iter().zip(got).enumerate() {
            if is_huge(i) {
                assert!((want - got).abs() < 1e-4, "groups of {group}, {i}: {got}, not {want}");
            } else {
                assert_eq!(got, want, "groups of {group}, {i}");
            }
        }
    }
}
