/* What engines for GPUs have beside interface.h. They work on one GPU whatever `threads` says, and
   eqcalc_open takes the first. Units: eV, Å. Functions return as those of interface.h. */

#ifndef EQCALC_GPU_INTERFACE_H
#define EQCALC_GPU_INTERFACE_H

#include "interface.h"

#define EQCALC_GPU_INTERFACE_VERSION 1

extern "C" {

int eqcalc_gpu_interface_version();

/* on the GPU of that number; with in_turn it is a process's number, and each takes the next GPU */
int eqcalc_open_on(const char *network, int64_t bytes, int number, int in_turn, void **engine,
                   char *error, int64_t size);

/* Pairs of atoms, within the cutoff or more, that stay on the GPU until the next list: num_edges of
   a graph without edge_vec, with r_ij = positions[edge_place] - positions[edge_dst] + shifts. The
   first positions are those of the graph's nodes, then come images of atoms. */
struct eqcalc_list {
  const double *shifts;      /* [num_edges, 3] Å; null: zeros */
  int64_t num_places;        /* positions; num_nodes without images */
  const int64_t *edge_place; /* [num_edges] position of the neighbour; null: edge_src */
  /* rows of an exchange: the own rows that other processes have as ghosts, in this order, then all
     rows of ghosts; null: all own rows */
  int64_t num_sent;
  const int64_t *sent;
};
int eqcalc_place(void *engine, const eqcalc_graph *graph, const eqcalc_list *list, char *error,
                 int64_t size);

/* What a step is asked for; each may be null. */
struct eqcalc_step_results {
  double *energies; /* [num_local] eV */
  double *forces;   /* [num_nodes, 3] eV/Å, as of eqcalc_forces */
  double *virials;  /* [num_nodes, 3, 3] eV, as of eqcalc_forces; need forces */
  double *virial;   /* [3, 3] eV, their sum; needs forces */
  double *nearest;  /* the shortest distance (Å) within the cutoff, else that or more */
  /* with limits [num_species, num_species] (Å^2): of each own atom the number of neighbours, and
     the edge that is shortest among those below their limits, relative to these, or -1 */
  const double *limits;
  int32_t *numbers, *near_edges; /* [num_local] */
};
/* atoms of the list at positions [num_places, 3] Å. With an exchange, every process makes the same
   sequence of calls, and asks for forces or not. */
int eqcalc_step(void *engine, const double *positions, const eqcalc_exchange *exchange,
                const eqcalc_step_results *results, char *error, int64_t size);

/* bytes of the GPU that lists given from now on take at most, or an error says how many they need;
   0: what there is */
void eqcalc_limit_memory(void *engine, int64_t bytes);
}

#endif
