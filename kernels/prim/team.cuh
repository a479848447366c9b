// Teams of blocks that go through units of work together: who takes which piece, what is held in shared memory between
// the two phases of a unit, and how the blocks wait for each other.
//
// In the first phase of a unit a block reads its pieces chunk by chunk. The first `held` chunks come by asynchronous
// copies, which were started a unit earlier, and stay in shared memory; a thread reads only what it copied itself. The
// second phase takes the chunks that were not held first, last read first, since these are in the L2 cache most likely;
// then the held ones, each of whose places is filled with a chunk of the next unit as soon as it is free. So memory is
// busy in both phases and between them.
#pragma once

#include "dev.cuh"
#include "prim/channel_tile.cuh"
#include "prim/stats.cuh"
#include "warpnorm.h"

namespace WN_NAMESPACE {

/// Blocks per SM that the registers of a team's kernel leave room for, as the plans take for granted.
constexpr int kTeamBlocks = 2;

/// What a block is in its team.
class Member {
 public:
  __device__ __forceinline__ explicit Member(const wn_channel_team& team)
      : team_(team), team_index_(blockIdx.x / team.size), rank_(blockIdx.x % team.size) {}

  __device__ __forceinline__ int64_t first_unit() const { return team_index_; }
  __device__ __forceinline__ int pieces_per_unit() const { return team_.tiles * team_.walk.splits; }
  /// Pieces that this block has of each unit.
  __device__ __forceinline__ int pieces() const {
    return (pieces_per_unit() - rank_ + team_.size - 1) / team_.size;
  }

  /// Piece `i` of this block's of a unit.
  template <class Tile> __device__ __forceinline__ Tile tile(int64_t unit, int i) const {
    const unsigned piece = rank_ + i * team_.size;
    const unsigned splits = team_.walk.splits;
    const unsigned in_unit = piece / splits;
    const unsigned number = static_cast<unsigned>(unit) * team_.tiles + in_unit;
    const unsigned split = piece - in_unit * splits;
    if constexpr (Tile::kColumns) {
      return Tile(team_.walk, {number, 0, 0, split});
    } else {
      const unsigned begin = static_cast<unsigned>(unit) * team_.slabs;
      const unsigned slabs = static_cast<unsigned>(team_.walk.segments * team_.walk.channels);
      const unsigned end = slabs - begin < static_cast<unsigned>(team_.slabs) ? slabs : begin + team_.slabs;
      return Tile(team_.walk, {number, begin + in_unit * Tile::kPerBlock, end, split});
    }
  }

  /// Calls `start(tile, piece, chunk)` for the first `held` chunks of this block's first unit.
  template <class Tile, class Start> __device__ __forceinline__ void begin(int held, Start start) const {
    if (first_unit() >= team_.units) return;
    for (int piece = 0; piece * team_.chunks < held; ++piece) {
      const Tile of_piece = tile<Tile>(first_unit(), piece);
      const int left = held - piece * team_.chunks;
      for (int chunk = 0; chunk < team_.chunks && chunk < left; ++chunk) start(of_piece, piece, chunk);
    }
  }

  /// Waits until all blocks of the team have called, which then see what all of them wrote before. All threads call it.
  __device__ __forceinline__ void barrier(unsigned* counters) {
    if (team_.size == 1) {
      __syncthreads();
    } else if (team_.join == WN_CLUSTER) {
      dev::cluster_sync();
    } else {
      unsigned* arrived = counters + 2 * team_index_;
      expected_ += team_.size;
      __syncthreads();  // the writes of all threads come before the fence of the first
      if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(arrived, 1u);
        while (dev::poll(arrived) < expected_) {
        }
        __threadfence();  // what the others wrote before their fence is read after this one
      }
      __syncthreads();
    }
  }

  /// Leaves the counters at zero. The last thing that a block does with its team.
  __device__ __forceinline__ void leave(unsigned* counters) const {
    if (team_.size == 1 || team_.join != WN_GRID || threadIdx.x != 0) return;
    unsigned* arrived = counters + 2 * team_index_;
    const unsigned last = team_.size - 1;
    // Whoever comes last has seen all others leave the last barrier.
    if (atomicInc(arrived + 1, last) == last) atomicExch(arrived, 0u);
  }

 private:
  const wn_channel_team& team_;
  unsigned team_index_, rank_;
  unsigned expected_ = 0;
};

/// Waits until all but the last `pending` groups of this thread's copies have landed, or a few more.
__device__ __forceinline__ void wait_for_copies(int pending) {
  if (pending >= 8) {
    dev::copy_wait<8>();
  } else if (pending >= 4) {
    dev::copy_wait<4>();
  } else if (pending >= 2) {
    dev::copy_wait<2>();
  } else if (pending == 1) {
    dev::copy_wait<1>();
  } else {
    dev::copy_wait<0>();
  }
}

/// The chunks of `kTensors` tensors that a block holds in shared memory, each thread its own. Chunks are counted through
/// the pieces of the block.
template <class T, class Tile, int kTensors> class Held {
 public:
  using Slot = Pack<T, Tile::kVec>;

  __device__ __forceinline__ Held(const wn_channel_team& team, Slot* slots)
      : slots_(slots + threadIdx.x),
        chunks_(team.chunks),
        loads_(static_cast<int>(Tile::loads(team.walk))),
        stride_(count(team) * kThreads) {}

  /// Loads of each tensor that a thread holds.
  __host__ __device__ static int count(const wn_channel_team& team) {
    const int loads = static_cast<int>(Tile::loads(team.walk));
    const int rest = team.held % team.chunks * Tile::kLoads;
    return team.held / team.chunks * loads + (rest < loads ? rest : loads);
  }
  /// Bytes of shared memory that a block needs.
  __host__ static size_t bytes(const wn_channel_team& team) {
    return size_t(kTensors) * count(team) * kThreads * sizeof(Slot);
  }

  /// Starts copies of the chunk with the given offsets.
  __device__ __forceinline__ void start(int tensor, int piece, int chunk, const T* from, const int64_t (&at)[Tile::kLoads],
                                        int loads) {
#pragma unroll
    for (int k = 0; k < Tile::kLoads; ++k) {
      if (k < loads) dev::copy_async<sizeof(Slot)>(slot(tensor, piece, chunk, k), from + at[k]);
    }
  }

  /// Reads a chunk that has landed; what lies behind the first `loads` becomes zeros.
  __device__ __forceinline__ void read(float (&values)[Tile::kLoads][Tile::kVec], int tensor, int piece, int chunk,
                                       int loads) const {
#pragma unroll
    for (int k = 0; k < Tile::kLoads; ++k) {
      if (k < loads) {
        load(values[k], reinterpret_cast<const T*>(slot(tensor, piece, chunk, k)));
      } else {
#pragma unroll
        for (int i = 0; i < Tile::kVec; ++i) values[k][i] = 0.f;
      }
    }
  }

 private:
  __device__ __forceinline__ Slot* slot(int tensor, int piece, int chunk, int k) const {
    return slots_ + (tensor * stride_ + (piece * loads_ + chunk * Tile::kLoads + k) * kThreads);
  }

  Slot* slots_;
  int chunks_, loads_, stride_;
};

/// A block's way through the chunks of a unit's second phase: number `step` of `total`, of which the first `held` are
/// held. Those that are not come first, the last one read before the others.
__device__ __forceinline__ int second_phase_chunk(int step, int total, int held) {
  const int not_held = total - held;
  return step < not_held ? total - 1 - step : step - not_held;
}

/// Whether the second phase comes to `piece` for the first time when it comes to it at chunk `number`.
__device__ __forceinline__ bool is_first_visit(int number, int piece, int chunks_per_piece, int held) {
  return number >= held || (piece + 1) * chunks_per_piece <= held;
}

/// Merges the partial results of all slabs of a statistic and all their splits, for each of this thread's slabs.
/// `partial(slab, split)` reads one of a single slab. All threads of the block call it; those that share slabs get the
/// same bits.
template <class Stat1, class Tile, class Partial, class Result>
__device__ __forceinline__ void merge_group(const Tile& tile, const wn_channel_walk& walk, int64_t group, Partial partial,
                                            Result result) {
  const int entries = static_cast<int>(group) * walk.splits;
  const auto merged = [&](int64_t first, int rank, int peers) {
    Cascade<Stat1> all = Cascade<Stat1>::empty();
    for (int i = rank; i < entries; i += peers) {
      const int split = i / static_cast<int>(group);
      all.merge(partial(first + (i - split * static_cast<int>(group)), split));
    }
    return all.total();
  };
  if constexpr (!Tile::kColumns) {
    Stat1 stat = Stat1::empty();
    if (tile.live()) stat = merged(statistic_of(tile.slab(), group) * group, tile.rank(), tile.peers());
    stat = tile.merge(stat);
    result(0, stat);
  } else {
    // A warp for each statistic that the tile has a part in.
    constexpr int kMost = Tile::kMaxColumns * Tile::kVec;
    DEV_SHARED_ARRAY(Stat1, found, kMost);
    const int64_t slabs_before = tile.slab() - threadIdx.x % walk.columns * Tile::kVec;
    const int64_t segment_end = (slabs_before / walk.channels + 1) * walk.channels;
    const int64_t tile_end = slabs_before + walk.columns * Tile::kVec;
    const int64_t first = statistic_of(slabs_before, group);
    const int64_t last = statistic_of((tile_end < segment_end ? tile_end : segment_end) - 1, group);
    for (int64_t s = first + threadIdx.x / kWarp; s <= last; s += kWarps) {
      const Stat1 stat = warp_merge_all(merged(s * group, threadIdx.x % kWarp, kWarp));
      if (threadIdx.x % kWarp == 0) found[s - first] = stat;
    }
    __syncthreads();
#pragma unroll
    for (int lane = 0; lane < Tile::kLanes; ++lane)
      if (tile.live()) result(lane, found[statistic_of(tile.slab() + lane, group) - first]);
    __syncthreads();  // the next call overwrites `found`
  }
}

}  // namespace WN_NAMESPACE
