// Barriers, warp operations and atomic operations.
#include <cstring>

#include "checker.h"
#include "scheduler.h"
#include "source_line.h"

namespace wn_emulated {
namespace emulator {
namespace {

bool same_site(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

void complete_block_barrier(Block& block) {
  block.barrier_result = block.barrier_partial;
  block.arrived = 0;
  ++block.epoch;
  checker::block_barrier(block);
  scheduler->release(block);
}

/// The lane that a shuffle reads; -1: the own one.
int source_lane(WarpOp op, int lane, int argument, int width) {
  const int first = lane & ~(width - 1);
  switch (op) {
    case WarpOp::kShuffle: return first + (argument & (width - 1));
    case WarpOp::kShuffleUp: return lane - argument < first ? -1 : lane - argument;
    case WarpOp::kShuffleDown: return lane + argument >= first + width ? -1 : lane + argument;
    case WarpOp::kShuffleXor: return (lane ^ argument) >= first + width ? -1 : lane ^ argument;
    default: return -1;
  }
}

bool is_shuffle(WarpOp op) { return op <= WarpOp::kShuffleXor; }

/// What a vote or reduction gives all lanes.
uint64_t combine(const WarpGroup& group, const Thread* lanes) {
  uint64_t result = group.op == WarpOp::kAll;
  for (uint32_t bits = group.arrived; bits; bits &= bits - 1) {
    const int lane = __builtin_ctz(bits);
    const uint64_t operand = lanes[lane].operand;
    switch (group.op) {
      case WarpOp::kBallot: result |= operand << lane; break;
      case WarpOp::kAny: result |= operand; break;
      case WarpOp::kAll: result &= operand; break;
      case WarpOp::kReduceAdd: result = static_cast<uint32_t>(result + operand); break;
      default: break;
    }
  }
  return result;
}

/// Gives the lanes of a group, all arrived, their results and wakes them.
void complete_group(Block& block, uint32_t warp, WarpGroup& group) {
  Thread* lanes = block.threads + warp * kWarpSize;
  if (group.op == WarpOp::kBarrier) checker::warp_barrier(block, warp, group.arrived);
  checker::lanes_meet(block, warp, group.arrived);
  const uint64_t combined = combine(group, lanes);
  for (uint32_t bits = group.arrived; bits; bits &= bits - 1) {
    const int lane = __builtin_ctz(bits);
    Thread& thread = lanes[lane];
    if (!is_shuffle(group.op)) {
      thread.result = combined;
    } else if (thread.source_lane < 0) {
      thread.result = thread.operand;
    } else if (group.arrived >> thread.source_lane & 1) {
      thread.result = lanes[thread.source_lane].operand;
    } else {
      fail(kLaunchFailure, "synccheck",
           "lane %d shuffles from lane %d, which does not take part (mask %08x) at %s:%d", lane,
           thread.source_lane, group.mask, base_name(group.site.file), group.site.line);
    }
  }
  block.warps[warp].waiting &= ~group.arrived;
  scheduler->set_ready(block, warp, group.arrived & block.warps[warp].alive);
  group.mask = 0;
}

/// The group that waits for this call, or a new one. Fails where the lanes do not agree.
WarpGroup& find_group(Warp& warp, uint32_t lane, WarpOp op, uint32_t mask, Site site) {
  WarpGroup* unused = nullptr;
  for (WarpGroup& group : warp.groups) {
    if (!group.mask) {
      if (!unused) unused = &group;
      continue;
    }
    if (!(group.mask & mask)) continue;
    if (group.mask == mask && group.op == op && same_site(group.site, site)) return group;
    fail(kLaunchFailure, "synccheck",
         "divergent warp operation: lane %u is at %s:%d with mask %08x, lanes %08x of its warp "
         "wait at "
         "%s:%d with mask %08x",
         lane, base_name(site.file), site.line, mask, group.arrived, base_name(group.site.file),
         group.site.line, group.mask);
  }
  if (!unused) {
    fail(kLaunchFailure, "synccheck", "more than %d warp operations at once in one warp",
         Warp::kGroups);
  }
  unused->mask = mask;
  unused->arrived = 0;
  unused->op = op;
  unused->site = site;
  return *unused;
}

}  // namespace

int block_barrier(BarrierOp op, int predicate, Site site) {
  Thread& thread = *current_thread();
  Block& block = *thread.block;
  if (block.arrived == 0) {
    block.barrier_site = site;
    block.first_arrived = thread.index_in_block;
    block.barrier_op = op;
    block.barrier_partial = op == BarrierOp::kAnd;
  } else if (!same_site(site, block.barrier_site) || op != block.barrier_op) {
    fail(kLaunchFailure, "synccheck",
         "divergent barrier: this thread is at %s:%d while thread %u waits at %s:%d",
         base_name(site.file), site.line, block.first_arrived, base_name(block.barrier_site.file),
         block.barrier_site.line);
  }
  switch (op) {
    case BarrierOp::kNone: break;
    case BarrierOp::kOr: block.barrier_partial |= predicate != 0; break;
    case BarrierOp::kAnd: block.barrier_partial &= predicate != 0; break;
    case BarrierOp::kCount: block.barrier_partial += predicate != 0; break;
  }
  if (++block.arrived < block.alive) {
    scheduler->wait(Wait::kBlockBarrier, site);
  } else if (block.alive == block.size) {
    complete_block_barrier(block);
  } else {
    fail(kLaunchFailure, "synccheck",
         "%u of %u threads reach the barrier at %s:%d, the others have exited", block.alive,
         block.size, base_name(site.file), site.line);
  }
  return block.barrier_result;
}

void cluster_barrier(Site site) {
  Block* first = scheduler->blocks() + current_thread()->block->first_of_cluster;
  const uint32_t count = scheduler->launch().cluster;
  if (++first->cluster_arrived < count * scheduler->threads_per_block()) {
    return scheduler->wait(Wait::kClusterBarrier, site);
  }
  first->cluster_arrived = 0;
  for (uint32_t i = 0; i < count; ++i) ++first[i].epoch;
  checker::cluster_barrier(first, count);
  for (uint32_t i = 0; i < count; ++i) scheduler->release(first[i]);
}

void grid_barrier(Site site) {
  if (!scheduler->launch().cooperative) {
    fail(kLaunchFailure, "synccheck", "grid_sync at %s:%d in a launch that is not cooperative",
         base_name(site.file), site.line);
  }
  Block* blocks = scheduler->blocks();
  const uint32_t count = scheduler->resident();
  if (++scheduler->grid_arrived < count * scheduler->threads_per_block()) {
    return scheduler->wait(Wait::kGridBarrier, site);
  }
  scheduler->grid_arrived = 0;
  for (uint32_t i = 0; i < count; ++i) ++blocks[i].epoch;
  checker::grid_barrier(blocks, count);
  for (uint32_t i = 0; i < count; ++i) scheduler->release(blocks[i]);
}

uint64_t warp_operation(WarpOp op, unsigned mask, uint64_t value, int argument, int width,
                        Site site) {
  Thread& thread = *current_thread();
  Block& block = *thread.block;
  Warp& warp = block.warps[thread.warp()];
  const uint32_t bit = 1u << thread.lane();
  if (!(mask & bit)) {
    fail(kLaunchFailure, "synccheck",
         "lane %u calls a warp operation at %s:%d whose mask %08x leaves it out", thread.lane(),
         base_name(site.file), site.line, mask);
  }
  WarpGroup& group = find_group(warp, thread.lane(), op, mask, site);
  thread.operand = value;
  thread.source_lane = source_lane(op, static_cast<int>(thread.lane()), argument, width);
  group.arrived |= bit;
  const uint32_t gone = mask & ~warp.alive;
  if (gone) {
    fail(kLaunchFailure, "synccheck",
         "the warp operation at %s:%d names lanes %08x, which have exited", base_name(site.file),
         site.line, gone);
  }
  if (group.arrived == mask) {
    complete_group(block, thread.warp(), group);
  } else {
    warp.waiting |= bit;
    scheduler->wait(Wait::kWarp, site);
  }
  return thread.result;
}

void leave_barriers(Thread& thread) {
  const Block& block = *thread.block;
  const Warp& warp = block.warps[thread.warp()];
  if (block.arrived > 0 && block.arrived == block.alive) {
    fail(kLaunchFailure, "synccheck",
         "this thread exits while %u of %u threads wait at the barrier of %s:%d", block.arrived,
         block.size, base_name(block.barrier_site.file), block.barrier_site.line);
  }
  if (!warp.waiting) return;
  for (const WarpGroup& group : warp.groups) {
    if (!(group.mask >> thread.lane() & 1)) continue;
    fail(kLaunchFailure, "synccheck",
         "lane %u exits while lanes %08x of its warp wait for it in the warp operation of %s:%d",
         thread.lane(), group.arrived, base_name(group.site.file), group.site.line);
  }
}

void fence() { checker::fence(); }

namespace {

template <class T> T applied(AtomicOp op, T old, T operand, T compare) {
  switch (op) {
    case AtomicOp::kAdd: return static_cast<T>(old + operand);
    case AtomicOp::kMax: return old > operand ? old : operand;
    case AtomicOp::kExchange: return operand;
    case AtomicOp::kCompareAndSwap: return old == compare ? operand : old;
    case AtomicOp::kIncrement: return old >= operand ? T() : static_cast<T>(old + T(1));
  }
  return old;
}

/// Several host threads may run kernels on the same memory, so this is atomic for them too.
template <class T>
uint64_t read_modify_write(AtomicOp op, void* p, uint64_t operand, uint64_t compare) {
  T* target = static_cast<T*>(p);
  T old;
  __atomic_load(target, &old, __ATOMIC_RELAXED);
  for (;;) {
    T next = applied(op, old, from_word<T>(operand), from_word<T>(compare));
    if (__atomic_compare_exchange(target, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
      break;
  }
  return to_word(old);
}

}  // namespace

uint64_t atomic(AtomicOp op, Scalar type, void* p, uint64_t operand, uint64_t compare) {
  const size_t bytes = type == Scalar::kUnsigned64 || type == Scalar::kDouble ? 8 : 4;
  const void* pc = __builtin_return_address(0);
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) fail_misaligned(p, bytes, true, pc);
  checker::atomic(p, bytes, pc);
  scheduler->note_news();
  switch (type) {
    case Scalar::kInt: {
      // Signed arithmetic wraps on the GPU, so addition is done on the unsigned type.
      if (op == AtomicOp::kMax) return read_modify_write<int>(op, p, operand, compare);
      return read_modify_write<unsigned>(op, p, operand, compare);
    }
    case Scalar::kUnsigned: return read_modify_write<unsigned>(op, p, operand, compare);
    case Scalar::kUnsigned64: return read_modify_write<unsigned long long>(op, p, operand, compare);
    case Scalar::kFloat: return read_modify_write<float>(op, p, operand, compare);
    case Scalar::kDouble: return read_modify_write<double>(op, p, operand, compare);
  }
  return 0;
}

unsigned poll(const unsigned* p, Site site) {
  Thread& thread = *current_thread();
  const auto read = [&] {
    checker::poll(p, sizeof *p, __builtin_return_address(0));
    return __atomic_load_n(p, __ATOMIC_RELAXED);
  };
  unsigned value = read();
  if (thread.polled == p && thread.poll_value == value) {
    scheduler->wait_for_news(site);
    value = read();
  }
  thread.polled = p;
  thread.poll_value = value;
  return value;
}

namespace {

void land(const PendingCopy& copy) {
#ifdef WN_EMULATOR_CHECK
  // Narrower copies carry no hint: neighbors share the sectors that they read.
  const CacheHint hint = copy.bytes == 16 ? CacheHint::kEvictFirst : CacheHint::kNone;
  checker::access(copy.from, copy.bytes, checker::Access::kRead, copy.pc, hint);
  checker::access(copy.to, copy.bytes, checker::Access::kWrite, copy.pc);
#endif
  std::memcpy(copy.to, copy.from, copy.bytes);
}

}  // namespace

void copy_async(void* to, const void* from, size_t bytes) {
  const void* pc = __builtin_return_address(0);
  if (reinterpret_cast<uintptr_t>(from) % bytes != 0) fail_misaligned(from, bytes, false, pc);
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0) fail_misaligned(to, bytes, true, pc);
  current_thread()->copies.push_back({to, from, bytes, pc});
}

void copy_commit() {
  Thread& thread = *current_thread();
  thread.copy_groups.push_back(thread.copies.size());
}

void copy_wait(size_t pending) {
  Thread& thread = *current_thread();
  while (thread.copy_groups.size() - thread.landed_groups > pending) {
    const size_t end = thread.copy_groups[thread.landed_groups++];
    while (thread.landed_copies < end) land(thread.copies[thread.landed_copies++]);
  }
  if (thread.landed_copies < thread.copies.size()) return;
  thread.copies.clear();
  thread.copy_groups.clear();
  thread.landed_groups = thread.landed_copies = 0;
}

void leave_copies(Thread& thread) {
  const size_t left = thread.copies.size() - thread.landed_copies;
  if (left == 0) return;
  fail(kLaunchFailure, "synccheck", "this thread exits with %zu copies on their way", left);
}

unsigned cluster_rank() { return current_thread()->block->rank; }

void* shared_variable(const void* tag, size_t bytes, size_t alignment) {
  return scheduler->shared_variable(*current_thread()->block, tag, bytes, alignment);
}

void* dynamic_shared() { return scheduler->dynamic_shared(*current_thread()->block); }

void* map_to_rank(void* p, unsigned rank) {
  const Block& block = *current_thread()->block;
  const size_t offset = reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(block.arena);
  if (offset >= kArenaBytes) {
    fail(kIllegalAddress, "memcheck", "map_rank of %p, which is not in the block's shared memory",
         p);
  }
  if (rank >= scheduler->launch().cluster) {
    fail(kIllegalAddress, "memcheck", "map_rank to rank %u in a cluster of %u blocks", rank,
         scheduler->launch().cluster);
  }
  return scheduler->blocks()[block.first_of_cluster + rank].arena + offset;
}

void fail_misaligned(const void* p, size_t bytes, bool write, const void* pc) {
  const SourceLine here(program_counter(pc));
  fail(kMisalignedAddress, "memcheck", "misaligned %zu-byte %s of %p at %s", bytes,
       write ? "write" : "read", p, here.text);
}

#ifdef WN_EMULATOR_CHECK
uint3 thread_index() { return current->thread_index; }
uint3 block_index() { return current->block_index; }
dim3 block_dim() { return current->block_dim; }
dim3 grid_dim() { return current->grid_dim; }

void load_bytes(void* to, const void* from, size_t bytes, CacheHint hint) {
  const void* pc = __builtin_return_address(0);
  if (reinterpret_cast<uintptr_t>(from) % bytes != 0) fail_misaligned(from, bytes, false, pc);
  checker::access(from, bytes, checker::Access::kRead, pc, hint);
  std::memcpy(to, from, bytes);
}

void store_bytes(void* to, const void* from, size_t bytes, CacheHint hint) {
  const void* pc = __builtin_return_address(0);
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0) fail_misaligned(to, bytes, true, pc);
  checker::access(to, bytes, checker::Access::kWrite, pc, hint);
  std::memcpy(to, from, bytes);
}
#endif

}  // namespace emulator
}  // namespace wn_emulated
