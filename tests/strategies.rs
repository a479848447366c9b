//! Every plan that a channel norm could run is right, and moves no more bytes than its strategy may.

use std::collections::BTreeSet;

use warpnorm::{
    Activation, Affine, BatchNorm, Element, Emulated, GroupNorm, InstanceNorm, Layout, Statistics, Tensor,
    cuda::plan::{
        ChannelStrategy, ChannelTeam, Choice, DeviceLimits, Join, Plan, last_choice, with_candidate,
    },
    half::f16,
};

use crate::support::{
    check,
    data::{accumulating, batch_norm_train, group_norm, instance_norm, only_y, running, with_residual},
    expect_same_bits, outputs,
    problem::Problem,
    run::Options,
    small,
};

/// More SMs than `SMALL` has, with less shared memory and no clusters: little is held, and many blocks wait for others.
const NARROW: DeviceLimits = DeviceLimits {
    sms: 8,
    smem_per_sm: 28 << 10,
    smem_per_block: 13 << 10,
    cluster: 1,
    ..DeviceLimits::SMALL
};

fn problems() -> Vec<Problem> {
    use Layout::{ChannelsFirst as First, ChannelsLast as Last};
    let shapes: [(&[usize], Layout); 9] = [
        (&[3, 10, 7], First),
        (&[2, 12, 64], First),
        (&[2, 6, 501], First),
        (&[2, 4, 4096], First),
        (&[300, 16], First),
        (&[2, 40, 24], Last),
        (&[3, 77, 10], Last),
        (&[2, 600, 6], Last),
        (&[1, 1024, 64], Last),
    ];
    let mut all = Vec::new();
    for (seed, (dims, layout)) in (0u64..).zip(shapes) {
        let batch = batch_norm_train(dims, layout, seed);
        let whole =
            Problem { statistics: Statistics::WholeBatch, running: Some(running(1, seed)), ..batch.clone() };
        let relu = Problem { activation: Activation::Relu, ..batch.clone() };
        all.extend([accumulating(with_residual(relu, seed), seed), batch, whole]);
        all.push(group_norm(dims, layout, 2, seed));
        if dims.len() > 2 {
            all.push(instance_norm(dims, layout, seed));
        }
    }
    all
}

/// Some of the candidates, other ones for each problem: neighbors differ little.
fn sample(count: usize, problem: usize) -> impl Iterator<Item = usize> {
    let most = if small() { 1 } else { 6 };
    let step = count.div_ceil(most).max(1);
    (0..most)
        .map(move |i| (i * step + 7 * problem) % count)
        .chain(problem.is_multiple_of(4).then_some(count - 1))
}

fn channel_plan(choice: Choice) -> (ChannelStrategy, Option<ChannelTeam>) {
    match choice.plan {
        Plan::Channel(plan) => (plan.strategy, plan.team),
        other => panic!("{other:?} for a channel norm"),
    }
}

fn every_plan_is_right<T: Element>(devices: &[DeviceLimits]) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for &device in devices {
        let on = Emulated::describing(device);
        for (i, problem) in problems().into_iter().enumerate() {
            let options = Options { max_start: i % 2, ..Options::default() };
            check::<T, _>(&on, &problem, &options);
            let count = last_choice().expect("a call was planned").candidates;
            for index in sample(count, i) {
                with_candidate(index, || check::<T, _>(&on, &problem, &options));
                let (strategy, team) = channel_plan(last_choice().unwrap());
                seen.insert(format!("{strategy:?} {:?}", team.map(|team| team.join)));
            }
        }
    }
    seen
}

#[test]
fn every_plan_is_right_in_f32() {
    let seen = every_plan_is_right::<f32>(&[DeviceLimits::SMALL, NARROW]);
    let expected = [
        "Resident Some(Alone)",
        "Resident Some(Cluster)",
        "Resident Some(Grid)",
        "Split None",
        "Wave Some(Alone)",
        "Wave Some(Grid)",
    ];
    for kind in expected {
        assert!(seen.contains(kind), "no plan was {kind}: {seen:?}");
    }
}

#[test]
fn every_plan_is_right_in_f16() {
    every_plan_is_right::<f16>(if small() { &[NARROW] } else { &[DeviceLimits::SMALL, NARROW] });
}

#[test]
fn how_samples_are_mapped_to_blocks_does_not_show_in_their_bits() {
    let on = Emulated::new();
    for (seed, dims, layout) in [
        (1, [3, 8, 600], Layout::ChannelsFirst),
        (2, [2, 6, 7], Layout::ChannelsFirst),
        (3, [3, 200, 12], Layout::ChannelsLast),
    ] {
        for problem in [group_norm(&dims, layout, 2, seed), instance_norm(&dims, layout, seed)] {
            let options = Options::default();
            let chosen = outputs::<f16, _>(&on, &problem, &options);
            for index in 0..last_choice().expect("a call was planned").candidates {
                let got = with_candidate(index, || outputs::<f16, _>(&on, &problem, &options));
                expect_same_bits(&format!("plan {index} of {:?} {dims:?}", problem.op), &got, &chosen);
            }
        }
    }
}

/// The first candidate whose team waits by counters.
fn first_with_counters(on: &Emulated, call: impl Fn() -> warpnorm::Result<()>) -> usize {
    call().expect("the call is legal");
    let candidates = last_choice().expect("a call was planned").candidates;
    let by_counters = |&index: &usize| {
        with_candidate(index, &call).expect("every candidate is legal");
        channel_plan(last_choice().unwrap()).1.is_some_and(|team| team.join == Join::Grid)
    };
    (0..candidates).find(by_counters).unwrap_or_else(|| panic!("no team waits by counters: {on:?}"))
}

#[test]
fn counters_are_ready_for_the_next_call() {
    let on = Emulated::new();
    let (dims, bn) = ([2, 4, 64, 64], BatchNorm::new(4));
    let data: Vec<f32> = (0..2 * 4 * 64 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
    let x = Tensor::from_slice(&on, &data, &dims).unwrap();
    let index = first_with_counters(&on, || bn.forward_train(&on, &x, Affine::None, None).map(drop));
    let mut workspace = bn.workspace(&on, &x).unwrap();
    let mut results = Vec::new();
    for _ in 0..3 {
        let mut y = Tensor::<f32, _>::zeros(&on, &dims).unwrap();
        let args = only_y(&x, &mut y, &mut workspace);
        with_candidate(index, || bn.forward_train_into(&on, args)).unwrap();
        results.push(y.to_vec(&on).unwrap());
    }
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
}

type Call<'a> = Box<dyn Fn() -> warpnorm::Result<()> + 'a>;

/// What a forward and a backward call of a candidate moved, in bytes of the tensor: raw, and to and from memory.
struct Moved {
    strategy: ChannelStrategy,
    launches: usize,
    raw: f64,
    dram: f64,
}

fn moved(on: &Emulated, index: usize, size: usize, call: &dyn Fn() -> warpnorm::Result<()>) -> Moved {
    let (result, launches) = on.record(|| with_candidate(index, call));
    result.expect("every candidate is legal");
    let sum = |bytes: fn(&warpnorm::EmulatedLaunch) -> u64| {
        launches.iter().map(bytes).sum::<u64>() as f64 / size as f64
    };
    Moved {
        strategy: channel_plan(last_choice().unwrap()).0,
        launches: launches.len(),
        raw: sum(|l| l.bytes_read + l.bytes_written),
        dram: sum(|l| l.dram_read + l.dram_written),
    }
}

/// Resident plans move 2 S forward and 3 S backward, and beside that only the parameters and statistics that each thread
/// reads for its channels; waves read a part again; and both are one launch.
#[test]
fn a_strategy_moves_what_it_may() {
    if !Emulated::checks() {
        return eprintln!("skipped: bytes are counted with the feature `emulator-check`");
    }
    let mut seen = BTreeSet::new();
    for device in [DeviceLimits::SMALL, NARROW] {
        let on = Emulated::describing(device);
        for (dims, last) in [([2, 16, 32, 32], false), ([4, 32, 32, 32], true), ([4, 8, 24, 40], false)] {
            let channels = if last { dims[3] } else { dims[1] };
            let len: usize = dims.iter().product();
            let data: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
            let x = Tensor::from_slice(&on, &data, &dims).unwrap();
            let x = if last { x.channels_last() } else { x };
            let weight = Tensor::from_slice(&on, &vec![1.5_f32; channels], &[channels]).unwrap();
            let affine = || Affine::same(&weight, &weight);
            let bn = BatchNorm::new(channels);
            let gn = GroupNorm::new(channels / 4, channels);
            let norm = InstanceNorm::new(channels);
            let saved = bn.forward_train(&on, &x, affine(), None).unwrap();
            let of_groups = gn.forward(&on, &x, affine()).unwrap();
            let of_samples = norm.forward(&on, &x, affine(), None).unwrap();
            let calls: [(&str, f64, Call<'_>); 6] = [
                ("BatchNorm", 2.0, Box::new(|| bn.forward_train(&on, &x, affine(), None).map(drop))),
                ("BatchNorm", 3.0, Box::new(|| bn.backward_train(&on, &x, &x, affine(), &saved).map(drop))),
                ("GroupNorm", 2.0, Box::new(|| gn.forward(&on, &x, affine()).map(drop))),
                ("GroupNorm", 3.0, Box::new(|| gn.backward(&on, &x, &x, affine(), &of_groups).map(drop))),
                ("InstanceNorm", 2.0, Box::new(|| norm.forward(&on, &x, affine(), None).map(drop))),
                (
                    "InstanceNorm",
                    3.0,
                    Box::new(|| norm.backward(&on, &x, &x, affine(), &of_samples).map(drop)),
                ),
            ];
            for (number, (op, floor, call)) in calls.iter().enumerate() {
                call().unwrap();
                for index in sample(last_choice().unwrap().candidates, number) {
                    let moved = moved(&on, index, len * 4, call);
                    let what = format!("plan {index} of {op}, {floor} S, {dims:?} on {device:?}");
                    let (raw, dram) = (moved.raw / floor, moved.dram / floor);
                    seen.insert(format!("{:?}", moved.strategy));
                    match moved.strategy {
                        ChannelStrategy::Split => continue,
                        // Statistics of samples have few values each, for what each thread reads beside them.
                        strategy => {
                            let most = match (strategy, *op) {
                                (ChannelStrategy::Resident, "BatchNorm") => 1.3,
                                (ChannelStrategy::Resident, _) => 1.75,
                                (_, "BatchNorm") => 2.0,
                                _ => 3.0,
                            };
                            assert!(raw <= most, "{what}: {raw} of the floor");
                        }
                    }
                    assert_eq!(moved.launches, 1, "none of the tensors is larger than 1 MB: {what}");
                    // Backward, `x` is `dy` too, so that a cache may have it twice for one read.
                    assert!(dram >= 0.6, "{what}: {dram} of the floor cannot be");
                }
            }
        }
    }
    assert_eq!(seen.len(), 3, "every strategy was measured: {seen:?}");
}
