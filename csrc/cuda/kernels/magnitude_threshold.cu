// Radix selection: histograms of the keys' digits, from the highest digit down, each over the survivors that share the
// digits found so far. Three passes over float32 weights, two over 16-bit ones, seven over float64.
//
// The key of a magnitude is its bit pattern without the sign, compared as an integer: among the finite numbers of one
// format that is the order of |w|, denormals and -0 included.
#include "cuda/kernels/magnitude_threshold.h"

#include <utility>

#include "cuda/kernels/launch.h"
#include "cuda/kernels/tensor_list.h"

namespace lth_fast::cuda {
namespace {

constexpr int64_t kChunk = 1 << 14;
constexpr int kBins = 1 << 11;
using List = TensorList<MagnitudeTensor, kChunk>;

// The 15, 31 or 63 bits of a key, cut into a first digit of 11 bits and further ones of 10; the last takes the rest.
template <typename Key>
struct Digits {
  static constexpr int kBits = 8 * sizeof(Key) - 1;
  static constexpr int kCount = 1 + (kBits - 11 + 9) / 10;

  __host__ __device__ static int shift(int digit) {
    const int bits_left = kBits - 11 - 10 * digit;
    return bits_left > 0 ? bits_left : 0;
  }
  // The bits above a digit.
  __host__ __device__ static int end(int digit) { return digit == 0 ? kBits : shift(digit - 1); }
};

template <typename Key>
__device__ Key key_of(const void* weights, int64_t index) {
  constexpr Key kWithoutSign = static_cast<Key>(~Key{0}) >> 1;
  return static_cast<const Key*>(weights)[index] & kWithoutSign;
}

__device__ bool survives_mask(const uint8_t* mask, int64_t index) { return mask == nullptr || mask[index] != 0; }

struct Workspace {
  MagnitudeOutcome outcome;
  int64_t rank;  // of the wanted key among those with the digits found so far, counted from 0
  unsigned long long bins[kBins];

  // Behind the struct, one entry per chunk: how many ties it has, then how many of them are pruned (kAllTies: all).
  __host__ __device__ int64_t* ties() { return reinterpret_cast<int64_t*>(this + 1); }
};

constexpr int64_t kAllTies = -1;

// ---- sums over the threads of a block ----

// The sum of `value` over the threads before this one. `shared` holds kThreads numbers.
__device__ int64_t sum_before(int64_t value, int64_t* shared) {
  shared[threadIdx.x] = value;
  __syncthreads();
  for (unsigned distance = 1; distance < kThreads; distance *= 2) {
    const int64_t other = threadIdx.x >= distance ? shared[threadIdx.x - distance] : 0;
    __syncthreads();
    shared[threadIdx.x] += other;
    __syncthreads();
  }
  return shared[threadIdx.x] - value;
}

// ---- selection ----

__global__ void begin(Workspace* workspace, int64_t k) {
  if (threadIdx.x == 0) {
    workspace->outcome = {0, 0, 0, kNoTensor, k};
    workspace->rank = k - 1;
  }
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) workspace->bins[bin] = 0;
}

template <typename Key>
__global__ void count_digits(List list, Workspace* workspace, int digit, Key infinity) {
  __shared__ unsigned bins[kBins];
  if (digit > 0 && workspace->outcome.k <= 0) return;  // nothing to find: the same for every thread
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) bins[bin] = 0;
  __syncthreads();

  const int shift = Digits<Key>::shift(digit), end = Digits<Key>::end(digit);
  const uint64_t digits_above = workspace->outcome.key >> end;
  const uint64_t largest_digit = (uint64_t{1} << (end - shift)) - 1;
  const Chunk chunk = chunk_of_block(list);
  const MagnitudeTensor& tensor = list.tensors[chunk.tensor];
  bool found_infinity = false;
  for (int64_t i = chunk.first + threadIdx.x; i < chunk.first + chunk.count; i += kThreads) {
    if (!survives_mask(tensor.mask, i)) continue;
    const Key key = key_of<Key>(tensor.weights, i);
    found_infinity = found_infinity || key >= infinity;
    const uint64_t wide = key;
    if (wide >> end == digits_above) atomicAdd(&bins[wide >> shift & largest_digit], 1u);
  }
  const bool refused = __syncthreads_or(found_infinity) != 0;

  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
    if (bins[bin] != 0) atomicAdd(&workspace->bins[bin], static_cast<unsigned long long>(bins[bin]));
  }
  if (threadIdx.x == 0 && refused) {
    atomicMin(reinterpret_cast<unsigned long long*>(&workspace->outcome.refused_tensor),
              static_cast<unsigned long long>(list.tensors_before + chunk.tensor));
  }
}

// One block: finds the bin that holds the wanted rank, and empties the bins for the next digit.
template <typename Key>
__global__ void choose_digit(Workspace* workspace, int digit) {
  __shared__ int64_t shared[kThreads];
  constexpr int kBinsPerThread = kBins / kThreads;
  MagnitudeOutcome& outcome = workspace->outcome;
  unsigned long long* bins = workspace->bins + threadIdx.x * kBinsPerThread;
  int64_t sum = 0;
  for (int i = 0; i < kBinsPerThread; ++i) sum += static_cast<int64_t>(bins[i]);
  int64_t before = sum_before(sum, shared);
  if (digit == 0 && threadIdx.x == kThreads - 1) {
    outcome.survivors = before + sum;
    if (outcome.refused_tensor != kNoTensor || outcome.k < 0 || outcome.k > outcome.survivors) outcome.k = kRefused;
  }
  __syncthreads();

  const bool wanted = outcome.k > 0;
  const int64_t rank = workspace->rank;
  __syncthreads();  // every thread has read the rank before one of them changes it
  for (int i = 0; i < kBinsPerThread; ++i) {
    const auto count = static_cast<int64_t>(bins[i]);
    if (wanted && before <= rank && rank < before + count) {
      const auto chosen = static_cast<uint64_t>(threadIdx.x * kBinsPerThread + i);
      outcome.key |= chosen << Digits<Key>::shift(digit);
      outcome.tie_budget = rank - before + 1;  // right after the last digit, when the bin holds equal keys
      workspace->rank = rank - before;
    }
    before += count;
    bins[i] = 0;
  }
}

template <typename Key>
__global__ void copy_outcome(const Workspace* workspace, Key* threshold, int64_t* tie_budget, int64_t* survivors) {
  const MagnitudeOutcome& outcome = workspace->outcome;
  constexpr Key kNaN = static_cast<Key>(~Key{0}) >> 1;
  *threshold = outcome.k == kRefused ? kNaN : static_cast<Key>(outcome.key);
  *tie_budget = outcome.tie_budget;
  *survivors = outcome.survivors;
}

// ---- the masks ----

// Prunes every tie for now, and counts them.
template <typename Key>
__global__ void mark(List list, Workspace* workspace) {
  __shared__ unsigned ties;
  if (threadIdx.x == 0) ties = 0;
  __syncthreads();
  const bool prunes = workspace->outcome.k > 0;
  const auto threshold = static_cast<Key>(workspace->outcome.key);
  const Chunk chunk = chunk_of_block(list);
  const MagnitudeTensor& tensor = list.tensors[chunk.tensor];
  unsigned own_ties = 0;
  for (int64_t i = chunk.first + threadIdx.x; i < chunk.first + chunk.count; i += kThreads) {
    const bool survivor = survives_mask(tensor.mask, i);
    const Key key = key_of<Key>(tensor.weights, i);
    tensor.new_mask[i] = survivor && (!prunes || key > threshold);
    own_ties += survivor && prunes && key == threshold;
  }
  if (own_ties != 0) atomicAdd(&ties, own_ties);
  __syncthreads();
  if (threadIdx.x == 0) workspace->ties()[list.chunks_before + blockIdx.x] = ties;
}

// One block: how many of its ties each chunk may prune, in the order of the chunks.
__global__ void share_tie_budget(Workspace* workspace, int64_t chunks) {
  __shared__ int64_t shared[kThreads];
  int64_t* ties = workspace->ties();
  const int64_t stretch = (chunks + kThreads - 1) / kThreads;
  const int64_t first = threadIdx.x * stretch;
  const int64_t end = first + stretch < chunks ? first + stretch : chunks;
  int64_t sum = 0;
  for (int64_t chunk = first; chunk < end; ++chunk) sum += ties[chunk];
  int64_t left = workspace->outcome.tie_budget - sum_before(sum, shared);
  for (int64_t chunk = first; chunk < end; ++chunk) {
    const int64_t count = ties[chunk];
    ties[chunk] = count <= left || count == 0 ? kAllTies : (left > 0 ? left : 0);
    left -= count;
  }
}

// Lets the ties behind the budget survive. Mostly no chunk has any.
template <typename Key>
__global__ void spare_ties(List list, Workspace* workspace) {
  __shared__ int ties_of_warp[kThreads / kWarp];
  const int64_t budget = workspace->ties()[list.chunks_before + blockIdx.x];
  if (budget == kAllTies) return;  // the same for every thread
  const auto threshold = static_cast<Key>(workspace->outcome.key);
  const Chunk chunk = chunk_of_block(list);
  const MagnitudeTensor& tensor = list.tensors[chunk.tensor];
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int64_t before = 0;  // ties in the part of the chunk that was walked
  for (int64_t part = 0; part < chunk.count; part += kThreads) {
    const int64_t i = chunk.first + part + threadIdx.x;
    const bool is_tie = part + threadIdx.x < chunk.count && survives_mask(tensor.mask, i) &&
                        key_of<Key>(tensor.weights, i) == threshold;
    const unsigned ties = __ballot_sync(kAllLanes, is_tie);
    if (lane == 0) ties_of_warp[warp] = __popc(ties);
    __syncthreads();
    int64_t rank = before + __popc(ties & ((1u << lane) - 1));
    for (unsigned other = 0; other < kThreads / kWarp; ++other) {
      if (other < warp) rank += ties_of_warp[other];
      before += ties_of_warp[other];
    }
    if (is_tie && rank >= budget) tensor.new_mask[i] = 1;
    __syncthreads();  // before the next part overwrites ties_of_warp
  }
}

int64_t count_chunks(const std::vector<MagnitudeTensor>& tensors) {
  int64_t chunks = 0;
  for (const MagnitudeTensor& tensor : tensors) chunks += List::chunks_of(tensor);
  return chunks;
}

}  // namespace

template <typename Key>
MagnitudeSearch<Key>::MagnitudeSearch(std::vector<MagnitudeTensor> tensors, Key infinity)
    : tensors_(std::move(tensors)), infinity_(infinity) {}

template <typename Key>
size_t MagnitudeSearch<Key>::workspace_bytes() const {
  return sizeof(Workspace) + static_cast<size_t>(count_chunks(tensors_)) * sizeof(int64_t);
}

template <typename Key>
void MagnitudeSearch<Key>::find(int64_t k, void* workspace, cudaStream_t stream) const {
  auto* state = static_cast<Workspace*>(workspace);
  launch(begin, dim3(1), dim3(kThreads), stream, state, k);
  for (int digit = 0; digit < Digits<Key>::kCount; ++digit) {
    launch_over_chunks(count_digits<Key>, tensors_, stream, state, digit, infinity_);
    launch(choose_digit<Key>, dim3(1), dim3(kThreads), stream, state, digit);
  }
}

template <typename Key>
void MagnitudeSearch<Key>::write_threshold(const void* workspace, Key* threshold, int64_t* tie_budget,
                                           int64_t* survivors, cudaStream_t stream) const {
  launch(copy_outcome<Key>, dim3(1), dim3(1), stream, static_cast<const Workspace*>(workspace), threshold, tie_budget,
         survivors);
}

template <typename Key>
void MagnitudeSearch<Key>::prune(const std::vector<uint8_t*>& new_masks, void* workspace, cudaStream_t stream) {
  for (size_t i = 0; i < tensors_.size(); ++i) tensors_[i].new_mask = new_masks[i];
  auto* state = static_cast<Workspace*>(workspace);
  launch_over_chunks(mark<Key>, tensors_, stream, state);
  launch(share_tie_budget, dim3(1), dim3(kThreads), stream, state, count_chunks(tensors_));
  launch_over_chunks(spare_ties<Key>, tensors_, stream, state);
}

template class MagnitudeSearch<uint16_t>;
template class MagnitudeSearch<uint32_t>;
template class MagnitudeSearch<uint64_t>;

}  // namespace lth_fast::cuda
