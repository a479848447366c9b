// Faults within a block: barriers, warp operations, shared memory.
#pragma once

#include "fixture.cuh"

namespace WN_NAMESPACE {
namespace faults {

template <bool kPlanted> __global__ void sum_partials(const float* x, float* y) {
  DEV_SHARED_ARRAY(float, partial, kWarps);
  const float sum = warp_sum(x[threadIdx.x]);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = sum;
  if (!kPlanted) __syncthreads();
  float total = 0.f;
  for (int w = 0; w < kWarps; ++w) total += partial[w];
  y[threadIdx.x] = total;
}
template <bool kPlanted> int32_t missing_barrier_before_partials() {
  return run_and_verify<sum_partials<kPlanted>>(grid_of(1), kThreads, kThreads,
                                                [](int) { return input_sum(kThreads); });
}

template <bool kPlanted> __global__ void sum_partials_by_lane(const float* x, float* y) {
  DEV_SHARED_ARRAY(float, partial, kWarp);
  const int lane = threadIdx.x % kWarp;
  const float sum = warp_sum(x[threadIdx.x]);
  if (lane == 0) partial[threadIdx.x / kWarp] = sum;
  __syncthreads();
  const bool is_written = lane < kWarps;
  const float total = warp_sum(is_written || kPlanted ? partial[lane] : 0.f);
  if (threadIdx.x == 0) y[0] = total;
}
template <bool kPlanted> int32_t read_of_unwritten_shared_memory() {
  return run_and_verify<sum_partials_by_lane<kPlanted>>(grid_of(1), kThreads, 1,
                                                        [](int) { return input_sum(kThreads); });
}

template <bool kPlanted> __global__ void shuffle_in_branch(const float* x, float* y) {
  const unsigned lane = threadIdx.x;
  float value = x[lane];
  if (lane < 8) value = __shfl_sync(kPlanted ? kAllLanes : 0xffu, value, 0);
  y[lane] = value;
}
template <bool kPlanted> int32_t full_mask_shuffle_in_divergent_branch() {
  return run_and_verify<shuffle_in_branch<kPlanted>>(grid_of(1, kWarp), kWarp, kWarp,
                                                     [](int i) { return input(i < 8 ? 0 : i); });
}

template <bool kPlanted> __global__ void shuffle_between_lanes(const float* x, float* y) {
  const int lane = threadIdx.x;
  if (lane < 8) y[lane] = __shfl_sync(0xffu, x[lane], kPlanted ? lane + 4 : 7 - lane);
}
template <bool kPlanted> int32_t shuffle_from_lane_outside_mask() {
  return run_and_verify<shuffle_between_lanes<kPlanted>>(grid_of(1, kWarp), kWarp, 8,
                                                         [](int i) { return input(7 - i); });
}

template <bool kPlanted> __global__ void write_partials(const float* x, float* y) {
  DEV_SHARED_ARRAY(float, partial, kWarps);
  const int warp = threadIdx.x / kWarp;
  const float sum = warp_sum(x[threadIdx.x]);
  if (threadIdx.x % kWarp == 0) partial[kPlanted ? warp + 1 : warp] = sum;
  __syncthreads();
  if (threadIdx.x == 0) y[0] = partial[kWarps - 1];
}
template <bool kPlanted> int32_t shared_write_out_of_bounds() {
  return run_and_verify<write_partials<kPlanted>>(grid_of(1), kThreads, 1, [](int) {
    return input_sum(kThreads) - input_sum(kThreads - kWarp);
  });
}

template <bool kPlanted> __global__ void barrier_in_branch(const float* x, float* y) {
  DEV_SHARED_ARRAY(float, copy, kThreads);
  copy[threadIdx.x] = x[threadIdx.x];
  if (kPlanted && threadIdx.x < kWarp) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = copy[kThreads - 1 - threadIdx.x];
}
template <bool kPlanted> int32_t divergent_barrier() {
  return run_and_verify<barrier_in_branch<kPlanted>>(grid_of(1), kThreads, kThreads,
                                                     [](int i) { return input(kThreads - 1 - i); });
}

template <bool kPlanted> __global__ void broadcast_total(const float* x, float* y) {
  DEV_SHARED_ARRAY(float, partial, kWarps);
  const float sum = warp_sum(x[threadIdx.x]);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kWarps; ++w) partial[0] += partial[w];
  }
  if (!kPlanted) __syncthreads();
  y[threadIdx.x] = partial[0];
}
template <bool kPlanted> int32_t missing_barrier_before_broadcast() {
  return run_and_verify<broadcast_total<kPlanted>>(grid_of(1), kThreads, kThreads,
                                                   [](int) { return input_sum(kThreads); });
}

template <bool kPlanted> __global__ void reverse_twice(const float* x, float* y) {
  DEV_SHARED_ARRAY(float, copy, kThreads);
  float value = x[threadIdx.x];
  for (int round = 0; round < 2; ++round) {
    copy[threadIdx.x] = value;
    __syncthreads();
    value = copy[kThreads - 1 - threadIdx.x];
    if (!kPlanted) __syncthreads();  // the next round overwrites `copy`
  }
  y[threadIdx.x] = value;
}
template <bool kPlanted> int32_t shared_memory_reused_without_barrier() {
  return run_and_verify<reverse_twice<kPlanted>>(grid_of(1), kThreads, kThreads, input);
}

template <bool kPlanted> __global__ void sum_within_warp(const float* x, float* y) {
  DEV_SHARED_ARRAY(float, values, 2 * kWarp);
  const int lane = threadIdx.x;
  values[lane] = x[lane];
  values[lane + kWarp] = 0.f;
  __syncwarp();
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const float sum = values[lane] + values[lane + step];
    if (!kPlanted) __syncwarp();
    values[lane] = sum;
    if (!kPlanted) __syncwarp();
  }
  if (lane == 0) y[0] = values[0];
}
template <bool kPlanted> int32_t missing_syncwarp() {
  return run_and_verify<sum_within_warp<kPlanted>>(grid_of(1, kWarp), kWarp, 1,
                                                   [](int) { return input_sum(kWarp); });
}

template <bool kPlanted> __global__ void return_before_barrier(const float* x, float* y) {
  constexpr int kActive = kThreads - kWarp;
  DEV_SHARED_ARRAY(float, copy, kActive);
  const int thread = threadIdx.x;
  if (kPlanted && thread >= kActive) return;
  if (thread < kActive) copy[thread] = x[thread];
  __syncthreads();
  if (thread < kActive) y[thread] = copy[kActive - 1 - thread];
}
template <bool kPlanted> int32_t early_return_before_barrier() {
  constexpr int kActive = kThreads - kWarp;
  return run_and_verify<return_before_barrier<kPlanted>>(
      grid_of(1), kThreads, kActive, [](int i) { return input(kActive - 1 - i); });
}

template <bool kPlanted> __global__ void return_before_shuffle(const float* x, float* y) {
  constexpr int kActive = 20;
  const int lane = threadIdx.x;
  if (kPlanted && lane >= kActive) return;
  const float sum = warp_sum(lane < kActive ? x[lane] : 0.f);
  if (lane == 0) y[0] = sum;
}
template <bool kPlanted> int32_t early_return_before_shuffle() {
  return run_and_verify<return_before_shuffle<kPlanted>>(grid_of(1, kWarp), kWarp, 1,
                                                         [](int) { return input_sum(20); });
}

template <bool kPlanted> __global__ void different_barriers(const float* x, float* y) {
  if (kPlanted && threadIdx.x < kWarp) {
    __syncwarp();
    dev::cluster_sync();
  } else {
    __syncthreads();
    if (!kPlanted) dev::cluster_sync();
  }
  y[threadIdx.x] = x[threadIdx.x];
}
template <bool kPlanted> int32_t threads_wait_at_different_barriers() {
  return run_and_verify<different_barriers<kPlanted>>(grid_of(1), kThreads, kThreads, input);
}

struct alignas(16) Quad {
  float lane[4];
};

template <bool kPlanted> __global__ void vectors_in_shared_memory(const float* x, float* y) {
  struct Storage {
    alignas(kPlanted ? 4 : 16) float values[4 * kWarp];
  };
  DEV_SHARED(Storage, storage);
  for (int i = 0; i < 4; ++i) storage.values[4 * threadIdx.x + i] = x[threadIdx.x];
  const Quad quad = dev::load_vec<Quad>(storage.values + 4 * threadIdx.x);
  y[threadIdx.x] = quad.lane[3];
}
template <bool kPlanted> int32_t vector_access_to_unaligned_shared_array() {
  return run_and_verify<vectors_in_shared_memory<kPlanted>>(grid_of(1, kWarp), kWarp, kWarp, input);
}

__global__ inline void reverse_in_dynamic_shared(const float* x, float* y) {
  DEV_DYN_SHARED(float, copy);
  copy[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = copy[blockDim.x - 1 - threadIdx.x];
}
template <bool kPlanted> int32_t dynamic_shared_memory_too_short() {
  dev::LaunchConfig config = grid_of(1);
  config.dynamic_smem = kThreads * sizeof(float) - (kPlanted ? sizeof(float) : 0);
  return run_and_verify<reverse_in_dynamic_shared>(config, kThreads, kThreads,
                                                   [](int i) { return input(kThreads - 1 - i); });
}
template <bool kPlanted> int32_t dynamic_shared_memory_over_limit() {
  dev::LaunchConfig config = grid_of(1);
  config.dynamic_smem = kPlanted ? 228 << 10 : 227 << 10;
  return run_and_verify<reverse_in_dynamic_shared>(config, kThreads, kThreads,
                                                   [](int i) { return input(kThreads - 1 - i); });
}

}  // namespace faults
}  // namespace WN_NAMESPACE
