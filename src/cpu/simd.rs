//! Sixteen lanes of `f32` and the instruction sets they are compiled for.
//!
//! Kernels are written once and inlined into one entry point per instruction set. Arithmetic is a handful of intrinsics:
//! the compiler makes as good code of loops over arrays, but takes minutes for it. All instruction sets add up the same
//! lanes in the same order.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use core::sync::atomic::{AtomicU8, Ordering};

pub(super) use portable::Portable;

/// Values a kernel handles at a time, on every instruction set: so that sums are made of the same parts.
pub(super) const LANES: usize = 16;

/// A vector of `f32`.
pub(super) struct Lanes<S: Simd>(pub(super) S::V);

impl<S: Simd> Clone for Lanes<S> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Simd> Copy for Lanes<S> {}

impl<S: Simd> Lanes<S> {
    #[inline(always)]
    pub(super) fn splat(v: f32) -> Self {
        Self(S::splat(v))
    }

    #[inline(always)]
    pub(super) fn from_array(v: [f32; LANES]) -> Self {
        Self(S::from_array(v))
    }

    #[inline(always)]
    pub(super) fn to_array(self) -> [f32; LANES] {
        S::to_array(self.0)
    }

    /// `self * factor + term`, rounded once where the instruction set can.
    #[inline(always)]
    pub(super) fn mul_add(self, factor: Self, term: Self) -> Self {
        Self(S::mul_add(self.0, factor.0, term.0))
    }

    /// The first `n <= LANES` lanes, zeros behind.
    #[inline(always)]
    pub(super) fn first(self, n: usize) -> Self {
        if n == LANES { self } else { Self(S::first(self.0, n)) }
    }

    /// The sum of all lanes, as a tree.
    #[inline(always)]
    pub(super) fn sum(self) -> f32 {
        S::sum(self.0)
    }
}

/// The sums of all lanes of each vector, as trees.
#[inline(always)]
pub(super) fn sums<S: Simd, const R: usize>(vectors: [Lanes<S>; R]) -> [f32; R] {
    let mut sums = [0.0; R];
    if R == 4 {
        sums.copy_from_slice(&S::sums([vectors[0].0, vectors[1].0, vectors[2].0, vectors[3].0]));
        return sums;
    }
    for r in 0..R {
        sums[r] = vectors[r].sum();
    }
    sums
}

impl<S: Simd> core::ops::Add for Lanes<S> {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(S::add(self.0, other.0))
    }
}

impl<S: Simd> core::ops::Sub for Lanes<S> {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(S::sub(self.0, other.0))
    }
}

impl<S: Simd> core::ops::Mul for Lanes<S> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(S::mul(self.0, other.0))
    }
}

/// An instruction set. Its methods may only run inside of [`dispatch`], which has made sure that the CPU has it.
pub(super) trait Simd: Copy {
    /// Sixteen `f32`.
    type V: Copy;

    /// Rows that a row norm works on at a time: as many as there are registers for.
    const ROWS: usize;
    /// Whether vectors are loaded before those in front of them are stored, as `for_spans!` says.
    const AHEAD: bool;
    /// Whether [`stream`](Self::stream) goes past the caches, and the alignment it needs.
    const STREAM_ALIGN: Option<usize>;

    fn splat(v: f32) -> Self::V;
    fn from_array(v: [f32; LANES]) -> Self::V;
    fn to_array(v: Self::V) -> [f32; LANES];
    fn add(a: Self::V, b: Self::V) -> Self::V;
    fn sub(a: Self::V, b: Self::V) -> Self::V;
    fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`
    fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `v`, or 0 where `v < 0`; NaN stays NaN.
    fn relu(v: Self::V) -> Self::V;
    /// `v`, or 0 where `z <= 0`.
    fn where_positive(v: Self::V, z: Self::V) -> Self::V;
    /// The first `n < LANES` lanes, zeros behind.
    fn first(v: Self::V, n: usize) -> Self::V;
    /// Lane `i` and lane `i + 8` are added first, and so on by halves.
    fn sum(v: Self::V) -> f32;
    /// Of each vector, with the same bits as [`sum`](Self::sum).
    #[inline(always)]
    fn sums([a, b, c, d]: [Self::V; 4]) -> [f32; 4] {
        [Self::sum(a), Self::sum(b), Self::sum(c), Self::sum(d)]
    }

    fn widen_f16(bits: [u16; LANES]) -> Self::V;
    fn widen_bf16(bits: [u16; LANES]) -> Self::V;
    /// To nearest, ties to even.
    fn narrow_f16(v: Self::V) -> [u16; LANES];
    /// To nearest, ties to even.
    fn narrow_bf16(v: Self::V) -> [u16; LANES];

    /// Reads the first `n < LANES` `f32`, zeros behind.
    ///
    /// # Safety
    ///
    /// `n` of them can be read at `from`.
    #[inline(always)]
    unsafe fn load_words(from: *const f32, n: usize) -> Self::V {
        // SAFETY: as promised.
        Self::from_array(unsafe { portable::load_part(from, n) })
    }
    /// Writes the first `n < LANES` `f32`.
    ///
    /// # Safety
    ///
    /// `n` of them can be written at `to`.
    #[inline(always)]
    unsafe fn store_words(to: *mut f32, v: Self::V, n: usize) {
        // SAFETY: as promised.
        unsafe { portable::store_part(to, Self::to_array(v), n) }
    }
    /// Reads the first `n < LANES` words of 2 bytes, zeros behind.
    ///
    /// # Safety
    ///
    /// `n` of them can be read at `from`.
    #[inline(always)]
    unsafe fn load_halves(from: *const u16, n: usize) -> [u16; LANES] {
        // SAFETY: as promised.
        unsafe { portable::load_part(from, n) }
    }
    /// Writes the first `n < LANES` words of 2 bytes.
    ///
    /// # Safety
    ///
    /// `n` of them can be written at `to`.
    #[inline(always)]
    unsafe fn store_halves(to: *mut u16, v: [u16; LANES], n: usize) {
        // SAFETY: as promised.
        unsafe { portable::store_part(to, v, n) }
    }

    /// Writes `f32` past the caches.
    ///
    /// # Safety
    ///
    /// They can be written at `to`, which is aligned to [`STREAM_ALIGN`](Self::STREAM_ALIGN).
    #[inline(always)]
    unsafe fn stream_words(to: *mut f32, v: Self::V) {
        // SAFETY: as promised.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(Self::to_array(v)) }
    }
    /// Writes words of 2 bytes past the caches.
    ///
    /// # Safety
    ///
    /// They can be written at `to`, which is aligned to [`STREAM_ALIGN`](Self::STREAM_ALIGN).
    #[inline(always)]
    unsafe fn stream_halves(to: *mut u16, v: [u16; LANES]) {
        // SAFETY: as promised.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(v) }
    }
    /// Has the caches fetch the line of an address, where there is one.
    #[inline(always)]
    fn prefetch(_: *const u8) {}
    /// Likewise, no nearer than the second level.
    #[inline(always)]
    fn prefetch_second(_: *const u8) {}
}

/// Makes what this thread has streamed visible to whom it tells that it is there.
pub(super) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every CPU of this architecture has it.
    unsafe {
        core::arch::x86_64::_mm_sfence();
    }
}

/// Work that is compiled for every instruction set.
pub(super) trait Kernel {
    type Output;

    /// Must be `#[inline(always)]`, as everything hot that it calls: only then it is compiled for the instruction set.
    fn run<S: Simd>(self) -> Self::Output;
}

/// An instruction set by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Level {
    Portable = 1,
    /// With FMA and F16C.
    Avx2,
    /// F, BW, VL and DQ.
    Avx512,
}

/// What [`level`] has found out; 0 before it has.
static LEVEL: AtomicU8 = AtomicU8::new(0);

#[cfg(test)]
thread_local! {
    /// What a test asks for in place of the best. Work on other threads does not see it.
    static FORCED: core::cell::Cell<Option<Level>> = const { core::cell::Cell::new(None) };
}

/// The best instruction set of this CPU.
#[inline]
pub(super) fn level() -> Level {
    #[cfg(test)]
    if let Some(level) = FORCED.get() {
        return level;
    }
    match LEVEL.load(Ordering::Relaxed) {
        1 => Level::Portable,
        2 => Level::Avx2,
        3 => Level::Avx512,
        _ => {
            let level = levels().pop().unwrap_or(Level::Portable);
            LEVEL.store(level as u8, Ordering::Relaxed);
            level
        }
    }
}

/// All that this CPU has, best last.
fn levels() -> Vec<Level> {
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut))]
    let mut levels = vec![Level::Portable];
    #[cfg(target_arch = "x86_64")]
    {
        levels.extend(x86::has_avx2().then_some(Level::Avx2));
        levels.extend((x86::has_avx2() && x86::has_avx512()).then_some(Level::Avx512));
    }
    levels
}

/// Runs the kernel with the best instructions there are.
#[inline]
pub(super) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    match level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `level` gives what this CPU has been found to have.
        Level::Avx512 => unsafe { x86::run_avx512(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: likewise.
        Level::Avx2 => unsafe { x86::run_avx2(kernel) },
        _ => kernel.run::<Portable>(),
    }
}

/// Calls `body` at every instruction set there is, work on other threads excepted.
#[cfg(test)]
pub(super) fn at_each_level(mut body: impl FnMut(Level)) {
    for level in levels() {
        FORCED.set(Some(level));
        body(level);
    }
    FORCED.set(None);
}

#[cfg(test)]
mod tests;
