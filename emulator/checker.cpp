// memcheck, initcheck and racecheck, the count of bytes moved, and what the model of the L2 sees.
//
// An access happened before another only if a barrier, or a fence and an atomic operation, puts
// them in that order. Every block counts the barriers it has passed, its epoch, and every thread
// the fences and warp barriers, its clock; an access is stamped with both.
#ifdef WN_EMULATOR_CHECK

#include "checker.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <iterator>
#include <link.h>
#include <memory>
#include <unordered_map>

#include "shadow.h"
#include "source_line.h"

namespace wn_emulated {
namespace emulator {

/// What is known to have happened: accesses of a block before an epoch, of a thread up to a clock.
struct Frontier {
  std::unordered_map<uint32_t, uint32_t> epoch_of_block;
  std::unordered_map<uint32_t, uint32_t> clock_of_thread;

  void join(const Frontier* other) {
    if (!other) return;
    for (const auto& [block, epoch] : other->epoch_of_block) {
      uint32_t& known = epoch_of_block[block];
      known = std::max(known, epoch);
    }
    for (const auto& [thread, clock] : other->clock_of_thread) {
      uint32_t& known = clock_of_thread[thread];
      known = std::max(known, clock);
    }
  }

  bool contains(const shadow::Access& access, uint32_t block, uint32_t thread) const {
    const auto epoch = epoch_of_block.find(block);
    if (epoch != epoch_of_block.end() && access.epoch < epoch->second) return true;
    const auto clock = clock_of_thread.find(thread);
    return clock != clock_of_thread.end() && access.clock <= clock->second;
  }
};

namespace checker {
namespace {

using shadow::State;

/// Epochs of a block that its last cluster and grid barriers ended.
struct BlockBarriers {
  uint32_t cluster_epoch = 0;
  uint32_t grid_epoch = 0;
};

struct KnownClocks {
  uint32_t of[kWarpSize][kWarpSize];
};

/// What is known of the launch that runs. There is one at a time.
struct LaunchState {
  uint32_t number = 0;
  std::vector<BlockBarriers> barriers;
  std::unordered_map<const void*, Frontier> released_at;   // by address of an atomic variable
  std::deque<Frontier> frontiers;                          // all that threads and blocks point to
  std::vector<std::unique_ptr<KnownClocks>> known_clocks;  // by slot and warp
  uint32_t accesses_to_switch = 0;
  Random random;
};

LaunchState& state() {
  static auto* only = new LaunchState;
  return *only;
}

Frontier* new_frontier(const Frontier* initial) {
  Frontier& made = state().frontiers.emplace_back();
  made.join(initial);
  return &made;
}

/// What threads acquired, their whole block knows after a barrier.
void share_acquired(Block& block) {
  for (uint32_t t = 0; t < block.size; ++t) {
    Thread& thread = block.threads[t];
    if (!thread.acquired) continue;
    Frontier* joined = new_frontier(block.acquired);
    joined->join(thread.acquired);
    block.acquired = joined;
    thread.acquired = nullptr;
  }
}

/// Threads that waited for each other go on from the step of the one that is furthest.
class Meeting {
 public:
  void add(Thread& thread) { step_ = std::max(step_, thread.step); }
  void add(Block& block) {
    for (uint32_t t = 0; t < block.size; ++t) add(block.threads[t]);
  }
  void end(Thread& thread) const { thread.step = step_; }
  void end(Block& block) const {
    for (uint32_t t = 0; t < block.size; ++t) end(block.threads[t]);
  }

 private:
  uint32_t step_ = 0;
};

void blocks_meet(Block* first, uint32_t count) {
  if (!scheduler->l2) return;
  Meeting meeting;
  for (uint32_t i = 0; i < count; ++i) meeting.add(first[i]);
  for (uint32_t i = 0; i < count; ++i) meeting.end(first[i]);
  // Nobody can have anything to add to the steps so far.
  if (count == scheduler->resident()) scheduler->l2->drain();
}

bool same_cluster(uint32_t block, uint32_t other) {
  const uint32_t size = scheduler->launch().cluster;
  return block / size == other / size;
}

/// Whether `earlier` happened before what `thread` does now.
bool happened_before(const shadow::Access& earlier, const Thread& thread) {
  if (earlier.thread == 0 || earlier.launch != state().number) return true;
  const uint32_t other = earlier.thread - 1;
  if (other == thread.index_in_grid) return true;
  const Block& block = *thread.block;
  const uint32_t other_block = other / block.size;
  if (other_block == block.index_in_grid) {
    if (earlier.epoch < block.epoch) return true;
    const uint32_t index = other % block.size;
    const uint32_t* clocks = block.warps[thread.warp()].known[thread.lane()];
    if (index / kWarpSize == thread.warp() && clocks[index % kWarpSize] >= earlier.clock)
      return true;
  } else {
    const BlockBarriers& barriers = state().barriers[other_block];
    if (earlier.epoch < barriers.grid_epoch) return true;
    if (same_cluster(other_block, block.index_in_grid) && earlier.epoch < barriers.cluster_epoch)
      return true;
  }
  for (const Frontier* frontier : {thread.acquired, block.acquired}) {
    if (frontier && frontier->contains(earlier, other_block, other)) return true;
  }
  return false;
}

bool is_write(Access kind) { return kind == Access::kWrite || kind == Access::kAtomic; }

/// An access under examination.
struct Request {
  Thread& thread;
  const char* p;
  size_t bytes;
  Access kind;
  const void* pc;
  const Block* owner;  // of shared memory; null: global

  const char* verb() const {
    if (is_atomic()) return "atomic operation";
    return kind == Access::kWrite ? "write" : "read";
  }
  const char* memory() const { return owner ? "shared" : "global"; }
  bool is_atomic() const { return kind == Access::kAtomic || kind == Access::kPoll; }
  bool writes() const { return is_write(kind); }
};

[[noreturn]] void fail_race(const Request& request, const shadow::Access& earlier) {
  const Block& block = *request.thread.block;
  const uint32_t other = earlier.thread - 1;
  const uint32_t other_block = other / block.size;
  const uint32_t other_thread = other % block.size;
  const char* missing = "no barrier between";
  if (other_block != block.index_in_grid) {
    missing = "different blocks, no grid barrier or fences with an atomic operation between";
  } else if (other_thread / kWarpSize == request.thread.warp()) {
    missing = "same warp, no __syncwarp or barrier between";
  }
  const char* verb = earlier.atomic ? "atomic operation" : earlier.write ? "write" : "read";
  const SourceLine here(program_counter(request.pc));
  const SourceLine there(earlier.pc);
  fail(kLaunchFailure, "racecheck",
       "%s of %s memory at %s races with the earlier %s by block %u thread %u at %s (%s)",
       request.verb(), request.memory(), here.text, verb, other_block, other_thread, there.text,
       missing);
}

[[noreturn]] void fail_state(const Request& request, size_t byte, State found) {
  const SourceLine here(program_counter(request.pc));
  if (found == State::kUninitialized) {
    fail(kLaunchFailure, "initcheck",
         "%zu-byte %s of %s memory at %s, byte %zu of which was never written", request.bytes,
         request.verb(), request.memory(), here.text, byte);
  }
  const char* where = found == State::kFreed ? "freed" : "outside any allocation";
  const char* start = nullptr;
  size_t size = 0;
  char near[96] = "";
  const bool may_be_near = !request.owner && found == State::kNone;
  if (may_be_near && allocation_before(request.p, &start, &size)) {
    const size_t offset = static_cast<size_t>(request.p - start);
    std::snprintf(near, sizeof near, ", at offset %zu of an allocation of %zu bytes", offset, size);
  }
  fail(kIllegalAddress, "memcheck", "%zu-byte %s of %s memory at %s, which is %s%s", request.bytes,
       request.verb(), request.memory(), here.text, where, near);
}

/// Whether the record concerns the same memory: shared memory of earlier blocks lay at the same
/// place.
bool concerns(const shadow::Access& earlier, const Request& request, uint32_t bytes) {
  if (earlier.thread == 0 || !(earlier.bytes & bytes)) return false;
  if (!request.owner) return true;
  const Block& block = *request.thread.block;
  const uint32_t other_block = (earlier.thread - 1) / block.size;
  return same_cluster(other_block, block.index_in_grid);
}

void check_order(const Request& request, const shadow::Access& earlier, uint32_t bytes) {
  if (!concerns(earlier, request, bytes)) return;
  if (request.is_atomic() && earlier.atomic) return;
  if (!happened_before(earlier, request.thread)) fail_race(request, earlier);
}

void remember_read(shadow::Cell& cell, const shadow::Access& now, const Thread& thread) {
  // A poll meets atomic operations without an order; a plain read before it may not. Where two of
  // these are remembered, the poll is not.
  const auto replaceable = [&](const shadow::Access& read) {
    if (read.thread == 0 || read.launch != now.launch) return true;
    return read.atomic >= now.atomic && happened_before(read, thread);
  };
  shadow::Access& first = cell.reads[0];
  shadow::Access& second = cell.reads[1];
  if (replaceable(first)) {
    first = now;
    return;
  }
  // Readers of two warps are worth more than two of one.
  const auto near = [](uint32_t a, uint32_t b) {
    return (a - 1) / kWarpSize == (b - 1) / kWarpSize;
  };
  const bool spreads = near(second.thread, first.thread) && !near(first.thread, now.thread);
  if (replaceable(second) || spreads) second = now;
}

void check_cells(const Request& request) {
  const Thread& thread = request.thread;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(request.p);
  const uintptr_t end = begin + request.bytes;
  shadow::Access now{};
  now.thread = thread.index_in_grid + 1;
  now.epoch = thread.block->epoch;
  now.clock = thread.clock;
  now.pc = program_counter(request.pc);
  now.launch = state().number;
  now.write = request.writes();
  now.atomic = request.is_atomic();
  shadow::Cell* cell = shadow::cell(request.p);
  for (uintptr_t at = begin / shadow::kCellBytes * shadow::kCellBytes; at < end;
       at += shadow::kCellBytes) {
    const uint32_t lower = at >= begin;
    const uint32_t upper = at + 1 < end;
    now.bytes = (lower | upper << 1) & 3;
    check_order(request, cell->write, now.bytes);
    if (request.writes()) {
      for (const shadow::Access& read : cell->reads) check_order(request, read, now.bytes);
      cell->write = now;
      cell->reads[0].thread = cell->reads[1].thread = 0;
    } else {
      remember_read(*cell, now, thread);
    }
    ++cell;
  }
}

void check_states(const Request& request) {
  State* states = shadow::states(request.p);
  if (states[0] == State::kNone && !request.owner && shadow::is_untracked(request.p, request.bytes))
    return;
  for (size_t i = 0; i < request.bytes; ++i) {
    if (states[i] == State::kWritten) continue;
    if (states[i] == State::kUninitialized && request.kind == Access::kWrite) continue;
    fail_state(request, i, states[i]);
  }
  if (request.writes()) std::memset(states, static_cast<int>(State::kWritten), request.bytes);
}

void check_device_access(Thread& thread, const char* p, size_t bytes, Access kind, const void* pc,
                         CacheHint hint) {
  if ((bytes & (bytes - 1)) == 0 && reinterpret_cast<uintptr_t>(p) % bytes != 0) {
    fail_misaligned(p, bytes, is_write(kind), pc);
  }
  const Block* blocks = scheduler->blocks();
  const size_t in_arenas =
      reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(blocks->arena);
  const bool shared = in_arenas < scheduler->resident() * kArenaBytes;
  const Block* owner = shared ? blocks + in_arenas / kArenaBytes : nullptr;
  const Request request{thread, p, bytes, kind, pc, owner};
  if (owner && !same_cluster(owner->index_in_grid, thread.block->index_in_grid)) {
    const SourceLine here(program_counter(pc));
    fail(kIllegalAddress, "memcheck", "%s of another block's shared memory at %s", request.verb(),
         here.text);
  }
  check_states(request);
  check_cells(request);
  if (owner) return;
  const bool reads = kind != Access::kWrite;
  if (reads) scheduler->bytes_read += bytes;
  if (request.writes()) scheduler->bytes_written += bytes;
  if (!scheduler->l2) return;
  const Block& block = *thread.block;
  const uint32_t number = block.slot * block.size + thread.index_in_block;
  scheduler->l2->access(thread.step++, number, p, bytes,
                        {reads, request.writes(), hint == CacheHint::kEvictFirst});
}

/// Whether `p` is in the program's own constants and variables.
bool is_static(const void* p) {
  uintptr_t address = reinterpret_cast<uintptr_t>(p);
  const auto contains = [](dl_phdr_info* info, size_t, void* data) {
    const uintptr_t wanted = *static_cast<uintptr_t*>(data);
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& segment = info->dlpi_phdr[i];
      const uintptr_t offset = wanted - (info->dlpi_addr + segment.p_vaddr);
      if (segment.p_type == PT_LOAD && offset < segment.p_memsz) return 1;
    }
    return 0;
  };
  return dl_iterate_phdr(contains, &address) != 0;
}

void check_host_access(const char* p, size_t bytes, Access kind, const void* pc) {
  const LaunchRequest& launch = scheduler->launch();
  const uintptr_t in_bank =
      reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(launch.bank);
  const bool parameters = kind == Access::kRead && in_bank < launch.bank_bytes;
  if (parameters || is_static(p)) return;
  const bool null = reinterpret_cast<uintptr_t>(p) < 65536;
  const SourceLine here(program_counter(pc));
  fail(kIllegalAddress, "memcheck", "%zu-byte %s of %p at %s, which is %s", bytes,
       kind == Access::kRead ? "read" : "write", static_cast<const void*>(p), here.text,
       null ? "a null pointer" : "host memory or no memory");
}

void switch_at_times() {
  const uint32_t mean = static_cast<uint32_t>(scheduler->config().preempt);
  if (mean == 0 || --state().accesses_to_switch > 0) return;
  state().accesses_to_switch = 1 + state().random.next() % (2 * mean);
  scheduler->yield();
}

/// What others released at an address counts for the current thread from its next fence on.
void observe(const Frontier& released) {
  if (released.epoch_of_block.empty()) return;
  Thread& thread = *current_thread();
  Frontier* observed = new_frontier(thread.observed);
  observed->join(&released);
  thread.observed = observed;
}

}  // namespace

void begin_launch(uint64_t blocks) {
  LaunchState& launch = state();
  ++launch.number;
  launch.barriers.assign(blocks, BlockBarriers());
  launch.released_at.clear();
  launch.frontiers.clear();
  launch.random = Random(~scheduler->config().seed);
  launch.accesses_to_switch = 1 + static_cast<uint32_t>(scheduler->config().preempt);
}

void start_block(Block& block) {
  block.acquired = nullptr;
  block.epoch = 1;
  auto& known_clocks = state().known_clocks;
  const size_t first = size_t{block.slot} * kWarpSize;
  if (known_clocks.size() < first + kWarpSize) known_clocks.resize(first + kWarpSize);
  for (uint32_t w = 0; w < block.warp_count; ++w) {
    std::unique_ptr<KnownClocks>& known = known_clocks[first + w];
    if (!known) known.reset(new KnownClocks);
    *known = KnownClocks();
    block.warps[w].known = known->of;
  }
  for (uint32_t t = 0; t < block.size; ++t) {
    Thread& thread = block.threads[t];
    thread.clock = 1;
    thread.acquired = thread.observed = thread.released = nullptr;
    thread.step = 0;
  }
}

void end_block(Block& block) {
  shadow::set_state(block.arena, scheduler->shared_end(), State::kNone);
}

void end_together() {
  if (scheduler->l2) scheduler->l2->drain();
}

void block_barrier(Block& block) {
  share_acquired(block);
  blocks_meet(&block, 1);
}

void cluster_barrier(Block* first, uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) {
    share_acquired(first[i]);
    state().barriers[first[i].index_in_grid].cluster_epoch = first[i].epoch;
  }
  blocks_meet(first, count);
}

void grid_barrier(Block* blocks, uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) {
    share_acquired(blocks[i]);
    BlockBarriers& barriers = state().barriers[blocks[i].index_in_grid];
    barriers.cluster_epoch = barriers.grid_epoch = blocks[i].epoch;
  }
  blocks_meet(blocks, count);
}

void warp_barrier(Block& block, uint32_t warp, uint32_t lanes) {
  uint32_t (*known)[kWarpSize] = block.warps[warp].known;
  Thread* threads = block.threads + warp * kWarpSize;
  uint32_t joined[kWarpSize] = {};
  Frontier* acquired = nullptr;
  for (uint32_t bits = lanes; bits; bits &= bits - 1) {
    const int lane = __builtin_ctz(bits);
    for (uint32_t i = 0; i < kWarpSize; ++i) joined[i] = std::max(joined[i], known[lane][i]);
    joined[lane] = std::max(joined[lane], threads[lane].clock);
    if (!threads[lane].acquired) continue;
    if (!acquired) acquired = new_frontier(nullptr);
    acquired->join(threads[lane].acquired);
  }
  for (uint32_t bits = lanes; bits; bits &= bits - 1) {
    const int lane = __builtin_ctz(bits);
    std::memcpy(known[lane], joined, sizeof joined);
    ++threads[lane].clock;
    if (acquired) threads[lane].acquired = acquired;
  }
}

void lanes_meet(Block& block, uint32_t warp, uint32_t lanes) {
  if (!scheduler->l2) return;
  Thread* threads = block.threads + warp * kWarpSize;
  Meeting meeting;
  for (uint32_t bits = lanes; bits; bits &= bits - 1) meeting.add(threads[__builtin_ctz(bits)]);
  for (uint32_t bits = lanes; bits; bits &= bits - 1) meeting.end(threads[__builtin_ctz(bits)]);
}

void fence() {
  Thread& thread = *current_thread();
  const Block& block = *thread.block;
  if (thread.observed) {
    Frontier* acquired = new_frontier(thread.acquired);
    acquired->join(thread.observed);
    thread.acquired = acquired;
    thread.observed = nullptr;
  }
  Frontier* released = new_frontier(thread.released);
  released->join(thread.acquired);
  released->join(block.acquired);
  released->epoch_of_block[block.index_in_grid] = block.epoch;
  const uint32_t* known = block.warps[thread.warp()].known[thread.lane()];
  const uint32_t first_of_warp = thread.index_in_grid - thread.lane();
  for (uint32_t i = 0; i < kWarpSize; ++i) {
    if (known[i] > 0) released->clock_of_thread[first_of_warp + i] = known[i];
  }
  released->clock_of_thread[thread.index_in_grid] = thread.clock++;
  thread.released = released;
}

void access(const void* p, size_t bytes, Access kind, const void* pc, CacheHint hint) {
  if (!current) return;
  Thread& thread = *current_thread();
  const uintptr_t in_stack =
      reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(thread.stack);
  if (in_stack < kStackBytes) return;
  const char* address = static_cast<const char*>(p);
  if (!shadow::covers(p)) return check_host_access(address, bytes, kind, pc);
  switch_at_times();
  check_device_access(thread, address, bytes, kind, pc, hint);
}

void poll(const void* p, size_t bytes, const void* pc) {
  access(p, bytes, Access::kPoll, pc);
  observe(state().released_at[p]);
}

void atomic(const void* p, size_t bytes, const void* pc) {
  access(p, bytes, Access::kAtomic, pc);
  Frontier& released = state().released_at[p];
  observe(released);
  released.join(current_thread()->released);
}

}  // namespace checker
}  // namespace emulator
}  // namespace wn_emulated

#endif
