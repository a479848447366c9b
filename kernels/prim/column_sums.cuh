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

/// The columns that a block sums: `columns` neighbors, a power of two up to `kMaxColumns`. Its other threads share their
/// rows.
template <int kMaxColumns = kWarp, int kMaxWarps = kWarps> class ColumnBlock {
 public:
  __device__ __forceinline__ ColumnBlock(int64_t cols, int columns, int64_t tile)
      : cols_(cols), columns_(columns), col_(tile * columns + threadIdx.x % columns) {}

  __host__ static int width(int64_t cols) {
    int columns = 1;
    while (columns < kMaxColumns && columns < cols) columns *= 2;
    return columns;
  }
  __host__ static int64_t blocks(int64_t cols) { return (cols + width(cols) - 1) / width(cols); }

  __device__ __forceinline__ int64_t col() const { return col_; }
  /// Whether this thread is the one to write its column's result.
  __device__ __forceinline__ bool writes() const { return static_cast<int>(threadIdx.x) < columns_ && col_ < cols_; }

  /// Sums this thread's column of two [rows, cols] matrices. All threads of the block call it.
  __device__ __forceinline__ ColumnSums sum(const float* first, const float* second, int64_t rows) const {
    const int threads = kMaxWarps == kWarps ? kThreads : static_cast<int>(blockDim.x);
    ColumnSums sums = ColumnSums::empty();
    if (col_ < cols_) {
      for (int64_t row = threadIdx.x / columns_; row < rows; row += threads / columns_) {
        sums.first.add(first[row * cols_ + col_]);
        sums.second.add(second[row * cols_ + col_]);
      }
    }
    return block_merge<kMaxColumns, kMaxWarps>(sums, columns_);
  }

 private:
  int64_t cols_;
  int columns_;
  int64_t col_;
};

/// Sums the columns of two [rows, cols] matrices in the launch whose blocks write them, once all of these have come
/// here; they are resident together. `put(col, sums)` takes the result of a column. All threads of all blocks call it.
/// `counters` are two, zero before and after.
template <int kMaxWarps = kWarps, class Put>
__device__ __forceinline__ void sum_columns_in_launch(const float* first, const float* second, int64_t rows, int64_t cols,
                                                      unsigned* counters, Put put) {
  constexpr int kMost = 8;  // 32 bytes side by side, the least that memory is read by
  int columns = kMost;
  while (columns / 2 >= cols) columns /= 2;
  const int64_t tiles = (cols + columns - 1) / columns;
  const unsigned blocks = gridDim.x;
  const unsigned summing = tiles < blocks ? static_cast<unsigned>(tiles) : blocks;
  __syncthreads();  // the writes of all threads come before the fence of the first
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(counters, 1u);
  }
  if (blockIdx.x >= summing) return;
  if (threadIdx.x == 0) {
    while (dev::poll(counters) < blocks) {
    }
    __threadfence();  // what the others wrote before their fence is read after this one
    // Whoever comes last knows that all have seen the others arrive.
    if (atomicInc(counters + 1, summing - 1) == summing - 1) atomicExch(counters, 0u);
  }
  __syncthreads();
  for (int64_t tile = blockIdx.x; tile < tiles; tile += blocks) {
    const ColumnBlock<kMost, kMaxWarps> block(cols, columns, tile);
    const ColumnSums total = block.sum(first, second, rows);
    if (block.writes()) put(block.col(), total);
  }
}

}  // namespace WN_NAMESPACE
