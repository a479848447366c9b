use std::f64::consts::{FRAC_1_SQRT_2, PI};

use crate::Activation;

/// `sqrt(2 / pi)`.
const GELU_TANH_SCALE: f64 = 0.797_884_560_802_865_4;
const GELU_TANH_CUBIC: f64 = 0.044_715;

impl Activation {
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

    pub(super) fn derivative(self, z: f64) -> f64 {
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
            Self::Gelu => normal_cdf(z) + z * (-0.5 * z * z).exp() / (2.0 * PI).sqrt(),
            Self::GeluTanh => {
                let s = sigmoid(2.0 * tanh_argument(z));
                let slope = 2.0 * GELU_TANH_SCALE * (1.0 + 3.0 * GELU_TANH_CUBIC * z * z);
                s + z * s * (1.0 - s) * slope
            }
        }
    }
}

fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

fn normal_cdf(z: f64) -> f64 {
    0.5 * libm::erfc(-z * FRAC_1_SQRT_2)
}

fn tanh_argument(z: f64) -> f64 {
    GELU_TANH_SCALE * (z + GELU_TANH_CUBIC * z * z * z)
}
