// What every engine asks of the arrays that it is given.

#pragma once
#include "interface.h"
#include "threads.h"

namespace {

// throws for what would be read or written out of bounds
inline void check_graph(const eqcalc_graph &graph, I num_species)
{
  bool right = 0 <= graph.num_local && graph.num_local <= graph.num_nodes &&
      graph.num_nodes <= graph.num_rows && 0 <= graph.num_edges;
  for (I n = 0; right && n < graph.num_nodes; n++)
    right = 0 <= graph.species[n] && graph.species[n] < num_species;
  I last = 0;
  for (I e = 0; right && e < graph.num_edges; last = graph.edge_dst[e++])
    right = last <= graph.edge_dst[e] && graph.edge_dst[e] < graph.num_local &&
        0 <= graph.edge_src[e] && graph.edge_src[e] < graph.num_nodes;
  if (!right)
    throw std::runtime_error("species or edges are out of range, or edges not sorted by centre");
}

}     // namespace
