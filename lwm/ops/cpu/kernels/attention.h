// Attention of one new token of each row to the pages of its keys and values, as they lie.
//
// The scores of a page stay in the fastest cache; its keys and values are read once for all query
// heads that share them, and widened in registers. A row is attended to in parts, whose number
// depends on its own length alone, so that its result depends neither on other rows nor on threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "aligned.h"
#include "vector.h"

namespace lwm {

constexpr int64_t kPage = 256;     // tokens
constexpr int64_t kFewest = 2;     // pages of a part, but for the last
constexpr int64_t kMostParts = 64;  // of a row

struct PageSizes {
  int64_t heads;    // of keys and values
  int64_t queries;  // query heads that share one of these
  int64_t width;    // of a head
  int64_t entries;  // of a row's table
  int64_t step;     // distance of the pages that lie here, in a row
};

// Bytes after the numbers of a token and a head, which hold their scale.
template <class Number>
constexpr int64_t kScale = 0;
template <>
constexpr int64_t kScale<int8_t> = sizeof(float);

// Returns the numbers that a page holds for each head.
template <class Number>
int64_t page_size(int64_t width) {
  return (width + kScale<Number>) * kPage;
}

// Multiplies scores by the scales of keys, whose bytes lie in rows of their own.
inline void scale_scores(const float*, int64_t, int64_t, float*) {}
inline void scale_scores(const BFloat16*, int64_t, int64_t, float*) {}
inline void scale_scores(const int8_t* scales, int64_t queries, int64_t count, float* scores) {
  for (int64_t t = 0; t < count; t += kLanes) {
    Ints bits = {};
    for (int byte = 0; byte < 4; ++byte) {
      bits |= (wide_bytes(scales + byte * kPage + t) & 0xff) << (8 * byte);
    }
    for (int64_t q = 0; q < queries; ++q) {
      float* own = scores + q * kPage + t;
      write(own, read<Floats>(own) * (Floats)bits);
    }
  }
}

// Multiplies weights by the scales of values, each of which lies after its token's numbers.
inline void scale_weights(const float*, int64_t, int64_t, int64_t, float*) {}
inline void scale_weights(const BFloat16*, int64_t, int64_t, int64_t, float*) {}
inline void scale_weights(const int8_t* scales, int64_t stride, int64_t queries, int64_t count,
                          float* weights) {
  for (int64_t t = 0; t < count; ++t) {
    const float scale = read<float>(scales + t * stride);
    for (int64_t q = 0; q < queries; ++q) weights[q * kPage + t] *= scale;
  }
}

// A row: its queries [heads, queries, width], scaled, and where its pages are.
struct Row {
  const float* queries;
  const int32_t* table;
  int64_t length;  // tokens before the new one
  int64_t first;   // number of the first page that lies here

  // Pages that lie here, of those that hold the tokens up to the new one.
  int64_t pages(int64_t step) const {
    const int64_t all = length / kPage + 1;
    return all <= first ? 0 : (all - first + step - 1) / step;
  }
};

inline int64_t pages_of_a_part(int64_t pages) {
  return std::max(kFewest, (pages + kMostParts - 1) / kMostParts);
}

// State of an online softmax (Milakov and Gimelshein 2018) of the query heads of one key head.
struct Softmax {
  float* out;    // [queries, width], sums of weighted values
  float* top;    // [queries], largest scores
  float* total;  // [queries], sums of weights
};

// Computes `scores[q, t] = sum_h query[q, h] * keys[h, t]` for a block of V vectors of tokens.
template <int Q, int V, class Number>
inline void score_block(const float* query, const Number* keys, int64_t width, float* scores) {
  Floats sums[Q][V] = {};
  for (int64_t h = 0; h < width; ++h, keys += kPage) {
    Floats key[V];
    for (int v = 0; v < V; ++v) key[v] = wide_lanes(keys + v * kLanes);
    for (int q = 0; q < Q; ++q) {
      for (int v = 0; v < V; ++v) sums[q][v] += key[v] * query[q * width + h];
    }
  }
  for (int q = 0; q < Q; ++q) {
    for (int v = 0; v < V; ++v) write(scores + q * kPage + v * kLanes, sums[q][v]);
  }
}

// Adds `weights[q, t] * values[t, h]` to `out[q, h]` for a block of V vectors of a head's width.
template <int Q, int V, class Number>
inline void mix_block(const float* weights, const Number* values, int64_t width, int64_t count,
                      float* out) {
  const int64_t stride = width + kScale<Number>;
  Floats sums[Q][V];
  for (int q = 0; q < Q; ++q) {
    for (int v = 0; v < V; ++v) sums[q][v] = read<Floats>(out + q * width + v * kLanes);
  }
  for (int64_t t = 0; t < count; ++t, values += stride) {
    Floats value[V];
    for (int v = 0; v < V; ++v) value[v] = wide_lanes(values + v * kLanes);
    for (int q = 0; q < Q; ++q) {
      for (int v = 0; v < V; ++v) sums[q][v] += value[v] * weights[q * kPage + t];
    }
  }
  for (int q = 0; q < Q; ++q) {
    for (int v = 0; v < V; ++v) write(out + q * width + v * kLanes, sums[q][v]);
  }
}

// Attends from Q query heads to the first `count` tokens of a page.
template <int Q, class Number>
inline void attend_page(const float* query, const Number* keys, const Number* values,
                        int64_t width, int64_t count, Softmax state) {
  // So many sums are in registers that a multiplication seldom waits for the one before.
  constexpr int V = std::min<int64_t>(kPage / kLanes, Q == 1 ? 8 : kLanes == 16 ? 4 : 2);
  float scores[Q * kPage];
  for (int64_t t = 0; t < count; t += V * kLanes) {
    score_block<Q, V>(query, keys + t, width, scores + t);
  }
  const int64_t whole = (count + kLanes - 1) / kLanes * kLanes;
  scale_scores(keys + width * kPage, Q, whole, scores);
  for (int q = 0; q < Q; ++q) {
    float* own = scores + q * kPage;
    // What lies beyond the row was left behind by another one.
    std::fill(own + count, own + whole, -std::numeric_limits<float>::infinity());
    Floats most = Floats{} + state.top[q];
    for (int64_t t = 0; t < whole; t += kLanes) most = larger(most, read<Floats>(own + t));
    float top = most[0];
    for (int i = 1; i < kLanes; ++i) top = std::max(top, most[i]);
    Floats sum = {};
    for (int64_t t = 0; t < whole; t += kLanes) {
      const Floats weight = exponential(read<Floats>(own + t) - top);
      write(own + t, weight);
      sum += weight;
    }
    const float fade = std::exp(state.top[q] - top);
    float total = state.total[q] * fade;
    for (int i = 0; i < kLanes; ++i) total += sum[i];
    state.top[q] = top;
    state.total[q] = total;
    for (int64_t h = 0; h < width; ++h) state.out[q * width + h] *= fade;
  }
  const int64_t stride = width + kScale<Number>;
  scale_weights(values + width, stride, Q, count, scores);
  int64_t h = 0;
  for (; h + V * kLanes <= width; h += V * kLanes) {
    mix_block<Q, V>(scores, values + h, width, count, state.out + h);
  }
  for (; h + kLanes <= width; h += kLanes) {
    mix_block<Q, 1>(scores, values + h, width, count, state.out + h);
  }
  for (; h < width; ++h) {
    for (int q = 0; q < Q; ++q) {
      float sum = state.out[q * width + h];
      for (int64_t t = 0; t < count; ++t) sum += scores[q * kPage + t] * wide(values[t * stride + h]);
      state.out[q * width + h] = sum;
    }
  }
}

// Attends from the query heads of one key head to the pages `begin <= n < end` that lie here.
template <class Number>
void attend_part(const Row& row, const Number* keys, const Number* values, const PageSizes& sizes,
                 int64_t head, int64_t begin, int64_t end, Softmax state) {
  const int64_t width = sizes.width;
  std::fill_n(state.out, sizes.queries * width, 0.f);
  std::fill_n(state.top, sizes.queries, std::numeric_limits<float>::lowest());
  std::fill_n(state.total, sizes.queries, 0.f);
  for (int64_t n = begin; n < end; ++n) {
    const int64_t number = row.first + n * sizes.step;
    const int64_t at = (row.table[number] * sizes.heads + head) * page_size<Number>(width);
    const int64_t count = std::min(kPage, row.length + 1 - number * kPage);
    int64_t q = 0;
    const auto attend = [&](auto attend_some, int together) {
      for (; q + together <= sizes.queries; q += together) {
        const float* query = row.queries + (head * sizes.queries + q) * width;
        attend_some(query, keys + at, values + at, width, count,
                    Softmax{state.out + q * width, state.top + q, state.total + q});
      }
    };
    attend(attend_page<4, Number>, 4);
    attend(attend_page<3, Number>, 3);
    attend(attend_page<2, Number>, 2);
    attend(attend_page<1, Number>, 1);
  }
}

// Merges the states of parts, in their order, to a result and its log-sum-exp.
inline void merge_parts(const std::vector<Softmax>& parts, const PageSizes& sizes, float* out,
                        float* lse) {
  const int64_t width = sizes.width;
  for (int64_t q = 0; q < sizes.queries; ++q, out += width) {
    float top = std::numeric_limits<float>::lowest(), total = 0;
    for (const Softmax& part : parts) top = std::max(top, part.top[q]);
    std::fill_n(out, width, 0.f);
    for (const Softmax& part : parts) {
      const float share = std::exp(part.top[q] - top);
      total += part.total[q] * share;
      for (int64_t h = 0; h < width; ++h) out[h] += part.out[q * width + h] * share;
    }
    // A row without a page here has seen nothing.
    lse[q] = parts.empty() ? -std::numeric_limits<float>::infinity() : top + std::log(total);
    for (int64_t h = 0; h < width && !parts.empty(); ++h) out[h] /= total;
  }
}

// Parts of all rows and key heads; those of a row and a head follow one another.
class Parts {
 public:
  Parts(std::vector<Row> rows, const PageSizes& sizes) : rows_(std::move(rows)), sizes_(sizes) {
    for (size_t row = 0; row < rows_.size(); ++row) {
      const int64_t pages = rows_[row].pages(sizes_.step), each = pages_of_a_part(pages);
      for (int64_t head = 0; head < sizes_.heads; ++head) {
        for (int64_t begin = 0; begin < pages; begin += each) {
          all_.push_back({row, head, begin, std::min(pages, begin + each)});
        }
      }
      pages_ += pages * sizes_.heads;
    }
    states_ = Aligned(count() * state_size());
  }

  int64_t count() const { return all_.size(); }
  // Pages of all rows and key heads.
  int64_t pages() const { return pages_; }

  // Attends to the i-th part.
  template <class Number>
  void attend(int64_t i, const Number* keys, const Number* values) {
    const Part& part = all_[i];
    attend_part(rows_[part.row], keys, values, sizes_, part.head, part.begin, part.end, state(i));
  }

  // Writes results [rows, heads, queries, width] and log-sum-exps [rows, heads, queries].
  void merge(float* out, float* lse) {
    std::vector<Softmax> found;
    size_t i = 0;
    for (size_t row = 0; row < rows_.size(); ++row) {
      for (int64_t head = 0; head < sizes_.heads; ++head) {
        found.clear();
        for (; i < all_.size() && all_[i].row == row && all_[i].head == head; ++i) {
          found.push_back(state(i));
        }
        merge_parts(found, sizes_, out, lse);
        out += sizes_.queries * sizes_.width;
        lse += sizes_.queries;
      }
    }
  }

 private:
  struct Part {
    size_t row;
    int64_t head, begin, end;
  };

  int64_t state_size() const { return sizes_.queries * (sizes_.width + 2); }
  Softmax state(int64_t i) {
    float* out = states_.data() + i * state_size();
    float* top = out + sizes_.queries * sizes_.width;
    return {out, top, top + sizes_.queries};
  }

  std::vector<Row> rows_;
  PageSizes sizes_;
  std::vector<Part> all_;
  int64_t pages_ = 0;
  Aligned states_{0};
};

// Writes the numbers of a token and a head, so far apart.
template <class Number>
void put(const float* from, int64_t width, int64_t apart, Number* to) {
  for (int64_t h = 0; h < width; ++h) narrow(from[h], to + h * apart);
}
inline void put(const float* from, int64_t width, int64_t apart, int8_t* to) {
  float most = 0;
  for (int64_t h = 0; h < width; ++h) {
    most = std::isnan(from[h]) ? from[h] : std::max(most, std::abs(from[h]));
    if (std::isnan(most)) break;
  }
  const float scale = most * (1.f / 127);  // as plain JAX computes it
  const bool is_finite = std::isfinite(scale);
  for (int64_t h = 0; h < width; ++h) {
    const float rounded = std::nearbyint(from[h] / (scale > 0 ? scale : 1));
    to[h * apart] = is_finite ? static_cast<int8_t>(rounded) : 0;
  }
  int8_t bytes[sizeof(float)];
  std::memcpy(bytes, &scale, sizeof(scale));
  for (int64_t i = 0; i < kScale<int8_t>; ++i) to[(width + i) * apart] = bytes[i];
}

// Stores the new token's keys and values, [heads, width] each, if their page lies here.
template <class Number>
void store(const Row& row, const float* k, const float* v, const PageSizes& sizes, Number* keys,
           Number* values) {
  const int64_t number = row.length / kPage, offset = row.length % kPage;
  if (number < row.first || (number - row.first) % sizes.step != 0) return;
  const int64_t page = row.table[number] * sizes.heads;
  for (int64_t head = 0; head < sizes.heads; ++head) {
    const int64_t at = (page + head) * page_size<Number>(sizes.width);
    const int64_t stride = sizes.width + kScale<Number>;
    put(k + head * sizes.width, sizes.width, kPage, keys + at + offset);
    put(v + head * sizes.width, sizes.width, 1, values + at + offset * stride);
  }
}

}  // namespace lwm
