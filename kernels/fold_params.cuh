// Sums over the rows of partial results: the last step of dweight and dbias.
#pragma once

#include "prim/column_sums.cuh"
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

template <class T> __global__ void __launch_bounds__(kThreads, kMinBlocks) fold_params_kernel(const ParamSums sums, int columns) {
  const ColumnBlock block(sums.cols, columns);
  const ColumnSums total = block.sum(sums.dy, sums.dy_x_hat, sums.rows);
  if (!block.writes()) return;
  const bool is_f32 = sums.grad_dtype == WN_F32;
  ParamsOut<T>{sums.dweight, is_f32, sums.accumulate}.put(block.col(), total.second.total());
  ParamsOut<T>{sums.dbias, is_f32, sums.accumulate}.put(block.col(), total.first.total());
}

}  // namespace WN_NAMESPACE
