/* -*- c++ -*- ----------------------------------------------------------
   Part of eqcalc; compiled against the headers of LAMMPS (https://www.lammps.org) and therefore
   distributed under the GNU General Public License, version 2.
   SPDX-License-Identifier: GPL-2.0-only
------------------------------------------------------------------------- */

#ifndef LMP_PAIR_EQUIVARIANT_H
#define LMP_PAIR_EQUIVARIANT_H

#include "committee.h"
#include "opening.h"
#include "processes.h"
#include "training_domain.h"

#include "atom.h"
#include "pair.h"

#include <array>
#include <string>
#include <vector>

namespace LAMMPS_NS {

// pair_style equivariant [precision single|double] [engine fused|exact|torch]
//                        [device cpu|cuda|cuda:N|auto] [threads N] [memory_limit GB]
//                        [timing yes|no] [domain warn|stop|ignore]
// pair_coeff * * model.pth [model2.pth ...] El1 El2 ...
//
// The last words are one element, or NULL, for each atom type; all words before them are potentials,
// of which several are a committee: the mean of their energies.

class PairEquivariant : public Pair {
 public:
  PairEquivariant(class LAMMPS *);
  ~PairEquivariant() override;

  void settings(int, char **) override;
  void coeff(int, char **) override;
  void init_style() override;
  double init_one(int, int) override;
  void compute(int, int) override;
  void finish() override;
  double memory_usage() override;

  void *extract(const char *, int &) override;
  void *extract_peratom(const char *, int &) override;

  // What fix pair makes per-atom vectors of, by the names of extract_peratom(), and fix
  // equivariant/monitor watches.
  enum Quantity { ENERGY_DEVIATION, FORCE_DEVIATION, GRADE, NUM_QUANTITIES };
  static constexpr const char *QUANTITY_NAMES[NUM_QUANTITIES] = {"energy_deviation",
                                                                 "force_deviation", "grade"};
  static bool quantity_of(const std::string &name, Quantity &);

  bool is_committee() const { return potentials.size() > 1; }
  std::string lacking(Quantity) const;      // why the potentials do not have it, or nothing
  void trigger(Quantity, bool);             // whether the next evaluation computes it
  const double *values(Quantity) const;     // [nlocal] of the last one, in units of the run
  double unit_of_energy() const { return energy_unit; }     // eV in the units of the run
  int atomic_number_of_type(int itype) const;               // 0 for NULL

  int pack_forward_comm(int, int *, double *, int, int *) override;
  void unpack_forward_comm(int, int, double *) override;
  int pack_reverse_comm(int, int, double *) override;
  void unpack_reverse_comm(int, int *, double *) override;

 private:
  struct Exchange;     // what engines say to other processes
  eqcalc::Committee potentials;
  Processes processes;

  // keywords of pair_style
  Opening::Keywords keywords;
  bool timing;
  enum OnDomainExit { WARN, STOP, IGNORE } on_domain_exit;

  std::vector<int> type2species;     // [ntypes + 1], of the first potential; -1 for NULL
  double cutoff;                     // Å
  double energy_unit;                // eV in the units of the run
  std::vector<eqcalc::TrainingDomain> trainings;     // of each potential

  struct PerAtom {
    int triggered = 0;              // for the next evaluation
    int lasting = 0;                // fixes that look at every step
    std::vector<double> values;     // [nmax], in units of the run
  };
  std::array<PerAtom, NUM_QUANTITIES> per_atom;
  eqcalc::Uncertainty uncertainty;
  bool have_uncertainty;     // of the last evaluation

  // The graph. Rows: own atoms in the order of the neighbor list, then ghosts (several processes
  // only; a single one replaces ghosts by the atoms that they are images of).
  std::vector<int> atom_of_row;                // own atoms only
  std::vector<int> row_of_atom;                // own and ghost, -1 where it is left out
  std::vector<char> absent;                    // own and ghost: left out as if its type were NULL
  std::vector<int> owner_of_ghost;             // single process: own and ghost -> own
  std::vector<int64_t> species;                // of rows
  std::vector<int64_t> edge_src, edge_dst;     // rows
  std::vector<int> edge_neighbor;              // atom whose force edge_src stands for
  std::vector<double> edge_vec;                // Å, centre -> neighbour
  std::vector<double> energies, gradient;      // of own rows; of edges
  bigint num_nodes, num_rows;
  bigint graph_build;     // neighbor list that rows belong to

  std::vector<double> ghost_forces, atom_virials;     // several processes: before they go home

  // Engines that keep lists of pairs (pair_equivariant_list.cpp): of all in LAMMPS's list, and then
  // positions at each step.
  std::vector<int> atom_of_place;     // own rows, then ghosts
  std::vector<int64_t> species_of_place, edge_place, sent_rows;
  std::vector<int> exchanged_row;     // own and ghost: row of an exchange, -1: none
  std::vector<double> positions, node_forces, node_virials;
  std::array<double, 9> total_virial;
  std::vector<eqcalc::Committee::Watched> watched;     // of each potential

  // what the next forward_comm() or reverse_comm() carries: one row per atom
  struct Payload {
    double *values = nullptr;
    float *singles = nullptr;     // instead of values; two travel in one double
    int width = 0;
    const int *row_of_atom = nullptr;     // null: row = atom
    char *packed = nullptr;               // becomes 1 for atoms that are packed, unless it is null
    int doubles() const { return singles ? (width + 1) / 2 : width; }
    int row(int k) const { return row_of_atom ? row_of_atom[k] : k; }     // -1: none
    void pack(int k, double *buf) const;     // zeros where there is none
  } payload;

  static constexpr const char *WITH_BONDS =
      "needs 'special_bonds lj/coul 1 1 1': with other factors LAMMPS leaves bonded neighbors out";

  enum Phase { EDGES, MODEL, EXCHANGE, TALLY, NPHASES };
  std::array<double, NPHASES> seconds;
  bigint num_calls;
  double num_atom_calls;

  void allocate();
  void open_potentials(const std::vector<std::string> &, const std::vector<std::string> &);
  void map_types(const std::vector<std::string> &);
  void evaluate();
  int species_of(int i) const { return type2species[atom->type[i]]; }
  int absent_groups() const;
  void check_bonds();
  void number_rows();
  void build_edges();
  void number_ghosts();
  void evaluate_list(bool renumbered);
  bool read_positions();
  void place_list();
  void put_inner_first(double reach_sq);
  void number_exchanged();
  void check_list(const eqcalc::StepResults &);
  void tally_list();
  void watch_list(int);
  void note_not_finite(const char *, int);
  void check_finite();
  void tally();
  void tally_energies();
  bool collects() const;
  void bring_home_ghost_forces();
  void tally_virial(const double *);
  void tally_atom_virials();
  bool wants_uncertainty() const;
  void store_uncertainty();
  void watch_edges(int);
  void watch_domain();
  void watch_range(int, eqcalc::TrainingDomain::Quantity, const char *, const char *, double);
  void leave_domain(int, eqcalc::TrainingDomain::Quantity, const std::string &);
  std::string names_of(int) const;
  void forward(const Payload &);
  void reverse(const Payload &);
};

}     // namespace LAMMPS_NS

#endif
