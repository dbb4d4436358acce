/* ----------------------------------------------------------------------
   Part of eqcalc; compiled against the headers of LAMMPS (https://www.lammps.org) and therefore
   distributed under the GNU General Public License, version 2.
   SPDX-License-Identifier: GPL-2.0-only
------------------------------------------------------------------------- */

// Energies, forces and virials out of the energies of atoms and the gradients of edges.

#include "pair_equivariant.h"

#include "comm.h"
#include "force.h"

#include <cmath>

using namespace LAMMPS_NS;

// components of a 3x3 tensor in the order of cvatom; the first six name the symmetric ones
static constexpr int ROW_OF[9] = {0, 1, 2, 0, 0, 1, 1, 2, 2};
static constexpr int COLUMN_OF[9] = {0, 1, 2, 1, 2, 2, 0, 0, 1};

/* ---------------------------------------------------------------------- */

void PairEquivariant::note_not_finite(const char *what, int i)
{
  if (processes.problem.empty())
    processes.problem = fmt::format(
        "the {} of atom {} at ({}, {}, {}) is not finite: the simulation blew "
        "up, or left what the potential knows",
        what, atom->tag[i], atom->x[i][0], atom->x[i][1], atom->x[i][2]);
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::check_finite()
{
  for (std::size_t row = 0; row < energies.size(); row++)
    if (!std::isfinite(energies[row])) note_not_finite("energy", atom_of_row[row]);
  for (std::size_t k = 0; k < gradient.size(); k++)
    if (!std::isfinite(gradient[k])) note_not_finite("force", atom_of_row[edge_dst[k / 3]]);
}

/* ----------------------------------------------------------------------
   F_i = sum_j g_ij - sum_j g_ji,   W_j = - sum_i r_ij (x) g_ij
   The virial goes to the neighbor j, because an energy current is then - sum_j W_j v_j:
   Fan et al., Phys. Rev. B 92, 094301 (2015), eqs. 19-23.
------------------------------------------------------------------------- */

void PairEquivariant::tally()
{
  const int nlocal = atom->nlocal;
  const int nall = nlocal + atom->nghost;
  const std::size_t num_edges = edge_src.size();
  double **f = atom->f;

  if (energy_unit != 1.0) {
    for (double &value : energies) value *= energy_unit;
    for (double &value : gradient) value *= energy_unit;
  }
  tally_energies();

  const bool collect = collects();
  if (collect) ghost_forces.assign(3 * static_cast<std::size_t>(nall), 0.0);
  for (std::size_t e = 0; e < num_edges; e++) {
    const double *g = &gradient[3 * e];
    const int i = atom_of_row[edge_dst[e]], j = edge_neighbor[e];
    double *fj = (collect && j >= nlocal) ? &ghost_forces[3 * static_cast<std::size_t>(j)] : f[j];
    for (int a = 0; a < 3; a++) {
      f[i][a] += g[a];
      fj[a] -= g[a];
    }
  }
  if (collect) bring_home_ghost_forces();

  if (vflag_global) {
    double total[9] = {};
    for (std::size_t e = 0; e < num_edges; e++)
      for (int c = 0; c < 9; c++)
        total[c] -= edge_vec[3 * e + ROW_OF[c]] * gradient[3 * e + COLUMN_OF[c]];
    tally_virial(total);
  }
  if (vflag_atom || cvflag_atom) {
    atom_virials.assign(9 * static_cast<std::size_t>(nall), 0.0);
    for (std::size_t e = 0; e < num_edges; e++) {
      double *w = &atom_virials[9 * static_cast<std::size_t>(edge_neighbor[e])];
      for (int c = 0; c < 9; c++)
        w[c] -= edge_vec[3 * e + ROW_OF[c]] * gradient[3 * e + COLUMN_OF[c]];
    }
    tally_atom_virials();
  }
}

/* ----------------------------------------------------------------------
   the same, of forces and virials of nodes
------------------------------------------------------------------------- */

void PairEquivariant::tally_list()
{
  const int nlocal = atom->nlocal;
  const std::size_t nall = nlocal + atom->nghost;

  if (energy_unit != 1.0)
    for (auto *values : {&energies, &node_forces, &node_virials})
      for (double &value : *values) value *= energy_unit;
  tally_energies();

  const bool collect = collects();
  if (collect) ghost_forces.assign(3 * nall, 0.0);
  for (bigint row = 0; row < num_nodes; row++) {
    const int i = atom_of_place[row];
    double *fi = (collect && i >= nlocal) ? &ghost_forces[3 * static_cast<std::size_t>(i)]
                                          : atom->f[i];
    for (int a = 0; a < 3; a++) fi[a] += node_forces[3 * row + a];
  }
  if (collect) bring_home_ghost_forces();

  const auto in_order = [](const double *w, double unit, double *to) {
    for (int c = 0; c < 9; c++) to[c] = unit * w[3 * ROW_OF[c] + COLUMN_OF[c]];
  };
  if (vflag_global) {
    double total[9];
    in_order(total_virial.data(), energy_unit, total);
    tally_virial(total);
  }
  if (vflag_atom || cvflag_atom) {
    atom_virials.assign(9 * nall, 0.0);
    for (bigint row = 0; row < num_nodes; row++)
      in_order(&node_virials[9 * row], 1.0,
               &atom_virials[9 * static_cast<std::size_t>(atom_of_place[row])]);
    tally_atom_virials();
  }
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::tally_energies()
{
  if (eflag_global)
    for (double value : energies) eng_vdwl += value;
  if (eflag_atom)
    for (std::size_t row = 0; row < energies.size(); row++)
      eatom[atom_of_row[row]] += energies[row];
}

/* ----------------------------------------------------------------------
   Without newton's third law across processes LAMMPS does not collect forces on ghosts.
------------------------------------------------------------------------- */

bool PairEquivariant::collects() const
{
  return comm->nprocs > 1 && !force->newton_pair;
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::bring_home_ghost_forces()
{
  Payload forces;
  forces.values = ghost_forces.data();
  forces.width = 3;
  reverse(forces);
  for (int i = 0; i < atom->nlocal; i++)
    for (int a = 0; a < 3; a++) atom->f[i][a] += ghost_forces[3 * static_cast<std::size_t>(i) + a];
}

/* ----------------------------------------------------------------------
   total: in the order of cvatom
------------------------------------------------------------------------- */

void PairEquivariant::tally_virial(const double *total)
{
  for (int c = 0; c < 3; c++) {
    virial[c] += total[c];
    virial[3 + c] += 0.5 * (total[3 + c] + total[6 + c]);
  }
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::tally_atom_virials()
{
  if (comm->nprocs > 1) {
    Payload virials;
    virials.values = atom_virials.data();
    virials.width = 9;
    reverse(virials);
  }
  for (int i = 0; i < atom->nlocal; i++) {
    const double *w = &atom_virials[9 * static_cast<std::size_t>(i)];
    if (vflag_atom)
      for (int c = 0; c < 3; c++) {
        vatom[i][c] += w[c];
        vatom[i][3 + c] += 0.5 * (w[3 + c] + w[6 + c]);
      }
    if (cvflag_atom)
      for (int c = 0; c < 9; c++) cvatom[i][c] += w[c];
  }
}
