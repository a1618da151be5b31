// Compares products and attention with plain loops on arrays of exactly their sizes, for sanitizers.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <thread>

#include "attention.h"
#include "many.h"
#include "parallel.h"
#include "product.h"
#include "reading.h"
#include "tiles.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace {

using namespace lwm;

std::mt19937 bits(0);

float number() { return std::uniform_real_distribution<float>(-1, 1)(bits); }

template <class Number>
Number any_number() {
  if constexpr (std::is_same_v<Number, float>) return number();
  if constexpr (std::is_same_v<Number, int8_t>) return static_cast<int8_t>(bits());
  if constexpr (std::is_same_v<Number, Nibbles>) return {static_cast<uint8_t>(bits())};
  if constexpr (std::is_same_v<Number, BFloat16>) {
    const float x = number();
    return {static_cast<uint16_t>(read<uint32_t>(&x) >> 16)};
  }
  // Subnormal, negative and large ones.
  if constexpr (std::is_same_v<Number, Float16>) {
    return {static_cast<uint16_t>(bits() % 0x7800 | (bits() & 1) << 15)};
  }
  if constexpr (std::is_same_v<Number, uint32_t>) return bits();
}

// Checks every finite Float16, alone and in lanes, where subnormal floats are taken for 0.
bool check_halves() {
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040);
#endif
  for (uint32_t first = 0; first < 1 << 16; first += kLanes) {
    Float16 given[kLanes];
    for (int i = 0; i < kLanes; i++) given[i].bits = static_cast<uint16_t>(first + i);
    const Floats lanes = wide_lanes(given);
    for (int i = 0; i < kLanes; i++) {
      const int bits = given[i].bits, exponent = bits >> 10 & 31, digits = bits & 1023;
      if (exponent == 31) continue;
      const double size = std::ldexp(exponent ? 1024 + digits : digits, std::max(exponent, 1) - 25);
      const double right = bits >> 15 ? -size : size;
      if (wide(given[i]) != right || lanes[i] != right) return false;
    }
  }
  return true;
}

template <class Number>
std::vector<Number> numbers(int64_t count) {
  std::vector<Number> out(count);
  for (Number& each : out) each = any_number<Number>();
  return out;
}

// Returns the weight of a column at a place of the sum.
template <class Number>
double at(const Weight<Number>& w, const Sizes& sizes, int64_t c, int64_t o, bool transposed) {
  const int64_t group = c / kGroup * sizes.width + o;
  double level;
  if constexpr (std::is_same_v<Number, Nibbles>) {
    const int byte = w.values[(c / 32 * 16 + c % 16) * sizes.width + o].bits;
    const int fifth = w.high == nullptr ? 0 : w.high[group] >> c % 32 & 1;
    level = (c % 32 < 16 ? byte & 15 : byte >> 4) + 16 * fifth - w.middle();
  } else {
    level = wide(w.values[transposed ? o * sizes.depth + c : c * sizes.width + o]);
  }
  if (w.columns != nullptr) level *= w.columns[o];
  if (w.scales != nullptr) level *= wide(w.scales[group]);
  return w.minimums == nullptr ? level : level + wide(w.minimums[group]);
}

// A pool whose threads are new for each task, and may outlive the call that wants them.
struct Threads {
  std::vector<std::thread> all;
  template <class Task>
  void Schedule(Task&& task) {
    all.emplace_back(std::forward<Task>(task));
  }
  ~Threads() {
    for (auto& each : all) each.join();
  }
};

bool is_near(double wanted, float found, double most) {
  return std::abs(wanted - found) <= 1e-6 * most;
}

template <class Number>
bool check(const Sizes& sizes, Weight<Number> w, bool transposed = false, bool many = false) {
  const auto x = numbers<float>(sizes.rows * sizes.depth);
  const auto values = numbers<Number>(sizes.depth * sizes.width / (kTerms<Number> / kDeep));
  w.values = values.data();
  std::vector<float> y(sizes.rows * sizes.width);
  Threads threads;
  const auto parallel = [&](int64_t count, auto work) { in_parallel(threads, 3, count, work); };
  if constexpr (!std::is_same_v<Number, Nibbles>) {
    if (transposed) {
      Aligned ordered = packed_runs(x.data(), sizes);
      const int64_t piece = 24;
      parallel((sizes.width + piece - 1) / piece, [&, f = ordered.data()](int64_t i) {
        const int64_t end = std::min(sizes.width, (i + 1) * piece);
        multiply_rows(f, values.data(), y.data(), sizes, i * piece, end);
      });
    }
  }
  if (many) {
    multiply_many(x.data(), w, y.data(), sizes, parallel);
  } else if (!transposed) {
    multiply_columns(x.data(), w, y.data(), sizes, Tiles(sizes, sizeof(Number), 3), parallel);
  }
  for (int64_t r = 0; r < sizes.rows; ++r) {
    for (int64_t o = 0; o < sizes.width; ++o) {
      double sum = 0, most = 0;
      for (int64_t c = 0; c < sizes.depth; ++c) {
        const double term = x[r * sizes.depth + c] * at(w, sizes, c, o, transposed);
        sum += term;
        most += std::abs(term);
      }
      if (w.minimums != nullptr) most *= 4;  // levels and minimums cancel
      if (!is_near(sum, y[r * sizes.width + o], most)) return false;
    }
  }
  return true;
}

// Pages of rows, and their tables.
template <class Number>
struct Pool {
  const PageSizes& sizes;
  std::vector<Number> keys, values;
  std::vector<int32_t> table;

  Pool(const PageSizes& sizes, int64_t rows) : sizes(sizes) {
    const int64_t pages = rows * sizes.entries, width = sizes.width;
    keys = numbers<Number>(pages * sizes.heads * page_size<Number>(width));
    values = numbers<Number>(pages * sizes.heads * page_size<Number>(width));
    for (int64_t t = 0; t < pages * sizes.heads * kPage && kScale<Number> > 0; ++t) {
      const int64_t place = t / kPage * page_size<Number>(width) + t % kPage + width * kPage;
      const float of_key = std::abs(number()) / 100, of_value = std::abs(number()) / 100;
      for (int64_t i = 0; i < kScale<Number>; ++i) {
        std::memcpy(&keys[place + i * kPage], reinterpret_cast<const char*>(&of_key) + i, 1);
      }
      std::memcpy(&values[t * (width + kScale<Number>) + width], &of_value, kScale<Number>);
    }
    for (int64_t i = 0; i < pages; ++i) table.push_back(pages - 1 - i);
  }

  // Compares attention from one query to the first `count` tokens of a row with plain loops.
  bool is_right(const float* q, int64_t row, int64_t head, int64_t count, double factor,
                const float* out, float lse, double most) const {
    const int64_t width = sizes.width, stride = width + kScale<Number>;
    std::vector<double> sums(width);
    double total = 0;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t page = table[row * sizes.entries + t / kPage] * sizes.heads + head;
      const Number* key = keys.data() + page * page_size<Number>(width) + t % kPage;
      const Number* value = values.data() + (page * kPage + t % kPage) * stride;
      float of_key = 1, of_value = 1;
      for (int64_t b = 0; b < kScale<Number>; ++b) {
        std::memcpy(reinterpret_cast<char*>(&of_key) + b, key + (width + b) * kPage, 1);
        std::memcpy(reinterpret_cast<char*>(&of_value) + b, value + width + b, 1);
      }
      double score = 0;
      for (int64_t h = 0; h < width; ++h) score += q[h] * wide(key[h * kPage]) * of_key;
      const double weight = std::exp(score * factor);
      total += weight;
      for (int64_t h = 0; h < width; ++h) sums[h] += weight * wide(value[h]) * of_value;
    }
    bool good = is_near(std::log(total), lse, most);
    for (int64_t h = 0; h < width; ++h) good &= is_near(sums[h] / total, out[h], most);
    return good;
  }
};

// Attends from rows of these lengths, and compares with plain loops over the same pages.
template <class Number>
bool check_attention(const PageSizes& sizes, const std::vector<int64_t>& lengths) {
  const int64_t heads = sizes.heads * sizes.queries, width = sizes.width, count = lengths.size();
  const auto q = numbers<float>(count * heads * width);
  const auto k = numbers<float>(count * sizes.heads * width);
  const auto v = numbers<float>(count * sizes.heads * width);
  Pool<Number> pool(sizes, count);
  auto& [_, keys, values, table] = pool;
  std::vector<Row> rows;
  for (int64_t r = 0; r < count; ++r) {
    rows.push_back({q.data() + r * heads * width, table.data() + r * sizes.entries, lengths[r], 0});
    const int64_t at = r * sizes.heads * width;
    store(rows[r], k.data() + at, v.data() + at, sizes, keys.data(), values.data());
  }
  Parts parts(rows, sizes);
  Threads threads;
  in_parallel(threads, 3, parts.count(), [&](int64_t i) {
    parts.attend(i, keys.data(), values.data());
  });
  std::vector<float> out(count * heads * width), lse(count * heads);
  parts.merge(out.data(), lse.data());
  bool good = true;
  for (int64_t i = 0; i < count * heads; ++i) {
    const int64_t r = i / heads, head = i % heads / sizes.queries;
    good &= pool.is_right(&q[i * width], r, head, lengths[r] + 1, 1, &out[i * width], lse[i], 10);
  }
  return good;
}

// Attends from so many tokens of each row, after others of these lengths, in one kind of `Math`.
template <class Math, class Query, class Number>
bool check_reading(const PageSizes& pages, int64_t tokens, const std::vector<int32_t>& lengths) {
  const ChunkSizes sizes{pages, static_cast<int64_t>(lengths.size()), tokens};
  const int64_t count = sizes.rows * tokens * sizes.all_queries();
  const auto q = numbers<Query>(count * pages.width);
  Pool<Number> pool(pages, sizes.rows);
  const std::vector<int32_t> first(sizes.rows);
  std::vector<float> out(count * pages.width), lse(count);
  Threads threads;
  read_chunks<Math>(q.data(), Places{pool.table.data(), lengths.data(), first.data()},
                    pool.keys.data(), pool.values.data(), sizes, 3, out.data(), lse.data(),
                    [&](int64_t all, auto work) { in_parallel(threads, 3, all, work); });
  bool good = true;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = i / (tokens * sizes.all_queries());
    const int64_t seen = lengths[row] + i / sizes.all_queries() % tokens + 1;
    std::vector<float> own(pages.width);
    for (int64_t h = 0; h < pages.width; ++h) own[h] = wide(q[i * pages.width + h]);
    // Weights may be rounded to the eight digits of bfloat16.
    const double most = std::is_same_v<typename Math::Weight, float> ? 10 : 1e4;
    good &= pool.is_right(own.data(), row, i % sizes.all_queries() / pages.queries, seen,
                          1 / std::sqrt(double(pages.width)), &out[i * pages.width], lse[i], most);
  }
  return good;
}

}  // namespace

int main() {
  bool good = check_halves();
  for (int64_t rows : {1, 3, 16}) {
    for (int64_t width : {1, 15, 16, 83}) {
      for (int64_t depth : {1, 7, 32, 165, 320}) {
        const Sizes sizes{rows, depth, width};
        good &= check<float>(sizes, {}) && check<float>(sizes, {}, true);
        good &= check<BFloat16>(sizes, {}) && check<BFloat16>(sizes, {}, true);
        const auto columns = numbers<float>(width);
        good &= check<int8_t>(sizes, {nullptr, columns.data()});
        good &= check<int8_t>(sizes, {nullptr, columns.data()}, false, true);
        if (depth % kGroup) continue;
        const auto scales = numbers<Float16>(depth / kGroup * width);
        const auto minimums = numbers<Float16>(depth / kGroup * width);
        const auto high = numbers<uint32_t>(depth / kGroup * width);
        good &= check<int8_t>(sizes, {nullptr, nullptr, scales.data()});
        for (const Float16* least : {static_cast<const Float16*>(nullptr), minimums.data()}) {
          for (const uint32_t* fifths : {static_cast<const uint32_t*>(nullptr), high.data()}) {
            const Weight<Nibbles> weight{nullptr, nullptr, scales.data(), least, fifths};
            good &= check(sizes, weight) && check(sizes, weight, false, true);
          }
        }
      }
    }
  }
  for (const auto& sizes : {PageSizes{2, 3, 16, 4, 1}, PageSizes{1, 5, 21, 4, 1}}) {
    good &= check_attention<float>(sizes, {0, 255, 256, 700});
    good &= check_attention<BFloat16>(sizes, {3, 767});
    good &= check_attention<int8_t>(sizes, {0, 300, 767});
    good &= check_reading<VectorMath, float, float>(sizes, 70, {0, 210, 513});
    good &= check_reading<VectorMath, BFloat16, int8_t>(sizes, 33, {223, 700});
    good &= check_reading<VectorMath, float, BFloat16>(sizes, 1, {255, 0});
#if defined(LWM_TILES)
    if (may_use_tiles()) {
      good &= check_reading<TileMath, BFloat16, BFloat16>(sizes, 70, {0, 210, 513});
    }
#endif
  }
  std::puts(good ? "equal" : "different");
  return good ? 0 : 1;
}
