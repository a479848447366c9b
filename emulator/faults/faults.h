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

#ifdef __cplusplus
}
#endif

#endif
