// SPDX-License-Identifier: GPL-2.0-only

#include "fused.h"

#include "gpu_interface.h"
#include "reference.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <new>
#include <sstream>

#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;     // NOLINT(readability-redundant-declaration): not in every unistd.h

namespace eqcalc {

namespace {

// The first line that a module of Python prints; empty where it cannot be run.
std::string ask_python(const std::vector<std::string> &module_and_arguments)
{
  std::vector<const char *> arguments = {EQCALC_PYTHON, "-P", "-m"};
  for (const std::string &word : module_and_arguments) arguments.push_back(word.c_str());
  arguments.push_back(nullptr);
  int ends[2];
  if (pipe(ends) != 0) return "";
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_addclose(&actions, ends[0]);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", 0, 0);
  pid_t child;
  const int failed = posix_spawn(&child, EQCALC_PYTHON, &actions, nullptr,
                                 const_cast<char *const *>(arguments.data()), environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  std::string answer;
  if (!failed) {
    char buffer[512];
    for (ssize_t count; (count = read(ends[0], buffer, sizeof(buffer))) != 0;) {
      if (count > 0)
        answer.append(buffer, count);
      else if (errno != EINTR)
        break;
    }
    while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {}
  }
  close(ends[0]);
  return answer.substr(0, answer.find('\n'));
}

}     // namespace

std::string prepare_fused(const std::string &path, const std::string &precision,
                          const std::string &radial)
{
  const std::string wanted = precision.empty() ? "file" : precision;
  std::string answer = ask_python({"eqcalc.engine.prepare", path, wanted, radial});
  for (const char *known : {"ready ", "unavailable ", "error ", "fault "})
    if (answer.rfind(known, 0) == 0) return answer;
  return std::string("unavailable ") + EQCALC_PYTHON +
      " could not prepare the kernels: run 'eqcalc lammps doctor'";
}

std::string find_model(const std::string &name, const std::vector<std::string> &elements)
{
  std::vector<std::string> words = {"eqcalc.names", name};
  words.insert(words.end(), elements.begin(), elements.end());
  std::string answer = ask_python(words);
  for (const char *known : {"ready ", "error "})
    if (answer.rfind(known, 0) == 0) return answer;
  return "error there is no file " + name + ", and " + EQCALC_PYTHON +
      " could not tell what else it means: run 'eqcalc lammps doctor'";
}

namespace {

std::string content(const std::string &path)
{
  std::ifstream file(path, std::ios::binary);
  if (!file) throw EngineError(path + " cannot be read");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

ReferenceStructure read_reference(const std::string &path)
{
  const std::string bytes = content(path);
  const char *at = bytes.data();
  const auto take = [&](auto &values, std::size_t count) {
    values.resize(count);
    const std::size_t size = count * sizeof(values[0]);
    if (at + size > bytes.data() + bytes.size()) throw EngineError(path + " is cut short");
    std::memcpy(values.data(), at, size);
    at += size;
  };
  std::vector<int64_t> counts;
  take(counts, 2);
  ReferenceStructure reference;
  take(reference.species, counts[0]);
  take(reference.edge_src, counts[1]);
  take(reference.edge_dst, counts[1]);
  take(reference.edge_vec, 3 * counts[1]);
  take(reference.energies, counts[0]);
  take(reference.forces, 3 * counts[0]);
  take(reference.strain, 9);
  return reference;
}

class FusedEngine final : public Engine {
 public:
  FusedEngine(const std::string &folder, const EngineOptions &options, const std::string &radial) :
      path_(options.path), radial_(radial), threads_(std::max(1, options.threads))
  {
    std::istringstream lines(content(folder + "/engine.txt"));
    std::string library;
    for (std::string line; std::getline(lines, line);) {
      const auto space = line.find(' ');
      const std::string key = line.substr(0, space), value = line.substr(space + 1);
      if (key == "library") (library = folder).append("/").append(value);
      if (key == "cutoff") cutoff_ = std::stod(value);
      if (key == "single") single_ = value == "1";
      if (key == "references") {
        std::istringstream energies(value);
        for (double e; energies >> e;) reference_energies_.push_back(e);
      }
      if (key == "numbers") {
        std::istringstream numbers(value);
        for (int z; numbers >> z;) atomic_numbers_.push_back(z);
      }
    }
    // held until this process ends: the cache then keeps the folder
    const int used = ::open((folder + "/used").c_str(), O_RDONLY | O_CLOEXEC);
    if (used >= 0) flock(used, LOCK_SH | LOCK_NB);
    training_domain_ = content(folder + "/domain.txt");
    origin_ = content(folder + "/origin.txt");
    void *handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);     // stays open
    if (!handle) throw EngineError(library + " cannot be loaded: " + dlerror());
    const auto find = [&](auto &function, const char *name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
      if (!function) throw EngineError(library + " lacks " + name);
    };
    decltype(&eqcalc_interface_version) version;
    decltype(&eqcalc_open) open = nullptr;
    decltype(&eqcalc_open_on) open_on = nullptr;
    decltype(&eqcalc_exchange_widths) widths;
    find(version, "eqcalc_interface_version");
    if (version() != EQCALC_INTERFACE_VERSION)
      throw EngineError(library + " was made by another eqcalc: run 'eqcalc lammps build'");
    if (on_gpu())
      find(open_on, "eqcalc_open_on");
    else
      find(open, "eqcalc_open");
    find(widths, "eqcalc_exchange_widths");
    find(close_, "eqcalc_close");
    find(evaluate_, "eqcalc_evaluate");
    decltype(&eqcalc_has_uncertainty) has_uncertainty = nullptr;
    decltype(&eqcalc_limit_memory) limit_memory = nullptr;
    if (on_gpu()) {
      decltype(&eqcalc_gpu_interface_version) gpu_version;
      find(gpu_version, "eqcalc_gpu_interface_version");
      if (gpu_version() != EQCALC_GPU_INTERFACE_VERSION)
        throw EngineError(library + " was made by another eqcalc: run 'eqcalc lammps build'");
      find(limit_memory, "eqcalc_limit_memory");
      find(place_, "eqcalc_place");
      find(step_, "eqcalc_step");
    } else {
      find(evaluate_uncertainty_, "eqcalc_evaluate_uncertainty");
      find(has_uncertainty, "eqcalc_has_uncertainty");
    }

    const std::string network = content(folder + "/network.bin");
    char error[400];
    const auto bytes = static_cast<int64_t>(network.size());
    const bool in_turn = options.device == "cuda";
    const int number = in_turn ? options.rank_on_machine
        : on_gpu()             ? std::stoi(options.device.substr(5))
                               : 0;
    if (on_gpu() ? open_on(network.data(), bytes, number, in_turn, &network_, error, sizeof(error))
                 : open(network.data(), bytes, &network_, error, sizeof(error)))
      throw EngineError(path_ + ": " + error);
    if (limit_memory) limit_memory(network_, static_cast<int64_t>(1e9 * options.memory_limit));
    has_uncertainty_ = has_uncertainty && has_uncertainty(network_) != 0;
    exchange_widths_.resize(widths(network_, nullptr, 0));
    widths(network_, exchange_widths_.data(), static_cast<int>(exchange_widths_.size()));
    try {
      deviation_ =
          read_reference(folder + "/reference.bin").check(*this, path_, options.with_exchange);
    } catch (...) {
      close_(network_);
      throw;
    }
  }

  ~FusedEngine() override { close_(network_); }
  FusedEngine(const FusedEngine &) = delete;
  FusedEngine &operator=(const FusedEngine &) = delete;

  double cutoff() const override { return cutoff_; }
  const std::vector<int> &atomic_numbers() const override { return atomic_numbers_; }
  const std::vector<int> &exchange_widths() const override { return exchange_widths_; }
  bool single() const override { return single_; }
  const std::string &training_domain() const override { return training_domain_; }
  const std::string &origin() const override { return origin_; }
  const std::vector<double> &reference_energies() const override { return reference_energies_; }

  std::string describe() const override
  {
    const std::string where =
        on_gpu() ? "on a GPU" : std::to_string(threads_) + (threads_ > 1 ? " threads" : " thread");
    char text[240];
    std::snprintf(
        text, sizeof(text),
        "cutoff %g, %zu layers, %s precision, engine %s, %s, reference structure reproduced "
        "to %.1e",
        cutoff_, exchange_widths_.size() + 1, single_ ? "single" : "double",
        radial_ == "network" ? "exact" : "fused", where.c_str(), deviation_);
    return text;
  }

  std::string lacks_uncertainty() const override
  {
    if (on_gpu()) return "runs on a GPU, where it has no uncertainty yet: choose device cpu";
    return has_uncertainty_
        ? ""
        : "has no uncertainty: run 'eqcalc calibrate MODEL frames.xyz' with its "
          "training frames";
  }

  void evaluate(const Graph &graph, RowExchange *exchange, double *energies, double *gradient,
                const AtomicUncertainty *uncertainty) override
  {
    const eqcalc_graph rows = graph_of(graph);
    const Callbacks callbacks(exchange, single_);
    char error[400];
    const auto *const callbacks_or_none = callbacks.get();
    int failed;
    if (uncertainty) {
      const eqcalc_uncertainty wanted = {nullptr, uncertainty->variances, uncertainty->grades};
      failed = evaluate_uncertainty_(network_, &rows, callbacks_or_none, threads_, energies,
                                     gradient, &wanted, error, sizeof(error));
    } else {
      failed = evaluate_(network_, &rows, callbacks_or_none, threads_, energies, gradient, error,
                         sizeof(error));
    }
    check(failed, error);
  }

  bool keeps_lists() const override { return on_gpu(); }

  void place(const PairList &list) override
  {
    const eqcalc_graph graph = graph_of(list.graph);
    const eqcalc_list pairs = {nullptr, list.num_places, list.edge_place, list.num_sent, list.sent};
    char error[400];
    check(place_(network_, &graph, &pairs, error, sizeof(error)), error);
  }

  void step(const double *positions, RowExchange *exchange, StepResults &results) override
  {
    const Callbacks callbacks(exchange, single_);
    const eqcalc_step_results wanted = {results.energies, results.forces,    results.virials,
                                        results.virial,   &results.nearest,  results.limits,
                                        results.numbers,  results.near_edges};
    char error[400];
    check(step_(network_, positions, callbacks.get(), &wanted, error, sizeof(error)), error);
  }

 private:
  static eqcalc_graph graph_of(const Graph &graph)
  {
    return {graph.num_local, graph.num_nodes, graph.num_rows, graph.num_edges,
            graph.species,   graph.edge_src,  graph.edge_dst, graph.edge_vec};
  }

  // an exchange as the library calls it
  class Callbacks {
   public:
    Callbacks(RowExchange *exchange, bool single) :
        exchange_(exchange), single_(single), functions_{this, &forward, &reverse}
    {
    }
    Callbacks(const Callbacks &) = delete;
    Callbacks &operator=(const Callbacks &) = delete;
    const eqcalc_exchange *get() const { return exchange_ ? &functions_ : nullptr; }

   private:
    RowExchange *exchange_;
    bool single_;
    eqcalc_exchange functions_;

    static void forward(void *self, void *data, int width)
    {
      const auto *own = static_cast<Callbacks *>(self);
      own->exchange_->forward({data, width, own->single_});
    }
    static void reverse(void *self, void *data, int width)
    {
      const auto *own = static_cast<Callbacks *>(self);
      own->exchange_->reverse({data, width, own->single_});
    }
  };

  void check(int failed, const char *error) const
  {
    // a GPU says itself that it is the one
    if (failed == EQCALC_OUT_OF_MEMORY && !on_gpu()) throw std::bad_alloc();
    if (failed) throw EngineError(path_ + ": " + error);
  }

  bool on_gpu() const { return radial_ == "gpu"; }

  std::string path_, radial_;
  int threads_;
  double cutoff_ = 0.0, deviation_ = 0.0;
  bool single_ = false, has_uncertainty_ = false;
  std::vector<int> atomic_numbers_, exchange_widths_;
  std::string training_domain_, origin_;
  std::vector<double> reference_energies_;
  void *network_ = nullptr;
  decltype(&eqcalc_close) close_ = nullptr;
  decltype(&eqcalc_evaluate) evaluate_ = nullptr;
  decltype(&eqcalc_evaluate_uncertainty) evaluate_uncertainty_ = nullptr;
  decltype(&eqcalc_place) place_ = nullptr;
  decltype(&eqcalc_step) step_ = nullptr;
};

}     // namespace

std::unique_ptr<Engine> open_fused(const std::string &folder, const EngineOptions &options,
                                   const std::string &radial)
{
  return std::make_unique<FusedEngine>(folder, options, radial);
}

}     // namespace eqcalc
