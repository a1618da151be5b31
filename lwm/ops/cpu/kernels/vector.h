// Vectors of floats, as wide as the processor has them, and what a weight is as floats.
//
// Arithmetic is that of the compiler's vectors, alike on all processors. Only x86 widens by its
// own instructions: compilers would convert small numbers one by one.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace lwm {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

template <class Vector>
inline Vector read(const void* from) {
  Vector out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

inline void write(float* to, Floats x) { std::memcpy(to, &x, sizeof x); }

// Types of 16 bits that compilers lack or treat differently.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float wide(float x) { return x; }
inline float wide(int8_t x) { return x; }
inline float wide(BFloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  return read<float>(&bits);
}
inline float wide(Float16 x) {
  // A subnormal number is read as one with a leading 1, less this 1: XLA's threads take subnormal
  // floats for 0.
  const bool is_subnormal = (x.bits & 0x7c00) == 0;
  const uint32_t moved = ((uint32_t{x.bits} & 0x7fff) << 13) + ((112u + is_subnormal) << 23);
  const float size = read<float>(&moved) - (is_subnormal ? 0x1p-14f : 0.0f);
  const uint32_t bits = read<uint32_t>(&size) | (uint32_t{x.bits} & 0x8000) << 16;
  return read<float>(&bits);
}

// Stores a number, rounded to the nearest one that can be stored, of two to the even one.
inline void narrow(float x, float* to) { *to = x; }
inline void narrow(float x, BFloat16* to) {
  const uint32_t bits = read<uint32_t>(&x);
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  const uint32_t rounded = is_nan ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
  to->bits = static_cast<uint16_t>(rounded >> 16);
}

inline Floats wide_lanes(const float* from) { return read<Floats>(from); }

#if defined(__AVX512F__)

inline Ints wide_bytes(const int8_t* from) {
  return (Ints)_mm512_cvtepi8_epi32(read<__m128i>(from));
}
inline Ints wide_halves(const void* from) {
  return (Ints)_mm512_cvtepu16_epi32(read<__m256i>(from));
}
inline Floats to_floats(Ints x) { return (Floats)_mm512_cvtepi32_ps((__m512i)x); }
inline Ints to_ints(Floats x) { return (Ints)_mm512_cvttps_epi32((__m512)x); }

// Looks up each number's lower four bits, and ignores the others.
inline Floats look_up(Floats table, Ints places) {
  return (Floats)_mm512_permutexvar_ps((__m512i)places, (__m512)table);
}

#elif defined(__AVX2__)

inline Ints wide_bytes(const int8_t* from) {
  return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}
inline Ints wide_halves(const void* from) {
  return (Ints)_mm256_cvtepu16_epi32(read<__m128i>(from));
}
inline Floats to_floats(Ints x) { return (Floats)_mm256_cvtepi32_ps((__m256i)x); }
inline Ints to_ints(Floats x) { return (Ints)_mm256_cvttps_epi32((__m256)x); }

#else

typedef int8_t Bytes __attribute__((vector_size(kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

inline Ints wide_bytes(const int8_t* from) {
  return __builtin_convertvector(read<Bytes>(from), Ints);
}
inline Ints wide_halves(const void* from) {
  return __builtin_convertvector(read<Halves>(from), Ints);
}
inline Floats to_floats(Ints x) { return __builtin_convertvector(x, Floats); }
inline Ints to_ints(Floats x) { return __builtin_convertvector(x, Ints); }

#endif

inline Floats wide_lanes(const int8_t* from) { return to_floats(wide_bytes(from)); }
inline Floats wide_lanes(const BFloat16* from) { return (Floats)(wide_halves(from) << 16); }
inline Floats wide_lanes(const Float16* from) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps(read<__m256i>(from));
#elif defined(__AVX2__) && defined(__F16C__)
  return (Floats)_mm256_cvtph_ps(read<__m128i>(from));
#else
  const Ints bits = wide_halves(from);
  const Ints is_subnormal = (bits & 0x7c00) == 0;  // all bits, or none
  const Ints moved = ((bits & 0x7fff) << 13) + (112 << 23) + (is_subnormal & 1 << 23);
  const Floats size = (Floats)moved - (Floats)(is_subnormal & 113 << 23);  // less 2^-14
  return (Floats)((Ints)size | (bits & 0x8000) << 16);
#endif
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// Returns e^x for x <= 0, within 2 units in the last place; 0 below e^-87, where floats lose digits.
//
// x = n ln 2 + r, with ln 2 as the sum of two floats so that n ln 2 is exact; e^r is a polynomial
// of Cephes (Moshier 1992, `expf`).
inline Floats exponential(Floats x) {
  const Floats least = Floats{} - 87;
  const Floats at = larger(x, least);
  constexpr float kRound = 1.5f * (1 << 23);  // adding it leaves no fraction
  const Floats n = (at * 1.44269504f + kRound) - kRound;
  const Floats r = at - n * 0.693359375f + n * 2.12194440e-4f;
  Floats sum = r * 1.9875691500e-4f + 1.3981999507e-3f;
  sum = sum * r + 8.3334519073e-3f;
  sum = sum * r + 4.1665795894e-2f;
  sum = sum * r + 1.6666665459e-1f;
  sum = sum * r + 5.0000001201e-1f;
  sum = sum * r * r + r + 1;
  const Ints power = (to_ints(n) + 127) << 23;
  return (Floats)((x > least) & (Ints)(sum * (Floats)power));
}

}  // namespace lwm
