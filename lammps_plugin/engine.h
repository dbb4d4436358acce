// SPDX-License-Identifier: GPL-2.0-only
//
// Energies and gradients from a potential file. This side knows torch and nothing of LAMMPS; the
// other side includes this header and nothing of torch.
//
// With r_ij = r_j - r_i the vector of edge (centre i <- neighbour j), E_i the atomic energies and
// E their sum, evaluate() returns E_i and g_ij = dE/dr_ij, from which everything else follows.

#ifndef EQCALC_ENGINE_H
#define EQCALC_ENGINE_H

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#define EQCALC_PUBLIC __attribute__((visibility("default")))

namespace eqcalc {

// what went wrong, in one sentence for the user
class EQCALC_PUBLIC EngineError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct EngineOptions {
  std::string path;               // the potential file
  std::string precision;          // "single", "double"; empty takes the file's own
  std::string device = "cpu";     // "cpu", "cuda", "cuda:N"
  int threads = 0;                // of torch, during calls only; 0 leaves them alone
  int rank_on_machine = 0;        // picks the GPU where "cuda" names none
  bool with_exchange = false;     // evaluate() will be given a RowExchange
  double memory_limit = 0.0;      // GB of a GPU at most; 0: what there is
};

// One row per atom: first this process's own atoms, then its ghosts.
struct Rows {
  void *data;     // [num_rows, width], float or double
  int width;
  bool single;     // float
};

// Both calls are collective: every process makes the same sequence of them in each evaluate().
class RowExchange {
 public:
  virtual ~RowExchange() = default;
  virtual void forward(const Rows &) = 0;     // own rows -> rows of their ghosts, everywhere
  virtual void reverse(const Rows &) = 0;     // rows of ghosts are added to their owner's
};

// Rows are numbered own atoms first, then the ghosts that edges refer to, then ghosts that only
// pass through here on their way to other processes.
struct Graph {
  int64_t num_local = 0;                // own atoms
  int64_t num_nodes = 0;                // ... and the ghosts that edges refer to
  int64_t num_rows = 0;                 // ... and all other ghosts
  const int64_t *species = nullptr;     // [num_nodes]
  int64_t num_edges = 0;
  const int64_t *edge_src = nullptr;     // [num_edges] neighbour j
  const int64_t *edge_dst = nullptr;     // [num_edges] centre i, ascending
  const double *edge_vec = nullptr;      // [num_edges, 3] Å, centre -> neighbour
};

// Pairs of atoms, within the cutoff or more, that an engine keeps until it is given the next.
struct PairList {
  Graph graph;                             // without edge_vec
  int64_t num_places = 0;                  // positions: of the nodes, then of their images
  const int64_t *edge_place = nullptr;     // [num_edges] position of the neighbour
  // rows of its exchanges: these own rows, then those of all ghosts
  int64_t num_sent = 0;
  const int64_t *sent = nullptr;
};

// What a step of a list's atoms is asked for.
struct StepResults {
  double *energies = nullptr;     // [num_local] eV
  double *forces = nullptr;       // [num_nodes, 3] eV/Å
  double *virials = nullptr;      // [num_nodes, 3, 3] eV, of the neighbours, or null
  double *virial = nullptr;       // [3, 3] eV, their sum, or null
  double nearest = 0.0;           // shortest distance (Å) within the cutoff, else more
  // with limits [species, species] (Å^2): of own atoms the numbers of neighbours, and the edge that
  // is shortest among those below their limits, relative to these, or -1
  const double *limits = nullptr;
  int32_t *numbers = nullptr, *near_edges = nullptr;     // [num_local]
};

// What a potential says of its own atoms' energies (eqcalc.uncertainty): infinite for species that
// its training lacked.
struct AtomicUncertainty {
  double *variances;     // [num_local] eV^2
  double *grades;        // [num_local] extrapolation grades: 1 is the edge of the training set
};

class Engine {
 public:
  virtual ~Engine() = default;

  virtual double cutoff() const = 0;                               // Å
  virtual const std::vector<int> &atomic_numbers() const = 0;      // of each species
  virtual const std::vector<int> &exchange_widths() const = 0;     // columns before layer 1, 2, ...
  virtual bool single() const = 0;                                 // float network
  virtual std::string describe() const = 0;                        // for a log file
  virtual const std::string &training_domain() const = 0;          // the file's lines, or nothing
  // one line on what it was imported from, or nothing
  virtual const std::string &origin() const = 0;
  virtual const std::vector<double> &reference_energies() const = 0;     // eV, of each species

  // why evaluate() cannot fill an AtomicUncertainty, after the name of the file; empty if it can
  virtual std::string lacks_uncertainty() const = 0;

  // Engines on other devices keep a list of pairs there: place() at each new list, then step() with
  // positions [num_places, 3] Å. Exchanges as in evaluate(), of the list's rows.
  virtual bool keeps_lists() const { return false; }
  virtual void place(const PairList &) {}
  virtual void step(const double * /*positions*/, RowExchange *, StepResults &) {}

  // energies [num_local] eV, gradient [num_edges, 3] eV/Å. Without exchange there are no ghosts.
  // Throws EngineError, or std::bad_alloc where memory is short.
  // uncertainty: filled unless it is null.
  virtual void evaluate(const Graph &, RowExchange *exchange, double *energies, double *gradient,
                        const AtomicUncertainty *uncertainty = nullptr) = 0;
};

// The two symbols of the engine's library. The first opens the file and evaluates the reference structure
// that it carries; throws EngineError where that fails.
using EngineFactory = Engine *(const EngineOptions &);
constexpr const char *ENGINE_FACTORY_NAME = "eqcalc_create_engine";

// GPUs that torch can use
using GpuCount = int();
constexpr const char *GPU_COUNT_NAME = "eqcalc_gpu_count";

}     // namespace eqcalc

#endif
