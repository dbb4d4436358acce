// From a density of species (density.h) to messages.

namespace {

// rows [dim, species in the structure, functions] of a density times a matrix for each species
class DensityStep final : public Step {
 public:
  COLD DensityStep(const Record &from, int source, int target) :
      Step(source, target), first_(from.integer("first")), dim_(from.integer("dim")),
      at_out_(from.integer("at_out")), stride_out_(from.integer("stride_out")),
      functions_(from.array("matrices").length(1))
  {
    const Array &values = from.array("matrices");
    T *plain = plain_.get(values.size()), *turned = turned_.get(values.size());
    for (I n = 0; n < values.length(0); n++)
      for (I a = 0; a < functions_; a++)
        for (I b = 0; b < stride_out_; b++) {
          const I at = n * functions_ * stride_out_;
          const T x = static_cast<T>(values[at + a * stride_out_ + b]);
          plain[at + a * stride_out_ + b] = x;
          turned[at + b * functions_ + a] = x;
        }
  }

  void forward(const Block &block) const override
  {
    apply(block, block.values[source()], block.values[target()], [&](int rows, T **x, T **y, I at) {
      gemm(rows, static_cast<int>(functions_), x, plain_.get() + at, static_cast<int>(stride_out_),
           y);
    });
  }
  void backward(const Block &block) const override
  {
    apply(block, block.gradients[source()], block.gradients[target()],
          [&](int rows, T **x, T **y, I at) {
            gemm(rows, static_cast<int>(stride_out_), y, turned_.get() + at,
                 static_cast<int>(functions_), x);
          });
  }

 private:
  I first_, dim_, at_out_, stride_out_, functions_;
  Buffer<T> plain_, turned_;

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
          x[rows] = density[b] + ((first_ + m) * present + p) * functions_;
          y[rows] = made[b] + at_out_ + m * stride_out_;
        }
      multiply(rows, x, y, (*block.present)[p] * functions_ * stride_out_);
    }
  }
};

}     // namespace
