// Row norms forward: statistics of each row of cols elements, and y = (x - mean) * rstd * weight + bias.
#pragma once

#include "prim/reduce.cuh"
#include "prim/stats.cuh"
#include "prim/vec.cuh"

namespace WN_NAMESPACE {

/// Normalizes elements `col` to `col + kVec - 1` of a row and writes them.
template <class T, int kVec>
__device__ __forceinline__ void store_row(const wn_row_norm_fwd& args, T* y, int col, float (&values)[kVec], float mean,
                                          float rstd) {
  float weight[kVec], bias[kVec];
  weight_params<T>(args.weight, args.param_dtype).load_at(weight, col);
  bias_params<T>(args.bias, args.param_dtype).load_at(bias, col);
#pragma unroll
  for (int i = 0; i < kVec; ++i) values[i] = (values[i] - mean) * rstd * weight[i] + bias[i];
  store(y + col, values);
}

__device__ __forceinline__ void save_row(const wn_row_norm_fwd& args, int64_t row, float mean, float rstd) {
  if (args.mean) args.mean[row] = mean;
  if (args.rstd) args.rstd[row] = rstd;
}

/// Columns that a warp holds in registers.
constexpr int kWarpRow = 1024;

/// A warp holds its row in registers: one read, one write.
template <class T, int kVec>
__global__ void __launch_bounds__(kThreads) row_norm_fwd_warp(const wn_row_norm_fwd args) {
  constexpr int kLoads = kWarpRow / kWarp / kVec;
  const int lane = threadIdx.x % kWarp;
  const int cols = static_cast<int>(args.cols);  // the plan sends no more than kWarpRow
  const int64_t step = int64_t(gridDim.x) * kWarps;
  for (int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; row < args.rows; row += step) {
    const T* x = static_cast<const T*>(args.x) + row * args.x_row_stride;
    T* y = static_cast<T*>(args.y) + row * args.y_row_stride;
    float values[kLoads][kVec];
    int loads = 0;
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int col = (k * kWarp + lane) * kVec;
      if (col < cols) {
        load(values[k], x + col);
        loads = k + 1;
      } else {
#pragma unroll
        for (int i = 0; i < kVec; ++i) values[k][i] = 0.f;
      }
    }
    Moments<1> stat = Moments<1>::empty();
    if (loads > 0) stat.push(values, loads);
    stat = warp_merge_all(stat);
    const float mean = stat.mean[0];
    const float rstd = reciprocal_std(stat.var(0), args.eps);
    if (lane == 0) save_row(args, row, mean, rstd);
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int col = (k * kWarp + lane) * kVec;
      if (col < cols) store_row(args, y, col, values[k], mean, rstd);
    }
  }
}

/// A block reads its row twice, the second time from cache where it fits.
template <class T, int kVec>
__global__ void __launch_bounds__(kThreads) row_norm_fwd_block(const wn_row_norm_fwd args) {
  constexpr int kLoads = 8 / kVec;
  constexpr int kStride = kThreads * kVec;
  const int cols = static_cast<int>(args.cols);  // RowShape admits less than 2^31
  for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const T* x = static_cast<const T*>(args.x) + row * args.x_row_stride;
    T* y = static_cast<T*>(args.y) + row * args.y_row_stride;
    MomentsCascade cascade = MomentsCascade::empty();
    for (int64_t col = threadIdx.x * kVec; col < cols; col += kStride * kLoads) {
      float values[kLoads][kVec];
      int loads = 0;
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        if (col + k * kStride < cols) {
          load(values[k], x + col + k * kStride);
          loads = k + 1;
        } else {
#pragma unroll
          for (int i = 0; i < kVec; ++i) values[k][i] = 0.f;
        }
      }
      cascade.push(values, loads);
    }
    const Moments<1> stat = block_merge<1>(cascade.total(), 1);
    const float mean = stat.mean[0];
    const float rstd = reciprocal_std(stat.var(0), args.eps);
    if (threadIdx.x == 0) save_row(args, row, mean, rstd);
    for (int64_t col = threadIdx.x * kVec; col < cols; col += kStride) {
      float values[kVec];
      load(values, x + col);
      store_row(args, y, static_cast<int>(col), values, mean, rstd);
    }
  }
}

}  // namespace WN_NAMESPACE
