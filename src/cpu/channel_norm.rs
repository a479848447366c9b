use core::ops::Range;

use super::{AffineValues, Cpu, store, wide};
use crate::{
    AffineGrad, Element,
    channel_norm::{BackwardStatistics, ChannelNormBackward, ChannelNormForward, ForwardStatistics},
    shape::ChannelShape,
};

/// Calls `body` with each channel and a run of its elements, in the order of memory.
fn for_each_run(shape: ChannelShape, mut body: impl FnMut(usize, Range<usize>)) {
    let mut start = 0;
    for _ in 0..shape.outer() {
        for channel in 0..shape.channels() {
            body(channel, start..start + shape.inner());
            start += shape.inner();
        }
    }
}

/// Statistics by index of channel: one each, or one that all share.
struct Centers {
    mean: Vec<f64>,
    rstd: Vec<f64>,
    whole_batch: bool,
}

impl Centers {
    fn at(&self, channel: usize) -> (f64, f64) {
        let i = if self.whole_batch { 0 } else { channel };
        (self.mean[i], self.rstd[i])
    }
}

pub(super) fn forward<T: Element>(shape: ChannelShape, args: ChannelNormForward<'_, T, Cpu>) {
    let ChannelNormForward { x, y, affine, eps, source } = args;
    let eps = f64::from(eps);
    let centers = match source {
        ForwardStatistics::Batch { whole_batch, mean, rstd, running, workspace: _ } => {
            let stats = if whole_batch { shape.as_one_channel() } else { shape };
            let (means, vars) = moments(stats, x);
            let rstds: Vec<f64> = vars.iter().map(|v| (v + eps).sqrt().recip()).collect();
            store(mean, &means);
            store(rstd, &rstds);
            if let Some(running) = running {
                let n = stats.per_channel() as f64;
                let take = f64::from(running.momentum);
                let moved = |old: f32, new: f64| ((1.0 - take) * f64::from(old) + take * new) as f32;
                for (c, (mean, var)) in running.mean.iter_mut().zip(running.var).enumerate() {
                    *mean = moved(*mean, means[c]);
                    *var = moved(*var, vars[c] * n / (n - 1.0));
                }
            }
            Centers { mean: means, rstd: rstds, whole_batch }
        }
        ForwardStatistics::Running { whole_batch, mean, var } => running(mean, var, eps, whole_batch),
    };
    let affine = AffineValues::of(&affine, shape.channels());
    for_each_run(shape, |channel, run| {
        let (mean, rstd) = centers.at(channel);
        let (weight, bias) = (affine.weight[channel], affine.bias[channel]);
        for (x, y) in x[run.clone()].iter().zip(&mut y[run]) {
            *y = T::from_f64((wide(*x) - mean) * rstd * weight + bias);
        }
    });
}

pub(super) fn backward<T: Element>(shape: ChannelShape, args: ChannelNormBackward<'_, T, Cpu>) {
    let ChannelNormBackward { x, dy, affine, eps, whole_batch, source, dx, grads, workspace: _ } = args;
    let (centers, training) = match source {
        BackwardStatistics::Batch { mean, rstd } => {
            let widened = |v: &[f32]| v.iter().copied().map(f64::from).collect();
            (Centers { mean: widened(mean), rstd: widened(rstd), whole_batch }, true)
        }
        BackwardStatistics::Running { mean, var } => (running(mean, var, f64::from(eps), whole_batch), false),
    };
    let affine = AffineValues::of(&affine, shape.channels());

    let (mut dweight, mut dbias) = (vec![0.0; shape.channels()], vec![0.0; shape.channels()]);
    for_each_run(shape, |channel, run| {
        let (mean, rstd) = centers.at(channel);
        for (x, dy) in x[run.clone()].iter().zip(&dy[run]) {
            dweight[channel] += wide(*dy) * (wide(*x) - mean) * rstd;
            dbias[channel] += wide(*dy);
        }
    });

    if let Some(dx) = dx {
        // Means of g and of g * x_hat over the elements of each statistic.
        let (mut mean_g, mut mean_gx) = (vec![0.0; shape.channels()], vec![0.0; shape.channels()]);
        if training {
            for c in 0..shape.channels() {
                mean_g[c] = affine.weight[c] * dbias[c];
                mean_gx[c] = affine.weight[c] * dweight[c];
            }
            let (sums, n) = match whole_batch {
                true => ((mean_g.iter().sum(), mean_gx.iter().sum()), shape.len()),
                false => ((0.0, 0.0), shape.per_channel()),
            };
            if whole_batch {
                mean_g.fill(sums.0);
                mean_gx.fill(sums.1);
            }
            mean_g.iter_mut().chain(&mut mean_gx).for_each(|v| *v /= n as f64);
        }
        for_each_run(shape, |channel, run| {
            let (mean, rstd) = centers.at(channel);
            let (weight, mean_g, mean_gx) = (affine.weight[channel], mean_g[channel], mean_gx[channel]);
            for ((x, dy), dx) in x[run.clone()].iter().zip(&dy[run.clone()]).zip(&mut dx[run]) {
                let g = wide(*dy) * weight;
                // Constant statistics are not the same as means of zero: x_hat may be infinite.
                let moved = if training { mean_g + (wide(*x) - mean) * rstd * mean_gx } else { 0.0 };
                *dx = T::from_f64(rstd * (g - moved));
            }
        });
    }
    match grads {
        AffineGrad::None => {}
        AffineGrad::Same { dweight: w, dbias: b } => {
            store(w, &dweight);
            store(b, &dbias);
        }
        AffineGrad::F32 { dweight: w, dbias: b } => {
            store(w, &dweight);
            store(b, &dbias);
        }
    }
}

fn running(mean: &[f32], var: &[f32], eps: f64, whole_batch: bool) -> Centers {
    Centers {
        mean: mean.iter().copied().map(f64::from).collect(),
        rstd: var.iter().map(|&v| (f64::from(v) + eps).sqrt().recip()).collect(),
        whole_batch,
    }
}

/// Mean and biased variance of each channel, in two passes.
fn moments<T: Element>(shape: ChannelShape, x: &[T]) -> (Vec<f64>, Vec<f64>) {
    let n = shape.per_channel() as f64;
    let mut mean = vec![0.0; shape.channels()];
    for_each_run(shape, |c, run| mean[c] += x[run].iter().map(|v| wide(*v)).sum::<f64>());
    mean.iter_mut().for_each(|v| *v /= n);
    let mut var = vec![0.0; shape.channels()];
    for_each_run(shape, |c, run| var[c] += x[run].iter().map(|v| (wide(*v) - mean[c]).powi(2)).sum::<f64>());
    var.iter_mut().for_each(|v| *v /= n);
    (mean, var)
}
