// Polynomials of an atom's rows, channel by channel, as ../../csrc/contraction.h works them out:
//
//     y_o = sum_t c_t u_left u_right,   u = the rows, products of two of them, and 1
//
// Terms of one y and one left u lie together. A thread has one channel of an atom, and its u in its
// own memory; all threads go through the same terms.

#pragma once
#include "nodes.cuh"

struct Terms {
  const int *rows, *outs;            // first columns in the source and the target
  const int *first, *second;         // numbers of u whose products are taken
  const int *out, *left, *right;     // of each term
};

template <int ROWS, int PRODUCTS>
__device__ inline void contraction_factors(const Terms &terms, const T *x, T *u)
{
  for (int n = 0; n < ROWS; n++) u[n] = x[terms.rows[n]];
  for (int n = 0; n < PRODUCTS; n++) u[ROWS + n] = u[terms.first[n]] * u[terms.second[n]];
  u[ROWS + PRODUCTS] = T(1);
}

// coefficients: [species or 1, terms, channels or 1]
template <int COUNT, int CHANNELS, int TABLES, bool BY_CHANNEL> struct Coefficients {
  const T *data;
  __device__ Coefficients(const T *all, int species, int channel) :
      data(all + (TABLES > 1 ? (long long)species * COUNT * (BY_CHANNEL ? CHANNELS : 1) : 0) +
           (BY_CHANNEL ? channel : 0))
  {
  }
  __device__ T operator[](int t) const { return __ldg(data + t * (BY_CHANNEL ? CHANNELS : 1)); }
};

template <int CHANNELS, int ROWS, int PRODUCTS, int OUTS, int COUNT, int TABLES, bool BY_CHANNEL>
__device__ inline void contraction(const Terms &terms, const T *coefficients, const int *species,
                                   Rows from, Rows to, int begin, int count)
{
  for (int n = threadIdx.x; n < count * CHANNELS; n += blockDim.x) {
    const int i = begin + n / CHANNELS, channel = n % CHANNELS;
    const Coefficients<COUNT, CHANNELS, TABLES, BY_CHANNEL> c(coefficients, species[i], channel);
    T u[ROWS + PRODUCTS + 1];
    contraction_factors<ROWS, PRODUCTS>(terms, from[i] + channel, u);
    int t = 0;
    for (int out = 0; out < OUTS; out++) {
      T y = 0;
      while (t < COUNT && terms.out[t] == out) {
        const int left = terms.left[t];
        T sum = 0;
        for (; t < COUNT && terms.out[t] == out && terms.left[t] == left; t++)
          sum += c[t] * u[terms.right[t]];
        y += sum * u[left];
      }
      to[i][terms.outs[out] + channel] = y;
    }
  }
}

template <int CHANNELS, int ROWS, int PRODUCTS, int OUTS, int COUNT, int TABLES, bool BY_CHANNEL>
__device__ inline void contraction_gradient(const Terms &terms, const T *coefficients,
                                            const int *species, Rows values, Rows gradients,
                                            Rows target, int begin, int count)
{
  constexpr int FACTORS = ROWS + PRODUCTS + 1;
  for (int n = threadIdx.x; n < count * CHANNELS; n += blockDim.x) {
    const int i = begin + n / CHANNELS, channel = n % CHANNELS;
    const Coefficients<COUNT, CHANNELS, TABLES, BY_CHANNEL> c(coefficients, species[i], channel);
    T u[FACTORS], du[FACTORS];
    contraction_factors<ROWS, PRODUCTS>(terms, values[i] + channel, u);
    for (int k = 0; k < FACTORS; k++) du[k] = T(0);
    for (int t = 0; t < COUNT;) {
      const int out = terms.out[t], left = terms.left[t];
      const T g = target[i][terms.outs[out] + channel], inner = g * u[left];
      T sum = 0;
      for (; t < COUNT && terms.out[t] == out && terms.left[t] == left; t++) {
        const T factor = c[t];
        sum += factor * u[terms.right[t]];
        du[terms.right[t]] += factor * inner;
      }
      du[left] += sum * g;
    }
    for (int k = 0; k < PRODUCTS; k++) {
      du[terms.first[k]] += du[ROWS + k] * u[terms.second[k]];
      du[terms.second[k]] += du[ROWS + k] * u[terms.first[k]];
    }
    for (int k = 0; k < ROWS; k++) gradients[i][terms.rows[k] + channel] += du[k];
  }
}
