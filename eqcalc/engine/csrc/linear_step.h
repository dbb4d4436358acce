// Linear maps of an atom's rows.

namespace {

// rows [dim, stride_in] of each atom times a matrix, or one per species
class LinearStep final : public Step {
 public:
  COLD LinearStep(const Record &from, int source, int target) :
      Step(source, target), at_in_(from.integer("at_in")), stride_in_(from.integer("stride_in")),
      dim_(from.integer("dim")), at_out_(from.integer("at_out")),
      stride_out_(from.integer("stride_out")), matrices_(from.array("matrices").length(0))
  {
    const I size = stride_in_ * stride_out_;
    const Array &values = from.array("matrices");
    T *plain = plain_.get(matrices_ * size), *turned = turned_.get(matrices_ * size);
    for (I n = 0; n < matrices_; n++)
      for (I a = 0; a < stride_in_; a++)
        for (I b = 0; b < stride_out_; b++) {
          const T x = static_cast<T>(values[n * size + a * stride_out_ + b]);
          plain[n * size + a * stride_out_ + b] = x;
          turned[n * size + b * stride_in_ + a] = x;
        }
  }

  void forward(const Block &block) const override
  {
    apply(block, block.values[source()], at_in_, stride_in_, block.values[target()], at_out_,
          stride_out_, plain_.get());
  }
  void backward(const Block &block) const override
  {
    apply(block, block.gradients[target()], at_out_, stride_out_, block.gradients[source()], at_in_,
          stride_in_, turned_.get());
  }

 private:
  I at_in_, stride_in_, dim_, at_out_, stride_out_, matrices_;
  Buffer<T> plain_, turned_;

  void apply(const Block &block, const Span &from, I at_from, I stride_from, const Span &to,
             I at_to, I stride_to, const T *matrix) const
  {
    const T *x[BLOCK * MOST_ROWS];
    T *y[BLOCK * MOST_ROWS];
    for (I s = 0; s < matrices_; s++, matrix += stride_from * stride_to) {
      int rows = 0;
      for (int b = 0; b < block.count; b++) {
        if (matrices_ > 1 && block.species[b] != s) continue;
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
