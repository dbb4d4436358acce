// Operations on messages that are not in frames: features of both atoms added, products with harmonics
// of the edge, weighted sums. PRODUCTS are generated (eqcalc.engine.product_kernels).

#pragma once
#include "edge_steps.h"

namespace {

// y = x_j + x_i
class PairSum final : public EdgeStep {
 public:
  explicit PairSum(int target) : target_(target) {}

  void apply(const Tile &tile) const override
  {
    for (int e = 0; e < tile.count; e++) {
      const T *x = tile.x + tile.rows[e] * tile.width;
      T *y = tile.value(target_, e);
      for (I c = 0; c < tile.width; c += L) store(y + c, load(x + c) + load(tile.own + c));
    }
  }

 private:
  int target_;
};

// its transpose
class PairBack final : public EdgeStep {
 public:
  explicit PairBack(int source) : source_(source) {}

  void apply(const Tile &tile) const override
  {
    for (int e = 0; e < tile.count; e++) {
      const T *g = tile.value(source_, e);
      if (tile.dx) add(g, tile.dx + tile.rows[e] * tile.width, tile.width);
      if (tile.own_gradient) add(g, tile.own_gradient, tile.width);
    }
  }

 private:
  int source_;

  static void add(const T *from, T *to, I width)
  {
    for (I c = 0; c < width; c += L) store(to + c, load(to + c) + load(from + c));
  }
};

// Clebsch-Gordan products with harmonics, and the way back
class EdgeProduct final : public EdgeStep {
 public:
  // value: what was multiplied; -1: this is the way forward
  EdgeProduct(const Record &from, int source, int target, int value) :
      kernels_(PRODUCTS[from.integer("kernels")]), source_(source), target_(target), value_(value)
  {
  }

  void apply(const Tile &tile) const override
  {
    if (value_ < 0) {
      for (int e = 0; e < tile.count; e++)
        kernels_.forward(tile.radial[e], tile.harmonics(e), tile.value(source_, e),
                         tile.value(target_, e));
      return;
    }
    alignas(64) T sums[(NUM_Y + 1) * L * L];
    for (int first = 0; first < tile.count; first += L) {
      for (int lane = 0; lane < L; lane++) {
        V owed[NUM_Y + 1] = {};
        const int e = first + lane;
        if (e < tile.count)
          kernels_.backward(tile.radial[e], tile.harmonics(e), tile.value(value_, e),
                            tile.value(source_, e), tile.value(target_, e), owed);
        for (int m = 0; m < NUM_Y; m++) store(sums + (m * L + lane) * L, owed[m]);
        if (e < tile.count) tile.owe(LENGTH, e, owed[NUM_Y]);
      }
      T *dy = tile.dy + first * NUM_Y;
      for (int m = 0; m < NUM_Y; m++)
        store(dy + m * L, load(dy + m * L) + row_sums(sums + m * L * L));
    }
  }

 private:
  const ProductKernels &kernels_;
  int source_, target_, value_;
};

// sum_e a_e z_e, row by row of `stride` channels with weights of their own
class EdgeSum final : public EdgeStep {
 public:
  EdgeSum(const Record &from, int source, int weights) :
      source_(source), weights_(weights), stride_(from.integer("stride"))
  {
  }

  void apply(const Tile &tile) const override
  {
    for (int e = 0; e < tile.count; e++) {
      const T *z = tile.value(source_, e), *a = tile.value(weights_, e);
      for (I at = 0; at < tile.widths[source_]; at += stride_)
        for (I c = 0; c < stride_; c += L)
          store(tile.sum + at + c, load(tile.sum + at + c) + load(a + c) * load(z + at + c));
    }
  }

 private:
  int source_, weights_;
  I stride_;
};

// its transpose
class EdgeSpread final : public EdgeStep {
 public:
  EdgeSpread(const Record &from, int target, int value, int weights, int weight_gradient) :
      target_(target), value_(value), weights_(weights), weight_gradient_(weight_gradient),
      stride_(from.integer("stride"))
  {
  }

  void apply(const Tile &tile) const override
  {
    for (int e = 0; e < tile.count; e++) {
      const T *z = tile.value(value_, e), *a = tile.value(weights_, e);
      T *to = tile.value(target_, e), *owed = tile.value(weight_gradient_, e);
      for (I c = 0; c < stride_; c += L) {
        V sum = {};
        for (I at = c; at < tile.widths[value_]; at += stride_) {
          const V g = load(tile.sum + at);
          sum += g * load(z + at);
          store(to + at, load(a + c) * g);
        }
        store(owed + c, sum);
      }
    }
  }

 private:
  int target_, value_, weights_, weight_gradient_;
  I stride_;
};

}     // namespace
