/* The emulated device: its memory, its settings, and what it saw.
 *
 * Everything is synchronous. Functions may be called from any number of host threads at once. A
 * function that returns int32_t returns 0 on success and otherwise the number of the cudaError_t
 * that a GPU would give; wn_emulated_last_report() then says what went wrong. */
#ifndef WARPNORM_EMULATOR_H
#define WARPNORM_EMULATOR_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Allocates device memory, aligned to 256 bytes. Its content is 0xFF, a NaN in every floating point
 * type, and counts as uninitialized; only allocations over 256 MiB are neither filled nor tracked.
 * Zero bytes give a pointer that is not null, unlike any other, and must be freed.
 * 2: out of memory. */
int32_t wn_emulated_malloc(void** out, uint64_t bytes);

/* Frees what wn_emulated_malloc gave. Null is allowed. 1: anything else. */
int32_t wn_emulated_free(void* p);

/* Copies from the host to the device. 1: `dst` is not inside one live allocation. */
int32_t wn_emulated_copy_in(void* dst, const void* src, uint64_t bytes);

/* Copies from the device to the host; uninitialized bytes may be copied. 1: `src` is not inside one
 * live allocation. */
int32_t wn_emulated_copy_out(void* dst, const void* src, uint64_t bytes);

/* Sets device memory to zero. 1: `p` is not inside one live allocation. */
int32_t wn_emulated_zero(void* p, uint64_t bytes);

/* The diagnosis of this host thread's last failure; "" if there was none. It stays until the
 * thread's next failure. It starts with the tool in brackets: [memcheck], [initcheck], [racecheck],
 * [synccheck], [ubsan], or [launch] for a launch that was refused. */
const char* wn_emulated_last_report(void);

/* 1 if kernels are compiled with access checks, else 0. Without them the emulator still notices
 * divergent barriers and warp operations, deadlock, misaligned vector accesses and bad launches. */
int32_t wn_emulated_checks(void);

/* Which of the threads that could run does run, and in which order blocks start. */
typedef enum wn_emulated_order {
  WN_ORDER_ASCENDING = 0,
  WN_ORDER_DESCENDING = 1,
  WN_ORDER_RANDOM = 2, /* the same for the same seed */
} wn_emulated_order;

typedef struct wn_emulated_config {
  wn_emulated_order order;
  int32_t preempt; /* mean accesses between forced switches of threads, with checks only; 0: none */
  uint64_t seed;
  int32_t resident_blocks; /* blocks, or clusters, that run at once; at least 1 */
  int32_t sms;             /* of the device; bounds cooperative launches; at least 1 */
} wn_emulated_config;

/* Sets the configuration of all later launches of the process. 1: a field is out of range.
 *
 * The initial values are ascending, preempt 0, seed 1, 1 resident block, 4 SMs. The environment
 * variables WARPNORM_EMULATOR_ORDER (ascending, descending, random), WARPNORM_EMULATOR_SEED and
 * WARPNORM_EMULATOR_PREEMPT replace three of them; a value that is none aborts the process. */
int32_t wn_emulated_configure(const wn_emulated_config* config);

void wn_emulated_get_config(wn_emulated_config* out);

/* One launch that ran, to its end or to a fault. */
typedef struct wn_emulated_launch {
  const char* kernel; /* name with template arguments; lives as long as the program */
  uint32_t grid_x;
  uint32_t grid_y;
  uint32_t grid_z;
  uint32_t block_x;
  uint32_t block_y;
  uint32_t block_z;
  uint64_t bytes_read;    /* of global memory, each access counted; 0 without checks */
  uint64_t bytes_written; /* likewise; an atomic operation counts as a read and a write */
  uint64_t dram_read;     /* of them, what the modelled L2 cache had not; 0 without the model */
  uint64_t dram_written;  /* what it wrote back, at once or later; 0 without the model */
} wn_emulated_launch;

/* Starts an empty log of this host thread's launches, with the model of an empty L2 cache of
 * `l2_bytes`, or without if that is 0 or there are no checks. */
void wn_emulated_log_start(uint64_t l2_bytes);

/* Ends the log, writes back what the cache holds, and returns how many launches there are. */
int64_t wn_emulated_log_stop(void);

/* Launch `index` of the log that was ended last. 1: there is none. */
int32_t wn_emulated_log_get(int64_t index, wn_emulated_launch* out);

#ifdef __cplusplus
}
#endif

#endif
