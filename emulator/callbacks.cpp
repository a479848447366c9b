// What instrumented kernels call: the functions that -fsanitize=thread and -fsanitize=undefined
// make compilers insert, as g++ and clang++ name them. No sanitizer's library is linked; these take
// its place.
#ifdef WN_EMULATOR_CHECK

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "checker.h"

using wn_emulated::emulator::checker::Access;
using wn_emulated::emulator::checker::access;

namespace {

/// An access of any size and alignment, as the aligned accesses that it consists of.
void access_range(const void* p, size_t bytes, Access kind, const void* pc) {
  const char* at = static_cast<const char*>(p);
  const char* const end = at + bytes;
  while (at < end) {
    size_t piece = 8;
    while (reinterpret_cast<uintptr_t>(at) % piece != 0 || piece > static_cast<size_t>(end - at))
      piece /= 2;
    access(at, piece, kind, pc);
    at += piece;
  }
}

}  // namespace

#define WN_CALLER __builtin_return_address(0)

#define WN_ACCESS_CALLBACKS(bytes)                                                                 \
  void __tsan_read##bytes(void* p) { access(p, bytes, Access::kRead, WN_CALLER); }                 \
  void __tsan_write##bytes(void* p) { access(p, bytes, Access::kWrite, WN_CALLER); }               \
  void __tsan_volatile_read##bytes(void* p) { access(p, bytes, Access::kRead, WN_CALLER); }        \
  void __tsan_volatile_write##bytes(void* p) { access(p, bytes, Access::kWrite, WN_CALLER); }      \
  void __tsan_unaligned_read##bytes(void* p) { access_range(p, bytes, Access::kRead, WN_CALLER); } \
  void __tsan_unaligned_write##bytes(void* p) {                                                    \
    access_range(p, bytes, Access::kWrite, WN_CALLER);                                             \
  }                                                                                                \
  void __tsan_read_write##bytes(void* p) {                                                         \
    access(p, bytes, Access::kRead, WN_CALLER);                                                    \
    access(p, bytes, Access::kWrite, WN_CALLER);                                                   \
  }                                                                                                \
  void __tsan_unaligned_read_write##bytes(void* p) {                                               \
    access_range(p, bytes, Access::kRead, WN_CALLER);                                              \
    access_range(p, bytes, Access::kWrite, WN_CALLER);                                             \
  }

extern "C" {

WN_ACCESS_CALLBACKS(1)
WN_ACCESS_CALLBACKS(2)
WN_ACCESS_CALLBACKS(4)
WN_ACCESS_CALLBACKS(8)
WN_ACCESS_CALLBACKS(16)

void __tsan_read_range(void* p, size_t bytes) { access_range(p, bytes, Access::kRead, WN_CALLER); }
void __tsan_write_range(void* p, size_t bytes) {
  access_range(p, bytes, Access::kWrite, WN_CALLER);
}

void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  access_range(from, bytes, Access::kRead, WN_CALLER);
  access_range(to, bytes, Access::kWrite, WN_CALLER);
  return std::memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  access_range(from, bytes, Access::kRead, WN_CALLER);
  access_range(to, bytes, Access::kWrite, WN_CALLER);
  return std::memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  access_range(to, bytes, Access::kWrite, WN_CALLER);
  return std::memset(to, value, bytes);
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_ignore_thread_begin() {}
void __tsan_ignore_thread_end() {}

// Guards of static variables in host code. Kernels cannot reach these: their atomics are out of
// line.
unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int) {
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

}  // extern "C"

namespace {

/// The beginning of every record that the compiler passes to __ubsan_handle_*.
struct UbsanPlace {
  const char* file;
  unsigned line;
  unsigned column;
};

void undefined_behavior(const UbsanPlace* place, const char* what) {
  using namespace wn_emulated::emulator;
  const char* file = place->file ? base_name(place->file) : "?";
  if (current)
    fail(kLaunchFailure, "ubsan", "%s at %s:%u:%u", what, file, place->line, place->column);
  std::fprintf(stderr, "[ubsan] host code of a kernel file: %s at %s:%u:%u\n", what, file,
               place->line, place->column);
}

struct TypeMismatch {
  UbsanPlace place;
  void* type;
  unsigned char log_alignment;
  unsigned char kind;
};

}  // namespace

#define WN_UBSAN_CALLBACK(name, what) \
  void __ubsan_handle_##name(UbsanPlace* place, void*, void*) { undefined_behavior(place, what); }

extern "C" {

WN_UBSAN_CALLBACK(add_overflow, "signed integer overflow in an addition")
WN_UBSAN_CALLBACK(sub_overflow, "signed integer overflow in a subtraction")
WN_UBSAN_CALLBACK(mul_overflow, "signed integer overflow in a multiplication")
WN_UBSAN_CALLBACK(negate_overflow, "signed integer overflow in a negation")
WN_UBSAN_CALLBACK(divrem_overflow, "division by zero, or its overflow")
WN_UBSAN_CALLBACK(shift_out_of_bounds, "shift by a negative or too large number")
WN_UBSAN_CALLBACK(out_of_bounds, "array index out of bounds")
WN_UBSAN_CALLBACK(pointer_overflow, "pointer arithmetic overflows")
WN_UBSAN_CALLBACK(load_invalid_value, "bool or enum with a value that it cannot have")
WN_UBSAN_CALLBACK(builtin_unreachable, "unreachable code is reached")
WN_UBSAN_CALLBACK(missing_return, "end of a function without return")
WN_UBSAN_CALLBACK(vla_bound_not_positive, "array bound is not positive")
WN_UBSAN_CALLBACK(float_cast_overflow, "float that its integer type cannot hold")
WN_UBSAN_CALLBACK(invalid_builtin, "zero passed to a function that forbids it")
WN_UBSAN_CALLBACK(nonnull_arg, "null passed to a function that forbids it")
WN_UBSAN_CALLBACK(nonnull_return_v1, "null returned from a function that forbids it")
WN_UBSAN_CALLBACK(alignment_assumption, "pointer is not aligned as promised")
WN_UBSAN_CALLBACK(function_type_mismatch, "call through a pointer of the wrong type")
WN_UBSAN_CALLBACK(function_type_mismatch_v1, "call through a pointer of the wrong type")

void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, void* p) {
  const uintptr_t alignment = uintptr_t{1} << data->log_alignment;
  const char* what = "object is too small for the access";
  if (!p) {
    what = "access through a null pointer";
  } else if (reinterpret_cast<uintptr_t>(p) % alignment != 0) {
    what = "misaligned access";
  }
  undefined_behavior(&data->place, what);
}

}  // extern "C"

#endif
