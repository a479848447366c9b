//! The benchmark's suite and its report: what they compute, not what anything takes.

#[path = "../examples/perf_report/join.rs"]
mod join;
#[path = "../examples/perf_report/markdown.rs"]
mod markdown;
#[allow(dead_code)]
#[path = "../benches/norms/noise.rs"]
mod noise;
#[path = "../examples/perf_report/plots.rs"]
mod plots;
#[path = "../benches/norms/results.rs"]
mod results;
#[path = "../benches/norms/suite.rs"]
mod suite;

use std::{env, fs, path::Path, process::Command};

use join::{Best, Report};
use suite::{Case, Extent};

fn case(name: &str) -> Case {
    let mut cases = [Extent::Full, Extent::Cpu].into_iter().flat_map(suite::cases);
    let found = cases.find(|case| case.name() == name);
    found.unwrap_or_else(|| panic!("{name} is not in the suite"))
}

#[test]
fn the_floor_counts_every_tensor_of_a_call_once() {
    let tensors = |call: &str| case(&format!("batch_norm/{call}/f16/first/32x256x56x56")).floor_tensors();
    let channel_norm = ["fwd", "bwd", "fwd+residual+relu", "bwd+residual+relu", "eval_fwd", "eval_bwd"];
    assert_eq!(channel_norm.map(tensors), [2, 3, 3, 5, 2, 3]);
    let tensors = |call: &str| case(&format!("rms_norm/{call}/bf16/rows/16384x4096")).floor_tensors();
    assert_eq!(["fwd", "bwd", "fwd+residual", "bwd+residual"].map(tensors), [2, 3, 4, 4]);
    assert_eq!(case("layer_norm/fwdbwd/f32/rows/8192x64").floor_tensors(), 5);
    // A tensor of 51.4 MB in 16 bits.
    assert_eq!(case("batch_norm/fwd/f16/first/32x64x112x112").floor_bytes(), 2 * 51_380_224);
    assert_eq!(case("batch_norm/fwd/f32/first/32x64x112x112").floor_bytes(), 4 * 51_380_224);
}

#[test]
fn on_a_cpu_a_huge_batch_norm_reads_twice() {
    let tensors = |name: &str| {
        let case = case(name);
        case.cpu_floor_bytes() / case.tensor_bytes()
    };
    // 51.4 MB.
    let huge = |call: &str| tensors(&format!("batch_norm/{call}/f16/first/32x256x56x56"));
    let calls = ["fwd", "bwd", "fwd+residual+relu", "bwd+residual+relu", "eval_fwd", "eval_bwd"];
    assert_eq!(calls.map(huge), [3, 5, 4, 7, 2, 3]);
    assert_eq!(tensors("batch_norm/fwdbwd/f32/last/48x56x56x64"), 8);
    assert_eq!(tensors("batch_norm/fwdbwd/f32/last/32x56x56x64"), 5);
    assert_eq!(tensors("layer_norm/fwdbwd/f32/rows/2560x4096"), 5);
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

/// What the peers compute could not be compared with ours otherwise.
#[test]
fn values_depend_on_their_place_alone() {
    let (mut grown, mut fresh) = (Vec::<f32>::new(), Vec::<f32>::new());
    for len in [10, 1_600_000, 3_000_000] {
        noise::enough(&mut grown, len);
    }
    assert!(grown[..3_000_000] == noise::enough(&mut fresh, 3_000_000)[..3_000_000]);
    assert!(grown[1 << 20..].iter().zip(&grown).all(|(later, value)| later == value));
}

/// The peers would time other cases, or the same under other names, if the two readers of the suite differed.
#[test]
fn python_reads_the_same_cases_from_the_suite() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/suite.py"); // not in the GPU bundle
    if !script.exists() {
        eprintln!("skipped: {} is not here", script.display());
        return;
    }
    for (extent, word) in
        [(Extent::Quick, "quick"), (Extent::Full, "full"), (Extent::Cpu, "cpu"), (Extent::Test, "test")]
    {
        let Ok(output) = Command::new("python3").arg(&script).arg(word).output() else {
            eprintln!("skipped: no python3");
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let ours: Vec<String> = suite::cases(extent)
            .iter()
            .map(|case| format!("{} {} {}", case.name(), case.floor_bytes(), case.cpu_floor_bytes()))
            .collect();
        assert_eq!(String::from_utf8(output.stdout).unwrap().lines().collect::<Vec<_>>(), ours);
    }
}

const OWN: &str = r#"{
    "machine": {"gpu": "H200", "date": "2030-01-01"},
    "peers": [{"name": "warpnorm", "version": "0.1.0", "missing": null}],
    "results": [
        {"case": "batch_norm/fwd/f16/first/4x8", "peer": "warpnorm", "floor_bytes": 4000000, "cold_us": 2.0,
         "warm_us": 1.0, "copy_cold_us": 1.5, "copy_warm_us": 0.9, "how": "graph", "left_out": null},
        {"case": "batch_norm/fwd+relu/f16/first/4x8", "peer": "warpnorm", "floor_bytes": 4000000, "cold_us": 4.0,
         "warm_us": 3.0, "copy_cold_us": 1.0, "copy_warm_us": 0.9, "how": "graph", "left_out": null},
        {"case": "layer_norm/bwd/f16/rows/4x8", "peer": "warpnorm", "floor_bytes": 6000000, "cold_us": 3.0,
         "warm_us": 2.0, "copy_cold_us": 2.7, "copy_warm_us": 1.8, "how": "graph", "left_out": null},
        {"case": "rms_norm/fwd/f16/rows/4x8", "peer": "warpnorm", "floor_bytes": 4000000, "cold_us": null,
         "warm_us": null, "copy_cold_us": null, "copy_warm_us": null, "how": null, "left_out": "out of memory"}
    ]
}"#;

/// In the first case PyTorch's warm time is the least, but Liger's cold one is; the second has a slower peer only; the third
/// has none that was measured. A peer's case that we do not have says nothing.
const PEERS: &str = r#"{
    "machine": {"gpu": "H100", "torch": "2.9.0"},
    "peers": [
        {"name": "torch", "version": "2.9.0", "missing": null},
        {"name": "liger", "version": "0.6", "missing": null},
        {"name": "apex", "version": null, "missing": "No module named 'apex'"}
    ],
    "results": [
        {"case": "batch_norm/fwd/f16/first/4x8", "peer": "torch", "floor_bytes": 4000000, "cold_us": 2.5,
         "warm_us": 0.5, "copy_cold_us": null, "copy_warm_us": null, "how": "graph", "left_out": null},
        {"case": "batch_norm/fwd/f16/first/4x8", "peer": "liger", "floor_bytes": 4000000, "cold_us": 1.6,
         "warm_us": 1.5, "copy_cold_us": null, "copy_warm_us": null, "how": "calls", "left_out": null},
        {"case": "batch_norm/fwd+relu/f16/first/4x8", "peer": "torch", "floor_bytes": 4000000, "cold_us": 16.0,
         "warm_us": 9.0, "copy_cold_us": null, "copy_warm_us": null, "how": "graph", "left_out": null},
        {"case": "layer_norm/bwd/f16/rows/4x8", "peer": "torch", "floor_bytes": 6000000, "left_out": "out of time"},
        {"case": "batch_norm/fwd/f16/first/9x9", "peer": "torch", "floor_bytes": 1, "cold_us": 0.1,
         "warm_us": 0.1, "copy_cold_us": null, "copy_warm_us": null, "how": "graph", "left_out": null}
    ]
}"#;

fn report() -> Report {
    let read = |text| serde_json::from_str::<results::Run>(text).unwrap();
    join::join(&read(OWN), &[read(PEERS)])
}

#[test]
fn the_best_peer_is_the_one_with_the_least_cold_time() {
    let rows = report().rows;
    assert_eq!(rows[0].best_peer, Some(Best { name: "liger".into(), cold_us: 1.6 }));
    assert_eq!(rows[0].ratio, Some(1.25));
    assert!(rows[0].slower());
    assert_eq!((rows[1].ratio, rows[1].slower()), (Some(0.25), false));
    assert_eq!(rows[0].peers["torch"], [Some(2.5), Some(0.5)]);
}

#[test]
fn bandwidth_and_share_are_of_the_floor_and_of_the_copy() {
    let rows = report().rows;
    assert_eq!((rows[0].gb_per_s, rows[0].share_of_copy), (2000.0, Some(0.75)));
    assert_eq!((rows[2].gb_per_s, rows[2].share_of_copy), (2000.0, Some(0.9)));
}

#[test]
fn a_case_without_a_peer_stays_and_one_without_a_time_is_named() {
    let report = report();
    let cases: Vec<&str> = report.rows.iter().map(|row| row.case.as_str()).collect();
    assert_eq!(cases.len(), 3);
    assert_eq!((cases[2], &report.rows[2].best_peer), ("layer_norm/bwd/f16/rows/4x8", &None));
    assert_eq!((report.rows[2].ratio, report.rows[2].slower()), (None, false));
    let left_out = [("torch", "out of time", 1), ("warpnorm", "out of memory", 1)];
    assert_eq!(report.left_out, left_out.map(|(peer, why, cases)| (peer.into(), why.into(), cases)));
}

#[test]
fn the_summary_is_by_op_and_pass() {
    let summary = report().summary;
    let of = |i: usize| (summary[i].what.as_str(), summary[i].cases, summary[i].slower);
    assert_eq!([of(0), of(1)], [("batch_norm/fwd", 2, 1), ("layer_norm/bwd", 1, 0)]);
    assert_eq!((summary[0].median_share, summary[0].median_ratio), (Some(0.5), Some(0.75)));
    assert_eq!((summary[1].median_share, summary[1].median_ratio), (Some(0.9), None));
}

#[test]
fn the_page_names_machines_missing_peers_and_slower_cases() {
    let page = markdown::page(&report()).unwrap();
    for line in [
        "- gpu: H200 | H100",
        "- measured: liger 0.6",
        "- **missing: apex** (No module named 'apex')",
        "- torch, cases left out: 1 (out of time)",
        "3 cases, 2 of them with a peer; 1 slower than the best peer by more than 3 %.",
        "- slower: batch_norm/fwd/f16/first/4x8, 1.25 times liger",
        "| batch_norm/fwd/f16/first/4x8 | 2.0 | 2000 | 0.75 | liger 1.6 | 1.25 | 1.0 |",
        "| layer_norm/bwd/f16/rows/4x8 | 3.0 | 2000 | 0.90 | none | - | 2.0 |",
    ] {
        assert!(page.lines().any(|found| found == line), "no line {line:?} in\n{page}");
    }
}

#[test]
fn the_pictures_have_a_dot_for_every_case() {
    let report = report();
    let path = env::temp_dir().join(format!("warpnorm-perf-{}.svg", std::process::id()));
    let dots = || fs::read_to_string(&path).unwrap().matches("<circle").count();
    plots::share_of_copy(&path, &report).unwrap();
    assert_eq!(dots(), 3 + 5, "three cases and a legend of five ops");
    plots::ratio_to_best_peer(&path, &report).unwrap();
    assert_eq!(dots(), 2, "two cases have a peer");
    fs::remove_file(path).unwrap();
}
