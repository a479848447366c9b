/* The C ABI between the Rust crate and the CUDA launchers.
 *
 * Plain C99 and no CUDA headers, so bindgen and any C compiler can read it. Pointers inside the argument structs are
 * device addresses. A launcher returns before the GPU has finished; what it returns is a cudaError_t, and a nonzero one
 * means that this launch was refused. Launchers neither allocate nor synchronize nor query the device, so every call may
 * be captured into a CUDA graph. */
#ifndef WARPNORM_H
#define WARPNORM_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st* wn_stream; /* what cudaStream_t and CUstream both are */

/* How a tensor's elements are stored. Arithmetic is always in f32. */
typedef enum wn_dtype { WN_F32 = 0, WN_F16 = 1, WN_BF16 = 2 } wn_dtype;

/* What a launcher does: enqueue its kernels, or only load them so that a later capture finds them loaded. */
typedef enum wn_action { WN_LAUNCH = 0, WN_PREPARE = 1 } wn_action;

/* How the threads of a block share the channels of a channel norm. */
typedef enum wn_channel_tile {
  WN_BLOCK_PER_CHANNEL = 0, /* a block owns one channel: runs of `inner` elements */
  WN_WARP_PER_CHANNEL = 1,  /* each warp of a block owns a channel of its own; splits = 1 */
  WN_CHANNEL_COLUMNS = 2    /* inner = 1: a block owns neighboring channels, its threads walk down the rows */
} wn_channel_tile;

typedef enum wn_channel_strategy {
  WN_SINGLE = 0, /* one launch: whoever owns a channel reads it twice, the second time from cache */
  WN_SPLIT = 1   /* one launch for the statistics, blocks sharing channels, and one to apply them */
} wn_channel_strategy;

/* How the elements of one row are shared. */
typedef enum wn_row_strategy {
  WN_WARP_PER_ROW = 0, /* the row stays in the registers of one warp between the two phases */
  WN_BLOCK_PER_ROW = 1 /* a block reads the row twice, the second time from cache where it fits */
} wn_row_strategy;

/* A tensor as channels, and how a grid walks it. Element (o, c, i) lies at (o * channels + c) * inner + i; channels last
 * is inner = 1. Chosen by src/cuda/plan.rs; a launcher only looks it up. */
typedef struct wn_channel_walk {
  int64_t outer;
  int64_t channels;
  int64_t inner; /* below 2^31 */
  int64_t span;  /* elements of a channel that one block takes; outer * inner <= splits * span */
  int32_t splits;  /* blocks that share a channel */
  int32_t columns; /* WN_CHANNEL_COLUMNS: threads side by side, a power of two up to 32; else 1 */
  int32_t vec;     /* elements per memory access: 16 bytes' worth, or 1 */
  wn_channel_tile tile;
} wn_channel_walk;

/* How to run a channel norm: the walk that gathers statistics, and the one that applies them (not used by WN_SINGLE). */
typedef struct wn_channel_plan {
  wn_channel_strategy strategy;
  wn_channel_walk stats;
  wn_channel_walk apply;
} wn_channel_plan;

/* BatchNorm forward.
 *
 * Training (running_only = 0): mean and biased variance over outer and inner of each channel, or over the whole tensor
 * (whole_batch = 1), then y = (x - mean) * rstd * weight + bias with rstd = 1 / sqrt(var + eps). Where running_mean and
 * running_var are given: running = keep * running + take * new, with the unbiased variance for running_var; the tensor
 * holds more than one value per statistic.
 * Inference (running_only = 1): the same affine map with running_mean and running_var as the statistics.
 *
 * `statistics` below is channels, or 1 with whole_batch. */
typedef struct wn_batch_norm_fwd {
  const void* x;       /* [outer, channels, inner] x_dtype */
  void* y;             /* [outer, channels, inner] x_dtype */
  const void* weight;  /* [channels] param_dtype; null means ones */
  const void* bias;    /* [channels] param_dtype; null means zeros */
  float* mean;         /* [statistics], written; null means not saved */
  float* rstd;         /* [statistics], written; null means not saved */
  float* running_mean; /* [statistics]; training: updated, or null */
  float* running_var;  /* [statistics]; training: updated, or null */
  uint32_t* counters;  /* WN_SPLIT: zero before and after each call, sized by src/cuda/plan.rs */
  float* workspace;    /* WN_SPLIT: any contents, sized there too */
  float eps;
  float keep;
  float take;
  wn_dtype x_dtype;
  wn_dtype param_dtype;
  int32_t whole_batch;
  int32_t running_only;
} wn_batch_norm_fwd;

/* BatchNorm backward, with g = dy * weight, x_hat = (x - mean) * rstd and means over the elements of a statistic:
 *
 *   dweight = sum(dy * x_hat)      dbias = sum(dy)
 *   dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat))          training
 *   dx = rstd * g                                                inference (running_only = 1)
 *
 * In inference `rstd` holds running_var, from which the kernels take 1 / sqrt(var + eps). */
typedef struct wn_batch_norm_bwd {
  const void* x;      /* [outer, channels, inner] x_dtype */
  const void* dy;     /* [outer, channels, inner] x_dtype */
  const void* weight; /* [channels] param_dtype; null means ones */
  const float* mean;  /* [statistics] */
  const float* rstd;  /* [statistics]; the variance where running_only = 1 */
  void* dx;           /* [outer, channels, inner] x_dtype; null means not wanted */
  void* dweight;      /* [channels] grad_dtype; null means not wanted */
  void* dbias;        /* [channels] grad_dtype; null means not wanted */
  uint32_t* counters; /* as in wn_batch_norm_fwd */
  float* workspace;   /* as in wn_batch_norm_fwd */
  float eps;
  wn_dtype x_dtype;
  wn_dtype param_dtype;
  wn_dtype grad_dtype;
  int32_t whole_batch;
  int32_t running_only;
} wn_batch_norm_bwd;

/* How to run a row norm. */
typedef struct wn_row_plan {
  wn_row_strategy strategy;
  int32_t vec; /* elements per memory access: 16 bytes' worth, or 1 */
} wn_row_plan;

/* LayerNorm forward: y = (x - mean) * rstd * weight + bias over each row of cols elements. Consecutive rows start
 * x_row_stride (y_row_stride) elements apart. */
typedef struct wn_row_norm_fwd {
  int64_t rows;
  int64_t cols; /* below 2^31 */
  int64_t x_row_stride;
  int64_t y_row_stride;
  const void* x;      /* [rows, cols] x_dtype */
  void* y;            /* [rows, cols] x_dtype */
  const void* weight; /* [cols] param_dtype; null means ones */
  const void* bias;   /* [cols] param_dtype; null means zeros */
  float* mean;        /* [rows]; null means not saved */
  float* rstd;        /* [rows]; null means not saved */
  float eps;
  wn_dtype x_dtype;
  wn_dtype param_dtype;
} wn_row_norm_fwd;

/* Every launcher of one build of the kernels. A program may hold two builds, CUDA's and the emulator's. */
typedef struct wn_launchers {
  int32_t (*batch_norm_fwd)(const wn_batch_norm_fwd*, const wn_channel_plan*, wn_action, wn_stream);
  int32_t (*batch_norm_bwd)(const wn_batch_norm_bwd*, const wn_channel_plan*, wn_action, wn_stream);
  int32_t (*row_norm_fwd)(const wn_row_norm_fwd*, const wn_row_plan*, wn_action, wn_stream);
} wn_launchers;

const wn_launchers* wn_cuda_launchers(void);
const wn_launchers* wn_emulated_launchers(void);

#ifdef __cplusplus
}
#endif
#endif
