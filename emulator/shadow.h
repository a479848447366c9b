// Device address space of check builds: for every byte a state, for every two bytes who accessed
// them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace wn_emulated {
namespace emulator {
namespace shadow {

enum class State : uint8_t { kNone, kUninitialized, kWritten, kFreed };

constexpr size_t kCellBytes = 2;

/// One access.
struct Access {
  uint32_t thread;  // index in the grid, plus 1; 0: no access
  uint32_t epoch;   // of the thread's block
  uint32_t clock;   // of the thread
  uint32_t pc;      // relative to the program
  uint32_t launch : 28;
  uint32_t bytes : 2;  // which of the cell's
  uint32_t write : 1;
  uint32_t atomic : 1;
};

/// The last write, and two of the reads since.
struct Cell {
  Access write;
  Access reads[2];
};

/// Whether `p` is in the device's address space.
bool covers(const void* p);

/// States of the bytes from `p` on.
State* states(const void* p);

/// The cell of the bytes at `p`.
Cell* cell(const void* p);

/// Whether [p, p + bytes) lies in one allocation that is too large for states.
bool is_untracked(const void* p, size_t bytes);

void set_state(const void* p, size_t bytes, State state);

}  // namespace shadow
}  // namespace emulator
}  // namespace wn_emulated
