// SPDX-License-Identifier: GPL-2.0-only

#include "committee.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace eqcalc {

void Committee::add(std::string path, std::unique_ptr<Engine> engine)
{
  Member member{std::move(path), std::move(engine), {}};
  const auto &own = member.engine->atomic_numbers();
  const auto &common = members_.empty() ? own : atomic_numbers();
  for (int z : common) {
    const auto found = std::find(own.begin(), own.end(), z);
    member.species.push_back(found == own.end() ? -1 : static_cast<int>(found - own.begin()));
  }
  members_.push_back(std::move(member));
}

double Committee::cutoff() const
{
  double largest = 0.0;
  for (const Member &member : members_) largest = std::max(largest, member.engine->cutoff());
  return largest;
}

const std::vector<int> &Committee::atomic_numbers() const
{
  return members_.front().engine->atomic_numbers();
}

void Committee::evaluate(const Graph &graph, RowExchange *exchange, double *energies,
                         double *gradient, Uncertainty *uncertainty)
{
  if (members_.size() == 1) {
    AtomicUncertainty own = {};
    if (uncertainty) {
      uncertainty->energies.resize(graph.num_local);
      uncertainty->grades.resize(graph.num_local);
      own = {uncertainty->energies.data(), uncertainty->grades.data()};
    }
    members_.front().engine->evaluate(graph, exchange, energies, gradient,
                                      uncertainty ? &own : nullptr);
    if (uncertainty)
      for (double &value : uncertainty->energies) value = std::sqrt(value);
    return;
  }
  const std::size_t num_members = members_.size();
  const double share = 1.0 / static_cast<double>(num_members);
  std::fill_n(energies, graph.num_local, 0.0);
  std::fill_n(gradient, 3 * graph.num_edges, 0.0);
  if (uncertainty) {
    energies_of_.resize(num_members * graph.num_local);
    forces_of_.assign(3 * num_members * graph.num_rows, 0.0);
  }
  energies_.resize(graph.num_local);
  species_.resize(graph.num_nodes);

  for (std::size_t m = 0; m < num_members; m++) {
    Engine &engine = *members_[m].engine;
    Graph own = graph;
    for (int64_t row = 0; row < graph.num_nodes; row++)
      species_[row] = members_[m].species[graph.species[row]];
    own.species = species_.data();
    const bool all = select_edges(graph, engine.cutoff());
    if (!all) {
      own.num_edges = static_cast<int64_t>(kept_.size());
      own.edge_src = edge_src_.data();
      own.edge_dst = edge_dst_.data();
      own.edge_vec = edge_vec_.data();
    }
    gradient_.resize(3 * own.num_edges);
    engine.evaluate(own, exchange, energies_.data(), gradient_.data());

    for (int64_t row = 0; row < graph.num_local; row++) {
      energies[row] += share * energies_[row];
      if (uncertainty) energies_of_[row * num_members + m] = energies_[row];
    }
    for (int64_t e = 0; e < own.num_edges; e++) {
      double *mean = &gradient[3 * (all ? e : kept_[e])];
      for (int a = 0; a < 3; a++) mean[a] += share * gradient_[3 * e + a];
    }
    if (!uncertainty) continue;
    for (int64_t e = 0; e < own.num_edges; e++) {
      double *centre = &forces_of_[3 * (own.edge_dst[e] * num_members + m)];
      double *neighbor = &forces_of_[3 * (own.edge_src[e] * num_members + m)];
      for (int a = 0; a < 3; a++) {
        centre[a] += gradient_[3 * e + a];
        neighbor[a] -= gradient_[3 * e + a];
      }
    }
  }
  if (uncertainty) spread(graph, exchange, *uncertainty);
}

// Edges within a cutoff that may be smaller than the graph's; true if that is all of them.
bool Committee::select_edges(const Graph &graph, double cutoff)
{
  if (cutoff == this->cutoff()) return true;
  const double cutoff_sq = cutoff * cutoff;
  kept_.clear();
  for (int64_t e = 0; e < graph.num_edges; e++) {
    const double *r = &graph.edge_vec[3 * e];
    if (r[0] * r[0] + r[1] * r[1] + r[2] * r[2] < cutoff_sq) kept_.push_back(e);
  }
  if (static_cast<int64_t>(kept_.size()) == graph.num_edges) return true;
  edge_src_.clear();
  edge_dst_.clear();
  edge_vec_.clear();
  for (int64_t e : kept_) {
    edge_src_.push_back(graph.edge_src[e]);
    edge_dst_.push_back(graph.edge_dst[e]);
    edge_vec_.insert(edge_vec_.end(), &graph.edge_vec[3 * e], &graph.edge_vec[3 * e] + 3);
  }
  return false;
}

void Committee::spread(const Graph &graph, RowExchange *exchange, Uncertainty &uncertainty)
{
  const std::size_t num_members = members_.size();
  const double share = 1.0 / static_cast<double>(num_members);
  if (exchange)
    exchange->reverse({forces_of_.data(), static_cast<int>(3 * num_members), false});
  // of the members' values, `stride` apart
  const auto variance = [=](const double *values, std::size_t stride) {
    double mean = 0.0, sum = 0.0;
    for (std::size_t m = 0; m < num_members; m++) mean += share * values[m * stride];
    for (std::size_t m = 0; m < num_members; m++)
      sum += (values[m * stride] - mean) * (values[m * stride] - mean);
    return share * sum;
  };
  uncertainty.energies.resize(graph.num_local);
  uncertainty.forces.resize(graph.num_local);
  for (int64_t row = 0; row < graph.num_local; row++) {
    const double *forces = &forces_of_[3 * row * num_members];
    uncertainty.energies[row] = std::sqrt(variance(&energies_of_[row * num_members], 1));
    uncertainty.forces[row] = std::sqrt(variance(forces, 3) + variance(forces + 1, 3) +
                                       variance(forces + 2, 3));
  }
}

double Committee::memory() const
{
  const auto bytes = [](const auto &...vectors) {
    return (0.0 + ... +
            (static_cast<double>(vectors.capacity()) * sizeof(*vectors.data())));
  };
  return bytes(species_, edge_src_, edge_dst_, edge_vec_, kept_, energies_, gradient_, energies_of_,
               forces_of_);
}

}    // namespace eqcalc
