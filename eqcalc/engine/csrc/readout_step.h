// From rows to energies.

#pragma once
#include "steps.h"

namespace {

// energies += scale of the species times a weighted sum of activated numbers; the derivatives of
// an atom's energy in the file's own weights, which are divided by the root of their number, are its
// features
class ReadoutStep final : public Step {
 public:
  COLD ReadoutStep(const Record &from, int source, int target) :
      Step(source, target), activation_(from.text("activation"), from.number("activation_scale")),
      columns_(from.array("weights").size()), feature_(from.integer("feature")),
      num_features_(from.integer("num_features")), scale_(from.numbers("scale"))
  {
    from.array("weights").copy(weights_.get(columns_));
  }

  void forward(const Block &block) const override
  {
    for (int b = 0; b < block.count; b++) {
      const T *x = block.values[source()][b];
      double sum = 0.0;
      for (I c = 0; c < columns_; c += L) {
        const V terms = load(weights_.get() + c) * activation_.value(load(x + c));
        for (int lane = 0; lane < L; lane++) sum += terms[lane];
      }
      block.energies[b] += scale_[block.species[b]] * sum;
    }
    if (block.features) give_features(block);
  }

  void backward(const Block &block) const override
  {
    const Span values = block.values[source()], to = block.gradients[source()];
    const bool sets = values.first == to.first && !activation_.linear();
    for (int b = 0; b < block.count; b++) {
      const T scale = static_cast<T>(scale_[block.species[b]]);
      for (I c = 0; c < columns_; c += L) {
        V value, slope;
        activation_.value_and_slope(load(values[b] + c), value, slope);
        const V gradient = scale * load(weights_.get() + c) * slope;
        store(to[b] + c, sets ? gradient : load(to[b] + c) + gradient);
      }
    }
  }

 private:
  Activation activation_;
  I columns_, feature_, num_features_;     // the first of its features, and how many it has
  Buffer<T> weights_;
  std::vector<double> scale_;     // of species

  COLD void give_features(const Block &block) const
  {
    const double unit = 1.0 / root(static_cast<double>(num_features_));
    for (int b = 0; b < block.count; b++) {
      const T *x = block.values[source()][b];
      double *to = block.features + b * block.num_features + feature_;
      for (I c = 0; c < num_features_; c += L) {
        const V values = activation_.value(load(x + c));
        const I lanes = std::min<I>(L, num_features_ - c);
        for (I lane = 0; lane < lanes; lane++)
          to[c + lane] = scale_[block.species[b]] * unit * values[lane];
      }
    }
  }
};

}     // namespace
