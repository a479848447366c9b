//! Tensors as kernels see them: elements are `f32` in registers, whatever they are in memory.

mod spans;

use core::{marker::PhantomData, slice};

use self::spans::check;
pub(super) use self::spans::{Run, Span, for_spans};

use super::simd::{LANES, Lanes, Simd};
use crate::{DType, Element};

/// Of a line of the caches. Elsewhere prefetches come too often or miss some lines.
const LINE_BYTES: usize = 64;

/// Runs of so many bytes are too short for the processor to see that their neighbors are wanted next.
pub(super) const SHORT_RUN: usize = 4096;

/// Elements ahead of those that a channel norm reads, to be fetched where it writes past the caches. One thread of AMD Zen 4,
/// BatchNorm of 26 MB in f32, with / without, in ms: channels last, forward 1.68 / 2.12 and inference 1.00 / 1.15; channels first,
/// 1.62 / 1.98 and 0.92 / 0.97. 1,024 ahead are as good, 512 give 1.78 and 1.14 channels last. Backward, channels first, 13 MB in
/// f16, 1.68 / 2.16, but nothing is gained in f32, channels last, and by passes that only read.
pub(super) const AHEAD_OF_STREAM: usize = 2048;

/// What memory is mapped by. The processor fetches what follows in a page by itself, but has to find the next page first.
const PAGE: usize = 4096;

/// Bytes ahead of what is read of which two lines are fetched, once in a page. AMD Zen 4, with / without, in ms: forward in
/// f32, BatchNorm channels last, 26 MB, one thread 2.07 / 2.36, two 1.22 / 1.27, and 39 MB 3.8 / 4.1 and 2.03 / 2.13; GroupNorm
/// channels first, 42 MB, 3.8 / 4.1 and 2.4 / 2.6. In f16 nothing is gained. Backward passes, which do without, gain nothing in
/// f32 and lose 6 % in f16.
const PAGES_AHEAD: usize = 2 * PAGE;

/// Elements that a kernel reads; nobody writes them meanwhile but the one who reads.
pub(super) struct Source<'a, T> {
    from: *const T,
    len: usize,
    borrow: PhantomData<&'a [T]>,
}

/// Elements that one unit of work reads and writes.
pub(super) struct Target<'a, T> {
    to: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

/// Elements that several units of work write, each its own.
pub(super) struct Shared<'a, T>(Target<'a, T>);

/// `Copy` whatever `T` is, which a derived one would not be.
macro_rules! copy {
    ($($name:ident)*) => {$(
        impl<T> Clone for $name<'_, T> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<T> Copy for $name<'_, T> {}
    )*};
}
pub(super) use copy;
copy!(Source Target Shared);

// SAFETY: it gives nothing away without a promise that units do not meet; elements themselves may cross threads.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: likewise.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(data: &'a mut [T]) -> Self {
        Self(Target::new(data))
    }

    /// A run of the elements.
    pub(super) fn run(&self, start: usize, len: usize) -> Self {
        Self(self.0.run(start, len))
    }

    /// # Safety
    ///
    /// While the result is used, nobody else writes an element that is read or written through it, or reads one that is
    /// written.
    pub(super) unsafe fn target(&self) -> Target<'a, T> {
        self.0
    }
}

impl<'a, T> Source<'a, T> {
    pub(super) fn new(data: &'a [T]) -> Self {
        Self { from: data.as_ptr(), len: data.len(), borrow: PhantomData }
    }
}

impl<'a, T> Source<'a, T> {
    #[inline(always)]
    pub(super) fn len(self) -> usize {
        self.len
    }

    /// A run of the elements.
    #[inline(always)]
    pub(super) fn run(self, start: usize, len: usize) -> Self {
        check(start, len, self.len);
        // `wrapping` because it need not be unsafe.
        Self { from: self.from.wrapping_add(start), len, borrow: PhantomData }
    }

    /// Parts of `len` elements that follow each other from `start` on.
    #[inline(always)]
    pub(super) fn runs<const N: usize>(self, start: usize, len: usize) -> [Self; N] {
        let first = self.run(start, len);
        check(start + len, (N - 1) * len, self.len);
        let mut runs = [first; N];
        for (i, run) in runs.iter_mut().enumerate() {
            run.from = first.from.wrapping_add(i * len);
        }
        runs
    }
}

impl<T: Element> Source<'_, T> {
    /// One element.
    #[inline(always)]
    pub(super) fn one(self, at: usize) -> f32 {
        check(at, 1, self.len);
        // SAFETY: it is inside.
        unsafe { self.from.add(at).read() }.to_f32()
    }

    /// The elements of the span, zeros behind.
    #[inline(always)]
    pub(super) fn load<S: Simd>(self, Span { at, n, len }: Span) -> Lanes<S> {
        check(0, len, self.len);
        // SAFETY: the span is inside of a run that is not longer than this one; `T` is what its tag says, and any
        // alignment will do.
        unsafe {
            let from = self.from.add(at);
            match (T::DTYPE, n == LANES) {
                (DType::F32, true) => Lanes::from_array(from.cast::<[f32; LANES]>().read_unaligned()),
                (DType::F16, true) => Lanes(S::widen_f16(from.cast::<[u16; LANES]>().read_unaligned())),
                (DType::BF16, true) => Lanes(S::widen_bf16(from.cast::<[u16; LANES]>().read_unaligned())),
                (DType::F32, false) => Lanes(S::load_words(from.cast(), n)),
                (DType::F16, false) => Lanes(S::widen_f16(S::load_halves(from.cast(), n))),
                (DType::BF16, false) => Lanes(S::widen_bf16(S::load_halves(from.cast(), n))),
            }
        }
    }
}

impl<T> Source<'_, T> {
    /// Has the cache fetch what lies `ahead` of a span; anything may lie there.
    #[inline(always)]
    pub(super) fn prefetch<S: Simd>(self, Span { at, .. }: Span, ahead: usize) {
        S::prefetch(self.from.wrapping_add(at).wrapping_add(ahead).cast());
    }

    /// Likewise, no nearer than the second level.
    #[inline(always)]
    pub(super) fn prefetch_second<S: Simd>(self, Span { at, .. }: Span, ahead: usize) {
        S::prefetch_second(self.from.wrapping_add(at).wrapping_add(ahead).cast());
    }

    /// For each page of it, has the cache fetch two lines of one that follows; anything may lie there.
    #[inline(always)]
    pub(super) fn prefetch_pages<S: Simd>(self) {
        for at in (0..self.len * size_of::<T>()).step_by(PAGE) {
            let ahead = self.from.cast::<u8>().wrapping_add(at + PAGES_AHEAD);
            S::prefetch(ahead);
            S::prefetch(ahead.wrapping_add(LINE_BYTES));
        }
    }

    /// Has the cache fetch `len` elements from `start` on; they need not be there.
    #[inline(always)]
    pub(super) fn prefetch_run<S: Simd>(self, start: usize, len: usize) {
        for line in self.lines(start, len) {
            S::prefetch(line);
        }
    }

    /// Likewise, no nearer than the second level.
    #[inline(always)]
    pub(super) fn prefetch_second_run<S: Simd>(self, start: usize, len: usize) {
        for line in self.lines(start, len) {
            S::prefetch_second(line);
        }
    }

    #[inline(always)]
    fn lines(self, start: usize, len: usize) -> impl Iterator<Item = *const u8> {
        (0..len).step_by(LINE_BYTES / size_of::<T>()).map(move |at| self.from.wrapping_add(start + at).cast())
    }
}

impl<'a, T> Target<'a, T> {
    #[inline(always)]
    pub(super) fn new(data: &'a mut [T]) -> Self {
        Self { to: data.as_mut_ptr(), len: data.len(), borrow: PhantomData }
    }

    /// A run of the elements.
    #[inline(always)]
    pub(super) fn run(self, start: usize, len: usize) -> Self {
        check(start, len, self.len);
        Self { to: self.to.wrapping_add(start), len, borrow: PhantomData }
    }

    /// As [`Source::runs`].
    #[inline(always)]
    pub(super) fn runs<const N: usize>(self, start: usize, len: usize) -> [Self; N] {
        let sources = self.source().runs::<N>(start, len);
        let mut runs = [self; N];
        for (run, source) in runs.iter_mut().zip(sources) {
            *run = Self { to: source.from.cast_mut(), len, borrow: PhantomData };
        }
        runs
    }

    #[inline(always)]
    pub(super) fn source(self) -> Source<'a, T> {
        Source { from: self.to, len: self.len, borrow: PhantomData }
    }

    pub(super) fn len(self) -> usize {
        self.len
    }

    /// Elements before the first vector that can be streamed; 0 where none will be.
    #[inline(always)]
    pub(super) fn head<S: Simd>(self, stream: bool) -> usize {
        let (true, Some(align)) = (stream, S::STREAM_ALIGN) else { return 0 };
        let align = align.min(LANES * size_of::<T>());
        let before = self.to.addr().wrapping_neg() % align / size_of::<T>();
        before.min(self.len).min(LANES - 1)
    }

    /// Elements before the first whole line that can be streamed; 0 where none will be.
    #[inline(always)]
    pub(super) fn before_line<S: Simd>(self, stream: bool) -> usize {
        if !stream || S::STREAM_ALIGN.is_none() {
            return 0;
        }
        let before = self.to.addr().wrapping_neg() % LINE_BYTES / size_of::<T>();
        before.min(self.len)
    }

    /// Whether parts of it that begin so many elements apart all begin with a line.
    pub(super) fn is_in_lines(self, step: usize) -> bool {
        self.to.addr().is_multiple_of(LINE_BYTES) && (step * size_of::<T>()).is_multiple_of(LINE_BYTES)
    }

    /// Has the cache fetch the lines at both ends that are not wholly of this run, where the rest will be streamed past it:
    /// they are written in part, and what is streamed after them would wait.
    #[inline(always)]
    pub(super) fn prefetch_ends<S: Simd>(self, stream: bool) {
        if !stream {
            return;
        }
        for end in [self.to, self.to.wrapping_add(self.len)] {
            if !end.addr().is_multiple_of(LINE_BYTES) {
                S::prefetch(end.cast_const().cast());
            }
        }
    }
}

impl<T: Copy> Target<'_, T> {
    /// Replaces one value.
    #[inline(always)]
    pub(super) fn set(self, at: usize, v: T) {
        check(at, 1, self.len);
        // SAFETY: it is inside, and of this unit alone.
        unsafe { self.to.add(at).write(v) }
    }

    /// Replaces several values.
    #[inline(always)]
    pub(super) fn set_each<const N: usize>(self, at: usize, v: [T; N]) {
        check(at, N, self.len);
        // SAFETY: they are inside, and of this unit alone; any alignment will do.
        unsafe { self.to.add(at).cast::<[T; N]>().write_unaligned(v) }
    }

    /// # Safety
    ///
    /// No other borrow of these elements, and no other use of this target for them, while the result lives.
    pub(super) unsafe fn slice<'b>(self, at: usize, n: usize) -> &'b mut [T]
    where
        Self: 'b,
    {
        check(at, n, self.len);
        // SAFETY: they are inside; the caller has promised the rest.
        unsafe { slice::from_raw_parts_mut(self.to.add(at), n) }
    }
}

impl<T: Element> Target<'_, T> {
    /// Rounds as many lanes as the span has to its elements; `past` the caches where they are aligned for it.
    #[inline(always)]
    pub(super) fn store<S: Simd>(self, Span { at, n, len }: Span, v: Lanes<S>, past: bool) {
        check(0, len, self.len);
        // SAFETY: the span is inside of a run that is not longer than this one; `T` is what its tag says, and any
        // alignment will do, but for streaming, where it has been looked at.
        unsafe {
            let to = self.to.add(at);
            let align = S::STREAM_ALIGN.map_or(1, |align| align.min(LANES * size_of::<T>()));
            if n < LANES {
                match T::DTYPE {
                    DType::F32 => S::store_words(to.cast(), v.0, n),
                    DType::F16 => S::store_halves(to.cast(), S::narrow_f16(v.0), n),
                    DType::BF16 => S::store_halves(to.cast(), S::narrow_bf16(v.0), n),
                }
            } else if past && to.addr().is_multiple_of(align) {
                match T::DTYPE {
                    DType::F32 => S::stream_words(to.cast(), v.0),
                    DType::F16 => S::stream_halves(to.cast(), S::narrow_f16(v.0)),
                    DType::BF16 => S::stream_halves(to.cast(), S::narrow_bf16(v.0)),
                }
            } else {
                match T::DTYPE {
                    DType::F32 => to.cast::<[f32; LANES]>().write_unaligned(v.to_array()),
                    DType::F16 => to.cast::<[u16; LANES]>().write_unaligned(S::narrow_f16(v.0)),
                    DType::BF16 => to.cast::<[u16; LANES]>().write_unaligned(S::narrow_bf16(v.0)),
                }
            }
        }
    }
}
