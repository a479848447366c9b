//! Tensors as kernels see them: elements are `f32` in registers, whatever they are in memory.

use core::{marker::PhantomData, slice};

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

/// `n <= LANES` elements from `at` on of a run of `len`: checked once for all tensors that a kernel walks along.
#[derive(Clone, Copy)]
pub(super) struct Span {
    at: usize,
    n: usize,
    len: usize,
}

impl Span {
    #[inline(always)]
    pub(super) fn new(at: usize, n: usize, len: usize) -> Self {
        check(at, n, len);
        assert!(n <= LANES);
        Self { at, n, len }
    }

    /// Full ones that follow each other from `at` on.
    #[inline(always)]
    pub(super) fn vectors<const N: usize>(at: usize, len: usize) -> [Self; N] {
        check(at, N * LANES, len);
        let mut spans = [Self { at, n: LANES, len }; N];
        for (i, span) in spans.iter_mut().enumerate() {
            span.at += i * LANES;
        }
        spans
    }

    #[inline(always)]
    pub(super) fn at(self) -> usize {
        self.at
    }

    #[inline(always)]
    pub(super) fn n(self) -> usize {
        self.n
    }
}

/// Where a run lies in tensors that are all at least `of` elements long: one index serves them all.
#[derive(Clone, Copy)]
pub(super) struct Run {
    start: usize,
    len: usize,
    of: usize,
}

impl Run {
    #[inline(always)]
    pub(super) fn new(start: usize, len: usize, of: usize) -> Self {
        check(start, len, of);
        Self { start, len, of }
    }

    #[inline(always)]
    pub(super) fn len(self) -> usize {
        self.len
    }

    /// A part of it.
    #[inline(always)]
    pub(super) fn run(self, start: usize, len: usize) -> Self {
        check(start, len, self.len);
        Self { start: self.start + start, len, of: self.of }
    }

    /// As many parts of `len` elements as it has, one after another. They need no check, which is for each as much work as for a
    /// vector or two.
    #[inline(always)]
    pub(super) fn parts(self, len: usize) -> impl Iterator<Item = Self> {
        let starts = (self.start..self.start + self.len / len * len).step_by(len);
        starts.map(move |start| Self { start, len, of: self.of })
    }

    /// Its elements of a tensor.
    #[inline(always)]
    pub(super) fn of<T>(self, tensor: Target<'_, T>) -> Target<'_, T> {
        tensor.run(self.start, self.len)
    }

    /// Its elements of a tensor that is only read.
    #[inline(always)]
    pub(super) fn from<T>(self, tensor: Source<'_, T>) -> Source<'_, T> {
        tensor.run(self.start, self.len)
    }

    /// The span of the tensors that is this one of the run.
    #[inline(always)]
    pub(super) fn span(self, Span { at, n, len }: Span) -> Span {
        // What is inside of a run that is not longer than this one is inside of the tensors.
        check(0, len, self.len);
        Span { at: self.start + at, n, len: self.of }
    }
}

/// Panics where `n` elements from `at` on are not all below `len`.
#[inline(always)]
fn check(at: usize, n: usize, len: usize) {
    if at > len || n > len - at {
        out_of_bounds(at, n, len);
    }
}

#[cold]
#[inline(never)]
fn out_of_bounds(at: usize, n: usize, len: usize) -> ! {
    panic!("{n} elements at {at} of {len}");
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
        for at in (0..len).step_by(LINE_BYTES / size_of::<T>()) {
            S::prefetch(self.from.wrapping_add(start + at).cast());
        }
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

/// Runs the body for the spans of a run: all of them full but the last and, where `head` is not 0, the first.
///
/// With `v = load` the body has the value `v` of `load` for its span. On the instruction set `S` with vectors of whole lines
/// it is loaded before the bodies of the two full spans before it store: a load waits for an earlier store that has the last
/// 12 bits of an address in common with it, and tensors that were allocated one after the other often lie so. AMD Zen 4,
/// normalization of 26 MB in f32 whose output lies 16, 48 and 64 bytes further in its page than the input, so / with loads
/// in place: 1.12 / 1.21, 1.09 / 2.23 and 1.07 / 1.17 ms. With vectors of half a line at most 7 % are gained, and registers
/// are short.
///
/// `values` is how many vectors are loaded for a span. Up to 4, the loop takes two spans a turn, because much of a turn is
/// the loop itself; of more, two spans do not fit in the registers. One thread of AMD Zen 4, two spans / one: BatchNorm's
/// inference in f16, runs of 196 (1 value), 160 / 190 us; LayerNorm of 8,192 rows of 64, forward in f32 (4) 120 / 131 us, but
/// backward in f16 (8) 203 / 183.
///
/// A macro because a closure that the compiler does not inline is not compiled for the instruction set.
macro_rules! for_spans {
    ($len:expr, $head:expr, |$span:ident| $body:block) => {{
        use $crate::cpu::{memory::Span, simd::LANES};
        let (len, head): (usize, usize) = ($len, $head);
        let mut at = 0;
        if head > 0 {
            let $span = Span::new(0, head, len);
            $body;
            at = head;
        }
        while len - at >= LANES {
            let $span = Span::new(at, LANES, len);
            $body;
            at += LANES;
        }
        if at < len {
            let $span = Span::new(at, len - at, len);
            $body;
        }
    }};
    ($simd:ty, $values:expr, $len:expr, $head:expr, |$span:ident| $v:ident = $load:expr, $body:block) => {{
        use $crate::cpu::{memory::Span, simd::LANES};
        let (len, head): (usize, usize) = ($len, $head);
        let mut at = 0;
        if head > 0 {
            let $span = Span::new(0, head, len);
            let $v = $load;
            $body;
            at = head;
        }
        if <$simd>::AHEAD && $values <= 4 && len - at >= 2 * LANES {
            let [first, second] = Span::vectors(at, len);
            let $span = first;
            let mut one = $load;
            let $span = second;
            let mut two = $load;
            loop {
                let [first, second] = Span::vectors(at, len);
                let ahead = len - at >= 4 * LANES;
                let (mut three, mut four) = (one, two);
                if ahead {
                    let [_, _, third, fourth] = Span::vectors(at, len);
                    let $span = third;
                    three = $load;
                    let $span = fourth;
                    four = $load;
                }
                let ($span, $v) = (first, one);
                $body;
                let ($span, $v) = (second, two);
                $body;
                at += 2 * LANES;
                if !ahead {
                    break;
                }
                (one, two) = (three, four);
            }
        }
        if <$simd>::AHEAD && $values > 4 && len - at >= 2 * LANES {
            let $span = Span::new(at, LANES, len);
            let mut next = $load;
            let $span = Span::new(at + LANES, LANES, len);
            let mut after = $load;
            loop {
                let ($v, here) = (next, at);
                let is_last = len - at < 2 * LANES;
                at += LANES;
                next = after;
                if len - at >= 2 * LANES {
                    let $span = Span::new(at + LANES, LANES, len);
                    after = $load;
                }
                let $span = Span::new(here, LANES, len);
                $body;
                if is_last {
                    break;
                }
            }
        }
        while len - at >= LANES {
            let $span = Span::new(at, LANES, len);
            let $v = $load;
            $body;
            at += LANES;
        }
        if at < len {
            let $span = Span::new(at, len - at, len);
            let $v = $load;
            $body;
        }
    }};
}
pub(super) use for_spans;
