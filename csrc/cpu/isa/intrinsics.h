// AVX-512's intrinsics, for what the vector extension cannot say: to leave lanes out, and a bit for each.
#pragma once

#if defined(__AVX512F__)

// GCC 12's own header starts some results from an undefined vector, and GCC 12 warns of it (its bug 105593).
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#endif
