// Polynomials of an atom's rows, channel by channel:
//
//     y_o = sum_t c_t u_left u_right,   u = the rows, products of two of them, and 1
//
// so that terms of up to the fourth degree are products of two u. Those of one y and one left u are
// a group, whose inner sum is made once. Coefficients are numbers, or rows of channels, of which
// each species may have its own. Polynomials of moderate size have generated kernels
// (eqcalc.engine.contraction_kernels); others are tables that are worked through here.

#pragma once
#include "generated/steps.h"

namespace {

class ContractionStep final : public Step {
 public:
  COLD ContractionStep(const Record &from, int source, int target) :
      Step(source, target), channels_(from.integer("channels")), rows_(from.indices("rows_in")),
      outs_(from.indices("rows_out")), first_(from.indices("first")),
      second_(from.indices("second"))
  {
    const auto out = from.indices("out"), left = from.indices("left"),
               right = from.indices("right");
    const Array &values = from.array("coefficients");     // [species or 1, channels or 1, terms]
    const I terms = num_terms_ = values.length(2);
    if (from.has("kernels")) kernels_ = &CONTRACTIONS[from.integer("kernels")];
    // without products of rows, and 1, factors are read where they are
    in_place_ = first_.empty();
    for (const int factor : right) in_place_ = in_place_ && factor < num_rows();
    const auto place = [&](int factor) { return in_place_ ? rows_[factor] : factor * L; };
    for (I t = 0; t < terms; t++) {
      if (t == 0 || out[t] != out[t - 1] || left[t] != left[t - 1])
        groups_.push_back({outs_.at(out[t]), place(left[t]), 0});
      groups_.back().end = static_cast<int>(t) + 1;
      right_.push_back(place(right[t]));
    }
    for (auto *rows : {&first_, &second_})
      for (int &row : *rows) row *= L;

    tables_ = values.length(0);
    by_channel_ = values.length(1) > 1;
    const I lanes = by_channel_ ? L : 1;
    T *to = coefficients_.get(values.size());
    for (I n = 0; n < tables_ * values.length(1) * terms; n++) {
      const I row = n / terms, t = n % terms;
      to[(row / lanes * terms + t) * lanes + row % lanes] = static_cast<T>(values[n]);
    }
  }

  I scratch() const override { return in_place_ || kernels_ ? 0 : 2 * num_factors() * L; }

  void forward(const Block &block) const override
  {
    if (kernels_)
      for (I channel = 0; channel < channels_; channel += L)
        for (int b = 0; b < block.count; b++)
          kernels_->forward(table<true>(block.species[b], channel),
                            block.values[source()][b] + channel,
                            block.values[target()][b] + channel);
    else if (by_channel_)
      forward_all<true>(block);
    else
      forward_all<false>(block);
  }
  void backward(const Block &block) const override
  {
    if (kernels_)
      for (I channel = 0; channel < channels_; channel += L)
        for (int b = 0; b < block.count; b++)
          kernels_->backward(
              table<true>(block.species[b], channel), block.values[source()][b] + channel,
              block.gradients[target()][b] + channel, block.gradients[source()][b] + channel);
    else if (by_channel_)
      backward_all<true>(block);
    else
      backward_all<false>(block);
  }

 private:
  struct Group {
    int out, left, end;     // column of y, place of u, end of its terms
  };
  I channels_;
  std::vector<int> rows_, outs_;        // first columns in the source and the target
  std::vector<int> first_, second_;     // places of u whose products are taken
  std::vector<int> right_;              // place of u, of each term
  std::vector<Group> groups_;
  I num_terms_, tables_;
  const ContractionKernels *kernels_ = nullptr;
  bool by_channel_, in_place_;
  Buffer<T> coefficients_;     // [species, channels / L, terms, L]; numbers: [terms]

  I num_rows() const { return static_cast<I>(rows_.size()); }
  I num_factors() const { return num_rows() + static_cast<I>(first_.size()) + 1; }

  template <bool BY_CHANNEL> static V coefficient(const T *c, int t)
  {
    if constexpr (BY_CHANNEL) return load(c + t * L);
    return all(c[t]);
  }
  template <bool BY_CHANNEL> const T *table(int species, I channel) const
  {
    const I one = tables_ > 1 ? species : 0;
    if constexpr (BY_CHANNEL)
      return coefficients_.get() + (one * (channels_ / L) + channel / L) * num_terms_ * L;
    return coefficients_.get() + one * num_terms_;
  }

  // u of L channels
  const T *factors(const T *x, T *memory) const
  {
    if (in_place_) return x;
    T *u = memory;
    for (const int row : rows_) {
      store(u, load(x + row));
      u += L;
    }
    for (std::size_t n = 0; n < first_.size(); n++, u += L)
      store(u, load(memory + first_[n]) * load(memory + second_[n]));
    store(u, all(T(1)));
    return memory;
  }

  // what gradients in u mean for those in x
  void add_gradient(const T *u, T *du, T *dx) const
  {
    const T *products = du + num_rows() * L;
    for (std::size_t n = 0; n < first_.size(); n++, products += L) {
      const V d = load(products);
      T *di = du + first_[n], *dj = du + second_[n];
      store(di, load(di) + d * load(u + second_[n]));
      store(dj, load(dj) + d * load(u + first_[n]));
    }
    for (const int row : rows_) {
      store(dx + row, load(dx + row) + load(du));
      du += L;
    }
  }

  template <bool BY_CHANNEL> void forward_all(const Block &block) const
  {
    for (I channel = 0; channel < channels_; channel += L)
      for (int b = 0; b < block.count; b++) {
        const T *c = table<BY_CHANNEL>(block.species[b], channel);
        const T *u = factors(block.values[source()][b] + channel, block.scratch);
        T *y = block.values[target()][b] + channel;
        for (const int out : outs_) store(y + out, V{});
        int t = 0;
        for (const Group &group : groups_) {
          V sum = {};
          for (; t < group.end; t++) sum += coefficient<BY_CHANNEL>(c, t) * load(u + right_[t]);
          store(y + group.out, load(y + group.out) + sum * load(u + group.left));
        }
      }
  }

  template <bool BY_CHANNEL> void backward_all(const Block &block) const
  {
    for (I channel = 0; channel < channels_; channel += L)
      for (int b = 0; b < block.count; b++) {
        const T *c = table<BY_CHANNEL>(block.species[b], channel);
        const T *g = block.gradients[target()][b] + channel;
        const T *u = factors(block.values[source()][b] + channel, block.scratch);
        T *dx = block.gradients[source()][b] + channel;
        T *du = in_place_ ? dx : block.scratch + num_factors() * L;
        if (!in_place_) std::fill_n(du, num_factors() * L, T(0));
        int t = 0;
        for (const Group &group : groups_) {
          const V gradient = load(g + group.out), inner = gradient * load(u + group.left);
          V sum = {};
          for (; t < group.end; t++) {
            const V factor = coefficient<BY_CHANNEL>(c, t);
            T *to = du + right_[t];
            sum += factor * load(u + right_[t]);
            store(to, load(to) + factor * inner);
          }
          store(du + group.left, load(du + group.left) + sum * gradient);
        }
        if (!in_place_) add_gradient(u, du, dx);
      }
  }
};

}     // namespace
