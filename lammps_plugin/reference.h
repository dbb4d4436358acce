// SPDX-License-Identifier: GPL-2.0-only
//
// The structure inside every potential file, evaluated again by the engine that will be used.

#ifndef EQCALC_REFERENCE_H
#define EQCALC_REFERENCE_H

#include "engine.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace eqcalc {

// allowed deviation, eV per atom and eV/Å
constexpr double TOLERANCE_DOUBLE = 1e-8;
constexpr double TOLERANCE_SINGLE = 2e-3;

struct ReferenceStructure {
  std::vector<int64_t> species, edge_src, edge_dst;
  std::vector<double> edge_vec;                     // [edges, 3] Å
  std::vector<double> energies, forces, strain;     // [atoms] eV, [atoms, 3] eV/Å, [3, 3] eV

  // the largest deviation; EngineError, with the figures, if it is more than allowed
  double check(Engine &engine, const std::string &path, bool with_exchange) const
  {
    struct Nothing : RowExchange {     // no ghosts, nothing to exchange
      void forward(const Rows &) override {}
      void reverse(const Rows &) override {}
    } nothing;

    Graph graph;
    const auto atoms = species.size(), edges = edge_src.size();
    graph.num_local = graph.num_nodes = graph.num_rows = static_cast<int64_t>(atoms);
    graph.species = species.data();
    graph.num_edges = static_cast<int64_t>(edges);
    graph.edge_src = edge_src.data();
    graph.edge_dst = edge_dst.data();
    graph.edge_vec = edge_vec.data();
    std::vector<double> energy(atoms), gradient(3 * edges), force(3 * atoms), outer(9);
    engine.evaluate(graph, with_exchange ? &nothing : nullptr, energy.data(), gradient.data());

    for (std::size_t e = 0; e < edges; e++)
      for (int a = 0; a < 3; a++) {
        force[3 * edge_dst[e] + a] += gradient[3 * e + a];
        force[3 * edge_src[e] + a] -= gradient[3 * e + a];
        for (int b = 0; b < 3; b++) outer[3 * a + b] += edge_vec[3 * e + a] * gradient[3 * e + b];
      }
    std::vector<double> symmetric(9);
    for (int a = 0; a < 3; a++)
      for (int b = 0; b < 3; b++)
        symmetric[3 * a + b] = 0.5 * (outer[3 * a + b] + outer[3 * b + a]);

    const double of_energies = largest(energy, energies);
    const double of_forces = largest(force, forces);
    const double of_strain = largest(symmetric, strain) / std::max<std::size_t>(atoms, 1);
    const double allowed = engine.single() ? TOLERANCE_SINGLE : TOLERANCE_DOUBLE;
    // a comparison with a NaN is false
    if (of_energies <= allowed && of_forces <= allowed && of_strain <= allowed)
      return std::max({of_energies, of_forces, of_strain});
    char figures[160];
    std::snprintf(figures, sizeof(figures),
                  "(deviations: energies %.1e, forces %.1e, strain %.1e in eV and Å; allowed %.0e)",
                  of_energies, of_forces, of_strain, allowed);
    throw EngineError(path + " does not reproduce its own reference structure here " + figures +
                      ": the file, its engine or the device is faulty; export the model again");
  }

 private:
  static double largest(const std::vector<double> &a, const std::vector<double> &b)
  {
    double most = 0.0;
    for (std::size_t k = 0; k < a.size(); k++) {
      const double difference = std::abs(a[k] - b[k]);
      if (!(difference <= most)) most = difference;
      if (std::isnan(difference)) return difference;
    }
    return most;
  }
};

}     // namespace eqcalc

#endif
