// A model of the L2 cache: which accesses of global memory reach the device's memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace wn_emulated {
namespace emulator {

/// Fully associative, 32-byte sectors, the least recently used goes first, dirty ones are written
/// back. Content stays from launch to launch.
///
/// A write allocates its sector without a fetch: kernels are taken to complete the sectors that they
/// write in pieces. A dirty sector counts for the launch that wrote it last, whenever it leaves.
///
/// Accesses that ask to be evicted first make their sector go before all others, but for the last
/// `kInFlight` of them: threads touch a sector in pieces, not all at once.
class L2Model {
 public:
  static constexpr uint64_t kSectorBytes = 32;
  /// Two accesses of 16 bytes by each of 256 threads.
  static constexpr uint32_t kInFlight = 256;

  struct Traffic {
    uint64_t read = 0;
    uint64_t written = 0;
  };

  struct Access {
    bool reads;
    bool writes;
    bool evict_first;
  };

  explicit L2Model(uint64_t bytes);

  /// What follows counts for the next launch.
  void begin_launch() { traffic_.emplace_back(); }

  /// Hands in an access by one of the threads that are resident together, in its step `step`.
  /// Accesses take effect with `drain`.
  void access(uint32_t step, uint32_t thread, const void* p, size_t bytes, Access access);

  /// Lets what was handed in take effect: by step, and in a step by thread.
  void drain();

  /// Writes all dirty sectors back.
  void flush();

  /// Bytes that launch `index` moved between the cache and the device's memory.
  const Traffic& traffic(size_t index) const { return traffic_[index]; }

 private:
  struct Pending {
    uint64_t order;
    uint64_t sector;
    Access access;
  };

  /// In a circular list from the one to evict first to the last; the heads of the lists come first.
  struct Sector {
    uint64_t address;
    uint32_t before;
    uint32_t after;
    uint32_t writer;  // 1 + launch; 0: clean
    bool evict_first;
  };
  static constexpr uint32_t kKept = 0;
  static constexpr uint32_t kEvictFirst = 1;
  static constexpr uint32_t kHeads = 2;

  void apply(uint64_t sector, Access access);
  /// A place for a new sector, taken from another where none is free.
  uint32_t make_room();
  void write_back(Sector& sector);
  void link(uint32_t index, bool evict_first);
  void unlink(uint32_t index);

  uint64_t capacity_;  // in sectors
  uint32_t evict_first_count_ = 0;
  std::vector<Sector> sectors_;
  std::unordered_map<uint64_t, uint32_t> index_of_;  // by address
  std::vector<Pending> pending_;
  std::vector<Traffic> traffic_;
};

}  // namespace emulator
}  // namespace wn_emulated
