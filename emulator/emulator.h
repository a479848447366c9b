// The CUDA that kernels may use, for a host compiler. Every CUDA thread is a fiber, and the threads
// of a block take turns on the host thread that launches. Kernels reach this file through dev.cuh.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "types.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ WN_EMULATOR_ERROR_declare_shared_memory_with_DEV_SHARED

namespace wn_emulated {
namespace emulator {

/// Where in the source a thread synchronizes.
struct Site {
  const char* file;
  int line;
};

// Each as a whole default argument: only so does the compiler take the caller's place for its
// value.
#define WN_EMULATOR_SITE const char *site_file = __builtin_FILE(), int site_line = __builtin_LINE()
#define WN_EMULATOR_HERE (::wn_emulated::emulator::Site{site_file, site_line})

enum class BarrierOp : uint8_t { kNone, kOr, kAnd, kCount };
enum class WarpOp : uint8_t {
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kAny,
  kAll,
  kReduceAdd,
  kBarrier
};
enum class AtomicOp : uint8_t { kAdd, kMax, kExchange, kCompareAndSwap, kIncrement };
enum class Scalar : uint8_t { kInt, kUnsigned, kUnsigned64, kFloat, kDouble };
/// What the L2 cache is told about an access.
enum class CacheHint : uint8_t { kNone, kEvictFirst };

/// What a CUDA thread knows about itself.
struct ThreadContext {
  uint3 thread_index;
  uint3 block_index;
  dim3 block_dim;
  dim3 grid_dim;
};

/// Null outside kernels.
extern thread_local ThreadContext* current __attribute__((tls_model("initial-exec")));

// Kernels are compiled with instrumentation in check builds, which must see their own accesses and
// none of the emulator's. So whatever touches the emulator's memory is behind a call.
int block_barrier(BarrierOp op, int predicate, Site site);
uint64_t warp_operation(WarpOp op, unsigned mask, uint64_t value, int argument, int width,
                        Site site);
void cluster_barrier(Site site);
void grid_barrier(Site site);
unsigned cluster_rank();
void fence();
uint64_t atomic(AtomicOp op, Scalar type, void* p, uint64_t operand, uint64_t compare);
void* shared_variable(const void* tag, size_t bytes, size_t alignment);
void* dynamic_shared();
void* map_to_rank(void* p, unsigned rank);
void copy_async(void* to, const void* from, size_t bytes);
void copy_commit();
/// Lands all but the last `pending` groups.
void copy_wait(size_t pending);
unsigned poll(const unsigned* p, Site site);
/// `pc` is where in the code; null if that is not known.
[[noreturn]] void fail_misaligned(const void* p, size_t bytes, bool write, const void* pc);

#ifdef WN_EMULATOR_CHECK
uint3 thread_index();
uint3 block_index();
dim3 block_dim();
dim3 grid_dim();
void load_bytes(void* to, const void* from, size_t bytes, CacheHint hint);
void store_bytes(void* to, const void* from, size_t bytes, CacheHint hint);
#else
inline const uint3& thread_index() { return current->thread_index; }
inline const uint3& block_index() { return current->block_index; }
inline const dim3& block_dim() { return current->block_dim; }
inline const dim3& grid_dim() { return current->grid_dim; }
inline void load_bytes(void* to, const void* from, size_t bytes, CacheHint) {
  if (reinterpret_cast<uintptr_t>(from) % bytes != 0) fail_misaligned(from, bytes, false, nullptr);
  std::memcpy(to, from, bytes);
}
inline void store_bytes(void* to, const void* from, size_t bytes, CacheHint) {
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0) fail_misaligned(to, bytes, true, nullptr);
  std::memcpy(to, from, bytes);
}
#endif

/// A launch as the scheduler sees it: `call` runs the kernel with the parameters at `bank`.
struct LaunchRequest {
  dim3 grid;
  dim3 block;
  unsigned cluster;
  size_t dynamic_smem;
  bool cooperative;
  bool prepare_only;
  const char* signature;  // __PRETTY_FUNCTION__ of kernel_signature<kernel>
  void (*call)(const void* bank);
  const void* bank;
  size_t bank_bytes;
};
int32_t submit(const LaunchRequest& request);

/// One memory access of `sizeof(V)` bytes, to which `p` is aligned. Inlined, so that a report
/// points to the caller.
template <class V, class T> [[gnu::always_inline]] inline V load_one(const T* p, CacheHint hint) {
  static_assert(sizeof(V) <= 16 && (sizeof(V) & (sizeof(V) - 1)) == 0, "no such access");
  V v;
  load_bytes(&v, p, sizeof v, hint);
  return v;
}
template <class V, class T>
[[gnu::always_inline]] inline void store_one(T* p, const V& v, CacheHint hint) {
  static_assert(sizeof(V) <= 16 && (sizeof(V) & (sizeof(V) - 1)) == 0, "no such access");
  store_bytes(p, &v, sizeof v, hint);
}

/// The kernel's name is in the text that the compiler has for this function.
template <auto kKernel> const char* kernel_signature() { return __PRETTY_FUNCTION__; }

template <class T> uint64_t to_word(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "values are up to 8 bytes");
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  return word;
}
template <class T> T from_word(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

template <class T> constexpr Scalar scalar_type() {
  if (std::is_same<T, int>::value) return Scalar::kInt;
  if (std::is_same<T, unsigned>::value) return Scalar::kUnsigned;
  if (std::is_same<T, float>::value) return Scalar::kFloat;
  if (std::is_same<T, double>::value) return Scalar::kDouble;
  return Scalar::kUnsigned64;
}
template <class T> T atomic_on(AtomicOp op, T* p, T operand, T compare = T()) {
  static_assert(std::is_same<T, int>::value || std::is_same<T, unsigned>::value ||
                    std::is_same<T, unsigned long long>::value || std::is_same<T, float>::value ||
                    std::is_same<T, double>::value,
                "CUDA has no such atomic operation");
  return from_word<T>(atomic(op, scalar_type<T>(), p, to_word(operand), to_word(compare)));
}
template <class T> struct Identity {
  using type = T;
};
/// Keeps a parameter out of deduction, so that `atomicAdd(&count, 1)` works on an unsigned.
template <class T> using Same = typename Identity<T>::type;

template <class T> T shuffle(WarpOp op, unsigned mask, T value, int lane, int width, Site site) {
  return from_word<T>(warp_operation(op, mask, to_word(value), lane, width, site));
}

}  // namespace emulator

#define threadIdx (::wn_emulated::emulator::thread_index())
#define blockIdx (::wn_emulated::emulator::block_index())
#define blockDim (::wn_emulated::emulator::block_dim())
#define gridDim (::wn_emulated::emulator::grid_dim())
constexpr int warpSize = 32;

inline void __syncthreads(WN_EMULATOR_SITE) {
  emulator::block_barrier(emulator::BarrierOp::kNone, 0, WN_EMULATOR_HERE);
}
inline int __syncthreads_or(int predicate, WN_EMULATOR_SITE) {
  return emulator::block_barrier(emulator::BarrierOp::kOr, predicate, WN_EMULATOR_HERE);
}
inline int __syncthreads_and(int predicate, WN_EMULATOR_SITE) {
  return emulator::block_barrier(emulator::BarrierOp::kAnd, predicate, WN_EMULATOR_HERE);
}
inline int __syncthreads_count(int predicate, WN_EMULATOR_SITE) {
  return emulator::block_barrier(emulator::BarrierOp::kCount, predicate, WN_EMULATOR_HERE);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, WN_EMULATOR_SITE) {
  emulator::warp_operation(emulator::WarpOp::kBarrier, mask, 0, 0, 32, WN_EMULATOR_HERE);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, WN_EMULATOR_SITE) {
  return emulator::shuffle(emulator::WarpOp::kShuffle, mask, value, lane, width, WN_EMULATOR_HERE);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, WN_EMULATOR_SITE) {
  return emulator::shuffle(emulator::WarpOp::kShuffleUp, mask, value, static_cast<int>(delta),
                           width, WN_EMULATOR_HERE);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, WN_EMULATOR_SITE) {
  return emulator::shuffle(emulator::WarpOp::kShuffleDown, mask, value, static_cast<int>(delta),
                           width, WN_EMULATOR_HERE);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, WN_EMULATOR_SITE) {
  return emulator::shuffle(emulator::WarpOp::kShuffleXor, mask, value, lanes, width,
                           WN_EMULATOR_HERE);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, WN_EMULATOR_SITE) {
  return static_cast<unsigned>(emulator::warp_operation(emulator::WarpOp::kBallot, mask,
                                                        predicate != 0, 0, 32, WN_EMULATOR_HERE));
}
inline int __any_sync(unsigned mask, int predicate, WN_EMULATOR_SITE) {
  return static_cast<int>(emulator::warp_operation(emulator::WarpOp::kAny, mask, predicate != 0, 0,
                                                   32, WN_EMULATOR_HERE));
}
inline int __all_sync(unsigned mask, int predicate, WN_EMULATOR_SITE) {
  return static_cast<int>(emulator::warp_operation(emulator::WarpOp::kAll, mask, predicate != 0, 0,
                                                   32, WN_EMULATOR_HERE));
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value, WN_EMULATOR_SITE) {
  return static_cast<unsigned>(
      emulator::warp_operation(emulator::WarpOp::kReduceAdd, mask, value, 0, 32, WN_EMULATOR_HERE));
}
inline void __threadfence() { emulator::fence(); }

template <class T> T atomicAdd(T* p, emulator::Same<T> value) {
  return emulator::atomic_on(emulator::AtomicOp::kAdd, p, value);
}
template <class T> T atomicMax(T* p, emulator::Same<T> value) {
  static_assert(std::is_integral<T>::value, "CUDA has atomicMax for integers only");
  return emulator::atomic_on(emulator::AtomicOp::kMax, p, value);
}
template <class T> T atomicExch(T* p, emulator::Same<T> value) {
  static_assert(!std::is_same<T, double>::value, "CUDA has no atomicExch for double");
  return emulator::atomic_on(emulator::AtomicOp::kExchange, p, value);
}
template <class T> T atomicCAS(T* p, emulator::Same<T> compare, emulator::Same<T> value) {
  static_assert(std::is_integral<T>::value, "CUDA has atomicCAS for integers only");
  return emulator::atomic_on(emulator::AtomicOp::kCompareAndSwap, p, value, compare);
}
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  return emulator::atomic_on(emulator::AtomicOp::kIncrement, p, limit);
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
template <class T> T __ldg(const T* p) { return *p; }
template <class T> [[gnu::always_inline]] inline T __ldcs(const T* p) {
  return emulator::load_one<T>(p, emulator::CacheHint::kEvictFirst);
}
template <class T> [[gnu::always_inline]] inline void __stcs(T* p, emulator::Same<T> value) {
  emulator::store_one(p, value, emulator::CacheHint::kEvictFirst);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long min(long a, long b) { return a < b ? a : b; }
inline long max(long a, long b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline unsigned long min(unsigned long a, unsigned long b) { return a < b ? a : b; }
inline unsigned long max(unsigned long a, unsigned long b) { return a > b ? a : b; }
inline unsigned long long min(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
inline unsigned long long max(unsigned long long a, unsigned long long b) { return a > b ? a : b; }
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }

// The address of a variable of its own tells each declaration, in each instantiation, from all
// others.
#define WN_EMULATOR_SHARED(bytes, alignment)   \
  ::wn_emulated::emulator::shared_variable(    \
      [] {                                     \
        static char tag;                       \
        return static_cast<const void*>(&tag); \
      }(),                                     \
      bytes, alignment)
#define DEV_SHARED_ARRAY(T, name, n) \
  T(&name)[n] = *static_cast<T(*)[n]>(WN_EMULATOR_SHARED(sizeof(T[n]), alignof(T)))
#define DEV_SHARED(T, name) T& name = *static_cast<T*>(WN_EMULATOR_SHARED(sizeof(T), alignof(T)))
#define DEV_DYN_SHARED(T, name) T* name = static_cast<T*>(::wn_emulated::emulator::dynamic_shared())

namespace dev {

/// A cudaError_t by its number.
using Status = int32_t;
constexpr Status kSuccess = 0;
constexpr Status kInvalidValue = 1;
constexpr Status kInvalidConfiguration = 9;
constexpr Status kNotSupported = 801;

/// Ignored: everything is synchronous.
using Stream = struct EmulatedStream*;

struct LaunchConfig {
  dim3 grid, block;
  size_t dynamic_smem = 0;
  Stream stream = nullptr;
  bool cooperative = false;
  unsigned cluster = 1;       // blocks per cluster, along x
  bool prepare_only = false;  // check the configuration, run nothing
};

}  // namespace dev

namespace emulator {

template <auto kKernel, class... Params, class... Args>
dev::Status launch_with(const dev::LaunchConfig& config, void (*)(Params...), Args... args) {
  using Bank = std::tuple<Params...>;
  const Bank bank(static_cast<Params>(args)...);
  LaunchRequest request;
  request.grid = config.grid;
  request.block = config.block;
  request.cluster = config.cluster;
  request.dynamic_smem = config.dynamic_smem;
  request.cooperative = config.cooperative;
  request.prepare_only = config.prepare_only;
  request.signature = kernel_signature<kKernel>();
  request.call = [](const void* p) { std::apply(kKernel, *static_cast<const Bank*>(p)); };
  request.bank = &bank;
  request.bank_bytes = sizeof bank;
  return submit(request);
}

}  // namespace emulator

namespace dev {

/// Runs a kernel to its end, or to its first fault. Arguments become the kernel's parameter types.
template <auto kKernel, class... Args> Status launch(const LaunchConfig& config, Args... args) {
  return emulator::launch_with<kKernel>(config, kKernel, args...);
}

/// One memory access of `sizeof(V)` bytes, to which `p` is aligned.
template <class V, class T> [[gnu::always_inline]] inline V load_vec(const T* p) {
  return emulator::load_one<V>(p, emulator::CacheHint::kNone);
}
template <class V, class T> [[gnu::always_inline]] inline void store_vec(T* p, const V& v) {
  emulator::store_one(p, v, emulator::CacheHint::kNone);
}

/// The same of memory that is not accessed again soon: the L2 cache evicts it first.
template <class V, class T> [[gnu::always_inline]] inline V load_stream(const T* p) {
  return emulator::load_one<V>(p, emulator::CacheHint::kEvictFirst);
}
template <class V, class T> [[gnu::always_inline]] inline void store_stream(T* p, const V& v) {
  emulator::store_one(p, v, emulator::CacheHint::kEvictFirst);
}

/// A copy of `kBytes` bytes, to which both ends are aligned, from global to shared memory. It lands
/// when its thread waits for it, and not before.
template <int kBytes> void copy_async(void* to, const void* from) {
  static_assert(kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes == 16, "no such copy");
  emulator::copy_async(to, from, kBytes);
}
/// Makes a group of the thread's copies since the last group; of none, if there were none.
inline void copy_commit() { emulator::copy_commit(); }
/// Waits until at most the last `kPending` groups of the thread are on their way.
template <int kPending> void copy_wait() { emulator::copy_wait(kPending); }
/// Sets memory on its way to the L2 cache, which no kernel can see.
template <class T> void prefetch(const T*) {}

/// Reads a counter that other blocks add to, while this thread waits for them. What they wrote
/// before is read after a fence.
inline unsigned poll(const unsigned* p, WN_EMULATOR_SITE) {
  return emulator::poll(p, WN_EMULATOR_HERE);
}

/// Barrier of a whole cooperative grid.
inline void grid_sync(WN_EMULATOR_SITE) { emulator::grid_barrier(WN_EMULATOR_HERE); }

/// Barrier of a cluster.
inline void cluster_sync(WN_EMULATOR_SITE) { emulator::cluster_barrier(WN_EMULATOR_HERE); }
inline unsigned cluster_rank() { return emulator::cluster_rank(); }

/// Where block `rank` of the cluster has what this block has at `p`, in shared memory.
template <class T> T* map_rank(T* p, unsigned rank) {
  return static_cast<T*>(emulator::map_to_rank(p, rank));
}

}  // namespace dev
}  // namespace wn_emulated
