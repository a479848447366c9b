// The CUDA that kernels may use, and their only include from outside. nvcc gets the real thing; a host compiler gets
// the emulator, which offers the same names. Each build encloses everything in a namespace of its own, so that both
// link into one program.
#pragma once

#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#define WN_NAMESPACE wn_cuda
#define WN_LAUNCHERS wn_cuda_launchers
#define DEV_SHARED_ARRAY(T, name, n) __shared__ T name[n]
#define DEV_SHARED(T, name) __shared__ T name

namespace WN_NAMESPACE {
namespace dev {

using Status = cudaError_t;
using Stream = cudaStream_t;
using half = __half;
using bfloat16 = __nv_bfloat16;

constexpr Status kSuccess = cudaSuccess;
constexpr Status kInvalidValue = cudaErrorInvalidValue;

__device__ __forceinline__ float to_f32(float v) { return v; }
__device__ __forceinline__ float to_f32(half v) { return __half2float(v); }
__device__ __forceinline__ float to_f32(bfloat16 v) { return __bfloat162float(v); }

/// Rounds to nearest, ties to even.
template <class T> __device__ __forceinline__ T from_f32(float v);
template <> __device__ __forceinline__ float from_f32<float>(float v) { return v; }
template <> __device__ __forceinline__ half from_f32<half>(float v) { return __float2half_rn(v); }
template <> __device__ __forceinline__ bfloat16 from_f32<bfloat16>(float v) { return __float2bfloat16_rn(v); }

/// One memory access of `sizeof(V)` bytes, to which `p` is aligned.
template <class V, class T> __device__ __forceinline__ V load_vec(const T* p) {
  return *reinterpret_cast<const V*>(p);
}
template <class V, class T> __device__ __forceinline__ void store_vec(T* p, const V& v) {
  *reinterpret_cast<V*>(p) = v;
}

/// The types of `sizeof` `kBytes` that streaming accesses are made for.
template <int kBytes> struct Word;
template <> struct Word<2> {
  using Type = unsigned short;
};
template <> struct Word<4> {
  using Type = unsigned;
};
template <> struct Word<8> {
  using Type = uint2;
};
template <> struct Word<16> {
  using Type = uint4;
};

/// The same of memory that is not accessed again soon: the L2 cache evicts it first.
template <class V, class T> __device__ __forceinline__ V load_stream(const T* p) {
  using Bits = typename Word<sizeof(V)>::Type;
  const Bits bits = __ldcs(reinterpret_cast<const Bits*>(p));
  return *reinterpret_cast<const V*>(&bits);
}
template <class V, class T> __device__ __forceinline__ void store_stream(T* p, const V& v) {
  using Bits = typename Word<sizeof(V)>::Type;
  __stcs(reinterpret_cast<Bits*>(p), *reinterpret_cast<const Bits*>(&v));
}

struct LaunchConfig {
  dim3 grid, block;
  size_t dynamic_smem = 0;
  Stream stream = nullptr;
  bool prepare_only = false;  // load the kernel, enqueue nothing
};

/// The kernel is a template argument so that the emulator can name it.
template <auto kKernel, class... Args> Status launch(const LaunchConfig& config, Args... args) {
  if (config.prepare_only) {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, kKernel);
  }
  cudaLaunchConfig_t native{};
  native.gridDim = config.grid;
  native.blockDim = config.block;
  native.dynamicSmemBytes = config.dynamic_smem;
  native.stream = config.stream;
  return cudaLaunchKernelEx(&native, kKernel, args...);
}

}  // namespace dev
}  // namespace WN_NAMESPACE

#else

#include "emulator.h"

#define WN_NAMESPACE wn_emulated
#define WN_LAUNCHERS wn_emulated_launchers

#endif
