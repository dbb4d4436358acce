// Polynomials of an atom's rows, channel by channel:
//
//     y_o = sum_t c_t u_left u_right,   u = the rows, products of two of them, and 1
//
// so that terms of up to the fourth degree are products of two u. Those of one y and one left u are
// a group, whose inner sum is made once. Coefficients are numbers, or rows of channels, of which
// each species may have its own.

namespace {

class ContractionStep final : public Step {
 public:
  ContractionStep(const Record &from, int source, int target) :
      Step(source, target), channels_(from.integer("channels")), rows_(from.indices("rows_in")),
      outs_(from.indices("rows_out")), first_(from.indices("first")), second_(from.indices("second")),
      right_(from.indices("right"))
  {
    const auto out = from.indices("out"), left = from.indices("left");
    for (std::size_t t = 0; t < right_.size(); t++) {
      if (t == 0 || out[t] != out[t - 1] || left[t] != left[t - 1])
        groups_.push_back({out[t], left[t], static_cast<int>(t), 0});
      groups_.back().end = static_cast<int>(t) + 1;
    }
    const Array &values = from.array("coefficients");     // [species or 1, channels or 1, terms]
    tables_ = values.length(0);
    by_channel_ = values.length(1) > 1;
    const I lanes = by_channel_ ? L : 1, terms = num_terms();
    T *to = coefficients_.get(values.size());
    for (I n = 0; n < tables_ * values.length(1) * terms; n++) {
      const I row = n / terms, t = n % terms;
      to[(row / lanes * terms + t) * lanes + row % lanes] = static_cast<T>(values[n]);
    }
  }

  I scratch() const override { return 2 * num_factors() * L; }

  void forward(const Block &block) const override
  {
    if (by_channel_)
      forward_all<true>(block);
    else
      forward_all<false>(block);
  }
  void backward(const Block &block) const override
  {
    if (by_channel_)
      backward_all<true>(block);
    else
      backward_all<false>(block);
  }

 private:
  struct Group {
    int out, left, begin, end;     // a y, a u, terms
  };
  I channels_;
  std::vector<int> rows_, outs_;           // first columns in the source and the target
  std::vector<int> first_, second_;        // rows whose products are taken
  std::vector<int> right_;                 // of each term
  std::vector<Group> groups_;
  I tables_;
  bool by_channel_;
  Buffer<T> coefficients_;                 // [species, channels / L, terms, L]; numbers: [terms]

  I num_terms() const { return static_cast<I>(right_.size()); }
  I num_factors() const { return static_cast<I>(rows_.size() + first_.size()) + 1; }

  template <bool BY_CHANNEL> static V coefficient(const T *c, int t)
  {
    if constexpr (BY_CHANNEL) return load(c + t * L);
    return all(c[t]);
  }
  template <bool BY_CHANNEL> const T *table(int species, I channel) const
  {
    const I one = tables_ > 1 ? species : 0;
    if constexpr (BY_CHANNEL)
      return coefficients_.get() + (one * (channels_ / L) + channel / L) * num_terms() * L;
    return coefficients_.get() + one * num_terms();
  }

  // u of L channels
  void factors(const T *x, T *u) const
  {
    for (const int row : rows_) {
      store(u, load(x + row));
      u += L;
    }
    const T *rows = u - static_cast<I>(rows_.size()) * L;
    for (std::size_t n = 0; n < first_.size(); n++, u += L)
      store(u, load(rows + first_[n] * L) * load(rows + second_[n] * L));
    store(u, all(T(1)));
  }

  template <bool BY_CHANNEL> void forward_all(const Block &block) const
  {
    T *u = block.scratch;
    for (I channel = 0; channel < channels_; channel += L)
      for (int b = 0; b < block.count; b++) {
        const T *c = table<BY_CHANNEL>(block.species[b], channel);
        T *y = block.values[target()][b] + channel;
        factors(block.values[source()][b] + channel, u);
        for (const int out : outs_) store(y + out, V{});
        for (const Group &group : groups_) {
          V sum = {};
          for (int t = group.begin; t < group.end; t++)
            sum += coefficient<BY_CHANNEL>(c, t) * load(u + right_[t] * L);
          T *to = y + outs_[group.out];
          store(to, load(to) + sum * load(u + group.left * L));
        }
      }
  }

  template <bool BY_CHANNEL> void backward_all(const Block &block) const
  {
    T *u = block.scratch, *du = u + num_factors() * L;
    for (I channel = 0; channel < channels_; channel += L)
      for (int b = 0; b < block.count; b++) {
        const T *c = table<BY_CHANNEL>(block.species[b], channel);
        const T *g = block.gradients[target()][b] + channel;
        factors(block.values[source()][b] + channel, u);
        std::fill_n(du, num_factors() * L, T(0));
        for (const Group &group : groups_) {
          const V gradient = load(g + outs_[group.out]);
          const V inner = gradient * load(u + group.left * L);
          V sum = {};
          for (int t = group.begin; t < group.end; t++) {
            const V factor = coefficient<BY_CHANNEL>(c, t);
            const I right = right_[t] * L;
            sum += factor * load(u + right);
            store(du + right, load(du + right) + factor * inner);
          }
          store(du + group.left * L, load(du + group.left * L) + sum * gradient);
        }
        const T *products = du + static_cast<I>(rows_.size()) * L;
        for (std::size_t n = 0; n < first_.size(); n++) {
          const V d = load(products + static_cast<I>(n) * L);
          const I i = first_[n] * L, j = second_[n] * L;
          store(du + i, load(du + i) + d * load(u + j));
          store(du + j, load(du + j) + d * load(u + i));
        }
        T *dx = block.gradients[source()][b] + channel;
        for (std::size_t n = 0; n < rows_.size(); n++)
          store(dx + rows_[n], load(dx + rows_[n]) + load(du + static_cast<I>(n) * L));
      }
  }
};

}    // namespace
