// libcuda on the CPU, for tests. Modules are libraries that g++ has made of the kernels' source
// (simt.h). Work on a stream is queued, and done when somebody waits for it: without that, numbers
// are what they were before. Memory of the device begins as NaN, ends at a page that nobody may
// touch, and is limited.

#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace {

enum {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  NOT_FOUND = 500,
  LAUNCH_FAILED = 719,
  CAPTURE_UNSUPPORTED = 900
};

constexpr std::size_t PAGE = 4096;

struct Module {
  void *library;
  int (*start)(void *, const void *, unsigned, unsigned, unsigned long);
  std::size_t argument_bytes;
};

struct Function {
  const Module *module;
  void *body;
  unsigned shared;     // bytes that a launch may ask for
};

int number_of(const char *variable, int otherwise)
{
  const char *number = std::getenv(variable);
  return number ? std::atoi(number) : otherwise;
}

// bytes of shared memory of a block: without being asked, and with
constexpr int SHARED = 48 * 1024;
int most_shared()
{
  return number_of("EQCALC_EMULATION_SHARED", SHARED);
}

// on a stream or in a graph: what is done, kernels, bytes up and down
struct Work {
  std::function<int()> run;
  long long kernels, up, down;
};
using Graph = std::vector<Work>;

Graph queued;
Graph *captured = nullptr;     // what is queued goes there, while it is not null
std::map<std::uintptr_t, std::pair<void *, std::size_t>> allocations;     // and whole mappings
std::vector<void *> contexts;                                             // current ones
std::size_t limit = std::size_t(1) << 32, used = 0;
// kernels; bytes up, bytes down; waits; kernels and graphs started, each at once; kernels that were
// left for later by waits for an event; kernels with shared memory that the launch asked for
constexpr int COUNTS = 7;
long long counts[COUNTS];
long long done = 0;     // pieces of work, ever

// these, of all of a process, into a file of its own
struct AtTheEnd {
  ~AtTheEnd()
  {
    const char *path = std::getenv("EQCALC_EMULATION_COUNTS");
    if (!path || !counts[0]) return;
    std::FILE *file = std::fopen((path + ("." + std::to_string(getpid()))).c_str(), "w");
    if (!file) return;
    for (const long long count : counts) std::fprintf(file, "%lld ", count);
    std::fclose(file);
  }
} at_the_end;

int later(Work work)
{
  if (contexts.empty()) return INVALID_CONTEXT;
  if (captured) {
    captured->push_back(std::move(work));
    return SUCCESS;
  }
  counts[0] += work.kernels;
  counts[1] += work.up;
  counts[2] += work.down;
  queued.push_back(std::move(work));
  return SUCCESS;
}

// the first pieces of work that are queued
int finish(std::size_t pieces)
{
  Graph work(queued.begin(), queued.begin() + pieces);
  queued.erase(queued.begin(), queued.begin() + pieces);
  done += static_cast<long long>(pieces);
  for (const auto &item : work)
    if (const int failed = item.run()) return failed;
  return SUCCESS;
}

std::size_t whole_pages(std::size_t bytes)
{
  return (bytes + PAGE - 1) / PAGE * PAGE;
}

}     // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API cuInit(unsigned)
{
  return SUCCESS;
}
API cuDeviceGetCount(int *count)
{
  *count = 2;
  return SUCCESS;
}
API cuDeviceGet(int *device, int number)
{
  *device = number;
  return SUCCESS;
}
// multiprocessors; bytes of shared memory that a block may ask for
API cuDeviceGetAttribute(int *value, int attribute, int)
{
  if (attribute != 16 && attribute != 97) return INVALID_VALUE;
  *value = attribute == 16 ? number_of("EQCALC_EMULATION_PROCESSORS", 3) : most_shared();
  return SUCCESS;
}
API cuDevicePrimaryCtxRetain(void **context, int device)
{
  *context = reinterpret_cast<void *>(static_cast<std::uintptr_t>(device + 1));
  return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int)
{
  return SUCCESS;
}
API cuCtxPushCurrent_v2(void *context)
{
  contexts.push_back(context);
  return SUCCESS;
}
API cuCtxPopCurrent_v2(void **context)
{
  if (contexts.empty()) return INVALID_CONTEXT;
  *context = contexts.back();
  contexts.pop_back();
  return SUCCESS;
}

API cuModuleLoadData(void **module, const void *image)
{
  // an ELF file ends with the table of its sections
  const auto *elf = static_cast<const Elf64_Ehdr *>(image);
  if (std::memcmp(elf->e_ident, ELFMAG, SELFMAG) != 0) return INVALID_IMAGE;
  const std::size_t bytes = elf->e_shoff + std::size_t(elf->e_shnum) * elf->e_shentsize;
  const int file = memfd_create("kernels", 0);
  if (file < 0 || write(file, image, bytes) != static_cast<ssize_t>(bytes)) return INVALID_IMAGE;
  const std::string path = "/proc/self/fd/" + std::to_string(file);
  // the file stays open: dlopen takes a name that it has seen for the library that it was
  void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    std::fprintf(stderr, "emulated GPU: %s\n", dlerror());
    return INVALID_IMAGE;
  }
  auto *made = new Module{library, nullptr, 0};
  made->start = reinterpret_cast<decltype(made->start)>(dlsym(library, "simt_start"));
  made->argument_bytes =
      reinterpret_cast<unsigned long (*)()>(dlsym(library, "simt_argument_bytes"))();
  *module = made;
  return SUCCESS;
}
API cuModuleUnload(void *module)
{
  delete static_cast<Module *>(module);     // functions of it may still be known: not closed
  return SUCCESS;
}
API cuModuleGetFunction(void **function, void *module, const char *name)
{
  const auto *from = static_cast<const Module *>(module);
  void *body = dlsym(from->library, name);
  if (!body) return NOT_FOUND;
  *function = new Function{from, body, SHARED};
  return SUCCESS;
}

API cuFuncSetAttribute(void *function, int attribute, int value)
{
  if (contexts.empty()) return INVALID_CONTEXT;
  if (attribute != 8 || value < 0 || value > most_shared()) return INVALID_VALUE;
  static_cast<Function *>(function)->shared = value;
  return SUCCESS;
}

API cuMemGetInfo_v2(std::size_t *free, std::size_t *all)
{
  *free = limit > used ? limit - used : 0;
  *all = limit;
  return SUCCESS;
}
API cuMemAlloc_v2(unsigned long long *address, std::size_t bytes)
{
  if (contexts.empty()) return INVALID_CONTEXT;
  if (!bytes) return INVALID_VALUE;
  if (captured) return CAPTURE_UNSUPPORTED;
  if (used + bytes > limit) return OUT_OF_MEMORY;
  const std::size_t size = whole_pages(bytes) + 2 * PAGE;
  char *base = static_cast<char *>(
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  std::memset(base, 0xff, size);     // NaN, and -1 of integers
  char *start = base + size - PAGE - (bytes + 15) / 16 * 16;
  mprotect(base, PAGE, PROT_NONE);
  mprotect(base + size - PAGE, PAGE, PROT_NONE);
  *address = reinterpret_cast<std::uintptr_t>(start);
  allocations[*address] = {base, size};
  used += bytes;
  return SUCCESS;
}
API cuMemFree_v2(unsigned long long address)
{
  if (contexts.empty()) return INVALID_CONTEXT;
  const auto found = allocations.find(address);
  if (found == allocations.end()) return INVALID_VALUE;
  const auto [base, size] = found->second;
  const std::size_t bytes = static_cast<char *>(base) + size - PAGE -
      reinterpret_cast<char *>(address);
  used -= std::min(used, bytes);
  munmap(base, size);
  allocations.erase(found);
  return SUCCESS;
}
API cuMemHostAlloc(void **address, std::size_t bytes, unsigned)
{
  *address = std::malloc(bytes);
  if (*address) std::memset(*address, 0xff, bytes);
  return *address ? SUCCESS : OUT_OF_MEMORY;
}
API cuMemFreeHost(void *address)
{
  std::free(address);
  return SUCCESS;
}

API cuMemcpyHtoDAsync_v2(unsigned long long to, const void *from, std::size_t bytes, void *)
{
  const auto copy = [=] { return std::memcpy(reinterpret_cast<void *>(to), from, bytes), SUCCESS; };
  return later({copy, 0, static_cast<long long>(bytes), 0});
}
API cuMemcpyDtoHAsync_v2(void *to, unsigned long long from, std::size_t bytes, void *)
{
  const auto copy = [=] { return std::memcpy(to, reinterpret_cast<void *>(from), bytes), SUCCESS; };
  return later({copy, 0, 0, static_cast<long long>(bytes)});
}
API cuMemsetD8Async(unsigned long long to, unsigned char value, std::size_t bytes, void *)
{
  const auto set = [=] { return std::memset(reinterpret_cast<void *>(to), value, bytes), SUCCESS; };
  return later({set, 0, 0, 0});
}

API cuLaunchKernel(void *function, unsigned bx, unsigned by, unsigned bz, unsigned tx, unsigned ty,
                   unsigned tz, unsigned shared, void *, void **arguments, void **)
{
  const auto *f = static_cast<const Function *>(function);
  if (!bx || by != 1 || bz != 1 || !tx || tx > 1024 || ty != 1 || tz != 1 ||
      shared > f->shared)
    return INVALID_VALUE;
  if (shared) counts[6]++;
  if (!captured) counts[4]++;
  const auto *first = static_cast<const char *>(arguments[0]);
  std::vector<char> copy(first, first + f->module->argument_bytes);
  const auto start = f->module->start;
  void *body = f->body;
  return later(
      {[=] { return start(body, copy.data(), bx, tx, shared) ? LAUNCH_FAILED : SUCCESS; }, 1, 0, 0});
}

API cuStreamCreate(void **stream, unsigned)
{
  *stream = reinterpret_cast<void *>(1);
  return SUCCESS;
}
API cuStreamDestroy_v2(void *)
{
  return SUCCESS;
}
API cuStreamSynchronize(void *)
{
  if (captured) return CAPTURE_UNSUPPORTED;
  counts[3]++;
  return finish(queued.size());
}

// an event is what had been queued, of all work ever
API cuEventCreate(void **event, unsigned)
{
  *event = new long long(0);
  return SUCCESS;
}
API cuEventDestroy_v2(void *event)
{
  delete static_cast<long long *>(event);
  return SUCCESS;
}
API cuEventRecord(void *event, void *)
{
  if (captured) return CAPTURE_UNSUPPORTED;
  *static_cast<long long *>(event) = done + static_cast<long long>(queued.size());
  return SUCCESS;
}
API cuEventSynchronize(void *event)
{
  const int failed = finish(std::max(0LL, *static_cast<long long *>(event) - done));
  for (const Work &work : queued) counts[5] += work.kernels;
  return failed;
}

API cuStreamBeginCapture_v2(void *, int)
{
  if (captured) return CAPTURE_UNSUPPORTED;
  captured = new Graph;
  return SUCCESS;
}
API cuStreamEndCapture(void *, void **graph)
{
  if (!captured) return INVALID_VALUE;
  *graph = std::exchange(captured, nullptr);
  return SUCCESS;
}
API cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long)
{
  *exec = new Graph(*static_cast<const Graph *>(graph));
  return SUCCESS;
}
API cuGraphLaunch(void *exec, void *)
{
  counts[4]++;
  for (const Work &work : *static_cast<const Graph *>(exec))
    if (const int failed = later(work)) return failed;
  return SUCCESS;
}
API cuGraphDestroy(void *graph)
{
  delete static_cast<Graph *>(graph);
  return SUCCESS;
}
API cuGraphExecDestroy(void *exec)
{
  delete static_cast<Graph *>(exec);
  return SUCCESS;
}
API cuGetErrorName(int error, const char **name)
{
  *name = error == LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED"
      : error == INVALID_IMAGE   ? "CUDA_ERROR_INVALID_IMAGE"
      : error == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT"
                                 : "CUDA_ERROR";
  return SUCCESS;
}

// for tests: how many bytes there are, what was done since the last call
extern "C" __attribute__((visibility("default"))) void emulated_memory(std::size_t bytes)
{
  limit = bytes;
}
extern "C" __attribute__((visibility("default"))) std::size_t emulated_used()
{
  return used;
}
extern "C" __attribute__((visibility("default"))) void emulated_counts(long long *to)
{
  std::memcpy(to, counts, sizeof(counts));
  std::memset(counts, 0, sizeof(counts));
}
