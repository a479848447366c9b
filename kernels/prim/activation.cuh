// Activations and their derivatives, chosen at run time: they are uniform over a launch, and memory is what takes time.
#pragma once

#include <cmath>

#include "dev.cuh"
#include "warpnorm.h"

namespace WN_NAMESPACE {

/// sigmoid(z), and sigmoid(-z), which as one less the other would have no digits left where it is small.
struct Sigmoid {
  float of, of_negative;

  __device__ __forceinline__ explicit Sigmoid(float z) {
    const float small = expf(-fabsf(z));  // at most 1, so nothing overflows
    const float large_side = 1.f / (1.f + small);
    const float small_side = small * large_side;
    of = z < 0.f ? small_side : large_side;
    of_negative = z < 0.f ? large_side : small_side;
  }
};

/// Distribution function of the normal distribution, to a few units of its own last place for negative z too.
__device__ __forceinline__ float normal_cdf(float z) { return 0.5f * erfcf(z * -0.70710678118654752f); }

/// z / 2 * (1 + tanh(a)) = z * sigmoid(2 a), and this is 2 a.
__device__ __forceinline__ float gelu_tanh_argument(float z) {
  return 1.5957691216057308f * (z + 0.044715f * z * z * z);
}

__device__ __forceinline__ float activate(wn_activation activation, float z) {
  switch (activation) {
    case WN_ACT_NONE: return z;
    case WN_ACT_RELU: return z < 0.f ? 0.f : z;  // NaN stays NaN
    case WN_ACT_SILU: return z * Sigmoid(z).of;
    case WN_ACT_GELU: return z * normal_cdf(z);
    case WN_ACT_GELU_TANH: return z * Sigmoid(gelu_tanh_argument(z)).of;
  }
  return z;
}

/// The gradient of z, where d is that of `activate(z)`.
__device__ __forceinline__ float activation_grad(wn_activation activation, float d, float z) {
  switch (activation) {
    case WN_ACT_NONE: return d;
    case WN_ACT_RELU: return z <= 0.f ? 0.f : d;  // no factor: it passes where z is NaN, and nothing does where z <= 0
    case WN_ACT_SILU: {
      const Sigmoid s(z);
      return d * (s.of * (1.f + z * s.of_negative));
    }
    case WN_ACT_GELU: return d * (normal_cdf(z) + z * (0.39894228040143268f * expf(-0.5f * z * z)));
    case WN_ACT_GELU_TANH: {
      const Sigmoid s(gelu_tanh_argument(z));
      return d * (s.of + z * s.of * s.of_negative * (1.5957691216057308f * (1.f + 3.f * 0.044715f * z * z)));
    }
  }
  return d;
}

}  // namespace WN_NAMESPACE
