// Products with the survivors of a sparse matrix, over tiles of samples.
//
// A tile holds up to `lanes` samples, [features][lanes]: the samples lie innermost, so one survivor meets whole vectors
// of them and nothing is ever gathered. The sums of one line stay in registers while its survivors pass by. The
// features are cut into panels (see sparse_pattern): all lines visit one panel of the input while it stays in cache,
// before the next one. The sums of a panel begin at zero and are added to those of the panels before it, which wait in
// the output tile: rounding errors grow with the numbers of survivors in a panel and of panels, not with their product.
// The panels depend on the mask alone, and so do the bits, whatever the threads. Lines are visited by their number of
// survivors, so that the processor foresees where the next one begins, and values and indices stand in the order of the
// visit.
#include <cstring>

#include "eight_by_eight.h"
#include "first_lanes.h"
#include "flush_denormals.h"
#include "four_survivors.h"
#include "intrinsics.h"
#include "sixteen_by_sixteen.h"
#include "table.h"
#include "tiles.h"
#include "vector.h"

namespace lth_fast::LTH_FAST_ISA {
namespace {

// The sums of a line must fit the vector registers, with some to spare for the weight: 8 of 16 registers of AVX2 or
// SSE2 (four do not hide the latency of the multiply-add); 4 of 32 of AVX-512, for two lines at once.
#if defined(__AVX512F__) || defined(__AVX2__)
constexpr size_t kLanes = 64, kLeastLanes = 16;
#else
constexpr size_t kLanes = 32, kLeastLanes = 8;
#endif

template <typename Element>
using Eight = typename Lanes<Element>::Vector;

// ---- samples to tiles and back ----

// A vector of a sample's features.
template <typename Square, typename Element>
struct RowsOfSamples {
  using Vector = typename Square::Vector;
  const Element* input;
  size_t stride;

  Vector operator()(size_t sample, size_t feature) const {
    return *reinterpret_cast<const Vector*>(input + sample * stride + feature);
  }
};

template <typename Element, bool kSums>
void to_tile_and_sums(const Element* input, size_t stride, size_t samples, size_t first, size_t last, Element* tile,
                      size_t lanes, Element* sums) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Element) == 4) {
    using Square = SixteenBySixteen;
    const RowsOfSamples<Square, Element> rows{input, stride};
    first = squares_to_tile<Square, kSums>(rows, samples, first, last, tile, lanes, sums);
  }
#endif
  using Square = EightByEight<Element>;
  const RowsOfSamples<Square, Element> rows{input, stride};
  first = squares_to_tile<Square, kSums>(rows, samples, first, last, tile, lanes, sums);
  for (; first < last; ++first) {
    Element sum = 0;
    for (size_t lane = 0; lane < lanes; ++lane) {
      const Element element = lane < samples ? input[lane * stride + first] : 0;
      tile[first * lanes + lane] = element;
      sum += element;
    }
    if constexpr (kSums) sums[first] = sum;
  }
}

template <typename Element>
void to_tile(const Element* input, size_t stride, size_t samples, size_t first, size_t last, Element* tile,
             size_t lanes, Element* sums) {
  if (sums == nullptr) return to_tile_and_sums<Element, false>(input, stride, samples, first, last, tile, lanes, sums);
  const FlushDenormals flush;
  to_tile_and_sums<Element, true>(input, stride, samples, first, last, tile, lanes, sums);
}

template <typename Square, bool kTwo, typename Element>
size_t squares_from_tile(const Element* tile, const Element* second, size_t lanes, size_t first, size_t last,
                         Element* output, size_t stride, size_t samples, bool relu, size_t features_per_pass) {
  using Vector = typename Square::Vector;
  return for_each_square<Square>(first, last, samples, features_per_pass, [&](size_t feature, size_t lane) {
    Vector square[Square::kSide];
    for (size_t i = 0; i < Square::kSide; ++i) {
      const size_t at = (feature + i) * lanes + lane;
      square[i] = *reinterpret_cast<const Vector*>(tile + at);
      if constexpr (kTwo) square[i] += *reinterpret_cast<const Vector*>(second + at);
    }
    Square::transpose(square);
    if (relu) Square::positive_part(square);
    for (size_t i = 0; i < Square::kSide; ++i) {
      if (lane + i < samples) *reinterpret_cast<Vector*>(output + (lane + i) * stride + feature) = square[i];
    }
  });
}

// Samples so many bytes apart share one set of the first-level cache, which has room for a dozen of their lines.
constexpr size_t kBytesOfWay = 4096;

template <typename Element, bool kTwo>
void from_tiles(const Element* tile, const Element* second, size_t lanes, size_t first, size_t last, Element* output,
                size_t stride, size_t samples, bool relu) {
  size_t features_per_pass = kFeaturesPerPass;
#if defined(__AVX512F__)
  if constexpr (sizeof(Element) == 4) {
    if (stride * sizeof(Element) % kBytesOfWay != 0) {
      first = squares_from_tile<SixteenBySixteen, kTwo>(tile, second, lanes, first, last, output, stride, samples, relu,
                                                        features_per_pass);
    } else {
      features_per_pass = 128;  // halves of lines
    }
  }
#endif
  first = squares_from_tile<EightByEight<Element>, kTwo>(tile, second, lanes, first, last, output, stride, samples,
                                                         relu, features_per_pass);
  for (size_t lane = 0; lane < samples; ++lane) {
    for (size_t feature = first; feature < last; ++feature) {
      const size_t at = feature * lanes + lane;
      const Element element = kTwo ? tile[at] + second[at] : tile[at];
      output[lane * stride + feature] = relu && element < 0 ? 0 : element;
    }
  }
}

template <typename Element>
void from_tile(const Element* tile, const Element* second, size_t lanes, size_t first, size_t last, Element* output,
               size_t stride, size_t samples, bool relu) {
  if (second == nullptr) {
    return from_tiles<Element, false>(tile, second, lanes, first, last, output, stride, samples, relu);
  }
  const FlushDenormals flush;
  from_tiles<Element, true>(tile, second, lanes, first, last, output, stride, samples, relu);
}

template <typename Element>
void finish_tile(Element* sums, const Element* second, size_t count, bool relu) {
  const FlushDenormals flush;
  for (size_t i = 0; i < count; ++i) {
    const Element sum = second == nullptr ? sums[i] : sums[i] + second[i];
    sums[i] = relu && sum < 0 ? 0 : sum;
  }
}

// ---- the product ----

// The pointer, which the compiler then takes for one it knows nothing of: it keeps the address in one register and adds
// small constants to it in the loads, instead of computing one address for every vector and spilling them.
template <typename T>
inline T* opaque(T* pointer) {
  asm("" : "+r"(pointer));
  return pointer;
}

// Two lines are worked on together where the registers hold their sums: eight hide the latency of the multiply-add.
template <size_t kVectors>
constexpr bool kTwoLines = kVectors <= 4;

// The sums of one line while its survivors pass by.
template <typename Element, size_t kVectors>
struct LineSums {
  using Vector = typename Register<Element>::Vector;
  static constexpr size_t kLanesOfTile = kVectors * Register<Element>::kWidth;

  Vector* at;
  Vector sum[kVectors];

  void add(const Vector& value, const Element* input, size_t feature) {
    const auto* from = opaque(reinterpret_cast<const Vector*>(input + feature * kLanesOfTile));
    for (size_t k = 0; k < kVectors; ++k) sum[k] += value * from[k];
  }
  template <int kNumber, typename Values, typename Index>
  void add(const Values& four_values, const Element* input, const FourIndices<Index>& four_features) {
    add(four_values.template spread<kNumber>(), input, four_features.template at<kNumber>());
  }
  void store(bool leads) const {
    if (leads) {
      for (size_t k = 0; k < kVectors; ++k) at[k] = sum[k];
    } else {
      for (size_t k = 0; k < kVectors; ++k) at[k] += sum[k];
    }
  }
};

// Four survivors at a time: where loads set the pace, this saves up to two of those that a survivor takes.
#if defined(__AVX512F__)
template <typename Element, size_t kVectors, bool kElsewhere>
constexpr bool kByFours = kTwoLines<kVectors>;
#elif defined(__AVX2__)
template <typename Element, size_t kVectors, bool kElsewhere>
constexpr bool kByFours = sizeof(Element) == 4 && !kElsewhere;
#else
template <typename Element, size_t kVectors, bool kElsewhere>
constexpr bool kByFours = false;
#endif

// Whether values that stand far away are fetched before their turn, by so many survivors. Narrower tiles do too little
// with a value to pay for that.
#if defined(__AVX2__) && !defined(__AVX512F__)
template <size_t kVectors>
constexpr bool kFetches = !kTwoLines<kVectors>;
#else
template <size_t kVectors>
constexpr bool kFetches = false;
#endif
constexpr ptrdiff_t kAhead = 64;

template <typename Element, typename Index, size_t kVectors, bool kElsewhere, bool kFetch>
void product(const SparsePanel<Index>& panel, const Element* values, const Element* bias, size_t first, size_t last,
             const Element* input, Element* output) {
  using Sums = LineSums<Element, kVectors>;
  using Vector = typename Sums::Vector;
  const SparsePanel<Index> held = panel;  // whose pointers no store can change
  const ptrdiff_t end_of_lines = held.starts[last];
  const auto load = [&](size_t place, Sums& sums) {
    const auto line = static_cast<size_t>(held.order[place]);
    sums.at = opaque(reinterpret_cast<Vector*>(output + line * Sums::kLanesOfTile));
    const Element start = held.leads && bias != nullptr ? bias[line] : Element{0};
    for (size_t k = 0; k < kVectors; ++k) sums.sum[k] = start - Vector{};
  };
  const auto add = [&](ptrdiff_t survivor, Sums& sums) {
    if constexpr (kFetch) {
      const ptrdiff_t ahead = survivor + kAhead;
      __builtin_prefetch(values + held.places[ahead < end_of_lines ? ahead : survivor]);
    }
    const Element value = values[kElsewhere ? held.places[survivor] : survivor];
    sums.add(value - Vector{}, input, static_cast<size_t>(held.indices[survivor]));
  };
  const auto four_values = [&](ptrdiff_t survivor) {
    if constexpr (kElsewhere) {
      return FourScatteredValues<Element>{values, FourIndices<int32_t>::load(held.places + survivor)};
    } else {
      return FourValues<Element>::load(values + survivor);
    }
  };
  const auto four_features = [&](ptrdiff_t survivor) { return FourIndices<Index>::load(held.indices + survivor); };
  constexpr bool by_fours = kByFours<Element, kVectors, kElsewhere>;
  size_t place = first;
  if constexpr (kTwoLines<kVectors>) {
    for (; place + 2 <= last; place += 2) {
      Sums a, b;
      load(place, a), load(place + 1, b);
      const ptrdiff_t middle = held.starts[place + 1], end = held.starts[place + 2];
      const ptrdiff_t length = middle - held.starts[place];
      ptrdiff_t survivor = middle - length;
      if constexpr (by_fours) {
        for (; survivor + 4 <= middle; survivor += 4) {
          const ptrdiff_t other = survivor + length;
          const auto values_a = four_values(survivor), values_b = four_values(other);
          const auto features_a = four_features(survivor), features_b = four_features(other);
          a.template add<0>(values_a, input, features_a), b.template add<0>(values_b, input, features_b);
          a.template add<1>(values_a, input, features_a), b.template add<1>(values_b, input, features_b);
          a.template add<2>(values_a, input, features_a), b.template add<2>(values_b, input, features_b);
          a.template add<3>(values_a, input, features_a), b.template add<3>(values_b, input, features_b);
        }
      }
      for (; survivor < middle; ++survivor) {
        add(survivor, a), add(survivor + length, b);
      }
      for (survivor += length; survivor < end; ++survivor) add(survivor, b);
      a.store(held.leads), b.store(held.leads);
    }
  }
  for (; place < last; ++place) {
    Sums sums;
    load(place, sums);
    ptrdiff_t survivor = held.starts[place];
    const ptrdiff_t end = held.starts[place + 1];
    if constexpr (by_fours && !kTwoLines<kVectors>) {
      for (; survivor + 4 <= end; survivor += 4) {
        const auto four = four_values(survivor);
        const auto features = four_features(survivor);
        sums.template add<0>(four, input, features), sums.template add<1>(four, input, features);
        sums.template add<2>(four, input, features), sums.template add<3>(four, input, features);
      }
    }
    for (; survivor < end; ++survivor) add(survivor, sums);
    sums.store(held.leads);
  }
}

// ---- the gradient of the values: one dot product of a gradient row and an input row per survivor ----

#if defined(__AVX512F__)

// Dot products of one line, which stay in registers until they are added up.
template <typename Element, typename Index, size_t kVectors>
struct DotProducts {
  using Vector = typename Register<Element>::Vector;
  static constexpr size_t kLanesOfTile = kVectors * Register<Element>::kWidth;

  const Element* input;
  Vector gradient[kVectors];

  // With the features at `columns`; zeros behind the first kCount of eight.
  template <size_t kCount>
  Eight<Element> of(const Index* columns) const {
    Vector products[8] = {};
    for (size_t i = 0; i < kCount; ++i) {
      const auto* from = reinterpret_cast<const Vector*>(input + columns[i] * kLanesOfTile);
      products[i] = gradient[0] * from[0];
      for (size_t k = 1; k < kVectors; ++k) products[i] += gradient[k] * from[k];
    }
    return sums_of_eight<Element>(products);
  }

  // 1 to 7 of them. Lines of one length follow each other, so the processor foresees where this goes.
  Eight<Element> of_few(const Index* columns, ptrdiff_t count) const {
    switch (count) {
      case 1:
        return of<1>(columns);
      case 2:
        return of<2>(columns);
      case 3:
        return of<3>(columns);
      case 4:
        return of<4>(columns);
      case 5:
        return of<5>(columns);
      case 6:
        return of<6>(columns);
      default:
        return of<7>(columns);
    }
  }
};

template <typename Element, typename Index, size_t kVectors>
void values_grad(const SparsePanel<Index>& panel, size_t first, size_t last, const Element* grad_output,
                 const Element* input, Element* grad_values, bool accumulate) {
  using Products = DotProducts<Element, Index, kVectors>;
  for (size_t place = first; place < last; ++place) {
    const auto line = static_cast<size_t>(panel.order[place]);
    const auto* gradient =
        reinterpret_cast<const typename Products::Vector*>(grad_output + line * Products::kLanesOfTile);
    Products products;
    products.input = input;
    for (size_t k = 0; k < kVectors; ++k) products.gradient[k] = gradient[k];
    ptrdiff_t survivor = panel.starts[place];
    const ptrdiff_t end = panel.starts[place + 1];
    for (; survivor + 8 <= end; survivor += 8) {
      auto* to = reinterpret_cast<Eight<Element>*>(grad_values + survivor);
      const Eight<Element> sums = products.template of<8>(panel.indices + survivor);
      *to = accumulate ? *to + sums : sums;
    }
    if (survivor < end) {
      const Eight<Element> sums = products.of_few(panel.indices + survivor, end - survivor);
      store_first(sums, end - survivor, grad_values + survivor, accumulate);
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

// The first `count` lanes of eight; behind them -0, whatever was there: to add it changes nothing, nor the sign of a
// zero.
template <typename Element>
inline Eight<Element> first_lanes(Eight<Element> eight, int32_t count) {
  const typename EightByEight<Element>::LaneNumbers lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return lane < count ? eight : -Eight<Element>{};
}

// So many dot products wait, eight lanes each, to be added up eight at a time: a loop for the products and one for the
// sums have one end each that no branch predictor foresees, loops of eight inside of one would have many.
constexpr int32_t kWaiting = 64;

template <typename Element, typename Index, size_t kVectors>
void values_grad(const SparsePanel<Index>& panel, size_t first, size_t last, const Element* grad_output,
                 const Element* input, Element* grad_values, bool accumulate) {
  using Vector = typename Register<Element>::Vector;
  constexpr size_t lanes = kVectors * Register<Element>::kWidth;
  const int32_t* starts = panel.starts;
  const ptrdiff_t end_of_task = starts[last];
  Eight<Element> products[kWaiting] = {};
  for (size_t place = first; place < last; ++place) {
    const auto* line_gradient = reinterpret_cast<const Vector*>(grad_output + panel.order[place] * lanes);
    const ptrdiff_t end = starts[place + 1];
    Vector gradient[kVectors];
    for (size_t k = 0; k < kVectors; ++k) gradient[k] = line_gradient[k];
    for (ptrdiff_t survivor = starts[place]; survivor < end; survivor += kWaiting) {
      const auto count = static_cast<int32_t>(end - survivor < kWaiting ? end - survivor : kWaiting);
      for (int32_t i = 0; i < count; ++i) {
        const auto* from = reinterpret_cast<const Vector*>(input + panel.indices[survivor + i] * lanes);
        products[i] = dot<Element, kVectors>(gradient, from);
      }
      for (int32_t i = 0; i < count; i += 8) {
        Eight<Element> sums = EightByEight<Element>::sums(products + i);
        Element* to = grad_values + survivor + i;
        // Behind `count` stand survivors of lines whose turn is yet to come: zeros may be written over or added to
        // them, which is faster than single elements. Only those of this call are this thread's to touch.
        if (survivor + i + 8 <= end_of_task) {
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

// ---- the gradient of the bias: sums over the samples, feature by feature ----

// Samples that are added up one after the other before their sum joins the others: rounding errors grow with the
// numbers of both, not with their product.
constexpr size_t kSamplesInARow = 64;

// Vectors of features at a time: totals and sums of a block are twice as many registers.
#if defined(__AVX512F__)
constexpr size_t kSumVectors = 8;
#else
constexpr size_t kSumVectors = 4;
#endif

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
  for (; feature + kSumVectors * width <= last; feature += kSumVectors * width) {
    add_up<Element, kSumVectors>(input + feature, stride, samples, sums + feature);
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

template <size_t kNumber>
struct Vectors {
  static constexpr size_t kCount = kNumber;
};

// Calls work(Vectors<as many as hold a feature of a tile of so many lanes>{}).
template <typename Element, size_t kVectors = kLanes / Register<Element>::kWidth, typename Work>
void with_vectors(size_t lanes, const Work& work) {
  constexpr size_t here = kVectors * Register<Element>::kWidth;
  if constexpr (here > kLeastLanes) {
    if (lanes < here) return with_vectors<Element, kVectors / 2>(lanes, work);
  }
  work(Vectors<kVectors>{});
}

template <typename Element, typename Index>
void product_for_lanes(const SparsePanel<Index>& panel, const Element* values, const Element* bias, size_t first,
                       size_t last, const Element* input, Element* output, size_t lanes) {
  const FlushDenormals flush;
  with_vectors<Element>(lanes, [&](auto vectors) {
    constexpr size_t count = decltype(vectors)::kCount;
    if (panel.places == nullptr) {
      product<Element, Index, count, false, false>(panel, values, bias, first, last, input, output);
    } else if (kFetches<count> && panel.far) {
      product<Element, Index, count, true, kFetches<count>>(panel, values, bias, first, last, input, output);
    } else {
      product<Element, Index, count, true, false>(panel, values, bias, first, last, input, output);
    }
  });
}

template <typename Element, typename Index>
void values_grad_for_lanes(const SparsePanel<Index>& panel, size_t first, size_t last, const Element* grad_output,
                           const Element* input, Element* grad_values, bool accumulate, size_t lanes) {
  const FlushDenormals flush;
  with_vectors<Element>(lanes, [&](auto vectors) {
    constexpr size_t count = decltype(vectors)::kCount;
    values_grad<Element, Index, count>(panel, first, last, grad_output, input, grad_values, accumulate);
  });
}

template <typename Element>
SparseLinearKernels<Element> kernels() {
  return {tile_lanes,
          to_tile<Element>,
          from_tile<Element>,
          finish_tile<Element>,
          product_for_lanes<Element, int16_t>,
          product_for_lanes<Element, int32_t>,
          values_grad_for_lanes<Element, int16_t>,
          values_grad_for_lanes<Element, int32_t>,
          feature_sums<Element>};
}

}  // namespace

void register_sparse_linear(KernelTable& table) {
  table.sparse_linear_32 = kernels<float>();
  table.sparse_linear_64 = kernels<double>();
}

}  // namespace lth_fast::LTH_FAST_ISA
