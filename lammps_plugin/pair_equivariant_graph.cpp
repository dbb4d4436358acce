/* ----------------------------------------------------------------------
   Part of eqcalc; compiled against the headers of LAMMPS (https://www.lammps.org) and therefore
   distributed under the GNU General Public License, version 2.
   SPDX-License-Identifier: GPL-2.0-only
------------------------------------------------------------------------- */

// The graph: rows of atoms and edges out of LAMMPS's neighbor list.

#include "pair_equivariant.h"

#include "comm.h"
#include "error.h"
#include "force.h"
#include "group.h"
#include "neigh_list.h"
#include "neighbor.h"

#include <algorithm>
#include <cmath>

using namespace LAMMPS_NS;

/* ----------------------------------------------------------------------
   Bits of the groups whose atoms interact with nothing: 'neigh_modify exclude group X all'. Fixes
   gcmc, widom and charge/regulation make one each, and put an atom or a molecule there to learn the
   energy of the rest. LAMMPS drops only pairs with atoms of group all, which their atoms have left,
   so those that are there together would still see each other; all of them are left out of the
   graph, like atoms of type NULL. Other exclusions take neighbors from atoms that stay: refused.
------------------------------------------------------------------------- */

int PairEquivariant::absent_groups() const
{
  constexpr int ALL = 0;
  int bits = 0;
  bool other = neighbor->nex_type || neighbor->nex_mol;
  for (int k = 0; k < neighbor->nex_group; k++) {
    const int a = neighbor->ex1_group[k], b = neighbor->ex2_group[k];
    if (b == ALL)
      bits |= group->bitmask[a];
    else if (a == ALL)
      bits |= group->bitmask[b];
    else
      other = true;
  }
  if (other)
    error->all(FLERR,
               "Pair style equivariant does not support neigh_modify exclude, but for 'exclude "
               "group X all': the network needs all neighbors of an atom");
  return bits;
}

/* ----------------------------------------------------------------------
   Special neighbors that a list has left out, or that other styles scale. They may come with
   molecules that are inserted during the run, on some processes only.
------------------------------------------------------------------------- */

void PairEquivariant::check_bonds()
{
  if (atom->molecular != Atom::MOLECULAR) return;
  for (int k = 0; k < 3; k++) {
    if (force->special_lj[k + 1] == 1.0) continue;
    for (int i : atom_of_row)
      for (int n = k ? atom->nspecial[i][k - 1] : 0; n < atom->nspecial[i][k]; n++) {
        const int j = atom->map(atom->special[i][n]);
        if ((j < 0 || type2species[atom->type[j]] >= 0) && processes.problem.empty())
          processes.problem = fmt::format("atoms {} and {} are bonded: it {}",
                                          std::min(atom->tag[i], atom->special[i][n]),
                                          std::max(atom->tag[i], atom->special[i][n]), WITH_BONDS);
      }
  }
}

/* ----------------------------------------------------------------------
   Rows of own atoms, after each rebuild of the neighbor list. Who is absent is as old as the list:
   only then do ghosts have the groups of their owners, and only then do lists follow groups.
------------------------------------------------------------------------- */

void PairEquivariant::number_rows()
{
  const int nlocal = atom->nlocal;
  const int nall = nlocal + atom->nghost;
  const int *type = atom->type;
  const int bits = absent_groups();

  absent.resize(nall);
  for (int i = 0; i < nall; i++) absent[i] = (atom->mask[i] & bits) != 0;
  atom_of_row.clear();
  row_of_atom.assign(nall, -1);
  for (int ii = 0; ii < list->inum; ii++) {
    const int i = list->ilist[ii];
    if (type2species[type[i]] < 0 || absent[i]) continue;
    row_of_atom[i] = static_cast<int>(atom_of_row.size());
    atom_of_row.push_back(i);
  }
  for (int i = 0; i < nlocal; i++)
    if (row_of_atom[i] < 0 && type2species[type[i]] >= 0 && !absent[i])
      error->one(FLERR, "Pair style equivariant: atom {} is not in the neighbor list",
                 atom->tag[i]);

  check_bonds();

  if (comm->nprocs == 1) {
    owner_of_ghost.resize(nall);
    for (int i = 0; i < nlocal; i++) owner_of_ghost[i] = i;
    std::vector<double> indices(owner_of_ghost.begin(), owner_of_ghost.end());
    Payload owners;
    owners.values = indices.data();
    owners.width = 1;
    forward(owners);
    for (int i = nlocal; i < nall; i++) {
      owner_of_ghost[i] = static_cast<int>(indices[i]);
      row_of_atom[i] = row_of_atom[owner_of_ghost[i]];
    }
  }
  graph_build = neighbor->ncalls;
}

/* ----------------------------------------------------------------------
   edges shorter than the cutoff, at every step: lists reach farther by the skin
------------------------------------------------------------------------- */

void PairEquivariant::build_edges()
{
  const double *const *x = atom->x;
  const int *type = atom->type;
  const int nlocal = atom->nlocal;
  const bool single_process = comm->nprocs == 1;
  const double cutoff_sq = cutoff * cutoff;

  const std::size_t num_local = atom_of_row.size();
  species.resize(num_local);
  for (std::size_t row = 0; row < num_local; row++)
    species[row] = type2species[type[atom_of_row[row]]];
  if (!single_process) std::fill(row_of_atom.begin() + nlocal, row_of_atom.end(), -1);

  edge_src.clear();
  edge_dst.clear();
  edge_neighbor.clear();
  edge_vec.clear();
  for (std::size_t row = 0; row < num_local; row++) {
    const int i = atom_of_row[row];
    const double xi = x[i][0], yi = x[i][1], zi = x[i][2];
    if (!std::isfinite(xi + yi + zi) && processes.problem.empty())
      processes.problem = fmt::format(
          "the position of atom {} is not finite ({}, {}, {}): the simulation "
          "blew up",
          atom->tag[i], xi, yi, zi);
    const int *neighbors = list->firstneigh[i];
    for (int jj = 0; jj < list->numneigh[i]; jj++) {
      int j = neighbors[jj] & NEIGHMASK;
      const double dx = x[j][0] - xi, dy = x[j][1] - yi, dz = x[j][2] - zi;
      const double distance_sq = dx * dx + dy * dy + dz * dz;
      if (distance_sq >= cutoff_sq) continue;
      const int species_j = type2species[type[j]];
      if (species_j < 0) continue;     // none is absent: lists lack them
      if (distance_sq == 0.0 && processes.problem.empty())
        processes.problem =
            fmt::format("atoms {} and {} are at the same place", atom->tag[i], atom->tag[j]);
      if (single_process) {
        j = owner_of_ghost[j];
      } else if (row_of_atom[j] < 0) {     // a ghost met for the first time
        row_of_atom[j] = static_cast<int>(species.size());
        species.push_back(species_j);
      }
      edge_src.push_back(row_of_atom[j]);
      edge_dst.push_back(static_cast<int64_t>(row));
      edge_neighbor.push_back(j);
      edge_vec.insert(edge_vec.end(), {dx, dy, dz});
    }
  }
  num_nodes = num_rows = static_cast<bigint>(species.size());
  if (!single_process) number_ghosts();
  for (int m = 0; m < potentials.size(); m++) watch_edges(m);
}

/* ----------------------------------------------------------------------
   Ghosts without edges get the last rows: what other processes need of them may pass through here
------------------------------------------------------------------------- */

void PairEquivariant::number_ghosts()
{
  const int nall = atom->nlocal + atom->nghost;
  for (int i = atom->nlocal; i < nall; i++)
    if (row_of_atom[i] < 0 && type2species[atom->type[i]] >= 0 && !absent[i])
      row_of_atom[i] = static_cast<int>(num_rows++);
}
