// Attention over a centre's edges (eqcalc.nn.attention), in one pass: shares are made with the largest
// exponent so far, and the sum made smaller where a larger one comes. At the end the sum is divided by
// the total of the shares; on the way back largest exponents and totals are known.
//
//     a_e = u_e exp(z_e - top) / total,   da_e = <z_e, g>,   dz_e = a_e (da_e - sum_k a_k da_k)

#pragma once
#include "edge_steps.h"

namespace {

constexpr int MOST_HEADS = 64;

struct Heads {
  I count, scalars, channels;     // heads; padded scalars and channels
  Activation silu;
  Buffer<T> weight;                                      // [scalars]
  std::vector<int> of_scalar, of_channel, of_column;     // heads, -1: of none; columns of the sum

  explicit Heads(const Record &from) :
      count(from.integer("heads")), scalars(from.array("weight").size()),
      channels(from.array("of_channel").size()), silu("silu", from.number("silu")),
      of_scalar(from.indices("of_scalar")), of_channel(from.indices("of_channel")),
      of_column(from.indices("of_column"))
  {
    if (count > MOST_HEADS) throw std::runtime_error("the network's attention has too many heads");
    from.array("weight").copy(weight.get(scalars));
  }
};

class Attention final : public EdgeStep {
 public:
  // exponents: a value with room for heads
  Attention(const Record &from, int source, int target, int exponents) :
      heads_(from.record("heads")), source_(source), target_(target), exponents_(exponents)
  {
  }

  void apply(const Tile &tile) const override
  {
    for (int e = 0; e < tile.count; e++) make_exponents(tile, e);
    if (!tile.known) raise_tops(tile);
    for (int e = 0; e < tile.count; e++) {
      T *z = tile.value(exponents_, e), *share = tile.value(target_, e);
      for (I h = 0; h < heads_.count; h++) {
        z[h] = exponential(z[h] - tile.top[h]);
        if (tile.known)
          z[h] /= tile.total[h];
        else
          tile.total[h] += tile.envelope[e] * z[h];
      }
      for (I c = 0; c < heads_.channels; c++) {
        const int h = heads_.of_channel[c];
        share[c] = h < 0 ? T(0) : tile.envelope[e] * z[h];
      }
    }
  }

 private:
  Heads heads_;
  int source_, target_, exponents_;

  void make_exponents(const Tile &tile, int e) const
  {
    const T *s = tile.value(source_, e);
    T *z = tile.value(exponents_, e);
    std::fill_n(z, heads_.count, T(0));
    for (I k = 0; k < heads_.scalars; k += L) {
      const V terms = load(heads_.weight.get() + k) * heads_.silu.value(load(s + k));
      for (int lane = 0; lane < L; lane++)
        if (heads_.of_scalar[k + lane] >= 0) z[heads_.of_scalar[k + lane]] += terms[lane];
    }
  }

  void raise_tops(const Tile &tile) const
  {
    bool raised = false;
    T factor[MOST_HEADS];
    for (I h = 0; h < heads_.count; h++) {
      T top = tile.top[h];
      for (int e = 0; e < tile.count; e++) top = std::max(top, tile.value(exponents_, e)[h]);
      factor[h] = exponential(tile.top[h] - top);
      raised |= top != tile.top[h];
      tile.total[h] *= factor[h];
      tile.top[h] = top;
    }
    for (std::size_t c = 0; raised && c < heads_.of_column.size(); c++)
      if (heads_.of_column[c] >= 0) tile.sum[c] *= factor[heads_.of_column[c]];
  }
};

class AttentionBack final : public EdgeStep {
 public:
  // source: gradient of the shares; value: the scalars
  AttentionBack(const Record &from, int source, int target, int value, int exponents) :
      heads_(from.record("heads")), source_(source), target_(target), value_(value),
      exponents_(exponents)
  {
  }

  void apply(const Tile &tile) const override
  {
    for (int e = 0; e < tile.count; e++) {
      const T *g = tile.value(source_, e), *s = tile.value(value_, e),
              *z = tile.value(exponents_, e);
      T *to = tile.value(target_, e);
      T owed[MOST_HEADS] = {};
      for (I c = 0; c < heads_.channels; c++)
        if (heads_.of_channel[c] >= 0) owed[heads_.of_channel[c]] += g[c];
      V of_envelope = {};
      for (I h = 0; h < heads_.count; h++) {
        owed[h] = z[h] * (owed[h] - tile.product[h]);     // by the envelope
        of_envelope[0] += owed[h];
        owed[h] *= tile.envelope[e];
      }
      tile.owe(ENVELOPE, e, of_envelope);
      for (I k = 0; k < heads_.scalars; k += L) {
        V value, slope, of_head = {};
        heads_.silu.value_and_slope(load(s + k), value, slope);
        for (int lane = 0; lane < L; lane++)
          if (heads_.of_scalar[k + lane] >= 0) of_head[lane] = owed[heads_.of_scalar[k + lane]];
        store(to + k, of_head * slope * load(heads_.weight.get() + k));
      }
    }
  }

 private:
  Heads heads_;
  int source_, target_, value_, exponents_;
};

}     // namespace
