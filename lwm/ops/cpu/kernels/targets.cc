// Products of `product.h`, and attention of `attention.h`, as functions that XLA calls.

#include <algorithm>
#include <cstdint>

#include "attention.h"
#include "parallel.h"
#include "product.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace lwm {
namespace {

using Activations = ffi::Buffer<ffi::F32>;
using Results = ffi::Result<ffi::Buffer<ffi::F32>>;

// Bytes of weights below which a thread more takes longer to wake than it saves.
constexpr int64_t kSmall = 1 << 16;

// Shares columns of a result between threads, in pieces of `fewest` to `most`, a multiple of the
// first, and twice as many pieces as threads: one may be slower.
template <class Work>
void share(ffi::ThreadPool& pool, int64_t bytes, int64_t width, int64_t fewest, int64_t most,
           Work work) {
  const int64_t threads = bytes <= kSmall ? 1 : std::max<int64_t>(1, pool.num_threads());
  const int64_t even = threads == 1 ? width : (width + 2 * threads - 1) / (2 * threads);
  const int64_t piece = std::clamp((even + fewest - 1) / fewest * fewest, fewest, most);
  in_parallel(pool, threads, (width + piece - 1) / piece, [=](int64_t i) {
    work(i * piece, std::min(width, (i + 1) * piece));
  });
}

bool fits(const Sizes& sizes, const Activations& x, Results& y, int64_t weights) {
  return x.dimensions().size() == 2 && y->dimensions().size() == 2 &&
         y->dimensions()[0] == sizes.rows && weights == sizes.depth * sizes.width;
}

template <class Weight, class Scale>
ffi::Error columns(ffi::ThreadPool& pool, const Activations& x, const Weight* w, int64_t stored,
                   const Scale* scale, int64_t scales, Results& y) {
  Sizes sizes{x.dimensions().front(), x.dimensions().back(), y->dimensions().back(), 0};
  constexpr int64_t per_row = kTerms<Weight> / kDeep;
  const int64_t groups = scale == nullptr ? 1 : scales / std::max<int64_t>(1, sizes.width);
  sizes.group = sizes.depth / std::max<int64_t>(1, groups);
  const bool is_even = groups == 1 || (sizes.group * groups == sizes.depth &&
                                       sizes.group % std::max(kNibbles, kDeep) == 0);
  if (!fits(sizes, x, y, stored * per_row) || !is_even) {
    return ffi::Error::InvalidArgument("activations, weight, scales and result do not fit");
  }
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  const Tiles tiles(sizes, sizeof(Weight) / static_cast<double>(per_row), threads);
  Aligned ordered = packed<Weight>(x.typed_data(), sizes);
  multiply_columns(ordered.data(), w, scale, y->typed_data(), sizes, tiles,
                   [&](int64_t count, auto work) { in_parallel(pool, threads, count, work); });
  return ffi::Error::Success();
}

template <class Weight>
ffi::Error rows(ffi::ThreadPool& pool, const Activations& x, const Weight* w, int64_t stored,
                Results& y) {
  const Sizes sizes{x.dimensions().front(), x.dimensions().back(), y->dimensions().back(), 0};
  if (!fits(sizes, x, y, stored)) {
    return ffi::Error::InvalidArgument("activations, weight and result do not fit");
  }
  Aligned ordered = packed_runs(x.typed_data(), sizes);
  const float* factors = ordered.data();
  float* results = y->typed_data();
  share(pool, stored * int64_t{sizeof(Weight)}, sizes.width, 16, 1 << 10,
        [=](int64_t begin, int64_t end) {
          multiply_rows(factors, w, results, sizes, begin, end);
        });
  return ffi::Error::Success();
}

ffi::Error columns_bfloat16(ffi::ThreadPool pool, Activations x, ffi::Buffer<ffi::BF16> w,
                            Results y) {
  const auto* weights = reinterpret_cast<const BFloat16*>(w.typed_data());
  return columns<BFloat16, float>(pool, x, weights, w.element_count(), nullptr, 0, y);
}

ffi::Error columns_int8(ffi::ThreadPool pool, Activations x, ffi::Buffer<ffi::S8> w,
                        ffi::Buffer<ffi::F32> scale, Results y) {
  return columns(pool, x, w.typed_data(), w.element_count(), scale.typed_data(),
                 scale.element_count(), y);
}

ffi::Error columns_int4(ffi::ThreadPool pool, Activations x, ffi::Buffer<ffi::U8> w,
                        ffi::Buffer<ffi::F16> scale, Results y) {
  const auto* weights = reinterpret_cast<const Nibbles*>(w.typed_data());
  const auto* scales = reinterpret_cast<const Float16*>(scale.typed_data());
  return columns(pool, x, weights, w.element_count(), scales, scale.element_count(), y);
}

ffi::Error rows_bfloat16(ffi::ThreadPool pool, Activations x, ffi::Buffer<ffi::BF16> w,
                         Results y) {
  const auto* weights = reinterpret_cast<const BFloat16*>(w.typed_data());
  return rows(pool, x, weights, w.element_count(), y);
}

using Integers = ffi::Buffer<ffi::S32>;

// Stores a new token of each row, and attends from it to its row.
template <class Number, ffi::DataType stored>
ffi::Error attend(ffi::ThreadPool pool, int64_t step, ffi::Buffer<ffi::F32> q,
                  ffi::Buffer<ffi::F32> k, ffi::Buffer<ffi::F32> v, ffi::Buffer<stored> old_keys,
                  ffi::Buffer<stored> old_values, Integers tables, Integers lengths,
                  Integers first, Results out, Results lse,
                  ffi::Result<ffi::Buffer<stored>> new_keys,
                  ffi::Result<ffi::Buffer<stored>> new_values) {
  const auto pages = new_keys->dimensions(), heads = q.dimensions();
  if (pages.size() != 4 || heads.size() != 3 || pages[3] != kPage || heads[2] != pages[2] ||
      heads[1] % pages[1] != 0 || tables.dimensions().size() != 2 ||
      new_keys->typed_data() != old_keys.typed_data() ||
      new_values->typed_data() != old_values.typed_data()) {
    return ffi::Error::InvalidArgument("queries and pages do not fit, or pages were copied");
  }
  const PageSizes sizes{pages[1], heads[1] / pages[1], heads[2], tables.dimensions()[1], step};
  auto* keys = reinterpret_cast<Number*>(new_keys->typed_data());
  auto* values = reinterpret_cast<Number*>(new_values->typed_data());
  std::vector<Row> rows;
  for (int64_t r = 0; r < heads[0]; ++r) {
    rows.push_back({q.typed_data() + r * heads[1] * heads[2],
                    tables.typed_data() + r * sizes.entries, lengths.typed_data()[r],
                    first.typed_data()[r]});
    const int64_t at = r * sizes.heads * sizes.width;
    store(rows[r], k.typed_data() + at, v.typed_data() + at, sizes, keys, values);
  }
  Parts parts(std::move(rows), sizes);
  const int64_t bytes = parts.pages() * kPage * sizes.width * 2 * int64_t{sizeof(Number)};
  const int64_t threads = bytes <= kSmall ? 1 : std::max<int64_t>(1, pool.num_threads());
  in_parallel(pool, threads, parts.count(), [&, keys, values](int64_t i) {
    parts.attend(i, keys, values);
  });
  parts.merge(out->typed_data(), lse->typed_data());
  return ffi::Error::Success();
}

// Binds the thread pool, activations, a weight and the result.
template <ffi::DataType weight>
auto plain() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Activations>()
      .Arg<ffi::Buffer<weight>>()
      .template Ret<ffi::Buffer<ffi::F32>>();
}

// Binds the thread pool, activations, a weight, its scales and the result.
template <ffi::DataType weight, ffi::DataType scale>
auto scaled() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Activations>()
      .Arg<ffi::Buffer<weight>>()
      .template Arg<ffi::Buffer<scale>>()
      .template Ret<ffi::Buffer<ffi::F32>>();
}

template <ffi::DataType stored>
auto pages() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .template Attr<int64_t>("step")
      .template Arg<Activations>()
      .template Arg<Activations>()
      .template Arg<Activations>()
      .template Arg<ffi::Buffer<stored>>()
      .template Arg<ffi::Buffer<stored>>()
      .template Arg<Integers>()
      .template Arg<Integers>()
      .template Arg<Integers>()
      .template Ret<ffi::Buffer<ffi::F32>>()
      .template Ret<ffi::Buffer<ffi::F32>>()
      .template Ret<ffi::Buffer<stored>>()
      .template Ret<ffi::Buffer<stored>>();
}

}  // namespace
}  // namespace lwm

XLA_FFI_DEFINE_HANDLER_SYMBOL(product_columns_bfloat16, lwm::columns_bfloat16,
                              lwm::plain<ffi::BF16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(product_columns_int8, lwm::columns_int8,
                              (lwm::scaled<ffi::S8, ffi::F32>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(product_columns_int4, lwm::columns_int4,
                              (lwm::scaled<ffi::U8, ffi::F16>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(product_rows_bfloat16, lwm::rows_bfloat16,
                              lwm::plain<ffi::BF16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(attend_float32, (lwm::attend<float, ffi::F32>),
                              lwm::pages<ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(attend_bfloat16, (lwm::attend<lwm::BFloat16, ffi::U16>),
                              lwm::pages<ffi::U16>());
