// Passes over tensors whose traffic under the model of the L2 is known in advance.
#pragma once

#include "faults.h"
#include "fixture.cuh"

namespace WN_NAMESPACE {
namespace faults {

constexpr int kMostTensors = 3;

/// One pass of a block over `count` floats, as many steps for each of its threads.
template <int32_t kOp> __device__ void walk_floats(float* p, int count) {
  const int steps = count / kThreads;
  for (int step = 0; step < steps; ++step) {
    const int row = kOp == WN_PASS_READ_BACKWARDS ? steps - 1 - step : step;
    float* at = p + row * kThreads + threadIdx.x;
    switch (kOp) {
      case WN_PASS_READ:
      case WN_PASS_READ_BACKWARDS: dev::load_vec<float>(at); break;
      case WN_PASS_READ_STREAM: dev::load_stream<float>(at); break;
      case WN_PASS_WRITE: dev::store_vec(at, input(step)); break;
      case WN_PASS_WRITE_STREAM: dev::store_stream(at, input(step)); break;
      case WN_PASS_ATOMIC: atomicAdd(at, 1.f); break;
    }
  }
}

template <int32_t kOp> __global__ void pass_of_block(float* p, int count) {
  walk_floats<kOp>(p, count);
}

/// Every other thread is a step behind the others.
__global__ void uneven_stream_of_block(float* p, int count) {
  if (threadIdx.x % 2 != 0) dev::load_stream<float>(p + threadIdx.x);
  walk_floats<WN_PASS_READ_STREAM>(p, count);
}

/// Forwards, then backwards. In between, lanes differ in how often they read their last element:
/// the barrier of the block, or of the warp, makes up for it.
template <bool kOfWarp> __global__ void there_and_back_in_block(float* p, int count) {
  walk_floats<WN_PASS_READ>(p, count);
  const float* last = p + count - kThreads + threadIdx.x;
  for (unsigned i = 0; i < threadIdx.x % kWarp; ++i) dev::load_vec<float>(last);
  if (kOfWarp) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  walk_floats<WN_PASS_READ_BACKWARDS>(p, count);
}

/// The same by all blocks of a grid, each on its part.
__global__ void there_and_back_in_grid(float* p, int count) {
  const int part = count / static_cast<int>(gridDim.x);
  walk_floats<WN_PASS_READ>(p + blockIdx.x * part, part);
  dev::grid_sync();
  walk_floats<WN_PASS_READ_BACKWARDS>(p + blockIdx.x * part, part);
}

inline dev::Status run_pass(int32_t op, float* p, int count) {
  const dev::LaunchConfig block = grid_of(1);
  dev::LaunchConfig grid = grid_of(4);
  grid.cooperative = true;
  switch (op) {
    case WN_PASS_READ: return dev::launch<pass_of_block<WN_PASS_READ>>(block, p, count);
    case WN_PASS_READ_BACKWARDS:
      return dev::launch<pass_of_block<WN_PASS_READ_BACKWARDS>>(block, p, count);
    case WN_PASS_READ_STREAM:
      return dev::launch<pass_of_block<WN_PASS_READ_STREAM>>(block, p, count);
    case WN_PASS_WRITE: return dev::launch<pass_of_block<WN_PASS_WRITE>>(block, p, count);
    case WN_PASS_WRITE_STREAM:
      return dev::launch<pass_of_block<WN_PASS_WRITE_STREAM>>(block, p, count);
    case WN_PASS_ATOMIC: return dev::launch<pass_of_block<WN_PASS_ATOMIC>>(block, p, count);
    case WN_PASS_READ_STREAM_UNEVENLY: return dev::launch<uneven_stream_of_block>(block, p, count);
    case WN_PASS_THERE_AND_BACK_IN_WARP:
      return dev::launch<there_and_back_in_block<true>>(block, p, count);
    case WN_PASS_THERE_AND_BACK_IN_BLOCK:
      return dev::launch<there_and_back_in_block<false>>(block, p, count);
    case WN_PASS_THERE_AND_BACK_IN_GRID: return dev::launch<there_and_back_in_grid>(grid, p, count);
  }
  return dev::kInvalidValue;
}

inline dev::Status run_passes(wn_emulated_pass* passes, int32_t pass_count, int32_t floats,
                              uint64_t l2_bytes) {
  const Floats first(floats), second(floats), third(floats);
  const Floats* const tensors[kMostTensors] = {&first, &second, &third};
  for (const Floats* tensor : tensors) tensor->zero();
  dev::Status status = dev::kSuccess;
  wn_emulated_log_start(l2_bytes);
  for (int32_t i = 0; i < pass_count && status == dev::kSuccess; ++i)
    status = run_pass(passes[i].op, tensors[passes[i].tensor]->data(), floats);
  wn_emulated_log_stop();
  for (int32_t i = 0; i < pass_count && status == dev::kSuccess; ++i) {
    wn_emulated_launch seen{};
    status = wn_emulated_log_get(i, &seen);
    passes[i].dram_read = seen.dram_read;
    passes[i].dram_written = seen.dram_written;
  }
  return status;
}

}  // namespace faults
}  // namespace WN_NAMESPACE
