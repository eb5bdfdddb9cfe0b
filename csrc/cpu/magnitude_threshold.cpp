// The k-th smallest magnitude of a list of tensors, and the masks that prune k weights.
//
// A sample places a narrow window around the k-th magnitude; one pass over the weights counts those below the window
// and collects the one or two per cent inside; the k-th is then found among these, in cache. The same pass writes the
// masks as if the middle of the window were the k-th: few of the collected weights lie between the two, and only their
// places are written once more. Should the sample mislead (by bad luck, or by ties in their millions), histograms of
// ever narrower ranges of magnitudes find the k-th in a number of passes that depends on the format alone. Every route
// is exact, so neither the sample nor the number of threads shows in the result. Memory: the collected keys and their
// places, and some 60 bytes per 16,384 weights.
#include "ops/magnitude_threshold.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/flat_view.h"
#include "cpu/parallel.h"

namespace lth_fast {
namespace {

// ---- the weights as one sequence ----

// A run of weights of one tensor, in flat order.
struct Chunk {
  size_t tensor;
  int64_t first;
  int64_t count;
};

template <typename Key>
struct Buffers {
  Key weights[kMagnitudeChunk];
  uint8_t mask[kMagnitudeChunk];
  Key inside[kMagnitudeChunk + kMagnitudeSlack];
  int32_t places[kMagnitudeChunk + kMagnitudeSlack];
};

// Runs of neighbouring weights: a run costs one wait for the memory, as a single weight would.
template <typename Key>
struct Sample {
  static constexpr int64_t kRun = 16;
  // In the place of a pruned weight, and behind the end of a tensor: above every window.
  static constexpr Key kNone = std::numeric_limits<Key>::max();

  std::vector<Key> keys;  // of all runs
  int64_t places = 0;     // drawn, those of pruned weights included

  struct Count {
    double count;
    double deviation;  // standard deviation
  };

  // How many of the sample lie inside. Neighbouring weights may be alike and tensors differ, so the deviation is
  // measured: the runs lie evenly over the weights, and from one to the next there is little but chance (Wolter,
  // "Introduction to Variance Estimation", 2007, section 8.2: successive differences of a systematic sample).
  Count count(MagnitudeWindow<Key> window) const {
    int64_t total = 0, squares = 0;
    Key previous = 0;
    for (size_t first = 0; first < keys.size(); first += kRun) {
      Key inside = 0;
      for (size_t i = first; i < first + kRun; ++i) inside += (window.low <= keys[i]) & (keys[i] <= window.high);
      const int64_t difference = inside - previous;
      if (first != 0) squares += difference * difference;
      total += inside;
      previous = inside;
    }
    return {static_cast<double>(total), std::sqrt(static_cast<double>(squares) / 2)};
  }
};

template <typename Key>
class Weights {
 public:
  Weights(at::TensorList weights, const OptionalMasks& masks) {
    for (size_t tensor = 0; tensor < weights.size(); ++tensor) {
      views_.emplace_back(weights[tensor]);
      const std::optional<at::Tensor> mask = masks.get(tensor);
      masks_.push_back(mask.has_value() ? std::make_optional(FlatView<uint8_t>(*mask)) : std::nullopt);
      const int64_t count = views_.back().size();
      for (int64_t first = 0; first < count; first += kMagnitudeChunk) {
        chunks_.push_back({tensor, first, std::min<int64_t>(count - first, kMagnitudeChunk)});
      }
      total_ += count;
    }
  }

  int64_t total() const { return total_; }
  // In the order of the weights.
  const std::vector<Chunk>& chunks() const { return chunks_; }

  // Calls work(index, weights, mask, buffers) for every one of `chunks`, in parallel; `mask` is null where all survive.
  template <typename Work>
  void for_each(const std::vector<Chunk>& chunks, const Work& work) const {
    constexpr int64_t grain = kWeightsPerTask / kMagnitudeChunk;
    at::parallel_for(0, static_cast<int64_t>(chunks.size()), grain, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<Buffers<Key>> buffers(new Buffers<Key>);  // uninitialized, unlike std::make_unique
      for (auto index = static_cast<size_t>(begin); index < static_cast<size_t>(end); ++index) {
        const auto [tensor, first, count] = chunks[index];
        const auto& mask = masks_[tensor];
        work(index, views_[tensor].read(first, count, buffers->weights),
             mask.has_value() ? mask->read(first, count, buffers->mask) : nullptr, *buffers);
      }
    });
  }

  // Runs of about `size` places in all, spread over the weights. Within its stretch of the sequence every run is
  // shifted by a fixed irregular amount: weights often have a period (rows, filters) that an even step would fall into.
  Sample<Key> sample(int64_t size) const {
    constexpr int64_t run = Sample<Key>::kRun;
    const int64_t runs = size / run;
    const int64_t stretch = total_ / runs;
    Sample<Key> sample;
    sample.keys.resize(static_cast<size_t>(runs * run), Sample<Key>::kNone);
    size_t tensor = 0;
    int64_t start = 0;  // of the tensor in the sequence
    for (int64_t i = 0; i < runs; ++i) {
      const uint64_t irregular = (static_cast<uint64_t>(i) * UINT64_C(0x9e3779b97f4a7c15)) >> 32;
      const int64_t shift = static_cast<int64_t>((irregular * static_cast<uint64_t>(stretch)) >> 32);
      const int64_t place = i * stretch + shift;
      while (place >= start + views_[tensor].size()) start += views_[tensor++].size();
      // Whole lines of the cache; where a tensor ends, so does its last run.
      const int64_t first = (place - start) / run * run;
      const int64_t count = std::min(run, views_[tensor].size() - first);
      Key weights[run];
      uint8_t mask[run];
      const Key* const from = views_[tensor].read(first, count, weights);
      const uint8_t* const survives = masks_[tensor].has_value() ? masks_[tensor]->read(first, count, mask) : nullptr;
      Key* const keys = sample.keys.data() + i * run;
      for (int64_t j = 0; j < count; ++j) {
        const bool is_survivor = survives == nullptr || survives[j];
        keys[j] = is_survivor ? from[j] & std::numeric_limits<Key>::max() : Sample<Key>::kNone;
      }
      sample.places += count;
    }
    return sample;
  }

 private:
  std::vector<FlatView<Key>> views_;
  std::vector<std::optional<FlatView<uint8_t>>> masks_;
  std::vector<Chunk> chunks_;
  int64_t total_ = 0;
};

// ---- selection by histograms ----

// The wanted key is the one of this rank, counted from 0, among the `count` keys inside the window.
template <typename Key>
struct Wanted {
  MagnitudeWindow<Key> window;
  int64_t rank;
  int64_t count;

  bool found() const { return window.low == window.high; }
};

// Equal ranges of keys that cover a window; the last bin takes the keys outside of it, so that counting never branches.
template <typename Key>
class Histogram {
 public:
  explicit Histogram(MagnitudeWindow<Key> window)
      : window_(window),
        span_(static_cast<Unsigned>(static_cast<Unsigned>(window.high) - static_cast<Unsigned>(window.low))) {
    while ((span_ >> shift_) >= static_cast<Unsigned>(kBins)) ++shift_;
  }

  void count(const Key* weights, const uint8_t* mask, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      const Key key = weights[i] & std::numeric_limits<Key>::max();
      // Below the window the difference wraps around and is large.
      const auto offset = static_cast<Unsigned>(static_cast<Unsigned>(key) - static_cast<Unsigned>(window_.low));
      const bool inside = (offset <= span_) & (mask == nullptr || mask[i]);
      ++bins_[inside ? static_cast<size_t>(offset >> shift_) : kBins];
    }
  }

  void add(const Histogram& other) {
    for (size_t bin = 0; bin < kBins; ++bin) bins_[bin] += other.bins_[bin];
  }

  // The same key, wanted within its bin.
  Wanted<Key> narrow(Wanted<Key> wanted) const {
    size_t bin = 0;
    // Within the window, also where another thread changes weights between two passes: select() ends in any case.
    const auto last_bin = static_cast<size_t>(span_ >> shift_);
    for (; wanted.rank >= bins_[bin] && bin < last_bin; ++bin) wanted.rank -= bins_[bin];
    const auto low = static_cast<Key>(window_.low + static_cast<Key>(static_cast<Unsigned>(bin) << shift_));
    const auto last = static_cast<Key>((Unsigned{1} << shift_) - 1);
    // Compared as differences: low + last may pass the largest key.
    const Key high = window_.high - low < last ? window_.high : static_cast<Key>(low + last);
    return {{low, high}, wanted.rank, bins_[bin]};
  }

 private:
  using Unsigned = std::make_unsigned_t<Key>;
  static constexpr size_t kBins = 2048;  // 16 KiB of counters: half of a small L1

  MagnitudeWindow<Key> window_;
  Unsigned span_;  // from its lower end to its upper one
  int shift_ = 0;
  std::array<int64_t, kBins + 1> bins_{};
};

template <typename Key>
struct Filtered {
  std::unique_ptr<Key[]> keys;
  int64_t below;   // the window
  int64_t inside;  // ended early if above the capacity
};

// The keys that the window holds.
template <typename Key>
Filtered<Key> filter(const MagnitudeKernels<Key>& kernels, const Key* keys, size_t count, MagnitudeWindow<Key> window,
                     size_t capacity) {
  std::unique_ptr<Key[]> inside(new Key[capacity + kMagnitudeChunk + kMagnitudeSlack]);
  MagnitudeCounts<Key> counts{};
  for (size_t first = 0; first < count && static_cast<size_t>(counts.inside) <= capacity; first += kMagnitudeChunk) {
    const size_t chunk = std::min(count - first, kMagnitudeChunk);
    const auto part = kernels.scan(keys + first, nullptr, chunk, window, inside.get() + counts.inside);
    counts.below += part.below;
    counts.inside += part.inside;
  }
  return {std::move(inside), counts.below, counts.inside};
}

template <typename Key>
Wanted<Key> select(const MagnitudeKernels<Key>& kernels, const Key* keys, size_t count, Wanted<Key> wanted) {
  std::unique_ptr<Key[]> inside;
  while (!wanted.found()) {
    if (static_cast<size_t>(wanted.count) < count / 8) {  // little memory, and worth it: filtering is the faster pass
      inside = filter(kernels, keys, count, wanted.window, static_cast<size_t>(wanted.count)).keys;
      keys = inside.get();
      count = static_cast<size_t>(wanted.count);
    }
    Histogram<Key> histogram(wanted.window);
    histogram.count(keys, nullptr, count);
    wanted = histogram.narrow(wanted);
  }
  return wanted;
}

// The same among keys that all lie in the window. In a narrow window they lie almost evenly, so that the rank tells the
// place; where they do not, one fast pass was in vain.
template <typename Key>
Wanted<Key> select_by_place(const MagnitudeKernels<Key>& kernels, const Key* keys, const Wanted<Key>& wanted) {
  constexpr double reach = 1.0 / 64;  // to either side; of 10,000 even keys that is 3 standard deviations
  const auto count = static_cast<size_t>(wanted.count);
  const double place = static_cast<double>(wanted.rank) / static_cast<double>(wanted.count);
  const auto [low, high] = wanted.window;
  const auto key_at = [low = low, width = static_cast<double>(high - low)](double share) {
    return static_cast<Key>(low + static_cast<Key>(share * width));
  };
  const MagnitudeWindow<Key> window{key_at(std::max(0.0, place - reach)), key_at(std::min(1.0, place + reach))};
  const Filtered<Key> near = filter(kernels, keys, count, window, count / 16);
  const int64_t rank = wanted.rank - near.below;
  if (rank < 0 || rank >= near.inside || static_cast<size_t>(near.inside) > count / 16) {
    return select(kernels, keys, count, wanted);
  }
  return select(kernels, near.keys.get(), static_cast<size_t>(near.inside), {window, rank, near.inside});
}

template <typename Key>
Wanted<Key> narrow(const Weights<Key>& weights, const Wanted<Key>& wanted) {
  Histogram<Key> histogram(wanted.window);
  std::mutex mutex;
  weights.for_each(weights.chunks(), [&](size_t index, const Key* chunk, const uint8_t* mask, Buffers<Key>&) {
    Histogram<Key> part(wanted.window);
    part.count(chunk, mask, static_cast<size_t>(weights.chunks()[index].count));
    const std::lock_guard<std::mutex> lock(mutex);
    histogram.add(part);
  });
  return histogram.narrow(wanted);
}

// ---- the sample ----

// Up to this many weights are all collected, without a sample.
constexpr int64_t kFewWeights = 1 << 13;
constexpr int64_t kLargestSample = 1 << 15;
// The window's reach to either side of the k-th, in standard deviations of its rank in the sample. The k-th lies
// outside in one call of 16,000, which then takes about three times as long; a wider window would make every call pay.
constexpr double kDeviations = 4;
// Bounds of the memory for collected keys and their places.
constexpr double kMemoryShare = 0.026;  // of the weights' memory, ...
constexpr int64_t kFewKeys = 1 << 17;   // ... but room for this many in any case

template <typename Key>
struct Guess {
  MagnitudeWindow<Key> window;
  int64_t capacity;              // enough for the keys inside, unless the sample misleads
  std::optional<Key> threshold;  // the likeliest one, in the window; none without a sample
};

// `bytes` are taken by what is collected of a weight.
template <typename Key>
Guess<Key> guess_window(const Weights<Key>& weights, const MagnitudeKernels<Key>& kernels, int64_t k, Key infinity,
                        size_t bytes) {
  // Zeros need no collecting, be they in their millions: below a window that begins at 1 there is nothing else.
  const MagnitudeWindow<Key> finite{1, static_cast<Key>(infinity - 1)};
  const int64_t total = weights.total();
  if (total <= kFewWeights) return {finite, total, std::nullopt};
  // A sample of s leaves about total / sqrt(s) keys in the window; both numbers are the same at total^(2/3).
  const auto balanced = static_cast<int64_t>(std::pow(static_cast<double>(total), 2.0 / 3.0));
  // Where more is kept of a weight, fewer are to be kept.
  const int64_t largest = bytes > sizeof(Key) ? 2 * kLargestSample : kLargestSample;
  const Sample<Key> sample = weights.sample(std::min(balanced, largest));
  // Without NaN, which no window holds: looked for among others it would never be found.
  const int64_t seen = std::count_if(sample.keys.begin(), sample.keys.end(), [&](Key key) { return key <= infinity; });
  if (seen == 0) return {finite, std::min(total, kFewKeys), std::nullopt};

  const MagnitudeWindow<Key> everything{0, infinity};
  Histogram<Key> histogram(everything);
  histogram.count(sample.keys.data(), nullptr, sample.keys.size());
  const auto key_at = [&](int64_t rank) {
    const Wanted<Key> wanted = histogram.narrow({everything, std::clamp<int64_t>(rank, 0, seen - 1), seen});
    const Key key = select(kernels, sample.keys.data(), sample.keys.size(), wanted).window.low;
    return std::clamp(key, finite.low, finite.high);
  };
  // Places of pruned weights count as drawn but not as seen, so the survivors need not be counted beforehand.
  const double scale = static_cast<double>(total) / static_cast<double>(sample.places);
  const double rank = std::clamp(static_cast<double>(k) / scale, 0.0, static_cast<double>(sample.places));
  const Key near = key_at(static_cast<int64_t>(rank));
  const double reach = kDeviations * (sample.count({0, near}).deviation + 1);
  const auto first = static_cast<int64_t>(std::floor(rank - reach));
  const auto last = static_cast<int64_t>(std::ceil(rank + reach));
  const MagnitudeWindow<Key> window{first < 0 ? finite.low : key_at(first), last >= seen ? finite.high : key_at(last)};

  const auto [inside, deviation] = sample.count(window);
  const auto expected = static_cast<int64_t>((inside + kDeviations * (deviation + 1)) * scale);
  const double most = kMemoryShare * static_cast<double>(total) * sizeof(Key) / static_cast<double>(bytes);
  return {window, std::min(expected, std::max(static_cast<int64_t>(most), std::min(total, kFewKeys))), near};
}

// ---- the k-th smallest ----

template <typename Key>
struct Threshold {
  Key key;
  int64_t tie_budget;  // how many of the survivors with this key are pruned
  int64_t survivors;
};

// Masks for weights of the same shapes, and where those of a chunk go.
class Masks {
 public:
  explicit Masks(at::TensorList weights) {
    for (const at::Tensor& weight : weights) {
      bytes_ += weight.numel();
      masks_.push_back(at::empty(weight.sizes(), weight.options().dtype(at::kBool)));
      data_.push_back(reinterpret_cast<uint8_t*>(masks_.back().mutable_data_ptr<bool>()));
      populate(data_.back(), masks_.back().nbytes());
    }
  }

  uint8_t* of(const Chunk& chunk) const { return data_[chunk.tensor] + chunk.first; }
  // Whether the first have left the caches before the last are written.
  bool more_than_cached() const { return bytes_ > kMoreThanCached; }
  const std::vector<at::Tensor>& tensors() const { return masks_; }

 private:
  static constexpr int64_t kMoreThanCached = 1 << 23;

  // Asks for the pages of new memory at once: one by one, as they are written, they cost more than the pass that writes
  // them. The kernel may refuse; then they come one by one. A small mask is mostly given memory that was in use before.
  static void populate(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_POPULATE_WRITE)
    constexpr size_t kNewMemory = 1 << 19;
    static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
    if (bytes >= kNewMemory) madvise(reinterpret_cast<void*>(first), last - first, MADV_POPULATE_WRITE);
#else
    (void)memory, (void)bytes;
#endif
  }

  std::vector<at::Tensor> masks_;
  std::vector<uint8_t*> data_;
  int64_t bytes_ = 0;
};

// What a scan that wrote masks left behind: the collected keys of chunk i stand from first[i] to last[i].
template <typename Key>
struct GuessedMasks {
  using Place = uint16_t;
  static_assert(kMagnitudeChunk <= size_t{1} << 16);
  // A second pass over weights in cache is fast, and places of keys as small would double the memory.
  static bool worth_it(const Masks& masks) { return masks.more_than_cached() && sizeof(Key) > sizeof(Place); }

  Key guess;
  std::unique_ptr<Key[]> keys;
  std::unique_ptr<Place[]> places;  // in their chunks
  std::vector<int64_t> first, last;
};

template <typename Key>
class Search {
 public:
  Search(const char* function, const Weights<Key>& weights, const MagnitudeKernels<Key>& kernels, Key infinity)
      : function_(function), weights_(weights), kernels_(kernels), infinity_(infinity) {}

  // Writes `masks`, unless null, in passing if it can: guessed() says so.
  Threshold<Key> find(int64_t k, const Masks* masks) {
    if (masks != nullptr && !GuessedMasks<Key>::worth_it(*masks)) masks = nullptr;
    const size_t bytes = sizeof(Key) + (masks == nullptr ? 0 : sizeof(typename GuessedMasks<Key>::Place));
    const auto [window, capacity, guess] = guess_window(weights_, kernels_, k, infinity_, bytes);
    capacity_ = capacity;
    collected_.reset(new Key[static_cast<size_t>(capacity)]);
    std::optional<GuessedMasks<Key>> guessed;
    if (masks != nullptr && guess.has_value()) {
      const size_t chunks = weights_.chunks().size();
      guessed.emplace();
      guessed->guess = *guess;
      guessed->places.reset(new typename GuessedMasks<Key>::Place[static_cast<size_t>(capacity)]);
      guessed->first.resize(chunks), guessed->last.resize(chunks);
    }
    const MagnitudeCounts<Key> counts = scan(window, masks, guessed ? &*guessed : nullptr);
    TORCH_CHECK_VALUE(0 <= k && k <= counts.survivors, function_, ": k must be between 0 and the ", counts.survivors,
                      " survivors, got ", k);
    if (k == 0) return {0, 0, counts.survivors};

    const int64_t rank = k - 1;
    const int64_t up_to_window = counts.below + counts.inside;
    Wanted<Key> wanted{window, rank - counts.below, counts.inside};
    if (rank < counts.below) {
      wanted = {{0, static_cast<Key>(window.low - 1)}, rank, counts.below};
    } else if (rank >= up_to_window) {
      wanted = {{static_cast<Key>(window.high + 1), static_cast<Key>(infinity_ - 1)},
                rank - up_to_window,
                counts.survivors - up_to_window};
    }
    bool collected = rank >= counts.below && rank < up_to_window && counts.inside <= capacity_;
    if (!collected) guessed.reset();
    while (!collected && !wanted.found()) {
      if (wanted.count <= capacity_) {
        scan(wanted.window, nullptr, nullptr);
        collected = true;
      } else {
        wanted = narrow(weights_, wanted);
      }
    }
    if (collected) wanted = select_by_place(kernels_, collected_.get(), wanted);
    if (guessed) {
      guessed->keys = std::move(collected_);
      guessed_ = std::move(guessed);
    }
    return {wanted.window.low, wanted.rank + 1, counts.survivors};
  }

  const std::optional<GuessedMasks<Key>>& guessed() const { return guessed_; }

 private:
  // Counts, and collects the keys inside the window unless they are more than the capacity.
  MagnitudeCounts<Key> scan(MagnitudeWindow<Key> window, const Masks* masks, GuessedMasks<Key>* guessed) {
    const std::vector<Chunk>& chunks = weights_.chunks();
    std::vector<MagnitudeCounts<Key>> parts(chunks.size());
    std::atomic<int64_t> reserved{0};
    weights_.for_each(chunks, [&](size_t index, const Key* weights, const uint8_t* mask, Buffers<Key>& buffers) {
      const auto count = static_cast<size_t>(chunks[index].count);
      MagnitudeCounts<Key>& part = parts[index];
      if (guessed == nullptr) {
        part = kernels_.scan(weights, mask, count, window, buffers.inside);
      } else {
        part = kernels_.scan_and_prune(weights, mask, count, window, buffers.inside, guessed->guess, buffers.places,
                                       masks->of(chunks[index]), masks->more_than_cached());
      }
      const int64_t place = reserved.fetch_add(part.inside, std::memory_order_relaxed);
      if (place + part.inside > capacity_) return;
      const auto inside = static_cast<size_t>(part.inside);
      std::memcpy(collected_.get() + place, buffers.inside, inside * sizeof(Key));
      if (guessed != nullptr) {
        std::copy(buffers.places, buffers.places + inside, guessed->places.get() + place);
        guessed->first[index] = place;
        guessed->last[index] = place + part.inside;
      }
    });
    MagnitudeCounts<Key> counts{};
    for (size_t index = 0; index < chunks.size(); ++index) {
      TORCH_CHECK_VALUE(parts[index].largest < infinity_, function_, ": weights[", chunks[index].tensor,
                        "] holds NaN or infinity among its survivors; did the training diverge?");
      counts.survivors += parts[index].survivors;
      counts.below += parts[index].below;
      counts.inside += parts[index].inside;
    }
    return counts;
  }

  const char* function_;
  const Weights<Key>& weights_;
  const MagnitudeKernels<Key>& kernels_;
  Key infinity_;
  std::unique_ptr<Key[]> collected_;
  int64_t capacity_ = 0;
  std::optional<GuessedMasks<Key>> guessed_;
};

// ---- the masks ----

// Prunes what is not above the threshold, and returns how many of the survivors of each chunk have its key.
template <typename Key>
std::vector<int64_t> prune_with_ties(const Weights<Key>& weights, const MagnitudeKernels<Key>& kernels, Key threshold,
                                     const Masks& masks) {
  const std::vector<Chunk>& chunks = weights.chunks();
  std::vector<int64_t> ties(chunks.size());
  weights.for_each(chunks, [&](size_t index, const Key* chunk, const uint8_t* mask, Buffers<Key>&) {
    ties[index] = static_cast<int64_t>(kernels.prune(chunk, mask, static_cast<size_t>(chunks[index].count), threshold,
                                                     masks.of(chunks[index]), masks.more_than_cached()));
  });
  return ties;
}

// The same for masks that were written with a guess instead of the threshold.
template <typename Key>
std::vector<int64_t> correct_with_ties(const Weights<Key>& weights, const GuessedMasks<Key>& guessed, Key threshold,
                                       const Masks& masks) {
  const std::vector<Chunk>& chunks = weights.chunks();
  std::vector<int64_t> ties(chunks.size());
  const int64_t grain = kWeightsPerTask / kMagnitudeChunk;
  at::parallel_for(0, static_cast<int64_t>(chunks.size()), grain, [&](int64_t begin, int64_t end) {
    for (auto index = static_cast<size_t>(begin); index < static_cast<size_t>(end); ++index) {
      uint8_t* new_mask = masks.of(chunks[index]);
      int64_t found = 0;
      for (int64_t i = guessed.first[index]; i < guessed.last[index]; ++i) {
        const Key key = guessed.keys[i];
        found += key == threshold;
        if ((key > threshold) != (key > guessed.guess)) new_mask[guessed.places[i]] = key > threshold;
      }
      ties[index] = found;
    }
  });
  return ties;
}

// With every tie pruned, lets those behind the budget survive. Mostly there are a handful in all.
template <typename Key>
void let_ties_survive(const Weights<Key>& weights, const Threshold<Key>& threshold, const std::vector<int64_t>& ties,
                      const Masks& masks) {
  const std::vector<Chunk>& chunks = weights.chunks();
  std::vector<Chunk> overdrawn;
  std::vector<int64_t> budgets;
  int64_t budget = threshold.tie_budget;
  for (size_t index = 0; index < chunks.size(); ++index) {
    if (ties[index] > budget) {
      overdrawn.push_back(chunks[index]);
      budgets.push_back(budget);
    }
    budget -= std::min(budget, ties[index]);
  }
  weights.for_each(overdrawn, [&](size_t index, const Key* chunk, const uint8_t* mask, Buffers<Key>&) {
    uint8_t* new_mask = masks.of(overdrawn[index]);
    int64_t left = budgets[index];
    for (int64_t i = 0; i < overdrawn[index].count; ++i) {
      const bool is_tie = (chunk[i] & std::numeric_limits<Key>::max()) == threshold.key && (mask == nullptr || mask[i]);
      if (is_tie && left-- <= 0) new_mask[i] = 1;
    }
  });
}

// ---- the ops ----

// Calls work(kernels, infinity) for the format of the weights.
template <typename Work>
auto by_format(at::ScalarType type, const Work& work) {
  const KernelTable& table = kernels();
  switch (type) {
    case at::kHalf:
      return work(table.magnitudes_16, int16_t{0x7c00});
    case at::kBFloat16:
      return work(table.magnitudes_16, int16_t{0x7f80});
    case at::kFloat:
      return work(table.magnitudes_32, int32_t{0x7f800000});
    default:
      return work(table.magnitudes_64, int64_t{0x7ff0000000000000});
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> magnitude_threshold(at::TensorList weights, int64_t k,
                                                                   const OptionalMasks& masks) {
  constexpr const char* function = "magnitude_threshold";
  check_magnitude_arguments(function, weights, masks);
  return by_format(weights[0].scalar_type(), [&](const auto& kernels, auto infinity) {
    using Key = decltype(infinity);
    const Weights<Key> sequence(weights, masks);
    const Threshold<Key> threshold = Search<Key>(function, sequence, kernels, infinity).find(k, nullptr);
    at::Tensor value = at::empty({}, weights[0].options());
    std::memcpy(value.mutable_data_ptr(), &threshold.key, sizeof(Key));
    const auto counts = weights[0].options().dtype(at::kLong);
    return std::make_tuple(value, at::scalar_tensor(threshold.tie_budget, counts),
                           at::scalar_tensor(threshold.survivors, counts));
  });
}

std::vector<at::Tensor> prune_by_magnitude(at::TensorList weights, int64_t k, const OptionalMasks& masks) {
  constexpr const char* function = "prune_by_magnitude";
  check_magnitude_arguments(function, weights, masks);
  return by_format(weights[0].scalar_type(), [&](const auto& kernels, auto infinity) {
    using Key = decltype(infinity);
    const Weights<Key> sequence(weights, masks);
    const Masks new_masks(weights);
    Search<Key> search(function, sequence, kernels, infinity);
    const Threshold<Key> threshold = search.find(k, &new_masks);
    const auto& guessed = search.guessed();
    const auto ties = guessed.has_value() ? correct_with_ties(sequence, *guessed, threshold.key, new_masks)
                                          : prune_with_ties(sequence, kernels, threshold.key, new_masks);
    let_ties_survive(sequence, threshold, ties, new_masks);
    return new_masks.tensors();
  });
}

}  // namespace
}  // namespace lth_fast

TORCH_LIBRARY_IMPL(lth_fast, CPU, library) {
  library.impl("magnitude_threshold", lth_fast::magnitude_threshold);
  library.impl("prune_by_magnitude", lth_fast::prune_by_magnitude);
}
