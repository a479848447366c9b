//! The element types.

use warpnorm::{
    DType, Element,
    half::{bf16, f16},
};

use crate::support::{data::Rng, judge::Format};

fn rounds_once<T: Element>() {
    let format = Format::of(T::DTYPE);
    let mut rng = Rng(1);
    for i in 0..20_000 {
        let v = rng.normal() * 10f64.powi(i % 9 - 6);
        let low = format.round(v);
        assert_eq!(f64::from(T::from_f64(low).to_f32()), low, "a value of the type stays");
        // Halfway between two neighbors, and as near to that as f64 can tell and f32 cannot.
        let tie = low + format.step(low) / 2.0;
        for v in [v, tie, tie * (1.0 + f64::EPSILON), tie * (1.0 - f64::EPSILON)] {
            assert_eq!(f64::from(T::from_f64(v).to_f32()), format.round(v), "{:?} from {v:e}", T::DTYPE);
        }
    }
}

#[test]
fn conversion_from_f64_rounds_once_to_f32() {
    rounds_once::<f32>();
}

#[test]
fn conversion_from_f64_rounds_once_to_f16() {
    rounds_once::<f16>();
}

#[test]
fn conversion_from_f64_rounds_once_to_bf16() {
    rounds_once::<bf16>();
}

#[test]
fn sizes_are_those_of_the_types() {
    assert_eq!(DType::F32.size(), size_of::<f32>());
    assert_eq!(DType::F16.size(), size_of::<f16>());
    assert_eq!(DType::BF16.size(), size_of::<bf16>());
}
