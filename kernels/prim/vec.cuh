// Packs: elements that cross the memory bus in one access.
#pragma once

#include "dev.cuh"
#include "warpnorm.h"

namespace WN_NAMESPACE {

/// Bytes of the widest access.
constexpr int kVecBytes = 16;

template <class T, int N> struct alignas(sizeof(T) * N) Pack {
  static_assert(sizeof(T) * N <= kVecBytes, "no access is wider");
  T lane[N];
};

/// What becomes of data in the L2 cache.
enum class Cache {
  kKeep,
  kPass  // it is not touched again soon, so it should be the first to make room
};

/// Reads `N` elements and widens them. `src` is aligned to the pack, or to 16 bytes where the pack is longer.
template <Cache kCache = Cache::kKeep, int N, class T> __device__ __forceinline__ void load(float (&dst)[N], const T* src) {
  constexpr int kPer = N * sizeof(T) <= kVecBytes ? N : kVecBytes / sizeof(T);
#pragma unroll
  for (int at = 0; at < N; at += kPer) {
    const auto pack = kCache == Cache::kKeep ? dev::load_vec<Pack<T, kPer>>(src + at)
                                             : dev::load_stream<Pack<T, kPer>>(src + at);
#pragma unroll
    for (int i = 0; i < kPer; ++i) dst[at + i] = dev::to_f32(pack.lane[i]);
  }
}

/// Rounds to nearest even and writes `N` elements. `dst` is aligned as in `load`.
template <Cache kCache = Cache::kKeep, int N, class T> __device__ __forceinline__ void store(T* dst, const float (&src)[N]) {
  constexpr int kPer = N * sizeof(T) <= kVecBytes ? N : kVecBytes / sizeof(T);
#pragma unroll
  for (int at = 0; at < N; at += kPer) {
    Pack<T, kPer> pack;
#pragma unroll
    for (int i = 0; i < kPer; ++i) pack.lane[i] = dev::from_f32<T>(src[at + i]);
    if constexpr (kCache == Cache::kKeep) {
      dev::store_vec(dst + at, pack);
    } else {
      dev::store_stream(dst + at, pack);
    }
  }
}

/// Weights or biases whose type is known at run time only: they are read so rarely that a branch costs nothing, and it
/// halves the number of kernels. `T` is the type of the activations, which they have unless they are `f32`.
template <class T> struct Params {
  const void* data;  // null: every value is `missing`
  bool is_f32;
  float missing;

  __device__ __forceinline__ float at(int64_t i) const {
    if (data == nullptr) return missing;
    return is_f32 ? static_cast<const float*>(data)[i] : dev::to_f32(static_cast<const T*>(data)[i]);
  }

  /// Values `i` to `i + N - 1`; `data` is aligned as `load` asks.
  template <int N> __device__ __forceinline__ void load_at(float (&dst)[N], int64_t i) const {
    if (data == nullptr) {
#pragma unroll
      for (int k = 0; k < N; ++k) dst[k] = missing;
    } else if (is_f32) {
      load(dst, static_cast<const float*>(data) + i);
    } else {
      load(dst, static_cast<const T*>(data) + i);
    }
  }
};

/// Where gradients of weights or biases go, likewise.
template <class T> struct ParamsOut {
  void* data;  // null: not wanted
  bool is_f32;
  bool accumulate;  // add to what is there

  __device__ __forceinline__ void put(int64_t i, float value) const {
    if (data == nullptr) return;
    if (is_f32) {
      float* at = static_cast<float*>(data) + i;
      *at = accumulate ? *at + value : value;
    } else {
      T* at = static_cast<T*>(data) + i;
      *at = dev::from_f32<T>(accumulate ? dev::to_f32(*at) + value : value);
    }
  }
};

template <class T> __host__ __device__ __forceinline__ Params<T> weight_params(const void* data, wn_dtype dtype) {
  return {data, dtype == WN_F32, 1.f};
}
template <class T> __host__ __device__ __forceinline__ Params<T> bias_params(const void* data, wn_dtype dtype) {
  return {data, dtype == WN_F32, 0.f};
}

}  // namespace WN_NAMESPACE
