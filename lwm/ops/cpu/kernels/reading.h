// Attention of many new tokens of each row to pages of keys and values, as in reading a prompt.
//
// A tile of queries, of some tokens and the heads that share a key head, meets page after page.
// Each page is brought into the form of `Math`, and then a block of queries at a time is scored,
// weighted and mixed, while its scores are in the fastest cache. The result of a query depends
// neither on other queries nor on threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "aligned.h"
#include "attention.h"
#include "vector.h"

namespace lwm {

// Sizes of chunks of new tokens, which are stored, one of each row.
struct ChunkSizes {
  PageSizes pages;
  int64_t rows, tokens;

  int64_t all_queries() const { return pages.heads * pages.queries; }
};

// Tables [rows, entries] of the pages that lie here, tokens of each row before the new ones, and
// the numbers of the first pages that lie here.
struct Places {
  const int32_t *tables, *lengths, *first;
};

// A chunk: its queries [tokens, heads, queries, width], and what `Places` has of its row.
template <class Query>
struct Chunk {
  const Query* queries;
  const int32_t* table;
  int64_t length, first;
};

// Returns the scale of a token's values, where they have one.
inline float scale_at(const float*) { return 1; }
inline float scale_at(const BFloat16*) { return 1; }
inline float scale_at(const int8_t* bytes) { return read<float>(bytes); }

// Multiplies by vectors of floats. Queries are of any type, and so are pages.
struct VectorMath {
  using Query = float;
  using Weight = float;
  static constexpr int kTogether = 6;      // queries whose sums are in registers
  static constexpr int64_t kBlock = 24;    // queries
  static constexpr int64_t kUnit = kLanes;  // of a head's width
  static constexpr int kVectors = kLanes == 16 ? 4 : 2;
  static constexpr int64_t kPanel = kVectors * kLanes;  // tokens
  static constexpr int64_t kStride = kPage;             // of scores and weights
  static constexpr bool kInPlace = true;                // weights stand where scores did

  explicit VectorMath(int64_t padded)
      : padded_(padded), keys_(padded * kPage), values_(padded * kPage) {}

  // Stores a query, the `row`-th of a tile, in groups of `kTogether`.
  template <class From>
  void put_query(const From* from, int64_t width, int64_t row, float* tile) const {
    float* to = tile + row / kTogether * kTogether * padded_ + row % kTogether;
    for (int64_t h = 0; h < width; ++h) to[h * kTogether] = wide(from[h]);
  }

  // Brings the first `count` tokens of a page into the form in which they are multiplied.
  template <class Number>
  void set_page(const Number* keys, const Number* values, int64_t width, int64_t count) {
    const int64_t whole = (count + kPanel - 1) / kPanel * kPanel, stride = width + kScale<Number>;
    for (int64_t h = 0; h < width; ++h) {
      for (int64_t t = 0; t < whole; t += kLanes) {
        write(keys_.data() + h * kPage + t, wide_lanes(keys + h * kPage + t));
      }
    }
    scale_scores(keys + width * kPage, width, whole, keys_.data());
    for (int64_t t = 0; t < count; ++t, values += stride) {
      float* to = values_.data() + t * padded_;
      const float scale = scale_at(values + width);
      int64_t h = 0;
      for (; h + kLanes <= width; h += kLanes) write(to + h, wide_lanes(values + h) * scale);
      for (; h < width; ++h) to[h] = wide(values[h]) * scale;
    }
  }

  // Scores a block of queries and `count` tokens.
  void score(const float* queries, int64_t width, int64_t count, float* scores) {
    for (int64_t t = 0; t < count; t += kPanel) {
      for (int64_t r = 0; r < kBlock; r += kTogether) {
        const float* x = queries + r * padded_;
        const float* key = keys_.data() + t;
        Floats sums[kTogether][kVectors] = {};
        for (int64_t h = 0; h < width; ++h, x += kTogether, key += kPage) {
          Floats some[kVectors];
          for (int v = 0; v < kVectors; ++v) some[v] = read<Floats>(key + v * kLanes);
          for (int q = 0; q < kTogether; ++q) {
            for (int v = 0; v < kVectors; ++v) sums[q][v] += some[v] * x[q];
          }
        }
        for (int q = 0; q < kTogether; ++q) {
          float* to = scores + (r + q) * kStride + t;
          for (int v = 0; v < kVectors; ++v) write(to + v * kLanes, sums[q][v]);
        }
      }
    }
  }

  // Adds the values of `count` tokens, weighted, to sums of a block of queries, [kBlock, padded].
  void mix(const float* weights, int64_t count, float* out) {
    for (int64_t t = 0; t < count; t += kPanel) {
      const int64_t end = std::min(count, t + kPanel);
      for (int64_t r = 0; r < kBlock; r += kTogether) {
        const float* own = weights + r * kStride;
        float* to = out + r * padded_;
        int64_t h = 0;
        for (; h + kPanel <= padded_; h += kPanel) add<kVectors>(own, t, end, h, to);
        for (; h < padded_; h += kLanes) add<1>(own, t, end, h, to);
      }
    }
  }

 private:
  template <int V>
  void add(const float* weights, int64_t begin, int64_t end, int64_t h, float* out) {
    Floats sums[kTogether][V];
    for (int q = 0; q < kTogether; ++q) {
      for (int v = 0; v < V; ++v) sums[q][v] = read<Floats>(out + q * padded_ + h + v * kLanes);
    }
    for (int64_t t = begin; t < end; ++t) {
      const float* from = values_.data() + t * padded_ + h;
      Floats some[V];
      for (int v = 0; v < V; ++v) some[v] = read<Floats>(from + v * kLanes);
      for (int q = 0; q < kTogether; ++q) {
        for (int v = 0; v < V; ++v) sums[q][v] += some[v] * weights[q * kStride + t];
      }
    }
    for (int q = 0; q < kTogether; ++q) {
      for (int v = 0; v < V; ++v) write(out + q * padded_ + h + v * kLanes, sums[q][v]);
    }
  }

  int64_t padded_;  // a head's width
  Aligned keys_;    // [padded, kPage]
  Aligned values_;  // [kPage, padded]
};

inline void write_weights(float* to, Floats x) { write(to, x); }

// Turns scores into weights of an online softmax, of a query that sees `seen` tokens of a page, and
// fades its sums. The weights of tokens up to `whole` are written.
template <class Weight>
inline void weigh(float* scores, Weight* weights, float scale, int64_t seen, int64_t whole,
                  int64_t width, Softmax state) {
  std::fill(scores + seen, scores + whole, -std::numeric_limits<float>::infinity());
  Floats most = read<Floats>(scores);
  for (int64_t t = kLanes; t < whole; t += kLanes) most = larger(most, read<Floats>(scores + t));
  float top = most[0];
  for (int i = 1; i < kLanes; ++i) top = std::max(top, most[i]);
  top = std::max(*state.top, top * scale);
  Floats sum = {};
  for (int64_t t = 0; t < whole; t += kLanes) {
    const Floats weight = exponential(read<Floats>(scores + t) * scale - top);
    write_weights(weights + t, weight);
    sum += weight;
  }
  const float fade = std::exp(*state.top - top);
  float total = *state.total * fade;
  for (int i = 0; i < kLanes; ++i) total += sum[i];
  *state.top = top;
  *state.total = total;
  if (fade == 1) return;
  for (int64_t h = 0; h < width; h += kLanes) {
    write(state.out + h, read<Floats>(state.out + h) * fade);
  }
}

// Attends from the tokens `begin <= s < end` of a chunk and the query heads of one key head, to all
// pages that lie here and that they see; writes results and log-sum-exps at the queries' places.
template <class Math, class Query, class Number>
void read_tile(const Chunk<Query>& chunk, const Number* keys, const Number* values,
               const ChunkSizes& sizes, int64_t head, int64_t begin, int64_t end, float* out,
               float* lse) {
  const int64_t width = sizes.pages.width, queries = sizes.pages.queries;
  const int64_t padded = (width + Math::kUnit - 1) / Math::kUnit * Math::kUnit;
  const int64_t rows = (end - begin) * queries, block = Math::kBlock;
  const int64_t room = (rows + block - 1) / block * block;
  Math math(padded);
  const auto sized = [](int64_t count, size_t bytes) { return (count * bytes + 3) / 4; };
  Aligned query_room(sized(room * padded, sizeof(typename Math::Query)));
  Aligned weight_room(sized(block * Math::kStride, sizeof(typename Math::Weight)));
  Aligned score_room(block * Math::kStride), sums(room * padded), tops(room), totals(room);
  auto* tile = reinterpret_cast<typename Math::Query*>(query_room.data());
  float* scores = score_room.data();
  auto* weights =
      reinterpret_cast<typename Math::Weight*>(Math::kInPlace ? scores : weight_room.data());
  // A query's place, and the first token that it does not see.
  const auto place = [&](int64_t row) {
    return (begin + row / queries) * sizes.all_queries() + head * queries + row % queries;
  };
  const auto horizon = [&](int64_t row) { return chunk.length + begin + row / queries + 1; };
  for (int64_t row = 0; row < rows; ++row) {
    math.put_query(chunk.queries + place(row) * width, width, row, tile);
  }
  std::fill_n(tops.data(), room, std::numeric_limits<float>::lowest());
  const float scale = 1 / std::sqrt(static_cast<float>(width));
  for (int64_t n = 0;; ++n) {
    const int64_t start = (chunk.first + n * sizes.pages.step) * kPage;
    if (start >= horizon(rows - 1)) break;
    const int64_t at = (chunk.table[n] * sizes.pages.heads + head) * page_size<Number>(width);
    math.set_page(keys + at, values + at, width, std::min(kPage, horizon(rows - 1) - start));
    for (int64_t row = 0; row < rows; row += block) {
      const int64_t last = std::min(rows, row + block) - 1;
      const int64_t count = std::min(kPage, horizon(last) - start);
      if (count <= 0) continue;
      const int64_t whole = (count + Math::kPanel - 1) / Math::kPanel * Math::kPanel;
      math.score(tile + row * padded, width, count, scores);
      for (int64_t r = row; r < row + block; ++r) {
        float* own = scores + (r - row) * Math::kStride;
        // Queries that fill up a block see as much as the last.
        const int64_t seen = std::clamp<int64_t>(horizon(std::min(r, last)) - start, 0, whole);
        weigh(own, weights + (r - row) * Math::kStride, scale, std::min(seen, count), whole, padded,
              Softmax{sums.data() + r * padded, tops.data() + r, totals.data() + r});
      }
      math.mix(weights, count, sums.data() + row * padded);
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    const float total = totals.data()[row];
    const float* from = sums.data() + row * padded;
    float* to = out + place(row) * width;
    // A query without a page here has seen nothing. Scores of NaN have no weight: a NaN is to stay.
    const bool has_seen = chunk.first * kPage < horizon(row);
    for (int64_t h = 0; h < width; ++h) to[h] = has_seen ? from[h] / total : 0;
    lse[place(row)] = has_seen ? tops.data()[row] + std::log(total)
                               : -std::numeric_limits<float>::infinity();
  }
}

// Tokens of a tile: so many that bringing a page into form is little work beside theirs, and so few
// that each thread has some tiles.
inline int64_t tokens_of_a_tile(const ChunkSizes& sizes, int64_t threads) {
  const int64_t together = sizes.rows * sizes.pages.heads;
  const int64_t tiles = (2 * threads + together - 1) / together;
  const int64_t even = (sizes.tokens + tiles - 1) / tiles;
  const int64_t most = std::max<int64_t>(16, 384 / sizes.pages.queries);
  return std::clamp<int64_t>((even + 15) / 16 * 16, 16, most);
}

// Attends from all tokens of the chunks; queries, results and log-sum-exps of rows follow one
// another. `parallel` as in `multiply_columns`.
template <class Math, class Query, class Number, class Parallel>
void read_chunks(const Query* queries, const Places& places, const Number* keys,
                 const Number* values, const ChunkSizes& sizes, int64_t threads, float* out,
                 float* lse, Parallel parallel) {
  const int64_t tokens = tokens_of_a_tile(sizes, threads), heads = sizes.pages.heads;
  const int64_t tiles = (sizes.tokens + tokens - 1) / tokens;
  const int64_t of_row = sizes.tokens * sizes.all_queries();
  parallel(sizes.rows * heads * tiles, [=](int64_t i) {
    const int64_t row = i / (heads * tiles), begin = i % tiles * tokens;
    const Chunk<Query> chunk{queries + row * of_row * sizes.pages.width,
                             places.tables + row * sizes.pages.entries, places.lengths[row],
                             places.first[row]};
    read_tile<Math>(chunk, keys, values, sizes, i / tiles % heads, begin,
                    std::min(sizes.tokens, begin + tokens), out + row * of_row * sizes.pages.width,
                    lse + row * of_row);
  });
}

}  // namespace lwm
