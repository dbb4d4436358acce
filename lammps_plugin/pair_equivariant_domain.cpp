/* ----------------------------------------------------------------------
   Part of eqcalc; compiled against the headers of LAMMPS (https://www.lammps.org) and therefore
   distributed under the GNU General Public License, version 2.
   SPDX-License-Identifier: GPL-2.0-only
------------------------------------------------------------------------- */

// What the training contained, and what to do where a run leaves it.

#include "pair_equivariant.h"

#include "elements.h"

#include "comm.h"
#include "domain.h"
#include "error.h"

#include <algorithm>
#include <cmath>

using namespace LAMMPS_NS;

static constexpr double GPA = 160.2176634;     // in eV/Å^3

/* ----------------------------------------------------------------------
   distances and numbers of neighbors within a potential's own cutoff, at every step
------------------------------------------------------------------------- */

void PairEquivariant::watch_edges(int member)
{
  auto &training = trainings[member];
  training.begin_step();
  if (!training.known()) return;
  const double reach = potentials.members()[member].engine->cutoff();
  const double reach_sq = reach * reach;
  const std::size_t num_edges = edge_src.size();
  std::size_t e = 0;
  for (std::size_t row = 0; row < atom_of_row.size(); row++) {
    const int i = atom_of_row[row], species_i = static_cast<int>(species[row]);
    const double *near_sq = training.near_sq(species_i);
    int number = 0;
    for (; e < num_edges && edge_dst[e] == static_cast<int64_t>(row); e++) {
      const double *r = &edge_vec[3 * e];
      const double distance_sq = r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
      if (distance_sq >= reach_sq) continue;
      number++;
      const int species_j = static_cast<int>(species[edge_src[e]]);
      if (distance_sq < near_sq[species_j])
        training.note_pair(i, edge_neighbor[e], species_i, species_j, distance_sq);
    }
    training.note_count(i, species_i, number);
  }
}

/* ----------------------------------------------------------------------
   Say once per run and quantity that the structure is outside of the training: distances and
   neighbors at every step, what has to be summed over processes where LAMMPS asks for it anyway
------------------------------------------------------------------------- */

void PairEquivariant::watch_domain()
{
  using eqcalc::TrainingDomain;
  const int num_members = potentials.size();
  const auto known = [](const TrainingDomain &training) { return training.known(); };
  if (std::none_of(trainings.begin(), trainings.end(), known)) return;
  const auto symbol = [this](int i) {
    return eqcalc::SYMBOLS[potentials.atomic_numbers()[species_of(i)]];
  };

  constexpr TrainingDomain::Quantity LOCAL[] = {TrainingDomain::DISTANCE,
                                                TrainingDomain::NEIGHBORS};
  struct Worst {
    double severity;
    int process;
  };
  std::vector<Worst> mine, worst(2 * num_members);
  for (const auto &training : trainings)
    for (auto quantity : LOCAL) mine.push_back({training.place(quantity).severity, comm->me});
  MPI_Allreduce(mine.data(), worst.data(), 2 * num_members, MPI_DOUBLE_INT, MPI_MINLOC, world);
  for (int n = 0; n < 2 * num_members; n++) {
    const int m = n / 2;
    const auto &training = trainings[m];
    const auto quantity = LOCAL[n % 2];
    if (worst[n].severity >= 0.0 || !training.watches(quantity)) continue;
    std::string sentence;
    if (worst[n].process == comm->me) {
      const auto &place = training.place(quantity);
      const int i = place.i, j = place.j;
      if (quantity == TrainingDomain::DISTANCE) {
        const double limit = training.shortest(species_of(i), species_of(j));
        sentence = fmt::format("atoms {} and {} ({}-{}) are {:.3f} Å apart ({})", atom->tag[i],
                               atom->tag[j], symbol(i), symbol(j), place.figure,
                               std::isinf(limit)
                                   ? "training: they never met"
                                   : fmt::format("limit of the training: {:.3f} Å", limit));
      } else {
        const auto &range = training.neighbors(species_of(i));
        sentence = fmt::format(
            "atom {} ({}) has {:g} neighbors (limits of the training: {:g} to "
            "{:g})",
            atom->tag[i], symbol(i), place.figure, range.low, range.high);
      }
    }
    leave_domain(m, quantity, processes.broadcast(sentence, worst[n].process));
  }

  if (!eflag_global && !vflag_global) return;
  enum { ATOMS, ENERGY, TRACE, REFERENCES };     // and the references of further members
  const int num_sums = REFERENCES + num_members;
  std::vector<double> own(num_sums, 0.0), sums(num_sums);
  own[ATOMS] = static_cast<double>(atom_of_row.size());
  if (eflag_global) own[ENERGY] = eng_vdwl / energy_unit;
  own[TRACE] = (virial[0] + virial[1] + virial[2]) / energy_unit;
  for (int m = 0; m < num_members; m++) {
    const auto &member = potentials.members()[m];
    const auto &references = member.engine->reference_energies();
    if (references.empty()) continue;
    for (int i : atom_of_row) own[REFERENCES + m] += references[member.species[species_of(i)]];
  }
  MPI_Allreduce(own.data(), sums.data(), num_sums, MPI_DOUBLE, MPI_SUM, world);
  if (sums[ATOMS] == 0.0) return;
  for (int m = 0; m < num_members; m++)
    if (eflag_global && !potentials.members()[m].engine->reference_energies().empty())
      watch_range(m, TrainingDomain::ENERGY, "energy above the reference energies", "eV/atom",
                  (sums[ENERGY] - sums[REFERENCES + m]) / sums[ATOMS]);

  // of the whole box, where all of its atoms are this style's

  if (domain->dimension != 3 || !domain->xperiodic || !domain->yperiodic || !domain->zperiodic ||
      sums[ATOMS] != static_cast<double>(atom->natoms))
    return;
  const double volume = domain->xprd * domain->yprd * domain->zprd;
  for (int m = 0; m < num_members; m++) {
    watch_range(m, TrainingDomain::DENSITY, "density", "atoms/Å^3", sums[ATOMS] / volume);
    if (vflag_global)
      watch_range(m, TrainingDomain::PRESSURE, "pressure", "GPa",
                  GPA * sums[TRACE] / (3.0 * volume));
  }
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::watch_range(int member, eqcalc::TrainingDomain::Quantity quantity,
                                  const char *name, const char *unit, double value)
{
  const auto &training = trainings[member];
  const auto &range = training.range(quantity);
  if (training.watches(quantity) && !range.contains(value))
    leave_domain(member, quantity,
                 fmt::format("the {} is {:.4g} {} (limits of the training: {:.4g} to {:.4g})", name,
                             value, unit, range.low, range.high));
}

/* ----------------------------------------------------------------------
   of a committee, the first member says it for all
------------------------------------------------------------------------- */

void PairEquivariant::leave_domain(int member, eqcalc::TrainingDomain::Quantity quantity,
                                   const std::string &sentence)
{
  for (auto &training : trainings) training.told(quantity);
  const std::string whose = potentials.size() == 1
      ? "the potential's training"
      : fmt::format("the training of {}", potentials.members()[member].path);
  const std::string text = fmt::format(
      "Pair style equivariant: outside of {}, {}: forces and energies there are "
      "extrapolations that nothing vouches for",
      whose, sentence);
  if (on_domain_exit == STOP) error->all(FLERR, "{}", text);
  if (comm->me == 0) error->warning(FLERR, "{}", text);
}
