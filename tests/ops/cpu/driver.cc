// Compares the products with plain loops on arrays of exactly their sizes, for sanitizers.

#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <thread>

#include "parallel.h"
#include "product.h"

namespace {

using namespace lwm;

std::mt19937 bits(0);

float number() { return std::uniform_real_distribution<float>(-1, 1)(bits); }

template <class Weight>
Weight any_weight() {
  if constexpr (std::is_same_v<Weight, float>) return number();
  if constexpr (std::is_same_v<Weight, int8_t>) return static_cast<int8_t>(bits());
  if constexpr (std::is_same_v<Weight, Nibbles>) return {static_cast<uint8_t>(bits())};
  if constexpr (std::is_same_v<Weight, BFloat16>) {
    const float x = number();
    return {static_cast<uint16_t>(read<uint32_t>(&x) >> 16)};
  }
}

// Returns the weight of a column at a place of the sum.
template <class Weight>
double at(const Weight* w, const Sizes& sizes, int64_t c, int64_t o, bool transposed) {
  if constexpr (std::is_same_v<Weight, Nibbles>) {
    const int byte = w[(c / 32 * 16 + c % 16) * sizes.width + o].bits;
    return (c % 32 < 16 ? byte & 15 : byte >> 4) - 8;
  } else {
    return wide(transposed ? w[o * sizes.depth + c] : w[c * sizes.width + o]);
  }
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

template <class Weight, class Scale>
bool check(const Sizes& sizes, const std::vector<Scale>& scale, bool transposed) {
  std::vector<float> x(sizes.rows * sizes.depth), y(sizes.rows * sizes.width);
  for (float& each : x) each = number();
  std::vector<Weight> w(sizes.depth * sizes.width / (kTerms<Weight> / kDeep));
  for (Weight& each : w) each = any_weight<Weight>();
  const Scale* scales = scale.empty() ? nullptr : scale.data();
  Aligned ordered = transposed ? packed_runs(x.data(), sizes) : packed<Weight>(x.data(), sizes);
  Threads threads;
  const int64_t piece = 24;
  in_parallel(threads, 3, (sizes.width + piece - 1) / piece, [&, f = ordered.data()](int64_t i) {
    const int64_t begin = i * piece, end = std::min(sizes.width, begin + piece);
    if constexpr (!std::is_same_v<Weight, Nibbles>) {
      if (transposed) return multiply_rows(f, w.data(), y.data(), sizes, begin, end);
    }
    multiply_columns(f, w.data(), scales, y.data(), sizes, begin, end);
  });
  for (int64_t r = 0; r < sizes.rows; ++r) {
    for (int64_t o = 0; o < sizes.width; ++o) {
      double sum = 0, most = 0;
      for (int64_t c = 0; c < sizes.depth; ++c) {
        const double unit = scales ? wide(scales[c / sizes.group * sizes.width + o]) : 1;
        const double term = x[r * sizes.depth + c] * unit * at(w.data(), sizes, c, o, transposed);
        sum += term;
        most += std::abs(term);
      }
      if (!(std::abs(sum - y[r * sizes.width + o]) <= 1e-6 * most)) return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  bool good = true;
  for (int64_t rows : {1, 3, 16}) {
    for (int64_t width : {1, 15, 16, 83}) {
      for (int64_t depth : {1, 7, 32, 160, 165}) {
        const Sizes whole{rows, depth, width, depth}, groups{rows, depth, width, 32};
        std::vector<float> units(width, 0.25f);
        good &= check<float>(whole, std::vector<float>{}, false);
        good &= check<float>(whole, std::vector<float>{}, true);
        good &= check<BFloat16>(whole, std::vector<float>{}, false);
        good &= check<BFloat16>(whole, std::vector<float>{}, true);
        good &= check<int8_t>(whole, units, false);
        if (depth % 32) continue;
        std::vector<Float16> halves(depth / 32 * width);
        // Subnormal, negative and large ones.
        for (size_t i = 0; i < halves.size(); ++i) halves[i].bits = i * 977 % 0x7800 | i % 2 << 15;
        good &= check<Nibbles>(groups, halves, false);
      }
    }
  }
  std::puts(good ? "equal" : "different");
  return good ? 0 : 1;
}
