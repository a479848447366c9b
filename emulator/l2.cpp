#include "l2.h"

#include <algorithm>

namespace wn_emulated {
namespace emulator {

L2Model::L2Model(uint64_t bytes)
    : capacity_(std::clamp<uint64_t>(bytes / kSectorBytes, 1, UINT32_MAX - kHeads)) {
  for (uint32_t head = 0; head < kHeads; ++head) sectors_.push_back({0, head, head, 0, false});
}

void L2Model::access(uint32_t step, uint32_t thread, const void* p, size_t bytes, Access access) {
  const uint64_t order = uint64_t{step} << 32 | thread;
  const uint64_t first = reinterpret_cast<uintptr_t>(p) / kSectorBytes;
  const uint64_t last = (reinterpret_cast<uintptr_t>(p) + bytes - 1) / kSectorBytes;
  for (uint64_t sector = first; sector <= last; ++sector)
    pending_.push_back({order, sector, access});
}

void L2Model::drain() {
  const auto earlier = [](const Pending& a, const Pending& b) { return a.order < b.order; };
  std::stable_sort(pending_.begin(), pending_.end(), earlier);
  for (const Pending& pending : pending_) apply(pending.sector, pending.access);
  pending_.clear();
}

void L2Model::apply(uint64_t sector, Access access) {
  const auto [found, missed] = index_of_.try_emplace(sector, 0);
  if (missed) {
    if (access.reads) traffic_.back().read += kSectorBytes;
    found->second = make_room();
    sectors_[found->second].address = sector;
  } else {
    unlink(found->second);
  }
  if (access.writes) sectors_[found->second].writer = static_cast<uint32_t>(traffic_.size());
  link(found->second, access.evict_first);
}

uint32_t L2Model::make_room() {
  if (sectors_.size() < capacity_ + kHeads) {
    sectors_.push_back({});
    return static_cast<uint32_t>(sectors_.size() - 1);
  }
  const bool none_kept = sectors_[kKept].after == kKept;
  const uint32_t list = none_kept || evict_first_count_ > kInFlight ? kEvictFirst : kKept;
  const uint32_t index = sectors_[list].after;
  unlink(index);
  write_back(sectors_[index]);
  index_of_.erase(sectors_[index].address);
  return index;
}

void L2Model::write_back(Sector& sector) {
  if (sector.writer == 0) return;
  traffic_[sector.writer - 1].written += kSectorBytes;
  sector.writer = 0;
}

void L2Model::flush() {
  drain();
  for (size_t i = kHeads; i < sectors_.size(); ++i) write_back(sectors_[i]);
}

void L2Model::link(uint32_t index, bool evict_first) {
  const uint32_t head = evict_first ? kEvictFirst : kKept;
  Sector& sector = sectors_[index];
  sector.evict_first = evict_first;
  sector.before = sectors_[head].before;
  sector.after = head;
  sectors_[sector.before].after = sectors_[head].before = index;
  evict_first_count_ += evict_first;
}

void L2Model::unlink(uint32_t index) {
  const Sector& sector = sectors_[index];
  sectors_[sector.before].after = sector.after;
  sectors_[sector.after].before = sector.before;
  evict_first_count_ -= sector.evict_first;
}

}  // namespace emulator
}  // namespace wn_emulated
