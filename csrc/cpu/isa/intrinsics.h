// Intrinsics for what the vector extension cannot say: to leave lanes out, a bit for each, one lane in all of them.
#pragma once

#if defined(__AVX512F__) || defined(__AVX2__)

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
