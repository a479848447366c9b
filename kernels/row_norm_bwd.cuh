// Row norms backward: dx by the row, dweight and dbias as partial sums over the rows of a part, which are added up in the
// same launch where all blocks are resident together, and else by `fold_params`. Rows that are held are read once for both; longer ones take a kernel for each.
#pragma once

#include "fold_params.cuh"
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

/// Rows that a thread sums one after another in registers, and sums of them that it adds up behind in shared memory. For
/// equal values each step errs by a quarter of a unit in the last place: 6 of the 8 units that the tests allow.
constexpr int kChain = 8;
constexpr int kChains = 16;
/// Rows that it sums in registers where there are no sums of sums.
constexpr int kFlatChain = 16;

/// Sums of g and of g * x_hat over what a thread has of a row, and then over its threads. A thread has few chunks, and a
/// row few threads, so no chain is long.
struct HeldSums {
  float dy, dy_x_hat;

  __device__ __forceinline__ static HeldSums empty() { return {0.f, 0.f}; }
  template <int kLoads, int kVec>
  __device__ __forceinline__ void push(const float (&g)[kLoads][kVec], const float (&x_hat)[kLoads][kVec]) {
    HeldSums chunk = empty();
#pragma unroll
    for (int k = 0; k < kLoads; ++k)
#pragma unroll
      for (int i = 0; i < kVec; ++i) {
        chunk.dy += g[k][i];
        chunk.dy_x_hat += g[k][i] * x_hat[k][i];
      }
    merge(chunk);
  }
  __device__ __forceinline__ void merge(const HeldSums& other) {
    dy += other.dy;
    dy_x_hat += other.dy_x_hat;
  }
};

/// Sums of dy and of dy * x_hat of the columns that a thread owns, over the rows it sees: in registers, and from time to
/// time added to what it keeps in shared memory.
template <int kVec, int kPacks> class HeldColumns {
 public:
  /// `behind` has room for `kSums * packs * kVec` floats of every thread, if `deep`.
  static constexpr int kSums = 2;

  __device__ __forceinline__ HeldColumns(float* behind, int packs, bool deep) : behind_(behind), packs_(packs), deep_(deep) {
    clear();
    if (deep) each([&](int which, int k) { put(sums_[which][k], which, k); });
  }

  __device__ __forceinline__ void add(int k, const float (&dy)[kVec], const float (&x_hat)[kVec]) {
#pragma unroll
    for (int i = 0; i < kVec; ++i) {
      sums_[0][k][i] += dy[i];
      sums_[1][k][i] += dy[i] * x_hat[i];
    }
  }

  /// Adds the registers to shared memory, which there is, and clears them.
  __device__ __forceinline__ void flush() {
    each([&](int which, int k) {
      float sum[kVec];
      get(sum, which, k, threadIdx.x);
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[i] += sums_[which][k][i];
      put(sum, which, k);
    });
    clear();
  }

  /// Merges the groups of `lanes` threads of the block, of which each has seen other rows. All threads call it. The first
  /// `lanes` threads then have the sums of the block in their registers.
  __device__ __forceinline__ void merge(int lanes) {
    if (deep_) {
      each([&](int which, int k) {
        float sum[kVec];
        get(sum, which, k, threadIdx.x);
#pragma unroll
        for (int i = 0; i < kVec; ++i) sums_[which][k][i] += sum[i];
      });
    }
    each([&](int which, int k) {
#pragma unroll
      for (int i = 0; i < kVec; ++i)
        for (int step = kWarp / 2; step >= lanes; step /= 2)
          sums_[which][k][i] += __shfl_down_sync(kAllLanes, sums_[which][k][i], step);
    });
    const int apart = lanes < kWarp ? kWarp : lanes;
    const int groups = blockDim.x / apart;
    if (groups == 1 || !deep_) return;
    each([&](int which, int k) { put(sums_[which][k], which, k); });
    __syncthreads();  // all groups have left their sums
    if (static_cast<int>(threadIdx.x) >= lanes) return;
    each([&](int which, int k) {
      CompensatedSum total[kVec];
#pragma unroll
      for (int i = 0; i < kVec; ++i) total[i] = {sums_[which][k][i], 0.f};
      for (int group = 1; group < groups; ++group) {
        float sum[kVec];
        get(sum, which, k, threadIdx.x + group * apart);
#pragma unroll
        for (int i = 0; i < kVec; ++i) total[i].add(sum[i]);
      }
#pragma unroll
      for (int i = 0; i < kVec; ++i) sums_[which][k][i] = total[i].total();
    });
  }

  /// Those of dy (0) or of dy * x_hat (1), of access `k`.
  __device__ __forceinline__ const float (&of(int which, int k) const)[kVec] { return sums_[which][k]; }

 private:
  static constexpr int kPer = kVec < 4 ? kVec : 4;  // floats of an access, of which neighbors are those of other threads

  template <class Body> __device__ __forceinline__ void each(Body body) const {
#pragma unroll
    for (int which = 0; which < kSums; ++which)
#pragma unroll
      for (int k = 0; k < kPacks; ++k)
        if (k < packs_) body(which, k);
  }
  __device__ __forceinline__ float* at(int which, int k, int piece, int thread) const {
    return behind_ + (((which * packs_ + k) * (kVec / kPer) + piece) * static_cast<int>(blockDim.x) + thread) * kPer;
  }
  __device__ __forceinline__ void get(float (&sum)[kVec], int which, int k, int thread) const {
#pragma unroll
    for (int piece = 0; piece < kVec / kPer; ++piece) {
      float values[kPer];
      load(values, at(which, k, piece, thread));
#pragma unroll
      for (int i = 0; i < kPer; ++i) sum[piece * kPer + i] = values[i];
    }
  }
  __device__ __forceinline__ void put(const float (&sum)[kVec], int which, int k) {
#pragma unroll
    for (int piece = 0; piece < kVec / kPer; ++piece) {
      float values[kPer];
#pragma unroll
      for (int i = 0; i < kPer; ++i) values[i] = sum[piece * kPer + i];
      store(at(which, k, piece, threadIdx.x), values);
    }
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int which = 0; which < kSums; ++which)
#pragma unroll
      for (int k = 0; k < kPacks; ++k)
#pragma unroll
        for (int i = 0; i < kVec; ++i) sums_[which][k][i] = 0.f;
  }

  float* behind_;
  int packs_;
  bool deep_;
  float sums_[kSums][kPacks][kVec];
};

/// Threads of a block whose threads own up to `cols` columns each, at most, and blocks of as many that the compiler leaves
/// registers for. Without the difference the fewest columns spilled.
constexpr int held_bwd_threads(int cols) { return cols <= 8 ? kHeldThreads / 2 : kHeldThreads; }
constexpr int held_bwd_blocks(int cols) { return cols <= 8 ? 3 : 1; }

/// What the threads that own up to `kCols` columns have registers for, so that no kernel spills: what they have of a row,
/// from where it landed in shared memory; their weights; the statistics of the next row.
template <class T, int kVec, int kCols> struct HeldRegisters {
  static constexpr bool kRow = kVec > 1 && (kCols <= 8 || (kCols <= 16 && sizeof(T) == 2));
  static constexpr bool kFactor = kRow && kCols > 8;
  static constexpr bool kNextStats = kVec > 1 && kCols > 8 && (kCols <= 16 || sizeof(T) == 2);
};

/// x and dy of a row are held in shared memory, or in registers from where they landed there, between the sums over it
/// and dx: one read. A block or a cluster takes the rows of a part, and its threads sum the columns that they own, up to
/// `kCols`, on the way. Where the plan has two stages, the next row is on its way meanwhile.
template <class T, int kVec, int kCols>
__global__ void __launch_bounds__(held_bwd_threads(kCols), held_bwd_blocks(kCols))
    row_norm_bwd_held(const wn_row_norm_bwd args, const wn_row_plan plan) {
  constexpr int kPacks = kCols / kVec;
  constexpr int kLoads = kVec < 8 ? 8 / kVec : 1;  // of a chunk
  constexpr int kChunks = kPacks / kLoads;
  using Registers = HeldRegisters<T, kVec, kCols>;
  constexpr int kKept = Registers::kRow ? kChunks : 1;
  DEV_DYN_SHARED(T, slots);
  constexpr int kTensors = 2;  // dh is read once, where dx is written
  const RowTile<T, kVec> tile(slots, plan, args.cols, kTensors);
  T* const behind = slots + plan.stages * kTensors * plan.packs * static_cast<int>(blockDim.x) * kVec;
  HeldColumns<kVec, kPacks> columns(reinterpret_cast<float*>(behind), plan.packs, plan.deep != 0);
  const int loads = tile.loads();
  const int step = tile.step();
  const int64_t col = tile.col();
  const bool sums_wanted = args.dweight || args.dbias;
  const int part = static_cast<int>(blockIdx.x) / plan.cluster;
  int64_t first = part * plan.span;  // the same for all threads, which merge together
  const int64_t end = args.rows - first < plan.span ? args.rows : first + plan.span;
  const auto fetch = [&](int stage, int64_t row) {
    if (row < end) {
      const RowAt at(row, args.block, args.cols);
      tile.template copy<kPacks>(stage, 0, at.in<T>(args.x, args.x_stride, col));
      tile.template copy<kPacks>(stage, 1, at.in<T>(args.dy, args.dy_stride, col));
      if (const T* const dh = at.in<T>(args.dh, args.dh_stride, col)) {
#pragma unroll
        for (int k = 0; k < kPacks; ++k)
          if (k < loads) dev::prefetch(dh + k * step);
      }
    }
    dev::copy_commit();
  };
  const auto stats_of = [&](int64_t row) { return row < end ? row_stats(args, row) : RowStats{0.f, 0.f}; };

  float kept_factor[kKept][kLoads][kVec];
  if constexpr (Registers::kFactor) {
#pragma unroll
    for (int k = 0; k < kPacks; ++k)
      if (k < loads) load_factor<T>(kept_factor[k / kLoads][k % kLoads], args.weight, args.param_dtype, args.weight_offset, col + k * step);
  }
  const auto scale_by = [&](float(&dy)[kVec], int k) {
    if constexpr (Registers::kFactor) {
#pragma unroll
      for (int i = 0; i < kVec; ++i) dy[i] *= kept_factor[k / kLoads][k % kLoads][i];
    } else {
      scale<T>(dy, args, col + k * step);
    }
  };

  int stage = 0, parity = 0, chain = 0;
  if (plan.stages == 2) fetch(stage, first + tile.group());
  RowStats stats{};
  if constexpr (Registers::kNextStats) stats = stats_of(first + tile.group());
  for (; first < end; first += tile.groups(), parity ^= 1) {
    const int64_t row = first + tile.group();
    if (plan.stages == 2) {
      fetch(stage ^ 1, row + tile.groups());
    } else {
      fetch(stage, row);
    }
    const bool active = row < end;
    RowStats next_stats{};
    if constexpr (Registers::kNextStats) {
      next_stats = stats_of(row + tile.groups());
    } else {
      stats = stats_of(row);
    }
    wait_for_row(plan.stages);
    float g[kKept][kLoads][kVec], x_hat[kKept][kLoads][kVec];
    HeldSums sums = HeldSums::empty();
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      if (!active || chunk * kLoads >= loads) continue;
      auto& gs = g[chunk % kKept];
      auto& x_hats = x_hat[chunk % kKept];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int k = chunk * kLoads + i;
        if (k < loads) {
          load(x_hats[i], tile.slot(stage, 0, k));
          load(gs[i], tile.slot(stage, 1, k));
          standardize(x_hats[i], stats);
          if (sums_wanted) columns.add(k, gs[i], x_hats[i]);
          scale_by(gs[i], k);
        } else {
#pragma unroll
          for (int e = 0; e < kVec; ++e) gs[i][e] = x_hats[i][e] = 0.f;
        }
      }
      sums.push(gs, x_hats);  // the zeros change nothing
    }
    if (args.dx) {
      const HeldSums row_sums = tile.merge(sums, parity);
      const float inverse = 1.f / static_cast<float>(args.cols);
      const RowMeans means = {args.rms ? 0.f : row_sums.dy * inverse, row_sums.dy_x_hat * inverse};
      const RowAt at(row, args.block, args.cols);
      const T* const dh = at.in<T>(args.dh, args.dh_stride, col);
      T* const dx = at.in<T>(args.dx, args.dx_stride, col);
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        if (!active || k >= loads) continue;
        const T* const addend = dh ? dh + k * step : nullptr;
        if constexpr (Registers::kRow) {
          store_dx(dx + k * step, addend, g[k / kLoads][k % kLoads], x_hat[k / kLoads][k % kLoads],
                   stats, means);
        } else {
          float g_again[kVec], x_hat_again[kVec];
          load(x_hat_again, tile.slot(stage, 0, k));
          load(g_again, tile.slot(stage, 1, k));
          standardize(x_hat_again, stats);
          scale_by(g_again, k);
          store_dx(dx + k * step, addend, g_again, x_hat_again, stats, means);
        }
      }
    }
    if (plan.deep && sums_wanted && ++chain == kChain) {
      columns.flush();
      chain = 0;
    }
    if (plan.stages == 2) stage ^= 1;
    if constexpr (Registers::kNextStats) stats = next_stats;
  }
  if (sums_wanted) {
    columns.merge(plan.lanes);
    if (static_cast<int>(threadIdx.x) < plan.lanes) {
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        if (k >= loads) continue;
        float* const to = args.workspace + (int64_t(part) * args.cols + col + k * step);
        store(to, columns.of(0, k));
        store(to + int64_t(plan.parts) * args.cols, columns.of(1, k));
      }
    }
    if (plan.folds) {
      fold_params_in_launch<T, kHeldWarps>(param_sums(args, args.workspace, plan.parts, args.cols), args.counters);
    }
  }
  tile.finish();
}

/// dx of rows of any length: a block reads its row twice, the second time from cache where it fits.
template <class T, int kVec>
__global__ void __launch_bounds__(kThreads, kMinBlocks) row_norm_bwd_stream(const wn_row_norm_bwd args) {
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
