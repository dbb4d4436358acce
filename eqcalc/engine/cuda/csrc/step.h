// What a step is asked for, and where in pinned memory its numbers are: positions, limits of pairs,
// and then results.

#pragma once
#include "list.h"

#include <array>
#include <limits>

namespace {

struct StepShape {
  // blocks that sum virials, at most
  static constexpr I MOST_SUMS = 64;

  bool forces, virials, watched;
  I sums, squares;     // blocks that sum virials, or 0; numbers of limits
  I limits, energies, at_forces, at_virials, at_sums, found, numbers;

  StepShape(const PairList &list, I num_species, const eqcalc_step_results &wanted) :
      forces(wanted.forces), virials(forces && wanted.virials), watched(wanted.limits),
      sums(forces && wanted.virial ? std::min<I>(MOST_SUMS, (list.num_nodes + 127) / 128) : 0),
      squares(num_species * num_species), limits(3 * list.num_places), energies(limits + squares),
      at_forces(energies + 2 * list.num_local), at_virials(at_forces + 3 * list.num_nodes),
      at_sums(at_virials + 9 * list.num_nodes), found(at_sums + 9 * MOST_SUMS),
      numbers(found + list.num_local)
  {
  }

  // steps of the same key, and of a device with the same memory, are the same work
  using Key = std::array<I, 6>;
  Key key(const PairList &list) const
  {
    return {
        list.num_local, list.num_nodes, list.num_places,
        list.capacity,  sums,           forces + 2 * virials + 4 * watched + 8 * list.shifted()};
  }

  // out of pinned memory
  void read(const double *pinned, const PairList &list, const eqcalc_step_results &results) const
  {
    const I own = list.num_local, n = list.num_nodes;
    const double *e = pinned + energies;
    if (results.energies) std::copy_n(e, own, results.energies);
    if (results.nearest) {
      *results.nearest = std::numeric_limits<double>::infinity();
      for (I i = 0; i < own; i++) *results.nearest = std::min(*results.nearest, e[own + i]);
    }
    if (forces) std::copy_n(pinned + at_forces, 3 * n, results.forces);
    if (virials) std::copy_n(pinned + at_virials, 9 * n, results.virials);
    if (forces && results.virial) std::fill_n(results.virial, 9, 0.0);
    for (I b = 0; b < sums; b++)
      for (int d = 0; d < 9; d++) results.virial[d] += pinned[at_sums + 9 * b + d];
    if (!watched) return;
    const int *integers = reinterpret_cast<const int *>(pinned + found);
    std::copy_n(integers, own, results.numbers);
    std::copy_n(integers + own, own, results.near_edges);
  }
};

}     // namespace
