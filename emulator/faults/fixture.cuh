// What the planted faults share. Input i is 1 + i % 7, so that every sum is exact in any order.
#pragma once

#include "dev.cuh"
#include "warpnorm_emulator.h"

namespace WN_NAMESPACE {
namespace faults {

constexpr int kWarp = 32;
constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

/// What a clean twin returns when its numbers are wrong.
constexpr int32_t kWrongNumbers = -1;

__host__ __device__ inline float input(int i) { return static_cast<float>(1 + i % 7); }

inline float input_sum(int count) {
  float sum = 0.f;
  for (int i = 0; i < count; ++i) sum += input(i);
  return sum;
}

/// Sum over a full warp, in lane 0.
__device__ inline float warp_sum(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_down_sync(kAllLanes, value, step);
  return value;
}

/// Device memory for up to `kMost` elements. A plain array on the host side, since kernel files are
/// instrumented and must not share code of the standard library with the emulator.
template <class T> class DeviceArray {
 public:
  static constexpr int kMost = 4096;

  explicit DeviceArray(int count) : count_(count) {
    void* p = nullptr;
    wn_emulated_malloc(&p, sizeof(T) * static_cast<uint64_t>(count));
    data_ = static_cast<T*>(p);
  }
  ~DeviceArray() { free(); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  /// The array of inputs.
  static DeviceArray inputs(int count) { return DeviceArray(count, true); }

  T* data() const { return data_; }
  int count() const { return count_; }
  void zero() const { wn_emulated_zero(data_, sizeof(T) * static_cast<uint64_t>(count_)); }
  void free() {
    wn_emulated_free(data_);
    data_ = nullptr;
  }

  /// 0 if element i is expected(i) for all i, else `kWrongNumbers`.
  template <class Expected> int32_t verify(Expected expected) const {
    T host[kMost];
    wn_emulated_copy_out(host, data_, sizeof(T) * static_cast<uint64_t>(count_));
    for (int i = 0; i < count_; ++i) {
      if (!(host[i] == expected(i))) return kWrongNumbers;
    }
    return 0;
  }

 private:
  DeviceArray(int count, bool) : DeviceArray(count) {
    T host[kMost];
    for (int i = 0; i < count; ++i) host[i] = static_cast<T>(input(i));
    wn_emulated_copy_in(data_, host, sizeof(T) * static_cast<uint64_t>(count));
  }

  T* data_ = nullptr;
  int count_;
};

using Floats = DeviceArray<float>;

inline dev::LaunchConfig grid_of(unsigned blocks, unsigned threads = kThreads) {
  dev::LaunchConfig config;
  config.grid = dim3(blocks);
  config.block = dim3(threads);
  return config;
}

/// Launches a kernel of (inputs, outputs), and verifies the outputs.
template <auto kKernel, class Expected> int32_t run_and_verify(const dev::LaunchConfig& config,
                                                               int inputs, int outputs,
                                                               Expected expected) {
  const Floats x = Floats::inputs(inputs);
  const Floats y(outputs);
  const dev::Status status = dev::launch<kKernel>(config, x.data(), y.data());
  return status != dev::kSuccess ? status : y.verify(expected);
}

}  // namespace faults
}  // namespace WN_NAMESPACE
