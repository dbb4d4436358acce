// Gates by norms (eqcalc.nn.norm_gate).

#pragma once
#include "steps.h"

namespace {

// y = x sigmoid(n + b), n^2 = mean square of x over its rows + epsilon^2; blocks without b: scalars
// through an activation. All of the target is set, which has the source's layout.
class NormGateStep final : public Step {
 public:
  COLD NormGateStep(const Record &from, int source, int target) :
      Step(source, target), square_(static_cast<T>(from.number("square")))
  {
    for (const Record &b : from.records("blocks")) {
      blocks_.push_back({Activation(b.text("activation"), b.number("scale")),
                         b.integer("at"),
                         b.integer("dim"),
                         b.integer("mul"),
                         {}});
      if (b.has("bias")) b.array("bias").copy(blocks_.back().bias.get(b.array("bias").size()));
    }
  }

  void forward(const Block &block) const override
  {
    for (int b = 0; b < block.count; b++)
      for (const Piece &p : blocks_) {
        const T *x = block.values[source()][b] + p.at;
        T *y = block.values[target()][b] + p.at;
        for (I c = 0; c < p.mul; c += L) {
          if (!p.bias.get()) {
            store(y + c, p.activation.value(load(x + c)));
            continue;
          }
          const V gate = p.activation.value(norm(p, x + c) + load(p.bias.get() + c));
          for (I m = 0; m < p.dim; m++) store(y + m * p.mul + c, gate * load(x + m * p.mul + c));
        }
      }
  }

  void backward(const Block &block) const override
  {
    const Span values = block.values[source()], to = block.gradients[source()];
    const bool sets = values.first == to.first;     // the gradient takes the values' place
    const auto put = [sets](T *p, V v) { store(p, sets ? v : load(p) + v); };
    for (int b = 0; b < block.count; b++)
      for (const Piece &p : blocks_) {
        const T *x = values[b] + p.at, *g = block.gradients[target()][b] + p.at;
        T *dx = to[b] + p.at;
        for (I c = 0; c < p.mul; c += L) {
          V value, slope;
          if (!p.bias.get()) {
            p.activation.value_and_slope(load(x + c), value, slope);
            put(dx + c, load(g + c) * slope);
            continue;
          }
          const V n = norm(p, x + c);
          p.activation.value_and_slope(n + load(p.bias.get() + c), value, slope);
          V sum = {};
          for (I m = 0; m < p.dim; m++) sum += load(g + m * p.mul + c) * load(x + m * p.mul + c);
          const V pull = sum * slope / (n * static_cast<T>(p.dim));
          for (I m = 0; m < p.dim; m++) {
            const I at = m * p.mul + c;
            put(dx + at, load(g + at) * value + pull * load(x + at));
          }
        }
      }
  }

 private:
  struct Piece {
    Activation activation;
    I at, dim, mul;
    Buffer<T> bias;
  };
  std::vector<Piece> blocks_;
  T square_;     // epsilon^2

  V norm(const Piece &p, const T *x) const
  {
    V sum = {};
    for (I m = 0; m < p.dim; m++) sum += load(x + m * p.mul) * load(x + m * p.mul);
    sum = sum / static_cast<T>(p.dim) + square_;
    for (int lane = 0; lane < L; lane++) sum[lane] = root(sum[lane]);
    return sum;
  }
};

}     // namespace
