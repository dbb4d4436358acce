// SPDX-License-Identifier: GPL-2.0-only
//
// What the training of a potential contained (eqcalc.domain), and whether a run leaves it. Of each
// quantity the worst place is kept until it is told, once per run. Knows neither LAMMPS nor torch.

#ifndef EQCALC_TRAINING_DOMAIN_H
#define EQCALC_TRAINING_DOMAIN_H

#include <array>
#include <limits>
#include <string>
#include <vector>

namespace eqcalc {

class TrainingDomain {
 public:
  enum Quantity { DISTANCE, NEIGHBORS, DENSITY, PRESSURE, ENERGY, NUM_QUANTITIES };

  struct Range {
    double low = -std::numeric_limits<double>::infinity();
    double high = std::numeric_limits<double>::infinity();
    bool contains(double value) const { return low <= value && value <= high; }
  };

  // the worst of this process in this step; indices of atoms
  struct Place {
    double severity = 0.0;     // below 0: outside, the lower the farther
    int i = -1, j = -1;
    double figure = 0.0;     // Å, or number of neighbors
  };

  // Knows no limits, and all is inside.
  TrainingDomain() = default;

  // text: lines of the file's eqcalc_domain.txt, unknown ones are skipped; symbols: of the species
  TrainingDomain(const std::string &text, const std::vector<std::string> &symbols);

  bool known() const { return known_; }
  const Range &range(Quantity quantity) const { return ranges_[quantity]; }
  const Range &neighbors(int species) const { return neighbors_[species]; }
  double shortest(int a, int b) const { return shortest_[a * num_species_ + b]; }     // Å

  void begin_run();     // all may be told again
  bool watches(Quantity quantity) const { return known_ && !told_[quantity]; }
  void told(Quantity);

  // one step of one process

  void begin_step() { pair_ = count_ = Place(); }
  // [num_species] Å^2: neighbors of these species are outside below it. For all pairs of atoms
  const double *near_sq(int species) const { return &near_sq_[species * num_species_]; }
  void note_pair(int i, int j, int a, int b, double distance_sq);
  void note_count(int i, int species, int number);
  const Place &place(Quantity quantity) const { return quantity == DISTANCE ? pair_ : count_; }

 private:
  bool known_ = false;
  int num_species_ = 0;
  std::vector<double> shortest_, near_sq_;     // [species, species]; the latter 0 once told
  std::vector<Range> neighbors_;               // [species]
  std::array<Range, NUM_QUANTITIES> ranges_;
  std::array<bool, NUM_QUANTITIES> told_ = {};
  Place pair_, count_;
};

}     // namespace eqcalc

#endif
