// What is done with the rows of atoms between two convolutions, a block of atoms at a time while
// they are in the cache (eqcalc.engine.plan). A step reads a row of each atom and adds to another;
// on the way back it adds to the gradient of the former what it owes to that of the latter.

#pragma once
#include "description.h"
#include "generated/sizes.h"

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

// matrices [number, rows, columns], and their transposes for the way back
struct Matrices {
  I number, rows, columns;
  Buffer<T> plain, turned;

  COLD explicit Matrices(const Array &from) :
      number(from.length(0)), rows(from.length(1)), columns(from.length(2))
  {
    T *as_they_are = plain.get(from.size()), *to = turned.get(from.size());
    from.copy(as_they_are);
    for (I n = 0; n < number; n++)
      for (I a = 0; a < rows; a++)
        for (I b = 0; b < columns; b++)
          to[(n * columns + b) * rows + a] = as_they_are[(n * rows + a) * columns + b];
  }
};

// a scaled function of one variable
class Activation {
 public:
  COLD Activation(std::string_view name, double scale) : scale_(static_cast<T>(scale))
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
      refuse("activation", name);
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

}     // namespace
