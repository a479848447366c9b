// Run-time value -> template argument. Host code only. A value from outside an enum is an error, not a fall-through.
#pragma once

#include "prim/channel_tile.cuh"
#include "prim/vec.cuh"

namespace WN_NAMESPACE {

template <class T> struct TypeTag {
  using type = T;
};

/// A kernel as a value, for lambdas that take one of several.
template <auto kKernel> struct KernelTag {
  static constexpr auto value = kKernel;
};

/// Calls `body` with the type behind `dtype`.
template <class Body> dev::Status visit_dtype(wn_dtype dtype, Body body) {
  switch (dtype) {
    case WN_F32: return body(TypeTag<float>{});
    case WN_F16: return body(TypeTag<dev::half>{});
    case WN_BF16: return body(TypeTag<dev::bfloat16>{});
  }
  return dev::kInvalidValue;
}

/// Calls `body` with the tile of a walk over elements of `T`.
template <class T, class Body> dev::Status visit_tile(const wn_channel_walk& walk, Body body) {
  constexpr int kWide = kVecBytes / sizeof(T);
  const bool wide = walk.vec == kWide;
  if (!wide && walk.vec != 1) return dev::kInvalidValue;
  switch (walk.tile) {
    case WN_BLOCK_PER_CHANNEL: return wide ? body(TypeTag<BlockTile<kWide>>{}) : body(TypeTag<BlockTile<1>>{});
    case WN_WARP_PER_CHANNEL: return wide ? body(TypeTag<WarpTile<kWide>>{}) : body(TypeTag<WarpTile<1>>{});
    case WN_CHANNEL_COLUMNS: return wide ? body(TypeTag<ColumnTile<kWide, kColumnChunk>>{}) : body(TypeTag<ColumnTile<1, kColumnChunk>>{});
  }
  return dev::kInvalidValue;
}

/// Calls `body` with the tile of a team's walk, whose chunks are of `kLoads` wide loads, or as many elements. A thread of
/// a column tile takes up to `kMostLanes` channels, with statistics of their own in registers.
template <class T, int kLoads, int kMostLanes, class Body>
dev::Status visit_team_tile(const wn_channel_walk& walk, Body body) {
  constexpr int kWide = kVecBytes / sizeof(T);
  constexpr int kLanes = kWide < kMostLanes ? kWide : kMostLanes;
  const bool wide = walk.vec == (walk.tile == WN_CHANNEL_COLUMNS ? kLanes : kWide);
  if (!wide && walk.vec != 1) return dev::kInvalidValue;
  switch (walk.tile) {
    case WN_BLOCK_PER_CHANNEL:
      return wide ? body(TypeTag<BlockTile<kWide, kLoads>>{}) : body(TypeTag<BlockTile<1, 2 * kLoads>>{});
    case WN_WARP_PER_CHANNEL:
      return wide ? body(TypeTag<WarpTile<kWide, kLoads>>{}) : body(TypeTag<WarpTile<1, 2 * kLoads>>{});
    case WN_CHANNEL_COLUMNS:
      return wide ? body(TypeTag<ColumnTile<kLanes, kLanes == 8 ? kLoads / 2 : kLoads>>{})
                  : body(TypeTag<ColumnTile<1, 2 * kLoads>>{});
  }
  return dev::kInvalidValue;
}

}  // namespace WN_NAMESPACE
