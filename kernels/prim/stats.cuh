// Mergeable statistics. Each holds `kLanes` channels that share a count of values, and takes values by the chunk: a
// few loads of a few elements each that a thread has in registers. Merging with an empty partial changes nothing, so
// threads that saw no data need no special case.
#pragma once

#include "dev.cuh"

namespace WN_NAMESPACE {

/// Mean and sum of squared deviations: Welford's algorithm by chunks, with Chan's pairwise merge.
///
/// A chunk sums differences from its first element, and a merge moves the mean by a share of a difference, so equal
/// values give exactly their own value as the mean, and exactly zero deviations.
template <int kLanes> struct Moments {
  float count;
  float mean[kLanes];
  float m2[kLanes];

  __device__ __forceinline__ static Moments empty() {
    Moments m;
    m.count = 0.f;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) m.mean[lane] = m.m2[lane] = 0.f;
    return m;
  }

  /// The first `loads` of `values`. One lane takes all elements of a load; else each lane takes one of them.
  template <int kLoads, int kVec> __device__ __forceinline__ void push(const float (&values)[kLoads][kVec], int loads) {
    static_assert(kLanes == 1 || kLanes == kVec, "a lane takes all elements of a load, or one");
    constexpr int kPerLoad = kLanes == 1 ? kVec : 1;
    const float n = static_cast<float>(loads * kPerLoad);
    const float inverse_n = loads == kLoads ? 1.f / (kLoads * kPerLoad) : 1.f / n;
    const float share = n / (count + n);
    Moments chunk;
    chunk.count = n;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      const float pivot = values[0][lane];
      float sum = 0.f;
#pragma unroll
      for (int load = 0; load < kLoads; ++load)
#pragma unroll
        for (int i = 0; i < kPerLoad; ++i) sum += load < loads ? values[load][lane + i] - pivot : 0.f;
      chunk.mean[lane] = pivot + sum * inverse_n;
      float m2 = 0.f;
#pragma unroll
      for (int load = 0; load < kLoads; ++load)
#pragma unroll
        for (int i = 0; i < kPerLoad; ++i) {
          const float deviation = load < loads ? values[load][lane + i] - chunk.mean[lane] : 0.f;
          m2 += deviation * deviation;
        }
      chunk.m2[lane] = m2;
    }
    merge(chunk, share);
  }

  __device__ __forceinline__ void merge(const Moments& other) {
    if (other.count != 0.f) merge(other, other.count / (count + other.count));
  }

  /// What is subtracted of values.
  __device__ __forceinline__ float center(int lane) const { return mean[lane]; }

  /// Biased variance.
  __device__ __forceinline__ float var(int lane) const { return m2[lane] / count; }

 private:
  /// `share` is the other's part of the count of both.
  __device__ __forceinline__ void merge(const Moments& other, float share) {
    if (count == 0.f) {
      *this = other;
      return;
    }
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      const float delta = other.mean[lane] - mean[lane];
      mean[lane] += delta * share;
      m2[lane] += other.m2[lane] + delta * delta * (count * share);
    }
    count += other.count;
  }
};

/// A sum and what rounding took from it. A chain of equal values errs in the same direction at each step, by a quarter
/// of a unit in the last place on average; Welford's means do not.
struct CompensatedSum {
  float sum;
  float lost;

  __device__ __forceinline__ static CompensatedSum empty() { return {0.f, 0.f}; }

  __device__ __forceinline__ void add(float value) {
    const float next = sum + value;
    const float added = next - sum;
    lost += (sum - (next - added)) + (value - added);
    sum = next;
  }

  __device__ __forceinline__ void merge(const CompensatedSum& other) {
    add(other.sum);
    lost += other.lost;
  }

  __device__ __forceinline__ float total() const {
    const float all = sum + lost;
    return all == all ? all : sum;  // an infinite sum has lost NaN
  }
};

/// Mean of the squares, in the place of `Moments<1>` where the mean is zero by definition.
struct MeanSquare {
  float count;
  CompensatedSum squares;

  __device__ __forceinline__ static MeanSquare empty() { return {0.f, CompensatedSum::empty()}; }

  /// The first `loads` of `values`, summed among themselves first.
  template <int kLoads, int kVec> __device__ __forceinline__ void push(const float (&values)[kLoads][kVec], int loads) {
    count += static_cast<float>(loads * kVec);
    squares.add(sum_of_squares<0, kLoads>(values, loads));
  }

  __device__ __forceinline__ void merge(const MeanSquare& other) {
    count += other.count;
    squares.merge(other.squares);
  }

  __device__ __forceinline__ float center(int) const { return 0.f; }
  __device__ __forceinline__ float var(int) const { return squares.total() / count; }

 private:
  /// By halves, so that no chain is long.
  template <int kFirst, int kCount, int kLoads, int kVec>
  __device__ __forceinline__ static float sum_of_squares(const float (&values)[kLoads][kVec], int loads) {
    if constexpr (kCount > 1) {
      return sum_of_squares<kFirst, kCount / 2>(values, loads) +
             sum_of_squares<kFirst + kCount / 2, kCount - kCount / 2>(values, loads);
    } else {
      float sum = 0.f;
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum += kFirst < loads ? values[kFirst][i] * values[kFirst][i] : 0.f;
      return sum;
    }
  }
};

/// Two sums, those of dy and of dy * x_hat.
template <int kLanes> struct GradSums {
  CompensatedSum dy[kLanes];
  CompensatedSum dy_x_hat[kLanes];

  __device__ __forceinline__ static GradSums empty() {
    GradSums s;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) s.dy[lane] = s.dy_x_hat[lane] = CompensatedSum::empty();
    return s;
  }

  /// The first `loads` of `dy` and of `x_hat`, summed among themselves first.
  template <int kLoads, int kVec>
  __device__ __forceinline__ void push(const float (&dys)[kLoads][kVec], const float (&x_hats)[kLoads][kVec],
                                       int loads) {
    static_assert(kLanes == 1 || kLanes == kVec, "a lane takes all elements of a load, or one");
    constexpr int kPerLoad = kLanes == 1 ? kVec : 1;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      float chunk_dy = 0.f, chunk_dy_x_hat = 0.f;
#pragma unroll
      for (int load = 0; load < kLoads; ++load)
#pragma unroll
        for (int i = 0; i < kPerLoad; ++i) {
          chunk_dy += load < loads ? dys[load][lane + i] : 0.f;
          chunk_dy_x_hat += load < loads ? dys[load][lane + i] * x_hats[load][lane + i] : 0.f;
        }
      dy[lane].add(chunk_dy);
      dy_x_hat[lane].add(chunk_dy_x_hat);
    }
  }

  __device__ __forceinline__ void merge(const GradSums& other) {
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      dy[lane].merge(other.dy[lane]);
      dy_x_hat[lane].merge(other.dy_x_hat[lane]);
    }
  }
};

/// A long chain of chunks, merged as a tree of three levels: no accumulator takes more than `kChain` updates before it
/// is merged into the next, until 2^18 chunks of a thread. Rounding grows with the longest chain.
template <class Stat> struct Cascade {
  static constexpr int kChain = 64;
  Stat chunks, groups, all;
  int pushes;

  __device__ __forceinline__ static Cascade empty() { return {Stat::empty(), Stat::empty(), Stat::empty(), 0}; }

  /// Takes what `Stat::push` takes.
  template <class... Chunk> __device__ __forceinline__ void push(const Chunk&... chunk) {
    chunks.push(chunk...);
    advance();
  }

  __device__ __forceinline__ void merge(const Stat& stat) {
    chunks.merge(stat);
    advance();
  }

  __device__ __forceinline__ Stat total() {
    groups.merge(chunks);
    all.merge(groups);
    return all;
  }

 private:
  __device__ __forceinline__ void advance() {
    if (++pushes % kChain != 0) return;
    groups.merge(chunks);
    chunks = Stat::empty();
    if (pushes % (kChain * kChain) != 0) return;
    all.merge(groups);
    groups = Stat::empty();
  }
};

/// 1 / sqrt(var + eps), to little more than half a unit in the last place of what it is given: gradients multiply by it
/// up to three times.
__device__ __forceinline__ float reciprocal_std(float var, float eps) {
  const float sum = var + eps;
  const float rough = 1.f / sqrtf(sum);
  if (!(sum > 0.f && rough > 0.f)) return rough;  // zero, infinity and NaN are beyond improvement
  // One step of Newton's method, with the rounding of the sum and of the products in it.
  const float added = sum - var;
  const float lost = (var - (sum - added)) + (eps - added);
  const float product = sum * rough;
  const float product_lost = fmaf(sum, rough, -product);
  const float error = fmaf(-product, rough, 1.f) - (product_lost + lost * rough) * rough;
  return fmaf(0.5f * rough, error, rough);
}

}  // namespace WN_NAMESPACE
