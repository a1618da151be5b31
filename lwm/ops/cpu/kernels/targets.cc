// Products of `product.h` as functions that XLA calls.

#include <algorithm>
#include <cstdint>

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
  Aligned ordered = packed<Weight>(x.typed_data(), sizes);
  const float* factors = ordered.data();
  float* results = y->typed_data();
  // The sums of a piece stay in the fastest cache; its part of a stored row is long, since no
  // processor guesses where the next one lies.
  const int64_t most = std::clamp<int64_t>((1 << 14) / sizes.rows, 1 << 10, 1 << 12);
  share(pool, stored * int64_t{sizeof(Weight)}, sizes.width, 64, most,
        [=](int64_t begin, int64_t end) {
          multiply_columns(factors, w, scale, results, sizes, begin, end);
        });
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
