// Vectors of the machine's width, elementary functions, shares of work.
// `T` is the scalar of the whole library.

#pragma once
#include "generated/scalar.h"
#include "threads.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
constexpr int L = VECTOR_BYTES / sizeof(T);     // lanes
constexpr int PADDING = 64 / sizeof(T);         // widths of rows are multiples of it

typedef T V __attribute__((vector_size(VECTOR_BYTES)));
using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
typedef Bits VI __attribute__((vector_size(VECTOR_BYTES)));

inline V load(const T *p)
{
  return *reinterpret_cast<const V *>(p);
}
inline void store(T *p, V v)
{
  *reinterpret_cast<V *>(p) = v;
}
inline V all(T x)
{
  return V{} + x;
}

// neighbouring lanes added: sums of pairs of a, then of b
template <int... N> inline V pair_sums(V a, V b, std::integer_sequence<int, N...>)
{
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, (2 * N)...) + __builtin_shufflevector(a, b, (2 * N + 1)...);
#else
  return __builtin_shuffle(a, b, VI{(2 * N)...}) + __builtin_shuffle(a, b, VI{(2 * N + 1)...});
#endif
}

// lane n of the result is the sum of the lanes of row n
inline V row_sums(const T *rows)
{
  V sums[L];
  for (int n = 0; n < L; n++) sums[n] = load(rows + n * L);
#pragma GCC unroll 8
  for (int count = L; count > 1; count /= 2)
#pragma GCC unroll 16
    for (int n = 0; n < count / 2; n++)
      sums[n] = pair_sums(sums[2 * n], sums[2 * n + 1], std::make_integer_sequence<int, L>());
  return sums[0];
}

inline T lane_sum(V v)
{
  T sum = 0;
  for (int lane = 0; lane < L; lane++) sum += v[lane];
  return sum;
}

// memory that grows, never shrinks, and begins at a cache line
template <class U> class Buffer {
 public:
  U *get(I count)
  {
    if (count > capacity_) {
      if (count > MOST) throw std::bad_alloc();
      const I capacity = count + SPARE * (count / 8 + 64);
      void *memory = std::aligned_alloc(64, (capacity * sizeof(U) + 63) / 64 * 64);
      if (!memory) throw std::bad_alloc();
      data_.reset(static_cast<U *>(memory));
      capacity_ = capacity;
    }
    return data_.get();
  }
  U *data() { return data_.get(); }
  U *get() const { return data_.get(); }
  I bytes() const { return capacity_ * sizeof(U); }

 private:
#ifdef EQCALC_EXACT_BUFFERS     // no room in which an overrun would go unnoticed
  static constexpr I SPARE = 0;
#else
  static constexpr I SPARE = 1;
#endif
  static constexpr I MOST = (I(1) << 62) / static_cast<I>(sizeof(U));
  struct Free {
    void operator()(U *p) const { std::free(p); }
  };
  std::unique_ptr<U, Free> data_;
  I capacity_ = 0;
};

// ---- elementary functions, a few units in the last place

inline V exponential(V x)
{
  constexpr bool SINGLE = sizeof(T) == 4;
  constexpr T LARGEST = SINGLE ? T(87) : T(708);
  constexpr T HIGH = SINGLE ? T(0.693359375) : T(6.93145751953125e-1);
  constexpr T LOW = SINGLE ? T(-2.12194440e-4) : T(1.42860682030941723212e-6);
  constexpr int BITS = SINGLE ? 23 : 52, BIAS = SINGLE ? 127 : 1023;
  x = x > LARGEST ? all(LARGEST) : x;
  x = x < -LARGEST ? all(-LARGEST) : x;
  const V scaled = x * T(1.44269504088896340736) + (x < 0 ? all(T(-0.5)) : all(T(0.5)));
  const VI power = __builtin_convertvector(scaled, VI);     // rounds towards zero
  const V n = __builtin_convertvector(power, V);
  const V r = (x - n * HIGH) - n * LOW;
  constexpr int TERMS = SINGLE ? 7 : 13;
  // clang-format off
  constexpr double INVERSE_FACTORIALS[14] = {
      1., 1., 1. / 2, 1. / 6, 1. / 24, 1. / 120, 1. / 720, 1. / 5040, 1. / 40320, 1. / 362880,
      1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800.};
  // clang-format on
  V sum = all(T(INVERSE_FACTORIALS[TERMS]));
#pragma GCC unroll 16
  for (int k = TERMS - 1; k >= 0; k--) sum = sum * r + T(INVERSE_FACTORIALS[k]);
  const VI bits = (power + BIAS) << BITS;
  V factor;
  std::memcpy(&factor, &bits, sizeof(factor));
  return sum * factor;
}

inline V sigmoid(V x)
{
  return T(1) / (T(1) + exponential(-x));
}

// ---- one share of work for each thread

// First index of each share of `count` items, weights of which end at `ends`.
template <class Ends> std::vector<I> shares(int number, I count, I total, const Ends &end_of)
{
  std::vector<I> first(number + 1, count);
  first[0] = 0;
  I k = 0;
  for (int t = 1; t < number; t++) {
    while (k < count && end_of(k) * number <= total * t) k++;
    first[t] = k;
  }
  return first;
}

}     // namespace
