// What generated sources say of a network before kernels, for an example (eqcalc.engine.cuda.source),
// and words of CUDA for editors that do not know them.

#pragma once
#include "../task.h"

#ifndef __CUDACC__
#include <cmath>
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
struct Index {
  unsigned x, y, z;
};
extern const Index threadIdx, blockIdx, blockDim, gridDim;
void __syncthreads();
template <class U> U __shfl_xor_sync(unsigned, U value, int mask);
template <class U> U __ldg(const U *p);
template <class U> U min(U a, U b);
using std::exp;
using std::sqrt;
#endif

constexpr int NUM_SPECIES = 1, PAIRS = 1, NUM_Y = 3, DEGREE = 3, COUNTS = 0, ATOMS = 8;
constexpr double CUTOFF = 5.0;
// places in the tables of species; -1: there is none
constexpr int SHIFT_AT = 0, LIMITS_AT = -1, STRETCH_AT = -1, KINDS_AT = -1;
constexpr int CORE_AT = -1, CORE_TERMS = 0, CORE_POWER = 6;
constexpr int PAIR_AT = -1, PAIR_TERMS = 0;
constexpr double PAIR_RATE = 0.0, PAIR_CUTOFF = 0.0;
constexpr int CROWDING_AT = -1, CROWDING_COUNTS = 0;
constexpr double CROWDING_COST = 0.0;
__device__ void harmonics(const T *u, T *y);
__device__ void harmonics_gradient(const T *u, const T *y, const T *dy, T *du);
