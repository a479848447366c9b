// Faults around asynchronous copies, and around blocks that wait for each other by a counter.
#pragma once

#include "fixture.cuh"
#include "grid_faults.cuh"

namespace WN_NAMESPACE {
namespace faults {

enum class CopyFault { kNone, kNoWait, kWaitForTooFew, kMisaligned, kNeverLands };

/// Every thread copies two inputs of its own to shared memory, in two groups, and adds them.
template <CopyFault kFault> __global__ void add_copied_pairs(const float* x, float* y) {
  DEV_DYN_SHARED(float, pairs);
  const int at = 2 * threadIdx.x;
  if (kFault == CopyFault::kMisaligned) {
    dev::copy_async<8>(pairs + at, x + at + 1);
  } else {
    dev::copy_async<4>(pairs + at, x + at);
  }
  dev::copy_commit();
  dev::copy_async<4>(pairs + at + 1, x + at + 1);
  dev::copy_commit();
  if (kFault == CopyFault::kWaitForTooFew) dev::copy_wait<1>();
  if (kFault == CopyFault::kNone || kFault == CopyFault::kMisaligned) dev::copy_wait<0>();
  if (kFault == CopyFault::kNeverLands) return;
  y[threadIdx.x] = pairs[at] + pairs[at + 1];
}
template <CopyFault kFault> int32_t run_copies() {
  dev::LaunchConfig config = grid_of(1);
  config.dynamic_smem = 2 * kThreads * sizeof(float);
  return run_and_verify<add_copied_pairs<kFault>>(
      config, 2 * kThreads, kThreads, [](int i) { return input(2 * i) + input(2 * i + 1); });
}
template <bool kPlanted> int32_t copy_read_before_it_lands() {
  return run_copies<kPlanted ? CopyFault::kNoWait : CopyFault::kNone>();
}
template <bool kPlanted> int32_t wait_for_too_few_copies() {
  return run_copies<kPlanted ? CopyFault::kWaitForTooFew : CopyFault::kNone>();
}
template <bool kPlanted> int32_t misaligned_copy() {
  return run_copies<kPlanted ? CopyFault::kMisaligned : CopyFault::kNone>();
}
template <bool kPlanted> int32_t exit_with_copies_on_their_way() {
  return run_copies<kPlanted ? CopyFault::kNeverLands : CopyFault::kNone>();
}

enum class PollFault { kNone, kNoFenceBefore, kNoFenceAfter, kOneTooMany, kPlainRead };

/// Blocks that are resident together add the partial sums of all, after a barrier made of a counter.
template <PollFault kFault>
__global__ void sum_with_counter(const float* x, float* partials, unsigned* arrived, float* y) {
  const float sum = block_sum(x[blockIdx.x * kThreads + threadIdx.x]);
  if (threadIdx.x != 0) return;
  partials[blockIdx.x] = sum;
  if (kFault != PollFault::kNoFenceBefore) __threadfence();
  atomicAdd(arrived, 1u);
  const unsigned expected = kFault == PollFault::kOneTooMany ? kBlocks + 1 : kBlocks;
  if (kFault == PollFault::kPlainRead && *arrived > expected) return;
  while (dev::poll(arrived) < expected) {
  }
  if (kFault != PollFault::kNoFenceAfter) __threadfence();
  float total = 0.f;
  for (int b = 0; b < kBlocks; ++b) total += partials[b];
  y[blockIdx.x] = total;
}
template <PollFault kFault> int32_t run_counter() {
  const Floats x = Floats::inputs(kTotal);
  const Floats partials(kBlocks);
  const Floats y(kBlocks);
  const DeviceArray<unsigned> arrived(1);
  arrived.zero();
  dev::LaunchConfig config = grid_of(kBlocks);
  config.cooperative = true;
  const dev::Status status = dev::launch<sum_with_counter<kFault>>(config, x.data(), partials.data(),
                                                                   arrived.data(), y.data());
  return status != dev::kSuccess ? status : y.verify([](int) { return input_sum(kTotal); });
}
template <bool kPlanted> int32_t missing_fence_before_counter() {
  return run_counter<kPlanted ? PollFault::kNoFenceBefore : PollFault::kNone>();
}
template <bool kPlanted> int32_t missing_fence_after_poll() {
  return run_counter<kPlanted ? PollFault::kNoFenceAfter : PollFault::kNone>();
}
template <bool kPlanted> int32_t plain_read_of_a_polled_counter() {
  return run_counter<kPlanted ? PollFault::kPlainRead : PollFault::kNone>();
}
template <bool kPlanted> int32_t wait_for_a_block_that_never_comes() {
  return run_counter<kPlanted ? PollFault::kOneTooMany : PollFault::kNone>();
}

}  // namespace faults
}  // namespace WN_NAMESPACE
