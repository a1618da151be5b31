// Products of many rows of activations with a weight of few bits.
//
// A panel of the weight, as wide as sums fit in registers, is widened into a fast cache and used for
// all rows; the whole weight is never widened. The order of a row's sum depends on nothing else.
#pragma once

#include <algorithm>
#include <cstdint>

#include "aligned.h"
#include "product.h"

namespace lwm {

// Rows and columns whose sums are in registers, and terms of a panel.
constexpr int kRowsTogether = 6;
constexpr int kVectors = kLanes == 16 ? 4 : 2;
constexpr int64_t kPanel = kVectors * kLanes;
constexpr int64_t kTermsOfPanel = 256;

// Returns activations in the order in which `multiply_panel` reads them, [blocks, depth, rows].
inline Aligned packed_blocks(const float* x, const Sizes& sizes) {
  const int64_t blocks = (sizes.rows + kRowsTogether - 1) / kRowsTogether;
  Aligned out(blocks * sizes.depth * kRowsTogether);
  for (int64_t r = 0; r < sizes.rows; ++r) {
    float* to = out.data() + r / kRowsTogether * sizes.depth * kRowsTogether + r % kRowsTogether;
    for (int64_t c = 0; c < sizes.depth; ++c) to[c * kRowsTogether] = x[r * sizes.depth + c];
  }
  return out;
}

// Widens the terms `first <= c < last` of `columns` columns from `begin` on, [terms, kPanel].
// A panel has room for those of a last step that lie beyond.
template <class Number>
void widen_panel(const Weight<Number>& weight, const Sizes& sizes, int64_t first, int64_t last,
                 int64_t begin, int64_t columns, float* panel) {
  constexpr int terms = kTerms<Number>;
  for (int64_t c = first; c < last; c += terms) {
    const int64_t step = c / terms, group = c / kGroup * sizes.width, half = step % (kGroup / terms);
    const Number* stored[kDeep];
    find_rows(weight, sizes, step, stored);
    const uint32_t* high = weight.high == nullptr ? nullptr : weight.high + group;
    // Those in upper halves of bytes stand half a group further on.
    const int64_t start = terms == kDeep ? c - first : (c - first) / kGroup * kGroup + half * kDeep;
    const auto place = [=](int t) { return start + t % kDeep + t / kDeep * (kGroup / 2); };
    int64_t o = 0;
    for (; o + kLanes <= columns; o += kLanes) {
      Floats wides[terms];
      widen(weight, stored, high, half, begin + o, wides);
      Floats unit = Floats{} + 1, least = {};
      if (weight.columns != nullptr) unit = wide_lanes(weight.columns + begin + o);
      if (weight.scales != nullptr) unit = wide_lanes(weight.scales + group + begin + o);
      if (weight.minimums != nullptr) least = wide_lanes(weight.minimums + group + begin + o);
      for (int t = 0; t < terms; ++t) {
        write(panel + place(t) * kPanel + o, wides[t] * unit + least);
      }
    }
    for (; o < columns; ++o) {
      float wides[terms];
      widen_one(weight, stored, high, half, begin + o, wides);
      float unit = 1, least = 0;
      if (weight.columns != nullptr) unit = weight.columns[begin + o];
      if (weight.scales != nullptr) unit = wide(weight.scales[group + begin + o]);
      if (weight.minimums != nullptr) least = wide(weight.minimums[group + begin + o]);
      for (int t = 0; t < terms; ++t) {
        panel[place(t) * kPanel + o] = wides[t] * unit + least;
      }
    }
  }
}

// Adds to `sums`, [kRowsTogether, kPanel], the products of a block of rows with a panel.
inline void multiply_panel(const float* x, const float* panel, int64_t terms, float* sums) {
  Floats own[kRowsTogether][kVectors];
  for (int r = 0; r < kRowsTogether; ++r) {
    for (int v = 0; v < kVectors; ++v) own[r][v] = read<Floats>(sums + r * kPanel + v * kLanes);
  }
  for (int64_t c = 0; c < terms; ++c, x += kRowsTogether, panel += kPanel) {
    Floats weight[kVectors];
    for (int v = 0; v < kVectors; ++v) weight[v] = read<Floats>(panel + v * kLanes);
    for (int r = 0; r < kRowsTogether; ++r) {
      for (int v = 0; v < kVectors; ++v) own[r][v] += weight[v] * x[r];
    }
  }
  for (int r = 0; r < kRowsTogether; ++r) {
    for (int v = 0; v < kVectors; ++v) write(sums + r * kPanel + v * kLanes, own[r][v]);
  }
}

// Computes the product of many rows; `parallel` as in `multiply_columns`.
template <class Number, class Parallel>
void multiply_many(const float* x, const Weight<Number>& weight, float* y, const Sizes& sizes,
                   Parallel parallel) {
  Aligned ordered = packed_blocks(x, sizes);
  const float* factors = ordered.data();
  const int64_t blocks = (sizes.rows + kRowsTogether - 1) / kRowsTogether;
  parallel((sizes.width + kPanel - 1) / kPanel, [=, &weight, &sizes](int64_t i) {
    const int64_t begin = i * kPanel, columns = std::min(kPanel, sizes.width - begin);
    Aligned panel(kTermsOfPanel * kPanel), sums(blocks * kRowsTogether * kPanel);
    for (int64_t first = 0; first < sizes.depth; first += kTermsOfPanel) {
      const int64_t last = std::min(sizes.depth, first + kTermsOfPanel);
      widen_panel(weight, sizes, first, last, begin, columns, panel.data());
      for (int64_t b = 0; b < blocks; ++b) {
        multiply_panel(factors + (b * sizes.depth + first) * kRowsTogether, panel.data(),
                       last - first, sums.data() + b * kRowsTogether * kPanel);
      }
    }
    for (int64_t r = 0; r < sizes.rows; ++r) {
      std::copy_n(sums.data() + r * kPanel, columns, y + r * sizes.width + begin);
    }
  });
}

}  // namespace lwm
