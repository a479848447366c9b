// Where in the source a report points to. Internal to the emulator.
#pragma once

#include <cstdint>

namespace wn_emulated {
namespace emulator {

/// A return address relative to the program, of the call itself; 0 if there is none.
uint32_t program_counter(const void* return_address);

/// "file:line" of a program counter, with the lines it is inlined into. Asks addr2line, and so is
/// slow; without addr2line or debug information it is the number. A plain array, since the fiber
/// that reports a fault never continues to destroy anything.
struct SourceLine {
  explicit SourceLine(uint32_t pc);
  char text[192];
};

}  // namespace emulator
}  // namespace wn_emulated
