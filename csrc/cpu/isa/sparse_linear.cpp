// Products with the survivors of a sparse matrix, over tiles of samples.
//
// A tile holds up to `lanes` samples, [features][lanes]: the samples lie innermost, so one survivor meets whole vectors
// of them and nothing is ever gathered. The sums of one row stay in registers while its survivors pass by. The columns
// are cut into panels (see sparse_pattern), one for each call, or several joined where tiles are narrow: all rows visit
// one panel of the input while it stays in cache, before the next one; a row's sums wait in the output tile in between.
// A row meets its survivors in ascending order for any panel width, so neither panels nor threads change the bits.
#include <cstring>

#include "eight_by_eight.h"
#include "first_lanes.h"
#include "flush_denormals.h"
#include "intrinsics.h"
#include "table.h"
#include "vector.h"

namespace lth_fast::LTH_FAST_ISA {
namespace {

// The sums of a row must fit the vector registers, with some to spare for the weight: 8 of 16 registers of AVX2 or SSE2
// (four do not hide the latency of the multiply-add), 8 of 32 of AVX-512, whose dot products need 8 more.
#if defined(__AVX512F__)
constexpr size_t kLanes = 128, kLeastLanes = 16;
#elif defined(__AVX2__)
constexpr size_t kLanes = 64, kLeastLanes = 16;
#else
constexpr size_t kLanes = 32, kLeastLanes = 8;
#endif

template <typename Element>
using Eight = typename Lanes<Element>::Vector;

// ---- samples to tiles and back: blocks of eight samples by eight features ----

// Features that pass before the next eight samples: their part of the tile stays in the first-level cache, where its
// lines are completed eight samples at a time.
constexpr size_t kFeaturesPerPass = 64;

template <typename Element>
void to_tile(const Element* input, size_t stride, size_t samples, size_t first, size_t last, Element* tile,
             size_t lanes) {
  const Element absent[kFeaturesPerPass] = {};
  for (size_t pass = first; pass < last; pass += kFeaturesPerPass) {
    const size_t features = last - pass < kFeaturesPerPass ? last - pass : kFeaturesPerPass;
    for (size_t lane = 0; lane < lanes; lane += 8) {
      const Element* rows[8];
      for (size_t i = 0; i < 8; ++i) rows[i] = lane + i < samples ? input + (lane + i) * stride + pass : absent;
      Element* to = tile + pass * lanes + lane;
      size_t feature = 0;
      for (; feature + 8 <= features; feature += 8) {
        Eight<Element> block[8];
        for (size_t i = 0; i < 8; ++i) block[i] = *reinterpret_cast<const Eight<Element>*>(rows[i] + feature);
        EightByEight<Element>::transpose(block);
        for (size_t i = 0; i < 8; ++i) *reinterpret_cast<Eight<Element>*>(to + (feature + i) * lanes) = block[i];
      }
      for (; feature < features; ++feature) {
        for (size_t i = 0; i < 8; ++i) to[feature * lanes + i] = rows[i][feature];
      }
    }
  }
}

template <typename Element>
void from_tile(const Element* tile, size_t lanes, size_t first, size_t last, Element* output, size_t stride,
               size_t samples, bool relu) {
  Element absent[kFeaturesPerPass];
  for (size_t pass = first; pass < last; pass += kFeaturesPerPass) {
    const size_t features = last - pass < kFeaturesPerPass ? last - pass : kFeaturesPerPass;
    for (size_t lane = 0; lane < samples; lane += 8) {
      Element* rows[8];
      for (size_t i = 0; i < 8; ++i) rows[i] = lane + i < samples ? output + (lane + i) * stride + pass : absent;
      const Element* from = tile + pass * lanes + lane;
      size_t feature = 0;
      for (; feature + 8 <= features; feature += 8) {
        Eight<Element> block[8];
        for (size_t i = 0; i < 8; ++i)
          block[i] = *reinterpret_cast<const Eight<Element>*>(from + (feature + i) * lanes);
        EightByEight<Element>::transpose(block);
        if (relu) EightByEight<Element>::positive_part(block);
        for (size_t i = 0; i < 8; ++i) *reinterpret_cast<Eight<Element>*>(rows[i] + feature) = block[i];
      }
      for (; feature < features; ++feature) {
        for (size_t i = 0; i < 8; ++i) {
          const Element element = from[feature * lanes + i];
          rows[i][feature] = relu && element < 0 ? 0 : element;
        }
      }
    }
  }
}

// The survivors of a row in one panel are few and far from those of the next row, so the hardware does not see them
// come. They start anywhere in a cache line: two lines mostly hold them.
constexpr size_t kRowsAhead = 8;

template <typename Element>
inline void prefetch_two_lines(const Element* from) {
  __builtin_prefetch(from);
  __builtin_prefetch(from + 64 / sizeof(Element));
}

// ---- the product ----

template <typename Element, typename Index, size_t kVectors>
void product(const SparsePanel<Index>& panel, const Element* values, const Element* bias, size_t first, size_t last,
             const Element* input, Element* output) {
  using Vector = typename Register<Element>::Vector;
  constexpr size_t lanes = kVectors * Register<Element>::kWidth;
  const int32_t *begin = panel.begin, *end = panel.end;
  for (size_t row = first; row < last; ++row) {
    const int32_t later = begin[row + kRowsAhead < panel.rows ? row + kRowsAhead : row];
    prefetch_two_lines(values + later);
    prefetch_two_lines(panel.indices + later);
    auto* to = reinterpret_cast<Vector*>(output + row * lanes);
    Vector sum[kVectors];
    if (panel.leads) {
      const Element start = bias == nullptr ? Element{0} : bias[row];
      for (size_t k = 0; k < kVectors; ++k) sum[k] = start - Vector{};
    } else {
      for (size_t k = 0; k < kVectors; ++k) sum[k] = to[k];
    }
    for (int32_t survivor = begin[row]; survivor < end[row]; ++survivor) {
      const auto* from = reinterpret_cast<const Vector*>(input + panel.indices[survivor] * lanes);
      const Element value = values[survivor];
      for (size_t k = 0; k < kVectors; ++k) sum[k] += value * from[k];
    }
    for (size_t k = 0; k < kVectors; ++k) to[k] = sum[k];
  }
}

// ---- the gradient of the values: one dot product of a gradient row and an input row per survivor ----

#if defined(__AVX512F__)

// Eight dot products stay in registers until they are added up.
template <typename Element, typename Index, size_t kVectors>
void values_grad(const SparsePanel<Index>& panel, size_t first, size_t last, const Element* grad_output,
                 const Element* input, Element* grad_values, bool accumulate) {
  using Vector = typename Register<Element>::Vector;
  constexpr size_t lanes = kVectors * Register<Element>::kWidth;
  const int32_t *begin = panel.begin, *end = panel.end;
  for (size_t row = first; row < last; ++row) {
    const int32_t later = begin[row + kRowsAhead < panel.rows ? row + kRowsAhead : row];
    prefetch_two_lines(grad_values + later);
    prefetch_two_lines(panel.indices + later);
    const auto* row_gradient = reinterpret_cast<const Vector*>(grad_output + row * lanes);
    Vector gradient[kVectors];
    for (size_t k = 0; k < kVectors; ++k) gradient[k] = row_gradient[k];
    const auto eight_sums = [&](const Index* columns) {
      Vector products[8];
      for (size_t i = 0; i < 8; ++i) {
        const auto* from = reinterpret_cast<const Vector*>(input + columns[i] * lanes);
        products[i] = gradient[0] * from[0];
        for (size_t k = 1; k < kVectors; ++k) products[i] += gradient[k] * from[k];
      }
      return sums_of_eight<Element>(products);
    };
    int32_t survivor = begin[row];
    for (; survivor + 8 <= end[row]; survivor += 8) {
      auto* to = reinterpret_cast<Eight<Element>*>(grad_values + survivor);
      const Eight<Element> sums = eight_sums(panel.indices + survivor);
      *to = accumulate ? *to + sums : sums;
    }
    const int32_t left = end[row] - survivor;
    if (left > 0) {
      Index columns[8];
      FirstLanes<Index>::repeat_first(panel.indices + survivor, left, columns);
      FirstLanes<Element>::store(eight_sums(columns), left, grad_values + survivor, accumulate);
    }
  }
}
#else

// The lanes of a register, folded to eight.
template <typename Element, typename Vector>
inline Eight<Element> fold(const Vector& vector) {
  constexpr size_t parts = sizeof(Vector) / sizeof(Eight<Element>);
  Eight<Element> part[parts];
  std::memcpy(part, &vector, sizeof(vector));
  for (size_t i = 1; i < parts; ++i) part[0] += part[i];
  return part[0];
}

template <typename Element, size_t kVectors, typename Vector>
inline Eight<Element> dot(const Vector (&gradient)[kVectors], const Vector* from) {
  Vector even = gradient[0] * from[0];
  if constexpr (kVectors == 1) {
    return fold<Element>(even);
  } else {
    Vector odd = gradient[1] * from[1];  // two chains: half the latency
    for (size_t k = 2; k < kVectors; k += 2) {
      even += gradient[k] * from[k];
      odd += gradient[k + 1] * from[k + 1];
    }
    return fold<Element>(even + odd);
  }
}

// The first `count` lanes of eight, zeros behind them whatever was there.
template <typename Element>
inline Eight<Element> first_lanes(Eight<Element> eight, int32_t count) {
  using Bits = typename EightByEight<Element>::LaneNumbers;
  const Bits lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return reinterpret_cast<Eight<Element> >(reinterpret_cast<Bits>(eight) & (lane < count));
}

// So many dot products wait, eight lanes each, to be added up eight at a time: a loop for the products and one for the
// sums have one end each that no branch predictor foresees, loops of eight inside of one would have many.
constexpr int32_t kWaiting = 64;

template <typename Element, typename Index, size_t kVectors>
void values_grad(const SparsePanel<Index>& panel, size_t first, size_t last, const Element* grad_output,
                 const Element* input, Element* grad_values, bool accumulate) {
  using Vector = typename Register<Element>::Vector;
  constexpr size_t lanes = kVectors * Register<Element>::kWidth;
  const int32_t *begin = panel.begin, *end = panel.end;
  Eight<Element> products[kWaiting] = {};
  for (size_t row = first; row < last; ++row) {
    const int32_t later = begin[row + kRowsAhead < panel.rows ? row + kRowsAhead : row];
    prefetch_two_lines(grad_values + later);
    prefetch_two_lines(panel.indices + later);
    const auto* row_gradient = reinterpret_cast<const Vector*>(grad_output + row * lanes);
    Vector gradient[kVectors];
    for (size_t k = 0; k < kVectors; ++k) gradient[k] = row_gradient[k];
    for (int32_t survivor = begin[row]; survivor < end[row]; survivor += kWaiting) {
      const int32_t count = end[row] - survivor < kWaiting ? end[row] - survivor : kWaiting;
      for (int32_t i = 0; i < count; ++i) {
        const auto* from = reinterpret_cast<const Vector*>(input + panel.indices[survivor + i] * lanes);
        products[i] = dot<Element, kVectors>(gradient, from);
      }
      for (int32_t i = 0; i < count; i += 8) {
        Eight<Element> sums = EightByEight<Element>::sums(products + i);
        Element* to = grad_values + survivor + i;
        // Behind `count` stand survivors of the row's next panels, whose turn is yet to come: zeros may be written over
        // or added to them, which is faster than single elements. Only the row's own are this thread's to touch.
        if (survivor + i + 8 <= panel.row_end[row]) {
          sums = first_lanes<Element>(sums, count - i);
          auto* eight = reinterpret_cast<Eight<Element>*>(to);
          *eight = accumulate ? *eight + sums : sums;
        } else {
          for (int32_t lane = 0; lane < count - i && lane < 8; ++lane) {
            to[lane] = accumulate ? to[lane] + sums[lane] : sums[lane];
          }
        }
      }
    }
  }
}

#endif

// ---- values in another order ----

// Values are fetched so many before they are copied.
constexpr size_t kAhead = 128;

template <typename Element>
void gather(const Element* values, const int32_t* places, size_t count, Element* to) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Element) == 4) {
    size_t i = 0;
    for (; i + 16 <= count; i += 16)
      _mm512_storeu_ps(to + i, _mm512_i32gather_ps(_mm512_loadu_si512(places + i), values, 4));
    for (; i < count; ++i) to[i] = values[places[i]];
    return;
  }
#endif
  const size_t fetched = count < kAhead ? 0 : count - kAhead;
  for (size_t i = 0; i < fetched; ++i) {
    __builtin_prefetch(values + places[i + kAhead]);
    to[i] = values[places[i]];
  }
  for (size_t i = fetched; i < count; ++i) to[i] = values[places[i]];
}

// ---- the gradient of the bias: sums over the samples, feature by feature ----

// Samples that are added up one after the other before their sum joins the others: rounding errors grow with the
// numbers of both, not with their product.
constexpr size_t kSamplesInARow = 64;

template <typename Element, size_t kVectors>
void add_up(const Element* input, size_t stride, size_t samples, Element* sums) {
  using Vector = typename Register<Element>::Vector;
  Vector total[kVectors] = {};
  for (size_t block = 0; block < samples; block += kSamplesInARow) {
    const size_t end = samples - block < kSamplesInARow ? samples : block + kSamplesInARow;
    Vector sum[kVectors] = {};
    for (size_t sample = block; sample < end; ++sample) {
      const auto* from = reinterpret_cast<const Vector*>(input + sample * stride);
      for (size_t k = 0; k < kVectors; ++k) sum[k] += from[k];
    }
    for (size_t k = 0; k < kVectors; ++k) total[k] += sum[k];
  }
  for (size_t k = 0; k < kVectors; ++k) reinterpret_cast<Vector*>(sums)[k] = total[k];
}

template <typename Element>
void feature_sums(const Element* input, size_t stride, size_t samples, size_t first, size_t last, Element* sums) {
  const FlushDenormals flush;
  constexpr size_t width = Register<Element>::kWidth;
  size_t feature = first;
  for (; feature + 4 * width <= last; feature += 4 * width) {
    add_up<Element, 4>(input + feature, stride, samples, sums + feature);
  }
  for (; feature + width <= last; feature += width)
    add_up<Element, 1>(input + feature, stride, samples, sums + feature);
  for (; feature < last; ++feature) {
    Element total = 0;
    for (size_t block = 0; block < samples; block += kSamplesInARow) {
      const size_t end = samples - block < kSamplesInARow ? samples : block + kSamplesInARow;
      Element sum = 0;
      for (size_t sample = block; sample < end; ++sample) sum += input[sample * stride + feature];
      total += sum;
    }
    sums[feature] = total;
  }
}

// ---- tiles narrower than `kLanes` for what is left of a batch ----

size_t tile_lanes(size_t samples) {
  size_t lanes = kLanes;
  while (lanes > kLeastLanes && samples <= lanes / 2) lanes /= 2;
  return lanes;
}

template <typename Element, typename Index, size_t kVectors = kLanes / Register<Element>::kWidth>
auto product_of(size_t lanes) {
  constexpr size_t here = kVectors * Register<Element>::kWidth;
  if constexpr (here <= kLeastLanes) {
    return product<Element, Index, kVectors>;
  } else {
    return lanes == here ? product<Element, Index, kVectors> : product_of<Element, Index, kVectors / 2>(lanes);
  }
}

template <typename Element, typename Index, size_t kVectors = kLanes / Register<Element>::kWidth>
auto values_grad_of(size_t lanes) {
  constexpr size_t here = kVectors * Register<Element>::kWidth;
  if constexpr (here <= kLeastLanes) {
    return values_grad<Element, Index, kVectors>;
  } else {
    return lanes == here ? values_grad<Element, Index, kVectors> : values_grad_of<Element, Index, kVectors / 2>(lanes);
  }
}

template <typename Element, typename Index>
void product_for_lanes(const SparsePanel<Index>& panel, const Element* values, const Element* bias, size_t first,
                       size_t last, const Element* input, Element* output, size_t lanes) {
  const FlushDenormals flush;
  product_of<Element, Index>(lanes)(panel, values, bias, first, last, input, output);
}

template <typename Element, typename Index>
void values_grad_for_lanes(const SparsePanel<Index>& panel, size_t first, size_t last, const Element* grad_output,
                           const Element* input, Element* grad_values, bool accumulate, size_t lanes) {
  const FlushDenormals flush;
  values_grad_of<Element, Index>(lanes)(panel, first, last, grad_output, input, grad_values, accumulate);
}

template <typename Element>
SparseLinearKernels<Element> kernels() {
  return {tile_lanes,
          to_tile<Element>,
          from_tile<Element>,
          product_for_lanes<Element, int16_t>,
          product_for_lanes<Element, int32_t>,
          values_grad_for_lanes<Element, int16_t>,
          values_grad_for_lanes<Element, int32_t>,
          gather<Element>,
          feature_sums<Element>};
}

}  // namespace

void register_sparse_linear(KernelTable& table) {
  table.sparse_linear_32 = kernels<float>();
  table.sparse_linear_64 = kernels<double>();
}

}  // namespace lth_fast::LTH_FAST_ISA
