// Merging the statistics of threads. The order is fixed, so the same input gives the same bits.
#pragma once

#include <cstring>

#include "dev.cuh"

namespace WN_NAMESPACE {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

/// Threads of every block of this library that reduces.
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
/// Blocks per SM that the compiler must leave room for. Said, because left unsaid ptxas spills a register or two of some
/// kernels to fit one block more.
constexpr int kMinBlocks = 1;

/// A statistic as other lanes of the warp hold it; `shuffle` moves one word.
template <class Stat, class Shuffle> __device__ __forceinline__ Stat shuffled(const Stat& stat, Shuffle shuffle) {
  static_assert(sizeof(Stat) % sizeof(float) == 0, "statistics are moved by the word");
  constexpr int kWords = sizeof(Stat) / sizeof(float);
  float words[kWords];
  memcpy(words, &stat, sizeof stat);
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = shuffle(words[i]);
  Stat result;
  memcpy(&result, words, sizeof result);
  return result;
}

/// Merges the lanes of a full warp that are congruent modulo `columns`, a power of two. All lanes call it; the result
/// is in the first `columns` lanes.
template <class Stat> __device__ __forceinline__ Stat warp_merge(Stat stat, int columns) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    if (step < columns) break;
    stat.merge(shuffled(stat, [step](float word) { return __shfl_down_sync(kAllLanes, word, step); }));
  }
  return stat;
}

/// Merges a full warp. All lanes call it and get the same bits.
///
/// Not an xor butterfly: merging is not commutative to the bit, so the lanes could disagree.
template <class Stat> __device__ __forceinline__ Stat warp_merge_all(Stat stat) {
  stat = warp_merge(stat, 1);
  return shuffled(stat, [](float word) { return __shfl_sync(kAllLanes, word, 0); });
}

/// Merges the threads of a block that are congruent modulo `columns`, a power of two up to `kMaxColumns`. All threads
/// call it; those of one column get the same bits. May be called again. Blocks that are not of `kThreads` threads say how
/// many warps they have at most.
template <int kMaxColumns, int kMaxWarps = kWarps, class Stat>
__device__ __forceinline__ Stat block_merge(Stat stat, int columns) {
  DEV_SHARED_ARRAY(Stat, partial, kMaxWarps * kMaxColumns);
  const int warps = kMaxWarps == kWarps ? kWarps : static_cast<int>(blockDim.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  stat = warp_merge(stat, columns);
  if (lane < columns) partial[warp * columns + lane] = stat;
  __syncthreads();
  // Every thread redoes the last step: cheaper than a broadcast behind another barrier.
  const int column = lane % columns;
  stat = partial[column];
#pragma unroll
  for (int w = 1; w < kMaxWarps; ++w)
    if (w < warps) stat.merge(partial[w * columns + column]);
  __syncthreads();  // the next call overwrites `partial`
  return stat;
}

/// Counts the blocks that have handed in their partial results, and tells the last one, which then sees those of all.
/// All threads of a block call it after their writes. The counter is back at zero when the last block has called.
__device__ __forceinline__ bool is_last_block(unsigned* counter, int blocks) {
  DEV_SHARED(int, last);
  __syncthreads();  // the writes of all threads come before the fence of the first
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicInc(counter, static_cast<unsigned>(blocks - 1)) == static_cast<unsigned>(blocks - 1);
    __threadfence();  // what the other blocks wrote before their fence is read after this one
  }
  __syncthreads();
  return last != 0;
}

}  // namespace WN_NAMESPACE
