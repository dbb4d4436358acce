// What a kernel of a convolution that is trained works on, given by value. Pointers are the
// device's. T: scalar of the network. Edges are sorted by centre.

#pragma once
#include "../../csrc/generated/scalar.h"

struct Task {
  const int *first_edge;        // [own + 1]
  const int *sources, *dst;     // [edges] neighbour j, centre i
  // edges by neighbour: row_edge[row_first[n]] .. row_edge[row_first[n + 1] - 1] are those of n
  const int *rows, *row_first, *row_edge;
  const T *x, *y, *weights;     // [nodes, width_in], [edges, (l_max + 1)^2], [edges, num_weights]
  T *messages;                  // [own, width_out], or their gradient, which is read
  T *dx, *dy, *dweights;        // what is added to; the latter two may be null
  int begin;                    // 0
};
