//! The rule that decides whether an output is right, a port of `tests/data/golden/golden.py`.
//!
//! Every element is allowed an error `t`, derived from the problem, before it is rounded to its storage type:
//! `RN(reference - t) <= got <= RN(reference + t)`. With `u = 2^-24`, `a = mean|x|` and `k = 1 + a * rstd`, the
//! condition number of the problem,
//!
//! ```text
//! y       8 u (|weight| k (1 + |x_hat|) + |bias|)
//! mean    8 u a
//! var     8 u var (1 + a / sd) + (8 u a)^2
//! rstd    rstd (t_var rstd^2 / 2 + 8 u)
//! dx      8 u k rstd (|g| + m1 + m2 + |x_hat| (m1 + m2)),  g = weight dy,  m1 = mean|g|,  m2 = mean|g x_hat|
//! dgamma  8 u sum k |dy| (1 + |x_hat|)
//! dbeta   8 u sum |dy|
//! running |1 - m| t_old + |m| t_new + 4 u (|(1 - m) old| + |m new|)
//! ```
//!
//! RMSNorm subtracts no mean: `k` is 1, and the `1 +`, `a` and `m1` fall away. In inference nothing is subtracted that
//! depends on the data: `k` is 1, the `1 +` and the means fall away, and `x_hat` is `(|x| + |mean|) rstd`, room for the
//! form `a x + b`. What is fused propagates: adding a residual costs `u (|y| + |residual|)`, an activation
//! `max|act'| t + 8 u |act(z)|`, an offset weight `u |1 + weight|`, accumulating `u (|old| + |new|)`; gradients likewise,
//! from `d = act'(z) dy`. NaN must be NaN and an infinity must match, but a
//! poisoned statistic may be any non-finite value. A group of equal values must give exactly the bias where `eps` is
//! above 0.

use std::collections::BTreeMap;

use warpnorm::{Activation, DType};

use super::{
    problem::{Geometry, Op, Problem, Running, Values},
    reference::{activate, moments, per_running},
};

/// Half the distance from 1 to the next `f32`.
const U: f64 = 1.0 / (1 << 24) as f64;
/// The error allowed in units of `u` times the scale of what is computed.
const K: f64 = 8.0;
/// The same for one step of the running statistics.
const K_RUNNING: f64 = 4.0;

/// Eight of the smallest subnormals of `f32`: what rounding the mean of subnormal data costs.
fn subnormal_room() -> f64 {
    8.0 * 2f64.powi(-149)
}

/// The name under which the rule for groups of equal values reports.
pub(crate) const CONSTANT_GROUPS: &str = "y(constant groups == beta)";

const STATISTICS: [&str; 8] =
    ["mean", "var", "rstd", "batch_mean", "batch_var", "batch_invstd", "running_mean", "running_var"];

/// A binary floating-point format: bits after the leading one, smallest and largest exponent.
pub(crate) struct Format {
    digits: i32,
    min_exp: i32,
    max_exp: i32,
}

impl Format {
    pub(crate) fn of(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self { digits: 23, min_exp: -126, max_exp: 127 },
            DType::F16 => Self { digits: 10, min_exp: -14, max_exp: 15 },
            DType::BF16 => Self { digits: 7, min_exp: -126, max_exp: 127 },
            other => panic!("the rule has no format for {other:?}"), // the enum may grow
        }
    }

    /// The format's number nearest to `v`, ties to even. Not `half`'s conversion, which rounds twice on some CPUs.
    pub(crate) fn round(&self, v: f64) -> f64 {
        if v == 0.0 || !v.is_finite() {
            return v;
        }
        let step = self.step(v);
        let rounded = (v / step).round_ties_even() * step;
        if rounded.abs() >= 2f64.powi(self.max_exp + 1) { f64::INFINITY.copysign(v) } else { rounded }
    }

    /// The distance between the format's numbers around `v`.
    pub(crate) fn step(&self, v: f64) -> f64 {
        // A subnormal f64 has a smaller exponent than every format here, so that its own does not matter.
        let exp = ((v.to_bits() >> 52) & 0x7ff) as i32 - 1023;
        2f64.powi(exp.max(self.min_exp) - self.digits)
    }

    /// Half the distance from `|v|`, one of the format's numbers, to the next; 0 where there is none.
    fn half_step(&self, v: f64) -> f64 {
        let step = self.step(v);
        let has_next = v.is_finite() && v.abs() + step < 2f64.powi(self.max_exp + 1);
        if has_next { step / 2.0 } else { 0.0 }
    }
}

/// The types that a run stores its tensors in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Types {
    /// Of `x`, `y`, `dy` and `dx`.
    pub(crate) data: DType,
    /// Of weight and bias.
    pub(crate) affine: DType,
    /// Of their gradients.
    pub(crate) grads: DType,
}

impl Types {
    pub(crate) fn of(&self, tensor: &str) -> DType {
        match tensor {
            "y" | "dx" | "h" | "dresidual" => self.data,
            "dgamma" | "dbeta" => self.grads,
            _ => DType::F32,
        }
    }
}

/// What the rule says of one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) ok: bool,
    /// The largest error over what is allowed, infinite where NaN or infinity disagree.
    pub(crate) worst: f64,
    /// The element it is found at.
    pub(crate) at: usize,
}

/// Judges every tensor that is both expected and there. `spread` is how far the expected values may be off themselves.
pub(crate) fn judge(
    problem: &Problem,
    expected: &Values,
    spread: &BTreeMap<String, f64>,
    got: &Values,
    types: Types,
) -> BTreeMap<&'static str, Verdict> {
    let tolerances = tolerances(problem);
    let mut verdicts = BTreeMap::new();
    for (&name, expected) in expected {
        let Some(got) = got.get(name) else { continue };
        let spread = spread.get(name).copied().unwrap_or(0.0);
        let allowed: Vec<f64> = tolerances[name].iter().map(|t| t + spread).collect();
        let format = Format::of(types.of(name));
        verdicts.insert(name, judge_tensor(&format, STATISTICS.contains(&name), expected, &allowed, got));
    }
    if let Some(y) = got.get("y") {
        let verdict = judge_constant_groups(problem, &Format::of(types.data), y);
        verdicts.extend(verdict.map(|verdict| (CONSTANT_GROUPS, verdict)));
    }
    verdicts
}

fn judge_tensor(format: &Format, statistic: bool, expected: &[f64], allowed: &[f64], got: &[f64]) -> Verdict {
    assert_eq!(expected.len(), got.len(), "outputs have the reference's number of elements");
    assert_eq!(expected.len(), allowed.len(), "tolerances have the reference's number of elements");
    let mut verdict = Verdict { ok: true, worst: 0.0, at: 0 };
    for (at, ((&expected, &allowed), &got)) in expected.iter().zip(allowed).zip(got).enumerate() {
        let ok = if expected.is_finite() {
            format.round(expected - allowed) <= got && got <= format.round(expected + allowed)
        } else if statistic {
            !got.is_finite()
        } else {
            got == expected || got.is_nan() && expected.is_nan()
        };
        let ratio = if ok && !expected.is_finite() {
            0.0
        } else {
            (got - expected).abs() / (allowed + format.half_step(format.round(expected)))
        };
        let ratio = if ratio.is_nan() { f64::INFINITY } else { ratio };
        verdict.ok &= ok;
        if ratio > verdict.worst {
            (verdict.worst, verdict.at) = (ratio, at);
        }
    }
    verdict
}

/// `None` where no group is constant, or the rule does not apply.
fn judge_constant_groups(problem: &Problem, format: &Format, y: &[f64]) -> Option<Verdict> {
    let after =
        problem.activation != Activation::None || problem.residual.is_some() && !problem.op.is_row_norm();
    if problem.eps == 0.0 || problem.op.statistics().is_none() || problem.op == Op::RmsNorm || after {
        return None;
    }
    let (x, Geometry { group, param, groups, .. }) = (problem.normalized(), problem.geometry());
    let mut first = vec![None; groups];
    let mut constant = vec![true; groups];
    for (&x, &group) in x.iter().zip(&group) {
        constant[group] &= x == *first[group].get_or_insert(x);
    }
    let bias = |i: usize| problem.bias.as_ref().map_or(0.0, |bias| bias[param[i]]);
    let mut concerned = (0..x.len()).filter(|&i| constant[group[i]]).peekable();
    concerned.peek()?;
    let wrong = concerned.find(|&i| y[i] != format.round(bias(i)));
    Some(wrong.map_or(Verdict { ok: true, worst: 0.0, at: 0 }, |at| Verdict {
        ok: false,
        worst: f64::INFINITY,
        at,
    }))
}

/// The largest absolute values of an activation's slope and of the slope of that.
fn steepest(activation: Activation) -> (f64, f64) {
    match activation {
        Activation::None | Activation::Relu => (1.0, 0.0),
        Activation::Silu => (1.1, 0.5),
        Activation::Gelu | Activation::GeluTanh => (1.13, 0.8),
        other => panic!("the rule knows no {other:?}"), // the enum may grow
    }
}

/// The error allowed for every element of every tensor of the problem, before rounding to its storage type.
pub(crate) fn tolerances(problem: &Problem) -> Values {
    let geometry = problem.geometry();
    let (group, param, n) = (&geometry.group, &geometry.param, geometry.count());
    let mut values = Values::new();
    if let Some(running) = problem.tracked() {
        let [t_means, t_vars] = running_tolerances(problem, &geometry, running);
        values.insert("running_mean", t_means);
        values.insert("running_var", t_vars);
    }

    let (x, dy) = (problem.normalized(), &problem.dy);
    let stats = moments(problem, &geometry, &x);
    let allowed = moment_tolerances(problem, &geometry, &x);
    let rstd = |i: usize| stats.rstd[group[i]];
    let factor = |i: usize| problem.factor(param[i]).abs();
    let bias = |i: usize| problem.bias.as_ref().map_or(0.0, |b| b[param[i]]);

    // Whether statistics follow x, and whether a mean is subtracted that does.
    let training = problem.op.statistics().is_some();
    let centered = training && problem.op != Op::RmsNorm;
    // The condition number, the part of an error that does not shrink with x_hat, and the scale of x_hat.
    let (k, one): (Vec<f64>, f64) = match centered {
        true => (allowed.mean_abs.iter().zip(&stats.rstd).map(|(a, rstd)| 1.0 + a * rstd).collect(), 1.0),
        false => (vec![1.0; geometry.groups], 0.0),
    };
    let x_hat: Vec<f64> = (0..x.len())
        .map(|i| match training {
            true => ((x[i] - stats.mean[group[i]]) * rstd(i)).abs(),
            false => (x[i].abs() + stats.mean[group[i]].abs()) * rstd(i),
        })
        .collect();

    let after = problem.residual.as_ref().filter(|_| !problem.op.is_row_norm());
    let (steepest_slope, steepest_bend) = steepest(problem.activation);
    // Of the activation's argument: the norm's own, an offset weight's rounding, and that of adding a residual.
    let norm = |i: usize| (x[i] - stats.mean[group[i]]) * rstd(i) * problem.factor(param[i]) + bias(i);
    let t_z = |i: usize| {
        let offset = if problem.weight_offset == 0.0 { 0.0 } else { U * factor(i) * x_hat[i] };
        let added = after.map_or(0.0, |r| U * (norm(i).abs() + r[i].abs()));
        K * U * (factor(i) * k[group[i]] * (one + x_hat[i]) + bias(i).abs())
            + subnormal_room() * (1.0 + factor(i) * rstd(i))
            + offset
            + added
    };
    let act = |i: usize| activate(problem.activation, norm(i) + after.map_or(0.0, |r| r[i]));
    let plain = problem.activation == Activation::None;
    let t_y = |i: usize| if plain { t_z(i) } else { steepest_slope * t_z(i) + K * U * act(i).0.abs() };
    values.insert("y", (0..x.len()).map(t_y).collect());
    values.insert("z", (0..x.len()).map(t_z).collect());

    // The gradient of the activation's argument, and what it may be off by itself.
    let d: Vec<f64> = (0..x.len()).map(|i| (dy[i] * act(i).1).abs()).collect();
    let t_d: Vec<f64> = match plain {
        true => vec![0.0; x.len()],
        false => (0..x.len()).map(|i| dy[i].abs() * steepest_bend * t_z(i) + K * U * d[i]).collect(),
    };
    let g = |i: usize| d[i] * factor(i);
    let t_g = |i: usize| t_d[i] * factor(i) + if problem.weight_offset == 0.0 { 0.0 } else { U * g(i) };
    let dh = |i: usize| problem.dh.as_ref().map_or(0.0, |dh| dh[i].abs());
    if training {
        let (sum_g, sum_gx) = (geometry.group_sums(g), geometry.group_sums(|i| g(i) * x_hat[i]));
        let (sum_t, sum_tx) = (geometry.group_sums(t_g), geometry.group_sums(|i| t_g(i) * x_hat[i]));
        let t_dx = |i: usize| {
            let of = |sums: &[f64]| sums[group[i]] / n;
            let (m1, m2) = (if centered { of(&sum_g) } else { 0.0 }, of(&sum_gx));
            let own = K * U * k[group[i]] * rstd(i) * (g(i) + m1 + one * m2 + x_hat[i] * (m1 + m2));
            let given = rstd(i) * (t_g(i) + if centered { of(&sum_t) } else { 0.0 } + x_hat[i] * of(&sum_tx));
            let dx = rstd(i) * (g(i) + m1 + x_hat[i] * m2);
            own + given + if problem.dh.is_some() { U * (dx + dh(i)) } else { 0.0 }
        };
        values.insert("dx", (0..x.len()).map(t_dx).collect());
    } else {
        let t_dx = |i: usize| K * U * g(i) * rstd(i) + t_g(i) * rstd(i);
        values.insert("dx", (0..x.len()).map(t_dx).collect());
    }
    let accumulated = |mut sums: Vec<f64>, which: usize, new: Vec<f64>| {
        if let Some(old) = &problem.old_grads {
            for ((sum, old), new) in sums.iter_mut().zip(&old[which]).zip(new) {
                *sum += U * (old.abs() + new);
            }
        }
        sums
    };
    let t_dgamma = |i: usize| K * U * k[group[i]] * d[i] * (one + x_hat[i]) + t_d[i] * x_hat[i];
    let t_dgamma = geometry.param_sums(t_dgamma);
    values.insert("dgamma", accumulated(t_dgamma, 0, geometry.param_sums(|i| d[i] * x_hat[i])));
    let t_dbeta = geometry.param_sums(|i| K * U * d[i] + t_d[i]);
    values.insert("dbeta", accumulated(t_dbeta, 1, geometry.param_sums(|i| d[i])));
    values.insert("dresidual", t_d);
    // The sum is rounded once, and the reference rounds it likewise.
    values.extend(problem.sum().map(|h| ("h", vec![0.0; h.len()])));
    if let Some([mean_name, var_name, rstd_name]) = problem.op.statistics() {
        let t_rstd =
            stats.rstd.iter().zip(&allowed.var).map(|(r, t_var)| r * (0.5 * t_var * r * r + K * U)).collect();
        values.insert(rstd_name, t_rstd);
        values.insert(mean_name, allowed.mean);
        values.insert(var_name, allowed.var);
    }
    // Where the problem itself is poisoned there is nothing to be near to.
    values.values_mut().flatten().filter(|t| !t.is_finite()).for_each(|t| *t = 0.0);
    values
}

/// What running means and variances may be off by after each step.
fn running_tolerances(problem: &Problem, geometry: &Geometry, running: &Running) -> [Vec<f64>; 2] {
    let (len, n) = (running.mean.len(), geometry.count());
    let (mut mean, mut var) = (running.mean.clone(), running.var.clone());
    let (mut t_mean, mut t_var) = (vec![0.0; len], vec![0.0; len]);
    let (mut t_means, mut t_vars) = (Vec::new(), Vec::new());
    for (step, x) in problem.x.iter().enumerate() {
        if !x.is_empty() {
            let batch = moments(problem, geometry, x);
            let allowed = moment_tolerances(problem, geometry, x);
            let (take, unbiased) = (problem.momentum_at(step), n / (n - 1.0));
            let keep = 1.0 - take;
            let moved = |t_old: f64, t_new: f64, old: f64, new: f64| {
                keep.abs() * t_old
                    + take.abs() * t_new
                    + K_RUNNING * U * ((keep * old).abs() + (take * new).abs())
            };
            let of = |values: &[f64]| per_running(values, len);
            let (new_mean, new_var) = (of(&batch.mean), of(&batch.var));
            let (t_new_mean, t_new_var) = (of(&allowed.mean), of(&allowed.var));
            for c in 0..len {
                let new_var = new_var[c] * unbiased;
                t_mean[c] = moved(t_mean[c], t_new_mean[c], mean[c], new_mean[c]);
                t_var[c] = moved(t_var[c], t_new_var[c] * unbiased, var[c], new_var);
                mean[c] = keep * mean[c] + take * new_mean[c];
                var[c] = keep * var[c] + take * new_var;
            }
        }
        t_means.extend(&t_mean);
        t_vars.extend(&t_var);
    }
    [t_means, t_vars]
}

struct MomentTolerances {
    /// Not a tolerance: the mean of `|x|`, which they scale with.
    mean_abs: Vec<f64>,
    mean: Vec<f64>,
    var: Vec<f64>,
}

/// What batch statistics of `x` may be off by; zeros where the statistics are given.
fn moment_tolerances(problem: &Problem, geometry: &Geometry, x: &[f64]) -> MomentTolerances {
    let n = geometry.count();
    let mean_abs: Vec<f64> = geometry.group_sums(|i| x[i].abs()).iter().map(|sum| sum / n).collect();
    if problem.op.statistics().is_none() {
        return MomentTolerances {
            mean_abs,
            mean: vec![0.0; geometry.groups],
            var: vec![0.0; geometry.groups],
        };
    }
    let vars = moments(problem, geometry, x).var;
    if problem.op == Op::RmsNorm {
        let squares = moments(problem, geometry, x).var;
        let var = squares.iter().map(|ms| K * U * ms + subnormal_room()).collect();
        return MomentTolerances { mean_abs, mean: vec![0.0; geometry.groups], var };
    }
    let t_mean = |&a: &f64| K * U * a + subnormal_room();
    let t_var = |(&a, &var): (&f64, &f64)| {
        let sd = var.sqrt();
        let k = 1.0 + a / if sd > 0.0 { sd } else { 1.0 };
        K * U * var * k + (K * U * a).powi(2) + subnormal_room()
    };
    let (mean, var) =
        (mean_abs.iter().map(t_mean).collect(), mean_abs.iter().zip(&vars).map(t_var).collect());
    MomentTolerances { mean_abs, mean, var }
}
