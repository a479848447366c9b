// Sums over the rows of partial results: the last step of dweight and dbias.
#pragma once

#include "prim/reduce.cuh"
#include "prim/stats.cuh"
#include "prim/vec.cuh"

namespace WN_NAMESPACE {

/// What `fold_params` sums and where it puts the result.
struct ParamSums {
  const float* dy;        // [rows, cols]
  const float* dy_x_hat;  // [rows, cols]
  int64_t rows;
  int64_t cols;
  void* dweight;  // [cols] of `grad_dtype`; null means not wanted
  void* dbias;    // likewise
  wn_dtype x_dtype;
  wn_dtype grad_dtype;
  bool accumulate;
};

/// A block owns `columns` neighboring columns, a power of two up to 32; its other threads share their rows.
template <class T> __global__ void __launch_bounds__(kThreads) fold_params_kernel(const ParamSums sums, int columns) {
  constexpr int kChain = 256;
  const int64_t col = int64_t(blockIdx.x) * columns + threadIdx.x % columns;
  const int peers = kThreads / columns;
  using Stat = GradSums<1>;
  Stat all = Stat::empty();
  if (col < sums.cols) {
    Stat chain = Stat::empty();
    int length = 0;
    for (int64_t row = threadIdx.x / columns; row < sums.rows; row += peers) {
      chain.dy[0] += sums.dy[row * sums.cols + col];
      chain.dy_x_hat[0] += sums.dy_x_hat[row * sums.cols + col];
      if (++length < kChain) continue;
      all.merge(chain);
      chain = Stat::empty();
      length = 0;
    }
    all.merge(chain);
  }
  all = block_merge<kWarp>(all, columns);
  if (threadIdx.x >= columns || col >= sums.cols) return;
  ParamsOut<T>{sums.dweight, sums.grad_dtype == WN_F32, sums.accumulate}.put(col, all.dy_x_hat[0]);
  ParamsOut<T>{sums.dbias, sums.grad_dtype == WN_F32, sums.accumulate}.put(col, all.dy[0]);
}

}  // namespace WN_NAMESPACE
