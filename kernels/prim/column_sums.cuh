// Two sums over the rows of partial results, which is the last step of several kernels.
#pragma once

#include "prim/reduce.cuh"
#include "prim/stats.cuh"

namespace WN_NAMESPACE {

/// Sums of one column of two matrices.
struct ColumnSums {
  CompensatedSum first, second;

  __device__ __forceinline__ static ColumnSums empty() { return {CompensatedSum::empty(), CompensatedSum::empty()}; }
  __device__ __forceinline__ void merge(const ColumnSums& other) {
    first.merge(other.first);
    second.merge(other.second);
  }
};

/// The columns that a block sums: `columns` neighbors, a power of two up to 32. Its other threads share their rows.
class ColumnBlock {
 public:
  __device__ __forceinline__ ColumnBlock(int64_t cols, int columns)
      : cols_(cols), columns_(columns), col_(int64_t(blockIdx.x) * columns + threadIdx.x % columns) {}

  __host__ static int width(int64_t cols) {
    int columns = 1;
    while (columns < kWarp && columns < cols) columns *= 2;
    return columns;
  }
  __host__ static int64_t blocks(int64_t cols) { return (cols + width(cols) - 1) / width(cols); }

  __device__ __forceinline__ int64_t col() const { return col_; }
  /// Whether this thread is the one to write its column's result.
  __device__ __forceinline__ bool writes() const { return static_cast<int>(threadIdx.x) < columns_ && col_ < cols_; }

  /// Sums this thread's column of two [rows, cols] matrices. All threads of the block call it.
  __device__ __forceinline__ ColumnSums sum(const float* first, const float* second, int64_t rows) const {
    ColumnSums sums = ColumnSums::empty();
    if (col_ < cols_) {
      for (int64_t row = threadIdx.x / columns_; row < rows; row += kThreads / columns_) {
        sums.first.add(first[row * cols_ + col_]);
        sums.second.add(second[row * cols_ + col_]);
      }
    }
    return block_merge<kWarp>(sums, columns_);
  }

 private:
  int64_t cols_;
  int columns_;
  int64_t col_;
};

}  // namespace WN_NAMESPACE
