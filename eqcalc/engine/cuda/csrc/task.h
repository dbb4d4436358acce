// What a kernel works on: one structure, given to every kernel by value. The same text is compiled
// into the host and into the device's code. Pointers are the device's. T: scalar of the network.
//
// Own atoms come first, then the ghosts that edges refer to. Edges are sorted by centre. A pair of
// the list that is not within the cutoff now has r < 0, and nobody looks at the rest of it; a list may
// end with edges that are none, dst < 0.

#pragma once
#include "../../csrc/generated/scalar.h"

// intervals of a radial table, of one length
struct Segment {
  double start, per_length;     // Å, intervals per Å
  int first, count;
};

constexpr int MOST_ROWS = 64;

struct Task {
  int begin, end;     // own atoms, edges or rows that this launch works on
  int num_local, num_nodes, num_edges;
  int num_packed;     // rows or blocks that pack, add_rows or virial_sums make

  // the list
  const int *species;        // [nodes]
  const int *first_edge;     // [own + 1]
  const int *src, *dst;      // [edges] neighbour j, centre i
  const int *place;          // [edges] which position is the neighbour's
  const double *shifts;      // [edges, 3] Å, what is added to these differences; null: nothing
  // the list by neighbour, of the own atoms in work: rows[n] is the neighbour of the edges
  // row_edge[row_first[n]] .. row_edge[row_first[n + 1] - 1]
  const int *rows, *row_first, *row_edge;

  // geometry
  const double *positions;      // [places, 3] Å, own atoms first; null: vec is given
  double *vec;                  // [edges, 3] Å
  double *r;                    // [edges] Å that the network is told; negative: beyond the cutoff
  int *kind, *edge_species;     // [edges] kind of bond, species of the neighbour
  T *u, *inverse_r, *told_slope;     // [edges, 3], [edges], [edges] d told / d r
  T *y;                              // [edges, NUM_Y] harmonics, without Y_0
  T *dy, *dr;                        // gradients of these: [edges, NUM_Y], [edges]

  // what messages to an atom are multiplied by, and gradients of that: [own]
  T *factor;
  double *calm, *calm_pull;     // crowding; its derivatives by its two measures: [own, 2]
  double *calm_slope;
  double *count_pulls;     // [COUNTS, own]

  // the layer in work
  const T *table;     // [intervals, kinds, lines, DEGREE + 1, 32]
  const Segment *segments;
  int num_segments, interval_stride, kind_stride;     // numbers in the table
  const int *sources;                                 // [edges] row of x that an edge reads
  const T *x;                                         // [rows, width_in]
  T *dx;                                              // [nodes, width_in]
  T *messages;                                        // [own, width_out], and then their gradient

  // rows of atoms by number, of values and of gradients: [own, width]
  T *values[MOST_ROWS], *gradients[MOST_ROWS];
  const T *weights;            // all matrices
  const double *constants;     // all tables of species

  double *energies, *nearest;     // [own] eV, Å: distance of the nearest neighbour
  double *features;               // [own, num_features] eV, of readouts; null: not wanted
  int num_features;
  double *gradient;             // [edges, 3] eV/Å, dE/dr_ij
  double *forces, *virials;     // [nodes, 3] eV/Å, [nodes, 9] eV
  double *virial_sums;          // [blocks, 9] eV

  // what a step looks at: distances (Å^2) below which pairs of species are told; of own atoms the
  // number of neighbours and the edge that is shortest relative to its limit, or -1
  const double *limits;          // [species, species]
  int *numbers, *near_edges;     // [own]

  // rows that other processes have, to and from packed ones: [packed, width] of rows [own, width]
  const int *sent;     // [packed]
  T *packed, *unpacked;
  int packed_width;
};
static_assert(sizeof(Task) <= 4096, "a kernel has no more room for what it is given");
