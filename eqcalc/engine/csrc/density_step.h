// From a density of species (density.h) to messages.

#pragma once
#include "gemm.h"
#include "generated/steps.h"

namespace {

// rows [dim, species in the structure, functions] of a density times a matrix for each species
class DensityStep final : public Step {
 public:
  COLD DensityStep(const Record &from, int source, int target) :
      Step(source, target), first_(from.integer("first")), dim_(from.integer("dim")),
      at_out_(from.integer("at_out")), matrices_(from.array("matrices"))
  {
  }

  void forward(const Block &block) const override
  {
    apply(block, block.values[source()], block.values[target()], [&](int rows, T **x, T **y, I at) {
      gemm(rows, static_cast<int>(matrices_.rows), x, matrices_.plain.get() + at,
           static_cast<int>(matrices_.columns), y);
    });
  }
  void backward(const Block &block) const override
  {
    apply(block, block.gradients[source()], block.gradients[target()],
          [&](int rows, T **x, T **y, I at) {
            gemm(rows, static_cast<int>(matrices_.columns), y, matrices_.turned.get() + at,
                 static_cast<int>(matrices_.rows), x);
          });
  }

 private:
  I first_, dim_, at_out_;
  Matrices matrices_;     // of species: functions, columns of messages

  template <class Multiply>
  void apply(const Block &block, const Span &density, const Span &made,
             const Multiply &multiply) const
  {
    T *x[BLOCK * MOST_ROWS], *y[BLOCK * MOST_ROWS];
    const I present = static_cast<I>(block.present->size());
    for (I p = 0; p < present; p++) {
      int rows = 0;
      for (int b = 0; b < block.count; b++)
        for (I m = 0; m < dim_; m++, rows++) {
          x[rows] = density[b] + ((first_ + m) * present + p) * matrices_.rows;
          y[rows] = made[b] + at_out_ + m * matrices_.columns;
        }
      multiply(rows, x, y, (*block.present)[p] * matrices_.rows * matrices_.columns);
    }
  }
};

}     // namespace
