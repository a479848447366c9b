// Launcher of the row norms forward: looks the plan up, launches, reports.
#include "row_norm_fwd.cuh"

#include "launchers.cuh"
#include "prim/visit.cuh"

namespace WN_NAMESPACE {
namespace {

template <class T, int kVec, class Stat>
dev::Status launch(const wn_row_norm_fwd& args, const wn_row_plan& plan, dev::LaunchConfig config) {
  switch (plan.strategy) {
    case WN_ROW_HELD: {
      const int64_t tensors = args.residual ? 2 : 1;
      if (!holds(plan, args.cols, plan.stages * tensors * kVec * int64_t(sizeof(T)))) return dev::kInvalidValue;
      if (int64_t(plan.parts) * plan.cluster > INT32_MAX) return dev::kInvalidValue;
      config.grid = dim3(static_cast<unsigned>(plan.parts) * plan.cluster);
      config.block = dim3(static_cast<unsigned>(plan.threads));
      config.dynamic_smem = static_cast<size_t>(plan.smem);
      config.cluster = static_cast<unsigned>(plan.cluster);
      return dev::launch<row_norm_fwd_held<T, kVec, Stat>>(config, args, plan);
    }
    case WN_ROW_STREAMED:
      config.grid = dim3(static_cast<unsigned>(args.rows < INT32_MAX ? args.rows : INT32_MAX));  // it loops over the rest
      return dev::launch<row_norm_fwd_stream<T, kVec, Stat>>(config, args);
  }
  return dev::kInvalidValue;
}

/// LayerNorm or RMSNorm; both where kernels are only loaded.
template <class T, int kVec>
dev::Status launch(const wn_row_norm_fwd& args, const wn_row_plan& plan, const dev::LaunchConfig& config) {
  if (args.rms || config.prepare_only) {
    const dev::Status status = launch<T, kVec, MeanSquare>(args, plan, config);
    if (args.rms || status != dev::kSuccess) return status;
  }
  return launch<T, kVec, Moments<1>>(args, plan, config);
}

}  // namespace

int32_t row_norm_fwd(const wn_row_norm_fwd* args, const wn_row_plan* plan, wn_action action, wn_stream stream) {
  if (args->rows < 1 || args->cols < 1 || args->cols > INT32_MAX || args->block < 1) return dev::kInvalidValue;
  if (!args->residual != !args->h) return dev::kInvalidValue;
  dev::LaunchConfig config;
  config.block = dim3(kThreads);
  config.stream = reinterpret_cast<dev::Stream>(stream);
  config.prepare_only = action == WN_PREPARE;
  return visit_dtype(args->x_dtype, [&](auto dtype) {
    using T = typename decltype(dtype)::type;
    constexpr int kWide = kVecBytes / sizeof(T);
    if (plan->vec == kWide) return launch<T, kWide>(*args, *plan, config);
    if (plan->vec == 1) return launch<T, 1>(*args, *plan, config);
    return dev::kInvalidValue;
  });
}

}  // namespace WN_NAMESPACE
