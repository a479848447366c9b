use half::{bf16, f16};

use super::{Kernel, LANES, Simd, at_each_level, dispatch};

/// What a conversion makes of sixteen values.
struct Convert<V> {
    values: [V; LANES],
    to_f16: bool,
}

impl Kernel for Convert<u16> {
    type Output = [f32; LANES];

    #[inline(always)]
    fn run<S: Simd>(self) -> [f32; LANES] {
        S::to_array(if self.to_f16 { S::widen_f16(self.values) } else { S::widen_bf16(self.values) })
    }
}

impl Kernel for Convert<f32> {
    type Output = [u16; LANES];

    #[inline(always)]
    fn run<S: Simd>(self) -> [u16; LANES] {
        let v = S::from_array(self.values);
        if self.to_f16 { S::narrow_f16(v) } else { S::narrow_bf16(v) }
    }
}

/// As many sixteens as `count` asks for of `value(0)`, `value(1)`, ….
fn sixteens<V>(count: u32, value: impl Fn(u32) -> V) -> impl Iterator<Item = [V; LANES]> {
    (0..count / LANES as u32)
        .map(move |block| core::array::from_fn(|i| value(block * LANES as u32 + i as u32)))
}

#[test]
fn every_16_bit_value_widens_exactly() {
    at_each_level(|level| {
        for to_f16 in [true, false] {
            for values in sixteens(1 << 16, |i| i as u16) {
                let got = dispatch(Convert { values, to_f16 });
                for (bits, got) in values.into_iter().zip(got) {
                    let want =
                        if to_f16 { f16::from_bits(bits).to_f32() } else { bf16::from_bits(bits).to_f32() };
                    let same = want.to_bits() == got.to_bits() || want.is_nan() && got.is_nan();
                    assert!(same, "{level:?}: {bits:04x} widens to {got}, not {want}");
                }
            }
        }
    });
}

/// Every 16-bit value, what lies halfway to the next, and the `f32` on both sides of each.
#[test]
fn narrowing_rounds_to_nearest_with_ties_to_even() {
    at_each_level(|level| {
        for to_f16 in [true, false] {
            let value = |i: u32| {
                let (bits, around) = ((i / 8) as u16, i % 8);
                let wide = |bits: u16| match to_f16 {
                    true => f16::from_bits(bits).to_f64(),
                    false => bf16::from_bits(bits).to_f64(),
                };
                let (here, next) = (wide(bits), wide(bits.wrapping_add(1)));
                let middle = ((here + next) / 2.0) as f32;
                let of = if around < 4 { here as f32 } else { middle };
                match around % 4 {
                    0 => of,
                    1 => f32::from_bits(of.to_bits().wrapping_add(1)),
                    2 => f32::from_bits(of.to_bits().wrapping_sub(1)),
                    _ => of * 1.000_1,
                }
            };
            for values in sixteens(8 << 16, value) {
                let got = dispatch(Convert { values, to_f16 });
                for (v, got) in values.into_iter().zip(got) {
                    let (want, nan) = match to_f16 {
                        true => (f16::from_f32(v).to_bits(), f16::from_bits(got).is_nan()),
                        false => (bf16::from_f32(v).to_bits(), bf16::from_bits(got).is_nan()),
                    };
                    assert!(
                        want == got || v.is_nan() && nan,
                        "{level:?}: {v:e} narrows to {got:04x}, not {want:04x}"
                    );
                }
            }
        }
    });
}

/// The sums of four vectors, one by one or all at once.
struct SumsOfFour {
    vectors: [[f32; LANES]; 4],
    at_once: bool,
}

impl Kernel for SumsOfFour {
    type Output = [f32; 4];

    #[inline(always)]
    fn run<S: Simd>(self) -> [f32; 4] {
        let [a, b, c, d] = self.vectors;
        let vectors = [S::from_array(a), S::from_array(b), S::from_array(c), S::from_array(d)];
        if self.at_once {
            return S::sums(vectors);
        }
        let [a, b, c, d] = vectors;
        [S::sum(a), S::sum(b), S::sum(c), S::sum(d)]
    }
}

#[test]
fn sums_of_four_vectors_have_the_bits_of_each() {
    // Numbers of different sizes, so that another order rounds otherwise.
    let number = |i: usize| ((i * 2_654_435_761) % 65_521) as f32 * 0.1f32.powi((i % 7) as i32);
    for start in (0..4096).step_by(64) {
        let vectors = core::array::from_fn(|v| core::array::from_fn(|lane| number(start + v * LANES + lane)));
        at_each_level(|level| {
            let each = dispatch(SumsOfFour { vectors, at_once: false });
            let at_once = dispatch(SumsOfFour { vectors, at_once: true });
            assert_eq!(at_once.map(f32::to_bits), each.map(f32::to_bits), "{level:?}");
        });
    }
}
