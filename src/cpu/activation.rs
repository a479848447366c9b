//! Activations and their derivatives, in `f64` and without branches, so that vectors are made of them.

use std::f64::consts::{FRAC_1_SQRT_2, LN_2, LOG2_E, PI};

use super::simd::{Kernel, LANES, Simd, dispatch};
use crate::Activation;

/// `sqrt(2 / pi)`.
const GELU_TANH_SCALE: f64 = 0.797_884_560_802_865_4;
const GELU_TANH_CUBIC: f64 = 0.044_715;

impl Activation {
    /// Of each value.
    #[inline(never)]
    pub(super) fn apply_each(self, z: [f32; LANES]) -> [f32; LANES] {
        dispatch(Each { activation: self, z, derivative: false })
    }

    /// The derivative at each value.
    #[inline(never)]
    pub(super) fn derivative_each(self, z: [f32; LANES]) -> [f32; LANES] {
        dispatch(Each { activation: self, z, derivative: true })
    }

    #[inline(always)]
    pub(super) fn apply(self, z: f64) -> f64 {
        match self {
            Self::None => z,
            // In this order NaN stays NaN.
            Self::Relu => {
                if z < 0.0 {
                    0.0
                } else {
                    z
                }
            }
            Self::Silu => z * sigmoid(z),
            Self::Gelu => z * normal_cdf(z),
            Self::GeluTanh => z * sigmoid(2.0 * tanh_argument(z)),
        }
    }

    #[inline(always)]
    fn derivative(self, z: f64) -> f64 {
        match self {
            Self::None => 1.0,
            Self::Relu => {
                // In this order a gradient passes where z is NaN, as it does in PyTorch.
                if z <= 0.0 { 0.0 } else { 1.0 }
            }
            Self::Silu => {
                let s = sigmoid(z);
                s * (1.0 + z * (1.0 - s))
            }
            Self::Gelu => normal_cdf(z) + z * exp(-0.5 * z * z) / (2.0 * PI).sqrt(),
            Self::GeluTanh => {
                let s = sigmoid(2.0 * tanh_argument(z));
                let slope = 2.0 * GELU_TANH_SCALE * (1.0 + 3.0 * GELU_TANH_CUBIC * z * z);
                s + z * s * (1.0 - s) * slope
            }
        }
    }
}

struct Each {
    activation: Activation,
    z: [f32; LANES],
    derivative: bool,
}

impl Kernel for Each {
    type Output = [f32; LANES];

    #[inline(always)]
    fn run<S: Simd>(self) -> [f32; LANES] {
        let mut z = self.z;
        // A loop for each, with the choice outside of it.
        macro_rules! each {
            ($($activation:ident)*) => {
                match (self.activation, self.derivative) {
                    $(
                        (Activation::$activation, false) => {
                            for z in &mut z {
                                *z = Activation::$activation.apply(f64::from(*z)) as f32;
                            }
                        }
                        (Activation::$activation, true) => {
                            for z in &mut z {
                                *z = Activation::$activation.derivative(f64::from(*z)) as f32;
                            }
                        }
                    )*
                }
            };
        }
        each!(None Relu Silu Gelu GeluTanh);
        z
    }
}

#[inline(always)]
fn sigmoid(z: f64) -> f64 {
    let e = exp(-z.abs());
    let one_or_e = if z < 0.0 { e } else { 1.0 };
    one_or_e / (1.0 + e)
}

#[inline(always)]
fn tanh_argument(z: f64) -> f64 {
    GELU_TANH_SCALE * (z + GELU_TANH_CUBIC * z * z * z)
}

/// `exp(x)` for `x <= 1`, with an error of 1e-11 of it; 0 where it is below 1e-307.
#[inline(always)]
fn exp(x: f64) -> f64 {
    /// Adding it rounds to an integer, which is then in the last bits.
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
    const LOWEST: f64 = -708.0;
    // In this order NaN stays NaN.
    let clamped = if x < LOWEST { LOWEST } else { x };
    let shifted = clamped * LOG2_E + ROUND;
    let r = clamped - (shifted - ROUND) * LN_2;
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    let mut series = 1.0 / 3_628_800.0;
    for factorial in [362_880.0, 40_320.0, 5040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0] {
        series = series * r + 1.0 / factorial;
    }
    if x < LOWEST { 0.0 } else { series * power }
}

/// The distribution function of the normal distribution, with an error of 1e-11 of it.
#[inline(always)]
fn normal_cdf(z: f64) -> f64 {
    let a = z.abs() * FRAC_1_SQRT_2;
    let t = 2.0 / (2.0 + a);
    let tail = 0.5 * t * exp(polynomial(t) - a * a);
    if z < 0.0 { tail } else { 1.0 - tail }
}

/// `ln(erfc(a) / t) + a^2` with `t = 2 / (2 + a)`, the form of Press et al. ("Numerical Recipes", section 6.2), here as the
/// Chebyshev fit of degree 18 on `0.06 <= t <= 1`, to 6e-13.
#[inline(always)]
fn polynomial(t: f64) -> f64 {
    let mut sum = -0.158_651_190_413_325_4;
    for coefficient in [
        1.405_721_400_755_329_6,
        -5.474_392_949_976_3,
        12.075_888_379_296_431,
        -15.922_320_386_244_035,
        11.330_185_625_323_146,
        -1.047_809_573_060_317,
        -5.901_860_787_453_074,
        6.013_473_080_947_897,
        -3.455_715_161_257_422,
        1.578_710_717_281_171,
        -0.392_171_334_664_614_6,
        -0.001_528_912_568_505_855_2,
        -0.157_885_889_853_114_5,
        -0.084_345_860_962_514_05,
        0.083_208_771_479_411_08,
        0.375_006_383_534_693_1,
        0.999_999_808_798_950_4,
        -1.265_512_120_964_262_2,
    ] {
        sum = sum * t + coefficient;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::at_each_level;

    /// By the C library's functions.
    fn want(activation: Activation, derivative: bool, z: f64) -> f64 {
        let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
        let cdf = 0.5 * libm::erfc(-z * FRAC_1_SQRT_2);
        let (s, t) = (sigmoid(z), sigmoid(2.0 * tanh_argument(z)));
        let slope = 2.0 * GELU_TANH_SCALE * (1.0 + 3.0 * GELU_TANH_CUBIC * z * z);
        match (activation, derivative) {
            (Activation::Silu, false) => z * s,
            (Activation::Silu, true) => s * (1.0 + z * (1.0 - s)),
            (Activation::Gelu, false) => z * cdf,
            (Activation::Gelu, true) => cdf + z * (-0.5 * z * z).exp() / (2.0 * PI).sqrt(),
            (Activation::GeluTanh, false) => z * t,
            (Activation::GeluTanh, true) => t + z * t * (1.0 - t) * slope,
            _ => unreachable!("not tested here"),
        }
    }

    #[test]
    fn activations_are_rounded_from_more_digits_than_f32_has() {
        at_each_level(|level| {
            for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
                for block in -2000..2000 {
                    let z: [f32; LANES] = core::array::from_fn(|i| (block as f32 + i as f32 / 16.0) / 100.0);
                    for derivative in [false, true] {
                        let got = match derivative {
                            false => activation.apply_each(z),
                            true => activation.derivative_each(z),
                        };
                        for (z, got) in z.into_iter().zip(got) {
                            let want = want(activation, derivative, f64::from(z));
                            // Sums of a derivative's terms may cancel.
                            let room = 1.2e-7 * want.abs() + if derivative { 1e-10 } else { 1e-38 };
                            let near = (f64::from(got) - want).abs() <= room;
                            assert!(
                                near,
                                "{level:?}: {activation:?} {derivative} at {z}: {got:e}, not {want:e}"
                            );
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn nan_and_infinity_go_through() {
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
            let got = activation.apply_each([f32::NAN; LANES]);
            assert!(got[0].is_nan() && activation.derivative_each([f32::NAN; LANES])[0].is_nan());
            assert_eq!(activation.apply_each([f32::INFINITY; LANES])[0], f32::INFINITY);
        }
    }
}
