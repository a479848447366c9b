// Who owns which elements of a [segments, outer, channels, inner] tensor. A tile gives every thread of a block the slabs
// it works for (`kLanes` neighbors starting at `slab()`, of the channels starting at `channel()`), walks it through its
// elements of them by the chunk, and merges statistics among the threads that share them. Kernels are written once, over
// any tile.
//
// A chunk is `kLoads` loads of `kVec` elements; `walk` calls `body(const int64_t (&at)[kLoads], int loads)`, where the
// first `loads` of `at` are offsets into the tensor. `merge` is called by all threads and leaves the same bits in all
// that share slabs; `rank()` numbers these, `peers()` counts them. `kCanSplit` says whether several blocks may share a
// slab.
#pragma once

#include "dev.cuh"
#include "prim/reduce.cuh"
#include "prim/vec.cuh"
#include "warpnorm.h"

namespace WN_NAMESPACE {

/// Elements of one slab in a chunk of the slab tiles.
constexpr int kSlabChunk = 8;

/// The statistic that a slab belongs to.
__device__ __forceinline__ int64_t statistic_of(int64_t slab, int64_t group) {
  // Slabs and groups are counted in 31 bits, and most groups are of one.
  return group == 1 ? slab : static_cast<unsigned>(slab) / static_cast<unsigned>(group);
}

/// `kOwners` threads, a block or a warp, own one slab.
template <int kVecWidth, int kOwners> class SlabTile {
  static_assert(kOwners == kThreads || kOwners == kWarp, "a block or a warp");
  static constexpr int kPerBlock = kThreads / kOwners;

 public:
  static constexpr int kVec = kVecWidth;
  static constexpr int kLanes = 1;
  static constexpr int kLoads = kSlabChunk / kVec;
  static constexpr bool kCanSplit = kOwners == kThreads;

  __device__ __forceinline__ explicit SlabTile(const wn_channel_walk& walk) : walk_(walk) {
    const unsigned slabs = static_cast<unsigned>(walk.segments * walk.channels);
    const unsigned tiles = (slabs + kPerBlock - 1) / kPerBlock;
    tile_ = blockIdx.x % tiles;
    split_ = blockIdx.x / tiles;
    slab_ = tile_ * kPerBlock + threadIdx.x / kOwners;
    segment_ = slab_ / static_cast<unsigned>(walk.channels);
    channel_ = slab_ - segment_ * static_cast<unsigned>(walk.channels);
  }

  __host__ static int64_t blocks(const wn_channel_walk& walk) {
    return (walk.segments * walk.channels + kPerBlock - 1) / kPerBlock * walk.splits;
  }

  __device__ __forceinline__ unsigned tile() const { return tile_; }
  __device__ __forceinline__ int64_t split() const { return split_; }
  __device__ __forceinline__ int64_t slab() const { return slab_; }
  __device__ __forceinline__ int64_t channel() const { return channel_; }
  __device__ __forceinline__ bool live() const { return slab_ < walk_.segments * walk_.channels; }
  __device__ __forceinline__ int rank() const { return threadIdx.x % kOwners; }
  __device__ __forceinline__ int peers() const { return kOwners; }

  template <class Body> __device__ __forceinline__ void walk(Body body) const {
    if (!live()) return;
    const int64_t size = walk_.outer * walk_.inner;
    const int64_t begin = split_ * walk_.span;
    const int count = static_cast<int>(size - begin < walk_.span ? size - begin : walk_.span);
    // One division in 64 bits finds the run in which the split starts; from there 32 bits do.
    const int64_t first_run = begin / walk_.inner;
    const unsigned inner = static_cast<unsigned>(walk_.inner);
    const unsigned phase = static_cast<unsigned>(begin - first_run * walk_.inner);
    const int64_t base = ((segment_ * walk_.outer + first_run) * walk_.channels + channel_) * walk_.inner;
    const int64_t skip = (walk_.channels - 1) * walk_.inner;  // from the end of a run to the slab's next
    for (int local = rank() * kVec; local < count; local += kOwners * kVec * kLoads) {
      int64_t at[kLoads] = {};
      int loads = 0;
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        const int l = local + load * kOwners * kVec;
        if (l < count) {
          const unsigned i = phase + l;
          at[load] = base + i + (i / inner) * skip;
          loads = load + 1;
        }
      }
      body(at, loads);
    }
  }

  template <class Stat> __device__ __forceinline__ Stat merge(const Stat& stat) const {
    if constexpr (kOwners == kWarp) {
      return warp_merge_all(stat);
    } else {
      return block_merge<1>(stat, 1);
    }
  }

 private:
  const wn_channel_walk& walk_;
  unsigned tile_, split_, slab_, segment_, channel_;  // slabs are counted in 31 bits
};

template <int kVec> using BlockTile = SlabTile<kVec, kThreads>;
template <int kVec> using WarpTile = SlabTile<kVec, kWarp>;

/// For inner = 1: a block owns `columns * kVec` neighboring slabs of a segment. Threads side by side read neighboring
/// channels of a row; the threads of one column walk down the rows.
template <int kVecWidth> class ColumnTile {
 public:
  static constexpr int kVec = kVecWidth;
  static constexpr int kLanes = kVec;
  static constexpr int kLoads = 4;
  static constexpr bool kCanSplit = true;

  __device__ __forceinline__ explicit ColumnTile(const wn_channel_walk& walk) : walk_(walk) {
    const int width = walk.columns * kVec;
    const unsigned per_segment = static_cast<unsigned>((walk.channels + width - 1) / width);
    const unsigned tiles = per_segment * static_cast<unsigned>(walk.segments);
    tile_ = blockIdx.x % tiles;
    split_ = blockIdx.x / tiles;
    segment_ = tile_ / per_segment;
    channel_ = tile_ % per_segment * width + threadIdx.x % walk.columns * kVec;
  }

  __host__ static int64_t blocks(const wn_channel_walk& walk) {
    const int64_t width = int64_t(walk.columns) * kVec;
    return (walk.channels + width - 1) / width * walk.segments * walk.splits;
  }

  __device__ __forceinline__ unsigned tile() const { return tile_; }
  __device__ __forceinline__ int64_t split() const { return split_; }
  __device__ __forceinline__ int64_t slab() const { return segment_ * walk_.channels + channel_; }
  __device__ __forceinline__ int64_t channel() const { return channel_; }
  __device__ __forceinline__ bool live() const { return channel_ < walk_.channels; }
  __device__ __forceinline__ int rank() const { return threadIdx.x / walk_.columns; }
  __device__ __forceinline__ int peers() const { return kThreads / walk_.columns; }

  template <class Body> __device__ __forceinline__ void walk(Body body) const {
    if (!live()) return;
    const int64_t begin = split_ * walk_.span;
    const int count = static_cast<int>(walk_.outer - begin < walk_.span ? walk_.outer - begin : walk_.span);
    const int64_t base = (segment_ * walk_.outer + begin) * walk_.channels + channel_;
    for (int local = rank(); local < count; local += peers() * kLoads) {
      int64_t at[kLoads] = {};
      int loads = 0;
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        const int row = local + load * peers();
        if (row < count) {
          at[load] = base + row * walk_.channels;
          loads = load + 1;
        }
      }
      body(at, loads);
    }
  }

  template <class Stat> __device__ __forceinline__ Stat merge(const Stat& stat) const {
    return block_merge<kWarp>(stat, walk_.columns);
  }

 private:
  const wn_channel_walk& walk_;
  unsigned tile_, split_, segment_, channel_;  // slabs are counted in 31 bits
};

/// Merges what the splits of a tile have left, in chains of at most 256 that are merged in turn. `partial(split)` reads
/// one split's statistics of this thread's slabs. All threads of the block call it; those of one slab get the
/// same bits.
template <class Stat, class Tile, class Partial>
__device__ __forceinline__ Stat merge_splits(const Tile& tile, int splits, Partial partial) {
  constexpr int kChain = 256;
  Stat all = Stat::empty();
  if (tile.live()) {
    Stat chain = Stat::empty();
    int length = 0;
    for (int split = tile.rank(); split < splits; split += tile.peers()) {
      chain.merge(partial(split));
      if (++length < kChain) continue;
      all.merge(chain);
      chain = Stat::empty();
      length = 0;
    }
    all.merge(chain);
  }
  return tile.merge(all);
}

/// Reads the first `loads` of a chunk; the rest become zeros.
template <class T, int kVec, int kLoads>
__device__ __forceinline__ void load_chunk(float (&values)[kLoads][kVec], const T* x, const int64_t (&at)[kLoads],
                                           int loads) {
#pragma unroll
  for (int k = 0; k < kLoads; ++k) {
    if (k < loads) {
      load(values[k], x + at[k]);
    } else {
#pragma unroll
      for (int i = 0; i < kVec; ++i) values[k][i] = 0.f;
    }
  }
}

/// Writes the first `loads` of a chunk.
template <class T, int kVec, int kLoads>
__device__ __forceinline__ void store_chunk(T* y, const float (&values)[kLoads][kVec], const int64_t (&at)[kLoads],
                                            int loads) {
#pragma unroll
  for (int k = 0; k < kLoads; ++k)
    if (k < loads) store(y + at[k], values[k]);
}

}  // namespace WN_NAMESPACE
