// What features of atoms say of their energies (eqcalc.uncertainty): quadratic forms of each species,
//
//     |(f - centre) factor|^2 + constant,
//
// one the variance of the energy, one the square of the extrapolation grade.

#pragma once
#include "description.h"
#include "gemm.h"
#include "interface.h"

namespace {

class QuadraticForm {
 public:
  COLD void read(const Record &from, I kinds, I width)
  {
    width_ = width;
    padded_ = (width + PADDING - 1) / PADDING * PADDING;
    const Array centre = from.array("centre"), factor = from.array("factor");
    if (centre.size() != kinds * width || factor.size() != kinds * width * width)
      throw std::runtime_error("the uncertainty is of another network");
    centre.copy(centre_.get(kinds * width));
    T *to = factor_.get(kinds * width * padded_);
    std::fill_n(to, kinds * width * padded_, T(0));
    for (I row = 0; row < kinds * width; row++)
      for (I c = 0; c < width; c++) to[row * padded_ + c] = static_cast<T>(factor[row * width + c]);
    constant_ = from.numbers("constant");
  }

  I bytes() const { return centre_.bytes() + factor_.bytes(); }
  I scratch() const { return 2 * padded_; }

  double value(I kind, const double *features, T *scratch) const
  {
    T *apart = scratch, *made = scratch + padded_;
    for (I c = 0; c < width_; c++)
      apart[c] = static_cast<T>(features[c] - centre_.get()[kind * width_ + c]);
    std::fill_n(made, padded_, T(0));
    const T *x[] = {apart};
    T *y[] = {made};
    gemm(1, static_cast<int>(width_), x, factor_.get() + kind * width_ * padded_,
         static_cast<int>(padded_), y);
    double sum = constant_[kind];
    for (I c = 0; c < width_; c++) sum += static_cast<double>(made[c]) * made[c];
    return sum;
  }

 private:
  I width_ = 0, padded_ = 0;
  Buffer<double> centre_;     // [kinds, width]
  Buffer<T> factor_;          // [kinds, width, padded]
  std::vector<double> constant_;
};

class Uncertainty {
 public:
  COLD void read(const Record &from, I num_species)
  {
    const std::vector<int> species = from.indices("species");
    const I kinds = static_cast<I>(species.size());
    width_ = from.integer("width");
    kind_.assign(num_species, -1);
    for (I kind = 0; kind < kinds; kind++) kind_.at(species[kind]) = kind;
    energy_.read(from.record("energy"), kinds, width_);
    grade_.read(from.record("grade"), kinds, width_);
  }

  bool known() const { return !kind_.empty(); }
  I bytes() const { return energy_.bytes() + grade_.bytes(); }

  // begin .. end - 1 of the own atoms; features: [own, width]
  void of_atoms(I begin, I end, const int *species, const double *features,
                const eqcalc_uncertainty &to) const
  {
    constexpr double INFINITE = __builtin_inf();
    Buffer<T> memory;
    T *scratch = memory.get(std::max(energy_.scratch(), grade_.scratch()));
    for (I i = begin; i < end; i++) {
      const I kind = kind_[species[i]];
      const double *f = features + i * width_;
      if (to.variances) to.variances[i] = kind < 0 ? INFINITE : energy_.value(kind, f, scratch);
      if (to.grades) to.grades[i] = kind < 0 ? INFINITE : root(grade_.value(kind, f, scratch));
    }
  }

 private:
  I width_ = 0;
  std::vector<I> kind_;     // of species; -1: the training had none
  QuadraticForm energy_, grade_;
};

}     // namespace
