// Declarations of the launchers, for the table that hands them out.
#pragma once

#include "dev.cuh"
#include "warpnorm.h"

namespace WN_NAMESPACE {

int32_t batch_norm_fwd(const wn_batch_norm_fwd*, const wn_channel_plan*, wn_action, wn_stream);
int32_t batch_norm_bwd(const wn_batch_norm_bwd*, const wn_channel_plan*, wn_action, wn_stream);
int32_t row_norm_fwd(const wn_row_norm_fwd*, const wn_row_plan*, wn_action, wn_stream);

}  // namespace WN_NAMESPACE
