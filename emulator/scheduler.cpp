// Fibers, and who runs next.
#include "scheduler.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "checker.h"

// void wn_emulated_switch_fiber(void** save, void* load): pushes the registers that a callee
// preserves, leaves the stack pointer at *save, and pops what an earlier call pushed on the stack
// at `load`.
#if defined(__x86_64__)
asm(R"(
.text
.globl wn_emulated_switch_fiber
.hidden wn_emulated_switch_fiber
.type wn_emulated_switch_fiber, @function
wn_emulated_switch_fiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size wn_emulated_switch_fiber, .-wn_emulated_switch_fiber
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl wn_emulated_switch_fiber
.hidden wn_emulated_switch_fiber
.type wn_emulated_switch_fiber, %function
wn_emulated_switch_fiber:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size wn_emulated_switch_fiber, .-wn_emulated_switch_fiber
)");
#else
#error "the emulator switches fibers on x86-64 and aarch64 only"
#endif

extern "C" void wn_emulated_switch_fiber(void** save, void* load);

namespace wn_emulated {
namespace emulator {

thread_local ThreadContext* current = nullptr;
thread_local Scheduler* scheduler = nullptr;

char* map_lazily(size_t bytes) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (p == MAP_FAILED) {
    std::fprintf(stderr, "emulator: cannot map %zu bytes of address space\n", bytes);
    std::abort();
  }
  return static_cast<char*>(p);
}

void unmap(char* p, size_t bytes) {
  if (p) munmap(p, bytes);
}

void fiber_main() {
  scheduler->launch().call(scheduler->launch().bank);
  scheduler->thread_exits();
}

namespace {

/// Makes `thread` begin at `fiber_main` when it is switched to.
void prepare_fiber(Thread& thread) {
  // Where the stacks begin is varied, or the same lines of all stacks would compete for one cache
  // set.
  const uintptr_t shift = thread.index_in_block % 48 * 192;
  const uintptr_t end = reinterpret_cast<uintptr_t>(thread.stack) + kStackBytes;
  void** top = reinterpret_cast<void**>((end - 256 - shift) & ~uintptr_t{63});
  void* const entry = reinterpret_cast<void*>(&fiber_main);
#if defined(__x86_64__)
  constexpr int kSaved = 6;
  *--top = nullptr;  // where fiber_main's return address would be
  *--top = entry;
  for (int i = 0; i < kSaved; ++i) *--top = nullptr;
#else
  constexpr int kSaved = 20;
  constexpr int kLinkRegister = 11;
  top -= kSaved;
  std::fill(top, top + kSaved, nullptr);
  top[kLinkRegister] = entry;
#endif
  thread.stack_pointer = top;
}

const char* wait_name(Wait wait) {
  switch (wait) {
    case Wait::kNone: return "ready";
    case Wait::kBlockBarrier: return "at __syncthreads";
    case Wait::kWarp: return "in a warp operation";
    case Wait::kClusterBarrier: return "at cluster_sync";
    case Wait::kGridBarrier: return "at grid_sync";
    case Wait::kPoll: return "polling";
    case Wait::kExited: return "exited";
  }
  return "";
}

}  // namespace

void Scheduler::switch_to(Thread* to) {
  Thread* from = current ? current_thread() : &host_;
  if (from == to) return;
  current = to == &host_ ? nullptr : to;
  wn_emulated_switch_fiber(&from->stack_pointer, to->stack_pointer);
}

void Scheduler::set_ready(Block& block, uint32_t warp, uint32_t lanes) {
  block.warps[warp].ready |= lanes;
  block.ready_warps |= 1u << warp;
  ready_blocks_[block.slot / 64] |= uint64_t{1} << block.slot % 64;
}

void Scheduler::clear_ready(Thread& thread) {
  Block& block = *thread.block;
  Warp& warp = block.warps[thread.warp()];
  warp.ready &= ~(1u << thread.lane());
  if (warp.ready) return;
  block.ready_warps &= ~(1u << thread.warp());
  if (block.ready_warps) return;
  ready_blocks_[block.slot / 64] &= ~(uint64_t{1} << block.slot % 64);
}

void Scheduler::release(Block& block) {
  for (uint32_t w = 0; w < block.warp_count; ++w) {
    if (block.warps[w].alive) set_ready(block, w, block.warps[w].alive);
  }
}

/// One of `bits`, of which there is at least one: the next after bit `after` in the configured
/// order.
uint32_t Scheduler::pick_bit(uint32_t bits, uint32_t after) {
  if (config_.order == WN_ORDER_DESCENDING) {
    const uint32_t below = bits & ((1u << after) - 1);
    return 31 - static_cast<uint32_t>(__builtin_clz(below ? below : bits));
  }
  if (config_.order == WN_ORDER_RANDOM) after = random_.next() % 32;
  const uint32_t above = after == 31 ? 0 : bits & (~0u << (after + 1));
  return static_cast<uint32_t>(__builtin_ctz(above ? above : bits));
}

/// The slot of a block with ready threads, or `resident_` if there is none.
uint32_t Scheduler::pick_block(const Block* after) {
  const auto is_ready = [this](uint32_t slot) { return ready_blocks_[slot / 64] >> slot % 64 & 1; };
  if (config_.order == WN_ORDER_RANDOM && resident_ > 1) {
    const uint32_t start = random_.next() % resident_;
    for (uint32_t i = 0; i < resident_; ++i) {
      const uint32_t slot = (start + i) % resident_;
      if (is_ready(slot)) return slot;
    }
    return resident_;
  }
  if (after && after->ready_warps) return after->slot;
  const size_t words = ready_blocks_.size();
  const size_t start = after ? after->slot / 64 : 0;
  for (size_t i = 0; i < words; ++i) {
    const size_t word = (start + i) % words;
    const uint64_t bits = ready_blocks_[word];
    if (!bits) continue;
    const bool descending = config_.order == WN_ORDER_DESCENDING;
    const int bit = descending ? 63 - __builtin_clzll(bits) : __builtin_ctzll(bits);
    return static_cast<uint32_t>(word * 64) + static_cast<uint32_t>(bit);
  }
  return resident_;
}

/// Who runs next; null if nobody can. May be the current thread.
Thread* Scheduler::pick() {
  const Thread* last = current_thread();
  const uint32_t slot = pick_block(last ? last->block : nullptr);
  if (slot == resident_) return nullptr;
  Block& block = blocks_[slot];
  const bool same_block = last && last->block == &block;
  const uint32_t before_first = config_.order == WN_ORDER_DESCENDING ? 0 : 31;
  // A warp goes on while it can: its threads are in step more often than not.
  uint32_t warp = same_block ? last->warp() : before_first;
  const bool stay = same_block && config_.order != WN_ORDER_RANDOM && block.warps[warp].ready;
  if (!stay) warp = pick_bit(block.ready_warps, warp);
  const bool same_warp = same_block && warp == last->warp();
  const uint32_t lane = pick_bit(block.warps[warp].ready, same_warp ? last->lane() : before_first);
  return &block.threads[warp * kWarpSize + lane];
}

void Scheduler::wait(Wait why, Site site) {
  Thread& thread = *current_thread();
  thread.wait = why;
  thread.site = site;
  clear_ready(thread);
  Thread* next = pick_or_wake();
  switch_to(next ? next : &host_);
  thread.wait = Wait::kNone;
}

Thread* Scheduler::pick_or_wake() {
  Thread* next = pick();
  if (next || polling_.empty() || !news_) return next;
  news_ = false;
  for (Thread* thread : polling_) set_ready(*thread->block, thread->warp(), 1u << thread->lane());
  polling_.clear();
  return pick();
}

void Scheduler::wait_for_news(Site site) {
  polling_.push_back(current_thread());
  wait(Wait::kPoll, site);
}

void Scheduler::yield() {
  switch_to(pick());  // the current thread is ready, so there is one
}

void Scheduler::thread_exits() {
  Thread& thread = *current_thread();
  Block& block = *thread.block;
  thread.wait = Wait::kExited;
  clear_ready(thread);
  block.warps[thread.warp()].alive &= ~(1u << thread.lane());
  --block.alive;
  --alive_;
  leave_barriers(thread);
  leave_copies(thread);
  if (block.alive == 0) checker::end_block(block);
  Thread* next = pick_or_wake();
  switch_to(next ? next : &host_);
  __builtin_unreachable();
}

void Scheduler::abandon(int32_t code) {
  fault_ = code;
  switch_to(&host_);
  __builtin_unreachable();
}

void Scheduler::report_deadlock() {
  std::map<std::string, int> waiting;
  for (uint32_t slot = 0; slot < resident_; ++slot) {
    for (uint32_t t = 0; t < threads_per_block_; ++t) {
      const Thread& thread = blocks_[slot].threads[t];
      std::string what = wait_name(thread.wait);
      if (thread.wait != Wait::kExited && thread.site.file) {
        what += " of " + std::string(base_name(thread.site.file)) + ":";
        what += std::to_string(thread.site.line);
      }
      ++waiting[what];
    }
  }
  std::string text;
  for (const auto& [what, count] : waiting) {
    if (!text.empty()) text += ", ";
    text += std::to_string(count) + " " + what;
  }
  report("[synccheck] kernel %s: deadlock, no thread can continue: %s", kernel_name_, text.c_str());
}

void Scheduler::reserve(uint32_t resident) {
  resident_ = resident;
  const size_t threads = size_t{resident} * threads_per_block_;
  const uint32_t warps = (threads_per_block_ + kWarpSize - 1) / kWarpSize;
  if (stack_count_ < threads) {
    unmap(stacks_, stack_count_ * kStackBytes);
    stacks_ = map_lazily(threads * kStackBytes);
    stack_count_ = threads;
    // Each guard page is a mapping, of which the system allows 65530.
    constexpr size_t kMostGuards = 8192;
    for (size_t i = 0; i < std::min(threads, kMostGuards); ++i) {
      mprotect(stacks_ + i * kStackBytes, 4096, PROT_NONE);
    }
  }
  if (arena_count_ < resident) {
    arenas_ = checker::map_arenas(arenas_, arena_count_ * kArenaBytes, resident * kArenaBytes);
    arena_count_ = resident;
  }
  threads_.assign(threads, Thread());
  warps_.assign(size_t{resident} * warps, Warp());
  blocks_.assign(resident, Block());
  ready_blocks_.assign((resident + 63) / 64, 0);
  const dim3& dim = launch_->block;
  for (uint32_t slot = 0; slot < resident; ++slot) {
    Block& block = blocks_[slot];
    block.slot = slot;
    block.size = threads_per_block_;
    block.warp_count = warps;
    block.first_of_cluster = slot / launch_->cluster * launch_->cluster;
    block.rank = slot % launch_->cluster;
    block.arena = arenas_ + slot * kArenaBytes;
    block.threads = &threads_[size_t{slot} * threads_per_block_];
    block.warps = &warps_[size_t{slot} * warps];
    for (uint32_t t = 0; t < threads_per_block_; ++t) {
      Thread& thread = block.threads[t];
      thread.thread_index = uint3{t % dim.x, t / dim.x % dim.y, t / (dim.x * dim.y)};
      thread.block_dim = dim;
      thread.grid_dim = launch_->grid;
      thread.block = &block;
      thread.index_in_block = t;
      thread.stack = stacks_ + (size_t{slot} * threads_per_block_ + t) * kStackBytes;
    }
  }
}

void Scheduler::start_block(Block& block, uint64_t index) {
  const dim3& grid = launch_->grid;
  block.index_in_grid = static_cast<uint32_t>(index);
  block.index.x = static_cast<uint32_t>(index % grid.x);
  block.index.y = static_cast<uint32_t>(index / grid.x % grid.y);
  block.index.z = static_cast<uint32_t>(index / (uint64_t{grid.x} * grid.y));
  block.alive = block.size;
  block.arrived = 0;
  block.cluster_arrived = 0;
  block.ready_warps = 0;
  for (uint32_t w = 0; w < block.warp_count; ++w) {
    const uint32_t lanes = std::min(kWarpSize, block.size - w * kWarpSize);
    const uint32_t all = lanes == kWarpSize ? ~0u : (1u << lanes) - 1;
    block.warps[w].alive = all;
    block.warps[w].waiting = 0;
    block.warps[w].ready = 0;
    set_ready(block, w, all);
  }
  for (uint32_t t = 0; t < block.size; ++t) {
    Thread& thread = block.threads[t];
    thread.block_index = block.index;
    thread.wait = Wait::kNone;
    thread.polled = nullptr;
    thread.copies.clear();
    thread.copy_groups.clear();
    thread.landed_groups = thread.landed_copies = 0;
    thread.index_in_grid = static_cast<uint32_t>(index) * block.size + t;
    prepare_fiber(thread);
  }
  checker::start_block(block);
  if (launch_->dynamic_smem > 0) {
    checker::declare_shared(block.arena + kRedZoneBytes, launch_->dynamic_smem);
  }
  for (const SharedVariable& variable : shared_) {
    checker::declare_shared(block.arena + variable.offset, variable.bytes);
  }
}

void Scheduler::run_together(uint64_t first, uint32_t count) {
  resident_ = count;
  alive_ = uint64_t{count} * threads_per_block_;
  grid_arrived = 0;
  polling_.clear();
  news_ = false;
  for (uint32_t i = 0; i < count; ++i) start_block(blocks_[i], first + i);
  switch_to(pick());
  checker::end_together();
  if (fault_ == 0 && alive_ > 0) {
    report_deadlock();
    fault_ = kLaunchFailure;
  }
  if (fault_ == 0) return;
  for (uint32_t i = 0; i < count; ++i) checker::end_block(blocks_[i]);
}

namespace {

uint64_t greatest_common_divisor(uint64_t a, uint64_t b) {
  while (b != 0) {
    const uint64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

}  // namespace

int32_t Scheduler::run(const LaunchRequest& launch, const wn_emulated_config& config) {
  launch_ = &launch;
  config_ = config;
  kernel_name_ = readable_name(launch.signature);
  random_ = Random(config.seed);
  threads_per_block_ = launch.block.x * launch.block.y * launch.block.z;
  fault_ = 0;
  bytes_read = 0;
  bytes_written = 0;
  shared_.clear();
  shared_bytes_ = launch.dynamic_smem;
  shared_end_ = kRedZoneBytes + launch.dynamic_smem;
  const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  const uint64_t wanted = uint64_t{launch.cluster} * static_cast<uint32_t>(config.resident_blocks);
  const uint64_t together = launch.cooperative ? blocks : std::min(wanted, blocks);
  reserve(static_cast<uint32_t>(together));

  scheduler = this;
  checker::begin_launch(blocks);
  const uint64_t groups = (blocks + together - 1) / together;
  // In random order, group k is start + k * stride, and a stride without common divisor meets each
  // once.
  const uint64_t start = (uint64_t{random_.next()} << 31 ^ random_.next()) % groups;
  uint64_t stride = random_.next() % groups + 1;
  while (greatest_common_divisor(stride, groups) != 1) ++stride;
  for (uint64_t k = 0; k < groups && fault_ == 0; ++k) {
    uint64_t group = k;
    if (config.order == WN_ORDER_DESCENDING) group = groups - 1 - k;
    if (config.order == WN_ORDER_RANDOM) group = (start + k * stride) % groups;
    const uint64_t first = group * together;
    run_together(first, static_cast<uint32_t>(std::min(together, blocks - first)));
  }
  scheduler = nullptr;
  launch_ = nullptr;
  return fault_;
}

void* Scheduler::shared_variable(Block& block, const void* tag, size_t bytes, size_t alignment) {
  for (const SharedVariable& variable : shared_) {
    if (variable.tag == tag) return block.arena + variable.offset;
  }
  shared_bytes_ += bytes;
  const size_t declared = shared_bytes_ - launch_->dynamic_smem;
  if (declared > kStaticSharedLimit || shared_bytes_ > kSharedLimit) {
    fail(kInvalidValue, "launch",
         "%zu bytes of shared memory, %zu of them declared, are over the limits of %zu and %zu",
         shared_bytes_, declared, kSharedLimit, kStaticSharedLimit);
  }
  // Aligned to what the type asks and no more, so that a wider access to it is caught.
  const size_t twice = 2 * alignment;
  const size_t offset = (shared_end_ + kRedZoneBytes + twice - 1) / twice * twice + alignment;
  shared_end_ = offset + bytes;
  shared_.push_back({tag, offset, bytes});
  for (uint32_t i = 0; i < resident_; ++i) {
    if (blocks_[i].alive > 0) checker::declare_shared(blocks_[i].arena + offset, bytes);
  }
  return block.arena + offset;
}

}  // namespace emulator
}  // namespace wn_emulated
