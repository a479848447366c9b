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

/* How the threads of a block share the slabs of a channel norm. */
typedef enum wn_channel_tile {
  WN_BLOCK_PER_CHANNEL = 0, /* a block owns one slab: runs of `inner` elements */
  WN_WARP_PER_CHANNEL = 1,  /* each warp of a block owns a slab of its own; splits = 1 */
  WN_CHANNEL_COLUMNS = 2    /* inner = 1: a block owns neighboring slabs of a segment, its threads walk down the rows */
} wn_channel_tile;

typedef enum wn_channel_strategy {
  WN_TEAM = 0, /* one launch: teams of blocks gather the statistics of their slabs and apply them */
  WN_SPLIT = 1 /* one launch for the statistics, blocks sharing slabs, and others to combine and apply them */
} wn_channel_strategy;

/* How the blocks of a team wait for each other. */
typedef enum wn_join {
  WN_ALONE = 0,   /* a team is one block */
  WN_CLUSTER = 1, /* a team is a cluster, of up to 8 blocks */
  WN_GRID = 2     /* by counters, in a cooperative launch */
} wn_join;

/* How the elements of one row are shared. */
typedef enum wn_row_strategy {
  WN_ROW_HELD = 0,    /* the row stays in shared memory, of threads of a warp, of a block or of a cluster: one read */
  WN_ROW_STREAMED = 1 /* a block reads the row twice, the second time from cache where it fits */
} wn_row_strategy;

/* What is applied after scale, shift and residual. */
typedef enum wn_activation {
  WN_ACT_NONE = 0,
  WN_ACT_RELU = 1,
  WN_ACT_SILU = 2,     /* z * sigmoid(z) */
  WN_ACT_GELU = 3,     /* z * Phi(z), Phi the normal distribution */
  WN_ACT_GELU_TANH = 4 /* z / 2 * (1 + tanh(sqrt(2 / pi) * (z + 0.044715 z^3))) */
} wn_activation;

/* What a channel norm does with running statistics. */
typedef enum wn_running {
  WN_RUNNING_NONE = 0,     /* there are none */
  WN_RUNNING_EACH = 1,     /* training: one per statistic, moved towards it */
  WN_RUNNING_AVERAGED = 2, /* training: one per channel, moved towards the mean over the segments; group is 1 */
  WN_RUNNING_FIXED = 3     /* inference: one per statistic, normalized with */
} wn_running;

/* A tensor as slabs, and how a grid walks it. Element (s, o, c, i) lies at ((s * outer + o) * channels + c) * inner + i
 * and belongs to slab s * channels + c. Channels last is inner = 1. Chosen by src/cuda/plan; a launcher only looks it
 * up. */
typedef struct wn_channel_walk {
  int64_t segments;
  int64_t outer;
  int64_t channels; /* segments * channels below 2^31 */
  int64_t inner;    /* below 2^31 */
  int64_t span;     /* elements of a slab that one block takes; outer * inner <= splits * span */
  int32_t splits;   /* blocks that share a slab */
  int32_t columns;  /* WN_CHANNEL_COLUMNS: threads side by side, a power of two up to 32; else 1 */
  int32_t vec;      /* elements per memory access: 16 bytes' worth, or 1 */
  wn_channel_tile tile;
} wn_channel_walk;

/* Teams of blocks, each of which takes units of work: whole statistics, so many that they fill whole tiles of the walk.
 * A unit is `tiles` tiles of `splits` pieces each; block r of a team takes pieces r, r + size, ... of it. Team t takes
 * units t, t + teams, ... */
typedef struct wn_channel_team {
  wn_channel_walk walk;
  wn_join join;
  int32_t size;   /* blocks of a team */
  int32_t teams;  /* all resident together where size > 1 and join = WN_GRID */
  int64_t units;
  int32_t tiles;  /* tiles of a unit; of a column walk: one, or all of a segment */
  int32_t slabs;  /* slabs of a unit; not used by a column walk, whose tiles say */
  int32_t chunks; /* chunks of a piece */
  int32_t folds;  /* 1 where the blocks, which are resident together, sum over the segments in the same launch; else 0 */
  int32_t held;   /* chunks that a thread holds in shared memory between the two phases, of those of its block's pieces */
} wn_channel_team;

/* How to run a channel norm: by teams, or by the walk that gathers statistics and the one that applies them. */
typedef struct wn_channel_plan {
  wn_channel_strategy strategy;
  wn_channel_team team;
  wn_channel_walk stats; /* forward: its slabs are the statistics; backward: the slabs of `apply` */
  wn_channel_walk apply;
} wn_channel_plan;

/* BatchNorm, GroupNorm and InstanceNorm, forward. `group` neighboring slabs share a statistic, so that slab k belongs to
 * statistic k / group:
 *
 *   y = act((x - mean) * rstd * weight + bias + residual),   rstd = 1 / sqrt(var + eps)
 *
 * with mean and biased variance over the statistic's elements, or running_mean and running_var (WN_RUNNING_FIXED).
 * Running statistics move by running = (1 - momentum) * running + momentum * new, with the unbiased variance for
 * running_var, where the tensor holds more than one value per statistic; a momentum of 0 leaves them untouched. */
typedef struct wn_channel_norm_fwd {
  const void* x;         /* [segments, outer, channels, inner] x_dtype */
  void* y;               /* like x; may be x itself */
  const void* residual;  /* like x; null means none */
  const void* weight;    /* [channels] param_dtype; null means ones */
  const void* bias;      /* [channels] param_dtype; null means zeros */
  float* mean;           /* [statistics], written in training; null means not saved */
  float* rstd;           /* [statistics], written in training; null means not saved */
  float* running_mean;   /* [statistics], or [channels] if averaged */
  float* running_var;    /* likewise */
  const float* momentum; /* [1], read when the kernel runs, in place of the field `take`; null: the field counts */
  uint32_t* counters;    /* zero before and after each call, sized by src/cuda/plan */
  float* workspace;      /* any contents, sized there too */
  int64_t group;
  float eps;
  float keep; /* 1 - momentum */
  float take; /* momentum */
  wn_dtype x_dtype;
  wn_dtype param_dtype;
  wn_activation activation;
  wn_running running;
} wn_channel_norm_fwd;

/* The same, backward. With z = x_hat * weight + bias + residual, x_hat = (x - mean) * rstd, d = act'(z) * dy and
 * g = d * weight, and means over the elements of a statistic:
 *
 *   dweight = sum(d * x_hat)      dbias = sum(d)      dresidual = d
 *   dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat))          training
 *   dx = rstd * g                                                inference (running_only = 1)
 *
 * In inference `rstd` holds running_var, from which the kernels take 1 / sqrt(var + eps). */
typedef struct wn_channel_norm_bwd {
  const void* x;        /* [segments, outer, channels, inner] x_dtype */
  const void* dy;       /* like x */
  const void* residual; /* like x, read where there is an activation; null means none */
  const void* weight;   /* [channels] param_dtype; null means ones */
  const void* bias;     /* [channels] param_dtype, read where there is an activation; null means zeros */
  const float* mean;    /* [statistics] */
  const float* rstd;    /* [statistics]; the variance where running_only = 1 */
  void* dx;             /* like x; null means not wanted */
  void* dresidual;      /* like x; null means not wanted */
  void* dweight;        /* [channels] grad_dtype; null means not wanted */
  void* dbias;          /* [channels] grad_dtype; null means not wanted */
  uint32_t* counters;   /* as in wn_channel_norm_fwd */
  float* workspace;     /* as in wn_channel_norm_fwd */
  int64_t group;
  float eps;
  wn_dtype x_dtype;
  wn_dtype param_dtype;
  wn_dtype grad_dtype;
  wn_activation activation;
  int32_t accumulate; /* add to dweight and dbias */
  int32_t running_only;
} wn_channel_norm_bwd;

/* How to run a row norm. */
typedef struct wn_row_plan {
  wn_row_strategy strategy;
  int32_t vec;     /* elements per memory access: 16 bytes' worth, or 1 */
  int32_t threads; /* of a block; 256 where rows are streamed */
  int32_t lanes;   /* held: threads of a block that share a row, a power of two up to `threads` */
  int32_t cluster; /* held: blocks that share a row, a power of two up to 16; above 1 lanes == threads */
  int32_t stages;  /* held: 2 where the next row is on its way while one is computed, else 1 */
  int32_t packs;   /* held: accesses of a thread per row and tensor; their columns cover those of a block */
  int32_t deep;    /* held, backward: 1 where there is shared memory for sums of sums, else 0 */
  int32_t folds;   /* held, backward: 1 where the blocks, which are resident together, add their partial sums up; else 0 */
  int32_t smem;    /* held: bytes of dynamic shared memory */
  int32_t parts;   /* blocks or clusters; backward: partial sums of dweight and dbias that are made, each by its own */
  int64_t span;    /* backward: rows of one part; rows <= parts * span */
} wn_row_plan;

/* Where the rows of a tensor lie: row r starts at element (r / block) * stride + (r % block) * cols. Within a call
 * `block` is the same for all tensors; where all are dense it is 1. */

/* LayerNorm and RMSNorm (rms = 1, where mean is 0 and var the mean square), forward, over each row of cols elements:
 *
 *   h = x + residual, rounded to x_dtype; x itself where there is no residual
 *   y = (h - mean) * rstd * (weight_offset + weight) + bias,   rstd = 1 / sqrt(var + eps) */
typedef struct wn_row_norm_fwd {
  int64_t rows;
  int64_t cols;  /* below 2^31 */
  int64_t block; /* rows that lie densely one after another */
  int64_t x_stride;
  int64_t y_stride;
  int64_t residual_stride;
  int64_t h_stride;
  const void* x;        /* [rows, cols] x_dtype */
  void* y;              /* [rows, cols] x_dtype; may be x itself */
  const void* residual; /* [rows, cols] x_dtype; null means none, and then h is null too */
  void* h;              /* [rows, cols] x_dtype */
  const void* weight;   /* [cols] param_dtype; null means a factor of one, whatever the offset */
  const void* bias;     /* [cols] param_dtype; null means zeros */
  float* mean;          /* [rows]; null means not saved */
  float* rstd;          /* [rows]; null means not saved */
  float eps;
  float weight_offset;
  wn_dtype x_dtype;
  wn_dtype param_dtype;
  int32_t rms;
} wn_row_norm_fwd;

/* The same, backward. x is what was normalized: h where there was a residual. With x_hat = (x - mean) * rstd and
 * g = dy * (weight_offset + weight), and means over a row:
 *
 *   dweight = sum(dy * x_hat)      dbias = sum(dy)                            sums over the rows
 *   dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat)) + dh                  without mean(g) where rms = 1 */
typedef struct wn_row_norm_bwd {
  int64_t rows;
  int64_t cols;  /* below 2^31 */
  int64_t block; /* as in wn_row_norm_fwd */
  int64_t x_stride;
  int64_t dy_stride;
  int64_t dh_stride;
  int64_t dx_stride;
  const void* x;      /* [rows, cols] x_dtype */
  const void* dy;     /* [rows, cols] x_dtype */
  const void* dh;     /* [rows, cols] x_dtype; null means none */
  const void* weight; /* as in wn_row_norm_fwd */
  const float* mean;  /* [rows]; null where rms = 1 */
  const float* rstd;  /* [rows] */
  void* dx;           /* [rows, cols] x_dtype; null means not wanted */
  void* dweight;      /* [cols] grad_dtype; null means not wanted */
  void* dbias;        /* [cols] grad_dtype; null means not wanted */
  uint32_t* counters; /* [2], zero before and after each call, used where `folds` */
  float* workspace;   /* [2, parts, cols], any contents; not used where neither dweight nor dbias is wanted */
  float weight_offset;
  wn_dtype x_dtype;
  wn_dtype param_dtype;
  wn_dtype grad_dtype;
  int32_t accumulate; /* add to dweight and dbias */
  int32_t rms;
} wn_row_norm_bwd;

/* Every launcher of one build of the kernels. A program may hold two builds, CUDA's and the emulator's. */
typedef struct wn_launchers {
  int32_t (*channel_norm_fwd)(const wn_channel_norm_fwd*, const wn_channel_plan*, wn_action, wn_stream);
  int32_t (*channel_norm_bwd)(const wn_channel_norm_bwd*, const wn_channel_plan*, wn_action, wn_stream);
  int32_t (*row_norm_fwd)(const wn_row_norm_fwd*, const wn_row_plan*, wn_action, wn_stream);
  int32_t (*row_norm_bwd)(const wn_row_norm_bwd*, const wn_row_plan*, wn_action, wn_stream);
} wn_launchers;

const wn_launchers* wn_cuda_launchers(void);
const wn_launchers* wn_emulated_launchers(void);

#ifdef __cplusplus
}
#endif
#endif
