//! Tensors in large pages.

use core::ffi::c_void;

use crate::Element;

/// Bytes of a tensor from which on it asks for pages of 2 MiB, as NumPy does. One / two threads of AMD Zen 4 in a virtual machine,
/// LayerNorm forward of 42 MB in f32 with a new output each time, asked for / not: 7.4 / 25.1 and 7.3 / 17.5 ms, as each page costs
/// one fault. Of tensors that are there, where pages are not looked up as often, one thread: backward, 42 MB, 5.1 / 6.4 ms, and
/// BatchNorm, channels last, 39 MB 4.3 / 6.0.
const LARGE: usize = 4 << 20;

/// What memory is mapped by, at least.
const PAGE: usize = 4096;

/// Zeros as the system gives them, which are not written before they are used.
pub(super) fn zeros<T: Element>(len: usize) -> Vec<T> {
    let zeros = T::zeros(len);
    ask_for_large(zeros.as_ptr().cast(), size_of_val(zeros.as_slice()));
    zeros
}

pub(super) fn copy<T: Element>(data: &[T]) -> Vec<T> {
    let mut copy: Vec<T> = Vec::with_capacity(data.len());
    ask_for_large(copy.as_ptr().cast(), size_of_val(data));
    copy.extend_from_slice(data);
    copy
}

/// Has the system map memory that is not in use yet by large pages, where it offers these. If not, nothing is lost but speed.
fn ask_for_large(memory: *const c_void, bytes: usize) {
    if bytes < LARGE {
        return;
    }
    // With the pages at its ends, so that neighbors that ask as well have large ones across their border.
    let before = memory.addr() % PAGE;
    let bytes = (before + bytes).next_multiple_of(PAGE);
    #[cfg(target_os = "linux")]
    // SAFETY: this advice changes how memory is mapped, not what is in it or who may use it; where none is mapped the call fails.
    unsafe {
        libc::madvise(memory.wrapping_byte_sub(before).cast_mut(), bytes, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = bytes;
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::fs;

    use half::f16;

    use super::{LARGE, copy, zeros};

    /// Whether the system has been told that large pages are wanted for an address.
    fn is_asked_for<T>(at: &T) -> bool {
        let address = (&raw const *at).addr();
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_here = false;
        for line in maps.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            if let Some(ends) = range {
                let [start, end] = [ends.0, ends.1].map(|end| usize::from_str_radix(end, 16).unwrap());
                is_here = (start..end).contains(&address);
            }
            if let (true, Some(flags)) = (is_here, line.strip_prefix("VmFlags:")) {
                return flags.split_whitespace().any(|flag| flag == "hg");
            }
        }
        panic!("nothing is mapped at {address:x}");
    }

    #[test]
    fn large_tensors_ask_for_large_pages() {
        if !fs::exists("/sys/kernel/mm/transparent_hugepage").unwrap() {
            return; // built without
        }
        let len = 2 * LARGE / size_of::<f16>();
        let zeros = zeros::<f16>(len);
        assert!(zeros.iter().all(|v| v.to_bits() == 0) && zeros.len() == len);
        let data: Vec<f32> = (0..len / 2).map(|i| i as f32).collect();
        let copy = copy(&data);
        assert_eq!(copy, data);
        assert!(is_asked_for(&zeros[len / 2]) && is_asked_for(&copy[len / 4]));
    }

    #[test]
    fn tensors_without_elements_need_no_memory() {
        assert_eq!((zeros::<f32>(0), copy::<f16>(&[])), (vec![], vec![]));
    }
}
