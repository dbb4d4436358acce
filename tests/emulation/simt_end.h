// After the kernels: how the emulated driver starts one.

namespace {
Task simt_task;
void (*simt_kernel)(Task);
void simt_body()
{
  simt_kernel(simt_task);
}
}     // namespace

extern "C" __attribute__((visibility("default"))) unsigned long simt_argument_bytes()
{
  return sizeof(Task);
}

// of a block of a kernel, as its launch bounds say (emulated.py)
extern "C" __attribute__((visibility("default"))) int simt_most_threads(const char *name)
{
  for (const auto &bounds : SIMT_BOUNDS)
    if (!std::strcmp(bounds.name, name)) return bounds.threads;
  return 1024;
}

// 0, or 1 where threads wait for each other in vain
extern "C" __attribute__((visibility("default"))) int simt_start(void *kernel, const void *argument,
                                                                 unsigned blocks, unsigned threads,
                                                                 unsigned long shared)
{
  simt_kernel = reinterpret_cast<void (*)(Task)>(kernel);
  std::memcpy(&simt_task, argument, sizeof(Task));
  try {
    simt::launch(&simt_body, {blocks, 1, 1}, {threads, 1, 1}, shared);
    return 0;
  } catch (const std::exception &error) {
    std::fprintf(stderr, "emulated GPU: %s (block %u)\n", error.what(), simt::block.x);
    return 1;
  }
}
