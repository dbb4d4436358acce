// Linear maps of an atom's rows.

#pragma once
#include "gemm.h"
#include "generated/steps.h"

namespace {

// `dim` rows of each atom times a matrix, or one per species
class LinearStep final : public Step {
 public:
  COLD LinearStep(const Record &from, int source, int target) :
      Step(source, target), at_in_(from.integer("at_in")), dim_(from.integer("dim")),
      at_out_(from.integer("at_out")), matrices_(from.array("matrices"))
  {
  }

  void forward(const Block &block) const override
  {
    apply(block, block.values[source()], at_in_, matrices_.rows, block.values[target()], at_out_,
          matrices_.columns, matrices_.plain.get());
  }
  void backward(const Block &block) const override
  {
    apply(block, block.gradients[target()], at_out_, matrices_.columns, block.gradients[source()],
          at_in_, matrices_.rows, matrices_.turned.get());
  }

 private:
  I at_in_, dim_, at_out_;
  Matrices matrices_;     // of species, or one

  void apply(const Block &block, const Span &from, I at_from, I stride_from, const Span &to,
             I at_to, I stride_to, const T *matrix) const
  {
    const T *x[BLOCK * MOST_ROWS];
    T *y[BLOCK * MOST_ROWS];
    for (I s = 0; s < matrices_.number; s++, matrix += stride_from * stride_to) {
      int rows = 0;
      for (int b = 0; b < block.count; b++) {
        if (matrices_.number > 1 && block.species[b] != s) continue;
        for (I m = 0; m < dim_; m++, rows++) {
          x[rows] = from[b] + at_from + m * stride_from;
          y[rows] = to[b] + at_to + m * stride_to;
        }
      }
      gemm(rows, static_cast<int>(stride_from), x, matrix, static_cast<int>(stride_to), y);
    }
  }
};

}     // namespace
