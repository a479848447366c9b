// Faults of global memory: bounds, alignment, initialization, lifetime.
#pragma once

#include "block_faults.cuh"

namespace WN_NAMESPACE {
namespace faults {

template <bool kPlanted> __global__ void sum_quads(const float* x, float* y, int quads) {
  float sum = 0.f;
  for (int i = threadIdx.x; i < quads + kPlanted; i += kWarp) {
    const Quad quad = dev::load_vec<Quad>(x + 4 * i);
    for (float value : quad.lane) sum += value;
  }
  sum = warp_sum(sum);
  if (threadIdx.x == 0) y[0] = sum;
}
template <bool kPlanted> int32_t vector_read_out_of_bounds() {
  const Floats x = Floats::inputs(4 * kThreads);
  const Floats y(1);
  const dev::Status status =
      dev::launch<sum_quads<kPlanted>>(grid_of(1, kWarp), x.data(), y.data(), kThreads);
  return status != dev::kSuccess ? status : y.verify([](int) { return input_sum(4 * kThreads); });
}

template <bool kPlanted> __global__ void add_neighbor(const float* x, float* y) {
  const int i = threadIdx.x;
  y[i] = x[i] + (i + 1 < kThreads || kPlanted ? x[i + 1] : 0.f);
}
template <bool kPlanted> int32_t scalar_read_out_of_bounds_by_one() {
  return run_and_verify<add_neighbor<kPlanted>>(grid_of(1), kThreads, kThreads, [](int i) {
    return input(i) + (i + 1 < kThreads ? input(i + 1) : 0.f);
  });
}

template <bool kPlanted> __global__ void shift_outputs(const float* x, float* y) {
  const int i = threadIdx.x;
  y[kPlanted ? i + 1 : i] = x[i];
}
template <bool kPlanted> int32_t scalar_write_out_of_bounds_by_one() {
  return run_and_verify<shift_outputs<kPlanted>>(grid_of(1), kThreads, kThreads, input);
}

template <bool kPlanted> __global__ void copy_quad(const float* x, float* y) {
  const Quad quad = dev::load_vec<Quad>(x + 4 * threadIdx.x + kPlanted);
  dev::store_vec(y + 4 * threadIdx.x, quad);
}
template <bool kPlanted> int32_t misaligned_vector_read() {
  return run_and_verify<copy_quad<kPlanted>>(grid_of(1, kWarp), 4 * kWarp + 4, 4 * kWarp, input);
}

template <bool kPlanted> __global__ void write_block_inputs(const float* x, float* partials) {
  if (threadIdx.x == 0 && !(kPlanted && blockIdx.x == 2)) partials[blockIdx.x] = x[blockIdx.x];
}
__global__ inline void sum_floats(const float* partials, float* y, int count) {
  float sum = 0.f;
  for (int i = 0; i < count; ++i) sum += partials[i];
  *y = sum;
}
template <bool kPlanted> int32_t partial_never_written() {
  constexpr int kCount = 4;
  const Floats x = Floats::inputs(kCount);
  const Floats partials(kCount);
  const Floats y(1);
  dev::Status status =
      dev::launch<write_block_inputs<kPlanted>>(grid_of(kCount, kWarp), x.data(), partials.data());
  if (status == dev::kSuccess) {
    status = dev::launch<sum_floats>(grid_of(1, 1), partials.data(), y.data(), kCount);
  }
  return status != dev::kSuccess ? status : y.verify([](int) { return input_sum(kCount); });
}

/// The row that an offset lies in, by way of the offset.
template <bool kPlanted> __global__ void find_rows(float* y, int pitch) {
  const int row = threadIdx.x;
  const int64_t offset = kPlanted ? int64_t(row * pitch) : int64_t(row) * pitch;
  y[row] = static_cast<float>(offset / pitch);
}
template <bool kPlanted> int32_t index_overflows_32_bits() {
  const Floats y(kWarp);
  const dev::Status status = dev::launch<find_rows<kPlanted>>(grid_of(1, kWarp), y.data(), 1 << 28);
  return status != dev::kSuccess ? status : y.verify([](int i) { return static_cast<float>(i); });
}

__global__ inline void add_one(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x] + 1.f; }

template <bool kPlanted> int32_t host_pointer_passed_to_kernel() {
  const Floats x = Floats::inputs(kWarp);
  const Floats y(kWarp);
  float on_host[kWarp] = {};
  const float* from = kPlanted ? on_host : x.data();
  const dev::Status status = dev::launch<add_one>(grid_of(1, kWarp), from, y.data());
  return status != dev::kSuccess ? status : y.verify([](int i) { return input(i) + 1.f; });
}

template <bool kPlanted> int32_t null_pointer_passed_to_kernel() {
  const Floats x = Floats::inputs(kWarp);
  const Floats y(kWarp);
  const float* from = kPlanted ? nullptr : x.data();
  const dev::Status status = dev::launch<add_one>(grid_of(1, kWarp), from, y.data());
  return status != dev::kSuccess ? status : y.verify([](int i) { return input(i) + 1.f; });
}

template <bool kPlanted> int32_t write_after_free() {
  const Floats x = Floats::inputs(kWarp);
  Floats y(kWarp);
  float* to = y.data();
  if (kPlanted) y.free();
  const dev::Status status = dev::launch<add_one>(grid_of(1, kWarp), x.data(), to);
  return status != dev::kSuccess ? status : y.verify([](int i) { return input(i) + 1.f; });
}

/// Copies, by accesses that no compiler merges.
template <bool kExtraRead> __global__ void copy_floats(const float* x, float* y, int count) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= count) return;
  float value = dev::load_vec<float>(x + i);
  if (kExtraRead) value = dev::load_vec<float>(x + i);
  dev::store_vec(y + i, value);
}

}  // namespace faults
}  // namespace WN_NAMESPACE
