//! Statistics of all data, gathered batch by batch.

use warpnorm::{Affine, BatchNorm, Element, Layout, PopulationStats, RunningStats, Statistics};

use crate::support::{
    data::{Rng, tensor_of},
    judge::Format,
    on_every_backend,
    run::Sliced,
};

on_every_backend!(
    batches_of_any_size_are_one_pass_over_all_data,
    every_kind_of_statistic_can_be_gathered,
    running_statistics_are_those_of_the_population_rounded_once,
);

/// Half the distance from 1 to the next `f32`.
const U: f64 = 1.0 / (1 << 24) as f64;

/// `[rows, channels]` of channels with different means and spreads, one with a mean far from zero.
fn data<T: Element>(rows: usize, channels: usize) -> Vec<f64> {
    let (mut rng, format) = (Rng(5), Format::of(T::DTYPE));
    let value = |i: usize, v: f64| {
        let c = (i % channels) as f64;
        format.round(if c == 1.0 { 300.0 + v } else { c + (1.0 + c) * v })
    };
    (0..rows * channels).map(|i| value(i, rng.normal())).collect()
}

/// Mean and biased variance of each channel in `f64`.
fn moments(values: &[f64], channels: usize) -> (Vec<f64>, Vec<f64>) {
    let of = |c: usize| values[c..].iter().step_by(channels);
    let n = (values.len() / channels) as f64;
    let mean: Vec<f64> = (0..channels).map(|c| of(c).sum::<f64>() / n).collect();
    let var = (0..channels).map(|c| of(c).map(|v| (v - mean[c]).powi(2)).sum::<f64>() / n).collect();
    (mean, var)
}

/// Means and variances of batches are rounded to `f32`, and each by the rule of its own; nothing else is.
fn expect_near(stats: &PopulationStats, values: &[f64], what: &str) {
    let channels = stats.mean().len();
    let (mean, var) = moments(values, channels);
    for c in 0..channels {
        let scale = values[c..].iter().step_by(channels).map(|v| v.abs()).fold(0.0, f64::max);
        let room = 9.0 * U * scale;
        assert!((stats.mean()[c] - mean[c]).abs() <= room, "{what}: mean {c} is {}", stats.mean()[c]);
        let room = 9.0 * U * var[c] * (1.0 + scale / var[c].sqrt()) + 2.0 * room * room;
        let got = stats.variance()[c];
        assert!((got - var[c]).abs() <= room, "{what}: variance {c} is {got} instead of {}", var[c]);
        let n = stats.count() as f64;
        let unbiased = stats.unbiased_variance()[c];
        assert!((unbiased - got * n / (n - 1.0)).abs() <= 1e-12 * got, "{what}: {unbiased} unbiased");
    }
}

fn observed<T: Element, B: Sliced>(on: &B, values: &[f64], sizes: &[usize]) -> PopulationStats {
    let mut stats = PopulationStats::new(3);
    let mut rest = values;
    for &size in sizes {
        let (batch, after) = rest.split_at(3 * size);
        let batch = tensor_of::<T, B>(on, batch, &[size, 3]);
        stats.observe(&BatchNorm::new(3), on, &batch).unwrap();
        rest = after;
    }
    assert!(rest.is_empty());
    stats
}

fn batches_of_any_size_are_one_pass_over_all_data<T: Element, B: Sliced>(on: &B) {
    let values = data::<T>(300, 3);
    let splits: [&[usize]; 5] =
        [&[300], &[150, 150], &[2, 298], &[0, 100, 0, 33, 167, 0], &[[7; 42].as_slice(), &[6]].concat()];
    for sizes in splits {
        let stats = observed::<T, B>(on, &values, sizes);
        assert_eq!(stats.count(), 300);
        expect_near(&stats, &values, &format!("{sizes:?}"));
    }
    // Gathered apart and merged, in either order, with nothing merged in between.
    let (a, b) = values.split_at(3 * 77);
    let (a, b) = (observed::<T, B>(on, a, &[40, 37]), observed::<T, B>(on, b, &[223]));
    for (first, second) in [(&a, &b), (&b, &a)] {
        let mut merged = PopulationStats::new(3);
        for part in [&PopulationStats::new(3), first, &PopulationStats::new(3), second] {
            merged.merge(part).unwrap();
        }
        assert_eq!(merged.count(), 300);
        assert_eq!(merged.running_stats(on).unwrap().batches, 3);
        expect_near(&merged, &values, "merged");
    }
}

fn every_kind_of_statistic_can_be_gathered<T: Element, B: Sliced>(on: &B) {
    let values = data::<T>(24, 3);
    let mut whole = PopulationStats::new(1);
    let mut positions = PopulationStats::new(3);
    let mut steps = PopulationStats::new(6);
    for batch in values.chunks(36) {
        let x = tensor_of::<T, B>(on, batch, &[2, 6, 3]);
        let bn = BatchNorm::new(3);
        steps.observe(&bn.statistics(Statistics::PerTimeStep { steps: 2 }), on, &x).unwrap();
        let x = x.channels_last();
        assert_eq!(x.layout(), Layout::ChannelsLast);
        positions.observe(&bn, on, &x).unwrap();
        whole.observe(&bn.statistics(Statistics::WholeBatch), on, &x).unwrap();
    }
    assert_eq!((whole.count(), positions.count(), steps.count()), (72, 24, 12));
    expect_near(&whole, &values, "whole batch");
    expect_near(&positions, &values, "per channel");
    // The time comes first: step, sample, channel.
    let by_step: Vec<f64> = (0..72)
        .map(|i| {
            let (row, statistic) = (i / 6, i % 6);
            let (batch, sample) = (row / 6, row % 6);
            values[batch * 36 + statistic / 3 * 18 + sample * 3 + statistic % 3]
        })
        .collect();
    expect_near(&steps, &by_step, "per time step");
}

fn running_statistics_are_those_of_the_population_rounded_once<T: Element, B: Sliced>(on: &B) {
    let values = data::<T>(40, 3);
    let stats = observed::<T, B>(on, &values, &[10, 30]);
    let running = stats.running_stats(on).unwrap();
    let rounded = |values: &[f64]| -> Vec<f32> { values.iter().map(|&v| v as f32).collect() };
    assert_eq!(running.mean.to_vec(on).unwrap(), rounded(stats.mean()));
    assert_eq!(running.var.to_vec(on).unwrap(), rounded(&stats.unbiased_variance()));
    assert_eq!(running.batches, 2);

    // A training pass over all of it at momentum 1 leaves the same behind, by the same rule.
    let mut all = RunningStats::new(on, 3).unwrap();
    let x = tensor_of::<T, B>(on, &values, &[40, 3]);
    BatchNorm::new(3).momentum(1.0).forward_train(on, &x, Affine::None, Some(&mut all)).unwrap();
    let mut pushed = PopulationStats::new(3);
    pushed.push(40, &all.mean.to_vec(on).unwrap(), &all.var.to_vec(on).unwrap()).unwrap();
    expect_near(&pushed, &values, "one pass");
}

#[test]
fn statistics_of_batches_may_come_from_elsewhere() {
    let mut stats = PopulationStats::new(2);
    stats.push(0, &[f32::NAN; 2], &[f32::NAN; 2]).unwrap(); // of nothing
    assert_eq!((stats.count(), stats.mean()), (0, &[0.0; 2][..]));
    assert!(stats.variance().iter().chain(&stats.unbiased_variance()).all(|v| v.is_nan()));
    stats.push(1, &[4.0, -1.0], &[f32::NAN; 2]).unwrap(); // one value has no unbiased variance
    assert_eq!((stats.variance(), stats.mean()), (vec![0.0; 2], &[4.0, -1.0][..]));
    assert!(stats.unbiased_variance().iter().all(|v| v.is_nan()));
    stats.push(3, &[8.0, -1.0], &[3.0, 0.0]).unwrap();
    assert_eq!((stats.count(), stats.mean()), (4, &[7.0, -1.0][..]));
    assert_eq!((stats.variance(), stats.unbiased_variance()), (vec![4.5, 0.0], vec![6.0, 0.0]));
}

#[test]
fn large_counts_lose_nothing() {
    // A sum of 2^40 squares would, and so would a mean in f32.
    let (mut stats, n) = (PopulationStats::new(1), 1u64 << 40);
    for mean in [1000.0, 1002.0] {
        stats.push(n, &[mean], &[1.0]).unwrap();
    }
    assert_eq!((stats.count(), stats.mean()), (2 * n, &[1001.0][..]));
    assert!((stats.variance()[0] - 2.0).abs() < 1e-9);
}
