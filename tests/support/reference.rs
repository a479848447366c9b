//! The ops in `f64`, written from their formulas and sharing no code with the crate.

use super::problem::{Geometry, Problem, Values};

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

/// Every tensor that the problem's formulas define.
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
                for c in 0..geometry.groups {
                    mean[c] = (1.0 - take) * mean[c] + take * batch.mean[c];
                    var[c] = (1.0 - take) * var[c] + take * batch.var[c] * n / (n - 1.0);
                }
            }
            means.extend(&mean);
            vars.extend(&var);
        }
        values.insert("running_mean", means);
        values.insert("running_var", vars);
    }

    let (x, dy) = (problem.last_x(), &problem.dy);
    let Moments { mean, var, rstd } = moments(problem, &geometry, x);
    let x_hat: Vec<f64> = (0..x.len()).map(|i| (x[i] - mean[group[i]]) * rstd[group[i]]).collect();
    let weight = |i: usize| problem.weight.as_ref().map_or(1.0, |w| w[param[i]]);
    let bias = |i: usize| problem.bias.as_ref().map_or(0.0, |b| b[param[i]]);
    let g = |i: usize| dy[i] * weight(i);

    values.insert("y", (0..x.len()).map(|i| x_hat[i] * weight(i) + bias(i)).collect());
    if problem.weight.is_some() {
        values.insert("dgamma", geometry.param_sums(|i| dy[i] * x_hat[i]));
    }
    if problem.bias.is_some() {
        values.insert("dbeta", geometry.param_sums(|i| dy[i]));
    }
    match problem.op.statistics() {
        Some([mean_name, var_name, rstd_name]) => {
            let (sum_g, sum_gx) = (geometry.group_sums(g), geometry.group_sums(|i| g(i) * x_hat[i]));
            let dx =
                |i: usize| rstd[group[i]] * (g(i) - sum_g[group[i]] / n - x_hat[i] * sum_gx[group[i]] / n);
            values.insert("dx", (0..x.len()).map(dx).collect());
            values.insert(mean_name, mean);
            values.insert(var_name, var);
            values.insert(rstd_name, rstd);
        }
        None => {
            values.insert("dx", (0..x.len()).map(|i| rstd[group[i]] * g(i)).collect());
        }
    }
    values
}
