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
#define DEV_DYN_SHARED(T, name)                                  \
  extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(dynamic_shared)

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

/// A copy of `kBytes` bytes, to which both ends are aligned, from global to shared memory. It lands when its thread
/// waits for it. What is copied is not read again, so it need not stay in the L2 cache.
template <int kBytes> __device__ __forceinline__ void copy_async(void* to, const void* from) {
  static_assert(kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes == 16, "no such copy");
#if __CUDA_ARCH__ >= 800
  if constexpr (kBytes > 2) {
    const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
    if constexpr (kBytes == 16) {
      uint64_t policy;
      asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
      asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "l"(policy)
                   : "memory");
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(from), "n"(kBytes) : "memory");
    }
    return;
  }
#endif
  if constexpr (kBytes == 2) *static_cast<uint16_t*>(to) = *static_cast<const uint16_t*>(from);
  if constexpr (kBytes == 4) *static_cast<uint32_t*>(to) = *static_cast<const uint32_t*>(from);
  if constexpr (kBytes == 8) *static_cast<uint2*>(to) = *static_cast<const uint2*>(from);
  if constexpr (kBytes == 16) *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
}
/// Makes a group of the thread's copies since the last group; of none, if there were none.
__device__ __forceinline__ void copy_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/// Waits until at most the last `kPending` groups of the thread are on their way.
template <int kPending> __device__ __forceinline__ void copy_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

/// Sets the line of memory that `p` lies in on its way to the L2 cache. Nothing waits for it.
template <class T> __device__ __forceinline__ void prefetch(const T* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

/// Reads a counter that other blocks add to, while this thread waits for them. What they wrote before is read after a
/// fence.
__device__ __forceinline__ unsigned poll(const unsigned* p) {
  unsigned value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}

/// Barrier of a cluster. Orders what its threads wrote before with what they read after, in shared and global memory.
__device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}
/// Where block `rank` of the cluster has what this block has at `p`, in shared memory.
template <class T> __device__ __forceinline__ T* map_rank(T* p, unsigned rank) {
#if __CUDA_ARCH__ >= 900
  uint64_t there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(reinterpret_cast<uint64_t>(p)), "r"(rank));
  return reinterpret_cast<T*>(there);
#else
  return p;
#endif
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

/// `load_vec` and `store_vec` of memory that is not accessed again soon: the L2 cache evicts it first.
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
  bool cooperative = false;   // all blocks are resident together
  unsigned cluster = 1;       // blocks per cluster, along x
  bool prepare_only = false;  // load the kernel, enqueue nothing
};

/// The dynamic shared memory that a block of the kernel may have on the current device: all that is left of the device's
/// by what the kernel declares itself. 0 where it cannot be told.
template <auto kKernel> int most_dynamic_smem() {
  constexpr int kDevices = 64;  // whose answers are kept, as they do not change
  static int known[kDevices];  // of words that threads read and write as a whole; std::atomic would need the C++ runtime
  int device = 0;
  if (cudaGetDevice(&device) != kSuccess) return 0;
  const bool keeps = device < kDevices;
  if (const int most = keeps ? __atomic_load_n(&known[device], __ATOMIC_RELAXED) : 0) return most;
  int of_block = 0;
  cudaFuncAttributes attributes;
  if (cudaDeviceGetAttribute(&of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != kSuccess) return 0;
  if (cudaFuncGetAttributes(&attributes, kKernel) != kSuccess) return 0;
  const int most = of_block - static_cast<int>(attributes.sharedSizeBytes);
  if (keeps) __atomic_store_n(&known[device], most, __ATOMIC_RELAXED);
  return most;
}

/// The kernel is a template argument so that the emulator can name it.
template <auto kKernel, class... Args> Status launch(const LaunchConfig& config, Args... args) {
  constexpr size_t kSurelyUnasked = 32 << 10;  // of 48 KB, which a kernel may have unasked with what it declares itself
  constexpr unsigned kPortable = 8;            // blocks of a cluster, likewise
  if (config.dynamic_smem > kSurelyUnasked) {
    // Always the same value, as it is the function's and not the launch's: another thread may be launching it, too.
    const int most = most_dynamic_smem<kKernel>();
    if (most < static_cast<int64_t>(config.dynamic_smem)) return kInvalidValue;
    const Status status = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    if (status != kSuccess) return status;
  }
  if (config.cluster > kPortable) {
    const Status status = cudaFuncSetAttribute(kKernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (status != kSuccess) return status;
  }
  if (config.prepare_only) {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, kKernel);
  }
  cudaLaunchConfig_t native{};
  native.gridDim = config.grid;
  native.blockDim = config.block;
  native.dynamicSmemBytes = config.dynamic_smem;
  native.stream = config.stream;
  cudaLaunchAttribute attributes[2];
  native.attrs = attributes;
  if (config.cooperative) {
    cudaLaunchAttribute& attribute = attributes[native.numAttrs++];
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  if (config.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[native.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = config.cluster;
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
  }
  return cudaLaunchKernelEx(&native, kKernel, args...);
}

}  // namespace dev
}  // namespace WN_NAMESPACE

#else

#include "emulator.h"

#define WN_NAMESPACE wn_emulated
#define WN_LAUNCHERS wn_emulated_launchers

#endif
