// BatchNorm, GroupNorm and InstanceNorm backward: sums of d and d * x_hat over each slab, and dx from them, where
// d = act'(z) * dy is the gradient of z = x_hat * weight + bias + residual.
#pragma once

#include "prim/activation.cuh"
#include "prim/channel_tile.cuh"
#include "prim/stats.cuh"
#include "prim/vec.cuh"

namespace WN_NAMESPACE {

/// What a thread knows of its slabs: dx = rstd * (weight * d - mean_g - x_hat * mean_gx), or, where the statistics are
/// constants, dx = rstd * weight * d. (Not the same with zeros as the means: x_hat may be infinite.)
template <int kLanes> struct SlabGrad {
  bool constant;
  float mean[kLanes], rstd[kLanes], weight[kLanes], bias[kLanes];
  float mean_g[kLanes], mean_gx[kLanes];

  /// Reads statistics and weights, and biases where `kFused` asks for them; the means of g and g * x_hat are zero until
  /// they are known.
  template <class T, bool kFused, class Tile>
  __device__ __forceinline__ static SlabGrad read(const Tile& tile, const wn_channel_norm_bwd& args) {
    const Params<T> weights = weight_params<T>(args.weight, args.param_dtype);
    const Params<T> biases = bias_params<T>(args.bias, args.param_dtype);
    SlabGrad s;
    s.constant = args.running_only;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      s.mean[lane] = s.rstd[lane] = s.weight[lane] = s.bias[lane] = s.mean_g[lane] = s.mean_gx[lane] = 0.f;
      if (!tile.live()) continue;
      const int64_t i = statistic_of(tile.slab() + lane, args.group);
      s.mean[lane] = args.mean[i];
      s.rstd[lane] = args.running_only ? reciprocal_std(args.rstd[i], args.eps) : args.rstd[i];
      s.weight[lane] = weights.at(tile.channel() + lane);
      if constexpr (kFused) s.bias[lane] = biases.at(tile.channel() + lane);
    }
    return s;
  }

  __device__ __forceinline__ float x_hat(float x, int lane) const { return (x - mean[lane]) * rstd[lane]; }
  __device__ __forceinline__ float dx(float d, float x_hat, int lane) const {
    const float g = weight[lane] * d;
    return rstd[lane] * (constant ? g : g - mean_g[lane] - x_hat * mean_gx[lane]);
  }
};

/// Turns x of a chunk into x_hat, and dy into d: takes it back through the activation. `residuals` are added first where
/// there are any. `kFused` compiles in the activation.
template <bool kFused, class Tile>
__device__ __forceinline__ void to_grad(const wn_channel_norm_bwd& args, const SlabGrad<Tile::kLanes>& slab,
                                        float (&ds)[Tile::kLoads][Tile::kVec], float (&x_hats)[Tile::kLoads][Tile::kVec],
                                        const float (&residuals)[Tile::kLoads][Tile::kVec]) {
#pragma unroll
  for (int k = 0; k < Tile::kLoads; ++k) {
#pragma unroll
    for (int i = 0; i < Tile::kVec; ++i) {
      const int lane = Tile::kLanes == 1 ? 0 : i;
      x_hats[k][i] = slab.x_hat(x_hats[k][i], lane);
      if constexpr (kFused) {
        // Added in the order of the forward pass.
        const float z = x_hats[k][i] * slab.weight[lane] + slab.bias[lane] + residuals[k][i];
        ds[k][i] = activation_grad(args.activation, ds[k][i], z);
      }
    }
  }
}

/// Whether the activation's slope depends on a residual.
__device__ __forceinline__ bool reads_residual(const wn_channel_norm_bwd& args) {
  return args.residual && args.activation != WN_ACT_NONE;
}

/// Reads a chunk of x and dy, normalizes x, takes dy back through the activation, and calls
/// `body(at, loads, ds, x_hats)`.
template <class T, bool kFused, class Tile, class Body>
__device__ __forceinline__ void walk_grad(const Tile& tile, const wn_channel_norm_bwd& args,
                                          const SlabGrad<Tile::kLanes>& slab, Body body) {
  tile.walk([&](const int64_t(&at)[Tile::kLoads], int loads) {
    float x_hats[Tile::kLoads][Tile::kVec], ds[Tile::kLoads][Tile::kVec], residuals[Tile::kLoads][Tile::kVec];
    load_chunk(x_hats, static_cast<const T*>(args.x), at, loads);
    load_chunk(ds, static_cast<const T*>(args.dy), at, loads);
    if constexpr (kFused) {
      load_chunk(residuals, static_cast<const T*>(args.residual), at, reads_residual(args) ? loads : 0);
    }
    to_grad<kFused, Tile>(args, slab, ds, x_hats, residuals);
    body(at, loads, ds, x_hats);
  });
}

/// Writes a chunk of d, and turns it into dx and writes that, as far as they are wanted.
template <class T, class Tile>
__device__ __forceinline__ void store_dx(const wn_channel_norm_bwd& args, const SlabGrad<Tile::kLanes>& slab,
                                         const int64_t (&at)[Tile::kLoads], int loads,
                                         float (&ds)[Tile::kLoads][Tile::kVec],
                                         const float (&x_hats)[Tile::kLoads][Tile::kVec],
                                         Cache cache = Cache::kKeep) {
  if (args.dresidual) store_chunk(static_cast<T*>(args.dresidual), ds, at, loads, cache);
  if (!args.dx) return;
#pragma unroll
  for (int k = 0; k < Tile::kLoads; ++k)
#pragma unroll
    for (int i = 0; i < Tile::kVec; ++i) ds[k][i] = slab.dx(ds[k][i], x_hats[k][i], Tile::kLanes == 1 ? 0 : i);
  store_chunk(static_cast<T*>(args.dx), ds, at, loads, cache);
}

template <class T, bool kFused, class Tile>
__device__ __forceinline__ void apply_grad(const Tile& tile, const wn_channel_norm_bwd& args,
                                           const SlabGrad<Tile::kLanes>& slab) {
  walk_grad<T, kFused>(tile, args, slab, [&](const auto& at, int loads, auto& ds, const auto& x_hats) {
    store_dx<T, Tile>(args, slab, at, loads, ds, x_hats);
  });
}

/// Totals of `GradSums`.
template <int kLanes> struct SlabSums {
  float d[kLanes], d_x_hat[kLanes];

  __device__ __forceinline__ void take(const GradSums<kLanes>& stat) {
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      d[lane] = stat.dy[lane].total();
      d_x_hat[lane] = stat.dy_x_hat[lane].total();
    }
  }
};

/// A split's partial result among those of all slabs: sums of d and of d * x_hat, [splits, slabs] each.
struct PartialSums {
  float* d;
  float* d_x_hat;
  int64_t slabs;

  __device__ __forceinline__ PartialSums(float* partials, const wn_channel_walk& walk)
      : d(partials), d_x_hat(partials + walk.splits * walk.segments * walk.channels), slabs(walk.segments * walk.channels) {}

  template <int kLanes> __device__ __forceinline__ void put(int64_t slab, int64_t split, const SlabSums<kLanes>& own) const {
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      d[split * slabs + slab + lane] = own.d[lane];
      d_x_hat[split * slabs + slab + lane] = own.d_x_hat[lane];
    }
  }

  /// With the factor that belongs to the slabs.
  template <int kLanes> __device__ __forceinline__ GradSums<kLanes> get(int64_t slab, int64_t split, float factor = 1.f) const {
    GradSums<kLanes> stat;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      stat.dy[lane] = {factor * d[split * slabs + slab + lane], 0.f};
      stat.dy_x_hat[lane] = {factor * d_x_hat[split * slabs + slab + lane], 0.f};
    }
    return stat;
  }
};

/// Where the sums of slabs go: into dbias and dweight where there is one segment, and to `sums`, [2, slabs], where a
/// later launch reads them.
template <class T, class Tile>
__device__ __forceinline__ void store_sums(const Tile& tile, const wn_channel_norm_bwd& args, const wn_channel_walk& walk,
                                           const SlabSums<Tile::kLanes>& of_slab, float* sums) {
  if (tile.rank() != 0 || !tile.live()) return;
  const bool is_f32 = args.grad_dtype == WN_F32;
  const ParamsOut<T> dweight{walk.segments == 1 ? args.dweight : nullptr, is_f32, args.accumulate != 0};
  const ParamsOut<T> dbias{walk.segments == 1 ? args.dbias : nullptr, is_f32, args.accumulate != 0};
#pragma unroll
  for (int lane = 0; lane < Tile::kLanes; ++lane) {
    const int64_t i = tile.slab() + lane;
    dweight.put(i, of_slab.d_x_hat[lane]);
    dbias.put(i, of_slab.d[lane]);
    if (sums) {
      sums[i] = of_slab.d[lane];
      sums[walk.segments * walk.channels + i] = of_slab.d_x_hat[lane];
    }
  }
}

/// Gathers the sums of each slab. With several splits each block hands in a partial result, and the last one of a tile
/// merges them. In inference dx needs none of them and is written on the way.
template <class T, class Tile, bool kFused>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    channel_norm_bwd_reduce(const wn_channel_norm_bwd args, const wn_channel_walk walk, float* partials,
                            unsigned* counters, float* sums) {
  using Stat = GradSums<Tile::kLanes>;
  const Tile tile = Tile::of_block(walk);
  const SlabGrad<Tile::kLanes> slab = SlabGrad<Tile::kLanes>::template read<T, kFused>(tile, args);
  const bool dx_on_the_way = args.running_only && (args.dx || args.dresidual);
  Stat stat = Stat::empty();
  walk_grad<T, kFused>(tile, args, slab, [&](const auto& at, int loads, auto& ds, const auto& x_hats) {
    stat.push(ds, x_hats, loads);
    if (dx_on_the_way) store_dx<T, Tile>(args, slab, at, loads, ds, x_hats);
  });
  stat = tile.merge(stat);

  SlabSums<Tile::kLanes> own;
  if constexpr (Tile::kCanSplit) {
    if (walk.splits > 1) {
      const PartialSums parts(partials, walk);
      own.take(stat);
      if (tile.rank() == 0 && tile.live()) parts.put(tile.slab(), tile.split(), own);
      if (!is_last_block(&counters[tile.tile()], walk.splits)) return;
      stat = merge_splits<Stat>(tile, walk.splits,
                                [&](int split) { return parts.get<Tile::kLanes>(tile.slab(), split); });
    }
  }
  own.take(stat);
  store_sums<T>(tile, args, walk, own, sums);
}

/// Sums of g and g * x_hat over the slabs of each statistic, from the sums of each slab. A block per statistic.
template <class T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    channel_norm_bwd_combine(const wn_channel_norm_bwd args, int64_t channels, int64_t slabs, const float* sums,
                             float* totals) {
  const Params<T> weights = weight_params<T>(args.weight, args.param_dtype);
  const int64_t begin = blockIdx.x * args.group;
  GradSums<1> all = GradSums<1>::empty();
  for (int64_t i = threadIdx.x; i < args.group; i += kThreads) {
    const float weight = weights.at((begin + i) % channels);
    all.dy[0].add(weight * sums[begin + i]);
    all.dy_x_hat[0].add(weight * sums[slabs + begin + i]);
  }
  all = block_merge<1>(all, 1);
  if (threadIdx.x == 0) {
    totals[blockIdx.x] = all.dy[0].total();
    totals[gridDim.x + blockIdx.x] = all.dy_x_hat[0].total();
  }
}

/// dx from sums that an earlier launch left: per slab in `sums`, or weighted and summed over the slabs of each of
/// `statistics` statistics in `totals`. In inference there are neither. `count` is the elements of a statistic.
template <class T, class Tile, bool kFused>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    channel_norm_bwd_apply(const wn_channel_norm_bwd args, const wn_channel_walk walk, const float* sums,
                           const float* totals, int64_t statistics, float count) {
  const Tile tile = Tile::of_block(walk);
  if (!tile.live()) return;
  SlabGrad<Tile::kLanes> slab = SlabGrad<Tile::kLanes>::template read<T, kFused>(tile, args);
  if (!args.running_only) {
    const int64_t slabs = walk.segments * walk.channels;
#pragma unroll
    for (int lane = 0; lane < Tile::kLanes; ++lane) {
      const int64_t i = tile.slab() + lane;
      if (args.group > 1) {
        const int64_t statistic = statistic_of(i, args.group);
        slab.mean_g[lane] = totals[statistic] / count;
        slab.mean_gx[lane] = totals[statistics + statistic] / count;
      } else {
        slab.mean_g[lane] = slab.weight[lane] * (sums[i] / count);
        slab.mean_gx[lane] = slab.weight[lane] * (sums[slabs + i] / count);
      }
    }
  }
  apply_grad<T, kFused>(tile, args, slab);
}

}  // namespace WN_NAMESPACE
