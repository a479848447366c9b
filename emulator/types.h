// CUDA's vector types, half and bfloat16, for compilers that have no CUDA headers.
#pragma once

#include <cstdint>

namespace wn_emulated {

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
inline int __float_as_int(float value) { return static_cast<int>(__float_as_uint(value)); }
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<unsigned>(bits)); }

namespace dev {

/// IEEE binary16.
struct alignas(2) half {
  uint16_t bits;
};

/// The upper half of a binary32.
struct alignas(2) bfloat16 {
  uint16_t bits;
};

inline float to_f32(float value) { return value; }

inline float to_f32(half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t exponent = value.bits >> 10 & 31;
  const uint32_t fraction = value.bits & 0x3ff;
  if (exponent == 31) return __uint_as_float(fraction ? 0x7fffffff : sign | 0x7f800000);
  if (exponent != 0) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

inline float to_f32(bfloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

/// Rounds to nearest, ties to even. A NaN becomes the NaN that the GPU makes, 0x7fff.
template <class T> T from_f32(float value);

template <> inline float from_f32<float>(float value) { return value; }

template <> inline half from_f32<half>(float value) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  const auto made = [sign](uint32_t rest) { return half{static_cast<uint16_t>(sign | rest)}; };
  if (magnitude > 0x7f800000) return half{0x7fff};
  if (magnitude >= 0x477ff000) return made(0x7c00);  // from 65520 on the nearest is infinity
  if (magnitude >= 0x38800000) {                     // 2^-14, the least normal half
    const uint32_t rebased = magnitude - 0x38000000;
    return made((rebased + 0xfff + (rebased >> 13 & 1)) >> 13);
  }
  if (magnitude < 0x33000000) return made(0);  // below half of the least subnormal
  const uint32_t shift = 126 - (magnitude >> 23);
  const uint32_t significand = (magnitude & 0x7fffff) | 0x800000;
  const uint32_t quotient = significand >> shift;
  const uint32_t rest = significand & ((1u << shift) - 1);
  const uint32_t tie = 1u << (shift - 1);
  return made(quotient + (rest > tie || (rest == tie && (quotient & 1))));
}

template <> inline bfloat16 from_f32<bfloat16>(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return bfloat16{0x7fff};
  return bfloat16{static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

}  // namespace dev
}  // namespace wn_emulated
