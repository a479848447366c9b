//! The benchmark's suite and its report: what they compute, not what anything takes.

#[path = "../benches/norms/results.rs"]
mod results;
#[path = "../benches/norms/suite.rs"]
mod suite;

use std::{path::Path, process::Command};

use suite::{Case, Extent};

fn case(name: &str) -> Case {
    let found = suite::cases(Extent::Full).into_iter().find(|case| case.name() == name);
    found.unwrap_or_else(|| panic!("{name} is not in the suite"))
}

#[test]
fn the_floor_counts_every_tensor_of_a_call_once() {
    let tensors = |call: &str| case(&format!("batch_norm/{call}/f16/first/32x256x56x56")).floor_tensors();
    let channel_norm = ["fwd", "bwd", "fwd+residual+relu", "bwd+residual+relu", "eval_fwd", "eval_bwd"];
    assert_eq!(channel_norm.map(tensors), [2, 3, 3, 5, 2, 3]);
    let tensors = |call: &str| case(&format!("rms_norm/{call}/bf16/rows/16384x4096")).floor_tensors();
    assert_eq!(["fwd", "bwd", "fwd+residual", "bwd+residual"].map(tensors), [2, 3, 4, 4]);
    // 51.4 MB in 16 bits, as benches/suite.json's source tables it.
    assert_eq!(case("batch_norm/fwd/f16/first/32x64x112x112").floor_bytes(), 2 * 51_380_224);
    assert_eq!(case("batch_norm/fwd/f32/first/32x64x112x112").floor_bytes(), 4 * 51_380_224);
}

#[test]
fn channels_last_moves_the_channels_behind_the_positions() {
    let case = case("instance_norm/bwd/f16/last/2x128x128x128x32");
    assert_eq!((case.channels, case.len()), (32, 2 * 32 * 128 * 128 * 128));
}

#[test]
fn every_op_is_there_in_every_type_both_ways() {
    for extent in [Extent::Quick, Extent::Full] {
        let names: Vec<String> = suite::cases(extent).iter().map(Case::name).collect();
        for op in ["batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"] {
            for pass in ["fwd", "bwd"] {
                for ty in ["f32", "f16", "bf16"] {
                    let start = format!("{op}/{pass}/{ty}/");
                    let there = names.iter().any(|name| name.starts_with(&start));
                    // The short run has all of BatchNorm and LayerNorm, and one type at least of the rest.
                    assert!(
                        there || extent == Extent::Quick && !["batch_norm", "layer_norm"].contains(&op),
                        "{start}"
                    );
                }
            }
        }
    }
}

#[test]
fn no_case_comes_twice_and_the_short_run_is_short() {
    let full = suite::cases(Extent::Full);
    let names: std::collections::HashSet<String> = full.iter().map(Case::name).collect();
    assert_eq!(names.len(), full.len());
    // What benches/norms/main.rs reckons with.
    assert!(suite::cases(Extent::Quick).len() <= 75);
}

/// The peers would time other cases, or the same under other names, if the two readers of the suite differed.
#[test]
fn python_reads_the_same_cases_from_the_suite() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/suite.py"); // not in the GPU bundle
    if !script.exists() {
        eprintln!("skipped: {} is not here", script.display());
        return;
    }
    for (extent, word) in [(Extent::Quick, "quick"), (Extent::Full, "full"), (Extent::Cpu, "cpu")] {
        let Ok(output) = Command::new("python3").arg(&script).arg(word).output() else {
            eprintln!("skipped: no python3");
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let ours: Vec<String> = suite::cases(extent)
            .iter()
            .map(|case| format!("{} {}", case.name(), case.floor_bytes()))
            .collect();
        assert_eq!(String::from_utf8(output.stdout).unwrap().lines().collect::<Vec<_>>(), ours);
    }
}
