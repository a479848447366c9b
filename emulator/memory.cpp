// Device memory as the host sees it.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "checker.h"
#include "device_lock.h"

namespace wn_emulated {
namespace emulator {
namespace {

/// The live allocations.
class Allocations {
 public:
  void add(char* p, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    bytes_of_[p] = bytes;
  }

  /// Forgets an allocation. False if `p` is not the start of one.
  bool remove(char* p, size_t* bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = bytes_of_.find(p);
    if (found == bytes_of_.end()) return false;
    *bytes = found->second;
    bytes_of_.erase(found);
    return true;
  }

  /// The allocation that starts at or before `p`, last of all.
  bool before(const void* p, const char** start, size_t* bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto after = bytes_of_.upper_bound(static_cast<char*>(const_cast<void*>(p)));
    if (after == bytes_of_.begin()) return false;
    --after;
    *start = after->first;
    *bytes = after->second;
    return true;
  }

 private:
  std::mutex mutex_;
  std::map<char*, size_t> bytes_of_;
};

Allocations& allocations() {
  static auto* all = new Allocations;
  return *all;
}

/// Whether one live allocation contains all of [p, p + bytes). Reports if not.
bool contains(const char* call, const void* p, uint64_t bytes) {
  const char* start = nullptr;
  size_t size = 0;
  const bool found = allocations().before(p, &start, &size);
  const uint64_t offset = found ? static_cast<uint64_t>(static_cast<const char*>(p) - start) : 0;
  if (!found || offset > size) {
    report("[memcheck] %s: %p is not in a live allocation of device memory", call, p);
    return false;
  }
  if (bytes <= size - offset) return true;
  report("[memcheck] %s: %llu bytes at offset %llu of an allocation of %zu bytes", call,
         static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(offset), size);
  return false;
}

}  // namespace

bool allocation_before(const void* p, const char** start, size_t* bytes) {
  return allocations().before(p, start, bytes);
}

#ifndef WN_EMULATOR_CHECK
namespace checker {

char* map_arenas(char* old, size_t old_bytes, size_t bytes) {
  unmap(old, old_bytes);
  return map_lazily(bytes);
}

void declare_shared(char* p, size_t bytes) { std::memset(p, 0xff, bytes); }

char* allocate(size_t bytes) {
  void* p = nullptr;
  if (posix_memalign(&p, 256, std::max<size_t>(bytes, 1)) != 0) return nullptr;
  return static_cast<char*>(p);
}

void release(char* p, size_t) { std::free(p); }

void mark_written(const void*, size_t) {}

}  // namespace checker
#endif

}  // namespace emulator
}  // namespace wn_emulated

using namespace wn_emulated::emulator;

extern "C" {

int32_t wn_emulated_malloc(void** out, uint64_t bytes) {
  const DeviceLock lock;
  char* p = bytes <= SIZE_MAX / 2 ? checker::allocate(bytes) : nullptr;
  if (!p) {
    report("[memcheck] malloc: no %llu bytes left", static_cast<unsigned long long>(bytes));
    return kOutOfMemory;
  }
  if (bytes <= kTrackedBytes) std::memset(p, 0xff, bytes);
  allocations().add(p, bytes);
  *out = p;
  return kSuccess;
}

int32_t wn_emulated_free(void* p) {
  if (!p) return kSuccess;
  const DeviceLock lock;
  size_t bytes = 0;
  if (!allocations().remove(static_cast<char*>(p), &bytes)) {
    report("[memcheck] free: %p is not the start of an allocation", p);
    return kInvalidValue;
  }
  checker::release(static_cast<char*>(p), bytes);
  return kSuccess;
}

int32_t wn_emulated_copy_in(void* dst, const void* src, uint64_t bytes) {
  const DeviceLock lock;
  if (!contains("copy_in", dst, bytes)) return kInvalidValue;
  if (bytes == 0) return kSuccess;
  std::memcpy(dst, src, bytes);
  checker::mark_written(dst, bytes);
  return kSuccess;
}

int32_t wn_emulated_copy_out(void* dst, const void* src, uint64_t bytes) {
  const DeviceLock lock;
  if (!contains("copy_out", src, bytes)) return kInvalidValue;
  if (bytes != 0) std::memcpy(dst, src, bytes);
  return kSuccess;
}

int32_t wn_emulated_zero(void* p, uint64_t bytes) {
  const DeviceLock lock;
  if (!contains("zero", p, bytes)) return kInvalidValue;
  std::memset(p, 0, bytes);
  checker::mark_written(p, bytes);
  return kSuccess;
}

}  // extern "C"
