// What the row norms of both directions share: where a row lies, and how threads read it.
#pragma once

#include "prim/reduce.cuh"
#include "prim/vec.cuh"

namespace WN_NAMESPACE {

/// The most threads of a block that holds rows, and their warps.
constexpr int kHeldThreads = 512;
constexpr int kHeldWarps = kHeldThreads / kWarp;

/// The most blocks of a cluster.
constexpr int kMaxCluster = 16;

/// Elements that a thread of a block reads of a row at a time.
constexpr int kRowChunk = 8;

/// Where a row lies in each tensor of a call; warpnorm.h has the formula.
class RowAt {
 public:
  /// Dense tensors, whose `block` is 1, are spared the division.
  __device__ __forceinline__ RowAt(int64_t row, int64_t block, int64_t cols) : entry_(row), within_(0) {
    if (block == 1) return;
    entry_ = row / block;
    within_ = (row - entry_ * block) * cols;
  }

  /// Element `col` of the row in a tensor of this stride; null where the tensor is.
  template <class T> __device__ __forceinline__ const T* in(const void* data, int64_t stride, int64_t col) const {
    return data ? static_cast<const T*>(data) + (entry_ * stride + within_ + col) : nullptr;
  }
  template <class T> __device__ __forceinline__ T* in(void* data, int64_t stride, int64_t col) const {
    return data ? static_cast<T*>(data) + (entry_ * stride + within_ + col) : nullptr;
  }

 private:
  int64_t entry_, within_;
};

/// Reads a chunk of loads that lie `kStep` elements apart, of which the first starts at column `col` and at address
/// `at`. Those behind the row become zeros. Returns how many lie within.
template <int kStep, class T, int kLoads, int kVec>
__device__ __forceinline__ int load_cols(float (&values)[kLoads][kVec], const T* at, int64_t col, int64_t cols) {
  int loads = 0;
#pragma unroll
  for (int k = 0; k < kLoads; ++k) {
    if (col + k * kStep < cols) {
      load(values[k], at + k * kStep);
      loads = k + 1;
    } else {
#pragma unroll
      for (int i = 0; i < kVec; ++i) values[k][i] = 0.f;
    }
  }
  return loads;
}

/// What columns `col` and up are multiplied with: `offset + weight`, or 1 where there is no weight.
template <class T, int kVec>
__device__ __forceinline__ void load_factor(float (&factor)[kVec], const void* weight, wn_dtype dtype, float offset,
                                            int64_t col) {
  weight_params<T>(weight, dtype).load_at(factor, col);
  if (weight == nullptr) return;
#pragma unroll
  for (int i = 0; i < kVec; ++i) factor[i] += offset;
}

/// Who holds what of a row in shared memory: `lanes` threads of a block share a row, or those of all blocks of a cluster.
/// What a thread holds it alone reads and writes, so no barrier guards it.
template <class T, int kVec> class RowTile {
 public:
  /// `tensors` rows are held together, of `wn_row_plan::stages` steps.
  __device__ __forceinline__ RowTile(T* slots, const wn_row_plan& plan, int64_t cols, int tensors)
      : slots_(slots + threadIdx.x * kVec),
        packs_(plan.packs),
        tensors_(tensors),
        lanes_(plan.lanes),
        rank_(plan.cluster > 1 ? static_cast<int>(dev::cluster_rank()) : 0),
        cluster_(plan.cluster) {
    // Each block of a cluster has its share of the columns; the last one may have less, or nothing.
    const int64_t accesses = cols / kVec;
    const int64_t share = (accesses + cluster_ - 1) / cluster_;
    first_ = rank_ * share;
    const int64_t here = accesses - first_ < share ? accesses - first_ : share;
    const int lane = threadIdx.x % lanes_;
    loads_ = lane < here ? static_cast<int>((here - lane - 1) / lanes_) + 1 : 0;
    first_ = (first_ + lane) * kVec;
  }

  /// Rows that the block has at a time, and which of them is this thread's.
  __device__ __forceinline__ int groups() const { return blockDim.x / lanes_; }
  __device__ __forceinline__ int group() const { return threadIdx.x / lanes_; }
  /// Whether this thread speaks for its row.
  __device__ __forceinline__ bool leads() const { return threadIdx.x % lanes_ == 0 && rank_ == 0; }
  /// Accesses of this thread per row.
  __device__ __forceinline__ int loads() const { return loads_; }
  /// Elements between them.
  __device__ __forceinline__ int step() const { return lanes_ * kVec; }
  /// The column of the first.
  __device__ __forceinline__ int64_t col() const { return first_; }

  /// Where this thread holds access `k` of a tensor.
  __device__ __forceinline__ T* slot(int stage, int tensor, int k) const {
    return slots_ + ((stage * tensors_ + tensor) * packs_ + k) * static_cast<int>(blockDim.x) * kVec;
  }

  /// Sets a row on its way, of which `from` is what `col()` is in. It has landed when the thread has waited. `kPacks`:
  /// accesses of any thread at most, where they are known.
  template <int kPacks = 0> __device__ __forceinline__ void copy(int stage, int tensor, const T* from) const {
    constexpr int kBytes = kVec * sizeof(T);
    if constexpr (kBytes < 4) {
      constexpr int kBatch = 8;  // such copies are not asynchronous: at least several at a time
      for (int first = 0; first < loads_; first += kBatch) {
        Pack<T, kVec> batch[kBatch];
#pragma unroll
        for (int k = 0; k < kBatch; ++k)
          if (first + k < loads_) batch[k] = dev::load_vec<Pack<T, kVec>>(from + (first + k) * step());
#pragma unroll
        for (int k = 0; k < kBatch; ++k)
          if (first + k < loads_) dev::store_vec(slot(stage, tensor, first + k), batch[k]);
      }
    } else if constexpr (kPacks > 0 && kPacks <= 4) {
#pragma unroll
      for (int k = 0; k < kPacks; ++k)
        if (k < loads_) dev::copy_async<kBytes>(slot(stage, tensor, k), from + k * step());
    } else {
      for (int k = 0; k < loads_; ++k) dev::copy_async<kBytes>(slot(stage, tensor, k), from + k * step());
    }
  }

  /// Merges what the threads of a row have: in the warp, in the block, in the cluster. All threads of all blocks of the
  /// cluster call it; those of a row get the same bits. `parity` is another than in the call before.
  template <class Stat> __device__ __forceinline__ Stat merge(Stat stat, int parity) const {
    const int lane = threadIdx.x % kWarp;
    const int in_warp = lanes_ < kWarp ? lanes_ : kWarp;
    stat = tree(stat, in_warp, lane & ~(in_warp - 1));
    if (lanes_ <= kWarp && cluster_ == 1) return stat;
    DEV_SHARED_ARRAY(Stat, of_warps, 2 * kHeldWarps);
    const int warps = lanes_ / kWarp;
    const int first_warp = group() * warps;
    if (lanes_ > kWarp) {
      Stat* const mine = of_warps + parity * kHeldWarps;
      if (lane == 0) mine[threadIdx.x / kWarp] = stat;
      // What the call before the last left is overwritten: all have read it, or they would not be at this barrier's
      // predecessor.
      __syncthreads();
      stat = lane < warps ? mine[first_warp + lane] : Stat::empty();
      stat = tree(stat, warps, 0);
    }
    if (cluster_ == 1) return stat;
    DEV_SHARED_ARRAY(Stat, of_blocks, 2);
    if (threadIdx.x == 0) of_blocks[parity] = stat;
    dev::cluster_sync();  // as above: what a block overwrites all have read before the last barrier
    stat = lane < cluster_ ? *dev::map_rank(of_blocks + parity, lane) : Stat::empty();
    return tree(stat, cluster_, 0);
  }

  /// Before a block ends, whose shared memory others may be reading.
  __device__ __forceinline__ void finish() const {
    if (cluster_ > 1) dev::cluster_sync();
  }

 private:
  /// Merges `lanes` neighbors, a power of two, by halves. Every lane gets what lane `first` has.
  template <class Stat> __device__ __forceinline__ static Stat tree(Stat stat, int lanes, int first) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
      if (step >= lanes) continue;
      stat.merge(shuffled(stat, [step](float word) { return __shfl_down_sync(kAllLanes, word, step); }));
    }
    return shuffled(stat, [first](float word) { return __shfl_sync(kAllLanes, word, first); });
  }

  T* slots_;
  int packs_, tensors_, lanes_, rank_, cluster_, loads_;
  int64_t first_;
};

/// Waits for the row to compute; the one behind it may still be on its way.
__device__ __forceinline__ void wait_for_row(int stages) {
  if (stages == 2) {
    dev::copy_wait<1>();
  } else {
    dev::copy_wait<0>();
  }
}

/// Whether a plan of held rows is one: what the kernels take for granted. `bytes` are those per access and thread.
__host__ inline bool holds(const wn_row_plan& plan, int64_t cols, int64_t bytes) {
  const auto power = [](int32_t v, int32_t most) { return v >= 1 && v <= most && (v & (v - 1)) == 0; };
  if (!power(plan.threads, kHeldThreads) || plan.threads < kWarp) return false;
  if (!power(plan.lanes, plan.threads) || !power(plan.cluster, kMaxCluster)) return false;
  if (plan.cluster > 1 && plan.lanes != plan.threads) return false;
  if (plan.stages < 1 || plan.stages > 2 || plan.packs < 1 || plan.parts < 1) return false;
  const int64_t accesses = (cols - 1) / plan.vec + 1;
  const int64_t share = (accesses - 1) / plan.cluster + 1;
  if (share > int64_t(plan.packs) * plan.lanes) return false;
  return plan.packs * bytes * plan.threads <= plan.smem;
}

}  // namespace WN_NAMESPACE
