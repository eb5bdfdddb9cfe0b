// Bytes to numbers, as rows and as tiles of sparse_linear.
#include <cstring>

#include "eight_by_eight.h"
#include "intrinsics.h"
#include "sixteen_by_sixteen.h"
#include "table.h"
#include "tiles.h"
#include "vector.h"

namespace lth_fast::LTH_FAST_ISA {
namespace {

inline float number_of(uint8_t pixel, float mean, float gain) { return (static_cast<float>(pixel) - mean) * gain; }

void gather_pixels(const uint8_t* pixels, float mean, float gain, float* output, size_t count) {
  for (size_t i = 0; i < count; ++i) output[i] = number_of(pixels[i], mean, gain);
}

// So many pixels as the square has rows.
template <typename Square>
typename Square::Vector load_pixels(const uint8_t* from);

template <>
inline EightByEight<float>::Vector load_pixels<EightByEight<float>>(const uint8_t* from) {
#if defined(__AVX2__)  // compilers take the conversion of eight bytes apart
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return reinterpret_cast<Lanes<float>::Vector>(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)));
#else
  Lanes<uint8_t>::Vector bytes;
  std::memcpy(&bytes, from, sizeof(bytes));
  return __builtin_convertvector(__builtin_convertvector(bytes, Lanes<int32_t>::Vector), Lanes<float>::Vector);
#endif
}

#if defined(__AVX512F__)
template <>
inline SixteenBySixteen::Vector load_pixels<SixteenBySixteen>(const uint8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return reinterpret_cast<SixteenBySixteen::Vector>(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)));
}
#endif

// A vector of an image's pixels as numbers.
template <typename Square>
struct PixelsOfImages {
  const uint8_t* const* images;
  float mean, gain;

  typename Square::Vector operator()(size_t image, size_t pixel) const {
    return (load_pixels<Square>(images[image] + pixel) - mean) * gain;
  }
};

template <typename Square>
size_t squares_of_pixels(const uint8_t* const* images, size_t samples, size_t first, size_t last, float mean,
                         float gain, float* tile, size_t lanes) {
  const PixelsOfImages<Square> pixels{images, mean, gain};
  return squares_to_tile<Square, false>(pixels, samples, first, last, tile, lanes, static_cast<float*>(nullptr));
}

void pixels_to_tile(const uint8_t* const* images, size_t samples, size_t first, size_t last, float mean, float gain,
                    float* tile, size_t lanes) {
#if defined(__AVX512F__)
  first = squares_of_pixels<SixteenBySixteen>(images, samples, first, last, mean, gain, tile, lanes);
#endif
  first = squares_of_pixels<EightByEight<float>>(images, samples, first, last, mean, gain, tile, lanes);
  for (; first < last; ++first) {
    for (size_t lane = 0; lane < lanes; ++lane) {
      tile[first * lanes + lane] = lane < samples ? number_of(images[lane][first], mean, gain) : 0;
    }
  }
}

}  // namespace

void register_gather_images(KernelTable& table) {
  table.gather_pixels = gather_pixels;
  table.pixels_to_tile = pixels_to_tile;
}

}  // namespace lth_fast::LTH_FAST_ISA
