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

  void forward(const Block &block) const override { apply(block, block.values, false); }
  void backward(const Block &block) const override { apply(block, block.gradients, true); }

 private:
  I first_, dim_, at_out_;
  Matrices matrices_;     // of species: functions, columns of messages

  void apply(const Block &block, const Span *rows_of, bool back) const
  {
    const Span density = rows_of[source()], made = rows_of[target()];
    const int functions = static_cast<int>(matrices_.rows);
    const int columns = static_cast<int>(matrices_.columns);
    T *x[BLOCK * MOST_ROWS], *y[BLOCK * MOST_ROWS];
    const I present = static_cast<I>(block.present->size());
    for (I p = 0; p < present; p++) {
      int rows = 0;
      for (int b = 0; b < block.count; b++)
        for (I m = 0; m < dim_; m++, rows++) {
          x[rows] = density[b] + ((first_ + m) * present + p) * functions;
          y[rows] = made[b] + at_out_ + m * columns;
        }
      const I at = static_cast<I>((*block.present)[p]) * functions * columns;
      if (back)
        gemm(rows, columns, y, matrices_.turned.get() + at, functions, x);
      else
        gemm(rows, functions, x, matrices_.plain.get() + at, columns, y);
    }
  }
};

}     // namespace
