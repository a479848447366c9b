// The execution model: fibers, warps, blocks, and who runs next. Internal to the emulator.
#pragma once

#include <vector>

#include "emulator.h"
#include "l2.h"
#include "warpnorm_emulator.h"

namespace wn_emulated {
namespace emulator {

constexpr uint32_t kWarpSize = 32;
constexpr size_t kStackBytes = 64 << 10;
/// Shared memory of one block, red zones included.
constexpr size_t kArenaBytes = 256 << 10;
/// Unusable bytes before every shared variable.
constexpr size_t kRedZoneBytes = 128;
/// Static shared memory that a kernel may have, and all that a block may ask for, which `launch` does.
constexpr size_t kStaticSharedLimit = 48 << 10;
constexpr size_t kSharedLimit = 227 << 10;

/// Larger allocations are neither filled nor tracked by the byte, so that untouched parts cost
/// nothing.
constexpr size_t kTrackedBytes = 256 << 20;

/// The numbers of cudaError_t that the emulator gives.
enum Code : int32_t {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kInvalidConfiguration = 9,
  kIllegalAddress = 700,
  kMisalignedAddress = 716,
  kLaunchFailure = 719,
  kCooperativeTooLarge = 720,
  kNotSupported = 801,
  kInvalidClusterSize = 912,
};

enum class Wait : uint8_t {
  kNone,
  kBlockBarrier,
  kWarp,
  kClusterBarrier,
  kGridBarrier,
  kPoll,
  kExited
};

struct Block;
struct Frontier;

/// An asynchronous copy to shared memory that has not landed.
struct PendingCopy {
  void* to;
  const void* from;
  size_t bytes;
  const void* pc;
};

/// One CUDA thread.
struct Thread : ThreadContext {
  void* stack_pointer = nullptr;
  char* stack = nullptr;  // lowest address
  Block* block = nullptr;
  uint32_t index_in_block = 0;
  Wait wait = Wait::kNone;
  Site site{nullptr, 0};  // where it waits
  uint64_t operand = 0;   // of its warp operation
  uint64_t result = 0;
  int source_lane = 0;  // of its shuffle; -1: itself
  std::vector<PendingCopy> copies;
  std::vector<size_t> copy_groups;  // where each committed group ends among them
  size_t landed_groups = 0;
  size_t landed_copies = 0;
  const unsigned* polled = nullptr;  // where it polled last, and what it saw
  unsigned poll_value = 0;
  // The checker's.
  uint32_t index_in_grid = 0;
  uint32_t clock = 1;
  const Frontier* acquired = nullptr;
  const Frontier* observed = nullptr;  // by an atomic operation; acquired with the next fence
  const Frontier* released = nullptr;
  uint32_t step = 0;  // accesses of global memory, and what others did that it waited for

  uint32_t warp() const { return index_in_block / kWarpSize; }
  uint32_t lane() const { return index_in_block % kWarpSize; }
};

/// Lanes that meet in one warp operation.
struct WarpGroup {
  uint32_t mask = 0;  // 0: unused
  uint32_t arrived = 0;
  WarpOp op = WarpOp::kBarrier;
  Site site{nullptr, 0};
};

struct Warp {
  static constexpr int kGroups = 4;
  uint32_t ready = 0;
  uint32_t alive = 0;
  uint32_t waiting = 0;
  WarpGroup groups[kGroups];
  uint32_t (*known)[kWarpSize] = nullptr;  // the checker's: clock of lane j that lane i knows of
};

struct Block {
  uint3 index{0, 0, 0};
  uint32_t index_in_grid = 0;
  uint32_t slot = 0;  // among the resident blocks
  uint32_t size = 0;
  uint32_t warp_count = 0;
  uint32_t alive = 0;
  uint32_t ready_warps = 0;
  // The barrier that threads are arriving at.
  uint32_t arrived = 0;
  uint32_t first_arrived = 0;
  Site barrier_site{nullptr, 0};
  BarrierOp barrier_op = BarrierOp::kNone;
  int barrier_partial = 0;
  int barrier_result = 0;  // of the last complete one
  // Cluster.
  uint32_t first_of_cluster = 0;  // slot
  uint32_t rank = 0;
  uint32_t cluster_arrived = 0;  // in the first block only
  char* arena = nullptr;
  Thread* threads = nullptr;
  Warp* warps = nullptr;
  // The checker's.
  uint32_t epoch = 1;  // barriers passed
  const Frontier* acquired = nullptr;
};

/// SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_(seed) {}
  uint32_t next() {
    state_ += 0x9e3779b97f4a7c15;
    uint64_t mixed = (state_ ^ state_ >> 30) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
    return static_cast<uint32_t>(mixed >> 32);
  }

 private:
  uint64_t state_;
};

/// Runs launches, one after the other, on whichever host thread asks.
class Scheduler {
 public:
  /// Runs a valid launch. Returns 0, or the code of the fault, whose text is then this thread's
  /// report.
  int32_t run(const LaunchRequest& launch, const wn_emulated_config& config);

  /// Ends the launch with a fault. The calling fiber never continues.
  [[noreturn]] void abandon(int32_t code);

  /// The calling fiber waits until `set_ready` names it.
  void wait(Wait why, Site site);
  /// Another fiber's turn, if there is one.
  void yield();
  void set_ready(Block& block, uint32_t warp, uint32_t lanes);
  /// Makes all threads of a block ready.
  void release(Block& block);
  /// The calling fiber, which saw nothing new, waits until no other thread can run.
  void wait_for_news(Site site);
  /// Something happened that a polling thread may wait for.
  void note_news() { news_ = true; }

  const LaunchRequest& launch() const { return *launch_; }
  const wn_emulated_config& config() const { return config_; }
  const char* kernel_name() const { return kernel_name_; }
  Block* blocks() { return blocks_.data(); }
  uint32_t resident() const { return resident_; }
  uint32_t threads_per_block() const { return threads_per_block_; }

  void* shared_variable(Block& block, const void* tag, size_t bytes, size_t alignment);
  /// Bytes of each arena that may be in use.
  size_t shared_end() const { return shared_end_; }
  void* dynamic_shared(Block& block) { return block.arena + kRedZoneBytes; }

  uint32_t grid_arrived = 0;
  uint64_t bytes_read = 0;
  uint64_t bytes_written = 0;
  L2Model* l2 = nullptr;  // null: none is modelled

 private:
  struct SharedVariable {
    const void* tag;
    size_t offset;
    size_t bytes;
  };

  friend void fiber_main();
  void reserve(uint32_t resident);
  void start_block(Block& block, uint64_t index);
  /// Blocks `first` to `first + count - 1`, resident together.
  void run_together(uint64_t first, uint32_t count);
  void thread_exits();
  Thread* pick();
  uint32_t pick_block(const Block* after);
  uint32_t pick_bit(uint32_t bits, uint32_t after);
  void switch_to(Thread* to);
  void clear_ready(Thread& thread);
  /// Who runs next when the current thread cannot: polling threads look again once all others wait.
  Thread* pick_or_wake();
  void report_deadlock();

  const LaunchRequest* launch_ = nullptr;
  wn_emulated_config config_{};
  const char* kernel_name_ = "";
  Random random_;
  Thread host_;  // the host thread's own stack
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<Block> blocks_;
  std::vector<uint64_t> ready_blocks_;  // a bit per slot
  std::vector<Thread*> polling_;
  bool news_ = false;  // since polling threads looked last
  uint32_t resident_ = 0;
  uint32_t threads_per_block_ = 0;
  uint64_t alive_ = 0;
  int32_t fault_ = 0;
  std::vector<SharedVariable> shared_;
  size_t shared_end_ = 0;    // offset past the last shared variable
  size_t shared_bytes_ = 0;  // of dynamic and static shared memory, without padding
  char* stacks_ = nullptr;
  size_t stack_count_ = 0;
  char* arenas_ = nullptr;
  size_t arena_count_ = 0;
};

/// The scheduler that runs on this host thread; null outside launches.
extern thread_local Scheduler* scheduler __attribute__((tls_model("initial-exec")));

inline Thread* current_thread() { return static_cast<Thread*>(current); }

/// Ends the launch with a fault of the current thread, diagnosed by `tool`.
[[noreturn]] void fail(int32_t code, const char* tool, const char* format, ...)
    __attribute__((format(printf, 3, 4)));

/// Sets this host thread's report.
void report(const char* format, ...) __attribute__((format(printf, 1, 2)));

/// The kernel's name in what `kernel_signature` returns; lives as long as the program.
const char* readable_name(const char* signature);

/// The file's name without its folders.
const char* base_name(const char* path);

/// Memory that costs nothing until it is touched. Aborts if there is none.
char* map_lazily(size_t bytes);
/// Undoes `map_lazily`; null is allowed.
void unmap(char* p, size_t bytes);

/// The live allocation of device memory that starts last of all that start at or before `p`.
bool allocation_before(const void* p, const char** start, size_t* bytes);

/// A thread that exits completes the barriers and warp operations that waited for it, or fails.
void leave_barriers(Thread& thread);

/// Fails where copies of a thread that exits have not landed.
void leave_copies(Thread& thread);

}  // namespace emulator
}  // namespace wn_emulated
