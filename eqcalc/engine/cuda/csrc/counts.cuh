// Learned numbers of neighbours that messages of a layer are divided by (../../csrc/counts.h):
//
//     n_i = sum_j tanh(z(r_ij)^2),   m_i -> m_i / (1 + n_i)
//
// A layer's messages have one factor, how calm the atom is (1 without crowding) over 1 + n_i.
// Factors and pulls, dE by them, are [1 + COUNTS, own]: first of how calm atoms are, then of each
// number of neighbours.

#pragma once
#include "geometry.cuh"
#include "radial.cuh"

__device__ inline T counted(T z)
{
  return T(2) / (T(1) + exp(T(-2) * z * z)) - T(1);
}

// a thread for each own atom; the table is that of the numbers
extern "C" __global__ void __launch_bounds__(128) count_factors(const Task t)
{
  EACH(i, 0, t.num_local)
  {
    if (CROWDING_AT < 0) {
      t.factor[i] = T(1);
      t.calm_pull[i] = 0.0;
    }
    for (int k = 0; k < COUNTS; k++) {
      T number = 0;
      for (int e = t.first_edge[i]; e < t.first_edge[i + 1]; e++) {
        T at, scale;
        const int place = cursor(t, e, at, scale);
        if (place >= 0) number += counted(spline(t.table + place + k, at));
      }
      const long long n = (long long)(k + 1) * t.num_local + i;
      t.factor[n] = t.factor[i] / (T(1) + number);
      t.count_pulls[n - t.num_local] = 0.0;
    }
  }
}

// pulls at factors -> pulls at how calm atoms are, and at numbers of neighbours
extern "C" __global__ void __launch_bounds__(128) count_pulls(const Task t)
{
  EACH(i, 0, t.num_local)
  {
    const double calm = double(t.factor[i]);
    for (int k = 0; k < COUNTS; k++) {
      const long long n = (long long)k * t.num_local + i;
      const double factor = double(t.factor[n + t.num_local]), pull = t.count_pulls[n];
      // of factor = calm / (1 + number); where nothing is calm there are no messages
      t.calm_pull[i] += calm > 0.0 ? pull * factor / calm : 0.0;
      t.count_pulls[n] = calm > 0.0 ? -pull * factor * factor / calm : 0.0;
    }
  }
}

// these, to distances
extern "C" __global__ void __launch_bounds__(128) count_gradients(const Task t)
{
  EACH(e, 0, t.num_edges)
  {
    if (t.r[e] < 0.0) continue;
    T at, scale, sum = 0;
    const int place = cursor(t, e, at, scale);
    for (int k = 0; k < COUNTS; k++) {
      T dz;
      const T z = spline(t.table + place + k, at, dz), n = counted(z);
      sum += T(t.count_pulls[(long long)k * t.num_local + t.dst[e]]) * (T(1) - n * n) * T(2) * z *
          dz;
    }
    t.dr[e] += sum * scale;
  }
}
