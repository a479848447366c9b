// What the checker must be told. Without WN_EMULATOR_CHECK these do nothing, except to prepare
// memory.
#pragma once

#include "scheduler.h"

namespace wn_emulated {
namespace emulator {
namespace checker {

enum class Access : uint8_t { kRead, kWrite, kAtomic, kPoll };  // a poll is an atomic read

/// Puts arenas for shared memory where the checker sees accesses; replaces the `old` ones.
char* map_arenas(char* old, size_t old_bytes, size_t bytes);

/// Makes shared memory accessible, with undefined content.
void declare_shared(char* p, size_t bytes);

/// Device memory: aligned to 256 bytes, uninitialized; null where there is none left.
char* allocate(size_t bytes);
void release(char* p, size_t bytes);

/// The host wrote device memory.
void mark_written(const void* p, size_t bytes);

#ifdef WN_EMULATOR_CHECK

void begin_launch(uint64_t blocks);
void start_block(Block& block);
/// Shared memory of the block is gone.
void end_block(Block& block);
/// The blocks that were resident together have ended.
void end_together();

// All threads concerned have arrived, and the epoch of their blocks has been advanced.
void block_barrier(Block& block);
void cluster_barrier(Block* first, uint32_t count);
void grid_barrier(Block* blocks, uint32_t count);
void warp_barrier(Block& block, uint32_t warp, uint32_t lanes);
/// In any warp operation, barriers included.
void lanes_meet(Block& block, uint32_t warp, uint32_t lanes);

void fence();

/// An access of the current thread; `pc` is where in the code. Fails where it is faulty.
void access(const void* p, size_t bytes, Access kind, const void* pc,
            CacheHint hint = CacheHint::kNone);
void atomic(const void* p, size_t bytes, const void* pc);
void poll(const void* p, size_t bytes, const void* pc);

#else

inline void begin_launch(uint64_t) {}
inline void start_block(Block&) {}
inline void end_block(Block&) {}
inline void end_together() {}
inline void block_barrier(Block&) {}
inline void cluster_barrier(Block*, uint32_t) {}
inline void grid_barrier(Block*, uint32_t) {}
inline void warp_barrier(Block&, uint32_t, uint32_t) {}
inline void lanes_meet(Block&, uint32_t, uint32_t) {}
inline void fence() {}
inline void atomic(const void*, size_t, const void*) {}
inline void poll(const void*, size_t, const void*) {}

#endif

}  // namespace checker
}  // namespace emulator
}  // namespace wn_emulated
