// What the energy owes to species and pairs besides the network, and how crowded atoms are:
// formulas in ../../csrc/pair_formulas.h.

#pragma once
#include "geometry.cuh"
#include "../../csrc/pair_formulas.h"

// constants: charges, screening, cutoff [pairs], amplitudes, decays [terms]
__device__ inline void core(const double *c, int ab, double r, double &energy, double &slope)
{
  const double *charges = c + CORE_AT, *screening = charges + PAIRS, *cutoff = screening + PAIRS;
  const double *amplitudes = cutoff + PAIRS, *decays = amplitudes + CORE_TERMS;
  core_repulsion(r, charges[ab], screening[ab], cutoff[ab], CORE_POWER, CORE_TERMS, amplitudes,
                 decays, energy, slope);
}

// constants: distances [pairs], closest [pairs], largest [species], then the ends of crowded,
// counted and close
__device__ inline Crowd crowd(const double *c, int ab, double r)
{
  const double *distances = c + CROWDING_AT, *closest = distances + PAIRS;
  const double *ends = closest + PAIRS + NUM_SPECIES;
  if (CROWDING_COUNTS) return counted_neighbour(r, distances[ab], closest[ab], ends + 2, ends + 4);
  return weighed_neighbour(r, distances[ab], CUTOFF);
}

// energies begin with these terms, gradients of edges with theirs
extern "C" __global__ void __launch_bounds__(128) references(const Task t)
{
  const double *c = t.constants;
  EACH(i, 0, t.num_local)
  {
    const int a = t.species[i];
    double energy = c[SHIFT_AT + a], number = 0.0, close = 0.0, nearest = CUTOFF;
    for (int e = t.first_edge[i]; e < t.first_edge[i + 1]; e++) {
      if (t.r[e] < 0.0) continue;
      const double *v = t.vec + 3LL * e;
      const double r = length(v);
      nearest = fmin(nearest, r);
      const int ab = a * NUM_SPECIES + t.edge_species[e];
      double slope = 0.0;
      if (CORE_AT >= 0) core(c, ab, r, energy, slope);
      if (PAIR_AT >= 0)
        pair_energy(r, c + PAIR_AT + ab * PAIR_TERMS, PAIR_TERMS, PAIR_RATE, PAIR_CUTOFF, energy,
                    slope);
      if (CROWDING_AT >= 0) {
        const Crowd one = crowd(c, ab, r);
        number += one.number;
        close += one.close;
      }
      for (int d = 0; d < 3; d++) t.gradient[3LL * e + d] = slope * v[d] / r;
    }
    if (CROWDING_AT >= 0) {
      const double *ends = c + CROWDING_AT + 2 * PAIRS + NUM_SPECIES;
      const double largest = c[CROWDING_AT + 2 * PAIRS + a];
      double by_number, by_close;
      const double few = fall(ends[0], ends[1], number / largest, by_number);
      const double apart = fall(0.0, 1.0, close, by_close);
      t.calm[i] = few * apart;
      t.calm_slope[2LL * i] = by_number * apart / largest;
      t.calm_slope[2LL * i + 1] = few * by_close;
      t.calm_pull[i] = -CROWDING_COST;
      energy += CROWDING_COST * (1.0 - few * apart);
      t.factor[i] = T(few * apart);
    }
    t.energies[i] = energy;
    t.nearest[i] = nearest;
  }
}

// once all layers have pulled at how calm atoms are
extern "C" __global__ void __launch_bounds__(128) crowding_gradients(const Task t)
{
  EACH(e, 0, t.num_edges)
  {
    if (t.r[e] < 0.0 || CROWDING_AT < 0) continue;
    const int i = t.dst[e];
    if (!(t.calm[i] < 1.0)) continue;
    const double *v = t.vec + 3LL * e;
    const double r = length(v);
    const Crowd one = crowd(t.constants, t.species[i] * NUM_SPECIES + t.edge_species[e], r);
    const double slope = t.calm_pull[i] *
        (t.calm_slope[2LL * i] * one.number_slope + t.calm_slope[2LL * i + 1] * one.close_slope);
    for (int d = 0; d < 3; d++) t.gradient[3LL * e + d] += slope * v[d] / r;
  }
}
