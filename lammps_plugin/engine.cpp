// SPDX-License-Identifier: GPL-2.0-only

#include "engine.h"

#include "devices.h"
#include "reference.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/jit/runtime/profiling_graph_executor_impl.h>
#include <torch/cuda.h>
#include <torch/script.h>
#include <torch/version.h>

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <new>
#include <unordered_map>
#include <utility>

#include <malloc.h>
#include <unistd.h>

using torch::Tensor;
using torch::jit::IValue;

namespace eqcalc {

namespace {

constexpr int64_t FORMAT_VERSION = 1;
constexpr const char *METADATA_FILE = "eqcalc.json";
constexpr const char *DOMAIN_FILE = "eqcalc_domain.txt";
constexpr const char *ORIGIN_FILE = "eqcalc_origin.txt";
constexpr const char *FLOAT64_PREFIX = "reference_";     // submodules that stay float64

// torch's message without its stack traces
std::string first_line(const std::string &text)
{
  const std::string marker = "RuntimeError: ";
  const auto inner = text.rfind(marker);
  const auto begin = (inner == std::string::npos) ? 0 : inner + marker.size();
  return text.substr(begin, text.find('\n', begin) - begin);
}

std::string message_of(const std::exception &error)
{
  if (const auto *c10_error = dynamic_cast<const c10::Error *>(&error))
    return first_line(c10_error->what_without_backtrace());
  return first_line(error.what());
}

// CUDA that torch was built for, such as 13000; 0 without. A macro of the build: torch's own headers
// say it only where a CUDA toolkit is installed.
#ifndef EQCALC_CUDA_OF_TORCH
#define EQCALC_CUDA_OF_TORCH 0
#endif
constexpr int CUDA_OF_TORCH = EQCALC_CUDA_OF_TORCH;

// Products in float32 without rounding to TensorFloat-32 or bfloat16, which would make the energy
// surface rough. torch has an old and a new name for the same setting; the old one can be read only
// where the new one does not contradict it.
class ExactProducts {
 public:
  ExactProducts()
  {
    auto &context = at::globalContext();
    for (size_t k = 0; k < BACKENDS.size(); k++) {
      before_[k] = context.float32Precision(BACKENDS[k], at::Float32Op::MATMUL);
      rounded_ |= before_[k] == at::Float32Precision::TF32 ||
          before_[k] == at::Float32Precision::BF16;
    }
    if (!rounded_) return;
    try {
      old_ = context.float32MatmulPrecision();
    } catch (const std::exception &) {
      old_ = at::Float32MatmulPrecision::HIGHEST;     // set by the new name only
    }
    context.setFloat32MatmulPrecision("highest");
  }
  ~ExactProducts()
  {
    if (!rounded_) return;
    auto &context = at::globalContext();
    if (old_ != at::Float32MatmulPrecision::HIGHEST)
      context.setFloat32MatmulPrecision(old_ == at::Float32MatmulPrecision::HIGH ? "high"
                                                                                 : "medium");
    for (size_t k = 0; k < BACKENDS.size(); k++)
      context.setFloat32Precision(BACKENDS[k], at::Float32Op::MATMUL, before_[k]);
  }
  ExactProducts(const ExactProducts &) = delete;
  ExactProducts &operator=(const ExactProducts &) = delete;

 private:
  static constexpr std::array<at::Float32Backend, 2> BACKENDS = {at::Float32Backend::CUDA,
                                                                 at::Float32Backend::MKLDNN};
  std::array<at::Float32Precision, 2> before_;
  at::Float32MatmulPrecision old_ = at::Float32MatmulPrecision::HIGHEST;
  bool rounded_ = false;
};

// Numbers in the precision that the code names, also inside of somebody's autocast.
class NoAutocast {
 public:
  NoAutocast()
  {
    for (size_t k = 0; k < DEVICES.size(); k++) {
      before_[k] = at::autocast::is_autocast_enabled(DEVICES[k]);
      if (before_[k]) at::autocast::set_autocast_enabled(DEVICES[k], false);
    }
  }
  ~NoAutocast()
  {
    for (size_t k = 0; k < DEVICES.size(); k++)
      if (before_[k]) at::autocast::set_autocast_enabled(DEVICES[k], true);
  }
  NoAutocast(const NoAutocast &) = delete;
  NoAutocast &operator=(const NoAutocast &) = delete;

 private:
  static constexpr std::array<at::DeviceType, 2> DEVICES = {at::kCPU, at::kCUDA};
  std::array<bool, 2> before_;
};

// What evaluate() needs of torch's global state, put back afterwards.
class TorchState {
 public:
  explicit TorchState(int threads) : threads_before_(at::get_num_threads()), threads_(threads)
  {
    // one compiled graph for all sizes: recompiling whenever the number of edges changes is slow
    torch::jit::FusionStrategy none = {{torch::jit::FusionBehavior::STATIC, 0}};
    strategy_before_ = torch::jit::setFusionStrategy(none);
    if (threads_ > 0 && threads_ != threads_before_) at::set_num_threads(threads_);
  }
  ~TorchState()
  {
    torch::jit::setFusionStrategy(strategy_before_);
    if (threads_ > 0 && threads_ != threads_before_) at::set_num_threads(threads_before_);
  }
  TorchState(const TorchState &) = delete;
  TorchState &operator=(const TorchState &) = delete;

 private:
  torch::jit::FusionStrategy strategy_before_;
  int threads_before_, threads_;
  c10::InferenceMode ordinary_tensors_{false};
  NoAutocast no_autocast_;
  ExactProducts exact_products_;
  torch::AutoGradMode grad_mode_{true};
};

// Keeps freed memory in the process while a potential is open: every step needs as much again, and
// fresh pages cost up to a quarter of a step. The C library's own defaults come back afterwards.
class FreedMemory {
 public:
#ifdef __GLIBC__
  FreedMemory()
  {
    if (holders_++ > 0) return;
    mallopt(M_MMAP_MAX, 0);
    mallopt(M_TRIM_THRESHOLD, -1);
  }
  ~FreedMemory()
  {
    if (--holders_ > 0) return;
    mallopt(M_MMAP_MAX, 65536);
    mallopt(M_TRIM_THRESHOLD, 128 * 1024);
    malloc_trim(0);
  }
#else
  FreedMemory() {}
#endif
  FreedMemory(const FreedMemory &) = delete;
  FreedMemory &operator=(const FreedMemory &) = delete;

 private:
  static inline int holders_ = 0;
};

// The differentiable tensors inside an opaque value, cut from the graph that made them.
struct Cut {
  std::vector<Tensor> originals, leaves;

  IValue apply(const IValue &value)
  {
    if (value.isTensor()) return cut(value.toTensor());
    if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor &tensor : value.toTensorVector()) list.push_back(cut(tensor));
      return list;
    }
    if (value.isTuple()) {
      const auto tuple = value.toTuple();
      std::vector<IValue> elements;
      for (const IValue &element : tuple->elements()) elements.push_back(apply(element));
      return c10::ivalue::Tuple::createNamed(std::move(elements), tuple->type());
    }
    return value;
  }

 private:
  Tensor cut(const Tensor &tensor)
  {
    if (!tensor.defined() || !tensor.requires_grad()) return tensor;
    originals.push_back(tensor);
    leaves.push_back(tensor.detach().requires_grad_(true));
    return leaves.back();
  }
};

// Sums of gradients, one per tensor; undefined means zero.
void accumulate(std::vector<Tensor> &sums, const torch::autograd::variable_list &terms)
{
  for (size_t n = 0; n < sums.size(); n++) {
    if (!terms[n].defined()) continue;
    sums[n] = sums[n].defined() ? sums[n] + terms[n] : terms[n];
  }
}

// Vector-Jacobian product; outputs that nothing depends on, or without a gradient, are left out.
torch::autograd::variable_list pull_back(const std::vector<std::pair<Tensor, Tensor>> &outputs,
                                         const std::vector<Tensor> &inputs)
{
  torch::autograd::variable_list roots, gradients;
  for (const auto &[output, gradient] : outputs) {
    if (!output.defined() || !output.requires_grad() || !gradient.defined()) continue;
    roots.push_back(output);
    gradients.push_back(gradient);
  }
  if (roots.empty() || inputs.empty()) return torch::autograd::variable_list(inputs.size());
  return torch::autograd::grad(roots, inputs, gradients, std::nullopt, false, true);
}

class TorchEngine final : public Engine {
 public:
  explicit TorchEngine(const EngineOptions &options) : options_(options)
  {
    choose_device();
    TorchState state(options_.threads);
    load();
    check_reference();
  }

  double cutoff() const override { return cutoff_; }
  const std::vector<int> &atomic_numbers() const override { return atomic_numbers_; }
  const std::vector<int> &exchange_widths() const override { return exchange_widths_; }
  bool single() const override { return dtype_ == torch::kFloat32; }
  const std::string &training_domain() const override { return training_domain_; }
  const std::string &origin() const override { return origin_; }
  const std::vector<double> &reference_energies() const override { return reference_energies_; }

  std::string describe() const override
  {
    char text[160];
    std::snprintf(text, sizeof(text),
                  "cutoff %g, %zu layers, %s precision, engine torch on %s, reference structure "
                  "reproduced to %.1e",
                  cutoff_, layers_.size(), single() ? "single" : "double", device_.str().c_str(),
                  deviation_);
    return text;
  }

  std::string lacks_uncertainty() const override
  {
    return "runs on engine torch, which has no uncertainty here: choose engine fused or exact";
  }

  void evaluate(const Graph &graph, RowExchange *exchange, double *energies, double *gradient,
                const AtomicUncertainty *uncertainty) override
  {
    if (uncertainty) throw EngineError(options_.path + " " + lacks_uncertainty());
    TorchState state(options_.threads);
    num_atoms_ = graph.num_nodes;
    num_edges_ = graph.num_edges;
    if (graph.num_local == 0)
      idle(graph, exchange);
    else if (exchange)
      in_layers(graph, *exchange, energies, gradient);
    else
      at_once(graph, energies, gradient);
  }

 private:
  struct Inputs {
    Tensor species, edge_vec, edge_src, edge_dst;
  };

  FreedMemory freed_memory_;
  EngineOptions options_;
  torch::Device device_ = torch::kCPU;
  torch::ScalarType dtype_ = torch::kFloat64;
  torch::jit::Module module_;
  std::vector<torch::jit::Module> layers_;
  double cutoff_ = 0.0, deviation_ = 0.0;
  int64_t num_atoms_ = 0, num_edges_ = 0;     // of this call
  std::vector<int> atomic_numbers_, exchange_widths_;
  std::string training_domain_, origin_;
  std::vector<double> reference_energies_;
  std::vector<Tensor> features_;     // before each layer, own atoms and ghosts, reused; on the CPU
  Tensor rows_;                      // gradients on their way back, reused; on the CPU

  // torch's exceptions, but not those of the exchange, as one sentence
  template <typename Call> auto guarded(const char *what, Call &&call)
  {
    try {
      return call();
    } catch (const EngineError &) {
      throw;
    } catch (const std::bad_alloc &) {
      throw;
    } catch (const std::exception &error) {
      if (says_out_of_memory(error.what())) {
        if (device_.is_cpu()) throw std::bad_alloc();
        throw EngineError("the GPU (" + device_.str() + ") has too little memory for " +
                          std::to_string(num_atoms_) + " atoms with " + std::to_string(num_edges_) +
                          " pairs of one process: use more GPUs, fewer atoms or precision single");
      }
      const std::string message = message_of(error);
      throw EngineError(options_.path + ": torch failed in " + what + ": " + message);
    }
  }

  void choose_device()
  {
    const std::string &name = options_.device;
    if (name == "cpu") return;
    const std::string asked = "device '" + name + "' was asked for, but ";
    if (!torch::cuda::is_available()) {
      const bool cuda_build = at::hasCUDA();
      const Driver driver;
      if (cuda_build && driver.gpus > 0 && driver.version < CUDA_OF_TORCH)
        throw EngineError("the NVIDIA driver, which reaches CUDA " + dotted(driver.version) +
                          ", is too old for torch " TORCH_VERSION ", which was built for CUDA " +
                          dotted(CUDA_OF_TORCH) +
                          ": update the driver, or install a torch for an older CUDA (or use "
                          "device cpu)");
      throw EngineError(asked +
                        "torch " TORCH_VERSION " sees no CUDA GPU here: use device cpu, or " +
                        (cuda_build ? "look with nvidia-smi and CUDA_VISIBLE_DEVICES why"
                                    : "install a CUDA build of torch on a machine with a GPU"));
    }
    const int count = static_cast<unsigned char>(torch::cuda::device_count());
    const int index = name == "cuda" ? options_.rank_on_machine % count : std::stoi(name.substr(5));
    if (index >= count)
      throw EngineError(asked + "there is only " +
                        (count == 1 ? "cuda:0" : "cuda:0 to cuda:" + std::to_string(count - 1)) +
                        " here");
    device_ = torch::Device(torch::kCUDA, static_cast<c10::DeviceIndex>(index));
  }

  static std::string dotted(int version)
  {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  }

  void load()
  {
    const std::string &path = options_.path;
    if (access(path.c_str(), R_OK) != 0)
      throw EngineError("there is no readable model file " + path);
    const std::string foreign = path +
        " is not an eqcalc potential file; make one with 'eqcalc export RUN -o model.pth'";
    std::unordered_map<std::string, std::string> extra = {
        {METADATA_FILE, ""}, {DOMAIN_FILE, ""}, {ORIGIN_FILE, ""}};
    try {
      module_ = torch::jit::load(path, device_, extra);
    } catch (const std::exception &error) {
      if (says_out_of_memory(error.what()))
        throw EngineError(device_.str() + " has too little memory to open " + path);
      throw EngineError(foreign);
    }
    if (extra[METADATA_FILE].empty() || !module_.hasattr("format_version"))
      throw EngineError(foreign);
    const int64_t version = module_.attr("format_version").toInt();
    if (version != FORMAT_VERSION)
      throw EngineError(path + " has format version " + std::to_string(version) +
                        ", but this pair style reads version " + std::to_string(FORMAT_VERSION) +
                        (version > FORMAT_VERSION ? ": update eqcalc"
                                                  : ": export the model again with this eqcalc"));
    if (module_.hasattr("refused_by_lammps")) {
      const std::string reason = module_.attr("refused_by_lammps").toStringRef();
      if (!reason.empty()) throw EngineError(path + " " + reason);
    }
    guarded("reading the file", [&] {
      module_.eval();
      cutoff_ = module_.attr("cutoff").toDouble();
      for (int64_t z : module_.attr("atomic_numbers").toIntVector())
        atomic_numbers_.push_back(static_cast<int>(z));
      for (int64_t width : module_.attr("exchange_widths").toIntVector())
        exchange_widths_.push_back(static_cast<int>(width));
      for (const auto &layer : module_.attr("layers").toModule().children())
        layers_.push_back(layer);
      training_domain_ = extra[DOMAIN_FILE];
      origin_ = extra[ORIGIN_FILE];
      if (module_.hasattr("reference_energy"))
        reference_energies_ = numbers(module_.attr("reference_energy").toModule(), "shift");
      set_precision();
    });
    if (layers_.size() != exchange_widths_.size() + 1)
      throw EngineError(path + " is inconsistent: " + std::to_string(layers_.size()) +
                        " layers, but " + std::to_string(exchange_widths_.size()) +
                        " widths to exchange; export the model again");
    features_.resize(layers_.size());
  }

  static std::vector<double> numbers(const torch::jit::Module &module, const char *name)
  {
    const Tensor t = module.attr(name).toTensor().to(torch::kCPU, torch::kFloat64).contiguous();
    return std::vector<double>(t.data_ptr<double>(), t.data_ptr<double>() + t.numel());
  }

  // parameters and buffers take the precision of the calculation, those of reference_* do not
  void set_precision()
  {
    std::vector<Tensor> tensors;
    const auto collect = [&](const std::string &name, const Tensor &tensor) {
      if (tensor.is_floating_point() && name.rfind(FLOAT64_PREFIX, 0) != 0)
        tensors.push_back(tensor);
    };
    for (const auto &entry : module_.named_parameters()) {
      entry.value.set_requires_grad(false);
      collect(entry.name, entry.value);
    }
    for (const auto &entry : module_.named_buffers()) collect(entry.name, entry.value);
    if (options_.precision == "single")
      dtype_ = torch::kFloat32;
    else if (options_.precision == "double" || tensors.empty())
      dtype_ = torch::kFloat64;
    else
      dtype_ = tensors.front().scalar_type();
    for (Tensor &tensor : tensors) tensor.set_data(tensor.to(dtype_));
  }

  template <typename T> Tensor wrap(const T *data, at::IntArrayRef shape) const
  {
    const auto dtype = c10::CppTypeToScalarType<T>::value;
    return torch::from_blob(const_cast<T *>(data), shape, dtype).to(device_);
  }

  Inputs inputs(const Graph &graph) const
  {
    Tensor edge_vec = wrap(graph.edge_vec, {graph.num_edges, 3});
    return {wrap(graph.species, {graph.num_nodes}), edge_vec.requires_grad_(true),
            wrap(graph.edge_src, {graph.num_edges}), wrap(graph.edge_dst, {graph.num_edges})};
  }

  static void copy_out(const Tensor &tensor, double *out, int64_t count)
  {
    if (!tensor.defined()) {     // nothing depends on it
      std::fill_n(out, count, 0.0);
      return;
    }
    const Tensor flat = tensor.detach().to(torch::kCPU, torch::kFloat64).contiguous();
    std::memcpy(out, flat.const_data_ptr<double>(), count * sizeof(double));
  }

  // no ghosts: one call of the module
  void at_once(const Graph &graph, double *energies, double *gradient)
  {
    guarded("the model", [&] {
      const Inputs in = inputs(graph);
      const Tensor each =
          module_.forward({in.species, in.edge_vec, in.edge_src, in.edge_dst, graph.num_local})
              .toTensor();
      const auto g = pull_back({{each, torch::ones_like(each)}}, {in.edge_vec});
      copy_out(each, energies, graph.num_local);
      copy_out(g[0], gradient, 3 * graph.num_edges);
    });
  }

  // The same network layer by layer, ghost features exchanged in between. The backward pass is
  // driven by hand, so that every process makes every exchange, on its main thread.
  void in_layers(const Graph &graph, RowExchange &exchange, double *energies, double *gradient)
  {
    const size_t num_layers = layers_.size();
    std::vector<Tensor> node_feats_in(num_layers), node_feats_out(num_layers), readout(num_layers);
    Inputs in;
    Cut edges;
    IValue cut_edges;
    Tensor total;
    guarded("the model", [&] {
      in = inputs(graph);
      cut_edges = edges.apply(
          module_.get_method("edges")({in.species, in.edge_vec, in.edge_src, in.edge_dst}));
      node_feats_in[0] = module_.get_method("embed")({in.species}).toTensor();
      total = torch::zeros({graph.num_local}, in.edge_vec.options()).detach();
    });

    for (size_t k = 0; k < num_layers; k++) {
      if (k > 0) node_feats_in[k] = with_ghosts(k, node_feats_out[k - 1], graph, exchange);
      guarded("the model", [&] {
        const auto out =
            layers_[k].forward({node_feats_in[k], cut_edges, graph.num_local}).toTuple();
        node_feats_out[k] = out->elements()[0].toTensor();
        readout[k] = out->elements()[1].toTensor();
        total = total + readout[k].detach();
      });
    }

    std::vector<Tensor> edge_gradients(edges.leaves.size());
    Tensor total_gradient;
    guarded("the model", [&] {
      total.requires_grad_(true);
      const Tensor each = module_.get_method("finish")({in.species, cut_edges, total}).toTensor();
      copy_out(each, energies, graph.num_local);
      std::vector<Tensor> sources = edges.leaves;
      sources.push_back(total);
      auto g = pull_back({{each, torch::ones_like(each)}}, sources);
      total_gradient = g.back();
      g.pop_back();
      accumulate(edge_gradients, g);
    });

    Tensor feats_gradient;     // of node_feats_out[k]
    for (size_t k = num_layers; k-- > 0;) {
      Tensor with_ghost_rows;
      guarded("the model's gradient", [&] {
        std::vector<Tensor> sources = edges.leaves;
        if (k > 0) sources.push_back(node_feats_in[k]);
        auto g = pull_back({{node_feats_out[k], feats_gradient},
                            {readout[k],
                             total_gradient.defined() ? total_gradient.to(readout[k].scalar_type())
                                                      : total_gradient}},
                           sources);
        if (k > 0) {
          with_ghost_rows = g.back();
          g.pop_back();
        }
        accumulate(edge_gradients, g);
        node_feats_in[k] = node_feats_out[k] = readout[k] = Tensor();
      });
      if (k > 0) feats_gradient = to_owners(k, with_ghost_rows, graph, exchange);
    }

    guarded("the model's gradient", [&] {
      std::vector<std::pair<Tensor, Tensor>> outputs;
      outputs.reserve(edges.originals.size());
      for (size_t n = 0; n < edges.originals.size(); n++)
        outputs.emplace_back(edges.originals[n], edge_gradients[n]);
      copy_out(pull_back(outputs, {in.edge_vec})[0], gradient, 3 * graph.num_edges);
    });
  }

  // a process without atoms takes part in the exchanges only: ghosts pass through it
  void idle(const Graph &graph, RowExchange *exchange)
  {
    if (!exchange) return;
    for (int width : exchange_widths_)
      exchange->forward(rows_of(storage(rows_, graph.num_rows, width)));
    for (auto width = exchange_widths_.rbegin(); width != exchange_widths_.rend(); ++width) {
      Tensor zero = storage(rows_, graph.num_rows, *width);
      zero.zero_();
      exchange->reverse(rows_of(zero));
    }
  }

  // own features [num_local, width] -> own and ghost features [num_nodes, width], a leaf
  Tensor with_ghosts(size_t k, const Tensor &own, const Graph &graph, RowExchange &exchange)
  {
    Tensor rows;
    guarded("the model", [&] {
      if (own.size(1) != exchange_widths_[k - 1])
        throw EngineError(options_.path + " is inconsistent: layer " + std::to_string(k) +
                          " takes " + std::to_string(own.size(1)) + " columns, not the " +
                          std::to_string(exchange_widths_[k - 1]) + " that the file promises");
      rows = storage(features_[k], graph.num_rows, own.size(1));
      rows.narrow(0, 0, graph.num_local).copy_(own.detach());
    });
    exchange.forward(rows_of(rows));
    return guarded("the model", [&] {
      return rows.narrow(0, 0, graph.num_nodes).to(device_).detach().requires_grad_(true);
    });
  }

  // gradients of own and ghost features [num_nodes, width] -> of own ones, complete
  Tensor to_owners(size_t k, const Tensor &gradient, const Graph &graph, RowExchange &exchange)
  {
    Tensor rows;
    guarded("the model's gradient", [&] {
      rows = storage(rows_, graph.num_rows, exchange_widths_[k - 1]);
      if (gradient.defined())
        rows.narrow(0, 0, graph.num_nodes).copy_(gradient);
      else
        rows.narrow(0, 0, graph.num_nodes).zero_();
      rows.narrow(0, graph.num_nodes, graph.num_rows - graph.num_nodes).zero_();
    });
    exchange.reverse(rows_of(rows));
    return guarded("the model's gradient",
                   [&] { return rows.narrow(0, 0, graph.num_local).to(device_); });
  }

  // [rows, width] of a buffer on the CPU that grows and never shrinks
  Tensor storage(Tensor &buffer, int64_t rows, int64_t width) const
  {
    const int64_t need = rows * width;
    if (!buffer.defined() || buffer.numel() < need)
      buffer = torch::empty({need + need / 8}, torch::TensorOptions().dtype(dtype_));
    return buffer.narrow(0, 0, need).view({rows, width});
  }

  Rows rows_of(const Tensor &tensor) const
  {
    return {tensor.data_ptr(), static_cast<int>(tensor.size(1)), single()};
  }

  // the structure inside the file, evaluated again by the path that will be used
  void check_reference()
  {
    const auto stored = module_.attr("reference_structure").toModule();
    const auto integers = [&](const char *name) {
      const Tensor t = stored.attr(name).toTensor().to(torch::kCPU, torch::kInt64).contiguous();
      return std::vector<int64_t>(t.data_ptr<int64_t>(), t.data_ptr<int64_t>() + t.numel());
    };
    ReferenceStructure reference;
    reference.species = integers("species");
    reference.edge_src = integers("edge_src");
    reference.edge_dst = integers("edge_dst");
    reference.edge_vec = numbers(stored, "edge_vec");
    reference.energies = numbers(stored, "energies");
    reference.forces = numbers(stored, "forces");
    reference.strain = numbers(stored, "strain");
    deviation_ = reference.check(*this, options_.path, options_.with_exchange);
  }
};

}     // namespace

extern "C" EQCALC_PUBLIC int eqcalc_gpu_count()
{
  return torch::cuda::is_available() ? static_cast<int>(torch::cuda::device_count()) : 0;
}

extern "C" EQCALC_PUBLIC Engine *eqcalc_create_engine(const EngineOptions &options)
{
  try {
    return new TorchEngine(options);
  } catch (const EngineError &) {
    throw;
  } catch (const std::bad_alloc &) {
    throw;
  } catch (const std::exception &error) {
    throw EngineError(options.path + ": torch failed: " + message_of(error));
  }
}

}     // namespace eqcalc
