// Of interface.h: what is between lists of pairs, edges and atoms; the same for all networks.

#pragma once
#include "interface.h"
#include "threads.h"

namespace {

inline bool within(I count, I index)
{
  return 0 <= index && index < count;
}

}     // namespace

extern "C" {

int eqcalc_forces(I num_atoms, I num_edges, const I *edge_src, const I *edge_dst,
                  const double *edge_vec, const double *gradient, double *forces, double *virials)
{
  std::fill_n(forces, 3 * num_atoms, 0.0);
  if (virials) std::fill_n(virials, 9 * num_atoms, 0.0);
  for (I e = 0; e < num_edges; e++) {
    if (!within(num_atoms, edge_src[e]) || !within(num_atoms, edge_dst[e])) return 1;
    const double *g = gradient + 3 * e, *v = edge_vec + 3 * e;
    double *fi = forces + 3 * edge_dst[e], *fj = forces + 3 * edge_src[e];
    for (int a = 0; a < 3; a++) {
      fi[a] += g[a];
      fj[a] -= g[a];
    }
    if (!virials) continue;
    double *w = virials + 9 * edge_src[e];
    for (int a = 0; a < 3; a++)
      for (int b = 0; b < 3; b++) w[3 * a + b] -= v[a] * g[b];
  }
  return 0;
}

I eqcalc_select(I num_atoms, I num_pairs, const I *src, const I *dst, const double *shifts,
                const double *positions, double cutoff, I *edge_src, I *edge_dst, double *edge_vec,
                I *nearest)
{
  const double cutoff_sq = cutoff * cutoff;
  double shortest_sq = cutoff_sq;
  I count = 0;
  *nearest = -1;
  for (I p = 0; p < num_pairs; p++) {
    if (!within(num_atoms, src[p]) || !within(num_atoms, dst[p])) return -1;
    const double *a = positions + 3 * dst[p], *b = positions + 3 * src[p], *s = shifts + 3 * p;
    const double x = b[0] - a[0] + s[0], y = b[1] - a[1] + s[1], z = b[2] - a[2] + s[2];
    const double r_sq = x * x + y * y + z * z;
    if (!(r_sq < cutoff_sq)) continue;
    if (r_sq < shortest_sq) {
      shortest_sq = r_sq;
      *nearest = count;
    }
    edge_src[count] = src[p];
    edge_dst[count] = dst[p];
    edge_vec[3 * count] = x;
    edge_vec[3 * count + 1] = y;
    edge_vec[3 * count + 2] = z;
    count++;
  }
  return count;
}
}
