//! The golden cases tell a good variance from a bad one: the mean of the squares less the square of the mean, in `f32`,
//! fails many of them, and Welford's algorithm none.

use std::collections::BTreeMap;

use warpnorm::DType;

use crate::support::{
    data_dir,
    golden::{read, read_expected},
    judge::{Types, judge},
    problem::{Op, Problem, Values},
    run::Options,
};

/// Mean and biased variance.
type Moments = (f32, f32);

fn naive(values: &[f32]) -> Moments {
    let n = values.len() as f32;
    let (mut sum, mut squares) = (0.0, 0.0);
    for v in values {
        sum += v;
        squares += v * v;
    }
    let mean = sum / n;
    (mean, squares / n - mean * mean)
}

fn welford(values: &[f32]) -> Moments {
    let (mut mean, mut m2) = (0.0, 0.0);
    for (i, v) in values.iter().enumerate() {
        let delta = v - mean;
        mean += delta / (i + 1) as f32;
        m2 += delta * (v - mean);
    }
    (mean, m2 / values.len() as f32)
}

fn mean_square(values: &[f32]) -> Moments {
    // In two levels, so that no chain of additions is long.
    let squares: f32 = values.chunks(32).map(|chunk| chunk.iter().map(|v| v * v).sum::<f32>()).sum();
    (0.0, squares / values.len() as f32)
}

/// The forward pass in `f32`.
fn forward(problem: &Problem, moments: fn(&[f32]) -> Moments) -> Values {
    let (x, geometry) = (problem.last_x(), problem.geometry());
    let mut groups = vec![Vec::new(); geometry.groups];
    for (&x, &group) in x.iter().zip(&geometry.group) {
        groups[group].push(x as f32);
    }
    let moments = if problem.op == Op::RmsNorm { mean_square } else { moments };
    let of: Vec<Moments> = groups.iter().map(|values| moments(values)).collect();
    let rstd: Vec<f32> = of.iter().map(|(_, var)| 1.0 / (var + problem.eps).sqrt()).collect();
    let y = |i: usize| {
        let (group, param) = (geometry.group[i], geometry.param[i]);
        let weight = problem.weight.as_ref().map_or(1.0, |w| w[param] as f32);
        let bias = problem.bias.as_ref().map_or(0.0, |b| b[param] as f32);
        f64::from((x[i] as f32 - of[group].0) * rstd[group] * weight + bias)
    };
    let mut values = Values::from([("y", (0..x.len()).map(y).collect())]);
    let wide = |values: &mut dyn Iterator<Item = f32>| values.map(f64::from).collect();
    if let Some([mean_name, var_name, rstd_name]) = problem.op.statistics() {
        values.insert(rstd_name, wide(&mut rstd.iter().copied()));
        if problem.op != Op::RmsNorm {
            values.insert(mean_name, wide(&mut of.iter().map(|m| m.0)));
            values.insert(var_name, wide(&mut of.iter().map(|m| m.1)));
        }
    }
    values
}

/// The cases that fail, of those whose statistics follow the data and that are meant for `f32`.
fn failures(moments: fn(&[f32]) -> Moments) -> Vec<String> {
    let folder = read(&data_dir("golden")).unwrap();
    let expected = read_expected(&data_dir("golden"), &folder.cases).unwrap().unwrap();
    let types: Types = Options::default().types(DType::F32);
    let mut failed = Vec::new();
    let mut judged = 0;
    for case in folder.cases.iter().filter(|case| !case.stretch) {
        let problem = case.problem(types).unwrap();
        if problem.op.statistics().is_none() {
            continue;
        }
        let got = forward(&problem, moments);
        let verdicts = judge(&problem, &expected[&case.id], &BTreeMap::new(), &got, types);
        judged += 1;
        if verdicts.values().any(|verdict| !verdict.ok) {
            failed.push(case.id.clone());
        }
    }
    assert_eq!(judged, 161, "cases judged");
    failed
}

#[test]
fn the_mean_of_squares_less_the_square_of_the_mean_fails_many_golden_cases() {
    let failed = failures(naive);
    assert!(failed.len() >= 30, "{} of the cases notice: {failed:?}", failed.len());
}

#[test]
fn welfords_algorithm_passes_them_all() {
    assert_eq!(failures(welford), [""; 0]);
}
