// Operations on rows of atoms [begin, begin + count) by one block (eqcalc.engine.plan): the threads
// share the work on all of these atoms; who reads what another has written waits at a barrier in
// between. Widths are in numbers of T; all are multiples of 32.

#pragma once
#include "generated/network.cuh"

struct Rows {
  T *data;
  int width;
  __device__ T *operator[](int atom) const { return data + (long long)atom * width; }
};

enum Activation { SILU, TANH, SIGMOID, IDENTITY };

__device__ inline T sigmoid(T x)
{
  return T(1) / (T(1) + exp(-x));
}

template <Activation KIND> __device__ inline T activation(T x)
{
  if (KIND == IDENTITY) return x;
  if (KIND == TANH) return T(2) * sigmoid(T(2) * x) - T(1);
  const T s = sigmoid(x);
  return KIND == SILU ? x * s : s;
}

template <Activation KIND> __device__ inline T activation(T x, T &slope)
{
  if (KIND == IDENTITY) {
    slope = T(1);
    return x;
  }
  if (KIND == TANH) {
    const T t = T(2) * sigmoid(T(2) * x) - T(1);
    slope = T(1) - t * t;
    return t;
  }
  const T s = sigmoid(x);
  slope = KIND == SILU ? s + x * s * (T(1) - s) : s * (T(1) - s);
  return KIND == SILU ? x * s : s;
}

// sums begin with a row of the species, with the one row that there is, or with zeros
template <int TABLES>
__device__ inline void start(Rows to, const T *table, const int *species, int begin, int count)
{
  for (int n = threadIdx.x; n < count * to.width; n += blockDim.x) {
    const int i = begin + n / to.width, c = n % to.width;
    to[i][c] = TABLES == 0 ? T(0) : __ldg(table + (TABLES > 1 ? species[i] * to.width : 0) + c);
  }
}

__device__ inline void add(Rows from, Rows to, int begin, int count)
{
  for (int n = threadIdx.x; n < count * to.width; n += blockDim.x)
    to[begin + n / to.width][n % to.width] += from[begin + n / to.width][n % to.width];
}

// to[m, b] += sum_a from[m, a] matrix[a, b] for blocks [DIM, IN] and [DIM, OUT] of rows; a matrix
// for each species, or one. A thread makes one column of several rows.
template <int DIM, int IN, int OUT, int MATRICES>
__device__ inline void linear(Rows from, int at_from, Rows to, int at_to, const T *matrices,
                              const int *species, int begin, int count)
{
  constexpr int TOGETHER = MATRICES > 1 ? DIM : 8;
  const int rows = count * DIM, groups = (rows + TOGETHER - 1) / TOGETHER;
  for (int n = threadIdx.x; n < groups * OUT; n += blockDim.x) {
    const int b = n % OUT, first = n / OUT * TOGETHER;
    const T *matrix = matrices + b;
    if (MATRICES > 1) matrix += (long long)species[begin + first / DIM] * IN * OUT;
    const T *x[TOGETHER];
    T sum[TOGETHER];
#pragma unroll
    for (int k = 0; k < TOGETHER; k++) {
      const int row = min(first + k, rows - 1);
      x[k] = from[begin + row / DIM] + at_from + row % DIM * IN;
      sum[k] = T(0);
    }
    for (int a = 0; a < IN; a++) {
      const T w = __ldg(matrix + a * OUT);
#pragma unroll
      for (int k = 0; k < TOGETHER; k++) sum[k] += w * x[k][a];
    }
#pragma unroll
    for (int k = 0; k < TOGETHER; k++)
      if (first + k < rows)
        to[begin + (first + k) / DIM][at_to + (first + k) % DIM * OUT + b] += sum[k];
  }
}

// gate: first column of what scalars multiply the block; negative: the block is scalars themselves
template <Activation KIND, int DIM, int MUL, int GATE>
__device__ inline void gate(T scale, Rows from, int at_from, Rows to, int at_to, int begin,
                            int count)
{
  for (int n = threadIdx.x; n < count * MUL; n += blockDim.x) {
    const int i = begin + n / MUL, c = n % MUL;
    const T *x = from[i] + at_from + c;
    T *y = to[i] + at_to + c;
    if (GATE < 0) {
      y[0] = scale * activation<KIND>(x[0]);
      continue;
    }
    const T factor = scale * activation<KIND>(from[i][GATE + c]);
    for (int m = 0; m < DIM; m++) y[m * MUL] = factor * x[m * MUL];
  }
}

// SET: the gradient takes the place of the values, or is set; else it is added
template <bool SET> __device__ inline void put(T *to, T value)
{
  *to = SET ? value : *to + value;
}

template <Activation KIND, int DIM, int MUL, int GATE, bool SET>
__device__ inline void gate_gradient(T scale, Rows values, Rows gradients, int at, Rows target,
                                     int at_target, int begin, int count)
{
  for (int n = threadIdx.x; n < count * MUL; n += blockDim.x) {
    const int i = begin + n / MUL, c = n % MUL;
    const T *x = values[i] + at + c, *g = target[i] + at_target + c;
    T *dx = gradients[i] + at + c;
    T slope;
    const T value = activation<KIND>(GATE < 0 ? x[0] : values[i][GATE + c], slope);
    if (GATE < 0) {
      put<SET>(dx, scale * slope * g[0]);
      continue;
    }
    T sum = 0;
    for (int m = 0; m < DIM; m++) {
      sum += g[m * MUL] * x[m * MUL];
      put<SET>(dx + m * MUL, scale * value * g[m * MUL]);
    }
    put<SET>(gradients[i] + GATE + c, scale * slope * sum);
  }
}

// n^2 = mean square over the rows of a block + square
template <int DIM, int MUL> __device__ inline T norm(const T *x, T square)
{
  T sum = 0;
  for (int m = 0; m < DIM; m++) sum += x[m * MUL] * x[m * MUL];
  return sqrt(sum / T(DIM) + square);
}

// blocks times activated norms with a bias; both rows have one layout
template <Activation KIND, int DIM, int MUL>
__device__ inline void norm_gate(T scale, const T *bias, T square, Rows from, Rows to, int at,
                                 int begin, int count)
{
  for (int n = threadIdx.x; n < count * MUL; n += blockDim.x) {
    const int i = begin + n / MUL, c = n % MUL;
    const T *x = from[i] + at + c;
    const T factor = scale * activation<KIND>(norm<DIM, MUL>(x, square) + __ldg(bias + c));
    for (int m = 0; m < DIM; m++) to[i][at + c + m * MUL] = factor * x[m * MUL];
  }
}

template <Activation KIND, int DIM, int MUL, bool SET>
__device__ inline void norm_gate_gradient(T scale, const T *bias, T square, Rows values,
                                          Rows gradients, Rows target, int at, int begin, int count)
{
  for (int n = threadIdx.x; n < count * MUL; n += blockDim.x) {
    const int i = begin + n / MUL, c = n % MUL;
    const T *x = values[i] + at + c, *g = target[i] + at + c;
    const T size = norm<DIM, MUL>(x, square);
    T slope, sum = 0;
    const T value = activation<KIND>(size + __ldg(bias + c), slope);
    for (int m = 0; m < DIM; m++) sum += g[m * MUL] * x[m * MUL];
    const T pull = scale * sum * slope / (size * T(DIM));
    for (int m = 0; m < DIM; m++) {
      const T mine = x[m * MUL];
      put<SET>(gradients[i] + at + c + m * MUL, scale * value * g[m * MUL] + pull * mine);
    }
  }
}

// energies += scale of the species times a weighted sum of activated numbers; a warp for an atom;
// features (eqcalc.uncertainty), from number FIRST on: those numbers themselves in eV, times `unit`
template <Activation KIND, int COLUMNS, int FIRST, int FEATURES>
__device__ inline void readout(T activated, double unit, Rows from, const T *weights,
                               const double *scale, const Task &t, int begin, int count)
{
  const int lane = threadIdx.x % 32;
  for (int k = threadIdx.x / 32; k < count; k += blockDim.x / 32) {
    const T *x = from[begin + k];
    const double of_species = scale[t.species[begin + k]];
    double sum = 0.0;
    for (int c = lane; c < COLUMNS; c += 32) {
      const T value = activated * activation<KIND>(x[c]);
      sum += double(__ldg(weights + c) * value);
      if (t.features && c < FEATURES)
        t.features[(long long)(begin + k) * t.num_features + FIRST + c] = of_species * unit * value;
    }
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
    if (lane == 0) t.energies[begin + k] += of_species * sum;
  }
}

template <Activation KIND, int COLUMNS, bool SET>
__device__ inline void readout_gradient(T activated, Rows values, Rows gradients, const T *weights,
                                        const double *scale, const int *species, int begin,
                                        int count)
{
  for (int n = threadIdx.x; n < count * COLUMNS; n += blockDim.x) {
    const int i = begin + n / COLUMNS, c = n % COLUMNS;
    T slope;
    activation<KIND>(KIND == IDENTITY ? T(0) : values[i][c], slope);
    put<SET>(gradients[i] + c, T(scale[species[i]]) * __ldg(weights + c) * activated * slope);
  }
}
