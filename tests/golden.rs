//! The golden vectors, on every backend, and the rule itself.

use std::{collections::BTreeMap, fs};

use safetensors::SafeTensors;
use serde::Deserialize;
use warpnorm::{Activation, DType, Element, Layout};

use crate::support::{
    data::{accumulating, every_op, with_residual},
    data_dir, expect_all_right,
    golden::{numbers, read, read_expected},
    judge::{CONSTANT_GROUPS, Format, Types, judge, tolerances},
    on_every_backend,
    problem::{Problem, Values},
    reference::reference,
    run::{Options, Params, Sliced, run},
};

on_every_backend!(every_golden_case_is_within_the_rule);

fn every_golden_case_is_within_the_rule<T: Element, B: Sliced>(on: &B) {
    let dir = data_dir("golden");
    let folder = read(&dir).unwrap();
    let expected = read_expected(&dir, &folder.cases).unwrap().unwrap();
    // Only the cases whose inputs are exact in f16 serve the 16-bit types.
    let cases = if T::DTYPE == DType::F32 { 176 } else { 47 };
    assert_eq!((folder.cases.len(), folder.unknown), (176, 9), "cases of the crate's ops, and of others");

    for params in [Params::F32, Params::Same] {
        let options = Options { params, grads: params, ..Options::default() };
        let types = options.types(T::DTYPE);
        let mut judged = 0;
        for case in &folder.cases {
            let Some(problem) = case.problem(types) else { continue };
            let got =
                run::<T, B>(on, &problem, &options).unwrap_or_else(|error| panic!("{}: {error}", case.id));
            let verdicts = case.judge(&problem, &expected[&case.id], &got, types);
            assert!(!verdicts.is_empty(), "{} has outputs that are expected", case.id);
            if !case.stretch {
                expect_all_right(&case.id, &verdicts, &expected[&case.id], &got);
            }
            judged += 1;
        }
        assert_eq!(judged, cases, "cases that {:?} serves", T::DTYPE);
    }
}

#[test]
fn the_formulas_agree_with_pytorch() {
    let dir = data_dir("golden");
    let folder = read(&dir).unwrap();
    let expected = read_expected(&dir, &folder.cases).unwrap().unwrap();
    let types = Options::default().types(DType::F32);
    for case in &folder.cases {
        let problem = case.problem(types).unwrap();
        let (formulas, tolerances) = (reference(&problem), tolerances(&problem));
        for (name, expected) in &expected[&case.id] {
            for (i, (&expected, &formula)) in expected.iter().zip(&formulas[name]).enumerate() {
                let same = expected == formula || expected.is_nan() && formula.is_nan();
                // A thousandth of what an output may be off by, and what f64 itself cannot tell apart.
                let room = tolerances[name][i] / 1000.0 + 1e-13 * expected.abs().max(1.0);
                let near = (expected - formula).abs() <= room;
                assert!(same || near, "{} {name}[{i}]: {formula:e} instead of {expected:e}", case.id);
            }
        }
    }
}

/// A wrong output and what `golden.py` said of it.
#[derive(Deserialize)]
struct Judged {
    outputs: String,
    case: String,
    dtype: String,
    params: String,
    /// By tensor: whether it passed, and the worst ratio, `null` for infinity.
    verdicts: BTreeMap<String, (bool, Option<f64>)>,
}

#[test]
fn the_rule_judges_wrong_outputs_as_its_original_does() {
    let folder = read(&data_dir("golden")).unwrap();
    let expected = read_expected(&data_dir("golden"), &folder.cases).unwrap().unwrap();
    let judged: Vec<Judged> =
        serde_json::from_slice(&fs::read(data_dir("judge/verdicts.json")).unwrap()).unwrap();
    let file = fs::read(data_dir("judge/outputs.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();

    let (mut passed, mut failed, mut constant) = (0, 0, 0);
    for Judged { outputs, case: id, dtype, params, verdicts } in judged {
        let case = folder.cases.iter().find(|case| case.id == id).unwrap();
        let data = if dtype == "f16" { DType::F16 } else { DType::F32 };
        let params = if params == "f16" { Params::Same } else { Params::F32 };
        let types = Types { data, affine: params.dtype(data), grads: params.dtype(data) };
        let problem = case.problem(types).unwrap();
        let expected = &expected[&id];
        let got = |name: &str| numbers(&file, &format!("{outputs}/{name}")).unwrap();
        let got: Values = expected.keys().filter_map(|&name| Some((name, got(name)?))).collect();

        let ours = case.judge(&problem, expected, &got, types);
        assert_eq!(ours.len(), verdicts.len(), "{outputs}: tensors judged");
        for (name, verdict) in ours {
            let (ok, worst) = verdicts[name];
            assert_eq!(verdict.ok, ok, "{outputs} {name}");
            let worst = worst.unwrap_or(f64::INFINITY);
            let near = verdict.worst == worst || (verdict.worst - worst).abs() < 1e-6 * worst.max(1.0);
            assert!(
                near,
                "{outputs} {name}: {} of what is allowed, the original says {worst}",
                verdict.worst
            );
            *(if ok { &mut passed } else { &mut failed }) += 1;
            constant += usize::from(name == CONSTANT_GROUPS && !ok);
        }
    }
    assert!(
        passed > 500 && failed > 300 && constant > 0,
        "{passed} passed, {failed} failed, {constant} constant"
    );
}

#[test]
fn rounding_agrees_with_the_hardware_and_the_ieee_format() {
    let round = |dtype, v: f64| Format::of(dtype).round(v);
    for bits in (0..u32::MAX).step_by(65_521) {
        let v = f64::from(f32::from_bits(bits)) * 1.000_000_03;
        if !v.is_nan() {
            assert_eq!(round(DType::F32, v), f64::from(v as f32), "{v:e}");
        }
    }
    // One bit beyond what f32 holds decides between two neighbors: a tie is broken in f32, but there is none.
    let (one, step) = (1.0, 2f64.powi(-10));
    assert_eq!(round(DType::F16, one + step / 2.0), one);
    assert_eq!(round(DType::F16, one + step / 2.0 + 2f64.powi(-40)), one + step);
    assert_eq!(round(DType::F16, 2f64.powi(-25)), 0.0);
    assert_eq!(round(DType::F16, 2f64.powi(-25) * 1.0001), 2f64.powi(-24));
    assert_eq!(round(DType::F16, 65519.9), 65504.0);
    assert_eq!(round(DType::F16, -65520.0), f64::NEG_INFINITY);
    assert_eq!(round(DType::BF16, 1.0 + 2f64.powi(-8)), 1.0);
    assert_eq!(round(DType::BF16, 1.0 + 3.0 * 2f64.powi(-8)), 1.0 + 2f64.powi(-6));
    assert_eq!(round(DType::BF16, f64::from(f32::MAX)), f64::INFINITY);
}

#[test]
fn a_wrong_element_anywhere_is_found() {
    let types = Options::default().types(DType::F32);
    let none = BTreeMap::new();
    for (i, problem) in every_op(9, Layout::ChannelsLast, 1).into_iter().enumerate() {
        let activation = if problem.op.is_row_norm() { Activation::None } else { Activation::Silu };
        let fused = accumulating(with_residual(Problem { activation, ..problem.clone() }, i as u64), 2);
        for problem in [problem, fused] {
            let problem = problem.rounded(DType::F32, DType::F32);
            let expected = reference(&problem);
            assert!(judge(&problem, &expected, &none, &expected, types).values().all(|verdict| verdict.ok));
            for (&name, values) in &expected {
                for at in (0..values.len()).step_by(5) {
                    let mut got = expected.clone();
                    got.get_mut(name).unwrap()[at] += 1e-3 * (1.0 + values[at].abs());
                    let verdict = judge(&problem, &expected, &none, &got, types)[name];
                    let found = !verdict.ok && verdict.at == at && verdict.worst > 1.0;
                    assert!(found, "{:?} {name}[{at}]: {verdict:?}", problem.op);
                }
            }
        }
    }
}
