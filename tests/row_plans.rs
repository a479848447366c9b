//! Every legal plan of a row norm gives the right numbers, moves no more bytes than it must, and gives a row the same
//! bits whatever came with it.

use warpnorm::{
    Affine, DType, Element, Emulated, LayerNorm, Tensor,
    cuda::plan::{DeviceLimits, Direction, RowCall, RowPlan, RowShape, RowStrategy, with_candidate},
    half::{bf16, f16},
};

use crate::support::{
    check,
    data::{ROUNDS_ONE_WAY, accumulating, layer_norm, rms_norm, with_residual},
    expect_the_same_alone,
    problem::Problem,
    run::{Options, Params},
    small,
};

/// Two devices of few multiprocessors: of little shared memory, and of much.
fn devices() -> [Emulated; 2] {
    [DeviceLimits::SMALL, DeviceLimits { sms: 4, ..DeviceLimits::H200 }].map(Emulated::describing)
}

fn candidates<T: Element>(on: &Emulated, problem: &Problem, direction: Direction) -> Vec<RowPlan> {
    let shape = RowShape::new(problem.dy.len() / problem.cols(), problem.cols()).unwrap();
    let extra = problem.residual.is_some();
    RowCall { direction, shape, dtype: T::DTYPE, align: 16, extra }.candidates(&on.limits())
}

/// Calls `body` within each candidate of the problem's forward and backward pass; where one has fewer, its last runs
/// again.
fn with_each_candidate<T: Element>(on: &Emulated, problem: &Problem, mut body: impl FnMut()) {
    let count = |direction| candidates::<T>(on, problem, direction).len();
    for index in 0..count(Direction::Forward).max(count(Direction::Backward)) {
        with_candidate(index, &mut body);
    }
}

fn of_every_strategy() -> Vec<[usize; 2]> {
    match small() {
        true => vec![[5, 3], [19, 128], [3, 1001]],
        false => vec![[5, 3], [35, 128], [9, 1001], [5, 1536], [3, 2051], [2, 8200]],
    }
}

fn every_plan_is_within_the_rule<T: Element>() {
    for on in devices() {
        for (seed, dims) in (0u64..).zip(of_every_strategy()) {
            for plain in [layer_norm(&dims, 1, seed), rms_norm(&dims, 1, seed)] {
                let full = accumulating(with_residual(plain.clone(), seed), seed);
                let strided =
                    Options { gap: 16, params: Params::F32, grads: Params::F32, ..Options::default() };
                let in_place = Options { in_place: true, ..Options::default() };
                with_each_candidate::<T>(&on, &plain, || drop(check::<T, _>(&on, &plain, &in_place)));
                with_each_candidate::<T>(&on, &full, || drop(check::<T, _>(&on, &full, &strided)));
            }
        }
    }
}

#[test]
fn every_plan_is_within_the_rule_f32() {
    every_plan_is_within_the_rule::<f32>();
}

#[test]
fn every_plan_is_within_the_rule_f16() {
    every_plan_is_within_the_rule::<f16>();
}

#[test]
fn every_plan_is_within_the_rule_bf16() {
    every_plan_is_within_the_rule::<bf16>();
}

/// Sums of equal values in every plan's order, over as many rows as a thread may take: the device has room for one block,
/// and so for one part.
#[test]
fn every_plan_sums_a_constant_gradient_within_the_rule() {
    let one_block = DeviceLimits { sms: 1, threads_per_sm: 256, ..DeviceLimits::H200 };
    let on = Emulated::describing(one_block);
    let shapes: &[[usize; 2]] = if small() { &[[1024, 72]] } else { &[[1024, 72], [128, 1032], [2600, 8]] };
    let mut longest = 0;
    for dims in shapes {
        let problem = layer_norm(dims, 1, 3);
        let dy = vec![ROUNDS_ONE_WAY; problem.dy.len()];
        let problem = Problem { dy, ..problem };
        for plan in candidates::<f32>(&on, &problem, Direction::Backward).iter().filter(|plan| plan.deep) {
            longest = longest.max(plan.span / (plan.threads / plan.lanes));
        }
        with_each_candidate::<f32>(&on, &problem, || {
            drop(check::<f32, _>(&on, &problem, &Options::default()));
        });
    }
    assert_eq!(longest, 128, "rows of a thread");
}

#[test]
fn in_every_plan_a_row_alone_gives_the_bits_it_gives_among_others() {
    for on in devices() {
        for [rows, cols] in [[33, 24], [5, 520], [3, 1544], [2, 8200]] {
            let problem = layer_norm(&[rows, cols], 1, 8).rounded(f16::DTYPE, DType::F32);
            with_each_candidate::<f16>(&on, &problem, || {
                expect_the_same_alone::<f16, _>(&on, &problem, &[0, rows - 1]);
            });
        }
    }
}

/// Forward: x and y, and a mean and an rstd a row. Backward: x, dy and dx, what was saved, which each thread of a row
/// reads, and partial sums of the gradients of weight and bias. Only plans that stream read more.
#[test]
fn a_plan_that_holds_its_rows_moves_the_floor_and_no_more() {
    if !Emulated::checks() {
        return eprintln!("skipped: bytes are counted with the feature `emulator-check`");
    }
    for on in devices() {
        for [rows, cols] in [[24, 640], [10, 128], [5, 1536], [3, 4100]] {
            let x = Tensor::from_slice(&on, &vec![1.0_f32; rows * cols], &[rows, cols]).unwrap();
            let ones = Tensor::from_slice(&on, &vec![1.0_f32; cols], &[cols]).unwrap();
            let norm = LayerNorm::new(cols);
            let saved = norm.forward(&on, &x, Affine::None).unwrap();
            let tensor = 4 * rows * cols;
            let shape = RowShape::new(rows, cols).unwrap();
            let held = |direction| {
                let call = RowCall { direction, shape, dtype: DType::F32, align: 16, extra: false };
                let all = call.candidates(&on.limits()).into_iter().enumerate();
                all.filter(|(_, plan)| plan.strategy != RowStrategy::Streaming)
            };
            let bytes = |index, body: &dyn Fn()| {
                let ((), launches) = on.record(|| with_candidate(index, body));
                (launches[0].bytes_read as usize, launches[0].bytes_written as usize)
            };
            for (index, plan) in held(Direction::Forward) {
                let moved = bytes(index, &|| drop(norm.forward(&on, &x, Affine::None).unwrap()));
                assert_eq!(moved, (tensor, tensor + 8 * rows), "{plan:?}");
            }
            for (index, plan) in held(Direction::Backward) {
                let back = |affine| drop(norm.backward(&on, &x, &x, affine, &saved).unwrap());
                let moved = bytes(index, &|| back(Affine::None));
                let stats = 8 * plan.lanes * plan.cluster * rows;
                assert_eq!(moved, (2 * tensor + stats, tensor), "{plan:?}");
                let (_, written) = bytes(index, &|| back(Affine::same(&ones, &ones)));
                // Where the same launch adds the parts up: the two results, and an atomic operation of each block that
                // comes, of each that leaves, and of the last one.
                let blocks = plan.parts * plan.cluster;
                let counts = blocks + blocks.min(cols.div_ceil(8)) + 1;
                let folded = if plan.folds { 8 * cols + 4 * counts } else { 0 };
                assert_eq!(written, tensor + 8 * plan.parts * cols + folded, "{plan:?}");
            }
        }
    }
}
