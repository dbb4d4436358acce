// SPDX-License-Identifier: GPL-2.0-only
//
// One potential, or several whose mean is used: energies, gradients, and how far the members differ.
// Knows nothing of LAMMPS and nothing of torch.

#ifndef EQCALC_COMMITTEE_H
#define EQCALC_COMMITTEE_H

#include "engine.h"

#include <memory>
#include <string>
#include <vector>

namespace eqcalc {

// Of each own atom. Of several potentials standard deviations over the members (divided by their
// number), of one what it says of itself.
struct Uncertainty {
  std::vector<double> energies;     // [num_local] eV, of E_i
  std::vector<double> forces;       // [num_local] eV/Å, sqrt(<|F_i - <F_i>|^2>), of several: Zhang
                                    // et al., Phys. Rev. Materials 3, 023804 (2019)
  std::vector<double> grades;       // [num_local] extrapolation grades, of one
};

class Committee {
 public:
  struct Member {
    std::string path;
    std::unique_ptr<Engine> engine;
    std::vector<int> species;     // of the first member's, -1 where this one lacks the element
  };

  void clear() { members_.clear(); }
  void add(std::string path, std::unique_ptr<Engine>);
  const std::vector<Member> &members() const { return members_; }
  bool empty() const { return members_.empty(); }
  int size() const { return static_cast<int>(members_.size()); }

  double cutoff() const;     // Å, the largest
  const std::vector<int> &atomic_numbers()
      const;     // of the species in graphs: the first member's

  // As of Engine, of the graph with the largest cutoff: means over the members. uncertainty: filled
  // where asked for, on all processes or none.
  void evaluate(const Graph &, RowExchange *, double *energies, double *gradient,
                Uncertainty *uncertainty);

  // Whether all of them keep lists of pairs. Then as of Engine, of a list that reaches as far as the
  // largest cutoff; `results` has no limits, which are each member's own: limits, numbers and
  // near_edges [members] of these. rows: an exchange of all rows, for `uncertainty`.
  bool keep_lists() const;
  void place(const PairList &);
  struct Watched {
    std::vector<double> limits;     // [species, species] of the first member's; none: not watched
    std::vector<int32_t> numbers, near_edges;     // [num_local]
  };
  void step(const double *positions, RowExchange *exchange, RowExchange *rows, StepResults &results,
            std::vector<Watched> &watched, Uncertainty *uncertainty);

  double memory() const;     // bytes of the buffers here

 private:
  std::vector<Member> members_;

  // what one member is given where its species or its cutoff are not the first's or the largest
  std::vector<int64_t> species_, edge_src_, edge_dst_;
  std::vector<double> edge_vec_;
  std::vector<int64_t> kept_;                       // edges of the whole graph
  std::vector<double> energies_, gradient_;         // of one member
  std::vector<double> energies_of_, forces_of_;     // [num_local, members]; [num_rows, members, 3]

  // the list that is placed, as far as step() needs it
  Graph placed_;
  std::vector<double> limits_, forces_, virials_;

  const double *limits_of(const Member &, const std::vector<double> &limits);
  bool select_edges(const Graph &, double cutoff);
  void spread(const Graph &, RowExchange *, Uncertainty &);
};

}     // namespace eqcalc

#endif
