/* ----------------------------------------------------------------------
   Part of eqcalc; compiled against the headers of LAMMPS (https://www.lammps.org) and therefore
   distributed under the GNU General Public License, version 2.
   SPDX-License-Identifier: GPL-2.0-only
------------------------------------------------------------------------- */

#include "pair_equivariant.h"

#include "devices.h"
#include "engine.h"
#include "fused.h"

#include "atom.h"
#include "comm.h"
#include "domain.h"
#include "error.h"
#include "force.h"
#include "group.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "platform.h"
#include "universe.h"
#include "update.h"
#include "utils.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

#include <dlfcn.h>

using namespace LAMMPS_NS;

// by atomic number
static constexpr const char *SYMBOLS[] = {
    "X",  "H",  "He", "Li", "Be", "B",  "C",  "N",  "O",  "F",  "Ne", "Na", "Mg", "Al", "Si",
    "P",  "S",  "Cl", "Ar", "K",  "Ca", "Sc", "Ti", "V",  "Cr", "Mn", "Fe", "Co", "Ni", "Cu",
    "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y",  "Zr", "Nb", "Mo", "Tc", "Ru",
    "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I",  "Xe", "Cs", "Ba", "La", "Ce", "Pr",
    "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W",
    "Re", "Os", "Ir", "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac",
    "Th", "Pa", "U",  "Np", "Pu", "Am", "Cm", "Bk", "Cf", "Es", "Fm", "Md", "No", "Lr", "Rf",
    "Db", "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og"};
static constexpr int NUM_SYMBOLS = sizeof(SYMBOLS) / sizeof(SYMBOLS[0]);

// components of a 3x3 tensor in the order of cvatom; the first six name the symmetric ones
static constexpr int ROW_OF[9] = {0, 1, 2, 0, 0, 1, 1, 2, 2};
static constexpr int COLUMN_OF[9] = {0, 1, 2, 1, 2, 2, 0, 0, 1};

static constexpr double GPA = 160.2176634;     // in eV/Å^3

static constexpr const char *WITH_BONDS =
    "needs 'special_bonds lj/coul 1 1 1': with other factors LAMMPS leaves bonded neighbors out";

// the group that comm_modify restricts ghosts to; LAMMPS tells its own communication only
struct BorderGroup : Comm {
  static int of(const Comm &comm) { return comm.*(&BorderGroup::bordergroup); }
};

/* ----------------------------------------------------------------------
   The library with torch lies beside the plugin. It is opened when a potential needs it, so that
   LAMMPS starts without torch wherever that is not used.
------------------------------------------------------------------------- */

// a text of one process, on all
static std::string from_first(std::string text, int process, MPI_Comm comm)
{
  int length = static_cast<int>(text.size());
  MPI_Bcast(&length, 1, MPI_INT, process, comm);
  text.resize(length);
  MPI_Bcast(text.data(), length, MPI_CHAR, process, comm);
  return text;
}

template <typename Function> static Function *find_in_engine(const char *name)
{
  Dl_info plugin;
  dladdr(reinterpret_cast<const void *>(&from_first), &plugin);
  std::string path = plugin.dli_fname;
  path = path.substr(0, path.rfind('/') + 1) + "equivariantengine.so";
  void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);     // stays open
  void *symbol = library ? dlsym(library, name) : nullptr;
  if (!symbol)
    throw eqcalc::EngineError(std::string("the engine cannot be loaded (") + dlerror() +
                              "): run 'eqcalc lammps doctor'");
  return reinterpret_cast<Function *>(symbol);
}

static std::unique_ptr<eqcalc::Engine> open_torch(const eqcalc::EngineOptions &options)
{
  const auto factory = find_in_engine<eqcalc::EngineFactory>(eqcalc::ENGINE_FACTORY_NAME);
  return std::unique_ptr<eqcalc::Engine>(factory(options));
}

/* ---------------------------------------------------------------------- */

struct PairEquivariant::Exchange : eqcalc::RowExchange {
  PairEquivariant &pair;
  double seconds = 0.0;

  explicit Exchange(PairEquivariant &pair) : pair(pair) {}

  void forward(const eqcalc::Rows &rows) override
  {
    const double start = platform::walltime();
    pair.forward(payload(rows));
    seconds += platform::walltime() - start;
  }

  void reverse(const eqcalc::Rows &rows) override
  {
    const double start = platform::walltime();
    pair.reverse(payload(rows));
    seconds += platform::walltime() - start;
  }

  Payload payload(const eqcalc::Rows &rows) const
  {
    Payload result;
    if (rows.single)
      result.singles = static_cast<float *>(rows.data);
    else
      result.values = static_cast<double *>(rows.data);
    result.width = rows.width;
    result.row_of_atom = pair.row_of_atom.data();
    return result;
  }
};

/* ---------------------------------------------------------------------- */

PairEquivariant::PairEquivariant(LAMMPS *lmp) :
    Pair(lmp), device("cpu"), threads(0), timing(false), on_domain_exit(WARN), cutoff(0.0),
    energy_unit(1.0), num_nodes(0), num_rows(0), graph_build(-1), num_calls(0), num_atom_calls(0.0)
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
  precision.clear();
  engine_name.clear();
  device = "cpu";
  threads = 0;
  timing = false;
  on_domain_exit = WARN;

  for (int iarg = 0; iarg < narg; iarg += 2) {
    const std::string key = arg[iarg];
    if (key != "precision" && key != "engine" && key != "device" && key != "threads" &&
        key != "timing" && key != "domain")
      error->all(FLERR,
                 "Pair style equivariant does not know the keyword '{}'; it knows precision, "
                 "engine, device, threads, timing and domain",
                 key);
    if (iarg + 1 == narg) error->all(FLERR, "Pair style equivariant: '{}' needs a value", key);
    std::string value = arg[iarg + 1];
    if (key == "precision") {
      if (value == "float32") value = "single";
      if (value == "float64") value = "double";
      if (value != "single" && value != "double")
        error->all(FLERR, "Pair style equivariant: precision must be single or double, not '{}'",
                   value);
      precision = value;
    } else if (key == "engine") {
      if (value != "fused" && value != "exact" && value != "torch")
        error->all(FLERR,
                   "Pair style equivariant: engine must be fused, exact or torch, not '{}'", value);
      engine_name = value;
    } else if (key == "device") {
      device = value;
    } else if (key == "threads") {
      threads = utils::inumeric(FLERR, value, false, lmp);
      if (threads < 1)
        error->all(FLERR, "Pair style equivariant: threads must be at least 1, not {}", threads);
    } else if (key == "domain") {
      if (value != "warn" && value != "stop" && value != "ignore")
        error->all(FLERR,
                   "Pair style equivariant: domain must be warn, stop or ignore, not '{}'", value);
      on_domain_exit = value == "warn" ? WARN : value == "stop" ? STOP : IGNORE;
    } else {
      timing = utils::logical(FLERR, value, false, lmp) != 0;
    }
  }

  const std::string unknown = eqcalc::device_problem(device);
  if (!unknown.empty()) error->all(FLERR, "Pair style equivariant: {}", unknown);
  if (device.rfind("cuda", 0) == 0 && (engine_name == "fused" || engine_name == "exact"))
    error->all(FLERR, "Pair style equivariant: engine {} runs on device cpu, not {}", engine_name,
               device);

  // a potential opened with other settings is void
  engine.reset();
  if (allocated) allocate();
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::coeff(int narg, char **arg)
{
  const int ntypes = atom->ntypes;
  if (narg < 3 || strcmp(arg[0], "*") != 0 || strcmp(arg[1], "*") != 0)
    error->all(FLERR,
               "Pair style equivariant: expected 'pair_coeff * * model.pth' and one element, or "
               "NULL, for each atom type");
  if (narg != 3 + ntypes)
    error->all(FLERR,
               "Pair style equivariant: pair_coeff names {} elements, but there are {} atom "
               "types: give one element, or NULL, for each",
               narg - 3, ntypes);
  allocate();

  eqcalc::EngineOptions options;
  options.path = arg[2];
  const char *home = getenv("HOME");
  if (home && options.path.rfind("~/", 0) == 0) options.path.replace(0, 1, home);
  options.precision = precision;
  options.device = choose_device();
  options.threads = threads;
  options.rank_on_machine = (options.device == "cuda") ? rank_on_machine() : 0;
  options.with_exchange = comm->nprocs > 1;
  if (options.path.find('/') == std::string::npos)
    options.path = find_model(options.path, {arg + 3, arg + narg});
  open_engine(options);
  const auto &model = *engine;
  cutoff = model.cutoff();

  // types of the run -> species of the model

  const auto &numbers = model.atomic_numbers();
  std::string known;
  for (int z : numbers) known += (known.empty() ? "" : ", ") + std::string(SYMBOLS[z]);
  type2species.assign(ntypes + 1, -1);
  int mapped = 0;
  for (int itype = 1; itype <= ntypes; itype++) {
    const std::string element = arg[2 + itype];
    if (element == "NULL") continue;
    for (std::size_t k = 0; k < numbers.size(); k++)
      if (numbers[k] > 0 && numbers[k] < NUM_SYMBOLS && element == SYMBOLS[numbers[k]])
        type2species[itype] = static_cast<int>(k);
    if (type2species[itype] < 0)
      error->all(FLERR,
                 "Pair style equivariant: {} knows {}, but pair_coeff names {} for atom type {}",
                 options.path, known, element, itype);
    mapped++;
  }
  if (!mapped)
    error->all(FLERR, "Pair style equivariant: pair_coeff names an element for no atom type");
  for (int i = 1; i <= ntypes; i++)
    for (int j = 1; j <= ntypes; j++)
      setflag[i][j] = (type2species[i] >= 0 && type2species[j] >= 0) ? 1 : 0;

  std::vector<std::string> symbols;
  for (int z : numbers) symbols.emplace_back(SYMBOLS[z]);
  training = on_domain_exit == IGNORE
      ? eqcalc::TrainingDomain("", symbols)
      : eqcalc::TrainingDomain(model.training_domain(), symbols);

  // sizes of messages: the widest layer, the map of ghosts to owners, virials

  Payload widest;
  float dummy;
  widest.singles = model.single() ? &dummy : nullptr;
  for (int width : model.exchange_widths()) widest.width = std::max(widest.width, width);
  comm_forward = std::max(1, widest.doubles());
  comm_reverse = comm_reverse_off = std::max(9, widest.doubles());

  if (comm->me == 0) {
    utils::logmesg(lmp, "Pair style equivariant: {} ({}), {}\n", options.path, known,
                   model.describe());
    if (!model.origin().empty())
      utils::logmesg(lmp, "Pair style equivariant: imported from {}\n", model.origin());
  }
}

/* ----------------------------------------------------------------------
   The generated kernels, or torch where they cannot be had or are not wanted: the same engine on
   all processes.
------------------------------------------------------------------------- */

void PairEquivariant::open_engine(eqcalc::EngineOptions &options)
{
  problem.clear();
  engine.reset();
  std::string reason;     // why not the generated kernels
  if (engine_name != "torch" && options.device == "cpu") {
    reason = open_fused(options, engine_name == "exact" ? "network" : "table");
    if (reason.empty()) return;
    if (!engine_name.empty()) {
      problem = reason;
      stop_together();
    }
  }
  try {
    engine = open_torch(options);
  } catch (const std::bad_alloc &) {
    problem = "out of memory while opening " + options.path;
  } catch (const std::exception &e) {
    problem = e.what();
  }
  stop_together();
  if (!reason.empty() && comm->me == 0)
    error->warning(FLERR, "Pair style equivariant runs on torch, which is many times slower: {}",
                   reason);
}

/* ----------------------------------------------------------------------
   What one process of each machine says, on all of that machine.
------------------------------------------------------------------------- */

std::string PairEquivariant::once_per_machine(const std::function<std::string()> &ask)
{
  MPI_Comm machine;
  int rank;
  MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, comm->me, MPI_INFO_NULL, &machine);
  MPI_Comm_rank(machine, &rank);
  std::string answer;
  if (rank == 0) answer = ask();
  answer = from_first(answer, 0, machine);
  MPI_Comm_free(&machine);
  return answer;
}

/* ----------------------------------------------------------------------
   A file in this folder, or that of a model with a name: bundled, or imported for these elements
------------------------------------------------------------------------- */

std::string PairEquivariant::find_model(const std::string &name,
                                        const std::vector<std::string> &elements)
{
  std::vector<std::string> needed;
  for (const std::string &element : elements)
    if (element != "NULL") needed.push_back(element);
  const std::string answer = once_per_machine([&] {
    return platform::file_is_readable(name) ? "ready " + name : eqcalc::find_model(name, needed);
  });
  const auto space = answer.find(' ');
  if (answer.substr(0, space) != "ready") problem = answer.substr(space + 1);
  stop_together();
  return answer.substr(space + 1);
}

/* ----------------------------------------------------------------------
   One process of each machine has Python prepare the file. Empty, or on all processes the sentence
   of the first that has not got the kernels. What goes wrong with kernels that there are is an
   error.
------------------------------------------------------------------------- */

std::string PairEquivariant::open_fused(eqcalc::EngineOptions options, const std::string &radial)
{
  const std::string answer = once_per_machine(
      [&] { return eqcalc::prepare_fused(options.path, precision, radial); });

  std::string reason;
  if (options.threads == 0) options.threads = comm->nthreads;
  const auto space = answer.find(' ');
  const std::string state = answer.substr(0, space), rest = answer.substr(space + 1);
  if (state == "fault") {
    problem = rest;
  } else if (state != "ready") {
    reason = rest;
  } else {
    try {
      engine = eqcalc::open_fused(rest, options, radial);
    } catch (const std::bad_alloc &) {
      problem = "out of memory while opening " + options.path;
    } catch (const std::exception &e) {
      problem = e.what();
    }
  }
  stop_together();
  int mine = reason.empty() ? comm->nprocs : comm->me, first;
  MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, world);
  if (first == comm->nprocs) return "";
  engine.reset();
  return from_first(reason, first, world);
}

/* ----------------------------------------------------------------------
   Stop all processes with the sentence of the first that has one. Where each stopped on its own,
   the first might end the others before they have printed theirs.
------------------------------------------------------------------------- */

void PairEquivariant::stop_together()
{
  int mine = problem.empty() ? comm->nprocs : comm->me, first;
  MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, world);
  if (first == comm->nprocs) return;
  const std::string sentence = from_first(problem, first, world);
  problem.clear();
  error->all(FLERR, "Pair style equivariant: {}", sentence);
}

/* ---------------------------------------------------------------------- */

int PairEquivariant::rank_on_machine() const
{
  const int launched = eqcalc::rank_of_launcher();
  if (launched >= 0) return launched;

  // within this world, after the processes of the worlds before it, which others may wait for

  MPI_Comm machine;
  int rank;
  MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, comm->me, MPI_INFO_NULL, &machine);
  MPI_Comm_rank(machine, &rank);
  MPI_Comm_free(&machine);
  return rank + universe->root_proc[universe->iworld];
}

/* ----------------------------------------------------------------------
   'auto' is a GPU where every process has one that torch can use, else the CPU, with its kernels
------------------------------------------------------------------------- */

std::string PairEquivariant::choose_device() const
{
  if (device != "auto") return device;
  const auto everywhere = [this](bool here) {
    int mine = here, all;
    MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, world);
    return all != 0;
  };
  if (engine_name == "fused" || engine_name == "exact") return "cpu";
  if (!everywhere(eqcalc::Driver().gpus > 0)) return "cpu";     // before torch is loaded
  bool usable = false;
  try {
    usable = find_in_engine<eqcalc::GpuCount>(eqcalc::GPU_COUNT_NAME)() > 0;
  } catch (const std::exception &) {     // said where torch is really needed
  }
  return everywhere(usable) ? "cuda" : "cpu";
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::init_style()
{
  if (!engine)
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
  training.begin_run();
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

  if (neighbor->ago == 0 || neighbor->ncalls != graph_build ||
      static_cast<int>(row_of_atom.size()) != atom->nlocal + atom->nghost)
    number_rows();
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

  Exchange exchange(*this);
  engine->evaluate(graph, comm->nprocs > 1 ? &exchange : nullptr, energies.data(),
                   gradient.data());
  seconds[EXCHANGE] += exchange.seconds;
  seconds[MODEL] += elapsed() - exchange.seconds;

  check_finite();
  stop_together();
  tally();
  watch_domain();
  seconds[TALLY] += elapsed();
  num_calls++;
  num_atom_calls += static_cast<double>(graph.num_local);
}

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
        if ((j < 0 || type2species[atom->type[j]] >= 0) && problem.empty())
          problem = fmt::format("atoms {} and {} are bonded: it {}",
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

  training.begin_step();
  edge_src.clear();
  edge_dst.clear();
  edge_neighbor.clear();
  edge_vec.clear();
  for (std::size_t row = 0; row < num_local; row++) {
    const int i = atom_of_row[row];
    const double xi = x[i][0], yi = x[i][1], zi = x[i][2];
    if (!std::isfinite(xi + yi + zi) && problem.empty())
      problem = fmt::format("the position of atom {} is not finite ({}, {}, {}): the simulation "
                            "blew up",
                            atom->tag[i], xi, yi, zi);
    const int species_i = static_cast<int>(species[row]);
    const double *near_sq = training.near_sq(species_i);
    const std::size_t edges_before = edge_src.size();
    const int *neighbors = list->firstneigh[i];
    for (int jj = 0; jj < list->numneigh[i]; jj++) {
      int j = neighbors[jj] & NEIGHMASK;
      const double dx = x[j][0] - xi, dy = x[j][1] - yi, dz = x[j][2] - zi;
      const double distance_sq = dx * dx + dy * dy + dz * dz;
      if (distance_sq >= cutoff_sq) continue;
      const int species_j = type2species[type[j]];
      if (species_j < 0) continue;     // none is absent: lists lack them
      if (distance_sq < near_sq[species_j])
        training.note_pair(i, j, species_i, species_j, distance_sq);
      if (distance_sq == 0.0 && problem.empty())
        problem =
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
    if (training.known())
      training.note_count(i, species_i, static_cast<int>(edge_src.size() - edges_before));
  }
  num_nodes = num_rows = static_cast<bigint>(species.size());
  if (!single_process) number_ghosts();
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

/* ---------------------------------------------------------------------- */

void PairEquivariant::check_finite()
{
  const auto note = [this](const char *what, int i) {
    if (problem.empty())
      problem = fmt::format("the {} of atom {} at ({}, {}, {}) is not finite: the simulation blew "
                            "up, or left what the potential knows",
                            what, atom->tag[i], atom->x[i][0], atom->x[i][1], atom->x[i][2]);
  };
  for (std::size_t row = 0; row < energies.size(); row++)
    if (!std::isfinite(energies[row])) note("energy", atom_of_row[row]);
  for (std::size_t k = 0; k < gradient.size(); k++)
    if (!std::isfinite(gradient[k])) note("force", atom_of_row[edge_dst[k / 3]]);
}

/* ----------------------------------------------------------------------
   F_i = sum_j g_ij - sum_j g_ji,   W_j = - sum_i r_ij (x) g_ij
   The virial goes to the neighbor j, because an energy current is then - sum_j W_j v_j:
   Fan et al., Phys. Rev. B 92, 094301 (2015), eqs. 19-23.
------------------------------------------------------------------------- */

void PairEquivariant::tally()
{
  const bool single_process = comm->nprocs == 1;
  const int nlocal = atom->nlocal;
  const int nall = nlocal + atom->nghost;
  const std::size_t num_edges = edge_src.size();
  double **f = atom->f;

  if (energy_unit != 1.0) {
    for (double &value : energies) value *= energy_unit;
    for (double &value : gradient) value *= energy_unit;
  }

  if (eflag_global)
    for (double value : energies) eng_vdwl += value;
  if (eflag_atom)
    for (std::size_t row = 0; row < energies.size(); row++)
      eatom[atom_of_row[row]] += energies[row];

  // Without newton's third law across processes LAMMPS does not collect forces on ghosts.

  const bool collect = !single_process && !force->newton_pair;
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
  if (collect) {
    Payload forces;
    forces.values = ghost_forces.data();
    forces.width = 3;
    reverse(forces);
    for (int i = 0; i < nlocal; i++)
      for (int a = 0; a < 3; a++) f[i][a] += ghost_forces[3 * static_cast<std::size_t>(i) + a];
  }

  if (vflag_global) {
    double total[9] = {};
    for (std::size_t e = 0; e < num_edges; e++)
      for (int c = 0; c < 9; c++)
        total[c] -= edge_vec[3 * e + ROW_OF[c]] * gradient[3 * e + COLUMN_OF[c]];
    for (int c = 0; c < 3; c++) {
      virial[c] += total[c];
      virial[3 + c] += 0.5 * (total[3 + c] + total[6 + c]);
    }
  }
  if (vflag_atom || cvflag_atom) {
    atom_virials.assign(9 * static_cast<std::size_t>(nall), 0.0);
    for (std::size_t e = 0; e < num_edges; e++) {
      double *w = &atom_virials[9 * static_cast<std::size_t>(edge_neighbor[e])];
      for (int c = 0; c < 9; c++)
        w[c] -= edge_vec[3 * e + ROW_OF[c]] * gradient[3 * e + COLUMN_OF[c]];
    }
    if (!single_process) {
      Payload virials;
      virials.values = atom_virials.data();
      virials.width = 9;
      reverse(virials);
    }
    for (int i = 0; i < nlocal; i++) {
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
}

/* ----------------------------------------------------------------------
   Say once per run and quantity that the structure is outside of the training: distances and
   neighbors at every step, what has to be summed over processes where LAMMPS asks for it anyway
------------------------------------------------------------------------- */

void PairEquivariant::watch_domain()
{
  using eqcalc::TrainingDomain;
  if (!training.known()) return;
  const auto symbol = [this](int i) { return SYMBOLS[engine->atomic_numbers()[species_of(i)]]; };

  constexpr TrainingDomain::Quantity LOCAL[] = {TrainingDomain::DISTANCE,
                                                TrainingDomain::NEIGHBORS};
  struct {
    double severity;
    int process;
  } mine[2], worst[2];
  for (int k = 0; k < 2; k++) mine[k] = {training.place(LOCAL[k]).severity, comm->me};
  MPI_Allreduce(mine, worst, 2, MPI_DOUBLE_INT, MPI_MINLOC, world);
  for (int k = 0; k < 2; k++) {
    if (worst[k].severity >= 0.0) continue;
    std::string sentence;
    if (worst[k].process == comm->me) {
      const auto &place = training.place(LOCAL[k]);
      const int i = place.i, j = place.j;
      if (LOCAL[k] == TrainingDomain::DISTANCE) {
        const double limit = training.shortest(species_of(i), species_of(j));
        sentence = fmt::format("atoms {} and {} ({}-{}) are {:.3f} Å apart ({})", atom->tag[i],
                               atom->tag[j], symbol(i), symbol(j), place.figure,
                               std::isinf(limit)
                                   ? "training: they never met"
                                   : fmt::format("limit of the training: {:.3f} Å", limit));
      } else {
        const auto &range = training.neighbors(species_of(i));
        sentence = fmt::format("atom {} ({}) has {:g} neighbors (limits of the training: {:g} to "
                               "{:g})",
                               atom->tag[i], symbol(i), place.figure, range.low, range.high);
      }
    }
    leave_domain(LOCAL[k], from_first(sentence, worst[k].process, world));
  }

  if (!eflag_global && !vflag_global) return;
  enum { ATOMS, EXCESS, TRACE, NSUMS };
  std::array<double, NSUMS> own = {}, sums;
  own[ATOMS] = static_cast<double>(atom_of_row.size());
  const auto &references = engine->reference_energies();
  if (eflag_global) own[EXCESS] = eng_vdwl / energy_unit;
  for (int i : atom_of_row)
    own[EXCESS] -= references.empty() ? 0.0 : references[species_of(i)];
  own[TRACE] = (virial[0] + virial[1] + virial[2]) / energy_unit;
  MPI_Allreduce(own.data(), sums.data(), NSUMS, MPI_DOUBLE, MPI_SUM, world);
  if (sums[ATOMS] == 0.0) return;
  if (eflag_global && !references.empty())
    watch_range(TrainingDomain::ENERGY, "energy above the reference energies", "eV/atom",
                sums[EXCESS] / sums[ATOMS]);

  // of the whole box, where all of its atoms are this style's

  if (domain->dimension != 3 || !domain->xperiodic || !domain->yperiodic || !domain->zperiodic ||
      sums[ATOMS] != static_cast<double>(atom->natoms))
    return;
  const double volume = domain->xprd * domain->yprd * domain->zprd;
  watch_range(TrainingDomain::DENSITY, "density", "atoms/Å^3", sums[ATOMS] / volume);
  if (vflag_global)
    watch_range(TrainingDomain::PRESSURE, "pressure", "GPa", GPA * sums[TRACE] / (3.0 * volume));
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::watch_range(eqcalc::TrainingDomain::Quantity quantity, const char *name,
                                  const char *unit, double value)
{
  const auto &range = training.range(quantity);
  if (training.watches(quantity) && !range.contains(value))
    leave_domain(quantity, fmt::format("the {} is {:.4g} {} (limits of the training: {:.4g} to "
                                       "{:.4g})",
                                       name, value, unit, range.low, range.high));
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::leave_domain(eqcalc::TrainingDomain::Quantity quantity,
                                   const std::string &sentence)
{
  training.told(quantity);
  const std::string text =
      fmt::format("Pair style equivariant: outside of the potential's training, {}: forces and "
                  "energies there are extrapolations that nothing vouches for",
                  sentence);
  if (on_domain_exit == STOP) error->all(FLERR, "{}", text);
  if (comm->me == 0) error->warning(FLERR, "{}", text);
}

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

int PairEquivariant::pack_forward_comm(int n, int *indices, double *buf, int /*pbc_flag*/,
                                       int * /*pbc*/)
{
  const std::size_t width = payload.width, doubles = payload.doubles();
  for (int k = 0; k < n; k++, buf += doubles) {
    const int row = payload.row_of_atom ? payload.row_of_atom[indices[k]] : indices[k];
    if (row < 0)
      std::fill_n(buf, doubles, 0.0);
    else if (payload.singles)
      memcpy(buf, payload.singles + row * width, width * sizeof(float));
    else
      memcpy(buf, payload.values + row * width, width * sizeof(double));
  }
  return n * static_cast<int>(doubles);
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::unpack_forward_comm(int n, int first, double *buf)
{
  const std::size_t width = payload.width, doubles = payload.doubles();
  for (int k = first; k < first + n; k++, buf += doubles) {
    const int row = payload.row_of_atom ? payload.row_of_atom[k] : k;
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
  const std::size_t width = payload.width, doubles = payload.doubles();
  for (int k = first; k < first + n; k++, buf += doubles) {
    const int row = payload.row_of_atom ? payload.row_of_atom[k] : k;
    if (row < 0)
      std::fill_n(buf, doubles, 0.0);
    else if (payload.singles)
      memcpy(buf, payload.singles + row * width, width * sizeof(float));
    else
      memcpy(buf, payload.values + row * width, width * sizeof(double));
  }
  return n * static_cast<int>(doubles);
}

/* ---------------------------------------------------------------------- */

void PairEquivariant::unpack_reverse_comm(int n, int *indices, double *buf)
{
  const std::size_t width = payload.width, doubles = payload.doubles();
  for (int k = 0; k < n; k++, buf += doubles) {
    const int row = payload.row_of_atom ? payload.row_of_atom[indices[k]] : indices[k];
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
  std::string text = fmt::format("Pair style equivariant: {} calls, microseconds per atom and call "
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
    return (0.0 + ... +
            (static_cast<double>(vectors.capacity()) * sizeof(*vectors.data())));
  };
  return Pair::memory_usage() +
      bytes(atom_of_row, row_of_atom, absent, owner_of_ghost, species, edge_src, edge_dst, edge_neighbor,
            edge_vec, energies, gradient, ghost_forces, atom_virials);
}
