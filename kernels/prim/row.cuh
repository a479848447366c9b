// What the row norms of both directions share: where a row lies, and how threads read it.
#pragma once

#include "prim/reduce.cuh"
#include "prim/vec.cuh"

namespace WN_NAMESPACE {

/// Columns that a warp holds in registers.
constexpr int kWarpRow = 1024;

/// Elements that a thread of a block reads of a row at a time.
constexpr int kRowChunk = 8;

/// Where a row lies in each tensor of a call; warpnorm.h has the formula.
class RowAt {
 public:
  /// Dense tensors, whose `block` is 1, are spared the division.
  __device__ __forceinline__ RowAt(int64_t row, int64_t block, int64_t cols) : entry_(row), within_(0) {
    if (block == 1) return;
    entry_ = row / block;
    within_ = (row - entry_ * block) * cols;
  }

  /// Element `col` of the row in a tensor of this stride; null where the tensor is.
  template <class T> __device__ __forceinline__ const T* in(const void* data, int64_t stride, int64_t col) const {
    return data ? static_cast<const T*>(data) + (entry_ * stride + within_ + col) : nullptr;
  }
  template <class T> __device__ __forceinline__ T* in(void* data, int64_t stride, int64_t col) const {
    return data ? static_cast<T*>(data) + (entry_ * stride + within_ + col) : nullptr;
  }

 private:
  int64_t entry_, within_;
};

/// Reads a chunk of loads that lie `kStep` elements apart, of which the first starts at column `col` and at address
/// `at`. Those behind the row become zeros. Returns how many lie within.
template <int kStep, class T, int kLoads, int kVec>
__device__ __forceinline__ int load_cols(float (&values)[kLoads][kVec], const T* at, int64_t col, int64_t cols) {
  int loads = 0;
#pragma unroll
  for (int k = 0; k < kLoads; ++k) {
    if (col + k * kStep < cols) {
      load(values[k], at + k * kStep);
      loads = k + 1;
    } else {
#pragma unroll
      for (int i = 0; i < kVec; ++i) values[k][i] = 0.f;
    }
  }
  return loads;
}

/// What columns `col` and up are multiplied with: `offset + weight`, or 1 where there is no weight.
template <class T, int kVec>
__device__ __forceinline__ void load_factor(float (&factor)[kVec], const void* weight, wn_dtype dtype, float offset,
                                            int64_t col) {
  weight_params<T>(weight, dtype).load_at(factor, col);
  if (weight == nullptr) return;
#pragma unroll
  for (int i = 0; i < kVec; ++i) factor[i] += offset;
}

}  // namespace WN_NAMESPACE
