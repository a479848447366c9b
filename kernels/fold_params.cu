// Launches the last step of dweight and dbias for the families that make partial sums.
#include "fold_params.cuh"

#include "launchers.cuh"
#include "prim/visit.cuh"

namespace WN_NAMESPACE {

dev::Status fold_params(const ParamSums& sums, dev::LaunchConfig config) {
  const int64_t blocks = ColumnBlock::blocks(sums.cols);
  if (blocks < 1 || blocks > INT32_MAX) return dev::kInvalidValue;
  config.grid = dim3(static_cast<unsigned>(blocks));
  config.block = dim3(kThreads);
  return visit_dtype(sums.x_dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    return dev::launch<fold_params_kernel<T>>(config, sums, ColumnBlock::width(sums.cols));
  });
}

}  // namespace WN_NAMESPACE
