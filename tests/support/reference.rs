//! The ops in `f64`, written from their formulas and sharing no code with the crate.

use std::f64::consts::{PI, TAU};

use warpnorm::Activation;

use super::problem::{Geometry, Op, Problem, Values};

/// Mean, biased variance and `1 / sqrt(var + eps)` of each group of elements.
pub(crate) struct Moments {
    pub(crate) mean: Vec<f64>,
    pub(crate) var: Vec<f64>,
    pub(crate) rstd: Vec<f64>,
}

/// The statistics that normalize `x`, one of the problem's batches: its own, or those given for inference.
pub(crate) fn moments(problem: &Problem, geometry: &Geometry, x: &[f64]) -> Moments {
    let (mean, var) = match &problem.running {
        Some(running) if problem.op.statistics().is_none() => (running.mean.clone(), running.var.clone()),
        _ if problem.op == Op::RmsNorm => {
            let squares = geometry.group_sums(|i| x[i] * x[i]);
            (vec![0.0; geometry.groups], squares.iter().map(|sum| sum / geometry.count()).collect())
        }
        _ => two_passes(geometry, x),
    };
    let rstd = var.iter().map(|var| (var + f64::from(problem.eps)).sqrt().recip()).collect();
    Moments { mean, var, rstd }
}

/// Mean and biased variance. The mean is corrected by the mean of what it leaves, so that large means stay exact.
fn two_passes(geometry: &Geometry, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (group, n) = (&geometry.group, geometry.count());
    let rough: Vec<f64> = geometry.group_sums(|i| x[i]).iter().map(|sum| sum / n).collect();
    let rest = geometry.group_sums(|i| x[i] - rough[group[i]]);
    let mean: Vec<f64> = rough.iter().zip(rest).map(|(rough, rest)| rough + rest / n).collect();
    let var = geometry.group_sums(|i| (x[i] - mean[group[i]]).powi(2)).iter().map(|sum| sum / n).collect();
    (mean, var)
}

/// The mean of what belongs to each running statistic: one of the batch's, or those of all chunks or samples.
pub(crate) fn per_running(values: &[f64], len: usize) -> Vec<f64> {
    let each = (values.len() / len.max(1)) as f64;
    (0..len).map(|i| values[i..].iter().step_by(len).sum::<f64>() / each).collect()
}

/// An activation's value and its slope.
pub(crate) fn activate(activation: Activation, z: f64) -> (f64, f64) {
    let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
    match activation {
        Activation::None => (z, 1.0),
        Activation::Relu => (if z < 0.0 { 0.0 } else { z }, if z <= 0.0 { 0.0 } else { 1.0 }),
        Activation::Silu => {
            let s = sigmoid(z);
            (z * s, s * (1.0 + z * (1.0 - s)))
        }
        Activation::Gelu => {
            let cdf = (1.0 + libm::erf(z / 2f64.sqrt())) / 2.0;
            (z * cdf, cdf + z * (-z * z / 2.0).exp() / TAU.sqrt())
        }
        Activation::GeluTanh => {
            let a = (2.0 / PI).sqrt();
            let t = (a * (z + 0.044715 * z.powi(3))).tanh();
            let slope = a * (1.0 + 3.0 * 0.044715 * z * z) * (1.0 - t * t);
            (z / 2.0 * (1.0 + t), (1.0 + t + z * slope) / 2.0)
        }
        other => panic!("the formulas know no {other:?}"), // the enum may grow
    }
}

/// Every tensor that the problem's formulas define, and `z`, what the activation is given.
pub(crate) fn reference(problem: &Problem) -> Values {
    let geometry = problem.geometry();
    let (group, param, n) = (&geometry.group, &geometry.param, geometry.count());
    let mut values = Values::new();

    if let Some(running) = problem.tracked() {
        let (mut mean, mut var) = (running.mean.clone(), running.var.clone());
        let (mut means, mut vars) = (Vec::new(), Vec::new());
        for (step, x) in problem.x.iter().enumerate() {
            if !x.is_empty() {
                let batch = moments(problem, &geometry, x);
                let take = problem.momentum_at(step);
                let new = [&batch.mean, &batch.var].map(|values| per_running(values, mean.len()));
                for c in 0..mean.len() {
                    mean[c] = (1.0 - take) * mean[c] + take * new[0][c];
                    var[c] = (1.0 - take) * var[c] + take * new[1][c] * n / (n - 1.0);
                }
            }
            means.extend(&mean);
            vars.extend(&var);
        }
        values.insert("running_mean", means);
        values.insert("running_var", vars);
    }

    let (x, dy) = (problem.normalized(), &problem.dy);
    let Moments { mean, var, rstd } = moments(problem, &geometry, &x);
    let x_hat: Vec<f64> = (0..x.len()).map(|i| (x[i] - mean[group[i]]) * rstd[group[i]]).collect();
    let factor = |i: usize| problem.factor(param[i]);
    let bias = |i: usize| problem.bias.as_ref().map_or(0.0, |b| b[param[i]]);
    let after = problem.residual.as_ref().filter(|_| !problem.op.is_row_norm());
    let z = |i: usize| x_hat[i] * factor(i) + bias(i) + after.map_or(0.0, |r| r[i]);
    let d: Vec<f64> = (0..x.len()).map(|i| dy[i] * activate(problem.activation, z(i)).1).collect();
    let g = |i: usize| d[i] * factor(i);

    values.insert("y", (0..x.len()).map(|i| activate(problem.activation, z(i)).0).collect());
    values.insert("z", (0..x.len()).map(z).collect());
    let old = |which: usize| problem.old_grads.as_ref().map_or(&[][..], |old| &old[which]);
    let added = |mut sums: Vec<f64>, old: &[f64]| {
        sums.iter_mut().zip(old).for_each(|(sum, old)| *sum += old);
        sums
    };
    if problem.weight.is_some() {
        values.insert("dgamma", added(geometry.param_sums(|i| d[i] * x_hat[i]), old(0)));
    }
    if problem.bias.is_some() {
        values.insert("dbeta", added(geometry.param_sums(|i| d[i]), old(1)));
    }
    let dh = |i: usize| problem.dh.as_ref().map_or(0.0, |dh| dh[i]);
    if problem.op.statistics().is_some() {
        let (mut sum_g, sum_gx) = (geometry.group_sums(g), geometry.group_sums(|i| g(i) * x_hat[i]));
        if problem.op == Op::RmsNorm {
            sum_g.fill(0.0); // no mean is subtracted
        }
        let moved = |i: usize| sum_g[group[i]] / n + x_hat[i] * sum_gx[group[i]] / n;
        values.insert("dx", (0..x.len()).map(|i| rstd[group[i]] * (g(i) - moved(i)) + dh(i)).collect());
    } else {
        values.insert("dx", (0..x.len()).map(|i| rstd[group[i]] * g(i)).collect());
    }
    values.extend(problem.sum().map(|h| ("h", h)));
    if after.is_some() {
        values.insert("dresidual", d);
    }
    if let Some([mean_name, var_name, rstd_name]) = problem.op.statistics() {
        values.insert(rstd_name, rstd);
        if problem.op != Op::RmsNorm {
            values.insert(mean_name, mean);
            values.insert(var_name, var);
        }
    }
    values
}
