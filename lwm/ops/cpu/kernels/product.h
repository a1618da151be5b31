// Products of a few rows of activations with a weight that stays as small as it is stored.
//
// Each weight is read once, widened in registers and used for all rows. The sums of a row are
// computed in an order that depends neither on the other rows nor on the threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "aligned.h"
#include "vector.h"

namespace lwm {

// Rows of stored weights that are in registers at a time.
constexpr int kDeep = 8;
// Weights along the sum that share a scale.
constexpr int kGroup = 32;

// Two levels in four bits each: that of a row in the lower half and, in the upper one, that of
// the row 16 further on.
struct Nibbles {
  uint8_t bits;
};

// Weights per column that come with `kDeep` stored rows.
template <class Number>
constexpr int kTerms = kDeep;
template <>
constexpr int kTerms<Nibbles> = 2 * kDeep;

// A weight [depth, width] as it is stored; the arrays after `values` may be absent.
//
// Weights are `level * scale + minimum`; levels without minimum count from the middle of their
// range.
template <class Number>
struct Weight {
  const Number* values;
  const float* columns = nullptr;  // scale of each column, [width]
  // Of each group, [depth / kGroup, width].
  const Float16* scales = nullptr;
  const Float16* minimums = nullptr;
  const uint32_t* high = nullptr;  // fifth bits, the first weight's lowest

  // What is subtracted from levels as they are stored.
  int middle() const { return minimums != nullptr ? 0 : high != nullptr ? 16 : 8; }
};

// Widens the levels of as many columns as a vector has lanes, for a step of `kDeep` stored rows.
template <class Number>
inline void widen(const Weight<Number>&, const Number* const rows[kDeep], const uint32_t*, int64_t,
                  int64_t column, Floats* out) {
  for (int d = 0; d < kDeep; ++d) out[d] = wide_lanes(rows[d] + column);
}
template <>
inline void widen(const Weight<Nibbles>& weight, const Nibbles* const rows[kDeep],
                  const uint32_t* high, int64_t half, int64_t column, Floats* out) {
  if (high != nullptr) {
    const Ints bits = read<Ints>(high + column) >> (half * kDeep);
    const int middle = weight.middle();
    for (int d = 0; d < kDeep; ++d) {
      const Ints both = wide_bytes(reinterpret_cast<const int8_t*>(rows[d] + column));
      out[d] = to_floats(((both & 15) | (bits >> d & 1) << 4) - middle);
      out[kDeep + d] = to_floats(((both >> 4 & 15) | (bits >> (16 + d) & 1) << 4) - middle);
    }
    return;
  }
  const Floats middle = Floats{} + static_cast<float>(weight.middle());
#if defined(__AVX512F__)
  const Floats levels = Floats{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} - middle;
#endif
  for (int d = 0; d < kDeep; ++d) {
    const Ints both = wide_bytes(reinterpret_cast<const int8_t*>(rows[d] + column));
#if defined(__AVX512F__)
    out[d] = look_up(levels, both);
    out[kDeep + d] = look_up(levels, both >> 4);
#else
    out[d] = to_floats(both & 15) - middle;
    out[kDeep + d] = to_floats(both >> 4 & 15) - middle;
#endif
  }
}

// Widens those of one column.
template <class Number>
inline void widen_one(const Weight<Number>&, const Number* const rows[kDeep], const uint32_t*,
                      int64_t, int64_t column, float* out) {
  for (int d = 0; d < kDeep; ++d) out[d] = wide(rows[d][column]);
}
template <>
inline void widen_one(const Weight<Nibbles>& weight, const Nibbles* const rows[kDeep],
                      const uint32_t* high, int64_t half, int64_t column, float* out) {
  const uint32_t bits = high == nullptr ? 0 : high[column] >> (half * kDeep);
  const auto level = [&](int four, int place) {
    const int fifth = bits >> place & 1;
    return static_cast<float>((four | fifth << 4) - weight.middle());
  };
  for (int d = 0; d < kDeep; ++d) {
    out[d] = level(rows[d][column].bits & 15, d);
    out[kDeep + d] = level(rows[d][column].bits >> 4, 16 + d);
  }
}

// Sizes of a product `y[r, o] = sum_c x[r, c] * w[c, o]`.
struct Sizes {
  int64_t rows;
  int64_t depth;  // of the sum
  int64_t width;
};

// Finds the stored rows of a step. Past the last one it is found again: activations are 0 there.
template <class Number>
inline void find_rows(const Weight<Number>& weight, const Sizes& sizes, int64_t step,
                      const Number* rows[kDeep]) {
  const int64_t last = (sizes.depth * kDeep - 1) / kTerms<Number>;
  for (int d = 0; d < kDeep; ++d) {
    rows[d] = weight.values + std::min(step * kDeep + d, last) * sizes.width;
  }
}

// Returns activations in the order in which `multiply_columns` reads them, [steps, rows, terms].
// Rows as they are would lie at the same place of every page, where caches have little room.
template <class Number>
Aligned packed(const float* x, const Sizes& sizes) {
  constexpr int terms = kTerms<Number>;
  const int64_t steps = (sizes.depth + terms - 1) / terms;
  Aligned out(steps * sizes.rows * terms);
  for (int64_t r = 0; r < sizes.rows; ++r) {
    for (int64_t c = 0; c < sizes.depth; ++c) {
      int64_t step = c / terms, term = c % terms;
      if (terms == 2 * kDeep) {
        const int64_t place = c % kGroup;
        step = c / kGroup * 2 + place % 16 / kDeep;
        term = place / 16 * kDeep + place % kDeep;
      }
      out.data()[(step * sizes.rows + r) * terms + term] = x[r * sizes.depth + c];
    }
  }
  return out;
}

// Returns the sums of activations of each group, [depth / kGroup, rows]: factors of minimums.
inline Aligned group_sums(const float* x, const Sizes& sizes) {
  Aligned out(sizes.depth / kGroup * sizes.rows);
  for (int64_t r = 0; r < sizes.rows; ++r) {
    for (int64_t c = 0; c < sizes.depth; ++c) {
      out.data()[c / kGroup * sizes.rows + r] += x[r * sizes.depth + c];
    }
  }
  return out;
}

// Cut of a product into tiles, which are computed in any order and then summed in theirs.
//
// A tile is a run of rows of a weight, as long as possible: processors fetch well what lies in one
// piece. Where sums are cut depends on the weight alone, and so a row's result on nothing else.
struct Tiles {
  int64_t depth;  // of a tile's sums
  int64_t width;
  int64_t down, across;  // tiles

  // `bytes` is the size of a weight along the sum; `threads` are to have a few tiles each.
  Tiles(const Sizes& sizes, double bytes, int64_t threads) {
    const int64_t all = static_cast<int64_t>(sizes.depth * sizes.width * bytes);
    const int64_t parts = std::clamp<int64_t>(all / kTile, 1, kMostDown);
    depth = up(sizes.depth, parts, kGroup);
    down = up(sizes.depth, depth, 1);
    // The sums of a tile stay in the fast caches.
    const int64_t most = std::clamp<int64_t>((1 << 14) / sizes.rows, 1 << 10, 1 << 12);
    const int64_t wanted = all <= kTile ? 1 : up(4 * threads, down, 1);
    width = std::clamp<int64_t>(up(sizes.width, wanted, 64), 64, most);
    across = up(sizes.width, width, 1);
  }

 private:
  static constexpr int64_t kTile = 1 << 16, kMostDown = 8;
  // Returns `a / b`, rounded up to a multiple of `unit`.
  static int64_t up(int64_t a, int64_t b, int64_t unit) {
    const int64_t whole = (a + b - 1) / b;
    return (whole + unit - 1) / unit * unit;
  }
};

// A tile: terms of the sum, and columns.
struct Tile {
  int64_t first, last, begin, end;
};

// Adds the terms of a tile to `sums`, [rows, columns].
//
// `x` comes from `packed`; `groups` from `group_sums`, if the weight has minimums.
template <class Number>
void multiply_tile(const float* x, const float* groups, const Weight<Number>& weight, float* sums,
                   const Sizes& sizes, const Tile& tile) {
  constexpr int terms = kTerms<Number>;
  const int64_t rows = sizes.rows, width = sizes.width, columns = tile.end - tile.begin;
  const int64_t vectors_end = tile.begin + columns / kLanes * kLanes;
  for (int64_t c = tile.first; c < tile.last; c += terms) {
    const int64_t step = c / terms, group = c / kGroup * width, half = step % (kGroup / terms);
    const Number* stored[kDeep];
    find_rows(weight, sizes, step, stored);
    const Float16* scales = weight.scales == nullptr ? nullptr : weight.scales + group;
    const uint32_t* high = weight.high == nullptr ? nullptr : weight.high + group;
    const Float16* minimums =
        weight.minimums == nullptr || half > 0 ? nullptr : weight.minimums + group;
    const float* factors = x + step * rows * terms;
    const float* ones = minimums == nullptr ? nullptr : groups + c / kGroup * rows;
    float* to = sums;
    int64_t o = tile.begin;
    for (; o < vectors_end; o += kLanes, to += kLanes) {
      if (o * sizeof(Number) % 64 == 0) {
        for (int d = 0; d < kDeep; ++d) __builtin_prefetch(stored[d] + o + kDeep * width);
      }
      Floats wides[terms];
      widen(weight, stored, high, half, o, wides);
      const Floats unit = scales == nullptr ? Floats{} + 1 : wide_lanes(scales + o);
      for (int64_t r = 0; r < rows; ++r) {
        const float* own = factors + r * terms;
        Floats sum = wides[0] * own[0];
        for (int t = 1; t < terms; ++t) sum += wides[t] * own[t];
        sum = read<Floats>(to + r * columns) + unit * sum;
        if (minimums != nullptr) sum += wide_lanes(minimums + o) * ones[r];
        write(to + r * columns, sum);
      }
    }
    for (; o < tile.end; ++o, ++to) {
      float wides[terms];
      widen_one(weight, stored, high, half, o, wides);
      const float unit = scales == nullptr ? 1 : wide(scales[o]);
      for (int64_t r = 0; r < rows; ++r) {
        const float* own = factors + r * terms;
        float sum = wides[0] * own[0];
        for (int t = 1; t < terms; ++t) sum += wides[t] * own[t];
        to[r * columns] += unit * sum;
        if (minimums != nullptr) to[r * columns] += wide(minimums[o]) * ones[r];
      }
    }
  }
}

// Computes a product; `parallel(count, work)` calls `work(i)` for each `0 <= i < count`.
template <class Number, class Parallel>
void multiply_columns(const float* x, const Weight<Number>& weight, float* y, const Sizes& sizes,
                      const Tiles& tiles, Parallel parallel) {
  const int64_t size = sizes.rows * tiles.width;
  Aligned ordered = packed<Number>(x, sizes), room(tiles.down * tiles.across * size);
  Aligned groups = weight.minimums == nullptr ? Aligned(0) : group_sums(x, sizes);
  std::vector<std::atomic<int64_t>> left(tiles.across);
  for (auto& each : left) each = tiles.down;
  parallel(tiles.down * tiles.across, [&](int64_t i) {
    const int64_t down = i / tiles.across, across = i % tiles.across;
    const int64_t first = down * tiles.depth, begin = across * tiles.width;
    const Tile tile{first, std::min(sizes.depth, first + tiles.depth), begin,
                    std::min(sizes.width, begin + tiles.width)};
    multiply_tile(ordered.data(), groups.data(), weight, room.data() + i * size, sizes, tile);
    if (left[across].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    // The last tile of these columns: all others are done.
    const int64_t columns = tile.end - begin;
    for (int64_t r = 0; r < sizes.rows; ++r) {
      float* to = y + r * sizes.width + begin;
      const float* from = room.data() + across * size + r * columns;
      std::copy_n(from, columns, to);
      for (int64_t d = 1; d < tiles.down; ++d) {
        from += tiles.across * size;
        for (int64_t o = 0; o < columns; ++o) to[o] += from[o];
      }
      for (int64_t o = 0; weight.columns != nullptr && o < columns; ++o) {
        to[o] *= weight.columns[begin + o];
      }
    }
  });
}

// Rows of a weight that are multiplied together, and how many numbers of each at a time: so few,
// that activations are read seldom, and so many, that sums are.
constexpr int kBeside = 4;
constexpr int kAlong = kDeep / kBeside;
constexpr int64_t kRun = kAlong * kLanes;

// Returns activations in the order in which `multiply_rows` reads them, [runs, rows, kRun].
inline Aligned packed_runs(const float* x, const Sizes& sizes) {
  const int64_t runs = (sizes.depth + kRun - 1) / kRun;
  Aligned out(runs * sizes.rows * kRun);
  for (int64_t r = 0; r < sizes.rows; ++r) {
    for (int64_t c = 0; c < sizes.depth; c += kRun) {
      float* to = out.data() + (c / kRun * sizes.rows + r) * kRun;
      std::copy_n(x + r * sizes.depth + c, std::min(kRun, sizes.depth - c), to);
    }
  }
  return out;
}

// Adds to `sums`, [rows, kBeside], the products of a run of `kBeside` rows of a weight.
template <class Number>
inline void add_run(const float* x, const Number* const w[kBeside], Floats* sums, int64_t rows) {
  Floats wides[kBeside][kAlong];
  for (int b = 0; b < kBeside; ++b) {
    for (int a = 0; a < kAlong; ++a) wides[b][a] = wide_lanes(w[b] + a * kLanes);
  }
  for (int64_t r = 0; r < rows; ++r, x += kRun, sums += kBeside) {
    for (int b = 0; b < kBeside; ++b) {
      Floats sum = sums[b];
      for (int a = 0; a < kAlong; ++a) sum += wides[b][a] * read<Floats>(x + a * kLanes);
      sums[b] = sum;
    }
  }
}

// Computes `y[r, o] = sum_c x[r, c] * w[o, c]` for `begin <= o < end`; `x` is from `packed_runs`.
template <class Number>
void multiply_rows(const float* x, const Number* w, float* y, const Sizes& sizes, int64_t begin,
                   int64_t end) {
  const int64_t rows = sizes.rows, whole = sizes.depth / kRun * kRun;
  std::vector<Floats> sums(rows * kBeside);
  for (int64_t o = begin; o < end; o += kBeside) {
    std::fill(sums.begin(), sums.end(), Floats{});
    const Number* at[kBeside];
    // Past the end, the last row is multiplied again.
    for (int b = 0; b < kBeside; ++b) at[b] = w + std::min(o + b, end - 1) * sizes.depth;
    const float* factors = x;
    for (int64_t c = 0; c < whole; c += kRun, factors += rows * kRun) {
      for (int b = 0; b < kBeside; ++b) {
        const char* next = reinterpret_cast<const char*>(at[b] + kBeside * sizes.depth);
        for (size_t line = 0; line < kRun * sizeof(Number); line += 64) {
          __builtin_prefetch(next + line);
        }
      }
      add_run(factors, at, sums.data(), rows);
      for (int b = 0; b < kBeside; ++b) at[b] += kRun;
    }
    if (whole < sizes.depth) {
      Number rest[kBeside][kRun] = {};
      for (int b = 0; b < kBeside; ++b) {
        std::copy_n(at[b], sizes.depth - whole, rest[b]);
        at[b] = rest[b];
      }
      add_run(factors, at, sums.data(), rows);
    }
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t b = 0; b < std::min<int64_t>(kBeside, end - o); ++b) {
        float sum = 0;
        for (int i = 0; i < kLanes; ++i) sum += sums[r * kBeside + b][i];
        y[r * sizes.width + o + b] = sum;
      }
    }
  }
}

}  // namespace lwm
