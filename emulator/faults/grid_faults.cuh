// Faults between blocks: tickets, fences, clusters, cooperative grids, launches.
#pragma once

#include "fixture.cuh"

namespace WN_NAMESPACE {
namespace faults {

constexpr int kBlocks = 4;
constexpr int kTotal = kBlocks * kThreads;

enum class TicketFault { kNone, kNoFenceBefore, kNoFenceAfter, kNotAtomic };

/// Sum of a block's inputs, in thread 0.
__device__ inline float block_sum(float value) {
  DEV_SHARED_ARRAY(float, partial, kWarps);
  const float sum = warp_sum(value);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = sum;
  __syncthreads();
  float total = 0.f;
  for (int w = 0; w < kWarps; ++w) total += partial[w];
  __syncthreads();  // the next call overwrites `partial`
  return total;
}

/// The last block to finish adds the partial sums of all.
template <TicketFault kFault>
__global__ void sum_by_last_block(const float* x, float* partials, unsigned* ticket, float* y) {
  const float sum = block_sum(x[blockIdx.x * kThreads + threadIdx.x]);
  if (threadIdx.x != 0) return;
  partials[blockIdx.x] = sum;
  if (kFault != TicketFault::kNoFenceBefore) __threadfence();
  unsigned number;
  if (kFault == TicketFault::kNotAtomic) {
    number = *ticket;
    *ticket = number + 1;
  } else {
    number = atomicInc(ticket, kBlocks - 1);
  }
  if (kFault != TicketFault::kNoFenceAfter) __threadfence();
  if (number != kBlocks - 1) return;
  float total = 0.f;
  for (int b = 0; b < kBlocks; ++b) total += partials[b];
  *y = total;
}
template <TicketFault kFault> int32_t run_ticket() {
  const Floats x = Floats::inputs(kTotal);
  const Floats partials(kBlocks);
  const Floats y(1);
  const DeviceArray<unsigned> ticket(1);
  ticket.zero();
  const dev::Status status = dev::launch<sum_by_last_block<kFault>>(
      grid_of(kBlocks), x.data(), partials.data(), ticket.data(), y.data());
  return status != dev::kSuccess ? status : y.verify([](int) { return input_sum(kTotal); });
}
template <bool kPlanted> int32_t missing_fence_before_ticket() {
  return run_ticket<kPlanted ? TicketFault::kNoFenceBefore : TicketFault::kNone>();
}
template <bool kPlanted> int32_t missing_fence_after_ticket() {
  return run_ticket<kPlanted ? TicketFault::kNoFenceAfter : TicketFault::kNone>();
}
template <bool kPlanted> int32_t ticket_is_not_atomic() {
  return run_ticket<kPlanted ? TicketFault::kNotAtomic : TicketFault::kNone>();
}

template <bool kPlanted> __global__ void add_to_total(const float* x, float* y) {
  const float sum = block_sum(x[blockIdx.x * kThreads + threadIdx.x]);
  if (threadIdx.x != 0) return;
  if (kPlanted) {
    *y += sum;
  } else {
    atomicAdd(y, sum);
  }
}
template <bool kPlanted> int32_t blocks_add_without_atomic() {
  const Floats x = Floats::inputs(kTotal);
  const Floats y(1);
  y.zero();
  const dev::Status status =
      dev::launch<add_to_total<kPlanted>>(grid_of(kBlocks), x.data(), y.data());
  return status != dev::kSuccess ? status : y.verify([](int) { return input_sum(kTotal); });
}

template <bool kPlanted>
__global__ void sum_with_grid_sync(const float* x, float* partials, float* y) {
  const float sum = block_sum(x[blockIdx.x * kThreads + threadIdx.x]);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
  if (kPlanted) {
    __syncthreads();
  } else {
    dev::grid_sync();
  }
  float total = 0.f;
  for (int b = 0; b < kBlocks; ++b) total += partials[b];
  y[blockIdx.x * kThreads + threadIdx.x] = total;
}
template <bool kPlanted> int32_t run_grid_sync(bool cooperative) {
  const Floats x = Floats::inputs(kTotal);
  const Floats partials(kBlocks);
  const Floats y(kTotal);
  dev::LaunchConfig config = grid_of(kBlocks);
  config.cooperative = cooperative;
  const dev::Status status =
      dev::launch<sum_with_grid_sync<kPlanted>>(config, x.data(), partials.data(), y.data());
  return status != dev::kSuccess ? status : y.verify([](int) { return input_sum(kTotal); });
}
template <bool kPlanted> int32_t block_barrier_in_place_of_grid_sync() {
  return run_grid_sync<kPlanted>(true);
}
template <bool kPlanted> int32_t grid_sync_without_cooperative_launch() {
  return run_grid_sync<false>(!kPlanted);
}

template <bool kPlanted> int32_t cooperative_grid_not_resident() {
  const Floats x = Floats::inputs(kTotal);
  const Floats partials(kBlocks);
  const Floats y(kTotal);
  dev::LaunchConfig config = grid_of(kPlanted ? 1u << 20 : kBlocks);
  config.cooperative = true;
  const dev::Status status =
      dev::launch<sum_with_grid_sync<false>>(config, x.data(), partials.data(), y.data());
  return status != dev::kSuccess ? status : y.verify([](int) { return input_sum(kTotal); });
}

enum class ClusterFault { kNone, kBlockBarrier, kEarlyExit };

constexpr unsigned kCluster = 2;

/// Every block of a cluster adds the sums of all its blocks.
template <ClusterFault kFault> __global__ void sum_over_cluster(const float* x, float* y) {
  DEV_SHARED(float, own);
  const float sum = block_sum(x[blockIdx.x * kThreads + threadIdx.x]);
  if (threadIdx.x == 0) own = sum;
  if (kFault == ClusterFault::kBlockBarrier) {
    __syncthreads();
  } else {
    dev::cluster_sync();
  }
  float total = 0.f;
  for (unsigned r = 0; r < kCluster; ++r) total += *dev::map_rank(&own, r);
  if (kFault != ClusterFault::kEarlyExit) dev::cluster_sync();  // others may still read `own`
  y[blockIdx.x * kThreads + threadIdx.x] = total;
}
template <ClusterFault kFault> int32_t run_cluster(unsigned cluster) {
  dev::LaunchConfig config = grid_of(kBlocks);
  config.cluster = cluster;
  return run_and_verify<sum_over_cluster<kFault>>(config, kTotal, kTotal, [](int i) {
    const int first = i / (kCluster * kThreads) * kCluster * kThreads;
    return input_sum(first + kCluster * kThreads) - input_sum(first);
  });
}
template <bool kPlanted> int32_t block_barrier_in_place_of_cluster_sync() {
  return run_cluster<kPlanted ? ClusterFault::kBlockBarrier : ClusterFault::kNone>(kCluster);
}
template <bool kPlanted> int32_t block_exits_while_its_shared_memory_is_read() {
  return run_cluster<kPlanted ? ClusterFault::kEarlyExit : ClusterFault::kNone>(kCluster);
}
template <bool kPlanted> int32_t cluster_does_not_divide_grid() {
  return run_cluster<ClusterFault::kNone>(kPlanted ? kCluster + 1 : kCluster);
}

__global__ inline void copy_inputs(const float* x, float* y) {
  const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
  y[thread] = x[thread];
}
template <bool kPlanted> int32_t empty_grid() {
  return run_and_verify<copy_inputs>(grid_of(kPlanted ? 0 : 1), kThreads, kThreads, input);
}
template <bool kPlanted> int32_t block_too_large() {
  dev::LaunchConfig config = grid_of(1);
  config.block = dim3(kThreads, kPlanted ? 9 : 8);
  return run_and_verify<copy_inputs>(config, 8 * kThreads, 8 * kThreads, input);
}
__global__ inline void write_row(const float* x, float* y) {
  if (blockIdx.y == 0) y[threadIdx.x] = x[threadIdx.x];
}
template <bool kPlanted> int32_t grid_too_large_along_y() {
  dev::LaunchConfig config = grid_of(1, 1);
  config.grid = dim3(1, kPlanted ? 65536 : 100);
  return run_and_verify<write_row>(config, 1, 1, input);
}

}  // namespace faults
}  // namespace WN_NAMESPACE
