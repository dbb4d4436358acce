// What is done with the rows of atoms between two convolutions, a block of atoms at a time while
// they are in the cache (eqcalc.engine.plan). A step reads a row of each atom and adds to another;
// on the way back it adds to the gradient of the former what it owes to that of the latter.

namespace {

constexpr int BLOCK = 16;     // atoms

// one row of each atom of a block
struct Span {
  T *first;
  I width;
  T *operator[](I atom) const { return first + atom * width; }
};

struct Block {
  int count;     // atoms
  const int *species;
  const std::vector<int> *present;     // species in the structure
  double *energies;
  double *features;     // [count, num_features], or null where nobody wants them
  I num_features;
  const Span *values, *gradients;     // by number of a row
  T *scratch;
};

class Step {
 public:
  Step(int source, int target) : source_(source), target_(target) {}
  virtual ~Step() = default;
  virtual void forward(const Block &block) const = 0;
  virtual void backward(const Block &block) const = 0;
  virtual I scratch() const { return 0; }     // numbers
  int source() const { return source_; }
  int target() const { return target_; }

 private:
  int source_, target_;
};

// a row added to another one of the same width
class AddStep final : public Step {
 public:
  AddStep(int source, int target) : Step(source, target) {}
  void forward(const Block &block) const override
  {
    add(block, block.values[source()], block.values[target()]);
  }
  void backward(const Block &block) const override
  {
    add(block, block.gradients[target()], block.gradients[source()]);
  }

 private:
  static void add(const Block &block, const Span &from, const Span &to)
  {
    for (I c = 0; c < block.count * to.width; c += L)
      store(to.first + c, load(to.first + c) + load(from.first + c));
  }
};

// rows [dim, stride_in] of each atom times a matrix, or one per species
class LinearStep final : public Step {
 public:
  LinearStep(const Record &from, int source, int target) :
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

// rows [dim, species in the structure, functions] of a density times a matrix for each species
class DensityStep final : public Step {
 public:
  DensityStep(const Record &from, int source, int target) :
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

// a scaled function of one variable
class Activation {
 public:
  Activation(const std::string &name, double scale) : scale_(static_cast<T>(scale))
  {
    if (name == "silu")
      kind_ = SILU;
    else if (name == "tanh")
      kind_ = TANH;
    else if (name == "sigmoid")
      kind_ = SIGMOID;
    else if (name == "identity")
      kind_ = IDENTITY;
    else
      throw std::runtime_error("the engine does not know the activation '" + name + "'");
  }

  bool linear() const { return kind_ == IDENTITY; }

  V value(V x) const
  {
    if (kind_ == IDENTITY) return scale_ * x;
    if (kind_ == TANH) return scale_ * (T(2) * sigmoid(T(2) * x) - T(1));
    const V s = sigmoid(x);
    return kind_ == SILU ? scale_ * x * s : scale_ * s;
  }
  void value_and_slope(V x, V &value, V &slope) const
  {
    if (kind_ == IDENTITY) {
      value = scale_ * x;
      slope = all(scale_);
    } else if (kind_ == TANH) {
      const V t = T(2) * sigmoid(T(2) * x) - T(1);
      value = scale_ * t;
      slope = scale_ * (T(1) - t * t);
    } else {
      const V s = sigmoid(x);
      value = kind_ == SILU ? scale_ * x * s : scale_ * s;
      slope = scale_ * (kind_ == SILU ? s + x * s * (T(1) - s) : s * (T(1) - s));
    }
  }

 private:
  enum { SILU, TANH, SIGMOID, IDENTITY } kind_;
  T scale_;
};

// Scalars through an activation, other blocks times activated scalars. All of the target is set.
class GateStep final : public Step {
 public:
  GateStep(const Record &from, int source, int target) : Step(source, target)
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

// y = x sigmoid(n + b), n^2 = mean square of x over its rows + epsilon^2; blocks without b: scalars
// through an activation. All of the target is set, which has the source's layout.
class NormGateStep final : public Step {
 public:
  NormGateStep(const Record &from, int source, int target) :
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
    for (int lane = 0; lane < L; lane++) sum[lane] = std::sqrt(sum[lane]);
    return sum;
  }
};

// energies += scale of the species times a weighted sum of activated numbers; the derivatives of
// an atom's energy in the file's own weights, which are divided by the root of their number, are its
// features
class ReadoutStep final : public Step {
 public:
  ReadoutStep(const Record &from, int source) :
      Step(source, source), activation_(from.text("activation"), from.number("activation_scale")),
      columns_(from.array("weights").size()), feature_(from.integer("feature")),
      num_features_(from.integer("num_features")), scale_(from.numbers("scale"))
  {
    from.array("weights").copy(weights_.get(columns_));
  }

  void forward(const Block &block) const override
  {
    for (int b = 0; b < block.count; b++) {
      const T *x = block.values[source()][b];
      double sum = 0.0;
      for (I c = 0; c < columns_; c += L) {
        const V terms = load(weights_.get() + c) * activation_.value(load(x + c));
        for (int lane = 0; lane < L; lane++) sum += terms[lane];
      }
      block.energies[b] += scale_[block.species[b]] * sum;
    }
    if (block.features) give_features(block);
  }

  void backward(const Block &block) const override
  {
    const Span values = block.values[source()], to = block.gradients[source()];
    const bool sets = values.first == to.first && !activation_.linear();
    for (int b = 0; b < block.count; b++) {
      const T scale = static_cast<T>(scale_[block.species[b]]);
      for (I c = 0; c < columns_; c += L) {
        V value, slope;
        activation_.value_and_slope(load(values[b] + c), value, slope);
        const V gradient = scale * load(weights_.get() + c) * slope;
        store(to[b] + c, sets ? gradient : load(to[b] + c) + gradient);
      }
    }
  }

 private:
  Activation activation_;
  I columns_, feature_, num_features_;     // the first of its features, and how many it has
  Buffer<T> weights_;
  std::vector<double> scale_;     // of species

  void give_features(const Block &block) const
  {
    const double unit = 1.0 / std::sqrt(static_cast<double>(num_features_));
    for (int b = 0; b < block.count; b++) {
      const T *x = block.values[source()][b];
      double *to = block.features + b * block.num_features + feature_;
      for (I c = 0; c < num_features_; c += L) {
        const V values = activation_.value(load(x + c));
        const I lanes = std::min<I>(L, num_features_ - c);
        for (I lane = 0; lane < lanes; lane++)
          to[c + lane] = scale_[block.species[b]] * unit * values[lane];
      }
    }
  }
};

}     // namespace
