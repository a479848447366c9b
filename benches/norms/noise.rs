//! What tensors are filled with. The workers of `benches/peers/cpu` make the same values, so that results can be compared.

use warpnorm::{
    Element,
    half::{bf16, f16},
};

/// Values after which they come again.
const PERIOD: usize = 1 << 20;
/// More than a tensor takes, for those that start at another place.
const MORE: usize = 4;

/// In each type, as many values as have been asked for.
#[derive(Default)]
pub(crate) struct Noise {
    pub(crate) f32: Vec<f32>,
    pub(crate) f16: Vec<f16>,
    pub(crate) bf16: Vec<bf16>,
}

/// Enough for a tensor of `len` elements.
pub(crate) fn enough<T: Element>(noise: &mut Vec<T>, len: usize) -> &[T] {
    noise.extend((noise.len()..PERIOD).map(|i| T::from_f32(value(i as u32))));
    while noise.len() < len + MORE {
        let last = noise.len() - PERIOD;
        noise.extend_from_within(last..last + PERIOD.min(len + MORE - noise.len()));
    }
    noise
}

/// Spread evenly over [-0.75, 1.25): a mean of 0 would hide that a mean is not subtracted. Exact in `f32`.
fn value(i: u32) -> f32 {
    let mut bits = (i + 1).wrapping_mul(0x9e37_79b1);
    bits ^= bits >> 15;
    bits = bits.wrapping_mul(0x85eb_ca77);
    bits ^= bits >> 13;
    (bits >> 8) as f32 / (1 << 23) as f32 - 0.75
}
