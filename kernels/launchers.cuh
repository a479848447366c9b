// Declarations of the launchers, for the table that hands them out and for each other.
#pragma once

#include "dev.cuh"
#include "warpnorm.h"

namespace WN_NAMESPACE {

int32_t channel_norm_fwd(const wn_channel_norm_fwd*, const wn_channel_plan*, wn_action, wn_stream);
int32_t channel_norm_bwd(const wn_channel_norm_bwd*, const wn_channel_plan*, wn_action, wn_stream);
int32_t row_norm_fwd(const wn_row_norm_fwd*, const wn_row_plan*, wn_action, wn_stream);
int32_t row_norm_bwd(const wn_row_norm_bwd*, const wn_row_plan*, wn_action, wn_stream);

struct ParamSums;
/// The last step of dweight and dbias; stream and action are those of `config`.
dev::Status fold_params(const ParamSums& sums, dev::LaunchConfig config);

}  // namespace WN_NAMESPACE
