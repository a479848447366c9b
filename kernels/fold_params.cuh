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

/// Writes the gradients of column `col`.
template <class T>
__device__ __forceinline__ void put_params(const ParamSums& to, int64_t col, const ColumnSums& total) {
  const bool is_f32 = to.grad_dtype == WN_F32;
  ParamsOut<T>{to.dweight, is_f32, to.accumulate}.put(col, total.second.total());
  ParamsOut<T>{to.dbias, is_f32, to.accumulate}.put(col, total.first.total());
}

template <class T> __global__ void __launch_bounds__(kThreads, kMinBlocks) fold_params_kernel(const ParamSums sums, int columns) {
  const ColumnBlock<> block(sums.cols, columns, blockIdx.x);
  const ColumnSums total = block.sum(sums.dy, sums.dy_x_hat, sums.rows);
  if (block.writes()) put_params<T>(sums, block.col(), total);
}

/// The same in the launch whose blocks, which are resident together, write the partial results. All of their threads
/// call it; `counters` are two, zero before and after.
template <class T, int kMaxWarps = kWarps>
__device__ __forceinline__ void fold_params_in_launch(const ParamSums& sums, unsigned* counters) {
  sum_columns_in_launch<kMaxWarps>(sums.dy, sums.dy_x_hat, sums.rows, sums.cols, counters,
                                   [&](int64_t col, const ColumnSums& total) { put_params<T>(sums, col, total); });
}

/// Where `args`, of either family, want the sums over the rows of [2, rows, cols] partial results.
template <class Args>
__host__ __device__ __forceinline__ ParamSums param_sums(const Args& args, const float* partials, int64_t rows, int64_t cols) {
  return {partials,
          partials ? partials + rows * cols : nullptr,
          rows,
          cols,
          args.dweight,
          args.dbias,
          args.x_dtype,
          args.grad_dtype,
          args.accumulate != 0};
}

}  // namespace WN_NAMESPACE
