//! The bits of the CPU's results do not depend on how many threads there are, or on what else they do.

use std::{
    sync::{
        Arc, RwLock,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use rayon::ThreadPoolBuilder;
use warpnorm::{
    Activation, Cpu, DType, Element, Layout,
    half::{bf16, f16},
};

use crate::support::{
    data::{
        batch_norm_eval, batch_norm_train, group_norm, instance_norm, layer_norm, rms_norm, with_residual,
    },
    describe, expect_same_bits, outputs,
    problem::Problem,
    run::Options,
};

/// With parts in every direction that work is divided in; `times` as large as several threads need for `f32`.
fn problems(times: usize) -> Vec<Problem> {
    use Layout::{ChannelsFirst as First, ChannelsLast as Last};
    let mut all = vec![
        layer_norm(&[4200 * times, 67], 1, 1),
        layer_norm(&[7 * times, 40_001], 1, 2),
        rms_norm(&[900 * times, 300], 1, 3),
        batch_norm_train(&[300 * times, 1000], First, 4),
        batch_norm_train(&[7000 * times, 41], First, 5),
        batch_norm_train(&[3, 2, 50_000 * times], First, 6),
        batch_norm_train(&[40 * times, 33, 201], First, 7),
        batch_norm_train(&[40, 201 * times, 33], Last, 8),
        batch_norm_train(&[9 * times, 10_000, 3], Last, 9),
        batch_norm_eval(&[40, 33, 201 * times], First, 10),
        batch_norm_eval(&[40 * times, 201, 33], Last, 11),
        group_norm(&[5, 24, 2500 * times], First, 3, 12),
        group_norm(&[5 * times, 2500, 24], Last, 3, 13),
        instance_norm(&[30, 5, 2000 * times], First, 14),
        instance_norm(&[30, 2000 * times, 5], Last, 15),
        batch_norm_train(&[2, 24_800 * times, 24], Last, 18),
    ];
    all.push(with_residual(all[6].clone(), 16));
    let grouped = group_norm(&[5 * times, 2500, 24], Last, 3, 17);
    all.push(Problem { activation: Activation::Silu, ..with_residual(grouped, 17) });
    all
}

/// So large that one thread goes another way through its caches than several do.
fn large_problems() -> Vec<Problem> {
    vec![
        layer_norm(&[950, 4100], 1, 1),
        rms_norm(&[4000, 1000], 1, 2),
        batch_norm_train(&[15_000, 256], Layout::ChannelsFirst, 3),
        batch_norm_train(&[2, 30_000, 64], Layout::ChannelsLast, 4),
    ]
}

fn any_number_of_threads_gives_the_same_bits<T: Element>(problems: Vec<Problem>) {
    for problem in problems {
        let bytes = 2 * problem.dy.len() * size_of::<T>();
        assert!(bytes >= 2 << 20, "{}: so little that one thread may do it all", describe(&problem));
        let problem = problem.rounded(T::DTYPE, DType::F32);
        let with = |threads: usize| {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let options = Options { in_place: problem.residual.is_some(), ..Options::default() };
            pool.install(|| outputs::<T, _>(&Cpu, &problem, &options))
        };
        let alone = with(1);
        for threads in [2, 3, 7] {
            expect_same_bits(&format!("{}, {threads} threads", describe(&problem)), &with(threads), &alone);
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits_f32() {
    any_number_of_threads_gives_the_same_bits::<f32>(problems(4 / size_of::<f32>()));
}

#[test]
fn any_number_of_threads_gives_the_same_bits_f16() {
    any_number_of_threads_gives_the_same_bits::<f16>(problems(4 / size_of::<f16>()));
}

#[test]
fn any_number_of_threads_gives_the_same_bits_bf16() {
    any_number_of_threads_gives_the_same_bits::<bf16>(problems(4 / size_of::<bf16>()));
}

#[test]
fn any_number_of_threads_gives_the_same_bits_of_large_tensors() {
    any_number_of_threads_gives_the_same_bits::<f32>(large_problems());
}

/// Called from outside of the global pool, which other tests can do without. (Where it has one thread, there is nothing to
/// wait for.)
#[test]
fn a_busy_pool_is_not_waited_for() {
    let gate = Arc::new(RwLock::new(()));
    let closed = gate.write().unwrap();
    let begun = Arc::new(AtomicUsize::new(0));
    let threads = rayon::current_num_threads();
    for _ in 0..threads {
        let (gate, begun) = (gate.clone(), begun.clone());
        rayon::spawn(move || {
            begun.fetch_add(1, Ordering::Relaxed);
            drop(gate.read());
        });
    }
    while begun.load(Ordering::Relaxed) < threads {
        thread::yield_now();
    }
    let problem = layer_norm(&[4200, 67], 1, 1);
    let results = |problem: &Problem| outputs::<f32, _>(&Cpu, problem, &Options::default());
    let (done, is_done) = mpsc::channel();
    let called = problem.clone();
    thread::spawn(move || done.send(results(&called)));
    let outcome = is_done.recv_timeout(Duration::from_secs(60));
    drop(closed);
    let busy = outcome.expect("results while the pool is busy");
    expect_same_bits("beside a busy pool", &busy, &results(&problem));
}
