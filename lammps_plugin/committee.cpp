// SPDX-License-Identifier: GPL-2.0-only

#include "committee.h"

#include <algorithm>
#include <cmath>
#include <limits>
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
  if (exchange) exchange->reverse({forces_of_.data(), static_cast<int>(3 * num_members), false});
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
    uncertainty.forces[row] =
        std::sqrt(variance(forces, 3) + variance(forces + 1, 3) + variance(forces + 2, 3));
  }
}

bool Committee::keep_lists() const
{
  return !members_.empty() &&
      std::all_of(members_.begin(), members_.end(),
                  [](const Member &member) { return member.engine->keeps_lists(); });
}

void Committee::place(const PairList &list)
{
  placed_ = list.graph;
  for (const Member &member : members_) {
    PairList own = list;
    species_.resize(list.graph.num_nodes);
    for (int64_t row = 0; row < list.graph.num_nodes; row++)
      species_[row] = member.species[list.graph.species[row]];
    own.graph.species = species_.data();
    member.engine->place(own);
  }
}

// the limits of pairs of the first member's species, of this member's
const double *Committee::limits_of(const Member &member, const std::vector<double> &limits)
{
  if (limits.empty()) return nullptr;
  const std::size_t own = member.engine->atomic_numbers().size(), common = member.species.size();
  limits_.assign(own * own, 0.0);
  for (std::size_t a = 0; a < common; a++)
    for (std::size_t b = 0; b < common; b++)
      if (member.species[a] >= 0 && member.species[b] >= 0)
        limits_[member.species[a] * own + member.species[b]] = limits[a * common + b];
  return limits_.data();
}

void Committee::step(const double *positions, RowExchange *exchange, RowExchange *rows,
                     StepResults &results, std::vector<Watched> &watched, Uncertainty *uncertainty)
{
  const std::size_t num_members = members_.size();
  const int64_t num_local = placed_.num_local, num_nodes = placed_.num_nodes;
  const bool alone = num_members == 1;
  const double share = 1.0 / static_cast<double>(num_members);
  if (!alone) {
    std::fill_n(results.energies, num_local, 0.0);
    std::fill_n(results.forces, 3 * num_nodes, 0.0);
    if (results.virials) std::fill_n(results.virials, 9 * num_nodes, 0.0);
    if (results.virial) std::fill_n(results.virial, 9, 0.0);
    energies_.resize(num_local);
    forces_.resize(3 * num_nodes);
    virials_.resize(results.virials ? 9 * num_nodes : 0);
    if (uncertainty) {
      energies_of_.resize(num_members * num_local);
      forces_of_.assign(3 * num_members * placed_.num_rows, 0.0);
    }
  }
  results.nearest = std::numeric_limits<double>::infinity();
  for (std::size_t m = 0; m < num_members; m++) {
    StepResults own = results;
    double virial[9];
    if (!alone) {
      own.energies = energies_.data();
      own.forces = forces_.data();
      own.virials = results.virials ? virials_.data() : nullptr;
      own.virial = results.virial ? virial : nullptr;
    }
    own.limits = limits_of(members_[m], watched[m].limits);
    if (own.limits) {
      watched[m].numbers.resize(num_local);
      watched[m].near_edges.resize(num_local);
      own.numbers = watched[m].numbers.data();
      own.near_edges = watched[m].near_edges.data();
    }
    members_[m].engine->step(positions, exchange, own);
    results.nearest = std::min(results.nearest, own.nearest);
    if (alone) return;
    const auto add = [share](double *mean, const double *values, int64_t count) {
      for (int64_t k = 0; k < count; k++) mean[k] += share * values[k];
    };
    add(results.energies, own.energies, num_local);
    add(results.forces, own.forces, 3 * num_nodes);
    if (own.virials) add(results.virials, own.virials, 9 * num_nodes);
    if (own.virial) add(results.virial, own.virial, 9);
    if (!uncertainty) continue;
    for (int64_t row = 0; row < num_local; row++)
      energies_of_[row * num_members + m] = energies_[row];
    for (int64_t row = 0; row < num_nodes; row++)
      std::copy_n(&forces_[3 * row], 3, &forces_of_[3 * (row * num_members + m)]);
  }
  if (uncertainty) spread(placed_, rows, *uncertainty);
}

double Committee::memory() const
{
  const auto bytes = [](const auto &...vectors) {
    return (0.0 + ... + (static_cast<double>(vectors.capacity()) * sizeof(*vectors.data())));
  };
  return bytes(species_, edge_src_, edge_dst_, edge_vec_, kept_, energies_, gradient_, energies_of_,
               forces_of_, forces_, virials_);
}

}     // namespace eqcalc
