// Row norms forward: statistics of each row of cols elements, and y = (h - mean) * rstd * factor + bias, with h = x or
// h = x + residual. `Stat` is Moments<1> for LayerNorm and MeanSquare for RMSNorm.
#pragma once

#include "prim/row.cuh"
#include "prim/stats.cuh"

namespace WN_NAMESPACE {

/// Adds the residual to the first `loads` of x and rounds to T: the sum is normalized as it would be read back.
template <int kStep, class T, int kLoads, int kVec>
__device__ __forceinline__ void add_residual(float (&values)[kLoads][kVec], const T* residual, T* h, int loads) {
#pragma unroll
  for (int k = 0; k < kLoads; ++k) {
    if (k >= loads) continue;
    float addend[kVec];
    load(addend, residual + k * kStep);
#pragma unroll
    for (int i = 0; i < kVec; ++i) values[k][i] = dev::to_f32(dev::from_f32<T>(values[k][i] + addend[i]));
  }
  // All reads first: a write could be to what the next of them reads, for all that the compiler knows.
#pragma unroll
  for (int k = 0; k < kLoads; ++k)
    if (k < loads) store(h + k * kStep, values[k]);
}

/// Normalizes the first `loads` of a chunk that starts at column `col`, and writes them from `y` on.
template <int kStep, class T, int kLoads, int kVec>
__device__ __forceinline__ void store_cols(const wn_row_norm_fwd& args, T* y, int64_t col,
                                           float (&values)[kLoads][kVec], int loads, float mean, float rstd) {
#pragma unroll
  for (int k = 0; k < kLoads; ++k) {
    if (k >= loads) continue;
    float factor[kVec], bias[kVec];
    load_factor<T>(factor, args.weight, args.param_dtype, args.weight_offset, col + k * kStep);
    bias_params<T>(args.bias, args.param_dtype).load_at(bias, col + k * kStep);
#pragma unroll
    for (int i = 0; i < kVec; ++i) values[k][i] = (values[k][i] - mean) * rstd * factor[i] + bias[i];
    store(y + k * kStep, values[k]);
  }
}

__device__ __forceinline__ void save_row(const wn_row_norm_fwd& args, int64_t row, float mean, float rstd) {
  if (args.mean) args.mean[row] = mean;
  if (args.rstd) args.rstd[row] = rstd;
}

/// A warp holds its row in registers: one read, one write.
template <class T, int kVec, class Stat>
__global__ void __launch_bounds__(kThreads, kMinBlocks) row_norm_fwd_warp(const wn_row_norm_fwd args) {
  constexpr int kStep = kWarp * kVec;
  const int lane = threadIdx.x % kWarp;
  const int col = lane * kVec;
  const int cols = static_cast<int>(args.cols);  // the launcher admits no more than kWarpRow
  const int64_t step = int64_t(gridDim.x) * kWarps;
  for (int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; row < args.rows; row += step) {
    const RowAt at(row, args.block, args.cols);
    float values[kWarpRow / kStep][kVec];
    const int loads = load_cols<kStep>(values, at.in<T>(args.x, args.x_stride, col), col, cols);
    if (args.residual) {
      const T* residual = at.in<T>(args.residual, args.residual_stride, col);
      add_residual<kStep>(values, residual, at.in<T>(args.h, args.h_stride, col), loads);
    }
    Stat stat = Stat::empty();
    if (loads > 0) stat.push(values, loads);
    stat = warp_merge_all(stat);
    const float mean = stat.center(0);
    const float rstd = reciprocal_std(stat.var(0), args.eps);
    if (lane == 0) save_row(args, row, mean, rstd);
    store_cols<kStep>(args, at.in<T>(args.y, args.y_stride, col), col, values, loads, mean, rstd);
  }
}

/// A block reads its row twice, the second time from cache where it fits.
template <class T, int kVec, class Stat>
__global__ void __launch_bounds__(kThreads, kMinBlocks) row_norm_fwd_block(const wn_row_norm_fwd args) {
  constexpr int kStep = kThreads * kVec;
  constexpr int kLoads = kRowChunk / kVec;
  for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const RowAt at(row, args.block, args.cols);
    const T* x = at.in<T>(args.x, args.x_stride, 0);
    const T* residual = at.in<T>(args.residual, args.residual_stride, 0);
    T* h = at.in<T>(args.h, args.h_stride, 0);
    T* y = at.in<T>(args.y, args.y_stride, 0);
    float values[kLoads][kVec];
    Cascade<Stat> cascade = Cascade<Stat>::empty();
    for (int64_t col = threadIdx.x * kVec; col < args.cols; col += kStep * kLoads) {
      const int loads = load_cols<kStep>(values, x + col, col, args.cols);
      if (residual) add_residual<kStep>(values, residual + col, h + col, loads);
      cascade.push(values, loads);
    }
    const Stat stat = block_merge<1>(cascade.total(), 1);
    const float mean = stat.center(0);
    const float rstd = reciprocal_std(stat.var(0), args.eps);
    if (threadIdx.x == 0) save_row(args, row, mean, rstd);
    // Each thread reads again what it alone has read or written, so y may be x and h needs no barrier.
    const T* again = residual ? h : x;
    for (int64_t col = threadIdx.x * kVec; col < args.cols; col += kStep * kLoads) {
      const int loads = load_cols<kStep>(values, again + col, col, args.cols);
      store_cols<kStep>(args, y + col, col, values, loads, mean, rstd);
    }
  }
}

}  // namespace WN_NAMESPACE
