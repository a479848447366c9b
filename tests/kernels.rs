//! Every kernel that is compiled is reached: each is launched here, by problems whose outputs are judged.

use std::{collections::BTreeSet, fs, path::Path};

use warpnorm::{
    Activation, Element, Emulated, Layout, Statistics,
    cuda::plan::{DeviceLimits, with_candidate},
    half::{bf16, f16},
};

use crate::support::{
    check,
    data::{
        accumulating, batch_norm_eval, batch_norm_train, group_norm, instance_norm, layer_norm, rms_norm,
        running, with_residual,
    },
    problem::Problem,
    run::Options,
    small,
};

/// For each tile and number of launches of the channel norms, and each strategy of the row norms.
fn problems() -> Vec<Problem> {
    use Layout::{ChannelsFirst as First, ChannelsLast as Last};
    let mut all = Vec::new();
    // A warp per channel, a block per channel, blocks that share one, columns, columns that are shared.
    let shapes: [(&[usize], Layout); 5] = [
        (&[2, 3, 8], First),
        (&[2, 8, 600], First),
        (&[2, 1, 8192], First),
        (&[9, 2, 16], Last),
        (&[3000, 8], First),
    ];
    for (seed, (dims, layout)) in (0u64..).zip(shapes) {
        let train = batch_norm_train(dims, layout, seed);
        let eval = batch_norm_eval(dims, layout, seed);
        let whole =
            Problem { statistics: Statistics::WholeBatch, running: Some(running(1, seed)), ..train.clone() };
        for plain in [train, eval, whole] {
            let fused = with_residual(Problem { activation: Activation::Silu, ..plain.clone() }, seed);
            let without_params = Problem { weight: None, bias: None, ..plain.clone() };
            let fused_without_params = Problem { weight: None, bias: None, ..fused.clone() };
            all.extend([plain, accumulating(fused, seed), without_params, fused_without_params]);
        }
    }
    all.push(group_norm(&[2, 8, 8], First, 2, 1));
    all.push(instance_norm(&[3, 4, 8], First, 2));
    all
}

/// For each width and number of columns of a thread.
fn row_problems() -> Vec<Problem> {
    let sizes = (0u64..).zip([64, 35, 2048, 1101]);
    sizes.flat_map(|(seed, cols)| [layer_norm(&[5, cols], 1, seed), rms_norm(&[5, cols], 1, seed)]).collect()
}

fn launched<T: Element>(on: &Emulated, names: &mut BTreeSet<String>) {
    // Under the checker a part, which is slow; what is reached at all, the other build shows.
    let starts = if small() { 1..2 } else { 0..2 };
    for problem in problems() {
        for max_start in starts.clone() {
            let options = Options { max_start, ..Options::default() };
            // The plan that is chosen, and the last of the candidates, which has no teams.
            let chosen = || check::<T, _>(on, &problem, &options);
            for (_, launches) in [on.record(chosen), on.record(|| with_candidate(usize::MAX, chosen))] {
                names.extend(launches.iter().map(|launch| plain(&launch.kernel)));
            }
        }
    }
    // Where blocks do not end together, averages of running statistics are taken by a launch of their own.
    if !names.contains("channel_norm_fwd_running") {
        let averaged = instance_norm(&[300, 1, 1024], Layout::ChannelsFirst, 2);
        let judged = || with_candidate(usize::MAX, || check::<T, _>(on, &averaged, &Options::default()));
        let (_, launches) = on.record(judged);
        names.extend(launches.iter().map(|launch| plain(&launch.kernel)));
    }
    // A device of few multiprocessors whose shared memory leaves room for all there is.
    let on = &Emulated::describing(DeviceLimits { sms: 4, ..DeviceLimits::H200 });
    for problem in row_problems() {
        for max_start in starts.clone() {
            let options = Options { max_start, ..Options::default() };
            for index in (0..MOST_CANDIDATES).step_by(if small() { 13 } else { 1 }) {
                let judged = || with_candidate(index, || check::<T, _>(on, &problem, &options));
                let (_, launches) = on.record(judged);
                names.extend(launches.iter().map(|launch| plain(&launch.kernel)));
            }
        }
    }
}

/// At least as many plans as these row norms have; where there are fewer, the last one runs again.
const MOST_CANDIDATES: usize = 40;

#[test]
fn every_compiled_kernel_is_launched() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/kernels.txt");
    let compiled = fs::read_to_string(file).unwrap();
    let compiled: BTreeSet<String> = compiled.lines().map(plain).collect();
    let mut names = BTreeSet::new();
    let on = Emulated::new();
    launched::<f32>(&on, &mut names);
    launched::<f16>(&on, &mut names);
    launched::<bf16>(&on, &mut names);
    let missing: Vec<_> = compiled.difference(&names).collect();
    let unknown: Vec<_> = names.difference(&compiled).collect();
    assert!(unknown.is_empty(), "not compiled: {unknown:#?}");
    assert!(small() || missing.is_empty(), "not launched: {missing:#?}");
}

/// A kernel's name without what nvcc and the host's compiler write differently.
fn plain(name: &str) -> String {
    name.replace("wn_cuda::", "")
        .replace("__half", "half")
        .replace("__nv_bfloat16", "bfloat16")
        .replace(" >", ">")
}
