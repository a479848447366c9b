/* Planted faults that the emulator must report, and their clean twins, on which it must be silent. */
#ifndef WARPNORM_EMULATOR_FAULTS_H
#define WARPNORM_EMULATOR_FAULTS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

int32_t wn_emulated_fault_count(void);

/* What is wrong with fault `i`, 0 to the count less 1. */
const char* wn_emulated_fault_name(int32_t i);

/* The tools that may report it, separated by `|`. The report begins with one of them in brackets. */
const char* wn_emulated_fault_tool(int32_t i);

/* 1 if only builds with access checks can see it. */
int32_t wn_emulated_fault_needs_checks(int32_t i);

/* Runs the faulty kernel if `planted` is not 0, else its clean twin. 0, the code of the first
 * error, or -1 if the numbers are wrong. */
int32_t wn_emulated_fault_run(int32_t i, int32_t planted);

/* Runs a kernel that copies 1000 floats, and counts the bytes of global memory that it moves. With
 * `extra_read` it reads its input twice. 0 or the code of the first error. */
int32_t wn_emulated_traffic_probe(int32_t extra_read, uint64_t* read, uint64_t* written);

/* What a launch does with a tensor: by one block, from the first element to the last if not said
 * otherwise, 4 bytes at a time. */
enum {
  WN_PASS_READ = 0,
  WN_PASS_READ_BACKWARDS = 1,
  WN_PASS_READ_STREAM = 2, /* with the hint to evict it first */
  WN_PASS_READ_STREAM_UNEVENLY = 3, /* likewise, half of the threads a step behind */
  WN_PASS_WRITE = 4,
  WN_PASS_WRITE_STREAM = 5,
  WN_PASS_ATOMIC = 6,
  WN_PASS_THERE_AND_BACK_IN_WARP = 7,  /* reads forwards, and after __syncwarp backwards */
  WN_PASS_THERE_AND_BACK_IN_BLOCK = 8, /* likewise, after __syncthreads */
  WN_PASS_THERE_AND_BACK_IN_GRID = 9,  /* likewise, after grid_sync of a cooperative grid */
};

typedef struct wn_emulated_pass {
  int32_t op;
  int32_t tensor; /* 0 to 2 */
  uint64_t dram_read;
  uint64_t dram_written;
} wn_emulated_pass;

/* Makes passes over tensors of `floats` elements, a multiple of 512, and fills in what they move
 * under the model of an L2 cache of `l2_bytes`. 0 or the code of the first error. */
int32_t wn_emulated_l2_probe(wn_emulated_pass* passes, int32_t count, int32_t floats,
                             uint64_t l2_bytes);

#ifdef __cplusplus
}
#endif

#endif
