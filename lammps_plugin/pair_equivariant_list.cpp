/* ----------------------------------------------------------------------
   Part of eqcalc; compiled against the headers of LAMMPS (https://www.lammps.org) and therefore
   distributed under the GNU General Public License, version 2.
   SPDX-License-Identifier: GPL-2.0-only
------------------------------------------------------------------------- */

// Engines that keep lists of pairs, on other devices: they are given LAMMPS's list when it is new, and
// then positions, and give forces of atoms.

#include "pair_equivariant.h"

#include "pair_exchange.h"

#include "comm.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "platform.h"

#include <algorithm>
#include <cmath>

using namespace LAMMPS_NS;

/* ---------------------------------------------------------------------- */

void PairEquivariant::evaluate_list(bool renumbered)
{
  double start = platform::walltime();
  const auto elapsed = [&start] {
    const double begin = start;
    start = platform::walltime();
    return start - begin;
  };
  const bool single_process = comm->nprocs == 1;

  // on all processes or none
  if (!processes.everywhere(!renumbered && read_positions())) {
    place_list();
    read_positions();
  }
  seconds[EDGES] += elapsed();

  energies.resize(atom_of_row.size());
  node_forces.resize(3 * num_nodes);
  node_virials.resize(vflag_atom || cvflag_atom ? 9 * num_nodes : 0);
  eqcalc::StepResults results;
  results.energies = energies.data();
  results.forces = node_forces.data();
  results.virials = node_virials.empty() ? nullptr : node_virials.data();
  results.virial = vflag_global ? total_virial.data() : nullptr;
  watched.resize(potentials.size());
  for (int m = 0; m < potentials.size(); m++) {
    const auto &training = trainings[m];
    const std::size_t count = potentials.atomic_numbers().size();
    watched[m].limits.clear();
    for (std::size_t a = 0; training.known() && a < count; a++)
      watched[m].limits.insert(watched[m].limits.end(), training.near_sq(static_cast<int>(a)),
                               training.near_sq(static_cast<int>(a)) + count);
  }
  Exchange exchange(*this, exchanged_row), rows(*this, row_of_atom);
  have_uncertainty = wants_uncertainty();
  potentials.step(positions.data(), single_process ? nullptr : &exchange,
                  single_process ? nullptr : &rows, results, watched,
                  have_uncertainty ? &uncertainty : nullptr);
  seconds[EXCHANGE] += exchange.seconds + rows.seconds;
  seconds[MODEL] += elapsed() - exchange.seconds - rows.seconds;

  check_list(results);
  processes.stop_together();
  tally_list();
  if (have_uncertainty) store_uncertainty();
  for (int m = 0; m < potentials.size(); m++) watch_list(m);
  watch_domain();
  seconds[TALLY] += elapsed();
  num_calls++;
  num_atom_calls += static_cast<double>(atom_of_row.size());
}

/* ----------------------------------------------------------------------
   Positions of the list's places. False where an atom's type is not what it was when the list was
   placed, as after a trial of fix atom/swap.
------------------------------------------------------------------------- */

bool PairEquivariant::read_positions()
{
  const double *const *x = atom->x;
  const std::size_t num_places = atom_of_place.size();
  positions.resize(3 * num_places);
  bool same = true;
  for (std::size_t place = 0; place < num_places; place++) {
    const int i = atom_of_place[place];
    same = same && type2species[atom->type[i]] == species_of_place[place];
    std::copy_n(x[i], 3, &positions[3 * place]);
    if (!std::isfinite(x[i][0] + x[i][1] + x[i][2]) && i < atom->nlocal &&
        processes.problem.empty())
      processes.problem = fmt::format(
          "the position of atom {} is not finite ({}, {}, {}): the "
          "simulation blew up",
          atom->tag[i], x[i][0], x[i][1], x[i][2]);
  }
  return same;
}

/* ----------------------------------------------------------------------
   Pairs of LAMMPS's list that can come within the cutoff before its next one. A single process
   knows ghosts as images of atoms: they have places, but no rows.
------------------------------------------------------------------------- */

void PairEquivariant::place_list()
{
  const double *const *x = atom->x;
  const int *type = atom->type;
  const int nlocal = atom->nlocal, nall = nlocal + atom->nghost;
  const bool single_process = comm->nprocs == 1;
  const double reach = cutoff + neighbor->skin, reach_sq = reach * reach;

  const std::size_t num_local = atom_of_row.size();
  if (!single_process) put_inner_first(reach_sq);
  atom_of_place = atom_of_row;
  species_of_place.resize(num_local);
  std::vector<int> place_of_atom(nall, -1);
  for (std::size_t row = 0; row < num_local; row++) {
    species_of_place[row] = type2species[type[atom_of_row[row]]];
    place_of_atom[atom_of_row[row]] = static_cast<int>(row);
  }
  if (!single_process) std::fill(row_of_atom.begin() + nlocal, row_of_atom.end(), -1);

  edge_src.clear();
  edge_dst.clear();
  edge_neighbor.clear();
  edge_place.clear();
  for (std::size_t row = 0; row < num_local; row++) {
    const int i = atom_of_row[row];
    const int *neighbors = list->firstneigh[i];
    for (int jj = 0; jj < list->numneigh[i]; jj++) {
      const int j = neighbors[jj] & NEIGHMASK;
      const double dx = x[j][0] - x[i][0], dy = x[j][1] - x[i][1], dz = x[j][2] - x[i][2];
      const int species_j = type2species[type[j]];
      if (species_j < 0 || !(dx * dx + dy * dy + dz * dz < reach_sq)) continue;
      if (place_of_atom[j] < 0) {
        place_of_atom[j] = static_cast<int>(atom_of_place.size());
        if (!single_process) row_of_atom[j] = place_of_atom[j];
        atom_of_place.push_back(j);
        species_of_place.push_back(species_j);
      }
      const int owner = single_process ? owner_of_ghost[j] : j;
      edge_src.push_back(row_of_atom[owner]);
      edge_dst.push_back(static_cast<int64_t>(row));
      edge_neighbor.push_back(owner);
      edge_place.push_back(place_of_atom[j]);
    }
  }
  const std::size_t num_places = atom_of_place.size();
  num_nodes = num_rows = static_cast<bigint>(single_process ? num_local : num_places);
  if (!single_process) number_exchanged();

  eqcalc::PairList pairs;
  pairs.graph.num_local = static_cast<int64_t>(num_local);
  pairs.graph.num_nodes = num_nodes;
  pairs.graph.num_rows = num_rows;
  pairs.graph.species = species_of_place.data();
  pairs.graph.num_edges = static_cast<int64_t>(edge_src.size());
  pairs.graph.edge_src = edge_src.data();
  pairs.graph.edge_dst = edge_dst.data();
  pairs.num_places = static_cast<int64_t>(num_places);
  pairs.edge_place = edge_place.data();
  pairs.num_sent = static_cast<int64_t>(sent_rows.size());
  pairs.sent = single_process ? nullptr : sent_rows.data();
  potentials.place(pairs);
}

/* ----------------------------------------------------------------------
   Rows of own atoms, those without ghosts in reach first: an engine works on these while it waits
   for other processes.
------------------------------------------------------------------------- */

void PairEquivariant::put_inner_first(double reach_sq)
{
  const double *const *x = atom->x;
  std::stable_partition(atom_of_row.begin(), atom_of_row.end(), [&](int i) {
    const int *neighbors = list->firstneigh[i];
    return std::none_of(neighbors, neighbors + list->numneigh[i], [&](int neighbor) {
      const int j = neighbor & NEIGHMASK;
      const double dx = x[j][0] - x[i][0], dy = x[j][1] - x[i][1], dz = x[j][2] - x[i][2];
      return j >= atom->nlocal && type2species[atom->type[j]] >= 0 &&
          dx * dx + dy * dy + dz * dz < reach_sq;
    });
  });
  for (std::size_t row = 0; row < atom_of_row.size(); row++)
    row_of_atom[atom_of_row[row]] = static_cast<int>(row);
}

/* ----------------------------------------------------------------------
   Rows of exchanges: own atoms that other processes have as ghosts, then ghosts. Which those are is
   what LAMMPS packs for a message.
------------------------------------------------------------------------- */

void PairEquivariant::number_exchanged()
{
  number_ghosts();
  const int nlocal = atom->nlocal, nall = nlocal + atom->nghost;
  std::vector<char> packed(nall, 0);
  std::vector<double> values(nall, 0.0);
  Payload trial;
  trial.values = values.data();
  trial.width = 1;
  trial.packed = packed.data();
  forward(trial);

  exchanged_row.assign(nall, -1);
  sent_rows.clear();
  for (int i = 0; i < nlocal; i++) {
    if (!packed[i] || row_of_atom[i] < 0) continue;
    exchanged_row[i] = static_cast<int>(sent_rows.size());
    sent_rows.push_back(row_of_atom[i]);
  }
  const int first = static_cast<int>(sent_rows.size()), own = static_cast<int>(atom_of_row.size());
  for (int i = nlocal; i < nall; i++)
    if (row_of_atom[i] >= 0) exchanged_row[i] = first + row_of_atom[i] - own;
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::check_list(const eqcalc::StepResults &results)
{
  if (results.nearest == 0.0 && processes.problem.empty())
    for (std::size_t e = 0; e < edge_src.size(); e++) {
      const double *a = &positions[3 * edge_dst[e]], *b = &positions[3 * edge_place[e]];
      if (a[0] != b[0] || a[1] != b[1] || a[2] != b[2]) continue;
      processes.problem = fmt::format("atoms {} and {} are at the same place",
                                      atom->tag[atom_of_place[edge_dst[e]]],
                                      atom->tag[atom_of_place[edge_place[e]]]);
      return;
    }
  for (std::size_t row = 0; row < energies.size(); row++)
    if (!std::isfinite(energies[row])) note_not_finite("energy", atom_of_row[row]);
  for (std::size_t k = 0; k < node_forces.size(); k++)
    if (!std::isfinite(node_forces[k])) note_not_finite("force", atom_of_place[k / 3]);
}

/* ----------------------------------------------------------------------
   distances and numbers of neighbors that the engine has found
------------------------------------------------------------------------- */

void PairEquivariant::watch_list(int member)
{
  auto &training = trainings[member];
  training.begin_step();
  if (!training.known()) return;
  const auto &found = watched[member];
  for (std::size_t row = 0; row < atom_of_row.size(); row++) {
    const int i = atom_of_row[row], species_i = static_cast<int>(species_of_place[row]);
    if (const int e = found.near_edges[row]; e >= 0) {
      const double *a = &positions[3 * row], *b = &positions[3 * edge_place[e]];
      double distance_sq = 0.0;
      for (int d = 0; d < 3; d++) distance_sq += (b[d] - a[d]) * (b[d] - a[d]);
      training.note_pair(i, edge_neighbor[e], species_i,
                         static_cast<int>(species_of_place[edge_src[e]]), distance_sq);
    }
    training.note_count(i, species_i, found.numbers[row]);
  }
}
