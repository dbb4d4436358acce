// Sums of rows of an atom.

#pragma once
#include "steps.h"

namespace {

// a row added to another one of the same width
class AddStep final : public Step {
 public:
  AddStep(const Record &, int source, int target) : Step(source, target) {}
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

}     // namespace
