// The mathematics of `reading.h` for bfloat16 on matrix units of Intel's processors (AMX).
//
// A unit multiplies a tile of 16 rows and 32 terms with one of 32 terms and 16 columns, in which
// pairs of terms lie beside each other, and sums in floats.
#pragma once

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define LWM_TILES 1

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "aligned.h"
#include "attention.h"
#include "vector.h"

namespace lwm {

// Asks the system once for the registers of tiles; returns whether this process may use them.
inline bool may_use_tiles() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return granted;
}

inline void write_weights(BFloat16* to, Floats x) {
  const __m256bh narrowed = _mm512_cvtneps_pbh((__m512)x);
  std::memcpy(to, &narrowed, sizeof narrowed);
}

class TileMath {
 public:
  using Query = BFloat16;
  using Weight = BFloat16;
  static constexpr int64_t kBlock = 32, kUnit = 32, kPanel = 32;
  // A little more than a page: rows at the same place of every page would share few lines of cache.
  static constexpr int64_t kStride = kPage + 32;
  static constexpr bool kInPlace = false;

  explicit TileMath(int64_t padded)
      : padded_(padded), key_room_(padded * kPage / 2), value_room_(padded * kPage / 2) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    std::fill_n(shape.bytes, 8, kRowBytes);
    std::fill_n(shape.rows, 8, kRows);
    _tile_loadconfig(&shape);
  }
  ~TileMath() { _tile_release(); }

  void put_query(const BFloat16* from, int64_t width, int64_t row, BFloat16* tile) const {
    std::copy_n(from, width, tile + row * padded_);
  }

  void set_page(const BFloat16* keys, const BFloat16* values, int64_t width, int64_t count) {
    const int64_t whole = (count + kPanel - 1) / kPanel * kPanel;
    // Both in tiles, those of the same columns one after another.
    for (int64_t h = 0; h < width; h += 2) {
      const BFloat16* other = h + 1 < width ? keys + (h + 1) * kPage : nullptr;
      for (int64_t t = 0; t < whole; t += kRows) {
        const int64_t tile = t / kRows * (padded_ / kTerms) + h / kTerms;
        put_pairs(keys + h * kPage + t, other == nullptr ? nullptr : other + t,
                  key_tiles() + tile * kTile + h % kTerms * kRows);
      }
    }
    for (int64_t t = 0; t < whole; t += 2) {
      for (int64_t h = 0; h < padded_; h += kRows) {
        const int64_t tile = h / kRows * (kPage / kTerms) + t / kTerms;
        const int64_t some = std::clamp<int64_t>(width - h, 0, kRows);
        // What lies beyond was left behind by another row; zero times NaN is NaN.
        BFloat16 both[2][kRows] = {};
        for (int64_t i = 0; i < std::min<int64_t>(2, count - t); ++i) {
          std::copy_n(values + (t + i) * width + h, some, both[i]);
        }
        put_pairs(both[0], both[1], value_tiles() + tile * kTile + t % kTerms * kRows);
      }
    }
  }

  void score(const BFloat16* queries, int64_t, int64_t count, float* scores) {
    const int64_t depth = padded_ / kTerms;
    for (int64_t t = 0; t < count; t += kPanel) {
      const BFloat16* key = key_tiles() + t / kRows * depth * kTile;
      multiply<false>(queries, padded_, key, depth, depth, scores + t, kStride);
    }
  }

  void mix(const BFloat16* weights, int64_t count, float* out) {
    for (int64_t h = 0; h < padded_; h += 2 * kRows) {
      const BFloat16* value = value_tiles() + h / kRows * (kPage / kTerms) * kTile;
      const int64_t depth = (count + kTerms - 1) / kTerms;
      multiply<true>(weights, kStride, value, kPage / kTerms, depth, out + h, padded_);
    }
  }

 private:
  static constexpr int kRows = 16, kTerms = 32, kRowBytes = 64;
  static constexpr int64_t kTile = kRows * kTerms;

  BFloat16* key_tiles() const { return reinterpret_cast<BFloat16*>(keys_); }
  BFloat16* value_tiles() const { return reinterpret_cast<BFloat16*>(values_); }

  // Writes 16 numbers of two terms in pairs; those of an absent one are 0.
  static void put_pairs(const BFloat16* one, const BFloat16* other, BFloat16* to) {
    const Ints low = wide_halves(one), high = other == nullptr ? Ints{} : wide_halves(other) << 16;
    const Ints both = low | high;
    std::memcpy(to, &both, sizeof both);
  }

  // Multiplies 32 rows with 32 columns, whose halves are `apart` tiles from each other.
  template <bool add>
  static void multiply(const BFloat16* rows, int64_t stride, const BFloat16* columns, int64_t apart,
                       int64_t depth, float* out, int64_t out_stride) {
    const int64_t bytes = out_stride * sizeof(float), row_bytes = stride * sizeof(BFloat16);
    float* lower = out + kRows * out_stride;
    if (add) {
      _tile_loadd(0, out, bytes);
      _tile_loadd(1, out + kRows, bytes);
      _tile_loadd(2, lower, bytes);
      _tile_loadd(3, lower + kRows, bytes);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t k = 0; k < depth; ++k) {
      _tile_loadd(4, rows + k * kTerms, row_bytes);
      _tile_loadd(5, rows + kRows * stride + k * kTerms, row_bytes);
      _tile_loadd(6, columns + k * kTile, kRowBytes);
      _tile_loadd(7, columns + (apart + k) * kTile, kRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, bytes);
    _tile_stored(1, out + kRows, bytes);
    _tile_stored(2, lower, bytes);
    _tile_stored(3, lower + kRows, bytes);
  }

  int64_t padded_;  // a head's width
  Aligned key_room_, value_room_;
  float* keys_ = key_room_.data();
  float* values_ = value_room_.data();
};

}  // namespace lwm
#endif
