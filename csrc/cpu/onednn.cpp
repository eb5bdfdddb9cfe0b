#include "cpu/onednn.h"

#include <algorithm>
#include <atomic>

namespace lth_fast {
namespace {

// torch's linear layer calls MKL, which computes with AVX2 on processors that are not Intel's, whatever they have.
// oneDNN, which torch brings for convolutions, takes AVX-512 on any: twice the speed on Zen 5.
bool is_faster_here() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

std::atomic<bool>& preferred() {
  static std::atomic<bool> value{is_faster_here()};
  return value;
}

// A call of oneDNN costs 12 microseconds more than one of MKL: as long as MKL takes for about so many multiply-adds.
constexpr int64_t kLeastProducts = 3 << 19;
// With fewer samples or features than this, memory sets the pace and both take the same time.
constexpr int64_t kLeastSide = 8;

}  // namespace

bool prefers_onednn() { return preferred(); }
void force_onednn(bool value) { preferred() = value; }

bool onednn_pays(int64_t samples, int64_t in_features, int64_t out_features) {
  return prefers_onednn() && std::min({samples, in_features, out_features}) >= kLeastSide &&
         samples * in_features * out_features >= kLeastProducts;
}

}  // namespace lth_fast
