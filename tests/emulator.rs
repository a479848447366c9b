//! The emulator catches what it claims to catch, and nothing else: every planted fault is reported, and its clean twin
//! runs in silence with the right numbers, under several orders of the threads.

use std::ffi::{CStr, c_char};

use warpnorm::{BatchNorm, Emulated, Tensor};

// emulator/faults/faults.h and emulator/warpnorm_emulator.h, as far as they are used here.
unsafe extern "C" {
    fn wn_emulated_fault_count() -> i32;
    fn wn_emulated_fault_name(fault: i32) -> *const c_char;
    fn wn_emulated_fault_tool(fault: i32) -> *const c_char;
    fn wn_emulated_fault_needs_checks(fault: i32) -> i32;
    fn wn_emulated_fault_run(fault: i32, planted: i32) -> i32;
    fn wn_emulated_last_report() -> *const c_char;
    fn wn_emulated_traffic_probe(extra_read: i32, read: *mut u64, written: *mut u64) -> i32;
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
fn a_small_problem_is_one_launch_and_a_large_one_two() {
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
    assert_eq!(launches(&[2, 2, 128, 128]), 2);
}

#[test]
fn warming_up_reaches_every_kernel_and_runs_none() {
    let on = Emulated::new();
    let (done, launches) = on.record(|| on.warm_up());
    done.unwrap();
    assert_eq!(launches, []);
}
