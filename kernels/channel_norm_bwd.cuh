// BatchNorm backward: sums of dy and dy * x_hat over each channel, and dx from them.
#pragma once

#include "prim/channel_tile.cuh"
#include "prim/stats.cuh"
#include "prim/vec.cuh"

namespace WN_NAMESPACE {

/// What a thread knows of its channels: dx = rstd * (weight * dy - mean_g - x_hat * mean_gx), or, where the statistics
/// are constants, dx = rstd * weight * dy. (Not the same with zeros as the means: x_hat may be infinite.)
template <int kLanes> struct ChannelGrad {
  bool constant;
  float mean[kLanes], rstd[kLanes], weight[kLanes];
  float mean_g[kLanes], mean_gx[kLanes];

  /// Reads statistics and weights; the means of g and g * x_hat are zero until they are known.
  template <class T, class Tile>
  __device__ __forceinline__ static ChannelGrad read(const Tile& tile, const wn_batch_norm_bwd& args) {
    const Params<T> weights = weight_params<T>(args.weight, args.param_dtype);
    ChannelGrad c;
    c.constant = args.running_only;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      c.mean[lane] = c.rstd[lane] = c.weight[lane] = c.mean_g[lane] = c.mean_gx[lane] = 0.f;
      if (!tile.live()) continue;
      const int64_t channel = tile.channel() + lane;
      const int64_t i = args.whole_batch ? 0 : channel;
      c.mean[lane] = args.mean[i];
      c.rstd[lane] = args.running_only ? reciprocal_std(args.rstd[i], args.eps) : args.rstd[i];
      c.weight[lane] = weights.at(channel);
    }
    return c;
  }

  __device__ __forceinline__ float x_hat(float x, int lane) const { return (x - mean[lane]) * rstd[lane]; }
  __device__ __forceinline__ float dx(float dy, float x_hat, int lane) const {
    const float g = weight[lane] * dy;
    return rstd[lane] * (constant ? g : g - mean_g[lane] - x_hat * mean_gx[lane]);
  }
};

/// Reads a chunk of x and dy, normalizes x, and calls `body(at, loads, dys, x_hats)`.
template <class T, class Tile, class Body>
__device__ __forceinline__ void walk_grad(const Tile& tile, const wn_batch_norm_bwd& args,
                                          const ChannelGrad<Tile::kLanes>& channel, Body body) {
  tile.walk([&](const int64_t(&at)[Tile::kLoads], int loads) {
    float x_hats[Tile::kLoads][Tile::kVec], dys[Tile::kLoads][Tile::kVec];
    load_chunk(x_hats, static_cast<const T*>(args.x), at, loads);
    load_chunk(dys, static_cast<const T*>(args.dy), at, loads);
#pragma unroll
    for (int k = 0; k < Tile::kLoads; ++k)
#pragma unroll
      for (int i = 0; i < Tile::kVec; ++i) x_hats[k][i] = channel.x_hat(x_hats[k][i], Tile::kLanes == 1 ? 0 : i);
    body(at, loads, dys, x_hats);
  });
}

/// Turns a chunk of dy into dx and writes it.
template <class T, class Tile>
__device__ __forceinline__ void store_dx(const wn_batch_norm_bwd& args, const ChannelGrad<Tile::kLanes>& channel,
                                         const int64_t (&at)[Tile::kLoads], int loads,
                                         float (&dys)[Tile::kLoads][Tile::kVec],
                                         const float (&x_hats)[Tile::kLoads][Tile::kVec]) {
#pragma unroll
  for (int k = 0; k < Tile::kLoads; ++k)
#pragma unroll
    for (int i = 0; i < Tile::kVec; ++i) dys[k][i] = channel.dx(dys[k][i], x_hats[k][i], Tile::kLanes == 1 ? 0 : i);
  store_chunk(static_cast<T*>(args.dx), dys, at, loads);
}

template <class T, class Tile>
__device__ __forceinline__ void apply_grad(const Tile& tile, const wn_batch_norm_bwd& args,
                                           const ChannelGrad<Tile::kLanes>& channel) {
  walk_grad<T>(tile, args, channel, [&](const auto& at, int loads, auto& dys, const auto& x_hats) {
    store_dx<T, Tile>(args, channel, at, loads, dys, x_hats);
  });
}

/// Gathers the sums, which are the gradients of bias and weight. In inference dx needs none of them and is written on
/// the way. In training, with one split per channel, the block goes on to dx, unless another launch is to
/// (`stats_only`); that one finds the sums in `sums`, [2, channels].
template <class T, class Tile>
__global__ void __launch_bounds__(kThreads)
    batch_norm_bwd_reduce(const wn_batch_norm_bwd args, const wn_channel_walk walk, float* partials,
                          unsigned* counters, float* sums, bool stats_only) {
  using Stat = GradSums<Tile::kLanes>;
  const Tile tile(walk);
  ChannelGrad<Tile::kLanes> channel = ChannelGrad<Tile::kLanes>::template read<T>(tile, args);
  const bool dx_on_the_way = args.running_only && args.dx;
  Stat stat = Stat::empty();
  walk_grad<T>(tile, args, channel, [&](const auto& at, int loads, auto& dys, const auto& x_hats) {
    stat.push(dys, x_hats, loads);
    if (dx_on_the_way) store_dx<T, Tile>(args, channel, at, loads, dys, x_hats);
  });
  stat = tile.merge(stat);

  if constexpr (Tile::kCanSplit) {
    if (walk.splits > 1) {
      float* dy_sums = partials;
      float* dy_x_hat_sums = partials + walk.splits * walk.channels;
      if (tile.rank() == 0 && tile.live()) {
        const int64_t at = tile.split() * walk.channels + tile.channel();
#pragma unroll
        for (int lane = 0; lane < Tile::kLanes; ++lane) {
          dy_sums[at + lane] = stat.dy[lane];
          dy_x_hat_sums[at + lane] = stat.dy_x_hat[lane];
        }
      }
      if (!is_last_block(&counters[tile.tile()], walk.splits)) return;
      stat = merge_splits<Stat>(tile, walk.splits, [&](int split) {
        const int64_t at = split * walk.channels + tile.channel();
        Stat partial;
#pragma unroll
        for (int lane = 0; lane < Tile::kLanes; ++lane) {
          partial.dy[lane] = dy_sums[at + lane];
          partial.dy_x_hat[lane] = dy_x_hat_sums[at + lane];
        }
        return partial;
      });
    }
  }

  if (tile.rank() == 0 && tile.live()) {
    const ParamsOut<T> dweight{args.dweight, args.grad_dtype == WN_F32};
    const ParamsOut<T> dbias{args.dbias, args.grad_dtype == WN_F32};
#pragma unroll
    for (int lane = 0; lane < Tile::kLanes; ++lane) {
      const int64_t i = tile.channel() + lane;
      dweight.set(i, stat.dy_x_hat[lane]);
      dbias.set(i, stat.dy[lane]);
      if (sums) {
        sums[i] = stat.dy[lane];
        sums[walk.channels + i] = stat.dy_x_hat[lane];
      }
    }
  }
  if (stats_only) return;
  const float inverse_n = 1.f / static_cast<float>(walk.outer * walk.inner);
#pragma unroll
  for (int lane = 0; lane < Tile::kLanes; ++lane) {
    channel.mean_g[lane] = channel.weight[lane] * (stat.dy[lane] * inverse_n);
    channel.mean_gx[lane] = channel.weight[lane] * (stat.dy_x_hat[lane] * inverse_n);
  }
  apply_grad<T>(tile, args, channel);
}

/// Statistics of the whole batch: sums of g and g * x_hat over all channels, from the sums of each. One block.
template <class T>
__global__ void __launch_bounds__(kThreads)
    batch_norm_bwd_combine(const wn_batch_norm_bwd args, int64_t channels, const float* sums, float* totals) {
  constexpr int kChain = 256;  // two levels of this length serve 16 million channels
  const Params<T> weights = weight_params<T>(args.weight, args.param_dtype);
  using Stat = GradSums<1>;
  Stat all = Stat::empty();
  for (int64_t first = threadIdx.x; first < channels; first += kChain * kThreads) {
    Stat chain = Stat::empty();
    for (int k = 0; k < kChain; ++k) {
      const int64_t c = first + k * kThreads;
      if (c >= channels) break;
      const float weight = weights.at(c);
      chain.dy[0] += weight * sums[c];
      chain.dy_x_hat[0] += weight * sums[channels + c];
    }
    all.merge(chain);
  }
  all = block_merge<1>(all, 1);
  if (threadIdx.x == 0) {
    totals[0] = all.dy[0];
    totals[1] = all.dy_x_hat[0];
  }
}

/// dx from sums that an earlier launch left: per channel in `sums`, or weighted and summed over channels in `totals`.
/// In inference there are neither. `count` is the number of elements of a statistic.
template <class T, class Tile>
__global__ void __launch_bounds__(kThreads)
    batch_norm_bwd_apply(const wn_batch_norm_bwd args, const wn_channel_walk walk, const float* sums,
                         const float* totals, float count) {
  const Tile tile(walk);
  if (!tile.live()) return;
  ChannelGrad<Tile::kLanes> channel = ChannelGrad<Tile::kLanes>::template read<T>(tile, args);
  if (!args.running_only) {
#pragma unroll
    for (int lane = 0; lane < Tile::kLanes; ++lane) {
      if (args.whole_batch) {
        channel.mean_g[lane] = totals[0] / count;
        channel.mean_gx[lane] = totals[1] / count;
      } else {
        const int64_t i = tile.channel() + lane;
        channel.mean_g[lane] = channel.weight[lane] * (sums[i] / count);
        channel.mean_gx[lane] = channel.weight[lane] * (sums[walk.channels + i] / count);
      }
    }
  }
  apply_grad<T>(tile, args, channel);
}

}  // namespace WN_NAMESPACE
