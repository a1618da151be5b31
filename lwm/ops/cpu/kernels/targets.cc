// Products of `product.h`, and attention of `attention.h`, as functions that XLA calls.

#include <algorithm>
#include <cstdint>

#include "attention.h"
#include "many.h"
#include "parallel.h"
#include "product.h"
#include "reading.h"
#include "tiles.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace lwm {
namespace {

using Activations = ffi::Buffer<ffi::F32>;
using Results = ffi::Result<ffi::Buffer<ffi::F32>>;

// Rows up to which weights are widened in registers, for each of them.
constexpr int64_t kFew = 16;
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

using Rest = ffi::RemainingArgs;

// Multiplies with a weight of any kind; its other arrays follow in the order of `Weight`.
template <class Number>
ffi::Error columns(ffi::ThreadPool& pool, const Activations& x, ffi::AnyBuffer w, Rest rest,
                   Results& y) {
  const Sizes sizes{x.dimensions().front(), x.dimensions().back(), y->dimensions().back()};
  Weight<Number> weight{static_cast<const Number*>(w.untyped_data())};
  const int64_t groups = sizes.depth / kGroup * sizes.width;
  bool fit = int64_t(w.element_count()) * kTerms<Number> == sizes.depth * sizes.width * kDeep;
  for (size_t i = 0; i < rest.size(); ++i) {
    const auto array = rest.get<ffi::AnyBuffer>(i);
    if (array.has_error()) return array.error();
    const void* data = array->untyped_data();
    const bool is_grouped = int64_t(array->element_count()) == groups && sizes.depth % kGroup == 0;
    switch (array->element_type()) {
      case ffi::F32:
        weight.columns = static_cast<const float*>(data);
        fit &= int64_t(array->element_count()) == sizes.width;
        break;
      case ffi::F16:
        (i == 0 ? weight.scales : weight.minimums) = static_cast<const Float16*>(data);
        fit &= is_grouped;
        break;
      default:
        weight.high = static_cast<const uint32_t*>(data);
        fit &= is_grouped && array->element_type() == ffi::U32;
    }
  }
  if (!fit || y->dimensions()[0] != sizes.rows) {
    return ffi::Error::InvalidArgument("activations, weight, scales and result do not fit");
  }
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  const auto parallel = [&](int64_t count, auto work) { in_parallel(pool, threads, count, work); };
  if (sizes.rows > kFew) {
    multiply_many(x.typed_data(), weight, y->typed_data(), sizes, parallel);
    return ffi::Error::Success();
  }
  const Tiles tiles(sizes, sizeof(Number) * kDeep / double(kTerms<Number>), threads);
  multiply_columns(x.typed_data(), weight, y->typed_data(), sizes, tiles, parallel);
  return ffi::Error::Success();
}

ffi::Error any_columns(ffi::ThreadPool pool, Activations x, ffi::AnyBuffer w, Rest rest,
                       Results y) {
  switch (w.element_type()) {
    case ffi::F32:
      return columns<float>(pool, x, w, rest, y);
    case ffi::BF16:
      return columns<BFloat16>(pool, x, w, rest, y);
    case ffi::S8:
      return columns<int8_t>(pool, x, w, rest, y);
    case ffi::U8:
      return columns<Nibbles>(pool, x, w, rest, y);
    default:
      return ffi::Error::InvalidArgument("no weight of a known type");
  }
}

// Multiplies with a transposed weight, [width, depth].
template <class Number>
ffi::Error rows(ffi::ThreadPool& pool, const Activations& x, ffi::AnyBuffer w, Results& y) {
  const Sizes sizes{x.dimensions().front(), x.dimensions().back(), y->dimensions().back()};
  if (int64_t(w.element_count()) != sizes.depth * sizes.width || y->dimensions()[0] != sizes.rows) {
    return ffi::Error::InvalidArgument("activations, weight and result do not fit");
  }
  Aligned ordered = packed_runs(x.typed_data(), sizes);
  const auto* weight = static_cast<const Number*>(w.untyped_data());
  const float* factors = ordered.data();
  float* results = y->typed_data();
  share(pool, w.size_bytes(), sizes.width, 16, 1 << 10, [=](int64_t begin, int64_t end) {
    multiply_rows(factors, weight, results, sizes, begin, end);
  });
  return ffi::Error::Success();
}

ffi::Error any_rows(ffi::ThreadPool pool, Activations x, ffi::AnyBuffer w, Results y) {
  if (w.element_type() == ffi::F32) return rows<float>(pool, x, w, y);
  if (w.element_type() == ffi::BF16) return rows<BFloat16>(pool, x, w, y);
  return ffi::Error::InvalidArgument("no weight of a known type");
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
  if (pages.size() != 4 || heads.size() != 3 || pages[3] != kPage || pages[2] != heads[2] + kScale<Number> ||
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
  const int64_t bytes = parts.pages() * page_size<Number>(sizes.width) * 2 * int64_t{sizeof(Number)};
  const int64_t threads = bytes <= kSmall ? 1 : std::max<int64_t>(1, pool.num_threads());
  in_parallel(pool, threads, parts.count(), [&, keys, values](int64_t i) {
    parts.attend(i, keys, values);
  });
  parts.merge(out->typed_data(), lse->typed_data());
  return ffi::Error::Success();
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

// Attends from new tokens of each row, which are stored, to the pages of the row.
template <class Number, ffi::DataType stored>
ffi::Error read_pages(ffi::ThreadPool pool, int64_t step, ffi::AnyBuffer q,
                      ffi::Buffer<stored> keys, ffi::Buffer<stored> values, Integers tables,
                      Integers lengths, Integers first, Results out, Results lse) {
  const auto pages = keys.dimensions(), heads = q.dimensions();
  if (pages.size() != 4 || heads.size() != 4 || pages[3] != kPage ||
      pages[2] != heads[3] + kScale<Number> || heads[2] % pages[1] != 0 ||
      tables.dimensions().size() != 2) {
    return ffi::Error::InvalidArgument("queries and pages do not fit");
  }
  const ChunkSizes sizes{
      {pages[1], heads[2] / pages[1], heads[3], tables.dimensions()[1], step}, heads[0], heads[1]};
  const Places places{tables.typed_data(), lengths.typed_data(), first.typed_data()};
  const auto* key = reinterpret_cast<const Number*>(keys.typed_data());
  const auto* value = reinterpret_cast<const Number*>(values.typed_data());
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  const auto run = [&](auto read, const auto* queries) {
    read(queries, places, key, value, sizes, threads, out->typed_data(), lse->typed_data(),
         [&](int64_t count, auto work) { in_parallel(pool, threads, count, work); });
    return ffi::Error::Success();
  };
  const auto vectors = [](auto... given) { read_chunks<VectorMath>(given...); };
  const void* all = q.untyped_data();
  if (q.element_type() == ffi::F32) return run(vectors, static_cast<const float*>(all));
  if (q.element_type() != ffi::BF16) {
    return ffi::Error::InvalidArgument("no queries of a known type");
  }
  const auto* narrow = static_cast<const BFloat16*>(all);
#if defined(LWM_TILES)
  if constexpr (std::is_same_v<Number, BFloat16>) {
    const auto tiles = [](auto... given) { read_chunks<TileMath>(given...); };
    if (may_use_tiles()) return run(tiles, narrow);
  }
#endif
  return run(vectors, narrow);
}

template <ffi::DataType stored>
auto chunks() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .template Attr<int64_t>("step")
      .template Arg<ffi::AnyBuffer>()
      .template Arg<ffi::Buffer<stored>>()
      .template Arg<ffi::Buffer<stored>>()
      .template Arg<Integers>()
      .template Arg<Integers>()
      .template Arg<Integers>()
      .template Ret<ffi::Buffer<ffi::F32>>()
      .template Ret<ffi::Buffer<ffi::F32>>();
}

}  // namespace
}  // namespace lwm

XLA_FFI_DEFINE_HANDLER_SYMBOL(product_columns, lwm::any_columns,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<lwm::Activations>()
                                  .Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::Buffer<ffi::F32>>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(product_rows, lwm::any_rows,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<lwm::Activations>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(attend_float32, (lwm::attend<float, ffi::F32>),
                              lwm::pages<ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(attend_int8, (lwm::attend<int8_t, ffi::S8>), lwm::pages<ffi::S8>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(attend_bfloat16, (lwm::attend<lwm::BFloat16, ffi::U16>),
                              lwm::pages<ffi::U16>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(read_float32, (lwm::read_pages<float, ffi::F32>),
                              lwm::chunks<ffi::F32>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(read_int8, (lwm::read_pages<int8_t, ffi::S8>),
                              lwm::chunks<ffi::S8>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(read_bfloat16, (lwm::read_pages<lwm::BFloat16, ffi::U16>),
                              lwm::chunks<ffi::U16>());
