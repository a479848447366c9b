// Launches the last step of dweight and dbias for the families that make partial sums.
#include "fold_params.cuh"

#include "launchers.cuh"
#include "prim/visit.cuh"

namespace WN_NAMESPACE {
namespace {

/// Columns of a block: 32 bytes' worth at least, and few where there are few, so that more blocks share the rows.
int width(int64_t cols) {
  constexpr int kSector = 8, kBlocks = 128;
  int columns = 1;
  while (columns < kWarp && columns < cols && (columns < kSector || columns * kBlocks < cols)) columns *= 2;
  return columns;
}

}  // namespace

dev::Status fold_params(const ParamSums& sums, dev::LaunchConfig config) {
  const int columns = width(sums.cols);
  const int64_t blocks = (sums.cols + columns - 1) / columns;
  if (blocks < 1 || blocks > INT32_MAX) return dev::kInvalidValue;
  config.grid = dim3(static_cast<unsigned>(blocks));
  config.block = dim3(kThreads);
  return visit_dtype(sums.x_dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    return dev::launch<fold_params_kernel<T>>(config, sums, columns);
  });
}

}  // namespace WN_NAMESPACE
