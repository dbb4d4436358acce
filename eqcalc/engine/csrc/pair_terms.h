// What the energy owes to pairs of atoms besides the network, and the crowding of atoms.

#pragma once
#include "description.h"
#include "edges.h"
#include "pair_formulas.h"

namespace {

// Ziegler, Biersack and Littmark (1985), see eqcalc.nn.reference; half to each atom of a pair
struct CoreRepulsion {
  I num_species = 0, power = 6;
  std::vector<double> charges, screening, cutoff;     // [species, species]; empty: none
  std::vector<double> amplitudes, decays;             // of the screening function

  COLD void read(const Record &from, I species)
  {
    num_species = species;
    power = from.integer("power");
    charges = from.numbers("charges");
    screening = from.numbers("screening");
    cutoff = from.numbers("cutoff");
    amplitudes = from.numbers("amplitudes");
    decays = from.numbers("decays");
  }

  // adds the energy and its slope at r
  void add(I a, I b, double r, double &energy, double &slope) const
  {
    const I ab = a * num_species + b;
    if (charges.empty()) return;
    core_repulsion(r, charges[ab], screening[ab], cutoff[ab], static_cast<int>(power),
                   static_cast<int>(amplitudes.size()), amplitudes.data(), decays.data(), energy,
                   slope);
  }
};

// fitted to the labels, see eqcalc.nn.reference; half to each atom of a pair
struct PairEnergy {
  I num_species = 0, terms = 0;     // no terms: none
  double rate = 0.0, cutoff = 0.0;
  std::vector<double> coefficients;     // [species, species, terms]

  COLD void read(const Record &from, I species)
  {
    num_species = species;
    rate = from.number("rate");
    cutoff = from.number("cutoff");
    coefficients = from.numbers("coefficients");
    terms = from.array("coefficients").length(2);
  }

  // adds the energy and its slope at r
  void add(I a, I b, double r, double &energy, double &slope) const
  {
    if (!terms) return;
    pair_energy(r, coefficients.data() + (a * num_species + b) * terms, static_cast<int>(terms),
                rate, cutoff, energy, slope);
  }
};

// Messages to an atom that is more crowded than any of the training fade: eqcalc.nn.crowding.
// Older files measure it by c_i = sum (d/r)^8 u instead of neighbours, and know no close pairs
class Crowding {
 public:
  // of one atom, summed over its neighbours
  struct Measure {
    double number = 0.0, close = 0.0;
  };

  COLD void read(const Record &from, I species, double cutoff)
  {
    num_species_ = species;
    cutoff_ = cutoff;
    distances_ = from.numbers("distances");
    largest_ = from.numbers("largest");
    crowded_ = from.numbers("crowded");
    cost_ = from.number("cost");
    counts_ = from.has("counted");
    if (!counts_) return;
    counted_ = from.numbers("counted");
    close_ = from.numbers("close");
    closest_ = from.numbers("closest");
  }

  bool none() const { return largest_.empty(); }

  void begin(I num_local)
  {
    if (!none()) atoms_.resize(num_local);
  }

  // a neighbour at r
  void add(int a, int b, double r, Measure &to) const
  {
    const Crowd one = crowd(a, b, r);
    to.number += one.number;
    to.close += one.close;
  }

  // of own atom i of species a; returns what being crowded costs
  double settle(I i, int a, const Measure &found)
  {
    if (none()) return 0.0;
    Atom &atom = atoms_[i];
    double by_number, by_close;
    const double few = fall(crowded_[0], crowded_[1], found.number / largest_[a], by_number);
    const double apart = fall(0.0, 1.0, found.close, by_close);
    atom = {few * apart, {by_number * apart / largest_[a], few * by_close}, -cost_};
    return cost_ * (1.0 - atom.calm);
  }

  bool acts(I i) const { return !none() && atoms_[i].calm < 1.0; }

  void calm(I i, T *message, I width) const
  {
    const T s = static_cast<T>(atoms_[i].calm);
    for (I c = 0; c < width; c += L) store(message + c, s > T(0) ? s * load(message + c) : V{});
  }

  // from the gradient in a message that has been calmed, and what it was before
  void pull(I i, const T *gradient, const T *message, I width)
  {
    double sum = 0.0;
    for (I c = 0; c < width; c++) sum += static_cast<double>(gradient[c]) * message[c];
    atoms_[i].pull += sum;
  }

  // dE/dr of own atom i and its neighbour, once all layers have pulled
  double gradient(I i, int a, int b, double r) const
  {
    const Crowd one = crowd(a, b, r);
    const Atom &atom = atoms_[i];
    return atom.pull * (atom.slope.number * one.number_slope + atom.slope.close * one.close_slope);
  }

 private:
  struct Atom {
    double calm;       // s_i
    Measure slope;     // derivatives of s_i
    double pull;       // dE/ds_i
  };

  Crowd crowd(int a, int b, double r) const
  {
    const I ab = a * num_species_ + b;
    if (counts_)
      return counted_neighbour(r, distances_[ab], closest_[ab], counted_.data(), close_.data());
    return r < cutoff_ ? weighed_neighbour(r, distances_[ab], cutoff_) : Crowd{0.0, 0.0, 0.0, 0.0};
  }

  I num_species_ = 0;
  double cutoff_ = 0.0, cost_ = 0.0;
  bool counts_ = false;
  std::vector<double> counted_, close_, crowded_;     // [2], where they begin and end to fade
  std::vector<double> distances_, closest_;           // [species, species]
  std::vector<double> largest_;                       // [species]; empty: none
  std::vector<Atom> atoms_;                           // own
};

}     // namespace
