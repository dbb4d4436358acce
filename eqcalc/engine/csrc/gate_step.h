// Gates.

#pragma once
#include "steps.h"

namespace {

// Scalars through an activation, other blocks times activated scalars. All of the target is set.
class GateStep final : public Step {
 public:
  COLD GateStep(const Record &from, int source, int target) : Step(source, target)
  {
    for (const Record &b : from.records("blocks"))
      blocks_.push_back({Activation(b.text("activation"), b.number("scale")), b.integer("at_in"),
                         b.integer("dim"), b.integer("mul"), b.has("gate") ? b.integer("gate") : -1,
                         b.integer("at_out")});
  }

  void forward(const Block &block) const override
  {
    for (int b = 0; b < block.count; b++)
      for (const Piece &piece : blocks_)
        forward(piece, block.values[source()][b], block.values[target()][b]);
  }

  void backward(const Block &block) const override
  {
    const Span values = block.values[source()], to = block.gradients[source()];
    const bool sets = values.first == to.first;     // the gradient takes the values' place
    for (int b = 0; b < block.count; b++)
      for (const Piece &piece : blocks_) {
        const T *x = values[b], *g = block.gradients[target()][b];
        if (sets)
          backward(piece, x, g, to[b], [](T *p, V v) { store(p, v); });
        else
          backward(piece, x, g, to[b], [](T *p, V v) { store(p, load(p) + v); });
      }
  }

 private:
  struct Piece {
    Activation activation;
    I at_in, dim, mul, gate, at_out;     // gate: -1 for scalars
  };
  std::vector<Piece> blocks_;

  static void forward(const Piece &p, const T *x, T *y)
  {
    const T *in = x + p.at_in;
    y += p.at_out;
    for (I c = 0; c < p.mul; c += L) {
      if (p.gate < 0) {
        store(y + c, p.activation.value(load(in + c)));
        continue;
      }
      const V gate = p.activation.value(load(x + p.gate + c));
      for (I m = 0; m < p.dim; m++) store(y + m * p.mul + c, gate * load(in + m * p.mul + c));
    }
  }

  template <class Put>
  static void backward(const Piece &p, const T *x, const T *g, T *dx, const Put &put)
  {
    const T *in = x + p.at_in;
    T *din = dx + p.at_in;
    g += p.at_out;
    for (I c = 0; c < p.mul; c += L) {
      V value, slope;
      p.activation.value_and_slope(load((p.gate < 0 ? in : x + p.gate) + c), value, slope);
      if (p.gate < 0) {
        put(din + c, load(g + c) * slope);
        continue;
      }
      V sum = {};
      for (I m = 0; m < p.dim; m++) {
        const V gm = load(g + m * p.mul + c);
        sum += gm * load(in + m * p.mul + c);
        put(din + m * p.mul + c, gm * value);
      }
      put(dx + p.gate + c, sum * slope);
    }
  }
};

}     // namespace
