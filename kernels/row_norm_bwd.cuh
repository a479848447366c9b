// Row norms backward: dx by the row, dweight and dbias as partial sums over the rows of a part, which `fold_params`
// adds up. A warp that holds its rows in registers does both in one read; longer rows take a kernel for each.
#pragma once

#include "prim/row.cuh"
#include "prim/stats.cuh"

namespace WN_NAMESPACE {

struct RowStats {
  float mean, rstd;
};

__device__ __forceinline__ RowStats row_stats(const wn_row_norm_bwd& args, int64_t row) {
  return {args.rms ? 0.f : args.mean[row], args.rstd[row]};
}

/// Means of g and of g * x_hat over a row.
struct RowMeans {
  float g, g_x_hat;
};

__device__ __forceinline__ RowMeans row_means(const wn_row_norm_bwd& args, const GradSums<1>& sums) {
  const float cols = static_cast<float>(args.cols);
  return {args.rms ? 0.f : sums.dy[0].total() / cols, sums.dy_x_hat[0].total() / cols};  // RMSNorm subtracts no mean(g)
}

/// Turns x into x_hat.
template <int kVec> __device__ __forceinline__ void standardize(float (&x)[kVec], const RowStats& stats) {
#pragma unroll
  for (int i = 0; i < kVec; ++i) x[i] = (x[i] - stats.mean) * stats.rstd;
}

/// Turns dy of columns `col` and up into g.
template <class T, int kVec>
__device__ __forceinline__ void scale(float (&dy)[kVec], const wn_row_norm_bwd& args, int64_t col) {
  float factor[kVec];
  load_factor<T>(factor, args.weight, args.param_dtype, args.weight_offset, col);
#pragma unroll
  for (int i = 0; i < kVec; ++i) dy[i] *= factor[i];
}

/// Writes dx of `kVec` elements; `dh` is where the gradient lies that is added, or null.
template <class T, int kVec>
__device__ __forceinline__ void store_dx(T* dx, const T* dh, const float (&g)[kVec], const float (&x_hat)[kVec],
                                         const RowStats& stats, const RowMeans& means) {
  float values[kVec];
#pragma unroll
  for (int i = 0; i < kVec; ++i) values[i] = stats.rstd * (g[i] - means.g - x_hat[i] * means.g_x_hat);
  if (dh) {
    float addend[kVec];
    load(addend, dh);
#pragma unroll
    for (int i = 0; i < kVec; ++i) values[i] += addend[i];
  }
  store(dx, values);
}

/// Columns whose sums the warps of a block hand over at a time.
constexpr int kStage = kThreads;

/// What a warp has summed of them.
struct alignas(kVecBytes) StagedSums {
  float dy[kStage];
  float dy_x_hat[kStage];
};

/// Adds what the warps have staged for columns `first` to `first + kWidth - 1`, in the order of the warps, and writes
/// the sums of a part. All threads of the block call it, their own sums staged; then `staged` may be written again.
template <int kWidth, int kVec>
__device__ __forceinline__ void store_part(const wn_row_norm_bwd& args, const StagedSums (&staged)[kWarps], int part,
                                           int parts, int64_t first) {
  constexpr int kPer = kVec > 1 ? kVecBytes / sizeof(float) : 1;
  static_assert(kWidth <= kStage && kStage <= kThreads * kPer, "every column has a thread");
  __syncthreads();  // all warps have staged
  const int i = threadIdx.x * kPer;
  if (i < kWidth && first + i < args.cols) {
    float dy[kPer], dy_x_hat[kPer];
    load(dy, staged[0].dy + i);
    load(dy_x_hat, staged[0].dy_x_hat + i);
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) {
      float more_dy[kPer], more_dy_x_hat[kPer];
      load(more_dy, staged[warp].dy + i);
      load(more_dy_x_hat, staged[warp].dy_x_hat + i);
#pragma unroll
      for (int k = 0; k < kPer; ++k) {
        dy[k] += more_dy[k];
        dy_x_hat[k] += more_dy_x_hat[k];
      }
    }
    store(args.workspace + (part * args.cols + first + i), dy);
    store(args.workspace + ((int64_t(parts) + part) * args.cols + first + i), dy_x_hat);
  }
  __syncthreads();  // before a warp stages anew
}

template <class T, int kVec> __device__ __forceinline__ void widen(float (&dst)[kVec], const Pack<T, kVec>& pack) {
#pragma unroll
  for (int i = 0; i < kVec; ++i) dst[i] = dev::to_f32(pack.lane[i]);
}

/// What a lane holds of a row, as it is stored: in 16 bits that takes half the registers.
template <class T, int kVec> struct HeldRow {
  static constexpr int kStep = kWarp * kVec;
  static constexpr int kLoads = kWarpRow / kStep;
  Pack<T, kVec> x[kLoads], dy[kLoads];
  RowStats stats;

  __device__ __forceinline__ void read(const wn_row_norm_bwd& args, int64_t row, int col) {
    const RowAt at(row, args.block, args.cols);
    const T* from_x = at.in<T>(args.x, args.x_stride, col);
    const T* from_dy = at.in<T>(args.dy, args.dy_stride, col);
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (col + k * kStep >= args.cols) continue;
      x[k] = dev::load_vec<Pack<T, kVec>>(from_x + k * kStep);
      dy[k] = dev::load_vec<Pack<T, kVec>>(from_dy + k * kStep);
    }
    stats = row_stats(args, row);
  }
};

/// A block takes the rows of a part, a warp one of them at a time, which it holds in registers: one read of x and dy.
/// A lane sums the columns it owns over all rows of its warp.
///
/// The sums leave room for one block per SM, too few warps to hide the latency of memory by their number where rows are
/// of 16 bits. There the next row is on its way while a warp computes.
template <class T, int kVec>
__global__ void __launch_bounds__(kThreads, kMinBlocks) row_norm_bwd_warp(const wn_row_norm_bwd args, const int64_t span) {
  using Held = HeldRow<T, kVec>;
  constexpr int kStep = Held::kStep;
  constexpr int kLoads = Held::kLoads;
  constexpr bool kAhead = sizeof(T) == 2 && kVec > 1;
  DEV_SHARED_ARRAY(StagedSums, staged, kWarps);
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int col = lane * kVec;
  const int cols = static_cast<int>(args.cols);  // the launcher admits no more than kWarpRow
  const bool sums_wanted = args.dweight || args.dbias;
  float dbias[kLoads][kVec], dweight[kLoads][kVec];
#pragma unroll
  for (int k = 0; k < kLoads; ++k)
#pragma unroll
    for (int i = 0; i < kVec; ++i) dbias[k][i] = dweight[k][i] = 0.f;

  const int64_t begin = blockIdx.x * span;
  const int64_t end = args.rows - begin < span ? args.rows : begin + span;
  int64_t row = begin + warp;
  Held held;
  if (row < end) held.read(args, row, col);
  for (; row < end; row += kWarps) {
    Held next;
    if (kAhead && row + kWarps < end) next.read(args, row + kWarps, col);
    float g[1][kVec], x_hat[1][kVec];
    GradSums<1> sums = GradSums<1>::empty();
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (col + k * kStep >= cols) continue;
      widen(x_hat[0], held.x[k]);
      widen(g[0], held.dy[k]);
      standardize(x_hat[0], held.stats);
      if (sums_wanted) {
#pragma unroll
        for (int i = 0; i < kVec; ++i) {
          dbias[k][i] += g[0][i];
          dweight[k][i] += g[0][i] * x_hat[0][i];
        }
      }
      scale<T>(g[0], args, col + k * kStep);
      sums.push(g, x_hat, 1);
    }
    if (args.dx) {
      const RowMeans means = row_means(args, warp_merge_all(sums));
      const RowAt at(row, args.block, args.cols);
      const T* dh = at.in<T>(args.dh, args.dh_stride, col);
      T* dx = at.in<T>(args.dx, args.dx_stride, col);
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        if (col + k * kStep >= cols) continue;
        widen(x_hat[0], held.x[k]);
        widen(g[0], held.dy[k]);
        standardize(x_hat[0], held.stats);
        scale<T>(g[0], args, col + k * kStep);
        store_dx(dx + k * kStep, dh ? dh + k * kStep : nullptr, g[0], x_hat[0], held.stats, means);
      }
    }
    if (kAhead) {
      held = next;
    } else if (row + kWarps < end) {
      held.read(args, row + kWarps, col);
    }
  }

  if (!sums_wanted) return;
  constexpr int kPerStage = kStage / kStep;
#pragma unroll
  for (int first = 0; first < kLoads; first += kPerStage) {
    if (first * kStep >= cols) break;
#pragma unroll
    for (int k = 0; k < kPerStage; ++k) {
      store(staged[warp].dy + col + k * kStep, dbias[first + k]);
      store(staged[warp].dy_x_hat + col + k * kStep, dweight[first + k]);
    }
    store_part<kStage, kVec>(args, staged, blockIdx.x, gridDim.x, first * kStep);
  }
}

/// dx of rows of any length: a block reads its row twice, the second time from cache where it fits.
template <class T, int kVec>
__global__ void __launch_bounds__(kThreads, kMinBlocks) row_norm_bwd_block(const wn_row_norm_bwd args) {
  constexpr int kStep = kThreads * kVec;
  constexpr int kLoads = kRowChunk / kVec;
  for (int64_t row = blockIdx.x; row < args.rows; row += gridDim.x) {
    const RowAt at(row, args.block, args.cols);
    const T* x = at.in<T>(args.x, args.x_stride, 0);
    const T* dy = at.in<T>(args.dy, args.dy_stride, 0);
    const T* dh = at.in<T>(args.dh, args.dh_stride, 0);
    T* dx = at.in<T>(args.dx, args.dx_stride, 0);
    const RowStats stats = row_stats(args, row);
    float g[kLoads][kVec], x_hat[kLoads][kVec];
    // Reads the chunk at `col` and returns how many of its loads lie in the row.
    const auto read = [&](int64_t col) {
      load_cols<kStep>(x_hat, x + col, col, args.cols);
      const int loads = load_cols<kStep>(g, dy + col, col, args.cols);
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        if (k >= loads) continue;
        standardize(x_hat[k], stats);
        scale<T>(g[k], args, col + k * kStep);
      }
      return loads;
    };
    GradSums<1> sums = GradSums<1>::empty();
    for (int64_t col = threadIdx.x * kVec; col < args.cols; col += kStep * kLoads) {
      const int loads = read(col);
      sums.push(g, x_hat, loads);
    }
    const RowMeans means = row_means(args, block_merge<1>(sums, 1));
    for (int64_t col = threadIdx.x * kVec; col < args.cols; col += kStep * kLoads) {
      const int loads = read(col);
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        if (k >= loads) continue;
        const int64_t here = col + k * kStep;
        store_dx(dx + here, dh ? dh + here : nullptr, g[k], x_hat[k], stats, means);
      }
    }
  }
}

/// dweight and dbias of rows of any length: a block takes neighboring columns of a part, one of `tiles`, and its warps
/// walk down the rows.
template <class T, int kVec>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    row_norm_bwd_params(const wn_row_norm_bwd args, const int64_t span, const int parts, const int tiles) {
  constexpr int kRows = 4;  // read at a time
  DEV_SHARED_ARRAY(StagedSums, staged, kWarps);
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int part = blockIdx.x / tiles;
  const int64_t first = int64_t(blockIdx.x % tiles) * kWarp * kVec;
  const int64_t col = first + lane * kVec;
  const int64_t begin = part * span;
  const int64_t end = args.rows - begin < span ? args.rows : begin + span;
  GradSums<kVec> sums = GradSums<kVec>::empty();
  if (col < args.cols) {
    for (int64_t row = begin + warp; row < end; row += kRows * kWarps) {
      float dy[kRows][kVec], x_hat[kRows][kVec];
      int loads = 0;
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        const int64_t next = row + k * kWarps;
        if (next < end) {
          const RowAt at(next, args.block, args.cols);
          load(dy[k], at.in<T>(args.dy, args.dy_stride, col));
          load(x_hat[k], at.in<T>(args.x, args.x_stride, col));
          standardize(x_hat[k], row_stats(args, next));
          loads = k + 1;
        } else {
#pragma unroll
          for (int i = 0; i < kVec; ++i) dy[k][i] = x_hat[k][i] = 0.f;
        }
      }
      sums.push(dy, x_hat, loads);
    }
  }
  float dy_sums[kVec], dy_x_hat_sums[kVec];
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    dy_sums[i] = sums.dy[i].total();
    dy_x_hat_sums[i] = sums.dy_x_hat[i].total();
  }
  store(staged[warp].dy + lane * kVec, dy_sums);
  store(staged[warp].dy_x_hat + lane * kVec, dy_x_hat_sums);
  store_part<kWarp * kVec, kVec>(args, staged, part, parts, first);
}

}  // namespace WN_NAMESPACE
