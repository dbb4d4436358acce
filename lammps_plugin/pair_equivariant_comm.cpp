/* ----------------------------------------------------------------------
   Part of eqcalc; compiled against the headers of LAMMPS (https://www.lammps.org) and therefore
   distributed under the GNU General Public License, version 2.
   SPDX-License-Identifier: GPL-2.0-only
------------------------------------------------------------------------- */

// Messages between processes, through LAMMPS's own communication.

#include "pair_equivariant.h"

#include "engine.h"

#include "comm.h"

#include <algorithm>
#include <cstring>

using namespace LAMMPS_NS;

/* ----------------------------------------------------------------------
   communication: every process makes every call, with or without atoms
------------------------------------------------------------------------- */

void PairEquivariant::forward(const Payload &what)
{
  payload = what;
  comm->forward_comm(this, payload.doubles());
}

void PairEquivariant::reverse(const Payload &what)
{
  payload = what;
  comm->reverse_comm(this, payload.doubles());
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::Payload::pack(int k, double *buf) const
{
  const std::size_t i = row(k), size = width;
  if (packed) packed[k] = 1;
  if (row(k) < 0)
    std::fill_n(buf, doubles(), 0.0);
  else if (singles)
    memcpy(buf, singles + i * size, size * sizeof(float));
  else
    memcpy(buf, values + i * size, size * sizeof(double));
}

/* ---------------------------------------------------------------------- */

int PairEquivariant::pack_forward_comm(int n, int *indices, double *buf, int /*pbc_flag*/,
                                       int * /*pbc*/)
{
  const std::size_t doubles = payload.doubles();
  for (int k = 0; k < n; k++, buf += doubles) payload.pack(indices[k], buf);
  return n * static_cast<int>(doubles);
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::unpack_forward_comm(int n, int first, double *buf)
{
  const std::size_t width = payload.width, doubles = payload.doubles();
  for (int k = first; k < first + n; k++, buf += doubles) {
    const int row = payload.row(k);
    if (row < 0) continue;
    if (payload.singles)
      memcpy(payload.singles + row * width, buf, width * sizeof(float));
    else
      memcpy(payload.values + row * width, buf, width * sizeof(double));
  }
}

/* ---------------------------------------------------------------------- */

int PairEquivariant::pack_reverse_comm(int n, int first, double *buf)
{
  const std::size_t doubles = payload.doubles();
  for (int k = first; k < first + n; k++, buf += doubles) payload.pack(k, buf);
  return n * static_cast<int>(doubles);
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::unpack_reverse_comm(int n, int *indices, double *buf)
{
  const std::size_t width = payload.width, doubles = payload.doubles();
  for (int k = 0; k < n; k++, buf += doubles) {
    const int row = payload.row(indices[k]);
    if (row < 0) continue;
    if (payload.singles) {
      float *to = payload.singles + row * width;
      const float *from = reinterpret_cast<const float *>(buf);
      for (std::size_t c = 0; c < width; c++) to[c] += from[c];
    } else {
      double *to = payload.values + row * width;
      for (std::size_t c = 0; c < width; c++) to[c] += buf[c];
    }
  }
}
