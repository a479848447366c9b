// Asks addr2line, of the tools that come with the compiler.
#include "source_line.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

namespace wn_emulated {
namespace emulator {
namespace {

/// The program or library that this function is in.
Dl_info find_module() {
  Dl_info info{};
  dladdr(reinterpret_cast<void*>(&find_module), &info);
  return info;
}

const Dl_info& module_info() {
  static const Dl_info info = find_module();
  return info;
}

/// Whether a line is of a kernel, and not of what calls it or of what it calls.
bool is_kernel_line(const char* line) {
  static const char* const kOthers[] = {"?", "emulator.h:", "invoke.h:", "tuple:"};
  for (const char* other : kOthers) {
    if (std::strncmp(line, other, std::strlen(other)) == 0) return false;
  }
  return true;
}

/// Appends "file:line", of at most three levels of inlining.
void append_lines(FILE* lines, char* text, size_t size) {
  constexpr int kMost = 3;
  char line[160];
  int found = 0;
  while (found < kMost && std::fgets(line, sizeof line, lines)) {
    line[std::strcspn(line, " \n")] = 0;
    if (!is_kernel_line(line)) continue;
    const size_t used = std::strlen(text);
    std::snprintf(text + used, size - used, "%s%s", found > 0 ? " < " : "", line);
    ++found;
  }
}

}  // namespace

uint32_t program_counter(const void* return_address) {
  if (!return_address) return 0;
  const uintptr_t base = reinterpret_cast<uintptr_t>(module_info().dli_fbase);
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(return_address) - base - 1);
}

SourceLine::SourceLine(uint32_t pc) {
  std::strcpy(text, "an unknown place");
  if (pc == 0) return;
  text[0] = 0;
  char program[512];
  const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
  program[length > 0 ? length : 0] = 0;
  const char* name = module_info().dli_fname;
  const char* file = name && std::strstr(name, ".so") ? name : program;
  char command[640];
  std::snprintf(command, sizeof command, "addr2line -s -i -e '%s' 0x%x 2>/dev/null", file, pc);
  if (FILE* lines = popen(command, "r")) {
    append_lines(lines, text, sizeof text);
    pclose(lines);
  }
  if (text[0] == 0) std::snprintf(text, sizeof text, "+0x%x", pc);
}

}  // namespace emulator
}  // namespace wn_emulated
