// Device memory of check builds.
#ifdef WN_EMULATOR_CHECK

#include "shadow.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <iterator>
#include <map>

#include "checker.h"

namespace wn_emulated {
namespace emulator {
namespace {

constexpr size_t kSpaceBytes = size_t{64} << 30;
constexpr size_t kPageBytes = 4096;
/// Freed bytes whose addresses are not given out again, so that late accesses are recognized.
constexpr size_t kQuarantineBytes = 64 << 20;

/// Gives the pages that lie inside [p, p + bytes) back to the system; they read as zeros from then
/// on.
void discard(void* p, size_t bytes) {
  const uintptr_t begin =
      (reinterpret_cast<uintptr_t>(p) + kPageBytes - 1) / kPageBytes * kPageBytes;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(p) + bytes) / kPageBytes * kPageBytes;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

struct Range {
  size_t begin;
  size_t bytes;
};

/// Address space, by whole pages and with an unusable page after each range.
class Space {
 public:
  Space() {
    data_ = map_lazily(kSpaceBytes);
    states_ = reinterpret_cast<shadow::State*>(map_lazily(kSpaceBytes));
    const size_t cell_bytes = kSpaceBytes / shadow::kCellBytes * sizeof(shadow::Cell);
    cells_ = reinterpret_cast<shadow::Cell*>(map_lazily(cell_bytes));
    madvise(data_, kSpaceBytes, MADV_NOHUGEPAGE);
    madvise(states_, kSpaceBytes, MADV_NOHUGEPAGE);
    madvise(cells_, cell_bytes, MADV_NOHUGEPAGE);
    unused_[kPageBytes] = kSpaceBytes - kPageBytes;
  }

  char* take(size_t bytes) {
    const size_t needed = whole(bytes);
    for (auto range = unused_.begin(); range != unused_.end(); ++range) {
      if (range->second < needed) continue;
      const size_t begin = range->first;
      const size_t rest = range->second - needed;
      unused_.erase(range);
      if (rest > 0) unused_[begin + needed] = rest;
      if (bytes > kTrackedBytes) untracked_[begin] = bytes;
      return data_ + begin;
    }
    return nullptr;
  }

  void release(char* p, size_t bytes) {
    const size_t begin = static_cast<size_t>(p - data_);
    discard(p, whole(bytes));
    discard(cells_ + begin / shadow::kCellBytes,
            whole(bytes) / shadow::kCellBytes * sizeof(shadow::Cell));
    if (bytes > kTrackedBytes) {
      untracked_.erase(begin);
      return reuse({begin, whole(bytes)});
    }
    std::memset(states_ + begin, static_cast<int>(shadow::State::kFreed), bytes);
    quarantine_.push_back({begin, whole(bytes)});
    quarantined_ += whole(bytes);
    while (quarantined_ > kQuarantineBytes) {
      const Range oldest = quarantine_.front();
      quarantine_.pop_front();
      quarantined_ -= oldest.bytes;
      discard(states_ + oldest.begin, oldest.bytes);
      reuse(oldest);
    }
  }

  bool is_untracked(size_t offset, size_t bytes) const {
    auto after = untracked_.upper_bound(offset);
    if (after == untracked_.begin()) return false;
    --after;
    return offset + bytes <= after->first + after->second;
  }

  size_t offset(const void* p) const {
    return reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(data_);
  }
  shadow::State* states() const { return states_; }
  shadow::Cell* cells() const { return cells_; }

 private:
  static size_t whole(size_t bytes) {
    return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes + kPageBytes;
  }

  /// Adds a range to the unused ones and joins it with its neighbors.
  void reuse(Range range) {
    auto next = unused_.lower_bound(range.begin);
    if (next != unused_.end() && range.begin + range.bytes == next->first) {
      range.bytes += next->second;
      next = unused_.erase(next);
    }
    if (next != unused_.begin()) {
      auto previous = std::prev(next);
      if (previous->first + previous->second == range.begin) {
        previous->second += range.bytes;
        return;
      }
    }
    unused_[range.begin] = range.bytes;
  }

  char* data_;
  shadow::State* states_;
  shadow::Cell* cells_;
  std::map<size_t, size_t> unused_;     // begin to bytes
  std::map<size_t, size_t> untracked_;  // begin to bytes
  std::deque<Range> quarantine_;
  size_t quarantined_ = 0;
};

Space& space() {
  static auto* only = new Space;
  return *only;
}

}  // namespace

namespace shadow {

bool covers(const void* p) { return space().offset(p) < kSpaceBytes; }

State* states(const void* p) { return space().states() + space().offset(p); }

Cell* cell(const void* p) { return space().cells() + space().offset(p) / kCellBytes; }

bool is_untracked(const void* p, size_t bytes) {
  return space().is_untracked(space().offset(p), bytes);
}

void set_state(const void* p, size_t bytes, State state) {
  if (bytes > 0) std::memset(states(p), static_cast<int>(state), bytes);
}

}  // namespace shadow

namespace checker {

char* map_arenas(char* old, size_t old_bytes, size_t bytes) {
  if (old) release(old, old_bytes);
  char* arenas = space().take(bytes);
  if (!arenas) {
    std::fprintf(stderr, "emulator: no address space left for shared memory\n");
    std::abort();
  }
  return arenas;
}

void declare_shared(char* p, size_t bytes) {
  std::memset(p, 0xff, bytes);
  shadow::set_state(p, bytes, shadow::State::kUninitialized);
}

char* allocate(size_t bytes) {
  char* p = space().take(bytes);
  if (p && bytes <= kTrackedBytes) shadow::set_state(p, bytes, shadow::State::kUninitialized);
  return p;
}

void release(char* p, size_t bytes) { space().release(p, bytes); }

void mark_written(const void* p, size_t bytes) {
  if (!shadow::is_untracked(p, bytes)) shadow::set_state(p, bytes, shadow::State::kWritten);
}

}  // namespace checker
}  // namespace emulator
}  // namespace wn_emulated

#endif
