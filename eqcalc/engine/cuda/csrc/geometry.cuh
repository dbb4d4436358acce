// Edges: vectors, distances as the network is told them, directions and their harmonics.
//
// Generated before this: constants of the network (eqcalc.engine.cuda.source), harmonics(),
// harmonics_gradient().

#pragma once
#include "generated/network.cuh"

// of 64 bits: of 2^30 edges the next number of a thread would not be an int
#define EACH(n, from, to)                                                                      \
  for (long long n = (from) + (long long)blockIdx.x * blockDim.x + threadIdx.x; n < (to); \
       n += (long long)gridDim.x * blockDim.x)

__device__ inline double length(const double *v)
{
  return sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]);
}

// eqcalc.nn.radial.InnerLimit and PairCutoffs: the distance that the network is told
__device__ inline double told(const Task &t, double r, int a, int b, double &slope)
{
  const int ab = a * NUM_SPECIES + b;
  slope = 1.0;
  if (LIMITS_AT >= 0) {
    const double limit = t.constants[LIMITS_AT + ab], width = 0.05 * limit;
    if (r < limit) {
      const double s = fmax(0.0, 1.0 - (limit - r) / width), s3 = s * s * s;
      slope = s3 * (s * (6.0 * s - 15.0) + 10.0);
      r = limit + width * (s3 * s * (s * (s - 3.0) + 2.5) - 0.5);
    }
  }
  if (STRETCH_AT >= 0) {
    const double factor = t.constants[STRETCH_AT + ab];
    const bool seen = r * factor < CUTOFF;
    slope *= seen ? factor : 0.0;
    r = seen ? r * factor : CUTOFF;
  }
  return r;
}

extern "C" __global__ void __launch_bounds__(128) geometry(const Task t)
{
  EACH(e, 0, t.num_edges)
  {
    const int i = t.dst[e], j = t.src[e];
    if (i < 0) {     // fills up the list
      t.r[e] = -1.0;
      continue;
    }
    double *v = t.vec + 3LL * e;
    if (t.positions)
      for (int d = 0; d < 3; d++)
        v[d] = t.positions[3LL * t.place[e] + d] - t.positions[3LL * i + d] +
            (t.shifts ? t.shifts[3LL * e + d] : 0.0);
    for (int d = 0; d < 3; d++) t.gradient[3LL * e + d] = 0.0;
    const double r = length(v);
    if (!(r < CUTOFF)) {
      t.r[e] = -1.0;
      continue;
    }
    const int a = t.species[i], b = t.species[j];
    double slope;
    t.r[e] = told(t, r, a, b, slope);
    t.told_slope[e] = T(slope);
    t.inverse_r[e] = T(1.0 / r);
    t.edge_species[e] = b;
    if (KINDS_AT >= 0) t.kind[e] = int(t.constants[KINDS_AT + a * NUM_SPECIES + b]);
    T *u = t.u + 3LL * e, *dy = t.dy + (long long)e * NUM_Y;
    for (int d = 0; d < 3; d++) u[d] = T(v[d] / r);
    harmonics(u, t.y + (long long)e * NUM_Y);
    for (int m = 0; m < NUM_Y; m++) dy[m] = T(0);
    t.dr[e] = T(0);
  }
}

// dE/dr_ij from the gradients in distances and harmonics, added to that of pair terms
extern "C" __global__ void __launch_bounds__(128) edge_gradients(const Task t)
{
  EACH(e, 0, t.num_edges)
  {
    if (t.r[e] < 0.0) continue;
    const T *u = t.u + 3LL * e;
    T du[3];
    harmonics_gradient(u, t.y + (long long)e * NUM_Y, t.dy + (long long)e * NUM_Y, du);
    const T along = u[0] * du[0] + u[1] * du[1] + u[2] * du[2];
    const T radial = t.dr[e] * t.told_slope[e];
    double *g = t.gradient + 3LL * e;
    for (int d = 0; d < 3; d++)
      g[d] += double((du[d] - along * u[d]) * t.inverse_r[e]) + double(radial) * double(u[d]);
  }
}

// F_i = sum_j g_ij - sum_j g_ji over the edges of centre i and those to neighbour i, in their order;
// virial of i as a neighbour: - r_ij (x) g_ij
extern "C" __global__ void __launch_bounds__(128) own_forces(const Task t)
{
  EACH(i, 0, t.num_nodes)
  {
    double f[3] = {0.0, 0.0, 0.0};
    if (i < t.num_local)
      for (int e = t.first_edge[i]; e < t.first_edge[i + 1]; e++)
        for (int d = 0; d < 3; d++) f[d] += t.gradient[3LL * e + d];
    for (int d = 0; d < 3; d++) t.forces[3LL * i + d] = f[d];
    if (t.virials)
      for (int d = 0; d < 9; d++) t.virials[9LL * i + d] = 0.0;
  }
}

extern "C" __global__ void __launch_bounds__(128) neighbour_forces(const Task t)
{
  EACH(n, t.begin, t.end)
  {
    double f[3] = {0.0, 0.0, 0.0}, w[9] = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
    for (int k = t.row_first[n]; k < t.row_first[n + 1]; k++) {
      const double *g = t.gradient + 3LL * t.row_edge[k], *v = t.vec + 3LL * t.row_edge[k];
      for (int a = 0; a < 3; a++) {
        f[a] -= g[a];
        for (int b = 0; b < 3; b++) w[3 * a + b] -= v[a] * g[b];
      }
    }
    for (int d = 0; d < 3; d++) t.forces[3LL * t.rows[n] + d] += f[d];
    if (t.virials)
      for (int d = 0; d < 9; d++) t.virials[9LL * t.rows[n] + d] += w[d];
  }
}

// sums of virials over nodes: a block's in its row, in an order that the number of blocks decides
extern "C" __global__ void __launch_bounds__(128) virial_sums(const Task t)
{
  __shared__ double S[9][128];
  double w[9] = {0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
  EACH(i, 0, t.num_nodes)
  {
    for (int d = 0; d < 9; d++) w[d] += t.virials[9LL * i + d];
  }
  for (int d = 0; d < 9; d++) S[d][threadIdx.x] = w[d];
  for (int half = 64; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half)
      for (int d = 0; d < 9; d++) S[d][threadIdx.x] += S[d][threadIdx.x + half];
  }
  if (threadIdx.x == 0)
    for (int d = 0; d < 9; d++) t.virial_sums[9LL * blockIdx.x + d] = S[d][0];
}

// numbers of neighbours and pairs that are nearer than their limits
extern "C" __global__ void __launch_bounds__(128) watch(const Task t)
{
  EACH(i, 0, t.num_local)
  {
    const double *limits = t.limits + t.species[i] * NUM_SPECIES;
    int number = 0, near = -1;
    double least = 1.0;
    for (int e = t.first_edge[i]; e < t.first_edge[i + 1]; e++) {
      if (t.r[e] < 0.0) continue;
      number++;
      const double *v = t.vec + 3LL * e;
      const double square = v[0] * v[0] + v[1] * v[1] + v[2] * v[2];
      const double limit = limits[t.edge_species[e]];
      if (!(square < limit) || !(square / limit < least)) continue;
      least = square / limit;
      near = e;
    }
    t.numbers[i] = number;
    t.near_edges[i] = near;
  }
}

// packed rows out of rows of atoms, before they go to other processes
extern "C" __global__ void __launch_bounds__(128) pack(const Task t)
{
  EACH(n, 0, (long long)t.num_packed * t.packed_width)
  {
    const int k = n / t.packed_width, c = n % t.packed_width;
    t.packed[n] = t.unpacked[(long long)t.sent[k] * t.packed_width + c];
  }
}

// packed rows are added to those of their atoms
extern "C" __global__ void __launch_bounds__(128) add_rows(const Task t)
{
  EACH(n, 0, (long long)t.num_packed * t.packed_width)
  {
    const int k = n / t.packed_width, c = n % t.packed_width;
    t.unpacked[(long long)t.sent[k] * t.packed_width + c] += t.packed[n];
  }
}
