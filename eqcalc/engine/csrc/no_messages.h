// In the place of messages.h, for networks without operations on edges.

#pragma once
#include "radial_table.h"

namespace {

class Frames {
 public:
  void read(const Record &) {}
};

class Message {
 public:
  struct Surroundings {
    const Edges &edges;
    const Radial &radial;
    const int *rows;
    const T *features;
    T *dx;
  };
  struct Own {
    I number;
    const T *row;
    T *gradient;
  };

  Message(const Record &, I, I, const Frames &, const Envelope &) {}
  I scratch() const { return 0; }
  void reserve(I, I, bool) {}
  I bytes() const { return 0; }
  void forward(const Surroundings &, const Own &, T *, T *) {}
  void backward(const Surroundings &, const Own &, const T *, const T *, const EdgeGradient &, T *) {}
};

}    // namespace
