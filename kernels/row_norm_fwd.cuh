// Row norms forward: statistics of each row of cols elements, and y = (h - mean) * rstd * factor + bias, with h = x or
// h = x + residual. `Stat` is Moments<1> for LayerNorm and MeanSquare for RMSNorm.
#pragma once

#include "prim/row.cuh"
#include "prim/stats.cuh"

namespace WN_NAMESPACE {

/// Elements of a row that a thread pushes at a time where the row is held.
constexpr int kHeldChunk = 16;
/// Blocks of `kHeldThreads` threads that the compiler leaves registers for.
constexpr int kHeldFwdBlocks = 2;

/// Adds the residual and rounds to T: the sum is normalized as it would be read back.
template <class T, int kVec> __device__ __forceinline__ void add_rounded(float (&values)[kVec], const float (&addend)[kVec]) {
#pragma unroll
  for (int i = 0; i < kVec; ++i) values[i] = dev::to_f32(dev::from_f32<T>(values[i] + addend[i]));
}

/// The same for the first `loads` of a chunk, which is written to `h`.
template <int kStep, class T, int kLoads, int kVec>
__device__ __forceinline__ void add_residual(float (&values)[kLoads][kVec], const T* residual, T* h, int loads) {
#pragma unroll
  for (int k = 0; k < kLoads; ++k) {
    if (k >= loads) continue;
    float addend[kVec];
    load(addend, residual + k * kStep);
    add_rounded<T>(values[k], addend);
  }
  // All reads first: a write could be to what the next of them reads, for all that the compiler knows.
#pragma unroll
  for (int k = 0; k < kLoads; ++k)
    if (k < loads) store(h + k * kStep, values[k]);
}

/// Normalizes columns `col` and up, and writes them to `y`.
template <class T, int kVec>
__device__ __forceinline__ void store_cols(const wn_row_norm_fwd& args, T* y, int64_t col, float (&values)[kVec],
                                           float mean, float rstd) {
  float factor[kVec], bias[kVec];
  load_factor<T>(factor, args.weight, args.param_dtype, args.weight_offset, col);
  bias_params<T>(args.bias, args.param_dtype).load_at(bias, col);
#pragma unroll
  for (int i = 0; i < kVec; ++i) values[i] = (values[i] - mean) * rstd * factor[i] + bias[i];
  store(y, values);
}

__device__ __forceinline__ void save_row(const wn_row_norm_fwd& args, int64_t row, float mean, float rstd) {
  if (args.mean) args.mean[row] = mean;
  if (args.rstd) args.rstd[row] = rstd;
}

/// The row is held in shared memory while its statistics are gathered: one read, one write. Where the plan has two
/// stages, the next row is on its way meanwhile.
template <class T, int kVec, class Stat>
__global__ void __launch_bounds__(kHeldThreads, kHeldFwdBlocks)
    row_norm_fwd_held(const wn_row_norm_fwd args, const wn_row_plan plan) {
  constexpr int kLoads = kVec == 1 ? kHeldChunk / 2 : kHeldChunk / kVec;  // single ones, with addresses each, cost registers
  DEV_DYN_SHARED(T, slots);
  const RowTile<T, kVec> tile(slots, plan, args.cols, args.residual ? 2 : 1);
  const int loads = tile.loads();
  const int step = tile.step();
  const int64_t col = tile.col();
  const auto fetch = [&](int stage, int64_t row) {
    if (row < args.rows) {
      const RowAt at(row, args.block, args.cols);
      tile.copy(stage, 0, at.in<T>(args.x, args.x_stride, col));
      if (args.residual) tile.copy(stage, 1, at.in<T>(args.residual, args.residual_stride, col));
    }
    dev::copy_commit();
  };
  const int64_t stride = int64_t(plan.parts) * tile.groups();
  int64_t first = int64_t(blockIdx.x / plan.cluster) * tile.groups();  // the same for all threads, which merge together
  int stage = 0, parity = 0;
  if (plan.stages == 2) fetch(stage, first + tile.group());
  for (; first < args.rows; first += stride, parity ^= 1) {
    const int64_t row = first + tile.group();
    if (plan.stages == 2) {
      fetch(stage ^ 1, row + stride);
    } else {
      fetch(stage, row);
    }
    wait_for_row(plan.stages);
    const bool active = row < args.rows;
    const RowAt at(row, args.block, args.cols);
    Stat stat = Stat::empty();
    for (int k = 0; active && k < loads; k += kLoads) {
      const int count = loads - k < kLoads ? loads - k : kLoads;
      float values[kLoads][kVec];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (i < count) {
          load(values[i], tile.slot(stage, 0, k + i));
        } else {
#pragma unroll
          for (int e = 0; e < kVec; ++e) values[i][e] = 0.f;
        }
      }
      if (args.residual) {
        T* h = at.in<T>(args.h, args.h_stride, col) + k * step;
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
          if (i >= count) continue;
          float addend[kVec];
          load(addend, tile.slot(stage, 1, k + i));
          add_rounded<T>(values[i], addend);
          store(tile.slot(stage, 0, k + i), values[i]);
          store(h + i * step, values[i]);
        }
      }
      if (count == kLoads) {
        stat.push(values, kLoads);  // a constant spares the comparisons
      } else {
        stat.push(values, count);
      }
    }
    stat = tile.merge(stat, parity);
    if (active) {
      const float mean = stat.center(0);
      const float rstd = reciprocal_std(stat.var(0), args.eps);
      if (tile.leads()) save_row(args, row, mean, rstd);
      T* y = at.in<T>(args.y, args.y_stride, col);
#pragma unroll 2
      for (int k = 0; k < loads; ++k) {
        float values[kVec];
        load(values, tile.slot(stage, 0, k));
        store_cols<T>(args, y + k * step, col + k * step, values, mean, rstd);
      }
    }
    if (plan.stages == 2) stage ^= 1;
  }
  tile.finish();
}

/// A block reads its row twice, the second time from cache where it fits.
template <class T, int kVec, class Stat>
__global__ void __launch_bounds__(kThreads, kMinBlocks) row_norm_fwd_stream(const wn_row_norm_fwd args) {
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
#pragma unroll
      for (int k = 0; k < kLoads; ++k)
        if (k < loads) store_cols<T>(args, y + col + k * kStep, col + k * kStep, values[k], mean, rstd);
    }
  }
}

}  // namespace WN_NAMESPACE
