// Activations and their derivatives, chosen at run time: they are uniform over a launch, and memory is what takes time.
#pragma once

#include <cmath>

#include "dev.cuh"
#include "warpnorm.h"

namespace WN_NAMESPACE {

/// Not 1 - sigmoid(-z), which has no digits left where it is small.
__device__ __forceinline__ float sigmoid(float z) { return 1.f / (1.f + expf(-z)); }

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
    case WN_ACT_SILU: return z * sigmoid(z);
    case WN_ACT_GELU: return z * normal_cdf(z);
    case WN_ACT_GELU_TANH: return z * sigmoid(gelu_tanh_argument(z));
  }
  return z;
}

__device__ __forceinline__ float activation_slope(wn_activation activation, float z) {
  switch (activation) {
    case WN_ACT_NONE: return 1.f;
    case WN_ACT_RELU: return z > 0.f ? 1.f : 0.f;
    case WN_ACT_SILU: {
      const float s = sigmoid(z);
      return s * (1.f + z * (1.f - s));
    }
    case WN_ACT_GELU: return normal_cdf(z) + z * (0.39894228040143268f * expf(-0.5f * z * z));
    case WN_ACT_GELU_TANH: {
      const float s = sigmoid(gelu_tanh_argument(z));
      return s + z * s * (1.f - s) * (1.5957691216057308f * (1.f + 3.f * 0.044715f * z * z));
    }
  }
  return 1.f;
}

}  // namespace WN_NAMESPACE
