/* ----------------------------------------------------------------------
   Part of eqcalc; compiled against the headers of LAMMPS (https://www.lammps.org) and therefore
   distributed under the GNU General Public License, version 2.
   SPDX-License-Identifier: GPL-2.0-only
------------------------------------------------------------------------- */

#include "processes.h"

#include "comm.h"
#include "error.h"

using namespace LAMMPS_NS;

static std::string from(std::string text, int process, MPI_Comm comm)
{
  int length = static_cast<int>(text.size());
  MPI_Bcast(&length, 1, MPI_INT, process, comm);
  text.resize(length);
  MPI_Bcast(text.data(), length, MPI_CHAR, process, comm);
  return text;
}

/* ---------------------------------------------------------------------- */

void Processes::stop_together()
{
  const std::string sentence = first(problem);
  if (sentence.empty()) return;
  problem.clear();
  error->all(FLERR, "Pair style equivariant: {}", sentence);
}

/* ---------------------------------------------------------------------- */

std::string Processes::first(const std::string &text)
{
  int mine = text.empty() ? comm->nprocs : comm->me, process;
  MPI_Allreduce(&mine, &process, 1, MPI_INT, MPI_MIN, world);
  return process == comm->nprocs ? "" : from(text, process, world);
}

/* ---------------------------------------------------------------------- */

std::string Processes::broadcast(const std::string &text, int process)
{
  return from(text, process, world);
}

/* ---------------------------------------------------------------------- */

std::string Processes::once_per_machine(const std::function<std::string()> &ask)
{
  MPI_Comm machine;
  int rank;
  MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, comm->me, MPI_INFO_NULL, &machine);
  MPI_Comm_rank(machine, &rank);
  std::string answer;
  if (rank == 0) answer = ask();
  answer = from(answer, 0, machine);
  MPI_Comm_free(&machine);
  return answer;
}

/* ---------------------------------------------------------------------- */

bool Processes::everywhere(bool here)
{
  int mine = here, all;
  MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, world);
  return all != 0;
}
