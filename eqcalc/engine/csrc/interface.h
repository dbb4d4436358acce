/* The whole interface of a fused engine's library. Units: eV, Å.

   Rows of atoms: own atoms, then ghosts that edges refer to, then ghosts that only pass through
   here on their way to other processes. Without an exchange there are no ghosts. */

#ifndef EQCALC_INTERFACE_H
#define EQCALC_INTERFACE_H

#include <cstdint>

#define EQCALC_INTERFACE_VERSION 2
#define EQCALC_OUT_OF_MEMORY 2

extern "C" {

struct eqcalc_graph {
  int64_t num_local, num_nodes, num_rows, num_edges;
  const int64_t *species;  /* [num_nodes] */
  const int64_t *edge_src; /* [num_edges] neighbour j */
  const int64_t *edge_dst; /* [num_edges] centre i, own, ascending */
  const double *edge_vec;  /* [num_edges, 3] r_j - r_i */
};

/* Features of the atoms between two layers, in the precision of the library. Every process makes
   the same sequence of calls in each evaluation, from its main thread. */
struct eqcalc_exchange {
  void *context;
  void (*forward)(void *context, void *rows, int width); /* own rows -> rows of ghosts */
  void (*reverse)(void *context, void *rows, int width); /* ghosts' rows added to owners' */
};

/* All return 0, or write a sentence into error[size] and return another number. */
int eqcalc_interface_version();
int eqcalc_open(const char *network, int64_t bytes, void **engine, char *error, int64_t size);
void eqcalc_close(void *engine);
/* energies [num_local]; gradient [num_edges, 3] = dE/dr_ij; exchange may be null, and then the
   gradient, too, where only energies are wanted */
int eqcalc_evaluate(void *engine, const eqcalc_graph *graph, const eqcalc_exchange *exchange,
                    int threads, double *energies, double *gradient, char *error, int64_t size);
/* features of the atoms and what follows from them (eqcalc.uncertainty); each may be null */
struct eqcalc_uncertainty {
  double *features;  /* [num_local, eqcalc_num_features] eV */
  double *variances; /* [num_local] of the energies, eV^2 */
  double *grades;    /* [num_local] extrapolation grades: 1 is the edge of the training set */
};
/* the same, and of each own atom what `uncertainty` has room for; infinite for species that the
   training did not have. An error where the file has no uncertainty, unless features alone are
   wanted. Costs nothing but what is asked for; exchanges are those of eqcalc_evaluate. */
int eqcalc_evaluate_uncertainty(void *engine, const eqcalc_graph *graph,
                                const eqcalc_exchange *exchange, int threads, double *energies,
                                double *gradient, const eqcalc_uncertainty *uncertainty,
                                char *error, int64_t size);
int eqcalc_num_features(void *engine);    /* of an atom */
int eqcalc_has_uncertainty(void *engine); /* 1 where the file has one, else 0 */
/* widths [count] of the rows exchanged before layers 1, 2, ...; returns count */
int eqcalc_exchange_widths(void *engine, int *widths, int count);
int64_t eqcalc_memory(void *engine); /* bytes held */

/* forces [num_atoms, 3] and, unless null, virials [num_atoms, 3, 3] of the neighbours; returns 1
   where an edge refers to no atom, else 0 */
int eqcalc_forces(int64_t num_atoms, int64_t num_edges, const int64_t *edge_src,
                  const int64_t *edge_dst, const double *edge_vec, const double *gradient,
                  double *forces, double *virials);
/* pairs of a list that are within the cutoff now; shifts [num_pairs, 3] Å; positions
   [num_atoms, 3] Å; returns how many, or -1 where a pair refers to no atom, and in nearest the place
   of the shortest among them, or -1 */
int64_t eqcalc_select(int64_t num_atoms, int64_t num_pairs, const int64_t *src, const int64_t *dst,
                      const double *shifts, const double *positions, double cutoff,
                      int64_t *edge_src, int64_t *edge_dst, double *edge_vec, int64_t *nearest);

/* All of it at once, of libraries for CPUs: pairs that are within the cutoff at positions
   [num_atoms, 3] Å, and what follows from them. pairs: a list without edge_vec, within the cutoff or
   more; shifts [num_edges, 3] Å, what periodicity adds to r_src - r_dst. energies [num_local] eV;
   unless null, forces [num_local, 3] eV/Å and virials [num_local, 3, 3] eV; nearest: the shortest
   distance (Å) within the cutoff, else that */
int eqcalc_evaluate_pairs(void *engine, const eqcalc_graph *pairs, const double *shifts,
                          const double *positions, double cutoff, int threads, double *energies,
                          double *forces, double *virials, double *nearest, char *error,
                          int64_t size);
}

#endif
