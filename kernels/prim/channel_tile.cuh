// Who owns which elements of a [segments, outer, channels, inner] tensor. A tile gives every thread of a block the slabs
// it works for (`kLanes` neighbors starting at `slab()`, of the channels starting at `channel()`), and its elements of
// them by the chunk, and merges statistics among the threads that share them. Kernels are written once, over any tile.
//
// A tile takes one split of its slabs, a *piece*. A chunk is `kLoads` loads of `kVec` elements: `chunk(c, at)` puts the
// offsets of chunk `c` of `chunks()` into `at` and returns how many of them the thread has; `walk` calls
// `body(at, loads)` for all chunks that have some. `merge` is called by all threads and leaves the same bits in all that
// share slabs; `rank()` numbers these, `peers()` counts them. `kCanSplit` says whether slabs may have several splits.
#pragma once

#include "dev.cuh"
#include "prim/reduce.cuh"
#include "prim/vec.cuh"
#include "warpnorm.h"

namespace WN_NAMESPACE {

/// Elements of one slab in a chunk of the slab tiles.
constexpr int kSlabChunk = 8;
/// Rows of a column tile that a thread reads at a time, without teams.
constexpr int kColumnChunk = 4;

/// The statistic that a slab belongs to.
__device__ __forceinline__ int64_t statistic_of(int64_t slab, int64_t group) {
  // Slabs and groups are counted in 31 bits, and most groups are of one.
  return group == 1 ? slab : static_cast<unsigned>(slab) / static_cast<unsigned>(group);
}

/// Where a piece lies.
struct Piece {
  unsigned tile;   // its number among the tiles of the walk, for column tiles
  unsigned slab;   // the first slab of the tile and the end of those that it may take, for slab tiles
  unsigned end;
  unsigned split;
};

/// `kOwners` threads, a block or a warp, own one slab.
template <int kVecWidth, int kOwners, int kLoadsAtOnce> class SlabTile {
  static_assert(kOwners == kThreads || kOwners == kWarp, "a block or a warp");

 public:
  static constexpr int kVec = kVecWidth;
  static constexpr int kLanes = 1;
  static constexpr int kLoads = kLoadsAtOnce;
  static constexpr bool kCanSplit = kOwners == kThreads;
  static constexpr bool kColumns = false;
  static constexpr int kPerBlock = kThreads / kOwners;

  /// The tile of this block, where each piece has a block.
  __device__ __forceinline__ static SlabTile of_block(const wn_channel_walk& walk) {
    const unsigned slabs = static_cast<unsigned>(walk.segments * walk.channels);
    const unsigned tiles = (slabs + kPerBlock - 1) / kPerBlock;
    const unsigned tile = blockIdx.x % tiles;
    return SlabTile(walk, {tile, tile * kPerBlock, slabs, blockIdx.x / tiles});
  }

  __device__ __forceinline__ SlabTile(const wn_channel_walk& walk, const Piece& piece)
      : walk_(&walk), piece_(piece), slab_(piece.slab + threadIdx.x / kOwners) {
    segment_ = slab_ / static_cast<unsigned>(walk.channels);
    channel_ = slab_ - segment_ * static_cast<unsigned>(walk.channels);
    const int64_t begin = piece.split * walk.span;
    const int64_t left = walk.outer * walk.inner - begin;
    count_ = static_cast<int>(left < walk.span ? left : walk.span);
    // One division finds the run in which the split starts, rarely in 64 bits; from there 32 bits do.
    const unsigned narrow = static_cast<unsigned>(begin);
    const int64_t first_run = narrow == begin ? narrow / static_cast<unsigned>(walk.inner) : begin / walk.inner;
    phase_ = static_cast<unsigned>(begin - first_run * walk.inner);
    base_ = ((segment_ * walk.outer + first_run) * walk.channels + channel_) * walk.inner;
    if (!live()) count_ = 0;
  }

  __host__ static int64_t blocks(const wn_channel_walk& walk) {
    return (walk.segments * walk.channels + kPerBlock - 1) / kPerBlock * walk.splits;
  }
  /// Loads that a thread has of a piece, at most.
  __host__ __device__ static int64_t loads(const wn_channel_walk& walk) {
    return (walk.span + kOwners * kVec - 1) / (kOwners * kVec);
  }

  __device__ __forceinline__ unsigned tile() const { return piece_.tile; }
  __device__ __forceinline__ int64_t split() const { return piece_.split; }
  __device__ __forceinline__ int64_t slab() const { return slab_; }
  __device__ __forceinline__ int64_t channel() const { return channel_; }
  __device__ __forceinline__ bool live() const { return slab_ < piece_.end; }
  __device__ __forceinline__ int rank() const { return threadIdx.x % kOwners; }
  __device__ __forceinline__ int peers() const { return kOwners; }

  __device__ __forceinline__ int chunk(int c, int64_t (&at)[kLoads]) const {
    const unsigned inner = static_cast<unsigned>(walk_->inner);
    const int64_t skip = (walk_->channels - 1) * walk_->inner;  // from the end of a run to the slab's next
    const int first = (c * kLoads * kOwners + rank()) * kVec;
    int loads = 0;
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const int local = first + load * kOwners * kVec;
      at[load] = 0;
      if (local < count_) {
        const unsigned i = phase_ + local;
        at[load] = base_ + i + (i / inner) * skip;
        loads = load + 1;
      }
    }
    return loads;
  }

  template <class Body> __device__ __forceinline__ void walk(Body body) const {
    for (int c = 0; (c * kLoads * kOwners + rank()) * kVec < count_; ++c) {
      int64_t at[kLoads];
      const int loads = chunk(c, at);
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
  const wn_channel_walk* walk_;
  Piece piece_;
  unsigned slab_, segment_, channel_;  // slabs are counted in 31 bits
  int count_;
  unsigned phase_;
  int64_t base_;
};

template <int kVec, int kLoads = kSlabChunk / kVec> using BlockTile = SlabTile<kVec, kThreads, kLoads>;
template <int kVec, int kLoads = kSlabChunk / kVec> using WarpTile = SlabTile<kVec, kWarp, kLoads>;

/// For inner = 1: a block owns `columns * kVec` neighboring slabs of a segment. Threads side by side read neighboring
/// channels of a row; the threads of one column walk down the rows.
template <int kVecWidth, int kLoadsAtOnce> class ColumnTile {
 public:
  static constexpr int kVec = kVecWidth;
  static constexpr int kLanes = kVec;
  static constexpr int kLoads = kLoadsAtOnce;
  static constexpr bool kCanSplit = true;
  static constexpr bool kColumns = true;
  static constexpr int kPerBlock = 1;
  /// What lies side by side is 128 bytes and more in any case; more columns cost shared memory for their statistics.
  static constexpr int kMaxColumns = kVec == 1 ? kWarp : kWarp / 2;

  /// The tile of this block, where each piece has a block.
  __device__ __forceinline__ static ColumnTile of_block(const wn_channel_walk& walk) {
    const unsigned tiles = per_segment(walk) * static_cast<unsigned>(walk.segments);
    return ColumnTile(walk, {blockIdx.x % tiles, 0, 0, blockIdx.x / tiles});
  }

  __device__ __forceinline__ ColumnTile(const wn_channel_walk& walk, const Piece& piece) : walk_(&walk), piece_(piece) {
    const unsigned across = per_segment(walk);
    segment_ = piece.tile / across;
    channel_ = piece.tile % across * (walk.columns * kVec) + threadIdx.x % walk.columns * kVec;
    const int64_t begin = piece.split * walk.span;
    const int64_t left = walk.outer - begin;
    count_ = static_cast<int>(left < walk.span ? left : walk.span);
    base_ = (segment_ * walk.outer + begin) * walk.channels + channel_;
    if (!live()) count_ = 0;
  }

  __host__ static int64_t blocks(const wn_channel_walk& walk) {
    return int64_t(per_segment(walk)) * walk.segments * walk.splits;
  }
  /// Loads that a thread has of a piece, at most.
  __host__ __device__ static int64_t loads(const wn_channel_walk& walk) {
    const int rows = kThreads / walk.columns;
    return (walk.span + rows - 1) / rows;
  }
  /// Tiles side by side.
  __host__ __device__ static unsigned per_segment(const wn_channel_walk& walk) {
    const int width = walk.columns * kVec;
    return static_cast<unsigned>((walk.channels + width - 1) / width);
  }

  __device__ __forceinline__ unsigned tile() const { return piece_.tile; }
  __device__ __forceinline__ int64_t split() const { return piece_.split; }
  __device__ __forceinline__ int64_t slab() const { return segment_ * walk_->channels + channel_; }
  __device__ __forceinline__ int64_t channel() const { return channel_; }
  __device__ __forceinline__ bool live() const { return channel_ < walk_->channels; }
  __device__ __forceinline__ int rank() const { return threadIdx.x / walk_->columns; }
  __device__ __forceinline__ int peers() const { return kThreads / walk_->columns; }

  __device__ __forceinline__ int chunk(int c, int64_t (&at)[kLoads]) const {
    int loads = 0;
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const int row = rank() + (c * kLoads + load) * peers();
      at[load] = 0;
      if (row < count_) {
        at[load] = base_ + row * walk_->channels;
        loads = load + 1;
      }
    }
    return loads;
  }

  template <class Body> __device__ __forceinline__ void walk(Body body) const {
    for (int c = 0; rank() + c * kLoads * peers() < count_; ++c) {
      int64_t at[kLoads];
      const int loads = chunk(c, at);
      body(at, loads);
    }
  }

  template <class Stat> __device__ __forceinline__ Stat merge(const Stat& stat) const {
    return block_merge<kMaxColumns>(stat, walk_->columns);
  }

 private:
  const wn_channel_walk* walk_;
  Piece piece_;
  unsigned segment_, channel_;  // slabs are counted in 31 bits
  int count_;
  int64_t base_;
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
template <Cache kCache = Cache::kKeep, class T, int kVec, int kLoads>
__device__ __forceinline__ void load_chunk(float (&values)[kLoads][kVec], const T* x, const int64_t (&at)[kLoads],
                                           int loads) {
#pragma unroll
  for (int k = 0; k < kLoads; ++k) {
    if (k < loads) {
      load<kCache>(values[k], x + at[k]);
    } else {
#pragma unroll
      for (int i = 0; i < kVec; ++i) values[k][i] = 0.f;
    }
  }
}

/// Writes the first `loads` of a chunk.
template <class T, int kVec, int kLoads>
__device__ __forceinline__ void store_chunk(T* y, const float (&values)[kLoads][kVec], const int64_t (&at)[kLoads],
                                            int loads, Cache cache = Cache::kKeep) {
#pragma unroll
  for (int k = 0; k < kLoads; ++k) {
    if (k >= loads) continue;
    if (cache == Cache::kKeep) {
      store(y + at[k], values[k]);
    } else {
      store<Cache::kPass>(y + at[k], values[k]);
    }
  }
}

}  // namespace WN_NAMESPACE
