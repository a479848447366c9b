//! Sizes one below, at and one above those at which a plan changes, and a vector away from them.

use warpnorm::{Element, Layout, Statistics};

use super::LAYOUTS;
use crate::support::{
    check,
    data::{
        accumulating, batch_norm_eval, batch_norm_train, group_norm, instance_norm, layer_norm, rms_norm,
        with_residual,
    },
    on_every_backend,
    problem::Problem,
    run::{Options, Sliced},
    small,
};

on_every_backend!(
    rows_change_hands_at_1024_columns,
    sums_over_rows_are_cut_between_rows,
    channels_change_hands_at_512_values,
    channels_are_shared_from_8192_values_on,
    neighboring_channels_are_shared_by_rows,
);

fn around(n: usize) -> [usize; 3] {
    [n - 1, n, n + 1]
}

/// By one per element and by one per vector, of four or of eight.
fn around_vectors(n: usize) -> impl Iterator<Item = usize> {
    around(n).into_iter().chain([n - 8, n - 4, n + 4, n + 8])
}

fn rows_change_hands_at_1024_columns<T: Element, B: Sliced>(on: &B) {
    for cols in around_vectors(1024) {
        for problem in [layer_norm(&[2, cols], 1, 1), rms_norm(&[2, cols], 1, 1)] {
            check::<T, B>(on, &problem, &Options::default());
            let all = Options { in_place: true, ..Options::default() };
            check::<T, B>(on, &accumulating(with_residual(problem, 2), 2), &all);
        }
    }
}

/// Eight rows a block, as many parts as fill a device of four multiprocessors, and chains no longer than 256.
fn sums_over_rows_are_cut_between_rows<T: Element, B: Sliced>(on: &B) {
    let shapes = [(8, 9), (128, 9), (2048, 3), (4096, 1), (128, 16)];
    for (rows, cols) in shapes.into_iter().filter(|(rows, _)| !small() || *rows < 4096) {
        for rows in around(rows) {
            check::<T, B>(on, &layer_norm(&[rows, cols], 1, 2), &Options::default());
            check::<T, B>(on, &accumulating(rms_norm(&[rows, cols], 1, 2), 3), &Options::default());
        }
    }
    if !small() {
        for rows in [7, 8, 9, 63, 64, 65] {
            check::<T, B>(on, &layer_norm(&[rows, 1028], 1, 2), &Options::default());
        }
    }
}

/// Every op with so many values in a channel's slab: one after another.
fn channel_ops(channels: usize, values: usize) -> Vec<Problem> {
    let (first, dims) = (Layout::ChannelsFirst, [1, channels, values]);
    let mut all = vec![batch_norm_train(&dims, first, 3), instance_norm(&dims, first, 3)];
    all.extend((1..3).map(|groups| group_norm(&dims, first, groups.min(channels), 3)));
    all.push(Problem {
        statistics: Statistics::WholeBatch,
        running: None,
        ..batch_norm_train(&dims, first, 3)
    });
    all.push(batch_norm_eval(&dims, first, 3));
    all
}

fn channels_change_hands_at_512_values<T: Element, B: Sliced>(on: &B) {
    for values in around_vectors(512) {
        for problem in channel_ops(2, values) {
            check::<T, B>(on, &problem, &Options::default());
        }
        // The same number over samples.
        for problem in [
            batch_norm_train(&[values, 2, 1], LAYOUTS[0], 4),
            batch_norm_train(&[2, 2, values], LAYOUTS[0], 4),
        ] {
            check::<T, B>(on, &problem, &Options::default());
        }
    }
    // With channels for every multiprocessor at 4096 instead.
    if !small() {
        for values in around(4096) {
            check::<T, B>(on, &batch_norm_train(&[1, 33, values], LAYOUTS[0], 5), &Options::default());
        }
    }
}

#[cfg(feature = "emulator")]
#[test]
fn many_channels_change_hands_at_4096_values() {
    // The fewest channels that are many: a warp's for each multiprocessor.
    let on = warpnorm::Emulated::describing(warpnorm::cuda::plan::DeviceLimits {
        sms: 1,
        ..warpnorm::cuda::plan::DeviceLimits::SMALL
    });
    let sizes = if small() { vec![4096, 4097] } else { around_vectors(4096).collect() };
    for values in sizes {
        for channels in [7, 8] {
            let problem = batch_norm_train(&[1, channels, values], Layout::ChannelsFirst, 5);
            check::<f32, _>(&on, &problem, &Options::default());
        }
    }
}

/// From where a block's chunk of 2048 is full to where there are four.
fn channels_are_shared_from_8192_values_on<T: Element, B: Sliced>(on: &B) {
    let sizes: Vec<usize> = match small() {
        true => [around(8192).as_slice(), &[2048]].concat(),
        false => {
            let all = [2048, 8192, 10_240, 16_384, 131_072].into_iter();
            all.flat_map(around).chain(around_vectors(8192)).collect()
        }
    };
    for values in sizes {
        let all = channel_ops(1, values).into_iter().take(if small() { 2 } else { 6 });
        for problem in all {
            check::<T, B>(on, &problem, &Options::default());
        }
    }
}

/// 2 channels are walked by 128 threads each, 33 by 8; a thread takes four rows at a time.
fn neighboring_channels_are_shared_by_rows<T: Element, B: Sliced>(on: &B) {
    let shapes: &[(usize, usize)] = match small() {
        true => &[(2, 512), (33, 32), (33, 128)],
        false => &[(2, 512), (2, 2048), (33, 32), (33, 128), (64, 128), (130, 256), (33, 2048), (8, 8192)],
    };
    for &(channels, rows) in shapes {
        for rows in around(rows) {
            let (last, dims) = (Layout::ChannelsLast, [1, rows, channels]);
            check::<T, B>(on, &batch_norm_train(&dims, last, 6), &Options::default());
            check::<T, B>(on, &instance_norm(&dims, last, 6), &Options::default());
            check::<T, B>(on, &group_norm(&dims, last, channels, 6), &Options::default());
            check::<T, B>(on, &group_norm(&dims, last, 1, 6), &Options::default());
            let chunks =
                Problem { virtual_batch: Some(1), ..batch_norm_train(&[2, rows, channels], last, 6) };
            check::<T, B>(on, &chunks, &Options::default());
        }
    }
}
