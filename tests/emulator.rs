//! The emulator catches what it claims to catch, and nothing else: every planted fault is reported, and its clean twin
//! runs in silence with the right numbers, under several orders of the threads.

use std::ffi::{CStr, c_char};

use warpnorm::{BatchNorm, Emulated, LayerNorm, Tensor, cuda::plan::DeviceLimits};

// emulator/faults/faults.h and emulator/warpnorm_emulator.h, as far as they are used here.
unsafe extern "C" {
    fn wn_emulated_fault_count() -> i32;
    fn wn_emulated_fault_name(fault: i32) -> *const c_char;
    fn wn_emulated_fault_tool(fault: i32) -> *const c_char;
    fn wn_emulated_fault_needs_checks(fault: i32) -> i32;
    fn wn_emulated_fault_run(fault: i32, planted: i32) -> i32;
    fn wn_emulated_last_report() -> *const c_char;
    fn wn_emulated_traffic_probe(extra_read: i32, read: *mut u64, written: *mut u64) -> i32;
    fn wn_emulated_l2_probe(passes: *mut Pass, count: i32, floats: i32, l2_bytes: u64) -> i32;
}

const READ: i32 = 0;
const READ_BACKWARDS: i32 = 1;
const READ_STREAM: i32 = 2;
const READ_STREAM_UNEVENLY: i32 = 3;
const WRITE: i32 = 4;
const WRITE_STREAM: i32 = 5;
const ATOMIC: i32 = 6;
const THERE_AND_BACK_IN_WARP: i32 = 7;
const THERE_AND_BACK_IN_BLOCK: i32 = 8;
const THERE_AND_BACK_IN_GRID: i32 = 9;

#[repr(C)]
#[derive(Debug)]
struct Pass {
    op: i32,
    tensor: i32,
    dram_read: u64,
    dram_written: u64,
}

const KIB: u64 = 1 << 10;

/// KiB read and written by passes over tensors of `size` KiB with an L2 cache of 64 KiB; `None` without checks.
fn l2_traffic<const N: usize>(size: u64, passes: [(i32, i32); N]) -> Option<[(u64, u64); N]> {
    if !Emulated::checks() {
        eprintln!("skipped: the L2 cache is modelled with the feature `emulator-check`");
        return None;
    }
    let mut passes = passes.map(|(op, tensor)| Pass { op, tensor, dram_read: 0, dram_written: 0 });
    let floats = (size * KIB / 4) as i32;
    // SAFETY: the passes are ours to fill, and name tensors below 3.
    let code = unsafe { wn_emulated_l2_probe(passes.as_mut_ptr(), N as i32, floats, 64 * KIB) };
    // SAFETY: takes nothing.
    assert_eq!(code, 0, "{}", text(unsafe { wn_emulated_last_report() }));
    Some(passes.map(|pass| {
        assert!((pass.dram_read | pass.dram_written) % KIB == 0, "{pass:?}");
        (pass.dram_read / KIB, pass.dram_written / KIB)
    }))
}

/// A string of the emulator's.
fn text(s: *const c_char) -> String {
    // SAFETY: the emulator returns C strings that live until this thread's next call.
    unsafe { CStr::from_ptr(s) }.to_string_lossy().into_owned()
}

/// Runs one kernel of the corpus: its code and its report.
fn run(fault: i32, planted: bool) -> (i32, String) {
    // SAFETY: `fault` is below the count, and the kernel's memory is its own.
    let code = unsafe { wn_emulated_fault_run(fault, i32::from(planted)) };
    // SAFETY: takes nothing.
    (code, text(unsafe { wn_emulated_last_report() }))
}

fn faults() -> impl Iterator<Item = (i32, String)> {
    // SAFETY: takes nothing.
    let count = unsafe { wn_emulated_fault_count() };
    assert!(count >= 20, "{count} faults");
    // SAFETY: every number is below the count.
    (0..count).map(|fault| (fault, text(unsafe { wn_emulated_fault_name(fault) })))
}

#[test]
fn every_planted_fault_is_reported() {
    for (fault, name) in faults() {
        // SAFETY: `fault` is below the count.
        let needs_checks = unsafe { wn_emulated_fault_needs_checks(fault) } != 0;
        if needs_checks && !Emulated::checks() {
            continue;
        }
        // SAFETY: as above.
        let tools = text(unsafe { wn_emulated_fault_tool(fault) });
        let (code, report) = run(fault, true);
        assert!(code > 0, "{name}: not reported");
        assert!(
            tools.split('|').any(|tool| report.contains(&format!("[{tool}]"))),
            "{name}: {tools}? {report}"
        );
    }
}

#[test]
fn every_clean_twin_is_silent_and_right() {
    for (fault, name) in faults() {
        let (code, report) = run(fault, false);
        assert_eq!(code, 0, "{name}: {report}");
    }
}

#[test]
fn one_more_read_raises_the_count_of_bytes() {
    if !Emulated::checks() {
        return eprintln!("skipped: bytes are counted with the feature `emulator-check`");
    }
    let probe = |extra_read| {
        let (mut read, mut written) = (0, 0);
        // SAFETY: both counts are ours to fill.
        assert_eq!(unsafe { wn_emulated_traffic_probe(extra_read, &mut read, &mut written) }, 0);
        (read, written)
    };
    let (once, twice) = (probe(0), probe(1));
    assert_eq!(twice.0, 2 * once.0, "the input is read twice instead of once");
    assert_eq!(twice.1, once.1);
}

#[test]
fn a_tensor_that_fits_the_l2_is_fetched_once() {
    let Some(seen) = l2_traffic(48, [(READ, 0), (READ, 0)]) else { return };
    assert_eq!(seen, [(48, 0), (0, 0)]);
    let Some(seen) = l2_traffic(96, [(READ, 0), (READ, 0)]) else { return };
    assert_eq!(seen, [(96, 0), (96, 0)], "the least recently used is what is read next");
}

#[test]
fn reading_backwards_finds_what_the_l2_still_has() {
    let Some(seen) = l2_traffic(96, [(READ, 0), (READ_BACKWARDS, 0)]) else { return };
    assert_eq!(seen, [(96, 0), (96 - 64, 0)]);
}

#[test]
fn the_l2_sees_threads_side_by_side() {
    // In the order in which the emulator runs threads, the first ones find all of theirs evicted.
    for op in [THERE_AND_BACK_IN_WARP, THERE_AND_BACK_IN_BLOCK, THERE_AND_BACK_IN_GRID] {
        let Some(seen) = l2_traffic(96, [(op, 0)]) else { return };
        assert_eq!(seen, [(96 + 96 - 64, 0)], "{op}");
    }
}

#[test]
fn what_is_written_leaves_the_l2_once() {
    let Some(seen) = l2_traffic(48, [(WRITE, 0), (WRITE, 0), (READ, 0)]) else { return };
    assert_eq!(seen, [(0, 0), (0, 48), (0, 0)], "the last writer counts");
    let Some(seen) = l2_traffic(96, [(WRITE, 0), (READ, 0)]) else { return };
    assert_eq!(seen, [(0, 96), (96, 0)]);
}

#[test]
fn an_atomic_operation_fetches_and_writes_back() {
    let Some(seen) = l2_traffic(48, [(ATOMIC, 0)]) else { return };
    assert_eq!(seen, [(48, 48)]);
}

#[test]
fn streamed_tensors_do_not_displace_a_kept_one() {
    for (plain, streamed, moved) in [(WRITE, WRITE_STREAM, (0, 48)), (READ, READ_STREAM, (48, 0))] {
        let Some(seen) = l2_traffic(48, [(READ, 0), (plain, 1), (READ, 0)]) else { return };
        assert_eq!(seen, [(48, 0), moved, (48, 0)]);
        let Some(seen) = l2_traffic(48, [(READ, 0), (streamed, 1), (READ, 0)]) else { return };
        assert_eq!(seen, [(48, 0), moved, (0, 0)]);
    }
}

#[test]
fn what_threads_stream_in_pieces_is_moved_once() {
    let Some(seen) = l2_traffic(64, [(READ, 0), (READ_STREAM_UNEVENLY, 1)]) else { return };
    assert_eq!(seen, [(64, 0), (64, 0)]);
}

#[test]
fn a_streamed_read_gives_up_what_the_l2_kept() {
    let passes = |last_read| [(READ, 0), (READ, 1), (last_read, 1), (WRITE, 2), (READ, 0)];
    let Some(seen) = l2_traffic(28, passes(READ)) else { return };
    assert_eq!(seen, [(28, 0), (28, 0), (0, 0), (0, 28), (28, 0)]);
    let Some(seen) = l2_traffic(28, passes(READ_STREAM)) else { return };
    assert_eq!(seen, [(28, 0), (28, 0), (0, 0), (0, 28), (0, 0)]);
}

#[test]
fn the_described_l2_is_the_one_that_is_modelled() {
    if !Emulated::checks() {
        return eprintln!("skipped: the L2 cache is modelled with the feature `emulator-check`");
    }
    let (rows, cols) = (24, 640);
    let bytes = (rows * cols * 4) as u64;
    let fetched = |l2: u64| {
        let on = Emulated::describing(DeviceLimits { l2: l2 as usize, ..DeviceLimits::SMALL });
        let x = Tensor::from_slice(&on, &vec![1.0_f32; rows * cols], &[rows, cols]).unwrap();
        let norm = LayerNorm::new(cols);
        let (out, launches) = on.record(|| {
            norm.forward(&on, &x, warpnorm::Affine::None)?;
            norm.forward(&on, &x, warpnorm::Affine::None)
        });
        out.unwrap();
        launches.iter().map(|launch| launch.dram_read).sum::<u64>()
    };
    assert_eq!(fetched(8 * bytes), bytes);
    assert_eq!(fetched(bytes), 2 * bytes, "y displaces x");
    assert_eq!(fetched(0), 0, "no model");
}

#[test]
fn a_training_pass_is_one_launch() {
    let on = Emulated::new();
    let launches = |dims: &[usize]| {
        let x = Tensor::from_slice(&on, &vec![1.0_f32; dims.iter().product()], dims).unwrap();
        let (out, launches) =
            on.record(|| BatchNorm::new(dims[1]).forward_train(&on, &x, warpnorm::Affine::None, None));
        out.unwrap();
        launches.len()
    };
    assert_eq!(launches(&[4, 8, 5, 5]), 1);
    assert_eq!(launches(&[64, 16]), 1);
    assert_eq!(launches(&[2, 2, 128, 128]), 1);
}

#[test]
fn warming_up_reaches_every_kernel_and_runs_none() {
    let on = Emulated::new();
    let (done, launches) = on.record(|| on.warm_up());
    done.unwrap();
    assert_eq!(launches, []);
}
