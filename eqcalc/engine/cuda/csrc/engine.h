// The functions of ../../csrc/interface.h and gpu_interface.h.

#pragma once
#include "../../csrc/pairs.h"
#include "network.h"

namespace {

inline Network &network(void *engine)
{
  return *static_cast<Network *>(engine);
}

// runs; 0, or a sentence in `text`, and nothing is left on the device that was to be done
template <class Run> int told_errors(void *engine, const Run &run, char *text, I size)
{
  const auto try_to_run = [&] {
    try {
      run();
    } catch (...) {
      if (engine) network(engine).settle();
      throw;
    }
  };
  try {
    try_to_run();
    return 0;
  } catch (const std::bad_alloc &) {
    std::snprintf(text, size,
                  "the GPU has too little memory: use fewer atoms per process, or the CPU");
    return EQCALC_OUT_OF_MEMORY;
  } catch (const std::exception &e) {
    std::snprintf(text, size, "%s", e.what());
    return 1;
  }
}

}     // namespace

extern "C" {

int eqcalc_interface_version()
{
  return EQCALC_INTERFACE_VERSION;
}
int eqcalc_gpu_interface_version()
{
  return EQCALC_GPU_INTERFACE_VERSION;
}

int eqcalc_open(const char *description, I bytes, void **engine, char *error, I size)
{
  return eqcalc_open_on(description, bytes, 0, 0, engine, error, size);
}

int eqcalc_open_on(const char *description, I bytes, int number, int in_turn, void **engine,
                   char *error, I size)
{
  return told_errors(
      nullptr,
      [&] { *engine = new Network(read_description(description, bytes), number, in_turn != 0); },
      error, size);
}

void eqcalc_close(void *engine)
{
  delete static_cast<Network *>(engine);
}

int eqcalc_evaluate(void *engine, const eqcalc_graph *graph, const eqcalc_exchange *exchange,
                    int threads, double *energies, double *gradient, char *error, I size)
{
  return eqcalc_evaluate_uncertainty(engine, graph, exchange, threads, energies, gradient, nullptr,
                                     error, size);
}

int eqcalc_evaluate_uncertainty(void *engine, const eqcalc_graph *graph,
                                const eqcalc_exchange *exchange, int, double *energies,
                                double *gradient, const eqcalc_uncertainty *uncertainty,
                                char *error, I size)
{
  return told_errors(
      engine,
      [&] {
        if (uncertainty && (uncertainty->variances || uncertainty->grades))
          throw std::runtime_error("on a GPU it has no uncertainties: use the CPU for these");
        network(engine).place(*graph, eqcalc_list{});
        network(engine).evaluate(graph->edge_vec, exchange, energies, gradient,
                                 uncertainty ? uncertainty->features : nullptr);
      },
      error, size);
}

int eqcalc_place(void *engine, const eqcalc_graph *graph, const eqcalc_list *list, char *error,
                 I size)
{
  return told_errors(engine, [&] { network(engine).place(*graph, *list); }, error, size);
}

int eqcalc_step(void *engine, const double *positions, const eqcalc_exchange *exchange,
                const eqcalc_step_results *results, char *error, I size)
{
  return told_errors(
      engine, [&] { network(engine).step(positions, exchange, *results); }, error, size);
}

void eqcalc_limit_memory(void *engine, I bytes)
{
  network(engine).limit_memory(bytes);
}

int eqcalc_num_features(void *engine)
{
  return static_cast<int>(network(engine).num_features());
}

// the host has features alone
int eqcalc_has_uncertainty(void *)
{
  return 0;
}

int eqcalc_exchange_widths(void *engine, int *widths, int count)
{
  const int layers = static_cast<int>(network(engine).num_layers());
  for (int k = 1; k < layers && k <= count; k++)
    widths[k - 1] = static_cast<int>(network(engine).width(k));
  return layers - 1;
}

I eqcalc_memory(void *engine)
{
  return network(engine).bytes();
}
}
