/* ----------------------------------------------------------------------
   Part of eqcalc; compiled against the headers of LAMMPS (https://www.lammps.org) and therefore
   distributed under the GNU General Public License, version 2.
   SPDX-License-Identifier: GPL-2.0-only
------------------------------------------------------------------------- */

#include "pair_equivariant.h"

#include "devices.h"
#include "elements.h"
#include "pair_exchange.h"

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neighbor.h"
#include "platform.h"
#include "update.h"
#include "utils.h"

#include <algorithm>
#include <cstring>
#include <new>

using namespace LAMMPS_NS;

// the group that comm_modify restricts ghosts to; LAMMPS tells its own communication only
struct BorderGroup : Comm {
  static int of(const Comm &comm) { return comm.*(&BorderGroup::bordergroup); }
};

/* ---------------------------------------------------------------------- */

PairEquivariant::PairEquivariant(LAMMPS *lmp) :
    Pair(lmp), processes(lmp), timing(false), on_domain_exit(WARN), cutoff(0.0), energy_unit(1.0),
    have_uncertainty(false), num_nodes(0), num_rows(0), graph_build(-1), num_calls(0),
    num_atom_calls(0.0)
{
  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  no_virial_fdotr_compute = 1;
  centroidstressflag = CENTROID_AVAIL;
  seconds.fill(0.0);
}

/* ---------------------------------------------------------------------- */

PairEquivariant::~PairEquivariant()
{
  if (copymode || !allocated) return;
  memory->destroy(setflag);
  memory->destroy(cutsq);
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::allocate()
{
  const int n = atom->ntypes + 1;
  if (!allocated) {
    memory->create(setflag, n, n, "pair:setflag");
    memory->create(cutsq, n, n, "pair:cutsq");
    allocated = 1;
  }
  for (int i = 0; i < n; i++)
    for (int j = 0; j < n; j++) {
      setflag[i][j] = 0;
      cutsq[i][j] = 0.0;
    }
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::settings(int narg, char **arg)
{
  keywords = Opening::Keywords();
  timing = false;
  on_domain_exit = WARN;

  for (int iarg = 0; iarg < narg; iarg += 2) {
    const std::string key = arg[iarg];
    if (key != "precision" && key != "engine" && key != "device" && key != "threads" &&
        key != "timing" && key != "domain" && key != "memory_limit")
      error->all(FLERR,
                 "Pair style equivariant does not know the keyword '{}'; it knows precision, "
                 "engine, device, threads, memory_limit, timing and domain",
                 key);
    if (iarg + 1 == narg) error->all(FLERR, "Pair style equivariant: '{}' needs a value", key);
    std::string value = arg[iarg + 1];
    if (key == "precision") {
      if (value == "float32") value = "single";
      if (value == "float64") value = "double";
      if (value != "single" && value != "double")
        error->all(FLERR, "Pair style equivariant: precision must be single or double, not '{}'",
                   value);
      keywords.precision = value;
    } else if (key == "engine") {
      if (value != "fused" && value != "exact" && value != "torch")
        error->all(FLERR, "Pair style equivariant: engine must be fused, exact or torch, not '{}'",
                   value);
      keywords.engine = value;
    } else if (key == "device") {
      keywords.device = value;
    } else if (key == "threads") {
      keywords.threads = utils::inumeric(FLERR, value, false, lmp);
      if (keywords.threads < 1)
        error->all(FLERR, "Pair style equivariant: threads must be at least 1, not {}",
                   keywords.threads);
    } else if (key == "memory_limit") {
      keywords.memory_limit = utils::numeric(FLERR, value, false, lmp);
      if (!(keywords.memory_limit > 0.0))
        error->all(FLERR,
                   "Pair style equivariant: memory_limit must be a number of GB above 0, not {}",
                   value);
    } else if (key == "domain") {
      if (value != "warn" && value != "stop" && value != "ignore")
        error->all(FLERR, "Pair style equivariant: domain must be warn, stop or ignore, not '{}'",
                   value);
      on_domain_exit = value == "warn" ? WARN : value == "stop" ? STOP : IGNORE;
    } else {
      timing = utils::logical(FLERR, value, false, lmp) != 0;
    }
  }

  const std::string &device = keywords.device, &engine = keywords.engine;
  const std::string unknown = eqcalc::device_problem(device);
  if (!unknown.empty()) error->all(FLERR, "Pair style equivariant: {}", unknown);
  if (device.rfind("cuda", 0) == 0 && engine == "exact")
    error->all(FLERR, "Pair style equivariant: engine {} runs on device cpu, not {}", engine,
               device);

  if (keywords.memory_limit > 0.0 && (device.rfind("cuda", 0) != 0 || engine != "fused"))
    error->all(
        FLERR,
        "Pair style equivariant: memory_limit is of 'device cuda engine fused': leave it out");

  // potentials opened with other settings are void
  potentials.clear();
  if (allocated) allocate();
}

/* ----------------------------------------------------------------------
   LAMMPS knows the number of types, so the last words are their elements and those before them are
   potentials. Every word that is an element's symbol counts as one: a file of such a name needs a
   path with a slash.
------------------------------------------------------------------------- */

void PairEquivariant::coeff(int narg, char **arg)
{
  const int ntypes = atom->ntypes;
  if (narg < 3 || strcmp(arg[0], "*") != 0 || strcmp(arg[1], "*") != 0)
    error->all(FLERR,
               "Pair style equivariant: expected 'pair_coeff * * model.pth' and one element, or "
               "NULL, for each atom type");
  const auto is_element = [](const std::string &word) {
    return word == "NULL" || eqcalc::atomic_number(word) > 0;
  };
  const std::vector<std::string> words(arg + 2, arg + narg);
  const int num_words = static_cast<int>(words.size());
  const int named = static_cast<int>(std::count_if(words.begin(), words.end(), is_element));
  const int num_potentials = std::max(0, num_words - ntypes);
  const std::vector<std::string> files(words.begin(), words.begin() + num_potentials);
  const std::vector<std::string> elements(words.begin() + num_potentials, words.end());
  if (files.empty() || std::any_of(files.begin(), files.end(), is_element))
    error->all(FLERR,
               "Pair style equivariant: pair_coeff names {} elements, but there are {} atom "
               "types: give one element, or NULL, for each",
               named, ntypes);
  for (const std::string &word : elements)
    if (!is_element(word))
      error->all(FLERR,
                 "Pair style equivariant: pair_coeff needs the elements of the {} atom types, or "
                 "NULL, as its last words, but '{}' is the symbol of no element",
                 ntypes, word);
  allocate();
  open_potentials(files, elements);
  cutoff = potentials.cutoff();
  map_types(elements);

  // sizes of messages: the widest layer, forces of all members, the map of ghosts to owners, virials

  comm_forward = 1;
  comm_reverse = std::max(9, 3 * potentials.size());
  for (const auto &member : potentials.members()) {
    Payload widest;
    float dummy;
    widest.singles = member.engine->single() ? &dummy : nullptr;
    for (int width : member.engine->exchange_widths()) widest.width = std::max(widest.width, width);
    comm_forward = std::max(comm_forward, widest.doubles());
    comm_reverse = std::max(comm_reverse, widest.doubles());
  }
  comm_reverse_off = comm_reverse;
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::open_potentials(const std::vector<std::string> &files,
                                      const std::vector<std::string> &elements)
{
  std::vector<std::string> needed;
  for (const std::string &element : elements)
    if (element != "NULL") needed.push_back(element);

  potentials.clear();
  trainings.clear();
  Opening opening(lmp, processes, keywords, comm->nprocs > 1);
  std::vector<std::string> paths;
  for (const std::string &file : files)
    for (const std::string &path : opening.find(file, needed)) paths.push_back(path);

  for (const std::string &path : paths) {
    potentials.add(path, opening.open(path));
    const eqcalc::Engine &engine = *potentials.members().back().engine;
    std::vector<std::string> symbols;
    for (int z : potentials.atomic_numbers()) symbols.emplace_back(eqcalc::SYMBOLS[z]);
    trainings.emplace_back(on_domain_exit == IGNORE ? "" : engine.training_domain(), symbols);
    if (comm->me == 0) {
      utils::logmesg(lmp, "Pair style equivariant: {} ({}), {}\n", path,
                     names_of(potentials.size() - 1), engine.describe());
      if (!engine.origin().empty())
        utils::logmesg(lmp, "Pair style equivariant: imported from {}\n", engine.origin());
    }
  }
  if (comm->me == 0 && potentials.size() > 1)
    utils::logmesg(lmp, "Pair style equivariant: the mean of {} potentials\n", potentials.size());
}

/* ----------------------------------------------------------------------
   symbols of the elements that a potential knows
------------------------------------------------------------------------- */

std::string PairEquivariant::names_of(int member) const
{
  std::string known;
  for (int z : potentials.members()[member].engine->atomic_numbers())
    known += (known.empty() ? "" : ", ") + std::string(eqcalc::SYMBOLS[z]);
  return known;
}

/* ----------------------------------------------------------------------
   types of the run -> species of the first potential
------------------------------------------------------------------------- */

void PairEquivariant::map_types(const std::vector<std::string> &elements)
{
  const int ntypes = atom->ntypes;
  const auto &members = potentials.members();
  const auto &numbers = potentials.atomic_numbers();
  type2species.assign(ntypes + 1, -1);
  int mapped = 0;
  for (int itype = 1; itype <= ntypes; itype++) {
    const std::string &element = elements[itype - 1];
    if (element == "NULL") continue;
    const auto found = std::find(numbers.begin(), numbers.end(), eqcalc::atomic_number(element));
    if (found != numbers.end()) type2species[itype] = static_cast<int>(found - numbers.begin());
    for (int m = 0; m < potentials.size(); m++)
      if (type2species[itype] < 0 || members[m].species[type2species[itype]] < 0)
        error->all(FLERR,
                   "Pair style equivariant: {} knows {}, but pair_coeff names {} for atom type {}",
                   members[m].path, names_of(m), element, itype);
    mapped++;
  }
  if (!mapped)
    error->all(FLERR, "Pair style equivariant: pair_coeff names an element for no atom type");
  for (int i = 1; i <= ntypes; i++)
    for (int j = 1; j <= ntypes; j++)
      setflag[i][j] = (type2species[i] >= 0 && type2species[j] >= 0) ? 1 : 0;
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::init_style()
{
  if (potentials.empty())
    error->all(FLERR, "Pair style equivariant: pair_coeff must follow pair_style");

  if (strcmp(update->unit_style, "metal") == 0)
    energy_unit = 1.0;
  else if (strcmp(update->unit_style, "real") == 0)
    energy_unit = utils::get_conversion_factor(utils::ENERGY, utils::METAL2REAL);
  else
    error->all(FLERR, "Pair style equivariant needs units metal or real, not {}",
               update->unit_style);

  if (!atom->tag_enable)
    error->all(FLERR, "Pair style equivariant needs atom ids: leave out 'atom_modify id no'");
  if (utils::strmatch(update->integrate_style, "^respa"))
    error->all(FLERR, "Pair style equivariant does not support run_style respa");
  absent_groups();
  if (neighbor->includegroup)
    error->all(FLERR,
               "Pair style equivariant does not support neigh_modify include: the network needs "
               "all neighbors of an atom");
  if (BorderGroup::of(*comm))
    error->all(FLERR,
               "Pair style equivariant does not support comm_modify group: the network needs all "
               "neighbors of an atom");
  if (atom->molecular == Atom::TEMPLATE)     // elsewhere, see check_bonds()
    for (int k = 1; k < 4; k++)
      if (force->special_lj[k] != 1.0) error->all(FLERR, "Pair style equivariant {}", WITH_BONDS);

  neighbor->add_request(this, NeighConst::REQ_FULL);

  // A hybrid style has taken the largest sizes of messages of its parts before pair_coeff. They
  // have to be known before the buffers are made, which is after this function.

  if (force->pair != this) {
    force->pair->comm_forward = std::max(force->pair->comm_forward, comm_forward);
    force->pair->comm_reverse = std::max(force->pair->comm_reverse, comm_reverse);
    force->pair->comm_reverse_off = std::max(force->pair->comm_reverse_off, comm_reverse_off);
  }

  graph_build = -1;
  for (auto &training : trainings) training.begin_run();
  for (int q = 0; q < NUM_QUANTITIES; q++) {
    const std::string reason = lacking(static_cast<Quantity>(q));
    if (per_atom[q].lasting && !reason.empty())
      error->all(FLERR, "Pair style equivariant: {}", reason);
  }
  seconds.fill(0.0);
  num_calls = 0;
  num_atom_calls = 0.0;
}

/* ---------------------------------------------------------------------- */

double PairEquivariant::init_one(int, int)
{
  return cutoff;
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);
  try {
    evaluate();
  } catch (const eqcalc::EngineError &e) {
    error->one(FLERR, "Pair style equivariant: {}", e.what());
  } catch (const std::bad_alloc &) {
    error->one(FLERR,
               "Pair style equivariant: out of memory with {} atoms and {} ghosts on this process: "
               "use more machines, or fewer atoms",
               atom->nlocal, atom->nghost);
  }
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::evaluate()
{
  double start = platform::walltime();
  const auto elapsed = [&start] {
    const double begin = start;
    start = platform::walltime();
    return start - begin;
  };

  const bool renumbered = neighbor->ago == 0 || neighbor->ncalls != graph_build ||
      static_cast<int>(row_of_atom.size()) != atom->nlocal + atom->nghost;
  if (renumbered) number_rows();
  if (potentials.keep_lists()) {
    evaluate_list(renumbered);
    return;
  }
  build_edges();

  eqcalc::Graph graph;
  graph.num_local = static_cast<int64_t>(atom_of_row.size());
  graph.num_nodes = num_nodes;
  graph.num_rows = num_rows;
  graph.species = species.data();
  graph.num_edges = static_cast<int64_t>(edge_src.size());
  graph.edge_src = edge_src.data();
  graph.edge_dst = edge_dst.data();
  graph.edge_vec = edge_vec.data();
  energies.resize(graph.num_local);
  gradient.resize(edge_vec.size());
  seconds[EDGES] += elapsed();

  Exchange exchange(*this, row_of_atom);
  have_uncertainty = wants_uncertainty();
  potentials.evaluate(graph, comm->nprocs > 1 ? &exchange : nullptr, energies.data(),
                      gradient.data(), have_uncertainty ? &uncertainty : nullptr);
  seconds[EXCHANGE] += exchange.seconds;
  seconds[MODEL] += elapsed() - exchange.seconds;

  check_finite();
  processes.stop_together();
  tally();
  if (have_uncertainty) store_uncertainty();
  watch_domain();
  seconds[TALLY] += elapsed();
  num_calls++;
  num_atom_calls += static_cast<double>(graph.num_local);
}

/* ----------------------------------------------------------------------
   with 'timing yes': where the time of the run went, mean over processes
------------------------------------------------------------------------- */

void PairEquivariant::finish()
{
  if (!timing || num_calls == 0) return;
  std::array<double, NPHASES> total;
  MPI_Allreduce(seconds.data(), total.data(), NPHASES, MPI_DOUBLE, MPI_SUM, world);
  double atom_calls;
  MPI_Allreduce(&num_atom_calls, &atom_calls, 1, MPI_DOUBLE, MPI_SUM, world);
  if (comm->me != 0) return;
  std::string text = fmt::format(
      "Pair style equivariant: {} calls, microseconds per atom and call "
      "summed over processes:",
      num_calls);
  const char *names[NPHASES] = {"edges", "model", "exchange", "forces"};
  for (int p = 0; p < NPHASES; p++)
    text += fmt::format(" {} {:.3f}{}", names[p], 1e6 * total[p] / std::max(1.0, atom_calls),
                        p + 1 < NPHASES ? "," : "\n");
  utils::logmesg(lmp, text);
}

/* ---------------------------------------------------------------------- */

double PairEquivariant::memory_usage()
{
  const auto bytes = [](const auto &...vectors) {
    return (0.0 + ... + (static_cast<double>(vectors.capacity()) * sizeof(*vectors.data())));
  };
  return Pair::memory_usage() +
      bytes(atom_of_row, row_of_atom, absent, owner_of_ghost, species, edge_src, edge_dst,
            edge_neighbor, edge_vec, energies, gradient, ghost_forces, atom_virials, atom_of_place,
            species_of_place, edge_place, sent_rows, exchanged_row, positions, node_forces,
            node_virials) +
      potentials.memory();
}
