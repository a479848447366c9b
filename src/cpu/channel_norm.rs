use core::ops::Range;

use super::{AffineValues, Cpu, store, store_grads, wide};
use crate::{
    Element,
    channel_norm::{BackwardSource, ChannelNormBackward, ChannelNormForward, FixedStatistics, ForwardSource},
    shape::ChannelShape,
};

/// Calls `body` with each slab and a run of its elements, in the order of memory.
fn for_each_run(shape: ChannelShape, mut body: impl FnMut(usize, Range<usize>)) {
    let mut start = 0;
    for segment in 0..shape.segments() {
        for _ in 0..shape.outer() {
            for channel in 0..shape.channels() {
                body(segment * shape.channels() + channel, start..start + shape.inner());
                start += shape.inner();
            }
        }
    }
}

/// What normalizes each slab, and scales and shifts it.
struct Slabs {
    shape: ChannelShape,
    mean: Vec<f64>,
    rstd: Vec<f64>,
    affine: AffineValues,
}

/// The numbers of one slab.
#[derive(Clone, Copy)]
struct Slab {
    mean: f64,
    rstd: f64,
    weight: f64,
    bias: f64,
}

impl Slabs {
    fn at(&self, slab: usize) -> Slab {
        let (statistic, channel) = (slab / self.shape.group(), slab % self.shape.channels());
        Slab {
            mean: self.mean[statistic],
            rstd: self.rstd[statistic],
            weight: self.affine.weight[channel],
            bias: self.affine.bias[channel],
        }
    }
}

impl Slab {
    fn x_hat<T: Element>(&self, x: T) -> f64 {
        (wide(x) - self.mean) * self.rstd
    }
}

pub(super) fn forward<T: Element>(shape: ChannelShape, args: ChannelNormForward<'_, T, Cpu>) {
    let ChannelNormForward { x, residual, y, affine, eps, activation, source } = args;
    let y = &mut y[..shape.len()];
    if let Some(x) = x {
        y.copy_from_slice(&x[..shape.len()]);
    }
    let (mean, rstd) = match source {
        ForwardSource::Batch { mean: mean_out, rstd: rstd_out, running, averaged, workspace: _ } => {
            let (mean, var) = moments(shape.merged(), y);
            let rstd = reciprocal_std(&var, eps);
            store(mean_out, &mean);
            store(rstd_out, &rstd);
            if let Some(running) = running {
                let momentum = running.device_momentum.map_or(running.momentum, |m| m[0]);
                let n = shape.per_statistic() as f64;
                let moved_to = |to: &mut [f32], new: &[f64]| {
                    let (len, samples) = (to.len(), new.len() / to.len());
                    for (i, to) in to.iter_mut().enumerate() {
                        let sum: f64 = if averaged { new[i..].iter().step_by(len).sum() } else { new[i] };
                        *to = moved(*to, sum / if averaged { samples as f64 } else { 1.0 }, momentum);
                    }
                };
                let unbiased: Vec<f64> = var.iter().map(|var| var * n / (n - 1.0)).collect();
                moved_to(running.mean, &mean);
                moved_to(running.var, &unbiased);
            }
            (mean, rstd)
        }
        ForwardSource::Fixed(statistics) => fixed(&statistics, eps),
    };
    let slabs = Slabs { shape, mean, rstd, affine: AffineValues::of(&affine, shape.channels()) };
    for_each_run(shape, |slab, run| {
        let slab = slabs.at(slab);
        for (i, y) in run.clone().zip(&mut y[run]) {
            let z = slab.x_hat(*y) * slab.weight + slab.bias + residual.map_or(0.0, |v| wide(v[i]));
            *y = T::from_f64(activation.apply(z));
        }
    });
}

/// A momentum of 0 leaves the old value alone, even where the new one is NaN.
fn moved(old: f32, new: f64, momentum: f32) -> f32 {
    if momentum == 0.0 {
        return old;
    }
    let take = f64::from(momentum);
    ((1.0 - take) * f64::from(old) + take * new) as f32
}

pub(super) fn backward<T: Element>(shape: ChannelShape, args: ChannelNormBackward<'_, T, Cpu>) {
    let ChannelNormBackward {
        x,
        residual,
        dy,
        affine,
        eps,
        activation,
        source,
        dx,
        dresidual,
        grads,
        accumulate,
        workspace: _,
    } = args;
    let widened = |v: &[f32]| v.iter().copied().map(f64::from).collect();
    let ((mean, rstd), training) = match source {
        BackwardSource::Batch { mean, rstd } => ((widened(mean), widened(rstd)), true),
        BackwardSource::Fixed(statistics) => (fixed(&statistics, eps), false),
    };
    let slabs = Slabs { shape, mean, rstd, affine: AffineValues::of(&affine, shape.channels()) };
    // The gradient of what the activation was given, and x_hat.
    let gradient = |slab: &Slab, i: usize| {
        let x_hat = slab.x_hat(x[i]);
        let z = x_hat * slab.weight + slab.bias + residual.map_or(0.0, |v| wide(v[i]));
        (wide(dy[i]) * activation.derivative(z), x_hat)
    };

    let (mut sum_d, mut sum_dx_hat) = (vec![0.0; shape.slabs()], vec![0.0; shape.slabs()]);
    for_each_run(shape, |index, run| {
        let slab = slabs.at(index);
        for i in run {
            let (d, x_hat) = gradient(&slab, i);
            sum_d[index] += d;
            sum_dx_hat[index] += d * x_hat;
        }
    });

    if let Some(dresidual) = dresidual {
        for_each_run(shape, |slab, run| {
            let slab = slabs.at(slab);
            run.for_each(|i| dresidual[i] = T::from_f64(gradient(&slab, i).0));
        });
    }
    if let Some(dx) = dx {
        // Means of g and of g * x_hat over the elements of each statistic.
        let (mut mean_g, mut mean_gx) = (vec![0.0; shape.statistics()], vec![0.0; shape.statistics()]);
        let n = shape.per_statistic() as f64;
        for slab in 0..shape.slabs() {
            let weight = slabs.affine.weight[slab % shape.channels()];
            mean_g[slab / shape.group()] += weight * sum_d[slab] / n;
            mean_gx[slab / shape.group()] += weight * sum_dx_hat[slab] / n;
        }
        for_each_run(shape, |index, run| {
            let (slab, statistic) = (slabs.at(index), index / shape.group());
            for i in run {
                let (d, x_hat) = gradient(&slab, i);
                // Constant statistics are not the same as means of zero: x_hat may be infinite.
                let moved = if training { mean_g[statistic] + x_hat * mean_gx[statistic] } else { 0.0 };
                dx[i] = T::from_f64(slab.rstd * (d * slab.weight - moved));
            }
        });
    }
    let over_segments = |sums: &[f64]| -> Vec<f64> {
        (0..shape.channels()).map(|c| sums[c..].iter().step_by(shape.channels()).sum()).collect()
    };
    if shape.slabs() > 0 {
        store_grads(grads, &over_segments(&sum_dx_hat), &over_segments(&sum_d), accumulate);
    } else {
        let zeros = vec![0.0; shape.channels()];
        store_grads(grads, &zeros, &zeros, accumulate);
    }
}

fn fixed(statistics: &FixedStatistics<'_, Cpu>, eps: f32) -> (Vec<f64>, Vec<f64>) {
    let widened = |v: &[f32]| -> Vec<f64> { v.iter().copied().map(f64::from).collect() };
    (widened(statistics.mean), reciprocal_std(&widened(statistics.var), eps))
}

fn reciprocal_std(var: &[f64], eps: f32) -> Vec<f64> {
    var.iter().map(|var| (var + f64::from(eps)).sqrt().recip()).collect()
}

/// Mean and biased variance of each slab, in two passes.
fn moments<T: Element>(shape: ChannelShape, x: &[T]) -> (Vec<f64>, Vec<f64>) {
    let n = shape.per_slab() as f64;
    let mut mean = vec![0.0; shape.slabs()];
    for_each_run(shape, |slab, run| mean[slab] += x[run].iter().map(|v| wide(*v)).sum::<f64>());
    mean.iter_mut().for_each(|v| *v /= n);
    let mut var = vec![0.0; shape.slabs()];
    for_each_run(shape, |slab, run| {
        var[slab] += x[run].iter().map(|v| (wide(*v) - mean[slab]).powi(2)).sum::<f64>();
    });
    var.iter_mut().for_each(|v| *v /= n);
    (mean, var)
}
