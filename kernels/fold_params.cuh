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

struct FoldedSums {
  CompensatedSum dy, dy_x_hat;

  __device__ __forceinline__ static FoldedSums empty() { return {CompensatedSum::empty(), CompensatedSum::empty()}; }

  __device__ __forceinline__ void merge(const FoldedSums& other) {
    dy.merge(other.dy);
    dy_x_hat.merge(other.dy_x_hat);
  }
};

/// A block owns `columns` neighboring columns, a power of two up to 32; its other threads share their rows.
template <class T> __global__ void __launch_bounds__(kThreads) fold_params_kernel(const ParamSums sums, int columns) {
  const int thread = threadIdx.x;
  const int64_t col = int64_t(blockIdx.x) * columns + thread % columns;
  const int peers = kThreads / columns;
  FoldedSums all = FoldedSums::empty();
  if (col < sums.cols) {
    for (int64_t row = thread / columns; row < sums.rows; row += peers) {
      all.dy.add(sums.dy[row * sums.cols + col]);
      all.dy_x_hat.add(sums.dy_x_hat[row * sums.cols + col]);
    }
  }
  all = block_merge<kWarp>(all, columns);
  if (thread >= columns || col >= sums.cols) return;
  ParamsOut<T>{sums.dweight, sums.grad_dtype == WN_F32, sums.accumulate}.put(col, all.dy_x_hat.total());
  ParamsOut<T>{sums.dbias, sums.grad_dtype == WN_F32, sums.accumulate}.put(col, all.dy.total());
}

}  // namespace WN_NAMESPACE
