//! Where in tensors kernels read and write, checked once for all that they walk along.

use super::{Source, Target};
use crate::cpu::simd::LANES;

/// `n <= LANES` elements from `at` on of a run of `len`: checked once for all tensors that a kernel walks along.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Span {
    pub(super) at: usize,
    pub(super) n: usize,
    pub(super) len: usize,
}

impl Span {
    #[inline(always)]
    pub(in crate::cpu) fn new(at: usize, n: usize, len: usize) -> Self {
        check(at, n, len);
        assert!(n <= LANES);
        Self { at, n, len }
    }

    /// Full ones that follow each other from `at` on.
    #[inline(always)]
    pub(in crate::cpu) fn vectors<const N: usize>(at: usize, len: usize) -> [Self; N] {
        check(at, N * LANES, len);
        let mut spans = [Self { at, n: LANES, len }; N];
        for (i, span) in spans.iter_mut().enumerate() {
            span.at += i * LANES;
        }
        spans
    }

    #[inline(always)]
    pub(in crate::cpu) fn at(self) -> usize {
        self.at
    }

    #[inline(always)]
    pub(in crate::cpu) fn n(self) -> usize {
        self.n
    }
}

/// Where a run lies in tensors that are all at least `of` elements long: one index serves them all.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Run {
    start: usize,
    len: usize,
    of: usize,
}

impl Run {
    #[inline(always)]
    pub(in crate::cpu) fn new(start: usize, len: usize, of: usize) -> Self {
        check(start, len, of);
        Self { start, len, of }
    }

    #[inline(always)]
    pub(in crate::cpu) fn len(self) -> usize {
        self.len
    }

    /// A part of it.
    #[inline(always)]
    pub(in crate::cpu) fn run(self, start: usize, len: usize) -> Self {
        check(start, len, self.len);
        Self { start: self.start + start, len, of: self.of }
    }

    /// As many parts of `len` elements as it has, their starts `step` apart. They need no check, which is for each as much work
    /// as for a vector or two.
    #[inline(always)]
    pub(in crate::cpu) fn parts(
        self,
        len: usize,
        step: usize,
    ) -> impl DoubleEndedIterator<Item = Self> + Clone {
        assert!(step > 0);
        let starts = self.start..self.start + (self.len + 1).saturating_sub(len);
        starts.step_by(step).map(move |start| Self { start, len, of: self.of })
    }

    /// Its elements of a tensor.
    #[inline(always)]
    pub(in crate::cpu) fn of<T>(self, tensor: Target<'_, T>) -> Target<'_, T> {
        tensor.run(self.start, self.len)
    }

    /// Its elements of a tensor that is only read.
    #[inline(always)]
    pub(in crate::cpu) fn from<T>(self, tensor: Source<'_, T>) -> Source<'_, T> {
        tensor.run(self.start, self.len)
    }

    /// The span of the tensors that is this one of the run.
    #[inline(always)]
    pub(in crate::cpu) fn span(self, Span { at, n, len }: Span) -> Span {
        // What is inside of a run that is not longer than this one is inside of the tensors.
        check(0, len, self.len);
        Span { at: self.start + at, n, len: self.of }
    }
}

/// Panics where `n` elements from `at` on are not all below `len`.
#[inline(always)]
pub(super) fn check(at: usize, n: usize, len: usize) {
    if at > len || n > len - at {
        out_of_bounds(at, n, len);
    }
}

#[cold]
#[inline(never)]
fn out_of_bounds(at: usize, n: usize, len: usize) -> ! {
    panic!("{n} elements at {at} of {len}");
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
pub(in crate::cpu) use for_spans;
